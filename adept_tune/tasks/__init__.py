"""Tasks: where rows come from, how a row becomes text, and what a good answer is.

To add a task, add one entry to `TASKS`. Importing this package loads none of torch,
transformers and datasets.
"""

from difflib import get_close_matches

from adept_tune.errors import TaskError
from adept_tune.tasks.metrics import Score
from adept_tune.tasks.task import HubDataset, Task

__all__ = ["TASKS", "HubDataset", "Score", "Task", "get_task"]

_GLUE = "nyu-mll/glue"
_TRAIN_AND_VALIDATION = {"train": "train", "validation": "validation"}  # GLUE's test labels are not public
_DIGITS = ("0", "1")

# Row counts, plateaus and lengths of the published runs: facts/adept.md sections 3, 2.3 and 2.4. The demonstration is
# our own: experiments/demo.
TASKS: dict[str, Task] = {
    "cola": Task(
        name="cola",
        hub=HubDataset(_GLUE, "cola", _TRAIN_AND_VALIDATION),
        columns=("sentence",),
        template="sentence: {sentence}",
        label_sets={"digits": _DIGITS, "words": ("unacceptable", "acceptable")},
        split_rule="halve_validation",
        metric="matthews",
        num_rows={"train": 8_551, "validation": 521, "test": 522},
        plateau_steps=7_000,
        published_steps=40_000,
    ),
    "sst2": Task(
        name="sst2",
        hub=HubDataset(_GLUE, "sst2", _TRAIN_AND_VALIDATION),
        columns=("sentence",),
        template="sentence: {sentence}",
        label_sets={"digits": _DIGITS, "words": ("negative", "positive")},
        split_rule="hold_out_train",
        metric="accuracy",
        num_rows={"train": 66_349, "validation": 1_000, "test": 872},
        plateau_steps=1_000,
        published_steps=30_000,
    ),
    "mrpc": Task(
        name="mrpc",
        hub=HubDataset(_GLUE, "mrpc", _TRAIN_AND_VALIDATION),
        columns=("sentence1", "sentence2"),
        template="sentence1: {sentence1} sentence2: {sentence2}",
        label_sets={"digits": _DIGITS, "words": ("not_equivalent", "equivalent")},
        split_rule="halve_validation",
        metric="accuracy",
        num_rows={"train": 3_668, "validation": 204, "test": 204},
        plateau_steps=2_000,
        published_steps=10_000,
    ),
    "rte": Task(
        name="rte",
        hub=HubDataset(_GLUE, "rte", _TRAIN_AND_VALIDATION),
        columns=("sentence1", "sentence2"),
        template="sentence1: {sentence1} sentence2: {sentence2}",
        label_sets={"digits": _DIGITS, "words": ("entailment", "not_entailment")},
        split_rule="halve_validation",
        metric="accuracy",
        num_rows={"train": 2_490, "validation": 138, "test": 139},
        plateau_steps=3_000,
        published_steps=30_000,
    ),
    "demo": Task(
        name="demo",
        packaged="demo/data",
        model="demo/model",
        columns=("sentence",),
        template="sentence: {sentence}",
        label_sets={"digits": _DIGITS, "words": ("no", "yes")},
        split_rule="official",
        metric="accuracy",
        max_source_length=32,
        num_rows={"train": 3_000, "validation": 600, "test": 1_500},
        published_steps=300,
        demonstration=True,
    ),
}


def get_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        TaskError: There is none; the message lists those there are and the closest.
    """
    if name in TASKS:
        return TASKS[name]
    close = get_close_matches(name.lower(), TASKS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise TaskError(f"task {name!r} is unknown; allowed: {', '.join(TASKS)}{hint}")
