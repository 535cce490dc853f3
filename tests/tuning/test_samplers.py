"""Who proposes: what every sampler promises, and what Optuna is told."""

import hashlib
import json
from functools import cache
from typing import Any

import pytest
from optuna.trial import TrialState

from adept_tune.errors import SpaceError
from adept_tune.tuning.samplers import GridProposer, OptunaProposer, Proposer, derive_seed, make_proposer
from adept_tune.tuning.space import SearchSpace
from tests.support.search import POINT, SPACE, inside, space_of

FIRST = (POINT, POINT | {"prompt_length": 10, "labels": "words"})
FINITE = {"prompt_length": {"low": 10, "high": 60, "step": 10}, "ffn_width": {"low": 1, "high": 4}}


def value_of(params: dict[str, Any]) -> float:
    """How a point does in the end."""
    return -abs(params["prompt_length"] - 40) / 100 + params.get("prompt_lr", 0.0)


def history(proposer: Proposer, num_trials: int) -> list[tuple[Any, ...]]:
    """A search of three trials at once; what was told to the proposer, in order."""
    told: list[tuple[Any, ...]] = []

    def tell(kind: str, *arguments: Any) -> None:
        told.append((kind, *arguments))
        getattr(proposer, kind)(*arguments)

    running: dict[int, dict[str, Any]] = {}
    for trial in range(num_trials + 2):
        if trial < num_trials:
            params = proposer.propose(trial)
            assert params is not None
            told.append(("again", trial, params))
            running[trial] = params
        ending = trial - 2
        if ending in running:
            params = running.pop(ending)
            tell("reported", ending, 3, value_of(params) / 2)
            if ending % 5 == 1:
                tell("ended", ending, None, True)
            elif ending % 5 == 3:
                tell("reported", ending, 5, float("nan"))
                tell("ended", ending, None, True)
            elif ending % 7 == 4:
                tell("ended", ending, None, False)
            else:
                tell("reported", ending, 9, value_of(params))
                tell("ended", ending, value_of(params), False)
    return told


def retold(proposer: Proposer, told: list[tuple[Any, ...]]) -> Proposer:
    """A proposer that is told a history, as a journal keeps it."""
    for kind, *arguments in told:
        getattr(proposer, kind)(*json.loads(json.dumps(arguments)))
    return proposer


class ProposerContract:
    """What holds for every sampler."""

    sampler: Any
    parameters: dict[str, Any] = SPACE
    first: tuple[dict[str, Any], ...] = FIRST
    num_trials = 16

    @pytest.fixture
    def space(self) -> SearchSpace:
        return space_of(self.parameters, points=self.first)

    @pytest.fixture
    def told(self) -> list[tuple[Any, ...]]:
        return history_of(type(self))

    def test_proposals_lie_in_the_space(self, space: SearchSpace, told: list[tuple[Any, ...]]) -> None:
        proposals = [params for kind, _, params, *_ in told if kind == "again"]
        assert len(proposals) == self.num_trials
        assert all(inside(space, params) for params in proposals)

    def test_the_first_points_come_first(self, space: SearchSpace) -> None:
        proposer = make_proposer(space, self.sampler, 3)
        assert [proposer.propose(trial) for trial in range(2)] == list(self.first)

    def test_proposals_can_be_journalled(self, told: list[tuple[Any, ...]]) -> None:
        for kind, _, params, *_ in told:
            if kind == "again":
                assert json.loads(json.dumps(params)) == params

    def test_a_history_told_again_goes_on_within_the_space(
        self, space: SearchSpace, told: list[tuple[Any, ...]]
    ) -> None:
        proposer = retold(make_proposer(space, self.sampler, 7), told)
        for trial in range(self.num_trials, self.num_trials + 3):
            params = proposer.propose(trial)
            assert params is not None
            assert inside(space, params)

    def test_different_seeds_differ(self, space: SearchSpace) -> None:
        found = []
        for seed in range(3):
            proposer = make_proposer(space, self.sampler, seed)
            found.append([proposer.propose(trial) for trial in range(8)])
        assert found[0] != found[1] != found[2] != found[0]
        assert found[0][2:] != found[1][2:]

    def test_trials_differ(self, told: list[tuple[Any, ...]]) -> None:
        proposals = [repr(params) for kind, _, params, *_ in told if kind == "again"]
        assert len(set(proposals)) > 0.9 * len(proposals)


class ExactContract(ProposerContract):
    """What holds for samplers whose proposals depend on seed and history alone, to the last bit."""

    def test_the_same_search_proposes_the_same(self, space: SearchSpace, told: list[tuple[Any, ...]]) -> None:
        assert repr(history(make_proposer(space, self.sampler, 7), self.num_trials)) == repr(told)

    def test_a_history_told_again_gives_the_same_next_proposals(
        self, space: SearchSpace, told: list[tuple[Any, ...]]
    ) -> None:
        live = make_proposer(space, self.sampler, 7)
        history(live, self.num_trials)
        resumed = retold(make_proposer(space, self.sampler, 7), told)
        for trial in range(self.num_trials, self.num_trials + 5):
            assert live.propose(trial) == resumed.propose(trial) is not None

    def test_a_history_cut_anywhere_goes_on_as_if_nothing_had_happened(
        self, space: SearchSpace, told: list[tuple[Any, ...]]
    ) -> None:
        num_cuts = 0
        for cut, (kind, trial, params, *_) in enumerate(told):
            if kind == "again" and trial >= len(self.first):
                assert retold(make_proposer(space, self.sampler, 7), told[:cut]).propose(trial) == params
                num_cuts += 1
        assert num_cuts == self.num_trials - len(self.first)


