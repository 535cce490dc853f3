"""A search with its folder, its record and its hosts: search, retrain, test, export."""

import contextlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import yaml

from adept_tune.adapter import save_adapter
from adept_tune.console import Console, Outlook, shown
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.state import TrialState
from adept_tune.errors import StoppedError, StorageError
from adept_tune.tasks import Task
from adept_tune.tasks.metrics import direction
from adept_tune.tracking import MlflowTracker, SearchInfo, Tracker, git_commit, versions, without_credentials
from adept_tune.tuning.cluster import ask, rewind
from adept_tune.tuning.interrupt import Interrupt
from adept_tune.tuning.journal import Event, Journal
from adept_tune.tuning.materials import Materials
from adept_tune.tuning.plan import Shape
from adept_tune.tuning.ray_tune import Drive, Share, run_work
from adept_tune.tuning.record import Record, parts_s
from adept_tune.tuning.report import REPORT, write_report
from adept_tune.tuning.retrain import Figures, Rerun, Retrain, Spread, rerun_name, spreads_of
from adept_tune.tuning.samplers import derive_seed, make_proposer
from adept_tune.tuning.space import Params, SearchSpace
from adept_tune.tuning.spec import ADAPTER, JOURNAL, SPEC, STATES, SearchSpec
from adept_tune.tuning.store import Store
from adept_tune.tuning.study import Study, TrialRecord, trial_name
from adept_tune.tuning.work import End, Progress, Work


