"""The T5 backbone against transformers' own forward, loss and generation, and prompt tuning against PEFT's."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from adept_tune.backbones.codec import TokenizerCodec
from adept_tune.backbones.encoder_decoder import EncoderDecoder
from adept_tune.engine.reading import Reader, Trained
from adept_tune.methods import INPUT_SIDE
from adept_tune.methods.base import Stacking
from tests.support.data import LABEL_TEXTS, label_sets, one_pass
from tests.support.recomputing import assert_recomputing_keeps_less
from tests.support.tiny import lively_t5, tiny_t5, tiny_tokenizer

EOS, PAD = 1, 0
LABELS = [[4, EOS], [7, 20, 9, EOS], [30, EOS], [EOS]]


@cache
def lively(tied: bool, dtype: torch.dtype = torch.float64) -> EncoderDecoder:
    """A backbone whose answers differ from row to row."""
    return EncoderDecoder(lively_t5(dtype=dtype, tied=tied))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def backbone(request: pytest.FixtureRequest) -> EncoderDecoder:
    return lively(request.param)


def rows(backbone: EncoderDecoder, num_rows: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings of rows of different length, with masked columns on either side."""
    source = torch.Generator().manual_seed(seed)
    embeds = torch.randn(num_rows, 9, backbone.d_model, generator=source, dtype=torch.float64) * 2
    column = torch.arange(9)
    begin = torch.randint(0, 4, (num_rows, 1), generator=source)
    end = begin + torch.randint(2, 6, (num_rows, 1), generator=source)
    return embeds.to(backbone.dtype), (column >= begin) & (column < end)


def targets(num_rows: int) -> tuple[Tensor, Tensor]:
    """Targets of different length and their mask."""
    chosen = [LABELS[i % 3] for i in range(num_rows)]
    longest = max(map(len, chosen))
    ids = torch.tensor([label + [PAD] * (longest - len(label)) for label in chosen])
    return ids, torch.tensor([[i < len(label) for i in range(longest)] for label in chosen])


def test_model_is_frozen_and_in_eval_mode(backbone: EncoderDecoder) -> None:
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert (backbone.d_model, backbone.vocab_size, backbone.eos_id, backbone.pad_id) == (16, 38, EOS, PAD)


def test_embed_equals_the_embedding_of_transformers(backbone: EncoderDecoder) -> None:
    ids = torch.arange(12).view(2, 3, 2)
    assert torch.equal(backbone.embed(ids), backbone.model.get_input_embeddings()(ids))


def test_recomputing_keeps_less_and_changes_no_gradient(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone)
    assert_recomputing_keeps_less(backbone, embeds, mask, *targets(len(embeds)))


def test_the_scale_of_embeddings_is_that_of_what_the_model_reads(backbone: EncoderDecoder) -> None:
    read = backbone.model.get_input_embeddings()(torch.arange(backbone.vocab_size))
    assert backbone.embedding_rms == pytest.approx(float(read.square().mean().sqrt()), rel=1e-3)


def test_target_nll_equals_the_loss_of_transformers_row_by_row(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone)
    target, target_mask = targets(len(embeds))
    nll = backbone.target_nll(embeds, mask, target, target_mask)
    assert nll.shape == target.shape
    assert not nll[~target_mask].any()
    labels = target.masked_fill(~target_mask, -100)
    for i in range(len(embeds)):
        here = slice(i, i + 1)
        output = backbone.model(inputs_embeds=embeds[here], attention_mask=mask[here].long(), labels=labels[here])
        assert float(nll[i].sum()) == pytest.approx(float(output.loss) * int(target_mask[i].sum()), abs=1e-10)
    whole = backbone.model(inputs_embeds=embeds, attention_mask=mask.long(), labels=labels).loss
    torch.testing.assert_close(nll.sum() / target_mask.sum(), whole, rtol=0, atol=1e-10)


def test_gradient_of_target_nll_equals_that_of_transformers(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone)
    target, target_mask = targets(len(embeds))
    ours, theirs = embeds.clone().requires_grad_(), embeds.clone().requires_grad_()
    (backbone.target_nll(ours, mask, target, target_mask).sum() / target_mask.sum()).backward()
    labels = target.masked_fill(~target_mask, -100)
    backbone.model(inputs_embeds=theirs, attention_mask=mask.long(), labels=labels).loss.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad[mask].abs().max() > 1e-3
    assert not ours.grad[~mask].any()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)


