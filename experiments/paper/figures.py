"""What the numbers of a table say: means over seeds, paired differences, and which of them stand out of the noise.

Two kinds of noise are in a test score, and both are counted: the seeds of training, which a mean over seeds makes
smaller, and the rows of the test half, which all seeds share. Intervals cover 95 %: Student's t for the seeds, whose
spread is itself known from a few numbers only, and the normal quantile for the rows. All metrics are
better when greater.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import norm, t

COVERAGE = 0.95


@dataclass(frozen=True)
class Figure:
    """A mean and how well it is known.

    Attributes:
        mean: A fraction, not per cent.
        rows_se: Standard error from the drawing of the test rows.
        seeds_se: Standard error from the seeds; None where one seed cannot tell.
        num_seeds: Seeds behind it; of an average the fewest of its parts.
    """

    mean: float
    rows_se: float
    seeds_se: float | None
    num_seeds: int

    @property
    def se(self) -> float:
        """Standard error of both kinds; of one seed that of the rows alone."""
        return sqrt(self.rows_se**2 + (self.seeds_se or 0.0) ** 2)

    @property
    def half(self) -> float | None:
        """Half the width of the interval; None where one seed cannot tell."""
        if self.seeds_se is None:
            return None
        of_rows, of_seeds = _quantiles(self.num_seeds)
        return sqrt((of_rows * self.rows_se) ** 2 + (of_seeds * self.seeds_se) ** 2)

    @property
    def stands_out(self) -> bool:
        """Whether a difference is above zero beyond its interval."""
        return self.half is not None and self.mean > self.half


Scores = Mapping[int, tuple[float, float]]
"""Seed to test score and its standard error over rows, both fractions."""


def figure(scores: Scores) -> Figure:
    """Mean over seeds."""
    return _figure([score for score, _ in scores.values()], [error for _, error in scores.values()])


def difference(one: Scores, other: Scores) -> Figure | None:
    """By how much one is above the other, seed by seed; None where they share no seed.

    Equal seeds see the rows in the same order. The rows' part takes the two answers to a row as independent: where two
    methods fail on the same rows, as they tend to, the true error is smaller, so this errs towards "within noise".
    """
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    values = [one[seed][0] - other[seed][0] for seed in shared]
    return _figure(values, [sqrt(one[seed][1] ** 2 + other[seed][1] ** 2) for seed in shared])


def average(figures: Sequence[Figure | None]) -> Figure | None:
    """Mean over tasks, whose errors are independent; None where one is missing."""
    known = [part for part in figures if part is not None]
    if not known or len(known) < len(figures):
        return None
    seeds = [part.seeds_se for part in known]
    return Figure(
        fmean(part.mean for part in known),
        sqrt(sum(part.rows_se**2 for part in known)) / len(known),
        None if None in seeds else sqrt(sum((error or 0.0) ** 2 for error in seeds)) / len(known),
        min(part.num_seeds for part in known),
    )


def best(columns: Mapping[str, Sequence[Scores]]) -> str | None:
    """The line that is above every other beyond the interval of their difference; None where there is none.

    To be ahead of every other is the harder the more there are, so that no correction for their number is due.

    Args:
        columns: Line to its scores, one for each column that is averaged over; of a single column one.
    """
    for name, mine in columns.items():
        others = [theirs for other, theirs in columns.items() if other != name]
        if others and all(_ahead(mine, theirs) for theirs in others):
            return name
    return None


def _ahead(mine: Sequence[Scores], theirs: Sequence[Scores]) -> bool:
    """Whether a line is above another beyond the interval of their difference."""
    gain = average([difference(a, b) for a, b in zip(mine, theirs, strict=True)])
    return gain is not None and gain.stands_out


@lru_cache
def _quantiles(num_seeds: int) -> tuple[float, float]:
    """Half widths of the interval in standard errors: of the rows, and of so many seeds."""
    tail = (1 + COVERAGE) / 2
    return float(norm.ppf(tail)), float(t.ppf(tail, num_seeds - 1))


def _figure(values: Sequence[float], errors: Sequence[float]) -> Figure:
    seeds_se = stdev(values) / sqrt(len(values)) if len(values) > 1 else None
    return Figure(fmean(values), sqrt(fmean(error**2 for error in errors)), seeds_se, len(values))
