"""Stopping rules, fed by hand and against Ray Tune's own."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf, nan
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_tune.errors import SpecError
from adept_tune.tuning.rungs import Asha, Hyperband, Median, NeverStop, Rule, make_rule, rung_steps, standing
from tests.support.search import properties

CHANCE, ERROR = 0.5, 0.05
SCHEDULERS = ("asha", "hyperband", "median", "none")


@dataclass(frozen=True)
class FakeTrial:
    """What Ray's rules ask of a trial."""

    trial_id: int


# -- standing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "loss", "expected"),
    [
        (0.61, 0.3, 0.61),  # clear of chance: the score
        (0.60, 0.3, 0.50 - 0.3),  # two standard errors exactly are not clear
        (0.40, 0.3, 0.50 - 0.3),  # worse than chance: the loss
        (1.00, 0.0, 1.00),
        (0.50, 0.0, 0.50),
    ],
)
def test_standing_is_the_score_once_clear_of_chance_and_the_loss_before(score, loss, expected):
    assert standing(score, loss, CHANCE, ERROR, maximize=True) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("score", "loss", "expected"),
    [(0.39, 0.3, -0.39), (0.40, 0.3, -0.5 - 0.3), (0.60, 0.3, -0.5 - 0.3), (0.0, 2.0, 0.0)],
)
def test_standing_where_less_is_better(score, loss, expected):
    assert standing(score, loss, CHANCE, ERROR, maximize=False) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("clear", [True, False])
def test_standing_of_what_is_not_finite_is_below_everything(bad, maximize, clear):
    score = (0.9 if maximize else 0.1) if clear else 0.5
    assert standing(bad, 0.3, CHANCE, ERROR, maximize) == -inf
    assert standing(score, bad, CHANCE, ERROR, maximize) == -inf


@properties(100)
@given(
    scores=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    losses=st.lists(st.floats(0, 1e6), min_size=2, max_size=2),
    chance=st.floats(0.1, 0.9),
    error=st.floats(0, 0.1),
    maximize=st.booleans(),
)
def test_standing_never_ranks_a_trial_at_chance_above_one_clear_of_it(scores, losses, chance, error, maximize):
    sign = 1 if maximize else -1
    clear = [sign * (score - chance) > 2 * error for score in scores]
    first, second = (standing(s, n, chance, error, maximize) for s, n in zip(scores, losses, strict=True))
    if clear[0] and clear[1]:
        assert (first > second) == (sign * scores[0] > sign * scores[1])
    elif not clear[0] and not clear[1]:
        assert first == pytest.approx(second) or (first > second) == (losses[0] < losses[1])
    else:
        assert (first > second) == clear[0]


# -- rung steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_steps", "plateau", "factor", "expected"),
    [
        (9000, None, 3, [1000, 3000]),  # nothing known: two rungs
        (40_000, 7_000, 3, [13_333]),  # CoLA at its published length
        (30_000, 1_000, 3, [1111, 3333, 10_000]),  # SST-2
        (10_000, 2_000, 3, [3333]),  # MRPC
        (81_000, 1_000, 3, [1000, 3000, 9000, 27_000]),  # four at most; the plateau itself will do
        (243_000, 1_000, 3, [3000, 9000, 27_000, 81_000]),
        (16, None, 2, [4, 8]),
        (120, 7_000, 3, [40]),  # the budget forces it
        (21_000, 7_000, 3, [7000]),
        (20_997, 7_000, 3, [6999]),  # one less than the plateau: forced
        (3, None, 3, [1]),
        (2, None, 3, [1]),
        (1, None, 3, []),  # nothing lies before the end
        (1, 100, 3, []),
    ],
)
def test_rung_steps_of_known_cases(max_steps, plateau, factor, expected):
    assert rung_steps(max_steps, plateau, factor) == expected


@properties(300)
@given(st.integers(1, 300_000), st.none() | st.integers(0, 50_000), st.sampled_from([1.5, 2, 2.5, 3, 4]))
def test_rung_steps_lie_above_the_plateau_unless_the_budget_forces_one(max_steps, plateau, factor):
    steps = rung_steps(max_steps, plateau, factor)
    assert steps == sorted(set(steps))
    assert all(0 < step < max_steps for step in steps)
    if steps and steps[0] < (plateau or 0):
        assert steps == [round(max_steps / factor)]  # forced: one rung, as late as a reduction allows


