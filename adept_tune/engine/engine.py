"""Trains many trials at once over one frozen backbone.

The engine is a row of slots. Trials join and leave between steps; a step is one forward and backward over the rows of
all trials that take part, then one optimizer update for all of them. No operation mixes rows of different trials, so
each trial's gradient is what it would be alone. The engine knows neither Ray nor MLflow.

Shape legend: K trials of a step, N flat columns of a trial's tensors, T target tokens, D embedding width; those of a
pass stand in `packing`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from adept_tune.backbones.base import Backbone, moved
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.graphs import PassGraphs, nll_and_gradient
from adept_tune.engine.memory import Need, PassLimits, nothing
from adept_tune.engine.optimizer import Rates, adamw, clip
from adept_tune.engine.order import batch_rows
from adept_tune.engine.packing import Piece, Stack, Tally, extent, passes, stack
from adept_tune.engine.reading import Evaluation, Halted, Reader, Trained, never
from adept_tune.engine.state import TrialState
from adept_tune.errors import MethodError
from adept_tune.methods.base import Method, Sizes, Stacking
from adept_tune.methods.dropout import keep_factors
from adept_tune.methods.layout import Layout
from adept_tune.methods.start import initial_prompt, transferred
from adept_tune.tasks.tokens import Ragged, TaskData, pad


@dataclass
class _Seat:
    """What a slot knows of its trial outside the flat matrices."""

    config: TrialConfig
    sizes: Sizes
    step: int
    loss_sum: float
    loss_count: int


class Engine:
    """Slots, steps, evaluation and trial states on one device.

    Args:
        backbone: The frozen model.
        method: What is trained; one engine trains one method.
        data: The task's tokens.
        reader: Answers for a stack of trained tensors; shared with prediction, so scores agree.
        num_slots: Trials that can be in at once.
        tokens_per_pass: Most tokens in one forward and backward, prompts and padding included; None fuses all. What
            does not fit one pass is split, and its gradients are summed. Passes go through the lanes of the reader;
            what happens where memory runs out is told by `PassLimits`.
        dtype: Of trained tensors, gradients and moments.
        widest: Longest prompt and widest bottleneck to make room for from the start. Room made later moves numbers to
            other columns, which changes the rounding of sums over them: with all room made, a step depends on nothing
            that was here before.
        halted: Asked between two passes; where it says yes, a step or an evaluation is given up.
        start: Tensors of an adapter that trials start from; None starts them from nothing.

    Attributes:
        graphs: Replays passes on a GPU; None launches them one operation after another.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        data: TaskData,
        reader: Reader,
        num_slots: int,
        tokens_per_pass: int | None = None,
        dtype: torch.dtype = torch.float32,
        widest: tuple[int, int] = (0, 0),
        halted: Callable[[], bool] = never,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.data = data
        self.limits = PassLimits(reader.lanes, tokens_per_pass)
        self.graphs = PassGraphs(backbone) if backbone.device.type == "cuda" and backbone.may_replay else None
        reader.forget = self.graphs.forget if self.graphs else nothing
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
        self._tally = Tally()

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
        rows = torch.stack([flat_KN[slot] for flat_KN in self._flat]).cpu()  # a GPU is waited for once
        tensors, first, second = (self._layout.unpack(row_N, seat.sizes) for row_N in rows)
        return TrialState(
            self.method.name, seat.config, seat.sizes, seat.step, tensors, first, second, seat.loss_sum, seat.loss_count
        )

    def num_tokens(self) -> tuple[int, int]:
        """Tokens of all training passes since the last call, prompts included: real ones, and with padding."""
        return self._tally.take()

    # -- training ------------------------------------------------------------------------------------------------

    def step(self, slots: Sequence[int]) -> None:
        """One optimizer step of each trial in the given slots: all of them, or, where it raises, none.

        Args:
            slots: Different slots, each with a trial that has steps left.

        Raises:
            Halted: It was given up.
        """
        seats = [self._seat(slot) for slot in slots]
        index_K = self._moved(slots)
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
            trained = self._trained(self._flat[0][self._moved(slots)], seats)
            return self._reader.evaluate(trained, self.data.validation, self._halted)

    def evaluate_sample(self, slots: Sequence[int]) -> float:
        """Evaluate on a sample of the validation rows, to learn what it costs.

        Returns:
            Share of the tokens of the whole that were read.
        """
        whole = self.data.validation
        seats = [self._seat(slot) for slot in slots]
        sample = whole.take(np.arange(0, len(whole), max(1, len(whole) // 32)))
        trained = self._trained(self._flat[0][self._moved(slots)], seats)
        self._reader.evaluate(trained, sample)
        prompts = max(seat.sizes.prompt_length for seat in seats)
        return float((sample.sources.lengths + prompts).sum() / (whole.sources.lengths + prompts).sum())

    def need(self, slot: int) -> Need:
        """Memory of a training pass, from two passes of a trial over the longest rows; nothing is trained."""
        seat, train = self._seat(slot), self.data.train
        index_J = self._moved([slot])

        def run(num_rows: int) -> int:
            rows = np.resize(np.argsort(-train.sources.lengths, kind="stable"), num_rows)
            (pieces,) = passes([rows], [seat.sizes.prompt_length], train.sources.lengths, None)
            batch = stack(pieces, train.sources, self.data.pad_id, self._device)
            self._backward([seat], pieces, batch, index_J)
            return batch.mask_PW.numel()

        return Need.of_passes(run, self._device)

    def score_state(self, state: TrialState, split: Literal["validation", "test"]) -> Evaluation:
        """Score a saved trial alone on a split; it takes no slot."""
        trained = Trained.of_one(state.tensors, state.sizes, state.config.labels, self._device)
        (evaluation,) = self._reader.evaluate(trained, getattr(self.data, split))
        return evaluation

    def _gradients(self, seats: Sequence[_Seat], index_K: Tensor) -> tuple[Tensor, Tensor]:
        """Losses `(K,)` and gradients `(K, N)` of a step; out of memory, they are computed anew in smaller passes."""
        train = self.data.train
        rows = [batch_rows(s.config.data_seed, s.step, s.config.batch_size, len(train)) for s in seats]
        num_tokens = [
            int(train.targets[s.config.labels].lengths[mine].sum()) for s, mine in zip(seats, rows, strict=True)
        ]
        tokens_K = self._moved(num_tokens, self._dtype)
        prompt_lengths = [seat.sizes.prompt_length for seat in seats]

        def backward(pieces: Sequence[Piece]) -> tuple[Stack, Tensor, Tensor, Tensor]:
            if self._halted():
                raise Halted
            with self.limits.making(self.backbone, *extent(pieces, train.sources.lengths)):
                batch = stack(pieces, train.sources, self.data.pad_id, self._device)
                trial_J = self._moved([piece.trial for piece in pieces])
                here = [seats[piece.trial] for piece in pieces]
                graphs = None if self.limits.recomputing else self.graphs
                return batch, trial_J, *self._backward(here, pieces, batch, index_K[trial_J], graphs)

        def all_passes() -> tuple[Tensor, Tensor]:
            nll_K = torch.zeros(len(seats), dtype=self._dtype, device=self._device)
            gradient_KN = torch.zeros(len(seats), self._layout.num_columns, dtype=self._dtype, device=self._device)
            lanes = self.limits.lanes
            most, even, grain = self.limits.tokens_per_pass, self.graphs is not None, self.backbone.grain
            cut = passes(rows, prompt_lengths, train.sources.lengths, most, lanes.count, even, grain)
            for batch, trial_J, nll_J, gradient_JN in lanes.run(backward, cut):
                nll_K.index_add_(0, trial_J, nll_J)
                gradient_KN.index_add_(0, trial_J, gradient_JN)
                self._tally.add(batch)
            return nll_K / tokens_K, gradient_KN / tokens_K[:, None]

        return self.limits.keep(self.backbone, all_passes, self._reader.forget)

    def _backward(
        self,
        seats: Sequence[_Seat],
        pieces: Sequence[Piece],
        batch: Stack,
        index_J: Tensor,
        graphs: PassGraphs | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed losses `(J,)` and their gradients `(J, N)` of one pass."""
        leaf_JN = self._flat[0].index_select(0, index_J).requires_grad_()
        embeds_PWD = self._reader.embed(self._trained(leaf_JN, seats), batch, self._keep(seats, batch))
        target_PT, target_mask_PT = self._targets(seats, pieces)
        asked = embeds_PWD, batch.mask_PW, target_PT, target_mask_PT
        nll_PT, gradient_PWD = graphs.run(*asked) if graphs else nll_and_gradient(self.backbone, *asked)
        nll_J = leaf_JN.new_zeros(len(pieces)).index_add_(0, batch.piece_P, nll_PT.sum(1).to(self._dtype))
        (gradient_JN,) = torch.autograd.grad(embeds_PWD, leaf_JN, gradient_PWD)
        return nll_J, gradient_JN

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

        rates = {
            "prompt_K": [c.prompt_lr * f for c, f in zip(configs, factors, strict=True)],
            "offset_K": [c.offset_lr * f for c, f in zip(configs, factors, strict=True)],
            "step_K": [seat.step + 1 for seat in seats],
            "beta1_K": [c.beta1 for c in configs],
            "beta2_K": [c.beta2 for c in configs],
            "epsilon_K": [c.epsilon for c in configs],
            "weight_decay_K": [c.weight_decay for c in configs],
            "clip_norm_K": [c.clip_norm or float("inf") for c in configs],
        }
        return Rates(**dict(zip(rates, self._moved(list(rates.values()), self._dtype), strict=True)))

    def _keep(self, seats: Sequence[_Seat], batch: Stack) -> Tensor | None:
        """Dropout factors of a pass, or None where no trial drops anything."""
        if not self.method.has_dropout or all(seat.config.dropout == 0 for seat in seats):
            return None
        return keep_factors(
            self._moved([seat.config.seed for seat in seats]),
            self._moved([seat.step for seat in seats]),
            batch.place_JB,
            self._moved([seat.config.dropout for seat in seats], self._dtype),
            batch.ids_JBS.shape[2],
            max(seat.sizes.width for seat in seats),
        )

    def _targets(self, seats: Sequence[_Seat], pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """Target tokens of a pass, and their mask on the CPU; trials may differ in the texts of their labels."""
        targets = self.data.train.targets
        parts = [(targets[seat.config.labels], piece.rows) for seat, piece in zip(seats, pieces, strict=True)]
        whole = Ragged.from_lists(ragged[row].tolist() for ragged, rows in parts for row in rows.tolist())
        ids_PT, mask_PT = map(torch.from_numpy, pad(whole, np.arange(len(whole)), self.data.pad_id))
        return moved(ids_PT, self._device), mask_PT

    # -- flat matrices -------------------------------------------------------------------------------------------

    def _trained(self, flat_KN: Tensor, seats: Sequence[_Seat]) -> Trained:
        longest = max(seat.sizes.prompt_length for seat in seats)
        widest = max(seat.sizes.width for seat in seats)
        return Trained(
            tensors=self._layout.narrow(self._layout.views(flat_KN), longest, widest),
            stacking=Stacking(
                self._moved([seat.sizes.prompt_length for seat in seats]),
                self._moved([seat.sizes.width for seat in seats]),
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

    def _moved(self, values: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
        return moved(torch.tensor(values, dtype=dtype), self._device)

    def _settle(self, slot: int, seat: _Seat) -> None:
        """Move the loss summed on the device into the seat."""
        seat.loss_sum += float(self._loss_K[slot])
        self._loss_K[slot] = 0.0

    def _seat(self, slot: int) -> _Seat:
        seat = self._seats[slot]
        assert seat is not None, f"slot {slot} is empty"
        return seat
