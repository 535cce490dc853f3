"""Rows as token ids: made once a data set and tokenizer, kept in one file, shared by all trials.

Every host of every search needs the same arrays. The file's name is a hash of all that they depend on, so
a file is either right or not there, and nothing has to be invalidated.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adept_tune.errors import TaskError
from adept_tune.tasks.metrics import METRICS, Score, chance, chance_of_texts
from adept_tune.tasks.rows import Splits
from adept_tune.tasks.task import SPLITS, Row, Task

# Goes up when the layout or the way of tokenising changes; older files are then left alone and not read.
FORMAT_VERSION = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different length, end to end.

    Args:
        values: int32, `(sum of lengths,)`.
        offsets: int64, `(rows + 1,)`; row i is `values[offsets[i]:offsets[i + 1]]`.
    """

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int]]) -> "Ragged":
        """Pack lists of ints; a row may be empty."""
        lists = list(rows)
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in lists], out=offsets[1:])
        values = np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(offsets[-1]))
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        """Return one row, as a view; a negative index counts from the end."""
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.values[self.offsets[place] : self.offsets[place + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[index] for index in range(len(self)))

    def take(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> "Ragged":
        """Return some of the rows, in the given order."""
        return Ragged.from_lists([self[int(row)].tolist() for row in rows])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each row, `(rows,)`."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """One split as token ids; all parts are in the order of its rows.

    Args:
        sources: Source texts.
        targets: Label style -> target texts, each ending in the end-of-sequence token.
        labels: Label numbers, int32, `(rows,)`; zeros where answers are open.
        references: What an open answer to each row is scored against; None where there are labels, and in training.
        groups: Number of the group of each row, int32, `(rows,)`; None where each stands alone.
    """

    sources: Ragged
    targets: Mapping[str, Ragged]
    labels: NDArray[np.int32]
    references: tuple[tuple[str, ...], ...] | None = None
    groups: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> "TokenSplit":
        """Return a split of some of the rows, in the given order."""
        targets = {style: ragged.take(rows) for style, ragged in self.targets.items()}
        places = np.asarray(rows)
        references = None if self.references is None else tuple(self.references[int(row)] for row in rows)
        groups = None if self.groups is None else self.groups[places]
        return TokenSplit(self.sources.take(rows), targets, self.labels[places], references, groups)


@dataclass(frozen=True, eq=False)
class TaskData:
    """All that training, evaluation and scoring need of a task, without its texts.

    Args:
        task: Name of the task.
        metric: A key of `metrics.METRICS` or `metrics.TEXT_METRICS`.
        train: Rows for training.
        validation: Rows for choosing.
        test: Rows for one figure at the end.
        label_sets: Label style -> token ids of each label, each ending in the end-of-sequence token. Only the
            styles whose texts this tokenizer gives back unchanged. Empty where answers are open.
        label_texts: Label style -> text of each label; empty where answers are open.
        pad_id: Fills batches; masked wherever it does.
        max_source_length: In tokens; no source is longer.
        chance: Score of the best constant answer on the validation rows.
        fingerprint: Hash of everything above and of the tokenizer; equal means equal data.
        also: Further metrics that are told beside it.
        max_target_length: Most tokens of an open answer.
    """

    task: str
    metric: str
    train: TokenSplit
    validation: TokenSplit
    test: TokenSplit
    label_sets: Mapping[str, Ragged]
    label_texts: Mapping[str, tuple[str, ...]]
    pad_id: int
    max_source_length: int
    chance: Score
    fingerprint: str
    also: tuple[str, ...] = ()
    max_target_length: int = 20

    @property
    def styles(self) -> tuple[str, ...]:
        """Label styles that a trial may use."""
        return tuple(self.train.targets)


def default_cache_dir() -> Path:
    """Return the folder for token files: `$ADEPT_TUNE_CACHE`, or ~/.cache/adept_tune."""
    return Path(os.environ.get("ADEPT_TUNE_CACHE") or "~/.cache/adept_tune").expanduser()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of a fast tokenizer: equal exactly if it turns every text into the same ids.

    Raises:
        TaskError: The tokenizer is not a fast one, so what it does is not in one file.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TaskError(f"tokenizer {type(tokenizer).__name__} has no tokenizer.json; give one that has")
    state = json.loads(backend.to_str())
    # Left there by the last call, and set anew by each; they are not the tokenizer's own.
    state.pop("truncation", None)
    state.pop("padding", None)
    state["special"] = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def load_task_data(task: Task, splits: Splits, tokenizer: Any, tokenizer_fingerprint: str, cache_dir: Path) -> TaskData:
    """Return a task's rows as token ids, from the cache folder if they were made before.

    Args:
        task: Whose rows.
        splits: Its rows, from `rows.load_splits`.
        tokenizer: A fast transformers tokenizer; called only if the cache has no sound file.
        tokenizer_fingerprint: From `tokenizer_fingerprint`.
        cache_dir: Made if absent. A damaged file in it is replaced.

    Raises:
        TaskError: A row does not fit the task, the tokenizer cannot write the labels in any style or has no
            end-of-sequence token, or the folder cannot be written.
    """
    texts = {split: _texts(task, splits[split].rows(), split) for split in SPLITS}
    fingerprint = _fingerprint(task, texts, tokenizer_fingerprint)
    path = cache_dir / "tokens" / f"{task.name}-{fingerprint[:32]}.safetensors"
    arrays = _read(path, fingerprint)
    if arrays is None:
        arrays = _tokenise(task, texts, tokenizer)
        _write(path, arrays, fingerprint)
    return _assemble(task, arrays, fingerprint)


def answered(task: Task, rows: Sequence[Row], sources: Ragged, tokenizer: Any) -> TokenSplit:
    """Return rows that carry their answers as a split to be scored.

    Args:
        task: Whose rows.
        rows: Mappings with all columns that the task reads.
        sources: Their source texts as token ids.
        tokenizer: A fast transformers tokenizer.

    Raises:
        TaskError: A row does not fit the task.
    """
    texts = _texts(task, rows, "rows")
    targets, references = _open_answers(task, texts, tokenizer) if task.is_open else (None, None)
    return TokenSplit(
        sources,
        {} if targets is None else dict.fromkeys(_OPEN_STYLES, targets),
        np.array(texts.labels or [0] * len(rows), dtype=np.int32),
        references,
        np.array(texts.groups, dtype=np.int32) if texts.groups else None,
    )


def pad(
    ragged: Ragged, indices: Sequence[int] | NDArray[np.integer[Any]], pad_id: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Stack some rows, filled up on the right to the longest of them.

    Args:
        ragged: Where the rows lie.
        indices: Which, in this order; repeats are allowed.
        pad_id: What to fill with.

    Returns:
        Ids and mask (True where there is a token), each `(len(indices), longest)`.
    """
    places = np.asarray(indices, dtype=np.int64)
    lengths = ragged.lengths[places]
    columns = np.arange(lengths.max(initial=0), dtype=np.int64)
    mask = columns < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = ragged.values[(ragged.offsets[:-1][places][:, None] + columns)[mask]]
    return ids, mask


# --- making ---

# An open answer has no style; it is found under both, so that a trial's setting is of no effect.
_OPEN_STYLES = ("digits", "words")

_Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Texts:
    """A split before it is tokenised, a row an entry; `answers` and `references` of open answers, else `labels`."""

    sources: list[str]
    labels: list[int]
    answers: list[str]
    references: list[tuple[str, ...]]
    groups: list[int]

    def hashed(self) -> list[Any]:
        """What the token ids depend on."""
        whole = [self.sources, self.labels, self.answers, self.references, self.groups]
        return whole[:2] if not any(whole[2:]) else whole


def _texts(task: Task, rows: Iterable[Row], split: str) -> _Texts:
    """Source texts and answers of a split; in training, a row may be taken once for each of its answers."""
    texts = _Texts([], [], [], [], [])
    numbers: dict[Any, int] = {}
    for index, row in enumerate(rows):
        source = task.source(row, split, index)
        if task.group is not None:
            texts.groups.append(numbers.setdefault(task.group_of(row, split, index), len(numbers)))
        if not task.is_open:
            texts.sources.append(source)
            texts.labels.append(task.label_index(row, split, index))
            continue
        answers = task.answers_of(row, split, index)
        references = task.references_of(row, answers, split, index)
        for answer in answers if task.every_answer and split == "train" else answers[:1]:
            texts.sources.append(source)
            texts.answers.append(answer)
            texts.references.append(references)
    return texts


def _fingerprint(task: Task, texts: Mapping[str, _Texts], tokenizer: str) -> str:
    """Hash of all that the token ids depend on."""
    head: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "task": task.name,
        "metric": task.metric,
        "template": task.template,
        "label_sets": {style: list(labels) for style, labels in task.label_sets.items()},
        "max_source_length": task.max_source_length,
        "tokenizer": tokenizer,
    }
    if task.is_open:
        head |= {"max_target_length": task.max_target_length, "as_decoded": task.references_as_decoded}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for split in SPLITS:
        digest.update(json.dumps([split, *texts[split].hashed()]).encode())
    return digest.hexdigest()


def _tokenise(task: Task, texts: Mapping[str, _Texts], tokenizer: Any) -> _Arrays:
    """All arrays of a task by name."""
    if tokenizer.eos_token_id is None:
        raise TaskError(
            f"task {task.name}: tokenizer {type(tokenizer).__name__} has no end-of-sequence token, "
            "which ends every answer; give a model whose tokenizer has one"
        )
    # A model that was never trained on batches has no padding token; any id does, since it is masked.
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    label_ids = {} if task.is_open else _label_ids(task, tokenizer)
    arrays: _Arrays = {"pad_id": np.array([pad_id], dtype=np.int32)}
    for style, ids in label_ids.items():
        _put(arrays, f"label_sets.{style}", Ragged.from_lists(ids))
    for split, found in texts.items():
        # Truncation leaves room for the end-of-sequence token wherever the tokenizer adds one.
        encoded = tokenizer(
            found.sources,
            truncation=True,
            max_length=task.max_source_length,
            padding=False,
            return_attention_mask=False,
        )
        _put(arrays, f"{split}.sources", Ragged.from_lists(encoded["input_ids"]))
        for style, ids in label_ids.items():
            _put(arrays, f"{split}.targets.{style}", Ragged.from_lists(ids[label] for label in found.labels))
        arrays[f"{split}.labels"] = np.array(found.labels or [0] * len(found.sources), dtype=np.int32)
        if found.groups:
            arrays[f"{split}.groups"] = np.array(found.groups, dtype=np.int32)
        if task.is_open:
            targets, references = _open_answers(task, found, tokenizer)
            _put(arrays, f"{split}.targets.open", targets)
            if split != "train":  # training scores nothing
                arrays[f"{split}.references"] = np.frombuffer(json.dumps(references).encode(), dtype=np.uint8)
    return arrays


def _open_answers(task: Task, texts: _Texts, tokenizer: Any) -> tuple[Ragged, tuple[tuple[str, ...], ...]]:
    """What each row is trained on, and what its answer is scored against."""
    targets = _answer_ids(task, texts.answers, tokenizer)
    references = texts.references
    if task.references_as_decoded:
        references = [(tokenizer.decode(ids, skip_special_tokens=True),) for ids in targets]
    return Ragged.from_lists(targets), tuple(references)


def _answer_ids(task: Task, answers: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of open answers, cut to the longest that is allowed, the end-of-sequence token last.

    Raises:
        TaskError: Answers are programs and the tokenizer cannot write them.
    """
    plain = tokenizer(list(answers), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    if task.runs_code:
        changed = sum(
            tokenizer.decode(ids, skip_special_tokens=True).strip() != text.strip()
            for ids, text in zip(plain, answers, strict=True)
        )
        if changed > len(answers) / 10:
            raise TaskError(
                f"task {task.name}: tokenizer {type(tokenizer).__name__} cannot write programs: {changed:,} of "
                f"{len(answers):,} read back changed, without their line breaks for instance; give a model of code"
            )
    return [[*ids[: task.max_target_length - 1], tokenizer.eos_token_id] for ids in plain]


def _label_ids(task: Task, tokenizer: Any) -> dict[str, list[list[int]]]:
    """Token ids of each label of the usable styles, the end-of-sequence token last.

    A label that does not come back from its own tokens (an unknown word, say) could never be given as answer.
    """
    usable = {}
    for style, texts in task.label_sets.items():
        # Added here rather than by the tokenizer: some add none, some add a token in front as well.
        plain = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        back = tuple(tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in plain)
        if back == tuple(texts):
            usable[style] = [[*ids, tokenizer.eos_token_id] for ids in plain]
        else:
            _log.warning("task %s: label style %s reads back as %s, so it is left out", task.name, style, back)
    if not usable:
        raise TaskError(
            f"task {task.name}: tokenizer {type(tokenizer).__name__} cannot write the labels "
            f"{', '.join(str(texts) for texts in task.label_sets.values())}: they read back changed; "
            "give another model"
        )
    return usable


def _put(arrays: _Arrays, name: str, ragged: Ragged) -> None:
    arrays[f"{name}.values"], arrays[f"{name}.offsets"] = ragged.values, ragged.offsets


def _assemble(task: Task, arrays: _Arrays, fingerprint: str) -> TaskData:
    """The arrays in the shape that others see."""
    styles = [style for style in task.label_sets if f"label_sets.{style}.values" in arrays]

    def ragged(name: str) -> Ragged:
        return Ragged(arrays[f"{name}.values"], arrays[f"{name}.offsets"])

    def split(name: str) -> TokenSplit:
        targets = {style: ragged(f"{name}.targets.{style}") for style in styles}
        references = None
        if task.is_open:
            targets = dict.fromkeys(_OPEN_STYLES, ragged(f"{name}.targets.open"))
            if name != "train":
                references = tuple(tuple(texts) for texts in json.loads(arrays[f"{name}.references"].tobytes()))
        return TokenSplit(
            ragged(f"{name}.sources"), targets, arrays[f"{name}.labels"], references, arrays.get(f"{name}.groups")
        )

    validation = split("validation")
    return TaskData(
        task=task.name,
        metric=task.metric,
        train=split("train"),
        validation=validation,
        test=split("test"),
        label_sets={style: ragged(f"label_sets.{style}") for style in styles},
        label_texts={style: tuple(task.label_sets[style]) for style in styles},
        pad_id=int(arrays["pad_id"][0]),
        max_source_length=task.max_source_length,
        chance=_chance(task, validation),
        fingerprint=fingerprint,
        also=task.also,
        max_target_length=task.max_target_length,
    )


def _chance(task: Task, split: TokenSplit) -> Score:
    """Score of the best constant answer."""
    if task.metric in METRICS:
        return chance(task.metric, split.labels.tolist(), None if split.groups is None else split.groups.tolist())
    texts = next(iter(task.label_sets.values()), ())
    return chance_of_texts(task.metric, split.references or [(texts[label],) for label in split.labels])


# --- keeping ---


_SEAL = "adept_tune"  # one entry, as safetensors writes several in no fixed order


def _seal(arrays: _Arrays, fingerprint: str) -> str:
    """Hash of names, kinds and contents: safetensors itself notices a short file, not a changed byte."""
    digest = hashlib.sha256(fingerprint.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: Path, fingerprint: str) -> _Arrays | None:
    """The arrays in a file, or None when there is no sound one."""
    if not path.exists():
        return None
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            seal = (file.metadata() or {}).get(_SEAL)
            arrays: _Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as exc:  # safetensors has errors of its own besides OSError and ValueError
        _log.warning("%s is damaged (%s) and is made again", path, exc)
        return None
    if seal != _seal(arrays, fingerprint):
        _log.warning("%s is damaged (its contents are not what was written) and is made again", path)
        return None
    return arrays


def _write(path: Path, arrays: _Arrays, fingerprint: str) -> None:
    """Written aside and renamed: a reader, or another process making the same file, never sees half of it."""
    from safetensors.numpy import save

    blob = save(arrays, metadata={_SEAL: _seal(arrays, fingerprint)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, and not `tempfile`, whose files no other user of a shared cache could read.
        aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.part")
        try:
            aside.write_bytes(blob)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as exc:
        raise TaskError(
            f"cannot write the token cache {path} ({exc.strerror or exc}); "
            "name a folder that can be written in the environment variable ADEPT_TUNE_CACHE"
        ) from exc
