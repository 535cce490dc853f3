import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from adept_tune.errors import TaskError
from adept_tune.tasks.metrics import (
    METRICS,
    TEXT_METRICS,
    Score,
    chance,
    chance_of_texts,
    direction,
    normalise_answer,
    parse_label,
    score,
    score_texts,
)

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
    influence = weighed(matthews_corrcoef, gold, predicted)
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
    assert {direction(metric) for metric in (*METRICS, *TEXT_METRICS)} == {"maximize"}


def test_unknown_metric_lists_the_choices() -> None:
    for call in (lambda: direction("bleu"), lambda: score("bleu", [0], [0]), lambda: chance("bleu", [0])):
        with pytest.raises(TaskError, match=r"metric 'bleu'.*; allowed: accuracy, matthews"):
            call()
    for call in (lambda: score_texts("f1", ["a"], [("a",)]), lambda: chance_of_texts("f1", [("a",)])):
        with pytest.raises(TaskError, match="metric 'f1' of texts; allowed: pearson, token_f1, exact_match, pass"):
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


def test_score_f1_is_that_of_label_one_and_takes_what_is_no_label_for_wrong() -> None:
    predicted = [1, 1, 0, 1, 1, 0, -1, -1, 0, 1]
    right, told, true = 3, 5, 6
    assert score("f1", predicted, GOLD).value == pytest.approx(2 * right / (told + true))
    assert score("f1", predicted, GOLD).value == pytest.approx(f1_score(GOLD, [p == 1 for p in predicted]))


def test_score_f1_counts_what_is_no_label_as_wrong_whatever_is_right() -> None:
    assert score("f1", [1, -1], [1, 0]).value == pytest.approx(2 / 3)
    assert score("f1", [1, -1], [1, 0]) == score("f1", [1, 1], [1, 0])
    assert score("f1", [1, -1], [1, 1]) == score("f1", [1, 0], [1, 1])


def test_score_f1_without_any_of_label_one_is_zero() -> None:
    assert score("f1", [0, 0], [0, 0]) == Score(0.0, pytest.approx(1 / math.sqrt(2)))


@pytest.mark.parametrize("table", [TABLES[0][0], TABLES[1][0], TABLES[2][0]])
def test_score_f1_standard_error_is_that_of_the_infinitesimal_jackknife(table: list[list[int]]) -> None:
    predicted, gold = answers(table, [0, 1])
    assert score("f1", predicted, gold).standard_error == pytest.approx(
        math.sqrt(sum(x * x for x in weighed(f1_score, gold, predicted))), rel=1e-5
    )


def test_score_f1_standard_error_takes_the_rows_of_a_group_together() -> None:
    predicted, gold = answers(TABLES[0][0], [0, 1])
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 25, len(gold))
    by_group = np.bincount(groups, weights=weighed(f1_score, gold, predicted))
    expected = math.sqrt((by_group**2).sum())
    assert score("f1", predicted, gold, groups.tolist()).standard_error == pytest.approx(expected, rel=1e-5)


def test_groups_count_when_all_their_rows_are_right() -> None:
    gold, predicted, groups = [1, 0, 1, 1, 0, 0], [1, 0, 1, 0, 0, 1], [7, 7, 7, 3, 3, 9]
    assert score("exact_by_group", predicted, gold, groups) == Score(
        pytest.approx(1 / 3), pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 3))
    )
    assert score("exact_by_group", predicted, gold).value == pytest.approx(4 / 6)


def test_chance_of_f1_is_to_say_yes_always() -> None:
    assert chance("f1", GOLD) == score("f1", [1] * len(GOLD), GOLD)
    assert chance("f1", GOLD).value == pytest.approx(2 * 0.6 / 1.6)


