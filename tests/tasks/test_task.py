import math
import pickle
from dataclasses import replace
from typing import Any

import pytest

from adept_tune.errors import TaskError
from adept_tune.tasks import TASKS, HubDataset, Task, get_task
from tests.tasks.files import TASK

PAIR = TASKS["rte"]


def test_task_source_puts_words_one_space_apart() -> None:
    assert PAIR.source({"sentence1": "  a \t b\nc ", "sentence2": "d"}) == "sentence1: a b c sentence2: d"


def test_task_source_leaves_braces_in_a_text_alone() -> None:
    assert TASK.source({"sentence": "a {sentence} {0}"}) == "sentence: a {sentence} {0}"


def test_a_question_of_qqp_may_be_blank_and_its_row_counts() -> None:
    row = {"question1": "How can I create an Android app?", "question2": ""}
    assert TASKS["qqp"].source(row) == "question1: How can I create an Android app? question2:"
    with pytest.raises(TaskError, match="field 'question2' is None"):
        TASKS["qqp"].source(row | {"question2": None})


@pytest.mark.parametrize("value", [1, "1", " 1 ", 1.0])
def test_task_label_index_reads_ints_digit_strings_and_whole_floats(value: Any) -> None:
    assert TASK.label_index({"label": value}) == 1


@pytest.mark.parametrize(("value", "expected"), [("entailment", 0), (" neutral ", 1)])
def test_task_label_index_reads_the_values_a_task_names(value: str, expected: int) -> None:
    assert TASKS["scitail"].label_index({"gold_label": value}) == expected


@pytest.mark.parametrize("value", ["1", 1, 2, "2"])
def test_task_label_values_may_be_numbers(value: Any) -> None:
    assert TASKS["winogrande"].label_index({"answer": value}) == int(value) - 1


@pytest.mark.parametrize("value", ["0", 0, "3", "", None, "contradiction", math.nan])
def test_task_refuses_what_is_none_of_its_label_values(value: Any) -> None:
    with pytest.raises(TaskError) as caught:
        TASKS["winogrande"].label_index({"answer": value}, "train", 3)
    message = f"task winogrande: train: row 3 (the first is 0): field 'answer' is {value!r}; allowed: 1, 2;"
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["", "  ", None, 5, math.nan, ["a"]])
def test_task_source_names_the_place_of_a_text_that_is_none(value: Any) -> None:
    with pytest.raises(TaskError) as caught:
        PAIR.source({"sentence1": "fine", "sentence2": value}, "validation in x.jsonl", 7)
    message = str(caught.value)
    assert "task rte: validation in x.jsonl: row 7 (the first is 0)" in message
    assert f"field 'sentence2' is {value!r}; allowed: a string" in message


@pytest.mark.parametrize("value", [2, -1, "2", "-1", "one", "", "1.0", "²", None, math.nan, math.inf, 0.5, True, []])
def test_task_label_index_names_the_place_and_the_labels_allowed(value: Any) -> None:
    with pytest.raises(TaskError) as caught:
        PAIR.label_index({"label": value}, "train", 3)
    assert f"task rte: train: row 3 (the first is 0): field 'label' is {value!r}; allowed: 0, 1;" in str(caught.value)


def test_task_names_a_missing_field_and_those_there_are() -> None:
    with pytest.raises(TaskError, match=r"train: row 3 .*field 'sentence1' is missing; the row has text, label"):
        PAIR.source({"text": "a", "label": 1}, "train", 3)
    with pytest.raises(TaskError, match=r"field 'label' is missing; the row has sentence1"):
        PAIR.label_index({"sentence1": "a"}, "train", 3)


def test_task_labels_refuses_an_unknown_style() -> None:
    assert TASKS["mrpc"].labels("words") == ("not_equivalent", "equivalent")
    with pytest.raises(TaskError, match=r"task mrpc: label style 'emoji'; allowed: digits, words"):
        TASKS["mrpc"].labels("emoji")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "{text}"}, "template has the columns ['text'], columns are ['sentence']"),
        ({"template": "sentence"}, "template has the columns []"),
        ({"columns": ()}, "columns are []"),
        (
            {"split_rule": "thirds"},
            "split_rule is 'thirds'; allowed: halve_validation, hold_out_train, official",
        ),
        ({"metric": "bleu"}, "metric is 'bleu'; allowed: accuracy, matthews"),
        ({"label_sets": {}}, "give either label_sets, with at least one style, or answers"),
        ({"label_sets": {"digits": ("0",)}}, "label_sets['digits'] is ('0',)"),
        ({"label_sets": {"digits": ("0", "0")}}, "give two or more different texts"),
        ({"label_sets": {"digits": ("0", "1 ")}}, "without outer spaces"),
        (
            {"label_sets": {"digits": ("0", "1"), "words": ("a", "b", "c")}},
            "differ in their number of labels",
        ),
        ({"hub": HubDataset("a/b", None, {"train": "train"})}, "hub.splits lacks test, validation"),
        ({"max_source_length": 1}, "max lengths are 1, 20"),
        ({"max_target_length": 1}, "max lengths are 256, 1"),
        ({"answers": lambda row: [row["sentence"]]}, "give either label_sets"),
        ({"also": ("token_f1",)}, "metric is 'token_f1'; allowed: accuracy"),
        ({"label_values": ("a", "b", "c")}, "label_values are 3"),
        ({"max_train_rows": 0}, "max_train_rows is 0"),
    ],
)
def test_task_refuses_an_entry_that_contradicts_itself(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError) as caught:
        replace(TASK, **changes)
    assert "task 'toy' in the table of tasks" in str(caught.value)
    assert said in str(caught.value)


def test_task_tells_all_faults_at_once() -> None:
    with pytest.raises(TaskError, match=r"split_rule is 'x'.*metric is 'y'"):
        replace(TASK, split_rule="x", metric="y")


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_filed_under_their_name_and_can_be_pickled(name: str) -> None:
    assert TASKS[name].name == name
    assert pickle.loads(pickle.dumps(TASKS[name])) == TASKS[name]


def test_get_task_lists_the_choices_and_the_closest() -> None:
    assert get_task("cola") is TASKS["cola"]
    with pytest.raises(TaskError) as caught:
        get_task("SST-2")
    assert str(caught.value) == (
        f"task 'SST-2' is unknown; allowed: {', '.join(TASKS)}, or a .yaml file of your own; did you mean 'sst2'?"
    )
    with pytest.raises(TaskError, match="unknown") as caught:
        get_task("zzzz")
    assert "did you mean" not in str(caught.value)


def test_hub_dataset_prints_its_configuration_where_it_has_one() -> None:
    assert str(HubDataset("nyu-mll/glue", "cola", {})) == "nyu-mll/glue (cola)"
    assert str(HubDataset("a/b", None, {})) == "a/b"


def test_task_admits_one_that_is_not_on_the_hub() -> None:
    task = Task(
        name="mine",
        columns=("a", "b"),
        template="{a} and {b}",
        label_sets={"letters": ("x", "y", "z")},
        split_rule="official",
        metric="accuracy",
        packaged="demo/data",
        demonstration=True,
    )
    assert task.num_labels == 3
    assert task.official_splits == ("train", "validation", "test")
