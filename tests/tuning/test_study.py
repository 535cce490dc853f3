"""The search phase driven by hand: the order of events, the ends of trials, and replay of every prefix."""

import json
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from adept_tune.errors import StateError
from adept_tune.methods import IN_MODEL
from adept_tune.tuning.journal import Event, Journal
from adept_tune.tuning.rungs import Asha, NeverStop, Rule, make_rule
from adept_tune.tuning.samplers import make_proposer
from adept_tune.tuning.store import Store
from adept_tune.tuning.study import Study, event_fields, report_of, trial_name
from adept_tune.tuning.work import End, Report, report_steps
from tests.support.search import (
    ListProposer,
    NotingJournal,
    NotingStore,
    Simulator,
    evaluated,
    made_study,
    space_of,
)

RUNG, LAST = 4, 12


def points(number: int) -> list[dict[str, Any]]:
    return [{"prompt_length": 10 + trial} for trial in range(number)]


class Driven:
    """A study of a few trials with a rung at step 4, and all that was noted."""

    def __init__(self, folder: Path, num_trials: int = 5, rule: Rule | None = None, **options: Any) -> None:
        self.log: list[Any] = []
        self.proposer = ListProposer(points(num_trials))
        self.store = NotingStore(self.log)
        self.journal = NotingJournal(folder / "journal.jsonl", self.log)
        rule = Asha([RUNG], 2) if rule is None else rule
        options = {"listeners": [lambda event: self.log.append(("told", event["event"]))]} | options
        self.study = made_study(self.proposer, rule, self.journal, self.store, LAST, num_trials, **options)

    def start(self, number: int = 1) -> None:
        """The next trials, started."""
        for _ in range(number):
            job = self.study.next()
            assert job is not None
            self.study.started(job.name)

    def report(self, trial: int, report: Report) -> bool:
        return self.study.report(trial_name(trial), report, lambda: b"state of %d" % report.step)

    def end(self, trial: int, end: End = End.FINISHED, reason: str = "because", error: str | None = None) -> None:
        self.study.end(trial_name(trial), end, reason, error)

    def events(self) -> list[Event]:
        return list(self.journal.read())


@pytest.fixture
def driven(tmp_path: Path) -> Driven:
    return Driven(tmp_path)


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_reports_often_and_is_evaluated_at_rungs_and_at_its_end(driven):
    job = driven.study.next()
    assert job is not None
    assert (job.name, job.config.max_steps, job.config.prompt_length) == ("trial-0000", LAST, 10)
    assert job.reports == tuple(range(1, LAST + 1))
    assert job.evaluations == {RUNG, LAST}


@pytest.mark.parametrize(
    ("max_steps", "must", "expected"),
    [
        (80, [], (*range(2, 80, 2), 80)),
        (100, [33], (*range(2, 33, 2), 33, *range(34, 100, 2), 100)),
        (3, [], (1, 2, 3)),
        (1, [1], (1,)),
        (30_000, [], tuple(range(750, 30_001, 750))),
    ],
)
def test_reports_come_at_every_fortieth_of_the_way_and_where_a_rule_looks(max_steps, must, expected):
    assert report_steps(max_steps, must, 40) == expected


def test_a_method_with_large_states_reports_seldom():
    assert report_steps(80, [27], IN_MODEL["full"].num_reports) == (20, 27, 40, 60, 80)


def test_a_job_travels_as_plain_values(driven):
    job = driven.study.next()
    assert job is not None
    plain = job.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["evaluations"] == [RUNG, LAST]


def test_there_are_no_more_jobs_than_trials_asked_for(tmp_path):
    driven = Driven(tmp_path, num_trials=2)
    driven.proposer.points += points(9)
    assert [job and job.name for job in (driven.study.next() for _ in range(4))] == [
        "trial-0000",
        "trial-0001",
        None,
        None,
    ]


def test_there_are_no_more_jobs_than_points(tmp_path):
    driven = Driven(tmp_path, num_trials=5)
    driven.proposer.points = points(1)
    assert driven.study.next() is not None
    assert driven.study.next() is None
    assert [event["event"] for event in driven.events()] == ["proposed"]


