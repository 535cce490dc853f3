"""What two ways of the same model must have in common."""

import torch
from torch import Tensor

from adept_tune.backbones.base import Backbone
from adept_tune.engine.graphs import nll_and_gradient


def assert_same_losses_and_gradients(one: Backbone, other: Backbone, target: Tensor, target_mask: Tensor) -> None:
    """Of two rows in float64, the second of which is padded."""
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    embeds = torch.randn(2, 6, one.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [nll_and_gradient(backbone, embeds, mask, target, target_mask) for backbone in (one, other)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
