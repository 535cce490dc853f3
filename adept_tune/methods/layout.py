"""Where each trained tensor of a stack lies in one flat vector a trial.

Optimizer, clipping and schedule then act on one `(trials, numbers)` matrix, a handful of kernels for any number of
trials; the methods see named views of it.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from adept_tune.methods.base import Method, Sizes


class Layout:
    """The places of a method's tensors for the widest prompt and bottleneck of a stack.

    Args:
        method: Whose tensors.
        widest: Capacity of each axis; every trial of the stack fits inside.
    """

    def __init__(self, method: Method, widest: Sizes) -> None:
        self.method = method
        self.widest = widest
        self._place: dict[str, tuple[int, tuple[int, ...]]] = {}
        start = 0
        for name, axes in method.axes.items():
            shape = widest.of(axes)
            self._place[name] = (start, shape)
            start += prod(shape)
        self.num_columns = start

    def views(self, flat_KN: Tensor) -> dict[str, Tensor]:
        """Named views `(trials, *capacity)` of a flat matrix; gradients flow through."""
        return {
            name: flat_KN[:, start : start + prod(shape)].view(flat_KN.shape[0], *shape)
            for name, (start, shape) in self._place.items()
        }

    def narrow(self, tensors: Mapping[str, Tensor], prompt_length: int, width: int) -> dict[str, Tensor]:
        """Cut the padding that no trial of a pass needs: prompts from the left, bottlenecks from the right."""
        return {
            name: self._cut(tensor, self.method.axes[name], prompt_length, width) for name, tensor in tensors.items()
        }

    def pack(self, tensors: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        """One trial's tensors of its own sizes as a flat vector with zeros in the padding."""
        reference = next(iter(tensors.values()))
        flat_N = torch.zeros(self.num_columns, dtype=reference.dtype, device=reference.device)
        for name, target in self.views(flat_N[None]).items():
            self._cut(target, self.method.axes[name], sizes.prompt_length, sizes.width)[0].copy_(tensors[name])
        return flat_N

    def unpack(self, flat_N: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        """One trial's tensors in its own sizes, as contiguous copies."""
        cut = self.narrow(self.views(flat_N[None]), sizes.prompt_length, sizes.width)
        return {name: tensor[0].clone(memory_format=torch.contiguous_format) for name, tensor in cut.items()}

    def prompt_columns(self, device: torch.device) -> Tensor:
        """Bool vector, true where a column moves at the prompt's learning rate."""
        columns_N = torch.zeros(self.num_columns, dtype=torch.bool, device=device)
        for name, (start, shape) in self._place.items():
            if self.method.rate[name] == "prompt":
                columns_N[start : start + prod(shape)] = True
        return columns_N

    @staticmethod
    def _cut(tensor: Tensor, axes: str, prompt_length: int, width: int) -> Tensor:
        for dim, axis in enumerate(axes, start=1):
            if axis == "M":
                tensor = tensor.narrow(dim, tensor.shape[dim] - prompt_length, prompt_length)
            elif axis == "R":
                tensor = tensor.narrow(dim, 0, width)
        return tensor
