"""DePT (Shi and Lipani, ICLR 2024): a short prompt and a low-rank offset for each position of the text."""

from collections.abc import Mapping
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from adept_tune.methods.base import Method, Rate, Sizes, Stacking, uniform

ALPHA = 8.0  # lora_alpha of the published runs


class Dept(Method):
    """X' = [P; E + (alpha/sqrt(r)) A B]. Parameters: m*d + r*(s + d).

    A: (s, r), B: (r, d). Row i of A B goes to the i-th token of the text, whatever column it stands in.
    """

    name = "dept"
    axes: ClassVar[Mapping[str, str]] = {"prompt": "MD", "low_rank_a": "SR", "low_rank_b": "RD"}
    rate: ClassVar[Mapping[str, Rate]] = {"prompt": "prompt", "low_rank_a": "offset", "low_rank_b": "offset"}
    parameters: ClassVar[Mapping[str, str]] = {
        "prompt_length": "prompt_length",
        "rank": "width",
        "prompt_lr": "prompt_lr",
        "low_rank_lr": "offset_lr",
    }

    def width_within(self, budget: int, prompt_length: int, d_model: int, source_length: int) -> int | None:
        """floor((B - m*d) / (s + d)), or None where the prompt alone exceeds the budget."""
        left = budget - prompt_length * d_model
        return left // (source_length + d_model) if left >= 0 else None

    def initial(
        self, sizes: Sizes, prompt_MD: Tensor, wide_start: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """A uniform within 1/sqrt(r) (published) or 1/sqrt(s); B zero."""
        fan_in = sizes.width if wide_start else sizes.source_length
        return {
            "prompt": prompt_MD.clone(),
            "low_rank_a": uniform(sizes.of("SR"), 1 / sqrt(max(fan_in, 1)), generator),
            "low_rank_b": torch.zeros(sizes.of("RD")),
        }

    def shift(self, tensors: Mapping[str, Tensor], tokens_KBSD: Tensor, stacking: Stacking) -> Tensor:
        """Add row i of (alpha/sqrt(r)) A B to token i of every text."""
        a_KSR = tensors["low_rank_a"][:, : tokens_KBSD.shape[2]]
        scale_K = ALPHA / stacking.width_K.clamp(min=1).to(a_KSR.dtype).sqrt()
        offset_KSD = torch.bmm(a_KSR, tensors["low_rank_b"]) * scale_K[:, None, None]
        return tokens_KBSD + offset_KSD[:, None]
