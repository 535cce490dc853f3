import json
import math
import os
import socket
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adept_tune.errors import TaskError
from adept_tune.tasks import Task
from adept_tune.tasks.reading import SUFFIXES
from adept_tune.tasks.rows import Rows, Splits, load_splits
from tests.tasks.files import ROWS, SENTENCES, TASK, write, write_splits

HALVED = replace(TASK, split_rule="halve_validation")
HELD_OUT = replace(TASK, split_rule="hold_out_train")


def numbered(num_rows: int) -> dict[str, list[Any]]:
    return {"sentence": [f"row {i}" for i in range(num_rows)], "label": [i % 2 for i in range(num_rows)]}


def sentences(rows: Rows) -> list[str]:
    return list(rows.columns["sentence"])


def permutation(num_rows: int) -> list[int]:
    generator = torch.Generator()
    generator.manual_seed(42)
    return [int(i) for i in torch.randperm(num_rows, generator=generator)]


# --- reading ---


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_load_splits_reads_the_same_rows_from_every_format(tmp_path: Path, suffix: str) -> None:
    awkward = ["null", "NA", "1999", 'a "quoted, word', "it 's , fine", "naïve – été", "007"]
    columns = {"sentence": awkward, "label": [0, 1, 0, 1, 0, 1, 0], "idx": list(range(7))}
    data_dir = write_splits(tmp_path / "toy", suffix, train=columns)
    splits = load_splits(TASK, data_dir)
    assert sentences(splits.train) == awkward
    labels = [TASK.label_index(splits.train.row(i)) for i in range(len(splits.train))]
    assert labels == columns["label"]
    assert set(splits.train.columns) == {"sentence", "label"}
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [7, 6, 6]
    assert splits.origin == str(tmp_path / "toy")


def test_load_splits_takes_quotes_in_tsv_as_ordinary_characters(tmp_path: Path) -> None:
    data_dir = write_splits(
        tmp_path / "toy", "tsv", train={"sentence": ['"open', 'a "b" c', 'shut"'], "label": [0, 1, 0]}
    )
    assert sentences(load_splits(TASK, data_dir).train) == ['"open', 'a "b" c', 'shut"']


def test_load_splits_reads_a_csv_that_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy", "csv")
    path = tmp_path / "toy" / "train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert sentences(load_splits(TASK, data_dir).train) == SENTENCES


