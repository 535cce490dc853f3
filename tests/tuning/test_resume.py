"""Which experiment a resumed command goes on with, and what may have changed meanwhile."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adept_tune.errors import SpecError
from adept_tune.tuning.materials import Materials
from adept_tune.tuning.search import Request, _resumed, _with_space
from adept_tune.tuning.space import SpaceFile, resolve_space
from adept_tune.tuning.spec import SearchSpec
from tests.support.search import SPACE, spec_fields

OLD = {"method": "adept", "parameters": SPACE, "points": [], "budget": None}
NEW = OLD | {"parameters": SPACE | {"prompt_lr": {"low": 0.1, "high": 0.2}}}


def written(folder: Path, **fields: Any) -> SearchSpec:
    spec = SearchSpec(**spec_fields(space=OLD, **fields))
    spec.write(folder)
    return spec


def test_a_packaged_space_that_has_changed_since_does_not_end_a_search(tmp_path: Path) -> None:
    old = written(tmp_path)
    _, spec = _resumed(Request(task="sst2", resume=tmp_path), SearchSpec(**spec_fields(space=NEW)))
    assert spec.space == old.space

    class Known:  # what resolving a space asks of a search's materials
        class info:  # noqa: N801
            d_model = 16

        class task:  # noqa: N801
            max_source_length = 12

    space = resolve_space(SpaceFile.model_validate(old.space), 16, 12, {})
    materials = Materials(Known.task, None, None, Known.info, space)  # type: ignore[arg-type]
    again = _with_space(materials, spec)
    assert str(again.space.dimensions["prompt_lr"]) != str(
        _with_space(replace(materials), spec.model_copy(update={"space": NEW})).space.dimensions["prompt_lr"]
    )


def test_the_scale_that_the_probe_found_is_kept(tmp_path: Path) -> None:
    written(tmp_path, embedding_rms=13.5)
    _, spec = _resumed(Request(task="sst2", resume=tmp_path), SearchSpec(**spec_fields(space=OLD)))
    assert spec.embedding_rms == 13.5


def test_a_space_of_another_name_is_another_search(tmp_path: Path) -> None:
    written(tmp_path)
    draft = SearchSpec(**spec_fields(space=NEW | {"source": "adept-sst2.yaml"}))
    with pytest.raises(SpecError, match="space: "):
        _resumed(Request(task="sst2", resume=tmp_path), draft)


def test_a_space_that_is_named_must_be_the_same(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(SpecError, match="space: "):
        _resumed(Request(task="sst2", resume=tmp_path, space="adept"), SearchSpec(**spec_fields(space=NEW)))


@pytest.mark.parametrize(
    ("change", "said"), [({"protocol": "paper"}, "protocol: ours in"), ({"task": "cola"}, "task: sst2 in")]
)
def test_another_search_is_refused_with_the_difference(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    written(tmp_path)
    with pytest.raises(SpecError, match=said):
        _resumed(Request(task="sst2", resume=tmp_path), SearchSpec(**spec_fields(space=OLD, **change)))


def test_a_precision_that_is_left_open_is_that_of_the_experiment(tmp_path: Path) -> None:
    written(tmp_path, precision="fp32")
    draft = SearchSpec(**spec_fields(space=OLD, precision="bf16"))
    assert _resumed(Request(task="sst2", resume=tmp_path), draft)[1].precision == "fp32"
    with pytest.raises(SpecError, match="precision: fp32 in"):
        _resumed(Request(task="sst2", resume=tmp_path, precision="bf16"), draft)
