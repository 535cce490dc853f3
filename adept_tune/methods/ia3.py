"""IA3 (Liu et al., 2022): keys, values and the feed-forward layer's hidden units are scaled by learned vectors.

Of a decoder it is what PEFT scales there by default, of some the queries instead of the keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import Parameter

from adept_tune.methods.base import Sizes
from adept_tune.methods.in_model import InModel, injected, peft_tensors


@dataclass(frozen=True, eq=False)
class Ia3(InModel):
    """Factors that start at one, through PEFT, where PEFT puts them by default for the kind of model.

    Parameters, for T5: 2*d of each attention and d_ff of each feed-forward layer.
    """

    name = "ia3"
    parameters: ClassVar[Mapping[str, str]] = {"lr": "offset_lr"}

    def attach(self, model: Any, sizes: Sizes) -> dict[str, Parameter]:
        """See `InModel`."""
        return injected(model, self._config(model.config.model_type), "ia3_")

    def peft_files(
        self, model_type: str, sizes: Sizes, tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `InModel`."""
        return self._config(model_type).to_dict(), peft_tensors(tensors)

    @staticmethod
    def _config(model_type: str) -> Any:
        from peft import IA3Config
        from peft.utils import (
            TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
            TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
        )

        return IA3Config(
            target_modules=list(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[model_type]),
            feedforward_modules=list(TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[model_type]),
            fan_in_fan_out=model_type == "gpt2",
        )
