"""Adapters (Houlsby et al., 2019): small networks behind self-attention and feed-forward part of every layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from adept_tune.methods.base import Sizes
from adept_tune.methods.in_model import InModel

# The last projections of self-attention and feed-forward part: of T5, of GPT-2, of Llama's family.
_LAST = (
    *(".SelfAttention.o", ".DenseReluDense.wo"),
    *(".attn.c_proj", ".mlp.c_proj"),
    *(".self_attn.o_proj", ".mlp.down_proj"),
)


class Adapter(nn.Module):
    """x + W2 gelu(W1 x + b1) + b2, of width r. W2 and both biases start at zero, so it starts as the identity.

    Args:
        d_model: Width of x.
        width: Of the bottleneck.
    """

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(d_model, width)
        self.up = nn.Linear(width, d_model)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: Tensor) -> Tensor:
        """Same shape, `(..., d_model)`."""
        adapted: Tensor = hidden + self.up(F.gelu(self.down(hidden)))
        return adapted


@dataclass(frozen=True, eq=False)
class Houlsby(InModel):
    """An adapter before the residual sum of every self-attention and feed-forward part, and the layers' norms.

    Parameters: adapters * (2*d*r + r + d), two adapters a layer, and all of the norms. Cross-attention gets none, as
    in the T5 baselines that the papers quote: 24 units are their 1.9M on T5-base.
    """

    name = "houlsby"
    parameters: ClassVar[Mapping[str, str]] = {"bottleneck": "width", "lr": "offset_lr"}

    def owned(self, model: Any) -> Iterable[Parameter]:
        """See `InModel`."""
        return _norms(model).values()

    def attach(self, model: Any, sizes: Sizes) -> dict[str, Parameter]:
        """See `InModel`."""
        found = [module for name, module in model.named_modules() if name.endswith(_LAST)]
        for module in found:
            module.adapter = Adapter(sizes.d_model, sizes.width).to(module.weight.device, module.weight.dtype)
            module.register_forward_hook(lambda at, _, output: at.adapter(output))
        trained = {name: each for name, each in model.named_parameters() if ".adapter." in name}
        return trained | _norms(model)


def _norms(model: Any) -> dict[str, Parameter]:
    """Parameters of a model's norms, whatever their kind."""
    return {
        f"{name}.{each}": parameter
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        for each, parameter in module.named_parameters(recurse=False)
    }
