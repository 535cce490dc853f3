"""Runs kept by MLflow, which is imported when a store is opened."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adept_tune.tracking.model import log_adapter
from adept_tune.tracking.quiet import quiet, quiet_loggers
from adept_tune.tracking.runs import StoredRun
from adept_tune.tracking.translate import END_TAGS, Write

PAGE_SIZE = 1000


def open_store(uri: str, experiment_name: str, artifact_folder: Path | None) -> "MlflowStore":
    """Connect to MLflow; make the database and the experiment when they are missing.

    Args:
        uri: Tracking URI: a database or a server.
        experiment_name: MLflow experiment that holds the runs.
        artifact_folder: Where a new experiment keeps artifacts; None leaves it to the server.

    Raises:
        Exception: Whatever MLflow raises when it cannot be reached.

    Takes seconds: MLflow's import 1, a new database 3 to 6.
    """
    quiet()
    if uri.startswith("sqlite:"):
        write_ahead(database_path(uri))
    from mlflow import MlflowClient

    quiet_loggers()
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    location = None if artifact_folder is None else artifact_folder.as_uri()
    return MlflowStore(client, _experiment_id(client, experiment_name, location))


def database_path(uri: str) -> Path:
    """The file of a sqlite URI, absolute."""
    return Path(uri.split("?")[0].removeprefix("sqlite:///")).absolute()


def write_ahead(database: Path) -> None:
    """Switch a database to write-ahead logging, which it remembers: four times the writes a second."""
    database.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode=WAL")  # answers "delete" where the file system cannot
    finally:
        connection.close()


def _experiment_id(client: Any, name: str, location: str | None) -> str:
    """Find or make the experiment; another search may make it at the same moment."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":  # in the page's trash; it takes no run there, and no other may have its name
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


class MlflowStore:
    """A `RunStore` on an MLflow client."""

    def __init__(self, client: Any, experiment_id: str) -> None:
        """Take what `open_store` connected."""
        self._client = client
        self._experiment_id = experiment_id

    @property
    def experiment_id(self) -> str:
        """See `RunStore.experiment_id`."""
        return self._experiment_id

    def tag_experiment(self, name: str, value: str) -> None:
        """See `RunStore.tag_experiment`."""
        self._client.set_experiment_tag(self._experiment_id, name, value)

    def find(self, search_id: str) -> list[StoredRun]:
        """See `RunStore.find`."""
        found: list[StoredRun] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                f"tags.search_id = '{search_id}'",
                max_results=PAGE_SIZE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found += [_stored(run) for run in page]
            token = page.token
            if not token:
                return found

    def create(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """See `RunStore.create`."""
        experiment = self._experiment_id
        run = self._client.create_run(experiment, start_time=start_ms, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def log(self, run_id: str, write: Write) -> None:
        """See `RunStore.log`. The same metric at the same time and step is stored once."""
        from mlflow.entities import Metric, Param, RunTag

        step = write.step or 0
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, value, write.time_ms, step) for name, value in write.metrics.items()],
            params=[Param(name, value) for name, value in write.params.items()],
            tags=[RunTag(name, value) for name, value in write.tags.items()],
        )

    def log_text(self, run_id: str, file_name: str, text: str) -> None:
        """See `RunStore.log_text`."""
        self._client.log_text(run_id, text, file_name)

    def log_path(self, run_id: str, path: Path, folder: str | None) -> None:
        """See `RunStore.log_path`."""
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), folder)
        elif path.is_file():
            self._client.log_artifact(run_id, str(path), folder)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")

    def log_adapter(self, run_id: str, path: Path, input_columns: Sequence[str]) -> None:
        """See `RunStore.log_adapter`."""
        log_adapter(self._client, run_id, path, input_columns)

    def reopen(self, run_id: str) -> None:
        """See `RunStore.reopen`."""
        for tag in END_TAGS & set(self._client.get_run(run_id).data.tags):
            self._client.delete_tag(run_id, tag)
        self._client.update_run(run_id, status="RUNNING")

    def end(self, run_id: str, status: str, end_ms: int) -> None:
        """See `RunStore.end`."""
        self._client.set_terminated(run_id, status, end_time=end_ms)

    def answers(self) -> bool:
        """See `RunStore.answers`."""
        try:
            self._client.get_experiment(self._experiment_id)
        except Exception:
            return False
        return True


def _stored(run: Any) -> StoredRun:
    """An MLflow run as the run table needs it."""
    step = int(run.data.metrics.get("step", -1))
    return StoredRun(run.info.run_id, run.info.status, dict(run.data.tags), dict(run.data.params), step)
