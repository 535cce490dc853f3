"""One trial's settings: everything its result depends on besides the backbone and the task."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adept_tune.methods.base import Sizes
from adept_tune.methods.start import PUBLISHED_TEXT, PromptInit

PositiveRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]

PUBLISHED_WARMUP_STEPS = 500


class TrialConfig(BaseModel):
    """Settings of one trial. Defaults are what produced the published numbers, where those are known.

    Attributes:
        prompt_length: Virtual tokens, m.
        width: Bottleneck width or rank, r.
        prompt_lr: Peak learning rate of the prompt.
        offset_lr: Peak learning rate of everything else that is trained.
        batch_size: Rows of an optimizer step.
        max_steps: Optimizer steps to the end of the schedule.
        warmup_steps: Steps of linear warm-up; None is 500 or a sixth of max_steps, whichever is less.
        clip_norm: Largest norm of the gradient over all trained tensors together; 0 switches clipping off.
        weight_decay: Decoupled, times the learning rate. Published runs: 0 in effect.
        dropout: Chance that a bottleneck unit is dropped in training.
        beta1: Decay of the gradient's mean.
        beta2: Decay of the squared gradient's mean.
        epsilon: Added to the root of the second moment.
        prompt_init: How the prompt starts.
        prompt_text: The text it starts from.
        wide_start: Reading matrix within 1/sqrt(r) instead of 1/sqrt(fan-in).
        labels: Which texts stand for the labels.
        seed: Of initial values and dropout.
        data_seed: Of the order of the rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_length: int = Field(default=60, ge=0)
    width: int = Field(default=19, ge=0)
    prompt_lr: PositiveRate = 0.3
    offset_lr: PositiveRate = 1e-4
    batch_size: int = Field(default=32, ge=1)
    max_steps: int = Field(default=30_000, ge=1)
    warmup_steps: int | None = Field(default=None, ge=0)
    clip_norm: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    dropout: Decay = 0.1
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: PositiveRate = 1e-6
    prompt_init: PromptInit = "text"
    prompt_text: str = Field(default=PUBLISHED_TEXT, min_length=1)
    wide_start: bool = True
    labels: Literal["digits", "words"] = "digits"
    seed: int = Field(default=0, ge=0, lt=2**32)
    data_seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _warmup_within_steps(self) -> "TrialConfig":
        if self.warmup_steps is not None and self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} exceeds max_steps={self.max_steps}")
        return self

    def sizes(self, d_model: int, source_length: int) -> Sizes:
        """The trial's sizes on a backbone and a task."""
        return Sizes(self.prompt_length, self.width, d_model, source_length)

    def rate_factor(self, step: int) -> float:
        """Share of the peak learning rate at a step, counted from 0: linear warm-up, then linear decay to zero.

        The first update has rate zero where there is a warm-up, as in transformers' linear schedule.
        """
        warmup = self.warmup_steps
        if warmup is None:
            warmup = min(PUBLISHED_WARMUP_STEPS, self.max_steps // 6)
        if step < warmup:
            return step / warmup
        return max(0.0, (self.max_steps - step) / max(1, self.max_steps - warmup))
