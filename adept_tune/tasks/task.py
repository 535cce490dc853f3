"""What a task is: how a row becomes text, and which answers there are.

Pure: nothing here reads a file or asks the Hub (see `rows`), and nothing here knows tokens (see `tokens`).
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adept_tune.errors import TaskError
from adept_tune.tasks.metrics import METRICS

SPLITS = ("train", "validation", "test")

# Rule -> the official splits it starts from. What each rule does with them is in `rows`.
SPLIT_RULES: dict[str, tuple[str, ...]] = {
    "halve_validation": ("train", "validation"),
    "hold_out_train": ("train", "validation"),
    "official": SPLITS,
    "split_train": ("train",),
}


@dataclass(frozen=True)
class HubDataset:
    """Where a task's rows lie on the Hub.

    Args:
        path: Repository, "nyu-mll/glue".
        config: Configuration of that repository, "cola"; None for its only one.
        splits: Our split name -> the Hub's.
    """

    path: str
    config: str | None
    splits: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.path} ({self.config})" if self.config else self.path


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task whose answer is one text out of a fixed set.

    A task with open answers would have no label sets and a method giving the texts of a row that are right;
    what trains and decodes sees only tokenised sources and targets (`tokens.TaskData`) and would not change.

    Args:
        name: As given to --task; also the name of the folder under --data-dir.
        columns: Text columns, in the order of the template.
        template: Source text with one `{column}` a text column.
        label_sets: Style ("digits", "words") -> the text of each label, by label number.
        split_rule: A key of `SPLIT_RULES`.
        metric: A key of `metrics.METRICS`.
        hub: Where the rows lie on the Hub; None if they are not there.
        rows: Official split -> the file that holds it, for a task of the user's own; None otherwise.
        file: The file that describes such a task; None otherwise.
        packaged: Folder inside the package that holds the official splits as files; None if they do not ship.
        model: Folder inside the package that holds the model the task was made for; None if there is none.
        label_column: Column with the label, an int or a string of digits.
        label_values: What that column holds instead, by label number; None where it holds the number.
        max_train_rows: Train rows that are used, the first after the split rule; None uses all.
        max_source_length: In tokens, the end-of-sequence token included.
        num_rows: Expected rows of train, validation and test after the split rule; None if unknown.
        plateau_steps: Steps after which published runs left the chance level; None if unknown.
        published_steps: Length of the published runs in steps; None if unknown.
        demonstration: The task shows the product and says nothing about methods.

    Raises:
        TaskError: The fields contradict each other.
    """

    name: str
    columns: tuple[str, ...]
    template: str
    label_sets: Mapping[str, tuple[str, ...]]
    split_rule: str
    metric: str
    hub: HubDataset | None = None
    rows: Mapping[str, str] | None = None
    file: str | None = None
    packaged: str | None = None
    model: str | None = None
    label_column: str = "label"
    label_values: tuple[str, ...] | None = None
    max_train_rows: int | None = None
    max_source_length: int = 256
    num_rows: Mapping[str, int] | None = None
    plateau_steps: int | None = None
    published_steps: int | None = None
    demonstration: bool = False

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise TaskError(f"task {self.name!r} in the table of tasks: {'; '.join(faults)}")

    @property
    def reference(self) -> str:
        """What finds the task again: the file that describes it, or its name in the table."""
        return self.file or self.name

    @property
    def num_labels(self) -> int:
        """Size of the label set."""
        return len(next(iter(self.label_sets.values())))

    @property
    def official_splits(self) -> tuple[str, ...]:
        """The splits that must be read before the split rule is applied."""
        return SPLIT_RULES[self.split_rule]

    def labels(self, style: str) -> tuple[str, ...]:
        """Return the label texts of a style, by label number.

        Raises:
            TaskError: The task has no such style.
        """
        if style not in self.label_sets:
            raise TaskError(f"task {self.name}: label style {style!r}; allowed: {', '.join(self.label_sets)}")
        return self.label_sets[style]

    def source(self, row: Mapping[str, Any], split: str = "a split", index: int = 0) -> str:
        """Return the source text of a row: the template filled in, words one space apart, no prefix.

        Args:
            row: Column name -> value.
            split: Where the row comes from; only for the message of an error.
            index: Number of the row there, the first being 0; only for the message of an error.

        Raises:
            TaskError: A text column is missing, not a string, or empty.

        Source: facts/adept.md section 3 (the published runs add no task name).
        """
        for column in self.columns:
            text = self._value(row, column, split, index)
            if not isinstance(text, str) or not text.strip():
                raise TaskError(
                    f"{self._place(split, index)}: field {column!r} is {text!r}; "
                    "allowed: a string that is not blank; mend or remove the row"
                )
        return " ".join(self.template.format_map({name: row[name] for name in self.columns}).split())

    def label_index(self, row: Mapping[str, Any], split: str = "a split", index: int = 0) -> int:
        """Return the label number of a row.

        Files give it as an int, a string of digits (csv), or a whole float (a column of ints with a hole), or as one
        of the task's `label_values`.

        Args:
            row: Column name -> value.
            split: See `source`.
            index: See `source`.

        Raises:
            TaskError: The label is missing, or outside the label set.
        """
        value = self._value(row, self.label_column, split, index)
        allowed = self.label_values or tuple(str(number) for number in range(self.num_labels))
        worded = self.label_values is not None and isinstance(value, str)
        number = None if worded else _whole_number(value)
        text = value.strip() if worded else "" if number is None else str(number)  # the number of "01" is 1
        if text not in allowed:
            raise TaskError(
                f"{self._place(split, index)}: field {self.label_column!r} is {value!r}; "
                f"allowed: {', '.join(allowed)}; mend or remove the row"
            )
        return allowed.index(text)

    def _value(self, row: Mapping[str, Any], column: str, split: str, index: int) -> Any:
        """One field of a row, which must have it."""
        if column not in row:
            raise TaskError(
                f"{self._place(split, index)}: field {column!r} is missing; "
                f"the row has {', '.join(row) or 'no fields'}; add it"
            )
        return row[column]

    def _place(self, split: str, index: int) -> str:
        return f"task {self.name}: {split}: row {index} (the first is 0)"


