"""Finds each trial a host on its device, and makes hosts. One actor, owned by the driver, on the driver's node.

Hosts belong to the broker, so they die with it, and it dies with the driver: nothing outlives a killed search.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adept_tune.errors import StateError
from adept_tune.tuning.host import STOPPED, Host, HostPlan, Saved
from adept_tune.tuning.store import Store
from adept_tune.tuning.work import Progress

if TYPE_CHECKING:
    from ray.actor import ActorHandle

NAMESPACE = "adept_tune"
IDLE_S = 60.0  # after which an unused host ends


@dataclass(frozen=True)
class Seat:
    """What a trial needs to start or go on.

    Attributes:
        host: The actor that trains it.
        host_name: Its name.
        incarnation: How often the trial has been started before.
        step: Step of the state it goes on from.
        blob: That state; None starts it.
        reported: Its last journalled report; nothing up to there is reported again.
    """

    host: "ActorHandle[Any]"
    host_name: str
    incarnation: int
    step: int
    blob: bytes | None
    reported: int


def broker_name(search_id: str) -> str:
    """Name of a search's broker in our namespace."""
    return f"{search_id}:broker"


class Broker:
    """Hosts of one search.

    Args:
        search_id: Part of every host's name.
        plan: What a host loads.
        data: Reference to the task's tokens, in a list so that Ray passes it on unread.
        storage: Where the trials' states are kept.
        progress: What the journal says of each job.
    """

    def __init__(
        self, search_id: str, plan: HostPlan, data: list[Any], storage: str, progress: dict[str, Progress]
    ) -> None:
        self._search_id = search_id
        self._plan = plan
        self._data = data[0]
        self._store = Store(storage)
        self._progress = dict(progress)
        self._refused: set[tuple[str, int]] = set()
        self._incarnations: dict[str, int] = {}
        self._hosts: dict[str, tuple[str, Any]] = {}
        self._made = 0
        self._seated: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}  # job -> node that its process was on when it was last admitted
        self._closed: set[str] = set()
        self._dismissed = False
        self._making: dict[str, asyncio.Lock] = {}  # by device, so that hosts load side by side
        self._model: Any = None
        self._sweeper: asyncio.Task[None] | None = None

    async def admit(self, job: str, node_id: str, gpu: str | None) -> Seat:
        """A host on the caller's device, and the state its job goes on from.

        Raises:
            RuntimeError: The job has failed for good, or was admitted again meanwhile, or the search was stopped.
        """
        self._nodes[job] = node_id
        incarnation = self._incarnations[job] = self._incarnations.get(job, -1) + 1
        host_name, host = await self.host(node_id, gpu)  # which may take minutes
        if self._dismissed:
            raise RuntimeError(STOPPED)
        if job in self._closed:
            raise RuntimeError(f"{job} has failed for good")
        if self._incarnations[job] != incarnation:
            raise RuntimeError(f"{job}, incarnation {incarnation}: a later one took its place")
        old = self._seated.get(job)
        if old is not None and old is not host:
            old.leave.remote(job, incarnation)  # its process is gone, or it would not be here
        self._seated[job] = host
        step, blob = self._newest(job)
        return Seat(host, host_name, incarnation, step, blob, self._progress.get(job, Progress()).reported)

    def standing(self, job: str) -> tuple[int, str | None]:
        """Step that a job goes on from when it is next admitted, and id of the node that it was last on, if any."""
        return next(self._steps(job), 0), self._nodes.get(job)

    def refuse(self, job: str, step: int) -> str:
        """A state is damaged: never give it out again. Returns where it lies."""
        self._refused.add((job, step))
        return self._store.place(job, step)

    async def halt(self) -> list[Saved]:
        """Let all hosts stop training; gives the trials that were on their way."""
        answers = await asyncio.gather(
            *(host.halt.remote() for _, host in self._hosts.values()), return_exceptions=True
        )
        return [saved for answer in answers if isinstance(answer, list) for saved in answer]

    async def host(self, node_id: str, gpu: str | None) -> tuple[str, Any]:
        """The loaded host of a device, made where there is none or where it has died."""
        device = f"{node_id[:12]}:{gpu or 'cpu'}"
        async with self._making.setdefault(device, asyncio.Lock()):
            if device in self._hosts:
                name, host = self._hosts[device]
                try:
                    await host.load.remote(self._data, self._handle())
                    return name, host
                except ray.exceptions.ActorUnavailableError:
                    raise  # it may live, and train others
                except ray.exceptions.RayActorError:
                    del self._hosts[device]
            self._made += 1  # a name is never used twice, so nobody mistakes a host for its predecessor
            name = f"{self._search_id}:host:{device}:{self._made}"
            host = (
                ray.remote(Host)
                .options(
                    name=name,
                    namespace=NAMESPACE,
                    num_cpus=0,
                    max_concurrency=1000,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
                )
                .remote(self._plan, gpu)
            )
            await host.load.remote(self._data, self._handle())
            self._hosts[device] = name, host
            if self._sweeper is None:
                self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
            return name, host

    async def model(self) -> list[Any]:
        """Reference to the files of the model, a folder of this node, in a list so that Ray passes it on unread."""
        if self._model is None:
            from adept_tune.tuning.carried import packed

            files = await asyncio.to_thread(packed, Path(self._plan.backbone["name"]))
            self._model = ray.put(files)
        return [self._model]

    @staticmethod
    def _handle() -> Any:
        return ray.get_runtime_context().current_actor

    async def _sweep(self) -> None:
        """End hosts that nobody has used for a while: a node with an actor on it counts as busy, and is paid for."""
        while True:
            await asyncio.sleep(IDLE_S / 4)
            for device in list(self._hosts):
                async with self._making[device]:  # nobody is given a host that is about to end
                    with contextlib.suppress(ray.exceptions.RayError, KeyError):  # it has died, or been replaced
                        host = self._hosts[device][1]
                        if await host.idle_s.remote() > IDLE_S:
                            del self._hosts[device]
                            ray.kill(host)

    def dismiss(self) -> None:
        """After a halt, let go of the trials that wait, and take in no more."""
        self._dismissed = True
        for _, host in self._hosts.values():
            host.dismiss.remote()

    def close(self, job: str) -> None:
        """A job has failed for good: it is admitted no more, and its seat, if it left one behind, is free."""
        self._closed.add(job)
        host = self._seated.pop(job, None)
        if host is not None:
            host.leave.remote(job, self._incarnations[job])

    def settle(self, changes: dict[str, int | None]) -> None:
        """Let hosts made from now on have what the probe found best: fields of a `HostPlan`."""
        self._plan = replace(self._plan, **changes)  # type: ignore[arg-type]  # these are numbers

    def journalled(self, job: str, step: int) -> None:
        """The journal has the job at that step; from now on it goes on from there."""
        self._progress[job] = Progress(step, step)
        self._refused.discard((job, step))  # it has been written anew

    def ping(self) -> None:
        """Be there."""

    def _newest(self, job: str) -> tuple[int, bytes | None]:
        """The newest state that is there; 0 and None for none."""
        for step in self._steps(job):
            with contextlib.suppress(StateError):  # the driver has dropped it meanwhile
                return step, self._store.read(job, step)[0]
        return 0, None

    def _steps(self, job: str) -> Iterator[int]:
        """Steps of states that are not refused, and no newer than the journal says, the newest first."""
        newest = self._progress.get(job, Progress()).saved
        return (s for s in reversed(self._store.steps(job)) if s <= newest and (job, s) not in self._refused)
