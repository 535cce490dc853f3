"""What a stack of trained tensors makes a backbone answer: the one way from text to score.

Training, validation, the test and prediction all go through `Reader`, so what was trained on is what is decoded with.

Shape legend: K trials, N rows of a split, T target tokens, D embedding width, L labels; those of a pass stand in
`packing`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adept_tune.backbones.base import Backbone, Source, moved
from adept_tune.engine.lanes import Lanes
from adept_tune.engine.memory import TooLarge, nothing, release, splitting
from adept_tune.engine.packing import Piece, Stack, extent, passes, stack
from adept_tune.methods.base import Method, Sizes, Stacking
from adept_tune.tasks.metrics import METRICS, Score, parse_label, score, score_texts
from adept_tune.tasks.tokens import Ragged, TokenSplit, pad


class Halted(Exception):  # noqa: N818  # no error: somebody asked for it
    """A step or an evaluation was given up between two passes; nothing of it is kept."""


def never() -> bool:
    """Nobody asks to halt."""
    return False


class Codec(Protocol):
    """The part of a tokenizer that reading needs."""

    def encode(self, text: str) -> list[int]:
        """Token ids, end token included."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        ...


@dataclass(frozen=True)
class Trained:
    """A stack of trained tensors and what differs between its trials."""

    tensors: Mapping[str, Tensor]
    stacking: Stacking
    labels: tuple[str, ...]

    @classmethod
    def of_one(cls, tensors: Mapping[str, Tensor], sizes: Sizes, labels: str, device: torch.device) -> "Trained":
        """A stack of one trial from its own unpadded tensors."""
        stacking = Stacking(
            torch.tensor([sizes.prompt_length], device=device), torch.tensor([sizes.width], device=device)
        )
        return cls({name: tensor[None].to(device) for name, tensor in tensors.items()}, stacking, (labels,))

    def of(self, pieces: Sequence[Piece]) -> "Trained":
        """What the trials of a pass have trained, their prompts cut to the longest of them."""
        if len(self.labels) == 1:
            return self
        trials = [piece.trial for piece in pieces]
        index_J = moved(torch.tensor(trials), self.stacking.width_K.device)
        tensors = {name: tensor.index_select(0, index_J) for name, tensor in self.tensors.items()}
        unused = tensors["prompt"].shape[1] - max(piece.prompt_length for piece in pieces)
        tensors["prompt"] = tensors["prompt"][:, unused:]
        stacking = Stacking(self.stacking.prompt_length_K[index_J], self.stacking.width_K[index_J])
        return Trained(tensors, stacking, tuple(self.labels[trial] for trial in trials))


@dataclass(frozen=True)
class Evaluation:
    """What one trial makes of one split.

    Attributes:
        score: The task's metric with its standard error.
        loss: Negative log-likelihood of the right label, normalised over the label set, mean nats a row: comparable
            between label texts of different length, ln(labels) for a model that knows nothing. Where answers are
            open, that of the first right text.
        texts: What was decoded, one a row.
        also: The further metrics of the task.
    """

    score: Score
    loss: float
    texts: tuple[str, ...]
    also: Mapping[str, Score]


