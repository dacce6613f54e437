"""Shapes that layers give: products, convolutions, pooling, normalization, recurrence, reduction, resizing."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols.elementwise import fits
from onnxopt.analysis.symbols.expressions import Scalar
from onnxopt.analysis.symbols.facts import Element, Fact, Shape, element, is_integer, of_array, of_elements
from onnxopt.analysis.symbols.functions import larger, quotient, smaller
from onnxopt.analysis.symbols.rules import Call, broadcast_shapes, normalized, rule


@rule("MatMul")
def matmul(call: Call) -> list[Fact]:
    """Products over the last axis of the one and the last but one of the other."""
    a, b = call.shape(0), call.shape(1)
    return [Fact(call.fact(0).dtype, multiplied(call, a, b))]


@rule("MatMulInteger")
def integer_matmul(call: Call) -> list[Fact]:
    """The same of integers, in 32 bits."""
    return [Fact(ir.DataType.INT32, multiplied(call, call.shape(0), call.shape(1)))]


@rule("QLinearMatMul")
def quantized_matmul(call: Call) -> list[Fact]:
    """The same of quantized numbers."""
    return [Fact(call.fact(7).dtype, multiplied(call, call.shape(0), call.shape(3)))]


def multiplied(call: Call, a: Shape | None, b: Shape | None) -> Shape | None:
    """Shape of a product as numpy's matmul has it."""
    if not a or not b:
        return None
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    call.space.meet(left[-1], right[-2])
    batch = broadcast_shapes(call.space, (left[:-2], right[:-2]))
    assert batch is not None
    rows, columns = left[-2:-1] if len(a) > 1 else (), right[-1:] if len(b) > 1 else ()
    return (*batch, *rows, *columns)


@rule("Gemm")
def gemm(call: Call) -> list[Fact]:
    """A product of matrices, each transposed or not."""
    return [Fact(call.fact(0).dtype, matrices_multiplied(call, call.shape(0), call.shape(1)))]


def matrices_multiplied(call: Call, a: Shape | None, b: Shape | None) -> Shape:
    """Shape of what an operator with Gemm's attributes gives."""
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return (call.space.fresh(), call.space.fresh())
    rows, columns = a[1 if call.integer("transA", 0) else 0], b[0 if call.integer("transB", 0) else 1]
    call.space.meet(a[0 if call.integer("transA", 0) else 1], b[1 if call.integer("transB", 0) else 0])
    return (rows, columns)


@rule("Conv", "ConvInteger", "QLinearConv")
def conv(call: Call) -> list[Fact]:
    """A window's products at each place."""
    kind = call.node.op_type
    x, w = call.shape(0), call.shape(3 if kind == "QLinearConv" else 1)
    dtype = {"Conv": call.fact(0).dtype, "ConvInteger": ir.DataType.INT32, "QLinearConv": call.fact(7).dtype}[kind]
    return [Fact(dtype, convolved(call, x, w))]


def convolved(call: Call, x: Shape | None, w: Shape | None) -> Shape | None:
    """Shape of a convolution of [N, C, ...] with [M, C / groups, ...]."""
    if x is None or w is None or len(x) != len(w):
        return None
    window: list[Scalar] = [*(_ints(call, "kernel_shape") or w[2:])]
    return (x[0], w[0], *_places(call, x[2:], window))


@rule("ConvTranspose")
def conv_transpose(call: Call) -> list[Fact]:
    """A convolution backwards."""
    x, w, dtype = call.shape(0), call.shape(1), call.fact(0).dtype
    if x is None or w is None or len(x) != len(w):
        return [Fact(dtype)]
    count = len(x) - 2
    channels = w[1] * call.integer("group", 1)
    given = _ints(call, "output_shape")
    if given:
        return [Fact(dtype, (x[0], channels, *given[-count:]))]
    window: list[Scalar] = [*(_ints(call, "kernel_shape") or w[2:])]
    strides = _ints(call, "strides") or [1] * count
    dilations, extra = _ints(call, "dilations") or [1] * count, _ints(call, "output_padding") or [0] * count
    pads, mode = _ints(call, "pads") or [0] * (2 * count), _mode(call)
    sizes: list[Scalar] = []
    for i in range(count):
        if mode.startswith("SAME"):
            size = window[i]
            exact = isinstance(size, int) and (size - 1) * dilations[i] + 1 >= strides[i]
            sizes.append(x[2 + i] * strides[i] if exact else call.space.fresh())  # runtimes differ in the other case
            continue
        padding = 0 if mode == "VALID" else pads[i] + pads[i + count]
        sizes.append((x[2 + i] - 1) * strides[i] + extra[i] + (window[i] - 1) * dilations[i] + 1 - padding)
    return [Fact(dtype, (x[0], channels, *sizes))]


