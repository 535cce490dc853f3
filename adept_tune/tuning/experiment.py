"""A search with its folder, its record and its hosts: search, retrain, test, export."""

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import yaml

from adept_tune.adapter import save_adapter
from adept_tune.console import Console, shown
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.state import TrialState
from adept_tune.tasks import Task
from adept_tune.tasks.metrics import direction
from adept_tune.tracking import MlflowTracker, SearchInfo, Tracker, git_commit, versions
from adept_tune.tuning.cluster import ask
from adept_tune.tuning.journal import Journal
from adept_tune.tuning.materials import Materials
from adept_tune.tuning.plan import Estimate, Shape
from adept_tune.tuning.ray_tune import Share, run_work
from adept_tune.tuning.retrain import Rerun, Retrain, Spread
from adept_tune.tuning.samplers import derive_seed, make_proposer
from adept_tune.tuning.space import Params, SearchSpace
from adept_tune.tuning.spec import ADAPTER, JOURNAL, SPEC, STATES, SearchSpec
from adept_tune.tuning.store import Store
from adept_tune.tuning.study import Study, TrialRecord
from adept_tune.tuning.work import End


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
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.materials = materials
        self.tracker = tracker
        self.console = console
        self._broker = broker
        self._share = share
        self._maximize = direction(materials.task.metric) == "maximize"
        self._journal = Journal(folder / JOURNAL)
        self._store = Store(storage_of(spec, folder))
        self._listeners = (tracker.record, console.event)
        self._begun = monotonic()
        console.measure(materials.task.metric)

    def run(self, expected: Estimate) -> int:
        """Search, retrain, test, export. Returns the exit code."""
        return self._tracked(lambda: self._whole(expected))

    def run_retrain_only(self) -> int:
        """Retrain what the journal says was best. Returns the exit code."""

        def again() -> int:
            study = self.study(lambda: False)
            study.replay(event for event in self._journal.read() if event["event"] in SEARCH_EVENTS)
            return self._finish(study)

        return self._tracked(again)

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
        )

    def _tracked(self, phase: Callable[[], int]) -> int:
        """Run a phase between the tracker's start and a true end of every run."""
        self.tracker.start(_info(self.spec, self.folder, self.materials))
        state = "FAILED"
        try:
            code = phase()
            state = "FINISHED" if code == 0 else "FAILED"
            return code
        except KeyboardInterrupt:
            state = "INTERRUPTED"
            raise
        finally:
            self._tell({"event": "finished", "state": state})
            for line in self.tracker.close(state):
                self.console.say(f"warning: {line}")

    def _whole(self, expected: Estimate) -> int:
        budget = self.spec.time_budget_s
        deadline = None if budget is None else self._begun + budget - 1.1 * expected.retrain_s
        study = self.study(lambda: deadline is not None and monotonic() > deadline)
        run_work(study, self._broker, self._share, self.spec.max_failures)
        self._end_interrupted(study, [record.name for record in study.trials.values() if record.state is None])
        counts = ", ".join(f"{count} {end}" for end, count in study.counts().items() if count)
        self.console.say(f"Searched {len(study.trials)} trials: {counts}.")
        return self._finish(study)

    def _finish(self, study: Study) -> int:
        """Retrain the best, test the winner, export its best seed."""
        finalists = study.best(self.spec.finalists)
        if not finalists:
            self.console.say("No trial came to an evaluation; the trials' ends above say why.")
            return 3
        names = ", ".join(str(trial.number) for trial in finalists)
        self.console.say(f"Retraining trials {names} over {self.spec.seeds} seeds each.")
        retrain = Retrain(finalists, self.spec.seeds, self.spec.seed, self._journal, self._store, self._listeners)
        run_work(retrain, self._broker, self._share, self.spec.max_failures)
        self._end_interrupted(retrain, [name for name, rerun in retrain.reruns.items() if rerun.state is None])
        winner = retrain.winner(self._maximize)
        if winner is None:
            self.console.say("No finalist came to its end; the ends above say why.")
            return 3
        self._conclude(retrain, winner)
        self._store.keep_only({trial.name for trial in finalists} | set(retrain.reruns))
        return 0

    def _conclude(self, retrain: Retrain, winner: TrialRecord) -> None:
        """Read the test half once with each seed of the winner, export, tell."""
        seeds = retrain.finished(winner.number)
        answers = self._score(seeds)
        for rerun, answer in zip(seeds, answers, strict=True):
            self._tell(
                {"event": "tested", "trial": winner.number, "seed": rerun.seed}
                | {key: answer[key] for key in ("score", "standard_error")}
            )
        validation = retrain.validation(winner.number)
        assert validation is not None  # a winner has finished seeds
        test = Spread.of([a["score"] for a in answers], [a["standard_error"] for a in answers])
        best = max(range(len(seeds)), key=lambda i: self._sign(seeds[i]))
        self._export(winner, seeds[best], answers[best], validation, test)
        self._tell(
            {
                "event": "winner",
                "trial": winner.number,
                "seed": seeds[best].seed,
                "params": winner.params,
                "validation": validation.as_dict(),
                "test": test.as_dict(),
            }
        )
        self.tracker.log_adapter(self.folder / ADAPTER, self.materials.task.columns)
        self._show_result(retrain, winner, seeds[best], test)

    def _score(self, seeds: list[Rerun]) -> list[dict[str, Any]]:
        questions = []
        for rerun in seeds:
            blob, where = self._store.read(rerun.job.name, rerun.job.config.max_steps)
            questions.append((blob, where, "test"))
        return ask(self._broker, self._share, "score", *questions)

    def _sign(self, rerun: Rerun) -> float:
        score, _ = rerun.scored
        return score if self._maximize else -score

    def _export(
        self, winner: TrialRecord, best: Rerun, answer: Mapping[str, Any], validation: Spread, test: Spread
    ) -> None:
        blob, where = self._store.read(best.job.name, best.job.config.max_steps)
        metric = self.materials.task.metric
        score, standard_error = best.scored
        metrics = {
            f"validation_{metric}": score,
            f"validation_{metric}_se": standard_error,
            f"test_{metric}": answer["score"],
            f"test_{metric}_se": answer["standard_error"],
            f"seeds_validation_{metric}_mean": validation.mean,
            f"seeds_validation_{metric}_sd": validation.sd,
            f"seeds_validation_{metric}_se": validation.se,
            f"seeds_test_{metric}_mean": test.mean,
            f"seeds_test_{metric}_sd": test.sd,
            f"seeds_test_{metric}_se": test.se,
        }
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

    def _show_result(self, retrain: Retrain, winner: TrialRecord, best: Rerun, test: Spread) -> None:
        say, metric = self.console.say, self.materials.task.metric
        say()
        rows = []
        for trial in retrain.finalists:
            spread = retrain.validation(trial.number)
            value = f"{spread.mean:.4f} ± {spread.se:.4f}" if spread else "did not finish"
            rows.append([f"trial {trial.number}", value, shown(trial.params)])
        self.console.table(["finalist", f"validation {metric} (mean ± s.e.)", "configuration"], rows)
        say()
        say(
            f"Winner: trial {winner.number}. Test {metric} over {len(retrain.finished(winner.number))} seeds: "
            f"mean {test.mean:.4f}, standard deviation {test.sd:.4f}, standard error {test.se:.4f}."
        )
        say(f"Exported seed {best.seed}, the best on validation: {self.folder / ADAPTER}")
        say(f"Predict:  python -m adept_tune.predict --adapter {self.folder / ADAPTER} --text '...'")
        if isinstance(self.tracker, MlflowTracker):
            say(f"Look:     {self.tracker.view_hint}")

    def _end_interrupted(self, work: Study | Retrain, running: list[str]) -> None:
        """Tune comes back early only when it was interrupted."""
        if not running:
            return
        for name in running:
            work.end(name, End.INTERRUPTED, "the search was interrupted")
        raise KeyboardInterrupt

    def _tell(self, event: dict[str, Any]) -> None:
        written = self._journal.append(event)
        for listener in self._listeners:
            listener(written)