def test_target_nll_of_a_row_does_not_depend_on_company_or_padding(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone)
    target, target_mask = targets(len(embeds))
    together = backbone.target_nll(embeds, mask, target, target_mask).sum(1)
    for i in range(len(embeds)):
        length = int(target_mask[i].sum())
        alone = backbone.target_nll(
            embeds[i][mask[i]][None],
            torch.ones(1, int(mask[i].sum()), dtype=torch.bool),
            target[i : i + 1, :length],
            target_mask[i : i + 1, :length],
        )
        assert float(alone.sum()) == pytest.approx(float(together[i]), abs=1e-10)


def test_what_pads_a_target_changes_nothing(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone)
    target, target_mask = targets(len(embeds))
    scribbled = target.masked_fill(~target_mask, 33)
    before, after = (backbone.target_nll(embeds, mask, ids, target_mask) for ids in (target, scribbled))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


def generated(backbone: EncoderDecoder, embeds: Tensor, mask: Tensor, max_tokens: int) -> Tensor:
    """What transformers decodes, without the token it starts from."""
    ids: Tensor = backbone.model.generate(
        inputs_embeds=embeds, attention_mask=mask.long(), max_new_tokens=max_tokens, do_sample=False, num_beams=1
    )
    return ids[:, 1:]


@pytest.mark.parametrize("max_tokens", [1, 3, 8])
def test_greedy_equals_generate(backbone: EncoderDecoder, max_tokens: int) -> None:
    embeds, mask = rows(backbone, num_rows=24)
    decoded = backbone.greedy(backbone.read(embeds, mask), max_tokens)
    assert torch.equal(decoded, generated(backbone, embeds, mask, max_tokens))
    # Or the comparison would say little:
    assert decoded.unique(dim=0).shape[0] > 5
    if max_tokens == 8:
        ended = (decoded == EOS).any(1)
        assert 0 < int(ended.sum()) < 24


def test_greedy_stops_when_every_row_has_ended_and_pads_the_shorter(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone, num_rows=60)
    decoded = backbone.greedy(backbone.read(embeds, mask), 8)
    ending = (decoded == EOS).any(1)
    embeds, mask, expected = embeds[ending], mask[ending], decoded[ending]
    assert len(embeds) >= 2
    again = backbone.greedy(backbone.read(embeds, mask), 50)
    longest = int((expected == EOS).int().argmax(1).max()) + 1
    assert torch.equal(again, expected[:, :longest])
    for row in again.tolist():
        after = row[row.index(EOS) + 1 :]
        assert after == [PAD] * len(after)


def test_greedy_is_the_argmax_of_a_teacher_forced_pass_over_itself(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone, num_rows=24)
    decoded = backbone.greedy(backbone.read(embeds, mask), 8)
    begun = torch.cat([torch.zeros_like(decoded[:, :1]), decoded[:, :-1]], dim=1)
    logits = backbone.model(inputs_embeds=embeds, attention_mask=mask.long(), decoder_input_ids=begun).logits
    for row, choice in zip(decoded.tolist(), logits.argmax(-1).tolist(), strict=True):
        length = row.index(EOS) + 1 if EOS in row else len(row)
        assert choice[:length] == row[:length]


def test_greedy_of_a_row_does_not_depend_on_company_or_padding(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone, num_rows=12)
    together = backbone.greedy(backbone.read(embeds, mask), 8)
    for i in range(len(embeds)):
        own = embeds[i][mask[i]][None]
        alone = backbone.greedy(backbone.read(own, torch.ones(own.shape[:2], dtype=torch.bool)), 8)[0]
        assert torch.equal(alone, together[i, : len(alone)])
        assert not together[i, len(alone) :].any()


def test_label_nll_equals_a_full_forward_of_transformers(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone)
    nll = backbone.label_nll(backbone.read(embeds, mask), LABELS)
    assert nll.shape == (len(embeds), len(LABELS))
    for column, label in enumerate(LABELS):
        begun = torch.tensor([[0, *label[:-1]]]).expand(len(embeds), -1)
        logits = backbone.model(inputs_embeds=embeds, attention_mask=mask.long(), decoder_input_ids=begun).logits
        log_p = logits.log_softmax(-1)
        expected = -sum(log_p[:, t, token] for t, token in enumerate(label))
        torch.testing.assert_close(nll[:, column], expected, rtol=0, atol=1e-10)


