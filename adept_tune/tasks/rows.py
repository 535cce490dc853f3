"""A task's rows, and how the official splits become train, validation and test."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from adept_tune.errors import TaskError
from adept_tune.tasks.reading import find_files, read_file, read_hub
from adept_tune.tasks.task import SPLITS, Row, Task

SPLIT_SEED = 42
HOLD_OUT_ROWS = 1_000


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Args:
        split: "train", "validation" or "test".
        columns: Column name -> its values; all of one length.
    """

    split: str
    columns: Mapping[str, list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def row(self, index: int) -> dict[str, Any]:
        """Return one row, the first being 0."""
        return {name: values[index] for name, values in self.columns.items()}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row, in order."""
        return (self.row(index) for index in range(len(self)))

    def take(self, split: str, indices: Sequence[int]) -> "Rows":
        """Return the given rows, in the given order, as a split of their own."""
        return Rows(split, {name: [values[i] for i in indices] for name, values in self.columns.items()})


@dataclass(frozen=True)
class Splits:
    """What a task is trained, chosen and tested on; no row is in two of them.

    Args:
        train: Rows for training.
        validation: Rows for choosing.
        test: Rows for one figure at the end.
        origin: The folder, or the data set of the Hub, they came from.
    """

    train: Rows
    validation: Rows
    test: Rows
    origin: str

    def __getitem__(self, split: str) -> Rows:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


def load_splits(task: Task, data_dir: Path | None = None) -> Splits:
    """Read a task's rows, check every one of them, and apply the split rule.

    Args:
        task: Whose rows.
        data_dir: Folder with `TASK/SPLIT.{jsonl,csv,tsv,parquet}` in the Hub's columns. None takes the rows
            of the task's own file, those that ship with the package, or else the Hub's.

    Returns:
        The splits. A number of rows other than the published one is a warning.

    Raises:
        TaskError: A folder, file or column is missing, a file cannot be read, a split is empty, or a row
            does not fit the task.
        HubError: The Hub is needed and cannot be reached, or does not have the data set.
    """
    if data_dir is not None:
        official, origin = _from_folder(task, data_dir / task.name), str(data_dir / task.name)
    elif task.rows is not None:
        official, origin = _from_files(task, task.rows), task.reference
    elif task.packaged is not None:
        folder = Path(__file__).parents[1] / task.packaged
        official, origin = _from_folder(task, folder), str(folder)
    elif task.hub is not None:
        official, origin = _from_hub(task), str(task.hub)
    else:
        raise TaskError(f"task {task.name}: its rows are neither in the package nor on the Hub; give --data-dir DIR")
    splits = _RULES[task.split_rule](task, official, origin)
    if task.max_train_rows is not None and len(splits.train) > task.max_train_rows:
        splits = replace(splits, train=splits.train.take("train", range(task.max_train_rows)))
    _warn_of_counts(task, splits)
    if task.expand is None:
        return splits
    train, validation, test = (_expanded(task.expand, splits[split]) for split in SPLITS)
    return Splits(train, validation, test, origin)


def _expanded(expand: Callable[[Row], Sequence[Row]], rows: Rows) -> Rows:
    """Each row's place taken by those that it expands to."""
    expanded = [part for row in rows.rows() for part in expand(row)]
    return Rows(rows.split, {name: [row[name] for row in expanded] for name in rows.columns})


def _from_folder(task: Task, folder: Path) -> dict[str, Rows]:
    # All names first, so that a missing file is told before a large one is read.
    paths = find_files(task, folder)
    return {split: _checked(task, split, read_file(task, path), str(path)) for split, path in paths.items()}


def _from_files(task: Task, files: Mapping[str, str]) -> dict[str, Rows]:
    return {split: _checked(task, split, read_file(task, Path(path)), path) for split, path in files.items()}


def _from_hub(task: Task) -> dict[str, Rows]:
    assert task.hub is not None
    read = read_hub(task, task.hub)
    return {split: _checked(task, split, columns, str(task.hub)) for split, columns in read.items()}


def _checked(task: Task, split: str, columns: Mapping[str, list[Any]], place: str) -> Rows:
    """The columns a task needs, every row of which fits it."""
    missing = [name for name in task.needed_columns if name not in columns]
    if missing:
        raise TaskError(
            f"task {task.name}: split {split} in {place} has no column {', '.join(missing)}; "
            f"it has {', '.join(columns) or 'none'}; rename one or add it"
        )
    rows = Rows(split, {name: columns[name] for name in task.needed_columns})
    if len(rows) == 0:
        raise TaskError(f"task {task.name}: split {split} in {place} has no rows; give at least one")
    # Now, while a row still has the number it has in the file.
    where = f"{split} in {place}"
    for index in range(len(rows)):
        row = rows.row(index)
        task.source(row, where, index)
        if task.is_open:
            task.references_of(row, task.answers_of(row, where, index), where, index)
        else:
            task.label_index(row, where, index)
        if task.group is not None:
            task.group_of(row, where, index)
    return rows


def _halve_validation(task: Task, official: Mapping[str, Rows], origin: str) -> Splits:
    """Shuffle the official validation rows; the first half validates, the rest tests (one more if odd).

    Source: the published code of DePT and ADePT (src/tasks.py), for tasks with fewer than 10,000 training rows.
    """
    rows = official["validation"]
    if len(rows) < 2:
        raise TaskError(
            f"task {task.name}: validation of {origin} has {len(rows)} row; "
            "give at least 2, as half of them become the test rows"
        )
    order, half = _shuffled(len(rows)), len(rows) // 2
    if task.group is not None and task.whole_groups:
        order, half = _whole_groups(task, rows, order)
    return Splits(official["train"], rows.take("validation", order[:half]), rows.take("test", order[half:]), origin)


def _whole_groups(task: Task, rows: Rows, order: Sequence[int]) -> tuple[list[int], int]:
    """Bring the rows of a group together, in the order of the first of each; halve where a group ends. Ours."""
    groups: dict[Hashable, list[int]] = {}
    for index in order:
        groups.setdefault(task.group_of(rows.row(index), rows.split, index), []).append(index)
    if len(groups) < 2:
        raise TaskError(f"task {task.name}: all rows of {rows.split} belong together; give at least two groups of rows")
    together = [index for group in groups.values() for index in group]
    ends = list(accumulate(len(group) for group in groups.values()))[:-1]
    return together, min(ends, key=lambda end: abs(2 * end - len(rows)))


def _hold_out_train(task: Task, official: Mapping[str, Rows], origin: str) -> Splits:
    """Shuffle the official train rows; the first 1,000 validate, the rest train; official validation tests.

    Of fewer than 10,000 rows only a tenth is held out, so that a small extract still has rows to train on.

    Source: the published code of DePT and ADePT (src/tasks.py), for large tasks; the tenth is ours.
    """
    rows = official["train"]
    if len(rows) < 10:
        raise TaskError(
            f"task {task.name}: train of {origin} has {len(rows)} rows; "
            "give at least 10, as a tenth of them is held out for validation"
        )
    order = _shuffled(len(rows))
    held = min(HOLD_OUT_ROWS, len(rows) // 10)
    return Splits(
        rows.take("train", order[held:]),
        rows.take("validation", order[:held]),
        Rows("test", official["validation"].columns),
        origin,
    )


def _split_train(task: Task, official: Mapping[str, Rows], origin: str) -> Splits:
    """Shuffle the only rows; a fifth validates, a fifth tests, the rest train. Ours."""
    rows = official["train"]
    if len(rows) < 10:
        raise TaskError(f"task {task.name}: {origin} has {len(rows)} rows; give at least 10, to be split in three")
    order, fifth = _shuffled(len(rows)), len(rows) // 5
    return Splits(
        rows.take("train", order[2 * fifth :]),
        rows.take("validation", order[:fifth]),
        rows.take("test", order[fifth : 2 * fifth]),
        origin,
    )


def _official(task: Task, official: Mapping[str, Rows], origin: str) -> Splits:
    """Take the splits as they are."""
    return Splits(official["train"], official["validation"], official["test"], origin)


_RULES: dict[str, Callable[[Task, Mapping[str, Rows], str], Splits]] = {
    "halve_validation": _halve_validation,
    "hold_out_train": _hold_out_train,
    "official": _official,
    "split_train": _split_train,
}


def _shuffled(num_rows: int) -> list[int]:
    """The published order: torch's permutation with seed 42, from a generator of its own."""
    import torch

    order: list[int] = torch.randperm(num_rows, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    return order


def _warn_of_counts(task: Task, splits: Splits) -> None:
    """Say when the rows are not those of the published runs."""
    if task.num_rows is None:
        return
    found = {split: len(splits[split]) for split in task.num_rows}
    if found != dict(task.num_rows):
        given, expected = (", ".join(f"{n[s]:,} {s}" for s in found) for n in (found, task.num_rows))
        warnings.warn(
            f"task {task.name}: {splits.origin} gives {given} rows; the published runs had {expected}, "
            "so scores cannot be compared with theirs",
            stacklevel=3,
        )
