"""Dropout that is the same in any company.

A mask drawn from a shared generator would depend on who else is in the stack and on how far the rows are padded.
Here every factor is a hash of (trial seed, step, row, token, unit), so a trial alone, among neighbours, resumed or
replayed after a split batch sees the same mask.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def _mix(word: Tensor) -> Tensor:
    """Scramble 32-bit words held in int64 (the finaliser constants of C. Wellons' hash prospector, lowbias32)."""
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D) & _WORD
    word = word ^ (word >> 15)
    word = (word * 0x846CA68B) & _WORD
    return word ^ (word >> 16)


def keep_factors(
    seed_K: Tensor,
    step_K: Tensor,
    place_KB: Tensor,
    probability_K: Tensor,
    num_tokens: int,
    width: int,
) -> Tensor:
    """Factors that drop a bottleneck unit with its trial's probability and scale the rest.

    Args:
        seed_K: Int64, the trials' seeds, below 2**32.
        step_K: Int64, the steps the trials are at.
        place_KB: Int64, where each row stands in its trial's batch.
        probability_K: Float, chance that a unit is dropped, in [0, 1).
        num_tokens: Tokens of the longest row, without prompts.
        width: Units of the widest bottleneck.

    Returns:
        `(trials, rows, tokens, width)` in the dtype of the probabilities: 0 or 1/(1-p).
    """
    device = seed_K.device
    key_K = _mix(_mix(seed_K & _WORD) ^ step_K)
    key_KB = _mix(key_K[:, None] ^ _mix(place_KB + 0x9E3779B9))
    key_KBS = _mix(key_KB[..., None] ^ _mix(torch.arange(num_tokens, device=device) + 0x3C6EF372))
    word_KBSR = _mix(key_KBS[..., None] ^ _mix(torch.arange(width, device=device) + 0x1B873593))
    threshold_K = (probability_K.double() * 2**32).to(torch.int64)
    kept_KBSR = word_KBSR >= threshold_K[:, None, None, None]
    return kept_KBSR.to(probability_K.dtype) / (1 - probability_K)[:, None, None, None]
