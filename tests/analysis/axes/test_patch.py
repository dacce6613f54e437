"""Nodes that are adapted: sizes that are asked for, and sizes that are given, constant, computed or left out."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from onnxopt.analysis.axes import Channels, channel_ids, groups
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch

Feeds = dict[str, npt.NDArray[np.float32]]
Check = Callable[..., Channels]
Sandwich = Callable[..., tuple[onnx.ModelProto, Feeds]]
HEADS, SIZE = 4, 2


def _ints(sketch: Sketch, *values: int) -> str:
    return sketch.weight("ints", np.array(values, np.int64))


def _units(channels: Channels) -> dict[str, int]:
    return {group.name: len(group.units) for group in groups(channels) if group.exact}


def test_number_of_elements(assert_exact: Check, sandwich: Sandwich) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        return sketch.node("Div", x, sketch.node("Cast", sketch.node("Size", x), to=1))

    assert _units(assert_exact(*sandwich(middle))) == {"first.weight": 8}


@pytest.mark.parametrize("op", ["Shape", "Size"])
def test_sizes_of_a_weight_stay_what_they_were(assert_exact: Check, sandwich: Sandwich, op: str) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        weight = sketch.random("middle.weight", 8, 6)
        count = sketch.node("ReduceMax", sketch.node("Cast", sketch.node(op, weight), to=1), keepdims=0)
        return sketch.node("Div", sketch.node("MatMul", x, weight), count)

    proto, feeds = sandwich(middle, tokens=True, rows=6)
    assert _units(assert_exact(proto, feeds)) == {"first.weight": 8, "middle.weight": 6}


@pytest.mark.parametrize("shape", [(5,), (1, 5), (6, 1), (1, 6, 1), (8, 1, 5), (2, 1, 1, 5)])
def test_expand_to_fewer_axes(assert_exact: Check, sandwich: Sandwich, shape: tuple[int, ...]) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        axis = 3 if shape[-1] == 5 else 2
        x = sketch.node("ReduceSum", x, _ints(sketch, 0, axis), keepdims=1)
        return sketch.node("Expand", x, _ints(sketch, *shape))

    assert _units(assert_exact(*sandwich(middle))) == {"first.weight": 8}


def _attention(flat: Callable[[Sketch, Callable[[int], str]], str], *, mask: bool = False) -> onnx.ModelProto:
    """Heads beside the batch, on one axis whose size is open: [batch * heads, tokens, size]."""
    sketch = Sketch()
    x = sketch.input("data", ("batch", "tokens", 8))
    shape = sketch.node("Shape", x)

    def size(place: int) -> str:
        return sketch.node("Slice", shape, _ints(sketch, place), _ints(sketch, place + 1))

    def shaped(y: str, *sizes: str) -> str:
        return sketch.node("Reshape", y, sketch.node("Concat", *sizes, axis=0))

    def projected(name: str) -> str:
        y = sketch.node("MatMul", x, sketch.random(name, 8, HEADS * SIZE))
        y = sketch.node("Transpose", shaped(y, size(0), size(1), _ints(sketch, HEADS, SIZE)), perm=[0, 2, 1, 3])
        return shaped(y, flat(sketch, size), _ints(sketch, SIZE))

    q, k, v = (projected(name) for name in "qkv")
    scores = sketch.node("MatMul", q, sketch.node("Transpose", k, perm=[0, 2, 1]))
    if mask:
        scores = shaped(scores, size(0), _ints(sketch, HEADS), size(1), size(1))
        scores = sketch.node("Add", scores, sketch.random("bias", 1, HEADS, 1, 1))
        scores = shaped(scores, sketch.node("Mul", size(0), _ints(sketch, HEADS)), size(1), size(1))
    y = sketch.node("MatMul", sketch.node("Softmax", scores), v)
    y = sketch.node(
        "Transpose", shaped(y, size(0), _ints(sketch, HEADS), size(1), _ints(sketch, SIZE)), perm=[0, 2, 1, 3]
    )
    y = shaped(y, size(0), size(1), _ints(sketch, HEADS * SIZE))
    sketch.output(sketch.node("MatMul", y, sketch.random("o", HEADS * SIZE, 3)), ("batch", "tokens", 3))
    return sketch.model()


def _both(sketch: Sketch, size: Callable[[int], str]) -> str:
    return sketch.node("Concat", sketch.node("Mul", size(0), _ints(sketch, HEADS)), size(1), axis=0)


def _first(sketch: Sketch, size: Callable[[int], str]) -> str:
    return sketch.node("Concat", sketch.node("Mul", size(0), _ints(sketch, HEADS)), _ints(sketch, -1), axis=0)


def _last(sketch: Sketch, size: Callable[[int], str]) -> str:
    return sketch.node("Concat", _ints(sketch, -1), size(1), axis=0)


@pytest.mark.parametrize("mask", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("flat", [_both, _first, _last])
@pytest.mark.parametrize("size", [(2, 5), (1, 3)])
def test_heads_beside_a_batch_of_open_size(
    assert_exact: Check, flat: Callable[..., str], mask: bool, size: tuple[int, int]
) -> None:
    feeds = {"data": np.random.default_rng(0).normal(size=(*size, 8)).astype(np.float32)}
    found = groups(assert_exact(_attention(flat, mask=mask), feeds))
    assert [(group.kind, len(group.units)) for group in found] == [("heads", HEADS)]


def test_all_of_an_axis_of_open_size_is_cut_out(assert_exact: Check, sandwich: Sandwich) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        x = sketch.node("Transpose", sketch.node("Reshape", x, _ints(sketch, 0, 0, HEADS, SIZE)), perm=[0, 2, 1, 3])
        shape = sketch.node("Shape", x)
        x = sketch.node("Reshape", x, _ints(sketch, -1, 5, SIZE))
        x = sketch.node("Slice", x, _ints(sketch, 0), _ints(sketch, 2**63 - 1), _ints(sketch, 0))
        x = sketch.node("Transpose", sketch.node("Reshape", x, shape), perm=[0, 2, 1, 3])
        return sketch.node("Reshape", x, _ints(sketch, 0, 0, -1))

    assert _units(assert_exact(*sandwich(middle, tokens=True))) == {"first.weight": HEADS}


def test_a_gather_that_is_a_reshape_is_one_without_a_declared_type(
    assert_exact: Check, sandwich: Sandwich, caplog: pytest.LogCaptureFixture
) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        x = sketch.node("Gather", x, sketch.weight("rows", np.arange(8).reshape(HEADS, SIZE)), axis=-1)
        return sketch.node("Reshape", sketch.node("Relu", x), _ints(sketch, 0, 0, 8))

    assert _units(assert_exact(*sandwich(middle, tokens=True))) == {"first.weight": HEADS}
    assert not caplog.records


def test_a_bias_that_is_computed_makes_no_residual_stream(sandwich: Sandwich) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        scale = sketch.node("ReduceMax", x, keepdims=0)
        bias = sketch.node("Mul", sketch.random("middle.bias", 8, 1, 1), scale)
        return sketch.node("Add", x, bias)

    proto, _ = sandwich(middle)
    assert {group.kind for group in groups(channel_ids(load(proto)))} == {"conv"}


def test_streams_that_are_added_are_residual(sandwich: Sandwich) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        return sketch.node("Sum", x, sketch.node("Conv", x, sketch.random("middle.weight", 8, 8, 1, 1)))

    proto, _ = sandwich(middle)
    assert {group.kind for group in groups(channel_ids(load(proto)))} == {"residual"}
