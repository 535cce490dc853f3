"""Search spaces: what a file may say, what is said of a file that may not, and which points come out."""

import math
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from adept_tune.engine.config import TrialConfig
from adept_tune.errors import SpaceError
from adept_tune.methods import InModel
from adept_tune.tuning.samplers import make_proposer
from adept_tune.tuning.space import Choices, Range, SearchSpace, find_space, read_space, resolve_space
from tests.support.search import D_MODEL, inside, properties, space_from, space_of

LENGTH = {"prompt_length": {"low": 1, "high": 8}}


def refused(parameters: dict[str, Any], method: str = "adept", **others: Any) -> str:
    """What is said of a space made of these parts."""
    with pytest.raises(SpaceError) as caught:
        space_of(parameters, method, **others)
    return str(caught.value)


def refused_text(folder: Path, text: str) -> str:
    """What is said of a space file."""
    with pytest.raises(SpaceError) as caught:
        space_from(folder, text)
    return str(caught.value)


# -- reading ---------------------------------------------------------------------------------------------------------


def test_a_space_is_read_with_its_ranges_choices_fixed_settings_and_points(tmp_path):
    space = space_from(
        tmp_path,
        """
        method: adept
        parameters:
          prompt_length: {low: 10, high: 100, step: 10}
          ffn_width: {low: 4, high: 64, log: true}
          ffn_lr: {choices: [1.0e-4, 1.0e-3]}
          labels: words
          wide_start: false
        points:
          - {prompt_length: 60, ffn_width: 19, ffn_lr: 0.001}
        """,
    )
    assert space.method.name == "adept"
    assert dict(space.dimensions) == {
        "prompt_length": Range(low=10, high=100, step=10, integer=True),
        "ffn_width": Range(low=4, high=64, log=True, integer=True),
        "ffn_lr": Choices(choices=(1e-4, 1e-3)),
    }
    assert space.fixed == {"labels": "words", "wide_start": False}
    assert space.points == ({"prompt_length": 60, "ffn_width": 19, "ffn_lr": 0.001},)
    config = space.config(space.points[0], max_steps=99)
    assert (config.prompt_length, config.width, config.offset_lr) == (60, 19, 0.001)
    assert (config.labels, config.wide_start, config.max_steps) == ("words", False, 99)
    assert config.prompt_lr == TrialConfig().prompt_lr  # what a space does not name stays as it is


def test_numbers_without_a_point_are_numbers_although_yaml_reads_strings(tmp_path):
    space = space_from(
        tmp_path,
        "method: adept\n"
        "parameters:\n"
        "  ffn_lr: {low: 1e-5, high: 1e-1, log: true}\n"
        "  prompt_lr: 3e-1\n"
        "  clip_norm: {choices: [1e-1, 1e0]}\n"
        "points: [{ffn_lr: 1e-4, clip_norm: 1e0}]\n",
    )
    assert space.dimensions["ffn_lr"] == Range(low=1e-5, high=1e-1, log=True)
    assert space.dimensions["clip_norm"] == Choices(choices=(0.1, 1.0))
    assert space.fixed == {"prompt_lr": 0.3}
    assert space.points == ({"ffn_lr": 1e-4, "clip_norm": 1.0},)


def test_a_space_extends_a_sibling_and_changes_a_few_lines(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "method: adept\n"
        "parameters: {prompt_length: {low: 1, high: 9}, ffn_width: {low: 1, high: 4}, prompt_lr: 0.1}\n"
        "points: [{prompt_length: 5, ffn_width: 2}]\n"
    )
    (tmp_path / "middle.yaml").write_text("extends: base\nparameters: {prompt_lr: 0.2}\n")
    space = space_from(tmp_path, "extends: middle\nparameters: {prompt_length: {choices: [5, 6]}}\n")
    assert dict(space.dimensions) == {
        "prompt_length": Choices(choices=(5, 6)),
        "ffn_width": Range(low=1, high=4, integer=True),
    }
    assert space.fixed == {"prompt_lr": 0.2}
    assert space.points == ({"prompt_length": 5, "ffn_width": 2},)


def test_a_space_extends_a_named_one_where_there_is_no_sibling(tmp_path):
    space = space_from(tmp_path, "extends: prompt-tuning\nparameters: {prompt_lr: 0.5}\n")
    assert list(space.dimensions) == ["prompt_length"]
    assert space.method.name == "prompt-tuning"


