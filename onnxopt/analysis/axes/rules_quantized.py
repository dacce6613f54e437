"""Quantized operators: those of floats, with integers as weights and what encodes them beside.

Scales and zero points belong to the channels that they encode; where one stands for a block of channels, these go
together. What is computed from a tensor's range sees removed channels as 0, which every such range holds.
"""

from collections.abc import Sequence

import numpy as np

from onnxopt.analysis.axes.axis import Axes, Axis, size_of
from onnxopt.analysis.axes.ids import WINDOW
from onnxopt.analysis.axes.patch import Patch
from onnxopt.analysis.axes.rules import Call, rewrite, rule
from onnxopt.analysis.axes.rules_convolution import Places, convolved, regroup
from onnxopt.analysis.axes.rules_elementwise import broadcast
from onnxopt.analysis.axes.rules_layout import concatenated
from onnxopt.analysis.axes.rules_matmul import Operand, matrices, multiplied
from onnxopt.analysis.symbols.quantized import elements_per_entry
from onnxopt.analysis.symbols.rules import MICROSOFT, normalized

_BLOCK = "entries that one scale or one byte stands for"
_DISTRIBUTION = "each entry depends on all others: a distribution over them"


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def _encoding(call: Call) -> None:
    axes = call.parameter(0)
    if axes is None:
        for index in (1, 2):
            call.hold_input(index, "encodes a tensor of unknown rank", "needs-rule")
        return
    place = call.integer("axis", 1)
    for index in (1, 2):
        _encoded(call, axes, index, place)
    call.give(axes)


def _encoded(call: Call, axes: Axes | None, index: int, place: int) -> None:
    """A scale or a zero point belongs to a tensor: one for all, one an entry of an axis, or one a block.

    Args:
        call: the operator.
        axes: of the tensor.
        index: of the input that encodes it.
        place: of the axis of which each entry, or block of entries, has one.
    """
    given = call.parameter(index)
    if axes is None or not given:
        return
    if len(given) == 1:
        if given[0]:
            call.unite(axes[normalized(place, len(axes))], given[0])
        return
    for at, (axis, entries) in enumerate(zip(axes, given, strict=True)):
        if at == normalized(place, len(axes)):
            _by_blocks(call, axis, given, at, call.integer("block_size", 0))
        elif entries:
            call.unite(axis, entries)


