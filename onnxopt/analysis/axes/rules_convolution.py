"""Convolutions, ordinary, grouped and depthwise.

Channels of a grouped convolution go in one of two ways: the same places in every group, which halves a weight twice
when half of the channels go, or whole groups. Groups go whole if they are narrow and more of them than places in one,
and where the caller wants it so.
"""

from dataclasses import dataclass

from onnxopt.analysis.axes.axis import Axes, Axis, size_of
from onnxopt.analysis.axes.ids import WINDOW
from onnxopt.analysis.axes.patch import Patch
from onnxopt.analysis.axes.rules import Call, rewrite, rule

_GROUP = "the size of what is removed whole: a group of a convolution"


_WIDE = 8
"""Groups of so many channels are wide enough to lose some of them."""


@rule("Conv")
def _conv(call: Call) -> None:
    convolved(call, Places())


@rule("ConvTranspose")
def _transposed(call: Call) -> None:
    found = _operands(call, Places())
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
    call.give((x[0], result, *call.rest(len(x), WINDOW)))


def _grouped_transposed(call: Call, source: Axis, weight: Axes, groups: int) -> Axis:
    inner = _int(source) // groups
    outer, inside = call.apart(source, groups, inner)
    if inner < _WIDE and groups > inner:
        call.hold(inside, _GROUP)
        call.hold(weight[1], _GROUP)
        return outer + weight[1]
    call.hold(outer, _GROUP)
    call.consume(0, 1, source)
    call.consume(1, 0, weight[0])
    return outer + weight[1]


@dataclass(frozen=True)
class Places:
    """Where a convolution has its operands.

    Attributes:
        data: index of its input [N, C, ...].
        filters: index of the weight [M, C / groups, ...].
        bias: index of the bias [M]; past the last input where the operator takes none.
        zero: see `Consumption`.
        last: whether the data are [N, ..., C], and so is the result.
        filters_last: whether the weight is [M, ..., C / groups].
    """

    data: int = 0
    filters: int = 1
    bias: int = 2
    zero: int | None = None
    last: bool = False
    filters_last: bool = False


def convolved(call: Call, places: Places) -> None:
    """State the axes of a convolution."""
    found = _operands(call, places)
    if found is None:
        return
    x, weight, groups = found
    summed = x[1]
    if groups == 1:
        call.unite(x[1], weight[1])
    else:
        summed = _grouped(call, x[1], weight, groups)
    if groups == 1 or summed:
        call.consume(places.data, len(x) - 1 if places.last else 1, summed, zero=places.zero)
        call.consume(places.filters, len(x) - 1 if places.filters_last else 1, weight[1])
    if call.has(places.bias):
        call.unite(weight[0], (call.parameter(places.bias) or ((),))[0])
    images = call.rest(len(x), WINDOW, last=places.last)
    call.give((x[0], *images, weight[0]) if places.last else (x[0], weight[0], *images))


def _grouped(call: Call, source: Axis, weight: Axes, groups: int) -> Axis:
    """What is summed over of a grouped convolution's channels: none where whole groups go."""
    inner = _int(source) // groups
    outer, inside = call.apart(source, groups, inner)
    rows, within = call.apart(weight[0], groups, _int(weight[0]) // groups)
    if call.grouped(inner, weight[0]) or (inner < _WIDE and groups > inner):
        call.hold(inside, _GROUP)
        call.hold(within, _GROUP)
        call.hold(weight[1], _GROUP)
        call.unite(outer, rows)
        return ()
    call.hold(outer, _GROUP)
    call.hold(rows, _GROUP)
    call.unite(inside, weight[1])
    return source


def _operands(call: Call, places: Places) -> tuple[Axes, Axes, int] | None:
    """Data, weight, both with channels in front, and number of groups, windows held; None where a rank is unknown."""
    x, weight = call.axes(places.data), call.parameter(places.filters)
    if x is None or weight is None or len(x) < 3:
        for axis in (*(x or ()), *(weight or ())):
            call.hold(axis, "convolved with a tensor of unknown rank", "needs-rule")
        return None
    x = (x[0], x[-1], *x[1:-1]) if places.last else x
    weight = (weight[0], weight[-1], *weight[1:-1]) if places.filters_last else weight
    for axis in (*x[2:], *weight[2:]):
        call.hold(axis, WINDOW)
    return x, weight, call.integer("group", 1)


def _int(axis: Axis) -> int:
    size = size_of(axis)
    if not isinstance(size, int):
        raise ValueError("a number of channels that is open")
    return size


@rewrite("Conv")
def _groups(patch: Patch) -> None:
    regroup(patch, Places())


def regroup(patch: Patch, places: Places) -> None:
    """Let a convolution have as many groups as its channels now make."""
    channels = patch.size(places.data, -1 if places.last else 1)
    patch.set_attribute("group", channels // patch.size(places.filters, -1 if places.filters_last else 1))


@rewrite("ConvTranspose")
def _groups_transposed(patch: Patch) -> None:
    patch.set_attribute("group", patch.size_out(0, 1) // patch.size(1, 1))
