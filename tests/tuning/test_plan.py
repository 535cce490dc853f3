"""The plan: what a search costs, and what fits a time budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_tune.tuning.plan import (
    FEWEST_STEPS,
    FEWEST_TRIALS,
    MARGIN,
    MOST_STEPS,
    MOST_TRIALS,
    Costs,
    Shape,
    estimate,
    expected_work,
    fit,
    round_down,
)
from adept_tune.tuning.telling import duration
from tests.support.search import properties

COSTS = Costs(step_s=0.1, evaluation_s=2.0)
START_S = 30.0
SCHEDULERS = ("asha", "hyperband", "median", "none")


def shape(scheduler="none", plateau=None, **others):
    return Shape(scheduler, plateau, **({"reduction_factor": 3.0} | others))


# -- estimate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trials", "finalists", "runs"), [(10, 3, 9), (2, 3, 6), (10, 1, 3)])
def test_estimate_of_trials_that_never_stop_is_exact(trials, finalists, runs):
    # 80 steps are looked at four times besides their end: of 10, 20, ... 70 the later half, every other one
    found = estimate(trials, 80, COSTS, shape(plateau=40, finalists=finalists, seeds=3), 7.0)
    evaluations = len(shape(plateau=40).rule(80).steps(0)) + 1
    assert evaluations == 3
    assert found.search_s == pytest.approx(trials * (80 * 0.1 + evaluations * 2.0))
    assert found.retrain_s == pytest.approx(runs * (80 * 0.1 + 2.0) + 3 * 2.0)
    assert (found.start_s, found.total_s) == (7.0, pytest.approx(7.0 + found.search_s + found.retrain_s))


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_estimate_says_that_stopping_saves(scheduler):
    stopped, whole = (expected_work(32, 9000, shape(s, 1000))[0] for s in (scheduler, "none"))
    assert 32 * 1000 <= stopped < 0.95 * whole
    assert whole == 32 * 9000


def test_estimate_of_a_lone_trial_goes_to_its_end():
    for scheduler in SCHEDULERS:
        assert expected_work(1, 9000, shape(scheduler, 1000))[0] == 9000


def test_estimate_of_successive_halving_is_near_its_theory():
    # one rung at a third of the way, top third goes on; ASHA lets more pass while a rung is young
    steps, evaluations = expected_work(128, 900, shape("asha", 300))
    assert 128 * (300 + 600 / 3) < steps < 128 * (300 + 600 * 0.45)
    assert evaluations == pytest.approx(128 + (steps - 128 * 300) / 600)


def test_estimate_is_the_same_each_time():
    expected_work.cache_clear()
    first = expected_work(16, 900, shape("hyperband", 100))
    expected_work.cache_clear()
    assert expected_work(16, 900, shape("hyperband", 100)) == first


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_estimate_grows_with_trials(scheduler):
    totals = [estimate(trials, 900, COSTS, shape(scheduler, 100)).total_s for trials in (1, 2, 4, 8, 16, 32, 64)]
    assert totals == sorted(totals)


# -- fit -------------------------------------------------------------------------------------------------------------

COST = st.builds(Costs, st.floats(1e-4, 1.0), st.floats(1e-3, 30.0))
SHAPE = st.builds(
    Shape,
    st.sampled_from(SCHEDULERS),
    st.sampled_from([None, 1_000, 2_000, 3_000, 7_000]),
    st.sampled_from([2.0, 3.0, 4.0]),
    st.integers(1, 3),
    st.integers(1, 3),
)


@properties(150)
@given(
    budget=st.floats(60, 100_000),
    costs=COST,
    shape=SHAPE,
    trials=st.none() | st.integers(1, 20),
    max_steps=st.none() | st.integers(1, 5_000),
    published=st.sampled_from([None, 10_000, 30_000]),
)
def test_fit_keeps_to_the_budget_wherever_the_least_does(budget, costs, shape, trials, max_steps, published):
    if trials is not None and max_steps is not None:
        return  # nothing to choose
    chosen, steps = fit(budget, START_S, costs, shape, trials, max_steps, 16, published)
    assert trials in (None, chosen)
    assert max_steps in (None, steps)
    assert 1 <= steps <= max(published or MOST_STEPS, max_steps or 0)
    assert chosen <= max(MOST_TRIALS, trials or 0)
    least = (trials or FEWEST_TRIALS, max_steps or FEWEST_STEPS)
    if (chosen, steps) != least and estimate(*least, costs, shape, START_S).total_s <= MARGIN * budget:
        assert estimate(chosen, steps, costs, shape, START_S).total_s <= MARGIN * budget


@pytest.mark.parametrize("given", [(None, None), (8, None), (None, 900)], ids=["neither", "trials", "steps"])
def test_fit_uses_a_greater_budget_for_no_less(given):
    found = [
        fit(budget, START_S, COSTS, shape("none", 1000), *given, 16, 30_000) for budget in range(600, 300_000, 7_000)
    ]
    assert found == sorted(found, key=lambda pair: (pair[1], pair[0]))
    assert len(set(found)) >= 4


def test_fit_uses_most_of_a_budget():
    for budget in (7_200, 36_000, 100_000):
        chosen, steps = fit(budget, START_S, COSTS, shape("none"), None, None, 16, 30_000)
        assert estimate(chosen, steps, COSTS, shape("none")).total_s > 0.75 * budget


def test_fit_gives_steps_first_and_then_trials():
    fast = Costs(1e-5, 1e-3)
    assert fit(36_000, START_S, fast, shape("none"), None, None, 16, 30_000) == (MOST_TRIALS, 30_000)
    assert fit(36_000, START_S, fast, shape("none"), 5, None, 16, 30_000) == (5, 30_000)
    assert fit(36_000, START_S, fast, shape("none"), None, 50, 16, 30_000) == (MOST_TRIALS, 50)


def test_fit_gives_fewer_trials_where_the_fewest_steps_are_too_many():
    budget = estimate(6, FEWEST_STEPS, COSTS, shape("none"), START_S).total_s / MARGIN + 1
    assert fit(budget, START_S, COSTS, shape("none"), None, None, 16, 30_000) == (6, FEWEST_STEPS)


def test_fit_gives_the_least_where_nothing_fits():
    slow = Costs(100.0, 100.0)
    assert fit(60, START_S, slow, shape("none"), None, None, 16, 30_000) == (FEWEST_TRIALS, FEWEST_STEPS)
    assert fit(60, START_S, slow, shape("none"), None, 900, 16, 30_000) == (FEWEST_TRIALS, 900)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, 1), (9, 9), (10, 10), (99, 99), (100, 100), (109, 100), (119, 110), (999, 990), (12_345, 12_000)],
)
def test_round_down_keeps_two_digits(steps, expected):
    assert round_down(steps) == expected


@properties(100)
@given(st.integers(1, 10**7))
def test_round_down_loses_less_than_a_tenth(steps):
    assert 0.9 * steps < round_down(steps) <= steps


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "60 s"), (89, "89 s"), (90, "2 min"), (600, "10 min"), (5399, "90 min"), (7200, "2.0 h")],
)
def test_duration_is_told_in_one_unit(seconds, text):
    assert duration(seconds) == text
