"""After the search: the best configurations over several seeds, the winner tested once, its best seed exported.

A winner is a set of seeds. It is chosen on the mean of the validation half; the test half is read once, by each seed
of the winner, after that choice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from adept_tune.engine.state import TrialState
from adept_tune.errors import StateError
from adept_tune.methods.base import NUM_REPORTS
from adept_tune.tuning.journal import Event, Journal, Listener
from adept_tune.tuning.samplers import derive_seed
from adept_tune.tuning.store import Store
from adept_tune.tuning.study import TrialRecord, event_fields, report_of
from adept_tune.tuning.work import End, Job, Report, Work, report_steps


@dataclass(frozen=True)
class Spread:
    """Several seeds' figures.

    Attributes:
        mean: Of the seeds.
        sd: Standard deviation between seeds; 0 for one seed.
        se: Standard error of the mean: over seeds, which average out, and over rows, which all seeds share.
    """

    mean: float
    sd: float
    se: float

    @classmethod
    def of(cls, values: Sequence[float], errors: Sequence[float]) -> "Spread":
        """Spread of one figure a seed.

        Args:
            values: The figures.
            errors: Their standard errors over rows.
        """
        sd = stdev(values) if len(values) > 1 else 0.0
        return cls(fmean(values), sd, sqrt(sd**2 / len(values) + fmean(error**2 for error in errors)))

    def difference(self) -> str:
        """The figures as those of differences seed by seed, for people; one seed tells no error."""
        if self.se == 0:
            return f"{self.mean:+.4f} on validation, of one seed or of seeds that agree"
        return (
            f"{self.mean:+.4f} ± {self.se:.4f} on validation, mean and standard error of the differences seed by seed "
            "(seeds only)"
        )

    def as_dict(self) -> dict[str, float]:
        """Plain values."""
        return {"mean": self.mean, "sd": self.sd, "se": self.se}


@dataclass(frozen=True)
class Figures:
    """What one seed came to on the test half: the task's metric and its further ones, each with its standard error."""

    score: float
    standard_error: float
    also: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, event: Event) -> "Figures":
        """From the journal's event."""
        also = {metric: (value, error) for metric, (value, error) in event.get("also", {}).items()}
        return cls(event["score"], event["standard_error"], also)


def spreads_of(tested: Sequence[Figures]) -> tuple[Spread, dict[str, Spread]]:
    """What several seeds came to: the task's metric, and, by name, the further ones that all of them have."""
    found = Spread.of([one.score for one in tested], [one.standard_error for one in tested])
    also = {
        metric: Spread.of([one.also[metric][0] for one in tested], [one.also[metric][1] for one in tested])
        for metric in tested[0].also
        if all(metric in one.also for one in tested)  # an older version told none
    }
    return found, also


@dataclass
class Rerun:
    """One seed of one finalist."""

    trial: int
    seed: int
    job: Job
    reports: dict[int, Report] = field(default_factory=dict)
    state: End | None = None

    @property
    def finished(self) -> bool:
        """Whether it got to its end with a score."""
        report = self.reports.get(self.job.config.max_steps)
        return report is not None and report.score is not None

    @property
    def scored(self) -> tuple[float, float]:
        """Score at its end and the score's standard error; only of one that has finished."""
        report = self.reports[self.job.config.max_steps]
        assert report.score is not None, f"{self.job.name} has not finished"
        return report.score, report.standard_error or 0.0


def rerun_name(trial: int, seed: int) -> str:
    """Name of a seed of a finalist, in Tune, the store and MLflow."""
    return f"trial-{trial:04d}-seed-{seed}"


