"""What removal is measured against: the whole model, with all that reads the removed units ignoring them."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.patch import Kept
from onnxopt.analysis.axes.rules import Consumption
from onnxopt.analysis.axes.weights import Use
from onnxopt.edit import Edit

_WHERE_SINCE = 9


def masking(channels: Channels, units: Iterable[int]) -> Edit:
    """An edit after which operators that sum over channels read 0 for those of some units.

    For units of exact groups the model computes afterwards what it computes without them: each such operator is
    the end of every way from what makes a unit, and ignores it. Where an operator itself makes what it sums over, as
    recurrent ones do, the weight that it multiplies that with has zeros instead.

    Args:
        channels: of the model as it is.
        units: classes of channel ids; see `Channels.spared`.
    """
    kept = Kept(channels.classes.labels, channels.spared(units))
    edit = Edit("mask")
    masked: dict[Use, ir.Value] = {}
    for consumption in channels.consumed:
        use = (consumption.node, consumption.index)
        value = consumption.node.inputs[consumption.index]
        if value is None or (channels.is_constant(value) and not _alone(channels, consumption)):
            continue
        stay = kept.mask(consumption.axis)
        axes = channels.of_input(consumption.node, consumption.index)
        if stay is None or axes is None:
            continue
        shape = [-1 if place == consumption.place else 1 for place in range(len(axes))]
        zero = _zero(consumption.node, consumption.zero)
        dtype = channels.symbols.of(value).dtype or value.dtype or ir.DataType.FLOAT
        node = _masked(edit, masked.get(use, value), stay.reshape(shape), zero, dtype, channels.symbols.opset)
        node.outputs[0].type = value.type
        edit.insert([node], before=consumption.node)
        masked[use] = node.outputs[0]
    for (node, index), value in masked.items():
        edit.set_input(node, index, value)
    return edit


def _alone(channels: Channels, consumption: Consumption) -> bool:
    """Whether no other input of the node could have zeros in stead of a constant one."""
    return consumption.inside or channels.is_constant(consumption.node.outputs[0])


def _zero(node: ir.Node, index: int | None) -> ir.Value | None:
    return None if index is None or index >= len(node.inputs) else node.inputs[index]


def _masked(
    edit: Edit,
    value: ir.Value,
    stay: npt.NDArray[np.bool_],
    zero: ir.Value | None,
    dtype: ir.DataType,
    opset: int,
) -> ir.Node:
    if opset < _WHERE_SINCE:
        return ir.node("Mul", [value, edit.add_weight("mask", stay.astype(dtype.numpy()))])
    if zero is None:
        zero = edit.add_weight("zero", np.zeros((), dtype.numpy()))
    return ir.node("Where", [edit.add_weight("mask", stay), value, zero])
