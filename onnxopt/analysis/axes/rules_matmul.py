"""Products of matrices: what they sum over is consumed, the rest of their operands' axes are those of the result."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.analysis.axes.axis import Axes, Axis, vector
from onnxopt.analysis.axes.rules import Call, rule
from onnxopt.analysis.axes.rules_elementwise import broadcast


@dataclass(frozen=True)
class Operand:
    """What is multiplied.

    Attributes:
        index: of the input.
        axes: its axes, as they are multiplied; None for an unknown rank.
        order: where the input itself has each of them.
        zero: see `Consumption`.
    """

    index: int
    axes: Axes | None
    order: Sequence[int]
    zero: int | None = None

    @classmethod
    def of(
        cls, index: int, axes: Axes | None, order: Sequence[int] | None = None, *, zero: int | None = None
    ) -> "Operand":
        """An input whose axes are multiplied in some order, or as they are."""
        places = range(len(axes or ())) if order is None else order
        return cls(index, None if axes is None else tuple(axes[place] for place in places), places, zero)


@rule("MatMul")
def _matmul(call: Call) -> None:
    call.give(multiplied(call, Operand.of(0, call.axes(0)), Operand.of(1, call.axes(1))))


@rule("Gemm")
def _gemm(call: Call) -> None:
    call.give(matrices(call, Operand.of(0, call.axes(0)), Operand.of(1, call.axes(1)), call.axes(2)))


def matrices(call: Call, left: Operand, right: Operand, added: Axes | None) -> Axes | None:
    """Axes of what an operator with Gemm's attributes gives.

    Args:
        call: the operator.
        left: the first matrix, as it is.
        right: the second.
        added: axes of what is added.
    """
    result = contracted(call, _swapped(call, left, "transA"), _swapped(call, right, "transB"))
    if result is not None and added is not None:
        broadcast(call, [result, added])
    return result


def multiplied(call: Call, left: Operand, right: Operand) -> Axes | None:
    """Axes of a product as numpy's matmul has it."""
    if not left.axes or not right.axes:
        _held(call, left, right)
        return None
    a = ((), *left.axes) if len(left.axes) == 1 else left.axes
    b = (*right.axes, ()) if len(right.axes) == 1 else right.axes
    batch = broadcast(call, [a[:-2], b[:-2]])
    assert batch is not None
    if not call.constant(left.index) and not call.constant(right.index):
        for axis in (*a[:-2], *b[:-2]):
            if any(digit.live for digit in axis):
                call.tag(axis, "kv-groups" if repeats(axis) else "heads")
    rows = Operand(left.index, a[-2:], [left.order[-1]] * 2, left.zero)
    columns = Operand(right.index, b[-2:], [right.order[max(len(right.axes) - 2, 0)]] * 2, right.zero)
    outer = contracted(call, rows, columns)
    assert outer is not None
    return (*batch, *(outer[:1] if len(left.axes) > 1 else ()), *(outer[1:] if len(right.axes) > 1 else ()))


def repeats(axis: Axis) -> bool:
    """Whether channels occur several times on an axis: keys and values of several query heads."""
    ids = vector(axis) if all(isinstance(digit.size, int) for digit in axis) else None
    return ids is not None and len(np.unique(ids)) < len(ids)


def contracted(call: Call, left: Operand, right: Operand) -> Axes | None:
    """Axes of [rows, inner] times [inner, columns]; notes that the inner axis is summed over."""
    if left.axes is None or right.axes is None:
        _held(call, left, right)
        return None
    call.unite(left.axes[1], right.axes[0])
    for operand, place, axis in ((left, left.order[1], left.axes[1]), (right, right.order[0], right.axes[0])):
        if axis:
            call.consume(operand.index, place, axis, zero=operand.zero)
    return left.axes[0], right.axes[1]


def _held(call: Call, *operands: Operand) -> None:
    for operand in operands:
        for axis in operand.axes or ():
            call.hold(axis, "multiplied with a tensor of unknown rank", "needs-rule")


def _swapped(call: Call, operand: Operand, attribute: str) -> Operand:
    if operand.axes is None or not call.integer(attribute, 0):
        return operand
    return Operand(operand.index, operand.axes[::-1], operand.order[::-1], operand.zero)
