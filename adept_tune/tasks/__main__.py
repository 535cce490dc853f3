"""Look at a task's rows as a model gets them: `python -m adept_tune.tasks show cola`."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from adept_tune.errors import AdeptError
from adept_tune.tasks import get_task
from adept_tune.tasks.rows import load_splits
from adept_tune.tasks.task import SPLITS, Row, Task


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 after one message about bad input."""
    args = _parser().parse_args(argv)
    try:
        _show(get_task(args.task, args.protocol), args.data_dir, args.split, args.rows)
    except AdeptError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adept_tune.tasks", description="Look at a task's rows.")
    show = parser.add_subparsers(required=True).add_parser("show", help="print rows as source -> target")
    show.add_argument("task", help="name of the task, such as cola, or a .yaml file of your own")
    show.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="read DIR/TASK/SPLIT.{jsonl,csv,tsv,parquet} instead of the package's rows or the Hub",
    )
    show.add_argument("--protocol", choices=["ours", "paper"], default="ours", help="paper: with its code's faults")
    show.add_argument("--split", choices=SPLITS, default="train", help="after the split rule (default: train)")
    show.add_argument("--rows", type=_count, default=10, metavar="N", help="how many rows (default: 10; 0: none)")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows; give 0 or more")
    return int(text)


def _show(task: Task, data_dir: Path | None, split: str, num_rows: int) -> None:
    """Print the row counts and the first rows of a split; a target is shown in every style, or all right answers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load_splits(task, data_dir)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    counts = ", ".join(f"{len(splits[each]):,} {each}" for each in SPLITS)
    kinds = "open answers" if task.is_open else f"styles of target: {' | '.join(task.label_sets)}"
    print(f"{task.name} from {splits.origin}: {counts}; {kinds}")
    rows = splits[split]
    for index in range(min(num_rows, len(rows))):
        row = rows.row(index)
        print(f"{split} {index}: {task.source(row, split, index)} -> {' | '.join(_targets(task, row, split, index))}")


def _targets(task: Task, row: Row, split: str, index: int) -> Sequence[str]:
    if task.is_open:
        return task.answers_of(row, split, index)
    label = task.label_index(row, split, index)
    return [task.labels(style)[label] for style in task.label_sets]


if __name__ == "__main__":
    sys.exit(main())
