"""Methods inside the model: counts, oracles, states, and a pristine model that stays so."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import erf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adept_tune.backbones import inspect_backbone, load_tokenizer
from adept_tune.backbones.decoder_only import DecoderOnly
from adept_tune.backbones.encoder_decoder import EncoderDecoder
from adept_tune.engine.build import build_engine
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.in_model import fitted
from adept_tune.engine.order import batch_rows
from adept_tune.engine.state import TrialState
from adept_tune.errors import MethodError
from adept_tune.methods import IN_MODEL
from adept_tune.methods.base import Sizes
from adept_tune.tasks import get_task
from adept_tune.tasks.rows import load_splits
from adept_tune.tasks.tokens import load_task_data, pad, tokenizer_fingerprint
from adept_tune.tuning.space import read_space, resolve_space
from tests.support.data import made_data, made_engine
from tests.support.decoders import FAMILIES, tiny_decoder
from tests.support.tiny import lively_t5, tiny_t5

# PEFT's models ask for it; its tuners, which the package uses, do not.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STEPS = 8
SIZES = Sizes(3, 4, 16, 12)  # of `config`
METHODS = sorted(IN_MODEL)


def config(**settings: Any) -> TrialConfig:
    base = {"prompt_length": 3, "width": 4, "offset_lr": 3e-3, "max_steps": 60, "batch_size": 6, "warmup_steps": 2}
    return TrialConfig(**(base | {"weight_decay": 0.01, "seed": 5, "data_seed": 3} | settings))


def trained(engine: Any, trial: TrialConfig, num_steps: int) -> tuple[int, list[float]]:
    slot, losses = engine.join(trial), []
    for _ in range(num_steps):
        engine.step([slot])
        losses.append(engine.train_loss(slot))
    return slot, losses


def numbers(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_bitwise(model: Any, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# -- counts ------------------------------------------------------------------------------------------------------


def t5_skeleton(d: int, d_kv: int, heads: int, d_ff: int, layers: int, decoder_layers: int, gated: bool) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    kind = "gated-gelu" if gated else "relu"
    settings = {"d_model": d, "d_kv": d_kv, "num_heads": heads, "d_ff": d_ff, "num_layers": layers}
    with torch.device("meta"):
        return T5ForConditionalGeneration(
            T5Config(**settings, num_decoder_layers=decoder_layers, feed_forward_proj=kind, vocab_size=100)
        )


def formula(method: str, m: int, r: int, d: int, inner: int, d_ff: int, enc: int, dec: int, gated: bool) -> int:
    """Closed forms for T5; `inner` is heads times d_kv."""
    attentions, feed_forwards = enc + 2 * dec, enc + dec
    norms = (2 * enc + 3 * dec + 2) * d
    return {
        "lora": attentions * 2 * r * (d + inner),
        "ia3": attentions * 2 * inner + feed_forwards * d_ff,
        "prefix-tuning": m * 2 * dec * inner,
        "bitfit": attentions * (3 * inner + d) + feed_forwards * (d + d_ff * (2 if gated else 1)),
        "houlsby": 2 * feed_forwards * (2 * d * r + r + d) + norms,
        "full": norms
        + attentions * 4 * d * inner
        + feed_forwards * d * d_ff * (3 if gated else 2)
        + 2 * 32 * (inner // 64 or 1)
        + 100 * d * 1,
    }[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "shape", [(768, 64, 12, 3072, 12, 12, False), (512, 64, 6, 1024, 8, 8, True), (128, 64, 2, 256, 2, 3, False)]
)
def test_num_parameters_is_the_formulas(method: str, shape: tuple[int, int, int, int, int, int, bool]) -> None:
    d, d_kv, heads, d_ff, enc, dec, gated = shape
    found = IN_MODEL[method].on(t5_skeleton(*shape)).num_parameters(Sizes(10, 32, d, 256))
    assert found == formula(method, 10, 32, d, heads * d_kv, d_ff, enc, dec, gated)


@pytest.mark.parametrize(
    ("method", "sizes", "count"),
    [("lora", Sizes(0, 32, 768, 256), 3_538_944), ("houlsby", Sizes(0, 24, 768, 256), 1_855_104)],
)
def test_num_parameters_on_t5_base_is_near_what_the_papers_tables_say(method: str, sizes: Sizes, count: int) -> None:
    skeleton = t5_skeleton(768, 64, 12, 3072, 12, 12, False)
    assert IN_MODEL[method].on(skeleton).num_parameters(sizes) == count


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_num_parameters_of_decoders_is_what_a_state_holds(method: str, family: str) -> None:
    backbone = DecoderOnly(tiny_decoder(family), eos_id=1)
    engine = made_engine(method, 1, torch.float64, backbone=backbone)
    state = engine.state(engine.join(config()))
    skeleton = copy.deepcopy(backbone.model).to("meta")
    skeleton.tie_weights()
    assert IN_MODEL[method].on(skeleton).num_parameters(SIZES) == sum(t.numel() for t in state.tensors.values()) > 0


# -- contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss_and_the_pristine_model_is_bitwise_itself(method: str) -> None:
    engine = made_engine(method, num_slots=2)
    before = numbers(engine.backbone.model)
    rate = {"prefix-tuning": 0.3, "ia3": 0.1, "bitfit": 0.1}.get(method, 1e-2)
    slot, losses = trained(engine, config(offset_lr=rate, batch_size=16, max_steps=60), 60)
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3
    assert_bitwise(engine.backbone.model, before)
    engine.leave(slot)
    again, fresh = trained(engine, config(offset_lr=rate, batch_size=16, max_steps=60), 5)
    assert fresh == losses[:5]  # nothing of the trial before is left
    engine.leave(again)
    assert_bitwise(engine.backbone.model, before)


@pytest.mark.parametrize("method", METHODS)
def test_thirty_steps_of_the_spaces_first_point_lower_the_loss_on_the_demonstration(
    method: str, tmp_path: Path
) -> None:
    task = get_task("demo")
    info = inspect_backbone("adept_tune/demo/model")
    tokenizer = load_tokenizer(info)
    data = load_task_data(task, load_splits(task, None), tokenizer, tokenizer_fingerprint(tokenizer), tmp_path)
    space = resolve_space(read_space(method), info.d_model, task.max_source_length)
    engine = build_engine(info, IN_MODEL[method], data, 1)
    before = numbers(engine.backbone.model)
    trial = space.config(space.points[0], batch_size=16, max_steps=30)
    _, losses = trained(engine, trial, 30)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert_bitwise(engine.backbone.model, before)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"prefix-tuning"}))
@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_a_fresh_trial_answers_as_the_model_does(method: str, family: str | None) -> None:
    backbone = EncoderDecoder(tiny_t5(torch.float64)) if family is None else DecoderOnly(tiny_decoder(family), 1)
    private, _ = fitted(backbone, IN_MODEL[method], SIZES, seed=0)
    embeds = torch.randn(2, 5, 16, dtype=torch.float64)
    mask, target = torch.ones(2, 5, dtype=torch.bool), torch.tensor([[7, 1], [8, 1]])
    questions = embeds, mask, target, torch.ones_like(target, dtype=torch.bool)
    torch.testing.assert_close(private.target_nll(*questions), backbone.target_nll(*questions), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_two_slots_do_not_see_each_other(method: str) -> None:
    trials = [config(seed=1), config(seed=2, data_seed=4, width=2, prompt_length=1)]
    together = made_engine(method, num_slots=2)
    slots = [together.join(trial) for trial in trials]
    for _ in range(STEPS):
        together.step(slots)
    for slot, trial in zip(slots, trials, strict=True):
        alone = made_engine(method, num_slots=1)
        own, _ = trained(alone, trial, STEPS)
        assert_same(together.state(slot), alone.state(own))


@pytest.mark.parametrize("method", METHODS)
def test_state_out_and_in_goes_on_bitwise_and_scores_the_same(method: str) -> None:
    straight = made_engine(method, num_slots=1)
    slot, _ = trained(straight, config(), STEPS)
    saved = TrialState.from_bytes(straight.state(slot).to_bytes(), "test")
    (evaluation,) = straight.evaluate([slot])
    for _ in range(STEPS):
        straight.step([slot])

    resumed = made_engine(method, num_slots=1)
    assert resumed.score_state(saved, "validation") == evaluation
    again = resumed.join(config(), saved)
    for _ in range(STEPS):
        resumed.step([again])
    assert resumed.state(again).to_bytes() == straight.state(slot).to_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_pieces_gives_the_same_update(method: str) -> None:
    whole, pieces = made_engine(method, 1, torch.float64), made_engine(method, 1, torch.float64, tokens_per_pass=40)
    states = [engine.state(trained(engine, config(), STEPS)[0]) for engine in (whole, pieces)]
    assert_same(*states, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_one_row_that_does_not_fit_is_done_with_less_kept_of_each_layer(method: str, monkeypatch: Any) -> None:
    whole = made_engine(method, 1, torch.float64)
    expected = whole.state(trained(whole, config(), STEPS)[0])
    target_nll, device_is_small = EncoderDecoder.target_nll, torch.OutOfMemoryError("CUDA out of memory")

    def fits_only_so(self: EncoderDecoder, *arguments: Tensor) -> Tensor:
        if not any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()):
            raise device_is_small
        return target_nll(self, *arguments)

    monkeypatch.setattr(EncoderDecoder, "target_nll", fits_only_so)
    cramped = made_engine(method, 1, torch.float64)
    if method == "prefix-tuning":  # its layers would lose their prefixes
        with pytest.raises(torch.OutOfMemoryError):
            trained(cramped, config(), 1)
    else:
        assert_same(cramped.state(trained(cramped, config(), STEPS)[0]), expected, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_that_meets_a_nan_is_marked_and_keeps_its_numbers(method: str) -> None:
    engine = made_engine(method, num_slots=1)
    slot, _ = trained(engine, config(), 2)
    before = engine.state(slot)
    place = next(iter(engine._seats[slot].places.values()))
    with torch.no_grad():
        place.view(-1)[0] = float("nan")
    poisoned = engine.state(slot)
    engine.step([slot])
    assert engine.diverged(slot)
    after = engine.state(slot)
    assert after.step == before.step + 1
    for name, tensor in poisoned.tensors.items():
        torch.testing.assert_close(after.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_where_memory_runs_out_at_the_last_trial_of_a_step_none_has_done_it(monkeypatch: Any) -> None:
    engine = made_engine("lora", num_slots=2)
    slots = [engine.join(config(seed=seed)) for seed in range(2)]
    before, isfinite, seen = [engine.state(slot) for slot in slots], torch.Tensor.isfinite, []
    per_trial = len(before[0].tensors)

    def cramped(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        if len(seen) > per_trial:
            raise torch.OutOfMemoryError("no room to look at the second trial's gradients")
        return isfinite(tensor)

    monkeypatch.setattr(torch.Tensor, "isfinite", cramped)
    with pytest.raises(torch.OutOfMemoryError, match="second"):
        engine.step(slots)
    monkeypatch.undo()
    for slot, state in zip(slots, before, strict=True):
        after = engine.state(slot)
        assert (after.step, after.loss_count) == (0, 0)
        assert all(torch.equal(after.tensors[name], tensor) for name, tensor in state.tensors.items())


def test_a_full_engine_and_foreign_states_are_refused() -> None:
    engine = made_engine("lora", num_slots=1)
    slot = engine.join(config())
    with pytest.raises(MethodError, match="all 1 slots are taken"):
        engine.join(config())
    state = engine.state(slot)
    engine.leave(slot)
    with pytest.raises(MethodError, match="belongs to another trial"):
        engine.join(config(seed=6), state)
    name = next(iter(state.tensors))
    cut = replace(state, tensors=dict(state.tensors) | {name: state.tensors[name][:, :1]})
    with pytest.raises(MethodError, match=f"{name}: expected shape"):
        engine.join(config(), cut)


@pytest.mark.parametrize("method", METHODS)
def test_in_bf16_numbers_are_kept_in_float32(method: str) -> None:
    engine = made_engine(method, 1, backbone=EncoderDecoder(lively_t5(torch.bfloat16)), dtype=torch.float32)
    slot, losses = trained(engine, config(offset_lr=1e-5, warmup_steps=0), 3)
    state = engine.state(slot)
    assert np.isfinite(losses).all()
    assert all(tensor.dtype == torch.float32 for tensor in state.tensors.values())
    fresh = engine.state(made_slot(engine, slot))
    moved = [not torch.equal(state.tensors[name], fresh.tensors[name]) for name in state.tensors]
    assert any(moved)  # steps of 1e-5 would be lost in bf16
    assert engine.score_state(state, "test") == engine.score_state(state, "test")


def made_slot(engine: Any, taken: int) -> int:
    engine.leave(taken)
    slot: int = engine.join(config(offset_lr=1e-5, warmup_steps=0))
    return slot


def assert_same(one: TrialState, other: TrialState, atol: float = 0.0) -> None:
    assert set(one.tensors) == set(other.tensors)
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], rtol=0, atol=atol)


# -- oracles -----------------------------------------------------------------------------------------------------


def batches(trial: TrialConfig, num_steps: int) -> Iterator[dict[str, Tensor]]:
    """Batches of the made task as transformers takes them."""
    train = made_data().train
    for step in range(num_steps):
        rows = batch_rows(trial.data_seed, step, trial.batch_size, len(train))
        ids, mask = pad(train.sources, rows, 0)
        labels, there = pad(train.targets[trial.labels], rows, 0)
        yield {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "attention_mask": torch.from_numpy(mask).long(),
            "labels": torch.from_numpy(np.where(there, labels, -100).astype(np.int64)),
        }


def train_slowly(model: Any, parameters: list[Tensor], trial: TrialConfig) -> list[float]:
    """A plain loop with transformers' own loss, torch's AdamW and transformers' linear schedule."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.AdamW(
        parameters, lr=trial.offset_lr, eps=trial.epsilon, weight_decay=trial.weight_decay, fused=False
    )
    schedule = get_linear_schedule_with_warmup(optimizer, trial.warmup_steps, trial.max_steps)
    losses = []
    for batch in batches(trial, STEPS):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, trial.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_trains_as_peft_used_directly(method: str, tied: bool) -> None:
    from peft import IA3Config, LoraConfig, get_peft_model, get_peft_model_state_dict

    trial = config()
    engine = made_engine(method, 1, torch.float64, model=tiny_t5(torch.float64, tied))
    slot, losses = trained(engine, trial, STEPS)
    settings: Any = (
        LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=32, target_modules=["q", "v"])
        if method == "lora"
        else IA3Config(task_type="SEQ_2_SEQ_LM", target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
    )
    theirs = get_peft_model(tiny_t5_after(trial.seed, tied), settings).eval()
    expected = train_slowly(theirs, [p for p in theirs.parameters() if p.requires_grad], trial)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    state = engine.state(slot)
    _, ours = IN_MODEL[method].peft_files("t5", state.sizes, state.tensors)
    found = get_peft_model_state_dict(theirs)
    assert set(ours) == set(found)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, found[name].float(), rtol=0, atol=1e-7)


