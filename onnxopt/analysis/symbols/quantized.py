"""Shapes that quantized operators give, ONNX Runtime's own included."""

import onnx_ir as ir

from onnxopt.analysis.symbols.facts import Fact, Shape
from onnxopt.analysis.symbols.layers import convolved, matrices_multiplied, multiplied, pooled
from onnxopt.analysis.symbols.rules import MICROSOFT, Call, broadcast_shapes, normalized, rule


@rule("QuantizeLinear")
@rule("QuantizeLinear", domain=MICROSOFT)
def quantize(call: Call) -> list[Fact]:
    """The shape stays; the type is the zero point's, or bytes."""
    given = call.integer("output_dtype", 0)
    without = ir.DataType(given) if given else ir.DataType.UINT8
    return [Fact(call.fact(2).dtype if call.has(2) else without, call.shape(0))]


@rule("DequantizeLinear")
@rule("DequantizeLinear", domain=MICROSOFT)
def dequantize(call: Call) -> list[Fact]:
    """The shape stays; the type is the scale's."""
    given = call.integer("output_dtype", 0)
    return [Fact(ir.DataType(given) if given else call.fact(1).dtype, call.shape(0))]


@rule("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", domain=MICROSOFT)
def same(call: Call) -> list[Fact]:
    """The input's shape and type."""
    return [Fact(call.fact(0).dtype, call.shape(0))]


@rule("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def combined(call: Call) -> list[Fact]:
    """Two tensors element by element."""
    return [Fact(call.fact(0).dtype, broadcast_shapes(call.space, (call.shape(0), call.shape(3))))]


@rule("QLinearWhere", domain=MICROSOFT)
def chosen(call: Call) -> list[Fact]:
    """The one or the other of two tensors, element by element."""
    shapes = (call.shape(index) for index in (0, 1, 4))
    return [Fact(call.fact(1).dtype, broadcast_shapes(call.space, shapes))]


@rule("QLinearConcat", domain=MICROSOFT)
def beside(call: Call) -> list[Fact]:
    """Tensors one behind the other; each is followed by its scale and zero point."""
    shapes = [call.shape(index) for index in range(2, len(call.inputs), 3)]
    known = [shape for shape in shapes if shape is not None]
    dtype = call.fact(2).dtype
    if len(known) < len(shapes) or not known:
        return [Fact(dtype)]
    place = normalized(call.integer("axis", 0), len(known[0]))
    total = sum((shape[place] for shape in known[1:]), start=known[0][place])
    return [Fact(dtype, (*known[0][:place], total, *known[0][place + 1 :]))]


@rule("QLinearConv", domain=MICROSOFT)
def convolution(call: Call) -> list[Fact]:
    """The standard one, whose images may have their channels last."""
    shape = convolved(call, channels_first(call.shape(0), call), call.shape(3))
    return [Fact(call.fact(7).dtype, channels_last(shape, call))]


@rule("QLinearAveragePool", domain=MICROSOFT)
def mean(call: Call) -> list[Fact]:
    """A window's mean at each place."""
    return [Fact(call.fact(0).dtype, channels_last(pooled(call, channels_first(call.shape(0), call)), call))]


@rule("QLinearGlobalAveragePool", domain=MICROSOFT)
def global_mean(call: Call) -> list[Fact]:
    """One number a channel."""
    shape = channels_first(call.shape(0), call)
    return [Fact(call.fact(0).dtype, channels_last(shape and (*shape[:2], *(1 for _ in shape[2:])), call))]


def channels_first(shape: Shape | None, call: Call) -> Shape | None:
    """Shape of an image [N, C, ...] that may be given as [N, ..., C]."""
    return shape if shape is None or not call.integer("channels_last", 0) else (shape[0], shape[-1], *shape[1:-1])


def channels_last(shape: Shape | None, call: Call) -> Shape | None:
    """The same the other way round."""
    return shape if shape is None or not call.integer("channels_last", 0) else (shape[0], *shape[2:], shape[1])


@rule("QGemm", domain=MICROSOFT)
def matrices(call: Call) -> list[Fact]:
    """A product of matrices; floats where no scale of the result is given."""
    dtype = call.fact(8).dtype if call.has(8) else ir.DataType.FLOAT
    return [Fact(dtype, matrices_multiplied(call, call.shape(0), call.shape(3)))]


@rule("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=MICROSOFT)
def product(call: Call) -> list[Fact]:
    """A product of integers as floats."""
    scale = call.fact(2 if call.node.op_type == "MatMulIntegerToFloat" else 0)
    return [Fact(scale.dtype, multiplied(call, call.shape(0), call.shape(1)))]


@rule("MatMulNBits", "MatMulBnb4", domain=MICROSOFT)
def packed_product(call: Call) -> list[Fact]:
    """A product with a matrix whose size is told by attributes."""
    shape = call.shape(0)
    return [Fact(call.fact(0).dtype, shape and (*shape[:-1], call.integer("N", 0)))]


@rule("GatherBlockQuantized", domain=MICROSOFT)
def gathered(call: Call) -> list[Fact]:
    """Rows of a matrix whose bytes may hold several elements each."""
    data, rows = call.shape(0), call.shape(1)
    dtype = call.fact(2).dtype
    if data is None or rows is None:
        return [Fact(dtype)]
    place = normalized(call.integer("gather_axis", 0), len(data))
    full = (*data[:-1], data[-1] * elements_per_entry(call))
    return [Fact(dtype, (*full[:place], *rows, *full[place + 1 :]))]


def elements_per_entry(call: Call) -> int:
    """How many elements one entry of the packed matrix of a GatherBlockQuantized holds."""
    return 8 // call.integer("bits", 4) if call.fact(0).dtype == ir.DataType.UINT8 else 1
