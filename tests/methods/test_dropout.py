"""Dropout by hash: the same in any company, and as good as random.

The statistics are of fixed numbers, so no test here fails by chance; the bounds are those that truly random numbers
would break about once in ten thousand tests.
"""

from itertools import pairwise
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from adept_tune.methods.dropout import keep_factors

SEEDS, STEPS, CHANCES = [3, 3, 2**32 - 1, 0], [0, 7, 29_999, 1], [0.1, 0.5, 0.25, 0.0]


def keep(
    seeds: list[int], steps: list[int], chances: list[float], rows: int, *shape: int, dtype=torch.float64
) -> Tensor:
    places = torch.arange(rows).expand(len(seeds), -1)
    return keep_factors(torch.tensor(seeds), torch.tensor(steps), places, torch.tensor(chances, dtype=dtype), *shape)


def dropped(seed: int, step: int, chance: float, *shape: int) -> Tensor:
    """One trial's mask as 1.0 where a unit is dropped."""
    return (keep([seed], [step], [chance], *shape)[0] == 0).double()


def mixed_slowly(word: int) -> int:
    """lowbias32 on Python's own integers, which do not overflow."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        word = ((word ^ (word >> shift)) * factor) % 2**32
    return word ^ (word >> 16)


@given(places=st.lists(st.integers(0, 11), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_mask_of_a_piece_of_a_batch_is_that_of_the_whole(places: list[int]) -> None:
    whole = keep([5], [2], [0.4], 12, 4, 6)
    one = torch.tensor([5]), torch.tensor([2]), torch.tensor([places]), torch.tensor([0.4], dtype=torch.float64)
    assert torch.equal(keep_factors(*one, 4, 6), whole[:, places])


@given(trial=st.integers(0, 3), rows=st.integers(1, 6), tokens=st.integers(1, 9), width=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_mask_alone_is_that_of_any_company(trial: int, rows: int, tokens: int, width: int) -> None:
    company = keep(SEEDS, STEPS, CHANCES, 6, 9, 7)
    alone = keep([SEEDS[trial]], [STEPS[trial]], [CHANCES[trial]], rows, tokens, width)
    assert torch.equal(alone[0], company[trial, :rows, :tokens, :width])


def test_mask_does_not_depend_on_the_place_in_the_stack() -> None:
    forward = keep(SEEDS, STEPS, CHANCES, 4, 5, 6)
    assert torch.equal(keep(SEEDS[::-1], STEPS[::-1], CHANCES[::-1], 4, 5, 6).flip(0), forward)


def test_mask_is_the_hash_of_seed_step_row_token_and_unit() -> None:
    chance, mix = 0.4, mixed_slowly
    for seed, step in ((0, 0), (2**32 - 1, 123_456), (77, 1)):
        found = keep([seed], [step], [chance], 3, 4, 5)[0]
        for row, token, unit in ((0, 0, 0), (2, 3, 4), (1, 0, 2), (0, 3, 1)):
            key = mix(mix(seed) ^ step)
            for number, salt in ((row, 0x9E3779B9), (token, 0x3C6EF372), (unit, 0x1B873593)):
                key = mix(key ^ mix(number + salt))
            assert bool(found[row, token, unit] > 0) == (key >= chance * 2**32)


@pytest.mark.parametrize("chance", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 12345])
def test_share_of_kept_units_is_within_4_sigma_of_one_minus_p(chance: float, seed: int) -> None:
    kept = keep([seed], [5], [chance], 32, 64, 48) > 0
    sigma = sqrt(chance * (1 - chance) / kept.numel())
    assert abs(float(kept.double().mean()) - (1 - chance)) < 4 * sigma


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_kept_units_are_scaled_by_one_over_one_minus_p(chance: float, dtype: torch.dtype) -> None:
    factors = keep([1], [2], [chance], 8, 16, 19, dtype=dtype)
    assert factors.dtype == dtype
    expected = torch.tensor([0.0, 1 / (1 - chance)], dtype=dtype)
    torch.testing.assert_close(factors.unique(), expected)


def test_p_of_zero_keeps_everything() -> None:
    assert torch.equal(keep([9], [9], [0.0], 16, 16, 16), torch.ones(1, 16, 16, 16, dtype=torch.float64))


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_masks_of_other_seeds_and_steps_are_uncorrelated(chance: float) -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (2**31, 0), (2**32 - 1, 0), (0, 29_999), (65_536, 256)]
    masks = [dropped(seed, step, chance, 16, 32, 32) for seed, step in keys]
    bound = 5 / sqrt(masks[0].numel())
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            assert abs(correlation(mask, other)) < bound
    assert correlation(masks[0], dropped(0, 0, chance, 16, 32, 32)) == pytest.approx(1)


@pytest.mark.parametrize("chance", [0.1, 0.5])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbouring_rows_tokens_and_units_are_uncorrelated(chance: float, axis: int) -> None:
    mask = dropped(4, 11, chance, 40, 40, 40)
    for a, b in pairwise(mask.unbind(axis)):
        assert abs(correlation(a, b)) < 5 / sqrt(a.numel())
    for distance in (1, 2, 4, 8, 16):
        a, b = mask.narrow(axis, distance, 40 - distance), mask.narrow(axis, 0, 40 - distance)
        assert abs(correlation(a, b)) < 5 / sqrt(a.numel())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [0, 1000])
def test_every_row_token_and_unit_is_dropped_equally_often(axis: int, step: int) -> None:
    chance = 0.1
    mask = dropped(8, step, chance, 64, 64, 64)
    others = [other for other in range(3) if other != axis]
    counts, draws = mask.sum(others), mask.numel() / 64
    statistic = float(((counts - draws * chance) ** 2 / (draws * chance * (1 - chance))).sum())
    low, high = chi2.ppf([1e-4, 1 - 1e-4], df=64)
    assert low < statistic < high


def test_one_unit_is_dropped_equally_often_over_steps_and_seeds() -> None:
    chance, draws = 0.1, 4000
    over_steps = keep([6] * draws, list(range(draws)), [chance] * draws, 2, 2, 4) == 0
    over_seeds = keep(list(range(draws)), [6] * draws, [chance] * draws, 2, 2, 4) == 0
    for masks in (over_steps, over_seeds):
        counts = masks.double().sum(0)
        assert float((counts - draws * chance).abs().max()) < 5 * sqrt(draws * chance * (1 - chance))
