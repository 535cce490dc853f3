"""The view of MLflow's table of runs."""

import json
from pathlib import Path

import pytest

from adept_tune.tracking import MlflowTracker
from adept_tune.tracking.runs import SearchRuns
from adept_tune.tracking.view import view_tag
from tests.tracking.fakes import INFO, FakeStore


def test_view_shows_the_end_the_result_and_the_searched_settings() -> None:
    name, value = view_tag(INFO)
    view = json.loads(value)
    state = json.loads(view["state"])
    assert name == "mlflow.sharedViewState.adept"
    assert view["name"] == "adept trials"
    assert state["selectedColumns"] == [
        *("tags.`end_state`", "tags.`winner_trial`", "metrics.`score`", "metrics.`validation_loss`", "metrics.`step`"),
        *("params.`prompt_length`", "params.`ffn_width`", "params.`num_parameters`"),
        *("params.`prompt_lr`", "params.`ffn_lr`", "attributes.`Description`"),
    ]
    assert set(state["selectedColumns"]) < set(state["columnOrder"]) == set(state["columnWidths"])


def test_view_is_stored_with_the_search() -> None:
    store = FakeStore()
    SearchRuns(store, INFO).open()
    assert dict([view_tag(INFO)]) == store.experiment_tags


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://user:secret@host:5000/", "http://host:5000/"),
        (
            "sqlite:////a b/mlflow.db",
            "mlflow server --workers 1 --backend-store-uri 'sqlite:////a b/mlflow.db'\nand open",
        ),
    ],
)
def test_look_before_the_search_run_is_there_is_at_the_server(uri: str, expected: str, tmp_path: Path) -> None:
    hint = MlflowTracker(uri, tmp_path, store=FakeStore).view_hint
    assert expected in hint
    assert "#" not in hint


@pytest.mark.parametrize(
    ("uri", "server"), [(None, "http://127.0.0.1:5000"), ("http://host:80/at/", "http://host:80/at")]
)
def test_look_is_at_the_trials_once_the_search_run_is_there(uri: str | None, server: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(uri, tmp_path, store=FakeStore)
    tracker.start(INFO)
    assert tracker.close("FINISHED") == []
    page = "#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=adept"
    assert tracker.view_hint.split()[-1] == f"{server}/{page}"
