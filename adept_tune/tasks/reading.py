"""Columns of rows from files and from the Hub, read through `datasets`.

Columns are plain lists by name. What they must hold, and which rows go where, is in `rows`.
"""

import csv
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from adept_tune import hub
from adept_tune.errors import HubError, TaskError
from adept_tune.tasks.task import HubDataset, Task

SUFFIXES = ("jsonl", "csv", "tsv", "parquet")

Columns = dict[str, list[Any]]


def find_files(task: Task, folder: Path) -> dict[str, Path]:
    """Return the file of each official split of a task.

    Args:
        task: Whose splits.
        folder: Where `SPLIT.{jsonl,csv,tsv,parquet}` lie.

    Raises:
        TaskError: The folder or a file is missing, or a split has several.
    """
    if not folder.is_dir():
        names = " and ".join(f"{split}.jsonl" for split in task.official_splits)
        raise TaskError(
            f"task {task.name}: folder {folder} does not exist; put {names} there (or csv, tsv, parquet), "
            f"in the Hub's columns{_one_level_up(task, folder)}"
        )
    return {split: _find_file(task, folder, split) for split in task.official_splits}


def read_file(task: Task, path: Path) -> Columns:
    """Return all columns of one file; csv and tsv give every cell as a string.

    Raises:
        TaskError: The file is empty or cannot be read.
    """
    suffix = path.suffix.removeprefix(".")
    # Not the Hub's cache folder: it may be read-only, and it goes by time stamps. Nor `load_dataset`, which
    # sends a request to count downloads even for a local file.
    with quiet_datasets(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        try:
            return _READERS[suffix](path, cache)
        except Exception as exc:
            if _has_no_rows(path):
                raise TaskError(f"task {task.name}: {path} has no rows; give at least one") from exc
            cause = exc.__cause__ or exc  # `datasets` wraps what the parser said in an error that says nothing
            raise TaskError(
                f"task {task.name}: {path} cannot be read as {suffix} "
                f"({type(cause).__name__}: {' '.join(str(cause).split())}); mend or replace it"
            ) from exc


def read_hub(task: Task, where: HubDataset) -> dict[str, Columns]:
    """Return the columns of each official split, from the Hub or its local cache.

    Raises:
        HubError: The Hub cannot be reached and the rows are not cached, or it does not have them.
    """
    wanted = f"data set {where}"
    files = " and ".join(f"DIR/{task.name}/{split}.jsonl" for split in task.official_splits)
    remedy = f"--data-dir DIR with {files}"
    with hub.access(wanted, remedy), quiet_datasets():
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        try:
            loaded = load_dataset(where.path, where.config)
        except (
            ValueError,
            DatasetsError,
        ) as exc:  # a configuration that is not cached, or not in the data set
            raise hub.explain(exc, wanted, remedy) from exc
    columns = {}
    for split in task.official_splits:
        name = where.splits[split]
        if name not in loaded:
            raise HubError(f"{wanted} has no split {name!r}; it has {', '.join(loaded)}; give {remedy}")
        columns[split] = dict(loaded[name].to_dict())
    return columns


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Switch off the bars and log lines of `datasets`: what goes wrong is in our own messages."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    if shown:
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def _one_level_up(task: Task, folder: Path) -> str:
    """A hint for who gave the folder of the task where the folder above it is meant."""
    above = folder.parent
    if not any((above / f"train.{suffix}").exists() for suffix in SUFFIXES):
        return ""
    return f"; {above} itself holds such files, but the folder to give is one that has them in {task.name}/"


def _find_file(task: Task, folder: Path, split: str) -> Path:
    """The one file of a split."""
    names = [f"{split}.{suffix}" for suffix in SUFFIXES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise TaskError(f"task {task.name}: {folder} has no file for split {split}; add one of {', '.join(names)}")
    if len(found) > 1:
        raise TaskError(
            f"task {task.name}: {folder} has {len(found)} files for split {split}: "
            f"{', '.join(path.name for path in found)}; keep one"
        )
    return found[0]


def _read_jsonl(path: Path, cache: str) -> Columns:
    from datasets import Dataset

    return dict(Dataset.from_json(str(path), cache_dir=cache).to_dict())


def _read_parquet(path: Path, cache: str) -> Columns:
    from datasets import Dataset

    return dict(Dataset.from_parquet(str(path), cache_dir=cache).to_dict())


def _read_csv(path: Path, cache: str) -> Columns:
    return _read_delimited(path, cache, ",", csv.QUOTE_MINIMAL)


def _read_tsv(path: Path, cache: str) -> Columns:
    """Quotes are ordinary characters in the tsv files of GLUE; some are unbalanced."""
    return _read_delimited(path, cache, "\t", csv.QUOTE_NONE)


def _read_delimited(path: Path, cache: str, delimiter: str, quoting: Any) -> Columns:
    """Every cell as a string: a sentence "null" or "1999" must not become a hole or a number."""
    from datasets import Dataset, Features, Value

    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=delimiter, quoting=quoting))
    with warnings.catch_warnings():
        # A row longer than the header would silently turn its first cells into row names; without row names
        # its last cells are dropped, with this warning.
        warnings.filterwarnings("error", message="Length of header or names does not match length of data")
        rows = Dataset.from_csv(
            str(path),
            cache_dir=cache,
            features=Features({name: Value("string") for name in header}),
            delimiter=delimiter,
            quoting=quoting,
            index_col=False,
            keep_default_na=False,
        )
    return dict(rows.to_dict())


_READERS: dict[str, Callable[[Path, str], Columns]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}


def _has_no_rows(path: Path) -> bool:
    """Whether reading failed because there is nothing to read."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]  # ships no types

        try:
            return bool(read_metadata(path).num_rows == 0)
        except Exception:  # damaged: not a question of rows
            return False
    header = 0 if path.suffix == ".jsonl" else 1
    with path.open("rb") as file:
        return len(list(islice((line for line in file if line.strip()), header + 1))) <= header
