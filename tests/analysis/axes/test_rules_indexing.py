"""Operators that repeat, pick, place and make entries: channels pass where indices do not speak of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxopt.analysis.axes import Channels, channel_ids, groups
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]
Sandwich = Callable[..., tuple[Any, Any]]
Middle = Callable[[Sketch, str], str]

SIZE = 8


def _ints(sketch: Sketch, *values: Any) -> str:
    return sketch.weight("ints", np.array(values, np.int64))


def _gate(sketch: Sketch, x: str, axis: int) -> str:
    """A computed tensor with one entry along an axis."""
    return sketch.node("ReduceMean", sketch.node("Tanh", x), _ints(sketch, axis), keepdims=1)


def _repeated(sketch: Sketch, x: str) -> str:
    return sketch.node("Tile", x, _ints(sketch, 1, 3, 2))


def _repeated_gate(sketch: Sketch, x: str) -> str:
    return sketch.node("Mul", x, sketch.node("Tile", sketch.random("gate", 1, 1, 1), _ints(sketch, 1, 5, SIZE)))


def _made(sketch: Sketch, x: str) -> str:
    return sketch.node("Add", x, sketch.node("ConstantOfShape", _ints(sketch, 5, SIZE)))


def _made_as_long(sketch: Sketch, x: str) -> str:
    batch = sketch.node("Shape", x, end=1)
    ones = sketch.node("ConstantOfShape", sketch.node("Concat", batch, _ints(sketch, 5, SIZE), axis=0))
    return sketch.node("Add", x, sketch.node("Exp", ones))


def _triangle(sketch: Sketch, x: str) -> str:
    x = sketch.node("Trilu", sketch.node("Unsqueeze", x, _ints(sketch, 1)), upper=0)
    return sketch.node("Squeeze", x, _ints(sketch, 1))


def _triangle_of_others(sketch: Sketch, x: str) -> str:
    x = sketch.node("Trilu", sketch.node("Transpose", x, perm=[2, 0, 1]), upper=1)
    return sketch.node("Transpose", x, perm=[1, 2, 0])


def _elements(sketch: Sketch, x: str, axis: int) -> str:
    _, places = sketch.node("TopK", x, _ints(sketch, 3), outputs=[sketch.fresh("most"), "places"], axis=axis), "places"
    return sketch.node("GatherElements", x, places, axis=axis)


def _placed_elements(sketch: Sketch, x: str, axis: int) -> str:
    sketch.node("TopK", x, _ints(sketch, 3), outputs=[sketch.fresh("most"), "places"], axis=axis)
    shape = (1, 3, SIZE) if axis == 1 else (1, 5, 3)
    updates = sketch.node("Tile", sketch.random("updates", *shape), _ints(sketch, 2, 1, 1))
    return sketch.node("ScatterElements", x, "places", updates, axis=axis)


def _slices(sketch: Sketch, x: str, depth: int) -> str:
    index = np.array([[0, 1, 2], [1, 4, 3]])[:, :depth]
    found = sketch.node("GatherND", x, sketch.weight("index", index))
    return found if depth == 1 else sketch.node("Unsqueeze", found, _ints(sketch, 0))


def _slices_of_each(sketch: Sketch, x: str) -> str:
    """One token a batch entry."""
    index = sketch.weight("index", np.array([[[3], [1]]]))
    batch = sketch.node("Concat", sketch.node("Shape", x, end=1), _ints(sketch, 2, 1), axis=0)
    return sketch.node("GatherND", x, sketch.node("Expand", index, batch), batch_dims=1)


def _placed_slices(sketch: Sketch, x: str) -> str:
    updates = sketch.node("Neg", sketch.node("Gather", x, _ints(sketch, 0), axis=0))
    return sketch.node("ScatterND", x, sketch.weight("index", np.array([[1]])), updates)


def _drawn(sketch: Sketch, x: str) -> str:
    zero = sketch.weight("none", np.float32(0))
    return sketch.node("Add", x, sketch.node("Mul", sketch.node("RandomNormalLike", x), zero))


def _drawn_as_said(sketch: Sketch, x: str) -> str:
    zero = sketch.weight("none", np.float32(0))
    return sketch.node("Add", x, sketch.node("Mul", sketch.node("RandomUniform", shape=[5, SIZE]), zero))


def _compressed(sketch: Sketch, x: str, axis: int, size: int) -> str:
    return sketch.node("Compress", x, sketch.weight("which", np.arange(size) % 2 == 0), axis=axis)


@pytest.mark.parametrize(
    ("middle", "rows"),
    [
        (_repeated, 2 * SIZE),
        (_repeated_gate, SIZE),
        (_made, SIZE),
        (_made_as_long, SIZE),
        (_triangle_of_others, SIZE),
        (lambda s, x: _elements(s, x, 1), SIZE),
        (lambda s, x: _placed_elements(s, x, 1), SIZE),
        (lambda s, x: _slices(s, x, 1), SIZE),
        (lambda s, x: _slices(s, x, 2), SIZE),
        (_slices_of_each, SIZE),
        (_placed_slices, SIZE),
        (_drawn, SIZE),
        (_drawn_as_said, SIZE),
        (lambda s, x: _compressed(s, x, 1, 5), SIZE),
    ],
)
def test_channels_pass(middle: Middle, rows: int, sandwich: Sandwich, assert_exact: Check) -> None:
    found = groups(assert_exact(*sandwich(middle, rows=rows, tokens=True)))
    assert [(len(group.units), group.exact) for group in found] == [(SIZE, True)]


def _places(sketch: Sketch) -> str:
    return sketch.weight("places", np.zeros((2, 5, 3), np.int64))


def _unique(sketch: Sketch, x: str) -> str:
    return sketch.node("Unique", x)


def _not_zero(sketch: Sketch, x: str) -> str:
    return sketch.node("NonZero", x)


def _identity(sketch: Sketch, x: str) -> str:
    return sketch.node(
        "EyeLike", sketch.node("Squeeze", sketch.node("Slice", x, *(_ints(sketch, i) for i in (0, 1, 0))))
    )


def _repeated_as_computed(sketch: Sketch, x: str) -> str:
    flat = sketch.node("Reshape", x, _ints(sketch, -1))
    times = sketch.node("Concat", _ints(sketch, 1), sketch.node("ArgMax", flat), _ints(sketch, 1), axis=0)
    return sketch.node("Tile", x, times)


@pytest.mark.parametrize(
    "middle",
    [
        _triangle,
        lambda s, x: _elements(s, x, 2),
        lambda s, x: _placed_elements(s, x, 2),
        lambda s, x: s.node("GatherElements", x, _places(s), axis=2),
        lambda s, x: s.node("ScatterElements", x, _places(s), s.random("updates", 2, 5, 3), axis=2),
        lambda s, x: _slices(s, x, 3),
        lambda s, x: _compressed(s, x, 2, SIZE),
        lambda s, x: s.node("Compress", x, s.weight("which", np.ones(9, bool))),
        _unique,
        _not_zero,
        _identity,
        _repeated_as_computed,
    ],
)
def test_channels_stay(middle: Middle, sandwich: Sandwich) -> None:
    assert not groups(channel_ids(load(sandwich(middle, rows=0, tokens=True)[0])))


def test_indices_of_channels_one_hot(sandwich: Sandwich, assert_exact: Check) -> None:
    """What the greatest channel is holds them; what comes of it has classes, not channels."""

    def middle(sketch: Sketch, x: str) -> str:
        y = sketch.node("MatMul", x, sketch.random("inner.weight", SIZE, 6))
        best = sketch.node("ArgMax", y, axis=-1, keepdims=0)
        depth, values = sketch.weight("depth", np.int64(6)), sketch.weight("values", np.array([0, 1], np.float32))
        hot = sketch.node("OneHot", best, depth, values)
        return sketch.node("MatMul", hot, sketch.random("outer.weight", 6, SIZE))

    found = groups(assert_exact(*sandwich(middle, tokens=True)))
    assert [len(group.units) for group in found] == [SIZE, SIZE]


def test_rows_written_at_known_places(sandwich: Sandwich, assert_exact: Check) -> None:
    """A bias whose middle third is set to another value: queries, keys without a bias, values."""

    def middle(sketch: Sketch, x: str) -> str:
        index = sketch.weight("index", np.arange(8, 16).reshape(-1, 1))
        zeros = sketch.node("Expand", sketch.weight("zero", np.zeros(1, np.float32)), _ints(sketch, 8))
        bias = sketch.node("ScatterND", sketch.random("qkv.bias", 24), index, zeros)
        y = sketch.node("Add", sketch.node("MatMul", x, sketch.random("qkv.weight", SIZE, 24)), bias)
        y = sketch.node("Reshape", y, _ints(sketch, 0, 0, 3, 4, 2))
        q, k, v = (sketch.node("Gather", y, sketch.weight(f"at{i}", np.int64(i)), axis=2) for i in range(3))
        return sketch.node("Reshape", sketch.node("Add", sketch.node("Mul", q, k), v), _ints(sketch, 0, 0, -1))

    found = groups(assert_exact(*sandwich(middle, tokens=True), draws=6))
    assert sorted(len(group.units) for group in found) == [4, SIZE]


def test_everything_gathered_in_order_is_a_reshape(sandwich: Sandwich, assert_exact: Check) -> None:
    """Strides spelled out as computed indices into what was flattened."""

    def middle(sketch: Sketch, x: str) -> str:
        x = sketch.node("Reshape", sketch.node("GlobalAveragePool", x), _ints(sketch, -1))
        batch = sketch.node("Squeeze", sketch.node("Shape", "data", end=1), _ints(sketch, 0))
        zero, one = (sketch.weight(name, np.int64(value)) for name, value in (("zero", 0), ("one", 1)))
        rows = sketch.node("Mul", sketch.node("Range", zero, batch, one), sketch.weight("stride", np.int64(SIZE)))
        rows = sketch.node("Unsqueeze", rows, _ints(sketch, 1, 2, 3))
        columns = sketch.weight("columns", np.arange(SIZE).reshape(1, SIZE, 1, 1))
        return sketch.node("Gather", x, sketch.node("Add", rows, columns))

    model, feeds = sandwich(middle)
    found = groups(assert_exact(model, feeds))
    assert [(len(group.units), group.exact) for group in found] == [(SIZE, True)]
