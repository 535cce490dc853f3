"""The engine's contract: fused equals alone, states round-trip exactly, a bad trial hurts no neighbour."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adept_tune.engine.config import TrialConfig
from adept_tune.engine.order import batch_rows
from adept_tune.engine.state import TrialState
from adept_tune.errors import MethodError
from tests.support.data import made_engine
from tests.support.tiny import lively_t5

MIXED = [
    # (steps at which the trial joins and leaves, its settings)
    (0, 50, {"prompt_length": 0, "width": 16, "batch_size": 3, "prompt_lr": 0.3, "offset_lr": 1e-2}),
    (0, 20, {"prompt_length": 20, "width": 1, "batch_size": 8, "prompt_lr": 0.05, "offset_lr": 1e-3}),
    (5, 50, {"prompt_length": 7, "width": 3, "batch_size": 5, "labels": "words", "clip_norm": 0.1}),
    (10, 40, {"prompt_length": 3, "width": 5, "batch_size": 4, "prompt_init": "vocabulary"}),
    (25, 50, {"prompt_length": 12, "width": 2, "batch_size": 6, "prompt_init": "normal", "wide_start": False}),
    (30, 50, {"prompt_length": 1, "width": 9, "batch_size": 8, "weight_decay": 0.1, "warmup_steps": 0}),
]


def config(seed: int, dropout: float = 0.0, **settings) -> TrialConfig:
    base = {"prompt_length": 4, "width": 3, "max_steps": 60, "batch_size": 4, "seed": seed, "data_seed": seed % 2}
    return TrialConfig(**(base | {"dropout": dropout} | settings))


def run_alone(method: str, dtype: torch.dtype, trial: TrialConfig, num_steps: int):
    engine = made_engine(method, num_slots=1, dtype=dtype)
    slot, losses = engine.join(trial), []
    for _ in range(num_steps):
        engine.step([slot])
        losses.append(engine.train_loss(slot))
    return losses, engine.state(slot)


@pytest.mark.parametrize("method", ["adept", "dept", "prompt-tuning"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tokens_per_pass", [None, 120, 1])
def test_fused_equals_alone_whoever_joins_or_leaves(method, dtype, tokens_per_pass):
    if method == "prompt-tuning":
        plan = [(a, b, s | {"prompt_length": max(s["prompt_length"], 1)}) for a, b, s in MIXED]
    else:
        plan = MIXED
    trials = [config(i, dropout=0.0, **settings) for i, (_, _, settings) in enumerate(plan)]
    engine = made_engine(method, num_slots=4, dtype=dtype, tokens_per_pass=tokens_per_pass)
    slots: dict[int, int] = {}
    losses: dict[int, list[float]] = {i: [] for i in range(len(trials))}
    states: dict[int, TrialState] = {}
    for step in range(50):
        for i, (_, leaves, _) in enumerate(plan):
            if step == leaves:
                states[i] = engine.state(slots[i])
                engine.leave(slots.pop(i))
        for i, (joins, _, _) in enumerate(plan):
            if step == joins and len(slots) < 4:
                slots[i] = engine.join(trials[i])
        engine.step(list(slots.values()))
        for i, slot in slots.items():
            losses[i].append(engine.train_loss(slot))
    states |= {i: engine.state(slot) for i, slot in slots.items()}

    assert len(states) == 5  # one of the six found all slots taken
    for i, state in states.items():
        alone, alone_state = run_alone(method, dtype, trials[i], len(losses[i]))
        if dtype == torch.float64:
            np.testing.assert_allclose(losses[i], alone, rtol=0, atol=1e-8)
            for name, tensor in state.tensors.items():
                torch.testing.assert_close(tensor, alone_state.tensors[name], rtol=0, atol=1e-8)
        else:
            np.testing.assert_allclose(losses[i], alone, rtol=0, atol=1e-3)


def test_fused_equals_alone_with_dropout_on():
    trials = [config(i, dropout=0.1 * (i % 3), **settings) for i, (_, _, settings) in enumerate(MIXED)]
    engine = made_engine("adept", dtype=torch.float64)
    slots = [engine.join(trial) for trial in trials]
    for _ in range(20):
        engine.step(slots)
    for slot, trial in zip(slots, trials, strict=True):
        _, alone = run_alone("adept", torch.float64, trial, 20)
        for name, tensor in engine.state(slot).tensors.items():
            torch.testing.assert_close(tensor, alone.tensors[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["adept", "dept", "prompt-tuning"])
def test_training_lowers_the_loss_and_leaves_the_backbone_bitwise_unchanged(method):
    engine = made_engine(method)
    before = {name: p.clone() for name, p in engine.backbone.model.named_parameters()}
    slot = engine.join(config(0, max_steps=200, prompt_lr=0.3, offset_lr=1e-2, batch_size=16))
    losses = []
    for _ in range(4):
        for _ in range(50):
            engine.step([slot])
        losses.append(engine.train_loss(slot))
    assert losses[-1] < losses[0] - 0.3
    for name, parameter in engine.backbone.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("method", ["adept", "dept", "prompt-tuning"])
def test_state_out_and_in_on_a_fresh_engine_goes_on_bitwise(method):
    trials = [config(i, dropout=0.1, prompt_length=3 + i, width=2 + i) for i in range(3)]

    def advance(engine, slots, steps):
        for _ in range(steps):
            engine.step(slots)
        return [engine.state(slot).to_bytes() for slot in slots]

    straight = made_engine(method)
    slots = [straight.join(trial) for trial in trials]
    saved = advance(straight, slots, 15)
    expected = advance(straight, slots, 10)

    resumed = made_engine(method)
    states = [TrialState.from_bytes(blob, "test") for blob in saved]
    slots = [resumed.join(trial, state) for trial, state in zip(trials, states, strict=True)]
    assert advance(resumed, slots, 10) == expected


def test_same_seed_twice_is_bitwise_equal():
    blobs = [run_alone("adept", torch.float32, config(3, dropout=0.1), 10)[1].to_bytes() for _ in range(2)]
    assert blobs[0] == blobs[1]


def test_a_trial_that_diverges_keeps_its_numbers_and_disturbs_no_neighbour():
    healthy = [config(i) for i in range(3)]
    engine, reference = made_engine(), made_engine()
    slots = [engine.join(trial) for trial in healthy]
    sick = engine.join(config(9, prompt_length=2))
    reference_slots = [reference.join(trial) for trial in healthy]
    reference.join(config(9, prompt_length=2))
    for e, all_slots in ((engine, [*slots, sick]), (reference, [*reference_slots, 3])):
        for _ in range(5):
            e.step(all_slots)
    engine._layout.views(engine._flat[0])["prompt"][sick, -1, 0] = float("nan")
    poisoned = engine.state(sick)
    reference.leave(3)
    for _ in range(5):
        engine.step([*slots, sick])
        reference.step(reference_slots)
    assert engine.diverged(sick)
    assert [engine.diverged(slot) for slot in slots] == [False] * 3
    for name, tensor in engine.state(sick).tensors.items():
        assert torch.equal(tensor.nan_to_num(7.0), poisoned.tensors[name].nan_to_num(7.0))
    for slot, other in zip(slots, reference_slots, strict=True):
        for name, tensor in engine.state(slot).tensors.items():
            torch.testing.assert_close(tensor, reference.state(other).tensors[name], rtol=0, atol=1e-6)


def test_padding_of_a_stack_stays_exactly_zero():
    engine = made_engine("adept", dtype=torch.float64)
    narrow = engine.join(config(0, prompt_length=2, width=2))
    wide = engine.join(config(1, prompt_length=9, width=7))
    for _ in range(10):
        engine.step([narrow, wide])
    views = engine._layout.views(engine._flat[0])
    assert not views["prompt"][narrow, :7].any()
    assert not views["ffn_w1"][narrow, :, 2:].any()
    assert not views["ffn_w2"][narrow, 2:].any()


def test_evaluation_fused_equals_alone_and_counts_by_hand():
    engine = made_engine("adept", model=lively_t5())
    trials = [config(0), config(1, labels="words", prompt_length=9, width=1), config(2, batch_size=8)]
    slots = [engine.join(trial) for trial in trials]
    for _ in range(30):
        engine.step(slots)
    together = engine.evaluate(slots)
    gold = engine.data.validation.labels
    assert all(len(set(evaluation.texts)) > 1 for evaluation in together)
    for slot, trial, evaluation in zip(slots, trials, together, strict=True):
        (alone,) = engine.evaluate([slot])
        assert alone.texts == evaluation.texts
        assert alone.loss == pytest.approx(evaluation.loss, abs=1e-5)
        labels = engine.data.label_texts[trial.labels]
        right = sum(text == labels[y] for text, y in zip(alone.texts, gold, strict=True))
        assert alone.score.value == right / len(gold)


def test_a_full_engine_refuses_and_a_left_slot_is_taken_again():
    engine = made_engine(num_slots=1)
    slot = engine.join(config(0))
    with pytest.raises(MethodError, match="all 1 slots are taken"):
        engine.join(config(1))
    engine.leave(slot)
    assert engine.join(config(1)) == slot


def test_a_state_of_another_trial_is_refused():
    engine = made_engine()
    state = engine.state(engine.join(config(0)))
    with pytest.raises(MethodError, match="another trial"):
        engine.join(config(0, prompt_lr=0.1), state)
    with pytest.raises(MethodError, match="another trial"):
        engine.join(config(0), replace(state, method="dept"))


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 3), (10, 10), (4, 9)])
def test_batch_order_visits_every_row_once_an_epoch(num_rows, batch_size):
    steps = [batch_rows(5, step, batch_size, num_rows) for step in range(num_rows)]
    seen = np.concatenate(steps)
    for epoch in range(batch_size):
        assert sorted(seen[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    assert not np.array_equal(seen[:num_rows], seen[-num_rows:]) or batch_size == 1
    assert np.array_equal(batch_rows(5, 2, batch_size, num_rows), steps[2])
