"""T5-family encoder-decoders. Shape legend: see `base`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adept_tune.backbones.base import Backbone


@dataclass(frozen=True)
class _Source:
    """Encoded rows, and the cross-attention keys and values that every question about them shares."""

    hidden_NSD: Tensor
    mask_NS: Tensor
    cross_cache: Any


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
        decoded_NTD = self.model.decoder(
            input_ids=self._begun(target_NT),
            encoder_hidden_states=self._encode(embeds_NSD, mask_NS),
            encoder_attention_mask=mask_NS,
            past_key_values=cache,
            use_cache=prefixed,
        ).last_hidden_state
        return self._nll(decoded_NTD, target_NT, target_mask_NT)

    @torch.no_grad()
    def read(self, embeds_NSD: Tensor, mask_NS: Tensor) -> _Source:
        """Run the encoder."""
        from transformers import DynamicCache

        mask_NS = self._seen(mask_NS)
        return _Source(self._encode(embeds_NSD, mask_NS), mask_NS, DynamicCache(config=self.model.decoder.config))

    @torch.no_grad()
    def label_nll(self, source: _Source, labels: list[list[int]]) -> Tensor:
        """One short decoder pass a label over shared cross-attention."""
        columns = []
        for label in labels:
            target_T = torch.tensor(label, device=self.device)
            begin_T = torch.cat([target_T.new_tensor([self._start_id]), target_T[:-1]])
            begin_NT = begin_T.expand(source.hidden_NSD.shape[0], -1)
            logits_NTV = self._logits(self._decode(source, begin_NT, self._cache(source)))
            log_p_NTV = logits_NTV.log_softmax(-1)
            columns.append(-log_p_NTV[:, torch.arange(len(label)), target_T].sum(1))
        return torch.stack(columns, dim=1)

    @torch.no_grad()
    def text_nll(self, source: _Source, target_NT: Tensor, target_mask_NT: Tensor) -> Tensor:
        """See `Backbone`."""
        decoded_NTD = self._decode(source, self._begun(target_NT), self._cache(source))
        return self._nll(decoded_NTD, target_NT, target_mask_NT).sum(1)

    @torch.no_grad()
    def greedy(self, source: _Source, max_tokens: int) -> Tensor:
        """See `Backbone`."""
        cache = self._cache(source)
        num_rows = source.hidden_NSD.shape[0]
        start_N = torch.full((num_rows,), self._start_id, device=self.device)

        def next_logits(last_N: Tensor | None) -> Tensor:
            ids_N = start_N if last_N is None else last_N
            return self._logits(self._decode(source, ids_N[:, None], cache)[:, -1])

        return self._greedily(next_logits, num_rows, max_tokens)

    def _encode(self, embeds_NSD: Tensor, mask_NS: Tensor) -> Tensor:
        hidden: Tensor = self.model.encoder(
            inputs_embeds=embeds_NSD.to(self.dtype), attention_mask=mask_NS
        ).last_hidden_state
        return hidden

    def _seen(self, mask_NS: Tensor) -> Tensor:
        """The mask that transformers is given: on a GPU as its layers read it, else it waits to see what is in it."""
        return mask_NS[:, None, None] if mask_NS.device.type == "cuda" else mask_NS

    def _cache(self, source: _Source) -> Any:
        """A fresh self-attention cache beside the source's own cross-attention one."""
        from transformers import EncoderDecoderCache

        return EncoderDecoderCache(self._prefixed_cache(len(source.mask_NS)), source.cross_cache)

    def _decode(self, source: _Source, ids_NT: Tensor, cache: Any) -> Tensor:
        decoded: Tensor = self.model.decoder(
            input_ids=ids_NT,
            encoder_hidden_states=source.hidden_NSD,
            encoder_attention_mask=source.mask_NS,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return decoded

    def _begun(self, target_NT: Tensor) -> Tensor:
        """What the decoder reads to give a target: its start token, then all but the last."""
        return torch.cat([torch.full_like(target_NT[:, :1], self._start_id), target_NT[:, :-1]], dim=1)

    def _logits(self, hidden: Tensor) -> Tensor:
        """See `Backbone`."""
        logits: Tensor = self.model.lm_head(hidden * self._scale)
        return logits if logits.dtype == torch.float64 else logits.float()
