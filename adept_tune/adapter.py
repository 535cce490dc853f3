"""An exported adapter: what a search leaves for other programs. Two files, no pickle.

`adapter.safetensors` holds the trained tensors, `adapter.json` everything needed to use them: method, sizes, backbone,
task, label texts, metrics and versions.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adept_tune.errors import BackboneError, MethodError, StateError, TaskError

if TYPE_CHECKING:
    from torch import Tensor

    from adept_tune.backbones import Backbone, BackboneInfo
    from adept_tune.engine.reading import Evaluation, Reader, Trained
    from adept_tune.engine.state import TrialState
    from adept_tune.methods.base import Sizes
    from adept_tune.tasks.task import Task

FORMAT = 1
TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"

Row = str | Mapping[str, Any]


def save_adapter(
    folder: Path,
    state: "TrialState",
    task: "Task",
    backbone: Mapping[str, Any],
    precision: str,
    metrics: Mapping[str, float],
    origin: Mapping[str, Any],
    versions: Mapping[str, str],
) -> None:
    """Write an adapter folder, each file aside first. Where PEFT has the method, it is a PEFT adapter as well.

    Args:
        folder: Made if absent; an adapter in it is replaced.
        state: The trained trial.
        task: What it was trained for.
        backbone: Fields of the `BackboneInfo` it was trained on.
        precision: Of the backbone in training and scoring.
        metrics: Flat figures, fractions, by name.
        origin: Where it comes from: search, trial, seed.
        versions: Of the packages that made it.
    """
    from safetensors.torch import save

    from adept_tune.backbones import BackboneInfo
    from adept_tune.methods import IN_MODEL
    from adept_tune.portable import in_model_files, peft_files

    blob = save(dict(state.tensors))
    description = {
        "format": FORMAT,
        "method": state.method,
        "prompt_length": state.sizes.prompt_length,
        "width": state.sizes.width,
        "d_model": state.sizes.d_model,
        "source_length": state.sizes.source_length,
        "labels": state.config.labels,
        "label_texts": [] if task.is_open else list(task.labels(state.config.labels)),
        "backbone": dict(backbone),
        "precision": precision,
        "task": {
            "name": task.name,
            "columns": list(task.columns),
            "other_columns": list(task.other_columns),
            "template": task.template,
            "label_column": task.label_column,
            "label_values": None if task.label_values is None else list(task.label_values),
            "metric": task.metric,
            "also": list(task.also),
            "label_step": task.label_step,
            "table": None if task.is_plain else {"task": task.name, "protocol": task.protocol},
            "demonstration": task.demonstration,
        },
        "metrics": dict(metrics),
        "config": state.config.model_dump(mode="json"),
        "origin": dict(origin),
        "versions": dict(versions),
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / TENSORS, blob)
    info, files = BackboneInfo(**backbone), {}
    if state.method == "prompt-tuning":
        revision = None if info.local else info.revision
        files = peft_files(state.tensors["prompt"], info.name, revision, info.is_decoder)
    elif state.method in IN_MODEL:
        files = in_model_files(IN_MODEL[state.method], info, state.sizes, state.tensors)
    for name, content in files.items():
        _replace(folder / name, content)
    _replace(folder / DESCRIPTION, json.dumps(description, indent=2).encode() + b"\n")


def load_adapter(path: str | Path, model: str | None = None, device: str = "cpu") -> "Adapter":
    """Read an exported adapter and load its backbone.

    Args:
        path: Folder with `adapter.safetensors` and `adapter.json`.
        model: Folder or Hub name to use instead of the recorded backbone, for a model that has moved.
        device: ``cpu`` or ``cuda``.

    Raises:
        StateError: The files are missing, damaged, or do not belong together; names the file.
        BackboneError: The backbone is not the one the adapter was trained on, or cannot be loaded.
        HubError: The backbone is neither cached nor reachable.
    """
    return Adapter(Path(path), model, device)


def read_start(folder: Path, method: str, info: "BackboneInfo") -> tuple[bytes, str]:
    """Read the tensors of an adapter that trials are to start from.

    Args:
        folder: An exported adapter, of another task perhaps.
        method: Of the trials.
        info: Their backbone.

    Returns:
        The tensors as safetensors, and the hash of them.

    Raises:
        StateError: The files are missing or damaged.
        MethodError: The adapter is of another method or backbone.
    """
    from adept_tune.methods import IN_MODEL

    if method in IN_MODEL:
        raise MethodError(f"--init-from {folder}: method {method} starts from the model; it is for input-side methods")
    description, _ = _read(folder)
    if description.method != method:
        raise MethodError(f"--init-from {folder}: an adapter of {description.method}; this search is of {method}")
    if description.backbone.revision != info.revision:
        raise MethodError(
            f"--init-from {folder}: was trained on {description.backbone.name} at {description.backbone.revision}; "
            f"this search uses {info.name} at {info.revision}"
        )
    return (folder / TENSORS).read_bytes(), description.sha256


class Adapter:
    """A trained adapter on its backbone, ready to predict. Made by `load_adapter`.

    Attributes:
        description: Content of `adapter.json`.
        tensors: The trained tensors by name.
        sizes: Their sizes.
        tokenizer: The backbone's.
        info: The backbone that was loaded.
    """

    def __init__(self, folder: Path, model: str | None, device: str) -> None:
        description, self.tensors = _read(folder)
        self.description = description.model_dump()
        self.sizes = description.sizes
        self._task = _task(description, folder)
        self.info = _find_backbone(description, folder, model)
        self._reader, self._trained, self.tokenizer = _assemble(
            description, self._task, self.tensors, self.info, device, folder
        )

    @property
    def backbone(self) -> "Backbone":
        """The frozen model; of a method inside the model, with what was trained in it."""
        return self._reader.backbone

    def shifted(self, tokens_TD: "Tensor") -> "Tensor":
        """Embeddings of a text's tokens in their order `(tokens, d_model)`, with the adapter's offsets."""
        return self._reader.shifted(self._trained, tokens_TD)

    def predict(self, rows: Sequence[Row]) -> list[str]:
        """Answer each row with the text the model decodes: usually one of `label_texts`, where there are any.

        Args:
            rows: Mappings with the task's columns, or plain texts for a task of one column.

        Raises:
            TaskError: A row does not fit the task.
        """
        if not rows:
            return []
        (texts,) = self._reader.decode(self._trained, self._sources(rows))
        return texts

    def score(self, rows: Sequence[Mapping[str, Any]], allow_code_execution: bool = False) -> "Evaluation":
        """Predict rows that carry their answers, and score the predictions with the task's metrics.

        Args:
            rows: Mappings with the columns `needed`.
            allow_code_execution: Whether predictions that are programs may be run.

        Raises:
            TaskError: A row does not fit the task, or programs may not be run.
        """
        from adept_tune.tasks.execution import check_permitted
        from adept_tune.tasks.tokens import answered

        check_permitted(self._task, allow_code_execution)
        split = answered(self._task, rows, self._sources(rows), self.tokenizer)
        (evaluation,) = self._reader.evaluate(self._trained, split)
        return evaluation

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the columns that a row must have to be scored."""
        return self._task.needed_columns

    @property
    def runs_code(self) -> bool:
        """Whether scoring runs programs that the model wrote."""
        return self._task.runs_code

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the text columns of a row."""
        return self._task.columns

    def _sources(self, rows: Sequence[Row]) -> Any:
        from adept_tune.tasks.tokens import Ragged

        texts = [self._task.source(self._row(row), "rows", i) for i, row in enumerate(rows)]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.description["source_length"])
        return Ragged.from_lists(encoded["input_ids"])

    def _row(self, row: Row) -> Mapping[str, Any]:
        if not isinstance(row, str):
            return row
        if not self._task.reads_one_text:
            raise TaskError(
                f"task {self._task.name}: a plain text cannot fill the columns "
                f"{', '.join((*self._task.columns, *self._task.other_columns))}; "
                "give rows with these columns"
            )
        return {self._task.columns[0]: row}


class _TableEntry(BaseModel):
    """Where a task is found that values alone do not describe."""

    model_config = ConfigDict(extra="forbid", strict=True)
    task: str
    protocol: Literal["ours", "paper"]


class _TaskFields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    columns: list[str]
    other_columns: list[str] | None = None
    template: str
    label_column: str
    label_values: list[str] | None = None
    metric: str
    also: list[str] = []
    label_step: float | None = None
    table: _TableEntry | None = None
    demonstration: bool


class _BackboneFields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    revision: str
    model_type: str
    d_model: int
    vocab_size: int
    local: bool
    max_positions: int | None = None


class _Description(BaseModel):
    """`adapter.json`, checked."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal[1]
    method: str
    prompt_length: int = Field(ge=0)
    width: int = Field(ge=0)
    d_model: int = Field(ge=1)
    source_length: int = Field(ge=2)
    labels: str
    label_texts: list[str]
    backbone: _BackboneFields
    precision: Literal["fp32", "bf16"]
    task: _TaskFields
    metrics: dict[str, float]
    config: dict[str, Any]
    origin: dict[str, Any]
    versions: dict[str, str]
    sha256: str

    @property
    def sizes(self) -> "Sizes":
        """Lengths of the axes."""
        from adept_tune.methods.base import Sizes

        return Sizes(self.prompt_length, self.width, self.d_model, self.source_length)


