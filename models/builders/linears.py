"""Linear operators in every orientation, their weights in every storage form, alone and shared.

`linear(form, storage, sharers)` composes the three; each form is drawn with its weight's name given, each storage
with its content.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, shape_inference

from onnxopt.models.builders.registry import ON_DISK, RUNNABLE, add
from onnxopt.models.builders.sketch import Shape, Sketch
from onnxopt.models.builders.tensors import externalized, in_typed_field

Weight: TypeAlias = npt.NDArray[np.float32]
Store: TypeAlias = Callable[[Sketch, str, Weight], str]


@dataclass(frozen=True)
class Form:
    """One way to write a linear operator.

    Attributes:
        x: shape of the activation; None where the operator takes none.
        weight: shape of the weight, as the operator reads it.
        draw: adds the operator's nodes for (sketch, x, weight) and returns its output.
    """

    x: Shape
    weight: tuple[int, ...]
    draw: Callable[[Sketch, str, str], str]


FORMS: dict[str, Form] = {}
STORAGES: dict[str, Store] = {}


def linear(form: str, storage: str = "raw", sharers: int = 1) -> onnx.ModelProto:
    """Inputs `x`, `x_1`, ..., outputs `y`, `y_1`, ...: as many equal operators as `sharers`, one weight `w`.

    Args:
        form: a key of `FORMS`.
        storage: a key of `STORAGES`: how the weight reaches the operators. Its values are multiples of 1/8 between
            -1 and 7/8, so that every storage holds them exactly.
        sharers: how many operators read the weight.
    """
    sketch = Sketch(f"{form}-{storage}-{sharers}", opset=13, ir_version=7)
    chosen = FORMS[form]
    eighths = (sketch.rng.integers(-8, 8, chosen.weight) / 8).astype(np.float32)
    weight = STORAGES[storage](sketch, "w", eighths)
    for _ in range(sharers):
        y = chosen.draw(sketch, sketch.input("x", chosen.x), weight)
        sketch.output(sketch.node("Identity", y, outputs=[sketch.fresh("y")]), None)
    model = sketch.model()
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    for output, known in zip(model.graph.output, inferred.graph.output, strict=True):
        output.CopyFrom(known)
    return model


def _node(op: str, *, left: bool = False, bias: Sequence[int] | None = None, **attributes: Any) -> Callable[..., str]:
    """One node that reads x and the weight (`left`: the weight first), and a bias where it has a shape."""

    def draw(sketch: Sketch, x: str, weight: str) -> str:
        inputs = [weight, x] if left else [x, weight]
        if bias is not None:
            inputs.append(sketch.random("b", *bias))
        return sketch.node(op, *inputs, **attributes)

    return draw


def _matmul_add(bias: Sequence[int], *, first: bool = False, left: bool = False) -> Callable[..., str]:
    """MatMul, then an Add of a bias (`first`: the Add's first operand)."""

    def draw(sketch: Sketch, x: str, weight: str) -> str:
        product = sketch.node("MatMul", *([weight, x] if left else [x, weight]))
        b = sketch.random("b", *bias)
        return sketch.node("Add", *([b, product] if first else [product, b]))

    return draw


def _gemm_computed_c(sketch: Sketch, x: str, weight: str) -> str:
    return sketch.node("Gemm", x, weight, sketch.node("Relu", sketch.input("c", ["batch", 5])))


def _shared_bias(sketch: Sketch, x: str, weight: str) -> str:
    b = sketch.random("b", 5)
    product = sketch.node("MatMul", x, weight)
    return sketch.node("Mul", sketch.node("Add", product, b), b)


def _product_read_twice(sketch: Sketch, x: str, weight: str) -> str:
    product = sketch.node("MatMul", x, weight)
    return sketch.node("Mul", sketch.node("Add", product, sketch.random("b", 5)), product)


_ROWS: Shape = ["batch", 4]
_IMAGE: Shape = ["batch", 4, 7, 7]

FORMS |= {
    "matmul": Form(["batch", 3, 4], (4, 5), _node("MatMul")),
    "matmul-two-dimensions": Form(_ROWS, (4, 5), _node("MatMul")),
    "matmul-vector": Form(["batch", 3, 4], (4,), _node("MatMul")),
    "matmul-of-vector": Form([4], (4, 5), _node("MatMul")),
    "matmul-left": Form(["batch", 4, 3], (5, 4), _node("MatMul", left=True)),
    "matmul-left-vector": Form(["batch", 4, 3], (4,), _node("MatMul", left=True)),
    "matmul-batched": Form(["batch", 2, 3, 4], (2, 4, 5), _node("MatMul")),
    "matmul-batched-by-one": Form(["batch", 2, 3, 4], (1, 4, 5), _node("MatMul")),
    "matmul-batched-twice": Form([2, 3, "rows", 4], (2, 3, 4, 5), _node("MatMul")),
    "matmul-batched-over-rows": Form(_ROWS, (2, 4, 5), _node("MatMul")),
    "matmul-batched-left": Form(["batch", 2, 4, 3], (2, 5, 4), _node("MatMul", left=True)),
    "matmul-bias-after": Form(["batch", 3, 4], (4, 5), _matmul_add([5])),
    "matmul-bias-before": Form(["batch", 3, 4], (4, 5), _matmul_add([5], first=True)),
    "matmul-bias-row": Form(["batch", 3, 4], (4, 5), _matmul_add([1, 1, 5])),
    "matmul-bias-scalar": Form(["batch", 3, 4], (4, 5), _matmul_add([])),
    "matmul-bias-one": Form(["batch", 3, 4], (4, 5), _matmul_add([1])),
    "matmul-bias-per-row": Form(["batch", 3, 4], (4, 5), _matmul_add([3, 5])),
    "matmul-bias-raises-rank": Form(_ROWS, (4, 5), _matmul_add([2, 1, 5])),
    "matmul-bias-read-twice": Form(["batch", 3, 4], (4, 5), _shared_bias),
    "matmul-product-read-twice": Form(["batch", 3, 4], (4, 5), _product_read_twice),
    "matmul-left-bias-column": Form(["batch", 4, 3], (5, 4), _matmul_add([5, 1], left=True)),
    "matmul-left-bias-row": Form(["batch", 4, 3], (5, 4), _matmul_add([3], left=True)),
    "matmul-batched-bias": Form(["batch", 2, 3, 4], (2, 4, 5), _matmul_add([2, 1, 5])),
    "gemm": Form(_ROWS, (4, 5), _node("Gemm")),
    "gemm-trans-b": Form(_ROWS, (5, 4), _node("Gemm", transB=1)),
    "gemm-trans-a": Form([4, "batch"], (4, 5), _node("Gemm", transA=1)),
    "gemm-trans-both": Form([4, "batch"], (5, 4), _node("Gemm", transA=1, transB=1)),
    "gemm-left": Form([4, "batch"], (5, 4), _node("Gemm", left=True)),
    "gemm-left-trans-a": Form([4, "batch"], (4, 5), _node("Gemm", left=True, transA=1)),
    "gemm-left-trans-b": Form(_ROWS, (5, 4), _node("Gemm", left=True, transB=1)),
    "gemm-left-trans-both": Form(_ROWS, (4, 5), _node("Gemm", left=True, transA=1, transB=1)),
    "gemm-left-bias-column": Form([4, "batch"], (5, 4), _node("Gemm", left=True, bias=[5, 1])),
    "gemm-left-bias-row": Form([4, 3], (5, 4), _node("Gemm", left=True, bias=[3])),
    "gemm-c-scalar": Form(_ROWS, (4, 5), _node("Gemm", bias=[])),
    "gemm-c-one": Form(_ROWS, (4, 5), _node("Gemm", bias=[1])),
    "gemm-c-vector": Form(_ROWS, (5, 4), _node("Gemm", bias=[5], transB=1)),
    "gemm-c-row": Form(_ROWS, (4, 5), _node("Gemm", bias=[1, 5])),
    "gemm-c-column": Form([3, 4], (4, 5), _node("Gemm", bias=[3, 1])),
    "gemm-c-full": Form([3, 4], (4, 5), _node("Gemm", bias=[3, 5])),
    "gemm-c-computed": Form(_ROWS, (4, 5), _gemm_computed_c),
    "gemm-alpha": Form(_ROWS, (4, 5), _node("Gemm", alpha=0.5)),
    "gemm-alpha-beta": Form(_ROWS, (5, 4), _node("Gemm", bias=[5], alpha=-0.5, beta=2.0, transB=1)),
    "gemm-beta-zero": Form(_ROWS, (4, 5), _node("Gemm", bias=[5], beta=0.0)),
    "conv-1d": Form(["batch", 4, 7], (6, 4, 3), _node("Conv")),
    "conv-1d-bias": Form(["batch", 4, 7], (6, 4, 3), _node("Conv", bias=[6], pads=[1, 1])),
    "conv-2d": Form(_IMAGE, (6, 4, 3, 3), _node("Conv")),
    "conv-2d-bias": Form(_IMAGE, (6, 4, 3, 3), _node("Conv", bias=[6], pads=[1, 1, 1, 1])),
    "conv-2d-pointwise": Form(_IMAGE, (6, 4, 1, 1), _node("Conv", bias=[6])),
    "conv-2d-strided": Form(_IMAGE, (6, 4, 3, 2), _node("Conv", strides=[2, 1], dilations=[1, 2], pads=[0, 1, 2, 0])),
    "conv-2d-auto-pad": Form(_IMAGE, (6, 4, 3, 3), _node("Conv", auto_pad="SAME_UPPER", strides=[2, 2])),
    "conv-2d-grouped": Form(_IMAGE, (6, 2, 3, 3), _node("Conv", group=2)),
    "conv-2d-grouped-bias": Form(_IMAGE, (6, 2, 3, 3), _node("Conv", group=2, bias=[6])),
    "conv-2d-depthwise": Form(_IMAGE, (4, 1, 3, 3), _node("Conv", group=4)),
    "conv-2d-depthwise-bias": Form(_IMAGE, (4, 1, 3, 3), _node("Conv", group=4, bias=[4])),
    "conv-2d-depthwise-multiplier": Form(_IMAGE, (8, 1, 3, 3), _node("Conv", group=4)),
    "conv-3d": Form(["batch", 4, 5, 5, 5], (6, 4, 2, 3, 2), _node("Conv")),
    "conv-3d-bias": Form(["batch", 4, 5, 5, 5], (6, 4, 2, 3, 2), _node("Conv", bias=[6])),
    "conv-transpose-1d": Form(["batch", 4, 7], (4, 6, 3), _node("ConvTranspose")),
    "conv-transpose-1d-bias": Form(["batch", 4, 7], (4, 6, 3), _node("ConvTranspose", bias=[6])),
    "conv-transpose-2d": Form(_IMAGE, (4, 6, 3, 3), _node("ConvTranspose")),
    "conv-transpose-2d-bias": Form(
        _IMAGE, (4, 6, 3, 3), _node("ConvTranspose", bias=[6], strides=[2, 2], pads=[1, 0, 1, 0], output_padding=[1, 1])
    ),
    "conv-transpose-2d-grouped": Form(_IMAGE, (4, 3, 3, 3), _node("ConvTranspose", group=2)),
    "conv-transpose-2d-grouped-bias": Form(_IMAGE, (4, 3, 3, 3), _node("ConvTranspose", group=2, bias=[6])),
    "conv-transpose-2d-depthwise": Form(_IMAGE, (4, 1, 3, 3), _node("ConvTranspose", group=4)),
    "conv-transpose-3d": Form(["batch", 4, 3, 3, 3], (4, 6, 2, 3, 2), _node("ConvTranspose", bias=[6])),
}  # fmt: skip


def _storage(store: Store) -> Store:
    STORAGES[store.__name__.strip("_").replace("_", "-")] = store
    return store


@_storage
def _raw(sketch: Sketch, name: str, weight: Weight) -> str:
    return sketch.weight(name, weight)


@_storage
def _float_data(sketch: Sketch, name: str, weight: Weight) -> str:
    return sketch.weight(name, in_typed_field(weight))


@_storage
def _as_input(sketch: Sketch, name: str, weight: Weight) -> str:
    """The initializer is listed as a graph input too, which makes it a default that callers may override."""
    name = sketch.weight(name, weight)
    sketch.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, weight.shape))
    return name


