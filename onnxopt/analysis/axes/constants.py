"""Channels that are the same number for every input, and what their readers lose when they go: part of a bias.

A row of zeros makes a channel of its bias, whatever the input; activations and normalizations turn it into another
number. A layer that reads the channel gets that number times a column of its weight: a bias. So the channel can go
without changing what the model computes, wherever nothing but such layers reads it. Where a convolution reads zeros
beyond the border, what it gets differs from place to place: a map of numbers to add, if the size of the image is known.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.axes import patterns_compute, patterns_layout  # noqa: F401  (they register effects)
from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.groups import ChannelGroup
from onnxopt.analysis.axes.ids import Ids
from onnxopt.analysis.axes.linear import Layer
from onnxopt.analysis.axes.patch import Kept
from onnxopt.analysis.axes.patterns import EFFECTS, MOST, STARTS, Given, Open, Pattern, shrunk
from onnxopt.analysis.axes.rules import Consumption, key
from onnxopt.analysis.structure import constant_array, constant_tensor, topological
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.nodes import label

Mask: TypeAlias = npt.NDArray[np.bool_]

_ADDS_SINCE = 7
"""Before this opset Add broadcasts only where an attribute says so."""


@dataclass(frozen=True)
class Correction:
    """What a layer gains when constant channels leave.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        gain: float64, against what the layer gives: for its bias `[output channels that stay]`, else of its rank.
        in_bias: whether its bias takes it.
    """

    node: ir.Node
    gain: Pattern
    in_bias: bool


@dataclass(frozen=True)
class Free:
    """What can go without changing what the model computes.

    Attributes:
        units: constant, and all that reads them can make up for them.
        notes: groups with constant units of which that is not so, and why.
    """

    units: set[int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Reading:
    """What a reader needs to do without the constant channels among those that it sums over.

    Attributes:
        node: the reader.
        needed: the units that it needs a map for.
        size: numbers in that map; None where there can be none.
        why: then.
    """

    node: ir.Node
    needed: frozenset[int]
    size: int | None
    why: str = ""


class Constants:
    """Which channels of a model are constant.

    Reads the weights that make channels, one at a time.

    Args:
        channels: of the model as it is.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._patterns: dict[ir.Value, Pattern] = {}
        for node in topological(channels.model.graph):
            self._visit(node)

    def free(self, groups: Iterable[ChannelGroup]) -> Free:
        """The units that can go without changing what the model computes.

        A map of numbers is worth it as long as it has no more of them than the weights that go.

        Args:
            groups: exact ones.
        """
        constant, held, readings = self._read()
        units, notes = set[int](), list[str]()
        for group in groups:
            able = [unit for unit in group.units if unit in constant and unit not in held]
            needy = [unit for unit in able if unit in readings]
            mine = list(dict.fromkeys(each for unit in needy for each in readings[unit]))
            cost, gain = sum(each.size or 0 for each in mine), len(needy) * group.parameters
            why = next((each.why for each in mine if each.size is None), "")
            if not why and cost > gain:
                why = f"the map that {label(mine[0].node)} would need has {cost} numbers, more than the {gain} that go"
            if why:
                notes.append(f"{len(needy)} units of {group.name} are constant, but rank like all others: {why}")
            units.update(able)
            units.difference_update(needy if why else ())
        return Free(units, tuple(notes))

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
            pattern, ids = self._along(consumption)
            if pattern is None or ids is None or gone.of(ids).all():
                continue
            lost = np.where(_at(~gone.of(ids), consumption.place, pattern.ndim), np.nan_to_num(pattern), 0.0)
            layer = self._layer(consumption) if lost.any() else None
            if layer is None:
                continue
            gain = shrunk(layer.gain(shrunk(lost)))
            axes = channels.of(consumption.node.outputs[0]) or ()
            for place, size in enumerate(gain.shape):
                stay = kept.mask(axes[place]) if size > 1 else None
                gain = gain if stay is None else gain.compress(stay, place)
            uniform = all(size == 1 for place, size in enumerate(gain.shape) if place != layer.place % gain.ndim)
            found.append(self._correction(layer, gain, uniform and layer.bias() is not None, kept))
        return found

    def _correction(self, layer: Layer, gain: Pattern, in_bias: bool, kept: Kept) -> Correction:
        node = layer.given.node
        if not in_bias or node.op_type == "MatMul" or not layer.beta:
            return Correction(node, gain, False)
        axes = self._channels.of(node.outputs[0]) or ()
        stay = kept.mask(axes[layer.place])
        count = layer.outputs if stay is None else int(stay.sum())
        return Correction(node, np.broadcast_to(gain.reshape(-1), (count,)) / layer.beta, True)

    def _read(self) -> tuple[set[int], set[int], dict[int, list[_Reading]]]:
        """The units that are constant somewhere, those that stay for what reads them, and the readings of others."""
        labels = self._channels.classes.labels
        constant, held, readings = set[int](), set[int](), dict[int, list[_Reading]]()
        for consumption in self._channels.consumed:
            pattern, ids = self._along(consumption)
            if ids is None:
                continue
            if pattern is None:
                held.update(labels[ids].tolist())
                continue
            others = tuple(place for place in range(pattern.ndim) if place != consumption.place % pattern.ndim)
            open_, other = np.isnan(pattern).any(others), (np.nan_to_num(pattern) != 0).any(others)
            held.update(labels[ids[open_]].tolist())
            constant.update(labels[ids[~open_]].tolist())
            reading = self._reading(consumption, pattern, labels[ids], other & ~open_)
            if reading is not None:
                for unit in reading.needed:
                    readings.setdefault(unit, []).append(reading)
        return constant, held, readings

    def _reading(self, consumption: Consumption, pattern: Pattern, labels: Ids, read: Mask) -> _Reading | None:
        """What is to be done about channels that are constant and not 0; None where a bias takes them."""
        node = consumption.node
        layer = self._layer(consumption) if read.any() else None
        units = frozenset(labels[read].tolist())
        if layer is None:
            why = f"{node.op_type} {label(node)} has no bias that could take what they give"
            return _Reading(node, units, None, why) if read.any() else None
        others = tuple(place for place in range(pattern.ndim) if place != consumption.place % pattern.ndim)
        first = pattern[tuple(slice(0, 1) if place in others else slice(None) for place in range(pattern.ndim))]
        varied = read & ((pattern != first).any(others) | layer.blurs)
        if not varied.any():
            return None
        units = frozenset(labels[varied].tolist())
        try:
            gain = layer.gain(np.where(_at(varied, consumption.place, pattern.ndim), pattern, 0.0))
        except Open as error:
            return _Reading(
                node, units, None, f"what {label(node)} makes of them differs from place to place, and {error}"
            )
        return _Reading(node, units, gain.size)

    def _along(self, consumption: Consumption) -> tuple[Pattern | None, Ids | None]:
        """The numbers of what is summed over, channels one by one, and their ids; None where nothing is constant.

        No ids where others speak for the channels: a constant is read together with what is computed.
        """
        node, value = consumption.node, consumption.node.inputs[consumption.index]
        ids = vector(consumption.axis)
        if value is None or ids is None:
            return None, None
        if self._channels.is_constant(value):
            alone = consumption.inside or self._channels.is_constant(node.outputs[0])
            return None, ids if alone else None
        pattern = self._patterns.get(value)
        if pattern is None:
            return None, ids
        shape = list(pattern.shape)
        shape[consumption.place] = len(ids)
        return np.broadcast_to(pattern, shape), ids

    def _layer(self, consumption: Consumption) -> Layer | None:
        """The layer that reads, if something can be added to what it gives."""
        node = consumption.node
        if consumption.index or self._channels.symbols.opset < _ADDS_SINCE:
            return None
        return Layer.of(Given(node, self._channels.symbols.call(node), self._channels, self._patterns))

    def _visit(self, node: ir.Node) -> None:
        known = EFFECTS.get(node.op_type) if not key(node)[0] else None
        if known is None or not node.inputs or self._channels.is_constant(node.outputs[0]):
            return
        given = Given(node, self._channels.symbols.call(node), self._channels, self._patterns)
        if node.op_type not in STARTS and not given.reads():
            return
        try:
            with np.errstate(all="ignore"):
                found = known(given)
        except (
            IndexError,
            KeyError,
            ValueError,
            TypeError,
            ArithmeticError,
        ):  # Open, or the model is not as it should be
            return
        for value, pattern in zip(node.outputs, [found] if isinstance(found, np.ndarray) else found, strict=False):
            self._learn(value, pattern)

    def _learn(self, value: ir.Value, pattern: Pattern) -> None:
        if pattern.size <= MOST and not np.isnan(pattern).all():
            self._patterns[value] = shrunk(pattern)


def correcting(model: Model, corrections: Sequence[Correction], rule: str = "correct") -> Edit:
    """An edit that adds to biases, or behind layers, what constant channels gave before they were removed."""
    edit = Edit(rule)
    for each in corrections:
        node = each.node
        weight = constant_tensor(node.inputs[1])
        assert weight is not None
        dtype = weight.dtype.numpy()
        if not each.in_bias:
            added = ir.node("Add", [node.outputs[0], edit.add_weight("bias", each.gain.astype(dtype))])
            added.outputs[0].type, added.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            edit.insert([added], after=node)
            edit.rewire(node.outputs[0], added.outputs[0])
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        old = 0.0 if bias is None else constant_array(bias).astype(np.float64)  # type: ignore[union-attr]
        name = "bias" if bias is None or bias.name is None else bias.name
        edit.set_input(node, 2, edit.add_weight(name, (old + each.gain).astype(dtype)))
    return edit


def _at(mask: Mask, place: int, rank: int) -> Mask:
    shape = [1] * rank
    shape[place] = len(mask)
    return mask.reshape(shape)
