"""What the commands of all tables share: flags, the loop over cells, a time budget, and going on where one stopped."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import smoke
from cells import LOG, Cell, command, finished, read_result, run, shares, short, spent_s
from table import Table, cells_csv, differences_csv, markdown, page, read_published

from adept_tune.cli import guarded
from adept_tune.errors import AdeptError, SpecError
from adept_tune.methods import METHODS
from adept_tune.search import parser as search_parser
from adept_tune.tasks import TASKS
from adept_tune.tuning.lock import locked

SOME_MISSING, NONE_FINISHED = 1, 3
SETTINGS = "table.json"
# What a table gives each search itself.
OURS = ("--task", "--method", "--model", "--data-dir", "--experiment", "--resume", "--dry-run", "--time-budget")


@dataclass(frozen=True)
class Asked:
    """What a table's command is asked to do.

    Attributes:
        tasks: To run.
        methods: To run.
        model: Name or folder; None leaves it to the search.
        data_dir: Folder of the rows; None for the Hub.
        out: Folder of the table and its searches.
        budget_s: Wall time for the whole table; None leaves each search its own.
        smoke: Tiny models and made rows.
        rest: Handed to every search.
        own: Flags of this table alone.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    model: str | None
    data_dir: Path | None
    out: Path
    budget_s: float | None
    smoke: bool
    rest: tuple[str, ...]
    own: argparse.Namespace

    @property
    def model_words(self) -> tuple[str, ...]:
        """For a search's command line."""
        return ("--model", self.model) if self.model else ()

    @property
    def data_words(self) -> tuple[str, ...]:
        """For a search's command line."""
        return ("--data-dir", str(self.data_dir)) if self.data_dir else ()


def by_method(asked: Asked) -> list[Cell]:
    """A line a method, a column a task."""
    return [
        Cell(
            method,
            task,
            ("--task", task, "--method", method, *asked.model_words, *asked.data_words),
            num_rows=num_scored(task),
        )
        for task in asked.tasks
        for method in asked.methods
    ]


def num_scored(task: str) -> int | None:
    """Validation and test rows of a task, as published; None where that is not known."""
    counts = TASKS[task].num_rows or {}
    return counts["validation"] + counts["test"] if {"validation", "test"} <= counts.keys() else None


@dataclass(frozen=True)
class Study:
    """A table of the paper.

    Attributes:
        name: Of its default folder.
        title: Its heading.
        about: Its help.
        tasks: Unless others are asked for.
        averages: Heading to the tasks that are averaged over.
        methods: Unless others are asked for; None takes all there are.
        cells: What was asked to its cells.
        flags: Adds flags of its own.
        head: What a line is.
        compares_published: Whether published numbers belong beside ours.
    """

    name: str
    title: str
    about: str
    tasks: tuple[str, ...]
    averages: Mapping[str, tuple[str, ...]]
    methods: tuple[str, ...] | None = None
    cells: Callable[[Asked], list[Cell]] = by_method
    flags: Callable[[argparse.ArgumentParser], Any] = lambda parser: None
    head: str = "method"
    compares_published: bool = True


def main(study: Study, argv: Sequence[str] | None = None) -> int:
    """Run a table's command.

    Returns:
        0 when every cell has a number, 1 when some have none (the same command tries those again), 2 bad input, 3 when
        none has one, 130 interrupted.
    """
    return guarded(lambda: fill(study, asked_for(study, argv)))


def asked_for(study: Study, argv: Sequence[str] | None) -> Asked:
    """Parse and check a command line.

    Raises:
        SpecError: A task or method that there is not, a flag that the table sets itself, or a budget that is none.
    """
    p = argparse.ArgumentParser(
        description=study.about + " Any further flags are handed to every search: --trials 8 --address auto, say.",
        allow_abbrev=False,
    )
    p.add_argument("--tasks", default=",".join(study.tasks), help="(default: %(default)s)")
    p.add_argument("--methods", default=",".join(study.methods or METHODS), help="(default: %(default)s)")
    p.add_argument("--model", help="Hub name or folder (default: what a search takes)")
    p.add_argument("--data-dir", type=Path, help="folder with TASK/SPLIT.{jsonl,csv,tsv,parquet} (default: the Hub)")
    p.add_argument(
        "--budget-minutes",
        type=float,
        help="wall time of the table, shared by the cells left; with it a search retrains one finalist, not three",
    )
    p.add_argument("--out", type=Path, help=f"folder of table and searches (default: runs/paper/{study.name}[-smoke])")
    p.add_argument("--smoke", action="store_true", help="every cell on tiny models and made rows, in minutes")
    study.flags(p)
    own, rest = p.parse_known_args(argv)
    reserved = [word for word in rest if word.partition("=")[0] in OURS]
    if reserved:
        raise SpecError(f"{' '.join(reserved)}: the table sets {', '.join(OURS)} of its searches; leave it out")
    if own.budget_minutes is not None and not 0 < own.budget_minutes < float("inf"):
        raise SpecError(f"--budget-minutes {own.budget_minutes}: give a number above 0")
    out = (own.out or Path("runs/paper") / f"{study.name}{'-smoke' if own.smoke else ''}").absolute()
    if not any(word.partition("=")[0] == "--tracking-uri" for word in rest):
        rest = ["--tracking-uri", f"sqlite:///{out / 'mlflow.db'}", *rest]
    if own.budget_minutes is not None and not any(word.partition("=")[0] == "--finalists" for word in rest):
        rest = ["--finalists", "1", *rest]
    tasks = _names("--tasks", own.tasks, TASKS)
    if own.smoke:
        if own.model or own.data_dir:
            raise SpecError("--smoke makes model and rows itself; leave --model and --data-dir out")
        own.model, own.data_dir = str(smoke.save_model(out / "models")), smoke.save_rows(out / "rows", tasks)
        rest = [*smoke.SEARCH, *rest]
    return Asked(
        tasks=tasks,
        methods=_names("--methods", own.methods, METHODS),
        model=own.model,
        data_dir=own.data_dir.absolute() if own.data_dir else None,
        out=out,
        budget_s=own.budget_minutes and 60 * own.budget_minutes,
        smoke=own.smoke,
        rest=tuple(rest),
        own=own,
    )