@_storage
def _constant(sketch: Sketch, name: str, weight: Weight) -> str:
    return sketch.node("Constant", outputs=[sketch.fresh(name)], value=in_typed_field(weight))


@_storage
def _constant_floats(sketch: Sketch, name: str, weight: Weight) -> str:
    """A flat Constant given by `value_floats`, brought to shape by Reshape."""
    flat = sketch.node("Constant", value_floats=weight.flatten().tolist())
    return sketch.node("Reshape", flat, sketch.weight(f"{name}_shape", np.array(weight.shape)))


@_storage
def _transpose(sketch: Sketch, name: str, weight: Weight) -> str:
    order = [*range(weight.ndim)][::-1]
    return sketch.node("Transpose", sketch.weight(name, weight.transpose(order)), perm=order)


@_storage
def _transpose_constant(sketch: Sketch, name: str, weight: Weight) -> str:
    """A Transpose without `perm`, which reverses the axes, of a Constant node."""
    return sketch.node("Transpose", _constant(sketch, name, np.ascontiguousarray(weight.T)))


@_storage
def _identity(sketch: Sketch, name: str, weight: Weight) -> str:
    return sketch.node("Identity", sketch.node("Identity", sketch.weight(name, weight)))


@_storage
def _cast(sketch: Sketch, name: str, weight: Weight) -> str:
    return sketch.node("Cast", sketch.weight(name, weight.astype(np.float16)), to=TensorProto.FLOAT)


