import math

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from adept_tune.errors import TaskError
from adept_tune.tasks.metrics import METRICS, Score, chance, direction, parse_label, score

GOLD = [0, 0, 0, 1, 1, 1, 1, 1, 0, 1]


def answers(table: list[list[int]], predicted_labels: list[int]) -> tuple[list[int], list[int]]:
    """Predictions and truth with the given counts, truth by prediction."""
    cells = [
        (p, t) for t, row in enumerate(table) for p, n in zip(predicted_labels, row, strict=True) for _ in range(n)
    ]
    return [p for p, _ in cells], [t for _, t in cells]


def test_score_accuracy_by_hand() -> None:
    predicted = [0, 0, 0, 1, 1, 1, 1, 0, 1, -1]  # seven right, one of the wrong is no label
    assert score("accuracy", predicted, GOLD) == Score(0.7, pytest.approx(math.sqrt(0.7 * 0.3 / 10)))


def test_score_matthews_by_hand() -> None:
    # TP 4, TN 3, FP 1, FN 2
    predicted = [0, 0, 0, 1, 1, 1, 1, 0, 1, 0]
    expected = (4 * 3 - 1 * 2) / math.sqrt((4 + 1) * (4 + 2) * (3 + 1) * (3 + 2))
    assert score("matthews", predicted, GOLD).value == pytest.approx(expected)


def test_score_matthews_takes_what_is_no_label_for_a_class_of_its_own() -> None:
    predicted = [0, 0, 0, 1, 1, 1, 1, -1, 1, -1]
    as_third_class = [2 if p == -1 else p for p in predicted]
    value = score("matthews", predicted, GOLD).value
    assert value == pytest.approx(matthews_corrcoef(GOLD, as_third_class))
    assert value != pytest.approx(matthews_corrcoef(GOLD, [0 if p == -1 else p for p in predicted]))


@pytest.mark.parametrize("metric", METRICS)
def test_score_of_nothing_but_text_that_is_no_label(metric: str) -> None:
    assert score(metric, [-1] * 10, GOLD).value == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_score_of_all_right_answers_is_one_without_error(metric: str) -> None:
    got = score(metric, GOLD, GOLD)
    assert (got.value, got.standard_error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-7))


TABLES = [
    ([[40, 10], [20, 30]], [0, 1]),
    ([[150, 7], [80, 284]], [0, 1]),
    ([[3, 1], [2, 4]], [0, 1]),
    ([[40, 10, 5], [20, 30, 8]], [0, 1, -1]),
    ([[20, 3, 4], [5, 25, 2], [1, 6, 30]], [0, 1, 2]),
]


@pytest.mark.parametrize(("table", "labels"), TABLES)
def test_score_matthews_standard_error_is_that_of_the_infinitesimal_jackknife(
    table: list[list[int]], labels: list[int]
) -> None:
    # The delta method without its algebra: how scikit-learn's figure answers to each row's weight.
    predicted, gold = answers(table, labels)
    step = 1e-5
    influence = []
    for i in range(len(gold)):
        sides = []
        for sign in (1, -1):
            weight = np.ones(len(gold))
            weight[i] += sign * step
            sides.append(matthews_corrcoef(gold, predicted, sample_weight=weight))
        influence.append((sides[0] - sides[1]) / (2 * step))
    expected = math.sqrt(sum(x * x for x in influence))
    assert score("matthews", predicted, gold).standard_error == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("table", [TABLES[0][0], TABLES[1][0], TABLES[2][0]])
def test_score_matthews_standard_error_of_two_classes_is_the_published_one_of_phi(
    table: list[list[int]],
) -> None:
    # Bishop, Fienberg, Holland, Discrete Multivariate Analysis (1975), chapter 11: variance of phi.
    n = sum(map(sum, table))
    (a, b), (c, d) = [[cell / n for cell in row] for row in table]
    rows, columns = (a + b) * (c + d), (a + c) * (b + d)
    row_gap, column_gap = a + b - c - d, a + c - b - d
    phi = (a * d - b * c) / math.sqrt(rows * columns)
    variance = (
        1
        - phi**2
        + (phi + phi**3 / 2) * row_gap * column_gap / math.sqrt(rows * columns)
        - 3 / 4 * phi**2 * (row_gap**2 / rows + column_gap**2 / columns)
    ) / n
    got = score("matthews", *answers(table, [0, 1]))
    assert got.value == pytest.approx(phi)
    assert got.standard_error == pytest.approx(math.sqrt(variance))


def test_score_matthews_standard_error_is_near_that_of_a_bootstrap() -> None:
    table = np.array(TABLES[1][0])
    n = table.sum()
    draws = np.random.default_rng(0).multinomial(n, (table / n).ravel(), size=4000).reshape(-1, 2, 2).astype(float)
    (a, b), (c, d) = (draws[:, 0, 0], draws[:, 0, 1]), (draws[:, 1, 0], draws[:, 1, 1])
    values = (a * d - b * c) / np.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    got = score("matthews", *answers(table.tolist(), [0, 1]))
    assert got.standard_error == pytest.approx(values.std(), rel=0.05)


@pytest.mark.parametrize("constant", [0, 1, -1])
def test_score_matthews_of_a_constant_answer_has_the_error_of_chance(constant: int) -> None:
    assert score("matthews", [constant] * len(GOLD), GOLD) == Score(0.0, pytest.approx(1 / math.sqrt(10)))


def test_score_matthews_with_one_class_in_the_truth_is_zero() -> None:
    assert score("matthews", [0, 1, 0], [1, 1, 1]) == Score(0.0, pytest.approx(1 / math.sqrt(3)))


def test_chance_of_accuracy_is_the_share_of_the_most_frequent_label() -> None:
    assert chance("accuracy", GOLD) == Score(0.6, pytest.approx(math.sqrt(0.24 / 10)))
    assert chance("accuracy", GOLD) == score("accuracy", [1] * len(GOLD), GOLD)


def test_chance_of_matthews_is_zero_with_the_spread_of_independent_answers() -> None:
    rng = np.random.default_rng(0)
    gold = rng.permutation([0] * 30 + [1] * 70)
    spread = np.std([matthews_corrcoef(gold, rng.random(100) < 0.6) for _ in range(500)])
    got = chance("matthews", gold.tolist())
    assert got.value == 0.0
    assert got.standard_error == pytest.approx(spread, rel=0.1)


def test_direction_of_each_metric_is_upwards() -> None:
    assert {metric: direction(metric) for metric in METRICS} == {
        "accuracy": "maximize",
        "matthews": "maximize",
    }


def test_unknown_metric_lists_the_choices() -> None:
    for call in (lambda: direction("f1"), lambda: score("f1", [0], [0]), lambda: chance("f1", [0])):
        with pytest.raises(TaskError, match="metric 'f1'; allowed: accuracy, matthews"):
            call()


def test_score_refuses_answers_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="2 predictions for 1 right answers"):
        score("accuracy", [0, 1], [0])
    with pytest.raises(ValueError, match="no rows to score"):
        score("accuracy", [], [])
    with pytest.raises(ValueError, match="no rows to score"):
        chance("matthews", [])
    with pytest.raises(ValueError, match="a right answer is -1"):
        chance("accuracy", [0, -1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1), (" 0\n", 0), ("", -1), ("10", -1), ("0 1", -1), ("one", -1), ("1.", -1)],
)
def test_parse_label_is_exact_apart_from_outer_spaces(text: str, expected: int) -> None:
    assert parse_label(text, ("0", "1")) == expected


def test_parse_label_minds_capitals() -> None:
    assert parse_label("Yes", ("no", "yes")) == -1