def test_label_nll_equals_what_training_minimises(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone)
    target, target_mask = targets(len(embeds))
    trained = backbone.target_nll(embeds, mask, target, target_mask).sum(1)
    asked = backbone.label_nll(backbone.read(embeds, mask), LABELS[:3])
    torch.testing.assert_close(asked[torch.arange(len(embeds)), torch.arange(len(embeds)) % 3], trained)


def test_one_reading_answers_any_number_of_questions(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone)
    source = backbone.read(embeds, mask)
    first = backbone.label_nll(source, LABELS), backbone.greedy(source, 6)
    second = backbone.greedy(source, 6), backbone.label_nll(source, LABELS[::-1]).flip(1)
    assert torch.equal(first[1], second[0])
    torch.testing.assert_close(first[0], second[1], rtol=0, atol=1e-12)


def test_reading_needs_no_gradient(backbone: EncoderDecoder) -> None:
    embeds, mask = rows(backbone)
    source = backbone.read(embeds.clone().requires_grad_(), mask)
    assert not backbone.label_nll(source, LABELS).requires_grad


def test_bfloat16_backbone_takes_float32_embeddings_and_gives_float32_losses() -> None:
    backbone, exact = lively(True, torch.bfloat16), lively(True)
    embeds, mask = rows(exact)
    target, target_mask = targets(len(embeds))
    leaf = embeds.float().requires_grad_()
    nll = backbone.target_nll(leaf, mask, target, target_mask)
    nll.sum().backward()
    assert nll.dtype == torch.float32
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32
    assert leaf.grad.any()
    assert backbone.label_nll(backbone.read(embeds.float(), mask), LABELS).dtype == torch.float32
    expected = exact.target_nll(embeds, mask, target, target_mask).float()
    torch.testing.assert_close(nll, expected, rtol=0.1, atol=0.3)


def test_nothing_asked_changes_a_weight(backbone: EncoderDecoder) -> None:
    before = {name: parameter.clone() for name, parameter in backbone.model.named_parameters()}
    embeds, mask = rows(backbone)
    target, target_mask = targets(len(embeds))
    backbone.target_nll(embeds.requires_grad_(), mask, target, target_mask).sum().backward()
    source = backbone.read(embeds, mask)
    backbone.greedy(source, 4), backbone.label_nll(source, LABELS)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None, name


def peft_prompt_tuning(model: Any, prompt_MD: Tensor) -> Any:
    """PEFT's prompt tuning of a T5's encoder, from a given prompt."""
    from peft import PromptTuningConfig, get_peft_model

    options = {"num_virtual_tokens": len(prompt_MD), "num_transformer_submodules": 1}  # 2 would prompt the decoder too
    tuned = get_peft_model(model, PromptTuningConfig(task_type="SEQ_2_SEQ_LM", **options))
    tuned.prompt_encoder["default"].embedding.weight.data = prompt_MD.clone()
    return tuned.eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_prompt_tuning_equals_peft(tied: bool, dtype: torch.dtype, tolerance: float) -> None:
    backbone = EncoderDecoder(tiny_t5(dtype=dtype, tied=tied))
    ids = torch.tensor([[3, 4, 11, 12, 23, 1], [3, 4, 30, 1, 0, 0], [9, 1, 0, 0, 0, 0]])
    labels = torch.tensor([[6, 1, -100, -100], [7, 20, 9, 1], [5, 1, -100, -100]])
    prompt_MD = backbone.embed(torch.tensor([25, 26, 27, 28, 1])).clone()

    tuned = peft_prompt_tuning(tiny_t5(dtype=dtype, tied=tied), prompt_MD)
    loss = tuned(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
    loss.backward()
    expected = tuned.prompt_encoder["default"].embedding.weight.grad

    codec = TokenizerCodec(tiny_tokenizer())
    reader = Reader(backbone, INPUT_SIDE["prompt-tuning"], codec, "accuracy", label_sets(), LABEL_TEXTS, PAD)
    leaf_KMD = prompt_MD[None].clone().requires_grad_()
    trained = Trained({"prompt": leaf_KMD}, Stacking(torch.tensor([5]), torch.tensor([0])), ("digits",))
    target_mask = labels != -100
    batch = one_pass([[row[row != PAD].tolist() for row in ids]], [5])
    nll = backbone.target_nll(
        reader.embed(trained, batch), batch.mask_PW, labels.masked_fill(~target_mask, PAD), target_mask
    )
    ours = nll.sum() / target_mask.sum()
    ours.backward()

    assert leaf_KMD.grad is not None
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(ours, loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(leaf_KMD.grad[0], expected, rtol=tolerance, atol=tolerance)
