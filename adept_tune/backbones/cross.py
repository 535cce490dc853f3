"""Cross-attention of a few target tokens to a long source, with the weights of keys and values taken to the few.

transformers makes keys and values of every source token, in every layer of the decoder: of T5-small's shape a seventh
of all that a training pass computes. Labels are two or three tokens. (Q Wk) X' is Q (X Wk)' in another order, so the
queries take the weights instead, H rows of them for a token, and what they find in the source is brought to values
afterwards.

Shape legend: N rows, T target tokens, S source tokens, H heads, W width of a head, D width of the model.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

NAMES = ("T5LayerCrossAttention", "MT5LayerCrossAttention")  # the second is a copy of the first


def use_short_cross_attention(model: Any) -> None:
    """Let a T5's decoder attend to sources the short way where it is one; other models stay as they are."""
    for module in model.modules():
        if type(module).__name__ in NAMES:
            module.EncDecAttention.__class__ = ShortCrossAttention


class ShortCrossAttention(T5Attention):  # type: ignore[misc]  # transformers has no types for it
    """`T5Attention`; answers that differ in rounding.

    The short way is taken where keys and values are needed once (no cache keeps them), have fewer queries than columns
    (`2 H T < D`), and are plain frozen products. It weighs whatever is masked as nothing, as the long way does.
    """

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """See `T5Attention`; where the way is short, no bias is made for the layers to come."""
        if not (
            key_value_states is not None
            and position_bias is None
            and past_key_values is None
            and 2 * self.n_heads * hidden_states.shape[1] < self.d_model
            and all(map(_is_frozen_product, (self.k, self.v)))
        ):
            answer: tuple[Tensor, Tensor | None, None] = super().forward(
                hidden_states, mask, key_value_states, position_bias, past_key_values, **others
            )
            return answer
        source_NSD = key_value_states
        (num_rows, num_tokens, _), heads = hidden_states.shape, (self.n_heads, self.key_value_proj_dim)
        key_HWD, value_HWD = (layer.weight.view(*heads, -1) for layer in (self.k, self.v))
        query_HPW = self.q(hidden_states).view(num_rows * num_tokens, *heads).transpose(0, 1)
        asked_NHTD = (query_HPW @ key_HWD).view(self.n_heads, num_rows, num_tokens, -1).transpose(0, 1)
        asked_NQD = asked_NHTD.flatten(1, 2)
        score_NQS = asked_NQD @ source_NSD.transpose(1, 2)
        if mask is not None:
            score_NHTS = score_NQS.view(num_rows, self.n_heads, num_tokens, -1)
            unseen = torch.finfo(score_NHTS.dtype).min
            seen = mask.dtype == torch.bool
            score_NHTS = score_NHTS.masked_fill(~mask, unseen) if seen else score_NHTS + mask
            score_NQS = score_NHTS.view_as(score_NQS)
        found_NQD = score_NQS.softmax(-1) @ source_NSD
        found_HPD = found_NQD.view(num_rows, self.n_heads, num_tokens, -1).transpose(0, 1).flatten(1, 2)
        value_HPW = found_HPD @ value_HWD.transpose(1, 2)
        value_NTD = value_HPW.transpose(0, 1).reshape(num_rows, num_tokens, -1)
        return self.o(value_NTD), None, None


def _is_frozen_product(layer: nn.Module) -> bool:
    """Whether a layer multiplies by its weight, which is not trained, and does nothing else."""
    return type(layer) is nn.Linear and layer.bias is None and not layer.weight.requires_grad
