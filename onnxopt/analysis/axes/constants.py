"""Channels that are the same number for every input, and what their readers lose when they go: part of a bias.

A row of zeros makes a channel of its bias, whatever the input; activations and normalizations turn it into another
number. A layer that reads the channel gets that number times a column of its weight: a bias. So the channel can go
without changing what the model computes, wherever nothing but such layers reads it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxopt.analysis.axes.axis import size_of, vector
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.patch import Kept
from onnxopt.analysis.axes.rules import Consumption, key
from onnxopt.analysis.structure import constant_array, constant_tensor, topological
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.numerics.importance import slice_sums

Numbers: TypeAlias = npt.NDArray[np.float64]

_ELEMENTWISE = frozenset({
    "Abs", "Add", "BatchNormalization", "Celu", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Mish", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Swish",
    "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Operators that make one number of one number at each place."""

_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move entries; what a channel is lies with its id."""

_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
"""Operators over windows that give of equal entries the same."""

_BATCHNORM_INPUTS = 5


@dataclass(frozen=True)
class Correction:
    """What a layer's bias gains when constant channels leave.

    Attributes:
        node: Conv, Gemm or MatMul.
        gain: `[output channels that stay]`, float64.
    """

    node: ir.Node
    gain: Numbers


class Constants:
    """Which channels of a model are constant.

    Reads the weights that make channels, one at a time.

    Args:
        channels: of the model as it is.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._known: dict[ir.Value, dict[int, float]] = {}
        for node in topological(channels.model.graph):
            self._visit(node)

    def free(self, units: Iterable[int]) -> set[int]:
        """The units that can go without changing what the model computes; of groups that are exact."""
        open_ = set(units)
        for consumption in self._channels.consumed:
            value = consumption.node.inputs[consumption.index]
            ids = None if value is None or self._channels.is_constant(value) else vector(consumption.axis)
            if ids is None or value is None or not open_:
                continue
            known = self._known.get(value, {})
            takes = bool(known) and _takes(self._channels, consumption)
            numbers = [known.get(channel) for channel in ids.tolist()] if known else [None] * len(ids)
            held = np.array([number is None or (number != 0 and not takes) for number in numbers], bool)
            open_.difference_update(self._channels.classes.labels[ids[held]].tolist())
        return open_ & self._some_constant()

    def corrections(self, units: Collection[int], removed: Collection[int]) -> list[Correction]:
        """What readers of constant units need once these are gone.

        Args:
            units: the constant ones among what is removed.
            removed: all that is removed at the same time.
        """
        channels, found = self._channels, []
        gone = Kept(channels.classes.labels, list(units))
        kept = Kept(channels.classes.labels, list(removed))
        for consumption in channels.consumed:
            node, value = consumption.node, consumption.node.inputs[consumption.index]
            ids = None if value is None or channels.is_constant(value) else vector(consumption.axis)
            if ids is None or value is None or gone.of(ids).all() or not _takes(channels, consumption):
                continue
            known = self._known.get(value, {})
            numbers = np.array([known.get(channel, 0.0) for channel in ids.tolist()]) * ~gone.of(ids)
            if not numbers.any():
                continue
            gain, axis = _gain(node, numbers), (channels.of(node.outputs[0]) or ())[1 if node.op_type == "Conv" else -1]
            stay = kept.mask(axis)
            found.append(Correction(node, gain if stay is None else gain[stay]))
        return found

    def _some_constant(self) -> set[int]:
        ids = [channel for known in self._known.values() for channel in known]
        return set(self._channels.classes.labels[np.array(ids, np.int64)].tolist())

    def _visit(self, node: ir.Node) -> None:
        if key(node)[0] or not node.inputs or self._channels.is_constant(node.outputs[0]):
            return
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            self._made(node)
        elif node.op_type in _ELEMENTWISE:
            self._computed(node)
        elif node.op_type in _MOVES or (node.op_type in _POOLS and _keeps(node)):
            self._moved(node)

    def _made(self, node: ir.Node) -> None:
        """Rows of zeros give their bias; so does a depthwise row of what is constant, on top of that."""
        place = {"Conv": 0, "Gemm": 1 - node.attributes.get_int("transB", 0), "MatMul": 1}[node.op_type]
        weight, ids = constant_tensor(node.inputs[1]), self._ids(node.outputs[0], 1 if node.op_type == "Conv" else -1)
        if weight is None or ids is None or not self._channels.is_constant(node.inputs[1]):
            return
        if node.op_type != "Conv" and len(weight.shape) != 2:
            return
        numbers = _bias(node, len(ids))
        if numbers is None:
            return
        array: npt.NDArray[Any] = np.asarray(weight.numpy())
        unknown = slice_sums(array, (place,), 1)[0] != 0
        if unknown.all() and not self._known.get(node.inputs[0]):  # type: ignore[arg-type]
            return
        if node.op_type == "Conv" and array.shape[1] == 1 and node.attributes.get_int("group", 1) > 1:
            read = self._numbers(node.inputs[0], 1)
            if read is not None:
                read = np.repeat(read, len(ids) // len(read))
                numbers = numbers + np.where(
                    unknown, read * array.astype(np.float64).sum(tuple(range(1, array.ndim))), 0
                )
                unknown = unknown & (np.isnan(read) | ((read != 0) & _padded(node)))
        self._learn(node.outputs[0], ids, np.where(unknown, np.nan, numbers))

    def _computed(self, node: ir.Node) -> None:
        """The operator itself, in numpy, on the numbers that its inputs are; NaN stands for what is not constant."""
        if not any(self._known.get(value) for value in node.inputs if value is not None) and not _ends(node):
            return
        output = node.outputs[0]
        axes = self._channels.of(output)
        places = [] if axes is None else [place for place, axis in enumerate(axes) if vector(axis) is not None]
        if axes is None or len(places) != 1:
            return
        place, ids = places[0], vector(axes[places[0]])
        assert ids is not None
        arrays = []
        for value in node.inputs:
            array = None if value is None else self._operand(value, place - len(axes), len(axes), len(ids))
            if value is not None and array is None:
                return
            arrays.append(array)
        results = _evaluated(self._channels.model, node, arrays)
        if results is None or results.size != len(ids):
            return
        self._learn(output, ids, _settled(node, arrays, results.reshape(-1), len(ids)))

    def _operand(self, value: ir.Value, place: int, rank: int, size: int) -> npt.NDArray[np.float32] | None:
        """What an input is along the axis; all other axes have size 1."""
        if self._channels.is_constant(value):
            array = constant_array(value)
            return None if array is None or array.size not in (1, size) else np.asarray(array, np.float32)
        axes = self._channels.of(value)
        if axes is None or len(axes) < -place or size_of(axes[place]) != size:
            return None
        numbers = self._numbers(value, place)
        shape = [1] * rank
        shape[place] = size
        return (np.full(size, np.nan) if numbers is None else numbers).astype(np.float32).reshape(shape)

    def _moved(self, node: ir.Node) -> None:
        known = self._known.get(node.inputs[0])  # type: ignore[arg-type]
        if known:
            self._known[node.outputs[0]] = known

    def _ids(self, value: ir.Value, place: int) -> npt.NDArray[np.int64] | None:
        axes = self._channels.of(value)
        return None if not axes else vector(axes[place])

    def _numbers(self, value: ir.Value | None, place: int) -> Numbers | None:
        """The constant at each position of an axis, NaN where there is none; None where nothing is known."""
        known = {} if value is None else self._known.get(value, {})
        ids = self._ids(value, place) if known and value is not None else None
        return None if ids is None else np.array([known.get(channel, np.nan) for channel in ids.tolist()])

    def _learn(self, value: ir.Value, ids: npt.NDArray[np.int64], numbers: Numbers) -> None:
        """Note what channels are; one that stands at several places must be the same at all of them."""
        known: dict[int, float] = {}
        clashing: set[int] = set()
        for channel, number in zip(ids.tolist(), numbers.tolist(), strict=True):
            if np.isnan(number) or known.setdefault(channel, number) != number:
                clashing.add(channel)
        left = {channel: number for channel, number in known.items() if channel not in clashing}
        if left:
            self._known[value] = left


def correcting(model: Model, corrections: Iterable[Correction], rule: str = "correct") -> Edit:
    """An edit that adds to biases what constant channels gave before they were removed."""
    edit = Edit(rule)
    for each in corrections:
        node = each.node
        weight = constant_tensor(node.inputs[1])
        assert weight is not None
        dtype = weight.dtype.numpy()
        if node.op_type == "MatMul":
            added = ir.node("Add", [node.outputs[0], edit.add_weight("bias", each.gain.astype(dtype))])
            added.outputs[0].type, added.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            edit.insert([added], after=node)
            edit.rewire(node.outputs[0], added.outputs[0])
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        old = 0.0 if bias is None else constant_array(bias).astype(np.float64)  # type: ignore[union-attr]
        gain = each.gain / node.attributes.get_float("beta", 1.0)
        name = "bias" if bias is None or bias.name is None else bias.name
        edit.set_input(node, 2, edit.add_weight(name, (old + gain).astype(dtype)))
    return edit


def _bias(node: ir.Node, size: int) -> Numbers | None:
    """What a layer adds to each channel; None where that is no constant vector."""
    if node.op_type == "MatMul" or len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(size)
    array = constant_array(node.inputs[2])
    if array is None or array.size not in (1, size) or (array.ndim > 1 and array.size != array.shape[-1]):
        return None
    scale = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    found: Numbers = np.broadcast_to(array.reshape(-1).astype(np.float64) * scale, (size,))
    return found


def _takes(channels: Channels, consumption: Consumption) -> bool:
    """Whether what a reader gives for constant channels is the same at all places, so that its bias can have it."""
    node = consumption.node
    if key(node)[0] or consumption.index or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    if constant_tensor(node.inputs[1]) is None or not channels.is_constant(node.inputs[1]):
        return False
    if node.op_type == "Conv":
        return (
            node.attributes.get_int("group", 1) == 1 and not _padded(node) and _bias(node, _rows(node, 0)) is not None
        )
    if node.op_type == "Gemm":
        columns = _rows(node, 1 - node.attributes.get_int("transB", 0))
        usable = not node.attributes.get_int("transA", 0) and node.attributes.get_float("beta", 1.0) != 0
        return usable and _bias(node, columns) is not None
    weight = constant_tensor(node.inputs[1])
    return node.op_type == "MatMul" and weight is not None and len(weight.shape) == 2


def _rows(node: ir.Node, place: int) -> int:
    weight = constant_tensor(node.inputs[1])
    assert weight is not None
    return int(weight.shape.numpy()[place])


def _gain(node: ir.Node, numbers: Numbers) -> Numbers:
    """What a layer gives for constant inputs `[channels]`, `[outputs]`."""
    array = constant_array(node.inputs[1])
    assert array is not None
    at = np.flatnonzero(numbers)
    if node.op_type == "Conv":
        taken: Numbers = array[:, at].astype(np.float64).reshape(len(array), len(at), -1).sum(2)
        return taken @ numbers[at]
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    scale = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
    rows = (array[:, at].T if transposed else array[at]).astype(np.float64)
    found: Numbers = scale * (numbers[at] @ rows)
    return found


def _padded(node: ir.Node) -> bool:
    """Whether a convolution reads zeros beyond the border."""
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    return node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and any(node.attributes.get_ints("pads", ()))


def _keeps(node: ir.Node) -> bool:
    """Whether a window of equal entries gives the same, also at the border."""
    if node.op_type != "AveragePool":
        return True
    counts = _padded(node) and node.attributes.get_int("count_include_pad", 0) != 0
    return not counts and node.attributes.get_int("ceil_mode", 0) == 0


def _ends(node: ir.Node) -> bool:
    """Whether a node makes constants of what is none: times 0."""
    scales = {"Mul": node.inputs, "BatchNormalization": node.inputs[1:2]}.get(node.op_type, ())
    return any(array is not None and not array.all() for array in map(constant_array, scales))


def _evaluated(model: Model, node: ir.Node, arrays: list[npt.NDArray[np.float32] | None]) -> Numbers | None:
    """The node by onnx's own evaluator; None where that cannot."""
    names = ["" if array is None else f"x{index}" for index, array in enumerate(arrays)]
    proto = onnx.helper.make_node(node.op_type, names, ["y"])
    proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([proto], "one", inputs, [output])
    whole = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", model.opset)])
    feeds: Mapping[str, Any] = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    try:
        with np.errstate(all="ignore"):
            (result,) = ReferenceEvaluator(whole).run(None, dict(feeds))
    except Exception:  # it knows fewer operators and versions than there are, and fails in any way
        return None
    found: Numbers = np.asarray(result, np.float64)
    return found


def _settled(node: ir.Node, arrays: list[npt.NDArray[np.float32] | None], results: Numbers, size: int) -> Numbers:
    """What is constant of the results: that of constants; a product with 0; what a normalization scales with 0."""
    vectors = [np.broadcast_to(array.reshape(-1), (size,)) for array in arrays if array is not None]
    results = np.where(np.isnan(np.array(vectors)).any(0), np.nan, results)
    if node.op_type == "Mul":
        results = np.where(np.any([vector == 0 for vector in vectors], 0), 0.0, results)
    if node.op_type == "BatchNormalization" and len(vectors) == _BATCHNORM_INPUTS:
        results = np.where(vectors[1] == 0, vectors[2], results)
    return np.where(np.isinf(results), np.nan, results)