@_storage
def _reshape(sketch: Sketch, name: str, weight: Weight) -> str:
    shape = sketch.weight(f"{name}_shape", np.array([*weight.shape[:-1], -1]))
    return sketch.node("Reshape", sketch.weight(name, weight.flatten()), shape)


@_storage
def _dequantize(sketch: Sketch, name: str, weight: Weight) -> str:
    """int8 with one scale and one zero point."""
    q = sketch.weight(name, (weight * 8 + 3).astype(np.int8))
    scale = sketch.weight(f"{name}_scale", np.array(1 / 8, np.float32))
    return sketch.node("DequantizeLinear", q, scale, sketch.weight(f"{name}_zero", np.array(3, np.int8)))


@_storage
def _dequantize_axis(sketch: Sketch, name: str, weight: Weight) -> str:
    """uint8 with a scale and a zero point for each index of the last axis."""
    count = weight.shape[-1]
    zero = np.arange(8, 8 + count).astype(np.uint8)
    q = sketch.weight(name, (weight * 8 + zero).astype(np.uint8))
    scale = sketch.weight(f"{name}_scale", np.full(count, 1 / 8, np.float32))
    return sketch.node("DequantizeLinear", q, scale, sketch.weight(f"{name}_zero", zero), axis=weight.ndim - 1)


