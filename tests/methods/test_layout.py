"""Flat vectors of a stack: what goes in comes out, and padding is zero."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adept_tune.methods import INPUT_SIDE
from adept_tune.methods.base import Method, Sizes
from adept_tune.methods.layout import Layout

WIDEST = Sizes(prompt_length=5, width=4, d_model=3, source_length=6)

methods = st.sampled_from(sorted(INPUT_SIDE)).map(INPUT_SIDE.__getitem__)
length = st.integers(0, 5)


def numbered(method: Method, sizes: Sizes) -> dict[str, Tensor]:
    """Tensors whose numbers are 1, 2, 3, ...: none is zero and no two are equal."""
    tensors, start = {}, 1
    for name, axes in method.axes.items():
        shape = sizes.of(axes)
        tensors[name] = torch.arange(start, start + prod(shape), dtype=torch.float64).reshape(shape)
        start += prod(shape)
    return tensors


@given(method=methods, m=length, r=length, more_m=length, more_r=length, d=st.integers(1, 4), s=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_unpack_gives_back_what_pack_took(
    method: Method, m: int, r: int, more_m: int, more_r: int, d: int, s: int
) -> None:
    sizes, widest = Sizes(m, r, d, s), Sizes(m + more_m, r + more_r, d, s)
    layout, tensors = Layout(method, widest), numbered(method, sizes)
    flat_N = layout.pack(tensors, sizes)
    assert flat_N.shape == (layout.num_columns,) == (method.num_parameters(widest),)
    back = layout.unpack(flat_N, sizes)
    assert list(back) == list(method.axes)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert all(tensor.is_contiguous() for tensor in back.values())
    # All else is padding, and zero.
    assert int((flat_N != 0).sum()) == method.num_parameters(sizes)


@pytest.mark.parametrize("name", sorted(INPUT_SIDE))
def test_views_pad_prompts_on_the_left_and_bottlenecks_on_the_right(name: str) -> None:
    method, sizes = INPUT_SIDE[name], Sizes(2, 3, WIDEST.d_model, WIDEST.source_length)
    layout, tensors = Layout(method, WIDEST), numbered(INPUT_SIDE[name], sizes)
    views = layout.views(torch.stack([torch.zeros(layout.num_columns).double(), layout.pack(tensors, sizes)]))
    for tensor_name, axes in method.axes.items():
        view, own = views[tensor_name], tensors[tensor_name]
        assert view.shape == (2, *WIDEST.of(axes))
        assert not view[0].any()
        expected = torch.zeros(WIDEST.of(axes), dtype=torch.float64)
        place = {"M": slice(WIDEST.prompt_length - 2, None), "R": slice(0, 3)}
        expected[tuple(place.get(axis, slice(None)) for axis in axes)] = own
        assert torch.equal(view[1], expected)


def test_narrow_keeps_the_right_end_of_prompts_and_the_left_end_of_bottlenecks() -> None:
    adept = INPUT_SIDE["adept"]
    layout = Layout(adept, WIDEST)
    views = layout.views(torch.arange(2.0 * layout.num_columns).view(2, -1))
    cut = layout.narrow(views, 3, 2)
    assert torch.equal(cut["prompt"], views["prompt"][:, 2:])
    assert torch.equal(cut["ffn_w1"], views["ffn_w1"][:, :, :2])
    assert torch.equal(cut["ffn_b1"], views["ffn_b1"][:, :2])
    assert torch.equal(cut["ffn_w2"], views["ffn_w2"][:, :2])
    assert torch.equal(cut["ffn_b2"], views["ffn_b2"])


def test_gradients_flow_through_narrowed_views_to_the_flat_numbers_and_not_to_padding() -> None:
    adept, sizes = INPUT_SIDE["adept"], Sizes(2, 3, WIDEST.d_model, WIDEST.source_length)
    layout = Layout(adept, WIDEST)
    flat_KN = torch.zeros(2, layout.num_columns, dtype=torch.float64, requires_grad=True)
    weight = numbered(adept, sizes)
    cut = layout.narrow(layout.views(flat_KN), 2, 3)
    sum((cut[name][1] * weight[name]).sum() for name in weight).backward()
    assert flat_KN.grad is not None
    assert not flat_KN.grad[0].any()
    assert torch.equal(flat_KN.grad[1], layout.pack(weight, sizes))


def test_unpacked_tensors_are_copies() -> None:
    layout = Layout(INPUT_SIDE["adept"], WIDEST)
    flat_N = torch.ones(layout.num_columns)
    for tensor in layout.unpack(flat_N, WIDEST).values():
        tensor.zero_()
    assert flat_N.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pack_keeps_the_dtype(dtype: torch.dtype) -> None:
    layout = Layout(INPUT_SIDE["dept"], WIDEST)
    tensors = {name: tensor.to(dtype) for name, tensor in numbered(INPUT_SIDE["dept"], WIDEST).items()}
    assert layout.pack(tensors, WIDEST).dtype == dtype


@pytest.mark.parametrize("name", sorted(INPUT_SIDE))
def test_prompt_columns_are_exactly_those_of_the_prompt(name: str) -> None:
    layout = Layout(INPUT_SIDE[name], WIDEST)
    columns_N = layout.prompt_columns(torch.device("cpu"))
    views = layout.views(columns_N[None])
    assert {tensor_name for tensor_name, view in views.items() if view.all()} == {"prompt"}
    assert int(columns_N.sum()) == WIDEST.prompt_length * WIDEST.d_model
