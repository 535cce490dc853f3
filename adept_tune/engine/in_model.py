"""Trains trials inside the model: one a slot, each on a private copy of the backbone.

The face of `Engine`, for methods that cannot share a pass. The pristine backbone is never trained; a trial's copy is
made when it joins and dropped when it leaves. Trained numbers are kept in float32, whatever the model is held in, and
written into the copy after every update. What is trained on is read through the same `Reader`, with an empty prompt.

Shape legend: T target tokens; those of a pass stand in `packing`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from adept_tune.backbones.base import Backbone, moved
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.memory import Need, PassLimits, release
from adept_tune.engine.order import batch_rows
from adept_tune.engine.packing import Piece, Stack, Tally, extent, passes, stack
from adept_tune.engine.reading import Evaluation, Halted, Reader, Trained, never
from adept_tune.engine.state import TrialState
from adept_tune.errors import MethodError
from adept_tune.methods.base import Sizes
from adept_tune.methods.in_model import InModel
from adept_tune.tasks.tokens import TaskData, pad


@dataclass
class _Seat:
    """A trial and its copy of the model.

    Attributes:
        places: Parameters of the copy that are trained.
        masters: The same numbers in the dtype of training; the places themselves where that is theirs.
    """

    config: TrialConfig
    sizes: Sizes
    reader: Reader
    places: dict[str, Parameter]
    masters: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    step: int
    loss_sum: float
    loss_count: int
    diverged: bool = False


class InModelEngine:
    """Slots, steps, evaluation and trial states on one device; see `Engine` for what they promise.

    Args:
        backbone: The pristine model.
        method: What is trained; one engine trains one method.
        data: The task's tokens.
        reader_over: Makes the reader of a backbone.
        num_slots: Trials that can be in at once.
        tokens_per_pass: Most tokens in one forward and backward; None takes a whole batch. What happens where memory
            runs out is told by `PassLimits`.
        dtype: Of trained numbers, gradients and moments.
        halted: Asked between two passes; where it says yes, a step or an evaluation is given up.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: InModel,
        data: TaskData,
        reader_over: Callable[[Backbone], Reader],
        num_slots: int,
        tokens_per_pass: int | None = None,
        dtype: torch.dtype = torch.float32,
        halted: Callable[[], bool] = never,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.data = data
        self.limits = PassLimits(reader_over(backbone).lanes, tokens_per_pass)
        self._reader_over = reader_over
        self._dtype = dtype
        self._halted = halted
        self._seats: list[_Seat | None] = [None] * num_slots
        self._tally = Tally()

    # -- slots ---------------------------------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        """Slots, free ones included."""
        return len(self._seats)

    def join(self, config: TrialConfig, state: TrialState | None = None) -> int:
        """Seat a trial on a fresh copy of the backbone, from its start or from a saved state.

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
        if state is not None and (state.method, state.config, state.sizes) != (self.method.name, config, sizes):
            raise MethodError(f"the state belongs to another trial: {state.method}, {state.config}, not {config}")
        self._seats[slot] = self._seated(config, sizes, state)
        return slot

    def leave(self, slot: int) -> None:
        """Free a slot; the trial's copy of the model is gone."""
        self._seat(slot)
        self._seats[slot] = None
        release(self.backbone.device)

    def step_of(self, slot: int) -> int:
        """Updates that the trial in a slot has done."""
        return self._seat(slot).step

    def diverged(self, slot: int) -> bool:
        """Whether the trial met a loss or gradient that is not finite; it is not updated from then on."""
        return self._seat(slot).diverged

    def train_loss(self, slot: int) -> float:
        """Mean training loss since the last call, NaN where no step was taken; starts the next mean."""
        seat = self._seat(slot)
        mean = seat.loss_sum / seat.loss_count if seat.loss_count else float("nan")
        seat.loss_sum, seat.loss_count = 0.0, 0
        return mean

    def state(self, slot: int) -> TrialState:
        """The whole state of the trial in a slot, on the CPU."""
        seat = self._seat(slot)
        tensors = {name: master.detach().cpu().clone() for name, master in seat.masters.items()}
        first, second = (
            {name: seat.optimizer.state[master][moment].cpu().clone() for name, master in seat.masters.items()}
            for moment in ("exp_avg", "exp_avg_sq")
        )
        return TrialState(
            self.method.name, seat.config, seat.sizes, seat.step, tensors, first, second, seat.loss_sum, seat.loss_count
        )

    # -- training ------------------------------------------------------------------------------------------------

    def step(self, slots: Sequence[int]) -> None:
        """One optimizer step of each trial in the given slots: all of them, or, where it raises, none.

        Raises:
            Halted: It was given up.
        """
        seats = [self._seat(slot) for slot in slots]
        found = [self._gradients(seat) for seat in seats]
        for seat, (loss, gradients) in zip(seats, found, strict=True):
            self._update(seat, gradients)
            seat.step += 1
            seat.loss_sum += loss
            seat.loss_count += 1

    def evaluate(self, slots: Sequence[int]) -> list[Evaluation]:
        """Score the trials in the given slots on the validation half, one after another.

        Raises:
            Halted: It was given up.
        """
        validation = self.data.validation
        seats = [self._seat(slot) for slot in slots]
        return [seat.reader.evaluate(self._no_prompt(seat), validation, self._halted)[0] for seat in seats]

    def evaluate_sample(self, slots: Sequence[int]) -> float:
        """Evaluate on a sample of the validation rows, to learn what it costs.

        Returns:
            Share of the tokens of the whole that were read.
        """
        whole = self.data.validation
        sample = whole.take(np.arange(0, len(whole), max(1, len(whole) // 32)))
        for seat in map(self._seat, slots):
            seat.reader.evaluate(self._no_prompt(seat), sample)
        return float(sample.sources.lengths.sum() / whole.sources.lengths.sum())

    @property
    def graphs(self) -> None:
        """Nothing is replayed: each trial has a model of its own."""

    def num_tokens(self) -> tuple[int, int]:
        """Tokens of all training passes since the last call: real ones, and with padding."""
        return self._tally.take()

    def need(self, slot: int) -> Need:
        """Memory of a training pass, from two passes of a trial over the longest rows; nothing is trained."""
        seat, train = self._seat(slot), self.data.train

        def run(num_rows: int) -> int:
            rows = np.resize(np.argsort(-train.sources.lengths, kind="stable"), num_rows)
            ((piece,),) = passes([rows], [0], train.sources.lengths, None)
            batch = stack([piece], train.sources, self.data.pad_id, self.backbone.device)
            torch.autograd.grad(self._nll(seat, piece, batch), list(seat.places.values()), allow_unused=True)
            return batch.mask_PW.numel()

        return Need.of_passes(run, self.backbone.device)

    def score_state(self, state: TrialState, split: Literal["validation", "test"]) -> Evaluation:
        """Score a saved trial alone on a split; it takes no slot, but a copy of the model while it lasts."""
        seat = self._seated(state.config, state.sizes, state)
        (evaluation,) = seat.reader.evaluate(self._no_prompt(seat), getattr(self.data, split))
        return evaluation

    def _gradients(self, seat: _Seat) -> tuple[float, list[Tensor] | None]:
        """Loss and gradients of a step, None where one is not finite; out of memory, they are computed anew in smaller
        passes."""
        config, train = seat.config, self.data.train
        rows = batch_rows(config.data_seed, seat.step, config.batch_size, len(train))
        num_tokens = int(train.targets[config.labels].lengths[rows].sum())

        def backward(pieces: Sequence[Piece]) -> tuple[Stack, float, Sequence[Tensor]]:
            if self._halted():
                raise Halted
            (piece,) = pieces
            with self.limits.making(seat.reader.backbone, *extent(pieces, train.sources.lengths)):
                batch = stack(pieces, train.sources, self.data.pad_id, self.backbone.device)
                nll = self._nll(seat, piece, batch) / num_tokens
                gradients = torch.autograd.grad(nll, list(seat.places.values()), materialize_grads=True)
                return batch, float(nll.detach()), gradients

        def all_passes() -> tuple[float, list[Tensor]]:
            loss, sums = 0.0, [torch.zeros_like(master) for master in seat.masters.values()]
            lanes, most, grain = self.limits.lanes, self.limits.tokens_per_pass, seat.reader.backbone.grain
            cut = passes([rows], [0], train.sources.lengths, most, lanes.count, grain=grain)
            for batch, nll, gradients in lanes.run(backward, cut):
                loss += nll
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient
                del gradients  # before the next pass makes its own, where there is one lane
                self._tally.add(batch)
            return loss, sums

        loss, gradients = self.limits.keep(seat.reader.backbone, all_passes)
        finite = isfinite(loss) and all(bool(each.isfinite().all()) for each in gradients)
        return loss, gradients if finite else None

    def _nll(self, seat: _Seat, piece: Piece, batch: Stack) -> Tensor:
        """Negative log-likelihood of a pass's targets, summed."""
        targets = pad(self.data.train.targets[seat.config.labels], piece.rows, self.data.pad_id)
        target_PT, target_mask_PT = map(torch.from_numpy, targets)
        embeds_PWD = seat.reader.embed(self._no_prompt(seat), batch)
        nll_PT = seat.reader.backbone.target_nll(
            embeds_PWD, batch.mask_PW, moved(target_PT, self.backbone.device), target_mask_PT
        )
        return nll_PT.sum(dtype=self._dtype)

    def _update(self, seat: _Seat, gradients: list[Tensor] | None) -> None:
        """Clip and update; a trial whose loss or gradient is not finite keeps its numbers and is marked."""
        if seat.diverged or gradients is None:
            seat.diverged = True
            return
        masters, config = list(seat.masters.values()), seat.config
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(masters, config.clip_norm)
        seat.optimizer.param_groups[0]["lr"] = config.offset_lr * config.rate_factor(seat.step)
        seat.optimizer.step()
        seat.optimizer.zero_grad()
        _write(seat.places, seat.masters)

    # -- seats ---------------------------------------------------------------------------------------------------

    def _seated(self, config: TrialConfig, sizes: Sizes, state: TrialState | None) -> _Seat:
        """A trial on a copy of its own."""
        private, places = fitted(
            self.backbone, self.method, sizes, config.seed, None if state is None else state.tensors
        )
        masters: dict[str, Tensor] = dict(places)
        for name, place in places.items():
            if place.dtype != self._dtype:
                exact = place.detach() if state is None else state.tensors[name].to(place.device)
                masters[name] = exact.to(self._dtype, copy=True).requires_grad_()
        # Fused, it needs no memory of its own, so an update is made whole.
        optimizer = torch.optim.AdamW(
            masters.values(),
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        step = 0 if state is None else state.step
        for name, master in masters.items():
            first, second = (torch.zeros_like(master, requires_grad=False) for _ in range(2))
            if state is not None:
                first.copy_(state.first[name])
                second.copy_(state.second[name])
            count = torch.tensor(float(step), device=master.device)
            optimizer.state[master] = {"step": count, "exp_avg": first, "exp_avg_sq": second}
        told = (0.0, 0) if state is None else (state.loss_sum, state.loss_count)
        return _Seat(config, sizes, self._reader_over(private), places, masters, optimizer, step, *told)

    def _no_prompt(self, seat: _Seat) -> Trained:
        return no_prompt(seat.reader.backbone, seat.sizes, seat.config.labels, self._dtype)

    def _seat(self, slot: int) -> _Seat:
        seat = self._seats[slot]
        assert seat is not None, f"slot {slot} is empty"
        return seat


def fitted(
    backbone: Backbone, method: InModel, sizes: Sizes, seed: int, tensors: Mapping[str, Tensor] | None = None
) -> tuple[Backbone, dict[str, Parameter]]:
    """A private copy of a backbone with a method in it, and its trained parameters, at their start or as given.

    Raises:
        MethodError: The tensors are not those of the method on this model; names the first that is not.
    """
    private, places = method.attached(backbone.model, sizes, seed)
    driven = backbone.over(private)
    for place in places.values():
        place.requires_grad_()
    if tensors is not None:
        for name in (*places, *tensors):
            expected = tuple(places[name].shape) if name in places else "nothing"
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            if expected != found:
                raise MethodError(f"{name}: expected shape {expected}, found {found}")
        _write(places, tensors)
    return driven, places


def no_prompt(backbone: Backbone, sizes: Sizes, labels: str, dtype: torch.dtype) -> Trained:
    """What `Reader` is given where nothing stands before the source."""
    prompt = torch.zeros(0, backbone.d_model, dtype=dtype)
    return Trained.of_one({"prompt": prompt}, Sizes(0, 0, sizes.d_model, sizes.source_length), labels, backbone.device)


@torch.no_grad()
def _write(places: Mapping[str, Parameter], numbers: Mapping[str, Tensor]) -> None:
    """Put trained numbers into the model, rounded to its dtype."""
    for name, place in places.items():
        if numbers[name] is not place:
            place.copy_(numbers[name])
