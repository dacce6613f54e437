"""Operators that compute each element from the elements at the same place."""

from collections.abc import Sequence

from onnxopt.analysis.axes.axis import Axes, Axis
from onnxopt.analysis.axes.rules import Call, rule

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu", "Clip",
    "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf",
    "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid",
    "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Operators on one tensor."""

COMBINING = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
"""Operators on several, aligned at their last axes."""

ELEMENTWISE = frozenset(("", op) for op in (*UNARY, *COMBINING))
"""What both are registered under."""


@rule(*UNARY)
def _unary(call: Call) -> None:
    for index in range(len(call.node.outputs)):
        call.give(call.axes(0), index)


@rule(*COMBINING)
def _broadcast(call: Call) -> None:
    given = [index for index in range(len(call.node.inputs)) if call.has(index)]
    _take_parts(call, given)
    added = call.node.op_type in ("Add", "Sub", "Sum") and _are_streams(call, given)
    call.give(broadcast(call, [call.axes(index) for index in given], added=added))


def _are_streams(call: Call, given: Sequence[int]) -> bool:
    """Whether several computed tensors are added of which none, like a bias, is the same all along an axis."""
    spans = [sum(axis != () for axis in call.axes(index) or ()) for index in given if not call.constant(index)]
    return spans.count(max(spans, default=0)) > 1


def _take_parts(call: Call, given: Sequence[int]) -> None:
    """What several layers add to the scores of their heads ties none of them: each takes the part of its own heads."""
    for index in given:
        axes = call.axes(index)
        if axes is None or not call.is_shared(index):
            continue
        for other in given:
            beside = call.axes(other) or ()
            for back in range(1, min(len(axes), len(beside)) + 1):
                if other != index and axes[-back] and call.is_tagged(beside[-back]) and not call.is_tagged(axes[-back]):
                    call.part(index, len(axes) - back)


def broadcast(call: Call, operands: Sequence[Axes | None], *, added: bool = False) -> Axes | None:
    """Axes of what combines tensors element by element, aligned at their last axes; an axis of size 1 fits any.

    Args:
        call: the operator.
        operands: axes of what it combines.
        added: whether it adds computed tensors; see `Ledger.unite`.
    """
    known = [axes for axes in operands if axes is not None]
    if len(known) < len(operands):
        for axes in known:
            for axis in axes:
                call.hold(axis, "combined with a tensor of unknown rank", "needs-rule")
        return None
    rank = max((len(axes) for axes in known), default=0)
    padded = [((),) * (rank - len(axes)) + axes for axes in known]
    return tuple(_combined(call, [axes[place] for axes in padded], added) for place in range(rank))


def _combined(call: Call, axes: Sequence[Axis], added: bool) -> Axis:
    present = [axis for axis in axes if axis]
    if not present:
        return ()
    return call.united(present, added=added)
