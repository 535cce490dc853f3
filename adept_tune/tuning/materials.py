"""What a search works on, loaded and checked before anything is spent."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adept_tune.backbones import BackboneInfo, inspect_backbone, load_skeleton, load_tokenizer
from adept_tune.errors import SpecError
from adept_tune.methods import InModel
from adept_tune.tasks import Task, get_task
from adept_tune.tasks.execution import check_permitted
from adept_tune.tasks.rows import Splits, load_splits
from adept_tune.tasks.task import Protocol
from adept_tune.tasks.tokens import TaskData, default_cache_dir, load_task_data, tokenizer_fingerprint
from adept_tune.tuning.space import SearchSpace, SpaceFile, Value, resolve_space
from adept_tune.tuning.spec import SearchSpec


@dataclass(frozen=True)
class Materials:
    """What a search works on, loaded and checked."""

    task: Task
    splits: Splits
    data: TaskData
    info: BackboneInfo
    space: SearchSpace

    def at(self, embedding_rms: float | None) -> "Materials":
        """The same, where the scale of the backbone's embeddings is known, in which a space may tell rates."""
        return replace(self, space=self.space.at(embedding_rms))


def gather(
    task_name: str,
    data_dir: Path | None,
    model: str,
    file: SpaceFile,
    fixed: Mapping[str, Value] | None,
    labels: str | None,
    revision: str | None = None,
    protocol: Protocol = "ours",
    allow_code_execution: bool = False,
) -> Materials:
    """Load and check everything a search works on.

    Raises:
        AdeptError: Whatever is wrong with task, rows, model or space.
    """
    task = get_task(task_name, protocol)
    check_permitted(task, allow_code_execution)
    if labels is not None:
        task.labels(labels)
    info = inspect_backbone(model, revision)
    settled = dict(fixed or {}) | ({"labels": labels} if labels else {})
    space = resolve_space(file, info.d_model, task.max_source_length, settled)
    if isinstance(space.method, InModel):
        space = replace(space, method=space.method.on(load_skeleton(info)))
    splits = load_splits(task, data_dir)
    tokenizer = load_tokenizer(info)
    data = load_task_data(task, splits, tokenizer, tokenizer_fingerprint(tokenizer), default_cache_dir())
    if task.is_open and "labels" in space.dimensions:
        raise SpecError(f"space: labels: task {task.name} has open answers, so there are none; leave it out")
    _check_positions(info, space, data)
    for style in _styles(space):
        if style not in data.styles:
            raise SpecError(
                f"labels {style}: the tokenizer of {info.name} cannot write {', '.join(task.labels(style))}"
            )
    return Materials(task, splits, data, info, space)


WINDOWED = ("mistral", "gemma3_text")  # transformers' names of those that attend to a window of columns


def _check_positions(info: BackboneInfo, space: SearchSpace, data: TaskData) -> None:
    """See that the longest prompt leaves room for source and answer, where a model can read only so much.

    A prefix stands before the padding of a short row, where a model that looks back a number of columns may miss it.
    """
    if space.method.name == "prefix-tuning" and info.model_type in WINDOWED:
        raise SpecError(f"--method prefix-tuning: {info.name} looks back no further than a window; take another method")
    if info.max_positions is None:
        return
    splits = (data.train, data.validation, data.test)
    source = max(int(split.sources.lengths.max()) for split in splits)
    trained = max(int(ids.lengths.max()) for ids in data.train.targets.values())
    answer = data.max_target_length if data.validation.references is not None else trained
    prompt = max(space.sizes(point).prompt_length for point in space.corners())
    if source + answer + prompt > info.max_positions:
        raise SpecError(
            f"model {info.name} reads at most {info.max_positions} tokens; the longest source has {source}, an answer "
            f"up to {answer}, a prompt of this space up to {prompt}; give a space with shorter prompts"
        )


def _styles(space: SearchSpace) -> list[str]:
    """Label styles that trials of a space may use."""
    searched = space.dimensions.get("labels")
    if searched is not None:
        return [str(style) for style in searched.corners()]
    return [str(space.fixed.get("labels", "digits"))]


def check_unchanged(spec: SearchSpec, materials: Materials) -> None:
    """See that rows and model are still those of a search.

    Raises:
        SpecError: They are not; says which.
    """
    if materials.data.fingerprint != spec.data_fingerprint:
        raise SpecError(
            f"task {spec.task}: its rows or tokens are not those of the search; restore them, or search anew"
        )
    if materials.info.revision != spec.backbone["revision"]:
        raise SpecError(
            f"model {materials.info.name}: found {materials.info.revision}, the search used "
            f"{spec.backbone['revision']}; restore it, or search anew"
        )
