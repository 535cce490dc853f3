"""What Ray Tune is given to schedule, seen without Ray: jobs out, reports in.

The search and the retraining are both such work, so the same trials, hosts and adapters to Tune serve them, and both
run in one process without Ray where a test wants that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing it loads torch, which a trial's process must not
    from adept_tune.engine.config import TrialConfig


class End(StrEnum):
    """The different ends of a trial; everywhere the same words."""

    FINISHED = "FINISHED"
    PRUNED = "PRUNED"
    DIVERGED = "DIVERGED"
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        name: Of its states in the store and of its trial in Tune.
        config: The trial's settings.
        reports: Steps to report at, ascending; the last is the end.
        evaluations: Those of them at which it is evaluated.
    """

    name: str
    config: "TrialConfig"
    reports: tuple[int, ...]
    evaluations: frozenset[int]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, to travel through Ray to processes that load no torch."""
        return {
            "name": self.name,
            "config": self.config.model_dump(mode="json"),
            "reports": list(self.reports),
            "evaluations": sorted(self.evaluations),
        }


@dataclass(frozen=True)
class Report:
    """What a trial tells at a step.

    Attributes:
        step: Optimizer steps done.
        train_loss: Mean since the last report.
        score: The metric on the validation half, where it was evaluated.
        standard_error: Of the score.
        loss: Validation loss, where it was evaluated.
        diverged: Whether a loss or gradient was not finite; the trial ends here.
        seconds: Wall time since the trial was last told to train, or went on by itself.
    """

    step: int
    train_loss: float
    score: float | None = None
    standard_error: float | None = None
    loss: float | None = None
    diverged: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """How far a journal says that a job has come.

    Attributes:
        reported: Step of its last report.
        saved: Step of its newest state: that report's, or a later one, saved when the search was interrupted.
    """

    reported: int = 0
    saved: int = 0


class Work(ABC):
    """Jobs to run, and what to do with their reports. Lives in the driver; a call is journalled before it returns."""

    @abstractmethod
    def next(self) -> Job | None:
        """The next job, None where there are no more."""

    @abstractmethod
    def started(self, name: str) -> None:
        """A process has taken the job up (again, after a failure)."""

    @abstractmethod
    def report(self, name: str, report: Report, fetch_state: Callable[[], bytes]) -> bool:
        """Take a report; a step that was reported before changes nothing.

        Args:
            name: Of the job.
            report: What it tells.
            fetch_state: Its state at that step; called before the report is journalled.

        Returns:
            Whether the job ends here.
        """

    @abstractmethod
    def save(self, name: str, step: int, blob: bytes) -> None:
        """Keep the state of a job that is stopped between two reports.

        Args:
            name: Of the job.
            step: Where it stands.
            blob: Its state there.
        """

    @abstractmethod
    def trouble(self, name: str, what: str, error: str | None = None) -> None:
        """Something went wrong with a job that goes on.

        Args:
            name: Of the job.
            what: In one line.
            error: The whole story, with the worker's traceback.
        """

    @abstractmethod
    def end(self, name: str, end: End, reason: str, error: str | None = None) -> None:
        """A job is over; the first end counts, later ones change nothing."""


def report_steps(max_steps: int, must: tuple[int, ...] | list[int], num_reports: int) -> tuple[int, ...]:
    """Steps to report at: so many on the way, which the method says, and wherever a rule wants to look."""
    every = max(1, max_steps // num_reports)
    return tuple(sorted({*range(every, max_steps, every), *must, max_steps}))
