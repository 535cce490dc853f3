"""Frozen language models driven through input embeddings."""

from adept_tune.backbones.base import Backbone
from adept_tune.backbones.load import BackboneInfo, inspect_backbone, load_backbone, load_skeleton, load_tokenizer

__all__ = ["Backbone", "BackboneInfo", "inspect_backbone", "load_backbone", "load_skeleton", "load_tokenizer"]
