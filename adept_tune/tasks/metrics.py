"""How good answers are, with the standard error of each figure.

Validation halves are tiny (138 rows for RTE), so a figure without its standard error cannot be compared.
The figures themselves come from scikit-learn.
"""

import math
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adept_tune.errors import TaskError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Metric of label numbers -> which way is better. F1 is that of label 1; `exact_by_group` is the share of groups of rows
# all of which are right.
METRICS: dict[str, str] = {
    "accuracy": "maximize",
    "matthews": "maximize",
    "f1": "maximize",
    "exact_by_group": "maximize",
}
# Metric of texts against the texts that are right -> which way is better. `pass` runs the text as a program.
TEXT_METRICS: dict[str, str] = {
    "pearson": "maximize",
    "token_f1": "maximize",
    "exact_match": "maximize",
    "pass": "maximize",
}

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
    known = METRICS | TEXT_METRICS
    if metric not in known:
        raise TaskError(f"metric {metric!r}; allowed: {', '.join(known)}")
    return known[metric]


def parse_label(text: str, label_set: Sequence[str]) -> int:
    """Return the number of the label that `text` is, outer spaces aside, or -1 when it is none."""
    stripped = text.strip()
    return label_set.index(stripped) if stripped in label_set else NOT_A_LABEL


def score(metric: str, predicted: Sequence[int], gold: Sequence[int], groups: Sequence[int] | None = None) -> Score:
    """Score predicted label numbers against the right ones.

    A prediction of -1 (text that is no label) is wrong, and a class of its own for Matthews' coefficient.

    Args:
        metric: A key of `METRICS`.
        predicted: Label numbers, -1 where the text was no label.
        gold: Label numbers, as many.
        groups: Number of the group that a row belongs to, such as the question that it answers; None where each
            row stands alone. Rows of a group are not independent, which the error of F1 takes into account.

    Returns:
        The figure with its large-sample standard error: binomial for accuracy and for whole groups, by the delta
        method for Matthews' coefficient and F1.

    Raises:
        TaskError: No such metric of labels.
        ValueError: The two differ in length, are empty, or a right answer is negative.
    """
    if metric not in METRICS:
        raise TaskError(f"metric {metric!r} of labels; allowed: {', '.join(METRICS)}")
    _check_answers(gold)
    if len(predicted) != len(gold):
        raise ValueError(f"{len(predicted)} predictions for {len(gold)} right answers; give as many of each")
    import numpy as np
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef

    if metric == "accuracy":
        return _share(float(accuracy_score(gold, predicted)), len(gold))
    if metric == "matthews":
        value = float(matthews_corrcoef(gold, predicted))
        return Score(value, _matthews_standard_error(confusion_matrix(gold, predicted)))
    truth, answer = np.asarray(gold), np.asarray(predicted)
    group = np.arange(len(truth)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if metric == "exact_by_group":
        wrong = np.bincount(group, weights=truth != answer)
        return _share(float((wrong == 0).mean()), len(wrong))
    told = np.where(answer == NOT_A_LABEL, truth != 1, answer == 1)  # what is no label is wrong whatever is right
    value = float(f1_score(truth == 1, told, zero_division=0.0))
    return Score(value, _f1_standard_error(truth == 1, told, group))


def score_texts(
    metric: str,
    predicted: Sequence[str],
    references: Sequence[Sequence[str]],
    proceed: Callable[[], None] = lambda: None,
) -> Score:
    """Score predicted texts against those that are right.

    Args:
        metric: A key of `TEXT_METRICS`.
        predicted: Texts.
        references: For each, the texts that are right; the best of them counts. For `pass`, what a program needs
            before it, then the tests that it must pass.
        proceed: Called again and again where scoring takes long; what it raises ends it.

    Returns:
        The figure with its large-sample standard error. Of Pearson's coefficient, in which a text that is no number
        counts as -1: by the delta method, whatever the distribution.

    Raises:
        TaskError: No such metric of texts.
        ValueError: The two differ in length or are empty.
    """
    if metric not in TEXT_METRICS:
        raise TaskError(f"metric {metric!r} of texts; allowed: {', '.join(TEXT_METRICS)}")
    if len(predicted) != len(references) or not predicted:
        raise ValueError(f"{len(predicted)} predictions for {len(references)} right answers; give as many, and some")
    if metric == "pearson":
        return _pearson([_number(text) for text in predicted], [_number(texts[0]) for texts in references])
    if metric == "pass":
        from adept_tune.tasks.execution import passes_all

        passed = passes_all(predicted, references, proceed)
        return _share(sum(passed) / len(passed), len(passed))
    agreement = _TEXT_AGREEMENT[metric]
    each = [max(agreement(text, right) for right in texts) for text, texts in zip(predicted, references, strict=True)]
    return _mean(each)


def chance(metric: str, gold: Sequence[int], groups: Sequence[int] | None = None) -> Score:
    """Return what the best constant answer scores on these rows: the chance level.

    For Matthews' coefficient that is 0. Its standard error is that of two-valued predictions drawn
    independently of the truth: n times the squared coefficient is then about a chi-squared variable of one
    degree of freedom, hence 1/sqrt(n).

    Args:
        metric: A key of `METRICS`.
        gold: Label numbers.
        groups: See `score`.

    Raises:
        TaskError: No such metric of labels.
        ValueError: No rows, or a label number is negative.
    """
    _check_answers(gold)
    constant = [score(metric, [label] * len(gold), gold, groups) for label in sorted(set(map(int, gold)))]
    return max(constant, key=lambda found: found.value)


def chance_of_texts(metric: str, references: Sequence[Sequence[str]]) -> Score:
    """Return what the most frequent right answer scores when it is given for every row.

    Pearson's coefficient of a constant is taken for 0, with the error of unrelated numbers, 1/sqrt(n); no program is
    taken to pass. An error is at least 1/n, so that a single lucky row is not clear of chance.

    Raises:
        TaskError: No such metric of texts.
        ValueError: No rows.
    """
    if not references:
        raise ValueError("no rows to score; give at least one")
    num_rows = len(references)
    if metric == "pearson":
        return Score(0.0, 1 / math.sqrt(num_rows))
    if metric == "pass":
        return Score(0.0, 1 / num_rows)
    ((usual, _),) = Counter(texts[0] for texts in references).most_common(1)
    found = score_texts(metric, [usual] * num_rows, references)
    return Score(found.value, max(found.standard_error, 1 / num_rows))


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra space: what SQuAD and MRQA compare.

    Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016, section 6.1.
    """
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))


def _exact(text: str, right: str) -> float:
    return float(normalise_answer(text) == normalise_answer(right))


def _token_f1(text: str, right: str) -> float:
    """Harmonic mean of precision and recall of the words, each as often as it stands there."""
    given, wanted = normalise_answer(text).split(), normalise_answer(right).split()
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


_TEXT_AGREEMENT: dict[str, Callable[[str, str], float]] = {"token_f1": _token_f1, "exact_match": _exact}


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if abs(value) < 1e6 else -1.0  # nor are NaN and infinity numbers that could be meant


def _share(share: float, num_rows: int) -> Score:
    """A share of independent rows with its binomial error."""
    return Score(share, math.sqrt(share * (1 - share) / num_rows))


def _mean(values: Sequence[float]) -> Score:
    """The mean of independent rows with its error."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return Score(mean, math.sqrt(variance / len(values)))


def _pearson(predicted: Sequence[float], gold: Sequence[float]) -> Score:
    """Pearson's coefficient; 0 with the error of unrelated numbers where one side is constant.

    With x and y in units of their deviations, a row moves the coefficient r by (x y - r (x^2 + y^2) / 2) / n.
    """
    import numpy as np
    from scipy.stats import pearsonr

    x, y = np.asarray(predicted, dtype=float), np.asarray(gold, dtype=float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Score(0.0, 1 / math.sqrt(len(x)))
    r = float(pearsonr(x, y).statistic)
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    influence = x * y - r / 2 * (x**2 + y**2)
    return Score(r, float(np.sqrt((influence**2).sum()) / len(x)))


def _f1_standard_error(truth: "NDArray[Any]", answer: "NDArray[Any]", group: "NDArray[Any]") -> float:
    """Error of F1 by the delta method, groups of rows taken as a whole.

    F1 is 2 a / D with D = 2 a + b + c, of a rows rightly and b and c wrongly told. A row moves it by 2 (1 - F1) / D
    where it is of the a, by -F1 / D where of the b or c.
    """
    import numpy as np

    denominator = truth.sum() + answer.sum()
    if denominator == 0:
        return 1 / math.sqrt(len(truth))
    value = 2 * (truth & answer).sum() / denominator
    influence = np.where(truth & answer, 2 * (1 - value), 0.0) - np.where(truth ^ answer, value, 0.0)
    return float(np.sqrt((np.bincount(group, weights=influence) ** 2).sum()) / denominator)


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
