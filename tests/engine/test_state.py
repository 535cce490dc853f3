"""Trial states on disk: what goes in comes out, and whatever was damaged says so."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from adept_tune.engine import state as state_module
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.state import TrialState
from adept_tune.errors import StateError
from adept_tune.methods import INPUT_SIDE, get_method
from adept_tune.methods.base import Sizes

WHERE = "experiment/states/trial-7"


def made_state(
    method: str = "adept", prompt_length: int = 3, width: int = 2, dtype: torch.dtype = torch.float32, **fields: Any
) -> TrialState:
    sizes = Sizes(prompt_length, width, d_model=4, source_length=6)
    source = torch.Generator().manual_seed(0)
    tensors, first, second = (
        {
            name: torch.randn(sizes.of(axes), generator=source).to(dtype)
            for name, axes in get_method(method).axes.items()
        }
        for _ in range(3)
    )
    config = TrialConfig(prompt_length=prompt_length, width=width, seed=7, prompt_lr=0.1 + 0.2, labels="words")
    return replace(TrialState(method, config, sizes, 17, tensors, first, second, 0.1 + 0.2, 5), **fields)


def plain(state: TrialState) -> dict[str, Any]:
    """A state as values that compare bit by bit."""
    kinds = {
        kind: {
            name: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().flatten().view(torch.uint8).tolist())
            for name, tensor in getattr(state, kind).items()
        }
        for kind in ("tensors", "first", "second")
    }
    settings = (state.method, state.config, state.sizes, state.step, repr(state.loss_sum), state.loss_count)
    return kinds | {"settings": settings}


@cache
def blob() -> bytes:
    return made_state().to_bytes()


def read(data: bytes) -> TrialState | None:
    """A state, or None where it was refused in the way that is promised."""
    try:
        return TrialState.from_bytes(data, WHERE)
    except StateError as error:
        message = str(error)
    assert message.startswith(WHERE)
    return None


@pytest.mark.parametrize("method", sorted(INPUT_SIDE))
@pytest.mark.parametrize(("prompt_length", "width"), [(3, 2), (0, 2), (3, 0), (0, 0)])
def test_round_trip_is_exact_for_every_method_and_size(method: str, prompt_length: int, width: int) -> None:
    state = made_state(method, prompt_length, width)
    assert plain(TrialState.from_bytes(state.to_bytes(), WHERE)) == plain(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_round_trip_keeps_the_dtype(dtype: torch.dtype) -> None:
    state = made_state(dtype=dtype)
    assert plain(TrialState.from_bytes(state.to_bytes(), WHERE)) == plain(state)


@pytest.mark.parametrize("loss_sum", [0.1 + 0.2, float("nan"), float("inf"), -0.0, 5e-324])
def test_round_trip_keeps_every_kind_of_number(loss_sum: float) -> None:
    state = made_state(loss_sum=loss_sum)
    state.tensors["prompt"][0] = torch.tensor([float("nan"), -0.0, float("-inf"), 1e-45])
    assert plain(TrialState.from_bytes(state.to_bytes(), WHERE)) == plain(state)


def test_equal_states_are_equal_bytes_whatever_their_strides() -> None:
    state = made_state()
    transposed = {name: tensor.t().contiguous().t() for name, tensor in state.tensors.items()}
    assert not transposed["ffn_w1"].is_contiguous()
    assert replace(state, tensors=transposed).to_bytes() == state.to_bytes()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_truncated_blob_is_refused(data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(blob()) - 1))
    assert read(blob()[:length]) is None


@given(st.data())
@settings(max_examples=600, deadline=None)
def test_flipped_byte_anywhere_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(blob()) - 1))
    flipped = bytearray(blob())
    flipped[position] ^= data.draw(st.integers(1, 255))
    state = read(bytes(flipped))
    assert state is None or plain(state) == plain(made_state())


def test_every_flipped_bit_of_the_numbers_is_refused() -> None:
    begin = 8 + int.from_bytes(blob()[:8], "little")
    assert len(blob()) - begin == 4 * 3 * get_method("adept").num_parameters(made_state().sizes)
    for position in range(begin, len(blob()), 7):
        flipped = bytearray(blob())
        flipped[position] ^= 1 << (position % 8)
        with pytest.raises(StateError, match="the digest does not match"):
            TrialState.from_bytes(bytes(flipped), WHERE)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    assert read(data) is None
    assert read(len(data).to_bytes(8, "little") + data) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(header=json_values, inside=json_values)
@settings(max_examples=60, deadline=None)
def test_json_of_another_kind_is_refused(header: Any, inside: Any) -> None:
    texts = [header, {"__metadata__": header}, {"__metadata__": {"state": json.dumps(inside)}}]
    for value in texts:
        text = json.dumps(value).encode()
        assert read(len(text).to_bytes(8, "little") + text) is None


def test_json_nested_without_end_is_refused() -> None:
    assert read((100_000).to_bytes(8, "little") + b"[" * 100_000) is None


def test_safetensors_of_something_else_are_refused() -> None:
    assert read(save({"weight": torch.ones(3)})) is None
    assert read(save({"weight": torch.ones(3)}, metadata={"state": "{}"})) is None
    assert read(save(load(blob()), metadata={"format": "pt"})) is None


@pytest.mark.parametrize("kind", ["tensors", "first", "second"])
def test_wrong_shape_is_refused_with_expected_and_found(kind: str) -> None:
    state = made_state()
    changed = {**getattr(state, kind), "ffn_w1": torch.zeros(4, 3)}
    with pytest.raises(StateError, match=rf"{WHERE}: {kind} ffn_w1: expected shape \(4, 2\), found \(4, 3\)"):
        TrialState.from_bytes(replace(state, **{kind: changed}).to_bytes(), WHERE)


@pytest.mark.parametrize("kind", ["tensors", "first", "second"])
def test_missing_tensor_is_refused_by_name(kind: str) -> None:
    state = made_state()
    fewer = {name: tensor for name, tensor in getattr(state, kind).items() if name != "prompt"}
    with pytest.raises(StateError, match=rf"{WHERE}: {kind} prompt: expected shape \(3, 4\), found nothing"):
        TrialState.from_bytes(replace(state, **{kind: fewer}).to_bytes(), WHERE)


def test_another_format_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = state_module.FORMAT
    monkeypatch.setattr(state_module, "FORMAT", 99)
    later = made_state().to_bytes()
    monkeypatch.setattr(state_module, "FORMAT", ours)
    with pytest.raises(StateError, match=f"{WHERE}: format 99; this version reads format {ours}"):
        TrialState.from_bytes(later, WHERE)


def test_settings_out_of_range_are_refused() -> None:
    state = made_state()
    impossible = state.config.model_copy(update={"prompt_lr": -1.0})
    with pytest.raises(StateError, match=rf"{WHERE}: not a readable trial state [\s\S]*prompt_lr"):
        TrialState.from_bytes(replace(state, config=impossible).to_bytes(), WHERE)


def test_unknown_method_is_refused_with_the_source() -> None:
    with pytest.raises(StateError, match=WHERE):
        TrialState.from_bytes(replace(made_state(), method="sgd").to_bytes(), WHERE)