def test_load_splits_reads_what_a_file_holds_now(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy")
    before = (tmp_path / "toy" / "train.jsonl").stat()
    load_splits(TASK, data_dir)
    path = write(tmp_path / "toy" / "train.jsonl", numbered(3))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # a cache that goes by time would miss it
    assert sentences(load_splits(TASK, data_dir).train) == ["row 0", "row 1", "row 2"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_load_splits_from_files_opens_no_connection(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked")

    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # otherwise `datasets` would not even try
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(load_splits(TASK, write_splits(tmp_path / "toy", suffix)).train) == 6


def test_load_splits_takes_rows_that_ship_with_the_package(tmp_path: Path) -> None:
    write_splits(tmp_path / "rows")
    packaged = replace(TASK, packaged=str(tmp_path / "rows"))  # an absolute path stands for one in the package
    assert sentences(load_splits(packaged).train) == SENTENCES


def test_load_splits_obeys_a_data_folder_for_a_packaged_task_too(tmp_path: Path) -> None:
    write_splits(tmp_path / "rows")
    packaged = replace(TASK, packaged=str(tmp_path / "rows"))
    with pytest.raises(TaskError, match="does not exist"):
        load_splits(packaged, tmp_path / "elsewhere")


def test_load_splits_needs_a_folder_for_a_task_that_is_nowhere_else() -> None:
    with pytest.raises(TaskError, match=r"task toy: .*neither in the package nor on the Hub; give --data-dir DIR"):
        load_splits(TASK)


# --- what can be wrong with files ---


def test_load_splits_names_a_missing_folder_and_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as caught:
        load_splits(HALVED, tmp_path)
    assert f"task toy: folder {tmp_path / 'toy'} does not exist; put train.jsonl and validation.jsonl there" in str(
        caught.value
    )
    assert "itself holds such files" not in str(caught.value)


def test_load_splits_sees_that_the_folder_of_the_task_was_given(tmp_path: Path) -> None:
    write_splits(tmp_path / "toy")
    with pytest.raises(TaskError) as caught:
        load_splits(TASK, tmp_path / "toy")
    assert f"{tmp_path / 'toy'} itself holds such files, but the folder to give is one that has them in toy/" in str(
        caught.value
    )


def test_load_splits_names_a_missing_file_and_the_names_it_may_have(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy")
    (tmp_path / "toy" / "validation.jsonl").unlink()
    (tmp_path / "toy" / "validation.json").write_text("[]")
    with pytest.raises(TaskError) as caught:
        load_splits(TASK, data_dir)
    assert f"{tmp_path / 'toy'} has no file for split validation" in str(caught.value)
    assert "validation.jsonl, validation.csv, validation.tsv, validation.parquet" in str(caught.value)


def test_load_splits_needs_no_test_file_where_the_rule_makes_the_test_rows(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy")
    (tmp_path / "toy" / "test.jsonl").unlink()
    assert len(load_splits(HALVED, data_dir).test) == 3


def test_load_splits_refuses_two_files_for_one_split(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy")
    write(tmp_path / "toy" / "train.csv", ROWS)
    with pytest.raises(TaskError, match=r"has 2 files for split train: train.jsonl, train.csv; keep one"):
        load_splits(TASK, data_dir)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_load_splits_names_a_missing_column_and_those_there_are(tmp_path: Path, suffix: str) -> None:
    data_dir = write_splits(tmp_path / "toy", suffix, validation={"text": SENTENCES, "label": ROWS["label"]})
    with pytest.raises(TaskError) as caught:
        load_splits(TASK, data_dir)
    path = tmp_path / "toy" / f"validation.{suffix}"
    assert f"split validation in {path} has no column sentence; it has text, label" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", b""),
        ("train.jsonl", b"\n\n"),
        ("train.csv", b""),
        ("train.csv", b"sentence,label\n"),
        ("train.tsv", b"sentence\tlabel\n\n"),
    ],
)
def test_load_splits_refuses_a_file_without_rows(tmp_path: Path, name: str, content: bytes) -> None:
    data_dir = write_splits(tmp_path / "toy")
    (tmp_path / "toy" / "train.jsonl").unlink()
    (tmp_path / "toy" / name).write_bytes(content)
    with pytest.raises(TaskError, match=rf"toy/{name} has no rows; give at least one"):
        load_splits(TASK, data_dir)


def test_load_splits_refuses_a_parquet_file_without_rows(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy", "parquet", test={"sentence": [], "label": []})
    with pytest.raises(TaskError, match=r"test\.parquet.* has no rows"):
        load_splits(TASK, data_dir)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.jsonl", b'{"sentence": "a", "label": 1}\n{"sentence": "b"\n', "JSON parse error"),
        ("train.jsonl", b"sentence,label\na,1\n", "JSON parse error"),
        ("train.parquet", b"hello", "Parquet"),
        ("train.parquet", b"", "Parquet"),
        # The first row sets how many cells pandas expects, so a longer one shows in two ways.
        (
            "train.csv",
            b"sentence,label\na, b,1\nb,1\n",
            "Length of header or names does not match length of data",
        ),
        ("train.csv", b"sentence,label\na,1\nb,c,1\n", "Expected 2 fields in line 3, saw 3"),
        ("train.csv", b"sentence,label\nd\xe9j\xe0,1\n", "can't decode byte 0xe9"),
        ("train.csv", b'sentence,label\n"a,1\n', "EOF inside string"),
    ],
)
def test_load_splits_names_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    data_dir = write_splits(tmp_path / "toy")
    (tmp_path / "toy" / "train.jsonl").unlink()
    path = tmp_path / "toy" / name
    path.write_bytes(content)
    with pytest.raises(TaskError) as caught:
        load_splits(TASK, data_dir)
    assert f"task toy: {path} cannot be read as {path.suffix[1:]} (" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# --- what can be wrong with rows ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sentence", ""),
        ("sentence", None),
        ("sentence", 5),
        ("label", 2),
        ("label", None),
        ("label", math.nan),
    ],
)
def test_load_splits_names_the_row_of_the_file_that_does_not_fit(tmp_path: Path, field: str, value: Any) -> None:
    columns = {name: list(values) for name, values in ROWS.items()}
    columns[field][4] = value
    data_dir = write_splits(tmp_path / "toy", validation=columns)
    with pytest.raises(TaskError) as caught:
        load_splits(HALVED, data_dir)
    path = tmp_path / "toy" / "validation.jsonl"
    assert f"task toy: validation in {path}: row 4 (the first is 0): field {field!r} is {value!r}; " in str(
        caught.value
    )


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_load_splits_names_the_row_of_an_empty_cell(tmp_path: Path, suffix: str) -> None:
    columns = {name: list(values) for name, values in ROWS.items()}
    columns["label"][2] = ""
    data_dir = write_splits(tmp_path / "toy", suffix, train=columns)
    with pytest.raises(TaskError, match=r"row 2 \(the first is 0\): field 'label' is ''; allowed: 0, 1"):
        load_splits(TASK, data_dir)


def test_load_splits_names_the_row_that_lacks_a_field(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy")
    lines = [json.dumps({"sentence": "a", "label": 1}), json.dumps({"label": 0})]
    (tmp_path / "toy" / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(TaskError, match=r"row 1 .*field 'sentence' is None"):
        load_splits(TASK, data_dir)


# --- split rules ---


@pytest.mark.parametrize("num_rows", [2, 7, 8, 277])
def test_load_splits_halves_the_shuffled_validation_rows(tmp_path: Path, num_rows: int) -> None:
    data_dir = write_splits(tmp_path / "toy", validation=numbered(num_rows))
    splits = load_splits(HALVED, data_dir)
    order = permutation(num_rows)
    assert sentences(splits.train) == SENTENCES
    assert sentences(splits.validation) == [f"row {i}" for i in order[: num_rows // 2]]
    assert sentences(splits.test) == [f"row {i}" for i in order[num_rows // 2 :]]
    labels = [int(text.split()[1]) % 2 for text in sentences(splits.test)]
    assert splits.test.columns["label"] == labels  # columns stay together


def test_load_splits_halves_in_the_order_recorded_from_torch(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy", validation=numbered(8))
    splits = load_splits(HALVED, data_dir)
    assert sentences(splits.validation) + sentences(splits.test) == [f"row {i}" for i in (6, 3, 0, 7, 2, 1, 4, 5)]


@pytest.mark.parametrize(("num_rows", "held"), [(10, 1), (99, 9), (9_990, 999), (10_000, 1_000), (12_000, 1_000)])
def test_load_splits_holds_out_train_rows_but_at_most_a_tenth(tmp_path: Path, num_rows: int, held: int) -> None:
    data_dir = write_splits(tmp_path / "toy", train=numbered(num_rows))
    splits = load_splits(HELD_OUT, data_dir)
    order = permutation(num_rows)
    assert sentences(splits.validation) == [f"row {i}" for i in order[:held]]
    assert sentences(splits.train) == [f"row {i}" for i in order[held:]]
    assert sentences(splits.test) == SENTENCES
    assert [splits[name].split for name in ("train", "validation", "test")] == ["train", "validation", "test"]


def test_load_splits_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy")
    state = torch.get_rng_state()
    load_splits(HALVED, data_dir)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("task", "rows", "said"),
    [
        (HELD_OUT, {"train": numbered(9)}, "train of .* has 9 rows; give at least 10"),
        (HALVED, {"validation": numbered(1)}, "validation of .* has 1 row; give at least 2"),
    ],
)
def test_load_splits_refuses_too_few_rows_to_split(tmp_path: Path, task: Task, rows: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        load_splits(task, write_splits(tmp_path / "toy", **rows))


def test_load_splits_warns_of_other_row_counts_than_the_published(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy")
    task = replace(TASK, num_rows={"train": 1_000, "validation": 6, "test": 6})
    with pytest.warns(
        UserWarning, match="gives 6 train, 6 validation, 6 test rows; the published runs had 1,000 train"
    ):
        load_splits(task, data_dir)


def test_load_splits_is_silent_at_the_published_row_counts(tmp_path: Path) -> None:
    data_dir = write_splits(tmp_path / "toy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_splits(replace(TASK, num_rows={"train": 6, "validation": 6, "test": 6}), data_dir)


def test_rows_row_and_length() -> None:
    rows = Rows("train", {"a": [1, 2], "b": ["x", "y"]})
    assert len(rows) == 2
    assert rows.row(1) == {"a": 2, "b": "y"}
    assert len(Rows("train", {})) == 0
    assert rows.take("test", [1, 1, 0]) == Rows("test", {"a": [2, 2, 1], "b": ["y", "y", "x"]})
    with pytest.raises(KeyError):
        Splits(rows, rows, rows, "")["dev"]