class Experiment:
    """A search with its folder, its record and its hosts.

    Args:
        spec: What to do.
        folder: Where everything of it lives.
        materials: What it works on.
        tracker: The record people look at.
        console: Lines for people.
        broker: Name of the broker that finds hosts.
        share: What a trial holds.
        drive: Runs the jobs of a work; Ray Tune by default.
        begun: When the time budget began to run, of the monotonic clock; None is now.
    """

    def __init__(
        self,
        spec: SearchSpec,
        folder: Path,
        materials: Materials,
        tracker: Tracker,
        console: Console,
        broker: str,
        share: Share,
        drive: Drive = run_work,
        begun: float | None = None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.materials = materials.at(spec.embedding_rms)
        self.tracker = tracker
        self.console = console
        self._broker = broker
        self._share = share
        self._drive = drive
        self._maximize = direction(materials.task.metric) == "maximize"
        self._journal = Journal(folder / JOURNAL)
        self._events = list(self._journal.read())
        self._store = Store(storage_of(spec, folder))
        self._listeners = (tracker.record, console.event)
        self._begun = monotonic() if begun is None else begun
        self._interrupt = Interrupt()

    def run(self) -> int:
        """Search, retrain, test, export; whatever the journal says is done already is not done again.

        Returns:
            The exit code: 0 done, 3 no trial finished.
        """
        return self._tracked(self._whole, f"The same command with --resume {self.folder}")

    def run_retrain_only(self) -> int:
        """Retrain what the journal says was best: anew, or from where such a retraining was interrupted.

        Returns:
            The exit code.
        """
        events = self._events if retraining_goes_on(self._events) else []

        def again() -> int:
            study = self.study(lambda: False)
            study.replay(search_events(self._events))
            return self._finish(study, events)

        return self._tracked(again, "The same command")

    def study(self, out_of_time: Callable[[], bool]) -> Study:
        """The search phase, before its first trial."""
        spec, space, task = self.spec, self.materials.space, self.materials.task
        shape = shape_of(spec, task)
        return Study(
            make_proposer(space, spec.sampler, spec.seed),
            shape.rule(spec.max_steps),
            lambda params, number: (trial_config(spec, space, params, number), space.shown(params)),
            lambda config: space.method.num_parameters(config.sizes(space.d_model, space.source_length)),
            self.materials.data.chance,
            self._maximize,
            spec.trials,
            self._journal,
            self._store,
            self._listeners,
            out_of_time,
            space.method.num_reports,
        )

    def _tracked(self, phase: Callable[[], int], resuming: str) -> int:
        """Run a phase between the tracker's start and a true end of every run.

        The tracker is told the journal again: what it has written it leaves, what a kill kept from it it writes.

        Args:
            phase: What to do; returns the exit code.
            resuming: What goes on from where it is stopped.
        """
        self.tracker.start(_info(self.spec, self.folder, self.materials))
        record = Record(self.spec)
        for event in self._events:
            self.tracker.record(event)
            record.take(event)
        self.console.begin(record, self._outlook())
        state = "FAILED"
        try:
            with self._interrupt.heeded():
                if self._events:
                    self._tell({"event": "resumed"})
                code = phase()
            state = "FINISHED" if code == 0 else "FAILED"
            return code
        except (StoppedError, OSError):  # a full disk for the most part
            state = "INTERRUPTED"
            raise
        except KeyboardInterrupt:
            state = "INTERRUPTED"
            self.console.end()
            self.console.say(f"Stopped. {resuming} goes on from here.")
            raise
        finally:
            self.console.end()
            with contextlib.suppress(StorageError):  # what stopped the search stops this as well
                self._tell({"event": "finished", "state": state})
            for line in self.tracker.close(state):
                self.console.say(f"warning: {line}")

    def _whole(self) -> int:
        budget = self.spec.time_budget_s
        left_s = None if budget is None else search_time_left_s(self.spec, self._events)
        deadline = None if left_s is None else self._begun + left_s
        study = self.study(lambda: deadline is not None and monotonic() > deadline)
        study.replay(search_events(self._events))
        if left_s is not None and left_s <= 0 and self._events and study.best(1):
            self.console.say("The time budget is used up: no trial is taken up. A greater --time-budget goes on.")
        interrupted = self._run(study)
        running = [record.name for record in study.trials.values() if record.state is None]
        self._end_interrupted(study, running, interrupted)
        counts = ", ".join(f"{count} {end}" for end, count in study.counts().items() if count)
        self.console.say(f"Searched {len(study.trials)} trials: {counts}.")
        return self._finish(study, self._events)

    def _finish(self, study: Study, events: Sequence[Event]) -> int:
        """Retrain the best, test the winner, export its best seed.

        Args:
            study: The search phase, over.
            events: Of the journal, from which a retraining of the same finalists and seeds goes on.
        """
        finalists = self._contenders(study)
        if not finalists:
            self.console.say("No trial came to an evaluation; the trials' ends above say why.")
            return 3
        names = ", ".join(str(trial.number) for trial in finalists)
        self.console.say(f"Retraining trials {names} over {self.spec.seeds} seeds each.")
        every = self.materials.space.method.num_reports
        retrain = Retrain(
            finalists, self.spec.seeds, self.spec.seed, self._journal, self._store, self._listeners, every
        )
        retraining = [i for i, event in enumerate(events) if event["event"] == "retraining"]
        if retraining and retrain.same(events[retraining[-1]]):
            retrain.replay(events[retraining[-1] :])
            rewind(self._broker, retrain.reopen_damaged())
        else:
            retrain.begin()
            rewind(self._broker, dict.fromkeys(retrain.reruns, 0))
        interrupted = self._run(retrain)
        running = [name for name, rerun in retrain.reruns.items() if rerun.state is None]
        self._end_interrupted(retrain, running, interrupted)
        winner = retrain.winner(self._maximize)
        if winner is None:
            self.console.say("No finalist came to its end; the ends above say why.")
            return 3
        self._conclude(retrain, winner)
        unfinished = {trial.name for trial in study.trials.values() if trial.state in (None, End.INTERRUPTED)}
        self._store.keep_only({trial.name for trial in finalists} | set(retrain.reruns) | unfinished)
        return 0

    def _contenders(self, study: Study) -> list[TrialRecord]:
        """The finalists, and behind them the space's first point, to see what searching has gained."""
        best = study.best(self.spec.finalists)
        first = study.trials.get(0) if self.materials.space.points else None
        if first is not None and first not in best and first in study.best(len(study.trials)):
            best.append(first)
        return best

    def _baseline(self, retrain: Retrain) -> TrialRecord | None:
        """The space's first point, where it was retrained."""
        there = self.materials.space.points and retrain.validation(0) is not None
        return next((trial for trial in retrain.finalists if trial.number == 0), None) if there else None

    def _run(self, work: Work) -> bool:
        return self._drive(work, self._broker, self._share, self.spec.max_failures, self._interrupt)

    def _conclude(self, retrain: Retrain, winner: TrialRecord) -> None:
        """Read the test half once with each seed of the winner, export, tell."""
        seeds = retrain.finished(winner.number)
        self._test(retrain, [rerun for rerun in seeds if rerun.job.name not in retrain.tested])
        validation = retrain.validation(winner.number)
        assert validation is not None  # a winner has finished seeds
        test, also = spreads_of([retrain.tested[rerun.job.name] for rerun in seeds])
        best = max(seeds, key=self._sign)
        self._export(winner, best, retrain.tested[best.job.name], validation, test)
        event = {
            "event": "winner",
            "trial": winner.number,
            "seed": best.seed,
            "params": winner.params,
            "validation": validation.as_dict(),
            "test": test.as_dict(),
        }
        event |= {"test_also": {metric: spread.as_dict() for metric, spread in also.items()}} if also else {}
        if not retrain.crowned:
            self._tell(event | self._compared(retrain, winner))
        self.tracker.log_adapter(self.folder / ADAPTER, self.materials.task.columns)
        self._report()
        self.console.end()
        self._show_result(retrain, winner, best, test, also)

    def _report(self) -> None:
        """Write the report; that a picture cannot be drawn or written must not cost the result."""
        try:
            for path in write_report(self.folder):
                self.tracker.log_artifact(path, "report")
        except Exception as error:  # of a full disk, matplotlib or Optuna
            again = f"{sys.executable} -m adept_tune.report --experiment {self.folder}"
            self.console.say(f"warning: no report ({type(error).__name__}: {error}); later: {again}")

    def _compared(self, retrain: Retrain, winner: TrialRecord) -> dict[str, Any]:
        """What an event says of the baseline; nothing where there is none."""
        baseline = self._baseline(retrain)
        if baseline is None:
            return {}
        validation, gain = retrain.validation(baseline.number), retrain.gain(winner.number, baseline.number)
        fields: dict[str, Any] = {"trial": baseline.number, "params": baseline.params}
        fields |= {"validation": validation.as_dict()} if validation else {}
        return {"baseline": fields | ({"gain": gain.as_dict()} if gain else {})}

    def _test(self, retrain: Retrain, seeds: Sequence[Rerun]) -> None:
        """Read the test half once with each of the given seeds."""
        questions = [(*self._store.read(rerun.job.name, rerun.job.config.max_steps), "test") for rerun in seeds]
        for rerun, answer in zip(seeds, ask(self._broker, self._share, "score", *questions), strict=True):
            figures = {key: answer[key] for key in ("score", "standard_error")}
            figures |= {"also": answer["also"]} if answer["also"] else {}
            event = {"event": "tested", "trial": rerun.trial, "seed": rerun.seed} | figures
            self._tell(event)
            retrain.tested[rerun.job.name] = Figures.of(event)

    def _sign(self, rerun: Rerun) -> float:
        score, _ = rerun.scored
        return score if self._maximize else -score

    def _export(self, winner: TrialRecord, best: Rerun, tested: Figures, validation: Spread, test: Spread) -> None:
        blob, where = self._store.read(best.job.name, best.job.config.max_steps)
        metric = self.materials.task.metric
        score, standard_error = best.scored
        metrics = {
            f"validation_{metric}": score,
            f"validation_{metric}_se": standard_error,
            f"test_{metric}": tested.score,
            f"test_{metric}_se": tested.standard_error,
            f"seeds_validation_{metric}_mean": validation.mean,
            f"seeds_validation_{metric}_sd": validation.sd,
            f"seeds_validation_{metric}_se": validation.se,
            f"seeds_test_{metric}_mean": test.mean,
            f"seeds_test_{metric}_sd": test.sd,
            f"seeds_test_{metric}_se": test.se,
        }
        for other, (value, error) in tested.also.items():
            metrics |= {f"test_{other}": value, f"test_{other}_se": error}
        save_adapter(
            self.folder / ADAPTER,
            TrialState.from_bytes(blob, where),
            self.materials.task,
            self.materials.info.as_dict(),
            self.spec.precision,
            metrics,
            {"search": self.spec.search_id, "trial": winner.number, "seed": best.seed},
            versions(),
        )

    def _show_result(
        self, retrain: Retrain, winner: TrialRecord, best: Rerun, test: Spread, also: Mapping[str, Spread]
    ) -> None:
        say, metric = self.console.say, self.materials.task.metric
        say()
        if self.materials.task.demonstration:
            say("A demonstration: these figures show the machinery and say nothing of the methods.")
        rows = []
        for trial in retrain.finalists:
            spread = retrain.validation(trial.number)
            value = f"{spread.mean:.4f} ± {spread.se:.4f}" if spread else "did not finish"
            role = " (the space's first point)" if trial is self._baseline(retrain) else ""
            rows.append([f"trial {trial.number}{role}", value, shown(trial.params)])
        self.console.table(["finalist", f"validation {metric} (mean ± s.e.)", "configuration"], rows)
        say()
        say(
            f"Winner: trial {winner.number}. Test {metric} over {len(retrain.finished(winner.number))} seeds: "
            f"mean {test.mean:.4f}, standard deviation {test.sd:.4f}, standard error (seeds and rows) {test.se:.4f}."
        )
        for other, spread in also.items():
            say(f"Test {other}: mean {spread.mean:.4f}, standard error (seeds and rows) {spread.se:.4f}.")
        say(self._comparison(retrain, winner))
        say(f"Exported seed {best.seed}, the best on validation: {self.folder / ADAPTER}")
        say(f"Report:   {self.folder / REPORT}")
        given = "--text '...'" if self.materials.task.reads_one_text else "--file ROWS.jsonl"
        say(f"Predict:  {sys.executable} -m adept_tune.predict --adapter {self.folder / ADAPTER} {given}")
        say(f"Go on:    the same command with --resume {self.folder} and more --trials, or a greater --time-budget")
        if isinstance(self.tracker, MlflowTracker):
            say("Look:     " + self.tracker.view_hint.replace("\n", "\n          "))

    def _comparison(self, retrain: Retrain, winner: TrialRecord) -> str:
        baseline = self._baseline(retrain)
        if baseline is None:
            return "The space's first point was not retrained, so there is nothing to compare the winner with."
        if baseline is winner:
            return "The winner is the space's first point: searching found nothing better."
        gain = retrain.gain(winner.number, baseline.number)
        if gain is None:
            return "Winner and first point share no finished seed, so they cannot be compared."
        return f"Against the space's first point (trial {baseline.number}): {gain.difference()}."

    def _outlook(self) -> Outlook:
        task = self.materials.task
        left_s = (self.spec.expected_s or 0.0) - sum(parts_s(self._events).values())
        return Outlook(
            metric=task.metric,
            maximize=self._maximize,
            slots=self._share.concurrent,
            rungs=list(shape_of(self.spec, task).rule(self.spec.max_steps).steps(0)),
            expected_s=left_s if left_s > 0 else None,
            look=lambda: self.tracker.view_hint if isinstance(self.tracker, MlflowTracker) else "",
            demonstration=task.demonstration,
        )

    def _end_interrupted(self, work: Study | Retrain, running: list[str], interrupted: bool) -> None:
        """Give what still runs its end, and stop here where Tune came back because it was told to."""
        for name in running:
            work.end(name, End.INTERRUPTED, "the search was interrupted")
        if interrupted or running:
            raise KeyboardInterrupt

    def _tell(self, event: dict[str, Any]) -> None:
        self._journal.tell(event, self._listeners)


def search_events(events: Sequence[Event]) -> list[Event]:
    """The events of the search phase."""
    return [event for event in events if event["event"] in ("proposed", "reported", "decided", "ended")]


def retraining_goes_on(events: Sequence[Event]) -> bool:
    """Whether the last retraining was interrupted: it has neither a winner nor runs that all ended without one."""
    kinds = [event["event"] for event in events]
    if "retraining" not in kinds:
        return False
    begun = len(kinds) - 1 - kinds[::-1].index("retraining")
    last, beginning = events[begun:], events[begun]
    ends = [event["state"] for event in last if event["event"] == "retrain_ended"]
    ends = [state for state in ends if state != End.INTERRUPTED]
    all_lost = len(ends) == len(beginning["finalists"]) * beginning["seeds"] and End.FINISHED not in ends
    return "winner" not in kinds[begun:] and not all_lost


def search_time_left_s(spec: SearchSpec, events: Sequence[Event]) -> float:
    """What a time budget leaves the search phase, less what earlier sessions spent on it and retraining will need."""
    start_s = spec.start_s if events else 0.0  # the first session counts its own
    return (spec.time_budget_s or 0.0) - start_s - parts_s(events)["search"] - 1.1 * spec.retrain_s


def progress_of(events: Sequence[Event]) -> dict[str, Progress]:
    """Job name to how far a journal says it has come; a retraining that was begun anew starts at nothing."""
    progress: dict[str, Progress] = {}
    for event in events:
        kind = event["event"].removeprefix("retrain_")
        if kind == "retraining":
            progress = {name: known for name, known in progress.items() if "seed" not in name}
        elif kind in ("reported", "saved"):
            trial, step = event["trial"], event["step"]
            name = rerun_name(trial, event["seed"]) if "seed" in event else trial_name(trial)
            reported = step if kind == "reported" else progress.get(name, Progress()).reported
            progress[name] = Progress(reported, step)
    return progress


def trial_config(spec: SearchSpec, space: SearchSpace, params: Params, number: int) -> TrialConfig:
    """A trial's settings: its point, the search's own, seeds of its own, and the search's order of rows."""
    return space.config(
        params,
        max_steps=spec.max_steps,
        batch_size=spec.batch_size,
        labels=spec.labels,
        seed=derive_seed(spec.seed, "trial", number),
        data_seed=derive_seed(spec.seed, "order"),
    )


def shape_of(spec: SearchSpec, task: Task) -> Shape:
    """What the cost of a spec depends on besides trials and steps."""
    retrained = spec.finalists + bool(spec.space["points"])
    return Shape(spec.scheduler, task.plateau_steps, spec.reduction_factor, retrained, spec.seeds, spec.seed)


def storage_of(spec: SearchSpec, folder: Path) -> str:
    """Where a spec's trial states are kept."""
    return f"{spec.storage.rstrip('/')}/{spec.search_id}" if spec.storage else str((folder / STATES).absolute())


def _info(spec: SearchSpec, folder: Path, materials: Materials) -> SearchInfo:
    commit = git_commit(Path(__file__).resolve().parents[1])
    shown = (
        "trials",
        "max_steps",
        "batch_size",
        "scheduler",
        "sampler",
        "labels",
        "finalists",
        "seeds",
        "seed",
        "protocol",
    )
    found = versions()
    space = materials.space
    settings = space.shown(next(space.corners()))
    return SearchInfo(
        search_id=spec.search_id,
        name=folder.name,
        task=spec.task_name,
        method=spec.method,
        metric=materials.task.metric,
        params={"model": spec.backbone["name"], "device": spec.device, "precision": spec.precision}
        | {key: getattr(spec, key) for key in shown},
        tags={"experiment": str(folder.absolute()), "host": platform.node()}
        | ({"git_commit": commit} if commit else {}),
        artifacts={
            "space.yaml": yaml.safe_dump(spec.space, sort_keys=False),
            SPEC: without_credentials(spec.model_dump_json(indent=2)),
            "versions.txt": "".join(f"{name}=={version}\n" for name, version in found.items()),
        },
        columns=[name for name in dict.fromkeys([*space.method.parameters, *settings]) if name in settings],
        demonstration=materials.task.demonstration,
    )
