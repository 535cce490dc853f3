"""The commands: what they refuse, how they share a budget, and that a killed one does not repeat itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adept_tune.methods import METHODS
from adept_tune.tasks import TASKS, get_task
from adept_tune.tasks.rows import load_splits
from tests.paper.conftest import PAPER
from tests.support.sessions import ROOT, mlflow_states, said_twice

COMMANDS = ("glue_superglue", "mrqa", "others", "scale", "length_width", "few_shot")
LIMIT_S = 240.0


def start(command: str, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, str(PAPER / f"{command}.py"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cells_of(command: str, *words: str) -> list[Any]:
    """The cells of a command line, none of which is run."""
    module = __import__(command)
    from command import asked_for

    return module.STUDY.cells(asked_for(module.STUDY, words))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from command import main

    with pytest.raises(SystemExit) as ended:
        main(__import__(command).STUDY, ["--help"])
    assert ended.value.code == 0
    assert "--budget-minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "sst2,snli"], "snli given; allowed: cola, sst2"),
        (["--methods", "magic"], "magic given; allowed: adept"),
        (["--budget-minutes", "0"], "--budget-minutes 0.0: give a number above 0"),
        (["--task", "sst2"], "--task: the table sets"),
        (["--smoke", "--model", "m"], "--smoke makes model and rows itself"),
    ],
)
def test_bad_input_is_told_before_anything_is_run(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import glue_superglue
    from command import main

    assert main(glue_superglue.STUDY, [*words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_first_table_has_fourteen_tasks_and_every_method(tmp_path: Path) -> None:
    cells = cells_of("glue_superglue", "--out", str(tmp_path))
    assert len({cell.column for cell in cells}) == 14
    assert {cell.line for cell in cells} == set(METHODS)
    assert len({cell.place for cell in cells}) == 14 * len(METHODS)


def test_a_table_of_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import glue_superglue
    from command import SETTINGS, main

    out = tmp_path / "out"
    out.mkdir()
    (out / SETTINGS).write_text(json.dumps({"model": "m", "data_dir": "None", "searches": ["--trials", "3"]}))
    assert main(glue_superglue.STUDY, ["--out", str(out), "--model", "m", "--trials", "4"]) == 2
    told = capsys.readouterr().err
    assert "holds a table of other settings" in told
    assert "'3'" in told
    assert "'4'" in told


def test_a_failed_cell_costs_the_others_nothing_and_is_a_dash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cells
    import glue_superglue
    from command import main

    def fail(request: Any, *_: Any, **__: Any) -> int:
        raise RuntimeError(f"no luck with {request.method}")

    monkeypatch.setattr(cells, "run_search", fail)
    words = ["--tasks", "rte", "--methods", "adept,dept", "--out", str(tmp_path), "--budget-minutes", "2"]
    assert main(glue_superglue.STUDY, words) == 3
    out = capsys.readouterr().out
    assert "[1/2] adept on rte, 60 s" in out
    assert "[2/2] dept on rte, 120 s" in out  # what the first left unused is there for the second
    table = (tmp_path / "table.md").read_text()
    assert "- adept on rte: RuntimeError: no luck with adept" in table
    assert "| adept | – | – |" in table
    assert "Traceback" in (tmp_path / "cells" / "adept" / "rte" / "search.log").read_text()


def test_lengths_and_widths_fill_the_budget() -> None:
    from length_width import sizes

    assert sizes("adept", [0, 20, 40, 60, 80], 100, 768, 256) == [
        *((0, 49), (20, 39), (40, 29), (60, 19), (80, 9)),
        (99, 0),
    ]
    assert sizes("dept", [20, 40, 60, 80, 100], 100, 768, 256) == [(20, 60), (40, 45), (60, 30), (80, 15), (100, 0)]
    assert sizes("prompt-tuning", [0, 20], 100, 768, 256) == [(100, 0)]


@pytest.mark.tasks
@pytest.mark.filterwarnings("ignore:task .* the published runs had")
@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.demonstration])
def test_made_rows_fit_the_task(name: str, tmp_path: Path) -> None:
    import smoke

    splits = load_splits(get_task(name), smoke.save_rows(tmp_path, [name]))
    task = TASKS[name]
    if task.answers is None and task.label_step is None:
        labels = {task.label_index(row) for row in splits.test.rows()}
        assert labels == set(range(task.num_labels))


@pytest.mark.filterwarnings("ignore:task .* the published runs had")
def test_few_shots_are_even_over_labels_and_leave_the_test_rows(tmp_path: Path) -> None:
    import few_shot
    import smoke

    known = set(TASKS)
    try:
        splits = load_splits(TASKS["cb"], smoke.save_rows(tmp_path, ["cb"]))
        name = few_shot.register(TASKS["cb"], splits, 7, 0, tmp_path / "draw")
        found = load_splits(TASKS[name], tmp_path / "draw")
        labels = [TASKS[name].label_index(row) for row in found.train.rows()]
        assert sorted(labels.count(label) for label in range(3)) == [2, 2, 3]
        assert list(found.test.rows()) == list(splits.test.rows())
        assert few_shot.draw_rows(TASKS["cb"], splits.train, 7, 0) != few_shot.draw_rows(
            TASKS["cb"], splits.train, 7, 1
        )
    finally:
        for added in set(TASKS) - known:
            del TASKS[added]


@pytest.mark.slow
def test_a_killed_table_goes_on_without_repeating_a_finished_cell(tmp_path: Path) -> None:
    words = ["--smoke", "--tasks", "sst2,wsc", "--methods", "adept", "--out", str(tmp_path)]
    first, second = (tmp_path / "cells" / "adept" / task / "journal.jsonl" for task in ("sst2", "wsc"))
    process = start("glue_superglue", *words)
    deadline = time.monotonic() + LIMIT_S
    while not (second.exists() and "retraining" in second.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = first.read_bytes()
    again = start("glue_superglue", *words)
    out, err = again.communicate(timeout=LIMIT_S)
    assert again.returncode == 0, out + err
    assert "2 cells, 1 finished before" in out
    assert first.read_bytes() == before
    assert said_twice([json.loads(line) for line in second.read_text().splitlines()]) == []
    assert mlflow_states(tmp_path / "mlflow.db") == {"search FINISHED": 2, "trial FINISHED": 2, "retrain FINISHED": 4}
    table = (tmp_path / "table.md").read_text()
    assert "Without a number" not in table
    assert "these numbers show the machinery and say nothing of the methods" in table


def test_time_is_shared_half_equally_and_half_by_rows() -> None:
    from cells import Cell, shares

    cells = [Cell("a", "x", (), num_rows=300), Cell("a", "y", (), num_rows=100), Cell("a", "z", ())]
    assert shares(cells, 60.0) == pytest.approx([10 + 15, 10 + 5, 10 + 10])
    assert shares([Cell("a", "x", ())], 60.0) == [60.0]