def _read(folder: Path) -> tuple[_Description, dict[str, Any]]:
    """Both files, checked against each other."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from adept_tune.methods import InModel, get_method

    where = folder / DESCRIPTION
    try:
        text, blob = where.read_bytes(), (folder / TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise StateError(f"{folder}: no adapter there ({error.filename} is missing)") from None
    except OSError as error:
        raise StateError(f"{folder}: not readable ({error})") from error
    try:
        description = _Description.model_validate_json(text)
        method = get_method(description.method)
    except ValidationError as error:
        raise StateError(f"{where}: {_fault(error)}") from None
    except MethodError as error:
        raise StateError(f"{where}: {error}") from None
    if hashlib.sha256(blob).hexdigest() != description.sha256:
        raise StateError(f"{folder / TENSORS}: does not match the digest in {DESCRIPTION}; it is damaged")
    try:
        tensors = load(blob)
    except SafetensorError as error:
        raise StateError(f"{folder / TENSORS}: not readable ({error})") from error
    shapes = {} if isinstance(method, InModel) else method.axes  # the model knows theirs, see `_assemble`
    for name, axes in shapes.items():
        found, expected = tensors.get(name), description.sizes.of(axes)
        if found is None or tuple(found.shape) != expected:
            given = "nothing" if found is None else tuple(found.shape)
            raise StateError(f"{folder / TENSORS}: {name}: expected shape {expected}, found {given}")
    return description, tensors


def _fault(error: ValidationError) -> str:
    """The first thing wrong with a description."""
    first = error.errors()[0]
    if not first["loc"]:
        return f"not readable ({first['msg']})"
    if first["loc"] == ("format",) and first["type"] == "literal_error":
        return f"format {first['input']}; this version reads format {FORMAT}"
    return f"not an adapter's description: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _task(description: _Description, folder: Path) -> "Task":
    from adept_tune.tasks import TASKS, get_task
    from adept_tune.tasks.task import Task

    fields = description.task
    try:
        if fields.table is not None:
            if fields.table.task not in TASKS:  # a name of ours, never the path of a file
                raise TaskError(f"{fields.table.task!r} is not in adept_tune.tasks.TASKS; put it there first")
            task = get_task(fields.table.task, fields.table.protocol)
            _check_entry(task, description)
            return replace(task, max_source_length=description.source_length)
        return Task(
            name=fields.name,
            columns=tuple(fields.columns),
            template=fields.template,
            label_sets={description.labels: tuple(description.label_texts)},
            split_rule="official",
            metric=fields.metric,
            label_column=fields.label_column,
            label_values=None if fields.label_values is None else tuple(fields.label_values),
            label_step=fields.label_step,
            also=tuple(fields.also),
            max_source_length=description.source_length,
            demonstration=fields.demonstration,
        )
    except (TaskError, ValueError) as error:
        raise StateError(f"{folder / DESCRIPTION}: task: {error}") from error


def _check_entry(task: "Task", description: _Description) -> None:
    """See that a task of the table is still read as it was.

    Raises:
        TaskError: It is not; says what has changed.
    """
    fields, labels = description.task, [] if task.is_open else list(task.labels(description.labels))
    for name, then, now in (
        ("columns", fields.columns, list(task.columns)),
        ("other_columns", fields.other_columns, list(task.other_columns)),
        ("template", fields.template, task.template),
        ("metric", fields.metric, task.metric),
        ("label_texts", description.label_texts, labels),
    ):
        if then is not None and then != now:
            raise TaskError(f"{name} of {task.name} was {then!r} and is {now!r} in this version")


def _assemble(
    description: _Description,
    task: "Task",
    tensors: Mapping[str, Any],
    info: "BackboneInfo",
    device: str,
    folder: Path,
) -> "tuple[Reader, Trained, Any]":
    """Backbone and adapter as a reader of one trial."""
    import torch

    from adept_tune.backbones import load_backbone, load_tokenizer
    from adept_tune.backbones.codec import TokenizerCodec
    from adept_tune.engine.in_model import fitted, no_prompt
    from adept_tune.engine.reading import Reader, Trained
    from adept_tune.methods import INPUT_SIDE, InModel, get_method
    from adept_tune.tasks.tokens import Ragged

    tokenizer = load_tokenizer(info)
    backbone = load_backbone(info, device, description.precision)
    method, sizes = get_method(description.method), description.sizes
    if isinstance(method, InModel):
        try:
            backbone, _ = fitted(backbone, method, sizes, 0, tensors)
        except MethodError as error:
            raise StateError(f"{folder / TENSORS}: {error}") from None
        method = INPUT_SIDE["prompt-tuning"]
        trained = no_prompt(backbone, sizes, description.labels, torch.float32)
    else:
        trained = Trained.of_one(tensors, sizes, description.labels, backbone.device)
    style, texts = description.labels, tuple(description.label_texts)
    label_ids = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    reader = Reader(
        backbone,
        method,
        TokenizerCodec(tokenizer),
        task.metric,
        {style: Ragged.from_lists(label_ids)} if texts else {},
        {style: texts} if texts else {},
        backbone.pad_id,
        task.also,
        task.max_target_length,
    )
    return reader, trained, tokenizer


def _find_backbone(description: _Description, folder: Path, model: str | None) -> "BackboneInfo":
    """The recorded backbone, or the one to use instead of it."""
    from adept_tune.backbones import BackboneInfo, inspect_backbone

    recorded = BackboneInfo(**description.backbone.model_dump())
    info = inspect_backbone(model or recorded.name, None if model or recorded.local else recorded.revision)
    _check_backbone(info, recorded, folder)
    return info


def _check_backbone(info: "BackboneInfo", recorded: "BackboneInfo", folder: Path) -> None:
    if (info.d_model, info.vocab_size) != (recorded.d_model, recorded.vocab_size):
        raise BackboneError(
            f"adapter {folder} was trained on {recorded.name} (d={recorded.d_model}, vocabulary "
            f"{recorded.vocab_size}); {info.name} has d={info.d_model}, vocabulary {info.vocab_size}"
        )
    if info.revision != recorded.revision:
        warnings.warn(
            f"adapter {folder} was trained on {recorded.name} at {recorded.revision}; "
            f"using {info.name} at {info.revision}",
            stacklevel=2,
        )


def _replace(path: Path, blob: bytes) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(blob)
    os.replace(part, path)
