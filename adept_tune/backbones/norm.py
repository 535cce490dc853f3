"""T5's layer norm for a frozen weight.

transformers writes it in seven operations, each of which keeps something for the way back, some in two dtypes at once.
As one step of autograd it keeps the normed numbers alone, and takes about two thirds of the time on a CPU
(`experiments/bench/parts.py`). For a GPU torch has a kernel for each way.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5LayerNorm

NAMES = ("T5LayerNorm", "MT5LayerNorm")  # the second is a copy of the first


def use_frozen_norms(model: Any) -> None:
    """Let the norms of a T5 take the short way while their weights are not trained; other models stay as they are."""
    for module in model.modules():
        if type(module).__name__ in NAMES and hasattr(module, "variance_epsilon"):
            module.__class__ = FrozenNorm


class FrozenNorm(T5LayerNorm):  # type: ignore[misc]  # transformers has no types for it
    """`T5LayerNorm`; on a CPU equal answers, on a GPU and in gradients they differ in rounding."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Scale by the root mean square over the last dimension, then by the weight."""
        if self.weight.requires_grad or hidden.dtype == torch.float64:
            answer: Tensor = super().forward(hidden)
        elif hidden.device.type == "cuda":
            answer = torch.nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.variance_epsilon)
        else:
            answer = _Normed.apply(hidden, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return answer


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        exact = hidden.float()
        factor = exact.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        normed = exact * factor
        ctx.save_for_backward(normed, factor, weight)
        return normed.to(weight.dtype) * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        normed, factor, weight = ctx.saved_tensors
        inner = (gradient * weight).float()
        along = (inner * normed).mean(-1, keepdim=True)
        return torch.addcmul(inner, normed, along, value=-1).mul_(factor).to(gradient.dtype), None, None
