"""Exports that PEFT and transformers (5 or newer) load without this package.

ADePT's offset depends on the token alone. So it can be added to every row of the embedding table once, and what is left
is plain prompt tuning on a model with another input table. (transformers 4 cannot hold such a T5: its encoder and
decoder have one table.)
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from adept_tune.errors import MethodError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

    from adept_tune.adapter import Adapter

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


def export(adapter: "Adapter", folder: Path, fold: bool) -> None:
    """Write an adapter of prompt tuning as a PEFT adapter; one of ADePT, folded, with its model in folder ``model``.

    Args:
        adapter: A loaded adapter.
        folder: Made if absent.
        fold: Whether to add offsets to the model's table of input embeddings.

    Raises:
        MethodError: The method has offsets that are not folded or cannot be, or none that could; or there is a model
            in the folder.
        StorageError: The folder cannot be written.
    """
    from safetensors import SafetensorError

    method, backbone = adapter.description["method"], adapter.description["backbone"]
    decoder = adapter.info.is_decoder
    if method == "prompt-tuning" and fold:
        raise MethodError("method prompt-tuning: has no offsets to fold; leave --fold out")
    if method == "dept":
        raise MethodError("method dept: its offsets depend on a token's place, so no embedding table holds them")
    if method == "adept" and not fold:
        raise MethodError("method adept: without its offsets it is another adapter; give --fold")
    if method == "adept" and decoder:
        raise MethodError(
            f"model {backbone['name']} reads its own answer through the table of its source, which is not shifted in "
            "training; only encoder-decoders can be folded"
        )
    if fold and (folder / MODEL).exists():
        raise MethodError(f"--to {folder}: has a model, perhaps that of other adapters; give another folder")
    base, revision = adapter.info.name, None if adapter.info.local else adapter.info.revision
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if method == "adept":
            _write_model(adapter, folder / MODEL)
            base, revision = str((folder / MODEL).resolve()), None
        if adapter.tensors["prompt"].shape[0]:
            for name, content in peft_files(adapter.tensors["prompt"], base, revision, decoder).items():
                (folder / name).write_bytes(content)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def _write_model(adapter: "Adapter", folder: Path) -> None:
    """A model folder of transformers whose encoder reads shifted embeddings, and whose other parts are as they were.

    Every tensor is written under its own name: transformers ties what is equal, and leaves apart what differs.
    """
    import torch
    from safetensors.torch import save_file

    model = adapter.backbone.model  # type: ignore[attr-defined]  # an encoder-decoder's
    own = model.get_input_embeddings().weight
    table_VD = torch.empty(own.shape, dtype=torch.float32)
    for first in range(0, len(own), _ROWS):
        rows = slice(first, first + _ROWS)
        table_VD[rows] = adapter.shifted(own[rows].float()).cpu()
    weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        weights[name] = table_VD.clone()
    folder.mkdir()
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    adapter.tokenizer.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
