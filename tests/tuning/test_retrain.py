"""The retraining driven by hand: seeds, the winner, the spread, replay."""

from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_tune.engine.config import TrialConfig
from adept_tune.tuning.experiment import retraining_goes_on, search_time_left_s
from adept_tune.tuning.retrain import Figures, Retrain, Spread, rerun_name
from adept_tune.tuning.samplers import derive_seed
from adept_tune.tuning.spec import SearchSpec
from adept_tune.tuning.store import Store
from adept_tune.tuning.study import TrialRecord
from adept_tune.tuning.work import End, Report
from tests.support.search import NotingJournal, NotingStore, evaluated, properties, spec_fields

LAST, SEARCH_SEED = 80, 7


def finalist(number: int, length: int = 10) -> TrialRecord:
    """A trial as the search left it, with the search's seeds."""
    config = TrialConfig(
        prompt_length=length,
        max_steps=LAST,
        seed=derive_seed(SEARCH_SEED, "trial", number),
        data_seed=derive_seed(SEARCH_SEED, "order"),
    )
    return TrialRecord(number, {"prompt_length": length}, config)


class Rerunning:
    """A retraining of trials 5, 2 and 9, best first, and all that was noted."""

    def __init__(self, folder: Path, numbers: tuple[int, ...] = (5, 2, 9), num_seeds: int = 2) -> None:
        folder.mkdir(exist_ok=True)
        self.log: list[Any] = []
        self.store = NotingStore(self.log)
        self.journal = NotingJournal(folder / "journal.jsonl", self.log)
        self.retrain = Retrain(
            [finalist(number, 10 + number) for number in numbers],
            num_seeds,
            SEARCH_SEED,
            self.journal,
            self.store,
            [lambda event: self.log.append(("told", event["event"]))],
        )

    def finish(self, trial: int, seed: int, score: float) -> None:
        name = rerun_name(trial, seed)
        self.retrain.report(name, evaluated(LAST, score), lambda: b"state")
        self.retrain.end(name, End.FINISHED, "ran to its end")


@pytest.fixture
def rerunning(tmp_path: Path) -> Rerunning:
    return Rerunning(tmp_path)


# -- seeds -----------------------------------------------------------------------------------------------------------


def test_all_seeds_of_all_finalists_are_jobs_the_best_first(rerunning):
    jobs = iter(rerunning.retrain.next, None)
    assert [job.name for job in jobs] == [f"trial-000{trial}-seed-{seed}" for trial in (5, 2, 9) for seed in (1, 2)]


def test_finalists_share_seeds_and_order_of_rows(rerunning):
    configs = {(rerun.trial, rerun.seed): rerun.job.config for rerun in rerunning.retrain.reruns.values()}
    for seed in (1, 2):
        assert len({configs[trial, seed].seed for trial in (5, 2, 9)}) == 1
        assert len({configs[trial, seed].data_seed for trial in (5, 2, 9)}) == 1
    assert configs[5, 1].seed != configs[5, 2].seed
    assert configs[5, 1].data_seed != configs[5, 2].data_seed


def test_no_seed_is_one_of_the_search(tmp_path):
    retrain = Rerunning(tmp_path, num_seeds=9).retrain
    seeds = {rerun.job.config.seed for rerun in retrain.reruns.values()}
    orders = {rerun.job.config.data_seed for rerun in retrain.reruns.values()}
    assert not seeds & {derive_seed(SEARCH_SEED, "trial", number) for number in range(500)}
    assert derive_seed(SEARCH_SEED, "order") not in orders
    assert len(seeds) == len(orders) == 9


def test_only_seeds_differ_from_the_search(rerunning):
    for rerun in rerunning.retrain.reruns.values():
        searched = finalist(rerun.trial, 10 + rerun.trial).config
        seeds = {"seed": rerun.job.config.seed, "data_seed": rerun.job.config.data_seed}
        assert rerun.job.config == searched.model_copy(update=seeds)


def test_seeds_are_the_same_each_time_and_of_the_search_seed(tmp_path):
    def seeds(search_seed: int) -> list[int]:
        retrain = Retrain([finalist(5)], 3, search_seed, NotingJournal(tmp_path / "j"), NotingStore())
        return [rerun.job.config.seed for rerun in retrain.reruns.values()]

    assert seeds(7) == seeds(7) != seeds(8)


