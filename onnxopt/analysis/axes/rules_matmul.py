"""Products of matrices: what they sum over is consumed, the rest of their operands' axes are those of the result."""

from onnxopt.analysis.axes.axis import Axes, Axis
from onnxopt.analysis.axes.rules import Call, rule
from onnxopt.analysis.axes.rules_elementwise import broadcast


@rule("MatMul")
def _matmul(call: Call) -> None:
    call.give(multiplied(call, 0, call.axes(0), 1, call.axes(1)))


@rule("Gemm")
def _gemm(call: Call) -> None:
    left, right = _swapped(call.axes(0), call.integer("transA", 0)), _swapped(call.axes(1), call.integer("transB", 0))
    places = (1 - call.integer("transA", 0), call.integer("transB", 0))
    result = contracted(call, 0, left, places[0], 1, right, places[1])
    if result is not None and call.has(2):
        broadcast(call, [result, call.axes(2)])
    call.give(result)


def multiplied(call: Call, first: int, left: Axes | None, second: int, right: Axes | None) -> Axes | None:
    """Axes of a product as numpy's matmul has it.

    Args:
        call: the operator.
        first: index of the input that is multiplied from the left.
        left: its axes.
        second: index of the other.
        right: its axes.
    """
    if left is None or right is None or not left or not right:
        for axis in (*(left or ()), *(right or ())):
            call.hold(axis, "multiplied with a tensor of unknown rank", "needs-rule")
        return None
    a, b = ((), *left) if len(left) == 1 else left, (*right, ()) if len(right) == 1 else right
    batch = broadcast(call, [a[:-2], b[:-2]])
    assert batch is not None
    if not call.constant(first) and not call.constant(second):
        for axis in batch:
            if any(digit.live for digit in axis):
                call.tag(axis, "heads")
    outer = contracted(call, first, a[-2:], len(left) - 1, second, b[-2:], max(len(right) - 2, 0))
    assert outer is not None
    rows = outer[:1] if len(left) > 1 else ()
    columns = outer[1:] if len(right) > 1 else ()
    return (*batch, *rows, *columns)


def contracted(
    call: Call, first: int, left: Axes | None, place: int, second: int, right: Axes | None, other: int
) -> Axes | None:
    """Axes of [rows, inner] times [inner, columns]; notes that the inner axis is summed over.

    Args:
        call: the operator.
        first: index of the left input.
        left: its axes, as they are multiplied.
        place: where the left input itself has the inner axis.
        second: index of the right input.
        right: its axes, as they are multiplied.
        other: where the right input itself has the inner axis.
    """
    if left is None or right is None:
        for axis in (*(left or ()), *(right or ())):
            call.hold(axis, "multiplied with a tensor of unknown rank", "needs-rule")
        return None
    call.unite(left[1], right[0])
    _consumed(call, first, place, left[1])
    _consumed(call, second, other, right[0])
    return left[0], right[1]


def _consumed(call: Call, index: int, place: int, axis: Axis) -> None:
    if axis:
        call.consume(index, place, axis)


def _swapped(axes: Axes | None, swap: int) -> Axes | None:
    return axes[::-1] if axes is not None and swap else axes
