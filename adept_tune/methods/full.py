"""Full fine-tuning: every weight is trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.nn import Parameter

from adept_tune.methods.base import Sizes
from adept_tune.methods.in_model import InModel


@dataclass(frozen=True, eq=False)
class Full(InModel):
    """All of the model's parameters, tied ones once. A state is three models, so it is reported seldom."""

    name = "full"
    parameters: ClassVar[Mapping[str, str]] = {"lr": "offset_lr"}
    num_reports = 4

    def owned(self, model: Any) -> Iterable[Parameter]:
        """See `InModel`."""
        parameters: Iterable[Parameter] = model.parameters()
        return parameters

    def attach(self, model: Any, sizes: Sizes) -> dict[str, Parameter]:
        """See `InModel`."""
        return dict(model.named_parameters())
