"""What a stack of trained tensors makes a backbone answer: the one way from text to score.

Training, validation, the test and prediction all go through `Reader`, so what was trained on is what is decoded with.

Shape legend: K trials, B rows of each, S source tokens, P rows of a pass (all trials), D embedding width, L labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adept_tune.backbones.base import Backbone
from adept_tune.engine.memory import ran_out, release
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
        tokens_per_pass: Most source tokens of all trials together in one evaluation pass. Halved whenever the device
            runs out of memory.
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
        tokens_per_pass: int = 8192,
    ) -> None:
        self._backbone = backbone
        self._method = method
        self._codec = codec
        self._metric = metric
        self._label_ids = {style: [ids.tolist() for ids in ragged] for style, ragged in label_sets.items()}
        self._label_texts = label_texts
        self._pad_id = pad_id
        self._also = also
        self._max_target_length = max_target_length
        self._tokens_per_pass = tokens_per_pass

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

    def embed(
        self,
        trained: Trained,
        ids_KBS: Tensor,
        mask_KBS: Tensor,
        row_P: Tensor | None = None,
        keep_KBSR: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the backbone reads.

        Args:
            trained: The stack.
            ids_KBS: Source tokens, padded on the right.
            mask_KBS: Bool, true on real tokens.
            row_P: Rows of the flattened `(K, B)` that are real; None takes all.
            keep_KBSR: Dropout factors in training.

        Returns:
            Embeddings `(rows of the pass, prompt + source, d_model)` and their bool mask.
        """
        dtype = next(iter(trained.tensors.values())).dtype
        stacking = Stacking(trained.stacking.prompt_length_K, trained.stacking.width_K, keep_KBSR)
        tokens_KBSD = self._backbone.embed(ids_KBS).to(dtype)
        embeds, mask = self._method.forward(trained.tensors, tokens_KBSD, mask_KBS, stacking)
        embeds_PSD, mask_PS = embeds.flatten(0, 1), mask.flatten(0, 1)
        if row_P is not None:
            embeds_PSD, mask_PS = embeds_PSD.index_select(0, row_P), mask_PS.index_select(0, row_P)
        return embeds_PSD, mask_PS

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

        def answer(rows: NDArray[np.int64]) -> None:
            proceed()
            texts[:, rows], loss[:, rows] = self._answers(trained, split, rows)

        self._in_chunks(trained, split.sources, answer)
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

        def answer(rows: NDArray[np.int64]) -> None:
            texts[:, rows] = self._greedy(trained, self._read(trained, sources, rows), len(rows))

        self._in_chunks(trained, sources, answer)
        return [list(row) for row in texts]

    def _in_chunks(self, trained: Trained, sources: Ragged, answer: Callable[[NDArray[np.int64]], None]) -> None:
        """Answer all rows, a pass at a time; out of memory, all over again in smaller passes."""
        while True:
            num_rows = 0
            try:
                for rows in self._chunks(sources, len(trained.labels), trained):
                    num_rows = len(rows)
                    answer(rows)
                return
            except Exception as error:
                if num_rows < 2 or not ran_out(error):
                    raise
            self._tokens_per_pass //= 2
            release(self._backbone.device)

    def _chunks(self, sources: Ragged, num_trials: int, trained: Trained) -> list[NDArray[np.int64]]:
        """Rows of similar length together, as many as a pass holds."""
        order = np.argsort(sources.lengths, kind="stable")
        lengths = sources.lengths[order] + trained.tensors["prompt"].shape[1]
        chunks, start = [], 0
        for i in range(len(order)):
            if i > start and (i - start + 1) * lengths[i] * num_trials > self._tokens_per_pass:
                chunks.append(order[start:i])
                start = i
        chunks.append(order[start:])
        return chunks

    def _read(self, trained: Trained, sources: Ragged, rows: NDArray[np.int64]) -> object:
        ids_BS, mask_BS = pad(sources, rows, self._pad_id)
        device, num_trials = self._backbone.device, len(trained.labels)
        ids_KBS = torch.from_numpy(ids_BS.astype(np.int64)).to(device).expand(num_trials, -1, -1)
        mask_KBS = torch.from_numpy(mask_BS).to(device).expand(num_trials, -1, -1)
        return self._backbone.read(*self.embed(trained, ids_KBS, mask_KBS))

    def _greedy(self, trained: Trained, source: object, num_rows: int) -> NDArray[np.object_]:
        limits = [
            max(len(ids) for ids in self._label_ids[style]) if self._label_ids else self._max_target_length
            for style in trained.labels
        ]
        decoded = self._backbone.greedy(source, max(limits)).tolist()
        texts = np.empty(len(decoded), dtype=object)
        seen: dict[tuple[int, ...], str] = {}
        for i, ids in enumerate(decoded):
            # A trial's limit is that of its own labels, whatever its neighbours' are.
            key = tuple(ids[: limits[i // num_rows]])
            if key not in seen:
                seen[key] = self._codec.decode(key)
            texts[i] = seen[key]
        return texts.reshape(len(trained.labels), num_rows)

    def _answers(
        self, trained: Trained, split: TokenSplit, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
        """Texts and label losses `(K, rows)` of one chunk."""
        source = self._read(trained, split.sources, rows)
        texts = self._greedy(trained, source, len(rows))
        if split.references is not None:
            return texts, self._text_loss(source, split, rows, len(texts))
        gold_B = torch.from_numpy(split.labels[rows].astype(np.int64)).to(self._backbone.device)
        loss = np.empty(texts.shape)
        for style in dict.fromkeys(trained.labels):
            mine = [k for k, other in enumerate(trained.labels) if other == style]
            nll_PL = self._backbone.label_nll(source, self._label_ids[style])
            log_p_KBL = (-nll_PL).double().log_softmax(-1).view(*texts.shape, -1)[mine]
            chosen_KB = log_p_KBL.gather(-1, gold_B.expand(len(mine), -1)[..., None])[..., 0]
            loss[mine] = -chosen_KB.cpu().numpy()
        return texts, loss

    def _text_loss(
        self, source: object, split: TokenSplit, rows: NDArray[np.int64], num_trials: int
    ) -> NDArray[np.float64]:
        """Losses `(K, rows)` of the first right answers."""
        ids_BT, mask_BT = pad(next(iter(split.targets.values())), rows, self._pad_id)
        target_PT, mask_PT = (
            torch.from_numpy(part).to(self._backbone.device).repeat(num_trials, 1) for part in (ids_BT, mask_BT)
        )
        nll_P = self._backbone.text_nll(source, target_PT, mask_PT)
        return nll_P.double().view(num_trials, -1).cpu().numpy()
