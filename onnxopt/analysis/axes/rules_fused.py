"""Operators that do the work of several: products with what follows them, gates, convolutions with channels last."""

import numpy as np

from onnxopt.analysis.axes.axis import Axes, size_of
from onnxopt.analysis.axes.ids import WINDOW
from onnxopt.analysis.axes.patch import Patch
from onnxopt.analysis.axes.rules import Call, rewrite, rule
from onnxopt.analysis.axes.rules_convolution import Places, convolved, regroup
from onnxopt.analysis.axes.rules_elementwise import broadcast
from onnxopt.analysis.axes.rules_matmul import Operand, matrices, multiplied
from onnxopt.analysis.symbols import Call as Known
from onnxopt.analysis.symbols.expressions import product
from onnxopt.analysis.symbols.fused import transposed
from onnxopt.analysis.symbols.rules import MICROSOFT

_HALVES = "halves that are multiplied with one another"


@rule("Gelu", "QuickGelu", domain=MICROSOFT)
def _unary(call: Call) -> None:
    call.give(call.axes(0))


@rule("BiasGelu", "FastGelu", domain=MICROSOFT)
def _biased(call: Call) -> None:
    call.give(broadcast(call, [call.axes(index) for index in range(len(call.node.inputs)) if call.has(index)]))


@rule("BiasAdd", domain=MICROSOFT)
def _residual(call: Call) -> None:
    biased = broadcast(call, [call.axes(0), call.axes(1)])
    call.give(broadcast(call, [biased, call.axes(2)], added=not call.constant(2)))


@rule("BiasSplitGelu", domain=MICROSOFT)
def _gated(call: Call) -> None:
    axes = broadcast(call, [call.axes(0), call.axes(1)])
    size = None if axes is None else size_of(axes[-1])
    if axes is None or not isinstance(size, int):
        call.hold_input(0, "halved at a place that is not known", "needs-rule")
        return
    left, right = (
        call.taken(axes, len(axes) - 1, np.arange(first, first + size // 2), _HALVES) for first in (0, size // 2)
    )
    call.unite(left[-1], right[-1])
    call.give(left)


@rule("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def _product(call: Call) -> None:
    operands = []
    for index, name in enumerate("AB"):
        axes = call.axes(index)
        order = transposed(call.known, name, len(axes or ()))
        operands.append(Operand.of(index, axes, order))
    axes = multiplied(call, *operands)
    activation = call.node.attributes.get("activation")
    if axes is not None and activation is not None and activation.as_string() == "Softmax":
        call.hold(axes[call.integer("activation_axis", -1)], "each entry depends on all others: a distribution")
    call.give(axes)


@rule("FusedGemm", domain=MICROSOFT)
def _matrices(call: Call) -> None:
    call.give(matrices(call, Operand.of(0, call.axes(0)), Operand.of(1, call.axes(1)), call.axes(2)))


@rule("FusedConv", "NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def _convolution(call: Call) -> None:
    shapes = (call.axes(0), call.axes(1))
    convolved(call, _places(call.known, *shapes))
    if call.has(3):
        added = not call.constant(3)
        call.give(broadcast(call, [call.axes_out(), call.axes(3)], added=added))


@rewrite("FusedConv", "NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def _groups(patch: Patch) -> None:
    regroup(patch, _places(patch.known, patch.axes(0), patch.axes(1)))


def _places(known: Known, x: Axes | None, weight: Axes | None) -> Places:
    """Channels last, with weights that have them last too or, where that does not fit, in their usual place."""
    if known.node.op_type == "FusedConv" or not x or not weight:
        return Places(last=known.node.op_type != "FusedConv")
    channels = product(digit.size for digit in x[-1])
    usual = size_of(weight[1]) * known.integer("group", 1) == channels
    return Places(last=True, filters_last=not usual)


@rule("NhwcMaxPool", domain=MICROSOFT)
def _pool(call: Call) -> None:
    x = call.axes(0)
    if x is not None:
        for axis in x[1:-1]:
            call.hold(axis, WINDOW)
        call.give((x[0], *call.rest(len(x), WINDOW, last=True), x[-1]))
