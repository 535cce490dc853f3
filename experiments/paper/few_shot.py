"""Few shots: every method on 4, 16 and 32 training rows of a task, validated and tested on all the rows there are.

The rows are drawn once for each number, with a seed, as evenly over the labels as it divides: what another draw would
give is not in the intervals.
"""

import argparse
import dataclasses
import json
import random
import sys
from pathlib import Path

from cells import Cell
from command import Asked, Study, by_method, main

from adept_tune.errors import SpecError
from adept_tune.tasks import TASKS, Task
from adept_tune.tasks.rows import Rows, Splits, load_splits

SHOTS = "4,16,32"


def flags(parser: argparse.ArgumentParser) -> None:
    """How many rows, and which."""
    parser.add_argument("--shots", default=SHOTS, help="training rows (default: %(default)s)")
    parser.add_argument("--draw", type=int, default=0, help="seed of the draw of rows (default: %(default)s)")


def draw_rows(task: Task, rows: Rows, shots: int, seed: int) -> list[int]:
    """Indices of training rows, the labels in turn as long as each lasts; of open answers any."""
    order = list(range(len(rows)))
    random.Random(f"{task.name} {seed}").shuffle(order)
    if task.answers is not None:
        return order[:shots]
    by_label: dict[int, list[int]] = {}
    for index in order:
        by_label.setdefault(task.label_index(rows.row(index), rows.split, index), []).append(index)
    longest = max(len(indices) for indices in by_label.values())
    turns = [indices[turn] for turn in range(longest) for _, indices in sorted(by_label.items()) if turn < len(indices)]
    return turns[:shots]


def register(task: Task, splits: Splits, shots: int, seed: int, folder: Path) -> str:
    """Make the task of so many shots, as rows in files and as an entry of the table of tasks; gives its name."""
    name = f"{task.name}-{shots}-shot"
    few = splits.train.take("train", draw_rows(task, splits.train, shots, seed))
    (folder / name).mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", few), ("validation", splits.validation), ("test", splits.test)):
        lines = [json.dumps(row) + "\n" for row in rows.rows()]
        (folder / name / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    TASKS[name] = dataclasses.replace(
        task, name=name, split_rule="official", hub=None, num_rows=None, max_train_rows=None, plateau_steps=None
    )
    return name


def cells(asked: Asked) -> list[Cell]:
    """A line a method; a column a task and number of rows."""
    try:
        shots = sorted({int(number) for number in asked.own.shots.split(",")})
    except ValueError:
        shots = [0]
    if shots[0] < 1:
        raise SpecError(f"--shots {asked.own.shots}: give whole numbers of at least 1, such as {SHOTS}")
    folder = asked.out / f"draw-{asked.own.draw}"
    names = []
    for task in asked.tasks:
        splits = load_splits(TASKS[task], asked.data_dir)
        names += [register(TASKS[task], splits, number, asked.own.draw, folder) for number in shots]
    return by_method(dataclasses.replace(asked, tasks=tuple(names), data_dir=folder))


STUDY = Study(
    name="few_shot",
    title="Few shots",
    about="Search every method on a few training rows of each task.",
    tasks=("boolq", "cb", "scitail"),
    averages={},
    cells=cells,
    flags=flags,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
