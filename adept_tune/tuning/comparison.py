"""Several methods at equal effort: a search each, then their winners compared seed by seed.

Every method gets the same trials, steps, finalists and seeds, and a search as any in a folder of its own below the
given one. Retrainings of the same seed see the same rows in the same order, so winners are compared in pairs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import sqrt
from os.path import getmtime
from pathlib import Path
from statistics import fmean, stdev

from adept_tune.console import Console, shown
from adept_tune.errors import SpecError, StateError, StorageError
from adept_tune.methods import get_method
from adept_tune.tasks import Task, get_task
from adept_tune.tuning.record import Record
from adept_tune.tuning.retrain import Spread
from adept_tune.tuning.search import Request, check_folder, run_search
from adept_tune.tuning.space import settings_of
from adept_tune.tuning.spec import SPEC

COMPARISON, TABLE = "comparison.json", "comparison.md"
CONFIDENCE = 0.95

# What must be equal for winners to be compared like with like.
_EQUAL = (
    *("task", "protocol", "data_fingerprint", "labels", "trials", "max_steps", "batch_size", "finalists", "seeds"),
    *("seed", "scheduler", "reduction_factor", "sampler", "precision"),
)


@dataclass(frozen=True)
class Winner:
    """What a method's search came to.

    Attributes:
        method: Its name.
        params: The winner's configuration.
        num_parameters: Trained numbers of it.
        validation: Its seeds on the validation half, on which it was chosen.
        test: Its seeds on the test half.
        by_seed: Test score by seed.
    """

    method: str
    params: Mapping[str, object]
    num_parameters: int
    validation: Spread
    test: Spread
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """One method's test scores less another's, seed by seed.

    Attributes:
        mean: Of the differences.
        half_width: Of the interval around it; None for a single seed.
        num_seeds: Pairs.
    """

    mean: float
    half_width: float | None
    num_seeds: int

    @classmethod
    def of(cls, one: Mapping[int, float], other: Mapping[int, float]) -> "Difference | None":
        """Paired over the seeds that both have, with Student's t; None where they share none."""
        from scipy.stats import t

        gains = [score - other[seed] for seed, score in one.items() if seed in other]
        if not gains:
            return None
        if len(gains) == 1:
            return cls(gains[0], None, 1)
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(gains) - 1))
        return cls(fmean(gains), quantile * stdev(gains) / sqrt(len(gains)), len(gains))

    def __str__(self) -> str:
        """As a person reads it."""
        if self.half_width is None:
            return f"{self.mean:+.4f} (one seed)"
        return f"{self.mean:+.4f} [{self.mean - self.half_width:+.4f}, {self.mean + self.half_width:+.4f}]"


def run_comparison(request: Request, console: Console) -> int:
    """Search each of the methods that `request.method` lists with commas, and compare the winners.

    With `resume` finished searches are gone through again, interrupted ones go on, and missing ones begin.

    Returns:
        Exit code: 0 done, 3 a method has no winner.

    Raises:
        AdeptError: Before any search, for anything wrong with what they share; else as `run_search` does.
        KeyboardInterrupt: The user stopped it; what was done is kept.
    """
    methods = [name.strip() for name in (request.method or "").split(",") if name.strip()]
    task = get_task(request.task, request.protocol)
    _check(request, methods, task)
    folder = _folder(request, methods, task)
    if not request.dry_run:
        _write(folder / COMPARISON, json.dumps({"task": task.reference, "methods": methods}, indent=2) + "\n")
    codes = []
    for number, method in enumerate(methods, start=1):
        console.say(f"Method {number} of {len(methods)}: {method}")
        own = folder / method
        one = replace(request, method=method, experiment=own, resume=own if (own / SPEC).exists() else None)
        try:
            codes.append(run_search(one, Console()))
        except KeyboardInterrupt:
            console.say(f"The whole comparison goes on with the same command and --resume {folder}")
            raise
    if request.dry_run:
        return 0
    _tell(folder, methods, task, console)
    return max(codes)


def compared(folder: Path, methods: Sequence[str]) -> list[Winner]:
    """The winners of finished searches, in the methods' order; a method without one is left out.

    Raises:
        SpecError: A search is missing, or two differ in what must be equal; says in what.
        StateError: A journal is damaged.
    """
    records = {method: Record.read(folder / method) for method in methods}
    first = records[methods[0]].spec
    for method, record in records.items():
        for name in _EQUAL:
            ours, theirs = getattr(first, name), getattr(record.spec, name)
            if ours != theirs:
                raise SpecError(f"{folder}: {name} is {ours} for {methods[0]} and {theirs} for {method}; search anew")
    return [winner for method, record in records.items() if (winner := _winner(method, record)) is not None]


