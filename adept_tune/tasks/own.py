"""A user's own task: one YAML file that says where its rows are and how they are read."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from adept_tune.errors import TaskError
from adept_tune.tasks.reading import SUFFIXES
from adept_tune.tasks.task import Task, placeholders

KEYS = {"rows", "columns", "template", "label_column", "labels", "metric", "max_source_length"}
NEEDED = ("rows", "columns", "template", "labels")

_METRICS = ("accuracy", "matthews", "f1")

# The splits that there are files of -> the rule that makes three of them.
_RULE = {
    ("train",): "split_train",
    ("test", "train"): "hold_out_train",
    ("train", "validation"): "halve_validation",
    ("test", "train", "validation"): "official",
}


def is_task_file(name: str) -> bool:
    """Whether a task is given as a file."""
    return name.endswith((".yaml", ".yml"))


def read_task_file(path: Path) -> Task:
    """Read a task from its file; it is called as the file is.

    Raises:
        TaskError: The file is not there or not YAML, or says something that cannot be; all of it is told at once.
    """
    content = _content(path)
    faults = _faults_of_keys(content)
    columns, template = content.get("columns"), content.get("template")
    if not _is_list_of_texts(columns):
        faults.append(f"columns: {columns!r}; give a list of the text columns")
    if not isinstance(template, str) or (fields := _placeholders(template)) is None:
        faults.append(
            f"template: {template!r}; give a text with one {{column}} a text column, "
            "whose name has no dots or brackets and is no number"
        )
    elif _is_list_of_texts(columns) and fields != columns:
        faults.append(f"template: {template!r} has {fields}, columns are {columns}; make them equal")
    labels: dict[str, str] = content.get("labels") or {}
    if not _is_map_of_texts(labels) or len(labels) < 2 or len(set(labels.values())) < len(labels):
        faults.append(f"labels: {labels!r}; give two or more values of the label column, each with a text of its own")
    metric = content.get("metric", "accuracy")
    if metric not in _METRICS:
        faults.append(f"metric: {metric!r}; choose one of {', '.join(_METRICS)}")
    longest = content.get("max_source_length", "256")
    if not (isinstance(longest, str) and longest.isascii() and longest.isdigit() and int(longest) >= 2):
        faults.append(f"max_source_length: {longest!r}; give a whole number of at least 2")
    files, rule = _files(path, content.get("rows"), faults)
    if faults:
        raise TaskError(f"task file {path}:\n  " + "\n  ".join(faults))
    return Task(
        name=path.stem,
        file=str(path.resolve()),
        rows=files,
        columns=tuple(content["columns"]),
        template=content["template"],
        label_sets={"digits": tuple(str(number) for number in range(len(labels))), "words": tuple(labels.values())},
        label_column=content.get("label_column", "label"),
        label_values=tuple(labels),
        split_rule=rule,
        metric=metric,
        max_source_length=int(longest),
    )


def _content(path: Path) -> dict[str, Any]:
    """The file's mapping, in which every scalar is a text: "no" is a word and 1 a value of a column."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=yaml.BaseLoader)  # makes texts, lists and maps only
    except OSError as error:
        raise TaskError(f"task file {path}: cannot be read ({error.strerror}); give the path of a .yaml file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise TaskError(f"task file {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not content:
        raise TaskError(f"task file {path}: holds no keys; it needs {', '.join(NEEDED)}")
    return content


def _faults_of_keys(content: Mapping[str, Any]) -> list[str]:
    """Keys that nothing knows; those that are missing are told with what each must hold."""
    faults = []
    for key in content:
        if key not in KEYS:
            close = get_close_matches(str(key), KEYS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            faults.append(f"{key}: unknown key{hint}; allowed: {', '.join(sorted(KEYS))}")
    if not isinstance(content.get("label_column", ""), str):
        faults.append(f"label_column: {content['label_column']!r}; give the name of a column")
    return faults


def _files(path: Path, rows: Any, faults: list[str]) -> tuple[dict[str, str], str]:
    """Official split -> file, and the split rule; a single file is one of training rows."""
    named = {"train": rows} if isinstance(rows, str) else rows
    if not _is_map_of_texts(named) or tuple(sorted(named)) not in _RULE:
        faults.append(
            f"rows: {rows!r}; give a file, or files of train and validation, of train and test, or of all three"
        )
        return {}, ""
    found = {split: (path.parent / name).resolve() for split, name in named.items()}
    for split, file in found.items():
        if file.suffix.removeprefix(".") not in SUFFIXES:
            faults.append(f"rows: {split}: {file.name} is none of {', '.join(SUFFIXES)}")
        elif not file.is_file():
            faults.append(f"rows: {split}: {file}: no such file")
    rule = _RULE[tuple(sorted(named))]
    if rule == "hold_out_train":  # which tests on the official validation rows
        found["validation"] = found.pop("test")
    return {split: str(file) for split, file in found.items()}, rule


def _placeholders(template: str) -> list[str] | None:
    try:
        names = placeholders(template)
        template.format_map(dict.fromkeys(names, ""))
    except (ValueError, LookupError, AttributeError):  # what a name or a format of it may lead to
        return None
    return names


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _is_map_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) and text.strip() for text in value.values())
