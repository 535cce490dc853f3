import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adept_tune.errors import TaskError
from adept_tune.tasks import Task, tokens
from adept_tune.tasks.rows import Rows, Splits
from adept_tune.tasks.tokens import (
    Ragged,
    TaskData,
    default_cache_dir,
    load_task_data,
    pad,
    tokenizer_fingerprint,
)
from tests.support.tiny import VOCABULARY, tiny_tokenizer
from tests.tasks.files import ROWS, TASK

LONG = "the cat sat on the mat " * 10
SPLITS = Splits(
    train=Rows("train", {"sentence": [*ROWS["sentence"], LONG], "label": [*ROWS["label"], "0"]}),
    validation=Rows("validation", {"sentence": ["very good", "not good", "the cat"], "label": [1, 0, 1]}),
    test=Rows("test", {"sentence": ["a dog"], "label": [0]}),
    origin="here",
)
SHORT = replace(TASK, max_source_length=12)


def load(cache_dir: Path, task: Task = SHORT, splits: Splits = SPLITS, tokenizer: Any = None) -> TaskData:
    tokenizer = tokenizer or tiny_tokenizer()
    return load_task_data(task, splits, tokenizer, tokenizer_fingerprint(tokenizer), cache_dir)


class Untouchable:
    """A tokenizer that only its fingerprint was taken from."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the tokenizer was asked for {name}, though its ids are cached")


def arrays(data: TaskData) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for split in ("train", "validation", "test"):
        part = getattr(data, split)
        found[f"{split} sources"] = [row.tolist() for row in part.sources]
        found[f"{split} labels"] = part.labels.tolist()
        for style, target in part.targets.items():
            found[f"{split} targets {style}"] = [row.tolist() for row in target]
    for style, labels in data.label_sets.items():
        found[f"labels {style}"] = [row.tolist() for row in labels]
    return found


def only_file(cache_dir: Path) -> Path:
    (path,) = (cache_dir / "tokens").iterdir()
    return path


# --- ragged rows and padding ---

LISTS = [[5, 6, 7], [], [8], [9, 10, 11, 12]]


def test_ragged_gives_back_the_lists_it_was_made_from() -> None:
    ragged = Ragged.from_lists(LISTS)
    assert [row.tolist() for row in ragged] == LISTS
    assert ragged[-1].tolist() == LISTS[-1]
    assert ragged.lengths.tolist() == [3, 0, 1, 4]
    assert len(ragged) == 4
    assert (ragged.values.dtype, ragged.offsets.dtype) == (np.int32, np.int64)


def test_ragged_may_be_empty() -> None:
    ragged = Ragged.from_lists([])
    assert len(ragged) == 0
    assert list(ragged) == []


@pytest.mark.parametrize("index", [4, -5])
def test_ragged_refuses_a_row_it_does_not_have(index: int) -> None:
    with pytest.raises(IndexError, match=f"row {index} of 4"):
        Ragged.from_lists(LISTS)[index]


@pytest.mark.parametrize("indices", [[0, 3], [2], [1], [1, 1, 0, 2, 0], [], np.array([3, 2])])
def test_pad_fills_up_to_the_longest_row_of_the_batch(indices: Any) -> None:
    ids, mask = pad(Ragged.from_lists(LISTS), indices, pad_id=99)
    longest = max((len(LISTS[i]) for i in indices), default=0)
    assert ids.tolist() == [LISTS[i] + [99] * (longest - len(LISTS[i])) for i in indices]
    assert mask.tolist() == [[c < len(LISTS[i]) for c in range(longest)] for i in indices]
    assert ids.shape == mask.shape == (len(indices), longest)
    assert (ids.dtype, mask.dtype) == (np.int64, np.bool_)


# --- what is in the data ---


def test_load_task_data_holds_the_ids_of_each_row_alone(tmp_path: Path) -> None:
    data = load(tmp_path)
    tokenizer = tiny_tokenizer()
    for split in ("train", "validation", "test"):
        part, rows = getattr(data, split), SPLITS[split]
        expected = [tokenizer(TASK.source(rows.row(i))).input_ids for i in range(len(rows))]
        assert [row.tolist() for row in part.sources] == [
            ids if len(ids) <= 12 else [*ids[:11], VOCABULARY["</s>"]] for ids in expected
        ]
        assert part.labels.tolist() == [int(label) for label in rows.columns["label"]]
        assert part.labels.dtype == np.int32
        for style, texts in TASK.label_sets.items():
            assert [row.tolist() for row in part.targets[style]] == [
                [VOCABULARY[texts[label]], VOCABULARY["</s>"]] for label in part.labels
            ]


def test_load_task_data_cuts_long_sources_and_keeps_their_end_token(tmp_path: Path) -> None:
    longest = load(tmp_path).train.sources[-1]
    assert len(longest) == 12
    assert longest[-1] == VOCABULARY["</s>"]


def test_load_task_data_describes_the_task(tmp_path: Path) -> None:
    data = load(tmp_path)
    assert (data.task, data.metric, data.pad_id, data.max_source_length) == ("toy", "accuracy", 0, 12)
    assert data.label_texts == {"digits": ("0", "1"), "words": ("no", "yes")}
    assert [row.tolist() for row in data.label_sets["words"]] == [
        [VOCABULARY["no"], 1],
        [VOCABULARY["yes"], 1],
    ]
    assert data.chance.value == pytest.approx(2 / 3)  # of the validation rows


def test_load_task_data_ends_labels_once_whatever_the_tokenizer_adds(tmp_path: Path) -> None:
    from tokenizers import processors

    bare, both = tiny_tokenizer(), tiny_tokenizer()
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    both.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A </s>", special_tokens=[("<unk>", 2), ("</s>", 1)]
    )
    for tokenizer, first in ((bare, VOCABULARY["sentence"]), (both, 2)):
        data = load(tmp_path, tokenizer=tokenizer)
        assert [row.tolist() for row in data.label_sets["digits"]] == [
            [VOCABULARY["0"], 1],
            [VOCABULARY["1"], 1],
        ]
        assert data.train.sources[0][0] == first


def test_load_task_data_fills_with_the_end_token_where_there_is_no_padding_token(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert load(tmp_path, tokenizer=tokenizer).pad_id == tokenizer.eos_token_id


def test_load_task_data_leaves_out_a_label_style_that_does_not_read_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = replace(SHORT, label_sets={"digits": ("0", "1"), "words": ("no", "unspeakable")})
    for _ in range(2):  # made, then read from the cache
        data = load(tmp_path, task)
        assert list(data.label_sets) == list(data.label_texts) == list(data.train.targets) == ["digits"]
    assert "label style words reads back as ('no', '')" in caplog.text


def test_load_task_data_refuses_a_tokenizer_that_can_write_no_label(tmp_path: Path) -> None:
    task = replace(SHORT, label_sets={"words": ("unspeakable", "ineffable")})
    with pytest.raises(
        TaskError, match=r"task toy: tokenizer \w+ cannot write the labels \('unspeakable', 'ineffable'\)"
    ):
        load(tmp_path, task)


def test_load_task_data_refuses_a_tokenizer_without_an_end_token(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TaskError, match=r"task toy: tokenizer .* has no end-of-sequence token"):
        load(tmp_path, tokenizer=tokenizer)


def test_load_task_data_names_a_row_that_does_not_fit(tmp_path: Path) -> None:
    splits = replace(SPLITS, test=Rows("test", {"sentence": ["a", " "], "label": [0, 1]}))
    with pytest.raises(TaskError, match=r"task toy: test: row 1 .*'sentence' is ' '"):
        load(tmp_path, splits=splits)


# --- the cache ---


def test_load_task_data_does_not_tokenise_twice(tmp_path: Path) -> None:
    first = load(tmp_path)
    again = load_task_data(SHORT, SPLITS, Untouchable(), tokenizer_fingerprint(tiny_tokenizer()), tmp_path)
    assert arrays(again) == arrays(first)
    for name in ("task", "metric", "label_texts", "pad_id", "max_source_length", "chance", "fingerprint"):
        assert getattr(again, name) == getattr(first, name)
    assert again.train.sources.values.dtype == np.int32
    assert again.train.sources.offsets.dtype == np.int64


def test_load_task_data_leaves_one_file_that_others_may_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        load(tmp_path)
    finally:
        os.umask(before)
    assert only_file(tmp_path).suffix == ".safetensors"
    assert only_file(tmp_path).stat().st_mode & 0o777 == 0o644


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def put_another(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"train.labels": np.zeros(3, dtype=np.int32)}, path)


def put_that_of_another_task(path: Path) -> None:
    other = path.parent.parent / "other"
    load(other, replace(SHORT, metric="matthews"))
    os.replace(only_file(other), path)


@pytest.mark.parametrize("damage", [flip_last_byte, cut_short, empty, put_another, put_that_of_another_task])
def test_load_task_data_makes_a_damaged_file_again(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    sound = load(tmp_path / "cache")
    path = only_file(tmp_path / "cache")
    content = path.read_bytes()
    damage(path)
    assert path.read_bytes() != content
    assert arrays(load(tmp_path / "cache")) == arrays(sound)
    assert only_file(tmp_path / "cache").read_bytes() == content
    assert f"{path} is damaged" in caplog.text


def test_load_task_data_leaves_nothing_behind_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(TaskError, match="No space left on device"):
        load(tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_load_task_data_names_the_variable_when_the_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TaskError, match=r"cannot write the token cache .*file/.*ADEPT_TUNE_CACHE"):
        load(tmp_path / "file")


@pytest.mark.parametrize(
    "changes",
    [
        {"template": "text: {sentence}"},
        {"label_sets": {"digits": ("0", "1")}},
        {"label_sets": {"digits": ("0", "1"), "words": ("yes", "no")}},
        {"max_source_length": 13},
        {"metric": "matthews"},
        {"name": "other"},
    ],
)
def test_fingerprint_changes_with_the_task(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert load(tmp_path, replace(SHORT, **changes)).fingerprint != load(tmp_path).fingerprint


def test_fingerprint_changes_with_texts_labels_split_and_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = [load(tmp_path).fingerprint]
    prints.append(
        load(tmp_path, splits=replace(SPLITS, test=Rows("test", {"sentence": ["a cat"], "label": [0]}))).fingerprint
    )
    prints.append(
        load(tmp_path, splits=replace(SPLITS, test=Rows("test", {"sentence": ["a dog"], "label": [1]}))).fingerprint
    )
    prints.append(load(tmp_path, splits=replace(SPLITS, test=SPLITS.validation, validation=SPLITS.test)).fingerprint)
    monkeypatch.setattr(tokens, "FORMAT_VERSION", tokens.FORMAT_VERSION + 1)
    prints.append(load(tmp_path).fingerprint)
    assert len(set(prints)) == 5


def test_fingerprint_does_not_change_with_how_a_file_writes_a_label(tmp_path: Path) -> None:
    as_text = replace(SPLITS, test=Rows("test", {"sentence": ["a  dog "], "label": ["0"]}))
    assert load(tmp_path, splits=as_text).fingerprint == load(tmp_path).fingerprint


def test_tokenizer_fingerprint_is_that_of_the_tokenizer_not_of_its_last_call() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["the cat"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer_fingerprint(tokenizer) == before == tokenizer_fingerprint(tiny_tokenizer())


def test_tokenizer_fingerprint_changes_with_vocabulary_and_special_tokens() -> None:
    other_pad, other_words = tiny_tokenizer(), tiny_tokenizer()
    other_pad.pad_token = "</s>"
    other_words.add_tokens(["giraffe"])
    assert len({tokenizer_fingerprint(each) for each in (tiny_tokenizer(), other_pad, other_words)}) == 3


def test_tokenizer_fingerprint_refuses_a_tokenizer_that_is_not_a_fast_one() -> None:
    with pytest.raises(TaskError, match=r"tokenizer object has no tokenizer\.json"):
        tokenizer_fingerprint(object())


def test_default_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADEPT_TUNE_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.setenv("ADEPT_TUNE_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "adept_tune"
