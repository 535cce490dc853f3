"""Kill and restore a stock Ray Tune search, and count what is lost.

The search is what a careful user writes with Ray Tune alone: a function trainable with a checkpoint at every report,
ASHAScheduler, OptunaSearch (TPE), MLflowLoggerCallback, one trial at a time so that the order is fixed, and after a
kill `Tuner.restore`. It trains ADePT with our engine, one slot a process. Two uninterrupted runs tell the noise of such
a search; each further run is killed with SIGKILL at a moment drawn uniformly over the wall time of an uninterrupted
one, restored once, run to its end and compared with the first.

What is counted comes from three logs beside the search: what the trainable trained, what the scheduler decided, and
MLflow's database. The scheduler is Ray's; a subclass of it writes down each decision and changes none.
"""

import argparse
import contextlib
import ctypes
import json
import logging
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler

import adept_tune
from adept_tune.backbones import BackboneInfo, load_backbone, load_tokenizer
from adept_tune.backbones.codec import TokenizerCodec
from adept_tune.engine.engine import Engine
from adept_tune.engine.reading import Reader
from adept_tune.engine.state import TrialState
from adept_tune.errors import AdeptError, TaskError
from adept_tune.methods import Method
from adept_tune.tasks import get_task
from adept_tune.tasks.tokens import TaskData
from adept_tune.tuning.materials import Materials, gather
from adept_tune.tuning.samplers import distribution
from adept_tune.tuning.space import SearchSpace, read_space

METRIC, MODE = "score", "max"
FIRST_RUNG, REPORTS = 27, 9  # the first rung is at a 27th of a trial's steps, and reports come every ninth
SEED = 0  # of the sampler, of every trial's initial values and of the order of rows
LIFE = "STOCK_LIFE"  # environment: 0 until the kill, 1 after the restore
NAME = "search"  # of the experiment, for Tune and MLflow
SETTINGS, RESULT, DATABASE, STATE = "settings.json", "result.json", "mlflow.db", "state.safetensors"
TRAINED, SCHEDULED = "trained.jsonl", "scheduled.jsonl"
SWEEP_S = 10.0  # how long Ray's processes get to follow their driver before they are killed too
SUBREAPER = 36  # prctl: orphans below us become our children
TABLE = Path(__file__).with_suffix(".md")
SPACE = Path(__file__).with_name("space.yaml")
PACKAGE = Path(adept_tune.__file__).parent

LEGEND = (
    "`?`: cannot be told, since the restored search did not come to its end. Against the first uninterrupted run:",
    "configurations, decisions (what ASHA said of a trial at each rung and at its end), rung entries (missing, added",
    "or of another value, in the tables at the end) and the best configuration.",
    "",
    "- Trials lost: without a last report in Tune's results, or with an error. Made twice: one number under two ids.",
    "- Reports trained twice: of one trial number and step. What was trained after the last report before a kill is",
    "  not counted.",
    "- Rung entries forgotten: those before the kill less those that ASHA knew at its first decision after the",
    "  restore.",
    "- MLflow, after the restored search has ended: runs that still say RUNNING, runs beyond one a trial, trials",
    "  without a run, and trials of which no single run has the whole curve.",
)

Event = dict[str, Any]

COUNTS = {
    "lost": "trials lost",
    "doubled": "trials made twice",
    "rerun": "finished, yet run again",
    "repeated": "reports trained twice",
    "forgotten": "rung entries forgotten",
    "configurations": "configurations differ",
    "decisions": "trials decided otherwise",
    "entries": "rung entries differ",
    "best": "best differs",
    "running": "MLflow: RUNNING for ever",
    "extra": "MLflow: runs too many",
    "unrecorded": "MLflow: trials without a run",
    "cut": "MLflow: trials without a whole curve",
}