@rule("MaxPool", "AveragePool", "LpPool")
def pool(call: Call) -> list[Fact]:
    """A window's maximum or mean at each place."""
    fact = call.fact(0)
    shape = pooled(call, fact.shape)
    return [Fact(fact.dtype, shape), Fact(ir.DataType.INT64, shape)]


def pooled(call: Call, x: Shape | None) -> Shape | None:
    """Shape of what windows of [N, C, ...] give, one number each."""
    window = _ints(call, "kernel_shape")
    if x is None or not window or len(window) != len(x) - 2:
        return None
    return (*x[:2], *_places(call, x[2:], window))


def _places(call: Call, sizes: Shape, window: Sequence[Scalar]) -> list[Scalar]:
    """How many places a window takes along each axis."""
    count = len(sizes)
    strides, dilations = _ints(call, "strides") or [1] * count, _ints(call, "dilations") or [1] * count
    pads, mode = _ints(call, "pads") or [0] * (2 * count), _mode(call)
    result: list[Scalar] = []
    for i, size in enumerate(sizes):
        if mode.startswith("SAME"):
            result.append(quotient(call.space, size + (strides[i] - 1), strides[i]))
            continue
        padding = 0 if mode == "VALID" else pads[i] + pads[i + count]
        room = size + padding - (dilations[i] * (window[i] - 1) + 1)
        if call.integer("ceil_mode", 0) and room != 0:
            result.append(_ceiled(room, size, pads[i], strides[i]) if isinstance(room, int) else call.space.fresh())
            continue
        result.append(
            room + 1 if strides[i] == 1 else quotient(call.space, larger(call.space, room, 0), strides[i]) + 1
        )
    return result


