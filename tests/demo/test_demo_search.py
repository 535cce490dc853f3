"""The demonstration, searched as a newcomer does: it says what it is, and answers what a newcomer asks."""

import json
import re
import sqlite3

import pytest

from tests.support.finished import Finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the first test waits for the search


def test_it_is_called_a_demonstration_wherever_its_results_appear(finished: Finished) -> None:
    assert "demo (a demonstration)" in finished.output
    assert "A demonstration: these figures show the machinery" in finished.output
    assert finished.adapter["task"]["demonstration"] is True
    assert "A demonstration: it says nothing about methods." in (finished.folder / "report.html").read_text()
    connection = sqlite3.connect(finished.folder / "mlflow.db")
    names = [name for (name,) in connection.execute("select name from runs where name not like 'trial-%'")]
    connection.close()
    assert names == [f"demonstration: {finished.folder.name}"]


def test_nothing_of_ray_mlflow_or_transformers_leaks_through(finished: Finished) -> None:
    assert re.search(r"\b(WARNING|INFO|DeprecationWarning|Traceback|raylet|alembic)\b", finished.output) is None


def test_it_says_which_configuration_won_and_by_how_much(finished: Finished) -> None:
    (winner,) = finished.of("winner")
    assert f"Winner: trial {winner['trial']}. Test accuracy over 3 seeds: mean {winner['test']['mean']:.4f}" in (
        finished.output
    )
    baseline = winner["baseline"]
    if winner["trial"] != baseline["trial"]:
        gain = f"{baseline['gain']['mean']:+.4f} ± {baseline['gain']['se']:.4f}"
        assert f"Against the space's first point (trial 0): {gain}" in finished.output
    assert winner["validation"]["mean"] >= baseline["validation"]["mean"]


def test_it_says_why_trials_were_stopped(finished: Finished) -> None:
    stopped = [event for event in finished.of("ended") if event["state"] == "PRUNED"]
    assert len(stopped) >= 2
    for event in stopped:
        assert "is below the cut-off" in event["reason"]
        assert f"trial {event['trial']}: PRUNED at step {event['step']} ({event['reason']})" in finished.output


def test_the_default_is_far_above_chance_and_bad_rates_are_punished(finished: Finished) -> None:
    (winner,) = finished.of("winner")
    assert winner["baseline"]["validation"]["mean"] >= 0.75  # chance is 0.5
    points = {event["trial"]: event["params"] for event in finished.of("proposed")}
    first_rung = {
        event["trial"]: event["score"] for event in finished.of("reported") if "score" in event and event["step"] < 50
    }
    low = [score for trial, score in first_rung.items() if points[trial]["prompt_lr"] < 0.01]
    assert not low or max(low) < winner["baseline"]["validation"]["mean"]


def test_its_adapter_answers(finished: Finished) -> None:
    from adept_tune import load_adapter

    adapter = load_adapter(finished.folder / "adapter")
    rows = [json.loads(line) for line in (finished.rows / "test.jsonl").read_text().splitlines()[:300]]
    right = sum(
        answer == str(row["label"])
        for answer, row in zip(adapter.predict([row["sentence"] for row in rows]), rows, strict=True)
    )
    assert right / len(rows) == pytest.approx(finished.adapter["metrics"]["test_accuracy"], abs=0.1)
