"""A cell of a table is a search in a folder of its own: what it is told, whether it is over, what it came to."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Scores

from adept_tune.console import Console, shown
from adept_tune.errors import AdeptError, StateError
from adept_tune.search import parser, request
from adept_tune.tuning.journal import Journal
from adept_tune.tuning.record import Record, parts_s
from adept_tune.tuning.search import run_search
from adept_tune.tuning.spec import JOURNAL, SPEC

LOG = "search.log"
NOT_RUN = "not run yet"
LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class Cell:
    """Where a search stands in the table, and what it is told.

    Attributes:
        line: Method, or whatever is compared.
        column: Task, or whatever it is compared on.
        words: Command line of the search that is this cell's own.
        group: Lines are compared within their group; a model, for instance.
        num_rows: That are scored, where it is known; scoring is what a short search spends its time on.
    """

    line: str
    column: str
    words: tuple[str, ...]
    group: str = ""
    num_rows: int | None = None

    @property
    def place(self) -> Path:
        """Its folder below the table's."""
        parts = (part.replace("/", "-").replace(" ", "-") for part in ("cells", self.group, self.line, self.column))
        return Path(*(part for part in parts if part))


@dataclass(frozen=True)
class Result:
    """What a finished search came to.

    Attributes:
        metric: Of the task.
        scores: The winner's seeds on the test half.
        validation: The winner's mean on the validation half, a fraction.
        params: The winner's configuration.
        num_parameters: Trained numbers.
        trials: That were proposed.
        max_steps: Of a trial.
        seconds: Wall time, all sessions together.
    """

    metric: str
    scores: Scores
    validation: float
    params: Mapping[str, Any]
    num_parameters: int
    trials: int
    max_steps: int
    seconds: float

    @property
    def configuration(self) -> str:
        """The winner's, for people."""
        return shown(dict(self.params))


def finished(folder: Path) -> bool:
    """Whether the record says that a search has a winner and has been brought to its end."""
    events = [event for event in Journal(folder / JOURNAL).read() if event["event"] in ("winner", "finished")]
    return any(event["event"] == "winner" for event in events) and events[-1].get("state") == "FINISHED"


def read_result(folder: Path) -> Result:
    """Read a finished search.

    Raises:
        AdeptError: Its record cannot be read.
    """
    from adept_tune.tasks import get_task

    record = Record.read(folder)
    winner = record.winner
    if winner is None:
        raise StateError(f"{folder}: the search has no winner")
    number = winner["trial"]
    scores = {seed: rerun.test for (trial, seed), rerun in record.reruns.items() if trial == number and rerun.test}
    return Result(
        get_task(record.spec.task, record.spec.protocol).metric,
        scores,
        winner["validation"]["mean"],
        winner["params"],
        record.trials[number].num_parameters,
        len(record.trials),
        record.spec.max_steps,
        sum(record.parts_s.values()),
    )


def spent_s(folder: Path) -> float:
    """Wall time that a search has taken so far, as its journal has it; what a damaged one took is not known."""
    try:
        return sum(parts_s(Journal(folder / JOURNAL).read()).values())
    except StateError:
        return 0.0


def shares(cells: Sequence[Cell], seconds: float) -> list[float]:
    """Wall time for each of the cells that are left: half of it equally, half by the rows that they score."""
    known = [cell.num_rows for cell in cells if cell.num_rows]
    usual = sum(known) / len(known) if known else 1.0
    rows = [cell.num_rows or usual for cell in cells]
    return [seconds * (0.5 / len(cells) + 0.5 * number / sum(rows)) for number in rows]


def command(cell: Cell, common: Sequence[str], folder: Path, share_s: float | None) -> list[str]:
    """What a cell's search is told, to begin or to go on.

    Args:
        cell: The cell.
        common: What all cells are told.
        folder: The cell's.
        share_s: Wall time for this session; None leaves it to the search.
    """
    words = [*cell.words, *common, "--experiment", str(folder)]
    if (folder / SPEC).exists():
        words += ["--resume", str(folder)]
    return words if share_s is None else [*words, "--time-budget", f"{max(share_s + spent_s(folder), 1.0):.0f}s"]


def short(reason: str) -> str:
    """A reason that fits a list; the whole of it is in the log."""
    line = " ".join(reason.split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ..."


def run(words: Sequence[str], folder: Path, ways: Mapping[str, Callable[..., Any]]) -> str | None:
    """Run a cell's search in this process; what it says goes into its log.

    Args:
        words: Its command line.
        folder: Of the cell.
        ways: Other `hosts` and `drive` of `run_search`.

    Returns:
        Why it came to no number; None where it did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            code = run_search(request(parser().parse_args(words)), Console(log, live=False), **ways)
        except AdeptError as error:
            print(f"error: {error}")
            return short(str(error))
        except Exception as error:  # a cell's fault must not cost the others
            traceback.print_exc()
            return short(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}")
    return None if code == 0 else f"no trial came to its end; see {LOG}"
