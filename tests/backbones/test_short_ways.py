"""A model whose parts take the short ways answers as before, and all of them are found."""

import pytest
import torch
from transformers.activations import NewGELUActivation

from adept_tune.backbones.attention import NAME
from adept_tune.backbones.cross import ShortCrossAttention
from adept_tune.backbones.encoder_decoder import EncoderDecoder
from adept_tune.backbones.short_ways import FusedGELU, use_fused_gelu, use_short_ways
from tests.support.comparing import assert_same_losses_and_gradients
from tests.support.tiny import tiny_t5


def test_losses_and_gradients_of_a_gated_t5_are_the_same():
    long, short = (EncoderDecoder(tiny_t5(torch.float64, feed_forward_proj="gated-gelu")) for _ in range(2))
    use_short_ways(short.model)
    kinds = {type(module) for module in short.model.modules()}
    assert {FusedGELU, ShortCrossAttention} <= kinds
    assert short.model.encoder.config._attn_implementation == NAME
    target, target_mask = torch.tensor([[6, 1], [8, 0]]), torch.tensor([[True, True], [True, False]])
    assert_same_losses_and_gradients(long, short, target, target_mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_gelu_errs_little_more_than_the_written_one(dtype):
    model = tiny_t5(dtype, feed_forward_proj="gated-gelu")
    written = NewGELUActivation()
    use_fused_gelu(model)
    fused = model.encoder.block[0].layer[1].DenseReluDense.act
    numbers = torch.linspace(-6, 6, 1001).to(dtype)

    def answers(act: torch.nn.Module, at: torch.Tensor) -> torch.Tensor:
        leaf = at.clone().requires_grad_()
        answer = act(leaf)
        return torch.stack([answer.detach(), torch.autograd.grad(answer.sum(), leaf)[0]]).double()

    exact = answers(written, numbers.double())
    errors = [float((answers(act, numbers) - exact).norm() / exact.norm()) for act in (written, fused)]
    assert errors[1] < 1.5 * errors[0] < 0.02
    with torch.no_grad():
        assert torch.equal(fused(numbers), written(numbers))
