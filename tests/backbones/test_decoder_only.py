"""Decoder-only backbones against transformers' own forward, loss and generation, a row at a time, without padding."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adept_tune.backbones import inspect_backbone, load_backbone
from adept_tune.backbones.decoder_only import DecoderOnly
from adept_tune.errors import BackboneError
from tests.support.decoders import FAMILIES, save_tiny_decoder, tiny_decoder
from tests.support.recomputing import assert_recomputing_keeps_less

EOS = 1
LABELS = [[4, EOS], [7, 20, 9, EOS], [30, EOS], [EOS]]
# Norms and rotations of these models round to float32 whatever they are given.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@cache
def tiny(family: str) -> DecoderOnly:
    return DecoderOnly(tiny_decoder(family), EOS)


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> DecoderOnly:
    return tiny(request.param)


def rows(backbone: DecoderOnly, num_rows: int = 8) -> tuple[Tensor, Tensor]:
    """Embeddings of rows of different length, with masked columns at either end and in the middle, full of noise."""
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(3, backbone.vocab_size, (num_rows, 9), generator=source)
    mask = torch.rand(num_rows, 9, generator=source) < 0.6
    mask[:, 4] = True
    noise = 100 * torch.randn(num_rows, 9, backbone.d_model, generator=source, dtype=backbone.dtype)
    return torch.where(mask[..., None], backbone.embed(ids), noise), mask


def targets(num_rows: int) -> tuple[Tensor, Tensor]:
    chosen = [LABELS[i % 4] for i in range(num_rows)]
    longest = max(map(len, chosen))
    ids = torch.tensor([label + [33] * (longest - len(label)) for label in chosen])
    return ids, torch.tensor([[i < len(label) for i in range(longest)] for label in chosen])


def alone(backbone: DecoderOnly, embeds: Tensor, mask: Tensor, target: list[int]) -> tuple[Tensor, Tensor]:
    """A row and its target by transformers' own forward: what it reads, and its logits before each target token."""
    read = torch.cat([embeds[mask], backbone.embed(torch.tensor(target))])[None]
    logits = backbone.model(inputs_embeds=read).logits[0, int(mask.sum()) - 1 : -1]
    return read, logits


def test_model_is_frozen_and_in_eval_mode(backbone: DecoderOnly) -> None:
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert (backbone.d_model, backbone.vocab_size, backbone.eos_id, backbone.pad_id) == (16, 38, EOS, EOS)


def test_embed_equals_the_embedding_of_transformers(backbone: DecoderOnly) -> None:
    ids = torch.arange(12).view(2, 3, 2)
    torch.testing.assert_close(backbone.embed(ids), backbone.model.get_input_embeddings()(ids))


def test_recomputing_keeps_less_and_changes_no_gradient(backbone: DecoderOnly) -> None:
    embeds, mask = rows(backbone)
    assert_recomputing_keeps_less(backbone, embeds, mask, *targets(len(embeds)))


def test_the_scale_of_embeddings_is_that_of_what_the_model_reads(backbone: DecoderOnly) -> None:
    read = backbone.model.get_input_embeddings()(torch.arange(backbone.vocab_size))
    assert backbone.embedding_rms == pytest.approx(float(read.square().mean().sqrt()), rel=1e-3)


def test_target_nll_and_its_gradient_equal_those_of_transformers_row_by_row(backbone: DecoderOnly) -> None:
    embeds, mask = rows(backbone)
    target, target_mask = targets(len(embeds))
    ours = embeds.clone().requires_grad_()
    nll = backbone.target_nll(ours, mask, target, target_mask)
    nll.sum().backward()
    assert ours.grad is not None
    assert not nll[~target_mask].any()
    assert not ours.grad[~mask].any()
    for i in range(len(embeds)):
        own = target[i][target_mask[i]].tolist()
        theirs = embeds[i].clone().requires_grad_()
        logits = alone(backbone, theirs, mask[i], own)[1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(own), reduction="none")
        expected.sum().backward()
        assert theirs.grad is not None
        torch.testing.assert_close(nll[i][target_mask[i]].double(), expected.double(), **TOLERANCE)
        torch.testing.assert_close(ours.grad[i], theirs.grad, **TOLERANCE)
        assert ours.grad[i][mask[i]].abs().max() > 1e-3


