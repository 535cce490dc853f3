"""Stores an exported adapter as an MLflow model, from code: nothing is pickled."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from adept_tune.tracking.quiet import quiet, quiet_loggers

REQUIREMENTS = (
    "torch",
    "transformers",
    "sentencepiece",
    "protobuf",
    "peft",
    "safetensors",
    "numpy",
    "pydantic",
    "pandas",
    "mlflow",
)
"""What loading an adapter and predicting with it need."""

ADAPTER_FILES = ("adapter.safetensors", "adapter.json")
TEXT_COLUMN = "text"
MODEL_NAME = "adapter"
STORED = "stored_adapter"  # tag of a run: the model it has, and the hash of its description


def log_adapter(
    tracking: Any,
    run_id: str,
    adapter_dir: Path,
    input_columns: Sequence[str] = (),
) -> str:
    """Store an exported adapter as a model that `mlflow.pyfunc.load_model` and `mlflow models serve` take.

    The model holds the adapter's files and a copy of this package's source, so it loads where adept_tune is
    not installed. It touches neither MLflow's current run nor its global tracking URI. What the run has stored
    already is not stored again.

    Args:
        tracking: A tracking URI, or an `MlflowClient`.
        run_id: The run that made the adapter.
        adapter_dir: Folder with adapter.safetensors and adapter.json.
        input_columns: The task's text columns; when empty the model takes ready text in the column "text". Further
            columns, of whatever kind, that the adapter says it reads come after them. Output: one string a row.

    Returns:
        The model's URI.

    Raises:
        FileNotFoundError: The folder is not an exported adapter.
    """
    missing = [name for name in ADAPTER_FILES if not (adapter_dir / name).is_file()]
    if missing:
        absent = " and no ".join(missing)
        raise FileNotFoundError(f"{adapter_dir}: no {absent}; give a folder written by the export")
    quiet()
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client = MlflowClient(tracking, tracking) if isinstance(tracking, str) else tracking
    run = client.get_run(run_id)
    described = (adapter_dir / "adapter.json").read_bytes()  # which has the hash of the tensors
    digest = hashlib.sha256(described + json.dumps(list(input_columns)).encode()).hexdigest()
    model_id, _, known = run.data.tags.get(STORED, "").partition(" ")
    if known == digest:
        return f"models:/{model_id}"
    entry = client.create_logged_model(
        run.info.experiment_id,
        name=MODEL_NAME,
        source_run_id=run_id,
        params={name: value for name, value in run.data.tags.items() if name.startswith("winner_")},
        tags={name: run.data.tags[name] for name in ("search_id", "task", "method") if name in run.data.tags},
        model_type="adapter",
    )
    try:
        ids = {"run_id": run_id, "model_id": entry.model_id, "model_uuid": entry.model_id}
        description = Model(artifact_path=entry.artifact_location, **ids)
        with tempfile.TemporaryDirectory(prefix="adept_tune-model-") as folder:
            model_dir = Path(folder) / "model"
            save_model(model_dir, adapter_dir, input_columns, description)
            client.log_model_artifacts(entry.model_id, str(model_dir))
    except Exception:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            client.delete_logged_model(entry.model_id)
        raise
    client.finalize_logged_model(entry.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(entry.model_id, step=0)])
    client.set_tag(run_id, STORED, f"{entry.model_id} {digest}")
    return f"models:/{entry.model_id}"


def save_model(model_dir: Path, adapter_dir: Path, input_columns: Sequence[str], description: Any = None) -> None:
    """Write an MLflow model folder.

    Args:
        model_dir: Folder to make.
        adapter_dir: See `log_adapter`.
        input_columns: See `log_adapter`.
        description: The `mlflow.models.Model` to fill, a fresh one when None.
    """
    quiet()
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    quiet_loggers()
    others = json.loads((adapter_dir / "adapter.json").read_bytes()).get("task", {}).get("other_columns", [])
    texts = [ColSpec("string", name) for name in list(input_columns) or [TEXT_COLUMN]]
    inputs = Schema([*texts, *(ColSpec(AnyType(), name) for name in others)])
    mlflow.pyfunc.save_model(
        path=str(model_dir),
        mlflow_model=description,
        python_model=str(Path(__file__).with_name("served_adapter.py")),
        artifacts={"adapter": str(adapter_dir)},
        code_paths=[str(Path(__file__).resolve().parents[1])],
        pip_requirements=pip_requirements(),
        signature=ModelSignature(inputs=inputs, outputs=Schema([ColSpec("string")])),
        model_config={"input_columns": [*input_columns, *others]},
    )


def pip_requirements() -> list[str]:
    """The installed versions, without a local suffix such as "+cpu" that no index has."""
    found = []
    for package in REQUIREMENTS:
        try:
            found.append(f"{package}=={metadata.version(package).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            continue
    return found