@_storage
def _dequantize_blocks(sketch: Sketch, name: str, weight: Weight) -> str:
    """int4 in blocks of two along the first axis, the last block cut short where the length is odd (opset 21)."""
    sketch.require(21, 10)
    values = (weight * 8).astype(np.int64)
    q = sketch.weight(name, helper.make_tensor("", TensorProto.INT4, weight.shape, values.flatten()))
    blocks = (-(-weight.shape[0] // 2), *weight.shape[1:])
    scale = sketch.weight(f"{name}_scale", np.full(blocks, 1 / 8, np.float32))
    return sketch.node("DequantizeLinear", q, scale, axis=0, block_size=2)


@_storage
def _long_chain(sketch: Sketch, name: str, weight: Weight) -> str:
    """DequantizeLinear of a flat tensor, Reshape, Transpose, Cast to float16 and back, Identity."""
    flat = _dequantize(sketch, name, weight.T.flatten())
    y = sketch.node("Reshape", flat, sketch.weight(f"{name}_shape", np.array(weight.T.shape)))
    y = sketch.node("Cast", sketch.node("Transpose", y), to=TensorProto.FLOAT16)
    return sketch.node("Identity", sketch.node("Cast", y, to=TensorProto.FLOAT))


def _external(form: str, folder: Path) -> onnx.ModelProto:
    return externalized(linear(form), folder)


for _form in FORMS:
    add(f"linear-{_form}", partial(linear, _form))
for _name in STORAGES:
    add(f"stored-{_name}", partial(linear, "matmul-bias-after", _name))
for _form in ("matmul", "gemm-trans-b", "conv-2d-bias", "conv-transpose-2d"):
    add(f"shared-{_form}", partial(linear, _form, sharers=2))
    ON_DISK[f"external-{_form}"] = partial(_external, _form)
    RUNNABLE.add(f"external-{_form}")
