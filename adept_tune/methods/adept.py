"""ADePT (Tang et al., ICLR 2025): a short prompt and a small feed-forward network shared by all tokens."""

from collections.abc import Mapping
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from adept_tune.methods.base import Method, Rate, Sizes, Stacking, uniform


class Adept(Method):
    """X' = [P; E + ReLU(drop(E W1 + b1)) W2 + b2]. Parameters: m*d + 2*d*r + r + d.

    The offset of a token depends on its embedding alone, not on where it stands, so it can be folded into a table.
    """

    name = "adept"
    axes: ClassVar[Mapping[str, str]] = {
        "prompt": "MD",
        "ffn_w1": "DR",
        "ffn_b1": "R",
        "ffn_w2": "RD",
        "ffn_b2": "D",
    }
    rate: ClassVar[Mapping[str, Rate]] = {
        "prompt": "prompt",
        "ffn_w1": "offset",
        "ffn_b1": "offset",
        "ffn_w2": "offset",
        "ffn_b2": "offset",
    }
    parameters: ClassVar[Mapping[str, str]] = {
        "prompt_length": "prompt_length",
        "ffn_width": "width",
        "prompt_lr": "prompt_lr",
        "ffn_lr": "offset_lr",
    }
    has_dropout = True

    def width_within(self, budget: int, prompt_length: int, d_model: int, source_length: int) -> int | None:
        """floor((B - (m+1)*d) / (2d+1)), or None where prompt and output bias alone exceed the budget."""
        left = budget - (prompt_length + 1) * d_model
        return left // (2 * d_model + 1) if left >= 0 else None

    def initial(
        self, sizes: Sizes, prompt_MD: Tensor, wide_start: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """W1 uniform within 1/sqrt(r), as published (fan-in of the wrong axis), or 1/sqrt(d); the rest zero."""
        fan_in = sizes.width if wide_start else sizes.d_model
        return {
            "prompt": prompt_MD.clone(),
            "ffn_w1": uniform(sizes.of("DR"), 1 / sqrt(max(fan_in, 1)), generator),
            "ffn_b1": torch.zeros(sizes.of("R")),
            "ffn_w2": torch.zeros(sizes.of("RD")),
            "ffn_b2": torch.zeros(sizes.of("D")),
        }

    def shift(self, tensors: Mapping[str, Tensor], tokens_KBSD: Tensor, stacking: Stacking) -> Tensor:
        """Shift each token by the network's answer to its own embedding.

        Dropout acts on the bottleneck before the ReLU, as in the published code.
        """
        num_trials, num_rows, num_tokens, d_model = tokens_KBSD.shape
        tokens_KTD = tokens_KBSD.reshape(num_trials, num_rows * num_tokens, d_model)
        hidden_KTR = torch.baddbmm(tensors["ffn_b1"][:, None], tokens_KTD, tensors["ffn_w1"])
        if stacking.keep_KBSR is not None:
            hidden_KTR = hidden_KTR * stacking.keep_KBSR.reshape(hidden_KTR.shape)
        offset_KTD = torch.baddbmm(tensors["ffn_b2"][:, None], hidden_KTR.relu(), tensors["ffn_w2"])
        return (tokens_KTD + offset_KTD).view(num_trials, num_rows, num_tokens, d_model)
