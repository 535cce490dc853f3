"""A task of the user's own: a YAML file beside its rows."""

import csv
import json
import random
from pathlib import Path

import pytest

from adept_tune import predict, search
from adept_tune.errors import TaskError
from adept_tune.tasks import get_task
from adept_tune.tasks.rows import load_splits

SPAM = """
rows: spam.csv
columns: [message]
template: "message: {message}"
label_column: kind
labels: {no: fine, spam: spam}
"""
DEMO_MODEL = Path(predict.__file__).parent / "demo" / "model"


def write_messages(path: Path, count: int = 200) -> None:
    rng = random.Random(0)
    words = {"no": ["lunch", "meeting", "thanks", "tomorrow"], "spam": ["win", "cash", "free", "prize"]}
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["kind", "message"])
        for number in range(count):
            kind = "spam" if number % 2 else "no"
            rows.writerow([kind, " ".join(rng.choices(words[kind], k=5))])


@pytest.fixture
def spam(tmp_path: Path) -> Path:
    write_messages(tmp_path / "spam.csv")
    (tmp_path / "spam.yaml").write_text(SPAM)
    return tmp_path / "spam.yaml"


def test_a_file_is_a_task_called_as_the_file_is(spam: Path) -> None:
    task = get_task(str(spam))
    assert (task.name, task.reference) == ("spam", str(spam))
    assert task.label_sets == {"digits": ("0", "1"), "words": ("fine", "spam")}
    assert task.label_index({"kind": "no"}) == 0  # the word, which YAML itself would read as false
    assert task.source({"message": "win cash"}) == "message: win cash"


def test_one_file_of_rows_is_split_in_three_without_overlap(spam: Path) -> None:
    splits = load_splits(get_task(str(spam)))
    assert [len(rows) for rows in (splits.train, splits.validation, splits.test)] == [120, 40, 40]
    whole = sorted(
        (row["kind"], row["message"])
        for rows in (splits.train, splits.validation, splits.test)
        for row in map(rows.row, range(len(rows)))
    )
    with (spam.parent / "spam.csv").open() as file:
        assert whole == sorted((row["kind"], row["message"]) for row in csv.DictReader(file))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", "validation"], (200, 50, 50)),
        (["train", "test"], (180, 20, 100)),
        (["train", "validation", "test"], (200, 100, 100)),
    ],
)
def test_files_by_split_follow_the_rules_of_the_published_tasks(
    spam: Path, splits: list[str], expected: tuple[int, int, int]
) -> None:
    for split in splits:
        write_messages(spam.parent / f"{split}.csv", 200 if split == "train" else 100)
    spam.write_text(SPAM.replace("spam.csv", "{" + ", ".join(f"{s}: {s}.csv" for s in splits) + "}"))
    found = load_splits(get_task(str(spam)))
    assert (len(found.train), len(found.validation), len(found.test)) == expected


def test_all_faults_of_a_file_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "rows: {train: gone.csv, validation: rows.txt}\ncolumns: [text]\ntemplate: '{message}'\ncolums: x\n"
        "labels: {a: same, b: same}\nmetric: bleu\nmax_source_length: 1\nlabel_column: [x]\n"
    )
    with pytest.raises(TaskError) as caught:
        get_task(str(path))
    message = str(caught.value)
    assert message.startswith(f"task file {path}:\n  ")
    for said in (
        "colums: unknown key; did you mean columns?",
        "label_column: ['x']; give the name of a column",
        "template: '{message}' has ['message'], columns are ['text']",
        "labels: {'a': 'same', 'b': 'same'}; give two or more",
        "metric: 'bleu'; choose one of accuracy, matthews",
        "max_source_length: '1'; give a whole number of at least 2",
        f"rows: train: {tmp_path / 'gone.csv'}: no such file",
        "rows: validation: rows.txt is none of jsonl, csv, tsv, parquet",
    ):
        assert said in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("", "holds no keys; it needs rows, columns, template, labels"),
        ("- a\n", "holds no keys"),
        ("a: [", "not YAML ("),
        ("rows: !!python/object/apply:os.system [ls]\n", "rows: ['ls']; give a file"),
        ("{}", "holds no keys"),
        ("metric: accuracy", "columns: None; give a list"),
        ("template: 'a {'", "template: 'a {'"),
        ("columns: [a.b]\ntemplate: '{a.b}'", "whose name has no dots or brackets and is no number"),
        ("columns: ['0']\ntemplate: '{0}'", "whose name has no dots or brackets and is no number"),
        ("columns: [a]\ntemplate: '{a!x}'", "template: '{a!x}'"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TaskError) as caught:
        get_task(str(path))
    assert said in str(caught.value)


def test_a_column_of_booleans_may_be_the_label(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 2 == 0} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "flags.yaml"
    path.write_text("rows: rows.jsonl\ncolumns: [text]\ntemplate: '{text}'\nlabels: {'true': spam, 'false': ham}\n")
    task = get_task(str(path))
    assert [task.label_index(row) for row in rows[:2]] == [0, 1]
    assert len(load_splits(task).train) > 0


def test_a_row_that_does_not_fit_is_named(spam: Path) -> None:
    with (spam.parent / "spam.csv").open("a") as file:
        file.write("unsure,what is this\n")
    with pytest.raises(TaskError, match=r"task spam: train in .*spam.csv: row 200 .*'kind' is 'unsure'; allowed: no,"):
        load_splits(get_task(str(spam)))


@pytest.mark.slow
def test_a_whole_search_on_a_task_of_ones_own(
    spam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADEPT_TUNE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "experiment"
    command = ["--task", str(spam), "--model", str(DEMO_MODEL), "--space", "adept-demo", "--trials", "3"]
    command += ["--max-steps", "20", "--batch-size", "8", "--finalists", "1", "--seeds", "1", "--device", "cpu"]
    assert search.main([*command, "--experiment", str(folder)]) == 0
    assert "Task      spam: accuracy" in capsys.readouterr().out
    description = json.loads((folder / "adapter" / "adapter.json").read_text())
    assert description["task"]["label_values"] == ["no", "spam"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"message": "win cash", "kind": "spam"}) + "\n")
    assert predict.main(["--adapter", str(folder / "adapter"), "--file", str(rows)]) == 0
    assert "accuracy" in capsys.readouterr().err