def test_no_trial_is_proposed_out_of_time(tmp_path):
    late = []
    driven = Driven(tmp_path, out_of_time=lambda: bool(late))
    driven.start(2)
    driven.report(0, evaluated(LAST, 0.9))
    late.append(True)
    assert driven.study.next() is None


def test_out_of_time_a_search_goes_on_to_its_first_evaluation(tmp_path):
    driven = Driven(tmp_path, out_of_time=lambda: True)
    driven.start(2)
    assert not driven.report(0, Report(2, 0.7))
    assert driven.study.next() is not None  # the others may fail yet
    assert not driven.report(1, evaluated(LAST, 0.9))
    assert driven.report(0, Report(3, 0.7))
    assert driven.study.next() is None
    assert driven.study.trials[0].state is End.INTERRUPTED


# -- the order of events ---------------------------------------------------------------------------------------------


def test_a_proposal_is_journalled_with_point_parameters_and_size(driven):
    driven.start()
    proposed, started = driven.events()
    assert proposed == {
        "event": "proposed",
        "time": 1.0,
        "trial": 0,
        "point": {"prompt_length": 10},
        "params": {"prompt_length": 10},
        "num_parameters": 110,
    }
    assert started == {"event": "started", "time": 1.0, "trial": 0}


def test_a_state_is_stored_before_its_report_is_journalled_and_that_before_anyone_is_told(driven):
    driven.start()
    driven.log.clear()
    assert not driven.report(0, Report(2, 0.7))
    assert driven.log == [("stored", "trial-0000", 2), ("journalled", "reported"), ("told", "reported")]
    assert driven.store.states["trial-0000", 2] == b"state of 2"


def test_a_report_is_journalled_before_the_decision_and_that_before_the_end(driven):
    driven.start(2)
    driven.report(0, evaluated(RUNG, 0.9))
    driven.log.clear()
    assert driven.report(1, evaluated(RUNG, 0.8))
    assert driven.log == [
        ("stored", "trial-0001", RUNG),
        *[(who, what) for what in ("reported", "decided", "ended") for who in ("journalled", "told")],
    ]
    reported, decided, ended = driven.events()[-3:]
    assert reported == {
        "event": "reported",
        "time": 1.0,
        "trial": 1,
        "step": RUNG,
        "train_loss": 0.5,
        "seconds": 0.0,
        "score": 0.8,
        "standard_error": 0.05,
        "loss": 0.5,
    }
    assert (decided["trial"], decided["step"], decided["rung"], decided["action"]) == (1, RUNG, 0, "stop")
    assert (ended["trial"], ended["state"], ended["step"]) == (1, "PRUNED", RUNG)
    assert ended["reason"] == decided["reason"] == "0.8000 is below the cut-off 0.9000 of 1 before it"


def test_listeners_are_told_of_each_event_as_it_stands_in_the_journal(tmp_path):
    told: list[Event] = []
    driven = Driven(tmp_path, listeners=[lambda event: told.append(dict(event))])
    driven.start(2)
    driven.report(0, evaluated(RUNG, 0.9))
    driven.report(1, evaluated(RUNG, 0.8))
    driven.end(0, End.FAILED, "lost", "Traceback")
    assert told == driven.events()
    assert len(told) == 10


def test_a_state_that_cannot_be_stored_leaves_no_report(driven):
    class Full(Store):
        def write(self, job: str, step: int, blob: bytes) -> None:
            raise OSError("no space left")

    driven.start()
    driven.study._store = Full("memory://full")
    with pytest.raises(OSError, match="no space left"):
        driven.report(0, Report(2, 0.7))
    assert [event["event"] for event in driven.events()] == ["proposed", "started"]
    assert driven.study.trials[0].reports == {}


def test_an_event_that_cannot_be_journalled_does_not_happen(driven, monkeypatch):
    def full(event: Event) -> Event:
        raise OSError("no space left")

    driven.start()
    told = list(driven.proposer.told)
    monkeypatch.setattr(driven.journal, "append", full)
    for act in (lambda: driven.report(0, evaluated(RUNG, 0.9)), lambda: driven.end(0)):
        with pytest.raises(OSError, match="no space left"):
            act()
    record = driven.study.trials[0]
    assert (record.reports, record.standings, record.state, driven.proposer.told) == ({}, {}, None, told)


