"""The face of a frozen language model that is driven through input embeddings.

Shape legend: N rows of a pass, S source positions (prompt and text), T target tokens, L labels, D embedding width,
V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; a GPU is not waited for, so that its next work is ready before it is done."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@dataclass(frozen=True)
class Source:
    """Rows that have been read, and what every question about them begins with.

    Attributes:
        mask_NS: Where there is something to read, as the model's layers are told it.
        cache: What a model keeps of them; whoever adds to it takes that out again.
        first_NV: Logits of the first target token.
    """

    mask_NS: Tensor
    cache: Any
    first_NV: Tensor


class Backbone(ABC):
    """A frozen model: embeddings in, losses and greedy text out.

    No operation mixes rows, so a row's result does not depend on its company. Nothing here trains or changes a weight.

    Attributes:
        d_model: Width of an input embedding.
        vocab_size: Rows of the input embedding table.
        device: Where the weights are.
        dtype: What the weights and activations are held in.
        model: The transformers model.
        may_replay: Whether `target_nll` never asks the device for a number, so that a CUDA graph can be made of it.
        eos_id: Token that ends a target.
        pad_id: Token that fills short rows.
    """

    d_model: int
    vocab_size: int
    device: torch.device
    dtype: torch.dtype
    eos_id: int
    pad_id: int
    model: Any
    may_replay: ClassVar[bool] = False

    @abstractmethod
    def over(self, model: Any) -> "Backbone":
        """Drive another model of the same kind: a private copy, changed by a method that trains inside it."""

    @property
    @abstractmethod
    def table_VD(self) -> Tensor:
        """The frozen input embeddings, as the model reads them."""

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the input embeddings, to four digits: the scale in which a prompt is large or small."""
        norm = torch.linalg.vector_norm(self.table_VD, dtype=torch.float64)
        return float(f"{float(norm) / self.table_VD.numel() ** 0.5:.4g}")

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids of any shape, `(*ids, d_model)`, in the backbone's dtype."""
        return torch.nn.functional.embedding(ids, self.table_VD)

    @abstractmethod
    def target_nll(self, embeds_NSD: Tensor, mask_NS: Tensor, target_NT: Tensor, target_mask_NT: Tensor) -> Tensor:
        """Negative log-likelihood of each row's target, differentiable in the embeddings.

        Args:
            embeds_NSD: What the model reads; cast to its dtype.
            mask_NS: Bool, true where there is something to read.
            target_NT: Token ids, padded on the right, end token included.
            target_mask_NT: Bool, true on real target tokens; on the CPU, which has to know where they are.

        Returns:
            `(rows, target)` nats, float32 (float64 for a float64 backbone), zero on padding.
        """

    @property
    def grain(self) -> int:
        """Rows that a pass is best a multiple of. A CPU's products in bf16 are compiled for each shape, which takes as
        long as a narrow model's product itself, and the last 1,024 are kept: shapes have to recur."""
        return 8 if self.device.type == "cpu" and self.dtype == torch.bfloat16 else 1

    @property
    def may_recompute(self) -> bool:
        """Whether `recomputing` is possible: not where a layer reads a prefix from a cache, which it would lose."""
        return self._prefix is None

    @contextmanager
    def recomputing(self, on: bool) -> Iterator[None]:
        """Gradient checkpointing of `target_nll` for the time of a block: less memory for one more forward.

        A layer keeps what it reads and is run once more on the way back. Nothing but training may run in the block.
        transformers has its layers do so in training mode alone; here the layer is put into it and nothing below it.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        modules = self.model.modules() if on else ()
        layers = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.training = layer.gradient_checkpointing = False

    @abstractmethod
    def read(self, embeds_NSD: Tensor, mask_NS: Tensor) -> Source:
        """Read sources once, for several questions about them. No gradient."""

    @torch.no_grad()
    def label_nll(self, source: Source, labels: list[list[int]]) -> Tensor:
        """Negative log-likelihood of each of L fixed targets for each row, `(rows, L)` nats. No gradient."""
        scale_N, columns = source.first_NV.logsumexp(-1), []
        for label in labels:
            nll_N = scale_N - source.first_NV[:, label[0]]
            if len(label) > 1:
                target_NT = torch.tensor(label, device=self.device).expand(len(nll_N), -1)
                nll_N = nll_N + self._further_nll(source, target_NT, torch.ones(target_NT.shape, dtype=torch.bool))
            columns.append(nll_N)
        return torch.stack(columns, dim=1)

    @torch.no_grad()
    def text_nll(self, source: Source, target_NT: Tensor, target_mask_NT: Tensor) -> Tensor:
        """Negative log-likelihood of a target of each row's own, `(rows,)` nats; see `target_nll`. No gradient."""
        nll_N = F.cross_entropy(source.first_NV, target_NT[:, 0], reduction="none")
        return nll_N + self._further_nll(source, target_NT, target_mask_NT) if target_NT.shape[1] > 1 else nll_N

    @torch.no_grad()
    def greedy(self, source: Source, max_tokens: int) -> Tensor:
        """Greedy decoding, `(rows, at most max_tokens)`; after a row's end token come pad tokens. No gradient.

        Stops when every row has ended.
        """
        columns = [source.first_NV.argmax(-1)]
        ended_N = columns[0] == self.eos_id
        while len(columns) < max_tokens and not bool(ended_N.all()):
            there_NT = torch.ones(len(ended_N), len(columns), dtype=torch.bool, device=self.device)
            hidden_ND = self._go_on(source, columns[-1][:, None], there_NT)[:, -1]
            columns.append(self._logits(hidden_ND).argmax(-1).masked_fill(ended_N, self.pad_id))
            ended_N = ended_N | (columns[-1] == self.eos_id)
        if len(columns) > 1:
            source.cache.crop(1 - len(columns))
        return torch.stack(columns, dim=1)

    @abstractmethod
    def _go_on(self, source: Source, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Hidden states `(rows, T, width)` of further target tokens, which the cache takes up.

        Args:
            source: What was read.
            ids_NT: The tokens.
            mask_NT: Bool, true where there is one; of all that the cache has taken up since.
        """

    def _further_nll(self, source: Source, target_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Negative log-likelihood of all but the first token of each row's target, `(rows,)` nats."""
        hidden_NTD = self._go_on(source, target_NT[:, :-1], moved(mask_NT[:, :-1], self.device))
        source.cache.crop(1 - target_NT.shape[1])
        return self._nll(hidden_NTD, target_NT[:, 1:], mask_NT[:, 1:]).sum(1)

    @abstractmethod
    def _logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits of hidden states, in float32 even where the model is held in fewer bits."""

    def _nll(self, hidden_NTD: Tensor, target_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Loss of each target token from the hidden state before it, zero on padding; logits only where a token is."""
        hidden_RD, target_R = hidden_NTD.flatten(0, 1), target_NT.flatten()
        place_R = None if bool(mask_NT.all()) else moved(mask_NT.flatten().nonzero()[:, 0], self.device)
        if place_R is not None:
            hidden_RD, target_R = hidden_RD.index_select(0, place_R), target_R.index_select(0, place_R)
        nll = F.cross_entropy(self._logits(hidden_RD), target_R, reduction="none")
        if place_R is not None:
            nll = nll.new_zeros(target_NT.numel()).index_copy(0, place_R, nll)
        return nll.view(target_NT.shape)

    def _prefixed_cache(self, num_rows: int) -> Any:
        """A cache for the decoder's self-attention; where a prefix was trained into the model, it begins with it."""
        from transformers import DynamicCache

        prefix = self._prefix
        if prefix is None:
            return DynamicCache()
        layers = prefix.permute(1, 2, 3, 0, 4)[:, :, None].expand(-1, -1, num_rows, -1, -1, -1)
        return DynamicCache([(layer[0], layer[1]) for layer in layers])

    @property
    def _prefix(self) -> Tensor | None:
        """Keys and values `(tokens, layers, 2, heads, width of a head)` that the decoder attends to first."""
        prefix: Tensor | None = getattr(self.model, "key_value_prefix", None)
        return prefix
