"""The short way of T5's layer norm gives the long way's numbers."""

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5LayerNorm

from adept_tune.backbones.norm import FrozenNorm, use_frozen_norms
from tests.support.tiny import tiny_t5


def norm(dtype: torch.dtype = torch.float32, trained: bool = False) -> T5LayerNorm:
    layer = T5LayerNorm(16, eps=1e-6)
    layer.weight.data = torch.linspace(0.5, 2, 16)
    return layer.to(dtype).requires_grad_(trained)


def frozen(layer: T5LayerNorm) -> T5LayerNorm:
    use_frozen_norms(layer)
    assert type(layer) is FrozenNorm
    return layer


def answers(layer: T5LayerNorm, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weighting = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
    answer = layer(hidden)
    wanted = [hidden, *(weight for weight in layer.parameters() if weight.requires_grad)]
    return answer.detach(), *torch.autograd.grad((answer * weighting).sum(), wanted)


def made_hidden(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_answers_are_equal_and_gradients_but_for_rounding(trained):
    long, short = (answers(layer, made_hidden()) for layer in (norm(trained=trained), frozen(norm(trained=trained))))
    assert len(short) == 2 + trained
    assert torch.equal(long[0], short[0])
    for one, other in zip(long[1:], short[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_in_bf16_it_errs_no_more_than_the_long_way():
    hidden = made_hidden(torch.bfloat16)
    _, exact = answers(norm(), hidden.detach().float().requires_grad_())
    answer, gradient = answers(norm(torch.bfloat16), hidden)
    short_answer, short_gradient = answers(frozen(norm(torch.bfloat16)), hidden)
    assert torch.equal(answer, short_answer)
    assert (short_gradient - exact).norm() <= 1.05 * (gradient - exact).norm() < 0.02 * exact.norm()


def test_it_keeps_less_for_the_way_back():
    def kept(layer: T5LayerNorm) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            layer(made_hidden(torch.bfloat16) * 1)
        return sum(sizes)

    assert kept(frozen(norm(torch.bfloat16))) < 0.75 * kept(norm(torch.bfloat16))


def test_all_norms_of_a_t5_are_found():
    model = tiny_t5()
    names = {name for name, module in model.named_modules() if isinstance(module, T5LayerNorm)}
    use_frozen_norms(model)
    assert names == {name for name, module in model.named_modules() if isinstance(module, FrozenNorm)} != set()
