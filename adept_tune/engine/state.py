"""A trial's whole state, and its form on disk: one safetensors blob that is checked when it is read back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adept_tune.engine.config import TrialConfig
from adept_tune.errors import MethodError, StateError
from adept_tune.methods import InModel, get_method
from adept_tune.methods.base import Sizes

FORMAT = 1
_MOMENTS = ("first", "second")
_UNREADABLE = (SafetensorError, ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class TrialState:
    """Everything needed to go on exactly where a trial stood.

    Attributes:
        method: Name of the method.
        config: The trial's settings.
        sizes: Its sizes.
        step: Updates done; data order, schedule and dropout follow from it.
        tensors: Trained tensors, unpadded, on the CPU.
        first: First moments by the same names.
        second: Second moments by the same names.
        loss_sum: Training loss summed since the last report.
        loss_count: Steps in that sum.
    """

    method: str
    config: TrialConfig
    sizes: Sizes
    step: int
    tensors: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    loss_sum: float = 0.0
    loss_count: int = 0

    def to_bytes(self) -> bytes:
        """Serialise with a digest over settings and numbers."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        for kind in _MOMENTS:
            tensors |= {f"{kind}.{name}": tensor.contiguous() for name, tensor in getattr(self, kind).items()}
        header = {
            "format": FORMAT,
            "method": self.method,
            "config": self.config.model_dump(mode="json"),
            "d_model": self.sizes.d_model,
            "source_length": self.sizes.source_length,
            "step": self.step,
            "loss_sum": self.loss_sum.hex(),
            "loss_count": self.loss_count,
        }
        text = json.dumps(header, sort_keys=True)
        # One metadata entry: safetensors writes several in no fixed order, and equal states shall be equal bytes.
        metadata = {"state": json.dumps([text, _digest(text, tensors)])}
        blob: bytes = save(tensors, metadata=metadata)
        return blob

    @classmethod
    def from_bytes(cls, blob: bytes, where: str) -> "TrialState":
        """Read a blob back.

        Args:
            blob: What `to_bytes` gave.
            where: Name of its source, for messages.

        Raises:
            StateError: Truncated, tampered with, of another format, or of the wrong shapes; names the source.
        """
        try:
            text, digest = _metadata(blob)
            tensors = load(blob)
            header = json.loads(text)
            if _digest(text, tensors) != digest:
                raise StateError(f"{where}: the digest does not match; the file is damaged or was changed")
            if header["format"] != FORMAT:
                raise StateError(f"{where}: format {header['format']}; this version reads format {FORMAT}")
            config = TrialConfig.model_validate(header["config"])
            state = cls(
                method=header["method"],
                config=config,
                sizes=config.sizes(header["d_model"], header["source_length"]),
                step=header["step"],
                tensors={name: tensor for name, tensor in tensors.items() if "." not in name},
                first=_with_prefix(tensors, "first."),
                second=_with_prefix(tensors, "second."),
                loss_sum=float.fromhex(header["loss_sum"]),
                loss_count=header["loss_count"],
            )
        except _UNREADABLE as error:
            raise StateError(f"{where}: not a readable trial state ({type(error).__name__}: {error})") from error
        state._check(where)
        return state

    def _check(self, where: str) -> None:
        try:
            method = get_method(self.method)
        except MethodError as error:
            raise StateError(f"{where}: {error}") from None
        if isinstance(method, InModel):  # the model knows their shapes, see `fitted`
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        else:
            shapes = {name: self.sizes.of(axes) for name, axes in method.axes.items()}
        for name, expected in shapes.items():
            for kind in ("tensors", *_MOMENTS):
                found = getattr(self, kind).get(name)
                if found is None or tuple(found.shape) != expected:
                    given = "nothing" if found is None else tuple(found.shape)
                    raise StateError(f"{where}: {kind} {name}: expected shape {expected}, found {given}")


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _metadata(blob: bytes) -> tuple[str, str]:
    length = int.from_bytes(blob[:8], "little")
    metadata: dict[str, Any] = json.loads(blob[8 : 8 + length])["__metadata__"]
    text, digest = json.loads(metadata["state"])
    return str(text), str(digest)