def test_a_rerun_goes_to_its_end_and_is_evaluated_there_alone(rerunning):
    job = rerunning.retrain.next()
    assert job.reports == tuple(range(2, LAST + 1, 2))
    assert job.evaluations == {LAST}


# -- events ----------------------------------------------------------------------------------------------------------


def test_events_name_trial_and_seed_in_order(rerunning):
    name = rerun_name(2, 1)
    rerunning.retrain.started(name)
    assert not rerunning.retrain.report(name, Report(2, 0.7), lambda: b"state")
    rerunning.retrain.end(name, End.FINISHED, "ran to its end")
    assert rerunning.log == [
        ("journalled", "retrain_started"),
        ("told", "retrain_started"),
        ("stored", name, 2),
        ("journalled", "retrain_reported"),
        ("told", "retrain_reported"),
        ("journalled", "retrain_ended"),
        ("told", "retrain_ended"),
    ]
    events = list(rerunning.journal.read())
    assert [(event["trial"], event["seed"]) for event in events] == [(2, 1)] * 3
    assert (events[2]["state"], events[2]["step"]) == ("FINISHED", 2)


def test_a_step_reported_again_changes_nothing(rerunning):
    name = rerun_name(5, 1)
    rerunning.retrain.report(name, Report(2, 0.9), lambda: b"state")
    rerunning.log.clear()
    assert not rerunning.retrain.report(name, Report(2, 0.1), lambda: b"state")
    assert rerunning.log == []
    rerunning.finish(5, 1, 0.9)
    rerunning.finish(5, 1, 0.1)
    assert rerunning.retrain.validation(5).mean == 0.9


def test_the_first_end_counts(rerunning):
    name = rerun_name(5, 1)
    rerunning.retrain.end(name, End.FAILED, "out of memory", "Traceback")
    rerunning.retrain.end(name, End.FINISHED, "later")
    assert rerunning.retrain.report(name, evaluated(LAST, 0.9), lambda: b"state")
    (event,) = rerunning.journal.read()
    assert (event["state"], event["error"]) == ("FAILED", "Traceback")
    assert rerunning.retrain.finished(5) == []


def test_a_seed_that_diverges_is_left_out(rerunning):
    rerunning.finish(5, 1, 0.6)
    assert rerunning.retrain.report(rerun_name(5, 2), Report(40, nan, diverged=True), lambda: b"state")
    assert rerunning.retrain.reruns[rerun_name(5, 2)].state is End.DIVERGED
    assert [rerun.seed for rerun in rerunning.retrain.finished(5)] == [1]
    assert rerunning.retrain.validation(5) == Spread(0.6, 0.0, 0.05)
    assert ("stored", rerun_name(5, 2), 40) not in rerunning.log


def test_a_seed_that_diverges_at_its_last_step_is_left_out(rerunning):
    rerunning.retrain.report(rerun_name(5, 1), Report(LAST, nan, diverged=True), lambda: b"state")
    assert rerunning.retrain.finished(5) == []


# -- the winner ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "maximize", "winner"),
    [
        ({5: (0.6, 0.6), 2: (0.9, 0.5), 9: (0.6, 0.7)}, True, 2),  # means 0.6, 0.7, 0.65
        ({5: (0.6, 0.6), 2: (0.9, 0.5), 9: (0.6, 0.7)}, False, 5),
        ({5: (0.5, 0.75), 2: (0.75, 0.5), 9: (0.625, 0.625)}, True, 5),  # a tie: whom the search ranked higher
        ({5: (0.5, 0.75), 2: (0.75, 0.5), 9: (0.625, 0.625)}, False, 5),
        ({5: (0.1, 0.1), 2: (0.7, 0.7), 9: (0.7, 0.7)}, True, 2),
        ({5: (0.0, 0.0), 2: (-0.1, 0.0), 9: (-0.2, 0.0)}, True, 5),  # Matthews' coefficient may be negative
        ({9: (0.6, 0.6)}, True, 9),  # nobody else came to the end
        ({2: (0.6,), 9: (0.5, 0.5)}, True, 2),  # one seed is enough
    ],
)
def test_the_winner_has_the_best_mean_on_the_validation_half(rerunning, scores, maximize, winner):
    for trial, values in scores.items():
        for seed, score in enumerate(values, start=1):
            rerunning.finish(trial, seed, score)
    assert rerunning.retrain.winner(maximize).number == winner