def test_greedy_equals_generate_row_by_row(backbone: DecoderOnly) -> None:
    embeds, mask = rows(backbone, 16)
    decoded = backbone.greedy(backbone.read(embeds, mask), 6)
    for i in range(len(embeds)):
        own = embeds[i][mask[i]][None]
        expected = backbone.model.generate(
            inputs_embeds=own,
            attention_mask=torch.ones(own.shape[:2], dtype=torch.long),
            max_new_tokens=6,
            do_sample=False,
        )[0].tolist()
        assert decoded[i].tolist()[: len(expected)] == expected
        assert set(decoded[i].tolist()[len(expected) :]) <= {EOS}
    assert decoded.unique(dim=0).shape[0] > 3  # or the comparison would say little


def test_greedy_is_the_argmax_of_a_teacher_forced_pass_over_itself(backbone: DecoderOnly) -> None:
    embeds, mask = rows(backbone, 16)
    for i, row in enumerate(backbone.greedy(backbone.read(embeds, mask), 6).tolist()):
        own = row[: row.index(EOS) + 1] if EOS in row else row
        assert alone(backbone, embeds[i], mask[i], own)[1].argmax(-1).tolist() == own


def test_labels_and_texts_cost_what_training_minimises(backbone: DecoderOnly) -> None:
    embeds, mask = rows(backbone)
    target, target_mask = targets(len(embeds))
    trained = backbone.target_nll(embeds, mask, target, target_mask).sum(1)
    source = backbone.read(embeds, mask)
    asked = backbone.label_nll(source, LABELS)
    torch.testing.assert_close(asked[torch.arange(8), torch.arange(8) % 4], trained, **TOLERANCE)
    torch.testing.assert_close(backbone.text_nll(source, target, target_mask), trained, **TOLERANCE)


def test_one_reading_answers_any_number_of_questions(backbone: DecoderOnly) -> None:
    embeds, mask = rows(backbone)
    source = backbone.read(embeds, mask)
    first = backbone.label_nll(source, LABELS), backbone.greedy(source, 6)
    second = backbone.greedy(source, 6), backbone.label_nll(source, LABELS[::-1]).flip(1)
    assert torch.equal(first[1], second[0])
    torch.testing.assert_close(first[0], second[1], rtol=0, atol=1e-12)


def test_nothing_asked_changes_a_weight(backbone: DecoderOnly) -> None:
    before = {name: parameter.clone() for name, parameter in backbone.model.named_parameters()}
    embeds, mask = rows(backbone)
    target, target_mask = targets(len(embeds))
    backbone.target_nll(embeds.requires_grad_(), mask, target, target_mask).sum().backward()
    backbone.greedy(backbone.read(embeds, mask), 4)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_loaded_with_its_precision_and_its_tokenizers_end(family: str, tmp_path: Path) -> None:
    info = inspect_backbone(str(save_tiny_decoder(tmp_path, family)))
    assert (info.model_type, info.d_model, info.vocab_size) == (family, 16, 38)
    backbone = load_backbone(info, "cpu", "bf16")
    assert isinstance(backbone, DecoderOnly)
    assert (backbone.dtype, backbone.eos_id) == (torch.bfloat16, EOS)
    embeds, mask = rows(backbone)
    leaf = embeds.float().requires_grad_()
    nll = backbone.target_nll(leaf, mask, *targets(len(embeds)))
    nll.sum().backward()
    assert nll.dtype == torch.float32
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    from tests.support.tiny import tiny_tokenizer

    save_tiny_decoder(tmp_path, "llama")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="its tokenizer has no end-of-sequence token"):
        load_backbone(inspect_backbone(str(tmp_path)), "cpu")
