"""Operators that compute along an axis: reductions, normalizations to a distribution, searches."""

from onnxopt.analysis.axes.axis import Axes, fixed
from onnxopt.analysis.axes.rules import Call, rule
from onnxopt.analysis.symbols.rules import normalized

_DISTRIBUTION_SINCE = 13
"""Before this opset Softmax and its like flatten the tensor, at the axis, into a matrix."""

_ORDER = "entries are compared with, or follow, one another"


@rule("Softmax", "LogSoftmax", "Hardmax")
def _distribution(call: Call) -> None:
    axes = call.axes(0)
    if axes is None:
        return
    flattens = call.known.opset < _DISTRIBUTION_SINCE
    place = normalized(call.integer("axis", 1 if flattens else -1), len(axes))
    for axis in axes[place:] if flattens else [axes[place]]:
        call.hold(axis, "each entry depends on all others: a distribution over them")
    call.give(axes)


@rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
def _total(call: Call) -> None:
    """To a sum, entries of 0 are as good as none."""
    axes, places = _reduced(call)
    for place in places:
        call.consume(0, place, axes[place])


@rule("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")
def _statistic(call: Call) -> None:
    """Of fewer entries these are something else, though of the same meaning."""
    axes, places = _reduced(call)
    for place in places:
        call.inexact(axes[place], f"{call.node.op_type} over all of them")


def _reduced(call: Call) -> tuple[Axes, list[int]]:
    """State the axes of what a reduction gives; those of its input, and the places that are reduced."""
    axes = call.axes(0)
    if axes is None:
        return (), []
    listed = call.known.numbers(1, "axes") if call.known.given(1, "axes") else []
    if listed is None:
        call.hold_input(0, "reduced over axes that are not known")
        return axes, []
    if not listed and call.integer("noop_with_empty_axes", 0):
        call.give(axes)
        return axes, []
    gone = {normalized(place, len(axes)) for place in listed} or set(range(len(axes)))
    kept = call.integer("keepdims", 1)
    call.give(tuple(() if at in gone else axis for at, axis in enumerate(axes) if kept or at not in gone))
    return axes, sorted(gone)


@rule("ArgMax", "ArgMin")
def _extreme(call: Call) -> None:
    axes = call.axes(0)
    if axes is None:
        return
    place = normalized(call.integer("axis", 0), len(axes))
    call.hold(axes[place], _ORDER)
    kept: Axes = ((),) if call.integer("keepdims", 1) else ()
    call.give((*axes[:place], *kept, *axes[place + 1 :]))


@rule("TopK")
def _largest(call: Call) -> None:
    axes = call.axes(0)
    if axes is None:
        return
    place = normalized(call.integer("axis", -1), len(axes))
    result = stays(call, axes, place, _ORDER)
    call.give(result)
    call.give(result, 1)


@rule("CumSum", "CumProd")
def _running(call: Call) -> None:
    axes, along = call.axes(0), call.known.numbers(1)
    if axes is None:
        return
    for place in range(len(axes)) if along is None else [normalized(along[0], len(axes))]:
        call.hold(axes[place], _ORDER)
    call.give(axes)


def stays(call: Call, axes: Axes, place: int, why: str) -> Axes:
    """The axes of a result that differs in the length of one axis only, of which no entry may go."""
    call.hold(axes[place], why)
    shape = call.out().shape
    size = shape[place] if shape is not None else call.known.space.fresh()
    return (*axes[:place], fixed(size, call.reason(axes[place])), *axes[place + 1 :])