@cache
def history_of(contract: type[ProposerContract]) -> list[tuple[Any, ...]]:
    """The history of a sampler's own search."""
    space = space_of(contract.parameters, points=contract.first)
    return history(make_proposer(space, contract.sampler, 7), contract.num_trials)


class TestTpe(ExactContract):
    sampler = "tpe"

    def test_tpe_heeds_its_history(self) -> None:
        space = space_of(SPACE)
        nexts = []
        for sign in (1, -1):
            proposer = make_proposer(space, "tpe", 0)
            for trial in range(14):
                params = proposer.propose(trial)
                assert params is not None
                proposer.ended(trial, sign * value_of(params), pruned=False)
            nexts.append([proposer.propose(trial) for trial in range(14, 17)])
        assert nexts[0] != nexts[1]

    def test_tpe_begins_at_random(self) -> None:
        space = space_of(SPACE)
        random, tpe = (make_proposer(space, sampler, 0) for sampler in ("random", "tpe"))
        assert isinstance(tpe, OptunaProposer)
        assert {repr(tpe.propose(trial)) for trial in range(9)} != {repr(random.propose(0))}


class TestRandom(ExactContract):
    sampler = "random"

    def test_random_heeds_no_history(self) -> None:
        space = space_of(SPACE)
        fresh, told = (make_proposer(space, "random", 0) for _ in range(2))
        history(told, 12)
        assert fresh.propose(12) == told.propose(12)


class TestGp(ProposerContract):
    sampler = "gp"
    num_trials = 20  # it models from ten complete trials on


class TestGrid(ExactContract):
    sampler = "grid"
    parameters = FINITE
    first = ({"prompt_length": 40, "ffn_width": 3}, {"prompt_length": 10, "ffn_width": 1})

    def test_grid_visits_each_point_once_and_then_none(self, space: SearchSpace) -> None:
        proposer = make_proposer(space, "grid", 0)
        points = [proposer.propose(trial) for trial in range(24)]
        assert {tuple(point.values()) for point in points if point} == {
            (m, r) for m in (10, 20, 30, 40, 50, 60) for r in (1, 2, 3, 4)
        }
        assert [proposer.propose(trial) for trial in (24, 25, 999)] == [None] * 3

    def test_grid_mixes_what_is_not_first(self, space: SearchSpace) -> None:
        proposer = make_proposer(space, "grid", 0)
        points = [proposer.propose(trial) for trial in range(24)]
        assert points[2:] != [point for point in space.grid() if point not in points[:2]]

    def test_grid_gives_a_point_away_that_nobody_else_has(self, space: SearchSpace) -> None:
        proposer = make_proposer(space, "grid", 0)
        taken = proposer.propose(5)
        assert taken is not None
        taken["prompt_length"] = -1
        assert proposer.propose(5) != taken


def test_grid_of_an_infinite_space_is_refused_when_it_is_made():
    with pytest.raises(SpaceError, match=r"prompt_lr: .* has no finite set of values"):
        make_proposer(space_of(SPACE), "grid", 0)


@pytest.mark.parametrize(
    ("reports", "end", "state", "value"),
    [
        ([(3, 0.2), (9, 0.7)], (0.7, False), TrialState.COMPLETE, 0.7),
        ([(3, 0.2)], (None, True), TrialState.PRUNED, 0.2),
        ([], (None, True), TrialState.PRUNED, None),
        ([(3, 0.2), (4, float("nan"))], (None, True), TrialState.PRUNED, None),  # diverged
        ([(3, float("-inf"))], (None, True), TrialState.PRUNED, float("-inf")),
        ([(9, float("-inf"))], (float("-inf"), False), TrialState.COMPLETE, float("-inf")),
        ([(3, 0.2)], (None, False), TrialState.FAIL, None),
        ([], (None, False), TrialState.FAIL, None),
    ],
)
def test_optuna_is_told_how_a_trial_ended(reports, end, state, value):
    proposer = OptunaProposer(space_of(SPACE), "tpe", 0)
    proposer.propose(0)
    for report in reports:
        proposer.reported(0, *report)
    proposer.ended(0, *end)
    (trial,) = proposer._study.trials
    assert (trial.state, trial.value) == (state, value)
    assert repr(trial.intermediate_values) == repr(dict(reports))
    assert proposer.propose(1) is not None  # and goes on


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_nothing_but_bad_trials_does_not_stop_a_search(sampler):
    proposer = OptunaProposer(space_of(SPACE), sampler, 0)
    for trial in range(13):
        proposer.propose(trial)
        proposer.reported(trial, 3, float("nan"))
        proposer.ended(trial, None, pruned=trial % 2 == 0)
    assert inside(space_of(SPACE), proposer.propose(13))


def test_running_trials_are_known_to_optuna():
    proposer = OptunaProposer(space_of(SPACE), "tpe", 0)
    for trial in range(3):
        proposer.propose(trial)
    assert [trial.state for trial in proposer._study.trials] == [TrialState.RUNNING] * 3


def test_derived_seeds_are_32_bits_and_of_all_their_parts():
    seeds = [derive_seed(*parts) for parts in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a1")]]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(0, "trial", 0) == int.from_bytes(hashlib.sha256(b"0/trial/0").digest()[:4], "little")


def test_make_proposer_gives_the_kind_that_is_named():
    assert isinstance(make_proposer(space_of(FINITE), "grid", 0), GridProposer)
    assert isinstance(make_proposer(space_of(FINITE), "gp", 0), OptunaProposer)
