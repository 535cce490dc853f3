"""The broker without Ray: which hosts it ends."""

import asyncio
from types import SimpleNamespace

import pytest

from adept_tune.tuning import broker as module
from adept_tune.tuning.broker import Broker
from tests.tuning.test_host import PLAN


class FakeHost:
    """Answers as an actor does how long it has been idle."""

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
