"""Tiny decoder-only models with random weights, one of each family that is driven."""

from pathlib import Path
from typing import Any

import torch

from tests.support.tiny import VOCABULARY, tiny_tokenizer

FAMILIES = ("gpt2", "llama", "mistral", "gemma", "gemma3_text", "qwen2", "qwen3")


def tiny_decoder(family: str, dtype: torch.dtype = torch.float64, tied: bool | None = None) -> Any:
    """Two layers, 16 dimensions; what it decodes differs from row to row."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {"vocab_size": len(VOCABULARY), "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0}
    if tied is not None:
        sizes["tie_word_embeddings"] = tied
    if family == "gpt2":
        sizes |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
    else:
        sizes |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    if family not in ("gpt2", "llama", "gemma"):
        sizes["sliding_window"] = 4
    if family.startswith("qwen"):
        sizes |= {"use_sliding_window": True, "max_window_layers": 1}
    if family == "gemma3_text":
        sizes["layer_types"] = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * (1.0 if "embed" in name or "wte" in name else 0.3))
    model.tie_weights()
    return model.to(dtype).eval()


def save_tiny_decoder(folder: Path, family: str, **options: Any) -> Path:
    """Write a tiny decoder and its tokenizer as an ordinary model folder."""
    tiny_decoder(family, torch.float32, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