# -- successive halving ----------------------------------------------------------------------------------------------


def outcomes(rule: Rule, step: int, values: list[float]) -> list[bool]:
    """Whether each of several trials is stopped at a step."""
    return [rule.decide(trial, step, value).stop for trial, value in enumerate(values)]


def test_asha_lets_the_first_trial_go_on_however_bad():
    assert outcomes(Asha([10]), 10, [-1e9]) == [False]


def test_asha_lets_a_tie_go_on():
    assert outcomes(Asha([10]), 10, [0.7] * 6) == [False] * 6


def test_asha_stops_what_is_below_the_cut_off_by_the_least_there_is():
    assert outcomes(Asha([10]), 10, [0.7, np.nextafter(0.7, 0)]) == [False, True]


def test_asha_cuts_at_the_top_third_of_those_before():
    # cut-offs: 1; 1 + 2/3; 1 + 4/3
    assert outcomes(Asha([10]), 10, [1.0, 2.0, 1.5, 3.0]) == [False, False, True, False]


@pytest.mark.parametrize("bad", [nan, -inf, inf])
@pytest.mark.parametrize("before", [[], [0.1], [0.1, 0.2, 0.3]])
def test_asha_stops_what_is_not_finite_and_records_nothing(bad, before):
    rule = Asha([10])
    outcomes(rule, 10, before)
    assert rule.decide(9, 10, bad).stop
    assert rule.table() == {10: sorted(before, reverse=True)}


def test_asha_compares_a_late_report_with_its_own_rung_only():
    rule = Asha([10, 30])
    outcomes(rule, 30, [5.0, 6.0, 7.0])
    assert not rule.decide(9, 10, 0.1).stop  # the first at the lower rung
    assert rule.decide(9, 30, 0.1).stop
    assert rule.table() == {10: [0.1], 30: [7.0, 6.0, 5.0, 0.1]}


def test_asha_ignores_steps_between_rungs():
    rule = Asha([10])
    outcomes(rule, 10, [5.0, 6.0])
    decision = rule.decide(9, 11, -5.0)
    assert (decision.stop, decision.rung) == (False, None)
    assert rule.decide(9, 11, nan).stop
    assert rule.table() == {10: [6.0, 5.0]}


def test_asha_says_the_rung_and_both_sides_of_the_comparison():
    rule = Asha([10, 30])
    rule.decide(0, 30, 0.75)
    decision = rule.decide(1, 30, 0.5)
    assert (decision.stop, decision.rung) == (True, 1)
    assert decision.reason == "0.5000 is below the cut-off 0.7500 of 1 before it"


@pytest.mark.parametrize("maximize", [True, False])
def test_asha_keeps_the_better_metric_in_both_directions(maximize):
    scores = [0.70, 0.80, 0.75, 0.90] if maximize else [0.30, 0.20, 0.25, 0.10]
    values = [standing(score, 0.3, CHANCE, ERROR, maximize) for score in scores]
    assert outcomes(Asha([10]), 10, values) == [False, False, True, False]


def trial_curves(seed: int, num_trials: int, num_rungs: int) -> Iterator[tuple[int, int, float]]:
    """Reports (trial, rung, value) of trials that run at random speeds; many of them tie."""
    draw = random.Random(seed)
    kind = draw.choice(["any", "few", "near"])
    reached = dict.fromkeys(range(num_trials), 0)
    while reached:
        trial = draw.choice(list(reached))
        value = {"any": draw.gauss(0, 1), "few": draw.randrange(4) / 4, "near": 0.5 + draw.randrange(3) * 1e-15}[kind]
        yield trial, reached[trial], value
        reached[trial] += 1
        if reached[trial] == num_rungs:
            del reached[trial]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("seed", range(12))
