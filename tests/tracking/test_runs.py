"""The run tree, on a fake store."""

import dataclasses
from typing import Any

import pytest

from adept_tune.tracking.base import SearchInfo
from adept_tune.tracking.runs import PARENT_TAG, SearchRuns
from adept_tune.tracking.translate import NOTE_TAG, translate
from tests.tracking.fakes import INFO, FakeStore, proposed, search_events, trial_events


def opened(store: FakeStore, info: SearchInfo = INFO) -> SearchRuns:
    runs = SearchRuns(store, info)
    runs.open()
    return runs


def play(runs: SearchRuns, events: list[dict[str, Any]]) -> None:
    for event in events:
        write = translate(event, INFO)
        if write is not None:
            runs.apply(write)


def test_runs_form_a_tree() -> None:
    store = FakeStore()
    play(opened(store), search_events())
    ids = {run.name: run_id for run_id, run in store.runs.items()}
    assert len(ids) == len(store.runs) == 8
    assert store.by_name("trial-0003").tags[PARENT_TAG] == ids[INFO.name]
    assert store.by_name("trial-0000-seed-2").tags[PARENT_TAG] == ids["trial-0000"]
    assert PARENT_TAG not in store.by_name(INFO.name).tags


def test_runs_retrain_shows_the_params_of_its_trial() -> None:
    store = FakeStore()
    play(opened(store), search_events())
    assert store.by_name("trial-0000-seed-2").params == {**store.by_name("trial-0000").params, "seed": "2"}


def test_runs_recording_all_again_changes_nothing() -> None:
    store = FakeStore()
    play(opened(store), search_events())
    before = {run_id: dataclasses.asdict(run) for run_id, run in store.runs.items()}
    play(opened(store), search_events())
    assert {run_id: dataclasses.asdict(run) for run_id, run in store.runs.items()} == before


def test_runs_resumed_search_continues_its_runs() -> None:
    store = FakeStore()
    runs = opened(store)
    play(runs, [*trial_events(0, "INTERRUPTED"), {"event": "finished", "time": 9, "state": "INTERRUPTED"}])
    runs.end_all("INTERRUPTED")
    assert (store.by_name("trial-0000").status, store.by_name(INFO.name).status) == ("KILLED", "KILLED")

    runs = opened(store)
    play(runs, [{"event": "started", "trial": 0, "time": 400, "incarnation": 1}])
    assert store.by_name("trial-0000").status == "RUNNING"
    assert not {"end_state", "reason"} & set(store.by_name("trial-0000").tags)
    play(runs, [{"event": "ended", "trial": 0, "time": 500, "state": "FINISHED", "step": 120}])
    runs.end_all("FINISHED")
    assert (store.by_name("trial-0000").status, store.by_name(INFO.name).status) == ("FINISHED", "FINISHED")
    assert len(store.runs) == 2


def test_runs_replayed_end_of_the_first_session_does_not_end_the_second() -> None:
    store = FakeStore()
    first = [*trial_events(0, "INTERRUPTED"), {"event": "finished", "time": 9, "state": "INTERRUPTED"}]
    play(opened(store), first)
    runs = opened(store)
    play(runs, [*first, {"event": "started", "trial": 0, "time": 400, "incarnation": 1}])
    assert store.by_name(INFO.name).status == "RUNNING"


def test_runs_replayed_interruption_after_the_winner_does_not_hide_it() -> None:
    store = FakeStore()
    session = [*search_events()[:-1], {"event": "finished", "time": 301.0, "state": "INTERRUPTED"}]
    first = opened(store)
    play(first, session)
    first.end_all("INTERRUPTED")
    second = opened(store)
    play(second, session)
    second.end_all("FINISHED")
    search = store.by_name(INFO.name)
    assert (search.status, search.tags["end_state"]) == ("FINISHED", "FINISHED")
    assert "Winner: trial 0" in search.tags[NOTE_TAG]


def test_runs_resumed_search_does_not_call_itself_interrupted() -> None:
    store = FakeStore()
    session = [*trial_events(0, "INTERRUPTED"), {"event": "finished", "time": 9, "state": "INTERRUPTED"}]
    first = opened(store)
    play(first, session)
    first.end_all("INTERRUPTED")
    assert "INTERRUPTED." in store.by_name(INFO.name).tags[NOTE_TAG]
    play(opened(store), session)
    assert "Running" in store.by_name(INFO.name).tags[NOTE_TAG]


def test_runs_steps_already_stored_are_not_sent_again() -> None:
    store = FakeStore()
    play(opened(store), trial_events(0, "FINISHED"))
    store.calls.clear()
    play(opened(store), trial_events(0, "FINISHED"))
    assert "log trial-0000 40" not in store.calls


def test_runs_lost_answer_to_a_create_makes_no_second_run() -> None:
    store = FakeStore()
    runs = opened(store)
    store.answer_lost = True
    with pytest.raises(ConnectionError):
        play(runs, [proposed(0)])
    play(runs, [proposed(0)])
    assert [run.name for run in store.runs.values()] == [INFO.name, "trial-0000"]


def test_runs_end_all_leaves_none_running() -> None:
    store = FakeStore()
    runs = opened(store)
    play(runs, [proposed(0), {"event": "started", "trial": 0, "time": 1}, *trial_events(1, "PRUNED")])
    runs.end_all("FAILED")
    assert {run.name: (run.status, run.tags["end_state"]) for run in store.runs.values()} == {
        INFO.name: ("FAILED", "FAILED"),
        "trial-0000": ("KILLED", "INTERRUPTED"),
        "trial-0001": ("FINISHED", "PRUNED"),
    }


def test_runs_children_carry_what_they_are_filtered_by() -> None:
    store = FakeStore()
    play(opened(store), search_events())
    tags = store.by_name("trial-0000-seed-2").tags
    wanted = {"search_id": "search-1", "task": "cola", "method": "adept", "trial": "0", "seed": "2"}
    assert wanted.items() <= tags.items()


def test_runs_a_tag_of_the_users_does_not_hide_the_search() -> None:
    info = dataclasses.replace(INFO, tags={"trial": "5", "seed": "1", "search_id": "other", "kind": "x"})
    store = FakeStore()
    opened(store, info)
    opened(store, info)
    assert len(store.runs) == 1


def test_runs_setting_changed_by_a_resume_is_shown() -> None:
    store = FakeStore()
    opened(store)
    opened(store, dataclasses.replace(INFO, params={**INFO.params, "trials": 20}))
    run = store.by_name(INFO.name)
    assert (run.params["trials"], run.tags["trials_on_resume"]) == ("5", "20")
    assert "model_on_resume" not in run.tags


def test_runs_demonstration_is_said() -> None:
    store = FakeStore()
    opened(store, dataclasses.replace(INFO, demonstration=True))
    (run,) = store.runs.values()
    assert (run.name, run.tags["demonstration"]) == (f"demonstration: {INFO.name}", "true")


def test_runs_event_without_proposal_still_makes_the_trial() -> None:
    store = FakeStore()
    play(opened(store), [{"event": "retrain_started", "trial": 4, "seed": 1, "time": 1}])
    assert [run.name for run in store.runs.values()] == [INFO.name, "trial-0004", "trial-0004-seed-1"]
