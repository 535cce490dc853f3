"""Tasks: where rows come from, how a row becomes text, and what a good answer is.

To add a task, add one entry to `TASKS`. Importing this package loads none of torch,
transformers and datasets.
"""

from difflib import get_close_matches
from pathlib import Path

from adept_tune.errors import TaskError
from adept_tune.tasks import prepared
from adept_tune.tasks.metrics import Score
from adept_tune.tasks.own import is_task_file, read_task_file
from adept_tune.tasks.task import SPLITS, HubDataset, Protocol, Task

__all__ = ["TASKS", "HubDataset", "Score", "Task", "get_task"]

_GLUE, _SUPER_GLUE = "nyu-mll/glue", "aps/super_glue"
_TRAIN_AND_VALIDATION = {"train": "train", "validation": "validation"}  # their test labels are not public
_DIGITS = ("0", "1")


def _mrqa(name: str, repository: str, train: int, test: int, published_steps: int) -> Task:
    """A task of the MRQA shared task of 2019: find the answer to a question in its context."""
    return Task(
        name=name,
        hub=HubDataset(f"lucadiliello/{repository}", None, _TRAIN_AND_VALIDATION),
        columns=("question", "context"),
        answer_columns=("answers",),
        template="question: {question} context: {context}",
        fields=prepared.spaced_question,
        answers=prepared.spaced_answers,
        split_rule="hold_out_train",
        metric="token_f1",
        also=("exact_match",),
        max_source_length=512,
        num_rows={"train": train, "validation": 1_000, "test": test},
        published_steps=published_steps,
        paper={"answers": prepared.first_spaced_answer, "references_as_decoded": True},
    )