SEARCH_EVENTS = ("proposed", "started", "reported", "decided", "ended")


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
    return Shape(spec.scheduler, task.plateau_steps, spec.reduction_factor, spec.finalists, spec.seeds, spec.seed)


def storage_of(spec: SearchSpec, folder: Path) -> str:
    """Where a spec's trial states are kept."""
    return spec.storage or str((folder / STATES).absolute())


def _info(spec: SearchSpec, folder: Path, materials: Materials) -> SearchInfo:
    commit = git_commit(Path(__file__).resolve().parents[1])
    shown = ("trials", "max_steps", "batch_size", "scheduler", "sampler", "labels", "finalists", "seeds", "seed")
    found = versions()
    return SearchInfo(
        search_id=spec.search_id,
        name=folder.name,
        task=spec.task,
        method=spec.method,
        metric=materials.task.metric,
        params={"model": spec.backbone["name"], "device": spec.device, "precision": spec.precision}
        | {key: getattr(spec, key) for key in shown},
        tags={"experiment": str(folder.absolute()), "host": platform.node()}
        | ({"git_commit": commit} if commit else {}),
        artifacts={
            "space.yaml": yaml.safe_dump(spec.space, sort_keys=False),
            SPEC: spec.model_dump_json(indent=2),
            "versions.txt": "".join(f"{name}=={version}\n" for name, version in found.items()),
        },
        demonstration=materials.task.demonstration,
    )
