"""The host without Ray: its coroutines over a made engine."""

import asyncio
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from adept_tune.engine.memory import Need
from adept_tune.engine.state import TrialState
from adept_tune.errors import BackboneError
from adept_tune.tuning import host as host_module
from adept_tune.tuning.host import Host, HostPlan, _within_memory
from adept_tune.tuning.search import companies
from tests.engine.test_engine import config
from tests.support.data import made_engine

PLAN = HostPlan(
    backbone={}, method="adept", device="cpu", precision="fp32", num_slots=2, tokens_per_pass=None, num_threads=1
)


def made_host(num_slots: int = 2) -> Host:
    host = Host(PLAN)
    host._engine = made_engine(num_slots=num_slots, halted=host._halt.is_set)
    return host


def settings(seed: int, max_steps: int = 400) -> dict[str, object]:
    return config(seed, max_steps=max_steps).model_dump(mode="json")


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, timeout=60))


def test_trials_are_stepped_together_and_report_at_their_own_steps():
    async def scene():
        host = made_host()
        for seed, name in enumerate("ab"):
            await host.join(name, 0, settings(seed), None)
        reports = await asyncio.gather(host.train_to("a", 0, 3, False), host.train_to("b", 0, 7, True))
        assert [report["step"] for report in reports] == [3, 7]
        assert reports[0]["score"] is None
        assert reports[1]["score"] is not None

    run(scene())


def test_a_trial_that_comes_later_does_not_wait_for_anothers_report():
    async def scene():
        host = made_host()
        for seed, name in enumerate("ab"):
            await host.join(name, 0, settings(seed), None)
        far = asyncio.create_task(host.train_to("a", 0, 400, False))
        await asyncio.sleep(0.1)
        near = await host.train_to("b", 0, 2, False)
        assert near["step"] == 2
        assert not far.done()
        assert (await far)["step"] == 400

    run(scene())


def test_a_state_can_be_fetched_and_a_seat_taken_while_another_trains():
    async def scene():
        host = made_host()
        await host.join("a", 0, settings(0), None)
        await host.join("b", 0, settings(1), None)
        await host.train_to("b", 0, 2, False)
        far = asyncio.create_task(host.train_to("a", 0, 400, False))
        await asyncio.sleep(0.05)
        assert TrialState.from_bytes(await host.fetch_state("b", 0, 2), "b").step == 2
        await host.leave("b", 0)
        await host.join("c", 0, settings(2), None)
        assert not far.done()
        await far

    run(scene())


def test_a_trial_goes_on_while_its_report_is_on_its_way_but_no_further_than_where_it_was_to_go():
    async def scene():
        host, reference = made_host(num_slots=1), made_host(num_slots=1)
        for one in (host, reference):
            await one.join("a", 0, settings(0), None)
        told = [await host.train_to("a", 0, 3, False, then=(6, True))]
        while host._goals:  # nobody has asked for it to be at 6
            await asyncio.sleep(0.01)
        assert host._engine.step_of(0) == 6
        states = [await host.fetch_state("a", 0, 3) for _ in range(2)][1:]
        told.append(await host.train_to("a", 0, 6, True, then=(9, False)))
        with pytest.raises(RuntimeError, match="no state was kept at step 3"):
            await host.fetch_state("a", 0, 3)
        states.append(await host.fetch_state("a", 0, 6))
        told.append(await host.train_to("a", 0, 9, False))
        states.append(await host.fetch_state("a", 0, 9))
        for step, evaluate, found, state in zip((3, 6, 9), (False, True, False), told, states, strict=True):
            expected = await reference.train_to("a", 0, step, evaluate)
            assert {**found, "seconds": 0} == {**expected, "seconds": 0}
            assert state == await reference.fetch_state("a", 0, step)
        assert not host._ahead
        assert list(host._kept["a"]) == [9]

    run(scene())


def test_a_trial_that_diverges_or_leaves_does_not_go_on():
    async def scene():
        host = made_host()
        for name in "ab":
            await host.join(name, 0, settings(0), None)
        host._engine._flat[0][0] = float("nan")
        assert (await host.train_to("a", 0, 3, False, then=(6, False)))["diverged"]
        assert not host._goals
        await host.train_to("b", 0, 3, False, then=(400, False))
        await host.leave("b", 0)
        assert not {**host._goals, **host._ahead, **host._kept}
        await host.join("b", 1, settings(0), None)
        assert (await host.train_to("b", 1, 2, False))["step"] == 2

    run(scene())