def test_an_overlay_inherits_the_points_that_lie_in_its_ranges(tmp_path):
    space = space_from(tmp_path, "extends: adept\nparameters: {prompt_length: {low: 30, high: 100}}\n")
    assert [point["prompt_length"] for point in space.points] == [60]
    space = space_from(tmp_path, "extends: adept\nparameters: {prompt_length: {choices: [20, 40]}}\n")
    assert [point["prompt_length"] for point in space.points] == [20]
    space = space_from(tmp_path, "extends: adept\nparameters: {ffn_lr: {low: 1e-3, high: 1e-2}}\n")
    assert space.points == ()
    with pytest.raises(SpaceError, match="points: prompt_length=20 is outside"):
        space_from(
            tmp_path,
            "extends: adept\nparameters: {prompt_length: {low: 30, high: 100}}\n"
            "points: [{prompt_length: 20, ffn_width: 19, relative_prompt_lr: 0.02, ffn_lr: 1.0e-4}]\n",
        )


def test_null_in_an_overlay_takes_a_parameter_out(tmp_path):
    space = space_from(tmp_path, "extends: adept\nparameters: {ffn_width: null, ffn_lr: null}\n")
    assert list(space.dimensions) == ["prompt_length", "relative_prompt_lr"]
    assert space.fixed == {}
    # A point may say more than is searched.
    rate = {"relative_prompt_lr": 0.022}
    assert space.points == ({"prompt_length": 60} | rate, {"prompt_length": 20} | rate)


def skeleton(d_model):
    """A small T5 on the meta device."""
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        return T5ForConditionalGeneration(T5Config(d_model=d_model, num_layers=1, num_heads=2, vocab_size=32))