def test_a_rounding_does_not_break_a_tie(rerunning):
    for trial, counts in {5: (60, 70), 2: (65, 65)}.items():  # right answers of 100 rows
        for seed, count in enumerate(counts, start=1):
            rerunning.finish(trial, seed, count / 100)
    assert rerunning.retrain.winner(maximize=True).number == 5


@pytest.mark.parametrize("maximize", [True, False])
def test_nobody_wins_where_nobody_came_to_the_end(rerunning, maximize):
    rerunning.retrain.report(rerun_name(5, 1), Report(2, 0.7), lambda: b"state")
    rerunning.retrain.end(rerun_name(5, 1), End.FAILED, "lost")
    assert rerunning.retrain.winner(maximize) is None
    assert rerunning.retrain.validation(5) is None


# -- the spread ------------------------------------------------------------------------------------------------------


@properties(200)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_the_spread_is_numpys(values):
    spread = Spread.of(values, [0.5] * len(values))
    sd = np.std(values, ddof=1)
    assert spread.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert spread.sd == pytest.approx(sd, abs=1e-12)
    assert spread.se == pytest.approx(np.hypot(sd / np.sqrt(len(values)), 0.5), abs=1e-12)  # the rows are shared
    assert spread.as_dict() == {"mean": spread.mean, "sd": spread.sd, "se": spread.se}


def test_the_spread_of_one_seed_has_the_error_of_its_rows():
    assert Spread.of([0.8], [0.03]) == Spread(0.8, 0.0, 0.03)


# -- replay ----------------------------------------------------------------------------------------------------------


def snapshot(retrain: Retrain) -> str:
    reruns = {name: (rerun.reports, rerun.state) for name, rerun in retrain.reruns.items()}
    return repr((reruns, [retrain.validation(number) for number in (5, 2, 9)], retrain.winner(True)))


def test_replay_of_every_prefix_gives_the_retraining_as_it_was(tmp_path):
    live = Rerunning(tmp_path / "live")
    seen = {}

    def noted() -> None:
        seen[len(list(live.journal.read()))] = snapshot(live.retrain)

    noted()
    for trial, seed, score in [(5, 1, 0.7), (2, 1, 0.8), (5, 2, nan), (9, 1, 0.1), (2, 2, 0.6)]:
        name = rerun_name(trial, seed)
        live.retrain.started(name)
        noted()
        if score != score:
            live.retrain.report(name, Report(8, inf, diverged=True), lambda: b"state")
            noted()
            continue
        if trial == 9:
            live.retrain.end(name, End.FAILED, "its process was lost")
            noted()
            continue
        live.retrain.report(name, Report(2, 0.7), lambda: b"state")
        noted()
        live.retrain.report(name, evaluated(LAST, score), lambda: b"state")
        noted()
    events = list(live.journal.read())
    assert len(seen) == 14
    for cut in range(len(events) + 1):
        replayed = Rerunning(tmp_path / f"cut-{cut}")
        replayed.retrain.replay(events[:cut])
        whole = min(boundary for boundary in seen if boundary >= cut)
        assert snapshot(replayed.retrain) == seen[whole], cut
        assert repr(list(replayed.journal.read())) == repr(events[cut:whole]), cut


def test_after_replay_only_what_has_not_ended_is_run(rerunning, tmp_path):
    rerunning.finish(5, 1, 0.7)
    rerunning.retrain.end(rerun_name(5, 2), End.INTERRUPTED, "the search was interrupted")
    rerunning.retrain.report(rerun_name(2, 1), Report(2, 0.7), lambda: b"state")
    again = Rerunning(tmp_path / "again")
    again.retrain.replay(list(rerunning.journal.read()))
    names = [job.name for job in iter(again.retrain.next, None)]
    assert names == [rerun_name(5, 2), *(rerun_name(trial, seed) for trial in (2, 9) for seed in (1, 2))]


