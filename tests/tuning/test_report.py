"""The report: written from the journal alone, whole, readable without a network."""

import json
from pathlib import Path

import pytest

from adept_tune import report as command
from adept_tune.errors import StateError
from adept_tune.tuning.plots import _optuna_study
from adept_tune.tuning.record import Record, parts_s
from adept_tune.tuning.report import write_report
from adept_tune.tuning.space import read_space
from adept_tune.tuning.spec import SearchSpec
from tests.support.search import spec_fields


def params(lr: float) -> dict[str, object]:
    return {"prompt_length": 10, "ffn_width": 4, "relative_prompt_lr": lr / 5, "prompt_lr": lr, "ffn_lr": 1e-3}


def evaluated(kind: str, trial: int, step: int, score: float, **more: object) -> dict[str, object]:
    fields = {"train_loss": 1 - score, "score": score, "standard_error": 0.02, "loss": 0.5}
    return {"event": kind, "trial": trial, "step": step} | fields | more


EVENTS = [
    {"event": "proposed", "trial": 0, "point": {}, "params": params(0.3), "num_parameters": 500},
    {"event": "started", "trial": 0},
    {"event": "proposed", "trial": 1, "point": {}, "params": params(0.03), "num_parameters": 500},
    {"event": "started", "trial": 1},
    {"event": "proposed", "trial": 2, "point": {}, "params": params(0.9), "num_parameters": 500},
    {"event": "started", "trial": 2},
    evaluated("reported", 0, 3, 0.6),
    evaluated("reported", 1, 3, 0.4),
    {"event": "ended", "trial": 1, "state": "PRUNED", "step": 3, "reason": "0.4 <is> below"},
    evaluated("reported", 0, 9, 0.8),
    {"event": "ended", "trial": 0, "state": "FINISHED", "step": 9, "reason": "ran to its end"},
    {"event": "reported", "trial": 2, "step": 1, "train_loss": float("nan"), "diverged": True},
    {"event": "ended", "trial": 2, "state": "DIVERGED", "step": 1, "reason": "not finite"},
    {"event": "retraining", "finalists": [0], "seeds": 2},
    {"event": "retrain_started", "trial": 0, "seed": 1},
    evaluated("retrain_reported", 0, 9, 0.7, seed=1),
    {"event": "retrain_ended", "trial": 0, "seed": 1, "state": "FINISHED", "step": 9, "reason": ""},
    evaluated("retrain_reported", 0, 9, 0.9, seed=2),
    {"event": "retrain_ended", "trial": 0, "seed": 2, "state": "FINISHED", "step": 9, "reason": ""},
    {"event": "tested", "trial": 0, "seed": 1, "score": 0.71, "standard_error": 0.03},
    {
        "event": "winner",
        "trial": 0,
        "seed": 2,
        "params": params(0.3),
        "validation": {"mean": 0.8, "sd": 0.1, "se": 0.1},
        "test": {"mean": 0.71, "sd": 0.0, "se": 0.03},
    },
    {"event": "finished", "state": "FINISHED"},
]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    space = read_space("adept").model_dump(mode="json")
    SearchSpec(**spec_fields(space=space, max_steps=9)).write(tmp_path)
    return tmp_path


def journal(folder: Path, num_events: int) -> None:
    lines = [json.dumps(event | {"time": 100.0 + i}) for i, event in enumerate(EVENTS[:num_events])]
    (folder / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_record_tells_trials_finalists_and_winner(experiment):
    journal(experiment, len(EVENTS))
    record = Record.read(experiment)
    assert [story.state for story in record.trials.values()] == ["FINISHED", "PRUNED", "DIVERGED"]
    assert record.trials[0].scores == {3: 0.6, 9: 0.8}
    assert record.finalists()[0].mean == pytest.approx(0.8)
    assert record.reruns[0, 1].test == (0.71, 0.03)
    assert record.parts_s == {"search": 13.0, "retraining": 6.0, "test": 2.0}


def test_time_between_a_kill_and_its_resumption_is_nobodys():
    times = [("proposed", 0.0), ("reported", 10.0), ("resumed", 5000.0), ("reported", 5003.0), ("retraining", 5004.0)]
    assert parts_s({"event": kind, "time": time} for kind, time in times) == {
        "search": 13.0,
        "retraining": 1.0,
        "test": 0.0,
    }


def test_a_new_retraining_has_no_winner_yet(experiment):
    journal(experiment, len(EVENTS))
    record = Record.read(experiment)
    record.take({"event": "retraining", "finalists": [0, 1], "seeds": 3})
    assert (record.winner, record.reruns, record.num_reruns) == (None, {}, 6)


def test_a_folder_that_takes_no_report_is_told(experiment, capsys):
    journal(experiment, len(EVENTS))
    (experiment / "plots").write_text("in the way")
    assert command.main(["--experiment", str(experiment)]) == 2
    assert f"error: --experiment {experiment}: cannot write there (" in capsys.readouterr().err


def test_page_holds_everything_and_asks_for_nothing(experiment):
    journal(experiment, len(EVENTS))
    page, *plots = write_report(experiment)
    text = page.read_text()
    assert "Winner: trial 0" in text
    assert "mean 0.7100" in text
    assert "0.4 &lt;is&gt; below" in text
    assert text.count("data:image/png;base64,") == len(plots) >= 5
    assert "http" not in text  # self-contained
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)


@pytest.mark.parametrize("num_events", [0, 1, 2, 7, 9, 14])
def test_unfinished_search_has_a_report(experiment, num_events):
    journal(experiment, num_events)
    assert "There is none yet" in write_report(experiment)[0].read_text()


def test_an_event_of_a_trial_that_was_never_proposed_is_refused(experiment):
    journal(experiment, len(EVENTS))
    record = Record(SearchSpec.read(experiment))
    with pytest.raises(StateError, match=r"journal\.jsonl: trial 0 was never proposed"):
        record.take(EVENTS[1])


def test_a_first_point_between_two_steps_is_drawn(experiment):
    journal(experiment, len(EVENTS))
    lines = (experiment / "journal.jsonl").read_text().replace('"prompt_length": 10', '"prompt_length": 13')
    (experiment / "journal.jsonl").write_text(lines)
    study = _optuna_study(Record.read(experiment))
    assert [trial.params["prompt_length"] for trial in study.trials] == [13, 13]


def test_no_experiment_is_told(tmp_path, capsys):
    assert command.main(["--experiment", str(tmp_path)]) == 2
    assert "no experiment there" in capsys.readouterr().err
