"""The face of every method that trains inside the model, on a copy of it that is one trial's own.

Its tensors are parameters of that copy: the model's own weights, made private, or new modules beside them. What is not
trained is shared with the pristine model, so a trial of LoRA costs no second copy of the weights.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import Parameter

from adept_tune.errors import MethodError
from adept_tune.methods.base import NUM_REPORTS, Sizes


@dataclass(frozen=True, eq=False)
class InModel(ABC):
    """Trains inside the model: one trial a slot, on a private copy of the backbone.

    Attributes:
        name: What the command line calls it.
        parameters: Names a search space uses for the method's own settings, and the trial setting each one is.
        num_reports: How often a trial reports its state on its way; seldom where a state is whole models.
        skeleton: The model that trials are counted on, its tensors on torch's meta device; None where none is known.
    """

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, str]]
    num_reports: ClassVar[int] = NUM_REPORTS
    skeleton: Any = None

    def on(self, skeleton: Any) -> Self:
        """The method with a model to count on."""
        return replace(self, skeleton=skeleton)

    def num_parameters(self, sizes: Sizes) -> int:
        """Exact number of trained numbers: what is put into the skeleton is counted."""
        assert self.skeleton is not None, f"{self.name}: no model to count on"
        _, places = self.attached(self.skeleton, sizes, seed=0)
        return sum(place.numel() for place in places.values())

    def attached(self, model: Any, sizes: Sizes, seed: int) -> tuple[Any, dict[str, Parameter]]:
        """A private copy of a model with the method in it.

        Args:
            model: A frozen transformers model; nothing of it is changed.
            sizes: The trial's sizes.
            seed: Of initial values.

        Returns:
            The copy, and its trained parameters by their names in it, with slashes for dots.

        Raises:
            MethodError: A size that the method needs is 0.
        """
        for name, size in self.parameters.items():
            if getattr(sizes, size, 1) < 1:
                raise MethodError(f"method {self.name}: {name}: {size}=0 trains nothing; give at least 1")
        owned = {id(parameter) for parameter in self.owned(model)}
        every = (*model.parameters(), *model.buffers())
        private = copy.deepcopy(model, {id(tensor): tensor for tensor in every if id(tensor) not in owned})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            places = self.attach(private, sizes)
        return private, {name.replace(".", "/"): place for name, place in places.items()}

    def owned(self, model: Any) -> Iterable[Parameter]:
        """Parameters of a model that the method trains, and that a copy must therefore have for itself."""
        return ()

    @abstractmethod
    def attach(self, model: Any, sizes: Sizes) -> dict[str, Parameter]:
        """Put the method into a private copy, on its device and in its dtype.

        Returns:
            What is trained, by its name in the copy. Random numbers are drawn from torch's own generator, which
            `attached` has seeded.
        """

    def peft_files(
        self, model_type: str, sizes: Sizes, tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The method as PEFT keeps it: fields of its configuration, and tensors; None where PEFT does not have it.

        Args:
            model_type: transformers' name of the architecture.
            sizes: The trial's sizes.
            tensors: What was trained, by the names that `attached` gives.
        """
        return None


def injected(model: Any, config: Any, mark: str) -> dict[str, Parameter]:
    """Let PEFT put a tuner's layers into a model, and give the parameters that carry a mark in their names."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model)
    return {
        name.replace(".default", ""): parameter for name, parameter in model.named_parameters() if f".{mark}" in name
    }


def peft_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors of an injected tuner by the names that PEFT keeps them under."""
    return {f"base_model.model.{name.replace('/', '.')}": tensor.float() for name, tensor in tensors.items()}
