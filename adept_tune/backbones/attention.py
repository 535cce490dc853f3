"""Attention on a CPU while gradients are wanted: plain matrix products.

torch's fused kernel for a CPU is slow on the way back in bf16: of T5-small's shape it takes six times as long as the
products do, both ways together (`experiments/bench/parts.py`). Where nothing is kept, on a GPU and in fp32, it stays.

Shape legend: N rows, H heads, Q queries, K keys, D width of a head.
"""

from typing import Any

import torch
from torch import Tensor

PRODUCTS = "adept_tune_products"


def use_products(model: Any) -> None:
    """Let a model of transformers attend with `attend`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PRODUCTS, attend)
    AttentionMaskInterface.register(PRODUCTS, sdpa_mask)
    model.set_attn_implementation(PRODUCTS)


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
    """What `sdpa_attention_forward` of transformers answers, through products where these are faster.

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
    if not (
        query_NHQD.device.type == "cpu"
        and torch.is_grad_enabled()
        and query_NHQD.dtype != torch.float32
        and not (causal and 1 < num_queries < num_keys)
        and others.get("softcap") is None
    ):
        rest = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "position_bias": position_bias} | others
        answer: Tensor = sdpa_attention_forward(module, query_NHQD, key_NHKD, value_NHKD, attention_mask, **rest)[0]
        return answer, None
    groups = query_NHQD.shape[1] // key_NHKD.shape[1]
    key_NHKD, value_NHKD = repeat_kv(key_NHKD, groups), repeat_kv(value_NHKD, groups)
    if scaling != 1.0:
        query_NHQD = query_NHQD * (width**-0.5 if scaling is None else scaling)
    score_NHQK = query_NHQD @ key_NHKD.transpose(2, 3)
    if position_bias is not None:
        score_NHQK += position_bias
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
