"""LoRA (Hu et al., 2022): a low-rank update of the query and value projections."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import Parameter

from adept_tune.methods.base import Sizes
from adept_tune.methods.in_model import InModel, injected, peft_tensors

# Hu et al., section 4.1: alpha acts as the learning rate does, so it is set once and not tuned.
ALPHA = 32


@dataclass(frozen=True, eq=False)
class Lora(InModel):
    """W + (alpha/r) B A, through PEFT, for the projections that PEFT names by default: q and v. B starts at zero.

    Parameters: r * (in + out) summed over those projections; for T5 with d = heads * d_kv, attentions times 4*d*r.
    No dropout is applied to the update.
    """

    name = "lora"
    parameters: ClassVar[Mapping[str, str]] = {"rank": "width", "lr": "offset_lr"}

    def attach(self, model: Any, sizes: Sizes) -> dict[str, Parameter]:
        """See `InModel`."""
        return injected(model, self._config(model.config.model_type, sizes), "lora_")

    def peft_files(
        self, model_type: str, sizes: Sizes, tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `InModel`."""
        return self._config(model_type, sizes).to_dict(), peft_tensors(tensors)

    @staticmethod
    def _config(model_type: str, sizes: Sizes) -> Any:
        from peft import LoraConfig
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        return LoraConfig(
            r=sizes.width,
            lora_alpha=ALPHA,
            target_modules=list(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[model_type]),
            fan_in_fan_out=model_type == "gpt2",  # its layers store their weights transposed
        )