@pytest.mark.parametrize("d_model", [512, 768])
@pytest.mark.parametrize("path", sorted(Path("search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_resolves(path, d_model):
    sizes = (128, 32) if path.stem.endswith("-demo") else (d_model, 256)
    space = resolve_space(read_space(path.stem), *sizes)
    if isinstance(space.method, InModel):
        space = replace(space, method=space.method.on(skeleton(sizes[0])))
    assert len(space.points) >= 1
    assert all(inside(space, point) for point in space.points)
    for params in [*space.points, *space.corners()]:
        config = space.config(params)
        assert 0 < space.num_parameters(params) <= (space.budget or math.inf)
        assert config.prompt_length == space.settings(params)["prompt_length"]


@pytest.mark.parametrize(
    ("method", "parameters", "others", "said"),
    [
        ("lora", {"rank": {"low": 1, "high": 8}}, {"budget": 999}, "budget=999: method lora has no prompt to trade"),
        ("lora", {"rank": {"low": 0, "high": 8}}, {}, "rank=0: trains nothing"),
        ("prefix-tuning", {"prefix_length": {"choices": [0, 8]}}, {}, "prefix_length=0: trains nothing"),
        ("full", {"rank": {"low": 1, "high": 8}}, {}, "rank: unknown parameter"),
        ("full", {"dropout": 0.1}, {}, "dropout: unknown parameter"),
        ("ia3", {"prompt_lr": {"low": 0.1, "high": 1}}, {}, "prompt_lr: unknown parameter"),
    ],
)
def test_what_a_method_inside_the_model_does_not_admit(method, parameters, others, said):
    assert said in refused(parameters | {"lr": {"low": 1e-4, "high": 1e-2}}, method, **others)


def test_a_trial_inside_the_model_has_no_sizes_but_its_own():
    space = space_of({"rank": {"low": 1, "high": 8}}, "lora")
    config = space.config({"rank": 3, "lr": 1e-3})
    assert (config.prompt_length, config.width) == (0, 3)


def test_the_shipped_spaces_start_with_the_published_recipe():
    space = resolve_space(read_space("adept"), 768, 256)
    assert space.num_parameters(space.points[0]) == 60 * 768 + 2 * 768 * 19 + 19 + 768


def test_a_space_is_found_by_name_and_by_file(tmp_path, monkeypatch):
    assert find_space("adept") == Path("search_spaces/adept.yaml").resolve()
    (tmp_path / "adept.yml").write_text("method: dept\n")
    monkeypatch.chdir(tmp_path)
    assert find_space("adept.yml") == tmp_path / "adept.yml"


# -- files that are no space -----------------------------------------------------------------------------------------


def test_an_unknown_named_space_lists_those_there_are():
    with pytest.raises(
        SpaceError, match="space 'nosuch' is unknown; choose one of adept, adept-76800, adept-demo, bitfit, dept, "
    ):
        read_space("nosuch")


def test_a_missing_file_is_named():
    with pytest.raises(SpaceError, match=r"space nosuch\.yaml: no such file"):
        read_space("nosuch.yaml")


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\t- x", "%", "&a *b", "!!python/object:os.system {}"])
def test_what_is_not_yaml_is_said_with_its_place(tmp_path, text):
    assert refused_text(tmp_path, text).startswith(f"{tmp_path / 'own.yaml'}: not readable as YAML (")


@pytest.mark.parametrize(("text", "kind"), [("- 1\n- 2", "list"), ("adept", "str"), ("", "NoneType"), ("3", "int")])
def test_what_is_no_mapping_is_said(tmp_path, text, kind):
    assert refused_text(tmp_path, text) == (
        f"{tmp_path / 'own.yaml'}: expected a mapping with 'method' and 'parameters', found {kind}"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parameters: {}", "method: Field required"),
        ("method: adept", "parameters: Field required"),
        ("method: adept\nparameters: 3", "parameters: expected a mapping, found int"),
        ("method: adept\nparameters: {}\nbudgett: 3", "budgett: Extra inputs are not permitted"),
        ("method: adept\nparameters: {}\nbudget: 0", "budget: Input should be greater than or equal to 1"),
        ("method: adept\nparameters: {}\nbudget: many", "budget: Input should be a valid integer"),
        ("method: adept\nparameters: {}\npoints: 3", "points: Input should be a valid tuple"),
        ("method: adept\nparameters: {1: 2}", "parameters.1.[key]: Input should be a valid string"),
    ],
)
def test_a_field_that_a_space_cannot_have_is_named(tmp_path, text, said):
    message = refused_text(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'own.yaml'}: ")
    assert said in message


def test_faults_of_several_fields_are_told_together(tmp_path):
    message = refused_text(tmp_path, "budget: 0\nbudgett: 3")
    assert [word for word in ("method:", "parameters:", "budget:", "budgett:") if word not in message] == []


def test_a_space_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "b.yaml").write_text("extends: own\n")
    assert refused_text(tmp_path, "extends: b\n") == (
        f"{tmp_path / 'own.yaml'}: extends itself through own.yaml -> b.yaml"
    )


def test_a_space_that_extends_nothing_known_is_refused(tmp_path):
    assert "space 'nosuch' is unknown; choose one of adept" in refused_text(tmp_path, "extends: nosuch\n")


@properties(400)
@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
@example(b"\xff\xfe")
@example(b"\x00")
@example("method: adept\nparameters: {prompt_length: {low: 1, high: 2}}".encode("utf-16"))
@example(b"a: &a [*a]")
@example(b"{[1]: 2}")
@example(b"<<: 3")
@example(b"=")
def test_no_bytes_raise_anything_but_a_space_error(tmp_path, content):
    path = tmp_path / "bytes.yaml"
    path.write_bytes(content)
    with suppress(SpaceError):
        resolve_space(read_space(str(path)), D_MODEL, 32)


@pytest.mark.parametrize(
    "text",
    [
        "a: 2001-99-99",  # ValueError: month must be in 1..12
        "a: 0x_",  # ValueError
        "a: !!timestamp x",  # AttributeError
        "a: !!int x",  # ValueError
        "[" * 3000,  # RecursionError
        "extends: adept\nparameters: [a]",  # TypeError
        "extends: adept\nparameters: text",  # TypeError
        "extends: ~nosuchuser",  # RuntimeError: no home directory
        "extends: " + "a" * 300,  # OSError: file name too long
        "method: adept\nparameters: {prompt_lr: {low: 1" + "0" * 400 + ", high: 2}}",  # OverflowError
    ],
)
def test_no_text_raises_anything_but_a_space_error(tmp_path, text):
    refused_text(tmp_path, text)


@pytest.mark.parametrize("name", ["~nosuchuser", "a" * 300])
def test_no_name_raises_anything_but_a_space_error(name):
    with pytest.raises(SpaceError):
        read_space(name)


def test_a_space_that_extends_itself_by_another_path_is_refused(tmp_path):
    assert "extends itself" in refused_text(tmp_path, f"extends: ../{tmp_path.name}/own\n")


# -- parameters that a method cannot have ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"promt_length": 3} | LENGTH, "promt_length: unknown parameter (did you mean prompt_length?); allowed: "),
        ({"zzz": 3} | LENGTH, "zzz: unknown parameter; allowed: prompt_length, ffn_width, prompt_lr, ffn_lr, "),
        ({"rank": 3} | LENGTH, "rank: unknown parameter"),  # DePT's, not ADePT's
        ({"width": 3} | LENGTH, "width: unknown parameter"),  # the setting, not the method's name for it
        ({"seed": 3} | LENGTH, "seed: unknown parameter"),
        (
            {"prompt_length": {"low": 9, "high": 2}},
            "prompt_length: low=9 exceeds high=2; swap them, or list values under 'choices'",
        ),
        (
            {"prompt_lr": {"low": 0, "high": 1, "log": True}},
            "prompt_lr: low=0 on a log scale; it must be greater than 0",
        ),
        (
            {"prompt_lr": {"low": 0.1, "high": 1, "log": True, "step": 0.1}},
            "prompt_lr: step=0.1; it must be greater than 0 and not on a log scale",
        ),
        (
            {"prompt_lr": {"low": 0.1, "high": 1, "step": 0}},
            "prompt_lr: step=0; it must be greater than 0 and not on a log scale",
        ),
        ({"prompt_length": {"low": 1, "high": 8.5}}, "prompt_length: [1, 8.5] is not made of whole numbers"),
        (
            {"prompt_length": {"low": 1, "high": 8, "step": 0.5}},
            "prompt_length: [1, 8, step 0.5] is not made of whole numbers",
        ),
        ({"labels": {"choices": ["digits", "colours"]}}, "labels: 'colours': Input should be 'digits' or 'words'"),
        ({"labels": {"low": 1, "high": 2}}, "labels: not a number; list its values under 'choices'"),
        ({"wide_start": {"low": 0, "high": 1}}, "wide_start: not a number; list its values under 'choices'"),
        ({"prompt_length": {"choices": []}}, "prompt_length: choices: []: Tuple should have at least 1 item"),
        ({"prompt_length": {"choices": [3, "many"]}}, "prompt_length: 'many': Input should be a valid integer"),
        ({"prompt_lr": 0} | LENGTH, "prompt_lr: 0: Input should be greater than 0"),
        ({"ffn_lr": {"low": 0, "high": 1}}, "ffn_lr: 0: Input should be greater than 0"),
        ({"ffn_lr": {"choices": [0.1, -0.1]}}, "ffn_lr: -0.1: Input should be greater than 0"),
        ({"ffn_lr": {"low": 0.1, "high": "much"}}, "ffn_lr: high: 'much': "),
        (
            {"ffn_lr": {"low": 0.1, "high": math.inf}},
            "ffn_lr: high: inf: Input should be less than or equal to 1000000000000000",
        ),
        (
            {"ffn_lr": {"low": 0.1, "high": math.nan}},
            "ffn_lr: high: nan: Input should be greater than or equal to -1000000000000000",
        ),
        ({"ffn_lr": math.nan} | LENGTH, "ffn_lr: nan: "),
        ({"dropout": {"low": 0, "high": 1}}, "dropout: 1: Input should be less than 1"),
        ({"batch_size": {"choices": [0, 4]}}, "batch_size: 0: Input should be greater than or equal to 1"),
        ({}, "parameters: nothing to search; give at least one range or list of choices"),
        ({"prompt_length": 3}, "parameters: nothing to search; give at least one range or list of choices"),
    ],
)
def test_a_parameter_that_cannot_be_searched_is_told(parameters, said):
    message = refused(parameters, source="own.yaml")
    assert message.startswith("own.yaml:\n  ")
    assert said in message


