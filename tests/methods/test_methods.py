"""Methods: a contract that each must keep, and each formula against a slow rewrite from the paper."""

from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from torch.nn.functional import pad

from adept_tune.backbones.codec import TokenizerCodec
from adept_tune.backbones.encoder_decoder import EncoderDecoder
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.packing import Stack
from adept_tune.engine.reading import Reader, Trained
from adept_tune.errors import MethodError
from adept_tune.methods import INPUT_SIDE, get_method
from adept_tune.methods.base import Method, Sizes, Stacking, uniform
from adept_tune.methods.layout import Layout
from adept_tune.methods.start import initial_prompt
from tests.support.data import LABEL_TEXTS, label_sets, one_pass
from tests.support.tiny import tiny_t5, tiny_tokenizer

BUDGET = 76_800
D, S = 6, 5  # small: the slow rewrite is three nested loops
MIXED = [(0, 3), (4, 0), (2, 1), (1, 5)]  # (m, r) of the trials of one stack
NO_GRADIENT_AT_STEP_0 = {"adept": {"ffn_w1", "ffn_b1"}, "dept": {"low_rank_a"}, "prompt-tuning": set()}


def sizes_of(prompt_length: int, width: int, d_model: int = D, source_length: int = S) -> Sizes:
    return Sizes(prompt_length, width, d_model, source_length)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial(method: Method, sizes: Sizes, seed: int = 0, wide_start: bool = True) -> dict[str, Tensor]:
    prompt_MD = torch.randn(sizes.prompt_length, sizes.d_model, generator=generator(seed + 100))
    return method.initial(sizes, prompt_MD, wide_start, generator(seed))


def trained_somewhere(method: Method, sizes: Sizes, seed: int) -> dict[str, Tensor]:
    """Tensors with no zeros left in them, float64."""
    source = generator(seed)
    return {
        name: torch.randn(sizes.of(axes), generator=source, dtype=torch.float64) for name, axes in method.axes.items()
    }


def stacked(method: Method, trials: list[dict[str, Tensor]], sizes: list[Sizes]) -> tuple[dict[str, Tensor], Stacking]:
    """Trials of different sizes side by side, as the engine lays them."""
    widest = Sizes(
        max(s.prompt_length for s in sizes), max(s.width for s in sizes), sizes[0].d_model, sizes[0].source_length
    )
    layout = Layout(method, widest)
    flat_KN = torch.stack([layout.pack(own, size) for own, size in zip(trials, sizes, strict=True)])
    lengths = torch.tensor([s.prompt_length for s in sizes]), torch.tensor([s.width for s in sizes])
    return layout.views(flat_KN), Stacking(*lengths)


def alone(own: dict[str, Tensor], sizes: Sizes) -> tuple[dict[str, Tensor], Stacking]:
    """A stack of one."""
    lengths = torch.tensor([sizes.prompt_length]), torch.tensor([sizes.width])
    return {name: tensor[None] for name, tensor in own.items()}, Stacking(*lengths)


def token_slowly(name: str, own: dict[str, Any], token: list[float], position: int, keep: list[float]) -> list[float]:
    """One token's embedding as the papers write it, number by number."""
    d = range(len(token))
    if name == "prompt-tuning":
        return token
    if name == "dept":  # E_i + (alpha / sqrt(r)) (A B)_i, alpha 8
        a, b = own["low_rank_a"][position], own["low_rank_b"]
        rank = range(len(b))
        return [token[j] + (8 / sqrt(len(b)) if b else 0) * sum(a[i] * b[i][j] for i in rank) for j in d]
    w1, b1, w2, b2 = (own[key] for key in ("ffn_w1", "ffn_b1", "ffn_w2", "ffn_b2"))
    units = range(len(b1))
    hidden = [b1[i] + sum(token[j] * w1[j][i] for j in d) for i in units]
    relu = [max(hidden[i] * keep[i], 0.0) for i in units]  # dropout stands before the ReLU
    return [token[j] + b2[j] + sum(relu[i] * w2[i][j] for i in units) for j in d]


def tokens_slowly(name: str, own: dict[str, Tensor], tokens_BSD: Tensor, keep_BSR: Tensor) -> Tensor:
    """Every token of every row, one at a time."""
    numbers = {key: tensor.tolist() for key, tensor in own.items()}
    return torch.tensor(
        [
            [token_slowly(name, numbers, token.tolist(), s, keep_BSR[b, s].tolist()) for s, token in enumerate(row)]
            for b, row in enumerate(tokens_BSD)
        ],
        dtype=torch.float64,
    )


