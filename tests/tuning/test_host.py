"""The host without Ray: its coroutines over a made engine."""

import asyncio

import pytest

from adept_tune.tuning.host import Host, HostPlan
from tests.engine.test_engine import config
from tests.support.data import made_engine

PLAN = HostPlan(
    backbone={}, method="adept", device="cpu", precision="fp32", num_slots=2, rows_per_pass=None, num_threads=1
)


def made_host(num_slots: int = 2) -> Host:
    host = Host(PLAN)
    host._engine = made_engine(num_slots=num_slots)
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
        far = asyncio.create_task(host.train_to("a", 0, 400, False))
        await asyncio.sleep(0.05)
        assert await host.fetch_state("b", 0)
        await host.leave("b", 0)
        await host.join("c", 0, settings(2), None)
        assert not far.done()
        await far

    run(scene())


def test_a_later_incarnation_takes_the_place_of_an_earlier_one():
    async def scene():
        host = made_host(num_slots=1)
        await host.join("a", 0, settings(0), None)
        dead = asyncio.create_task(host.train_to("a", 0, 400, False))
        await asyncio.sleep(0.05)
        state = await host.fetch_state("a", 0)
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


def test_a_probe_leaves_every_slot_free_and_says_what_it_measured():
    async def scene():
        host = made_host()
        probed = await host.probe(settings(0), 2)
        assert probed["step_s"] > 0
        assert probed["evaluation_s"] > 0
        assert probed["num_threads"] >= 1
        await host.join("a", 0, settings(0), None)
        await host.join("b", 0, settings(1), None)

    run(scene())