def test_an_unknown_method_lists_those_there_are():
    assert refused(LENGTH, method="sgd", source="own.yaml") == (
        "own.yaml: method 'sgd' is unknown; choose one of adept, bitfit, dept, full, houlsby, ia3, lora, "
        "prefix-tuning, prompt-tuning"
    )


def test_all_faults_of_a_space_are_told_together():
    message = refused(
        {
            "promt_lr": 3,
            "prompt_length": {"low": 9, "high": 2},
            "ffn_lr": 0,
            "dropout": {"choices": [0.1, 2]},
            "clip_norm": {"low": 0, "high": 1},
        },
        budget=3,
        points=[{"clip_norm": 0.1}, {"clip_norm": 7}],
    )
    lines = message.splitlines()
    assert lines[0] == "space:"
    assert len(lines) == 1 + 6
    for word in ("promt_lr", "low=9", "ffn_lr: 0", "dropout: 2", "budget=3", "clip_norm=7"):
        assert sum(word in line for line in lines) == 1, word


@pytest.mark.parametrize(
    ("parameters", "named"),
    [({"prompt_length": {"low": 1}}, "high"), ({"prompt_length": {"low": 1, "high": 2, "hgih": 3}}, "hgih")],
)
def test_a_part_of_a_range_that_is_missing_or_unknown_is_named(parameters, named):
    assert named in refused(parameters)


