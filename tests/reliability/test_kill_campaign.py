"""The kill campaign, short: a search that is killed and resumed is the one that never was."""

import argparse
import random
from pathlib import Path

import pytest

from experiments.reliability import kill_campaign
from experiments.reliability.kill_campaign import Kill, draw_kills


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("slots", "kills"), [(1, 5), (4, 2)])
def test_a_killed_search_loses_nothing(slots: int, kills: int, tmp_path: Path) -> None:
    out = tmp_path / "out.md"
    options = {"kills": kills, "slots": slots, "jobs": 2, "work": tmp_path, "out": out}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    code = kill_campaign.main(arguments)
    table = out.read_text()
    assert code == 0, table
    assert f"**{kills} of {kills}" in table


def test_kills_are_spread_over_the_journal(tmp_path: Path) -> None:
    lines = [f'{{"event": "reported", "time": {i}, "trial": {i}, "step": 1}}' for i in range(50)]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    kills = draw_kills(tmp_path, 100, random.Random(0))
    assert [kill.place for kill in kills].count("inside") == 20
    assert [kill.place for kill in kills].count("before") == 20
    assert len({kill.line for kill in kills}) > 30
    assert all(0 <= kill.delay_s <= 1 for kill in kills)


@pytest.mark.parametrize("arguments", [["--kills", "0"], ["--slots", "0"]])
def test_main_refuses_impossible_arguments(arguments: list[str], tmp_path: Path) -> None:
    assert kill_campaign.main([*arguments, "--work", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_a_difference_is_told(tmp_path: Path) -> None:
    assert kill_campaign._same([1, 2], [1, 3]) == "number 1 is 3 instead of 2"
    assert kill_campaign._same([1, 2], [1]) == "1 instead of 2"
    assert kill_campaign._same(b"a", b"b") == "differs"
    event = {"event": "reported", "trial": 0, "step": 4}
    assert kill_campaign.repeated([event, event, event | {"step": 5}]) == 1
    ended = {"event": "ended", "trial": 3, "state": "FAILED"}
    runs = kill_campaign.runs_of([ended, ended | {"event": "retrain_ended", "seed": 2, "state": "DIVERGED"}])
    assert runs == {
        "search FINISHED FINISHED": 1,
        "trial-0003 FAILED FAILED": 1,
        "trial-0003-seed-2 FINISHED DIVERGED": 1,
    }
    assert not kill_campaign.Outcome({"a": "same", "b": "differs"}).exact


def test_the_arguments_of_a_campaign_are_those_of_a_search(tmp_path: Path) -> None:
    from adept_tune import search

    options = argparse.Namespace(trials=24, max_steps=135, slots=1)
    parsed = search.parser().parse_args(kill_campaign.arguments(tmp_path, options))
    assert (parsed.task, parsed.trials, parsed.trials_per_gpu) == ("demo", 24, "1")
    assert Kill(0, "inside", 0.0).place in ("before", "inside", "after")
