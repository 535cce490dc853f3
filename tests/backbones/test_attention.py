"""Attention through products answers, and hands back, what the fused kernel does."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.integrations import sdpa_attention

from adept_tune.backbones.attention import NAME, attend, use_shared_bias
from adept_tune.backbones.decoder_only import DecoderOnly
from adept_tune.backbones.encoder_decoder import EncoderDecoder
from tests.support.comparing import assert_same_losses_and_gradients
from tests.support.decoders import tiny_decoder
from tests.support.tiny import tiny_t5

ROWS, HEADS, KEYS, WIDTH = 3, 4, 7, 5


def tensors(num_queries: int, shared: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(ROWS, HEADS, num_queries, WIDTH), *2 * [(ROWS, HEADS // shared, KEYS, WIDTH)]]
    return [torch.randn(shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes]


def both(layer: SimpleNamespace, inputs: list[Tensor], mask: Tensor | None, **options: object) -> list[list[Tensor]]:
    """Answers and gradients of ours and of transformers'."""
    found = []
    for way in (attend, sdpa_attention.sdpa_attention_forward):
        answer, weights = way(layer, *inputs, mask, **options)
        assert weights is None
        weighting = torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype).view_as(answer)
        found.append([answer.detach(), *torch.autograd.grad((answer * weighting).sum(), inputs)])
    return found


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "free"])
@pytest.mark.parametrize("num_queries", [1, KEYS])
@pytest.mark.parametrize("shared", [1, 2], ids=["own keys", "shared keys"])
@pytest.mark.parametrize("masked", ["no mask", "bool", "added"])
@pytest.mark.parametrize(("biased", "scaling"), [(True, 1.0), (False, None), (False, 0.3)])
def test_answers_and_gradients_are_those_of_the_fused_kernel(causal, num_queries, shared, masked, biased, scaling):
    inputs = tensors(num_queries, shared)
    draw = torch.Generator().manual_seed(1)
    seen = torch.rand(ROWS, 1, num_queries, KEYS, generator=draw) < 0.6
    seen[..., 0] = True
    added = torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, -1e4)
    mask = {"no mask": None, "bool": seen, "added": added}[masked]
    options = {"scaling": scaling}
    if biased:
        options["position_bias"] = torch.randn(1, HEADS, num_queries, KEYS, generator=draw, dtype=torch.float64)
    layer = SimpleNamespace(is_causal=causal and num_queries > 1, num_key_value_groups=shared)
    ours, theirs = both(layer, inputs, mask, **options)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_with_its_heads_last_is_made_contiguous_once(monkeypatch, masked):
    inputs = [tensor.float() for tensor in tensors(KEYS, 1)]
    bias = torch.randn(KEYS, KEYS, HEADS).permute(2, 0, 1)[None]
    mask = torch.ones(ROWS, 1, 1, KEYS, dtype=torch.bool) if masked else None
    seen, kernel = [], torch.nn.functional.scaled_dot_product_attention

    def noted(*states, attn_mask, **options):
        seen.append(attn_mask)
        return kernel(*states, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    for _ in range(2):
        attend(SimpleNamespace(is_causal=False), *inputs, mask, scaling=1.0, position_bias=bias)
    assert seen[0] is seen[1]
    assert seen[0].is_contiguous()
    torch.testing.assert_close(seen[0].expand(ROWS, -1, -1, -1), bias.expand(ROWS, -1, -1, -1), rtol=0, atol=0)


def test_a_trained_bias_has_its_gradient():
    inputs, layer = tensors(KEYS, 1), SimpleNamespace(is_causal=False)
    bias = torch.randn(1, HEADS, KEYS, KEYS, dtype=torch.float64).requires_grad_()
    ways = (attend, sdpa_attention.sdpa_attention_forward)
    found = [way(layer, *inputs, None, scaling=1.0, position_bias=bias)[0].square().sum() for way in ways]
    ours, theirs = (torch.autograd.grad(loss, bias)[0] for loss in found)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["small scores", "scores up to thirty"])
def test_in_bf16_products_err_little_more_than_the_fused_kernel(scale):
    inputs, layer = tensors(KEYS, 1, torch.bfloat16), SimpleNamespace(is_causal=False)
    bias = 4 * torch.randn(1, HEADS, KEYS, KEYS, generator=torch.Generator().manual_seed(1)).bfloat16()
    inputs[0] = (scale * inputs[0]).detach().requires_grad_()
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = both(layer, exact_inputs, None, scaling=1.0, position_bias=bias.double())[1]
    ours, theirs = both(layer, inputs, None, scaling=1.0, position_bias=bias)

    def error(found: list[Tensor]) -> float:
        return sum(float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True))

    assert error(ours) < 2 * error(theirs) < 0.1


@pytest.mark.parametrize("why", ["no gradient", "float32", "some queries of a causal layer"])
def test_where_products_are_not_the_better_way_the_kernel_is_asked(monkeypatch, why):
    asked = []
    monkeypatch.setattr(
        sdpa_attention, "sdpa_attention_forward", lambda *_, **__: (asked.append(why) or torch.zeros(()), None)
    )
    dtype = torch.float32 if why == "float32" else torch.bfloat16
    query, key = torch.randn(1, 1, 3, WIDTH, dtype=dtype), torch.randn(1, 1, KEYS, WIDTH, dtype=dtype)
    with torch.set_grad_enabled(why != "no gradient"):
        attend(SimpleNamespace(is_causal=why.startswith("some")), query, key, key, None)
    assert asked == [why]


@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
def test_a_model_gives_the_same_losses_and_gradients(family):
    def backbone():
        return EncoderDecoder(tiny_t5(torch.float64)) if family == "t5" else DecoderOnly(tiny_decoder(family), 1)

    kernel, products = backbone(), backbone()
    use_shared_bias(products.model)
    named = {part.config._attn_implementation for part in products.model.modules() if hasattr(part, "config")}
    assert named == {NAME}
    target, target_mask = torch.tensor([[6, 7, 1], [8, 1, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    assert_same_losses_and_gradients(kernel, products, target, target_mask)