def test_asha_decides_as_the_bracket_of_ray_tune(factor, seed):
    from ray.tune.schedulers.async_hyperband import _Bracket

    bracket = _Bracket(min_t=2, max_t=2 * factor**2 + 1, reduction_factor=factor, s=0)
    rungs = sorted(int(step) for step, _ in bracket._rungs)
    assert rungs == [2, 2 * factor, 2 * factor**2]
    rule, stopped, num_decisions = Asha(rungs, factor), set(), Counter[bool]()
    for trial, rung, value in trial_curves(seed, 60, len(rungs)):
        if trial in stopped:
            continue
        ours = rule.decide(trial, rungs[rung], value).stop
        theirs = bracket.on_result(FakeTrial(trial), rungs[rung], value) == "STOP"
        assert ours == theirs, (trial, rung, value)
        num_decisions[ours] += 1
        if ours:
            stopped.add(trial)
    assert num_decisions[True] > 10  # both ways were taken
    assert num_decisions[False] > 10
    assert {step: sorted(r.values(), reverse=True) for step, r in bracket._rungs} == dict(rule.table())


def test_ray_tune_lets_nan_pass_where_asha_does_not():
    from ray.tune.schedulers.async_hyperband import _Bracket

    bracket, rule = _Bracket(1, 10, 3, 0), Asha([9])
    for trial in range(20):
        bracket.on_result(FakeTrial(trial), 9, 1.0)
        rule.decide(trial, 9, 1.0)
    assert bracket.on_result(FakeTrial(20), 9, nan) == "CONTINUE"  # a fault of Ray Tune's
    assert rule.decide(20, 9, nan).stop


# -- several brackets ------------------------------------------------------------------------------------------------


def test_hyperband_draws_a_bracket_from_seed_and_trial_alone():
    rungs = [10, 30, 90]
    drawn = [Hyperband(rungs, seed=5).bracket(trial) for trial in range(50)]
    other = Hyperband(rungs, seed=5)
    other.decide(3, 90, 0.2)
    assert [other.bracket(trial) for trial in reversed(range(50))] == drawn[::-1]
    assert [Hyperband(rungs, seed=6).bracket(trial) for trial in range(50)] != drawn


def test_hyperband_fills_brackets_as_hyperband_does():
    # Li et al., JMLR 2018, algorithm 1: bracket s starts ceil((s_max + 1) / (s + 1) * eta^s) trials; s = 0 has no rung.
    s_max, eta = 3, 3
    starts = [ceil((s_max + 1) / (s + 1) * eta**s) for s in range(s_max, 0, -1)]
    assert starts == [27, 12, 6]
    rule = Hyperband([10, 30, 90], seed=0)
    found = Counter(rule.bracket(trial) for trial in range(200))
    assert set(found) == {0, 1, 2}
    for bracket, number in enumerate(starts):
        share = number / sum(starts)
        deviation = (200 * share * (1 - share)) ** 0.5
        assert abs(found[bracket] - 200 * share) < 4 * deviation


def test_hyperband_keeps_brackets_apart():
    rule = Hyperband([10, 30], seed=0)
    long, short = (next(t for t in range(99) if rule.bracket(t) == b) for b in (0, 1))
    assert list(rule.steps(long)) == [10, 30]
    assert list(rule.steps(short)) == [30]
    assert not rule.decide(long, 30, 9.0).stop
    assert not rule.decide(short, 30, 1.0).stop  # the first of its own bracket
    assert rule.table() == {10: [], 30: [9.0, 1.0]}


def test_hyperband_without_room_for_a_rung_runs_to_the_end():
    rule = Hyperband([], seed=0)
    assert [list(rule.steps(trial)) for trial in range(9)] == [[]] * 9
    assert not rule.decide(0, 5, 0.5).stop


@pytest.mark.parametrize("bad", [nan, -inf])
def test_hyperband_stops_what_is_not_finite(bad):
    rule = Hyperband([10, 30], seed=0)
    assert all(rule.decide(trial, 30, bad).stop for trial in range(20))
    assert rule.table() == {10: [], 30: []}


# -- median ----------------------------------------------------------------------------------------------------------


def ray_median(grace: int) -> Any:
    from ray.tune.schedulers import MedianStoppingRule

    return MedianStoppingRule(time_attr="step", metric="value", mode="max", grace_period=grace, min_samples_required=3)


