"""Magnitudes of units: what counts, what it stands for, and the same before and after folding."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from onnxopt.analysis.axes import ChannelGroup, channel_ids, groups
from onnxopt.analysis.axes.scoring import magnitudes
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch

Array = npt.NDArray[Any]


def scored(model: Model | onnx.ModelProto, power: int = 2) -> dict[str, tuple[ChannelGroup, Array]]:
    """Group name -> the group and its scores."""
    channels = channel_ids(model if isinstance(model, Model) else load(model))
    found = groups(channels)
    scores = magnitudes(channels, [unit for group in found for unit in group.units], power)
    return {group.name: (group, scores[list(group.units)]) for group in found}


def weights(proto: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float64) for tensor in proto.graph.initializer}


@pytest.mark.parametrize("power", [1, 2])
def test_what_makes_a_unit_and_what_reads_it(power: int) -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 3, 4, 4))
    x = sketch.node("Conv", x, sketch.random("first", 6, 3, 1, 1), sketch.random("bias", 6))
    x = sketch.node("Relu", sketch.node("Mul", x, sketch.random("scale", 6, 1, 1)))
    x = sketch.node("Flatten", x)
    x = sketch.node("Gemm", x, sketch.random("last", 5, 96), transB=1)
    sketch.output(x, ("batch", 5))
    held = weights(model := sketch.model())
    group, scores = scored(model, power)["first"]
    assert len(group.units) == 6
    made = (np.abs(held["first"]) ** power).sum((1, 2, 3))
    read = (np.abs(held["last"]) ** power).reshape(5, 6, 16).sum((0, 2))
    np.testing.assert_allclose(scores, made + read, rtol=1e-6)


def test_vectors_count_where_they_are_multiplied() -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 1))
    x = sketch.node("Tanh", sketch.node("MatMul", x, sketch.random("up", 1, 4)))
    sketch.output(sketch.node("MatMul", x, sketch.random("down", 4, 1)), ("batch", 1))
    held = weights(model := sketch.model())
    _, scores = scored(model)["up"]
    np.testing.assert_allclose(scores, held["up"].ravel() ** 2 + held["down"].ravel() ** 2, rtol=1e-6)


@pytest.mark.parametrize("groups_", [2, 6])
def test_inputs_of_grouped_convolutions_do_not_count(groups_: int) -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 3, 4, 4))
    x = sketch.node("Relu", sketch.node("Conv", x, sketch.random("first", 6, 3, 1, 1)))
    x = sketch.node("Relu", sketch.node("Conv", x, sketch.random("middle", 6, 6 // groups_, 3, 3), group=groups_))
    sketch.output(sketch.node("Conv", x, sketch.random("last", 2, 6, 1, 1)), ("batch", 2, 2, 2))
    held = weights(model := sketch.model())
    found = scored(model)
    rows = (held["first"] ** 2).sum((1, 2, 3))
    middle, read = (held["middle"] ** 2).sum((1, 2, 3)), (held["last"] ** 2).sum((0, 2, 3))
    if groups_ == 6:
        np.testing.assert_allclose(found["first"][1], rows + middle + read, rtol=1e-6)
    else:
        np.testing.assert_allclose(found["first"][1], rows.reshape(2, 3).sum(0), rtol=1e-6)
        np.testing.assert_allclose(found["middle"][1], (middle + read).reshape(2, 3).sum(0), rtol=1e-6)


def normalized(*, folded: bool, op: str = "Conv") -> onnx.ModelProto:
    """Two layers, each followed by a BatchNormalization, or by what is left when that is folded into it."""
    sketch, rng, gemm = Sketch(), np.random.default_rng(3), op != "Conv"
    x = sketch.input("x", ("batch", 3) if gemm else ("batch", 3, 4, 4))
    for name, rows, columns in (("first", 6, 3), ("second", 5, 6), ("last", 2, 5)):
        weight = rng.normal(size=(rows, columns) if gemm else (rows, columns, 1, 1)).astype(np.float32)
        gamma, beta, mean = (rng.normal(size=rows).astype(np.float32) for _ in range(3))
        variance = rng.uniform(0.1, 4, rows).astype(np.float32)
        scale = gamma / np.sqrt(variance + 0.01)
        if folded:
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        bias = beta - mean * scale if folded else np.zeros(rows)
        kept = (sketch.weight(name, weight.astype(np.float32)), sketch.weight(f"{name}.bias", bias.astype(np.float32)))
        if op == "MatMul":
            turned = sketch.weight(f"{name}.turned", weight.astype(np.float32).T)
            x = sketch.node("Add", sketch.node("MatMul", x, turned), kept[1])
        else:
            x = sketch.node("Gemm", x, *kept, transB=1) if gemm else sketch.node("Conv", x, *kept)
        if not folded:
            norm = [sketch.weight(f"{name}.{at}", each) for at, each in enumerate((gamma, beta, mean, variance))]
            x = sketch.node("BatchNormalization", x, *norm, epsilon=0.01)
        x = sketch.node("Relu", x) if name != "last" else x
    sketch.output(x, ("batch", 2) if gemm else ("batch", 2, 4, 4))
    return sketch.model()


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_folding_changes_no_score(op: str, power: int) -> None:
    plain, folded = (scored(normalized(folded=folded, op=op), power) for folded in (False, True))
    assert list(plain) == list(folded)
    assert len(plain) == 2
    for name in plain:
        np.testing.assert_allclose(plain[name][1], folded[name][1], rtol=1e-5)


def test_a_normalization_of_what_others_read_too_is_no_scale() -> None:
    """Both readers see the unscaled output; nothing could be folded."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 3))
    x = sketch.node("MatMul", x, sketch.random("first", 3, 4))
    norm = [sketch.weight(f"norm.{at}", np.full(4, at + 2, np.float32)) for at in range(4)]
    y = sketch.node("BatchNormalization", x, *norm)
    sketch.output(
        sketch.node("MatMul", sketch.node("Mul", sketch.node("Tanh", x), y), sketch.random("last", 4, 2)), ("batch", 2)
    )
    held = weights(model := sketch.model())
    expected = (held["first"] ** 2).sum(0) + (held["last"] ** 2).sum(1)
    np.testing.assert_allclose(scored(model)["first"][1], expected, rtol=1e-6)


