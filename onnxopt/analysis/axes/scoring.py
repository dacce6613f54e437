"""Magnitudes of units, gathered from the weights that they have entries of: one weight in memory at a time."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.groups import ChannelGroup
from onnxopt.analysis.axes.rules import key
from onnxopt.analysis.axes.weights import Use, Weight
from onnxopt.analysis.parameters import stored
from onnxopt.analysis.structure import constant_array, constant_tensor
from onnxopt.numerics.importance import Scores, slice_sums

_MULTIPLIED = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}
"""Inputs at which even a vector is a weight, and no bias or scale."""

_ENCODED = {
    "DequantizeLinear": 1, "QLinearConv": 1, "QLinearMatMul": 1, "QGemm": 1, "ConvInteger": None, "MatMulInteger": None,
}  # fmt: skip
"""Operators that read quantized weights -> how many inputs behind the weight its scale is; its zero point is two."""

_ZERO_POINT = 2


def magnitudes(channels: Channels, units: Collection[int], power: int) -> Scores:
    """Sum of `|w| ** power` over the weights that make a unit and those that read it.

    Biases and scales do not count. Weights before a BatchNormalization are taken as if it were folded into them, so
    that a graph scores the same before and after folding. Quantized weights are taken for what they stand for.
    What the inputs of a grouped convolution read does not count, for each entry reads one channel of every group.

    Args:
        channels: of the model as it is.
        units: the classes of channel ids to score.
        power: 1 for L1, 2 for the square of L2.

    Returns:
        `[classes]`, float64; 0 where a class is not among the units.
    """
    wanted = np.zeros(channels.classes.count, bool)
    wanted[list(units)] = True
    labels = channels.classes.labels
    ignored = _grouped(channels)
    uses = {id(weight): list(readers(channels, weight)) for weight in channels.weights}
    factors = _normalizations(channels, uses)
    scores = np.zeros(channels.classes.count)
    parameters = {each.value for each in stored(channels.model) if each.params}
    for weight in channels.weights:
        if weight.root not in parameters or not _counts(weight, uses[id(weight)]):
            continue
        places = [p for p, ids in enumerate(weight.ids) if wanted[labels[ids]].any() and not ignored[ids].any()]
        if not places:
            continue
        sums = slice_sums(_content(weight), places, power, factors.get(id(weight)))
        for place, total in zip(places, sums, strict=True):
            np.add.at(scores, labels[weight.ids[place]], total)
    return np.where(wanted, scores, 0.0)


def _counts(weight: Weight, readers: list[Use]) -> bool:
    """Whether a weight is multiplied and summed over, unlike a bias or a scale."""
    if sum(len(ids) > 1 for ids in weight.ids) > 1:
        return True
    return any(key(node)[0] == "" and index in _MULTIPLIED.get(node.op_type, ()) for node, index in readers)


def readers(channels: Channels, weight: Weight) -> Iterator[Use]:
    """Who combines a weight, transposed, cast or dequantized maybe, with what is no constant."""
    stack = list(weight.uses)
    while stack:
        node, index = stack.pop()
        constant = [value for value in node.outputs if channels.is_constant(value)]
        if constant:
            stack += [use for value in constant for use in value.uses()]
        else:
            yield node, index


def _grouped(channels: Channels) -> npt.NDArray[np.bool_]:
    """Whether each channel id is an input of a grouped convolution's weight."""
    found = np.zeros(len(channels.classes.labels), bool)
    for consumption in channels.consumed:
        if consumption.node.attributes.get_int("group", 1) > 1 and channels.is_constant(
            consumption.node.inputs[consumption.index]
        ):
            ids = vector(consumption.axis)
            if ids is not None:
                found[ids] = True
    return found


def _consumed(channels: Channels) -> npt.NDArray[np.bool_]:
    """Whether each channel id is an entry of a weight that is summed over."""
    found = np.zeros(len(channels.classes.labels), bool)
    for consumption in channels.consumed:
        ids = vector(consumption.axis) if channels.is_constant(consumption.node.inputs[consumption.index]) else None
        if ids is not None:
            found[ids] = True
    return found


