"""Reductions: sums ignore what is gone, other statistics are marked, orders hold."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxopt.analysis.axes import Channels, channel_ids, groups
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]
Sandwich = Callable[..., tuple[Any, Any]]

SIZE = 8
SUMS = ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
STATISTICS = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp"]


def _over(sketch: Sketch, x: str, op: str, axes: list[int] | None, opset: int, **options: int) -> str:
    """With the axes as the opset has them."""
    attribute = opset < (13 if op == "ReduceSum" else 18)
    if axes is None or attribute:
        return sketch.node(op, x, **({} if axes is None else {"axes": axes}), **options)
    return sketch.node(op, x, sketch.weight("axes", np.array(axes, np.int64)), **options)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("op", [*SUMS, "ReduceLogSum"])
def test_sums_over_channels_ignore_removed_ones(
    op: str, keep: int, opset: int, sandwich: Sandwich, assert_exact: Check
) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        return _over(sketch, sketch.node("Abs", x), op, [-3], opset, keepdims=keep)

    model, feeds = sandwich(middle, rows=0, rank=3 + keep, opset=opset)
    found = groups(assert_exact(model, feeds))
    assert [(len(group.units), group.exact) for group in found] == [(SIZE, True)]


@pytest.mark.parametrize("op", STATISTICS)
def test_statistics_over_channels_are_marked(op: str, sandwich: Sandwich, removing: SimpleNamespace) -> None:
    model, feeds = sandwich(lambda sketch, x: _over(sketch, x, op, [1], 18), rows=0, rank=4)
    found = groups(channel_ids(load(model)))
    assert [(len(group.units), group.exact) for group in found] == [(SIZE, False)]
    assert op in (found[0].reason or "")
    cut = removing.without(model, found[0].units[:3])
    assert removing.outputs(cut, feeds)[0].shape == (2, 1, 6, 4)


@pytest.mark.parametrize("op", [*SUMS, *STATISTICS])
@pytest.mark.parametrize("opset", [11, 18])
def test_channels_pass_reductions_of_other_axes(op: str, opset: int, sandwich: Sandwich, assert_exact: Check) -> None:
    model, feeds = sandwich(lambda sketch, x: _over(sketch, x, op, [2, -1], opset, keepdims=1), opset=opset)
    assert [len(group.units) for group in groups(assert_exact(model, feeds))] == [SIZE]


def test_without_axes_all_are_reduced_or_none(sandwich: Sandwich, assert_exact: Check) -> None:
    for axes in (None, []):
        found = groups(
            assert_exact(*sandwich(lambda s, x, a=axes: _over(s, x, "ReduceSum", a, 18), rows=0))  # type: ignore[misc]
        )
        assert [(len(group.units), group.exact) for group in found] == [(SIZE, True)]
    model, feeds = sandwich(lambda s, x: _over(s, x, "ReduceSum", None, 18, noop_with_empty_axes=1))
    assert [len(group.units) for group in groups(assert_exact(model, feeds))] == [SIZE]


def test_axes_that_are_computed_hold(sandwich: Sandwich) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        flat = sketch.node("Reshape", "data", sketch.weight("flat", np.array([-1])))
        axis = sketch.node("ArgMax", flat, keepdims=1)
        return sketch.node("ReduceSum", x, sketch.node("Mod", axis, sketch.weight("four", np.array([4]))))

    assert not groups(channel_ids(load(sandwich(middle, rows=0)[0])))


def _extreme(sketch: Sketch, x: str, axis: int) -> str:
    found = sketch.node("ArgMax", x, axis=axis, keepdims=1)
    return sketch.node("Mul", x, sketch.node("Cast", found, to=1))


def _largest(sketch: Sketch, x: str, axis: int) -> str:
    return sketch.node(
        "TopK", x, sketch.weight("k", np.array([3])), outputs=[sketch.fresh("values"), "places"], axis=axis
    )


def _largest_places(sketch: Sketch, x: str, axis: int) -> str:
    places = sketch.fresh("places")
    sketch.node("TopK", x, sketch.weight("k", np.array([3])), outputs=[sketch.fresh("values"), places], axis=axis)
    return sketch.node("Cast", places, to=1)


def _running(sketch: Sketch, x: str, axis: int) -> str:
    return sketch.node("CumSum", x, sketch.weight("axis", np.int64(axis)))


@pytest.mark.parametrize("middle", [_extreme, _largest, _largest_places, _running])
def test_orders_hold_their_axis_alone(
    middle: Callable[[Sketch, str, int], str], sandwich: Sandwich, assert_exact: Check
) -> None:
    model, feeds = sandwich(lambda sketch, x: middle(sketch, x, 2))
    assert [(len(group.units), group.exact) for group in groups(assert_exact(model, feeds))] == [(SIZE, True)]
    assert not groups(channel_ids(load(sandwich(lambda sketch, x: middle(sketch, x, 1), rows=0)[0])))


def test_a_sum_over_constants_alone(assert_exact: Check) -> None:
    """Weights divided by their own length, of which a removed entry is no part any more."""
    sketch = Sketch()
    x = sketch.input("data", ("batch", 3))
    x = sketch.node("MatMul", x, sketch.random("first.weight", 3, SIZE))
    weight = sketch.random("last.weight", SIZE, 4)
    length = sketch.node("ReduceL2", weight, sketch.weight("axes", np.array([0])), keepdims=1)
    sketch.output(sketch.node("MatMul", x, sketch.node("Div", weight, length)), ("batch", 4))
    found = groups(assert_exact(sketch.model(), {"data": np.ones((2, 3), np.float32)}))
    assert [(len(group.units), group.exact) for group in found] == [(SIZE, True)]


def test_layers_on_constants_alone(assert_exact: Check) -> None:
    """Hidden units of what computes a table of biases from coordinates."""
    sketch = Sketch()
    x = sketch.input("data", ("batch", 5))
    bias = sketch.node("MatMul", sketch.random("coordinates", 5, 2), sketch.random("first.weight", 2, SIZE))
    bias = sketch.node("MatMul", sketch.node("Relu", bias), sketch.random("second.weight", SIZE, 1))
    bias = sketch.node("Reshape", bias, sketch.weight("flat", np.array([-1])))
    sketch.output(sketch.node("Add", x, bias), ("batch", 5))
    found = groups(assert_exact(sketch.model(), {"data": np.ones((2, 5), np.float32)}))
    assert sorted((len(group.units), group.exact) for group in found) == [(SIZE, True)]