def reader_over(method: Method) -> tuple[EncoderDecoder, Reader]:
    """A tiny T5 in float64 and a reader of it."""
    backbone = EncoderDecoder(tiny_t5(dtype=torch.float64))
    codec = TokenizerCodec(tiny_tokenizer())
    return backbone, Reader(backbone, method, codec, "accuracy", label_sets(), LABEL_TEXTS, 0)


@pytest.fixture(params=sorted(INPUT_SIDE))
def method(request: pytest.FixtureRequest) -> Method:
    return INPUT_SIDE[request.param]


class TestContract:
    """What the engine relies on, whatever the method."""

    def test_method_is_found_by_its_own_name(self, method: Method) -> None:
        assert get_method(method.name) is method

    def test_every_tensor_has_a_rate_and_known_axes(self, method: Method) -> None:
        assert list(method.rate) == list(method.axes)
        assert set(method.rate.values()) <= {"prompt", "offset"}
        assert {axis for axes in method.axes.values() for axis in axes} <= set("MDRS")
        assert method.rate["prompt"] == "prompt"

    def test_every_parameter_of_a_search_space_is_a_setting_of_a_trial(self, method: Method) -> None:
        assert set(method.parameters.values()) <= set(TrialConfig.model_fields)

    @pytest.mark.parametrize(("m", "r"), [(0, 0), (0, 3), (7, 0), (7, 3), (1, 1)])
    def test_num_parameters_counts_what_is_trained(self, method: Method, m: int, r: int) -> None:
        sizes = sizes_of(m, r)
        tensors = initial(method, sizes)
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            name: sizes.of(axes) for name, axes in method.axes.items()
        }
        assert method.num_parameters(sizes) == sum(tensor.numel() for tensor in tensors.values())

    @pytest.mark.parametrize("wide_start", [True, False])
    def test_offset_is_exactly_zero_at_step_0(self, method: Method, wide_start: bool) -> None:
        sizes = [sizes_of(m, r) for m, r in MIXED]
        tensors, stacking = stacked(method, [initial(method, s, k, wide_start) for k, s in enumerate(sizes)], sizes)
        tokens_KBSD = torch.randn(len(MIXED), 3, S, D, generator=generator(1))
        assert torch.equal(method.shift(tensors, tokens_KBSD, stacking), tokens_KBSD)

    def test_initial_prompt_is_copied(self, method: Method) -> None:
        prompt_MD = torch.randn(3, D)
        tensors = method.initial(sizes_of(3, 2), prompt_MD, True, generator(0))
        assert torch.equal(tensors["prompt"], prompt_MD)
        tensors["prompt"].zero_()
        assert prompt_MD.all()

    def test_same_generator_seed_gives_the_same_values(self, method: Method) -> None:
        first, again = (initial(method, sizes_of(3, 4), 5) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in method.axes)

    def test_mixed_stack_equals_the_slow_rewrite(self, method: Method) -> None:
        sizes = [sizes_of(m, r) for m, r in MIXED]
        trials = [trained_somewhere(method, s, k) for k, s in enumerate(sizes)]
        tensors, stacking = stacked(method, trials, sizes)
        tokens_KBSD = torch.randn(len(MIXED), 3, S, D, generator=generator(1), dtype=torch.float64)
        mask_KBS = torch.rand(len(MIXED), 3, S, generator=generator(2)) < 0.7
        embeds, mask = method.forward(tensors, tokens_KBSD, mask_KBS, stacking)
        longest = max(m for m, _ in MIXED)
        assert embeds.shape == (len(MIXED), 3, longest + S, D)
        for k, (m, r) in enumerate(MIXED):
            slow = tokens_slowly(method.name, trials[k], tokens_KBSD[k], torch.ones(3, S, r))
            torch.testing.assert_close(embeds[k, :, longest:], slow, rtol=0, atol=1e-12)
            for row in range(3):
                assert torch.equal(embeds[k, row, longest - m : longest], trials[k]["prompt"])
                padding = [False] * (longest - m)
                assert mask[k, row].tolist() == [*padding, *([True] * m), *mask_KBS[k, row].tolist()]

    def test_a_trial_in_a_stack_equals_itself_alone(self, method: Method) -> None:
        sizes = [sizes_of(m, r) for m, r in MIXED]
        trials = [trained_somewhere(method, s, k) for k, s in enumerate(sizes)]
        tensors, stacking = stacked(method, trials, sizes)
        tokens_KBSD = torch.randn(len(MIXED), 2, S, D, generator=generator(1), dtype=torch.float64)
        together = method.shift(tensors, tokens_KBSD, stacking)
        for k, size in enumerate(sizes):
            own = method.shift(alone(trials[k], size)[0], tokens_KBSD[k : k + 1], alone(trials[k], size)[1])
            torch.testing.assert_close(together[k], own[0], rtol=0, atol=1e-12)

    def test_forward_changes_none_of_its_inputs(self, method: Method) -> None:
        own = trained_somewhere(method, sizes_of(2, 3), 0)
        tokens_KBSD, mask_KBS = torch.randn(1, 2, S, D, dtype=torch.float64), torch.ones(1, 2, S, dtype=torch.bool)
        before = tokens_KBSD.clone(), {name: tensor.clone() for name, tensor in own.items()}
        method.forward(alone(own, sizes_of(2, 3))[0], tokens_KBSD, mask_KBS, alone(own, sizes_of(2, 3))[1])
        assert torch.equal(tokens_KBSD, before[0])
        assert all(torch.equal(own[name], before[1][name]) for name in own)

    def test_only_the_reading_tensors_get_no_gradient_at_step_0(self, method: Method) -> None:
        backbone, reader = reader_over(method)
        sizes = sizes_of(3, 4, backbone.d_model)
        prompt_MD = torch.randn(3, backbone.d_model, generator=generator(0))
        own = method.initial(sizes, prompt_MD, True, generator(1))
        tensors = {name: tensor[None].double().requires_grad_() for name, tensor in own.items()}
        trained = Trained(tensors, alone(own, sizes)[1], ("digits",))
        batch = one_pass([[[5, 9, 12, 1]]], [3])
        target = torch.tensor([[6, 1]])
        backbone.target_nll(
            reader.embed(trained, batch), batch.mask_PW, target, torch.ones_like(target, dtype=torch.bool)
        ).sum().backward()
        still = {name for name, tensor in tensors.items() if not tensor.grad.any()}
        assert still == NO_GRADIENT_AT_STEP_0[method.name]

    def test_what_stands_on_pad_columns_changes_no_loss_and_no_gradient(self, method: Method) -> None:
        backbone, reader = reader_over(method)
        sizes = [sizes_of(m, r, backbone.d_model, 8) for m, r in ((2, 3), (5, 1))]
        trials = [trained_somewhere(method, s, k) for k, s in enumerate(sizes)]
        batch = one_pass([[[5, 9, 12, 20, 1], [7, 1]], [[8, 10, 1], [6, 30, 31, 1]]], [2, 5])

        def loss_and_gradients(batch: Stack) -> tuple[Tensor, ...]:
            leaves = [{name: tensor.clone().requires_grad_() for name, tensor in own.items()} for own in trials]
            tensors, stacking = stacked(method, leaves, sizes)
            embeds = reader.embed(Trained(tensors, stacking, ("digits",) * 2), batch)
            target = torch.tensor([[6, 1]] * 4)
            nll = backbone.target_nll(embeds, batch.mask_PW, target, torch.ones_like(target, dtype=torch.bool))
            flat = [tensor for own in leaves for tensor in own.values()]
            return nll.detach(), *torch.autograd.grad(nll.sum(), flat)

        expected = loss_and_gradients(batch)
        noise = torch.randint(2, 38, batch.ids_JBS.shape, generator=generator(3))
        scribbled = replace(batch, ids_JBS=torch.where(batch.mask_JBS, batch.ids_JBS, noise))
        assert batch.column_PW is not None
        longer = replace(scribbled, column_PW=pad(batch.column_PW, (0, 3)), mask_PW=pad(batch.mask_PW, (0, 3)))
        for other in (scribbled, longer):
            for found, wanted in zip(loss_and_gradients(other), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
        unmasked = loss_and_gradients(replace(scribbled, mask_PW=torch.ones_like(batch.mask_PW)))
        assert not torch.allclose(unmasked[0], expected[0], atol=1e-3)


class TestCounts:
    """Parameter counts that the ADePT authors' README and DePT's paper give, and those beside them."""

    @pytest.mark.parametrize(
        ("m", "r", "d", "expected"),
        [
            (0, 49, 768, 76_081),
            (20, 39, 768, 76_071),
            (40, 29, 768, 76_061),
            (60, 19, 768, 76_051),
            (80, 9, 768, 76_041),
            (60, 19, 512, 50_707),
            (60, 19, 1024, 101_395),
            (60, 19, 2048, 202_771),
            (60, 19, 4096, 405_523),
        ],
    )
    def test_adept(self, m: int, r: int, d: int, expected: int) -> None:
        adept = INPUT_SIDE["adept"]
        assert adept.num_parameters(sizes_of(m, r, d, 256)) == expected
        assert adept.width_within(100 * d, m, d, 256) == r

    @pytest.mark.parametrize(
        ("m", "r", "s"), [(20, 60, 256), (40, 45, 256), (60, 30, 256), (80, 15, 256), (60, 24, 512)]
    )
    def test_dept(self, m: int, r: int, s: int) -> None:
        dept = INPUT_SIDE["dept"]
        assert dept.num_parameters(sizes_of(m, r, 768, s)) == BUDGET
        assert dept.width_within(BUDGET, m, 768, s) == r

    @pytest.mark.parametrize(
        ("d", "expected"), [(512, 51_200), (768, 76_800), (1024, 102_400), (2048, 204_800), (4096, 409_600)]
    )
    def test_prompt_tuning(self, d: int, expected: int) -> None:
        prompt_tuning = INPUT_SIDE["prompt-tuning"]
        assert prompt_tuning.num_parameters(sizes_of(100, 0, d)) == expected
        assert prompt_tuning.width_within(expected, 100, d, 256) is None


@pytest.mark.parametrize("name", ["adept", "dept"])
@pytest.mark.parametrize("budget", [50_000, BUDGET, 76_801])
def test_width_within_is_the_largest_that_fits_at_every_prompt_length(name: str, budget: int) -> None:
    method = INPUT_SIDE[name]
    for m in range(110):
        counts = [method.num_parameters(sizes_of(m, r, 768, 256)) for r in range(110)]
        fitting = [r for r, count in enumerate(counts) if count <= budget]
        assert method.width_within(budget, m, 768, 256) == (fitting[-1] if fitting else None), m


def test_adept_dropout_scales_the_bottleneck_before_the_relu() -> None:
    adept = INPUT_SIDE["adept"]
    sizes = [sizes_of(1, 4), sizes_of(2, 2)]
    trials = [trained_somewhere(adept, s, k) for k, s in enumerate(sizes)]
    tensors, lengths = stacked(adept, trials, sizes)
    keep_KBSR = (torch.rand(2, 3, S, 4, generator=generator(5)) < 0.5).double() * 2
    stacking = Stacking(lengths.prompt_length_K, lengths.width_K, keep_KBSR)
    tokens_KBSD = torch.randn(2, 3, S, D, generator=generator(6), dtype=torch.float64)
    shifted = adept.shift(tensors, tokens_KBSD, stacking)
    for k in range(2):
        slow = tokens_slowly("adept", trials[k], tokens_KBSD[k], keep_KBSR[k])
        torch.testing.assert_close(shifted[k], slow, rtol=0, atol=1e-12)
    assert not torch.allclose(shifted, adept.shift(tensors, tokens_KBSD, lengths))


@pytest.mark.parametrize(("name", "agrees"), [("adept", True), ("prompt-tuning", True), ("dept", False)])
def test_only_dept_knows_where_a_token_stands(name: str, agrees: bool) -> None:
    method = INPUT_SIDE[name]
    tensors, stacking = alone(trained_somewhere(method, sizes_of(2, 3), 0), sizes_of(2, 3))
    tokens_KBSD = torch.randn(1, 2, S, D, generator=generator(1), dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    before = method.shift(tensors, tokens_KBSD[:, :, order], stacking)
    after = method.shift(tensors, tokens_KBSD, stacking)[:, :, order]
    assert torch.allclose(before, after, rtol=0, atol=1e-12) is agrees


def test_adept_folds_into_a_table_that_transformers_reads_alike() -> None:
    adept = INPUT_SIDE["adept"]
    backbone, reader = reader_over(adept)
    sizes = sizes_of(3, 4, backbone.d_model)
    own = trained_somewhere(adept, sizes, 0)
    w1, b1, w2, b2 = (own[name] for name in ("ffn_w1", "ffn_b1", "ffn_w2", "ffn_b2"))
    folded_VD = torch.stack([e + torch.clamp(e @ w1 + b1, min=0) @ w2 + b2 for e in backbone.table_VD])
    ids_BS, target_BT = torch.tensor([[5, 9, 12, 1], [7, 30, 8, 1]]), torch.tensor([[6, 1], [5, 1]])

    batch = one_pass([ids_BS.tolist()], [3])
    embeds = reader.embed(Trained(*alone(own, sizes), ("digits",)), batch)
    plain_prompt_tuning = torch.cat([own["prompt"].expand(2, -1, -1), folded_VD[ids_BS]], dim=1)
    torch.testing.assert_close(embeds, plain_prompt_tuning, rtol=0, atol=1e-12)

    nll = backbone.target_nll(embeds, batch.mask_PW, target_BT, torch.ones_like(target_BT, dtype=torch.bool))
    loss = backbone.model(inputs_embeds=plain_prompt_tuning, labels=target_BT).loss
    torch.testing.assert_close(nll.mean(), loss, rtol=0, atol=1e-12)


def test_dept_offsets_follow_the_text_whatever_prompt_or_company_stands_before_it() -> None:
    dept = INPUT_SIDE["dept"]
    short, long = sizes_of(1, 3, D, 9), sizes_of(7, 3, D, 9)
    own, other = trained_somewhere(dept, short, 0), trained_somewhere(dept, long, 1)
    tokens_BSD = torch.randn(2, 4, D, generator=generator(2), dtype=torch.float64)
    mask_BS = torch.ones(2, 4, dtype=torch.bool)
    tensors, stacking = alone(own, short)
    embeds, mask = dept.forward(tensors, tokens_BSD[None], mask_BS[None], stacking)
    expected = embeds[0][mask[0]]

    # The neighbour's prompt pads ours by six columns on the left, its text pads ours by five on the right.
    tensors, stacking = stacked(dept, [own, other], [short, long])
    filler_BSD = torch.randn(2, 5, D, generator=generator(3), dtype=torch.float64)
    company_BSD = torch.cat([tokens_BSD, filler_BSD], dim=1)
    company_mask_BS = torch.cat([mask_BS, torch.zeros(2, 5, dtype=torch.bool)], dim=1)
    embeds, mask = dept.forward(tensors, torch.stack([company_BSD] * 2), torch.stack([company_mask_BS] * 2), stacking)
    torch.testing.assert_close(embeds[0][mask[0]], expected, rtol=0, atol=1e-12)
    # Were offsets bound to columns, the first token would get that of column 7.
    offset_SD = 8 / sqrt(3) * own["low_rank_a"] @ own["low_rank_b"]
    torch.testing.assert_close(embeds[0, 0, 7] - tokens_BSD[0, 0], offset_SD[0], rtol=0, atol=1e-12)
    assert not torch.allclose(offset_SD[0], offset_SD[7], atol=1e-2)


class TestInitialValues:
    """Bounds and distributions at step 0."""

    WIDE = Sizes(prompt_length=2, width=19, d_model=64, source_length=256)

    @pytest.mark.parametrize(("name", "reading"), [("adept", "ffn_w1"), ("dept", "low_rank_a")])
    @pytest.mark.parametrize("wide_start", [True, False])
    def test_reading_tensor_is_uniform_within_its_bound(self, name: str, reading: str, wide_start: bool) -> None:
        numbers = initial(INPUT_SIDE[name], self.WIDE, 3, wide_start)[reading]
        rows, columns = numbers.shape
        # torch's kaiming_uniform_(a=sqrt(5)) takes the second axis of the stored tensor as fan-in: r as published,
        # and the axis that is read, d or s, once the tensor is stored the other way round.
        fan_in = columns if wide_start else rows
        bound = torch.nn.init.calculate_gain("leaky_relu", sqrt(5)) * sqrt(3 / fan_in)
        assert numbers.abs().max() <= bound * (1 + 1e-6)
        flat = (numbers.flatten() / bound).tolist()
        assert kstest(flat, "uniform", args=(-1, 2)).pvalue > 0.01
        assert kstest(flat, "uniform", args=(-1.15, 2.3)).pvalue < 0.01  # a bound 15% off is noticed

    def test_published_bound_of_t5_base_is_the_wide_one(self) -> None:
        sizes = sizes_of(60, 19, 768, 256)
        wide, narrow = (initial(INPUT_SIDE["adept"], sizes, 0, wide)["ffn_w1"].abs().max() for wide in (True, False))
        assert float(wide) == pytest.approx(0.229, abs=1e-3)
        assert float(narrow) == pytest.approx(0.036, abs=1e-3)

    @pytest.mark.parametrize(
        ("name", "zeros"),
        [("adept", {"ffn_b1", "ffn_w2", "ffn_b2"}), ("dept", {"low_rank_b"}), ("prompt-tuning", set())],
    )
    def test_writing_tensors_and_biases_start_at_zero(self, name: str, zeros: set[str]) -> None:
        tensors = initial(INPUT_SIDE[name], self.WIDE)
        assert {key for key, tensor in tensors.items() if not tensor.any()} == zeros

    @pytest.mark.parametrize(("name", "reading"), [("adept", "ffn_w1"), ("dept", "low_rank_a")])
    def test_another_seed_gives_other_values(self, name: str, reading: str) -> None:
        first, other = (initial(INPUT_SIDE[name], self.WIDE, seed)[reading] for seed in (0, 1))
        assert not (first == other).any()

    def test_uniform_covers_both_signs_up_to_its_bound(self) -> None:
        numbers = uniform((20_000,), 0.25, generator(0))
        assert numbers.dtype == torch.float32
        assert -0.25 <= float(numbers.min()) < -0.2499
        assert 0.2499 < float(numbers.max()) <= 0.25


class TestInitialPrompt:
    """How a soft prompt starts."""

    TABLE = torch.arange(6000.0)[:, None] * torch.tensor([1.0, -1.0])  # a row tells its number

    @pytest.mark.parametrize(
        ("length", "expected"), [(7, [50, 60, 1, 50, 60, 1, 50]), (2, [50, 60]), (3, [50, 60, 1]), (0, [])]
    )
    def test_text_is_tiled_or_cut_to_length(self, length: int, expected: list[int]) -> None:
        prompt = initial_prompt("text", length, self.TABLE, [50, 60, 1], generator(0))
        assert prompt[:, 0].tolist() == expected
        assert prompt.shape == (length, 2)

    def test_vocabulary_draws_different_rows_of_the_first_5000(self) -> None:
        prompt = initial_prompt("vocabulary", 3000, self.TABLE, [], generator(0))
        numbers = prompt[:, 0]
        assert torch.equal(prompt[:, 1], -numbers)
        assert numbers.unique().numel() > 2000
        assert 4900 < float(numbers.max()) < 5000
        assert kstest(numbers.tolist(), "uniform", args=(0, 5000)).pvalue > 0.01

    def test_vocabulary_of_a_small_table_stays_inside_it(self) -> None:
        numbers = initial_prompt("vocabulary", 200, self.TABLE[:7], [], generator(0))[:, 0]
        assert set(numbers.tolist()) == set(map(float, range(7)))

    def test_normal_is_standard_normal(self) -> None:
        prompt = initial_prompt("normal", 4000, self.TABLE, [], generator(0))
        assert prompt.shape == (4000, 2)
        assert kstest(prompt.flatten().tolist(), "norm").pvalue > 0.01

    @pytest.mark.parametrize("kind", ["vocabulary", "normal"])
    def test_seed_decides(self, kind: Any) -> None:
        first, again, other = (initial_prompt(kind, 50, self.TABLE, [], generator(seed)) for seed in (4, 4, 5))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("kind", ["text", "vocabulary", "normal"])
    def test_prompt_is_float32_and_no_view_of_the_table(self, kind: Any) -> None:
        table = torch.ones(9, 2, dtype=torch.bfloat16, requires_grad=True)
        prompt = initial_prompt(kind, 4, table, [3], generator(0))
        assert prompt.dtype == torch.float32
        assert not prompt.requires_grad
        prompt.zero_()
        assert table.all()


def test_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(MethodError, match="method 'sgd' is unknown; choose one of adept, bitfit, dept, full"):
        get_method("sgd")
