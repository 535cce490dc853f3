"""The published data sets themselves: ADEPT_TUNE_REAL is the folder written by the unpack.py beside them."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from adept_tune.tasks import TASKS
from adept_tune.tasks.rows import load_splits
from adept_tune.tasks.tokens import load_task_data, tokenizer_fingerprint

REAL = os.environ.get("ADEPT_TUNE_REAL")
pytestmark = pytest.mark.skipif(not REAL, reason="ADEPT_TUNE_REAL names no folder with real data and a real model")
SMALL = ["cola", "mrpc", "rte"]


def real(*names: str) -> Path:
    assert REAL is not None
    return Path(REAL, *names)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real("flan-t5-small"))


@pytest.mark.parametrize("name", [*SMALL, "sst2"])
def test_real_rows_are_as_many_as_published_and_in_no_two_splits(name: str) -> None:
    task = TASKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_splits(task, real("data"))
    assert {split: len(splits[split]) for split in task.num_rows or {}} == task.num_rows


@pytest.mark.parametrize("name", SMALL)
def test_real_halves_make_up_the_official_validation_rows(name: str) -> None:
    task = TASKS[name]
    splits = load_splits(task, real("data"))
    lines = real("data", name, "validation.jsonl").read_text().splitlines()
    import json

    def key(row: Any) -> tuple[Any, ...]:
        return tuple(row[column] for column in (*task.columns, "label"))

    halves = [key(rows.row(i)) for rows in (splits.validation, splits.test) for i in range(len(rows))]
    assert sorted(halves) == sorted(key(json.loads(line)) for line in lines)


@pytest.mark.parametrize("name", SMALL)
def test_real_tokens_fit_and_labels_read_back(name: str, tokenizer: Any, tmp_path: Path) -> None:
    task = TASKS[name]
    splits = load_splits(task, real("data"))
    data = load_task_data(task, splits, tokenizer, tokenizer_fingerprint(tokenizer), tmp_path)
    assert data.label_texts == dict(task.label_sets)
    assert data.label_sets["digits"][0].tolist() == [3, 632, 1]  # "0" is three tokens
    assert data.label_sets["digits"][1].tolist() == [209, 1]
    assert data.train.sources.lengths.max() <= 256
    for split in ("train", "validation", "test"):
        part, rows = getattr(data, split), splits[split]
        assert all(row[-1] == 1 for row in part.sources)
        for i in range(0, len(rows), max(1, len(rows) // 50)):
            whole = tokenizer(task.source(rows.row(i))).input_ids
            assert part.sources[i].tolist() == (whole if len(whole) <= 256 else [*whole[:255], 1])
            text = tokenizer.decode(part.targets["words"][i], skip_special_tokens=True)
            assert text == task.labels("words")[part.labels[i]]