def _by_blocks(call: Call, axis: Axis, other: Axes, place: int, block: int, *, packed: bool = False) -> None:
    """So many entries of an axis in a row, fewer at its end, are one entry of an axis of another tensor.

    `packed`: whether that holds them, so that there have to be as many.
    """
    size, count = size_of(axis), size_of(other[place])
    if block == 1:
        call.unite(axis, other[place])
    elif not isinstance(size, int) or not isinstance(count, int) or (count > 1 and block < 1):
        call.hold(axis, "blocks whose number is not known", "needs-rule")
        call.hold(other[place], "blocks whose number is not known", "needs-rule")
    elif count > 1:
        repeated = call.taken(other, place, np.arange(size) // block, _BLOCK)
        call.unite(axis, repeated[place])
    elif packed:
        call.hold(axis, _BLOCK)


@rule("DynamicQuantizeLinear")
def _measured(call: Call) -> None:
    axes = call.axes(0)
    _ranged(call, 0)
    call.give(axes)
    call.give((), 1)
    call.give((), 2)


def _ranged(call: Call, index: int) -> None:
    """The operator looks at the range of an input: as good as 0 is what is not there."""
    for place, axis in enumerate(call.axes(index) or ()):
        if axis:
            call.consume(index, place, axis)


@rule("QLinearConv")
@rule("QLinearConv", domain=MICROSOFT)
def _convolution(call: Call) -> None:
    _encoded(call, call.parameter(3), 4, 0)
    _encoded(call, call.parameter(3), 5, 0)
    convolved(call, _places(bool(call.integer("channels_last", 0))))


@rewrite("QLinearConv")
@rewrite("QLinearConv", domain=MICROSOFT)
def _groups(patch: Patch) -> None:
    regroup(patch, _places(bool(patch.integer("channels_last", 0))))


def _places(last: bool) -> Places:
    return Places(data=0, filters=3, bias=8, zero=2, last=last)


_INTEGERS = Places(data=0, filters=1, bias=4, zero=2)


@rule("ConvInteger")
def _integer_convolution(call: Call) -> None:
    _encoded(call, call.parameter(1), 3, 0)
    convolved(call, _INTEGERS)


@rewrite("ConvInteger")
def _integer_groups(patch: Patch) -> None:
    regroup(patch, _INTEGERS)


@rule("MatMulInteger")
def _integer_product(call: Call) -> None:
    _product(call, (0, (), 2), (1, (), 3))


@rule("QLinearMatMul")
def _quantized_product(call: Call) -> None:
    result = _product(call, (0, (1,), 2), (3, (4,), 5))
    for index in (6, 7):
        _encoded(call, result, index, -2)


@rule("MatMulIntegerToFloat", domain=MICROSOFT)
def _float_product(call: Call) -> None:
    result = _product(call, (0, (2,), 4), (1, (3,), 5))
    _biased(call, result, 6)


@rule("DynamicQuantizeMatMul", domain=MICROSOFT)
def _measured_product(call: Call) -> None:
    _ranged(call, 0)
    result = _product(call, (0, (), None), (1, (2,), 3))
    _biased(call, result, 4)


def _product(
    call: Call, left: tuple[int, Sequence[int], int | None], right: tuple[int, Sequence[int], int | None]
) -> Axes | None:
    """State the axes of a product of two operands, each an input, its scales and its zero point.

    The left one may be encoded by row, the right one by column.
    """
    operands = []
    for (index, scales, zero), place in ((left, -2), (right, -1)):
        axes = call.parameter(index)
        for each in (*scales, *(() if zero is None else (zero,))):
            _encoded(call, axes, each, place)
        operands.append(Operand.of(index, axes, zero=zero))
    result = multiplied(call, *operands)
    call.give(result)
    return result


def _biased(call: Call, result: Axes | None, index: int) -> None:
    if call.has(index):
        broadcast(call, [result, call.axes(index)])


@rule("QGemm", domain=MICROSOFT)
def _matrices(call: Call) -> None:
    right = call.parameter(3)
    for index in (4, 5):
        _encoded(call, right, index, 0 if call.integer("transB", 0) else 1)
    left = Operand.of(0, call.parameter(0), zero=2)
    call.give(matrices(call, left, Operand.of(3, right, zero=5), call.parameter(6)))


@rule("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def _elementwise(call: Call) -> None:
    added = call.node.op_type == "QLinearAdd" and not any(call.constant(index) for index in (0, 3))
    call.give(broadcast(call, [call.parameter(0), call.parameter(3)], added=added))


@rule("QLinearWhere", domain=MICROSOFT)
def _choice(call: Call) -> None:
    call.give(broadcast(call, [call.parameter(index) for index in (0, 1, 4)]))


@rule("QLinearConcat", domain=MICROSOFT)
def _concat(call: Call) -> None:
    concatenated(call, [call.parameter(index) for index in range(2, len(call.node.inputs), 3)])


@rule("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT)
def _unary(call: Call) -> None:
    call.give(call.axes(0))


@rule("QLinearSoftmax", domain=MICROSOFT)
def _distribution(call: Call) -> None:
    axes = call.axes(0)
    if axes is None:
        return
    place = normalized(call.integer("axis", -1), len(axes))
    for axis in axes[place:] if call.integer("opset", 13) < 13 else [axes[place]]:
        call.hold(axis, _DISTRIBUTION)
    call.give(axes)


@rule("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT)
def _pool(call: Call) -> None:
    x = call.axes(0)
    if x is None:
        return
    last = bool(call.integer("channels_last", 0))
    for axis in x[1:-1] if last else x[2:]:
        call.hold(axis, WINDOW)
    images = call.rest(len(x), WINDOW, last=last)
    call.give((x[0], *images, x[-1]) if last else (*x[:2], *images))


@rule("MatMulNBits", domain=MICROSOFT)
def _packed_product(call: Call) -> None:
    """Columns of the matrix are rows here, each in blocks: [N, blocks, bytes]."""
    x, weight = call.axes(0), call.parameter(1)
    if x is None or weight is None or len(weight) != 3 or call.integer("weight_prepacked", 0):
        for index in (0, 1, 2, 3, 5):
            call.hold_input(index, "multiplied with a matrix of unknown layout", "needs-rule")
        return
    columns, blocks, packed = weight
    call.hold(packed, _BLOCK)
    _by_blocks(call, x[-1], weight, 1, call.integer("block_size", 0), packed=True)
    call.consume(0, len(x) - 1, x[-1])
    call.consume(1, 1, blocks)
    points = call.known.fact(3)
    whole = points.dtype == call.known.fact(2).dtype
    for index, entries in ((2, 1), (3, 1 if whole else 8 // call.integer("bits", 4))):
        _of_blocks(call, index, weight, entries)
    if call.has(4):
        call.hold(x[-1], "ordered by an index")
    if call.has(5):
        call.unite(columns, (call.axes(5) or ((),))[0])
    call.give((*x[:-1], columns))


def _of_blocks(call: Call, index: int, weight: Axes, entries: int) -> None:
    """Scales or zero points of a packed matrix, [N, blocks / entries] or the same as a vector."""
    given = call.parameter(index)
    if given is None:
        return
    if len(given) == 1:
        given = call.apart(given[0], _int(weight[0]), -(-_int(weight[1]) // entries))
    call.unite(weight[0], given[0])
    _by_blocks(call, weight[1], given, 1, entries, packed=True)


def _int(axis: Axis) -> int:
    size = size_of(axis)
    if not isinstance(size, int):
        raise ValueError("a matrix whose size is open")
    return size


@rewrite("MatMulNBits", domain=MICROSOFT)
def _sizes(patch: Patch) -> None:
    patch.set_attribute("N", patch.size(1, 0))
    patch.set_attribute("K", patch.size(0, -1))


@rule("GatherBlockQuantized", domain=MICROSOFT)
def _rows(call: Call) -> None:
    """Rows, looked up in a packed matrix, of which whole blocks of columns may go."""
    data, index, scales = call.parameter(0), call.known.fact(1), call.parameter(2)
    if data is None or scales is None or index.shape is None or len(scales) != len(data):
        for at in (0, 2, 3):
            call.hold_input(at, "picked from a matrix of unknown layout", "needs-rule")
        return
    place = normalized(call.integer("gather_axis", 0), len(data))
    along = normalized(call.integer("quantize_axis", 1), len(data))
    call.hold(data[place], "looked up by computed indices")
    entries = elements_per_entry(call.known)
    full = [*data[:-1], call.channels(call.fresh(_int(data[-1]) * entries))]
    _by_blocks(call, full[-1], data, len(data) - 1, entries, packed=True)
    for at, axes in ((2, scales), (3, call.parameter(3))):
        for axis in range(len(full) if axes is not None else 0):
            held = entries if at == 3 and axis == len(full) - 1 else 1
            block = call.integer("block_size", 128) * held if axis == along else held
            _by_blocks(call, full[axis], axes or (), axis, block, packed=held > 1)
    rows = call.axes(1) or tuple(call.length(size, "rows that are looked up") for size in index.shape)
    call.give((*full[:place], *rows, *full[place + 1 :]))
