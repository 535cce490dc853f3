"""Ray Tune drives a `Work` through Tune's own extension points: a searcher, a scheduler and a callback."""

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from adept_tune.errors import StoppedError, StorageError
from adept_tune.tuning.broker import NAMESPACE
from adept_tune.tuning.host import Saved
from adept_tune.tuning.interrupt import Interrupt
from adept_tune.tuning.trial import run_trial
from adept_tune.tuning.work import End, Report, Work

T = TypeVar("T")

_LONGEST_CAUSE = 300
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

_REPORT_FIELDS = [field.name for field in fields(Report)]
BROKER_S = 30.0  # to answer
FETCH_AGAIN_S = 0.5  # before a state is asked for once more
ROOM_S = 1.0  # between two looks at the nodes
SILENT_S = 60.0  # within which Ray finds out that a node is dead
_MOST_PENDING = "100000"  # trials that Tune may ask resources for at once; `_Jobs` gives out no more than there is room
_UNUSED_SNAPSHOTS_S = "1e9"  # Tune's own snapshots; ours is the journal


@dataclass(frozen=True)
class Share:
    """What a trial holds in Ray's accounting, and how many may run at once.

    Attributes:
        num_cpus: Of Ray's.
        num_gpus: Of Ray's.
        concurrent: Trials at once when the work begins, on the devices that are there or can be launched.
        room: How many it is now; a node that joins makes room.
    """

    num_cpus: float
    num_gpus: float
    concurrent: int
    room: Callable[[], int]

    def options(self) -> dict[str, float]:
        """For a Ray task that holds the same share."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}


# Work, broker's name, share, most failures of a job, interrupt -> whether it was told to stop; see `run_work`.
Drive = Callable[[Work, str, Share, int, Interrupt], bool]


class _Reins:
    """What ends a work early: somebody's wish, a disk that takes no more, or a broker that has died.

    Attributes:
        fault: Why nothing more can be done or written; None while it can.
        saved: Whether what was on its way has been saved.
    """

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self.fault: StoppedError | None = None
        self.saved = False

    @property
    def pulled(self) -> bool:
        """Whether to stop."""
        return self._interrupt.asked or self.fault is not None

    def write(self, call: Callable[[], T], otherwise: T) -> T:
        """Do what writes to journal or store; Tune would take an error of theirs for one of the trial's."""
        if self.fault is not None:
            return otherwise
        try:
            return call()
        except StorageError as error:
            self.fault = error
            return otherwise