# Row counts, plateaus and lengths are those of the published runs: DePT's logs (checkpoints/TASK/trainer_state.json of
# its repository). The demonstration is our own: experiments/demo.
TASKS: dict[str, Task] = {
    "cola": Task(
        name="cola",
        hub=HubDataset(_GLUE, "cola", _TRAIN_AND_VALIDATION),
        columns=("sentence",),
        template="sentence: {sentence}",
        label_sets={"digits": _DIGITS, "words": ("unacceptable", "acceptable")},
        split_rule="halve_validation",
        metric="matthews",
        num_rows={"train": 8_551, "validation": 521, "test": 522},
        plateau_steps=7_000,
        published_steps=40_000,
    ),
    "sst2": Task(
        name="sst2",
        hub=HubDataset(_GLUE, "sst2", _TRAIN_AND_VALIDATION),
        columns=("sentence",),
        template="sentence: {sentence}",
        label_sets={"digits": _DIGITS, "words": ("negative", "positive")},
        split_rule="hold_out_train",
        metric="accuracy",
        num_rows={"train": 66_349, "validation": 1_000, "test": 872},
        plateau_steps=1_000,
        published_steps=30_000,
    ),
    "mrpc": Task(
        name="mrpc",
        hub=HubDataset(_GLUE, "mrpc", _TRAIN_AND_VALIDATION),
        columns=("sentence1", "sentence2"),
        template="sentence1: {sentence1} sentence2: {sentence2}",
        label_sets={"digits": _DIGITS, "words": ("not_equivalent", "equivalent")},
        split_rule="halve_validation",
        metric="accuracy",
        also=("f1",),
        num_rows={"train": 3_668, "validation": 204, "test": 204},
        plateau_steps=2_000,
        published_steps=10_000,
    ),
    "rte": Task(
        name="rte",
        hub=HubDataset(_GLUE, "rte", _TRAIN_AND_VALIDATION),
        columns=("sentence1", "sentence2"),
        template="sentence1: {sentence1} sentence2: {sentence2}",
        label_sets={"digits": _DIGITS, "words": ("entailment", "not_entailment")},
        split_rule="halve_validation",
        metric="accuracy",
        num_rows={"train": 2_490, "validation": 138, "test": 139},
        plateau_steps=3_000,
        published_steps=30_000,
    ),
    "mnli": Task(
        name="mnli",
        hub=HubDataset(
            _GLUE, "mnli", {"train": "train", "validation": "validation_mismatched", "test": "validation_matched"}
        ),
        columns=("premise", "hypothesis"),
        template="premise: {premise} hypothesis: {hypothesis}",
        label_sets={"digits": ("0", "1", "2"), "words": ("entailment", "neutral", "contradiction")},
        split_rule="official",
        metric="accuracy",
        num_rows={"train": 392_702, "validation": 9_832, "test": 9_815},
        published_steps=250_000,
    ),
    "qqp": Task(
        name="qqp",
        hub=HubDataset(_GLUE, "qqp", _TRAIN_AND_VALIDATION),
        columns=("question1", "question2"),
        template="question1: {question1} question2: {question2}",
        may_be_blank=("question1", "question2"),  # two training rows have no second question
        label_sets={"digits": _DIGITS, "words": ("not_duplicate", "duplicate")},
        split_rule="hold_out_train",
        metric="accuracy",
        also=("f1",),
        num_rows={"train": 362_846, "validation": 1_000, "test": 40_430},
        published_steps=100_000,
    ),
    "qnli": Task(
        name="qnli",
        hub=HubDataset(_GLUE, "qnli", _TRAIN_AND_VALIDATION),
        columns=("question", "sentence"),
        template="question: {question} sentence: {sentence}",
        label_sets={"digits": _DIGITS, "words": ("entailment", "not_entailment")},
        split_rule="hold_out_train",
        metric="accuracy",
        num_rows={"train": 103_743, "validation": 1_000, "test": 5_463},
        published_steps=100_000,
    ),
    "stsb": Task(
        name="stsb",
        hub=HubDataset(_GLUE, "stsb", _TRAIN_AND_VALIDATION),
        columns=("sentence1", "sentence2"),
        template="sentence1: {sentence1} sentence2: {sentence2}",
        label_sets={"digits": tuple(f"{number / 5:.1f}" for number in range(26))},
        label_step=0.2,
        split_rule="halve_validation",
        metric="pearson",
        num_rows={"train": 5_749, "validation": 750, "test": 750},
        published_steps=30_000,
        # The published code means to round to fifths and rounds to tenths.
        paper={"label_sets": {"digits": tuple(f"{number / 10:.1f}" for number in range(51))}, "label_step": 0.1},
    ),
    "multirc": Task(
        name="multirc",
        hub=HubDataset(_SUPER_GLUE, "multirc", _TRAIN_AND_VALIDATION),
        columns=("question", "answer", "paragraph"),
        answer_columns=("idx",),
        template="question: {question} answer: {answer} paragraph: {paragraph}",
        fields=prepared.multirc_fields,
        group=prepared.multirc_question,
        label_sets={"digits": _DIGITS, "words": ("False", "True")},
        split_rule="halve_validation",
        metric="f1",
        also=("exact_by_group",),
        max_source_length=348,
        plateau_steps=4_000,
        num_rows={"train": 27_243},  # which half is one longer depends on where a question ends
        published_steps=30_000,
        # The published code parts the answers of a question.
        paper={
            "whole_groups": False,
            "also": (),
            "num_rows": {"train": 27_243, "validation": 2_424, "test": 2_424},
        },
    ),
    "wsc": Task(
        name="wsc",
        hub=HubDataset(_SUPER_GLUE, "wsc.fixed", _TRAIN_AND_VALIDATION),
        columns=("text", "span1_text", "span2_text"),
        other_columns=("span1_index", "span2_index"),
        template="text: {text}",
        fields=prepared.wsc_fields,
        label_sets={"digits": _DIGITS, "words": ("False", "True")},
        split_rule="halve_validation",
        metric="accuracy",
        num_rows={"train": 554, "validation": 52, "test": 52},
        published_steps=20_000,
    ),
    "record": Task(
        name="record",
        hub=HubDataset(_SUPER_GLUE, "record", _TRAIN_AND_VALIDATION),
        columns=("query", "passage"),
        other_columns=("entities",),
        answer_columns=("answers",),
        template="record query: {query} entities: {entities} passage: {passage}",
        fields=prepared.record_fields,
        answers=prepared.record_answers,
        every_answer=True,
        split_rule="hold_out_train",
        metric="token_f1",
        also=("exact_match",),
        num_rows={"train": 99_730, "validation": 1_000, "test": 10_000},
        # The published code scores a query once for each of its answers, against that one.
        paper={"expand": prepared.record_row_an_answer, "every_answer": False, "references_as_decoded": True},
    ),
    "nq": _mrqa("nq", "naturalquestionsshortqa", 103_071, 12_836, 300_000),
    "hotpotqa": _mrqa("hotpotqa", "hotpotqa", 71_928, 5_901, 250_000),
    "searchqa": _mrqa("searchqa", "searchqa", 116_384, 16_980, 250_000),
    "newsqa": _mrqa("newsqa", "newsqa", 73_160, 4_212, 200_000),
    "mbpp": Task(
        name="mbpp",
        hub=HubDataset("google-research-datasets/mbpp", "full", {split: split for split in SPLITS}),
        columns=("text",),
        other_columns=("test_list",),
        answer_columns=("code", "test_setup_code"),
        template="text: {text} tests: {tests}",
        fields=prepared.mbpp_fields,
        answers=prepared.mbpp_answers,
        references=prepared.mbpp_tests,
        split_rule="official",
        metric="pass",
        max_target_length=256,
        num_rows={"train": 374, "validation": 90, "test": 500},
    ),
    "boolq": Task(
        name="boolq",
        hub=HubDataset(_SUPER_GLUE, "boolq", _TRAIN_AND_VALIDATION),
        columns=("question", "passage"),
        template="question: {question} passage: {passage}",
        label_sets={"digits": _DIGITS, "words": ("False", "True")},
        split_rule="halve_validation",
        metric="accuracy",
        num_rows={"train": 9_427, "validation": 1_635, "test": 1_635},
        plateau_steps=5_000,
        published_steps=30_000,
    ),
    "wic": Task(
        name="wic",
        hub=HubDataset(_SUPER_GLUE, "wic", _TRAIN_AND_VALIDATION),
        columns=("sentence1", "sentence2", "word"),
        template="sentence1: {sentence1} sentence2: {sentence2} word: {word}",
        label_sets={"digits": _DIGITS, "words": ("False", "True")},
        split_rule="halve_validation",
        metric="accuracy",
        num_rows={"train": 5_428, "validation": 319, "test": 319},
        plateau_steps=4_000,
        published_steps=20_000,
    ),
    "cb": Task(
        name="cb",
        hub=HubDataset(_SUPER_GLUE, "cb", _TRAIN_AND_VALIDATION),
        columns=("premise", "hypothesis"),
        template="premise: {premise} hypothesis: {hypothesis}",
        label_sets={"digits": ("0", "1", "2"), "words": ("entailment", "contradiction", "neutral")},
        split_rule="halve_validation",
        metric="accuracy",
        num_rows={"train": 250, "validation": 28, "test": 28},
        plateau_steps=2_000,
        published_steps=30_000,
    ),
    "winogrande": Task(
        name="winogrande",
        hub=HubDataset("allenai/winogrande", "winogrande_xl", _TRAIN_AND_VALIDATION),
        columns=("sentence", "option1", "option2"),
        template="sentence: {sentence} option0: {option1} option1: {option2}",  # both, unlike the published code
        label_sets={"digits": _DIGITS, "words": ("option0", "option1")},
        split_rule="hold_out_train",
        metric="accuracy",
        label_column="answer",
        label_values=("1", "2"),
        num_rows={"train": 39_398, "validation": 1_000, "test": 1_267},
        # The published code shows the first option twice.
        paper={
            "columns": ("sentence", "option1"),
            "template": "sentence: {sentence} option0: {option1} option1: {option1}",
        },
    ),
    "yelp2": Task(
        name="yelp2",
        hub=HubDataset("fancyzhx/yelp_polarity", None, {"train": "train", "validation": "test"}),
        columns=("text",),
        template="sentence: {text}",
        label_sets={"digits": _DIGITS, "words": ("negative", "positive")},
        split_rule="hold_out_train",
        metric="accuracy",
        max_train_rows=100_000,
        num_rows={"train": 100_000, "validation": 1_000, "test": 38_000},
    ),
    "scitail": Task(
        name="scitail",
        hub=HubDataset("allenai/scitail", "snli_format", _TRAIN_AND_VALIDATION),
        columns=("sentence1", "sentence2"),
        template="premise: {sentence1} hypothesis: {sentence2}",
        label_sets={"digits": _DIGITS, "words": ("entailment", "neutral")},
        split_rule="halve_validation",
        metric="accuracy",
        label_column="gold_label",
        label_values=("entailment", "neutral"),
        num_rows={"train": 23_596, "validation": 652, "test": 652},
    ),
    "paws": Task(
        name="paws",
        hub=HubDataset("google-research-datasets/paws", "labeled_final", {split: split for split in SPLITS}),
        columns=("sentence1", "sentence2"),
        template="sentence1: {sentence1} sentence2: {sentence2}",
        label_sets={"digits": _DIGITS, "words": ("not_paraphrase", "paraphrase")},
        split_rule="official",
        metric="accuracy",
        num_rows={"train": 49_401, "validation": 8_000, "test": 8_000},
    ),
    "demo": Task(
        name="demo",
        packaged="demo/data",
        model="demo/model",
        columns=("sentence",),
        template="sentence: {sentence}",
        label_sets={"digits": _DIGITS, "words": ("no", "yes")},
        split_rule="official",
        metric="accuracy",
        max_source_length=32,
        num_rows={"train": 3_000, "validation": 600, "test": 1_500},
        published_steps=300,
        demonstration=True,
    ),
}


def get_task(name: str, protocol: Protocol = "ours") -> Task:
    """Return the task of that name, or of a YAML file that describes the user's own.

    Args:
        name: Of a task, or the path of a YAML file.
        protocol: Whether the faults of the published code are mended or followed.

    Raises:
        TaskError: There is none, the message lists those there are and the closest; or the file cannot be used.
    """
    if is_task_file(name):
        return read_task_file(Path(name).expanduser()).under(protocol)
    if name in TASKS:
        return TASKS[name].under(protocol)
    close = get_close_matches(name.lower(), TASKS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise TaskError(f"task {name!r} is unknown; allowed: {', '.join(TASKS)}, or a .yaml file of your own{hint}")
