"""A small search without Ray: spaces, studies on fakes, and trials that are functions instead of training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from adept_tune.engine.config import TrialConfig
from adept_tune.tasks.metrics import Score
from adept_tune.tuning.journal import Event, Journal
from adept_tune.tuning.rungs import Rule
from adept_tune.tuning.samplers import Proposer
from adept_tune.tuning.space import Params, SearchSpace, SpaceFile, read_space, resolve_space
from adept_tune.tuning.store import Store
from adept_tune.tuning.study import Study
from adept_tune.tuning.work import Job, Report

D_MODEL, SOURCE_LENGTH = 16, 32

SPACE = {
    "prompt_length": {"low": 10, "high": 100, "step": 10},
    "ffn_width": {"low": 4, "high": 64, "log": True},
    "prompt_lr": {"low": 0.03, "high": 1.0, "log": True},
    "labels": {"choices": ["digits", "words"]},
}
POINT = {"prompt_length": 60, "ffn_width": 19, "prompt_lr": 0.3, "labels": "digits"}


def properties(max_examples: int) -> settings:
    """Hypothesis without a clock and a memory: the same examples on every machine, however busy."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def space_of(parameters: dict[str, Any] | None = None, method: str = "adept", **others: Any) -> SearchSpace:
    """A resolved space from its parts."""
    file = SpaceFile.model_validate(
        {"method": method, "parameters": SPACE if parameters is None else parameters} | others
    )
    return resolve_space(file, D_MODEL, SOURCE_LENGTH)


def space_from(folder: Path, text: str, d_model: int = D_MODEL, name: str = "own", **fixed: Any) -> SearchSpace:
    """A resolved space from the text of a file, as a person writes it."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return resolve_space(read_space(str(path)), d_model, SOURCE_LENGTH, fixed)


def inside(space: SearchSpace, params: Params) -> bool:
    """Whether a point gives every dimension a value within it, and nothing else."""
    return params.keys() == space.dimensions.keys() and all(
        dimension.contains(params[name]) for name, dimension in space.dimensions.items()
    )


class ListProposer(Proposer):
    """Proposes what it was given, and notes what it is told."""

    def __init__(self, points: Sequence[Params]) -> None:
        self.points = list(points)
        self.told: list[tuple[Any, ...]] = []

    def propose(self, trial: int) -> Params | None:
        return self.points[trial] if trial < len(self.points) else None

    def again(self, trial: int, params: Params) -> None:
        self.told.append(("again", trial))

    def reported(self, trial: int, step: int, value: float) -> None:
        self.told.append(("reported", trial, step, value))

    def ended(self, trial: int, value: float | None, pruned: bool) -> None:
        self.told.append(("ended", trial, value, pruned))


class NotingStore(Store):
    """A store in memory that notes each write in a log it shares with others."""

    def __init__(self, log: list[Any] | None = None) -> None:
        super().__init__("memory://adept-tune-tests")
        self.log: list[Any] = [] if log is None else log
        self.states: dict[tuple[str, int], bytes] = {}

    def write(self, job: str, step: int, blob: bytes) -> None:
        self.log.append(("stored", job, step))
        self.states[job, step] = blob


class NotingJournal(Journal):
    """A journal that notes each line in a log it shares with others."""

    def __init__(self, path: Path, log: list[Any] | None = None) -> None:
        super().__init__(path, clock=lambda: 1.0)
        self.log: list[Any] = [] if log is None else log

    def append(self, event: Event) -> Event:
        written = super().append(event)
        self.log.append(("journalled", written["event"]))
        return written


def made_study(
    proposer: Proposer,
    rule: Rule,
    journal: Journal,
    store: Store | None = None,
    max_steps: int = 12,
    num_trials: int = 100,
    maximize: bool = True,
    listeners: Sequence[Callable[[Event], None]] = (),
    out_of_time: Callable[[], bool] = lambda: False,
) -> Study:
    """A study whose points are trial settings, at chance 0.5 with a standard error of 0.1."""
    return Study(
        proposer,
        rule,
        lambda params, number: (
            TrialConfig.model_validate(_settings(params) | {"max_steps": max_steps, "seed": number}),
            params,
        ),
        lambda config: 100 + config.prompt_length,
        Score(0.5, 0.1),
        maximize,
        num_trials,
        journal,
        NotingStore() if store is None else store,
        listeners,
        out_of_time,
    )


def _settings(params: Params) -> dict[str, Any]:
    return {
        {"ffn_width": "width", "ffn_lr": "offset_lr"}.get(name, name): value for name, value in ({} | params).items()
    }


def evaluated(step: int, score: float, loss: float = 0.5) -> Report:
    """A report with a score."""
    return Report(step, train_loss=loss, score=score, standard_error=0.05, loss=loss)


@dataclass
class Simulator:
    """Drives a study as Ray Tune does, several trials at once, with a formula in place of training.

    Attributes:
        study: What is driven.
        concurrent: Trials at once.
        calls: Told before each call that the study gets, and after the last.
    """

    study: Study
    concurrent: int = 3
    calls: Callable[[], None] = lambda: None
    running: list[tuple[Job, Iterator[int]]] = field(default_factory=list)

    def run(self) -> None:
        """Until the study has no more trials."""
        from adept_tune.tuning.work import End

        self.calls()
        while self._fill() or self.running:
            for entry in list(self.running):
                job, steps = entry
                step = next(steps, None)
                if step is None:
                    self.study.end(job.name, End.FINISHED, "ran to its end")
                elif job.config.seed % 11 == 7:
                    self.study.end(job.name, End.FAILED, "its process was lost")
                elif not self.study.report(job.name, simulated(job, step), lambda: b"state"):
                    self.calls()
                    continue
                self.running.remove(entry)
                self.calls()

    def _fill(self) -> bool:
        started = False
        while len(self.running) < self.concurrent and (job := self.study.next()) is not None:
            self.calls()
            self.study.started(job.name)
            self.calls()
            self.running.append((job, iter(job.reports)))
            started = True
        return started


def simulated(job: Job, step: int) -> Report:
    """What a trial tells: better the nearer its prompt rate is to 0.2; every ninth meets a NaN half way."""
    config = job.config
    if config.seed % 9 == 4 and step >= config.max_steps // 2:
        return Report(step, nan, diverged=True)
    quality = 1 / (1 + abs(config.prompt_lr - 0.2) * 5) * step / config.max_steps
    if step not in job.evaluations:
        return Report(step, train_loss=1 - quality)
    return Report(step, train_loss=1 - quality, score=0.5 + quality / 2, standard_error=0.05, loss=1 - quality / 2)
