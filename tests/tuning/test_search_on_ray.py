"""A whole search on Ray with a tiny model: what it reports, what it leaves behind, and what it does not."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import ray

from adept_tune import predict, retrain, search
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.engine import Engine
from adept_tune.tuning.experiment import trial_config
from adept_tune.tuning.journal import Journal
from adept_tune.tuning.materials import Materials, gather
from adept_tune.tuning.space import SpaceFile
from adept_tune.tuning.spec import ADAPTER, JOURNAL, STATES, SearchSpec
from tests.support.search import save_answering_t5, write_rows
from tests.support.tiny import save_tiny_t5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:task sst2. .* so scores cannot be compared:UserWarning"),  # the rows are made
]

SPACE = """
method: adept
parameters:
  prompt_length: {low: 2, high: 12}
  ffn_width: {low: 1, high: 6}
  relative_prompt_lr: {low: 0.03, high: 0.3, log: true}
  ffn_lr: {low: 1e-4, high: 1e-2, log: true}
  batch_size: {choices: [3, 4]}
"""
TRIALS, STEPS, FINALISTS, SEEDS = 3, 20, 2, 2


@dataclass(frozen=True)
class Searched:
    """A finished search.

    Attributes:
        places: The folder with the model and the rows.
        folder: The experiment.
        code: Exit code.
        actors: Names of the actors that were left when Ray was about to be shut down.
    """

    places: Path
    folder: Path
    code: int
    actors: list[Any]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Lines of the journal."""
        return list(Journal(self.folder / JOURNAL).read())

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Lines of some kinds."""
        return [event for event in self.events if event["event"] in kinds]


@contextmanager
def surroundings(places: Path) -> Iterator[None]:
    """A token cache of our own, no Ray to join, and the environment put back as it was."""
    before = dict(os.environ)
    os.environ["ADEPT_TUNE_CACHE"] = str(places / "cache")
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        ray.shutdown()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    """Three trials of twenty steps, two finalists over two seeds."""
    places = tmp_path_factory.mktemp("places")
    save_answering_t5(places / "model")
    write_rows(places / "data", num_train=300, num_validation=40)
    (places / "own.yaml").write_text(SPACE)
    folder = places / "experiment"
    arguments = [
        *("--task", "sst2", "--model", str(places / "model"), "--data-dir", str(places / "data")),
        *("--trials", str(TRIALS), "--max-steps", str(STEPS), "--batch-size", "4", "--device", "cpu"),
        *("--precision", "fp32"),  # in which losses in company and alone agree to 1e-3
        *("--scheduler", "none", "--sampler", "random", "--finalists", str(FINALISTS), "--seeds", str(SEEDS)),
        *("--trials-per-gpu", "3", "--space", str(places / "own.yaml"), "--experiment", str(folder)),
    ]
    left: list[Any] = []
    shutdown = ray.shutdown

    def last_look(*arguments: Any, **options: Any) -> None:
        if ray.is_initialized():
            deadline = monotonic() + 20  # what the broker owns dies after it, not with it
            while (found := ray.util.list_named_actors(all_namespaces=True)) and monotonic() < deadline:
                sleep(0.1)
            left.extend(found)
        shutdown(*arguments, **options)

    with surroundings(places), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "shutdown", last_look)
        code = search.main(arguments)
        yield Searched(places, folder, code, left)


@pytest.fixture(scope="module")
def materials(searched: Searched) -> tuple[SearchSpec, Materials]:
    """What the search worked on, gathered again from its spec."""
    spec = SearchSpec.read(searched.folder)
    file, data = SpaceFile.model_validate(spec.space), Path(spec.data_dir or "")
    found = gather(spec.task, data, spec.backbone["name"], file, spec.fixed, spec.labels)
    return spec, found.at(spec.embedding_rms)


def engine_of(spec: SearchSpec, materials: Materials) -> Engine:
    """An engine for one trial, in this process."""
    from adept_tune.engine.build import build_engine
    from adept_tune.methods import get_method

    return build_engine(materials.info, get_method(spec.method), materials.data, 1, precision=spec.precision)


def trained_alone(engine: Engine, config: TrialConfig, steps: list[int], evaluations: set[int]) -> list[dict[str, Any]]:
    """The reports of a trial that has an engine to itself."""
    slot, reports = engine.join(config), []
    for step in range(1, steps[-1] + 1):
        engine.step([slot])
        if step not in steps:
            continue
        report: dict[str, Any] = {"step": step, "train_loss": engine.train_loss(slot)}
        if step in evaluations:
            (evaluation,) = engine.evaluate([slot]) or []
            report |= {
                "score": evaluation.score.value,
                "standard_error": evaluation.score.standard_error,
                "loss": evaluation.loss,
            }
        reports.append(report)
    engine.leave(slot)
    return reports


def compare(found: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    """Reports of a trial among neighbours and alone agree."""
    assert [event["step"] for event in found] == [report["step"] for report in alone]
    for event, report in zip(found, alone, strict=True):
        assert event["train_loss"] == pytest.approx(report["train_loss"], abs=1e-3), event["step"]
        assert ("score" in event) == ("score" in report)
        if "score" in report:
            assert event["score"] == report["score"]
            assert event["standard_error"] == report["standard_error"]
            assert event["loss"] == pytest.approx(report["loss"], abs=1e-3)


def test_the_search_comes_to_its_end(searched):
    assert searched.code == 0
    assert {event["trial"]: event["state"] for event in searched.of("ended")} == dict.fromkeys(
        range(TRIALS), "FINISHED"
    )
    assert searched.events[-1] | {"time": 0} == {"event": "finished", "time": 0, "state": "FINISHED"}


def test_the_scores_tell_trials_apart(searched):
    # otherwise nothing below could fail
    scores = {event["score"] for event in searched.of("reported", "retrain_reported", "tested") if "score" in event}
    assert len(scores) > 4
    assert all(0 < event["score"] < 1 for event in searched.of("tested"))


def test_trials_on_ray_report_what_they_report_alone(searched, materials):
    spec, found = materials
    engine = engine_of(spec, found)
    proposals = searched.of("proposed")
    assert [event["trial"] for event in proposals] == list(range(TRIALS))
    for proposed in proposals:
        reported = [event for event in searched.of("reported") if event["trial"] == proposed["trial"]]
        steps = [event["step"] for event in reported]
        evaluations = {event["step"] for event in reported if "score" in event}
        assert steps == list(range(1, STEPS + 1))
        assert STEPS in evaluations
        assert len(evaluations) > 1
        config = trial_config(spec, found.space, proposed["point"], proposed["trial"])
        compare(reported, trained_alone(engine, config, steps, evaluations))


def test_retrained_seeds_on_ray_report_what_they_report_alone(searched, materials):
    from adept_tune.tuning.samplers import derive_seed

    spec, found = materials
    engine = engine_of(spec, found)
    points = {event["trial"]: event["point"] for event in searched.of("proposed")}
    reruns = {(event["trial"], event["seed"]) for event in searched.of("retrain_reported")}
    assert len(reruns) == FINALISTS * SEEDS
    for trial, seed in sorted(reruns)[:2]:
        reported = [
            event for event in searched.of("retrain_reported") if (event["trial"], event["seed"]) == (trial, seed)
        ]
        config = trial_config(spec, found.space, points[trial], trial).model_copy(
            update={
                "seed": derive_seed(spec.seed, "retrain", seed),
                "data_seed": derive_seed(spec.seed, "retrain order", seed),
            }
        )
        compare(reported, trained_alone(engine, config, [event["step"] for event in reported], {STEPS}))


def test_the_finalists_are_the_best_and_the_winner_the_better_of_them(searched):
    last = {event["trial"]: event for event in searched.of("reported") if event["step"] == STEPS}
    assert len(last) == TRIALS
    finalists = {event["trial"] for event in searched.of("retrain_reported")}
    scores = sorted((event["score"] for event in last.values()), reverse=True)
    assert sorted((last[trial]["score"] for trial in finalists), reverse=True) == scores[:FINALISTS]
    means = {
        trial: sum(e["score"] for e in searched.of("retrain_reported") if e["trial"] == trial and "score" in e) / SEEDS
        for trial in finalists
    }
    (winner,) = searched.of("winner")
    assert means[winner["trial"]] == max(means.values())
    assert winner["validation"]["mean"] == pytest.approx(means[winner["trial"]])


def test_the_test_half_is_read_once_by_each_seed_of_the_winner_after_the_choice(searched):
    kinds = [event["event"] for event in searched.events]
    tested = searched.of("tested")
    (winner,) = searched.of("winner")
    assert [(event["trial"], event["seed"]) for event in tested] == [(winner["trial"], s + 1) for s in range(SEEDS)]
    assert kinds.index("tested") > max(i for i, kind in enumerate(kinds) if kind == "retrain_ended")
    assert winner["test"]["mean"] == pytest.approx(sum(event["score"] for event in tested) / SEEDS)


def test_a_relative_rate_becomes_a_rate_at_the_scale_that_the_probe_found(searched, materials):
    spec, found = materials
    scale = engine_of(spec, found).backbone.embedding_rms
    assert scale != 1  # else nothing below could fail
    for proposed in searched.of("proposed"):
        rate = proposed["point"]["relative_prompt_lr"] * scale
        assert "prompt_lr" not in proposed["point"]
        assert proposed["params"]["prompt_lr"] == rate
    adapter = json.loads((searched.folder / ADAPTER / "adapter.json").read_text())
    (winner,) = searched.of("winner")
    assert adapter["config"]["prompt_lr"] == winner["params"]["prompt_lr"]


def test_the_adapter_is_the_winners_best_seed(searched):
    description = json.loads((searched.folder / ADAPTER / "adapter.json").read_text())
    (winner,) = searched.of("winner")
    origin = description["origin"]
    assert (origin["trial"], origin["seed"]) == (winner["trial"], winner["seed"])
    (tested,) = [event for event in searched.of("tested") if event["seed"] == winner["seed"]]
    assert description["metrics"]["test_accuracy"] == tested["score"]
    finals = [e for e in searched.of("retrain_reported") if e["trial"] == winner["trial"] and "score" in e]
    assert description["metrics"]["validation_accuracy"] == max(event["score"] for event in finals)
    assert description["metrics"]["seeds_test_accuracy_mean"] == winner["test"]["mean"]


def test_prediction_gives_the_recorded_test_score_exactly(searched, capsys):
    with surroundings(searched.places):
        rows = searched.places / "data" / "sst2" / "validation.jsonl"  # which tests, under SST-2's rule
        assert predict.main(["--adapter", str(searched.folder / ADAPTER), "--file", str(rows)]) == 0
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    right = sum(answer["prediction"] == str(answer["label"]) for answer in answers)
    recorded = json.loads((searched.folder / ADAPTER / "adapter.json").read_text())["metrics"]["test_accuracy"]
    assert right / len(answers) == recorded
    assert f"accuracy {recorded!r} (standard error " in err
    assert f"over {len(answers)} rows" in err


def test_mlflow_has_a_true_tree_of_runs(searched):
    found = runs_of(searched)
    by_kind = {kind: [run for run in found if run.data.tags["kind"] == kind] for kind in ("search", "trial", "retrain")}
    assert {kind: len(runs) for kind, runs in by_kind.items()} == {
        "search": 1,
        "trial": TRIALS,
        "retrain": FINALISTS * SEEDS,
    }
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.tags["end_state"] for run in found} == {"FINISHED"}
    (parent,) = by_kind["search"]
    trials = {run.data.tags["trial"]: run.info.run_id for run in by_kind["trial"]}
    assert {run.data.tags["mlflow.parentRunId"] for run in by_kind["trial"]} == {parent.info.run_id}
    for run in by_kind["retrain"]:
        assert run.data.tags["mlflow.parentRunId"] == trials[run.data.tags["trial"]]
    for run in by_kind["trial"]:
        last = [e for e in searched.of("reported") if str(e["trial"]) == run.data.tags["trial"]][-1]
        assert run.data.metrics["validation_accuracy"] == last["score"]
        assert run.data.metrics["train_loss"] == pytest.approx(last["train_loss"])
        assert run.data.metrics["step"] == STEPS


def runs_of(searched: Searched) -> list[Any]:
    """All runs of the experiment's database."""
    from adept_tune.tracking.quiet import quiet

    quiet()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{searched.folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


def test_the_experiment_folder_holds_what_it_should(searched):
    names = {path.name for path in searched.folder.iterdir()}
    assert {"spec.json", "journal.jsonl", "states", "adapter", "mlflow.db"} <= names
    assert [path.name for path in searched.folder.rglob("*.db")] == ["mlflow.db"]
    assert not list(searched.folder.rglob("*.part"))
    kept = {path.name for path in (searched.folder / STATES).iterdir()}
    finalists = {event["trial"] for event in searched.of("retrain_reported")}
    assert kept == {f"trial-{t:04d}" for t in finalists} | {
        f"trial-{t:04d}-seed-{s + 1}" for t in finalists for s in range(SEEDS)
    }


def test_hosts_and_broker_are_gone_before_ray_is(searched):
    assert searched.actors == []
    assert not ray.is_initialized()


def test_retraining_alone_repeats_the_retraining(searched):
    before = {name: searched.of(name) for name in ("retrain_reported", "tested", "winner")}
    with surroundings(searched.places):
        assert retrain.main(["--experiment", str(searched.folder)]) == 0
    for name, events in before.items():
        again = searched.of(name)[len(events) :]
        assert len(again) == len(events)
        key = lambda event: (event["trial"], event["seed"], event.get("step", 0))  # noqa: E731
        for old, new in zip(sorted(events, key=key), sorted(again, key=key), strict=True):
            assert new.get("score") == old.get("score")
            assert new.get("train_loss", 0) == pytest.approx(old.get("train_loss", 0), abs=1e-3)
    assert len(runs_of(searched)) == 1 + TRIALS + FINALISTS * SEEDS
    assert {run.info.status for run in runs_of(searched)} == {"FINISHED"}


def test_an_interrupted_retraining_goes_on_with_the_same_command(searched):
    path = searched.folder / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["event"] for line in lines]
    begun = len(kinds) - 1 - kinds[::-1].index("retraining")
    first_end = begun + kinds[begun:].index("retrain_ended")
    path.write_bytes(b"".join(lines[: first_end + 1]))
    kept = searched.of("retrain_ended")
    with surroundings(searched.places):
        assert retrain.main(["--experiment", str(searched.folder)]) == 0
    events = list(Journal(path).read())[begun:]
    assert [event["event"] for event in events].count("retraining") == 1
    ended = [(event["trial"], event["seed"]) for event in events if event["event"] == "retrain_ended"]
    assert len(ended) == len(set(ended)) == FINALISTS * SEEDS
    assert (kept[-1]["trial"], kept[-1]["seed"]) == ended[0]
    assert events[-1]["event"] == "finished"
    assert {run.info.status for run in runs_of(searched)} == {"FINISHED"}