def test_a_text_that_reads_as_a_number_stays_a_text():
    assert space_of({"prompt_text": "1e3"} | LENGTH).fixed == {"prompt_text": "1e3"}


# -- fixed settings --------------------------------------------------------------------------------------------------


def test_fixed_settings_take_the_place_of_ranges(tmp_path):
    space = space_from(tmp_path, "extends: adept\n", ffn_lr=1e-3, prompt_length=20, batch_size=8)
    assert list(space.dimensions) == ["ffn_width", "relative_prompt_lr"]
    assert space.fixed == {"ffn_lr": 1e-3, "prompt_length": 20, "batch_size": 8}
    assert space.points == ({"ffn_width": 19, "relative_prompt_lr": 0.022},)  # the two of the file have become one
    assert space.config(space.points[0], batch_size=32).batch_size == 8  # what is fixed beats what others fill in


def test_a_fixed_setting_may_be_a_range(tmp_path):
    space = space_from(tmp_path, "method: adept\nparameters: {}\n", prompt_length={"low": 2, "high": 4})
    assert dict(space.dimensions) == {"prompt_length": Range(low=2, high=4, integer=True)}


@pytest.mark.parametrize(
    ("fixed", "said"),
    [({"ffn_lr": 0}, "ffn_lr: 0: "), ({"rank": 3}, "rank: unknown parameter"), ({"labels": "colours"}, "'colours'")],
)
def test_fixed_settings_are_checked(tmp_path, fixed, said):
    with pytest.raises(SpaceError) as caught:
        space_from(tmp_path, "extends: adept\n", **fixed)
    assert said in str(caught.value)


# -- budget ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("adept", lambda m, r, d, s: m * d + 2 * d * r + r + d),
        ("dept", lambda m, r, d, s: m * d + r * (s + d)),
    ],
)
@pytest.mark.parametrize("length", [0, 1, 20, 57, 80])
def test_the_width_is_the_largest_within_the_budget(method, count, length):
    file = {"prompt_length": {"choices": [length]}, "prompt_lr": {"low": 0.1, "high": 1}}
    space = resolve_space(_file(method, file, 76_800), 768, 256)
    params = {"prompt_length": length, "prompt_lr": 0.3}
    width = space.config(params).width
    assert space.num_parameters(params) == count(length, width, 768, 256)
    assert count(length, width, 768, 256) <= 76_800 < count(length, width + 1, 768, 256)


def test_the_published_recipe_fills_the_published_budget():
    space = resolve_space(read_space("adept-76800"), 768, 256)
    assert space.settings({"prompt_length": 60, "prompt_lr": 0.3, "ffn_lr": 1e-4})["width"] == 19


def test_people_see_the_derived_width_by_the_methods_name():
    space = resolve_space(read_space("adept-76800"), 768, 256)
    point = {"prompt_length": 60, "prompt_lr": 0.3, "ffn_lr": 1e-4}
    assert space.shown(point) == point | {"ffn_width": 19}
    assert space_of().shown({"prompt_length": 60}) == {"prompt_length": 60}


# -- rates as multiples of the embeddings ----------------------------------------------------------------------------


def test_a_relative_rate_is_a_multiple_of_the_embeddings_scale(tmp_path):
    space = replace(space_from(tmp_path, "extends: prompt-tuning\n"), embedding_rms=13.5)
    point = {"prompt_length": 60, "relative_prompt_lr": 0.02}
    assert space.config(point).prompt_lr == 0.02 * 13.5
    assert space.shown(point) == point | {"prompt_lr": 0.02 * 13.5}  # people see the rate itself beside it
    assert replace(space, embedding_rms=0.14).config(point).prompt_lr == 0.02 * 0.14