def _ceiled(room: int, size: Scalar, before: int, stride: int) -> Scalar:
    """Places with ceil_mode; one that starts behind the end of input and padding before it does not count."""
    count = -(-room // stride) + 1
    return count - 1 if isinstance(size, int) and (count - 1) * stride >= size + before else count


def _ints(call: Call, name: str) -> list[int]:
    attribute = call.node.attributes.get(name)
    return list(attribute.as_ints()) if attribute is not None else []


def _mode(call: Call) -> str:
    attribute = call.node.attributes.get("auto_pad")
    return attribute.as_string() if attribute is not None else "NOTSET"


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(call: Call) -> list[Fact]:
    """One number a channel."""
    fact = call.fact(0)
    shape = None if fact.shape is None else (*fact.shape[:2], *(1 for _ in fact.shape[2:]))
    return [Fact(fact.dtype, shape)]


@rule("BatchNormalization", "InstanceNormalization", "GroupNormalization")
def normalization(call: Call) -> list[Fact]:
    """The input's shape; statistics, of which BatchNormalization may give four, have one element a channel."""
    fact = call.fact(0)
    channels = None if fact.shape is None or len(fact.shape) < 2 else fact.shape[1:2]
    return [Fact(fact.dtype, fact.shape), *[Fact(None, channels)] * 4]


@rule("LayerNormalization", "SkipLayerNormalization")
def layer_normalization(call: Call) -> list[Fact]:
    """The input's shape, and statistics with axes of size 1."""
    fact = call.fact(0)
    if fact.shape is None:
        return [Fact(fact.dtype)]
    axis = normalized(call.integer("axis", -1), len(fact.shape))
    small = Fact(None, (*fact.shape[:axis], *(1 for _ in fact.shape[axis:])))
    return [fact if fact.content is None else Fact(fact.dtype, fact.shape), small, small]


@rule("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> list[Fact]:
    """All states, and the last ones."""
    fact, weights = call.fact(0), call.shape(2)
    if fact.shape is None or len(fact.shape) != 3 or weights is None:
        return [Fact(fact.dtype)] * len(call.node.outputs)
    steps, batch = fact.shape[:2] if not call.integer("layout", 0) else (fact.shape[1], fact.shape[0])
    directions, hidden = weights[0], call.integer("hidden_size", 0) or weights[2]
    if call.integer("layout", 0):
        last = Fact(fact.dtype, (batch, directions, hidden))
        return [Fact(fact.dtype, (batch, steps, directions, hidden)), last, last]
    last = Fact(fact.dtype, (directions, batch, hidden))
    return [Fact(fact.dtype, (steps, directions, batch, hidden)), last, last]


_REDUCTIONS: dict[str, Callable[..., Scalar]] = {
    "ReduceSum": lambda space, a, b: a + b,
    "ReduceProd": lambda space, a, b: a * b,
    "ReduceMax": larger,
    "ReduceMin": smaller,
}


@rule("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceLogSum",
      "ReduceLogSumExp", "ReduceSumSquare")  # fmt: skip
def reduced(call: Call) -> list[Fact]:
    """One number of all along some axes, or along all."""
    fact, keep = call.fact(0), call.integer("keepdims", 1)
    if fact.shape is None:
        return [Fact(fact.dtype)]
    axes = call.numbers(1, "axes") if call.given(1, "axes") else []
    if axes is None:
        return [Fact(fact.dtype, tuple(call.space.fresh() for _ in fact.shape) if keep else None)]
    if not axes and call.integer("noop_with_empty_axes", 0):
        return [fact]
    gone = {normalized(axis, len(fact.shape)) for axis in axes} or set(range(len(fact.shape)))
    kept = [(1 if axis in gone else size) for axis, size in enumerate(fact.shape) if keep or axis not in gone]
    result = Fact(fact.dtype, tuple(kept))
    if fact.content is None or len(gone) != len(fact.shape) or not is_integer(fact.dtype) or not fact.content.size:
        return [result]
    if call.node.op_type not in _REDUCTIONS or fact.content.size > 64:
        return [result]
    total: Element = element(fact.content.flat[0])
    for value in list(fact.content.flat)[1:]:
        total = _REDUCTIONS[call.node.op_type](call.space, total, element(value))
    if not isinstance(total, float) and not fits(total, fact.dtype):
        return [result]
    return [of_elements([total], [1] * len(kept), fact.dtype)]


@rule("ArgMax", "ArgMin")
def arg_reduced(call: Call) -> list[Fact]:
    """An index along one axis."""
    shape, dtype = call.shape(0), ir.DataType.INT64
    if shape is None:
        return [Fact(dtype)]
    axis = normalized(call.integer("axis", 0), len(shape))
    kept = (1,) if call.integer("keepdims", 1) else ()
    return [Fact(dtype, (*shape[:axis], *kept, *shape[axis + 1 :]))]


@rule("Resize", "Upsample")
def resize(call: Call) -> list[Fact]:
    """Other sizes in space: given ones, or multiples."""
    fact = call.fact(0)
    if fact.shape is None:
        return [Fact(fact.dtype)]
    unknown = [Fact(fact.dtype, tuple(call.space.fresh() for _ in fact.shape))]
    if "axes" in call.node.attributes:
        return unknown
    sizes = call.integers(3)
    policy = call.node.attributes.get("keep_aspect_ratio_policy")
    if sizes is not None and call.shape(3) != (0,):
        stretch = policy is None or policy.as_string() == "stretch"
        return [Fact(fact.dtype, tuple(sizes))] if stretch and len(sizes) == len(fact.shape) else unknown
    scales = scales_of(call)
    if scales is None or len(scales) != len(fact.shape):
        return unknown
    return [Fact(fact.dtype, tuple(_scaled(call, size, by) for size, by in zip(fact.shape, scales, strict=True)))]


def scales_of(call: Call) -> list[float] | None:
    """The factors that Resize is given; None where they are not known, none where sizes are given instead."""
    attribute = call.node.attributes.get("scales")
    if attribute is not None:
        return [float(each) for each in attribute.as_floats()]
    index = 1 if call.node.op_type == "Upsample" or call.opset < 11 else 2
    fact = call.fact(index)
    if not fact.known or fact.content is None:
        return None
    return [float(each) for each in fact.content.flat]


def _scaled(call: Call, size: Scalar, by: float) -> Scalar:
    if by == int(by):
        return size * int(by)
    return math.floor(np.float32(size) * np.float32(by)) if isinstance(size, int) else call.space.fresh()


@rule("Einsum")
def einsum(call: Call) -> list[Fact]:
    """Products over shared letters."""
    text = call.node.attributes["equation"].as_string().replace(" ", "")
    dtype = call.fact(0).dtype
    if "..." in text or "->" not in text:
        return [Fact(dtype)]
    left, right = text.split("->")
    sizes: dict[str, Scalar] = {}
    for index, letters in enumerate(left.split(",")):
        shape = call.shape(index)
        if shape is None or len(shape) != len(letters):
            return [Fact(dtype)]
        for letter, size in zip(letters, shape, strict=True):
            known = broadcast_shapes(call.space, ((sizes.get(letter, 1),), (size,)))
            assert known is not None
            sizes[letter] = known[0]
    return [Fact(dtype, tuple(sizes[letter] for letter in right))]


@rule("NonMaxSuppression")
def suppressed(call: Call) -> list[Fact]:
    """As many rows as are left."""
    return [Fact(ir.DataType.INT64, (call.space.fresh(), 3))]


@rule("RandomNormal", "RandomUniform")
def random(call: Call) -> list[Fact]:
    """As the attribute says."""
    return [Fact(None, tuple(_ints(call, "shape")))]


@rule("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def random_like(call: Call) -> list[Fact]:
    """The input's shape."""
    return [Fact(None, call.shape(0))]


@rule("Constant")
def constant(call: Call) -> list[Fact]:
    """What it holds; larger ones keep their shape alone."""
    value = call.node.outputs[0].const_value
    if value is None:
        return [Fact()]
    return (
        [of_array(np.asarray(value.numpy()), value.dtype)]
        if value.size <= 4096
        else [Fact(value.dtype, tuple(value.shape.numpy()))]
    )