def test_a_damaged_last_state_of_a_finished_retraining_is_trained_again_from_the_one_before(searched):
    path = searched.folder / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["event"] for line in lines]
    path.write_bytes(b"".join(lines[: len(kinds) - 1 - kinds[::-1].index("retrain_ended") + 1]))
    before = searched.of("retrain_reported")[-1]
    name = f"trial-{before['trial']:04d}-seed-{before['seed']}"
    newest = max((searched.folder / STATES / name).glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-3])
    with surroundings(searched.places):
        assert retrain.main(["--experiment", str(searched.folder)]) == 0
    events = list(Journal(path).read())[len(lines) - 1 :]
    after = searched.of("retrain_reported")[-1]
    assert (after["trial"], after["seed"], after["step"]) == (before["trial"], before["seed"], STEPS)
    assert after["score"] == before["score"]
    assert len(searched.of("retrain_trouble")) == 1
    assert str(newest) in searched.of("retrain_trouble")[0]["what"]
    assert events[-1]["event"] == "finished"
    assert {run.info.status for run in runs_of(searched)} == {"FINISHED"}


def test_weights_that_cannot_be_read_are_told_before_any_trial(searched, tmp_path, capsys):
    save_tiny_t5(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with surroundings(searched.places):
        data = ["--data-dir", str(searched.places / "data"), "--experiment", str(tmp_path / "new")]
        assert search.main(["--task", "sst2", "--model", str(tmp_path / "model"), *data, "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert f"error: model {tmp_path}/model: cannot load its weights (" in err
    assert "Traceback" not in err
    assert not (tmp_path / "new" / "journal.jsonl").exists()
    assert not ray.is_initialized()


def test_mlflow_serves_what_predict_says(searched, tmp_path):
    from mlflow import MlflowClient

    from adept_tune import load_adapter
    from adept_tune.tracking.quiet import quiet

    quiet()
    client = MlflowClient(f"sqlite:///{searched.folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    models = client.search_logged_models(experiments)  # a retraining alone has logged its own
    model = max(models, key=lambda logged: logged.creation_timestamp)
    lines = (searched.places / "data" / "sst2" / "validation.jsonl").read_text().splitlines()[:20]
    rows = [{"sentence": json.loads(line)["sentence"]} for line in lines]
    (tmp_path / "rows.json").write_text(json.dumps({"dataframe_records": rows}))
    command = [
        *(sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local", "--content-type", "json"),
        *("--model-uri", model.artifact_location, "--input-path", str(tmp_path / "rows.json")),
        *("--output-path", str(tmp_path / "answers.json")),
    ]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300, capture_output=True)
    predicted = load_adapter(searched.folder / ADAPTER).predict(rows)
    assert len(set(predicted)) > 1
    assert json.loads((tmp_path / "answers.json").read_text())["predictions"] == predicted