@dataclass(frozen=True)
class Settings:
    """What is searched, and how."""

    task: str
    model: str | None
    data_dir: str | None
    labels: str | None
    space: str
    trials: int
    max_steps: int
    batch_size: int
    reduction_factor: float
    snapshot_s: str
    keep: int | None
    reuse: bool

    @property
    def first_rung(self) -> int:
        """Steps to the first rung; with a reduction factor of 3 two more follow before the end."""
        return max(1, self.max_steps // FIRST_RUNG)

    @property
    def reports(self) -> list[int]:
        """Steps at which a trial reports."""
        every = max(1, self.max_steps // REPORTS)
        return sorted({self.first_rung, *range(every, self.max_steps, every), self.max_steps})


# -- the stock search ------------------------------------------------------------------------------------------------

_loaded: dict[str, Any] = {}  # the backbone, kept by a process that trains several trials


def train(
    config: dict[str, Any],
    space: SearchSpace,
    backbone: Mapping[str, Any],
    data: TaskData,
    settings: Settings,
    log: str,
) -> None:
    """A trial: train to each report, evaluate, save, report."""
    engine = make_engine(space, backbone, data)
    sizes = {"max_steps": settings.max_steps, "batch_size": settings.batch_size}
    trial = space.at(engine.backbone.embedding_rms).config(config, **sizes, seed=SEED, data_seed=SEED)
    slot = engine.join(trial, saved_state())
    context = tune.get_context()
    for step in settings.reports:
        if step <= engine.step_of(slot):
            continue
        while engine.step_of(slot) < step:
            engine.step([slot])
        (evaluation,) = engine.evaluate([slot])
        report = {"step": step, METRIC: evaluation.score.value, "loss": evaluation.loss}
        note(Path(log), {"id": context.get_trial_id(), "config": config} | report)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / STATE).write_bytes(engine.state(slot).to_bytes())
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))
        if engine.diverged(slot):  # nothing is updated any more
            return


def make_engine(space: SearchSpace, backbone: Mapping[str, Any], data: TaskData) -> Engine:
    """An engine of one slot; the backbone is loaded once a process."""
    torch.set_num_threads(1)
    assert isinstance(space.method, Method), "the space is of an input-side method"
    info = BackboneInfo(**backbone)
    if not _loaded:
        _loaded["backbone"] = load_backbone(info, "cpu", "fp32")
        _loaded["codec"] = TokenizerCodec(load_tokenizer(info))
    reader = Reader(
        _loaded["backbone"],
        space.method,
        _loaded["codec"],
        data.metric,
        data.label_sets,
        data.label_texts,
        data.pad_id,
    )
    return Engine(_loaded["backbone"], space.method, data, reader, num_slots=1)


def saved_state() -> TrialState | None:
    """What Tune's checkpoint holds, where it gives one."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        path = Path(folder) / STATE
        return TrialState.from_bytes(path.read_bytes(), str(path))


class NotedAsha(ASHAScheduler):  # type: ignore[misc]  # Ray is untyped here
    """Ray's ASHA; writes down each decision and the rung tables after it."""

    def __init__(self, log: str, **options: Any) -> None:
        super().__init__(**options)
        self._log = log

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Note that a trial exists; Tune calls this again for each restored one."""
        super().on_trial_add(tune_controller, trial)
        self._note("added", trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Note what is decided, and at which rung."""
        before = self._tables()
        action = str(super().on_trial_result(tune_controller, trial, result))
        rung = next((rung for rung, table in self._tables().items() if len(table) > len(before[rung])), None)
        known = sum(map(len, before.values()))
        self._note("decided", trial, step=result["step"], action=action, rung=rung, known=known)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Note that a trial is over."""
        super().on_trial_complete(tune_controller, trial, result)
        self._note("ended", trial)

    def _note(self, event: str, trial: Any, **more: Any) -> None:
        number = int(str(trial.experiment_tag).split("_")[0])  # Tune counts its trials from 1 in their tags
        common = {"event": event, "id": trial.trial_id, "number": number}
        note(Path(self._log), common | more | {"tables": self._tables()})

    def _tables(self) -> dict[str, dict[str, float]]:
        """Rung -> trial id -> standing; Ray has no public way to them."""
        return {f"{rung:g}": dict(table) for rung, table in self._brackets[0]._rungs}


def drive(folder: Path) -> int:
    """Run the search of a folder, or restore it where there is one, and write down how it ended."""
    import ray

    settings = Settings(**json.loads((folder / SETTINGS).read_text()))
    materials = materials_of(settings)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    trainable = tune.with_parameters(
        train,
        space=materials.space,
        backbone=materials.info.as_dict(),
        data=materials.data,
        settings=settings,
        log=str(folder / TRAINED),
    )
    path = folder / "storage" / NAME
    restored = tune.Tuner.can_restore(str(path))
    try:
        if restored:
            tuner = tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=True)
        else:
            tuner = new_tuner(folder, settings, materials.space, trainable)
        ending = {"restored": restored} | shown_results(tuner.fit())
    except Exception as error:
        ending = {"restored": restored, "raised": f"{type(error).__name__}: {error}"}
    (folder / RESULT).write_text(json.dumps(ending))
    ray.shutdown()
    return 0


def materials_of(settings: Settings) -> Materials:
    """Task, rows, model and space, loaded and checked."""
    task = get_task(settings.task)
    model = settings.model or (str(PACKAGE / task.model) if task.model else None)
    if model is None:
        raise TaskError(f"task {task.name} has no model of its own; name one with --model")
    data_dir = Path(settings.data_dir) if settings.data_dir else None
    return gather(task.name, data_dir, model, read_space(settings.space), None, settings.labels)


def new_tuner(folder: Path, settings: Settings, space: SearchSpace, trainable: Any) -> Any:
    """The search as a careful user sets it up."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    search = OptunaSearch(
        space={name: distribution(dimension) for name, dimension in space.dimensions.items()},
        metric=METRIC,
        mode=MODE,
        points_to_evaluate=[dict(point) for point in space.points],
        seed=SEED,
    )
    asha = NotedAsha(
        str(folder / SCHEDULED),
        time_attr="step",
        max_t=settings.max_steps,
        grace_period=settings.first_rung,
        reduction_factor=settings.reduction_factor,
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=MODE,
            num_samples=settings.trials,
            search_alg=search,
            scheduler=asha,
            max_concurrent_trials=1,
            reuse_actors=settings.reuse,
        ),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=str(folder / "storage"),
            verbose=0,
            callbacks=[MLflowLoggerCallback(tracking_uri=database_uri(folder), experiment_name=NAME)],
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=settings.keep),
        ),
    )


