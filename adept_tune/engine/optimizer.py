"""AdamW, clipping and schedules of all trials of a stack in a handful of operations.

Shape legend: K trials, N flat columns of a trial's tensors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rates:
    """What an update needs to know of each trial, one entry a trial, in the dtype of the parameters.

    Attributes:
        prompt_K: Learning rate of the prompt at this step.
        offset_K: Learning rate of the rest at this step.
        step_K: Updates done, this one included.
        beta1_K: Decay of the first moment.
        beta2_K: Decay of the second moment.
        epsilon_K: Added to the root of the second moment.
        weight_decay_K: Decoupled decay.
        clip_norm_K: Largest gradient norm; infinity where a trial does not clip.
    """

    prompt_K: Tensor
    offset_K: Tensor
    step_K: Tensor
    beta1_K: Tensor
    beta2_K: Tensor
    epsilon_K: Tensor
    weight_decay_K: Tensor
    clip_norm_K: Tensor


def clip(gradient_KN: Tensor, clip_norm_K: Tensor) -> Tensor:
    """Scale each trial's gradient to its norm limit, as `torch.nn.utils.clip_grad_norm_` does for one model."""
    norm_K: Tensor = gradient_KN.norm(dim=1)
    return gradient_KN * (clip_norm_K / (norm_K + 1e-6)).clamp(max=1.0)[:, None]


def adamw(
    params_KN: Tensor,
    gradient_KN: Tensor,
    first_KN: Tensor,
    second_KN: Tensor,
    prompt_columns_N: Tensor,
    rates: Rates,
) -> tuple[Tensor, Tensor, Tensor]:
    """One AdamW update of every trial, equal to `torch.optim.AdamW` with two parameter groups a trial.

    Args:
        params_KN: Trained numbers.
        gradient_KN: Their clipped gradients.
        first_KN: First moments.
        second_KN: Second moments.
        prompt_columns_N: Bool, the columns that move at the prompt's rate.
        rates: What differs between the trials.

    Returns:
        New parameters, first and second moments; the inputs are not changed.

    Source: Loshchilov and Hutter, ICLR 2019; epsilon outside the bias-corrected root, as torch has it.
    """
    first_KN = torch.lerp(first_KN, gradient_KN, (1 - rates.beta1_K)[:, None])
    second_KN = second_KN * rates.beta2_K[:, None] + gradient_KN.square() * (1 - rates.beta2_K)[:, None]
    rate_KN = torch.where(prompt_columns_N, rates.prompt_K[:, None], rates.offset_K[:, None])
    correction1_K = 1 - rates.beta1_K**rates.step_K
    correction2_K = 1 - rates.beta2_K**rates.step_K
    root_KN = second_KN.sqrt() / correction2_K.sqrt()[:, None] + rates.epsilon_K[:, None]
    decayed_KN = params_KN * (1 - rate_KN * rates.weight_decay_K[:, None])
    return decayed_KN - rate_KN / correction1_K[:, None] * first_KN / root_KN, first_KN, second_KN
