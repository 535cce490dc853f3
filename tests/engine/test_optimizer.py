"""AdamW, clipping and schedule against torch's and transformers' own, and a whole engine against a plain loop."""

from math import inf
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from adept_tune.engine.config import TrialConfig
from adept_tune.engine.optimizer import Rates, adamw, clip
from adept_tune.engine.order import batch_rows
from tests.support.data import made_data, made_engine
from tests.support.tiny import tiny_t5

NUM_PROMPT, NUM_OFFSET, NUM_STEPS = 10, 14, 30
TRIALS = [
    {},
    {"prompt_lr": 0.5, "offset_lr": 1e-2, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-8, "warmup_steps": 0},
    {"weight_decay": 0.1, "clip_norm": 0.0, "warmup_steps": 10},
    {"weight_decay": 0.01, "clip_norm": 0.05, "beta1": 0.0, "epsilon": 1e-3},
    {"clip_norm": 5.0, "beta2": 0.5, "offset_lr": 1.0, "warmup_steps": 30},
    {"max_steps": 20},
]


def trial_config(**settings: Any) -> TrialConfig:
    return TrialConfig(**{"max_steps": NUM_STEPS, **settings})


def gradient_of(params_KN: Tensor, step: int) -> Tensor:
    """Of a bowl, plus noise, and now and then huge or nothing: whether a step is clipped differs."""
    noise_KN = torch.randn(params_KN.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return (0.3 * params_KN + noise_KN) * [1.0, 0.01, 100.0, 1.0, 0.0][step % 5]


def rates_at(configs: list[TrialConfig], step: int) -> Rates:
    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return Rates(
        column([c.prompt_lr * c.rate_factor(step) for c in configs]),
        column([c.offset_lr * c.rate_factor(step) for c in configs]),
        column([step + 1.0] * len(configs)),
        column([c.beta1 for c in configs]),
        column([c.beta2 for c in configs]),
        column([c.epsilon for c in configs]),
        column([c.weight_decay for c in configs]),
        column([c.clip_norm or inf for c in configs]),
    )


class TorchTrial:
    """One trial as PyTorch and transformers train it: two parameter groups, clipping, linear schedule."""

    def __init__(self, config: TrialConfig, prompt: list[nn.Parameter], offset: list[nn.Parameter]) -> None:
        self.parameters = [*prompt, *offset]
        self._clip_norm = config.clip_norm
        self._optimizer = torch.optim.AdamW(
            [{"params": prompt, "lr": config.prompt_lr}, {"params": offset, "lr": config.offset_lr}],
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )
        warmup = min(500, config.max_steps // 6) if config.warmup_steps is None else config.warmup_steps
        self._schedule = get_linear_schedule_with_warmup(self._optimizer, warmup, config.max_steps)

    def update(self) -> None:
        """One step from the gradients that stand in the parameters."""
        if self._clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self._clip_norm)
        self._optimizer.step()
        self._schedule.step()


def test_adamw_of_a_stack_equals_torch_trial_by_trial() -> None:
    configs = [trial_config(**settings) for settings in TRIALS]
    source = torch.Generator().manual_seed(0)
    params = torch.randn(len(configs), NUM_PROMPT + NUM_OFFSET, generator=source, dtype=torch.float64)
    first, second = torch.zeros_like(params), torch.zeros_like(params)
    is_prompt = torch.arange(NUM_PROMPT + NUM_OFFSET) < NUM_PROMPT
    theirs = [
        TorchTrial(config, [nn.Parameter(row[:NUM_PROMPT].clone())], [nn.Parameter(row[NUM_PROMPT:].clone())])
        for config, row in zip(configs, params, strict=True)
    ]
    start = params.clone()
    for step in range(NUM_STEPS):
        gradient = gradient_of(params, step)
        for trial, row in zip(theirs, gradient, strict=True):
            trial.parameters[0].grad, trial.parameters[1].grad = row[:NUM_PROMPT].clone(), row[NUM_PROMPT:].clone()
            trial.update()
        rates = rates_at(configs, step)
        params, first, second = adamw(params, clip(gradient, rates.clip_norm_K), first, second, is_prompt, rates)
        expected = torch.stack([torch.cat(list(trial.parameters)) for trial in theirs]).detach()
        torch.testing.assert_close(params, expected, rtol=0, atol=1e-12)
    assert ((params - start).abs() > 1e-4).any(1).all()  # every trial has moved


def test_adamw_changes_none_of_its_inputs() -> None:
    inputs = [torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    before = [tensor.clone() for tensor in inputs]
    adamw(*inputs, torch.arange(6) < 2, rates_at([trial_config(warmup_steps=0)] * 2, 0))
    assert all(torch.equal(tensor, old) for tensor, old in zip(inputs, before, strict=True))


@pytest.mark.parametrize("limit", [0.1, 1.0, 50.0])
def test_clip_equals_torch_row_by_row(limit: float) -> None:
    gradient_KN = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradient_KN *= torch.tensor([[0.001], [1.0], [1000.0]])
    clipped_KN = clip(gradient_KN, torch.full((3,), limit, dtype=torch.float64))
    for mine, row in zip(clipped_KN, gradient_KN, strict=True):
        parameter = nn.Parameter(torch.zeros(40, dtype=torch.float64))
        parameter.grad = row.clone()
        nn.utils.clip_grad_norm_([parameter], limit)
        torch.testing.assert_close(mine, parameter.grad, rtol=0, atol=1e-12)


def test_clip_to_infinity_is_none() -> None:
    gradient_KN = torch.randn(2, 40) * 1e6
    assert torch.equal(clip(gradient_KN, torch.full((2,), inf)), gradient_KN)


@pytest.mark.parametrize(
    ("max_steps", "warmup_steps"), [(60, 10), (60, 0), (1, 0), (1, 1), (7, 7), (100, 99), (30_000, 500)]
)
def test_rate_factor_equals_the_schedule_of_transformers(max_steps: int, warmup_steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    (factor,) = get_linear_schedule_with_warmup(optimizer, warmup_steps, max_steps).lr_lambdas
    config = TrialConfig(max_steps=max_steps, warmup_steps=warmup_steps)
    for step in {*range(0, max_steps + 2, max(1, max_steps // 200)), warmup_steps, max_steps}:
        assert config.rate_factor(step) == pytest.approx(factor(step), rel=0, abs=1e-15)


@pytest.mark.parametrize(
    ("max_steps", "warmup"), [(30_000, 500), (3_000, 500), (2_999, 499), (60, 10), (6, 1), (5, 0), (1, 0)]
)
def test_warmup_left_open_is_500_steps_or_a_sixth_if_that_is_fewer(max_steps: int, warmup: int) -> None:
    left_open, given = TrialConfig(max_steps=max_steps), TrialConfig(max_steps=max_steps, warmup_steps=warmup)
    steps = [*range(min(max_steps, 600)), max_steps - 1, max_steps]
    assert [left_open.rate_factor(step) for step in steps] == [given.rate_factor(step) for step in steps]
    assert left_open.rate_factor(warmup) == 1.0
    assert warmup == 0 or left_open.rate_factor(warmup - 1) < 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt_length": -1}, "prompt_length"),
        ({"width": -1}, "width"),
        ({"width": 1.5}, "width"),
        ({"prompt_lr": 0.0}, "prompt_lr"),
        ({"prompt_lr": float("nan")}, "prompt_lr"),
        ({"offset_lr": -1e-4}, "offset_lr"),
        ({"offset_lr": float("inf")}, "offset_lr"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_steps": 0}, "max_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"max_steps": 10, "warmup_steps": 11}, "warmup_steps=11 exceeds max_steps=10"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"clip_norm": float("inf")}, "clip_norm"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta2": -0.5}, "beta2"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"prompt_init": "zeros"}, "prompt_init"),
        ({"prompt_text": ""}, "prompt_text"),
        ({"labels": "letters"}, "labels"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"data_seed": 2**32}, "data_seed"),
        ({"learning_rate": 0.3}, "learning_rate"),
    ],
)
def test_setting_out_of_range_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrialConfig(**settings)


def test_all_faults_of_a_config_are_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        TrialConfig(prompt_lr=-1.0, dropout=2.0, batch_size=0)
    assert {fault["loc"][0] for fault in caught.value.errors()} == {"prompt_lr", "dropout", "batch_size"}


def test_config_is_frozen_and_round_trips_through_json() -> None:
    config = TrialConfig(prompt_length=7, prompt_lr=0.1 + 0.2, warmup_steps=3, labels="words", seed=2**32 - 1)
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.width = 3  # type: ignore[misc]


class PlainAdept(nn.Module):
    """ADePT as one would write it for one trial: `nn.Linear` and a T5 of transformers fed by `inputs_embeds`."""

    def __init__(self, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.t5 = tiny_t5(dtype=torch.float64).requires_grad_(False)
        self.prompt = nn.Parameter(start["prompt"].clone())
        d_model, width = start["ffn_w1"].shape
        self.inward, self.outward = nn.Linear(d_model, width).double(), nn.Linear(width, d_model).double()
        with torch.no_grad():
            for linear, weight, bias in (
                (self.inward, start["ffn_w1"], start["ffn_b1"]),
                (self.outward, start["ffn_w2"], start["ffn_b2"]),
            ):
                linear.weight.copy_(weight.T)
                linear.bias.copy_(bias)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch."""
        tokens = self.t5.get_input_embeddings()(ids)
        tokens = tokens + self.outward(torch.relu(self.inward(tokens)))
        embeds = torch.cat([self.prompt.expand(len(ids), -1, -1), tokens], dim=1)
        seen = torch.cat([torch.ones(len(ids), len(self.prompt), dtype=torch.long), mask], dim=1)
        loss: Tensor = self.t5(inputs_embeds=embeds, attention_mask=seen, labels=labels).loss
        return loss


def padded(rows: list[list[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def test_engine_steps_equal_a_plain_torch_training_loop() -> None:
    settings = {"labels": "words", "weight_decay": 0.01, "clip_norm": 0.5, "max_steps": 20, "dropout": 0.0}
    config = TrialConfig(prompt_length=4, width=3, batch_size=6, offset_lr=1e-2, data_seed=1, seed=3, **settings)
    engine = made_engine("adept", dtype=torch.float64)
    slot, company = engine.join(config), engine.join(config.model_copy(update={"prompt_length": 7, "batch_size": 2}))
    plain = PlainAdept(dict(engine.state(slot).tensors))
    offset = [*plain.inward.parameters(), *plain.outward.parameters()]
    theirs = TorchTrial(config, [plain.prompt], offset)
    train = made_data().train
    for step in range(15):
        rows = batch_rows(1, step, 6, len(train))
        ids = padded([train.sources[i].tolist() for i in rows], 0)
        labels = padded([train.targets["words"][i].tolist() for i in rows], -100)
        loss = plain(ids, (ids != 0).long(), labels)
        plain.zero_grad()
        loss.backward()
        theirs.update()
        engine.step([slot, company])
        assert engine.train_loss(slot) == pytest.approx(float(loss.detach()), abs=1e-9)
    state = engine.state(slot)
    trained = [plain.prompt, plain.inward.weight.T, plain.inward.bias, plain.outward.weight.T, plain.outward.bias]
    for tensor, expected in zip(state.tensors.values(), trained, strict=True):
        torch.testing.assert_close(tensor, expected.detach(), rtol=0, atol=1e-9)