def tiny_t5_after(seed: int, tied: bool) -> Any:
    """A tiny T5, and torch's generator where PEFT is to draw from."""
    model = tiny_t5(torch.float64, tied)
    torch.manual_seed(seed)
    return model


def test_prefix_tuning_trains_as_peft_used_directly_where_each_layer_has_its_own_there() -> None:
    """With an odd number of decoder layers: with an even one PEFT lets two layers share a prefix."""
    from peft import PrefixTuningConfig, get_peft_model

    trial, method = config(offset_lr=0.1), IN_MODEL["prefix-tuning"]
    engine = made_engine("prefix-tuning", 1, torch.float64, model=tiny_t5(torch.float64, num_decoder_layers=3))
    slot = engine.join(trial)
    start = engine.state(slot)
    losses = []
    for _ in range(STEPS):
        engine.step([slot])
        losses.append(engine.train_loss(slot))
    settings = PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, token_dim=16, num_layers=3, num_attention_heads=2
    )
    theirs = get_peft_model(tiny_t5(torch.float64, num_decoder_layers=3), settings).double().eval()
    parameter = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        parameter.copy_(method.peft_files("t5", start.sizes, start.tensors)[1]["prompt_embeddings"])
    expected = train_slowly(theirs, [parameter], trial)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    state = engine.state(slot)
    _, written = method.peft_files("t5", state.sizes, state.tensors)
    torch.testing.assert_close(written["prompt_embeddings"], parameter.detach().float(), rtol=0, atol=1e-6)