def test_a_step_reported_again_changes_nothing(driven):
    driven.start(2)
    driven.report(0, evaluated(RUNG, 0.9))
    driven.report(1, Report(2, 0.7))
    before, table = driven.events(), dict(driven.study.rule.table())
    driven.log.clear()
    assert not driven.report(0, evaluated(RUNG, 0.1))
    assert not driven.report(1, Report(2, 0.1))
    assert driven.log == []
    assert (driven.events(), driven.study.rule.table()) == (before, table)
    assert driven.study.trials[0].standings == {RUNG: 0.9}


def test_a_late_report_of_an_earlier_step_is_taken(driven):
    driven.start()
    driven.report(0, Report(3, 0.7))
    assert not driven.report(0, Report(2, 0.8))
    assert sorted(driven.study.trials[0].reports) == [2, 3]
    assert driven.study.trials[0].step == 3


# -- ends ------------------------------------------------------------------------------------------------------------


def test_a_trial_that_runs_to_its_end_is_finished_with_its_last_standing(driven):
    driven.start()
    driven.report(0, evaluated(RUNG, 0.9))
    assert not driven.report(0, evaluated(LAST, 0.85))  # no decision at the end
    assert driven.study.rule.table() == {RUNG: [0.9]}
    assert [event["event"] for event in driven.events()[-2:]] == ["reported", "ended"]
    record = driven.study.trials[0]
    assert (record.state, record.reason, record.rank) == (End.FINISHED, "ran to its end", (LAST, 0.85))
    assert driven.proposer.told == [("reported", 0, RUNG, 0.9), ("reported", 0, LAST, 0.85), ("ended", 0, 0.85, False)]


def test_a_trial_below_the_cut_off_is_pruned(driven):
    driven.start(2)
    driven.report(0, evaluated(RUNG, 0.9))
    assert driven.report(1, evaluated(RUNG, 0.8))
    record = driven.study.trials[1]
    assert (record.state, record.reason) == (End.PRUNED, "0.8000 is below the cut-off 0.9000 of 1 before it")
    assert driven.proposer.told[-1] == ("ended", 1, None, True)


def test_a_trial_at_chance_is_ranked_by_its_loss(driven):
    driven.start(3)
    assert not driven.report(0, evaluated(RUNG, 0.6, loss=0.69))  # 0.6 is not clear of 0.5 with a standard error of 0.1
    assert not driven.report(1, evaluated(RUNG, 0.5, loss=0.68))
    assert driven.report(2, evaluated(RUNG, 0.7, loss=0.70))
    assert driven.study.rule.table() == {RUNG: pytest.approx([-0.18, -0.19, -0.20])}


@pytest.mark.parametrize(("maximize", "worse"), [(True, 0.8), (False, 0.2)])
def test_the_worse_trial_is_pruned_in_both_directions(tmp_path, maximize, worse):
    driven = Driven(tmp_path, maximize=maximize)
    driven.start(2)
    assert not driven.report(0, evaluated(RUNG, 0.9 if maximize else 0.1))
    assert driven.report(1, evaluated(RUNG, worse))
    assert driven.study.best(1)[0].number == 0


def test_a_loss_that_is_not_finite_ends_a_trial_as_diverged(driven):
    driven.start(2)
    driven.report(0, Report(2, 0.7))
    driven.log.clear()
    assert driven.report(0, Report(3, nan, diverged=True))
    assert ("stored", "trial-0000", 3) not in driven.log  # the state before it is the one worth having
    assert [event["event"] for event in driven.events()[-2:]] == ["reported", "ended"]
    assert driven.events()[-2]["diverged"] is True
    record = driven.study.trials[0]
    assert (record.state, record.reason) == (End.DIVERGED, "a loss or gradient was not finite")
    assert driven.proposer.told[-1] == ("ended", 0, None, True)
    assert repr(driven.proposer.told[-2]) == repr(("reported", 0, 3, nan))


