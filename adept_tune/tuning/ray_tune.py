"""Ray Tune drives a `Work` through Tune's own extension points: a searcher, a scheduler and a callback."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from adept_tune.tuning.broker import NAMESPACE
from adept_tune.tuning.trial import run_trial
from adept_tune.tuning.work import End, Report, Work

_REPORT_FIELDS = [field.name for field in fields(Report)]
_UNUSED_SNAPSHOTS_S = "1e9"  # Tune's own snapshots; ours is the journal


@dataclass(frozen=True)
class Share:
    """What a trial holds in Ray's accounting, and how many may run at once."""

    num_cpus: float
    num_gpus: float
    concurrent: int

    def options(self) -> dict[str, float]:
        """For a Ray task that holds the same share."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}


def run_work(work: Work, broker_name: str, share: Share, max_failures: int) -> bool:
    """Run all jobs of a work as Tune trials and come back when none is left, or when told to stop.

    Args:
        work: Jobs out, reports in.
        broker_name: Of the broker that finds the trials' hosts.
        share: What each trial holds.
        max_failures: How often a job whose process or host is lost is started again.

    Returns:
        Whether it was told to stop (Ctrl-C).
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = _UNUSED_SNAPSHOTS_S
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    broker = ray.get_actor(broker_name, namespace=NAMESPACE)
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryDirectory(prefix="adept_tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(run_trial, {"cpu": share.num_cpus, "gpu": share.num_gpus}),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_Jobs(work, broker_name),
                scheduler=_Decisions(work, broker),
                max_concurrent_trials=share.concurrent,
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.config["job"]["name"]),
                trial_dirname_creator=lambda trial: str(trial.config["job"]["name"]),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                callbacks=[_Ends(work, broker)],
                failure_config=tune.FailureConfig(max_failures=max_failures),
            ),
        )
        try:
            tuner.fit()
            # Tune puts its own handler in, and takes it out again only when it was used.
            return in_main_thread and signal.getsignal(signal.SIGINT) is before
        finally:
            if in_main_thread:
                signal.signal(signal.SIGINT, before)


class _Unsaved:
    """Tune pickles its parts into snapshots that nobody reads: the journal is the search. These leave nothing there."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Jobs(_Unsaved, Searcher):  # type: ignore[misc]  # Ray is untyped here
    """Tune asks for a configuration; the answer is the work's next job."""

    def __init__(self, work: Work, broker_name: str) -> None:
        super().__init__()
        self._work = work
        self._broker_name = broker_name

    def suggest(self, trial_id: str) -> Any:
        """A job, or FINISHED."""
        job = self._work.next()
        return Searcher.FINISHED if job is None else {"job": job.as_dict(), "broker": self._broker_name}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The work hears of ends from the callback, which knows the error."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: resume is replay."""


class _Decisions(_Unsaved, FIFOScheduler):  # type: ignore[misc]  # Ray is untyped here
    """Tune asks whether a trial goes on; the answer is the work's."""

    _supports_buffered_results = False

    def __init__(self, work: Work, broker: Any) -> None:
        super().__init__()
        self._work = work
        self._broker = broker
        self._hosts: dict[str, Any] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Take the state, journal the report, decide, and free the slot of a trial that ends here."""
        name = trial.config["job"]["name"]
        if "host" not in result:  # the end of a function that had nothing left to report
            return str(self.CONTINUE)
        report = Report(**{field: result[field] for field in _REPORT_FIELDS})
        incarnation = result["incarnation"]
        try:
            host = self._host(result["host"])
            fetch: Callable[[], bytes] = lambda: ray.get(host.fetch_state.remote(name, incarnation))  # noqa: E731
            stop = self._work.report(name, report, fetch)
        except (ray.exceptions.RayError, ValueError):
            # The host was lost with the state, so nothing is journalled. The trial finds out when it asks it next.
            return str(self.CONTINUE)
        self._broker.journalled.remote(name, report.step)
        if not stop:
            return str(self.CONTINUE)
        host.leave.remote(name, incarnation)
        return str(self.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """A trial whose last report was taken has its end already; for any other the report was lost."""
        self._work.end(trial.config["job"]["name"], End.FAILED, "its last report was lost with its host")

    def _host(self, name: str) -> Any:
        if name not in self._hosts:
            self._hosts[name] = ray.get_actor(name, namespace=NAMESPACE)
        return self._hosts[name]


class _Ends(_Unsaved, Callback):  # type: ignore[misc]  # Ray is untyped here
    """Tune tells of starts and errors."""

    def __init__(self, work: Work, broker: Any) -> None:
        self._work = work
        self._broker = broker

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A process has taken the job up."""
        self._work.started(trial.config["job"]["name"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A job has failed for good."""
        name, error = trial.config["job"]["name"], trial.get_error()
        lines = str(error).strip().splitlines() if error is not None else []
        self._broker.release.remote(name)
        self._work.end(name, End.FAILED, lines[-1] if lines else "its process was lost", str(error))
