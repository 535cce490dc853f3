"""Every task of the paper that has a label set: from a row in the Hub's schema to a figure."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from adept_tune.errors import TaskError
from adept_tune.tasks import TASKS
from adept_tune.tasks.metrics import chance, parse_label, score
from adept_tune.tasks.rows import load_splits

pytestmark = pytest.mark.tasks

# Task -> a row in the Hub's schema, its source, and its target in digits and in words.
ROWS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "cola": ({"sentence": "They drank it.", "label": 1, "idx": 0}, "sentence: They drank it.", "1", "acceptable"),
    "sst2": ({"sentence": "dull", "label": 0, "idx": 0}, "sentence: dull", "0", "negative"),
    "mrpc": (
        {"sentence1": "A ran.", "sentence2": "A was running.", "label": 1, "idx": 0},
        "sentence1: A ran. sentence2: A was running.",
        "1",
        "equivalent",
    ),
    "rte": (
        {"sentence1": "It rained.", "sentence2": "It was dry.", "label": 1, "idx": 0},
        "sentence1: It rained. sentence2: It was dry.",
        "1",
        "not_entailment",
    ),
    "mnli": (
        {"premise": "It rained.", "hypothesis": "It was dry.", "label": 2, "idx": 0},
        "premise: It rained. hypothesis: It was dry.",
        "2",
        "contradiction",
    ),
    "qqp": (
        {"question1": "Why?", "question2": "How come?", "label": 1, "idx": 0},
        "question1: Why? question2: How come?",
        "1",
        "duplicate",
    ),
    "qnli": (
        {"question": "Who won?", "sentence": "Ada won.", "label": 0, "idx": 0},
        "question: Who won? sentence: Ada won.",
        "0",
        "entailment",
    ),
    "boolq": (
        {"question": "is ice cold", "passage": "Ice is frozen water.", "idx": 0, "label": 1},
        "question: is ice cold passage: Ice is frozen water.",
        "1",
        "True",
    ),
    "wic": (
        {
            "word": "bank",
            "sentence1": "A river bank.",
            "sentence2": "A bank loan.",
            "start1": 8,
            "start2": 2,
            "end1": 12,
            "end2": 6,
            "idx": 0,
            "label": 0,
        },
        "sentence1: A river bank. sentence2: A bank loan. word: bank",
        "0",
        "False",
    ),
    "cb": (
        {"premise": "She may come.", "hypothesis": "She comes.", "idx": 0, "label": 2},
        "premise: She may come. hypothesis: She comes.",
        "2",
        "neutral",
    ),
    "winogrande": (
        {"sentence": "Ada thanked Bea because _ helped.", "option1": "Ada", "option2": "Bea", "answer": "2"},
        "sentence: Ada thanked Bea because _ helped. option0: Ada option1: Bea",
        "1",
        "option1",
    ),
    "yelp2": ({"text": "Great\nfood", "label": 1}, "sentence: Great food", "1", "positive"),
    "scitail": (
        {"sentence1": "Iron rusts in air.", "sentence2": "Air makes iron rust.", "gold_label": "entailment"},
        "premise: Iron rusts in air. hypothesis: Air makes iron rust.",
        "0",
        "entailment",
    ),
    "paws": (
        {"id": 1, "sentence1": "A beat B.", "sentence2": "B beat A.", "label": 0},
        "sentence1: A beat B. sentence2: B beat A.",
        "0",
        "not_paraphrase",
    ),
}


def test_every_task_but_the_demonstration_is_here() -> None:
    assert set(ROWS) == {name for name, task in TASKS.items() if not task.demonstration}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_source_and_target(name: str) -> None:
    row, source, digits, words = ROWS[name]
    task = TASKS[name]
    label = task.label_index(row)
    assert task.source(row) == source
    assert (task.labels("digits")[label], task.labels("words")[label]) == (digits, words)
    for style in task.label_sets:
        assert [parse_label(f" {text} ", task.labels(style)) for text in task.labels(style)] == list(
            range(task.num_labels)
        )


@pytest.mark.parametrize("name", ROWS)
def test_perfect_worst_and_constant_answers_score_as_they_should(name: str) -> None:
    task = TASKS[name]
    gold = [i % task.num_labels for i in range(60)]
    worst = [(label + 1) % task.num_labels for label in gold]
    assert score(task.metric, gold, gold).value == 1.0
    assert score(task.metric, worst, gold).value == pytest.approx(-1.0 if task.metric == "matthews" else 0.0)
    expected = 0.0 if task.metric == "matthews" else 1 / task.num_labels
    assert chance(task.metric, gold).value == pytest.approx(expected)
    assert score(task.metric, [0] * 60, gold).value == pytest.approx(expected)


@pytest.mark.parametrize("name", ROWS)
def test_a_malformed_row_is_named_with_task_split_row_and_field(name: str) -> None:
    task, row = TASKS[name], dict(ROWS[name][0])
    for column in (*task.columns, task.label_column):
        read = task.label_index if column == task.label_column else task.source
        with pytest.raises(TaskError) as caught:
            read(row | {column: None}, "train", 7)
        assert f"task {name}: train: row 7 (the first is 0): field {column!r} is None" in str(caught.value)


@pytest.mark.parametrize("name", ROWS)
def test_splits_follow_the_rule_and_a_difference_from_the_published_counts_is_told(name: str, tmp_path: Path) -> None:
    task, row = TASKS[name], ROWS[name][0]
    counts = {"train": 40, "validation": 8, "test": 6}
    for split in task.official_splits:
        path = tmp_path / name / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row | {"idx": i}) + "\n" for i in range(counts[split])))
    with pytest.warns(UserWarning, match=rf"task {name}: .* gives .* rows; the published runs had"):
        splits = load_splits(task, tmp_path)
    expected = {
        "halve_validation": (40, 4, 4),
        "hold_out_train": (36, 4, 8),
        "official": (40, 8, 6),
    }[task.split_rule]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == expected


def test_train_rows_beyond_the_most_are_left_out(tmp_path: Path) -> None:
    from dataclasses import replace

    task = replace(TASKS["yelp2"], max_train_rows=5, num_rows=None)
    for split in ("train", "validation"):
        path = tmp_path / "yelp2" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": f"row {i}", "label": i % 2}) + "\n" for i in range(50)))
    whole = load_splits(replace(task, max_train_rows=None), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_splits(task, tmp_path)
    assert splits.train.columns["text"] == whole.train.columns["text"][:5]
    assert splits.validation == whole.validation
