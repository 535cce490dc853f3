"""The engine behind a Ray actor: one for a GPU, or one for a node's CPUs.

Trials ask it to train them to a step and wait; it steps all that wait, fused. It loads torch and the backbone only
when told to, so that this module can be imported by processes that need neither.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from adept_tune.errors import BackboneError
from adept_tune.tuning.work import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adept_tune.engine.build import TrialEngine as Engine
    from adept_tune.engine.config import TrialConfig
    from adept_tune.engine.reading import Evaluation
    from adept_tune.tasks.tokens import TaskData

T = TypeVar("T")
Split = Literal["validation", "test"]

STOPPED = "the search was stopped"
AHEAD_BYTES = 64 * 2**20  # of a state; a trial with a larger one waits until its report is taken
BESIDE = 0.3  # of a core: what the driver, the trials' processes and Ray take while a host trains
LONG_S = 2.0  # of all trials' step; one tells as much as several short ones
SETTLING_STEPS = 8  # before steps of replayed passes are timed: shapes that recur are captured meanwhile


@dataclass(frozen=True)
class HostPlan:
    """What a host is to load, and how it is to work.

    Attributes:
        backbone: Fields of a `BackboneInfo`.
        method: Name of the method.
        device: ``cuda`` or ``cpu``.
        precision: Of the backbone and its activations.
        num_slots: Trials at once.
        tokens_per_pass: Most tokens in one forward and backward; None fuses all.
        num_threads: Threads of torch on a CPU.
        num_lanes: Passes at a time on a CPU; they share the threads.
        widest: Longest prompt and widest bottleneck that the trials can have.
        start: Tensors of an adapter that trials start from, as safetensors; None starts them from nothing.
    """

    backbone: Mapping[str, Any]
    method: str
    device: str
    precision: Literal["fp32", "bf16"]
    num_slots: int
    tokens_per_pass: int | None
    num_threads: int
    num_lanes: int = 1
    widest: tuple[int, int] = (0, 0)
    start: bytes | None = None


@dataclass(frozen=True)
class Saved:
    """A trial that was stopped on its way, or at a report that the search has not taken.

    Attributes:
        name: Of the trial.
        step: Where it stands.
        blob: Its state there.
        report: What it has to tell there; None on its way.
    """

    name: str
    step: int
    blob: bytes
    report: Report | None = None


@dataclass
class _Goal:
    """A trial's wish to be at a step.

    Attributes:
        slot: Of the trial.
        step: Where it wants to be.
        evaluate: Whether it is to be evaluated there.
        keep: Whether its state there is kept until it is fetched.
        then: Step to go on to while its report is on its way, and whether to evaluate there; None waits.
        since: When it was wished.
        reached: Its report.
        blob: Its state there.
    """

    slot: int
    step: int
    evaluate: bool
    keep: bool
    then: tuple[int, bool] | None
    since: float
    reached: asyncio.Future[Report]
    blob: bytes | None = None


@dataclass
class _Kept:
    """A report's state, until the trial is asked to go further than the report.

    Attributes:
        report: That report.
        blob: The state there.
        taken: Whether it was fetched, which is done once the report has arrived.
    """

    report: Report
    blob: bytes
    taken: bool = False


class Host:
    """Trains trials of one device. All methods are coroutines of one Ray actor; the engine works in one thread.

    Args:
        plan: What to load.
        visible_device: Id of the GPU to use; None leaves the process as it is.
    """

    def __init__(self, plan: HostPlan, visible_device: str | None = None) -> None:
        self._plan = plan
        self._visible_device = visible_device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._lock = asyncio.Lock()
        self._freed = asyncio.Condition(self._lock)
        self._joined = False  # a trial wants to train that the steps under way do not know of
        self._wanted = 0  # callers that wait for the engine; stepping pauses for them
        self._engine: Engine | None = None
        self._seats: dict[str, tuple[int, int]] = {}  # trial name -> (incarnation, slot)
        self._goals: dict[str, _Goal] = {}
        self._ahead: dict[str, _Goal] = {}  # goals of trials that went on by themselves and have not asked for yet
        self._kept: dict[str, dict[int, _Kept]] = {}  # trial name -> step -> what was reported there
        self._pump_task: asyncio.Task[None] | None = None
        self._halt = threading.Event()
        self._dismissed = False
        self._used_at = time.monotonic()

    async def idle_s(self) -> float:
        """Seconds for which nobody has wanted anything of it; 0 while a trial has a seat or the engine works."""
        if self._seats or self._lock.locked():
            self._used_at = time.monotonic()
        return time.monotonic() - self._used_at

    async def load(self, data: "TaskData", broker: Any = None) -> None:
        """Load the backbone and make the engine, once.

        Args:
            data: The task's tokens.
            broker: Brings a model that is a folder of its node's; None where that is this node.

        Raises:
            BackboneError: The weights cannot be loaded.
        """
        self._used_at = time.monotonic()
        if self._engine is not None:  # no trial's start waits for another's steps
            return
        async with self._lock:
            if self._engine is None:
                self._engine = await self._in_thread(lambda: self._build(data, broker))
                self._used_at = time.monotonic()

    async def join(self, name: str, incarnation: int, config: Mapping[str, Any], blob: bytes | None) -> None:
        """Seat a trial; a later incarnation takes the place of an earlier one, whose process is gone.

        Args:
            name: Of the trial.
            incarnation: How often it has been started before.
            config: Fields of its `TrialConfig`.
            blob: Its saved state; None starts it.
        """
        from adept_tune.engine.config import TrialConfig
        from adept_tune.engine.state import TrialState

        trial = TrialConfig.model_validate(config)
        state = None if blob is None else TrialState.from_bytes(blob, name)
        engine = self._ready()
        async with self._taking():
            await self._freed.wait_for(
                lambda: self._dismissed or len(self._seats) < engine.num_slots or name in self._seats
            )
            self._heed_dismissal()
            if name in self._seats:
                if self._seats[name][0] >= incarnation:
                    raise RuntimeError(f"{name}, incarnation {incarnation}: a later one took its place")
                await self._vacate(name)
            self._seats[name] = (incarnation, await self._in_thread(lambda: engine.join(trial, state)))

    async def train_to(
        self,
        name: str,
        incarnation: int,
        step: int,
        evaluate: bool,
        keep: bool = True,
        then: tuple[int, bool] | None = None,
    ) -> dict[str, Any]:
        """Train a trial to a step, in company, and say how it stands there.

        Args:
            name: Of the trial.
            incarnation: How often it has been started before.
            step: Where to.
            evaluate: Whether to evaluate it there.
            keep: Whether its state there is to be fetched.
            then: Step that it goes on to meanwhile, and whether to evaluate there: where no rung decides, it seldom
                ends. It waits there until it is asked to be there.

        Returns:
            Fields of a `Report`.
        """
        self._heed_dismissal()
        slot = self._slot(name, incarnation)
        goal = self._ahead.pop(name, None)
        if goal is None:
            goal = self._set_out(name, slot, step, evaluate, keep)
        assert (goal.step, goal.evaluate) == (step, evaluate), f"{name} is on its way to {goal.step}, not to {step}"
        goal.then = then
        kept = self._kept.get(name, {})
        for past in [each for each in kept if each < step]:  # whoever asks for more has told of these
            del kept[past]
        if goal.reached.done():  # by itself
            self._go_on(name, goal)
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = asyncio.get_running_loop().create_task(self._pump())
        return asdict(await goal.reached)

    async def fetch_state(self, name: str, incarnation: int, step: int) -> bytes:
        """The trial's state at a step that it has reported; kept until it asks for a later one.

        Raises:
            RuntimeError: A later incarnation took its place, or nothing was kept of that step.
        """
        self._slot(name, incarnation)
        kept = self._kept.get(name, {}).get(step)
        if kept is None:
            raise RuntimeError(f"{name}: no state was kept at step {step}")
        kept.taken = True
        return kept.blob

    async def halt(self) -> list[Saved]:
        """Train no more, and give the reports that were not taken, and the states of the trials on their way to one.

        A step is given up between two passes and an evaluation between two parts of it. What is given of a trial is in
        the order of its steps. One that has diverged on its way goes on from its last report, and does so again.
        """
        self._halt.set()
        engine = self._ready()
        async with self._taking():
            on_their_way = [
                (name, goal)
                for name, goal in list(self._goals.items())  # more may set out meanwhile, and come no further
                if not goal.reached.done() and not await self._in_thread(lambda g=goal: engine.diverged(g.slot))  # type: ignore[misc]
            ]
            untaken = [
                Saved(name, step, each.blob, each.report)
                for name, kept in self._kept.items()
                for step, each in sorted(kept.items())
                if not each.taken
            ]
            return untaken + [
                Saved(name, engine.step_of(goal.slot), await self._in_thread(lambda g=goal: self._blob(engine, g.slot)))  # type: ignore[misc]
                for name, goal in on_their_way
            ]

    async def dismiss(self) -> None:
        """After a halt, let go of the trials that wait, and of those that come later: their processes end at once."""
        self._dismissed = True
        for goal in self._goals.values():
            if not goal.reached.done():
                goal.reached.set_exception(RuntimeError(STOPPED))
        self._goals.clear()
        self._ahead.clear()
        async with self._taking():
            self._freed.notify_all()

    async def leave(self, name: str, incarnation: int) -> None:
        """Free a trial's slot; nothing where it has none, or has been superseded."""
        async with self._taking():
            if name in self._seats and self._seats[name][0] <= incarnation:
                await self._vacate(name)

    async def probe(
        self,
        config: Mapping[str, Any],
        companies: Sequence[int],
        limits: Sequence[int | None],
        num_steps: int = 2,
    ) -> dict[str, Any]:
        """Time a few steps of several equal trials and a part of an evaluation, and go on with what was fastest.

        No trial of it is kept. On a CPU a lane for each thread is tried first, as memory allows, then fewer lanes of
        more threads, which have to be a tenth faster, and of a machine with few threads a quarter: what a search
        does besides, and the probe does not see, halves the speed of threads that share a pass.

        Args:
            config: Fields of the trials' `TrialConfig`.
            companies: Numbers of trials to try, ascending; a larger one has to be a tenth faster.
            limits: Most tokens of a pass to try; None is all.
            num_steps: To time of each.

        Returns:
            Seconds of one trial's step (``step_s``) and of one trial's evaluation (``evaluation_s``), the ``slots``,
            ``tokens_per_pass``, ``num_threads`` and ``num_lanes`` that they were measured with, the ``padded_share``,
            and the ``embedding_rms`` of the backbone.

        Raises:
            BackboneError: There is no room for one trial.
        """
        from adept_tune.engine.config import TrialConfig
        from adept_tune.engine.memory import ran_out

        engine, trial = self._ready(), TrialConfig.model_validate(config)
        async with self._taking():
            try:
                return await self._in_thread(lambda: _probe(engine, trial, companies, limits, num_steps))
            except Exception as error:
                if not ran_out(error):
                    raise
                raise BackboneError(
                    f"model {self._plan.backbone['name']}: one trial does not fit the memory of this device "
                    f"({self._plan.device}), not even a row at a time; free memory, or take a smaller model"
                ) from error

    async def score(self, blob: bytes, where: str, split: Split) -> dict[str, Any]:
        """Score a saved trial alone on a split, as prediction does.

        Returns:
            ``score``, ``standard_error``, ``loss``, ``texts``, and in ``also`` the task's further metrics, each with
            its standard error.
        """
        engine = self._ready()
        async with self._taking():
            evaluation = await self._in_thread(lambda: _score(engine, blob, where, split))
        return {
            "score": evaluation.score.value,
            "standard_error": evaluation.score.standard_error,
            "loss": evaluation.loss,
            "texts": list(evaluation.texts),
            "also": {metric: [found.value, found.standard_error] for metric, found in evaluation.also.items()},
        }

    # -- inside --------------------------------------------------------------------------------------------------

    def _build(self, data: "TaskData", broker: Any) -> "Engine":
        if self._visible_device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._visible_device
        import ray
        import torch
        from safetensors.torch import load

        from adept_tune.backbones import BackboneInfo
        from adept_tune.engine.build import build_engine
        from adept_tune.engine.memory import keep_freed
        from adept_tune.methods import get_method
        from adept_tune.tuning.carried import model_here

        plan = self._plan
        info = BackboneInfo(**plan.backbone)
        if broker is not None:
            info = model_here(info, lambda: ray.get(ray.get(broker.model.remote())[0]))
        torch.set_num_threads(plan.num_threads)
        if plan.device == "cpu":
            keep_freed()
        return build_engine(
            info,
            get_method(plan.method),
            data,
            plan.num_slots,
            device=plan.device,
            precision=plan.precision,
            tokens_per_pass=plan.tokens_per_pass,
            num_lanes=min(plan.num_lanes, os.cpu_count() or 1),  # of this node
            widest=plan.widest,
            halted=self._halt.is_set,
            start=None if plan.start is None else load(plan.start),
        )

    def _heed_dismissal(self) -> None:
        if self._dismissed:
            raise RuntimeError(STOPPED)

    @staticmethod
    def _blob(engine: "Engine", slot: int) -> bytes:
        return engine.state(slot).to_bytes()

    async def _vacate(self, name: str) -> None:
        """Free a seat while the engine is held; whoever waits for its trial is told."""
        engine, (_, slot) = self._ready(), self._seats.pop(name)
        goal = self._goals.pop(name, None)
        self._ahead.pop(name, None)
        self._kept.pop(name, None)
        if goal is not None and not goal.reached.done():
            goal.reached.cancel()
        await self._in_thread(lambda: engine.leave(slot))
        self._freed.notify_all()

    def _set_out(self, name: str, slot: int, step: int, evaluate: bool, keep: bool) -> _Goal:
        """Give a trial a goal."""
        reached = asyncio.get_running_loop().create_future()
        reached.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may ask for it any more
        goal = self._goals[name] = _Goal(slot, step, evaluate, keep, None, time.monotonic(), reached)
        self._joined = True
        return goal

    def _go_on(self, name: str, goal: _Goal) -> None:
        """Set out for the next goal before that is asked for, where no rung decides and the state is no large one."""
        diverged = goal.reached.exception() is not None or goal.reached.result().diverged
        if goal.then is not None and not diverged and len(goal.blob or b"") <= AHEAD_BYTES:
            self._ahead[name] = self._set_out(name, goal.slot, *goal.then, goal.keep)

    async def _pump(self) -> None:
        """Step whoever waits until nobody does."""
        engine = self._ready()
        while self._goals and not self._halt.is_set():
            async with self._lock:
                goals = dict(self._goals)
                self._joined = False
                if not goals:  # the last one left while we waited
                    continue
                outcomes = await self._in_thread(lambda g=goals: self._advance(engine, g))  # type: ignore[misc]
                for name, outcome in outcomes.items():
                    goal = self._goals.pop(name)
                    if goal.reached.done():
                        continue
                    if isinstance(outcome, Report):
                        if goal.blob is not None:
                            self._kept.setdefault(name, {})[outcome.step] = _Kept(outcome, goal.blob)
                        goal.reached.set_result(outcome)
                        self._go_on(name, goal)
                    else:
                        goal.reached.set_exception(outcome)
                for outcome in outcomes.values():
                    _end_if_broken(outcome)
            await asyncio.sleep(0)

    def _advance(self, engine: "Engine", goals: Mapping[str, _Goal]) -> dict[str, Report | Exception]:
        """Fused steps until a trial is where it wants to be or has failed, another wants to train, or somebody needs
        the engine."""
        while not self._halt.is_set():
            there = {name: goal for name, goal in goals.items() if self._over(engine, goal)}
            if there:
                return self._reports(engine, there)
            failed = _each(goals, lambda some: _step(engine, some))
            if failed or self._wanted or self._joined:
                return failed
        return {}

    @staticmethod
    def _over(engine: "Engine", goal: _Goal) -> bool:
        """Whether a trial is where it wants to be, or will never be; asking that of a GPU would hold it up."""
        at_once = engine.backbone.device.type == "cpu"
        return engine.step_of(goal.slot) >= goal.step or (at_once and engine.diverged(goal.slot))

    def _reports(self, engine: "Engine", goals: Mapping[str, _Goal]) -> dict[str, Report | Exception]:
        """What trials that reached their step have to tell; those to be evaluated are evaluated together."""
        outcomes: dict[str, Report | Exception] = {}
        for name, evaluated in _each(goals, lambda some: self._evaluated(engine, some)).items():
            if isinstance(evaluated, Exception):
                outcomes[name] = evaluated
            else:
                alone = {name: goals[name]}
                outcomes |= _each(alone, lambda one, e=evaluated: self._report(engine, one, e))  # type: ignore[misc]
        return outcomes

    @staticmethod
    def _evaluated(engine: "Engine", goals: Mapping[str, _Goal]) -> dict[str, "Evaluation | None"]:
        from adept_tune.engine.memory import trim

        wanted = [name for name, goal in goals.items() if goal.evaluate and not engine.diverged(goal.slot)]
        found: dict[str, Evaluation | None] = dict.fromkeys(goals)
        if wanted:
            found |= zip(wanted, engine.evaluate([goals[name].slot for name in wanted]), strict=True)
            trim(engine.backbone.device)
        return found

    def _report(
        self, engine: "Engine", goals: Mapping[str, _Goal], evaluation: "Evaluation | None"
    ) -> dict[str, Report]:
        """What one trial tells, and its state there; the mean of its losses starts anew."""
        ((name, goal),) = goals.items()
        report = Report(
            step=engine.step_of(goal.slot),
            train_loss=engine.train_loss(goal.slot),
            score=evaluation.score.value if evaluation else None,
            standard_error=evaluation.score.standard_error if evaluation else None,
            loss=evaluation.loss if evaluation else None,
            diverged=engine.diverged(goal.slot),
            seconds=time.monotonic() - goal.since,
        )
        if goal.keep and not report.diverged:
            goal.blob = self._blob(engine, goal.slot)
        return {name: report}

    def _taking(self) -> "_Taking":
        return _Taking(self)

    def _slot(self, name: str, incarnation: int) -> int:
        seat = self._seats.get(name)
        if seat is None or seat[0] != incarnation:
            raise RuntimeError(f"{name}, incarnation {incarnation}, has no slot here; a later one took its place")
        return seat[1]

    def _ready(self) -> "Engine":
        assert self._engine is not None, "load first"
        return self._engine

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except Exception as error:
            _end_if_broken(error)
            raise


