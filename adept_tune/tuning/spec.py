"""What a search is asked to do, resolved and checked: the file `spec.json` of an experiment."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from adept_tune.backbones import BackboneInfo
from adept_tune.errors import SpecError, StateError, StorageError
from adept_tune.tasks.own import is_task_file
from adept_tune.tasks.task import Protocol
from adept_tune.tuning.rungs import Scheduler
from adept_tune.tuning.space import Sampler, SpaceFile

SPEC, JOURNAL, STATES, ADAPTER = "spec.json", "journal.jsonl", "states", "adapter"

DEFAULT_FINALISTS, DEFAULT_SEEDS, DEFAULT_BATCH_SIZE = 3, 3, 32


class SearchSpec(BaseModel):
    """One search. What changes a result is compared when a search is resumed; the rest may differ.

    Attributes:
        search_id: Finds the search's runs and actors.
        task: Name of the task, or the path of its file.
        protocol: Whether the faults of the published code are mended (``ours``) or followed (``paper``).
        allow_code_execution: Whether answers that are programs may be run.
        data_dir: Folder of its rows; None for the Hub or the package.
        data_fingerprint: Of rows and tokens.
        backbone: Fields of the `BackboneInfo`.
        method: Name of the method.
        space: The search space as written, after `extends`.
        fixed: Trial settings from the command line.
        init_from: Folder of the adapter that trials start from; None starts them from nothing.
        init_sha256: Hash of its tensors.
        labels: Which texts stand for the labels, where the space does not search over them.
        trials: To propose in all.
        max_steps: Of a trial that is not stopped.
        batch_size: Where the space does not search over it.
        scheduler: Which rule stops trials.
        sampler: Who proposes points.
        reduction_factor: Of successive halving.
        finalists: Configurations to retrain.
        seeds: Retrainings of each.
        seed: Of the search.
        slots: Trials at once on a device.
        device: ``cuda`` or ``cpu``.
        precision: Of the backbone.
        tokens_per_pass: Most tokens of one forward and backward, as the probe found fastest; None fuses all.
        num_threads: Of torch on a CPU; None for all. A run repeats bitwise only with as many, as many lanes, and as
            many tokens a pass.
        num_lanes: Passes at a time on a CPU, which share the threads, as the probe found fastest.
        max_failures: Restarts of a job whose process is lost.
        time_budget_s: Wall time for everything; None for no limit.
        padded_share: Of the tokens of a step, as the probe found it.
        embedding_rms: Root mean square of the backbone's embeddings, as the probe found it.
        start_s: Wall time of the first session until its plan was made.
        expected_s: Expected wall time of search, retraining and test.
        retrain_s: Expected wall time of retraining and testing, which the search leaves of the budget.
        storage: Where states are kept; None for the experiment folder.
        tracking_uri: MLflow server; None for a database in the experiment folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    search_id: str
    task: str
    protocol: Protocol = "ours"
    allow_code_execution: bool = False
    data_dir: str | None
    data_fingerprint: str
    backbone: dict[str, Any]
    method: str
    space: dict[str, Any]
    fixed: dict[str, Any]
    init_from: str | None = None
    init_sha256: str | None = None
    labels: Literal["digits", "words"]
    trials: int = Field(ge=1)
    max_steps: int = Field(ge=1)
    batch_size: int = Field(default=DEFAULT_BATCH_SIZE, ge=1)
    scheduler: Scheduler = "asha"
    sampler: Sampler = "tpe"
    reduction_factor: float = Field(default=3.0, gt=1, le=1000)
    finalists: int = Field(default=DEFAULT_FINALISTS, ge=1)
    seeds: int = Field(default=DEFAULT_SEEDS, ge=1)
    seed: int = Field(default=0, ge=0)
    slots: int = Field(ge=1, le=1024)
    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16"] = "fp32"
    tokens_per_pass: int | None = Field(default=None, ge=1)
    num_threads: int | None = Field(default=None, ge=1)
    num_lanes: int = Field(default=1, ge=1)
    max_failures: int = Field(default=3, ge=0)
    time_budget_s: float | None = Field(default=None, gt=0)
    padded_share: float | None = None
    embedding_rms: float | None = None
    start_s: float = Field(default=0.0, ge=0)
    expected_s: float | None = None
    retrain_s: float = Field(default=0.0, ge=0)
    storage: str | None = None
    tracking_uri: str | None = None

    @field_validator("backbone")
    @classmethod
    def _is_backbone(cls, fields: dict[str, Any]) -> dict[str, Any]:
        TypeAdapter(BackboneInfo).validate_python(fields)
        return fields

    @field_validator("space")
    @classmethod
    def _is_space(cls, fields: dict[str, Any]) -> dict[str, Any]:
        SpaceFile.model_validate(fields)
        return fields

    @property
    def task_name(self) -> str:
        """The task as people call it; `task` may be the path of its file."""
        return Path(self.task).stem if is_task_file(self.task) else self.task

    def differences(self, other: "SearchSpec") -> list[str]:
        """What would change the results of a search that goes on as `other`, a line each, ours first."""
        mine, theirs = self._deciding(), other._deciding()
        return [f"{key}: {mine[key]} in the experiment, {theirs[key]} now" for key in mine if mine[key] != theirs[key]]

    def _deciding(self) -> dict[str, Any]:
        """The fields that a result depends on; trials, time, finalists and seeds may grow, places may move."""
        keys = [
            *("task", "protocol", "data_fingerprint", "method", "space", "fixed", "labels", "max_steps", "batch_size"),
            *("scheduler", "sampler", "reduction_factor", "seed", "precision", "init_sha256"),
        ]
        return {key: getattr(self, key) for key in keys} | {"model": self.backbone["revision"]}

    def write(self, folder: Path) -> None:
        """Write `spec.json`, aside first.

        Raises:
            StorageError: It cannot be written.
        """
        path = folder / SPEC
        part = path.with_suffix(".part")
        try:
            part.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n")
            os.replace(part, path)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror}); make room there") from error

    @classmethod
    def read(cls, folder: Path) -> "SearchSpec":
        """Read an experiment's `spec.json`.

        Raises:
            SpecError: There is no experiment in the folder.
            StateError: The file is damaged.
        """
        path = folder / SPEC
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise SpecError(f"{folder}: no experiment there ({SPEC} is missing); give a folder under runs/") from None
        except (OSError, ValidationError) as error:
            raise StateError(f"{path}: not a readable spec ({error})") from error