class Reader:
    """Reads rows with a stack of adapters.

    Args:
        backbone: The frozen model.
        method: Whose tensors.
        codec: Text to tokens and back.
        metric: Name of the task's metric.
        also: Names of further metrics that are told beside it.
        label_sets: Token ids of every label text, by style; empty where answers are open.
        label_texts: The texts, by style; empty where answers are open.
        pad_id: Token that fills short rows.
        max_target_length: Most tokens of an open answer.
        lanes: Where passes run; None runs them one after another.

    Attributes:
        lanes: Those.
        forget: Gives up memory that an engine holds beside, and says whether there was any.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        codec: Codec,
        metric: str,
        label_sets: Mapping[str, Ragged],
        label_texts: Mapping[str, tuple[str, ...]],
        pad_id: int,
        also: tuple[str, ...] = (),
        max_target_length: int = 20,
        lanes: Lanes | None = None,
    ) -> None:
        self.lanes = lanes or Lanes()
        self.forget: Callable[[], bool] = nothing
        self._forgot = False
        self._backbone = backbone
        self._method = method
        self._codec = codec
        self._metric = metric
        self._label_ids = {style: [ids.tolist() for ids in ragged] for style, ragged in label_sets.items()}
        self._label_texts = label_texts
        self._pad_id = pad_id
        self._also = also
        self._max_target_length = max_target_length
        # Whatever the lanes: prediction cuts the rows as the test did. Halved where the device runs out of memory.
        self._tokens_per_pass = 4096 if backbone.device.type == "cpu" else 65536

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self._backbone

    @torch.no_grad()
    def shifted(self, trained: Trained, tokens_TD: Tensor) -> Tensor:
        """Embeddings of tokens in their order, as the only trial of a stack shifts them."""
        return self._method.shift(trained.tensors, tokens_TD[None, None], trained.stacking)[0, 0]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, end token included."""
        return self._codec.encode(text)

    def embed(self, trained: Trained, batch: Stack, keep_JBSR: Tensor | None = None) -> Tensor:
        """What the backbone reads in one pass.

        Args:
            trained: What the trials of the pass have trained.
            batch: Their tokens.
            keep_JBSR: Dropout factors in training.

        Returns:
            Embeddings `(P, W, d_model)`; `batch.mask_PW` says which are there.
        """
        dtype = next(iter(trained.tensors.values())).dtype
        stacking = Stacking(trained.stacking.prompt_length_K, trained.stacking.width_K, keep_JBSR)
        tokens_JBSD = self._backbone.embed(batch.ids_JBS).to(dtype)
        embeds, _ = self._method.forward(trained.tensors, tokens_JBSD, batch.mask_JBS, stacking)
        if batch.column_PW is None:
            return embeds.flatten(0, 1)
        return embeds.flatten(0, 2).index_select(0, batch.column_PW.flatten()).view(*batch.mask_PW.shape, -1)

    @torch.no_grad()
    def evaluate(self, trained: Trained, split: TokenSplit, halted: Callable[[], bool] = never) -> list[Evaluation]:
        """Score every trial of a stack on a split.

        Args:
            trained: The stack.
            split: The rows.
            halted: Asked between two passes; where it says yes, the evaluation is given up.

        Raises:
            Halted: It was given up.
        """
        num_trials, num_rows = len(trained.labels), len(split.labels)
        texts = np.empty((num_trials, num_rows), dtype=object)
        loss = np.empty((num_trials, num_rows))

        def proceed() -> None:
            if halted():
                raise Halted

        def answer(pieces: Sequence[Piece]) -> None:
            proceed()
            texts[_places(pieces)], loss[_places(pieces)] = self._answers(trained.of(pieces), split, pieces)

        self._in_passes(trained, split.sources, answer)
        evaluations = []
        for style, mine, losses in zip(trained.labels, texts.tolist(), loss, strict=True):
            scores = {name: self._score(name, style, mine, split, proceed) for name in (self._metric, *self._also)}
            evaluations.append(Evaluation(scores.pop(self._metric), float(losses.mean()), tuple(mine), scores))
        return evaluations

    def _score(
        self, metric: str, style: str, texts: Sequence[str], split: TokenSplit, proceed: Callable[[], None]
    ) -> Score:
        """One figure of one trial's answers."""
        if metric in METRICS:
            groups = None if split.groups is None else split.groups.tolist()
            predicted = [parse_label(text, self._label_texts[style]) for text in texts]
            return score(metric, predicted, split.labels.tolist(), groups)
        if split.references is not None:
            return score_texts(metric, texts, split.references, proceed)
        return score_texts(metric, texts, [(self._label_texts[style][label],) for label in split.labels])

    @torch.no_grad()
    def decode(self, trained: Trained, sources: Ragged) -> list[list[str]]:
        """Greedy texts of every trial of a stack, `[trial][row]`."""
        texts = np.empty((len(trained.labels), len(sources)), dtype=object)

        def answer(pieces: Sequence[Piece]) -> None:
            here = trained.of(pieces)
            texts[_places(pieces)] = self._greedy(here, self._read(here, sources, pieces), pieces)

        self._in_passes(trained, sources, answer)
        return [list(row) for row in texts]

    def _in_passes(self, trained: Trained, sources: Ragged, answer: Callable[[Sequence[Piece]], None]) -> None:
        """Answer all rows, a pass at a time; out of memory, all over again in smaller passes."""
        rows = [np.arange(len(sources))] * len(trained.labels)
        prompt_lengths, grain = trained.stacking.prompt_length_K.tolist(), self._backbone.grain

        def within(pieces: Sequence[Piece]) -> None:
            with splitting(*extent(pieces, sources.lengths), another_way=self.lanes.count > 1):
                answer(pieces)

        while True:
            try:
                cut = passes(rows, prompt_lengths, sources.lengths, self._tokens_per_pass, grain=grain)
                for _ in self.lanes.run(within, cut):
                    pass
                return
            except TooLarge:
                if self.forget() and not self._forgot:
                    self._forgot = True  # what is forgotten comes back; the next time passes have to fit beside it
                elif not self.lanes.halve():
                    self._tokens_per_pass //= 2
            release(self._backbone.device)

    def _read(self, trained: Trained, sources: Ragged, pieces: Sequence[Piece]) -> Source:
        batch = stack(pieces, sources, self._pad_id, self._backbone.device)
        return self._backbone.read(self.embed(trained, batch), batch.mask_PW)

    def _greedy(self, trained: Trained, source: Source, pieces: Sequence[Piece]) -> NDArray[np.object_]:
        """Texts `(P,)`."""
        longest = {
            style: max(len(ids) for ids in self._label_ids[style]) if self._label_ids else self._max_target_length
            for style in trained.labels
        }
        decoded = self._backbone.greedy(source, max(longest.values())).tolist()
        texts = np.empty(len(decoded), dtype=object)
        seen: dict[tuple[int, ...], str] = {}
        for i, (style, ids) in enumerate(zip(_styles(trained, pieces), decoded, strict=True)):
            # A trial's limit is that of its own labels, whatever its neighbours' are.
            key = tuple(ids[: longest[style]])
            if key not in seen:
                seen[key] = self._codec.decode(key)
            texts[i] = seen[key]
        return texts

    def _answers(
        self, trained: Trained, split: TokenSplit, pieces: Sequence[Piece]
    ) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
        """Texts and label losses `(P,)` of one pass."""
        source = self._read(trained, split.sources, pieces)
        texts = self._greedy(trained, source, pieces)
        row_P = np.concatenate([piece.rows for piece in pieces])
        if split.references is not None:
            return texts, self._text_loss(source, split, row_P)
        gold_P = torch.from_numpy(split.labels[row_P].astype(np.int64)).to(self._backbone.device)
        loss_P = np.empty(len(row_P))
        style_P = np.array(_styles(trained, pieces))
        for style in dict.fromkeys(trained.labels):
            nll_PL = self._backbone.label_nll(source, self._label_ids[style])
            log_p_P = nll_PL.neg().double().log_softmax(-1).gather(-1, gold_P[:, None])[:, 0]
            mine = style_P == style
            loss_P[mine] = -log_p_P.cpu().numpy()[mine]
        return texts, loss_P

    def _text_loss(self, source: Source, split: TokenSplit, row_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """Losses `(P,)` of the first right answers."""
        padded = pad(next(iter(split.targets.values())), row_P, self._pad_id)
        target_PT, mask_PT = map(torch.from_numpy, padded)
        return self._backbone.text_nll(source, moved(target_PT, self._backbone.device), mask_PT).double().cpu().numpy()


def _places(pieces: Sequence[Piece]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the rows of a pass belong in `(K, N)`."""
    trial_P = np.repeat([piece.trial for piece in pieces], [len(piece.rows) for piece in pieces])
    return trial_P, np.concatenate([piece.rows for piece in pieces])


def _styles(trained: Trained, pieces: Sequence[Piece]) -> list[str]:
    """Which texts stand for the labels of each row of a pass."""
    return [style for style, piece in zip(trained.labels, pieces, strict=True) for _ in piece.rows]
