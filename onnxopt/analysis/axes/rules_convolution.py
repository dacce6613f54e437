"""Convolutions, ordinary, grouped and depthwise.

Channels of a grouped convolution go in one of two ways: whole groups, or the same places in every group. Whichever
gives more units is taken.
"""

from onnxopt.analysis.axes.axis import Axes, Axis, size_of
from onnxopt.analysis.axes.patch import Patch
from onnxopt.analysis.axes.rules import Call, rewrite, rule

_WINDOW = "the size of a window or an image"
_GROUP = "the size of what is removed whole: a group of a convolution"


@rule("Conv")
def _conv(call: Call) -> None:
    convolved(call, 0, 1, 2)


@rule("ConvTranspose")
def _transposed(call: Call) -> None:
    found = _operands(call, 0, 1)
    if found is None:
        return
    x, weight, groups = found
    call.unite(x[1], weight[0])
    if groups == 1:
        call.consume(0, 1, x[1])
        call.consume(1, 0, weight[0])
        result = weight[1]
    else:
        result = _grouped_transposed(call, x[1], weight, groups)
    if call.has(2):
        call.unite(result, (call.axes(2) or ((),))[0])
    call.give((x[0], result, *call.rest(len(x), _WINDOW)))


def _grouped_transposed(call: Call, source: Axis, weight: Axes, groups: int) -> Axis:
    inner = _int(source) // groups
    outer, inside = call.apart(source, groups, inner)
    if groups > inner:
        call.hold(inside, _GROUP)
        call.hold(weight[1], _GROUP)
        return outer + weight[1]
    call.hold(outer, _GROUP)
    call.consume(0, 1, source)
    call.consume(1, 0, weight[0])
    return outer + weight[1]


def convolved(call: Call, data: int, filters: int, bias: int) -> None:
    """State the axes of a convolution.

    Args:
        call: the operator.
        data: index of its input [N, C, ...].
        filters: index of the weight [M, C / groups, ...].
        bias: index of the bias [M].
    """
    found = _operands(call, data, filters)
    if found is None:
        return
    x, weight, groups = found
    if groups == 1:
        call.unite(x[1], weight[1])
        call.consume(data, 1, x[1])
        call.consume(filters, 1, weight[1])
    else:
        _grouped(call, data, x[1], filters, weight, groups)
    if call.has(bias):
        call.unite(weight[0], (call.parameter(bias) or ((),))[0])
    call.give((x[0], weight[0], *call.rest(len(x), _WINDOW)))


def _grouped(call: Call, data: int, source: Axis, filters: int, weight: Axes, groups: int) -> None:
    inner = _int(source) // groups
    outer, inside = call.apart(source, groups, inner)
    rows, within = call.apart(weight[0], groups, _int(weight[0]) // groups)
    if groups > inner:
        call.hold(inside, _GROUP)
        call.hold(within, _GROUP)
        call.hold(weight[1], _GROUP)
        call.unite(outer, rows)
        return
    call.hold(outer, _GROUP)
    call.hold(rows, _GROUP)
    call.unite(inside, weight[1])
    call.consume(data, 1, source)
    call.consume(filters, 1, weight[1])


def _operands(call: Call, data: int, filters: int) -> tuple[Axes, Axes, int] | None:
    """Data, weight and number of groups, windows held; None where a rank is unknown."""
    x, weight = call.axes(data), call.parameter(filters)
    if x is None or weight is None or len(x) < 3:
        for axis in (*(x or ()), *(weight or ())):
            call.hold(axis, "convolved with a tensor of unknown rank", "needs-rule")
        return None
    for axis in (*x[2:], *weight[2:]):
        call.hold(axis, _WINDOW)
    return x, weight, call.integer("group", 1)


def _int(axis: Axis) -> int:
    size = size_of(axis)
    if not isinstance(size, int):
        raise ValueError("a number of channels that is open")
    return size


@rewrite("Conv")
def _groups(patch: Patch) -> None:
    patch.set_attribute("group", patch.size(0, 1) // patch.size(1, 1))


@rewrite("ConvTranspose")
def _groups_transposed(patch: Patch) -> None:
    patch.set_attribute("group", patch.size_out(0, 1) // patch.size(1, 1))