def _whole_number(value: Any) -> int | None:
    """Read an int, a whole float or a string of digits; None for anything else, NaN included."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None  # NaN and infinity are not
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None


def placeholders(template: str) -> list[str]:
    """Columns that a template names, in its order.

    Raises:
        ValueError: Its braces do not match.
    """
    return [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]


def _faults(task: Task) -> list[str]:
    """All that is wrong with an entry of the table of tasks."""
    faults = []
    fields = placeholders(task.template)
    if not task.columns or tuple(fields) != task.columns:
        faults.append(f"template has the columns {fields}, columns are {list(task.columns)}; make them equal")
    if task.split_rule not in SPLIT_RULES:
        faults.append(f"split_rule is {task.split_rule!r}; allowed: {', '.join(SPLIT_RULES)}")
    elif task.hub is not None and (missing := set(SPLIT_RULES[task.split_rule]) - set(task.hub.splits)):
        faults.append(f"hub.splits lacks {', '.join(sorted(missing))}, which rule {task.split_rule} needs")
    if task.metric not in METRICS:
        faults.append(f"metric is {task.metric!r}; allowed: {', '.join(METRICS)}")
    if not task.label_sets:
        faults.append("label_sets is empty; give at least one style")
    if task.label_values is not None and {len(task.label_values)} != {len(t) for t in task.label_sets.values()}:
        faults.append(f"label_values are {len(task.label_values)}; give one a label")
    if task.max_train_rows is not None and task.max_train_rows < 1:
        faults.append(f"max_train_rows is {task.max_train_rows}; it must be at least 1")
    if len({len(texts) for texts in task.label_sets.values()}) > 1:
        faults.append("the styles of label_sets differ in their number of labels")
    for style, texts in task.label_sets.items():
        if len(texts) < 2 or len(set(texts)) < len(texts) or any(not t or t != t.strip() for t in texts):
            faults.append(f"label_sets[{style!r}] is {texts!r}; give two or more different texts without outer spaces")
    if task.max_source_length < 2:
        faults.append(f"max_source_length is {task.max_source_length}; it must be at least 2")
    return faults
