"""Tiny models, built from a configuration with fixed seeds; nothing is downloaded."""

from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

WORDS = [
    *("sentence", ":", "1", "0", "yes", "no", "sentence1", "sentence2"),
    *("the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "tree", "not", "very", "good", "bad"),
    *("Classify", "this", "text", "is", "postive", "or", "was", "never", "happy", "sad", "in", "town", "today"),
]
VOCABULARY = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate(WORDS)}


def tiny_tokenizer() -> Any:
    """A word-level tokenizer that ends every text with `</s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def tiny_t5(dtype: torch.dtype = torch.float32, tied: bool = True, seed: int = 0, **changes: Any) -> Any:
    """A T5 with random weights, two layers a side and 16 dimensions."""
    config = T5Config(
        **{
            "vocab_size": len(VOCABULARY),
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "relative_attention_num_buckets": 8,
            "decoder_start_token_id": 0,
            "dropout_rate": 0.1,
            "tie_word_embeddings": tied,
            "feed_forward_proj": "relu" if tied else "gated-gelu",
        }
        | changes
    )
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    # transformers' initial values are too small to tell rows apart. Embeddings are large against the rest, as in a
    # trained T5: that is what makes prompt rates of 0.3 small steps.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" not in name:
                parameter.copy_(torch.randn(parameter.shape) * (3.0 if name.startswith("shared") else 0.15))
    if tied:
        model.tie_weights()
    else:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
    if dtype == torch.float64:
        _keep_norms_in_float64(model)
    return model.to(dtype).eval()


def _keep_norms_in_float64(model: Any) -> None:
    """Replace T5's norm by torch's equal one: T5's rounds its variance to float32 whatever it is given, which turns
    a difference in the last bit of float64 into one of 6e-8."""
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, T5LayerNorm):
                norm = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)


def lively_t5(dtype: torch.dtype = torch.float32, tied: bool = True) -> Any:
    """A tiny T5 whose layers outweigh its embeddings, so that what it decodes differs from row to row."""
    model = tiny_t5(dtype=dtype, tied=tied, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" not in name and name != "lm_head.weight":
                parameter.mul_(0.2 if name.startswith("shared") else 4.0)
    return model


def save_tiny_t5(folder: Path, **changes: Any) -> Path:
    """Write a tiny T5 and its tokenizer as an ordinary model folder."""
    tiny_t5(**changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
