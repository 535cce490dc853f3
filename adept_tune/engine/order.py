"""The order in which a trial sees its rows: a function of (seed, step) alone, so there is no cursor to lose."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=64)
def _epoch(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def batch_rows(seed: int, step: int, batch_size: int, num_rows: int) -> NDArray[np.int64]:
    """Rows of one optimizer step.

    Each epoch is a fresh permutation; a batch may span two epochs. Trials with the same seed and batch size see the
    same batches and are compared like with like.

    Args:
        seed: Of the order.
        step: Optimizer step, from 0.
        batch_size: Rows to take.
        num_rows: Rows of the training split.

    Returns:
        `(batch_size,)` row numbers.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(positions // num_rows):
        here = positions // num_rows == epoch
        rows[here] = _epoch(seed, int(epoch), num_rows)[positions[here] % num_rows]
    return rows
