"""How trained tensors start."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

PromptInit = Literal["text", "vocabulary", "normal"]

# The published runs use this string for every task, spelling included (DePT's and ADePT's train.py).
PUBLISHED_TEXT = "Classify this text is postive or not:"


def initial_prompt(
    kind: PromptInit, length: int, table_VD: Tensor, text_ids: list[int], generator: torch.Generator
) -> Tensor:
    """Initial prompt of a trial.

    Args:
        kind: ``text`` tiles the embeddings of `text_ids`; ``vocabulary`` samples embeddings of the first 5,000 tokens
            (Lester et al., 2021: frequent pieces come first); ``normal`` draws from N(0, 1), torch's embedding default.
        length: Prompt tokens.
        table_VD: The backbone's input embeddings.
        text_ids: Token ids of the initial text, end token included as published.
        generator: The trial's own, on the CPU.

    Returns:
        `(length, d_model)`, float32 on the CPU.
    """
    if kind == "normal":
        return torch.randn(length, table_VD.shape[1], generator=generator)
    if kind == "vocabulary":
        ids = torch.randint(min(5000, table_VD.shape[0]), (length,), generator=generator)
    else:
        ids = torch.tensor([text_ids[i % len(text_ids)] for i in range(length)], dtype=torch.int64)
    return table_VD[ids.to(table_VD.device)].detach().to("cpu", torch.float32)


def transferred(fresh: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Start from what another trial has learnt: soft prompt transfer.

    A prompt of another length is cut, or tiled as an initial text is. Other tensors are taken over where their shapes
    are the same, all of them or none, and start as ever elsewhere.

    Args:
        fresh: Tensors of a trial that starts from nothing.
        trained: Those of an adapter.

    Source: Vu et al., "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", ACL 2022.
    """
    start = dict(fresh)
    length, given = fresh["prompt"].shape[0], trained["prompt"]
    if len(given):
        start["prompt"] = given[torch.arange(length) % len(given)].clone()
    others = [name for name in fresh if name != "prompt"]
    if all(name in trained and trained[name].shape == fresh[name].shape for name in others):
        start |= {name: trained[name].clone() for name in others}
    return start
