"""Which rows go through the backbone together, and that the backbone reads of each what it would read of it alone."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adept_tune.engine.packing import ALIGNED, passes, stack
from adept_tune.engine.reading import Trained
from adept_tune.methods.base import Stacking
from adept_tune.tasks.tokens import Ragged
from tests.support.data import made_engine, one_pass

LENGTHS = np.array([3, 9, 1, 4, 4, 12, 2, 7])
TRIALS = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.integers(0, 7), min_size=1, max_size=9)), min_size=1, max_size=5
)


@given(trials=TRIALS, limit=st.none() | st.integers(1, 120), lanes=st.integers(1, 3), grain=st.sampled_from([1, 2, 8]))
@settings(max_examples=300, deadline=None)
def test_every_row_is_read_once_in_passes_that_keep_the_limit(trials, limit, lanes, grain):
    prompts, rows = [m for m, _ in trials], [np.array(mine) for _, mine in trials]
    found = list(passes(rows, prompts, LENGTHS, limit, lanes, grain=grain))
    seen = sorted(
        (p.trial, int(place), int(row))
        for part in found
        for p in part
        for place, row in zip(p.places, p.rows, strict=True)
    )
    assert seen == [(k, i, row) for k, (_, mine) in enumerate(trials) for i, row in enumerate(mine)]
    last = 0
    for part in found:
        assert [piece.trial for piece in part] == sorted({piece.trial for piece in part})
        lengths = np.concatenate([LENGTHS[piece.rows] + piece.prompt_length for piece in part])
        assert lengths.min() >= last  # shorter rows go first
        last = lengths.max()
        assert limit is None or len(lengths) == 1 or len(lengths) * last <= limit
    assert limit is not None or lanes > 1 or len(found) == 1


@given(trials=TRIALS, limit=st.none() | st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_passes_that_recur_have_equal_rows_and_keep_the_limit_as_wide_as_they_are_read(trials, limit):
    prompts, rows = [m for m, _ in trials], [np.array(mine) for _, mine in trials]
    found = list(passes(rows, prompts, LENGTHS, limit, even=True))
    sizes = [sum(len(piece.rows) for piece in part) for part in found]
    assert sum(sizes) == sum(map(len, rows))
    assert max(sizes) - min(sizes) <= 1
    for part, size in zip(found, sizes, strict=True):
        longest = max(int(LENGTHS[piece.rows].max()) + piece.prompt_length for piece in part)
        assert limit is None or size == 1 or max(sizes) == 1 or size * -(-longest // ALIGNED) * ALIGNED <= limit
    assert limit is not None or len(found) == 1


def test_passes_have_whole_grains_of_rows_where_the_limit_admits_them():
    rows, lengths = [np.arange(50)], np.sort(np.resize([5, 6, 7], 50))
    assert [len(part[0].rows) for part in passes(rows, [3], lengths, 130, grain=4)] == [16, 12, 12, 10]
    few = [len(part[0].rows) for part in passes(rows, [3], lengths, 70, grain=4)]
    assert few[:4] == [8, 8, 7, 7]  # the third would have one grain
    steep = np.array([1] * 9 + [50])  # what is left of a grain would make the next pass too large
    assert [len(part[0].rows) for part in passes([np.arange(10)], [0], steep, 60, grain=4)] == [9, 1]


def test_rows_of_one_trial_stand_together_where_lengths_are_equal():
    rows, lengths = [np.arange(4), np.arange(4)], np.full(4, 5)
    assert [[piece.trial for piece in part] for part in passes(rows, [2, 2], lengths, 28)] == [[0], [1]]


@given(trials=TRIALS)
@settings(max_examples=40, deadline=None)
def test_the_backbone_reads_each_row_as_if_it_were_alone(trials):
    engine, source = made_engine(), torch.Generator().manual_seed(0)
    d_model, longest = engine.backbone.d_model, max(m for m, _ in trials)
    sources = Ragged.from_lists([list(range(3, 3 + length)) for length in LENGTHS])
    prompts = [torch.randn(m, d_model, generator=source) for m, _ in trials]
    tensors = {name: torch.zeros(len(trials), *shape) for name, shape in shapes(longest, d_model).items()}
    for k, prompt_MD in enumerate(prompts):
        tensors["prompt"][k, longest - len(prompt_MD) :] = prompt_MD
    stacking = Stacking(torch.tensor([m for m, _ in trials]), torch.ones(len(trials), dtype=torch.int64))
    trained = Trained(tensors, stacking, ("digits",) * len(trials))
    for pieces in passes([np.array(mine) for _, mine in trials], [m for m, _ in trials], LENGTHS, 60):
        batch = stack(pieces, sources, 0, engine.backbone.device)
        embeds = engine._reader.embed(trained.of(pieces), batch)
        rows = [(piece.trial, int(row)) for piece in pieces for row in piece.rows]
        assert batch.num_tokens == sum(trials[k][0] + int(LENGTHS[row]) for k, row in rows)
        for (k, row), mine, mask in zip(rows, embeds, batch.mask_PW, strict=True):
            alone = torch.cat([prompts[k], engine.backbone.embed(torch.from_numpy(sources[row]))])
            assert torch.equal(mine[: len(alone)], alone)
            assert mask.tolist() == [True] * len(alone) + [False] * (len(mask) - len(alone))


def shapes(longest: int, d_model: int) -> dict[str, tuple[int, ...]]:
    """Of ADePT's tensors with one unit; all zero, they shift nothing."""
    return {
        "prompt": (longest, d_model),
        "ffn_w1": (d_model, 1),
        "ffn_b1": (1,),
        "ffn_w2": (1, d_model),
        "ffn_b2": (d_model,),
    }


def test_prompts_of_different_length_are_read_where_the_block_happens_to_be_full():
    # the longest prompt stands before the longest text, so the block is as wide as its widest row
    batch = one_pass([[[5, 6, 7, 1]], [[5, 1, 6, 1]]], [4, 1])
    assert batch.column_PW is not None
    assert batch.mask_PW.tolist() == [[True] * 8, [True] * 5 + [False] * 3]
