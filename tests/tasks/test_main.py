import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adept_tune.tasks import __main__ as cli
from tests.tasks.files import ROWS, write_splits


@pytest.fixture
def cola(tmp_path: Path) -> Path:
    return write_splits(tmp_path / "cola")


def test_show_prints_counts_and_rows(cola: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "cola", "--data-dir", str(cola), "--rows", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"cola from {cola / 'cola'}: 6 train, 3 validation, 3 test; styles of target: digits | words",
        "train 0: sentence: the cat sat -> 1 | acceptable",
        "train 1: sentence: the dog ran -> 0 | unacceptable",
    ]
    assert err.startswith("warning: task cola: ")
    assert "the published runs had 8,551 train, 521 validation, 522 test" in err


@pytest.mark.parametrize(("rows", "lines"), [("0", 1), ("2", 3), ("99", 4)])
def test_show_prints_as_many_rows_of_the_split_as_there_are(
    cola: Path, capsys: pytest.CaptureFixture[str], rows: str, lines: int
) -> None:
    assert cli.main(["show", "cola", "--data-dir", str(cola), "--split", "test", "--rows", rows]) == 0
    assert len(capsys.readouterr().out.splitlines()) == lines


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["show", "colla"], "did you mean 'cola'?"),
        (["show", "cola", "--data-dir", "/nowhere"], "/nowhere/cola"),
    ],
)
def test_show_ends_with_one_message_and_code_2(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("args", [["show", "cola", "--rows", "-1"], ["show", "cola", "--split", "dev"], ["show"], []])
def test_show_refuses_wrong_arguments_with_code_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_importing_tasks_loads_no_heavy_library() -> None:
    heavy: Any = {
        "torch",
        "transformers",
        "datasets",
        "sklearn",
        "pandas",
        "huggingface_hub",
        "ray",
        "mlflow",
    }
    code = (
        "import sys, adept_tune.hub, adept_tune.tasks, adept_tune.tasks.rows, adept_tune.tasks.tokens\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_show_runs_as_a_module(cola: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "adept_tune.tasks",
        "show",
        "cola",
        "--data-dir",
        str(cola),
        "--rows",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ROWS["sentence"][0] in done.stdout
