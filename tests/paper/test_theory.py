"""What `theory.py` measures is what it says: moved offsets, removed parts, ranks."""

from typing import Any

import numpy as np
import pytest
import torch

from adept_tune.methods import get_method
from adept_tune.methods.base import Sizes
from tests.support.data import SOURCE_LENGTH, made_engine, made_split, one_pass

D_MODEL = 16
SIZES = Sizes(prompt_length=3, width=2, d_model=D_MODEL, source_length=SOURCE_LENGTH)
IDS = [5, 9, 12, 14, 1]


def line_of(method: str) -> Any:
    """A line of one adapter with random tensors on a tiny T5."""
    from theory import Adapted, Line

    generator = torch.Generator().manual_seed(0)
    axes = get_method(method).axes
    tensors = {name: torch.randn(SIZES.of(letters), generator=generator) for name, letters in axes.items()}
    return Line(method, method, [Adapted(tensors, SIZES, "digits")], made_engine(method)._reader)


def test_offsets_moved_along_are_those_of_the_text_where_it_stood() -> None:
    from theory import offsets

    line = line_of("dept")
    (adapted,) = line.adapted
    _, plain_TD = offsets(line, adapted, IDS)
    _, shifted_TD = offsets(line, adapted, [7, 7, *IDS])
    _, moved_TD = offsets(line, adapted.moved_along(2), [7, 7, *IDS])
    assert torch.equal(moved_TD[:2], torch.zeros(2, D_MODEL, dtype=torch.float64))
    torch.testing.assert_close(moved_TD[2:], plain_TD)
    assert not torch.allclose(shifted_TD[2:], plain_TD)


def test_an_offset_of_adept_stays_with_its_token() -> None:
    from theory import offsets, size_row

    line = line_of("adept")
    (adapted,) = line.adapted
    torch.testing.assert_close(offsets(line, adapted, [7, 7, *IDS])[1][2:], offsets(line, adapted, IDS)[1])
    assert float(size_row(line, made_split(6, 0).take(range(6)), 7)[-1]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("method", ["adept", "dept"])
def test_without_its_offset_an_adapter_is_prompt_tuning(method: str) -> None:
    from theory import Adapted

    line, split = line_of(method), made_split(12, 0)
    (adapted,) = line.adapted
    prompt = Adapted({"prompt": adapted.tensors["prompt"]}, Sizes(3, 0, D_MODEL, SOURCE_LENGTH), "digits")
    tuned = made_engine("prompt-tuning")._reader.evaluate(prompt.trained(torch.device("cpu")), split)[0]
    found = line.reader.evaluate(adapted.without_offset().trained(torch.device("cpu")), split)[0]
    assert found.loss == pytest.approx(tuned.loss, rel=1e-5)


def test_without_prompt_and_offset_the_frozen_model_is_left() -> None:
    line, split = line_of("adept"), made_split(12, 0)
    (adapted,) = line.adapted
    bare = adapted.without_offset().without_prompt().trained(torch.device("cpu"))
    batch = one_pass([[IDS]], [0])
    torch.testing.assert_close(line.reader.embed(bare, batch)[0], line.reader.backbone.embed(torch.tensor(IDS)))
    assert batch.mask_PW.all()
    assert np.isfinite(line.reader.evaluate(bare, split)[0].loss)


@pytest.mark.parametrize("method", ["adept", "dept"])
def test_the_rank_of_random_offsets_is_the_width(method: str) -> None:
    from theory import rank_row

    assert rank_row(line_of(method), made_split(40, 0))[3] == "2.0"


def test_tokens_are_put_before_every_text_and_nothing_else_changes() -> None:
    from theory import prepended

    split = made_split(5, 0)
    found = prepended(split, 7, 3)
    assert [ids.tolist() for ids in found.sources] == [[7, 7, 7, *ids.tolist()] for ids in split.sources]
    assert found.labels is split.labels


def test_theory_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    import theory

    with pytest.raises(SystemExit) as ended:
        theory.main(["--help"])
    assert ended.value.code == 0
    assert "--adapters" in capsys.readouterr().out