def test_diverging_at_a_rung_leaves_the_rung_alone(driven):
    driven.start(2)
    assert driven.report(0, Report(RUNG, nan, diverged=True))
    assert driven.study.rule.table() == {RUNG: []}
    assert not driven.report(1, evaluated(RUNG, 0.1))


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_validation_loss_that_is_not_finite_never_survives_a_rung(driven, bad):
    driven.start(1)
    assert driven.report(0, evaluated(RUNG, 0.9, loss=bad))
    assert driven.study.trials[0].state is End.PRUNED
    assert driven.study.rule.table() == {RUNG: []}


def test_a_trial_whose_process_is_lost_is_failed_with_its_error(driven):
    driven.start(2)
    driven.report(0, evaluated(RUNG, 0.9))
    driven.end(0, End.FAILED, "out of memory", "Traceback\nout of memory")
    ended = driven.events()[-1]
    assert (ended["state"], ended["step"], ended["reason"]) == ("FAILED", RUNG, "out of memory")
    assert ended["error"] == "Traceback\nout of memory"
    assert driven.proposer.told[-1] == ("ended", 0, None, False)


def test_a_search_out_of_time_interrupts_its_trials_at_their_next_report(tmp_path):
    late: list[bool] = []
    driven = Driven(tmp_path, out_of_time=lambda: bool(late))
    driven.start(3)
    assert not driven.report(0, Report(2, 0.7))
    late.append(True)
    assert not driven.report(1, evaluated(LAST, 0.9))  # it has come to its end anyway
    assert driven.report(0, Report(3, 0.7))
    assert driven.report(2, Report(3, nan, diverged=True))
    assert {n: record.state for n, record in driven.study.trials.items()} == {
        0: End.INTERRUPTED,
        1: End.FINISHED,
        2: End.DIVERGED,
    }
    assert driven.study.trials[0].reason == "the time budget is used up"
    assert not [told for told in driven.proposer.told if told[:2] == ("ended", 0)]  # it may go on another day


def test_a_resumed_search_out_of_time_takes_nothing_up_again(tmp_path):
    driven = Driven(tmp_path, num_trials=3)
    driven.start(3)
    driven.report(0, Report(2, 0.7))
    driven.report(2, evaluated(LAST, 0.9))
    late = Driven(tmp_path, num_trials=3, out_of_time=lambda: True)
    late.study.replay(driven.events())
    assert late.study.next() is None
    assert [record.state for record in late.study.trials.values()] == [End.INTERRUPTED, End.INTERRUPTED, End.FINISHED]


def test_a_start_after_the_end_is_not_told(driven):
    driven.start()
    driven.end(0, End.FAILED)
    lines = len(driven.events())
    driven.study.started(trial_name(0))
    assert len(driven.events()) == lines


@pytest.mark.parametrize("first", list(End))
def test_the_first_end_counts(driven, first):
    driven.start()
    driven.end(0, first, "first")
    lines = len(driven.events())
    for later in End:
        driven.end(0, later, "later")
    assert driven.report(0, evaluated(RUNG, 0.9))  # a report after the end: the trial is to stop
    assert len(driven.events()) == lines
    assert (driven.study.trials[0].state, driven.study.trials[0].reason) == (first, "first")
    assert driven.study.trials[0].reports == {}


def test_counts_are_by_end(driven):
    driven.start(5)
    for trial, end in enumerate([End.FINISHED, End.FINISHED, End.FAILED, End.INTERRUPTED]):
        driven.end(trial, end)
    assert driven.study.counts() == {
        End.FINISHED: 2,
        End.PRUNED: 0,
        End.DIVERGED: 0,
        End.FAILED: 1,
        End.INTERRUPTED: 1,
    }


# -- the best --------------------------------------------------------------------------------------------------------


def test_best_ranks_by_how_far_then_how_well_then_who_was_first(tmp_path):
    driven = Driven(tmp_path, num_trials=8, rule=NeverStop([RUNG]))
    driven.start(8)
    for trial, (step, score) in enumerate(
        [(RUNG, 0.99), (LAST, 0.80), (LAST, 0.90), (LAST, 0.90), (LAST - 1, 0.99), (LAST - 1, 0.99), (RUNG, 0.98)]
    ):
        driven.report(trial, evaluated(step, score))
    driven.end(4, End.FAILED)
    driven.end(5, End.DIVERGED)
    driven.end(6, End.INTERRUPTED)
    assert [record.number for record in driven.study.best(99)] == [2, 3, 1, 0, 6]  # the eighth was never evaluated
    assert [record.number for record in driven.study.best(2)] == [2, 3]
    assert driven.study.best(0) == []


