"""Operators that compute along an axis: reductions, normalizations to a distribution, searches."""

from onnxopt.analysis.axes.rules import Call, rule
from onnxopt.analysis.symbols.rules import normalized

_DISTRIBUTION_SINCE = 13
"""Before this opset Softmax and its like flatten the tensor, at the axis, into a matrix."""


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
