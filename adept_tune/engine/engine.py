"""Trains many trials at once over one frozen backbone.

The engine is a row of slots. Trials join and leave between steps; a step is one forward and backward over the rows of
all trials that take part, then one optimizer update for all of them. No operation mixes rows of different trials, so
each trial's gradient is what it would be alone. The engine knows neither Ray nor MLflow.

Shape legend: K trials of a pass, B rows of the widest batch, S source tokens, T target tokens, D embedding width,
R bottleneck width, N flat columns of a trial's tensors, P rows of the pass, J pieces of a pass.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adept_tune.backbones.base import Backbone
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.memory import ran_out, release
from adept_tune.engine.optimizer import Rates, adamw, clip
from adept_tune.engine.order import batch_rows
from adept_tune.engine.reading import Evaluation, Halted, Reader, Trained, never
from adept_tune.engine.state import TrialState
from adept_tune.errors import MethodError
from adept_tune.methods.base import Method, Sizes, Stacking
from adept_tune.methods.dropout import keep_factors
from adept_tune.methods.layout import Layout
from adept_tune.methods.start import initial_prompt, transferred
from adept_tune.tasks.tokens import TaskData, pad


@dataclass
class _Seat:
    """What a slot knows of its trial outside the flat matrices."""

    config: TrialConfig
    sizes: Sizes
    step: int
    loss_sum: float
    loss_count: int


@dataclass(frozen=True)
class _Piece:
    """What one pass takes of a trial's batch: all of it, unless that is more than a pass holds.

    Attributes:
        trial: Number of the trial among those of the step.
        seat: Its seat.
        rows: Rows of the training split.
        first: Number of the first of them in the batch; dropout depends on it.
        num_tokens: Target tokens of the whole batch, over which the loss is averaged.
    """

    trial: int
    seat: _Seat
    rows: NDArray[np.int64]
    first: int
    num_tokens: int


class Engine:
    """Slots, steps, evaluation and trial states on one device.

    Args:
        backbone: The frozen model.
        method: What is trained; one engine trains one method.
        data: The task's tokens.
        reader: Answers for a stack of trained tensors; shared with prediction, so scores agree.
        num_slots: Trials that can be in at once.
        rows_per_pass: Most rows in one forward and backward; None fuses all. Halved whenever the device runs out of
            memory; a batch of more rows is split, and its gradients are summed.
        dtype: Of trained tensors, gradients and moments.
        widest: Longest prompt and widest bottleneck to make room for from the start. Room made later moves numbers to
            other columns, which changes the rounding of sums over them: with all room made, a step depends on nothing
            that was here before.
        halted: Asked between two passes; where it says yes, a step or an evaluation is given up.
        start: Tensors of an adapter that trials start from; None starts them from nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        data: TaskData,
        reader: Reader,
        num_slots: int,
        rows_per_pass: int | None = None,
        dtype: torch.dtype = torch.float32,
        widest: tuple[int, int] = (0, 0),
        halted: Callable[[], bool] = never,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.data = data
        self.rows_per_pass = rows_per_pass
        self._reader = reader
        self._dtype = dtype
        self._halted = halted
        self._from = start
        self._device = backbone.device
        self._seats: list[_Seat | None] = [None] * num_slots
        self._diverged_K = torch.zeros(num_slots, dtype=torch.bool, device=self._device)
        self._loss_K = torch.zeros(num_slots, dtype=torch.float64, device=self._device)
        self._layout = self._new_layout(*widest)
        self._prompt_columns_N = self._layout.prompt_columns(self._device)
        self._flat = [self._zeros(self._layout) for _ in range(3)]

    # -- slots ---------------------------------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        """Slots, free ones included."""
        return len(self._seats)

    def join(self, config: TrialConfig, state: TrialState | None = None) -> int:
        """Seat a trial, from its start or from a saved state.

        Args:
            config: The trial's settings.
            state: Where it stood; None starts it.

        Returns:
            Its slot.

        Raises:
            MethodError: No slot is free, or the state is of another trial.
        """
        slot = next((i for i, seat in enumerate(self._seats) if seat is None), None)
        if slot is None:
            raise MethodError(f"all {self.num_slots} slots are taken; wait until a trial leaves")
        sizes = config.sizes(self.backbone.d_model, self.data.max_source_length)
        if config.labels not in self.data.styles:
            raise MethodError(f"labels {config.labels!r}: this task has {sorted(self.data.styles)}")
        if state is None:
            state = self._start(config, sizes)
        elif (state.method, state.config, state.sizes) != (self.method.name, config, sizes):
            raise MethodError(f"the state belongs to another trial: {state.method}, {state.config}, not {config}")
        self._widen(sizes)
        for flat_KN, tensors in zip(self._flat, (state.tensors, state.first, state.second), strict=True):
            flat_KN[slot] = self._layout.pack(tensors, sizes).to(self._device, self._dtype)
        self._seats[slot] = _Seat(config, sizes, state.step, state.loss_sum, state.loss_count)
        self._diverged_K[slot] = False
        self._loss_K[slot] = 0.0
        return slot

    def leave(self, slot: int) -> None:
        """Free a slot; the trial's numbers are gone."""
        self._seat(slot)
        self._seats[slot] = None
        for flat_KN in self._flat:
            flat_KN[slot] = 0.0

    def step_of(self, slot: int) -> int:
        """Updates that the trial in a slot has done."""
        return self._seat(slot).step

    def diverged(self, slot: int) -> bool:
        """Whether the trial met a loss or gradient that is not finite; it is not updated from then on."""
        return bool(self._diverged_K[slot])

    def train_loss(self, slot: int) -> float:
        """Mean training loss since the last call, NaN where no step was taken; starts the next mean."""
        seat = self._seat(slot)
        self._settle(slot, seat)
        mean = seat.loss_sum / seat.loss_count if seat.loss_count else float("nan")
        seat.loss_sum, seat.loss_count = 0.0, 0
        return mean

    def state(self, slot: int) -> TrialState:
        """The whole state of the trial in a slot, on the CPU."""
        seat = self._seat(slot)
        self._settle(slot, seat)
        tensors, first, second = (self._unpacked(flat_KN[slot], seat.sizes) for flat_KN in self._flat)
        return TrialState(
            self.method.name, seat.config, seat.sizes, seat.step, tensors, first, second, seat.loss_sum, seat.loss_count
        )

    # -- training ------------------------------------------------------------------------------------------------

    def step(self, slots: Sequence[int]) -> None:
        """One optimizer step of each trial in the given slots: all of them, or, where it raises, none.

        Args:
            slots: Different slots, each with a trial that has steps left.

        Raises:
            Halted: It was given up.
        """
        seats = [self._seat(slot) for slot in slots]
        index_K = torch.tensor(slots, device=self._device)
        loss_K, gradient_KN = self._gradients(seats, index_K)
        self._update(seats, index_K, loss_K, gradient_KN)
        for seat in seats:
            seat.step += 1
            seat.loss_count += 1

    def evaluate(self, slots: Sequence[int]) -> list[Evaluation]:
        """Score the trials in the given slots on the validation half, fused.

        Args:
            slots: Different slots.

        Returns:
            One evaluation a slot, in order.

        Raises:
            Halted: It was given up.
        """
        seats = [self._seat(slot) for slot in slots]
        with torch.no_grad():
            trained = self._trained(self._flat[0][torch.tensor(slots, device=self._device)], seats)
            return self._reader.evaluate(trained, self.data.validation, self._halted)

    def evaluate_sample(self, slots: Sequence[int]) -> float:
        """Evaluate on a sample of the validation rows, to learn what it costs.

        Returns:
            Share of the tokens of the whole that were read.
        """
        whole = self.data.validation
        seats = [self._seat(slot) for slot in slots]
        sample = whole.take(np.arange(0, len(whole), max(1, len(whole) // 32)))
        trained = self._trained(self._flat[0][torch.tensor(slots, device=self._device)], seats)
        self._reader.evaluate(trained, sample)
        prompts = max(seat.sizes.prompt_length for seat in seats)
        return float((sample.sources.lengths + prompts).sum() / (whole.sources.lengths + prompts).sum())

    def score_state(self, state: TrialState, split: Literal["validation", "test"]) -> Evaluation:
        """Score a saved trial alone on a split; it takes no slot."""
        trained = Trained.of_one(state.tensors, state.sizes, state.config.labels, self._device)
        (evaluation,) = self._reader.evaluate(trained, getattr(self.data, split))
        return evaluation

    def _gradients(self, seats: Sequence[_Seat], index_K: Tensor) -> tuple[Tensor, Tensor]:
        """Losses `(K,)` and gradients `(K, N)` of a step; out of memory, they are computed anew in smaller passes."""
        while True:
            loss_K = torch.zeros(len(seats), dtype=self._dtype, device=self._device)
            gradient_KN = torch.zeros(len(seats), self._layout.num_columns, dtype=self._dtype, device=self._device)
            num_rows = 0
            try:
                for pieces in self._passes(seats):
                    if self._halted():
                        raise Halted
                    num_rows = sum(len(piece.rows) for piece in pieces)
                    trial_J = torch.tensor([piece.trial for piece in pieces], device=self._device)
                    loss_J, gradient_JN = self._backward(pieces, index_K[trial_J])
                    loss_K.index_add_(0, trial_J, loss_J)
                    gradient_KN.index_add_(0, trial_J, gradient_JN)
                return loss_K, gradient_KN
            except Exception as error:
                if num_rows < 2 or not ran_out(error):
                    raise
            self.rows_per_pass = num_rows // 2
            release(self._device)

    def _passes(self, seats: Sequence[_Seat]) -> Iterator[list[_Piece]]:
        """Consecutive trials whose rows fit in one pass."""
        pieces: list[_Piece] = []
        rows = 0
        for piece in self._pieces(seats):
            if pieces and self.rows_per_pass is not None and rows + len(piece.rows) > self.rows_per_pass:
                yield pieces
                pieces, rows = [], 0
            pieces.append(piece)
            rows += len(piece.rows)
        yield pieces

    def _pieces(self, seats: Sequence[_Seat]) -> Iterator[_Piece]:
        """Every trial's batch, in pieces that a pass holds; no two of a trial fit one pass together."""
        train = self.data.train
        for trial, seat in enumerate(seats):
            config = seat.config
            rows = batch_rows(config.data_seed, seat.step, config.batch_size, len(train))
            num_tokens = int(train.targets[config.labels].lengths[rows].sum())
            most = min(len(rows), self.rows_per_pass or len(rows))
            for first in range(0, len(rows), most):
                yield _Piece(trial, seat, rows[first : first + most], first, num_tokens)

    def _backward(self, pieces: Sequence[_Piece], index_J: Tensor) -> tuple[Tensor, Tensor]:
        """Losses `(J,)` and gradients `(J, N)` of one pass."""
        batch = self._batch(pieces)
        leaf_JN = self._flat[0].index_select(0, index_J).requires_grad_()
        trained = self._trained(leaf_JN, [piece.seat for piece in pieces])
        embeds_PSD, mask_PS = self._reader.embed(
            trained, batch.ids_JBS, batch.mask_JBS, batch.row_P, self._keep(pieces, batch)
        )
        nll_PT = self.backbone.target_nll(embeds_PSD, mask_PS, batch.target_PT, batch.target_mask_PT)
        tokens_J = torch.tensor([piece.num_tokens for piece in pieces], dtype=self._dtype, device=self._device)
        nll_J = torch.zeros_like(tokens_J).index_add(0, batch.piece_P, nll_PT.sum(1).to(self._dtype))
        loss_J = nll_J / tokens_J
        (gradient_JN,) = torch.autograd.grad(loss_J.sum(), leaf_JN)
        return loss_J.detach(), gradient_JN

    def _update(self, seats: Sequence[_Seat], index_K: Tensor, loss_K: Tensor, gradient_KN: Tensor) -> None:
        """Clip and update; a trial whose loss or gradient is not finite keeps its numbers and is marked."""
        finite_K = loss_K.isfinite() & gradient_KN.isfinite().all(1) & ~self._diverged_K[index_K]
        gradient_KN = torch.where(finite_K[:, None], gradient_KN, 0.0)
        rates = self._rates(seats)
        old = [flat_KN.index_select(0, index_K) for flat_KN in self._flat]
        new = adamw(old[0], clip(gradient_KN, rates.clip_norm_K), old[1], old[2], self._prompt_columns_N, rates)
        kept = [
            torch.where(finite_K[:, None], after_KN, before_KN) for before_KN, after_KN in zip(old, new, strict=True)
        ]
        loss_K = self._loss_K[index_K] + loss_K.double()
        # Nothing from here on needs memory worth naming: the update is made whole, or where it raised not at all.
        for flat_KN, kept_KN in zip(self._flat, kept, strict=True):
            flat_KN.index_copy_(0, index_K, kept_KN)
        self._diverged_K[index_K] = ~finite_K
        self._loss_K[index_K] = loss_K

    def _rates(self, seats: Sequence[_Seat]) -> Rates:
        configs = [seat.config for seat in seats]
        factors = [seat.config.rate_factor(seat.step) for seat in seats]

        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), dtype=self._dtype, device=self._device)

        return Rates(
            prompt_K=column(c.prompt_lr * f for c, f in zip(configs, factors, strict=True)),
            offset_K=column(c.offset_lr * f for c, f in zip(configs, factors, strict=True)),
            step_K=column(seat.step + 1 for seat in seats),
            beta1_K=column(c.beta1 for c in configs),
            beta2_K=column(c.beta2 for c in configs),
            epsilon_K=column(c.epsilon for c in configs),
            weight_decay_K=column(c.weight_decay for c in configs),
            clip_norm_K=column(c.clip_norm or float("inf") for c in configs),
        )

    def _keep(self, pieces: Sequence[_Piece], batch: "_Batch") -> Tensor | None:
        """Dropout factors of a pass, or None where no trial drops anything."""
        seats = [piece.seat for piece in pieces]
        if not self.method.has_dropout or all(seat.config.dropout == 0 for seat in seats):
            return None
        return keep_factors(
            torch.tensor([seat.config.seed for seat in seats], device=self._device),
            torch.tensor([seat.step for seat in seats], device=self._device),
            torch.tensor([piece.first for piece in pieces], device=self._device),
            torch.tensor([seat.config.dropout for seat in seats], dtype=self._dtype, device=self._device),
            batch.ids_JBS.shape[1],
            batch.ids_JBS.shape[2],
            max(seat.sizes.width for seat in seats),
        )

    def _batch(self, pieces: Sequence[_Piece]) -> "_Batch":
        sizes = [len(piece.rows) for piece in pieces]
        flat_rows = np.concatenate([piece.rows for piece in pieces])
        piece_P = np.repeat(np.arange(len(pieces)), sizes)
        ids_PS, mask_PS = pad(self.data.train.sources, flat_rows, self.data.pad_id)
        # A ragged stack is padded to (J, B) for the adapters and read back row by row for the backbone.
        widest = max(sizes)
        row_P = np.concatenate([j * widest + np.arange(size) for j, size in enumerate(sizes)])
        ids_JBS = np.full((len(pieces) * widest, ids_PS.shape[1]), self.data.pad_id, dtype=np.int64)
        mask_JBS = np.zeros(ids_JBS.shape, dtype=bool)
        ids_JBS[row_P], mask_JBS[row_P] = ids_PS, mask_PS
        target_PT, target_mask_PT = self._targets(pieces)
        shape = (len(pieces), widest, ids_PS.shape[1])
        return _Batch(
            self._tensor(ids_JBS).view(shape),
            self._tensor(mask_JBS).view(shape),
            self._tensor(row_P) if len(set(sizes)) > 1 else None,
            self._tensor(piece_P),
            self._tensor(target_PT),
            self._tensor(target_mask_PT),
        )

    def _targets(self, pieces: Sequence[_Piece]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Target tokens of a pass; trials may differ in the texts of their labels."""
        targets = self.data.train.targets
        padded = [pad(targets[piece.seat.config.labels], piece.rows, self.data.pad_id) for piece in pieces]
        longest = max(ids.shape[1] for ids, _ in padded)
        widths = [((0, 0), (0, longest - ids.shape[1])) for ids, _ in padded]
        ids = [np.pad(ids, w, constant_values=self.data.pad_id) for (ids, _), w in zip(padded, widths, strict=True)]
        masks = [np.pad(mask, w) for (_, mask), w in zip(padded, widths, strict=True)]
        return np.concatenate(ids).astype(np.int64), np.concatenate(masks)

    # -- flat matrices -------------------------------------------------------------------------------------------

    def _trained(self, flat_KN: Tensor, seats: Sequence[_Seat]) -> Trained:
        longest = max(seat.sizes.prompt_length for seat in seats)
        widest = max(seat.sizes.width for seat in seats)
        return Trained(
            tensors=self._layout.narrow(self._layout.views(flat_KN), longest, widest),
            stacking=Stacking(
                torch.tensor([seat.sizes.prompt_length for seat in seats], device=self._device),
                torch.tensor([seat.sizes.width for seat in seats], device=self._device),
            ),
            labels=tuple(seat.config.labels for seat in seats),
        )

    def _start(self, config: TrialConfig, sizes: Sizes) -> TrialState:
        generator = torch.Generator().manual_seed(config.seed)
        text_ids = self._reader.encode(config.prompt_text) if config.prompt_init == "text" else []
        prompt_MD = initial_prompt(
            config.prompt_init, config.prompt_length, self.backbone.table_VD, text_ids, generator
        )
        tensors = self.method.initial(sizes, prompt_MD, config.wide_start, generator)
        if self._from is not None:
            tensors = transferred(tensors, self._from)
        tensors = {name: tensor.to(self._dtype) for name, tensor in tensors.items()}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        return TrialState(self.method.name, config, sizes, 0, tensors, zeros, dict(zeros))

    def _widen(self, sizes: Sizes) -> None:
        """Make room for a trial with a longer prompt or a wider bottleneck than any before."""
        old = self._layout
        longest = max(old.widest.prompt_length, sizes.prompt_length)
        widest = max(old.widest.width, sizes.width)
        if (longest, widest) == (old.widest.prompt_length, old.widest.width):
            return
        new = self._new_layout(longest, widest)
        flat = [self._zeros(new) for _ in self._flat]
        for slot, seat in enumerate(self._seats):
            if seat is not None:
                for old_KN, new_KN in zip(self._flat, flat, strict=True):
                    new_KN[slot] = new.pack(old.unpack(old_KN[slot], seat.sizes), seat.sizes)
        self._layout, self._flat, self._prompt_columns_N = new, flat, new.prompt_columns(self._device)

    def _new_layout(self, prompt_length: int, width: int) -> Layout:
        return Layout(self.method, Sizes(prompt_length, width, self.backbone.d_model, self.data.max_source_length))

    def _zeros(self, layout: Layout) -> Tensor:
        return torch.zeros(self.num_slots, layout.num_columns, dtype=self._dtype, device=self._device)

    def _unpacked(self, flat_N: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in self._layout.unpack(flat_N, sizes).items()}

    def _settle(self, slot: int, seat: _Seat) -> None:
        """Move the loss summed on the device into the seat."""
        seat.loss_sum += float(self._loss_K[slot])
        self._loss_K[slot] = 0.0

    def _tensor(self, array: NDArray[np.int64] | NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _seat(self, slot: int) -> _Seat:
        seat = self._seats[slot]
        assert seat is not None, f"slot {slot} is empty"
        return seat


@dataclass(frozen=True)
class _Batch:
    """The rows of one pass. `row_P` picks the real rows out of `(J, B)`; None where every piece has B of them."""

    ids_JBS: Tensor
    mask_JBS: Tensor
    row_P: Tensor | None
    piece_P: Tensor
    target_PT: Tensor
    target_mask_PT: Tensor