def test_best_of_nothing_is_nothing(driven):
    driven.start(2)
    driven.report(0, Report(2, 0.7))
    assert driven.study.best(3) == []


def test_best_does_not_prefer_a_trial_whose_last_loss_is_not_finite(tmp_path):
    driven = Driven(tmp_path, rule=NeverStop([RUNG]))
    driven.start(2)
    driven.report(0, evaluated(RUNG, 0.9))
    driven.report(1, evaluated(LAST, 0.5, loss=nan))
    assert driven.study.best(1)[0].number == 0


def test_the_last_evaluation_is_the_latest_report_with_a_score(driven):
    driven.start()
    assert driven.study.trials[0].last_evaluation is None
    driven.report(0, evaluated(RUNG, 0.9))
    driven.report(0, Report(RUNG + 1, 0.7))
    assert driven.study.trials[0].last_evaluation == evaluated(RUNG, 0.9)


# -- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "report",
    [Report(3, 0.1 + 0.2), Report(3, nan, diverged=True), evaluated(7, 0.1 + 0.2, 1e-17), evaluated(7, 0, inf)],
)
def test_a_report_comes_back_from_its_event(report):
    event = json.loads(json.dumps({"event": "reported"} | event_fields(report)))
    assert repr(report_of(event)) == repr(report)


def snapshot(study: Study) -> str:
    """All that is known of a search, for comparison; NaN equals NaN."""
    trials = {n: vars(record) for n, record in study.trials.items()}
    ranking = [record.number for record in study.best(99)]
    return repr((trials, {step: list(values) for step, values in study.rule.table().items()}, ranking, study.counts()))


def fresh(journal: Journal, scheduler: Any, sampler: Any) -> Study:
    """A study of 16 trials of 9 steps with rungs at 1 and 3."""
    return made_study(
        make_proposer(space_of(), sampler, 5), make_rule(scheduler, 9, None, 3, 5), journal, max_steps=9, num_trials=16
    )


@pytest.mark.parametrize(
    ("scheduler", "sampler"), [("asha", "tpe"), ("hyperband", "random"), ("median", "random"), ("none", "tpe")]
)
def test_replay_of_every_prefix_gives_the_search_as_it_was(tmp_path, scheduler, sampler):
    live = fresh(Journal(tmp_path / "live", clock=lambda: 1.0), scheduler, sampler)
    boundaries: dict[int, str] = {}
    events: list[Event] = []
    live._listeners = (events.append,)
    Simulator(live, calls=lambda: boundaries.update({len(events): snapshot(live)})).run()

    found = live.counts()
    assert (
        min(found[end] for end in (End.FAILED, End.FINISHED, End.PRUNED if scheduler != "none" else End.DIVERGED)) > 0
    )
    events = list(Journal(tmp_path / "live").read())
    num_proposals = num_caught_up = 0
    for cut in range(len(events) + 1):
        replayed = fresh(Journal(tmp_path / f"cut-{cut}", clock=lambda: 1.0), scheduler, sampler)
        replayed.replay(events[:cut])
        # A call cut short in the middle is brought to its end, so that what it had still to say is not lost.
        whole = min(boundary for boundary in boundaries if boundary >= cut)
        assert snapshot(replayed) == boundaries[whole], cut
        assert repr(list(replayed._journal.read())) == repr(events[cut:whole]), cut
        num_caught_up += whole > cut
        if cut < len(events) and events[cut]["event"] == "proposed":
            params = replayed._proposer.propose(events[cut]["trial"])
            assert params == events[cut]["point"], cut
            num_proposals += 1
    assert num_proposals == 16
    assert num_caught_up > 16


def test_replay_tells_nobody_and_stores_nothing(driven, tmp_path):
    driven.start(2)
    driven.report(0, evaluated(RUNG, 0.9))
    driven.report(1, evaluated(RUNG, 0.8))
    (tmp_path / "again").mkdir()
    again = Driven(tmp_path / "again")
    again.study.replay(driven.events())
    assert again.log == []
    assert again.events() == []
    assert again.proposer.told == [
        ("again", 0),
        ("again", 1),
        *driven.proposer.told,
    ]


