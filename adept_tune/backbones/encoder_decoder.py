"""T5-family encoder-decoders. Shape legend: see `base`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adept_tune.backbones.base import Backbone, Source


@dataclass(frozen=True)
class _Encoded(Source):
    """Encoded rows; the cache holds the decoder's start token, and keys and values of cross-attention.

    Attributes:
        hidden_NSD: What the encoder made of them.
    """

    hidden_NSD: Tensor


class EncoderDecoder(Backbone):
    """A frozen T5, T5 v1.1, flan-T5 or mT5, in eval mode.

    Args:
        model: A loaded `T5ForConditionalGeneration` (or a class with the same parts).
    """

    may_replay: ClassVar[bool] = True

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        config = model.config
        self.d_model = config.d_model
        self.vocab_size = model.get_input_embeddings().weight.shape[0]
        self.device = model.device
        self.dtype = model.dtype
        self.eos_id = config.eos_token_id
        self.pad_id = config.pad_token_id
        self._start_id = config.decoder_start_token_id
        # T5 v1.0 scales what enters its tied head; transformers says which models do.
        self._scale = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0

    def over(self, model: Any) -> "EncoderDecoder":
        """See `Backbone`."""
        return EncoderDecoder(model)

    @property
    def table_VD(self) -> Tensor:
        """The shared embedding table."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def target_nll(self, embeds_NSD: Tensor, mask_NS: Tensor, target_NT: Tensor, target_mask_NT: Tensor) -> Tensor:
        """See `Backbone`. Vocabulary logits are made only where there is a target token."""
        from transformers import DynamicCache, EncoderDecoderCache

        mask_NS, prefixed = self._seen(mask_NS), self._prefix is not None
        cache = EncoderDecoderCache(self._prefixed_cache(len(mask_NS)), DynamicCache()) if prefixed else None
        begun_NT = torch.cat([torch.full_like(target_NT[:, :1], self._start_id), target_NT[:, :-1]], dim=1)
        decoded_NTD = self._decode(begun_NT, self._encode(embeds_NSD, mask_NS), mask_NS, cache)
        return self._nll(decoded_NTD, target_NT, target_mask_NT)

    @torch.no_grad()
    def read(self, embeds_NSD: Tensor, mask_NS: Tensor) -> Source:
        """Run the encoder, and the decoder for the first target token."""
        from transformers import DynamicCache, EncoderDecoderCache

        mask_NS = self._seen(mask_NS)
        hidden_NSD = self._encode(embeds_NSD, mask_NS)
        start_NT = torch.full((len(mask_NS), 1), self._start_id, device=self.device)
        cache = EncoderDecoderCache(self._prefixed_cache(len(mask_NS)), DynamicCache())
        first_NV = self._logits(self._decode(start_NT, hidden_NSD, mask_NS, cache)[:, 0])
        return _Encoded(mask_NS, cache, first_NV, hidden_NSD)

    def _encode(self, embeds_NSD: Tensor, mask_NS: Tensor) -> Tensor:
        hidden: Tensor = self.model.encoder(
            inputs_embeds=embeds_NSD.to(self.dtype), attention_mask=mask_NS
        ).last_hidden_state
        return hidden

    def _seen(self, mask_NS: Tensor) -> Tensor:
        """The mask that transformers is given: on a GPU as its layers read it, else it waits to see what is in it."""
        return mask_NS[:, None, None] if mask_NS.device.type == "cuda" else mask_NS

    def _go_on(self, source: Source, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """See `Backbone`; no token sees a later one, so padding after it needs no mask."""
        assert isinstance(source, _Encoded)
        return self._decode(ids_NT, source.hidden_NSD, source.mask_NS, source.cache)

    def _decode(self, ids_NT: Tensor, hidden_NSD: Tensor, mask_NS: Tensor, cache: Any) -> Tensor:
        decoded: Tensor = self.model.decoder(
            input_ids=ids_NT,
            encoder_hidden_states=hidden_NSD,
            encoder_attention_mask=mask_NS,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return decoded

    def _logits(self, hidden: Tensor) -> Tensor:
        """See `Backbone`."""
        logits: Tensor = self.model.lm_head(hidden * self._scale)
        return logits if logits.dtype == torch.float64 else logits.float()
