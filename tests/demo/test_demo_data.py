"""The embedded demonstration: what ships is small, fair, readable offline and made by the script beside it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5ForConditionalGeneration

from experiments.demo import make_demo

DEMO_DIR = make_demo.DEMO_DIR
SPLITS = ("train", "validation", "test")
LABEL_STYLES = {"digits": ("0", "1"), "words": ("no", "yes")}
PROMPT_INIT = "Classify this text is postive or not:"
SIZE_LIMIT_MIB = 4


def rows(split: str) -> list[make_demo.Row]:
    lines = (DEMO_DIR / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def sentences(split: str) -> list[str]:
    return [str(row["sentence"]) for row in rows(split)]


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO_DIR / "model", local_files_only=True)


@functools.cache
def backbone() -> T5ForConditionalGeneration:
    folder = DEMO_DIR / "model"
    return T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def test_model_and_data_together_fit_the_size_limit() -> None:
    assert make_demo.folder_bytes(DEMO_DIR) < SIZE_LIMIT_MIB * 2**20


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_the_two_columns_and_the_promised_number(split: str) -> None:
    assert len(rows(split)) == make_demo.SPLIT_ROWS[split]
    assert all(row.keys() == {"sentence", "label"} and row["label"] in (0, 1) for row in rows(split))


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_within_five_points(split: str) -> None:
    labels = [int(row["label"]) for row in rows(split)]
    assert abs(sum(labels) / len(labels) - 0.5) <= 0.05


def test_no_sentence_occurs_in_two_splits_or_twice_in_one() -> None:
    everything = [sentence for split in SPLITS for sentence in sentences(split)]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("split", SPLITS)
def test_label_is_what_a_reader_of_the_generator_would_say(split: str) -> None:
    good = {*make_demo.POSITIVE, *make_demo.TURNS_POSITIVE}
    for row in rows(split):
        for part in str(row["sentence"]).split(" and "):
            words = part.split()
            assert ((words[-1] in good) != ("not" in words)) == bool(row["label"]), row


@pytest.mark.parametrize("split", SPLITS)
def test_tokenizer_reads_every_row_without_unknown_words(split: str) -> None:
    for sentence in sentences(split):
        ids = tokenizer()(f"sentence: {sentence}")["input_ids"]
        assert tokenizer().unk_token_id not in ids
        assert ids[-1] == tokenizer().eos_token_id
        assert tokenizer().decode(ids, skip_special_tokens=True) == f"sentence : {sentence}"


@pytest.mark.parametrize("text", [text for style in LABEL_STYLES.values() for text in style])
def test_each_label_text_is_one_word_and_the_end(text: str) -> None:
    ids = tokenizer()(text)["input_ids"]
    assert len(ids) == 2
    assert ids[-1] == tokenizer().eos_token_id
    assert tokenizer().decode(ids, skip_special_tokens=True) == text


def test_prompt_initialisation_text_has_no_unknown_word() -> None:
    ids = tokenizer()(PROMPT_INIT)["input_ids"]
    assert tokenizer().unk_token_id not in ids
    assert len(set(ids)) == 9


def test_special_tokens_stand_where_t5_has_them() -> None:
    assert tokenizer().convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert len(tokenizer()("<extra_id_0> thin <extra_id_1>")["input_ids"]) == 4


def test_vocabulary_of_the_script_is_the_one_shipped() -> None:
    words = make_demo.vocabulary()
    assert tokenizer().convert_ids_to_tokens(list(range(len(words)))) == words
    assert backbone().config.vocab_size == len(words)


def test_every_word_a_generator_says_is_in_the_vocabulary() -> None:
    rng = make_demo.random.Random(5)
    known = set(make_demo.vocabulary())
    for _ in range(2000):
        source, target = make_demo.corrupt(rng, make_demo.document(rng))
        assert known.issuperset([*source, *target])
        question, answer = make_demo.supervised(rng)
        assert known.issuperset([*question, *answer])


@pytest.mark.parametrize("split", SPLITS)
def test_script_makes_the_shipped_rows(split: str) -> None:
    assert make_demo.make_splits()[split] == rows(split)


def test_data_files_are_rewritten_bitwise(tmp_path: Path) -> None:
    make_demo.write_data(tmp_path)
    for split in SPLITS:
        shipped = DEMO_DIR / "data" / f"{split}.jsonl"
        assert (tmp_path / f"{split}.jsonl").read_bytes() == shipped.read_bytes()


def test_test_seed_is_used_nowhere_else() -> None:
    others = [make_demo.SPLIT_SEEDS[split] for split in ("train", "validation")]
    assert make_demo.SPLIT_SEEDS["test"] not in [*others, make_demo.PRETRAINING_SEED, make_demo.PROBE_SEED]


def test_rescaling_leaves_the_function_unchanged() -> None:
    model = make_demo.make_model(len(make_demo.vocabulary())).double().eval()
    ids, start = torch.tensor([[30, 40, 50, 1]]), torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        before = model(input_ids=ids, decoder_input_ids=start).logits
        scale_before = model.shared.weight.std()
        make_demo.rescale(model, 4.0)
        after = model(input_ids=ids, decoder_input_ids=start).logits
    torch.testing.assert_close(model.shared.weight.std(), 4 * scale_before)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("style", LABEL_STYLES)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_frozen_model_is_at_chance_without_tuning(style: str, split: str) -> None:
    encoded = tokenizer()([f"sentence: {s}" for s in sentences(split)], padding=True, return_tensors="pt")
    label_ids = torch.tensor([tokenizer()(text)["input_ids"] for text in LABEL_STYLES[style]])
    num_rows = len(encoded["input_ids"])
    scores = []
    with torch.no_grad():
        for ids in label_ids:
            logits = backbone()(**encoded, labels=ids.repeat(num_rows, 1)).logits.log_softmax(-1)
            scores.append(logits.gather(-1, ids.expand(num_rows, -1).unsqueeze(-1)).sum((1, 2)))
    guesses = torch.stack(scores).argmax(0)
    accuracy = (guesses == torch.tensor([row["label"] for row in rows(split)])).float().mean().item()
    assert 0.4 <= accuracy <= 0.6


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--threads", "0"], ["--embedding-scale", "0"]])
def test_main_refuses_impossible_arguments(arguments: list[str], tmp_path: Path) -> None:
    assert make_demo.main([*arguments, "--out", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_pretraining_twice_gives_the_same_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert make_demo.main(["--out", str(tmp_path / name), "--only", "model", "--steps", "3"]) == 0
    first, second = (tmp_path / name / "model" / "model.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