@pytest.mark.parametrize("seed", range(12))
def test_median_decides_as_the_rule_of_ray_tune(seed):
    points, controller = [5, 10, 15, 20], SimpleNamespace(get_live_trials=list)
    ours, theirs = Median(points), ray_median(grace=points[0])
    stopped, decisions = set(), Counter[bool]()
    for trial, index, value in trial_curves(seed, 40, len(points)):
        if trial in stopped:
            continue
        stop = ours.decide(trial, points[index], value).stop
        answer = theirs.on_trial_result(controller, FakeTrial(trial), {"step": points[index], "value": value})
        assert stop == (answer == "STOP"), (trial, points[index], value)
        decisions[stop] += 1
        if stop:
            stopped.add(trial)
    assert decisions[True] > 5
    assert decisions[False] > 5


def test_median_lets_trials_go_on_until_there_are_three_to_compare_with():
    assert outcomes(Median([5]), 5, [4.0, 3.0, 2.0, 1.0]) == [False, False, False, True]


def test_median_lets_a_tie_go_on():
    assert outcomes(Median([5]), 5, [0.5] * 8) == [False] * 8


def test_median_takes_a_trials_best_so_far():
    rule = Median([5, 10])
    for trial in range(3):
        rule.decide(trial, 5, 0.5)
        rule.decide(trial, 10, 0.5)
    assert not rule.decide(3, 5, 0.9).stop
    assert not rule.decide(3, 10, 0.1).stop  # was 0.9


@pytest.mark.parametrize("bad", [nan, -inf])
def test_median_stops_what_is_not_finite_and_records_nothing(bad):
    rule = Median([5])
    assert rule.decide(0, 5, bad).stop
    assert rule.history == {}


def test_median_compares_a_late_trial_with_what_the_others_were_at_its_step():
    rule = Median([5, 10])
    for trial in range(3):
        rule.decide(trial, 5, 0.5)
        rule.decide(trial, 10, 0.9)
    assert not rule.decide(3, 5, 0.6).stop  # their means at 5 are 0.5
    assert rule.decide(3, 10, 0.6).stop  # and 0.7 at 10


# -- the rest --------------------------------------------------------------------------------------------------------


def test_never_stop_ends_only_what_is_not_finite():
    rule = NeverStop([5, 10])
    assert outcomes(rule, 5, [1.0, -1e9, 0.0, nan, -inf]) == [False, False, False, True, True]
    assert rule.table() == {}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("plateau", [None, 100, 7_000])
@pytest.mark.parametrize("max_steps", [1, 7, 8, 60, 120, 9_000])
def test_every_rule_looks_at_steps_before_the_last_in_order(scheduler, plateau, max_steps):
    rule = make_rule(scheduler, max_steps, plateau, 3, seed=0)
    for trial in range(10):
        steps = list(rule.steps(trial))
        assert steps == sorted(set(steps))
        assert all(0 < step < max_steps for step in steps)


@pytest.mark.parametrize(("scheduler", "max_steps"), [("median", 2), ("median", 5), ("none", 2)])
def test_every_rule_looks_at_a_step_once_in_the_shortest_of_trials(scheduler, max_steps):
    steps = list(make_rule(scheduler, max_steps, None, 3, seed=0).steps(0))
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_rule_spares_the_plateau(scheduler):
    rule = make_rule(scheduler, 30_000, 3_000, 3, seed=0)
    assert min(min(rule.steps(trial)) for trial in range(10)) >= 3_000


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("bad", [nan, -inf])
def test_no_rule_lets_a_value_that_is_not_finite_go_on(scheduler, bad):
    rule = make_rule(scheduler, 90, None, 3, seed=0)
    for trial in range(20):
        for step in rule.steps(trial):
            rule.decide(trial, step, 0.5)
    assert all(rule.decide(trial, rule.steps(trial)[0], bad).stop for trial in range(20, 30))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_rule_is_the_same_when_fed_the_same(scheduler):
    draw = random.Random(3)
    fed = [(trial, draw.gauss(0, 1)) for trial in range(40)]

    def decisions() -> list[Any]:
        rule = make_rule(scheduler, 90, None, 3, seed=1)
        return [rule.decide(trial, step, value) for trial, value in fed for step in rule.steps(trial)]

    assert decisions() == decisions()


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0, -3.0, nan])
def test_make_rule_refuses_a_factor_that_does_not_reduce(factor):
    with pytest.raises(SpecError, match=f"reduction_factor={factor}: must be greater than 1"):
        make_rule("asha", 90, None, factor, seed=0)
