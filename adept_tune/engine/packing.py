"""Which rows go through the backbone together.

The rows of all trials of a step, or of an evaluation, are put in order of their lengths, prompts included, and cut into
passes. A pass then pads little, however much prompts and texts differ, and no trial's batch is another for it.

Shape legend: J pieces of a pass, B rows of its widest piece, S source tokens of its longest row, P rows of the pass,
W tokens of its longest row with the prompt, on a GPU a multiple of eight.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adept_tune.backbones.base import moved
from adept_tune.tasks.tokens import Ragged, pad

ALIGNED = 8  # tokens: a GPU's kernels for attention and products are made for such rows, and fewer shapes recur more


@dataclass(frozen=True)
class Piece:
    """What one pass takes of one trial's rows.

    Attributes:
        trial: Number of the trial among those of the step.
        prompt_length: Its prompt's.
        rows: Rows of the split.
        places: Where they stand among the trial's rows of this step; dropout depends on it.
    """

    trial: int
    prompt_length: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


def extent(pieces: Sequence[Piece], lengths: NDArray[np.int64]) -> tuple[int, int]:
    """Rows of a pass, and its tokens, padding included; lengths are those of the split."""
    longest = max(int(lengths[piece.rows].max()) + piece.prompt_length for piece in pieces)
    num_rows = sum(len(piece.rows) for piece in pieces)
    return num_rows, num_rows * longest


@dataclass(frozen=True)
class Stack:
    """The tokens of one pass on the device.

    The adapters see `(J, B, S)`; the backbone reads P rows of W tokens, each beginning with its prompt.

    Attributes:
        ids_JBS: Source tokens, padded on the right.
        mask_JBS: Bool, true on real tokens.
        place_JB: Where each row stands among its trial's.
        piece_P: Number of the piece that each row is of.
        column_PW: Where each token lies among the `(J, B, prompt + S)` that the adapters make, flattened; None where
            these are the backbone's rows already.
        mask_PW: Bool, true on real tokens and prompts.
        num_tokens: Real tokens, prompts included.
    """

    ids_JBS: Tensor
    mask_JBS: Tensor
    place_JB: Tensor
    piece_P: Tensor
    column_PW: Tensor | None
    mask_PW: Tensor
    num_tokens: int


class Tally:
    """Counts the tokens of passes, prompts included: real ones, and with padding."""

    def __init__(self) -> None:
        self._real = self._read = 0

    def add(self, batch: Stack) -> None:
        """Count a pass."""
        self._real += batch.num_tokens
        self._read += batch.mask_PW.numel()

    def take(self) -> tuple[int, int]:
        """What was counted since the last call."""
        taken = self._real, self._read
        self._real = self._read = 0
        return taken


def passes(
    rows: Sequence[NDArray[np.int64]],
    prompt_lengths: Sequence[int],
    lengths: NDArray[np.int64],
    tokens_per_pass: int | None,
    num_lanes: int = 1,
    even: bool = False,
    grain: int = 1,
) -> Iterator[list[Piece]]:
    """Cut the rows of some trials into passes.

    Args:
        rows: Rows of the split that each trial wants read.
        prompt_lengths: Of each trial.
        lengths: Source length of each row of the split.
        tokens_per_pass: Most tokens of a pass, padding included, where it has more than one row; None makes one pass.
        num_lanes: Passes that run at a time. Where rows allow it there are a multiple of so many, of like size.
        even: Give all passes as many rows, or one less, so that shapes recur; the tokens of a pass are then those of
            rows as wide as a multiple of eight, and lanes do not matter.
        grain: Rows of a pass are a multiple of so many, where there are twice as many and no lane waits long for it.

    Yields:
        One piece for each trial that has rows in the pass, in the order of the trials.
    """
    sizes = [len(mine) for mine in rows]
    trial_N = np.repeat(np.arange(len(rows)), sizes)
    place_N = np.concatenate([np.arange(size) for size in sizes])
    row_N = np.concatenate(rows)
    length_N = lengths[row_N] + np.repeat(np.asarray(prompt_lengths), sizes)
    order_N = np.lexsort((trial_N, length_N))
    ascending = length_N[order_N]
    cuts = _equal_cuts(ascending, tokens_per_pass) if even else _lane_cuts(ascending, tokens_per_pass, num_lanes, grain)
    for chosen in np.split(order_N, cuts):
        chosen.sort()  # by trial, and by place within a trial
        trials, begins = np.unique(trial_N[chosen], return_index=True)
        yield [
            Piece(int(trial), prompt_lengths[trial], row_N[part], place_N[part])
            for trial, part in zip(trials, np.split(chosen, begins[1:]), strict=True)
        ]


def _equal_cuts(ascending: NDArray[np.int64], tokens_per_pass: int | None) -> list[int]:
    """Where to cut rows of ascending lengths for the fewest passes of equal rows within a limit."""
    num_rows, ascending = len(ascending), -(-ascending // ALIGNED) * ALIGNED
    fewest = 1 if tokens_per_pass is None else min(num_rows, -(-int(ascending.sum()) // tokens_per_pass))
    for num_passes in range(fewest, num_rows + 1):
        ends = [num_rows * (i + 1) // num_passes for i in range(num_passes)]
        sizes = np.diff([0, *ends])
        if tokens_per_pass is None or int((sizes * ascending[np.array(ends) - 1]).max()) <= tokens_per_pass:
            break
    return ends[:-1]


def _lane_cuts(ascending: NDArray[np.int64], tokens_per_pass: int | None, num_lanes: int, grain: int) -> list[int]:
    """Where to cut rows of ascending lengths for lanes that all are to be busy to the end."""
    whole = _level_cuts(ascending, tokens_per_pass, num_lanes, grain)
    if grain == 1 or num_lanes == 1:
        return whole
    plain = _level_cuts(ascending, tokens_per_pass, num_lanes, 1)
    longer = _lane_tokens(ascending, whole, num_lanes) > 1.1 * _lane_tokens(ascending, plain, num_lanes)
    return plain if longer else whole


def _lane_tokens(ascending: NDArray[np.int64], cuts: list[int], num_lanes: int) -> int:
    """Tokens that the busiest lane may have, padding included."""
    ends = np.array([*cuts, len(ascending)])
    tokens = np.diff(ends, prepend=0) * ascending[ends - 1]
    return -(-len(tokens) // num_lanes) * int(tokens.max())


def _level_cuts(ascending: NDArray[np.int64], tokens_per_pass: int | None, num_lanes: int, grain: int) -> list[int]:
    """Cuts for the fewest passes that lanes can share, the largest of them as small as it may be."""
    cuts = _cuts(ascending, tokens_per_pass, grain)
    if num_lanes == 1:
        return cuts
    wanted = num_lanes * -(-(len(cuts) + 1) // num_lanes)
    low, high = int(ascending[-1]), tokens_per_pass or len(ascending) * int(ascending[-1])
    while low < high:  # the smallest passes that are no more
        middle = (low + high) // 2
        fewer = _cuts(ascending, middle, grain)
        if len(fewer) < wanted:
            cuts, high = fewer, middle
        else:
            low = middle + 1
    return cuts


def _cuts(ascending: NDArray[np.int64], tokens_per_pass: int | None, grain: int) -> list[int]:
    """Where to cut rows of ascending lengths; from two grains up passes have whole ones."""
    if tokens_per_pass is None:
        return []
    cuts, start = [], 0
    for i, length in enumerate(ascending.tolist()):
        if i > start and (i - start + 1) * length > tokens_per_pass:
            whole = i - (i - start) % grain
            start = whole if whole - start >= 2 * grain and (i - whole + 1) * length <= tokens_per_pass else i
            cuts.append(start)
    return cuts


def stack(pieces: Sequence[Piece], sources: Ragged, pad_id: int, device: torch.device) -> Stack:
    """The tokens of a pass."""
    sizes = np.array([len(piece.rows) for piece in pieces])
    prompts = np.array([piece.prompt_length for piece in pieces])
    piece_P = np.repeat(np.arange(len(pieces)), sizes)
    ids_PS, mask_PS = pad(sources, np.concatenate([piece.rows for piece in pieces]), pad_id)
    widest, longest, num_columns = sizes.max(), prompts.max(), prompts.max() + ids_PS.shape[1]
    row_P = piece_P * widest + np.concatenate([np.arange(size) for size in sizes])

    def spread(values_P: NDArray, fill: int) -> Tensor:  # type: ignore[type-arg]  # ids, masks and places
        values = np.full((len(pieces) * widest, *values_P.shape[1:]), fill, dtype=values_P.dtype)
        values[row_P] = values_P
        return _tensor(values.reshape(len(pieces), widest, *values_P.shape[1:]), device)

    length_P = mask_PS.sum(1) + prompts[piece_P]
    column_W = np.arange(-(-length_P.max() // ALIGNED) * ALIGNED if device.type == "cuda" else length_P.max())
    column_PW = (longest - prompts[piece_P])[:, None] + column_W
    ready = len(row_P) == len(pieces) * widest and prompts.min() == longest and len(column_W) == num_columns
    column_PW = row_P[:, None] * num_columns + column_PW.clip(max=num_columns - 1)
    return Stack(
        spread(ids_PS, pad_id),
        spread(mask_PS, False),
        spread(np.concatenate([piece.places for piece in pieces]), 0),
        _tensor(piece_P, device),
        None if ready else _tensor(column_PW, device),
        _tensor(column_W < length_P[:, None], device),
        int(length_P.sum()),
    )


def _tensor(array: NDArray, device: torch.device) -> Tensor:  # type: ignore[type-arg]  # ids and masks
    return moved(torch.from_numpy(array), device)
