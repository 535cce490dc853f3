"""Models of four sizes: every method on a few tasks, compared within each model."""

import argparse
import dataclasses
import sys

import smoke
from cells import Cell
from command import Asked, Study, by_method, main

MODELS = "google-t5/t5-small,google-t5/t5-base,google-t5/t5-large,google-t5/t5-3b"
TASKS = ("sst2", "mrpc", "rte", "cola", "boolq", "wic")


def flags(parser: argparse.ArgumentParser) -> None:
    """Models instead of a model."""
    parser.add_argument("--models", default=MODELS, help="names or folders (default: %(default)s)")


def cells(asked: Asked) -> list[Cell]:
    """A group a model; within it a line a method, a column a task."""
    models = asked.own.models.split(",")
    if asked.smoke:
        models = [str(smoke.save_model(asked.out / "models", size)) for size in smoke.WIDTHS]
    found = []
    for model in models:
        for cell in by_method(dataclasses.replace(asked, model=model)):
            found.append(dataclasses.replace(cell, group=model.rpartition("/")[2]))
    return found


STUDY = Study(
    name="scale",
    title="Models of four sizes",
    about="Search every method on a few tasks with models of several sizes; --models, not --model.",
    tasks=TASKS,
    averages={"all": TASKS},
    cells=cells,
    flags=flags,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
