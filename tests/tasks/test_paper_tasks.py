"""Every task of the paper: from a row in the Hub's schema to a figure."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from adept_tune.errors import TaskError
from adept_tune.tasks import TASKS, get_task
from adept_tune.tasks.metrics import chance, chance_of_texts, parse_label, score, score_texts
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
    "stsb": (
        {"sentence1": "A man eats.", "sentence2": "A man is eating.", "label": 4.75, "idx": 0},
        "sentence1: A man eats. sentence2: A man is eating.",
        "4.8",
        "",
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
    "wsc": (
        {
            "text": "Ada told Bea that she won.",
            "span1_index": 2,
            "span2_index": 4,
            "span1_text": "Bea",
            "span2_text": "she",
            "idx": 0,
            "label": 1,
        },
        "text: Ada told * Bea * that # she # won.",
        "1",
        "True",
    ),
    "multirc": (
        {
            "paragraph": "<b>Sent 1: </b>Ada & Bea won.<br>",
            "question": "Who won?",
            "answer": "Ada",
            "idx": {"paragraph": 0, "question": 0, "answer": 0},
            "label": 1,
        },
        "question: Who won? answer: Ada paragraph: Sent 1: Ada & Bea won.",
        "1",
        "True",
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

_MRQA = {
    "context": "Ada (b. 1815) won.",
    "question": "Who won?",
    "answers": ["Ada", "Ada (b. 1815)"],
    "key": "a1",
    "labels": [{"end": [2], "start": [0]}],
}
_MRQA_SOURCE = "question: Who won ? context: Ada ( b . 1815 ) won ."

# Task with open answers -> a row in the Hub's schema, its source, its right answers under our protocol and the paper's.
OPEN: dict[str, tuple[dict[str, Any], str, tuple[str, ...], tuple[str, ...]]] = {
    "record": (
        {
            "passage": "Ada met Bea\n@highlight\nBea won.\n@highlight\nAda did not",
            "query": "The cup went to @placeholder",
            "entities": ["Ada", "Bea"],
            "entity_spans": {"text": ["Ada", "Bea"], "start": [0, 8], "end": [3, 11]},
            "answers": ["Bea", "Ada"],
            "idx": {"passage": 0, "query": 0},
        },
        "record query: The cup went to @placeholder entities: Ada, Bea passage: Ada met Bea. Bea won. Ada did not",
        ("Bea", "Ada"),
        ("Bea", "Ada"),
    ),
    **{
        name: (_MRQA, _MRQA_SOURCE, ("Ada", "Ada ( b . 1815 )"), ("Ada",))
        for name in ("nq", "hotpotqa", "searchqa", "newsqa")
    },
    "mbpp": (
        {
            "task_id": 1,
            "text": "Write a function to double a number.",
            "code": "def double(n):\r\n    return 2 * n",
            "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
        "text: Write a function to double a number. tests: assert double(2) == 4 assert double(0) == 0",
        ("def double(n):\n    return 2 * n",),
        ("def double(n):\n    return 2 * n",),
    ),
}


def test_the_paper_has_23_tasks_and_all_are_here() -> None:
    assert len(ROWS | OPEN) == 23
    assert set(ROWS | OPEN) == {name for name, task in TASKS.items() if not task.demonstration}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_source_and_target(name: str) -> None:
    row, source, digits, words = ROWS[name]
    task = TASKS[name]
    label = task.label_index(row)
    assert task.source(row) == source
    assert task.labels("digits")[label] == digits
    if "words" in task.label_sets:
        assert task.labels("words")[label] == words
    for style in task.label_sets:
        assert [parse_label(f" {text} ", task.labels(style)) for text in task.labels(style)] == list(
            range(task.num_labels)
        )


@pytest.mark.parametrize("name", OPEN)
def test_a_row_becomes_source_and_open_answers(name: str) -> None:
    row, source, ours, papers = OPEN[name]
    for protocol, answers in (("ours", ours), ("paper", papers)):
        task = get_task(name, protocol)  # type: ignore[arg-type]  # one of the two
        assert task.source(row) == source
        assert task.answers_of(row) == answers


@pytest.mark.parametrize("name", ROWS)
def test_perfect_worst_and_constant_answers_score_as_they_should(name: str) -> None:
    task = TASKS[name]
    gold = [i % task.num_labels for i in range(20 * task.num_labels)]
    wrong = [(label + 1) % task.num_labels for label in gold]
    if task.metric == "pearson":
        texts = task.labels("digits")
        right = [(texts[label],) for label in gold]
        assert score_texts("pearson", [text for (text,) in right], right).value == pytest.approx(1)
        assert score_texts("pearson", [texts[-1 - label] for label in gold], right).value == pytest.approx(-1)
        assert score_texts("pearson", [texts[3]] * len(gold), right).value == chance_of_texts("pearson", right).value
        return
    constant = {"matthews": 0.0, "f1": 2 / 3}.get(task.metric, 1 / task.num_labels)
    assert score(task.metric, gold, gold).value == 1.0
    assert score(task.metric, wrong, gold).value == pytest.approx(-1.0 if task.metric == "matthews" else 0.0)
    assert score(task.metric, [1] * len(gold), gold).value == pytest.approx(constant)
    assert chance(task.metric, gold).value == pytest.approx(constant)
    for metric in task.also:
        assert score(metric, gold, gold).value == 1.0
        assert score(metric, wrong, gold).value == 0.0


@pytest.mark.parametrize("name", OPEN)
def test_perfect_worst_and_constant_open_answers_score_as_they_should(name: str) -> None:
    row, task = OPEN[name][0], TASKS[name]
    references = [task.references_of(row, task.answers_of(row))] * 3
    perfect, worst = [task.answers_of(row)[0]] * 3, ["nothing of the kind"] * 3
    for metric in (task.metric, *task.also):
        assert score_texts(metric, perfect, references).value == 1.0
        assert score_texts(metric, worst, references).value == 0.0
    assert chance_of_texts(task.metric, references).value == (0.0 if task.runs_code else 1.0)


@pytest.mark.parametrize("name", ROWS | OPEN)
def test_a_malformed_row_is_named_with_task_split_row_and_field(name: str) -> None:
    task, row = TASKS[name], dict((ROWS | OPEN)[name][0])
    for column in task.needed_columns:
        if column == "test_setup_code":  # may be anything, as it may be empty
            continue

        def read(row: dict[str, Any]) -> None:
            task.source(row, "train", 7)
            if task.is_open:
                task.references_of(row, task.answers_of(row, "train", 7), "train", 7)
            else:
                task.label_index(row, "train", 7)
            if task.group is not None:
                task.group_of(row, "train", 7)

        with pytest.raises(TaskError) as caught:
            read(row | {column: None})
        assert f"task {name}: train: row 7 (the first is 0): field {column!r} is None" in str(caught.value)
        with pytest.raises(TaskError) as caught:
            read({key: value for key, value in row.items() if key != column})
        assert f"task {name}: train: row 7 (the first is 0): field {column!r} is missing" in str(caught.value)


def write_rows(folder: Path, name: str, counts: dict[str, int], row: dict[str, Any]) -> None:
    for split in TASKS[name].official_splits:
        path = folder / name / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for _ in range(counts[split])))


@pytest.mark.parametrize("protocol", ["ours", "paper"])
@pytest.mark.parametrize("name", ROWS | OPEN)
def test_splits_follow_the_rule_and_a_difference_from_the_published_counts_is_told(
    name: str, protocol: Any, tmp_path: Path
) -> None:
    task, row = get_task(name, protocol), dict((ROWS | OPEN)[name][0])
    counts = {"train": 40, "validation": 8, "test": 6}
    if task.group is not None:
        for split in task.official_splits:
            path = tmp_path / name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            lines = [row | {"idx": {"paragraph": 0, "question": i // 2, "answer": i}} for i in range(counts[split])]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        write_rows(tmp_path, name, counts, row)
    expected = {"halve_validation": (40, 4, 4), "hold_out_train": (36, 4, 8), "official": (40, 8, 6)}[task.split_rule]
    with pytest.warns(UserWarning, match=rf"task {name}: .* gives .* rows; the published runs had"):
        splits = load_splits(task, tmp_path)
    if task.expand is not None:  # ReCoRD as published: a row for each of the two answers
        expected = tuple(2 * number for number in expected)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == expected


@pytest.mark.filterwarnings("ignore:task .* the published runs had")
def test_a_query_is_in_one_split_though_it_be_a_row_for_each_answer(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = [OPEN["record"][0] | {"query": f"{split} {i} @placeholder"} for i in range(30)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_splits(get_task("record", "paper"), tmp_path)
    queries = [splits[split].columns["query"] for split in ("train", "validation", "test")]
    assert [len(found) for found in queries] == [54, 6, 60]
    assert all(found.count(query) == 2 for found in queries for query in found)
    assert {tuple(answers) for answers in splits.test.columns["answers"]} == {("Ada",), ("Bea",)}


def test_the_answers_of_a_question_stay_in_one_half_but_under_the_papers_protocol(tmp_path: Path) -> None:
    row = ROWS["multirc"][0]
    sizes = [5, 1, 3, 2, 4, 3, 2, 6]
    lines = [
        row | {"idx": {"paragraph": q // 3, "question": q, "answer": a}, "answer": f"{q} {a}"}
        for q, size in enumerate(sizes)
        for a in range(size)
    ]
    folder = tmp_path / "multirc"
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    halves: dict[str, list[set[int]]] = {}
    for protocol in ("ours", "paper"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            splits = load_splits(get_task("multirc", protocol), tmp_path)  # type: ignore[arg-type]
        rows = [*splits.validation.rows(), *splits.test.rows()]
        assert sorted(r["answer"] for r in rows) == sorted(line["answer"] for line in lines)
        halves[protocol] = [{r["idx"]["question"] for r in half.rows()} for half in (splits.validation, splits.test)]
        assert abs(len(splits.validation) - len(splits.test)) <= max(sizes)
    assert not halves["ours"][0] & halves["ours"][1]
    assert halves["paper"][0] & halves["paper"][1]


def test_winogrande_shows_both_options_but_under_the_papers_protocol() -> None:
    row = ROWS["winogrande"][0]
    assert get_task("winogrande", "paper").source(row).endswith("option0: Ada option1: Ada")
    assert get_task("winogrande", "ours").source(row).endswith("option0: Ada option1: Bea")


def test_letters_with_marks_stay_whole() -> None:
    row = _MRQA | {"context": "Beyonce\u0301 (née Knowles) x_1.", "question": "Wer?", "answers": ["Beyoncé"]}
    assert TASKS["nq"].source(row) == "question: Wer ? context: Beyoncé ( née Knowles ) x _ 1 ."
    assert TASKS["nq"].answers_of(row) == ("Beyoncé",)


def test_only_markup_is_taken_out_of_a_paragraph() -> None:
    row = ROWS["multirc"][0] | {"paragraph": "<b>Sent 1: </b>if x <5 and y> 3<br/>then<br>go"}
    assert TASKS["multirc"].source(row).endswith("paragraph: Sent 1: if x <5 and y> 3 then go")


@pytest.mark.parametrize("idx", [None, 7, {"paragraph": 0}, {"paragraph": 0, "question": None}, {"question": "x"}])
def test_a_place_that_names_no_question_is_told(idx: Any) -> None:
    with pytest.raises(TaskError, match="field 'idx' is"):
        TASKS["multirc"].group_of(ROWS["multirc"][0] | {"idx": idx})


@pytest.mark.parametrize(
    ("value", "ours", "papers"),
    [
        (0, "0.0", "0.0"),
        (3.8, "3.8", "3.8"),
        (2.75, "2.8", "2.8"),
        (4.9, "4.8", "4.9"),
        (4.900000095367432, "4.8", "4.9"),  # 4.9 in float32, as the Hub has it
    ],
)
def test_similarities_are_rounded_to_fifths_but_under_the_papers_protocol(value: float, ours: str, papers: str) -> None:
    row = ROWS["stsb"][0] | {"label": value}
    for protocol, text in (("ours", ours), ("paper", papers)):
        task = get_task("stsb", protocol)  # type: ignore[arg-type]
        assert task.labels("digits")[task.label_index(row)] == text
    with pytest.raises(TaskError, match=r"field 'label' is 5\.5; allowed: a number from 0 to 5"):
        get_task("stsb").label_index(row | {"label": 5.5})


def test_spans_of_several_words_are_marked_whole() -> None:
    row = ROWS["wsc"][0] | {
        "text": "The city councilmen refused the group a permit because they feared it.",
        "span1_index": 0,
        "span1_text": "The city councilmen",
        "span2_index": 9,
        "span2_text": "they",
    }
    assert TASKS["wsc"].source(row) == (
        "text: * The city councilmen * refused the group a permit because # they # feared it."
    )


@pytest.mark.parametrize(
    ("changes", "marked"),
    [
        ({"text": "Susan's cat likes her, too."}, "* Susan *'s cat likes # her #, too."),  # a span ends inside a word
        ({"text": "Joan and cat like her now"}, "* Joan * and cat like # her # now"),  # other words stand there
        ({"span1_index": "0"}, "* Susan * and cat like # her # now"),  # from csv
    ],
)
def test_a_span_is_marked_to_its_end(changes: dict[str, Any], marked: str) -> None:
    row = {"text": "Susan and cat like her now", "span1_index": 0, "span1_text": "Susan", "label": 0}
    index = 3 if "likes" in changes.get("text", "") else 4
    row |= {"span2_index": index, "span2_text": "her"} | changes
    assert TASKS["wsc"].source(row) == f"text: {marked}"


def test_spans_inside_one_another_are_marked_both() -> None:
    row = {"text": "A b c d", "span1_index": 1, "span1_text": "b c d", "span2_index": 2, "span2_text": "c", "label": 0}
    assert TASKS["wsc"].source(row) == "text: A * b # c # d *"
    assert TASKS["wsc"].source(row | {"span2_index": 3, "span2_text": "d"}) == "text: A * b c # d # *"
    assert TASKS["wsc"].source(row | {"span2_index": 1, "span2_text": "b"}) == "text: A * # b # c d *"


def test_a_span_that_is_not_there_is_told() -> None:
    with pytest.raises(TaskError, match="field 'span1_index' is 6; allowed: 0 to 5"):
        TASKS["wsc"].source(ROWS["wsc"][0] | {"span1_index": 6})


def test_a_task_with_open_answers_has_no_labels_to_choose() -> None:
    with pytest.raises(TaskError, match="task nq: its answers are open"):
        TASKS["nq"].labels("words")


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