def run_work(work: Work, broker_name: str, share: Share, max_failures: int, interrupt: Interrupt) -> bool:
    """Run all jobs of a work as Tune trials and come back when none is left, or when told to stop.

    Args:
        work: Jobs out, reports in.
        broker_name: Of the broker that finds the trials' hosts.
        share: What each trial holds.
        max_failures: How often a job whose process or host is lost is started again; losing a whole node does not
            count.
        interrupt: Watched for a wish to stop.

    Returns:
        Whether it was told to stop (Ctrl-C); the states of what was running are saved.

    Raises:
        StoppedError: The journal or the store could not be written, or the broker has died.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = _UNUSED_SNAPSHOTS_S
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = _MOST_PENDING
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "30"  # a reset that is given up ends a trial behind our back
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours saves the trials' states first
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    broker = ray.get_actor(broker_name, namespace=NAMESPACE)
    reins = _Reins(interrupt)
    with tempfile.TemporaryDirectory(prefix="adept_tune-") as scratch, interrupt.watched():
        tuner = tune.Tuner(
            tune.with_resources(run_trial, {"cpu": share.num_cpus, "gpu": share.num_gpus}),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_Jobs(work, broker_name, reins, share.room),
                scheduler=_Decisions(work, broker, reins),
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.config["job"]["name"]),
                trial_dirname_creator=lambda trial: str(trial.config["job"]["name"]),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                stop=_Stop(reins),
                callbacks=[_Ends(work, broker, reins, max_failures)],
                failure_config=tune.FailureConfig(max_failures=-1),  # `_Ends` counts
            ),
        )
        tuner.fit()
    if reins.fault is not None:
        raise reins.fault
    return interrupt.asked


class _Unsaved:
    """Tune pickles its parts into snapshots that nobody reads: the journal is the search. These leave nothing there."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Stop(_Unsaved, Stopper):  # type: ignore[misc]  # Ray is untyped here
    """Tune asks whether to stop everything."""

    def __init__(self, reins: _Reins) -> None:
        self._reins = reins

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether somebody asked for it, or nothing can be written any more, and `_Ends` has saved what it could."""
        return self._reins.saved


class _Jobs(_Unsaved, Searcher):  # type: ignore[misc]  # Ray is untyped here
    """Tune asks for a configuration; the answer is the work's next job.

    Tune's own limit of trials at once is a number; ours follows the nodes. A job is chosen when there is room for it.
    """

    def __init__(self, work: Work, broker_name: str, reins: _Reins, room: Callable[[], int]) -> None:
        super().__init__()
        self._work = work
        self._broker_name = broker_name
        self._reins = reins
        self._count_room = room
        self._room = 0
        self._counted_at = float("-inf")
        self._live: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """A job, None while there is no room for one, or FINISHED."""
        if self._live and not self._has_room():
            return None
        job = None if self._reins.pulled else self._reins.write(self._work.next, None)
        if job is None:
            return Searcher.FINISHED
        self._live.add(trial_id)
        return {"job": job.as_dict(), "broker": self._broker_name}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Only makes room: the work hears of ends from the callback, which knows the error."""
        self._live.discard(trial_id)

    def _has_room(self) -> bool:
        now = time.monotonic()
        if now - self._counted_at >= ROOM_S:
            self._room, self._counted_at = self._count_room(), now
        return len(self._live) < self._room

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: resume is replay."""


class _Decisions(_Unsaved, FIFOScheduler):  # type: ignore[misc]  # Ray is untyped here
    """Tune asks whether a trial goes on; the answer is the work's."""

    _supports_buffered_results = False

    def __init__(self, work: Work, broker: Any, reins: _Reins) -> None:
        super().__init__()
        self._work = work
        self._broker = broker
        self._reins = reins
        self._hosts: dict[str, Any] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Take the state, journal the report, decide, and free the slot of a trial that ends here."""
        if "host" not in result:  # the end of a function that had nothing left to report
            return str(self.CONTINUE)
        name = trial.config["job"]["name"]
        stop = self._reins.write(lambda: self._taken(name, result), False)
        return str(self.STOP if stop else self.CONTINUE)

    def _taken(self, name: str, result: Mapping[str, Any]) -> bool:
        """Take a report. Returns whether its trial ends here."""
        report = Report(**{field: result[field] for field in _REPORT_FIELDS})
        incarnation = result["incarnation"]
        for refusal in result["refused"]:
            self._work.trouble(name, f"went on from an older state, because {refusal}")
        try:
            host = self._host(result["host"])
            blob = b"" if report.diverged else self._fetched(host, name, incarnation, report.step)
        except (ray.exceptions.ActorDiedError, ValueError):  # Ray says ValueError of a name that is gone
            # The host was lost with the state, so nothing is journalled. The trial finds out when it asks it next.
            return False
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, RuntimeError):
                return False  # a later incarnation took its place
            self._work.trouble(name, f"its report at step {report.step} was lost ({_cause(str(error))})", str(error))
            return False
        stop = self._work.report(name, report, lambda: blob)
        self._broker.journalled.remote(name, report.step)
        if stop:
            host.leave.remote(name, incarnation)
        return stop

    @staticmethod
    def _fetched(host: Any, name: str, incarnation: int, step: int) -> bytes:
        """A reported state; a host that cannot be reached is asked once more."""
        try:
            blob: bytes = ray.get(host.fetch_state.remote(name, incarnation, step))
        except ray.exceptions.ActorUnavailableError:
            time.sleep(FETCH_AGAIN_S)
            blob = ray.get(host.fetch_state.remote(name, incarnation, step))
        return blob

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """A trial whose last report was taken has its end already; for any other the report was lost."""
        name, reason = trial.config["job"]["name"], "its last report was lost"
        self._reins.write(lambda: self._work.end(name, End.FAILED, reason), None)

    def _host(self, name: str) -> Any:
        if name not in self._hosts:
            self._hosts[name] = ray.get_actor(name, namespace=NAMESPACE)
        return self._hosts[name]


@dataclass(frozen=True)
class _Silent:
    """A job whose process could not be reached; whether its whole node is lost shows some seconds later.

    Attributes:
        trial: Of Tune.
        name: Of the job.
        step: Which it goes on from.
        node: Id of the node that it was on; None where it had not got that far.
        error: What Ray said.
        dead_before: Ids of nodes that were dead already.
        since: When it was.
    """

    trial: Any
    name: str
    step: int
    node: str | None
    error: str
    dead_before: frozenset[str]
    since: float


class _Ends(_Unsaved, Callback):  # type: ignore[misc]  # Ray is untyped here
    """Tune tells of starts and errors, and turns its wheel."""

    def __init__(self, work: Work, broker: Any, reins: _Reins, max_failures: int) -> None:
        self._work = work
        self._broker = broker
        self._reins = reins
        self._max_failures = max_failures
        self._failures: Counter[str] = Counter()
        self._silent: list[_Silent] = []
        self._judged_at = float("-inf")

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Once told to stop, save what is on its way before Tune stops it."""
        self._judge_silent()
        if self._reins.pulled and not self._reins.saved:
            self._reins.saved = True
            ended: set[str] = set()
            for saved in self._halted():
                if saved.name not in ended and self._reins.write(lambda s=saved: self._kept(s), False):  # type: ignore[misc]
                    ended.add(saved.name)

    def _kept(self, saved: Saved) -> bool:
        """Take what a host had when it was halted. Returns whether its trial ends there."""
        if saved.report is not None:
            return self._work.report(saved.name, saved.report, lambda: saved.blob)
        self._work.save(saved.name, saved.step, saved.blob)
        return False

    def _halted(self) -> list[Saved]:
        """The states of what was on its way; none where the broker is gone."""
        try:
            return list(ray.get(self._broker.halt.remote()))
        except ray.exceptions.RayError:
            return []

    def _broker_lives(self) -> bool:
        try:
            ray.get(self._broker.ping.remote(), timeout=BROKER_S)
        except ray.exceptions.ActorDiedError:
            return False
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            pass  # it is busy
        return True

    def _judge_silent(self) -> None:
        """Tell what became of processes that nobody could reach, once Ray knows whether their nodes live."""
        if not self._silent or time.monotonic() - self._judged_at < ROOM_S:
            return
        self._judged_at, dead = time.monotonic(), _dead_nodes()
        for silent in list(self._silent):
            lost = (
                silent.node in dead or (silent.node is None and dead > silent.dead_before) or _node_lost(silent.error)
            )
            if not lost and time.monotonic() - silent.since < SILENT_S:
                continue
            self._silent.remove(silent)
            if lost:
                what = "its node was lost"
            else:
                self._failures[silent.name] += 1
                if self._failures[silent.name] > self._max_failures:
                    silent.trial.max_failures = 0  # what Tune starts now is turned away by the broker
                    self._fail(silent.name, silent.error)
                    continue
                what = f"its process could not be reached ({self._failures[silent.name]} of {self._max_failures} times)"
            what = f"{what}; it goes on from step {silent.step}"
            self._reins.write(lambda s=silent, w=what: self._work.trouble(s.name, w, s.error), None)  # type: ignore[misc]

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Tune has told all trials to stop, and waits until their processes have ended."""
        if self._reins.saved:
            self._broker.dismiss.remote()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A process has taken the job up."""
        self._reins.write(lambda: self._work.started(trial.config["job"]["name"]), None)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A job's process or host was lost, and Tune starts it again; once too often, it fails."""
        name, error = trial.config["job"]["name"], _error_of(trial)
        if self._reins.pulled:
            return
        if not self._broker_lives():  # without it every trial would fail, one by one
            self._reins.fault = StoppedError(f"the search's broker has died ({_cause(error)}); --resume goes on")
            return
        if _node_lost(error) or _unreachable(error):
            try:
                step, node = ray.get(self._broker.standing.remote(name))
            except ray.exceptions.RayError as lost:
                self._reins.fault = StoppedError(
                    f"the search's broker cannot tell where {name} stands ({_cause(str(lost))}); --resume goes on"
                )
                return
            self._silent.append(_Silent(trial, name, step, node, error, _dead_nodes(), time.monotonic()))
            return
        self._failures[name] += 1
        if self._failures[name] > self._max_failures:
            trial.max_failures = 0  # what Tune starts now is turned away by the broker
            self._fail(name, error)
            return
        what = f"{_cause(error)}; started again ({self._failures[name]} of {self._max_failures} times)"
        self._reins.write(lambda: self._work.trouble(name, what, error), None)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A job has failed for good."""
        self._fail(trial.config["job"]["name"], _error_of(trial))

    def _fail(self, name: str, error: str) -> None:
        self._broker.close.remote(name)
        self._reins.write(lambda: self._work.end(name, End.FAILED, _cause(error), error), None)


def _error_of(trial: Any) -> str:
    """A trial's latest error with its traceback; Tune appends them to a file."""
    file = trial.error_file
    text = Path(file).read_text(errors="replace") if file and Path(file).is_file() else ""
    _, _, latest = text.rpartition("Failure # ")
    return _COLOUR.sub("", latest.partition("\n")[2]).strip()


def _cause(error: str) -> str:
    """An error in a few words; what Ray guesses about a death is left to the whole story."""
    if "class_name: Host" in error:
        return "its host died"
    lines = [line for line in error.splitlines() if line.strip() and not line[0].isspace()]
    return lines[-1][:_LONGEST_CAUSE] if lines and "class_name: " not in error else "its process died"


def _node_lost(error: str) -> bool:
    """Whether a process was lost with its whole node, a spot instance for example."""
    return "its node has died" in error


def _unreachable(error: str) -> bool:
    """Whether a process did not answer and Ray did not know why: it knows of dead processes, so a node is suspected."""
    return "ActorUnavailableError" in error or "is unavailable: " in error


def _dead_nodes() -> frozenset[str]:
    return frozenset(str(node["NodeID"]) for node in ray.nodes() if not node["Alive"])
