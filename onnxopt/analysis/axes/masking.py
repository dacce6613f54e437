"""What removal is measured against: the whole model, with all that reads the removed units ignoring them."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.patch import Kept
from onnxopt.edit import Edit

_WHERE_SINCE = 9


def masking(channels: Channels, units: Iterable[int]) -> Edit:
    """An edit after which operators that sum over channels read 0 for those of some units.

    For units of exact groups the model computes afterwards what it computes without them: each such operator is
    the end of every way from what makes a unit, and ignores it.

    Args:
        channels: of the model as it is.
        units: classes of channel ids.
    """
    kept = Kept(channels.classes.labels, list(units))
    edit = Edit("mask")
    for consumption in channels.consumed:
        value = consumption.node.inputs[consumption.index]
        if value is None or channels.is_constant(value):
            continue
        stay = kept.mask(consumption.axis)
        axes = channels.of_input(consumption.node, consumption.index)
        if stay is None or axes is None:
            continue
        shape = [-1 if place == consumption.place else 1 for place in range(len(axes))]
        node = _masked(channels, edit, value, stay.reshape(shape), _zero(consumption.node, consumption.zero))
        node.outputs[0].type = value.type
        edit.insert([node], before=consumption.node)
        edit.set_input(consumption.node, consumption.index, node.outputs[0])
    return edit


def _zero(node: ir.Node, index: int | None) -> ir.Value | None:
    return None if index is None or index >= len(node.inputs) else node.inputs[index]


def _masked(
    channels: Channels,
    edit: Edit,
    value: ir.Value,
    stay: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    zero: ir.Value | None,
) -> ir.Node:
    dtype = channels.symbols.of(value).dtype or value.dtype or ir.DataType.FLOAT
    if channels.symbols.opset < _WHERE_SINCE:
        return ir.node("Mul", [value, edit.add_weight("mask", stay.astype(dtype.numpy()))])
    if zero is None:
        zero = edit.add_weight("zero", np.zeros((), dtype.numpy()))
    return ir.node("Where", [edit.add_weight("mask", stay), value, zero])