@pytest.mark.parametrize("method", ["adept", "dept", "prompt-tuning"])
def test_packaged_spaces_begin_with_the_published_rate_at_the_scale_of_a_t5(method):
    space = replace(resolve_space(read_space(method), 512, 256), embedding_rms=13.47)  # flan-t5-small's
    assert space.config(space.points[0]).prompt_lr == pytest.approx(0.3, abs=0.005)
    rates = space.dimensions["relative_prompt_lr"]
    assert isinstance(rates, Range)
    assert 13.47 * rates.low < 0.06
    assert 13.47 * rates.high > 1


def test_a_rate_takes_the_place_of_a_relative_one_and_the_other_way_round(tmp_path):
    absolute = {"prompt_lr": {"low": 0.1, "high": 1}}
    fixed = space_from(tmp_path, "extends: adept\n", prompt_lr=0.3)
    assert (fixed.fixed, "relative_prompt_lr" in fixed.dimensions) == ({"prompt_lr": 0.3}, False)
    assert [point["prompt_length"] for point in fixed.points] == [60, 20]  # theirs is the rate that is fixed
    searched = space_from(tmp_path, f"extends: adept\nparameters: {absolute}\n")
    assert [name for name in searched.dimensions if "prompt_lr" in name] == ["prompt_lr"]
    assert searched.points == ()  # they tell no rate
    demonstration = resolve_space(read_space("adept-demo"), 128, 32, {"relative_prompt_lr": 0.02})
    assert demonstration.fixed == {"relative_prompt_lr": 0.02}
    assert "prompt_lr" not in demonstration.dimensions


def test_the_other_way_of_telling_a_rate_changes_no_order(tmp_path):
    # in which a sampler is asked, so that another order would be another search
    names = list(space_from(tmp_path, "extends: adept\n").dimensions)
    assert names == ["prompt_length", "ffn_width", "relative_prompt_lr", "ffn_lr"]
    assert list(resolve_space(read_space("adept-demo"), 128, 32).dimensions) == ["prompt_length", "prompt_lr", "ffn_lr"]


@pytest.mark.parametrize("away", ["prompt_lr: null", "relative_prompt_lr: null"])
def test_null_takes_out_a_rate_in_either_way_of_telling_it(tmp_path, away):
    space = space_from(tmp_path, f"extends: adept\nparameters: {{{away}}}\n")
    assert list(space.dimensions) == ["prompt_length", "ffn_width", "ffn_lr"]
    assert len(space.points) == 2
    rate = "prompt_lr: {low: 0.03, high: 1.0, log: true}"
    both = space_from(tmp_path, f"extends: adept\nparameters: {{relative_prompt_lr: null, {rate}}}\n")
    assert "prompt_lr" in both.dimensions
    assert both.points == ()  # they tell no rate


def test_a_rate_told_in_both_ways_is_refused(tmp_path):
    both = {"prompt_lr": 0.3, "relative_prompt_lr": 0.02} | LENGTH
    assert "prompt_lr: relative_prompt_lr is given as well; give one of them" in refused(both)
    text = f"extends: adept\nparameters: {both}\n"
    assert "prompt_lr: relative_prompt_lr is given as well; give one of them" in refused_text(tmp_path, text)


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix-tuning", "bitfit", "houlsby", "full"])
def test_a_method_without_a_prompt_has_no_relative_rate(method):
    said = refused({"relative_prompt_lr": 0.02, "lr": {"low": 0.1, "high": 1}}, method)
    assert "relative_prompt_lr: unknown parameter" in said


def test_a_method_without_a_width_is_held_to_the_budget():
    lengths = {"prompt_length": {"low": 1, "high": 20}}
    assert "prompt_length=20: takes 320 numbers, over budget=160" in refused(lengths, "prompt-tuning", budget=160)
    assert space_of({"prompt_length": {"low": 1, "high": 10}}, "prompt-tuning", budget=160).budget == 160


@pytest.mark.parametrize("width", [3, {"low": 1, "high": 2}])
def test_a_budget_and_a_width_exclude_each_other(width):
    assert "ffn_width: follows from budget=900 and the prompt length; take it out, or the budget" in refused(
        LENGTH | {"ffn_width": width}, budget=900
    )


