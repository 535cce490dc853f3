"""Replays the backbone's part of a pass on a GPU.

A pass of a few thousand tokens is some thousand operations, and the host takes longer to launch them than the GPU to do
them. A CUDA graph launches all of a shape at once. Shapes recur because a GPU's passes have equal numbers of rows, as
wide as a multiple of eight (`packing`). A shape seen for the second time is captured, so one that never recurs costs
nothing.

Shape legend: P rows of a pass, W tokens of a row, T target tokens, D embedding width.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adept_tune.backbones.base import Backbone, moved
from adept_tune.engine.memory import ran_out

MOST_GRAPHS = 64

Outputs = tuple[Tensor, Tensor]
Shape = tuple[torch.Size, torch.Size]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]


def nll_and_gradient(
    backbone: Backbone,
    embeds_PWD: Tensor,
    mask_PW: Tensor,
    target_PT: Tensor,
    target_mask_PT: Tensor,
    counted_PT: Tensor | None = None,
) -> Outputs:
    """Losses `(P, T)` of a pass, see `Backbone.target_nll`, and the gradient of their sum in the embeddings.

    Where the device is told which of them count, the others are zero, though they were made.
    """
    leaf_PWD = embeds_PWD.detach().requires_grad_()
    nll_PT = backbone.target_nll(leaf_PWD, mask_PW, target_PT, target_mask_PT)
    if counted_PT is not None:
        nll_PT = nll_PT.where(counted_PT, nll_PT.new_zeros(()))
    (gradient_PWD,) = torch.autograd.grad(nll_PT.sum(), leaf_PWD)
    return nll_PT.detach(), gradient_PWD


@dataclass(frozen=True)
class _Graph:
    """A captured pass: where it reads, what runs it, where it writes."""

    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    outputs: Outputs


class PassGraphs:
    """Passes of one backbone, captured by their shapes; the longest unused goes first.

    Args:
        backbone: Whose passes; nothing of it may be changed.
        capture: Captures what a function does to a GPU: gives what does it again, and where that writes.
        most: Graphs that are kept.
    """

    def __init__(self, backbone: Backbone, capture: Capture | None = None, most: int = MOST_GRAPHS) -> None:
        self._backbone = backbone
        self._given, self._most = capture, most
        self._capture = capture or _capture_into_a_pool()
        self._graphs: OrderedDict[Shape, _Graph] = OrderedDict()
        self._seen: OrderedDict[Shape, None] = OrderedDict()  # once; they are not worth a graph yet
        self._refused: set[Shape] = set()
        self._room: dict[str, Tensor] = {}
        self._off = False

    def forget(self) -> bool:
        """Give up what was captured, and its memory. Returns whether there was anything."""
        held = bool(self._graphs)
        self._graphs.clear()
        self._room.clear()
        self._capture = self._given or _capture_into_a_pool()  # a pool that lost all its graphs takes no more
        return held

    def run(self, embeds_PWD: Tensor, mask_PW: Tensor, target_PT: Tensor, target_mask_PT: Tensor) -> Outputs:
        """See `nll_and_gradient`; what it gives is to be used before the next run, which may write there."""
        given = embeds_PWD.detach().to(self._backbone.dtype), mask_PW, target_PT
        shape = embeds_PWD.shape, target_PT.shape
        if shape in self._seen and not self._off:
            del self._seen[shape]
            self._captured(shape, *given)
        graph = self._graphs.get(shape)
        if graph is None:
            if shape not in self._refused:
                self._seen[shape] = None
                _keep_last(self._seen, self._most)
            return nll_and_gradient(self._backbone, embeds_PWD, mask_PW, target_PT, target_mask_PT)
        self._graphs.move_to_end(shape)
        for place, tensor in zip(graph.inputs, (*given, moved(target_mask_PT, embeds_PWD.device)), strict=True):
            place.copy_(tensor)
        graph.replay()
        nll_PT, gradient_PWD = graph.outputs
        return nll_PT, gradient_PWD.to(embeds_PWD.dtype)

    def _captured(self, shape: Shape, embeds_PWD: Tensor, mask_PW: Tensor, target_PT: Tensor) -> None:
        """Capture passes of this shape, or find that there is no memory for it, or that the GPU refuses any."""
        inputs = (
            self._place("embeds", embeds_PWD).copy_(embeds_PWD),
            self._place("mask", mask_PW).copy_(mask_PW),
            self._place("target", target_PT).copy_(target_PT),
            self._place("real", target_PT, torch.bool).fill_(True),
        )
        written_PWD = self._place("gradient", embeds_PWD)
        every = torch.ones(target_PT.shape, dtype=torch.bool)

        def compute() -> Outputs:
            nll_PT, gradient_PWD = nll_and_gradient(self._backbone, *inputs[:3], every, inputs[3])
            return nll_PT, written_PWD.copy_(gradient_PWD)

        try:
            self._graphs[shape] = _Graph(inputs, *self._capture(compute))
            _keep_last(self._graphs, self._most)
        except Exception as error:  # whatever CUDA makes of an operation that it cannot capture
            self.forget()
            self._refused.add(shape)
            if not ran_out(error):
                self._off = True
                warnings.warn(f"passes are launched one by one from here on: {error}", stacklevel=2)

    def _place(self, name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Where all graphs read or write one thing, each as much as its shape needs."""
        room, dtype = self._room.get(name), dtype or like.dtype
        if room is None or room.numel() < like.numel():
            self._room[name] = room = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return room[: like.numel()].view(like.shape)


def _keep_last(shapes: OrderedDict[Shape, Any], most: int) -> None:
    if len(shapes) > most:
        shapes.popitem(last=False)


def _capture_into_a_pool() -> Capture:
    """Capture into memory that all graphs share, since no two of them run at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(compute: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = compute()
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own
        return graph.replay, outputs

    return capture