def _normalizations(channels: Channels, uses: dict[int, list[Use]]) -> dict[int, dict[int, Scores]]:
    """id of a weight -> axis -> the scale of the BatchNormalization that the weight alone makes the input of."""
    made: dict[ir.Node, list[Weight]] = defaultdict(list)
    for weight in channels.weights:
        if len(uses[id(weight)]) == 1:
            made[uses[id(weight)][0][0]].append(weight)
    consumed, labels = _consumed(channels), channels.classes.labels
    found: dict[int, dict[int, Scores]] = {}
    for node in channels.model.graph:
        scale = _scale(node)
        axes = None if scale is None else channels.of_input(node, 1)
        ids = vector(axes[0]) if axes else None
        maker = None if ids is None else _maker(channels, node.inputs[0])
        if scale is None or ids is None or maker is None:
            continue
        for weight in made.get(maker, ()):
            for place, own in enumerate(weight.ids):
                if not consumed[own].any() and np.array_equal(labels[own], labels[ids]):
                    found[id(weight)] = {place: scale}
    return found


def _scale(node: ir.Node) -> Scores | None:
    """What a BatchNormalization multiplies its channels with; None for anything else."""
    if node.op_type != "BatchNormalization" or key(node)[0] or any(value.uses() for value in node.outputs[1:]):
        return None
    gamma, variance = constant_array(node.inputs[1]), constant_array(node.inputs[4])
    if gamma is None or variance is None:
        return None
    spread = variance.astype(np.float64) + node.attributes.get_float("epsilon", 1e-5)
    return gamma.astype(np.float64) / np.sqrt(np.maximum(spread, np.finfo(np.float64).tiny))


def _maker(channels: Channels, value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value which one node alone reads; the one before, where it only adds a constant."""
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.op_type != "Add":
            return node
        others = [each for each in node.inputs if not channels.is_constant(each)]
        if len(others) != 1:
            return node
        value = others[0]
    return None


def _content(weight: Weight) -> npt.NDArray[Any]:
    """What a weight stands for: floats as they are, integers dequantized where their scale is a constant."""
    tensor = constant_tensor(weight.root)
    assert tensor is not None
    array: npt.NDArray[Any] = np.asarray(tensor.numpy())
    if tensor.dtype.is_floating_point():
        return array
    for node, index in weight.uses:
        if node.op_type in _ENCODED:
            return _dequantized(array, node, index)
    return array


def _dequantized(array: npt.NDArray[Any], node: ir.Node, index: int) -> npt.NDArray[np.float32]:
    behind = _ENCODED[node.op_type]
    axis = {"DequantizeLinear": node.attributes.get_int("axis", 1), "QLinearConv": 0}.get(node.op_type, -1)
    result = array.astype(np.float32)
    zero = _spread(node, index + _ZERO_POINT, result.shape, axis)
    scale = None if behind is None else _spread(node, index + behind, result.shape, axis)
    result = result if zero is None else result - zero
    return result if scale is None else result * scale


def _spread(node: ir.Node, index: int, shape: tuple[int, ...], axis: int) -> npt.NDArray[np.float32] | None:
    """A constant scale or zero point, broadcast against the weight; None where it is left out or computed."""
    found = constant_array(node.inputs[index]) if index < len(node.inputs) else None
    if found is None or found.size == 1:
        return None if found is None else found.astype(np.float32).reshape(())
    found = found.astype(np.float32)
    if found.ndim == 1:
        return found.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])
    for place, size in enumerate(shape):
        block = -(-size // found.shape[place])
        found = np.repeat(found, block, axis=place)[(slice(None),) * place + (slice(size),)]
    return found


def contents(channels: Channels, group: ChannelGroup, factors: Mapping[str, npt.NDArray[Any]] | None = None) -> Scores:
    """What the weights that make units hold of each, `[units, n]`; one weight in memory at a time.

    Args:
        channels: of the model as it is.
        group: the units.
        factors: weight -> numbers of its shape that multiply its entries; then of all weights that have some, also
            those that read the units, and summed over each weight: `[units, weights]`.
    """
    place_of = {unit: at for at, unit in enumerate(group.units)}
    columns = []
    for member in group.members:
        weight, factor = member.weight, None if factors is None else factors.get(member.weight.root.name or "")
        if (member.consumes or len(weight.ids) == 1) if factors is None else factor is None:
            continue
        array = _content(weight).astype(np.float64)
        rows = np.moveaxis(array if factor is None else array * factor, member.place, 0)
        rows = rows.reshape(len(rows), -1)
        owner = [place_of.get(label, -1) for label in channels.classes.labels[weight.ids[member.place]].tolist()]
        per_unit: list[list[int]] = [[] for _ in group.units]
        for row, unit in enumerate(owner):
            if unit >= 0:
                per_unit[unit].append(row)
        found = np.stack([rows[own].reshape(-1) for own in per_unit])
        columns.append(found if factors is None else found.sum(1, keepdims=True))
    return np.concatenate(columns, axis=1) if columns else np.zeros((len(group.units), 0))
