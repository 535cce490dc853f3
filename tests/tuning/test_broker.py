"""The broker without Ray: which hosts it ends."""

import asyncio
from types import SimpleNamespace

import pytest

from adept_tune.tuning import broker as module
from adept_tune.tuning.broker import Broker
from tests.tuning.test_host import PLAN


class FakeHost:
    """Answers as an actor does how long it has been idle,."""

    def __init__(self, idle_s: float | Exception) -> None:
        self.idle_s = SimpleNamespace(remote=self._answer)
        self._idle_s = idle_s

    async def _answer(self) -> float:
        if isinstance(self._idle_s, Exception):
            raise self._idle_s
        return self._idle_s


@pytest.fixture
def killed(monkeypatch):
    """What the broker has ended."""
    found: list[FakeHost] = []
    monkeypatch.setattr(module, "IDLE_S", 0.04)
    monkeypatch.setattr(module.ray, "kill", found.append)
    return found


def test_hosts_that_nobody_uses_end_and_no_others(tmp_path, killed):
    idle, busy, silent = FakeHost(1.0), FakeHost(0.0), FakeHost(module.ray.exceptions.RayActorError())
    broker = Broker("s", PLAN, [None], str(tmp_path), {})
    broker._hosts = {name: (name, host) for name, host in {"i": idle, "b": busy, "s": silent}.items()}
    broker._making = {name: asyncio.Lock() for name in broker._hosts}

    async def scene():
        sweeping = asyncio.create_task(broker._sweep())
        await asyncio.sleep(0.1)
        sweeping.cancel()

    asyncio.run(scene())
    assert killed == [idle]
    assert set(broker._hosts) == {"b", "s"}


def broker_with(tmp_path, **loads):
    """A broker with a host on each node named, and how its loading goes."""

    def host(load):
        return SimpleNamespace(load=SimpleNamespace(remote=load), leave=SimpleNamespace(remote=lambda *arguments: None))

    broker = Broker("s", PLAN, [None], str(tmp_path), {})
    broker._hosts = {f"{node}:cpu": (node, host(load)) for node, load in loads.items()}
    broker._handle = lambda: None
    return broker


def test_a_host_that_cannot_be_reached_is_not_replaced_for_it_may_live(tmp_path):
    async def load(*arguments):
        raise module.ray.exceptions.ActorUnavailableError("no answer", None)

    broker = broker_with(tmp_path, here=load)
    with pytest.raises(module.ray.exceptions.ActorUnavailableError):
        asyncio.run(broker.admit("trial-0000", "here", None))
    assert "here:cpu" in broker._hosts


@pytest.mark.parametrize("meanwhile", ["failed for good", "a later one took its place"])
def test_a_job_is_not_seated_by_what_came_before_its_end_or_its_next_start(tmp_path, meanwhile):
    async def scene():
        loaded = asyncio.Event()

        async def slowly(*arguments):
            await loaded.wait()

        async def at_once(*arguments):
            pass

        broker = broker_with(tmp_path, slow=slowly, fast=at_once)
        early = asyncio.create_task(broker.admit("trial-0000", "slow", None))
        await asyncio.sleep(0)
        if meanwhile == "failed for good":
            broker.close("trial-0000")
        else:
            assert (await broker.admit("trial-0000", "fast", None)).host_name == "fast"
        loaded.set()
        with pytest.raises(RuntimeError, match=meanwhile):
            await early
        assert ("trial-0000" in broker._seated) == (meanwhile != "failed for good")

    asyncio.run(scene())