def test_what_the_test_half_was_read_for_is_known_after_replay(rerunning):
    rerunning.finish(5, 1, 0.7)
    tested = {"event": "tested", "trial": 5, "seed": 1, "score": 0.65, "standard_error": 0.02}
    rerunning.retrain.replay([*rerunning.journal.read(), tested])
    assert rerunning.retrain.tested == {rerun_name(5, 1): Figures(0.65, 0.02, {})}


def test_a_retraining_that_begins_anew_says_so_and_drops_old_states(rerunning):
    store = Store("memory://adept-tune-begin")
    rerunning.retrain._store = store
    for job in (rerun_name(5, 1), "trial-0005"):
        store.write(job, 2, b"old")
    rerunning.retrain.begin()
    (event,) = rerunning.journal.read()
    assert event == {"event": "retraining", "time": 1.0, "finalists": [5, 2, 9], "seeds": 2}
    assert store.steps(rerun_name(5, 1)) == []
    assert store.steps("trial-0005") == [2]  # the search's own are kept
    assert rerunning.retrain.same(event)


@pytest.mark.parametrize("other", [{"finalists": [2, 5, 9]}, {"finalists": [5, 2]}, {"seeds": 3}])
def test_a_retraining_of_other_finalists_or_seeds_is_another(rerunning, other):
    assert not rerunning.retrain.same({"event": "retraining", "finalists": [5, 2, 9], "seeds": 2} | other)


def test_replay_passes_over_events_of_the_search_and_of_others(rerunning):
    rerunning.retrain.replay(
        [
            {"event": "reported", "trial": 5, "step": LAST, "train_loss": 0.5, "score": 0.9, "loss": 0.5},
            {"event": "retrain_ended", "trial": 77, "seed": 1, "state": "FINISHED"},
            {"event": "retrain_ended", "trial": 5, "seed": 3, "state": "FINISHED"},
            {"event": "winner", "trial": 5, "seed": 1},
        ]
    )
    assert all(rerun.state is None and not rerun.reports for rerun in rerunning.retrain.reruns.values())


# -- of a command of its own ------------------------------------------------------------------------------------------


def ended(trial: int, seed: int, state: str) -> dict[str, Any]:
    return {"event": "retrain_ended", "trial": trial, "seed": seed, "state": state}


BEGUN = {"event": "retraining", "finalists": [4], "seeds": 2}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], False),
        ([BEGUN], True),
        ([BEGUN, ended(4, 1, "FINISHED"), ended(4, 2, "INTERRUPTED")], True),
        ([BEGUN, ended(4, 1, "FINISHED"), ended(4, 2, "FAILED")], True),  # there is a winner to tell
        ([BEGUN, ended(4, 1, "FAILED"), ended(4, 2, "DIVERGED")], False),  # mended meanwhile, perhaps
        ([BEGUN, ended(4, 1, "FINISHED"), {"event": "winner"}], False),
        ([BEGUN, {"event": "winner"}, BEGUN, ended(4, 1, "FINISHED")], True),
    ],
)
def test_a_retraining_goes_on_where_it_was_interrupted_and_begins_anew_where_it_was_not(events, expected):
    assert retraining_goes_on(events) is expected


def test_a_difference_of_one_seed_is_told_without_an_error():
    assert Spread.of([0.0123], [0.0]).difference() == "+0.0123 on validation, of one seed or of seeds that agree"
    assert Spread.of([0.01, 0.03], [0.0, 0.0]).difference().startswith("+0.0200 ± 0.0100 on validation, mean and")


def test_the_time_left_counts_the_search_of_all_sessions_and_the_retraining_to_come():
    spec = SearchSpec(**spec_fields(time_budget_s=1000.0, retrain_s=100.0))
    times = [("proposed", 0.0), ("reported", 200.0), ("resumed", 9000.0), ("reported", 9100.0), ("retraining", 9150.0)]
    events = [{"event": kind, "time": time} for kind, time in times]
    assert search_time_left_s(spec, events) == pytest.approx(1000 - 300 - 110)
    begun_slowly = spec.model_copy(update={"start_s": 40.0})
    assert search_time_left_s(begun_slowly, events) == pytest.approx(1000 - 40 - 300 - 110)
    assert search_time_left_s(begun_slowly, []) == pytest.approx(1000 - 110)  # which is still counting it