def test_trials_that_were_running_come_first_with_what_is_left_of_them(driven, tmp_path):
    driven.start(3)
    driven.report(0, evaluated(RUNG, 0.9))
    driven.report(2, Report(2, 0.7))
    driven.end(1, End.FAILED)
    (tmp_path / "again").mkdir()
    again = Driven(tmp_path / "again", num_trials=4)
    again.study.replay(driven.events())
    jobs = [again.study.next() for _ in range(4)]
    assert [job and job.name for job in jobs] == ["trial-0000", "trial-0002", "trial-0003", None]
    assert jobs[0] is not None
    assert jobs[0].reports == tuple(range(1, LAST + 1))  # the trial itself passes over what is journalled
    assert jobs[0].evaluations == {RUNG, LAST}
    assert [event["trial"] for event in again.events()] == [3]  # only the new one is proposed


@pytest.mark.parametrize("lost", [1, 2])
def test_what_a_kill_left_undone_after_a_report_is_done_on_replay(driven, tmp_path, lost):
    driven.start(2)
    driven.report(0, evaluated(RUNG, 0.9))
    driven.report(1, evaluated(RUNG, 0.8))
    (tmp_path / "again").mkdir()
    again = Driven(tmp_path / "again")
    again.study.replay(driven.events()[:-lost])
    assert again.study.trials[1].state is End.PRUNED
    assert again.events() == driven.events()[-lost:]
    assert again.study.rule.table() == {RUNG: [0.9, 0.8]}  # once each


def test_an_interrupted_trial_goes_on_after_replay(driven, tmp_path):
    driven.start()
    driven.report(0, Report(3, 0.7))
    driven.end(0, End.INTERRUPTED, "the search was interrupted")
    (tmp_path / "again").mkdir()
    again = Driven(tmp_path / "again")
    again.study.replay(driven.events())
    assert again.study.trials[0].state is None
    job = again.study.next()
    assert job is not None
    assert job.name == "trial-0000"
    again.study.end("trial-0000", End.FINISHED, "ran to its end")
    assert again.study.trials[0].state is End.FINISHED


def test_a_search_cut_anywhere_comes_to_the_same_end(tmp_path):
    live = fresh(Journal(tmp_path / "live", clock=lambda: 1.0), "asha", "tpe")
    Simulator(live, concurrent=1).run()
    events = list(Journal(tmp_path / "live").read())
    for cut in range(5, len(events), 13):
        resumed = fresh(Journal(tmp_path / f"cut-{cut}", clock=lambda: 1.0), "asha", "tpe")
        resumed.replay(events[:cut])
        Simulator(resumed, concurrent=1).run()
        assert snapshot(resumed) == snapshot(live), cut


@pytest.mark.parametrize(
    "event",
    [
        {"event": "reported", "trial": 9, "step": 3, "train_loss": 0.5},
        {"event": "decided", "trial": 9, "step": 3},
        {"event": "decided", "trial": 0, "step": 3},  # of a step without a standing
        {"event": "ended", "trial": 9, "state": "FINISHED", "reason": ""},
        {"event": "ended", "trial": 0, "state": "VANISHED", "reason": ""},
        {"event": "ended", "trial": 0},
        {"event": "reported", "trial": 0, "step": 3},
        {"event": "reported"},
        {"event": "proposed", "trial": 1},
        {"event": "proposed", "trial": 1, "point": {"prompt_length": -1}},
        {"event": "proposed", "trial": 1, "point": {"nosuch": 1}},
        {"event": "proposed", "trial": 1, "point": None},
        {"trial": 1},
    ],
)
def test_an_event_that_cannot_be_is_told_with_the_journal(driven, event):
    proposed = {"event": "proposed", "trial": 0, "point": {"prompt_length": 10}}
    with pytest.raises(StateError) as caught:
        driven.study.replay([proposed, event])
    assert str(caught.value).startswith(f"{driven.journal.path}: cannot replay {event}: ")


def test_an_event_of_another_kind_is_passed_over(driven):
    driven.study.replay([{"event": "started", "trial": 9}, {"event": "noted"}, {"event": "retrain_reported"}])
    assert driven.study.trials == {}