def test_a_normalized_layer_inside_a_stream_is_scaled_by_row() -> None:
    """Rows and columns of its weight belong to the same units."""
    sketch = Sketch()
    x = sketch.node("MatMul", sketch.input("x", ("batch", 3)), sketch.random("stem", 3, 4))
    norm = [sketch.weight(f"norm.{at}", np.abs(sketch.normal(4)) + 0.1) for at in range(4)]
    y = sketch.node("Gemm", x, sketch.random("inside", 4, 4), transB=1)
    y = sketch.node("BatchNormalization", y, *norm, epsilon=0.0)
    x = sketch.node("MatMul", sketch.node("Add", x, y), sketch.random("last", 4, 2))
    sketch.output(x, ("batch", 2))
    held = weights(model := sketch.model())
    inside = held["inside"].T * held["norm.0"] / np.sqrt(held["norm.3"])
    expected = (held["stem"] ** 2).sum(0) + (inside**2).sum(0) + (inside**2).sum(1) + (held["last"] ** 2).sum(1)
    group, scores = scored(model)["stem"]
    assert group.kind == "residual"
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("form", ["tensor", "column", "row", "blocks"])
def test_quantized_weights_score_what_they_stand_for(form: str) -> None:
    sketch = Sketch(opset=21, ir_version=10)
    codes = sketch.rng.integers(-100, 100, (8, 6)).astype(np.int8)
    shape, axis, options = {
        "tensor": ((), None, {}), "column": ((6,), 1, {"axis": 1}), "row": ((8,), 0, {"axis": 0}),
        "blocks": ((2, 6), 0, {"axis": 0, "block_size": 4}),
    }[form]  # fmt: skip
    scale = (0.01 + np.abs(sketch.normal(*shape))).astype(np.float32)
    zero = sketch.rng.integers(-9, 9, shape).astype(np.int8)
    inputs = [sketch.weight("codes", codes), sketch.weight("scale", scale), sketch.weight("zero", np.asarray(zero))]
    x = sketch.node("MatMul", sketch.input("x", ("batch", 3)), sketch.random("first", 3, 8))
    y = sketch.node("DequantizeLinear", *inputs, **options)  # type: ignore[arg-type]
    x = sketch.node("Tanh", sketch.node("MatMul", sketch.node("Tanh", x), y))
    sketch.output(sketch.node("MatMul", x, sketch.random("last", 6, 2)), ("batch", 2))
    held = weights(model := sketch.model())
    if axis == 0 and form == "row":
        scale, zero = scale[:, None], zero[:, None]
    if form == "blocks":
        scale, zero = np.repeat(scale, 4, 0), np.repeat(zero, 4, 0)
    meant = (codes.astype(np.float64) - zero) * scale
    rows = (held["first"] ** 2).sum(0) + (meant**2).sum(1)
    columns = (meant**2).sum(0) + (held["last"] ** 2).sum(1)
    if form == "blocks":
        rows = rows.reshape(2, 4).sum(1)
    for expected, (_, scores) in zip((rows, columns), scored(model).values(), strict=True):
        np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_quantized_operators_score_likewise() -> None:
    sketch = Sketch()
    one, none = sketch.weight("one", np.float32(1)), sketch.weight("none", np.uint8(0))
    x, before, meant = sketch.input("x", ("batch", 3, 4, 4), onnx.TensorProto.UINT8), 3, []
    for name, rows in (("first", 8), ("second", 4)):
        codes = sketch.rng.integers(-100, 100, (rows, before, 1, 1)).astype(np.int8)
        scale, zero = np.abs(sketch.normal(rows)), sketch.rng.integers(-9, 9, rows).astype(np.int8)
        meant.append((codes[:, :, 0, 0].astype(np.float64) - zero[:, None]) * scale[:, None])
        held = [sketch.weight(f"{name}.{at}", each) for at, each in enumerate((codes, scale, zero))]
        x, before = sketch.node("QLinearConv", x, one, none, *held, one, none), rows
    sketch.output(x, ("batch", 4, 4, 4), onnx.TensorProto.UINT8)
    ((_, scores),) = scored(sketch.model()).values()
    np.testing.assert_allclose(scores, (meant[0] ** 2).sum(1) + (meant[1] ** 2).sum(0), rtol=1e-4)
