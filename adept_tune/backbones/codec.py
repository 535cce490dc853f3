"""Text to token ids and back, through a transformers tokenizer."""

from collections.abc import Sequence
from typing import Any


class TokenizerCodec:
    """A tokenizer reduced to what reading needs.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids, end token included."""
        ids: list[int] = self._tokenizer(text).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
