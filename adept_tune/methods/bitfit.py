"""BitFit (Ben Zaken et al., 2022): only biases are trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import Parameter

from adept_tune.methods.base import Sizes
from adept_tune.methods.in_model import InModel


@dataclass(frozen=True, eq=False)
class BitFit(InModel):
    """All biases of the model; linear layers that have none, such as T5's, get one of zeros. The head gets none.

    Parameters, for T5: of each attention 3 * heads * d_kv + d, of each feed-forward layer d + d_ff, or d + 2 * d_ff
    where it is gated.
    """

    name = "bitfit"
    parameters: ClassVar[Mapping[str, str]] = {"lr": "offset_lr"}

    def owned(self, model: Any) -> Iterable[Parameter]:
        """See `InModel`."""
        return _biases(model).values()

    def attach(self, model: Any, sizes: Sizes) -> dict[str, Parameter]:
        """See `InModel`."""
        head = model.get_output_embeddings()
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is None and module is not head:
                module.bias = Parameter(torch.zeros_like(module.weight[:, 0]))
        return _biases(model)


def _biases(model: Any) -> dict[str, Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if name.endswith(".bias")}
