"""Exports that PEFT and transformers (5 or newer) load without this package.

Prompt tuning, LoRA, IA3 and prefix tuning (but of some T5) are PEFT adapters as they are; full fine-tuning is a model.

ADePT's offset depends on the token alone. So it can be added to every row of the embedding table once, and what is left
is plain prompt tuning on a model with another input table. (transformers 4 cannot hold such a T5: its encoder and
decoder have one table.) A decoder reads source and answer through one table, and only the source is shifted: its table
gets a second half with the shifted rows, of which a source takes its tokens, and which is never written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adept_tune.errors import MethodError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

    from adept_tune.adapter import Adapter
    from adept_tune.backbones import BackboneInfo
    from adept_tune.methods import InModel, Sizes

PEFT_CONFIG, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"
MODEL = "model"

# Rows of the table that are folded at a time.
_ROWS = 8192


def peft_files(prompt_MD: "Tensor", base: str, revision: str | None, decoder: bool) -> dict[str, bytes]:
    """Content of the two files of a PEFT prompt-tuning adapter, by name.

    Args:
        prompt_MD: The prompt, in front of the encoder's input or of the decoder's.
        base: Hub name or folder of the model.
        revision: Commit on the Hub; None for a folder.
        decoder: Whether the model is decoder-only.
    """
    from safetensors.torch import save

    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM" if decoder else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "num_virtual_tokens": prompt_MD.shape[0],
        "token_dim": prompt_MD.shape[1],
        "num_transformer_submodules": 1,  # PEFT's default for an encoder-decoder gives the decoder a prompt as well
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    return {
        PEFT_CONFIG: json.dumps(config, indent=2).encode() + b"\n",
        PEFT_TENSORS: save({"prompt_embeddings": prompt_MD.float().contiguous()}),
    }


def in_model_files(
    method: "InModel", info: "BackboneInfo", sizes: "Sizes", tensors: "Mapping[str, Tensor]"
) -> dict[str, bytes]:
    """Content of the two files of a PEFT adapter, by name; nothing where PEFT does not have the method.

    Args:
        method: One inside the model.
        info: The model.
        sizes: The trial's sizes.
        tensors: What was trained.
    """
    from safetensors.torch import save

    found = method.peft_files(info.model_type, sizes, tensors)
    if found is None:
        return {}
    config, numbers = found
    config |= {
        "task_type": "CAUSAL_LM" if info.is_decoder else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": info.name,
        "revision": None if info.local else info.revision,
        "inference_mode": True,
    }
    return {
        PEFT_CONFIG: json.dumps(config, indent=2, default=sorted).encode() + b"\n",
        PEFT_TENSORS: save({name: tensor.contiguous() for name, tensor in numbers.items()}),
    }


def export(adapter: "Adapter", folder: Path, fold: bool) -> None:
    """Write an adapter so that PEFT or transformers loads it.

    One of prompt tuning, LoRA, IA3 or prefix tuning is a PEFT adapter. One of ADePT is folded into a model in folder
    ``model``, and one of full fine-tuning is a model there.

    Args:
        adapter: A loaded adapter.
        folder: Made if absent.
        fold: Whether to add offsets to the model's table of input embeddings.

    Raises:
        MethodError: The method has offsets that are not folded or cannot be, or none that could, or a form that
            neither library has; or there is a model in the folder.
        StorageError: The folder cannot be written.
    """
    from safetensors import SafetensorError

    from adept_tune.methods import IN_MODEL

    if adapter.description["method"] in IN_MODEL:
        _export_in_model(adapter, IN_MODEL[adapter.description["method"]], folder, fold)
        return
    method, decoder = adapter.description["method"], adapter.info.is_decoder
    if method == "prompt-tuning" and fold:
        raise MethodError("method prompt-tuning: has no offsets to fold; leave --fold out")
    if method == "dept":
        raise MethodError("method dept: its offsets depend on a token's place, so no embedding table holds them")
    if method == "adept" and not fold:
        raise MethodError("method adept: without its offsets it is another adapter; give --fold")
    if fold and (folder / MODEL).exists():
        raise MethodError(f"--to {folder}: has a model, perhaps that of other adapters; give another folder")
    base, revision = adapter.info.name, None if adapter.info.local else adapter.info.revision
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if method == "adept":
            _write_model(adapter, folder / MODEL, decoder)
            base, revision = str((folder / MODEL).resolve()), None
        if adapter.tensors["prompt"].shape[0]:
            for name, content in peft_files(adapter.tensors["prompt"], base, revision, decoder).items():
                (folder / name).write_bytes(content)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def _export_in_model(adapter: "Adapter", method: "InModel", folder: Path, fold: bool) -> None:
    from safetensors import SafetensorError

    if fold:
        raise MethodError(f"method {method.name}: has no offsets to fold; leave --fold out")
    files = in_model_files(method, adapter.info, adapter.sizes, adapter.tensors)
    whole = method.name == "full"
    if not files and not whole:
        raise MethodError(
            f"method {method.name}: PEFT has no form for it on {adapter.info.name}; use adept_tune.predict"
        )
    if whole and (folder / MODEL).exists():
        raise MethodError(f"--to {folder}: has a model, perhaps that of other adapters; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        if whole:
            adapter.backbone.model.save_pretrained(folder / MODEL)
            adapter.tokenizer.save_pretrained(folder / MODEL)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def _write_model(adapter: "Adapter", folder: Path, decoder: bool) -> None:
    """A model folder of transformers that reads sources as shifted embeddings and is otherwise as it was.

    Every tensor is written under its own name: transformers ties what is equal, and leaves apart what differs.
    """
    from copy import deepcopy

    from safetensors.torch import save_file

    model = adapter.backbone.model
    config, generation = deepcopy(model.config), deepcopy(model.generation_config)
    weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    table_VD = _folded(adapter)
    if decoder:
        _double(model, weights, table_VD)
        config.vocab_size, config.tie_word_embeddings = 2 * len(table_VD), False
        never = range(len(table_VD), 2 * len(table_VD))
        generation.suppress_tokens = [*(generation.suppress_tokens or ()), *never]
    else:
        weights |= {name: table_VD.clone() for name in ("shared.weight", "encoder.embed_tokens.weight")}
    folder.mkdir()
    config.save_pretrained(folder)
    generation.save_pretrained(folder)
    adapter.tokenizer.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def _folded(adapter: "Adapter") -> "Tensor":
    """The model's table with every row shifted, `(vocabulary, d_model)`."""
    import torch

    table_VD = adapter.backbone.table_VD
    folded_VD = torch.empty(table_VD.shape, dtype=torch.float32)
    for first in range(0, len(table_VD), _ROWS):
        rows = slice(first, first + _ROWS)
        folded_VD[rows] = adapter.shifted(table_VD[rows].float()).cpu()
    return folded_VD


def _double(model: Any, weights: dict[str, "Tensor"], table_VD: "Tensor") -> None:
    """Add shifted rows to a decoder's table of inputs, and rows that are never written to its head."""
    import torch

    embedding = model.get_input_embeddings()
    scale = getattr(embedding, "embed_scale", torch.ones(())).cpu()  # Gemma's, which is no part of the table
    own = next(name for name, one in model.named_parameters() if one is embedding.weight)
    weights[own] = torch.cat([weights[own].float(), table_VD / scale])
    head = "lm_head.weight"
    weights[head] = torch.cat([weights[head], torch.zeros_like(weights[head])])
