"""Values of the command line that argparse cannot judge."""

import pytest

from adept_tune.errors import SpecError
from adept_tune.tuning.options import precision_or_auto, split_settings, wall_time_s, whole_number_or_auto


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45s", 45),
        ("90m", 5400),
        ("8h", 28_800),
        ("1d", 86_400),
        ("1.5h", 5400),
        ("10", 600),  # minutes
        ("0.5", 30),
        (" 2 h", 7200),
    ],
)
def test_a_time_is_read_in_its_unit(text, seconds):
    assert wall_time_s(text) == pytest.approx(seconds)


def test_no_time_is_no_limit():
    assert wall_time_s(None) is None


@pytest.mark.parametrize(
    "text", ["", "soon", "h", "0", "0s", "-5m", "nan", "nanh", "inf", "infh", "1e999h", "5w", "1h30m", "5 min", "1,5h"]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(SpecError) as caught:
        wall_time_s(text)
    assert str(caught.value) == f"--time-budget {text}: give a time above 0 such as 45s, 90m or 8h"


@pytest.mark.parametrize(("text", "number"), [("auto", None), ("1", 1), ("16", 16), ("007", 7)])
def test_a_number_or_auto_is_read(text, number):
    assert whole_number_or_auto("--trials-per-gpu", text) == number


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "Auto", "1e3"])
def test_neither_a_number_nor_auto_is_refused(text):
    with pytest.raises(SpecError) as caught:
        whole_number_or_auto("--trials-per-gpu", text)
    assert str(caught.value) == f"--trials-per-gpu {text}: give a whole number of at least 1, or auto"


@pytest.mark.parametrize("text", ["²", "①"])
def test_a_digit_that_is_no_number_is_refused(text):
    with pytest.raises(SpecError):
        whole_number_or_auto("--trials-per-gpu", text)


def test_settings_are_sorted_into_those_of_a_trial_and_of_the_search():
    fixed, options = split_settings(
        [
            "prompt_length=20",
            "ffn_lr=1e-4",
            "prompt_lr=0.3",
            "relative_prompt_lr=0.02",
            "wide_start=false",
            "labels=words",
            "prompt_text=a = b",
            "batch_size={low: 4, high: 8}",
            "reduction_factor=4",
            "tokens_per_pass=16",
            "max_failures=0",
        ]
    )
    assert fixed == {
        "prompt_length": 20,
        "ffn_lr": "1e-4",  # as YAML 1.1 has it; the space makes a number of it
        "prompt_lr": 0.3,
        "relative_prompt_lr": 0.02,
        "wide_start": False,
        "labels": "words",
        "prompt_text": "a = b",
        "batch_size": {"low": 4, "high": 8},
    }
    assert options == {"reduction_factor": 4.0, "tokens_per_pass": 16, "max_failures": 0}


def test_no_settings_are_none():
    assert split_settings([]) == ({}, {})


def test_the_last_of_equal_settings_counts():
    assert split_settings(["prompt_length=2", "prompt_length=3"])[0] == {"prompt_length": 3}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("ffn_lr", "--set ffn_lr: give KEY=VALUE"),
        ("", "--set : give KEY=VALUE"),
        ("tokens_per_pass=many", "--set tokens_per_pass=many: give a int"),
        ("max_failures=1.5", "--set max_failures=1.5: give a int"),
        ("reduction_factor=", "--set reduction_factor=: give a float"),
        ("nosuch=3", "--set nosuch=3: unknown key 'nosuch'; known: reduction_factor, tokens_per_pass, max_failures, "),
        ("=3", "--set =3: unknown key ''; known: "),
        ("width=3", "--set width=3: unknown key 'width'; known: "),
    ],
)
def test_a_setting_that_cannot_be_is_refused(pair, said):
    with pytest.raises(SpecError) as caught:
        split_settings([pair])
    assert str(caught.value).startswith(said)


def test_an_unknown_key_lists_the_methods_settings():
    with pytest.raises(SpecError, match=r"ffn_width.*low_rank_lr.*prompt_length.*rank"):
        split_settings(["nosuch=3"])


@pytest.mark.parametrize("pair", ["ffn_lr=[1", "ffn_lr=2001-99-99", "ffn_lr=!!python/none", "ffn_lr='"])
def test_a_value_that_is_not_yaml_is_refused(pair):
    with pytest.raises(SpecError):
        split_settings([pair])


def test_a_precision_is_given_or_left_to_the_device():
    assert [precision_or_auto(text) for text in ("fp32", "bf16", "auto")] == ["fp32", "bf16", None]


@pytest.mark.parametrize(
    ("text", "said"),
    [("fp16", "--precision fp16: T5's activations pass its largest number"), ("int8", "--precision int8: give fp32")],
)
def test_a_precision_that_cannot_be_is_refused_with_the_reason(text, said):
    with pytest.raises(SpecError) as caught:
        precision_or_auto(text)
    assert str(caught.value).startswith(said)