def _names(flag: str, text: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for name in text.split(",") if name))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise SpecError(f"{flag} {text}: {', '.join(unknown) or 'none'} given; allowed: {', '.join(known)}")
    return names


def fill(study: Study, asked: Asked) -> int:
    """Run what is left of a table, and write it after every cell."""
    asked.out.mkdir(parents=True, exist_ok=True)
    with locked(asked.out):
        cells = study.cells(asked)
        for cell in cells:
            search_parser().parse_args([*cell.words, *asked.rest])  # a wrong flag ends here, with exit code 2
        _check_settings(asked)
        table = _table(study, asked, cells)
        left = [cell for cell in cells if not _take(table, cell, asked.out)]
        write(table, asked.out)
        print(f"{len(cells)} cells, {len(cells) - len(left)} finished before; table in {asked.out}", flush=True)
        with contextlib.ExitStack() as stack:
            ways: dict[str, Callable[..., Any]] = {}
            if asked.smoke and left:
                ways = {"hosts": stack.enter_context(smoke.bench()), "drive": smoke.drive}
            _run_all(table, left, asked, ways)
    missing = table.missing()
    for cell, why in missing.items():
        print(f"no number for {cell.group} {cell.line} on {cell.column}: {why}", file=sys.stderr)
    return 0 if not missing else SOME_MISSING if table.results else NONE_FINISHED


def _run_all(table: Table, left: Sequence[Cell], asked: Asked, ways: Mapping[str, Callable[..., Any]]) -> None:
    """Run cells one after another; each gets its part of the time that is left.

    With a budget those with the most rows come last, so that what the others leave is theirs.
    """
    if asked.budget_s is not None:
        left = sorted(left, key=lambda cell: cell.num_rows or 0)
    begun = time.monotonic()
    before_s = sum(spent_s(asked.out / cell.place) for cell in table.cells)
    for number, cell in enumerate(left):
        share_s = None
        if asked.budget_s is not None:
            left_s = asked.budget_s - before_s - (time.monotonic() - begun)
            if left_s <= 0:
                table.reasons[cell] = "the time budget was used up before it; a greater --budget-minutes goes on"
                continue
            share_s = shares(left[number:], left_s)[0]
        folder, cell_begun = asked.out / cell.place, time.monotonic()
        name = f"[{number + 1}/{len(left)}] {cell.group} {cell.line} on {cell.column}".replace("  ", " ")
        about = "" if share_s is None else f", {share_s:.0f} s"
        print(f"{name}{about}; log: {folder / LOG}", flush=True)
        why = run(command(cell, asked.rest, folder, share_s), folder, ways)
        if why is None:
            _take(table, cell, asked.out)
        else:
            table.reasons[cell] = why
        result = table.results.get(cell)
        score = ", ".join(f"{score:.4f}" for score, _ in result.scores.values()) if result else f"no number ({why})"
        print(f"{name}: {score} ({time.monotonic() - cell_begun:.0f} s)", flush=True)
        write(table, asked.out)
    write(table, asked.out)


def _take(table: Table, cell: Cell, out: Path) -> bool:
    """Read a cell's record into the table; whether it is finished."""
    folder = out / cell.place
    try:
        if finished(folder):
            table.results[cell] = read_result(folder)
            return True
    except AdeptError as error:
        table.reasons[cell] = short(str(error))
    return False


def _check_settings(asked: Asked) -> None:
    """See that the folder is of a table with the same settings; tasks, methods and budget may grow.

    Raises:
        SpecError: It is not; the difference is shown.
    """
    path = asked.out / SETTINGS
    mine = {"model": asked.model, "data_dir": str(asked.data_dir), "searches": list(asked.rest)}
    if path.exists():
        theirs = json.loads(path.read_text())
        if theirs != mine:
            pairs = [f"{key}: {theirs.get(key)} there, {value} now" for key, value in mine.items()]
            differing = [pair for pair, key in zip(pairs, mine, strict=True) if theirs.get(key) != mine[key]]
            raise SpecError(
                f"--out {asked.out}: holds a table of other settings; give another folder:\n  " + "\n  ".join(differing)
            )
    _replace(path, json.dumps(mine, indent=2) + "\n")


def _table(study: Study, asked: Asked, cells: Sequence[Cell]) -> Table:
    model = "random T5 of a few thousand weights" if asked.smoke else Path(asked.model or "the search's default").name
    shown = " ".join(word for word in asked.rest if not word.startswith("sqlite:///")).replace("--tracking-uri", "")
    settings = {"model": model, "searches": f"`{' '.join(shown.split()) or 'defaults'}`"}
    if asked.budget_s is not None:
        settings["budget"] = f"{asked.budget_s / 60:g} minutes for {len(cells)} cells"
    published = read_published() if study.compares_published else []
    columns = {cell.column for cell in cells}
    known = [line for line in published if columns & line.scores.keys() or line.method in asked.methods]
    return Table(study.title, cells, study.averages, settings, known, study.head, asked.smoke)


def write(table: Table, out: Path) -> None:
    """Write `table.md`, `table.html`, `cells.csv` and `differences.csv`."""
    _replace(out / "table.md", markdown(table))
    _replace(out / "table.html", page(table))
    _replace(out / "cells.csv", cells_csv(table))
    _replace(out / "differences.csv", differences_csv(table))


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