class Retrain(Work):
    """Seeds of the finalists, each to full length.

    `tested` holds what the test half has been read for already, by job. `crowned` says whether the winner has been
    journalled.

    All finalists see the same order of rows and the same seeds, so they are compared like with like.

    Args:
        finalists: Trials of the search, best first.
        num_seeds: Seeds of each.
        search_seed: Seeds derive from it; none is the search's own.
        journal: Where events are kept.
        store: Where states are kept.
        listeners: Told of every event after it is journalled.
        num_reports: How often a retraining reports on its way.
    """

    def __init__(
        self,
        finalists: Sequence[TrialRecord],
        num_seeds: int,
        search_seed: int,
        journal: Journal,
        store: Store,
        listeners: Sequence[Listener] = (),
        num_reports: int = NUM_REPORTS,
    ) -> None:
        self.finalists = list(finalists)
        self.reruns = {
            rerun_name(trial.number, seed): _rerun(trial, seed, search_seed, num_reports)
            for trial in finalists
            for seed in range(1, num_seeds + 1)
        }
        self.tested: dict[str, Figures] = {}
        self.crowned = False
        self._num_seeds = num_seeds
        self._open = list(self.reruns)
        self._journal = journal
        self._store = store
        self._listeners = tuple(listeners)

    def next(self) -> Job | None:
        """See `Work`."""
        return self.reruns[self._open.pop(0)].job if self._open else None

    def started(self, name: str) -> None:
        """See `Work`."""
        if self.reruns[name].state is None:  # Tune starts what has failed once more before it hears of it
            self._tell("retrain_started", name, {})

    def report(self, name: str, report: Report, fetch_state: Callable[[], bytes]) -> bool:
        """See `Work`."""
        rerun = self.reruns[name]
        if rerun.state is not None:
            return True
        if report.step in rerun.reports:
            return False
        if not report.diverged:
            self._store.write(name, report.step, fetch_state())
        self._tell("retrain_reported", name, event_fields(report))
        rerun.reports[report.step] = report
        self._follow(name, report)
        return report.diverged

    def save(self, name: str, step: int, blob: bytes) -> None:
        """See `Work`."""
        self._store.write(name, step, blob)
        self._tell("retrain_saved", name, {"step": step})

    def trouble(self, name: str, what: str, error: str | None = None) -> None:
        """See `Work`."""
        self._tell("retrain_trouble", name, {"what": what} | ({"error": error} if error else {}))

    def end(self, name: str, end: End, reason: str, error: str | None = None) -> None:
        """See `Work`."""
        rerun = self.reruns[name]
        if rerun.state is None:
            rerun.state = end
            last = max(rerun.reports, default=0)
            event = {"state": str(end), "step": last, "reason": reason}
            self._tell("retrain_ended", name, event | ({"error": error} if error else {}))

    def finished(self, trial: int) -> list[Rerun]:
        """Seeds of a finalist that came to their end with a score, by seed."""
        mine = [rerun for rerun in self.reruns.values() if rerun.trial == trial and rerun.finished]
        return sorted(mine, key=lambda rerun: rerun.seed)

    def validation(self, trial: int) -> Spread | None:
        """A finalist's seeds on the validation half; None where none got to its end."""
        scored = [rerun.scored for rerun in self.finished(trial)]
        return Spread.of([score for score, _ in scored], [error for _, error in scored]) if scored else None

    def winner(self, maximize: bool) -> TrialRecord | None:
        """The finalist with the best validation mean; of equals the one the search ranked higher."""
        sign = 1.0 if maximize else -1.0
        means = [
            (round(sign * spread.mean, 12), -i)
            for i, t in enumerate(self.finalists)
            if (spread := self.validation(t.number))
        ]
        return self.finalists[-max(means)[1]] if means else None

    def gain(self, trial: int, over: int) -> Spread | None:
        """By how much a finalist is above another on the validation half, seed by seed; None where none finished."""
        theirs = {rerun.seed: rerun.scored[0] for rerun in self.finished(over)}
        gains = [rerun.scored[0] - theirs[rerun.seed] for rerun in self.finished(trial) if rerun.seed in theirs]
        return Spread.of(gains, [0.0] * len(gains)) if gains else None

    def begin(self) -> None:
        """Journal that a retraining begins, and only then drop the states of an earlier one."""
        finalists = [trial.number for trial in self.finalists]
        self._journal.tell({"event": "retraining", "finalists": finalists, "seeds": self._num_seeds}, self._listeners)
        for name in self.reruns:
            self._store.drop(name)

    def reopen_damaged(self) -> dict[str, int]:
        """Take up again what the journal says is finished but whose last state cannot be read.

        Returns:
            Name to the step of the report before, from which each goes on.
        """
        reopened = {}
        for name, rerun in self.reruns.items():
            if not rerun.finished:
                continue
            try:
                TrialState.from_bytes(*self._store.read(name, max(rerun.reports)))
            except StateError as error:
                del rerun.reports[max(rerun.reports)]
                rerun.state = None
                self.tested.pop(name, None)
                self.crowned = False  # what it comes to now may be another winner
                self._open.append(name)
                reopened[name] = max(rerun.reports, default=0)
                self.trouble(name, f"goes on from an older state, because {error}")
        return reopened

    def same(self, event: Event) -> bool:
        """Whether a journalled beginning was of these finalists and seeds."""
        return bool(event["finalists"] == [t.number for t in self.finalists] and event["seeds"] == self._num_seeds)

    def replay(self, events: Sequence[Event]) -> None:
        """Rebuild from the events since `begin`; nothing of them is journalled or told again."""
        for event in events:
            rerun = self.reruns.get(rerun_name(event.get("trial", -1), event.get("seed", -1)))
            if rerun is None:
                continue
            if event["event"] == "retrain_reported":
                rerun.reports[event["step"]] = report_of(event)
            elif event["event"] == "retrain_ended" and event["state"] != End.INTERRUPTED:
                rerun.state = End(event["state"])
            elif event["event"] == "tested":
                self.tested[rerun_name(event["trial"], event["seed"])] = Figures.of(event)
            elif event["event"] == "winner":
                self.crowned = True
        for name, rerun in self.reruns.items():
            if rerun.state is None and rerun.reports:
                self._follow(name, rerun.reports[max(rerun.reports)])
        self._open = [name for name, rerun in self.reruns.items() if rerun.state is None]

    def _follow(self, name: str, report: Report) -> None:
        """Draw the consequences of a report."""
        if report.diverged:
            self.end(name, End.DIVERGED, "a loss or gradient was not finite")
        elif report.step >= self.reruns[name].job.config.max_steps:
            self.end(name, End.FINISHED, "ran to its end")

    def _tell(self, kind: str, name: str, fields: dict[str, Any]) -> None:
        rerun = self.reruns[name]
        self._journal.tell({"event": kind, "trial": rerun.trial, "seed": rerun.seed} | fields, self._listeners)


def _rerun(trial: TrialRecord, seed: int, search_seed: int, num_reports: int) -> Rerun:
    config = trial.config.model_copy(
        update={
            "seed": derive_seed(search_seed, "retrain", seed),
            "data_seed": derive_seed(search_seed, "retrain order", seed),
        }
    )
    steps = report_steps(config.max_steps, [], num_reports)
    job = Job(rerun_name(trial.number, seed), config, steps, frozenset({config.max_steps}))
    return Rerun(trial.number, seed, job)
