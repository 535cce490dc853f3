"""What a task is: how a row becomes text, and which answers there are.

Pure: nothing here reads a file or asks the Hub (see `rows`), and nothing here knows tokens (see `tokens`).
"""

import math
import string
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from adept_tune.errors import TaskError
from adept_tune.tasks.metrics import METRICS, TEXT_METRICS

SPLITS = ("train", "validation", "test")

# Rule -> the official splits it starts from. What each rule does with them is in `rows`.
SPLIT_RULES: dict[str, tuple[str, ...]] = {
    "halve_validation": ("train", "validation"),
    "hold_out_train": ("train", "validation"),
    "official": SPLITS,
    "split_train": ("train",),
}


Row = Mapping[str, Any]
Protocol = Literal["ours", "paper"]


class FieldError(ValueError):
    """A field of a row is not what the task needs; the message names it."""


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
    """A task: its answer is one text out of a fixed set, or, with `answers`, any text.

    Args:
        name: As given to --task; also the name of the folder under --data-dir.
        columns: Text columns; in the order of the template where there are no `fields`.
        other_columns: Further columns that `fields` reads.
        answer_columns: Further columns that `answers`, `references` or `group` read.
        may_be_blank: Text columns that hold nothing in some rows.
        template: Source text with one `{column}` a text column, or with the names that `fields` gives.
        fields: Row -> what fills the template, where that is not the columns as they are; raises `FieldError`.
        label_sets: Style ("digits", "words") -> the text of each label, by label number; empty with `answers`.
        answers: Row -> the texts that are right, the first for training; raises `FieldError`.
        references: Row -> what an answer is scored against; None takes `answers`.
        every_answer: A row is trained on once for each of its answers.
        expand: Row -> the rows that take its place after the split; None leaves it as it is.
        references_as_decoded: Answers are scored against the first right text as the tokenizer gives it back, cut to
            `max_target_length`.
        split_rule: A key of `SPLIT_RULES`.
        metric: A key of `metrics.METRICS` or `metrics.TEXT_METRICS`.
        also: Further metrics that are told beside it.
        group: Row -> what it belongs to, such as a question with several answers; errors of figures take its rows
            together.
        whole_groups: The rows of a group stay in one split.
        hub: Where the rows lie on the Hub; None if they are not there.
        rows: Official split -> the file that holds it, for a task of the user's own; None otherwise.
        file: The file that describes such a task; None otherwise.
        packaged: Folder inside the package that holds the official splits as files; None if they do not ship.
        model: Folder inside the package that holds the model the task was made for; None if there is none.
        label_column: Column with the label, an int or a string of digits.
        label_values: What that column holds instead, by label number; None where it holds the number.
        label_step: That column holds a number, and a label stands for each multiple of this from 0.
        max_train_rows: Train rows that are used, the first after the split rule; None uses all.
        max_source_length: In tokens, the end-of-sequence token included.
        max_target_length: The same of an answer, where it can be any text.
        num_rows: Expected rows of splits after the split rule; None if unknown.
        plateau_steps: Steps after which published runs left the chance level; None if unknown.
        published_steps: Length of the published runs in steps; None if unknown.
        paper: Fields that differ where the published protocol is to be followed (`under`).
        protocol: Which protocol this is.
        demonstration: The task shows the product and says nothing about methods.

    Raises:
        TaskError: The fields contradict each other.
    """

    name: str
    columns: tuple[str, ...]
    template: str
    split_rule: str
    metric: str
    other_columns: tuple[str, ...] = ()
    answer_columns: tuple[str, ...] = ()
    may_be_blank: tuple[str, ...] = ()
    fields: Callable[[Row], Mapping[str, str]] | None = None
    label_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    answers: Callable[[Row], Sequence[str]] | None = None
    references: Callable[[Row], Sequence[str]] | None = None
    every_answer: bool = False
    expand: Callable[[Row], Sequence[Row]] | None = None
    references_as_decoded: bool = False
    also: tuple[str, ...] = ()
    group: Callable[[Row], Hashable] | None = None
    whole_groups: bool = True
    hub: HubDataset | None = None
    rows: Mapping[str, str] | None = None
    file: str | None = None
    packaged: str | None = None
    model: str | None = None
    label_column: str = "label"
    label_values: tuple[str, ...] | None = None
    label_step: float | None = None
    max_train_rows: int | None = None
    max_source_length: int = 256
    max_target_length: int = 20
    num_rows: Mapping[str, int] | None = None
    plateau_steps: int | None = None
    published_steps: int | None = None
    paper: Mapping[str, Any] | None = None
    protocol: Protocol = "ours"
    demonstration: bool = False

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise TaskError(f"task {self.name!r} in the table of tasks: {'; '.join(faults)}")

    def under(self, protocol: Protocol) -> "Task":
        """The task as the published code has it, faults included, or as it should be."""
        if protocol == self.protocol or protocol == "ours":
            return self
        return replace(self, **dict(self.paper or {}), protocol=protocol)

    @property
    def reference(self) -> str:
        """What finds the task again: the file that describes it, or its name in the table."""
        return self.file or self.name

    @property
    def is_open(self) -> bool:
        """Whether an answer can be any text."""
        return self.answers is not None

    @property
    def is_plain(self) -> bool:
        """Whether it is all said in values, without functions."""
        return self.fields is None and self.group is None and not self.is_open

    @property
    def reads_one_text(self) -> bool:
        """Whether a plain text is all that a model reads of a row."""
        return len(self.columns) == 1 and self.fields is None

    @property
    def runs_code(self) -> bool:
        """Whether answers are programs that are run to score them."""
        return "pass" in (self.metric, *self.also)

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """All columns that it reads."""
        own = (*self.columns, *self.other_columns, *self.answer_columns)
        return own if self.is_open or self.label_column in own else (*own, self.label_column)

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
        if self.is_open:
            raise TaskError(
                f"task {self.name}: its answers are open, so there are no labels to choose; leave --labels out"
            )
        if style not in self.label_sets:
            raise TaskError(f"task {self.name}: label style {style!r}; allowed: {', '.join(self.label_sets)}")
        return self.label_sets[style]

    def source(self, row: Row, split: str = "a split", index: int = 0) -> str:
        """Return the source text of a row: the template filled in, words one space apart, no prefix.

        Args:
            row: Column name -> value.
            split: Where the row comes from; only for the message of an error.
            index: Number of the row there, the first being 0; only for the message of an error.

        Raises:
            TaskError: A text column is missing, not a string, or empty where it must not be.

        Source: the published code of DePT and ADePT (src/tasks.py), which adds no task name.
        """
        for column in self.columns:
            text = self._value(row, column, split, index)
            if not isinstance(text, str) or not (text.strip() or column in self.may_be_blank):
                raise TaskError(
                    f"{self._place(split, index)}: field {column!r} is {text!r}; "
                    "allowed: a string that is not blank; mend or remove the row"
                )
        filled = row if self.fields is None else self._asked(self.fields, row, split, index)
        names = placeholders(self.template)
        return " ".join(self.template.format_map({name: filled[name] for name in names}).split())

    def answers_of(self, row: Row, split: str = "a split", index: int = 0) -> tuple[str, ...]:
        """Return the texts that are right for a row of a task with open answers.

        Raises:
            TaskError: There is none, or a field is not what the task needs.
        """
        assert self.answers is not None
        texts = tuple(self._asked(self.answers, row, split, index))
        if not texts or any(not text.strip() for text in texts):
            raise TaskError(f"{self._place(split, index)}: no right answer, or a blank one: {list(texts)!r}")
        return texts

    def references_of(
        self, row: Row, answers: tuple[str, ...], split: str = "a split", index: int = 0
    ) -> tuple[str, ...]:
        """Return what the answer to a row of such a task is scored against, given its `answers_of`."""
        if self.references is None:
            return answers
        return tuple(self._asked(self.references, row, split, index))

    def group_of(self, row: Row, split: str = "a split", index: int = 0) -> Hashable:
        """Return what a row belongs to.

        Raises:
            TaskError: A field is not what the task needs.
        """
        assert self.group is not None
        group: Hashable = self._asked(self.group, row, split, index)
        return group

    def label_index(self, row: Row, split: str = "a split", index: int = 0) -> int:
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
        if self.label_step is not None:
            return self._stepped(value, split, index)
        allowed = self.label_values or tuple(str(number) for number in range(self.num_labels))
        if isinstance(value, bool) and self.label_values is not None:  # of a file that has such a type
            value = next((text for text in self.label_values if text.lower() == str(value).lower()), value)
        worded = self.label_values is not None and isinstance(value, str)
        number = None if worded else _whole_number(value)
        text = value.strip() if worded else "" if number is None else str(number)  # the number of "01" is 1
        if text not in allowed:
            raise TaskError(
                f"{self._place(split, index)}: field {self.label_column!r} is {value!r}; "
                f"allowed: {', '.join(allowed)}; mend or remove the row"
            )
        return allowed.index(text)

    def _stepped(self, value: Any, split: str, index: int) -> int:
        """The label that stands for the multiple of `label_step` nearest to a number."""
        assert self.label_step is not None
        largest = self.label_step * (self.num_labels - 1)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not -self.label_step / 2 <= number <= largest + self.label_step / 2:  # NaN neither
            raise TaskError(
                f"{self._place(split, index)}: field {self.label_column!r} is {value!r}; "
                f"allowed: a number from 0 to {largest:g}; mend or remove the row"
            )
        # A number held in few bits is taken for the one that was written: 4.9, not 4.9000001.
        return min(max(round(round(number / self.label_step, 4)), 0), self.num_labels - 1)

    def _asked(self, question: Callable[[Row], Any], row: Row, split: str, index: int) -> Any:
        """What a function of the task says of a row."""
        try:
            return question(row)
        except FieldError as error:
            raise TaskError(f"{self._place(split, index)}: {error}; mend or remove the row") from None

    def _value(self, row: Row, column: str, split: str, index: int) -> Any:
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
    names = placeholders(task.template)
    if not task.columns or (task.fields is None and set(names) != set(task.columns)):
        faults.append(f"template has the columns {names}, columns are {list(task.columns)}; make them equal")
    if task.split_rule not in SPLIT_RULES:
        faults.append(f"split_rule is {task.split_rule!r}; allowed: {', '.join(SPLIT_RULES)}")
    elif task.hub is not None and (missing := set(SPLIT_RULES[task.split_rule]) - set(task.hub.splits)):
        faults.append(f"hub.splits lacks {', '.join(sorted(missing))}, which rule {task.split_rule} needs")
    known = TEXT_METRICS if task.is_open else METRICS | {"pearson": ""}
    for metric in (task.metric, *task.also):
        if metric not in known:
            faults.append(f"metric is {metric!r}; allowed: {', '.join(known)}")
    if bool(task.label_sets) == task.is_open:
        faults.append("give either label_sets, with at least one style, or answers")
    if task.max_train_rows is not None and task.max_train_rows < 1:
        faults.append(f"max_train_rows is {task.max_train_rows}; it must be at least 1")
    if min(task.max_source_length, task.max_target_length) < 2:
        faults.append(f"max lengths are {task.max_source_length}, {task.max_target_length}; they must be at least 2")
    return faults + _faults_of_labels(task)


def _faults_of_labels(task: Task) -> list[str]:
    """All that is wrong with the label sets of such an entry."""
    faults = []
    if task.label_values is not None and {len(task.label_values)} != {len(t) for t in task.label_sets.values()}:
        faults.append(f"label_values are {len(task.label_values)}; give one a label")
    if len({len(texts) for texts in task.label_sets.values()}) > 1:
        faults.append("the styles of label_sets differ in their number of labels")
    for style, texts in task.label_sets.items():
        if len(texts) < 2 or len(set(texts)) < len(texts) or any(not t or t != t.strip() for t in texts):
            faults.append(f"label_sets[{style!r}] is {texts!r}; give two or more different texts without outer spaces")
    return faults
