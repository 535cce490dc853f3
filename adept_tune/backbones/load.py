"""Find a backbone, say what it is before anything is spent, and load it with an explicit dtype."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from adept_tune import hub
from adept_tune.backbones.base import Backbone
from adept_tune.errors import BackboneError, HubError

Precision = Literal["fp32", "bf16"]

ENCODER_DECODERS = ("t5", "mt5")
DECODERS = ("gpt2", "llama", "mistral", "gemma", "gemma3_text", "qwen2", "qwen3")
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")  # some repositories hold the same once more
_OLDER_WEIGHTS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
_TOKENIZER = ("config.json", "generation_config.json", "tokenizer*", "spiece.model", "special_tokens_map.json")
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model")
_SAMPLE_BYTES = 1 << 20
_WIDE_BF16 = 256
_FAST_BF16 = ("avx512_bf16", "amx_bf16")  # processors with instructions for products of bf16 matrices


def best_precision(device: str, d_model: int) -> Precision:
    """What a device is fast at: bf16 on a GPU, and on a processor that multiplies bf16 matrices itself, where these are
    wide enough to pay for the rest: of 128 columns fp32 is faster (`experiments/bench/throughput.py`)."""
    if device == "cuda":
        import torch

        older = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
        return "fp32" if older else "bf16"
    if d_model < _WIDE_BF16:
        return "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "fp32"
    return "bf16" if any(flag in flags for flag in _FAST_BF16) else "fp32"


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone without its weights.

    Attributes:
        name: Hub name, or the absolute path of a folder.
        revision: Commit on the Hub; for a folder, a digest of its configuration, tokenizer and samples of its weights.
        model_type: transformers' name of the architecture.
        d_model: Width of an input embedding.
        vocab_size: Size of the vocabulary.
        local: Whether `name` is a folder.
        max_positions: Most tokens that it can read, prompt and answer included; None where there is no such number.
    """

    name: str
    revision: str
    model_type: str
    d_model: int
    vocab_size: int
    local: bool
    max_positions: int | None = None

    @property
    def is_decoder(self) -> bool:
        """Whether source and target are one sequence."""
        return self.model_type in DECODERS

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def inspect_backbone(name: str, revision: str | None = None) -> BackboneInfo:
    """Read a model's configuration and check that it can be driven by input embeddings.

    Args:
        name: Hub name (``google-t5/t5-base``) or a folder in transformers' layout.
        revision: Branch, tag or commit on the Hub.

    Raises:
        BackboneError: No such folder content, or an architecture that cannot be driven.
        HubError: The Hub cannot be reached and does not have the model cached.
    """
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if local:
        config = _read_config(folder)
        name, revision = str(folder.resolve()), _fingerprint(folder)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BackboneError(f"model {name!r}: no such folder; give a folder with a config.json, or a Hub name")
    else:
        config, revision = _config_from_hub(name, revision)
    model_type = str(config.get("model_type", "unknown"))
    if model_type not in ENCODER_DECODERS + DECODERS:
        raise BackboneError(
            f"model {name!r} is of type {model_type!r}; adept_tune drives encoder-decoders of the T5 family "
            f"({', '.join(ENCODER_DECODERS)}) and decoders ({', '.join(DECODERS)})"
        )
    width = "d_model" if model_type in ENCODER_DECODERS else "n_embd" if model_type == "gpt2" else "hidden_size"
    sizes = [config.get(width), config.get("vocab_size")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise BackboneError(
            f"model {name}: config.json: {width} and vocab_size are {sizes}; both must be whole numbers"
        )
    positions = config.get("n_positions", 1024) if model_type == "gpt2" else None  # its positions are learnt one by one
    return BackboneInfo(name, revision, model_type, config[width], config["vocab_size"], local, positions)


def fetch_weights(info: BackboneInfo) -> None:
    """Bring a Hub model into this machine's cache, with progress bars, so that loading it later only reads.

    Raises:
        HubError: The Hub cannot be reached and the weights are not cached.
    """
    if info.local:
        return
    with hub.access(f"the weights of {info.name}", "--model DIR"):
        from huggingface_hub import snapshot_download

        found = Path(snapshot_download(info.name, revision=info.revision, allow_patterns=[*_WEIGHTS, *_TOKENIZER]))
        if not any(found.glob("*.safetensors")):
            snapshot_download(info.name, revision=info.revision, allow_patterns=_OLDER_WEIGHTS)


def load_tokenizer(info: BackboneInfo) -> Any:
    """The backbone's tokenizer.

    Raises:
        BackboneError: A folder without a readable tokenizer.
        HubError: The Hub cannot be reached and the tokenizer is not cached.
    """
    from transformers import AutoTokenizer

    if info.local and not any((Path(info.name) / name).is_file() for name in _TOKENIZER_FILES):
        raise BackboneError(  # transformers would make one up
            f"model {info.name}: no readable tokenizer there; it needs {' or '.join(_TOKENIZER_FILES)}"
        )
    try:
        if info.local:
            return AutoTokenizer.from_pretrained(info.name)
        with hub.access(f"the tokenizer of {info.name}", "--model DIR"):
            return AutoTokenizer.from_pretrained(info.name, revision=info.revision)
    except HubError:
        raise
    except Exception as error:  # transformers and tokenizers raise whatever a damaged file leads them to
        raise BackboneError(f"model {info.name}: no readable tokenizer ({error})") from error


def load_skeleton(info: BackboneInfo) -> Any:
    """The model without its numbers, on torch's meta device: to count on.

    Raises:
        BackboneError: transformers cannot make a model of its configuration.
        HubError: The Hub cannot be reached and the configuration is not cached.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForCausalLM if info.is_decoder else AutoModelForSeq2SeqLM
    try:
        with hub.access(f"the model {info.name}", "--model DIR"):
            config = AutoConfig.from_pretrained(info.name, **({} if info.local else {"revision": info.revision}))
        with torch.device("meta"):
            return kind.from_config(config)
    except HubError:
        raise
    except Exception as error:  # whatever a configuration that does not fit leads transformers and torch to
        raise BackboneError(f"model {info.name}: config.json makes no model ({error})") from error


def load_backbone(info: BackboneInfo, device: str, precision: Precision = "fp32") -> Backbone:
    """Load the weights, frozen, with an explicit dtype, and parts that are fast where they are frozen.

    `from_pretrained` is used because it compares what the file holds: transformers 5 ties an untied head (T5 v1.1,
    flan) when weights are loaded with `load_state_dict`.

    Raises:
        BackboneError: The weights cannot be read, lack tensors, or hold numbers that are not finite; or there is no
            such device, or no room on it.
        HubError: The Hub cannot be reached and the weights are not cached.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging as transformers_logging

    from adept_tune.backbones.decoder_only import DecoderOnly
    from adept_tune.backbones.encoder_decoder import EncoderDecoder
    from adept_tune.backbones.short_ways import use_short_ways

    if device == "cuda" and not torch.cuda.is_available():
        raise BackboneError("device cuda: there is no GPU here; use cpu")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    kind = AutoModelForCausalLM if info.is_decoder else AutoModelForSeq2SeqLM
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    options = {"dtype": dtype, "attn_implementation": "sdpa", "output_loading_info": True}
    try:
        if info.local:
            model, loaded = kind.from_pretrained(info.name, **options)
        else:
            with hub.access(f"the weights of {info.name}", "--model DIR"):
                model, loaded = kind.from_pretrained(info.name, revision=info.revision, **options)
    except HubError:
        raise
    except Exception as error:  # transformers, safetensors and torch each raise their own kinds
        raise BackboneError(f"model {info.name}: cannot load its weights ({type(error).__name__}: {error})") from error
    if loaded["missing_keys"]:  # transformers fills them with random numbers
        missing = ", ".join(sorted(loaded["missing_keys"])[:5])
        raise BackboneError(f"model {info.name}: its files lack {len(loaded['missing_keys'])} tensors, e.g. {missing}")
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise BackboneError(f"model {info.name}: its weights hold NaN or infinity; the file is damaged")
    use_short_ways(model)
    try:
        model.to(device)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**30
        raise BackboneError(
            f"model {info.name}: its {size:.1f} GiB do not fit the GPU; free its memory, or take a smaller model"
        ) from error
    if not info.is_decoder:
        return EncoderDecoder(model)
    eos_id = load_tokenizer(info).eos_token_id
    if eos_id is None:
        raise BackboneError(f"model {info.name}: its tokenizer has no end-of-sequence token, which ends every answer")
    return DecoderOnly(model, eos_id)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise BackboneError(f"model {folder}: no config.json there; give a folder written by save_pretrained") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise BackboneError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def _config_from_hub(name: str, revision: str | None) -> tuple[dict[str, Any], str]:
    with hub.access(f"the model {name}", "--model DIR"):
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(name, "config.json", revision=revision))
    return _read_config(path.parent), path.parent.name  # the cache keeps each commit in a folder of its name


def _fingerprint(folder: Path) -> str:
    """Digest of a model folder: small files whole, weights by size and samples of a MiB at either end."""
    digest = hashlib.sha256()
    small = [p for p in folder.iterdir() if p.is_file() and p.name.startswith(("config.json", "tokenizer", "spiece"))]
    for path in sorted(small):
        digest.update(path.name.encode() + path.read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name}{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:40]
