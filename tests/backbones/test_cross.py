"""The short way of cross-attention gives the long way's numbers, and is taken where it is one."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.t5.modeling_t5 import T5Attention

from adept_tune.backbones.cross import ShortCrossAttention, use_short_cross_attention
from tests.support.tiny import tiny_t5

ROWS, SOURCE = 3, 9


def layer_of(dtype: torch.dtype = torch.float64) -> T5Attention:
    """Cross-attention of a tiny T5, the long way."""
    attention = tiny_t5(dtype).decoder.block[0].layer[1].EncDecAttention.requires_grad_(False)
    for weight in attention.parameters():
        weight.data.normal_(generator=torch.Generator().manual_seed(weight.shape[0])).mul_(0.3)
    return attention


def short(layer: T5Attention) -> T5Attention:
    layer.__class__ = ShortCrossAttention
    return layer


def inputs(layer: T5Attention, num_tokens: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(ROWS, length, layer.d_model) for length in (num_tokens, SOURCE)]
    dtype = layer.q.weight.dtype
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def answers(layer: T5Attention, num_tokens: int, mask: Tensor | None = None) -> list[Tensor]:
    hidden, source = inputs(layer, num_tokens)
    answer = layer(hidden, mask, source)[0]
    weighting = torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype).view_as(answer)
    return [answer.detach(), *torch.autograd.grad((answer * weighting).sum(), [hidden, source])]


@pytest.mark.parametrize("num_tokens", [1, 2])
@pytest.mark.parametrize("masked", ["no mask", "bool", "added"])
def test_answers_and_gradients_are_those_of_the_long_way(monkeypatch, num_tokens, masked):
    seen = torch.rand(ROWS, 1, num_tokens, SOURCE, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[..., 0] = True
    added = torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, -1e4)
    mask = {"no mask": None, "bool": seen, "added": added}[masked]
    long, brief = answers(layer_of(), num_tokens, mask), short(layer_of())
    monkeypatch.setattr(T5Attention, "forward", None)
    for ours, theirs in zip(answers(brief, num_tokens, mask), long, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_in_bf16_it_errs_little_more_than_the_long_way():
    exact = answers(layer_of(torch.bfloat16).double(), 2)

    def error(found: list[Tensor]) -> float:
        return sum(float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True))

    assert error(answers(short(layer_of(torch.bfloat16)), 2)) < 1.5 * error(answers(layer_of(torch.bfloat16), 2)) < 0.1


@pytest.mark.parametrize(
    "why", ["many tokens", "a cache", "a trained weight", "a bias", "another kind of product", "no source"]
)
def test_where_it_is_not_the_shorter_way_the_long_one_is_taken(why):
    def found(layer: T5Attention) -> Tensor:
        hidden, source = inputs(layer, layer.d_model if why == "many tokens" else 2)
        if why == "a trained weight":
            layer.v.weight.requires_grad_()
        if why == "a bias":
            layer.k.bias = torch.nn.Parameter(torch.ones(len(layer.k.weight), dtype=torch.float64), requires_grad=False)
        if why == "another kind of product":
            layer.k = torch.nn.Sequential(layer.k)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if why == "a cache" else None
        source = None if why == "no source" else source
        answer, bias, _ = layer(hidden, None, source, past_key_values=cache)
        assert bias is not None
        return answer

    assert torch.equal(found(layer_of()), found(short(layer_of())))


def test_the_cross_attention_of_a_t5_is_found_and_no_other():
    model = tiny_t5()
    use_short_cross_attention(model)
    found = {name for name, module in model.named_modules() if isinstance(module, ShortCrossAttention)}
    assert found == {name for name, _ in model.named_modules() if name.endswith("EncDecAttention")} != set()
