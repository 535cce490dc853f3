"""The predict command: answers on standard output, one message on standard error, an exit code."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adept_tune.errors import TaskError
from adept_tune.predict import main, read_rows
from tests.test_adapter import TASK, Export, export, save_backbone

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("predict")
    return export(folder, save_backbone(folder / "tiny"))


def run(exported: Export, *arguments: str | Path) -> int:
    return main(["--adapter", str(exported.folder), *map(str, arguments)])


def written(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def refused(capsys: Capture) -> str:
    """The one message of a refusal; nothing was answered before it."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_texts_are_answered_in_their_order(exported: Export, capsys: Capture) -> None:
    texts = [row["sentence"] for row in exported.rows[:3]]
    assert run(exported, *(argument for text in texts for argument in ("--text", text))) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"text": text, "prediction": prediction}
        for text, prediction in zip(texts, exported.scored.texts[:3], strict=True)
    ]
    assert err == ""


def test_labelled_rows_are_answered_and_scored_as_the_search_did(
    exported: Export, tmp_path: Path, capsys: Capture
) -> None:
    assert run(exported, "--file", written(tmp_path, exported.rows)) == 0
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert answers == [
        row | {"prediction": text} for row, text in zip(exported.rows, exported.scored.texts, strict=True)
    ]
    right = sum(answer["prediction"] == TASK.labels("words")[answer["label"]] for answer in answers)
    share = right / len(answers)
    error = (share * (1 - share) / len(answers)) ** 0.5
    assert err == f"accuracy {share!r} (standard error {error:.4f}) over {len(answers)} rows\n"
    assert share == exported.scored.score.value


@pytest.mark.parametrize("labelled", [0, 3])
def test_rows_are_answered_without_a_score_where_labels_lack(
    exported: Export, tmp_path: Path, capsys: Capture, labelled: int
) -> None:
    rows = [row if i < labelled else {"sentence": row["sentence"]} for i, row in enumerate(exported.rows[:5])]
    assert run(exported, "--file", written(tmp_path, rows)) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["prediction"] for line in out.splitlines()] == list(exported.scored.texts[:5])
    assert err == ""


def test_other_fields_of_a_row_are_given_back(exported: Export, tmp_path: Path, capsys: Capture) -> None:
    row = {"id": 7, "sentence": "the cat sat", "source": {"page": None}}
    assert run(exported, "--file", written(tmp_path, [row])) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == row | {"prediction": answer["prediction"]}  # An untrained model may answer with nothing.


def test_blank_lines_are_passed_over_and_counted(exported: Export, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"sentence": "the cat"}\n  \nnot json\n')
    assert run(exported, "--file", path) == 2
    assert f"--file {path}, line 4: not a JSON object: not json" in refused(capsys)


@pytest.mark.parametrize("line", ["[1, 2]", '"the cat"', "7", "null", '{"sentence": "the'])
def test_line_that_is_no_object_is_named(exported: Export, tmp_path: Path, capsys: Capture, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"sentence": "the cat"}}\n{line}\n')
    assert run(exported, "--file", path) == 2
    assert f"--file {path}, line 2: not a JSON object: {line}" in refused(capsys)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file_is_refused(exported: Export, tmp_path: Path, capsys: Capture, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert run(exported, "--file", path) == 2
    assert f"--file {path}: no rows" in refused(capsys)


def test_missing_file_is_refused(exported: Export, tmp_path: Path, capsys: Capture) -> None:
    assert run(exported, "--file", tmp_path / "nope.jsonl") == 2
    assert "nope.jsonl" in refused(capsys)


def test_file_that_is_no_text_is_refused(exported: Export, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    assert run(exported, "--file", path) == 2
    assert f"--file {path}: 'utf-8' codec" in refused(capsys)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "the cat"}, "row 1 (the first is 0): field 'sentence' is missing; the row has text"),
        ({"sentence": ""}, "row 1 (the first is 0): field 'sentence' is ''"),
    ],
)
def test_row_that_does_not_fit_the_task_is_refused_before_any_answer(
    exported: Export, tmp_path: Path, capsys: Capture, row: Any, said: str
) -> None:
    assert run(exported, "--file", written(tmp_path, [{"sentence": "the cat"}, row])) == 2
    assert said in refused(capsys)


def test_label_outside_the_label_set_is_refused(exported: Export, tmp_path: Path, capsys: Capture) -> None:
    assert run(exported, "--file", written(tmp_path, [{"sentence": "the cat", "label": 5}])) == 2
    assert "field 'label' is 5; allowed: 0, 1" in refused(capsys)


def test_blank_text_is_refused(exported: Export, capsys: Capture) -> None:
    assert run(exported, "--text", " ") == 2
    assert "field 'sentence' is ' '" in refused(capsys)


def test_folder_without_adapter_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert main(["--adapter", str(tmp_path), "--text", "the cat"]) == 2
    assert f"{tmp_path}: no adapter there" in refused(capsys)


def test_model_that_is_not_there_is_refused(exported: Export, capsys: Capture) -> None:
    assert run(exported, "--text", "the cat", "--model", "./nope") == 2
    assert "model './nope': no such folder" in refused(capsys)


@pytest.mark.parametrize(
    "arguments", [[], ["--text", "the cat", "--file", "rows.jsonl"], ["--text", "a", "--device", "tpu"], ["--txt", "a"]]
)
def test_bad_command_line_ends_in_usage_and_exit_code_2(
    exported: Export, capsys: Capture, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(exported, *arguments)
    assert caught.value.code == 2
    assert "usage: python -m adept_tune.predict" in capsys.readouterr().err


def test_bad_rows_are_refused_before_the_model_is_loaded(tmp_path: Path, capsys: Capture) -> None:
    path = written(tmp_path, [[1]])
    assert main(["--adapter", str(tmp_path / "nope"), "--file", str(path)]) == 2
    assert "line 1: not a JSON object" in refused(capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_that_is_not_there_is_refused(exported: Export, capsys: Capture) -> None:
    assert run(exported, "--text", "the cat", "--device", "cuda") == 2
    assert "cuda" in refused(capsys)


@pytest.mark.parametrize("text", ["ö ü 猫", "a\\nb", 'say "no"', "a\tb\rc\x0bd\x1ce"])
def test_read_rows_gives_back_what_was_written(tmp_path: Path, text: str) -> None:
    rows = [{"sentence": text, "label": 1}, {"sentence": "the cat", "label": 0}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert read_rows(path) == rows


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_read_rows_takes_unicode_line_separators_for_text(tmp_path: Path, separator: str) -> None:
    rows = [{"sentence": f"the cat{separator}sat"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows[0], ensure_ascii=False), encoding="utf-8")
    try:
        assert read_rows(path) == rows
    except TaskError as error:
        pytest.fail(str(error))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"sentence": "süß"}\n'.encode())
    assert read_rows(path) == [{"sentence": "süß"}]


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"sentence": "a"}\r\n{"sentence": "b"}\r\n')
    assert [row["sentence"] for row in read_rows(path)] == ["a", "b"]


def test_help_tells_every_option(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", "--help"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--adapter", "--text", "--file", "--model", "--device"))
