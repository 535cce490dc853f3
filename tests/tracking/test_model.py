"""An adapter as an MLflow model, stored here and loaded in a process that knows nothing of this tree."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adept_tune.tracking import MlflowTracker
from adept_tune.tracking.model import log_adapter, pip_requirements
from adept_tune.tracking.quiet import quiet
from tests.tracking.fakes import INFO

STUB = """
import sys, types, json, pathlib
stub = types.ModuleType("adept_tune.adapter")
class Adapter:
    def __init__(self, path): self.path = pathlib.Path(path)
    def predict(self, rows):
        name = json.loads((self.path / "adapter.json").read_text())["name"]
        return [f"{name}:{json.dumps(row, sort_keys=True)}" for row in rows]
stub.load_adapter = lambda path, model=None, device="cpu": Adapter(path)
sys.modules["adept_tune.adapter"] = stub
"""
LOAD = """
import mlflow, pandas as pd
frame = pd.DataFrame(json.loads(sys.argv[2]))
answer = mlflow.pyfunc.load_model(sys.argv[1]).predict(frame)
import adept_tune
print(json.dumps({"answer": answer, "source": adept_tune.__file__, "ray": "ray" in sys.modules}))
"""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder that looks like an exported adapter."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"\0" * 16)
    (folder / "adapter.json").write_text('{"name": "stub"}')
    return folder


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> MlflowTracker:
    """A closed search in a database of its own."""
    tracker = MlflowTracker(None, tmp_path_factory.mktemp("model"))
    tracker.start(INFO)
    assert tracker.close("FINISHED") == []
    return tracker


def predict_elsewhere(model: Path, frame: dict[str, list[Any]], folder: Path) -> dict[str, Any]:
    """Load a model folder and predict, in a process where only installed packages are found."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STUB + LOAD, str(model), json.dumps(frame)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def logged(tracker: MlflowTracker, adapter: Path, columns: list[str]) -> tuple[Any, Path]:
    """Log an adapter with the search run of `tracker`; gives the model's record and its folder."""
    quiet()
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    client = MlflowClient(tracker.uri, tracker.uri)
    experiment = client.get_experiment_by_name("adept_tune").experiment_id
    (run,) = client.search_runs([experiment])
    uri = log_adapter(client, run.info.run_id, adapter, columns)
    model = client.get_logged_model(uri.removeprefix("models:/"))
    return model, Path(download_artifacts(artifact_uri=model.artifact_location, tracking_uri=tracker.uri))


def test_model_loads_and_answers_in_another_process(database: MlflowTracker, adapter: Path, tmp_path: Path) -> None:
    model, folder = logged(database, adapter, ["premise", "hypothesis"])
    frame = {"hypothesis": ["b", "d"], "premise": ["a", "c"]}
    result = predict_elsewhere(folder, frame, tmp_path)
    assert result["answer"] == [
        'stub:{"hypothesis": "b", "premise": "a"}',
        'stub:{"hypothesis": "d", "premise": "c"}',
    ]
    assert result["source"].startswith(str(folder))
    assert not result["ray"]
    assert model.status.name == "READY"
    assert model.tags["task"] == "cola"


def test_model_takes_further_columns_of_any_kind(database: MlflowTracker, adapter: Path, tmp_path: Path) -> None:
    description = {"name": "stub", "task": {"other_columns": ["entities", "index"]}}
    (adapter / "adapter.json").write_text(json.dumps(description))
    _, folder = logged(database, adapter, ["query"])
    frame = {"query": ["a", "b"], "entities": [["x", "y"], ["z"]], "index": [3, 4], "unread": [0, 0]}
    assert predict_elsewhere(folder, frame, tmp_path)["answer"] == [
        'stub:{"entities": ["x", "y"], "index": 3, "query": "a"}',
        'stub:{"entities": ["z"], "index": 4, "query": "b"}',
    ]


def test_model_without_columns_takes_ready_text(database: MlflowTracker, adapter: Path, tmp_path: Path) -> None:
    _, folder = logged(database, adapter, [])
    assert predict_elsewhere(folder, {"text": ["a"]}, tmp_path)["answer"] == ['stub:"a"']


def test_model_folder_holds_source_and_no_pickle(database: MlflowTracker, adapter: Path) -> None:
    _, folder = logged(database, adapter, ["sentence"])
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"served_adapter.py", "code/adept_tune/__init__.py"} <= names
    assert any(name.endswith("adapter.safetensors") for name in names)
    assert not [name for name in names if name.endswith((".pkl", ".pyc", ".pickle"))]
    requirements = (folder / "requirements.txt").read_text()
    assert "+" not in requirements
    assert "torch==" in requirements


def test_model_is_shown_with_the_search(adapter: Path, database: MlflowTracker) -> None:
    from mlflow import MlflowClient

    tracker = MlflowTracker(database.uri, adapter.parent)
    tracker.start(INFO)
    tracker.log_adapter(adapter, ["sentence"])
    assert tracker.close("FINISHED") == []
    client = MlflowClient(database.uri, database.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("adept_tune").experiment_id])
    assert run.outputs.model_outputs


def test_model_that_the_run_has_is_not_stored_again(database: MlflowTracker, adapter: Path) -> None:
    first, again = (logged(database, adapter, ["a column of its own"])[0].model_id for _ in range(2))
    assert first == again
    (adapter / "adapter.json").write_text(json.dumps({"name": "another", "task": {}}))
    assert logged(database, adapter, ["a column of its own"])[0].model_id != first


def test_model_of_a_folder_that_is_no_adapter_is_refused(database: MlflowTracker, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no adapter.safetensors and no adapter.json; give a folder"):
        log_adapter(database.uri, "any", tmp_path)


def test_pip_requirements_pin_published_versions() -> None:
    assert all("==" in line and "+" not in line for line in pip_requirements())