@pytest.mark.parametrize(("method", "smallest"), [("adept", 32), ("dept", 16), ("prompt-tuning", 16)])
def test_a_budget_below_one_prompt_token_is_refused(method, smallest):
    assert f"budget={smallest - 1}: below one prompt token, which takes {smallest} numbers at d=16" in refused(
        LENGTH, method, budget=smallest - 1
    )


def test_a_budget_that_the_longest_prompt_uses_up_is_refused_with_the_longest_that_fits():
    lengths = {"prompt_length": {"low": 1, "high": 100}}
    said = "prompt_length=100: leaves nothing of budget=760 for a width; at d=16 the longest prompt is 46"
    assert said in refused(lengths, budget=760)
    assert space_of({"prompt_length": {"low": 1, "high": 46}}, budget=760).budget == 760
    assert "longest prompt is 46" in refused({"prompt_length": {"low": 1, "high": 47}}, budget=760)


def test_a_fixed_prompt_that_uses_up_the_budget_is_told_with_its_length():
    assert "prompt_length=100: leaves nothing" in refused(
        {"prompt_length": 100, "prompt_lr": {"low": 0.1, "high": 1}}, budget=760
    )


def test_a_point_that_trains_nothing_is_refused():
    message = refused({"prompt_length": {"low": 0, "high": 2}}, "prompt-tuning")
    assert "{'prompt_length': 0}: trains nothing; prompt_length and width are both 0" in message


# -- points to try first ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({"prompt_length": 9, "prompt_lr": 0.3}, "points: prompt_length=9 is outside [1, 8]"),
        ({"prompt_length": 5}, "points: {'prompt_length': 5} gives no prompt_lr"),
        ({"prompt_length": 5, "prompt_lr": None}, "gives no prompt_lr"),
        ({"prompt_length": 5, "prompt_lr": math.nan}, "points: prompt_lr=nan is outside [0.1, 1, log]"),
        ({"prompt_length": 5, "prompt_lr": "much"}, "points: prompt_lr=much is outside [0.1, 1, log]"),
        ({"prompt_length": 5, "prompt_lr": [0.3]}, "points: prompt_lr=[0.3] is outside [0.1, 1, log]"),
        (
            {"prompt_length": 5, "prompt_lr": 0.3, "promt_lr": 3},
            "points: unknown parameter promt_lr (did you mean prompt_lr?)",
        ),
    ],
)
def test_a_first_point_that_does_not_fit_is_told(point, said):
    space = LENGTH | {"prompt_lr": {"low": 0.1, "high": 1, "log": True}}
    assert said in refused(space, points=[{"prompt_length": 1, "prompt_lr": 1}, point])


def test_a_first_point_outside_the_choices_is_told():
    assert "points: labels=colours is outside {digits, words}" in refused(
        {"labels": {"choices": ["digits", "words"]}}, points=[{"labels": "colours"}]
    )


def test_a_first_point_between_two_whole_numbers_is_told_not_rounded():
    assert "10.5" in refused({"prompt_length": {"low": 1, "high": 20}}, points=[{"prompt_length": 10.5}])


# -- grid ------------------------------------------------------------------------------------------------------------

FINITE = {
    "prompt_length": {"low": 2, "high": 6, "step": 2},
    "ffn_width": {"low": 1, "high": 2},
    "labels": {"choices": ["digits", "words"]},
}


def test_a_grid_has_every_point_once():
    points = space_of(FINITE).grid()
    found = [tuple(point.values()) for point in points]
    assert sorted(found) == sorted(product([2, 4, 6], [1, 2], ["digits", "words"]))


def test_a_grid_begins_with_the_first_points():
    first = [
        {"prompt_length": 6, "ffn_width": 1, "labels": "words"},
        {"prompt_length": 2, "ffn_width": 2, "labels": "digits"},
    ]
    points = space_of(FINITE, points=first).grid()
    assert points[:2] == first
    assert len(points) == len({tuple(point.values()) for point in points}) == 12


def test_a_grid_of_a_single_value_is_that_value():
    assert space_of({"prompt_lr": {"low": 0.3, "high": 0.3}}).grid() == [{"prompt_lr": 0.3}]


