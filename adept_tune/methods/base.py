"""The face of every input-side method, and what all of them share: the prepended soft prompt.

Shape legend: K trials, B rows of a trial, S source tokens, M prompt tokens, D embedding width, R bottleneck width.
An axis that differs between trials is padded to the widest of the stack: prompts on the left, bottlenecks on the
right. Padding is inert: a padded prompt row is masked, a padded bottleneck unit reads and writes zeros.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

Rate = Literal["prompt", "offset"]

NUM_REPORTS = 40  # of a trial: its loss and state are told at least every max_steps/40


@dataclass(frozen=True)
class Sizes:
    """The lengths of a trial's axes: m, r of the trial; d of its backbone; s of its task."""

    prompt_length: int
    width: int
    d_model: int
    source_length: int

    def of(self, axes: str) -> tuple[int, ...]:
        """Lengths of the axes named by their letters, e.g. ``"MD"``."""
        lengths = {"M": self.prompt_length, "R": self.width, "D": self.d_model, "S": self.source_length}
        return tuple(lengths[axis] for axis in axes)


@dataclass(frozen=True)
class Stacking:
    """What differs between the trials of one stack.

    Attributes:
        prompt_length_K: Real prompt tokens of each trial, int64.
        width_K: Real bottleneck units of each trial, int64.
        keep_KBSR: Dropout factors of the bottleneck, zero or 1/(1-p); None outside training.
    """

    prompt_length_K: Tensor
    width_K: Tensor
    keep_KBSR: Tensor | None = None


class Method(ABC):
    """An input adapter: trains a few tensors that change what the frozen backbone reads.

    Attributes:
        name: What the command line calls it.
        axes: Trained tensors in their stored order, each with the letters of its axes.
        rate: Which of the two learning rates moves each tensor.
        parameters: Names a search space uses for the method's own settings, and the trial setting each one is.
        has_dropout: Whether the method drops bottleneck units in training.
        num_reports: How often a trial reports its state on its way.
    """

    name: ClassVar[str]
    axes: ClassVar[Mapping[str, str]]
    rate: ClassVar[Mapping[str, Rate]]
    parameters: ClassVar[Mapping[str, str]]
    has_dropout: ClassVar[bool] = False
    num_reports: ClassVar[int] = NUM_REPORTS

    def num_parameters(self, sizes: Sizes) -> int:
        """Exact number of trained numbers."""
        return sum(prod(sizes.of(axes)) for axes in self.axes.values())

    @abstractmethod
    def width_within(self, budget: int, prompt_length: int, d_model: int, source_length: int) -> int | None:
        """Largest width whose parameters stay within a budget, given the prompt length.

        Returns:
            The width, 0 or more; None where not even width 0 fits, or where the method has no width to choose.
        """

    @abstractmethod
    def initial(
        self, sizes: Sizes, prompt_MD: Tensor, wide_start: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Tensors at step 0, where the offset is exactly zero.

        Args:
            sizes: The trial's sizes.
            prompt_MD: Initial prompt, `(prompt_length, d_model)`.
            wide_start: Draw the reading matrix within 1/sqrt(r), as the published code does, else 1/sqrt(fan-in).
            generator: The trial's own source of randomness, on the CPU.
        """

    @abstractmethod
    def shift(self, tensors: Mapping[str, Tensor], tokens_KBSD: Tensor, stacking: Stacking) -> Tensor:
        """Add the method's offset to every token embedding.

        Args:
            tensors: Stacked trained tensors, each `(trials, *axes)`.
            tokens_KBSD: Frozen embeddings.
            stacking: What differs between the trials.

        Returns:
            Same shape; equal to the input until the first update.
        """

    def forward(
        self, tensors: Mapping[str, Tensor], tokens_KBSD: Tensor, mask_KBS: Tensor, stacking: Stacking
    ) -> tuple[Tensor, Tensor]:
        """Shift the tokens and prepend the prompts.

        The prompt block is padded on its left, never between prompt and text, so that the distances which relative
        positions see are those of the trial alone.

        Args:
            tensors: Stacked trained tensors, each `(trials, *axes)`.
            tokens_KBSD: Frozen embeddings, padded on the right.
            mask_KBS: Bool, true where there is a token.
            stacking: What differs between the trials.

        Returns:
            Embeddings `(trials, rows, prompt + source, d_model)` and their bool mask.

        Source: ADePT (Tang et al., ICLR 2025), X' = [P; E + f(E)].
        """
        prompt_KMD = tensors["prompt"]
        num_trials, num_rows = tokens_KBSD.shape[:2]
        longest = prompt_KMD.shape[1]
        column_M = torch.arange(longest, device=tokens_KBSD.device)
        prompt_mask_KM = column_M >= longest - stacking.prompt_length_K[:, None]
        prompt_KBMD = prompt_KMD[:, None].expand(-1, num_rows, -1, -1)
        prompt_mask_KBM = prompt_mask_KM[:, None].expand(num_trials, num_rows, longest)
        shifted_KBSD = self.shift(tensors, tokens_KBSD, stacking)
        return torch.cat([prompt_KBMD, shifted_KBSD], dim=2), torch.cat([prompt_mask_KBM, mask_KBS], dim=2)


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """Float32 numbers drawn uniformly from [-bound, bound)."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
