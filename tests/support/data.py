"""A made task in the tiny vocabulary, as token arrays."""

from itertools import pairwise

import numpy as np
import torch

from adept_tune.engine.engine import Engine
from adept_tune.engine.in_model import InModelEngine
from adept_tune.engine.lanes import Lanes
from adept_tune.engine.packing import Stack, passes, stack
from adept_tune.engine.reading import Reader
from adept_tune.methods import IN_MODEL, INPUT_SIDE
from adept_tune.tasks.metrics import chance
from adept_tune.tasks.tokens import Ragged, TaskData, TokenSplit
from tests.support.tiny import VOCABULARY, tiny_t5, tiny_tokenizer

LABEL_TEXTS = {"digits": ("0", "1"), "words": ("no", "very good")}
SOURCE_LENGTH = 12


def label_sets() -> dict[str, Ragged]:
    """Token ids of every label text, end token included."""
    return {
        style: Ragged.from_lists([[VOCABULARY[word] for word in text.split()] + [1] for text in texts])
        for style, texts in LABEL_TEXTS.items()
    }


def made_split(num_rows: int, seed: int) -> TokenSplit:
    """Rows of 3 to 11 random tokens; the label says whether "good" is among them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_rows)
    good, first = VOCABULARY["good"], VOCABULARY["the"]
    sources = []
    for label in labels:
        ids = [int(i) for i in rng.integers(first, len(VOCABULARY), rng.integers(2, 10)) if i != good]
        if label:
            ids.insert(int(rng.integers(0, len(ids) + 1)), good)
        sources.append([VOCABULARY["sentence"], *ids, 1])
    sets = label_sets()
    targets = {style: Ragged.from_lists([sets[style][int(y)].tolist() for y in labels]) for style in sets}
    return TokenSplit(Ragged.from_lists(sources), targets, labels.astype(np.int32))


def made_data(num_train: int = 40, num_validation: int = 24) -> TaskData:
    """A whole made task."""
    validation = made_split(num_validation, 2)
    return TaskData(
        task="made",
        metric="accuracy",
        train=made_split(num_train, 1),
        validation=validation,
        test=made_split(num_validation, 3),
        label_sets=label_sets(),
        label_texts=LABEL_TEXTS,
        pad_id=0,
        max_source_length=SOURCE_LENGTH,
        chance=chance("accuracy", validation.labels.tolist()),
        fingerprint="made",
    )


def one_pass(trials: list[list[list[int]]], prompt_lengths: list[int]) -> Stack:
    """A pass of some trials' rows of token ids."""
    rows = Ragged.from_lists(row for mine in trials for row in mine)
    sizes = np.cumsum([0, *map(len, trials)])
    wanted = [np.arange(*ends) for ends in pairwise(sizes)]
    (pieces,) = passes(wanted, prompt_lengths, rows.lengths, None)
    return stack(pieces, rows, 0, torch.device("cpu"))


def made_engine(
    method: str = "adept",
    num_slots: int = 6,
    dtype=None,
    tokens_per_pass=None,
    model=None,
    backbone=None,
    num_lanes: int = 1,
    **options,
) -> Engine | InModelEngine:
    """An engine over a tiny T5, or another backbone, and the made task."""
    from adept_tune.backbones.codec import TokenizerCodec
    from adept_tune.backbones.encoder_decoder import EncoderDecoder
    from adept_tune.backbones.short_ways import use_short_ways

    dtype = dtype or torch.float32
    backbone = backbone or EncoderDecoder(model or tiny_t5(dtype=dtype))
    use_short_ways(backbone.model)  # as a loaded one
    data, lanes = made_data(), Lanes(num_lanes)

    def reader_over(driven):
        return Reader(
            driven,
            INPUT_SIDE.get(method, INPUT_SIDE["prompt-tuning"]),
            TokenizerCodec(tiny_tokenizer()),
            data.metric,
            data.label_sets,
            data.label_texts,
            data.pad_id,
            lanes=lanes,
        )

    if method in IN_MODEL:
        return InModelEngine(
            backbone, IN_MODEL[method], data, reader_over, num_slots, tokens_per_pass, dtype, **options
        )
    reader = reader_over(backbone)
    return Engine(backbone, INPUT_SIDE[method], data, reader, num_slots, tokens_per_pass, dtype, **options)
