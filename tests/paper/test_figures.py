"""Means, paired differences and what stands out, against closed forms and simulation."""

from math import sqrt
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel


def scores(*values: float, error: float = 0.0) -> dict[int, tuple[float, float]]:
    return {seed: (value, error) for seed, value in enumerate(values, 1)}


def test_a_figure_counts_seeds_and_rows() -> None:
    from figures import figure

    found = figure(scores(0.7, 0.8, 0.9, error=0.05))
    assert found.mean == pytest.approx(0.8)
    assert found.seeds_se == pytest.approx(0.1 / sqrt(3))
    assert found.se == pytest.approx(sqrt(0.01 / 3 + 0.05**2))


def test_the_interval_of_seeds_alone_is_students() -> None:
    from figures import figure

    values = [0.7, 0.8, 0.95]
    found = figure(scores(*values))
    expected = ttest_rel(values, [0.0] * 3).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_no_interval_and_never_stands_out() -> None:
    from figures import difference, figure

    assert figure(scores(0.9, error=0.01)).half is None
    gain = difference(scores(0.9), scores(0.1))
    assert gain is not None
    assert not gain.stands_out


def test_differences_are_paired_by_seed() -> None:
    from figures import difference

    one, other = scores(0.5, 0.7, 0.9), scores(0.4, 0.6, 0.8)
    gain = difference(one, other)
    assert gain is not None
    assert gain.mean == pytest.approx(0.1)
    assert gain.seeds_se == pytest.approx(0.0)
    assert difference({1: (0.5, 0.0)}, {2: (0.4, 0.0)}) is None


def test_only_shared_seeds_are_compared() -> None:
    from figures import difference

    gain = difference(scores(0.5, 0.7, 0.9), scores(0.4, 0.5))
    assert gain is not None
    assert gain.num_seeds == 2
    assert gain.mean == pytest.approx(0.15)


def test_an_average_needs_every_part() -> None:
    from figures import average, figure

    parts = [figure(scores(0.6, 0.8, error=0.1)), figure(scores(0.2, 0.4, error=0.1))]
    found = average(parts)
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    assert found.rows_se == pytest.approx(sqrt(2) * 0.1 / 2)
    assert average([*parts, None]) is None


def test_what_is_within_noise_does_not_stand_out() -> None:
    from figures import best

    assert best({"a": [scores(0.80, 0.82, 0.84)], "b": [scores(0.79, 0.83, 0.81)]}) is None
    assert best({"a": [scores(0.90, 0.91, 0.92)], "b": [scores(0.79, 0.80, 0.81)]}) == "a"
    assert best({"a": [scores(0.90, 0.91, 0.92, error=0.05)], "b": [scores(0.79, 0.80, 0.81, error=0.05)]}) is None


def test_a_line_alone_or_tied_does_not_stand_out() -> None:
    from figures import best

    assert best({"a": [scores(0.9, 0.9, 0.9)]}) is None
    assert best({"a": [scores(0.9, 0.9)], "b": [scores(0.9, 0.9)]}) is None


@pytest.mark.parametrize("num_lines", [2, 5])
def test_equal_methods_stand_out_in_less_than_five_of_a_hundred_tables(num_lines: int) -> None:
    from figures import best

    rng = np.random.default_rng(0)

    def drawn() -> Any:
        return [scores(*rng.normal(0.8, 0.02, 3))]

    found = [best({str(line): drawn() for line in range(num_lines)}) for _ in range(2000)]
    assert sum(name is not None for name in found) / len(found) < 0.06
