"""Events to writes."""

import math
from typing import Any

import pytest

from adept_tune.tracking.base import SearchInfo
from adept_tune.tracking.translate import (
    RUN_STATUS,
    RunKey,
    as_params,
    as_tags,
    end_of,
    metric_name,
    translate,
)
from tests.tracking.fakes import INFO, TRACEBACK, proposed


def test_translate_proposed_gives_params_and_their_count() -> None:
    write = translate(proposed(3), INFO)
    assert write is not None
    assert write.key == RunKey(3)
    assert write.time_ms == 100_000
    assert write.params == {
        "prompt_length": "63",
        "ffn_width": "19",
        "prompt_lr": "0.3",
        "ffn_lr": "0.0001",
        "num_parameters": "76051",
    }


def test_translate_report_without_evaluation_has_only_the_training_loss() -> None:
    write = translate({"event": "reported", "trial": 3, "time": 1, "step": 40, "train_loss": 0.31}, INFO)
    assert write is not None
    assert (write.step, write.metrics) == (40, {"step": 40.0, "train_loss": 0.31})


def test_translate_report_with_evaluation_names_the_metric() -> None:
    event = {
        "event": "reported",
        "trial": 3,
        "time": 1,
        "step": 40,
        "train_loss": 0.31,
        "score": 0.8,
        "loss": 0.2,
    }
    write = translate(event, INFO)
    assert write is not None
    assert set(write.metrics) == {"step", "train_loss", "validation_loss", "validation_matthews", "score"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "NaN"])
def test_translate_report_keeps_what_is_not_finite_as_nan(value: Any) -> None:
    write = translate({"event": "reported", "trial": 3, "time": 1, "step": 40, "train_loss": value}, INFO)
    assert write is not None
    assert math.isnan(write.metrics["train_loss"])


def test_translate_seed_in_a_trials_event_does_not_make_it_a_retrain() -> None:
    write = translate({"event": "reported", "trial": 3, "seed": 9, "time": 1, "step": 1}, INFO)
    assert write is not None
    assert write.key == RunKey(3)


@pytest.mark.parametrize("kind", ["retrain_started", "retrain_reported", "retrain_ended", "tested"])
def test_translate_retrain_events_belong_to_trial_and_seed(kind: str) -> None:
    event = {"event": kind, "trial": 3, "seed": 9, "time": 1, "step": 1, "state": "FINISHED", "score": 0.5}
    write = translate(event, INFO)
    assert write is not None
    assert write.key == RunKey(3, 9)
    assert write.key.name == "trial-0003-seed-9"


@pytest.mark.parametrize(("state", "status"), RUN_STATUS.items())
def test_translate_ended_tells_all_states_apart(state: str, status: str) -> None:
    write = translate({"event": "ended", "trial": 3, "time": 1, "state": state, "step": 1}, INFO)
    assert write is not None
    assert (write.tags, write.status) == ({"end_state": state}, status)


def test_translate_ended_keeps_the_traceback_and_shows_its_last_line() -> None:
    event = {"event": "ended", "trial": 3, "time": 1, "state": "FAILED", "step": 1, "error": TRACEBACK}
    write = translate(event, INFO)
    assert write is not None
    assert write.tags["error"] == "RuntimeError: out of memory"
    assert write.texts == {"error.txt": TRACEBACK}


def test_translate_ended_unknown_state_lists_the_states() -> None:
    with pytest.raises(ValueError, match="'STOPPED' is none of FINISHED, PRUNED, DIVERGED, FAILED, INTERRUPTED"):
        end_of(RunKey(3), "STOPPED", 1)


@pytest.mark.parametrize(("action", "expected"), [("stop", {"reason": "below", "rung": "1"}), ("continue", None)])
def test_translate_decided_shows_only_stops(action: str, expected: dict[str, str] | None) -> None:
    event = {
        "event": "decided",
        "trial": 3,
        "time": 1,
        "step": 40,
        "rung": 1,
        "action": action,
        "reason": "below",
    }
    write = translate(event, INFO)
    assert (write and write.tags) == expected


def test_translate_winner_summarises_on_the_search_run() -> None:
    event = {
        "event": "winner",
        "time": 1,
        "trial": 3,
        "seed": 2,
        "params": {"prompt_length": 60},
        "validation": {"mean": 0.9, "sd": 0.02, "se": 0.01},
        "test": {"mean": 0.8, "sd": 0.02, "se": math.nan},
        "baseline": None,
    }
    write = translate(event, INFO)
    assert write is not None
    assert write.key == RunKey()
    note = write.tags.pop("mlflow.note.content")
    assert write.tags == {"winner_trial": "3", "winner_seed": "2", "winner_prompt_length": "60"}
    assert note.startswith("Winner: trial 3, test matthews 0.800 ± nan, validation matthews 0.900 ± 0.010 ")
    assert "; prompt_length 60.\n" in note
    assert write.metrics["winner_validation_mean"] == 0.9
    assert math.isnan(write.metrics["winner_test_se"])
    assert write.metrics["score"] == 0.9
    assert len(write.metrics) == 7


def test_translate_lets_other_kinds_pass() -> None:
    assert translate({"event": "host_lost", "time": 1}, INFO) is None


def test_names_and_values_fit_mlflow() -> None:
    assert metric_name("recall@5") == "recall_5"
    assert as_params({"note": "x" * 7000}) == {"note": "x" * 6000}
    assert as_tags({"a@b": 1, "none": None}) == {"a_b": "1"}


@pytest.mark.parametrize("search_id", ["", "it's"])
def test_search_info_refuses_an_id_that_cannot_be_looked_up(search_id: str) -> None:
    with pytest.raises(ValueError, match="give letters, digits"):
        SearchInfo(search_id, "n", "t", "m", "a")