@pytest.mark.parametrize(
    "dimension", [{"low": 0.1, "high": 1.0}, {"low": 0.1, "high": 1.0, "log": True}], ids=["linear", "log"]
)
def test_a_grid_of_an_infinite_space_is_refused(dimension):
    space = space_of(FINITE | {"prompt_lr": dimension})
    with pytest.raises(SpaceError, match=r"prompt_lr: \[0\.1, 1.*\] has no finite set of values; the grid sampler"):
        space.grid()


def test_a_grid_of_whole_numbers_on_a_log_scale_is_finite():
    assert space_of({"ffn_width": {"low": 4, "high": 7, "log": True}}).grid() == [
        {"ffn_width": r} for r in (4, 5, 6, 7)
    ]


def test_a_grid_does_not_leave_its_range():
    space = space_of({"dropout": {"low": 0, "high": 0.3, "step": 0.1}})
    assert all(inside(space, point) for point in space.grid())  # 0 + 3 * 0.1 exceeds 0.3 by a rounding


@pytest.mark.parametrize(
    ("parameters", "point"),
    [
        ({"dropout": {"low": 0, "high": 0.5, "step": 0.1}}, {"dropout": 0.3}),
        ({"prompt_length": {"low": 0, "high": 30, "step": 10}}, {"prompt_length": 15}),
    ],
    ids=["by a rounding", "between steps"],
)
def test_a_grid_drops_no_first_point(parameters, point):
    assert space_of(parameters, points=[point]).grid()[0] == pytest.approx(point)


def test_a_grid_has_a_first_point_that_is_given_twice_once():
    points = space_of({"prompt_length": {"choices": [1, 2]}}, points=[{"prompt_length": 1}] * 2).grid()
    assert points == [{"prompt_length": 1}, {"prompt_length": 2}]


# -- properties ------------------------------------------------------------------------------------------------------


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Any sensible space of a method."""

    def whole(low: int, high: int) -> dict[str, Any]:
        start, step = draw(st.integers(low, high)), draw(st.integers(1, 9))
        end = start + step * draw(st.integers(0, 9))
        kind = draw(st.sampled_from(["plain", "step", "log", "choices"]))
        if kind == "choices":
            return {"choices": draw(st.lists(st.integers(low, high), min_size=1, max_size=4, unique=True))}
        return {"low": start, "high": end} | {"step": {"step": step}, "log": {"log": True}, "plain": {}}[kind]

    def rate() -> dict[str, Any]:
        ends = sorted(draw(st.lists(st.floats(1e-6, 10), min_size=2, max_size=2)))
        assume(ends[1] / ends[0] > 1 + 1e-9 or ends[0] == ends[1])
        return {"low": ends[0], "high": ends[1], "log": draw(st.booleans())}

    parameters: dict[str, Any] = {"prompt_length": whole(1, 20)}
    optional = {
        "ffn_width": lambda: whole(1, 20),
        "prompt_lr": rate,
        "ffn_lr": rate,
        "labels": lambda: {"choices": ["digits", "words"]},
        "wide_start": lambda: {"choices": [True, False]},
    }
    for name in draw(st.sets(st.sampled_from(sorted(optional)))):
        parameters[name] = optional[name]()
    return space_of(parameters)


@properties(60)
@given(spaces(), st.sampled_from(["random", "tpe"]), st.integers(0, 2**32))
def test_any_point_proposed_lies_in_the_space(space, sampler, seed):
    proposer = make_proposer(space, sampler, seed)
    for trial in range(4):
        point = proposer.propose(trial)
        assert inside(space, point)
        config = space.config(point)
        assert {name: getattr(config, space.method.parameters.get(name, name)) for name in point} == point


@properties(60)
@given(spaces())
def test_corners_lie_in_the_space_and_are_a_trials_settings(space):
    for params in space.corners():
        assert inside(space, params)
        assert space.num_parameters(params) > 0


@pytest.mark.filterwarnings(
    "ignore:The distribution is specified by:UserWarning"
)  # Optuna tells that 95 is not reached
def test_a_step_that_does_not_divide_its_range_stays_within_it():
    space = space_of({"prompt_length": {"low": 10, "high": 95, "step": 10}})
    found = {make_proposer(space, "random", seed).propose(0)["prompt_length"] for seed in range(60)}
    assert found == set(range(10, 91, 10)) == {point["prompt_length"] for point in space.grid()}


def _file(method: str, parameters: dict[str, Any], budget: int) -> Any:
    from adept_tune.tuning.space import SpaceFile

    return SpaceFile(method=method, budget=budget, parameters=parameters)
