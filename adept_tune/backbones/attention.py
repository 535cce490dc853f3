"""Attention with T5's bias: what is added to the scores is made once for all layers that share it.

transformers makes it in every layer, of every row, head, query and key, and keeps each for the way back. And on a CPU,
torch's fused kernel is slow on the way back in bf16: of T5-small's shape it takes six times as long as plain products
do, both ways together (`experiments/bench/parts.py`). Where nothing is kept, on a GPU and in fp32, the kernel stays.

Shape legend: N rows, H heads, Q queries, K keys, D width of a head.
"""

from typing import Any

import torch
from torch import Tensor

NAME = "adept_tune"


def use_shared_bias(model: Any) -> None:
    """Let a model of transformers attend with `attend`."""
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):  # transformers 5.17 leaves out an encoder's and a decoder's own settings
            part.set_attn_implementation(NAME)


def attend(
    module: Any,
    query_NHQD: Tensor,
    key_NHKD: Tensor,
    value_NHKD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What `sdpa_attention_forward` of transformers answers, the faster way.

    A query that sees no key has the mean of the values.

    Args:
        module: The layer; says whether it is causal where no mask is given.
        query_NHQD: Queries.
        key_NHKD: Keys; of fewer heads where several share them.
        value_NHKD: Values, as the keys.
        attention_mask: Bool, true where a query sees a key, or to be added; spread over rows, heads and queries.
        dropout: Share of weights that are dropped.
        scaling: Of the scores; None is 1 / sqrt(D).
        is_causal: Overrides the layer's.
        position_bias: Added to the scores, `(1 or N, H, Q, K)`.
        others: Handed on.

    Returns:
        `(N, Q, H, D)`, and None for the weights.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    (num_queries, width), num_keys = query_NHQD.shape[2:], key_NHKD.shape[2]
    cut = causal and 1 < num_queries < num_keys
    if position_bias is not None and not cut:
        attention_mask = _added(position_bias, attention_mask, causal and num_queries > 1)
        causal, position_bias = False, None
    if not (
        query_NHQD.device.type == "cpu"
        and torch.is_grad_enabled()
        and query_NHQD.dtype != torch.float32
        and not cut
        and others.get("softcap") is None
    ):
        rest = {"dropout": dropout, "scaling": scaling, "is_causal": causal, "position_bias": position_bias} | others
        answer: Tensor = sdpa_attention_forward(module, query_NHQD, key_NHKD, value_NHKD, attention_mask, **rest)[0]
        return answer, None
    groups = query_NHQD.shape[1] // key_NHKD.shape[1]
    key_NHKD, value_NHKD = repeat_kv(key_NHKD, groups), repeat_kv(value_NHKD, groups)
    if scaling != 1.0:
        query_NHQD = query_NHQD * (width**-0.5 if scaling is None else scaling)
    score_NHQK = query_NHQD @ key_NHKD.transpose(2, 3)
    if causal and num_queries > 1:
        attention_mask = score_NHQK.new_ones(num_queries, num_keys, dtype=torch.bool).tril()
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            unseen = torch.finfo(score_NHQK.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=score_NHQK.dtype).masked_fill_(
                ~attention_mask, unseen
            )
        score_NHQK += attention_mask
    weight_NHQK = torch.nn.functional.dropout(score_NHQK.softmax(-1), dropout)
    return (weight_NHQK @ value_NHKD).transpose(1, 2).contiguous(), None


def _added(bias: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Bias and mask in one, `(N or 1, H, Q, K)`; it stays with the bias, which the layers of a pass hand on."""
    kept: tuple[Tensor | None, Tensor] | None = getattr(bias, "adept_tune_added", None)
    if kept is not None and kept[0] is mask:
        return kept[1]
    num_queries, num_keys = bias.shape[2:]
    seen = bias.new_ones(num_queries, num_keys, dtype=torch.bool).tril() if causal else mask
    added = bias
    if seen is not None:
        added = torch.where(seen, bias, torch.finfo(bias.dtype).min) if seen.dtype == torch.bool else bias + seen
    added = added.contiguous()  # transformers' bias has its heads last; no fused kernel of a GPU reads that
    if added is not bias:  # which would keep itself
        bias.adept_tune_added = mask, added  # type: ignore[attr-defined]
    return added