def test_chance_of_whole_groups_is_the_better_constant() -> None:
    assert chance("exact_by_group", [0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 2, 3]).value == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel-Tower!", "eiffeltower"),
        ("an apple, a pear", "apple pear"),
        ("Theatre", "theatre"),
        ("U.S.", "us"),
        ("", ""),
    ],
)
def test_answers_are_compared_without_case_punctuation_and_articles(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


@pytest.mark.parametrize(
    ("text", "right", "f1", "exact"),
    [
        ("the cat sat", ["a cat sat down"], 2 * 1.0 * (2 / 3) / (1.0 + 2 / 3), 0.0),
        ("The cat.", ["dog", "cat"], 1.0, 1.0),
        ("cat cat", ["cat"], 2 / 3, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
    ],
)
def test_a_text_is_scored_against_the_best_of_the_right_ones(
    text: str, right: list[str], f1: float, exact: float
) -> None:
    assert score_texts("token_f1", [text], [right]).value == pytest.approx(f1)
    assert score_texts("exact_match", [text], [right]).value == exact


def test_error_of_a_mean_of_texts_is_that_of_its_rows() -> None:
    texts, right = ["a b", "b", "c", "x"], [("b",), ("b",), ("d",), ("x y z",)]
    values = [1.0, 1.0, 0.0, 2 * 1 / 4]
    assert score_texts("token_f1", texts, right) == Score(
        pytest.approx(np.mean(values)), pytest.approx(np.std(values) / 2)
    )


def test_pearson_is_that_of_the_numbers_and_text_that_is_none_counts_as_below_all() -> None:
    predicted, right = ["4.0", "1.2", "none", "3.0", "inf"], [("5.0",), ("1.0",), ("0.4",), ("2.0",), ("4.0",)]
    expected = np.corrcoef([4.0, 1.2, -1.0, 3.0, -1.0], [5.0, 1.0, 0.4, 2.0, 4.0])[0, 1]
    assert score_texts("pearson", predicted, right).value == pytest.approx(expected)
    assert score_texts("pearson", ["2.0"] * 4, right[:4]) == Score(0.0, 0.5)


def test_error_of_pearson_is_that_of_the_infinitesimal_jackknife() -> None:
    rng = np.random.default_rng(1)
    x = rng.exponential(size=60).round(1)
    y = (x + rng.normal(size=60)).round(1)

    def weighted(a: np.ndarray, b: np.ndarray, sample_weight: np.ndarray) -> float:
        cov = np.cov(a, b, aweights=sample_weight, ddof=0)
        return float(cov[0, 1] / math.sqrt(cov[0, 0] * cov[1, 1]))

    expected = math.sqrt(sum(d * d for d in weighed(weighted, x, y)))
    found = score_texts("pearson", [str(v) for v in y], [(str(v),) for v in x])
    assert found.standard_error == pytest.approx(expected, rel=1e-5)


def test_chance_of_texts_is_the_most_frequent_right_answer() -> None:
    right = [("paris",), ("rome", "paris"), ("paris hilton",), ("oslo",)]
    assert chance_of_texts("exact_match", right).value == 0.5
    assert chance_of_texts("token_f1", right).value == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)
    assert chance_of_texts("exact_match", [("x",)]) == Score(1.0, 1.0)
    assert chance_of_texts("pearson", right) == Score(0.0, 0.5)
    assert chance_of_texts("pass", right) == Score(0.0, 0.25)
    with pytest.raises(ValueError, match="no rows to score"):
        chance_of_texts("pass", [])


def test_programs_pass_where_all_their_tests_do() -> None:
    needs = ("import math", "assert area(1) == math.pi", "assert area(0) == 0")
    good = "def area(r):\n    return math.pi * r**2"
    half = "def area(r):\n    return math.pi"
    assert score_texts("pass", [good, half], [needs, needs]) == Score(0.5, pytest.approx(math.sqrt(0.125)))


def weighed(figure, left, right) -> list[float]:
    """How a figure answers to each row's weight, by differences."""
    step, influence = 1e-5, []
    for i in range(len(left)):
        sides = []
        for sign in (1, -1):
            weight = np.ones(len(left))
            weight[i] += sign * step
            sides.append(figure(left, right, sample_weight=weight))
        influence.append((sides[0] - sides[1]) / (2 * step))
    return influence
