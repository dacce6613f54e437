"""Any orientation, any sizes, any kind of bias: the same three promises."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import shape_inference

from onnxopt.analysis.linear import Linear, linears
from onnxopt.edit import Edit
from onnxopt.model import load
from onnxopt.models.builders import Sketch, feeds

Run = Callable[..., dict[str, np.ndarray]]
Product = Callable[[Linear, np.ndarray], np.ndarray]

SIZES = st.integers(1, 5)
BIASES = ("none", "full", "ones", "one", "scalar")


@dataclass(frozen=True)
class Case:
    """A model with one layer, and whether its bias is one."""

    proto: onnx.ModelProto
    biased: bool


def biases(out: int, rank: int, kind: str) -> tuple[int, ...]:
    """A shape that broadcasts over the last axis of y alone."""
    full = (out,) if rank == 1 else (*(1,) * (rank - 1), out)
    return {"full": (out,), "ones": full, "one": (1,), "scalar": ()}[kind]


@st.composite
def matmuls(draw: st.DrawFn) -> Case:
    k, n, rows = draw(SIZES), draw(SIZES), draw(SIZES)
    batch = draw(st.sampled_from([(), (1,), (2,), (3, 2)]))
    left, kind, first = draw(st.booleans()), draw(st.sampled_from(BIASES)), draw(st.booleans())
    x = draw(st.sampled_from([[], [rows], [2, rows], [3, 2, rows]])) if not batch else [*batch[-1:], rows]
    rank = max(len(x) + 1, len(batch) + 2) - (not x and bool(batch))
    shape = [*x, k] if not left or not x else [*x[:-1], k, x[-1]]
    sketch = Sketch(opset=13)
    w = sketch.random("w", *batch, *((n, k) if left else (k, n)))
    operands = [sketch.input("x", shape), w]
    y = sketch.node("MatMul", *(operands[::-1] if left else operands))
    if kind != "none":
        out_shape = biases(n, len(x) + 1, kind)
        if left and x and len(out_shape) and kind in ("full", "ones"):
            out_shape = (n, 1) if kind == "full" else (*(1,) * (rank - 2), n, 1)
        b = sketch.random("b", *out_shape)
        y = sketch.node("Add", *([b, y] if first else [y, b]))
    sketch.output(sketch.node("Identity", y, outputs=["y"]), None)
    return Case(sketch.model(), kind != "none")


@st.composite
def gemms(draw: st.DrawFn) -> Case:
    k, n, rows = draw(SIZES), draw(SIZES), draw(SIZES)
    left, turn_a, turn_b = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    kind = draw(st.sampled_from(BIASES))
    a, b = ((n, k), (k, rows)) if left else ((rows, k), (k, n))
    a, b = a[::-1] if turn_a else a, b[::-1] if turn_b else b
    sketch = Sketch(opset=13)
    inputs = [sketch.random("w", *a), sketch.input("x", b)] if left else [sketch.input("x", a), sketch.random("w", *b)]
    if kind != "none":
        shape = biases(n, 2, kind)
        inputs.append(sketch.random("b", *((n, 1) if left and kind in ("full", "ones") else shape)))
    factor = st.sampled_from([1.0, 0.3, -2.0, 0.0])
    attributes = {"alpha": draw(factor), "beta": draw(factor), "transA": int(turn_a), "transB": int(turn_b)}
    sketch.output(sketch.node("Gemm", *inputs, outputs=["y"], **attributes), None)
    return Case(sketch.model(), kind != "none")


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    axes, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups, out, features = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    numbers = st.lists(st.integers(1, 2), min_size=axes, max_size=axes)
    attributes: dict[str, Any] = {"group": groups, "strides": draw(numbers), "dilations": draw(numbers)}
    if draw(st.booleans()):
        attributes["pads"] = draw(st.lists(st.integers(0, 1), min_size=2 * axes, max_size=2 * axes))
    sketch = Sketch(opset=13)
    x = sketch.input("x", [2, groups * features, *(6 for _ in kernel)])
    shape = (groups * features, out) if transposed else (groups * out, features)
    inputs = [x, sketch.random("w", *shape, *kernel)]
    biased = draw(st.booleans())
    if biased:
        inputs.append(sketch.random("b", groups * out))
    sketch.output(sketch.node("ConvTranspose" if transposed else "Conv", *inputs, outputs=["y"], **attributes), None)
    return Case(sketch.model(), biased)


@settings(max_examples=300)
@given(st.one_of(matmuls(), gemms(), convolutions()))
def test_promises(run: Run, product: Product, case: Case) -> None:
    proto = shape_inference.infer_shapes(case.proto, strict_mode=True, data_prop=True)
    inputs = feeds(proto, np.random.default_rng(3))
    model = load(proto)
    before = run(model, inputs)["y"]
    (layer,) = linears(model)
    assert (layer.bias is not None) == case.biased
    np.testing.assert_allclose(product(layer, inputs["x"]), before, rtol=1e-5, atol=2e-5)
    model.apply(layer.replaced(layer.matrix(), layer.bias_vector()))
    assert run(model, inputs)["y"].tobytes() == before.tobytes()
    (layer,) = linears(model)
    model.apply(layer.replaced(2 * layer.matrix()))
    (layer,) = linears(model)
    doubled = run(model, inputs)["y"]
    np.testing.assert_allclose(doubled, product(layer, inputs["x"]), rtol=1e-5, atol=4e-5)
    if layer.geometry is None:
        edit = Edit()
        layer.rewired_to_matmul(edit, edit.add_weight("kn", layer.to_matmul(layer.matrix())))
        model.apply(edit)
        np.testing.assert_allclose(run(model, inputs)["y"], doubled, rtol=1e-5, atol=4e-5)