def test_halting_gives_reports_that_were_not_taken_and_then_what_came_after():
    async def scene():
        host = made_host()
        for name in "ab":
            await host.join(name, 0, settings(0), None)
            await host.train_to(name, 0, 3, False, then=(400, False))
        taken = await host.fetch_state("b", 0, 3)
        reported, *later = await host.halt()
        assert (reported.name, reported.step, reported.report.step, reported.blob) == ("a", 3, 3, taken)
        assert sorted(saved.name for saved in later) == ["a", "b"]
        assert all(saved.report is None and 3 <= saved.step < 400 for saved in later)
        assert await host.fetch_state("a", 0, 3) == taken  # Tune may still hear of it

    run(scene())


def test_a_later_incarnation_takes_the_place_of_an_earlier_one():
    async def scene():
        host = made_host(num_slots=1)
        await host.join("a", 0, settings(0), None)
        await host.train_to("a", 0, 1, False)
        state = await host.fetch_state("a", 0, 1)
        dead = asyncio.create_task(host.train_to("a", 0, 400, False))
        await asyncio.sleep(0.05)
        await host.join("a", 1, settings(0), state)
        with pytest.raises(asyncio.CancelledError):
            await dead
        with pytest.raises(RuntimeError, match="a later one took its place"):
            await host.train_to("a", 0, 5, False)
        with pytest.raises(RuntimeError, match="a later one took its place"):
            await host.join("a", 0, settings(0), None)
        await host.leave("a", 0)  # too late to matter
        assert (await host.train_to("a", 1, 400, False))["step"] == 400

    run(scene())


def test_a_joiner_waits_for_a_free_slot():
    async def scene():
        host = made_host(num_slots=1)
        await host.join("a", 0, settings(0), None)
        joining = asyncio.create_task(host.join("b", 0, settings(1), None))
        await asyncio.sleep(0.05)
        assert not joining.done()
        await host.leave("a", 0)
        await joining
        assert (await host.train_to("b", 0, 1, False))["step"] == 1

    run(scene())


def test_an_error_of_the_engine_reaches_whoever_waits_and_the_host_goes_on():
    async def scene():
        host = made_host()
        await host.join("a", 0, settings(0), None)
        engine, step = host._engine, host._engine.step

        def broken(slots):
            raise RuntimeError("broken")

        engine.step = broken
        with pytest.raises(RuntimeError, match="broken"):
            await host.train_to("a", 0, 1, False)
        engine.step = step
        assert (await host.train_to("a", 0, 1, False))["step"] == 1

    run(scene())


