"""All that makes the parts of a frozen model of transformers faster, in one place."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu
from transformers.activations import NewGELUActivation

from adept_tune.backbones.attention import use_shared_bias
from adept_tune.backbones.cross import use_short_cross_attention
from adept_tune.backbones.norm import use_frozen_norms


def use_short_ways(model: Any) -> None:
    """Let a model's parts answer as before but for rounding, in less time; what is trained in them still may be."""
    use_shared_bias(model)
    use_frozen_norms(model)
    use_short_cross_attention(model)
    use_fused_gelu(model)


def use_fused_gelu(model: Any) -> None:
    """Let the GELU that transformers writes in eight operations be one while gradients are wanted."""
    for module in model.modules():
        if type(module) is NewGELUActivation:
            module.__class__ = FusedGELU


class FusedGELU(NewGELUActivation):  # type: ignore[misc]  # transformers has no types for it
    """`NewGELUActivation`; in training answers that differ in rounding, else equal ones, as an exported model gives."""

    def forward(self, input: Tensor) -> Tensor:
        """See `NewGELUActivation`."""
        answer: Tensor = gelu(input, approximate="tanh") if torch.is_grad_enabled() else super().forward(input)
        return answer
