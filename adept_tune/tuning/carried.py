"""A model that is a folder on the driver's node, brought to nodes that lack it: once a node, not once a trial."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adept_tune.backbones import BackboneInfo, inspect_backbone
from adept_tune.errors import BackboneError
from adept_tune.tasks.tokens import default_cache_dir

_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt")

Files = Mapping[str, Any]
"""File name to its bytes as an array, which Ray's object store hands out without copying."""


def packed(folder: Path) -> Files:
    """The files of a model that loading it reads."""
    return {
        path.name: np.fromfile(path, dtype=np.uint8)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in _SUFFIXES
    }


def model_here(info: BackboneInfo, bring: Callable[[], Files]) -> BackboneInfo:
    """A model as this node has it: from the Hub, in the same folder, or in the cache.

    Args:
        info: As the driver's node has it.
        bring: Gives the files; called where nothing here has the model's fingerprint.
    """
    if not info.local:
        return info
    with contextlib.suppress(BackboneError, OSError):  # there is no such folder, or another model in it
        if inspect_backbone(info.name).revision == info.revision:
            return info
    folder = default_cache_dir() / "models" / info.revision
    if not folder.is_dir():
        _unpack(bring(), folder)
    return replace(info, name=str(folder))


def _unpack(files: Files, folder: Path) -> None:
    """Write files aside, then rename; another host of this node may be as far."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, content in files.items():
        content.tofile(part / name)
    try:
        os.rename(part, folder)
    except OSError:
        shutil.rmtree(part)
        if not folder.is_dir():
            raise