def test_an_error_of_one_trial_leaves_its_neighbours_alone():
    async def scene():
        host, reference = made_host(num_slots=3), made_host(num_slots=3)
        for seed, name in enumerate("abc"):
            await host.join(name, 0, settings(seed), None)
            await reference.join(name, 0, settings(seed), None)
        step, guilty = host._engine.step, host._seats["b"][1]

        def broken(slots):
            if guilty in slots and host._engine.step_of(guilty) == 4:
                raise RuntimeError("broken")
            step(slots)

        host._engine.step = broken
        found = await asyncio.gather(*(host.train_to(n, 0, 9, True) for n in "abc"), return_exceptions=True)
        expected = await asyncio.gather(*(reference.train_to(n, 0, 9, True) for n in "ac"))
        assert isinstance(found[1], RuntimeError)
        for report, other in zip([found[0], found[2]], expected, strict=True):
            assert report["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
            assert report["score"] == other["score"]
        assert host._engine.step_of(guilty) == 4
        host._engine.step = step
        assert (await host.train_to("b", 0, 9, False))["step"] == 9

    run(scene())


def test_a_trial_that_diverges_is_told_at_once_and_its_neighbours_are_as_if_it_had_left():
    async def scene():
        names = "abcdef"
        host, reference = made_host(num_slots=6), made_host(num_slots=6)
        for one in (host, reference):
            for seed, name in enumerate(names):
                await one.join(name, 0, settings(seed), None)
            await asyncio.gather(*(one.train_to(name, 0, 5, False) for name in names))
        host._engine._flat[0][host._seats["c"][1], 0] = float("nan")
        healthy = [name for name in names if name != "c"]
        sick, *_ = await asyncio.gather(*(host.train_to(name, 0, 40, False) for name in ["c", *healthy]))
        assert sick["diverged"]
        assert sick["step"] == 6
        await asyncio.gather(*(reference.train_to(name, 0, 6, False) for name in names))
        await reference.leave("c", 0)
        await asyncio.gather(*(reference.train_to(name, 0, 40, False) for name in healthy))
        for name in healthy:
            states = [one._engine.state(one._seats[name][1]) for one in (host, reference)]
            for tensor, other in zip(*(state.tensors.values() for state in states), strict=True):
                assert torch.equal(tensor, other)

    run(scene())


def test_halting_gives_the_states_of_trials_on_their_way_and_trains_no_more():
    async def scene():
        host = made_host()
        await host.join("a", 0, settings(0), None)
        await host.join("b", 0, settings(1), None)
        far = asyncio.create_task(host.train_to("a", 0, 400, False))
        assert (await host.train_to("b", 0, 3, True))["step"] == 3  # has reported and waits for a decision
        reported, saved = await host.halt()
        assert (reported.name, reported.step, reported.report.score is None) == ("b", 3, False)
        assert (saved.name, saved.report) == ("a", None)
        assert 0 < saved.step < 400
        later = asyncio.create_task(host.train_to("b", 0, 9, False))
        await asyncio.sleep(0.1)
        assert not far.done()
        assert not later.done()
        await host.dismiss()
        for task in (far, later):
            with pytest.raises(RuntimeError, match="the search was stopped"):
                await task

        again = made_host()
        await again.join("a", 1, settings(0), saved.blob)
        resumed = await again.train_to("a", 1, 400, True)
        alone = made_host()
        await alone.join("a", 0, settings(0), None)
        straight = await alone.train_to("a", 0, 400, True)
        assert resumed["train_loss"] == pytest.approx(straight["train_loss"], abs=1e-4)
        assert resumed["score"] == straight["score"]

    run(scene())


def test_halting_does_not_save_a_trial_that_has_diverged_on_its_way():
    async def scene():
        host = made_host()
        for seed, name in enumerate("ab"):
            await host.join(name, 0, settings(seed), None)
        host._over = lambda engine, goal: False  # as on a GPU, which is not asked before the goal
        tasks = [asyncio.create_task(host.train_to(name, 0, 400, False)) for name in "ab"]
        await asyncio.sleep(0.1)
        host._engine._diverged_K[host._seats["a"][1]] = True
        (saved,) = await host.halt()
        assert saved.name == "b"
        for task in tasks:
            task.cancel()

    run(scene())


def test_halting_gives_an_evaluation_up_and_keeps_the_loss_that_its_report_needs():
    async def scene():
        host = made_host(num_slots=1)
        await host.join("a", 0, settings(0), None)
        begun, engine = asyncio.Event(), host._engine
        loop, answers = asyncio.get_running_loop(), engine._reader._answers

        def slow(*arguments):
            loop.call_soon_threadsafe(begun.set)
            while not host._halt.is_set():
                time.sleep(0.01)
            return answers(*arguments)

        engine._reader._answers = slow
        engine._reader._tokens_per_pass = 64
        training = asyncio.create_task(host.train_to("a", 0, 3, True))
        await begun.wait()
        (saved,) = await host.halt()
        assert saved.step == 3
        assert TrialState.from_bytes(saved.blob, "test").loss_count == 3
        training.cancel()

    run(scene())


def test_no_pass_is_tried_that_two_small_ones_say_does_not_fit(monkeypatch):
    monkeypatch.setattr("adept_tune.engine.memory.free_bytes", lambda device: 100_000.0)

    class Told:
        """An engine that tells what its passes take, or has no memory to find out."""

        backbone, graphs = SimpleNamespace(device=None), None

        def __init__(self, need):
            self._need, self.seated = need, 0

        def join(self, trial):
            self.seated += 1
            return 0

        def leave(self, slot):
            self.seated -= 1

        def need(self, slot):
            if self._need is None:
                raise MemoryError
            return self._need

    for need, expected in ((Need(10_000.0, 20.0), [4000, 1024]), (None, [None, 1024, 16384])):
        engine = Told(need)
        assert _within_memory(engine, None, [None, 1024, 16384]) == expected
        assert engine.seated == 0


@pytest.mark.parametrize(
    ("method", "device", "trials", "expected"),
    [
        ("adept", "cpu", 6, [4]),
        ("adept", "cpu", None, [4]),  # 16 trials
        ("adept", "cpu", 32, [4, 8]),
        ("adept", "cuda", 6, [8]),
        ("adept", "cuda", None, [8]),  # 32 trials
        ("adept", "cuda", 128, [8, 16, 32]),
        ("lora", "cuda", 128, [1]),
    ],
)
def test_the_probe_tries_no_more_at_once_than_a_quarter_of_the_trials(method, device, trials, expected):
    assert companies(method, device, trials) == expected


def test_a_probe_leaves_every_slot_free_and_says_what_it_measured():
    async def scene():
        host = made_host()
        probed = await host.probe(settings(0), [1, 2], [None, 64])
        assert probed["step_s"] > 0
        assert probed["evaluation_s"] > 0
        assert probed["num_threads"] >= 1
        assert probed["slots"] in (1, 2)
        assert probed["tokens_per_pass"] in (None, 64)
        assert host._engine.limits.tokens_per_pass == probed["tokens_per_pass"]
        assert 0 <= probed["padded_share"] < 0.5
        assert probed["embedding_rms"] == host._engine.backbone.embedding_rms
        await host.join("a", 0, settings(0), None)
        await host.join("b", 0, settings(1), None)

    run(scene())


def test_a_device_without_room_for_one_trial_is_told_in_one_message():
    async def scene():
        host = made_host()
        host._plan = replace(PLAN, backbone={"name": "large"})

        def step(slots):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        host._engine.step = step
        with pytest.raises(
            BackboneError, match=r"model large: one trial does not fit the memory of this device \(cpu\)"
        ):
            await host.probe(settings(0), [1, 2], [None, 64])
        await host.join("a", 0, settings(0), None)
        await host.join("b", 0, settings(1), None)

    run(scene())


@pytest.mark.parametrize("where", ["joining", "stepping"])
def test_a_broken_context_of_a_gpu_ends_the_process_wherever_it_shows(monkeypatch, where):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended

    def broken(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async def scene():
        host = made_host()
        if where == "joining":
            host._engine.join = broken
        await host.join("a", 0, settings(0), None)
        host._engine.step = broken
        host._goals["a"] = SimpleNamespace(slot=0, step=3, reached=asyncio.get_running_loop().create_future())
        await host._pump()

    monkeypatch.setattr(host_module.os, "_exit", end)
    with pytest.raises(Ended):
        run(scene())


@pytest.mark.parametrize(("num_threads", "num_lanes"), [(2, 2), (8, 1)])
def test_lanes_are_given_up_for_what_outweighs_the_processes_beside(monkeypatch, num_threads, num_lanes):
    engine = made_engine(num_slots=2)
    before, lanes = torch.get_num_threads(), engine.limits.lanes
    monkeypatch.setattr(lanes, "_num_threads", num_threads)
    monkeypatch.setattr(host_module, "_affordable_lanes", lambda *_: num_threads)
    monkeypatch.setattr(  # each time they are halved a step takes 0.8 of its time
        host_module,
        "_timed",
        lambda *_: {"step_s": 0.8 ** -math.log2(lanes.count), "slots": 1, "tokens_per_pass": 64, "padded_share": 0.0},
    )
    try:
        found = host_module._probe(engine, config(0), [1], [64], 1)
    finally:
        lanes.split(1)
        torch.set_num_threads(before)
    assert (found["num_lanes"], found["num_threads"]) == (num_lanes, num_threads)


def test_a_host_is_idle_only_while_no_trial_has_a_seat():
    async def scene():
        host = made_host()
        await host.join("a", 0, settings(0), None)
        await asyncio.sleep(0.1)
        assert await host.idle_s() < 0.05
        await host.leave("a", 0)
        await asyncio.sleep(0.1)
        assert await host.idle_s() >= 0.1
        await host.load(None)
        assert await host.idle_s() < 0.05

    run(scene())