def table_of(winners: Sequence[Winner], metric: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the comparison; differences are from the first winner."""
    reference = winners[0]
    heads = ["method", "parameters", f"validation {metric}", f"test {metric}", f"test less {reference.method}'s"]
    rows = []
    for winner in winners:
        difference = Difference.of(winner.by_seed, reference.by_seed)
        rows.append(
            [
                winner.method,
                f"{winner.num_parameters:,}",
                f"{winner.validation.mean:.4f} ± {winner.validation.se:.4f}",
                f"{winner.test.mean:.4f} ± {winner.test.se:.4f}",
                "" if winner is reference else "no seed in common" if difference is None else str(difference),
                shown(dict(winner.params)),
            ]
        )
    return [*heads, "configuration"], rows


def _winner(method: str, record: Record) -> Winner | None:
    if record.winner is None:
        return None
    number = record.winner["trial"]
    tested = {seed: story.test for (trial, seed), story in sorted(record.reruns.items()) if trial == number}
    scores = {seed: figures for seed, figures in tested.items() if figures is not None}
    if not scores:
        raise StateError(f"{method}: its winner was not tested; search anew")
    return Winner(
        method,
        record.winner["params"],
        record.trials[number].num_parameters,
        Spread(**record.winner["validation"]),
        Spread(**record.winner["test"]),
        {seed: score for seed, (score, _) in scores.items()},
    )


def _tell(folder: Path, methods: Sequence[str], task: Task, console: Console) -> None:
    """The table, for the console and as Markdown."""
    winners = compared(folder, methods)
    if not winners:
        console.say("No method has a winner, so there is nothing to compare.")
        return
    heads, rows = table_of(winners, task.metric)
    notes = [
        "Figures are means over seeds with standard errors (seeds and rows). Differences are paired over the seeds "
        f"that both have, with {CONFIDENCE:.0%} intervals of Student's t: they count the seeds, not the test rows, "
        "which are the same, and are not corrected for the number of methods."
    ]
    lost = [method for method in methods if method not in {winner.method for winner in winners}]
    if lost:
        notes.append(f"Without a winner: {', '.join(lost)}.")
    if task.demonstration:
        notes.append("A demonstration: these figures show the machinery and say nothing of the methods.")
    spec = Record.read(folder / methods[0]).spec
    effort = (
        f"{spec.trials} trials of up to {spec.max_steps} steps of {spec.batch_size} rows each, {spec.sampler} and "
        f"{spec.scheduler}; {spec.finalists} finalists over {spec.seeds} seeds; {spec.backbone['name']} in "
        f"{spec.precision} on {spec.device}."
    )
    lines = [
        f"# {', '.join(methods)} on {task.name}",
        "",
        effort,
        "",
        _markdown(heads),
        _markdown(["---"] * len(heads)),
    ]
    _write(folder / TABLE, "\n".join([*lines, *map(_markdown, rows), "", *notes]) + "\n")
    console.say()
    console.table(heads, rows)
    for note in notes:
        console.say(note)
    console.say(f"Table:    {folder / TABLE}")


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _check(request: Request, methods: Sequence[str], task: Task) -> None:
    """See that the methods can be given equal effort.

    Raises:
        AdeptError: They cannot; says what to give.
    """
    if not methods:
        raise SpecError(f"--method {request.method}: names no method")
    for method in methods:
        names = settings_of(get_method(method))
        for key in request.fixed or {}:
            if key not in names:
                raise SpecError(f"--set {key}: method {method} has no such setting; give those that all methods have")
    if len(set(methods)) < len(methods):
        raise SpecError(f"--method {request.method}: names a method twice")
    for flag, given in (("--space", request.space), ("--init-from", request.init_from)):
        if given is not None:
            raise SpecError(f"{flag}: is for one method; with several each has the space of its name")
    if request.time_budget_s is not None:
        raise SpecError("--time-budget: would give methods unequal effort; give --trials and --max-steps instead")
    if not task.demonstration and (request.trials is None or request.max_steps is None):
        raise SpecError("several methods are compared at equal effort: give --trials and --max-steps")


def _folder(request: Request, methods: Sequence[str], task: Task) -> Path:
    """Where the searches' folders are or will be.

    Raises:
        SpecError: There is another experiment, or none to resume.
    """
    asked = {"task": task.reference, "methods": list(methods)}
    if request.resume is None:
        folder = request.experiment or Path("runs") / f"{task.name}-compared-{datetime.now():%Y%m%d-%H%M%S}"
        check_folder(folder)
        if (folder / COMPARISON).exists():
            raise SpecError(f"--experiment {folder}: a comparison lives there already; go on with --resume {folder}")
        return folder
    given = request.resume if str(request.resume) != "." else request.experiment
    found = [given / COMPARISON] if given else sorted(Path("runs").glob(f"*/{COMPARISON}"), key=getmtime, reverse=True)
    for path in found:
        if path.is_file() and _read(path) == asked:
            return path.parent
    where = given or "runs/"
    raise SpecError(f"--resume: no comparison of {', '.join(methods)} on {task.name} in {where}")


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{path}: not readable ({error})") from error


def _write(path: Path, text: str) -> None:
    """Write a file aside first."""
    part = path.with_suffix(path.suffix + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        part.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); make room there") from error
