"""Decoder-only models: a source and then its target in one sequence. Shape legend: see `base`.

Prompt and offsets act on the source alone; target tokens are read as the model's own embeddings, in training and in
decoding. A source is brought to the right end of its columns and positions count what is there, so neither the padding
of a shorter prompt nor that of a shorter text is seen.
"""

from typing import Any

import torch
from torch import Tensor

from adept_tune.backbones.base import Backbone, Source, moved


class DecoderOnly(Backbone):
    """A frozen GPT-2, Llama, Mistral, Gemma or Qwen, in eval mode.

    Args:
        model: A loaded model of the kind that `AutoModelForCausalLM` makes.
        eos_id: Token that ends a target: the tokenizer's, as some models have several.
    """

    def __init__(self, model: Any, eos_id: int) -> None:
        self.model = model.eval().requires_grad_(False)
        embedding = model.get_input_embeddings()
        self.vocab_size, self.d_model = embedding.weight.shape
        self.device = model.device
        self.dtype = model.dtype
        self.eos_id = eos_id
        self.pad_id = eos_id  # whatever fills a row is masked or follows its end; not all models name a pad token
        # Gemma scales its embeddings as it looks them up; what drives it comes after that.
        scaled = hasattr(embedding, "embed_scale")
        every = torch.arange(self.vocab_size, device=self.device)
        self._softcap = getattr(model.config, "final_logit_softcapping", None)
        self._table_VD: Tensor = embedding(every) if scaled else embedding.weight

    def over(self, model: Any) -> "DecoderOnly":
        """See `Backbone`."""
        return DecoderOnly(model, self.eos_id)

    @property
    def table_VD(self) -> Tensor:
        """The input embeddings, scaled where the model scales them."""
        return self._table_VD

    def embed(self, ids: Tensor) -> Tensor:
        """See `Backbone`; through the model's own layer, which may be trained."""
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        return embeds

    def target_nll(self, embeds_NSD: Tensor, mask_NS: Tensor, target_NT: Tensor, target_mask_NT: Tensor) -> Tensor:
        """See `Backbone`."""
        source_NSD, mask_NS = _to_the_right(embeds_NSD.to(self.dtype), mask_NS)
        whole = torch.cat([source_NSD, self.embed(target_NT[:, :-1])], dim=1)
        mask = torch.cat([self._with_prefix(mask_NS), moved(target_mask_NT[:, :-1], self.device)], dim=1)
        hidden = self._run(whole, mask, None if self._prefix is None else self._prefixed_cache(len(mask)))
        return self._nll(hidden[:, source_NSD.shape[1] - 1 :], target_NT, target_mask_NT)

    @torch.no_grad()
    def read(self, embeds_NSD: Tensor, mask_NS: Tensor) -> Source:
        """Run over the sources once."""
        source_NSD, mask_NS = _to_the_right(embeds_NSD.to(self.dtype), mask_NS)
        cache, mask_NS = self._prefixed_cache(len(mask_NS)), self._with_prefix(mask_NS)
        return Source(mask_NS, cache, self._logits(self._run(source_NSD, mask_NS, cache)[:, -1]))

    def _with_prefix(self, mask_NS: Tensor) -> Tensor:
        """A mask of sources, and before it that of a prefix trained into the model."""
        if self._prefix is None:
            return mask_NS
        return torch.cat([mask_NS.new_ones(len(mask_NS), len(self._prefix)), mask_NS], dim=1)

    def _go_on(self, source: Source, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """See `Backbone`."""
        return self._run(self.embed(ids_NT), torch.cat([source.mask_NS, mask_NT], dim=1), source.cache)

    def _run(self, embeds: Tensor, mask: Tensor, cache: Any = None) -> Tensor:
        """Hidden states of the last columns; the mask is of these and of all that the cache holds."""
        position = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        hidden: Tensor = self.model.base_model(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=position,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """See `Backbone`."""
        logits: Tensor = self.model.lm_head(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)


def _to_the_right(embeds_NSD: Tensor, mask_NS: Tensor) -> tuple[Tensor, Tensor]:
    """Bring what is there to the right end of its row, in order."""
    order_NS = mask_NS.to(torch.uint8).argsort(dim=1, stable=True)
    return embeds_NSD.gather(1, order_NS[..., None].expand_as(embeds_NSD)), mask_NS.gather(1, order_NS)
