"""How good answers are, with the standard error of each figure.

Validation halves are tiny (138 rows for RTE), so a figure without its standard error cannot be compared.
The figures themselves come from scikit-learn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adept_tune.errors import TaskError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Metric -> which way is better.
METRICS: dict[str, str] = {"accuracy": "maximize", "matthews": "maximize"}

NOT_A_LABEL = -1


@dataclass(frozen=True)
class Score:
    """A figure and how far it would stray if other rows of the same kind had been drawn.

    Args:
        value: A fraction, not per cent.
        standard_error: In the unit of `value`.
    """

    value: float
    standard_error: float


def direction(metric: str) -> str:
    """Return "maximize" or "minimize".

    Raises:
        TaskError: No such metric.
    """
    if metric not in METRICS:
        raise TaskError(f"metric {metric!r}; allowed: {', '.join(METRICS)}")
    return METRICS[metric]


def parse_label(text: str, label_set: Sequence[str]) -> int:
    """Return the number of the label that `text` is, outer spaces aside, or -1 when it is none."""
    stripped = text.strip()
    return label_set.index(stripped) if stripped in label_set else NOT_A_LABEL


def score(metric: str, predicted: Sequence[int], gold: Sequence[int]) -> Score:
    """Score predicted label numbers against the right ones.

    A prediction of -1 (text that is no label) is wrong, and a class of its own for Matthews' coefficient.

    Args:
        metric: A key of `METRICS`.
        predicted: Label numbers, -1 where the text was no label.
        gold: Label numbers, as many.

    Returns:
        Accuracy with its binomial standard error, or Matthews' correlation coefficient with its
        large-sample standard error (`_matthews_standard_error`).

    Raises:
        TaskError: No such metric.
        ValueError: The two differ in length, are empty, or a right answer is negative.
    """
    direction(metric)
    _check_answers(gold)
    if len(predicted) != len(gold):
        raise ValueError(f"{len(predicted)} predictions for {len(gold)} right answers; give as many of each")
    from sklearn.metrics import accuracy_score, confusion_matrix, matthews_corrcoef

    if metric == "accuracy":
        value = float(accuracy_score(gold, predicted))
        return Score(value, math.sqrt(value * (1 - value) / len(gold)))
    value = float(matthews_corrcoef(gold, predicted))
    return Score(value, _matthews_standard_error(confusion_matrix(gold, predicted)))


def chance(metric: str, gold: Sequence[int]) -> Score:
    """Return what the best constant answer scores on these rows: the chance level.

    For Matthews' coefficient that is 0. Its standard error is that of two-valued predictions drawn
    independently of the truth: n times the squared coefficient is then about a chi-squared variable of one
    degree of freedom, hence 1/sqrt(n).

    Args:
        metric: A key of `METRICS`.
        gold: Label numbers.

    Raises:
        TaskError: No such metric.
        ValueError: No rows, or a label number is negative.
    """
    direction(metric)
    _check_answers(gold)
    if metric == "matthews":
        return Score(0.0, 1 / math.sqrt(len(gold)))
    counts: dict[int, int] = {}
    for label in gold:
        counts[int(label)] = counts.get(int(label), 0) + 1
    share = max(counts.values()) / len(gold)
    return Score(share, math.sqrt(share * (1 - share) / len(gold)))


def _matthews_standard_error(confusion: "NDArray[Any]") -> float:
    """Large-sample standard error of Matthews' coefficient, by the delta method.

    The cell counts are one multinomial draw of n rows. With g the gradient of the coefficient by the cells'
    shares P, its variance is about (sum P g^2 - (sum P g)^2) / n. In shares the coefficient is N / sqrt(A B),

        N = sum_k P_kk - sum_k t_k p_k,   A = 1 - sum_k t_k^2,   B = 1 - sum_k p_k^2,

    t the row sums (truth), p the column sums (predictions). Where A or B is 0 the coefficient is 0 by
    convention and has no gradient: there the standard error of independent predictions, 1/sqrt(n), is given,
    which is also about what a nearly constant prediction has.

    Args:
        confusion: Counts, `(classes, classes)`, truth by prediction.

    Source: Itaya, Tamura, Hayashi, Yamamoto, "Asymptotic properties of Matthews correlation coefficient",
        Statistics in Medicine 2024 (doi 10.1002/sim.10303); for more than two classes the same theorem
        applied to the coefficient of Gorodkin (2004), which is scikit-learn's.
    """
    import numpy as np

    num_rows = int(confusion.sum())
    shares = confusion / num_rows
    truth, predicted = shares.sum(axis=1), shares.sum(axis=0)
    left, right = 1 - (truth**2).sum(), 1 - (predicted**2).sum()
    if left * right == 0:  # exactly, as n/n is
        return 1 / math.sqrt(num_rows)
    top = np.trace(shares) - truth @ predicted
    # d/dP_ij of N, A and B; cell (i, j) adds to truth i and to prediction j.
    by_top = np.eye(len(shares)) - predicted[:, None] - truth[None, :]
    by_left, by_right = -2 * truth[:, None], -2 * predicted[None, :]
    gradient = (by_top - top / 2 * (by_left / left + by_right / right)) / math.sqrt(left * right)
    mean = (shares * gradient).sum()
    variance = (shares * (gradient - mean) ** 2).sum() / num_rows
    return math.sqrt(variance)


def _check_answers(gold: Sequence[int]) -> None:
    """Right answers exist and are labels."""
    if len(gold) == 0:
        raise ValueError("no rows to score; give at least one")
    if min(gold) < 0:
        raise ValueError(f"a right answer is {min(gold)}; allowed: label numbers from 0")