def test_a_prefix_of_an_even_number_of_layers_is_not_written_as_pefts() -> None:
    tensors = {"key_value_prefix": torch.randn(3, 2, 2, 2, 8)}
    assert IN_MODEL["prefix-tuning"].peft_files("t5", SIZES, tensors) is None
    assert IN_MODEL["prefix-tuning"].peft_files("llama", SIZES, tensors) is not None


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_prefix_of_a_decoder_is_read_as_pefts_is(family: str) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    backbone = DecoderOnly(tiny_decoder(family), eos_id=1)
    private, places = fitted(backbone, IN_MODEL["prefix-tuning"], SIZES, seed=0)
    prefix = places["key_value_prefix"].detach()
    heads, width = prefix.shape[3:]
    settings = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=heads * width, num_layers=2, num_attention_heads=heads
    )
    theirs = get_peft_model(tiny_decoder(family), settings).double().eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(prefix.flatten(1))
    ids, target = torch.tensor([[5, 9, 12, 13]]), torch.tensor([[7, 1]])
    with torch.no_grad():
        whole = torch.cat([ids, target], dim=1)
        logits = theirs(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[:, 3:5]
        expected = F.cross_entropy(logits[0], target[0], reduction="none")
        padded = torch.cat([private.embed(ids), torch.randn(1, 2, 16, dtype=torch.float64)], dim=1)  # and padding
        mask = torch.tensor([[True] * 4 + [False] * 2])
        found = private.target_nll(padded, mask, target, torch.ones_like(target, dtype=torch.bool))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "family"),
    [
        *((method, family) for method in METHODS for family in (None, "gpt2", "llama")),
        *(("prefix-tuning", family) for family in FAMILIES if family not in ("gpt2", "llama")),
    ],
)
def test_greedy_decoding_is_the_argmax_of_its_own_output(method: str, family: str | None) -> None:
    pristine = EncoderDecoder(lively_t5(torch.float64)) if family is None else DecoderOnly(tiny_decoder(family), 1)
    engine = made_engine(method, 1, torch.float64, backbone=pristine)
    slot, _ = trained(engine, config(offset_lr=3e-2), STEPS)
    backbone = engine._seats[slot].reader.backbone
    embeds = torch.randn(4, 6, 16, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
    source = backbone.read(embeds, mask)
    written = backbone.greedy(source, 5)
    for position in range(written.shape[1]):
        for row in range(4):
            if (written[row, :position] == 1).any():
                continue
            begun = written[row : row + 1, :position]
            choices = torch.arange(backbone.vocab_size)
            target = torch.cat([begun.expand(len(choices), -1), choices[:, None]], dim=1)
            alone = embeds[row : row + 1].expand(len(choices), -1, -1), mask[row : row + 1].expand(len(choices), -1)
            with torch.no_grad():
                nll = backbone.target_nll(*alone, target, torch.ones_like(target, dtype=torch.bool)).sum(1)
            assert int(nll.argmin()) == int(written[row, position])


def gelu_slowly(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.special.erf(x / sqrt(2)))


@contextmanager
def hooks(pairs: list[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in pairs]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("tied", [True, False])
def test_full_fine_tuning_is_a_plain_loop_over_all_parameters(tied: bool) -> None:
    engine = made_engine("full", 1, torch.float64, model=tiny_t5(torch.float64, tied))
    slot, losses = trained(engine, config(), STEPS)
    model = tiny_t5(torch.float64, tied).requires_grad_()
    np.testing.assert_allclose(losses, train_slowly(model, list(model.parameters()), config()), rtol=0, atol=1e-9)
    state = engine.state(slot)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(state.tensors[name.replace(".", "/")], parameter.detach(), rtol=0, atol=1e-8)


def test_bitfit_is_a_bias_added_to_the_output_of_each_linear_layer() -> None:
    engine = made_engine("bitfit", 1, torch.float64, model=tiny_t5(torch.float64))
    slot, losses = trained(engine, config(), STEPS)
    model = tiny_t5(torch.float64).requires_grad_(False)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    biases = {n: torch.zeros(m.out_features, dtype=torch.float64, requires_grad=True) for n, m in linear.items()}

    def adding(bias: Tensor) -> Callable[..., Tensor]:
        return lambda module, args, kwargs, output: output + bias

    with hooks([(module, adding(biases[name])) for name, module in linear.items()]):
        expected = train_slowly(model, list(biases.values()), config())
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    found = engine.state(slot).tensors
    assert len(found) == len(biases)
    for name, bias in biases.items():
        torch.testing.assert_close(found[f"{name}.bias".replace(".", "/")], bias.detach(), rtol=0, atol=1e-8)


def test_houlsby_adapts_what_a_layer_adds_to_the_stream() -> None:
    engine = made_engine("houlsby", 1, torch.float64, model=tiny_t5(torch.float64))
    trial = config()
    slot = engine.join(trial)
    start = engine.state(slot).tensors
    losses = []
    for _ in range(STEPS):
        engine.step([slot])
        losses.append(engine.train_loss(slot))
    model = tiny_t5(torch.float64).requires_grad_(False)
    ours: dict[str, Tensor] = {}
    pairs: list[tuple[Any, Callable[..., Any]]] = []

    def adapting(key: str) -> Callable[..., Any]:
        w1, b1, w2, b2 = (
            ours[f"{key}/adapter/{part}"] for part in ("down/weight", "down/bias", "up/weight", "up/bias")
        )

        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            stream = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            added = after - stream
            adapted = stream + added + gelu_slowly(added @ w1.T + b1) @ w2.T + b2
            return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

        return hook

    for name, tensor in start.items():
        if "adapter" in name:
            ours[name] = tensor.clone().requires_grad_()
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "T5LayerSelfAttention":
            pairs.append((module, adapting(f"{name}.SelfAttention.o".replace(".", "/"))))
        elif kind == "T5LayerFF":
            pairs.append((module, adapting(f"{name}.DenseReluDense.wo".replace(".", "/"))))
        elif "layer_norm" in name.split(".")[-1]:
            ours[f"{name}.weight".replace(".", "/")] = module.weight.requires_grad_()
    with hooks(pairs):
        expected = train_slowly(model, list(ours.values()), trial)
    assert len(pairs) == 8
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    found = engine.state(slot).tensors
    assert set(found) == set(ours)
    for name, tensor in ours.items():
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=1e-8)


def test_gelu_is_what_the_rewrite_says() -> None:
    assert float(gelu_slowly(torch.tensor(0.7))) == pytest.approx(0.7 * 0.5 * (1 + erf(0.7 / sqrt(2))))
