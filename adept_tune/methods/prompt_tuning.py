"""Prompt tuning (Lester et al., 2021): only a soft prompt is trained."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from adept_tune.methods.base import Method, Rate, Sizes, Stacking


class PromptTuning(Method):
    """X' = [P; E]. Parameters: m*d."""

    name = "prompt-tuning"
    axes: ClassVar[Mapping[str, str]] = {"prompt": "MD"}
    rate: ClassVar[Mapping[str, Rate]] = {"prompt": "prompt"}
    parameters: ClassVar[Mapping[str, str]] = {"prompt_length": "prompt_length", "prompt_lr": "prompt_lr"}

    def width_within(self, budget: int, prompt_length: int, d_model: int, source_length: int) -> int | None:
        """None: there is no width to choose."""
        return None

    def initial(
        self, sizes: Sizes, prompt_MD: Tensor, wide_start: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The prompt as given."""
        return {"prompt": prompt_MD.clone()}

    def shift(self, tensors: Mapping[str, Tensor], tokens_KBSD: Tensor, stacking: Stacking) -> Tensor:
        """The tokens themselves."""
        return tokens_KBSD
