"""Operators that do the work of several have the units of those."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxopt.analysis.axes import Channels, channel_ids, frozen, groups, lost_to
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]
Middle = Callable[[Sketch, str], str]

MICROSOFT = "com.microsoft"
WIDTH = 12


def _microsoft(sketch: Sketch, op: str, *inputs: str, **attributes: Any) -> str:
    sketch.domains[MICROSOFT] = 1
    return sketch.node(op, *inputs, domain=MICROSOFT, **attributes)


def _rows(middle: Middle, last: int = WIDTH) -> onnx.ModelProto:
    """A product with 12 columns, what is tested, a product."""
    sketch = Sketch(opset=18)
    x = sketch.node("MatMul", sketch.input("x", ("batch", 5, 3)), sketch.random("first", 3, WIDTH))
    x = sketch.node("MatMul", middle(sketch, x), sketch.random("last", last, 4))
    sketch.output(x, [None] * 3)
    return sketch.model()


def _images(middle: Middle, last: int) -> onnx.ModelProto:
    """A convolution to 12 channels, what is tested, a convolution."""
    sketch = Sketch(opset=18)
    x = sketch.node("Conv", sketch.input("x", ("batch", 3, 6, 6)), sketch.random("first", WIDTH, 3, 1, 1))
    x = sketch.node("Conv", middle(sketch, x), sketch.random("last", 4, last, 1, 1))
    sketch.output(x, ("batch", 4, None, None))
    return sketch.model()


def _feeds(proto: onnx.ModelProto) -> dict[str, Any]:
    shape = [dim.dim_value or 2 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}


def _units(channels: Channels) -> list[int]:
    assert lost_to(channels, "needs-rule") == 0
    assert all(group.exact for group in groups(channels))
    return sorted(len(group.units) for group in groups(channels))


@pytest.mark.parametrize(
    ("op", "biased"), [("BiasGelu", 1), ("FastGelu", 1), ("FastGelu", 0), ("Gelu", 0), ("QuickGelu", 0)]
)
def test_gelu(op: str, biased: int, check: Check) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        return _microsoft(sketch, op, x, *([sketch.random("bias", WIDTH)] if biased else []))

    proto = _rows(middle)
    assert _units(check(proto, _feeds(proto))) == [WIDTH]


def test_bias_add_makes_a_residual_stream() -> None:
    """For graphics processors alone: seen to load."""

    def middle(sketch: Sketch, x: str) -> str:
        other = sketch.node("MatMul", "x", sketch.random("other", 3, WIDTH))
        return _microsoft(sketch, "BiasAdd", x, sketch.random("bias", WIDTH), other)

    (group,) = groups(channel_ids(load(_rows(middle))))
    assert (len(group.units), group.kind, len(group.members)) == (WIDTH, "residual", 4)


def test_bias_split_gelu() -> None:
    """The halves go together."""

    def middle(sketch: Sketch, x: str) -> str:
        return _microsoft(sketch, "BiasSplitGelu", x, sketch.random("bias", WIDTH))

    proto = _rows(middle, last=WIDTH // 2)
    (group,) = groups(channel_ids(load(proto)))
    counts = {member.weight.root.name: member.count for member in group.members}
    assert counts == {"first": 2, "bias": 2, "last": 1}
    assert len(group.units) == WIDTH // 2


@pytest.mark.parametrize("op", ["FusedMatMul", "TransposeMatMul"])
@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_fused_matmul(op: str, turned: tuple[int, int], check: Check) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        x = sketch.node("Transpose", x, perm=[0, 2, 1]) if turned[0] else x
        weight = sketch.random("weight", *((7, WIDTH) if turned[1] else (WIDTH, 7)))
        return _microsoft(sketch, op, x, weight, alpha=0.5, transA=turned[0], transB=turned[1])

    proto = _rows(middle, last=7)
    assert _units(check(proto, _feeds(proto))) == [7, WIDTH]


def test_fused_matmul_with_heads_in_the_middle(check: Check) -> None:
    """[tokens, heads, size] multiplied head by head, without a Transpose."""

    def middle(sketch: Sketch, x: str) -> str:
        shape = sketch.weight("shape", np.array([5, 6, 2]))
        parts = (sketch.node("MatMul", x, sketch.random(name, WIDTH, WIDTH)) for name in "qkv")
        q, k, v = (sketch.node("Reshape", part, shape) for part in parts)
        scores = _microsoft(sketch, "FusedMatMul", q, k, transBatchA=1, transBatchB=1, transB=1)
        y = _microsoft(sketch, "FusedMatMul", sketch.node("Softmax", scores, axis=-1), v, transBatchB=1)
        y = sketch.node("Transpose", y, perm=[1, 0, 2])
        return sketch.node("Reshape", y, sketch.weight("flat", np.array([1, 5, WIDTH])))

    proto = _rows(middle)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    found = groups(check(proto, _feeds(proto)))
    assert [(len(group.units), group.kind) for group in found] == [(WIDTH, "neurons"), (6, "heads")]


@pytest.mark.parametrize("turned", [0, 1])
def test_fused_gemm(turned: int, check: Check) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        x = sketch.node("Reshape", x, sketch.weight("flat", np.array([-1, WIDTH])))
        weight = sketch.random("weight", *((7, WIDTH) if turned else (WIDTH, 7)))
        y = _microsoft(sketch, "FusedGemm", x, weight, sketch.random("bias", 7), transB=turned, activation="Relu")
        return sketch.node("Reshape", y, sketch.weight("back", np.array([-1, 5, 7])))

    proto = _rows(middle, last=7)
    assert _units(check(proto, _feeds(proto))) == [7, WIDTH]


@pytest.mark.parametrize(("rows", "groups_", "units"), [(8, 1, [8, 12]), (12, 12, [12]), (6, 2, [3, 6])])
def test_fused_conv(rows: int, groups_: int, units: list[int], check: Check) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        weight, bias = sketch.random("weight", rows, WIDTH // groups_, 1, 1), sketch.random("bias", rows)
        other = sketch.node("Conv", "x", sketch.random("other", rows, 3, 1, 1))
        return _microsoft(sketch, "FusedConv", x, weight, bias, other, activation="Relu", group=groups_)

    proto = _images(middle, rows)
    found = groups(check(proto, _feeds(proto)))
    assert sorted(len(group.units) for group in found) == units
    assert "residual" in {group.kind for group in found}


@pytest.mark.parametrize(
    ("weight", "groups_", "units"),
    [
        ((8, 1, 1, WIDTH), 1, [8, 12]),
        ((8, WIDTH, 1, 1), 1, [8, 12]),
        ((12, 3, 3, 1), 12, [12]),
        ((6, 3, 3, 6), 2, [3, 6]),
    ],
)
def test_convolution_with_channels_last(
    weight: tuple[int, ...], groups_: int, units: list[int], removing: SimpleNamespace
) -> None:
    """For graphics processors alone: what is cut is looked at."""

    def middle(sketch: Sketch, x: str) -> str:
        x = sketch.node("Transpose", x, perm=[0, 2, 3, 1])
        x = _microsoft(
            sketch, "NhwcConv", x, sketch.random("weight", *weight), sketch.random("bias", weight[0]), group=groups_
        )
        return sketch.node("Transpose", x, perm=[0, 3, 1, 2])

    proto = _images(middle, weight[0])
    channels = channel_ids(load(proto))
    assert _units(channels) == units
    cut = removing.without(proto, [group.units[0] for group in groups(channels)])
    left = {value.name: tuple(value.shape) for value in cut.weights()}
    (node,) = (node for node in cut.nodes() if node.op_type == "NhwcConv")
    assert left["first"][0] < WIDTH
    assert left["weight"][0] == left["bias"][0] == left["last"][1] < weight[0]
    inner = left["first"][0] // node.attributes.get_int("group")
    assert sorted(left["weight"][1:]) == sorted((inner, *([3, 3] if 3 in weight else [1, 1])))


def test_pool_with_channels_last(check: Check) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        scale, zero = sketch.weight("scale", np.float32(0.05)), sketch.weight("zero", np.uint8(100))
        x = sketch.node("QuantizeLinear", sketch.node("Transpose", x, perm=[0, 2, 3, 1]), scale, zero)
        x = _microsoft(sketch, "NhwcMaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        x = sketch.node("DequantizeLinear", x, scale, zero)
        return sketch.node("Transpose", x, perm=[0, 3, 1, 2])

    proto = _images(middle, WIDTH)
    assert _units(check(proto, _feeds(proto))) == [WIDTH]


def test_own_functions_hold_what_they_read() -> None:
    """Layers that were lowered to functions keep their channels, which nobody has to write a rule for."""
    sketch = Sketch(opset=18)
    sketch.domains["ai.onnxopt"] = 1
    x = sketch.node("MatMul", sketch.input("x", ("batch", 5, 3)), sketch.random("first", 3, WIDTH))
    x = sketch.node("Twice", x, domain="ai.onnxopt")
    sketch.output(sketch.node("MatMul", x, sketch.random("last", WIDTH, 4)), [None] * 3)
    body = onnx.helper.make_function(
        "ai.onnxopt",
        "Twice",
        ["x"],
        ["y"],
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        [onnx.helper.make_opsetid("", 18)],
    )
    channels = channel_ids(load(sketch.model([body])))
    assert not groups(channels)
    assert {each.freeze.reason for each in frozen(channels) if "Twice" in each.freeze.why} == {"semantics"}


def test_shapes_of_unknown_rank_are_no_error() -> None:
    sketch = Sketch(opset=18)
    sketch.domains[MICROSOFT] = 1
    sketch.inputs.append(onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    y = _microsoft(sketch, "FusedMatMul", "x", sketch.random("w", 3, 4))
    sketch.output(_microsoft(sketch, "BiasGelu", y, sketch.random("b", 4)), None)
    assert groups(channel_ids(load(sketch.model()))) == []
