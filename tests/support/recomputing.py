"""What gradient checkpointing must hold for any backbone."""

import torch
from torch import Tensor

from adept_tune.backbones.base import Backbone


def assert_recomputing_keeps_less(backbone: Backbone, embeds: Tensor, *others: Tensor) -> None:
    """The gradient of a training pass is bitwise the same, less is kept for it, and the model is as it was."""

    def passed(recomputing: bool) -> tuple[Tensor, int]:
        ours, kept = embeds.clone().requires_grad_(), []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with backbone.recomputing(recomputing):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = backbone.target_nll(ours, *others).sum()
                of_forward = sum(kept)
            return torch.autograd.grad(loss, ours)[0], of_forward

    (gradient, whole), (again, less) = passed(False), passed(True)
    assert torch.equal(gradient, again)
    assert less < 0.7 * whole
    assert not any(module.training for module in backbone.model.modules())
    assert backbone.may_recompute