def shown_results(grid: Any) -> Event:
    """What Tune says at the end: every trial that reported with its last report, and the best configuration."""
    trials = [
        {
            "id": result.metrics["trial_id"],
            "step": result.metrics.get("step"),
            "config": result.config,
            "error": None if result.error is None else str(result.error),
        }
        for result in grid
        if result.metrics
    ]
    best = grid.get_best_result(METRIC, MODE)
    return {"trials": trials, "best": {"config": best.config, METRIC: best.metrics[METRIC]}}


def note(path: Path, event: Event) -> None:
    """Append a line in one write, so that a kill leaves it whole or leaves it out."""
    line = json.dumps({"life": int(os.environ[LIFE])} | event) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def database_uri(folder: Path) -> str:
    """MLflow's name of a run folder's database."""
    return f"sqlite:///{folder / DATABASE}"


# -- running and killing ---------------------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Become the parent of every orphan below us, so that nothing a killed driver started can be missed."""
    if ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def run_life(folder: Path, life: int, settings: Settings, kill_after_s: float | None, limit_s: float) -> str:
    """Run a search's driver once.

    Returns:
        ``ended``, ``killed`` or ``hung``.
    """
    environment = os.environ | {
        LIFE: str(life),
        "TUNE_GLOBAL_CHECKPOINT_S": settings.snapshot_s,
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--drive", str(folder)]
    with (folder / f"driver-{life}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(limit_s if kill_after_s is None else kill_after_s)
            return "ended"
        except subprocess.TimeoutExpired:
            return "hung" if kill_after_s is None else "killed"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            sweep()


def sweep() -> None:
    """Wait until every process below us is gone; kill what has not followed its driver in time."""
    deadline = time.monotonic() + SWEEP_S
    while left := set(descendants(os.getpid())):
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.1)


def descendants(ancestor: int) -> Iterator[int]:
    """Process ids below one, zombies included."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(after_name[1]), []).append(int(entry.name))
    waiting = [ancestor]
    while waiting:
        children = parents.get(waiting.pop(), [])
        waiting += children
        yield from children


# -- reading what a run left ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MlflowRun:
    """A run of MLflow, as its database has it."""

    number: int | None
    status: str
    steps: frozenset[int]


@dataclass(frozen=True)
class Trace:
    """What a run left behind.

    Attributes:
        trained: A line a trained report.
        scheduled: A line a trial added, decided on or ended.
        ending: What the last driver wrote; empty where it wrote nothing.
        runs: MLflow's.
    """

    trained: Sequence[Event]
    scheduled: Sequence[Event]
    ending: Event
    runs: Sequence[MlflowRun]

    @classmethod
    def read(cls, folder: Path) -> "Trace":
        """Read a run's folder."""
        trained, scheduled = read_lines(folder / TRAINED), read_lines(folder / SCHEDULED)
        numbers = {event["id"]: event["number"] for event in scheduled}
        ending = json.loads((folder / RESULT).read_text()) if (folder / RESULT).exists() else {}
        for event in [*trained, *ending.get("trials", [])]:
            event["number"] = numbers[event["id"]]
        return cls(trained, scheduled, ending, list(mlflow_runs(folder, numbers)))

    @cached_property
    def finals(self) -> dict[int, Event]:
        """Trial number -> how Tune has it at the end, for those that came to an end without an error."""
        listed = self.ending.get("trials", [])
        return {trial["number"]: trial for trial in listed if trial["error"] is None and trial["step"] is not None}

    @cached_property
    def decisions(self) -> dict[int, dict[str, str]]:
        """Trial number -> rung (or the end) -> what was decided there last, of the trials that Tune lists."""
        kept = {trial["id"]: number for number, trial in self.finals.items()}
        found: dict[int, dict[str, str]] = {number: {} for number in kept.values()}
        for event in self.scheduled:
            if event["event"] != "decided" or event["id"] not in kept:
                continue
            if event["rung"] is not None or event["action"] == "STOP":
                found[kept[event["id"]]][event["rung"] or "end"] = event["action"]
        return found

    @cached_property
    def entries(self) -> dict[tuple[str, int], float]:
        """(rung, trial number) -> standing, in the tables at the end."""
        numbers = {event["id"]: event["number"] for event in self.scheduled}
        tables = self.scheduled[-1]["tables"] if self.scheduled else {}
        return {(rung, numbers[trial]): value for rung, table in tables.items() for trial, value in table.items()}


def read_lines(path: Path) -> list[Event]:
    """Whole lines of a log; none where there is no log."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def mlflow_runs(folder: Path, numbers: Mapping[str, int]) -> Iterator[MlflowRun]:
    """All runs of the search's MLflow experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(database_uri(folder))
    experiment = client.get_experiment_by_name(NAME)
    if experiment is None:
        return
    for run in client.search_runs([experiment.experiment_id], max_results=10_000):
        trial_id = run.data.tags["trial_name"].rpartition("_")[2]
        steps = frozenset(int(metric.value) for metric in client.get_metric_history(run.info.run_id, "step"))
        yield MlflowRun(numbers.get(trial_id), run.info.status, steps)


# -- counting --------------------------------------------------------------------------------------------------------


def count(reference: Trace, trace: Trace, settings: Settings) -> dict[str, int | None]:
    """What a run lost or did otherwise than the reference; None where it cannot be told.

    Args:
        reference: An uninterrupted run.
        trace: The run to judge.
        settings: Of both.
    """
    return own_counts(trace) | mlflow_counts(trace, settings) | compared_counts(reference, trace, settings)


def own_counts(trace: Trace) -> dict[str, int | None]:
    """What a run's own logs say, whether or not it came to an end."""
    ids = {event["id"]: event["number"] for event in trace.scheduled}
    ended = {event["number"] for event in trace.scheduled if event["event"] == "ended" and event["life"] == 0}
    again = {event["number"] for event in trace.trained if event["life"] == 1}
    reports = {(event["number"], event["step"]) for event in trace.trained}
    return {
        "doubled": len(ids) - len(set(ids.values())),
        "rerun": len(ended & again),
        "repeated": len(trace.trained) - len(reports),
        "forgotten": forgotten(trace),
    }


def forgotten(trace: Trace) -> int | None:
    """Rung entries before the kill less those that the first decision after the restore knew."""
    before = [event for event in trace.scheduled if event["life"] == 0]
    after = [event for event in trace.scheduled if event["life"] == 1 and event["event"] == "decided"]
    if not after:
        return 0 if "trials" in trace.ending else None
    if not before:
        return 0
    had = sum(len(table) for table in before[-1]["tables"].values())
    return had - int(after[0]["known"])


def mlflow_counts(trace: Trace, settings: Settings) -> dict[str, int | None]:
    """What MLflow's database says of the trials."""
    per_trial = Counter(run.number for run in trace.runs)
    wanted = {number: reports_until(trial["step"], settings) for number, trial in trace.finals.items()}
    whole = {run.number for run in trace.runs if run.number in wanted and run.steps >= wanted[run.number]}
    return {
        "running": sum(run.status == "RUNNING" for run in trace.runs),
        "extra": sum(times - 1 for times in per_trial.values()),
        "unrecorded": sum(number not in per_trial for number in range(1, settings.trials + 1)),
        "cut": len(wanted.keys() - whole) if trace.finals else None,
    }


def reports_until(step: int, settings: Settings) -> frozenset[int]:
    """Reports of a trial that came to a step."""
    return frozenset(report for report in settings.reports if report <= step)


def compared_counts(reference: Trace, trace: Trace, settings: Settings) -> dict[str, int | None]:
    """How a run that came to its end differs from the reference."""
    if "trials" not in trace.ending:
        return dict.fromkeys(("lost", "configurations", "decisions", "entries", "best"))
    numbers = range(1, settings.trials + 1)

    def differing(value: Callable[[Trace, int], Any]) -> int:
        return sum(same_text(value(reference, number), value(trace, number)) is False for number in numbers)

    keys = reference.entries.keys() | trace.entries.keys()
    return {
        "lost": sum(number not in trace.finals for number in numbers),
        "configurations": differing(lambda t, number: t.finals.get(number, {}).get("config")),
        "decisions": differing(lambda t, number: t.decisions.get(number)),
        "entries": sum(not same_text(reference.entries.get(key), trace.entries.get(key)) for key in keys),
        "best": int(not same_text(reference.ending["best"]["config"], trace.ending["best"]["config"])),
    }


def same_text(one: Any, other: Any) -> bool:
    """Whether two values are the same to the last digit; NaN is NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# -- the campaign ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    at: str
    stood: str
    restore: str
    runs: int
    counts: Mapping[str, int | None]
    killed: bool


class Campaign:
    """Uninterrupted runs, then killed ones.

    Args:
        settings: Of the search.
        work: Folder for all runs.
        limit_s: After which a driver counts as hung.
    """

    def __init__(self, settings: Settings, work: Path, limit_s: float) -> None:
        self.settings = settings
        self._work = work
        self._limit_s = limit_s

    def prepare(self) -> None:
        """Make MLflow's database once: its migrations take seconds, and every run starts from a copy."""
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        MlflowClient(database_uri(self._work)).search_experiments()

    def folder(self, name: str) -> Path:
        """A fresh folder of a run."""
        folder = self._work / name
        folder.mkdir()
        shutil.copy(self._work / DATABASE, folder / DATABASE)
        (folder / SETTINGS).write_text(json.dumps(asdict(self.settings)))
        return folder

    def uninterrupted(self, name: str) -> tuple[Trace, float]:
        """A run left alone, and its wall time.

        Raises:
            RuntimeError: It did not come to its end; nothing can be compared with it.
        """
        folder, start = self.folder(name), time.monotonic()
        how = run_life(folder, 0, self.settings, None, self._limit_s)
        wall_s, trace = time.monotonic() - start, Trace.read(folder)
        if len(trace.finals) != self.settings.trials:
            log = (folder / "driver-0.log").read_text(errors="replace")
            raise RuntimeError(f"{name}: {how}, {trace.ending.get('raised', 'not all trials ended')}\n{log[-2000:]}")
        return trace, wall_s

    def killed(self, name: str, reference: Trace, at_s: float, wall_s: float) -> Row:
        """A run killed at a moment, restored once and compared."""
        folder = self.folder(name)
        how = run_life(folder, 0, self.settings, at_s, self._limit_s)
        before = read_lines(folder / TRAINED)
        if how == "killed":
            (folder / RESULT).unlink(missing_ok=True)  # the restored driver writes its own
            how = run_life(folder, 1, self.settings, None, self._limit_s)
            restore = self._restore(folder, how)
        else:
            restore = "not killed: it had ended before"
        trace = Trace.read(folder)
        numbers = {event["id"]: event["number"] for event in trace.scheduled}
        stood = f"trial {numbers[before[-1]['id']]}, step {before[-1]['step']}" if before else "no report yet"
        counts = count(reference, trace, self.settings)
        at = f"{at_s:.0f} s ({at_s / wall_s:.0%})"
        return Row(name, at, stood, restore, len(trace.runs), counts, not restore.startswith("not killed"))

    def _restore(self, folder: Path, how: str) -> str:
        """In words, how the restore went."""
        if how == "hung":
            return f"hung for {self._limit_s:.0f} s"
        if not (folder / RESULT).exists():
            return "driver died without a result"
        ending = json.loads((folder / RESULT).read_text())
        if "raised" in ending:
            return f"raised {ending['raised'].splitlines()[0][:160]}".replace("|", "/")
        if not ending["restored"]:
            return "nothing to restore yet; begun anew"
        listed, trials = len(ending["trials"]), self.settings.trials
        return (
            "restored"
            if listed == trials
            else f"restored, but ended without an error after {listed} of {trials} trials"
        )


def run_campaign(settings: Settings, kills: int, seed: int, work: Path, limit_s: float) -> Iterator[Row | str]:
    """Run everything; lines of text are for the page's head, rows for its table."""
    campaign, draw = Campaign(settings, work, limit_s), random.Random(seed)
    campaign.prepare()
    reference, first_s = campaign.uninterrupted("uninterrupted")
    print(f"uninterrupted: {first_s:.0f} s, {len(reference.trained)} reports", flush=True)
    again, second_s = campaign.uninterrupted("uninterrupted-again")
    print(f"uninterrupted again: {second_s:.0f} s, {len(again.trained)} reports", flush=True)
    noise = count(reference, again, settings)
    yield head(reference, noise, first_s, second_s, settings)
    yield Row("none (noise)", "", "", "", len(again.runs), noise, False)
    for kill in range(1, kills + 1):
        wall_s = min(first_s, second_s)
        row = campaign.killed(f"kill-{kill}", reference, draw.uniform(0, wall_s), wall_s)
        print(f"{row.name} of {kills}: at {row.at}, {row.stood}; {row.restore}; {told(row.counts)}", flush=True)
        yield row


def told(counts: Mapping[str, int | None]) -> str:
    """What is not zero, in words."""
    found = [f"{COUNTS[key]} {'?' if value is None else value}" for key, value in counts.items() if value != 0]
    return ", ".join(found) or "nothing lost"


def head(reference: Trace, noise: Mapping[str, int | None], first_s: float, second_s: float, settings: Settings) -> str:
    """What the reference did, and whether a second one agreed."""
    agreement = "agree in everything counted" if not any(noise.values()) else f"differ: {told(noise)}"
    return (
        f"The reference trained {len(reference.trained)} reports of {settings.trials} trials "
        f"and ended with {len(reference.entries)} rung entries. "
        f"Two uninterrupted runs ({first_s:.0f} s and {second_s:.0f} s) {agreement}."
    )


# -- the page --------------------------------------------------------------------------------------------------------


def page(command: str, settings: Settings, text: str, rows: Sequence[Row]) -> str:
    """The whole Markdown page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "optuna", "mlflow", "torch"))
    snapshots = "Ray's own period" if settings.snapshot_s == "auto" else f"every {settings.snapshot_s} s"
    kept = "all checkpoints kept" if settings.keep is None else f"{settings.keep} checkpoints kept a trial"
    processes = "one process for all trials in turn" if settings.reuse else "a new process a trial"
    lines = [
        "# A stock Ray Tune search, killed and restored",
        "",
        f"    {command}",
        "",
        f"{packages}, Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores. "
        f"Task {settings.task}, {settings.trials} trials of {settings.max_steps} steps, batch {settings.batch_size}, "
        f"reports with a checkpoint at {settings.reports}, one trial at a time, ASHA (first rung at "
        f"{settings.first_rung}, reduction factor {settings.reduction_factor:g}), TPE. Snapshots {snapshots}, {kept}, "
        f"{processes}.",
        "",
        text,
        "",
        *table(rows),
        "",
        *LEGEND,
    ]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Header, a line a row, and the sum over the kills."""
    yield line(["kill", "at", "stood at", "restore", *COUNTS.values(), "MLflow: runs"])
    yield line(["---"] * (len(COUNTS) + 5))
    for row in rows:
        cells = ["?" if row.counts[key] is None else str(row.counts[key]) for key in COUNTS]
        yield line([row.name, row.at, row.stood, row.restore, *cells, str(row.runs)])
    killed = [row for row in rows if row.killed]
    sums = [summed([row.counts[key] for row in killed]) for key in COUNTS]
    restores = f"{sum(row.restore == 'restored' for row in killed)} restored"
    runs = str(sum(row.runs for row in killed))
    yield line([f"all {len(killed)}", "", "", restores, *sums, runs])


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def summed(values: Sequence[int | None]) -> str:
    """A sum, and in how many kills it was not zero."""
    known = [value for value in values if value is not None]
    unknown = f", {len(values) - len(known)} ?" if len(known) < len(values) else ""
    return f"{sum(known)} (in {sum(value != 0 for value in known)}{unknown})" if known else "?"


# -- the command -----------------------------------------------------------------------------------------------------


def parser_of() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=int, default=5, help="runs to kill, 0 for the noise alone (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the moments of the kills (default: %(default)s)")
    add("--task", default="demo", help="task (default: %(default)s)")
    add("--model", type=from_anywhere, help="Hub name or folder (default: the task's own)")
    add("--data-dir", type=from_anywhere, help="folder with TASK/SPLIT.jsonl (default: none)")
    add("--labels", choices=["digits", "words"], help="what stands for the labels (default: the task's own)")
    add("--space", default=str(SPACE), type=from_anywhere, help="search space (default: space.yaml beside this file)")
    add("--trials", type=int, default=24, help="trials of a search (default: %(default)s)")
    add("--max-steps", type=int, default=135, help="steps of a trial that is not stopped (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="rows of a step (default: %(default)s)")
    add("--reduction-factor", type=float, default=3.0, help="of ASHA (default: %(default)s)")
    add("--snapshot-s", default="1", help="seconds between Tune's snapshots, or auto (default: %(default)s)")
    add("--keep", type=int, default=2, help="checkpoints that Tune keeps a trial, 0 for all (default: %(default)s)")
    add("--fresh-processes", action="store_true", help="a new process for each trial (default: one in turn)")
    add("--limit-s", type=float, default=1800.0, help="seconds after which a driver hangs (default: %(default)s)")
    add("--work", type=Path, help="new folder that keeps every run (default: a temporary one, removed)")
    add("--out", type=Path, default=TABLE, help="Markdown page to write (default: stock.md beside this file)")
    add("--drive", type=Path, help=argparse.SUPPRESS)
    return parser


def from_anywhere(text: str) -> str:
    """A file or folder by its absolute path, since drivers run elsewhere; anything else as it is."""
    return str(Path(text).resolve()) if Path(text).exists() else text


def main(argv: list[str] | None = None) -> int:
    """Run the campaign and write its page. Returns the exit code: 0 it ran, 1 it could not, 2 bad input."""
    args = parser_of().parse_args(argv)
    if args.drive is not None:
        return drive(args.drive)
    if min(args.trials, args.max_steps, args.batch_size) < 1 or min(args.kills, args.keep) < 0:
        print("--trials, --max-steps and --batch-size must be at least 1, --kills and --keep 0", file=sys.stderr)
        return 2
    named = ("task", "model", "data_dir", "labels", "space", "trials", "max_steps", "batch_size", "reduction_factor")
    settings = Settings(
        **{name: getattr(args, name) for name in named},
        snapshot_s=args.snapshot_s,
        keep=args.keep or None,
        reuse=not args.fresh_processes,
    )
    command = shlex.join(["python", "experiments/reliability/stock.py", *(sys.argv[1:] if argv is None else argv)])
    adopt_orphans()
    with contextlib.ExitStack() as held:
        if args.work is None:
            work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="stock-")))
        else:
            work = args.work.resolve()
            work.mkdir(parents=True)
        try:
            materials_of(settings)
            text, *rows = run_campaign(settings, args.kills, args.seed, work, args.limit_s)
        except (AdeptError, RuntimeError) as error:
            print(error, file=sys.stderr)
            return 2 if isinstance(error, AdeptError) else 1
    args.out.write_text(page(command, settings, str(text), [row for row in rows if isinstance(row, Row)]))
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