def _end_if_broken(outcome: object) -> None:
    """End this process where a GPU's context is broken: only that heals it, and the trials are started again."""
    if "CUDA error" in str(outcome):
        os._exit(1)


def _each(goals: Mapping[str, _Goal], do: Callable[[Mapping[str, _Goal]], Mapping[str, T]]) -> dict[str, T | Exception]:
    """Do something for all trials together, and where that raises for each alone, so that only the guilty one fails.

    What is done for several must change nothing where it raises.
    """
    from adept_tune.engine.reading import Halted

    try:
        return dict(do(goals))
    except Halted:
        return {}
    except Exception as error:
        if len(goals) == 1:
            return dict.fromkeys(goals, error)
    return {name: outcome for name, goal in goals.items() for outcome in _each({name: goal}, do).values()}


def _step(engine: "Engine", goals: Mapping[str, _Goal]) -> dict[str, Report]:
    """One fused step; it has nothing to report."""
    engine.step([goal.slot for goal in goals.values()])
    return {}


class _Taking:
    """Hold the engine between two steps."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def __aenter__(self) -> None:
        self._host._wanted += 1
        try:
            await self._host._lock.acquire()
        finally:
            self._host._wanted -= 1

    async def __aexit__(self, *_: object) -> None:
        self._host._lock.release()


def _probe(
    engine: "Engine",
    trial: "TrialConfig",
    companies: Sequence[int],
    limits: Sequence[int | None],
    num_steps: int,
) -> dict[str, Any]:
    from adept_tune.engine.memory import trim

    device, lanes = engine.backbone.device, engine.limits.lanes
    if device.type == "cuda":
        limits = _within_memory(engine, trial, limits)
    else:
        lanes.split(_affordable_lanes(engine, trial, limits[0]))
    found: dict[str, Any] = {}
    for company in companies:
        best, *others = (_timed(engine, trial, company, limit, num_steps) for limit in limits)
        for other in others:  # what differs by chance alone is as the first
            best = other if other["step_s"] < 0.95 * best["step_s"] else best
        if found and best["step_s"] > 0.9 * found["step_s"]:
            break
        found = best
    enough = 0.9 - BESIDE / lanes.num_threads
    while (count := lanes.count) > 1:
        lanes.split(count // 2)
        fewer = _timed(engine, trial, found["slots"], found["tokens_per_pass"], num_steps, found["step_s"])
        if fewer["step_s"] > enough * found["step_s"]:
            lanes.split(count)
            break
        found = fewer
    engine.limits.tokens_per_pass = found["tokens_per_pass"]
    with _seated(engine, trial, found["slots"]) as slots:
        start = time.monotonic()
        share = engine.evaluate_sample(slots)
        evaluation_s = (time.monotonic() - start) / share / len(slots)
    trim(device)
    found |= {"evaluation_s": evaluation_s, "num_threads": lanes.num_threads, "num_lanes": lanes.count}
    return found | {"embedding_rms": engine.backbone.embedding_rms}


def _affordable_lanes(engine: "Engine", trial: "TrialConfig", limit: int | None) -> int:
    """A lane for each thread, or as many as there is memory for, as a step of one trial tells."""
    import torch

    from adept_tune.engine.memory import free_bytes, growth

    device, lanes = engine.backbone.device, engine.limits.lanes
    lanes.split(1)
    torch.set_num_threads(1)  # of a busy machine several would make this the longest step of all
    engine.limits.tokens_per_pass = limit
    with _seated(engine, trial, 1) as slots:
        _, pass_bytes = growth(lambda: engine.step(slots), device)
    free = 0.9 * free_bytes(device) if pass_bytes else 0.0
    return lanes.num_threads if lanes.num_threads * pass_bytes <= free else max(1, int(free / pass_bytes))


@contextmanager
def _seated(engine: "Engine", trial: "TrialConfig", company: int) -> "Iterator[list[int]]":
    """Some equal trials at their start, for the time of a block."""
    slots: list[int] = []
    try:
        slots += (engine.join(trial) for _ in range(company))
        yield slots
    finally:
        for slot in slots:
            engine.leave(slot)


def _within_memory(engine: "Engine", trial: "TrialConfig", limits: Sequence[int | None]) -> list[int | None]:
    """Limits that a tenth of the free memory is left beside, as two passes tell; what replays a pass takes as much."""
    from adept_tune.engine.memory import free_bytes, ran_out

    try:
        with _seated(engine, trial, 1) as (slot,):
            most = engine.need(slot).tokens_within(
                (0.45 if engine.graphs else 0.9) * free_bytes(engine.backbone.device)
            )
    except Exception as error:
        if not ran_out(error):
            raise
        return list(limits)  # a step that does not fit finds its own limit
    return list(dict.fromkeys(most if limit is None else min(limit, most or limit) for limit in limits))


def _timed(
    engine: "Engine",
    trial: "TrialConfig",
    company: int,
    limit: int | None,
    num_steps: int,
    step_s: float | None = None,
) -> dict[str, Any]:
    """One trial's step among some, in passes of some tokens; fewer where memory ran out.

    Where its first step takes more than twice the time of a step to be beaten, that is all that is measured; after a
    long one, one more is. Replayed passes are captured before.
    """
    engine.limits.tokens_per_pass = limit
    with _seated(engine, trial, company) as slots:
        engine.num_tokens()  # starts them anew
        first_s = _step_s(engine, slots, 1)  # pays for allocations
        if engine.graphs:
            _step_s(engine, slots, SETTLING_STEPS)
        hopeless = step_s is not None and first_s > 2 * step_s
        told_s = first_s if hopeless else _step_s(engine, slots, 1 if first_s * company > LONG_S else num_steps)
        real, read = engine.num_tokens()
        if engine.graphs:
            engine.graphs.forget()
    return {
        "step_s": told_s,
        "slots": company,
        "tokens_per_pass": engine.limits.tokens_per_pass,
        "padded_share": 1 - real / read,
    }


def _step_s(engine: "Engine", slots: list[int], num_steps: int) -> float:
    """Seconds of one trial's step."""
    start = time.monotonic()
    for _ in range(num_steps):
        engine.step(slots)
    engine.train_loss(slots[0])  # waits for the device
    return (time.monotonic() - start) / (num_steps * len(slots))


def _score(engine: "Engine", blob: bytes, where: str, split: Split) -> "Evaluation":
    from adept_tune.engine.state import TrialState

    return engine.score_state(TrialState.from_bytes(blob, where), split)
