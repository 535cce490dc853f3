"""A model brought to a node that lacks it."""

import shutil
from dataclasses import replace

import pytest

from adept_tune.backbones import inspect_backbone
from adept_tune.backbones.load import load_backbone, load_tokenizer
from adept_tune.tuning.carried import model_here, packed
from tests.support.tiny import save_tiny_t5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model, and a cache of this node's own."""
    monkeypatch.setenv("ADEPT_TUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    save_tiny_t5(tmp_path / "model")
    return tmp_path / "model"


def refuse():
    raise AssertionError("brought although it is here")


def test_a_model_that_is_here_is_not_brought(folder):
    info = inspect_backbone(str(folder))
    assert model_here(info, refuse) == info


def test_a_model_of_the_hub_is_not_brought(folder):
    info = replace(inspect_backbone(str(folder)), name="google-t5/t5-small", local=False)
    assert model_here(info, refuse) is info


@pytest.mark.parametrize("other", [False, True], ids=["no folder", "another model in it"])
def test_a_model_that_is_not_here_is_brought_once_and_is_the_same(folder, other):
    info, files = inspect_backbone(str(folder)), packed(folder)
    shutil.rmtree(folder)
    if other:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    here = model_here(info, lambda: files)
    assert here.name != info.name
    assert inspect_backbone(here.name).revision == info.revision
    load_backbone(here, "cpu")
    load_tokenizer(here)
    assert model_here(info, refuse) == here
