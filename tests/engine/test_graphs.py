"""What is replayed of a pass gives what the pass gives. A GPU's graph is stood in for by its function, called again."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adept_tune.engine.config import TrialConfig
from adept_tune.engine.graphs import Outputs, PassGraphs, nll_and_gradient
from tests.support.data import made_engine


class Captures:
    """Counts what is captured and replayed; a replay writes where the capture did."""

    def __init__(self, refused: Exception | None = None) -> None:
        self.captured = self.replayed = 0
        self.refused = refused

    def __call__(self, compute: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        self.captured += 1
        if self.refused is not None:
            raise self.refused
        outputs = compute()

        def replay() -> None:
            self.replayed += 1
            for place, tensor in zip(outputs, compute(), strict=True):
                place.copy_(tensor)

        for place in outputs:  # a capture does nothing yet
            place.fill_(float("nan"))
        return replay, outputs


BACKBONE = made_engine(dtype=torch.float64).backbone


def asked(num_rows: int, seed: int, short_targets: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    embeds = torch.randn(num_rows, 6, BACKBONE.d_model, generator=draw, dtype=torch.float64)
    mask = torch.ones(num_rows, 6, dtype=torch.bool)
    mask[0, 3 + seed % 3 :] = False
    target = torch.randint(3, BACKBONE.vocab_size, (num_rows, 3), generator=draw)
    target_mask = torch.ones(num_rows, 3, dtype=torch.bool)
    if short_targets:
        target_mask[seed % num_rows, 2] = False
    return embeds, mask, target, target_mask


def assert_equal(found: Outputs, expected: Outputs) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_replays_give_what_passes_give_whatever_came_between():
    captures = Captures()
    graphs = PassGraphs(BACKBONE, captures)
    for seed in range(12):
        question = asked(2 + seed % 3, seed, short_targets=seed % 2 == 0)
        assert_equal(graphs.run(*question), nll_and_gradient(BACKBONE, *question))
    assert (captures.captured, captures.replayed) == (3, 9)


def test_a_shape_is_captured_when_it_recurs_and_anew_when_it_was_pushed_out():
    captures = Captures()
    graphs = PassGraphs(BACKBONE, captures, most=2)
    told = []
    for num_rows in (2, 2, 3, 2, 4, 3, 3, 4, 4, 2, 2):
        graphs.run(*asked(num_rows, 0))
        told.append(captures.captured)
    assert told == [0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 4]


def test_what_was_seen_once_pushes_out_no_graph():
    captures = Captures()
    graphs = PassGraphs(BACKBONE, captures, most=2)
    for num_rows in (2, 2, 3, 4, 5, 6, 2):
        graphs.run(*asked(num_rows, 0))
    assert (captures.captured, captures.replayed) == (1, 2)


def test_forgetting_says_whether_there_was_anything_and_all_is_captured_anew():
    captures = Captures()
    graphs = PassGraphs(BACKBONE, captures)
    graphs.run(*asked(2, 0))
    assert not graphs.forget()
    graphs.run(*asked(2, 0))
    assert graphs.forget()
    assert not graphs.forget()
    for _ in range(2):
        question = asked(2, 1)
        assert_equal(graphs.run(*question), nll_and_gradient(BACKBONE, *question))
    assert captures.captured == 2


def test_where_the_gpu_refuses_a_capture_passes_go_on_without():
    captures = Captures(RuntimeError("not permitted"))
    graphs = PassGraphs(BACKBONE, captures)
    question = asked(2, 0)
    graphs.run(*question)
    with pytest.warns(UserWarning, match="one by one from here on: not permitted"):
        again = graphs.run(*question)
    assert_equal(again, nll_and_gradient(BACKBONE, *question))
    for num_rows in (2, 2, 3, 3):
        graphs.run(*asked(num_rows, 0))
    assert captures.captured == 1


def test_a_shape_without_room_for_its_graph_goes_without_and_the_others_begin_anew():
    captures = Captures()
    graphs = PassGraphs(BACKBONE, captures)
    for _ in range(2):
        graphs.run(*asked(2, 0))
    captures.refused = torch.OutOfMemoryError("no memory")
    for _ in range(3):
        question = asked(3, 0)
        assert_equal(graphs.run(*question), nll_and_gradient(BACKBONE, *question))
    captures.refused = None
    for _ in range(2):
        graphs.run(*asked(2, 0))
        graphs.run(*asked(3, 0))
    assert captures.captured == 3


def test_trials_learn_the_same_numbers_in_replayed_passes():
    states = []
    for replayed in (False, True):
        engine = made_engine(dtype=torch.float64, tokens_per_pass=60)
        captures = Captures()
        engine.graphs = PassGraphs(engine.backbone, captures) if replayed else None
        slots = [engine.join(TrialConfig(prompt_length=3 + n, width=2, batch_size=6, seed=n)) for n in range(3)]
        for company in (slots, slots, slots, slots[:2], slots[:2], slots):
            engine.step(company)
        assert not replayed or captures.replayed > 3
        states.append([engine.state(slot).tensors for slot in slots])
    for plain, replayed in zip(*states, strict=True):
        for name, tensor in plain.items():
            torch.testing.assert_close(replayed[name], tensor, rtol=0, atol=1e-10)


def test_out_of_memory_graphs_are_forgotten_before_a_pass_is_made_smaller(monkeypatch):
    engine = made_engine(dtype=torch.float64)
    slot = engine.join(TrialConfig(prompt_length=3, width=2, batch_size=4))
    target_nll = type(engine.backbone).target_nll
    held, tried = [True], []

    def cramped(backbone, embeds, *others):
        tried.append(len(embeds))
        if len(embeds) > 2 or held:
            raise torch.OutOfMemoryError("no memory")
        return target_nll(backbone, embeds, *others)

    monkeypatch.setattr(type(engine.backbone), "target_nll", cramped)
    engine._reader.forget = lambda: bool(held and held.pop())
    engine.step([slot])
    assert tried[:2] == [4, 4]
    assert max(tried[-2:]) <= 2
    assert engine.step_of(slot) == 1


def test_where_forgotten_graphs_come_back_the_parts_of_an_evaluation_get_smaller_until_they_fit_beside(monkeypatch):
    engine = made_engine(dtype=torch.float64)
    slot = engine.join(TrialConfig(prompt_length=3, width=2, batch_size=4))
    (expected,) = engine.evaluate([slot])
    reader, read, held, runs_out = engine._reader, type(engine.backbone).read, [True], []
    reader._tokens_per_pass = whole = 256

    def cramped(backbone, embeds, *others):
        if held and len(embeds) > 2:
            runs_out.append(len(embeds))
            raise torch.OutOfMemoryError("no memory beside the graphs")
        return read(backbone, embeds, *others)

    monkeypatch.setattr(type(engine.backbone), "read", cramped)
    reader.forget = lambda: bool(held and held.pop())
    seen = []
    for _ in range(8):
        (found,) = engine.evaluate([slot])
        assert found.texts == expected.texts
        seen.append(reader._tokens_per_pass)
        held[:] = [True]
    assert seen[:3] == [whole, whole // 2, whole // 4]
    assert seen[-1] == seen[-2]
    assert len(runs_out) == len(set(seen))


def test_gradient_checkpointing_is_not_replayed(monkeypatch):
    engine = made_engine(dtype=torch.float64)
    graphs = engine.graphs = PassGraphs(engine.backbone, Captures())
    slot = engine.join(TrialConfig(prompt_length=3, width=2, batch_size=4))
    runs, run = [], graphs.run
    monkeypatch.setattr(graphs, "run", lambda *question: runs.append(question) or run(*question))
    engine.step([slot])
    assert len(runs) == 1
    monkeypatch.setattr(type(engine.limits), "recomputing", True)
    engine.step([slot])
    assert len(runs) == 1
