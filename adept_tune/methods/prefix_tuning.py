"""Prefix tuning (Li and Liang, 2021): every layer attends to a few trained keys and values before its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from adept_tune.methods.base import Sizes
from adept_tune.methods.in_model import InModel

PLACE = "key_value_prefix"  # backbones look for it in the model that they drive
ENCODER_DECODERS = ("t5", "mt5")


@dataclass(frozen=True, eq=False)
class PrefixTuning(InModel):
    """Keys and values `(m, layers, 2, heads, width of a head)` of the decoder's self-attention, as PEFT has them.

    Drawn from N(0, 1), as PEFT's, without Li and Liang's reparametrisation. PEFT's own model drives prefixes only
    through `forward` and `generate`, so the backbones drive them here. Parameters: m * 2 * layers * heads * width, of
    key and value heads where there are fewer of them than of queries.

    A named deviation: every layer has a prefix of its own. In PEFT (0.21) layer i of an encoder-decoder's L decoder
    layers reads the prefix of layer 2i mod L, so where L is even two layers share each and half of the parameters do
    nothing. What is trained here can be written as PEFT's for decoders and where L is odd, and not elsewhere.
    """

    name = "prefix-tuning"
    parameters: ClassVar[Mapping[str, str]] = {"prefix_length": "prompt_length", "lr": "offset_lr"}

    def attach(self, model: Any, sizes: Sizes) -> dict[str, Parameter]:
        """See `InModel`."""
        shape = (sizes.prompt_length, *_layers_heads_width(model.config))
        prefix = torch.randn(shape[0], shape[1], 2, *shape[2:])
        setattr(model, PLACE, Parameter(prefix.to(model.device, model.dtype)))
        return {PLACE: getattr(model, PLACE)}

    def peft_files(
        self, model_type: str, sizes: Sizes, tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """See `InModel`."""
        from peft import PrefixTuningConfig

        prefix = tensors[PLACE]
        num_tokens, num_layers, _, num_heads, width = prefix.shape
        if model_type in ENCODER_DECODERS:
            if num_layers % 2 == 0:
                return None
            read = torch.arange(num_layers) * 2 % num_layers
            prefix = prefix[:, read.argsort()]
        config = PrefixTuningConfig(
            num_virtual_tokens=num_tokens,
            token_dim=num_heads * width,
            num_layers=num_layers,
            num_attention_heads=num_heads,
        )
        return config.to_dict(), {"prompt_embeddings": prefix.float().flatten(1)}


def _layers_heads_width(config: Any) -> tuple[int, int, int]:
    """Layers of a model's decoder, the key and value heads of each, and the width of a head."""
    if config.is_encoder_decoder:
        return config.num_decoder_layers, config.num_heads, config.d_kv
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width
