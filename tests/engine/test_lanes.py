"""Passes side by side: the same numbers, nothing left running, every lane busy."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adept_tune.engine.lanes import Lanes
from adept_tune.engine.packing import passes
from adept_tune.engine.reading import Halted
from tests.engine.test_engine import config
from tests.engine.test_memory import TRIALS, Cramped
from tests.support.data import made_engine


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Lanes share out torch's threads; the next test has them all again."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_passes_however_long_each_takes():
    lanes = Lanes(3)

    def slow_first(number: int) -> tuple[int, str]:
        time.sleep(0.02 * (6 - number))
        return number, threading.current_thread().name

    found = list(lanes.run(slow_first, range(6)))
    assert [number for number, _ in found] == list(range(6))
    assert len({name for _, name in found}) == 3


def test_threads_are_shared_out_and_a_lane_knows_whether_gradients_are_wanted():
    torch.set_num_threads(4)
    lanes = Lanes(2)
    assert lanes.num_threads == torch.get_num_threads() == 4
    assert set(lanes.run(lambda _: torch.get_num_threads(), range(4))) == {2}
    with torch.no_grad():
        assert set(lanes.run(lambda _: torch.is_grad_enabled(), range(4))) == {False}
    assert set(lanes.run(lambda _: torch.is_grad_enabled(), range(4))) == {True}
    for _ in lanes.run(lambda _: torch.ones(100_000).exp().sum(), range(4)):
        assert torch.get_num_threads() == 1  # the caller's own operations have no helpers meanwhile
    assert torch.get_num_threads() == 4
    assert set(lanes.run(lambda _: torch.get_num_threads(), range(4))) == {2}
    torch.set_num_threads(1)
    lanes.split(2)
    assert torch.get_num_threads() == 4  # sums of the caller round alike, whatever came before
    lanes.split(1)
    assert (lanes.count, torch.get_num_threads()) == (1, 4)
    assert not lanes.halve()
    assert list(lanes.run(lambda _: threading.current_thread(), range(2))) == [threading.current_thread()] * 2


def test_an_error_comes_when_no_lane_is_busy_any_more():
    lanes, ended, threads = Lanes(2), [], torch.get_num_threads()

    def fail_first(number: int) -> None:
        if number == 0:
            raise ValueError("the first")
        time.sleep(0.1)
        ended.append(number)

    with pytest.raises(ValueError, match="the first"):
        list(lanes.run(fail_first, range(9)))
    before = list(ended)
    assert len(before) < 8
    assert torch.get_num_threads() == threads
    time.sleep(0.25)
    assert ended == before


STEPS = {
    "sizes": st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=5),
    "limit": st.none() | st.integers(1, 400),
    "num_lanes": st.integers(1, 4),
}


@given(**STEPS)
@settings(max_examples=200, deadline=None)
def test_whole_grains_of_rows_keep_no_lane_waiting(sizes, limit, num_lanes):
    lengths = np.random.default_rng(0).integers(1, 20, 30)
    rows, prompts = [np.arange(num_rows) for _, num_rows in sizes], [length for length, _ in sizes]

    def busiest(grain: int) -> int:
        parts = list(passes(rows, prompts, lengths, limit, num_lanes, grain=grain))
        each = [np.concatenate([lengths[p.rows] + p.prompt_length for p in part]) for part in parts]
        return -(-len(each) // num_lanes) * max(len(one) * one.max() for one in each)

    if num_lanes > 1:
        assert busiest(8) <= 1.1 * busiest(1)


def test_rows_that_whole_grains_would_share_badly_are_cut_as_they_come():
    rows = [np.arange(48)]
    assert [len(part[0].rows) for part in passes(rows, [0], np.full(48, 40), 4096, 4, grain=8)] == [12] * 4
    assert [len(part[0].rows) for part in passes(rows, [0], np.full(48, 40), 4096, 3, grain=8)] == [16] * 3


@given(**STEPS)
@settings(max_examples=200, deadline=None)
def test_lanes_get_like_parts_of_a_step_within_the_limit(sizes, limit, num_lanes):
    lengths = np.random.default_rng(0).integers(1, 20, 30)
    rows = [np.arange(num_rows) for _, num_rows in sizes]
    prompts = [prompt_length for prompt_length, _ in sizes]
    fewest = len(list(passes(rows, prompts, lengths, limit)))
    found = list(passes(rows, prompts, lengths, limit, num_lanes))
    taken = []
    for part in found:
        each = np.concatenate([lengths[piece.rows] + piece.prompt_length for piece in part])
        taken.append((len(each), len(each) * each.max()))
        assert limit is None or len(each) == 1 or taken[-1][1] <= limit
    assert sum(num_rows for num_rows, _ in taken) == sum(map(len, rows))
    assert fewest <= len(found) < fewest + num_lanes
    if fewest % num_lanes:  # there was room to even them out
        most = max(tokens for num_rows, tokens in taken)
        plain = [
            np.concatenate([lengths[p.rows] + p.prompt_length for p in part])
            for part in passes(rows, prompts, lengths, limit)
        ]
        assert most <= max(len(each) * each.max() for each in plain)


def test_a_lone_trial_keeps_all_lanes_busy():
    (first, second) = passes([np.arange(8)], [3], np.full(8, 5), None, 2)
    assert [len(piece.rows) for piece in (*first, *second)] == [4, 4]


@pytest.mark.parametrize("method", ["adept", "lora"])
def test_in_lanes_a_step_and_an_evaluation_are_those_without(method):
    some = TRIALS if method == "adept" else [config(3), config(4)]
    states, evaluations = [], []
    for num_lanes in (1, 3, 3):
        engine = made_engine(method, dtype=torch.float64, tokens_per_pass=60, num_lanes=num_lanes)
        slots = [engine.join(trial) for trial in some]
        for _ in range(4):
            engine.step(slots)
        states.append([engine.state(slot) for slot in slots])
        evaluations.append(engine.evaluate(slots))
    assert [one.to_bytes() for one in states[1]] == [one.to_bytes() for one in states[2]]
    for plain, in_lanes in zip(states[0], states[1], strict=True):
        for name, tensor in plain.tensors.items():
            torch.testing.assert_close(in_lanes.tensors[name], tensor, rtol=0, atol=1e-8)
    for plain, in_lanes in zip(evaluations[0], evaluations[1], strict=True):
        assert plain.texts == in_lanes.texts
        assert plain.loss == pytest.approx(in_lanes.loss, abs=1e-8)


def test_a_step_in_lanes_that_is_halted_or_does_not_fit_changes_nothing():
    engine = made_engine(tokens_per_pass=50, num_lanes=2)
    slots = [engine.join(trial) for trial in TRIALS]
    engine.step(slots)
    before = [engine.state(slot).to_bytes() for slot in slots]
    asked: list[bool] = []
    engine._halted = lambda: asked.append(True) or len(asked) > 2
    with pytest.raises(Halted):
        engine.step(slots)
    with pytest.raises(Halted):
        engine.evaluate(slots)
    assert [engine.state(slot).to_bytes() for slot in slots] == before

    engine._halted = lambda: False
    backbone = Cramped(engine, 3, "target_nll", torch.OutOfMemoryError("out of memory"))
    engine.step(slots)
    assert max(backbone.seen) > 3
    assert engine.limits.lanes.count == 1
    assert engine.limits.tokens_per_pass < 50
    assert [engine.step_of(slot) for slot in slots] == [2, 2, 2]


def test_where_memory_is_too_little_for_lanes_but_not_for_a_pass_the_lanes_go():
    engine = made_engine(tokens_per_pass=1, num_lanes=2)  # a row a pass
    slots = [engine.join(trial) for trial in TRIALS]
    target_nll, busy = engine.backbone.target_nll, threading.Lock()

    def crowded(*arguments):
        if not busy.acquire(blocking=False):
            raise torch.OutOfMemoryError("out of memory")
        try:
            time.sleep(0.01)
            return target_nll(*arguments)
        finally:
            busy.release()

    engine.backbone.target_nll = crowded
    engine.step(slots)
    assert (engine.limits.lanes.count, engine.limits.tokens_per_pass) == (1, 1)
    assert [engine.step_of(slot) for slot in slots] == [1, 1, 1]


def test_few_results_wait_to_be_taken():
    lanes, begun = Lanes(2), []
    for number in lanes.run(lambda number: begun.append(number) or number, range(20)):
        time.sleep(0.005)
        assert len(begun) <= number + 1 + 3  # those taken, and those in lanes or waiting
