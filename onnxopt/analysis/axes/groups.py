"""Units and groups of them: what can be removed together."""

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.ids import Kind
from onnxopt.analysis.axes.rules import key
from onnxopt.analysis.axes.weights import Weight
from onnxopt.analysis.parameters import ENCODING

UnitKind = Literal["conv", "neurons", "heads", "kv-groups", "recurrent", "residual"]
"""What units are. `residual`: the width of a stream to which several layers add."""

_CARRIERS = frozenset(("Cast", "CastLike", "DequantizeLinear", "QuantizeLinear", "Transpose"))
"""Operators that weights come through to those that multiply by them."""

Entries: TypeAlias = tuple[int, int, int]
"""Number of a weight, place of an axis, entries there."""

Profile: TypeAlias = tuple[Entries, ...]
Traits: TypeAlias = tuple[bool, Kind | None, str | None]


@dataclass(frozen=True)
class Member:
    """A weight of which each unit of a group has entries.

    Attributes:
        weight: the weight.
        place: of the axis.
        count: entries a unit.
        consumes: whether the axis is summed over, so that its entries read the unit instead of making it.
    """

    weight: Weight
    place: int
    count: int
    consumes: bool


@dataclass(frozen=True)
class ChannelGroup:
    """Interchangeable units of one width.

    Attributes:
        name: of the first weight that makes them.
        kind: what they are.
        units: the classes of channel ids that live and die together, in the order of the first member.
        members: every weight that they have entries of.
        parameters: elements that go with one unit.
        exact: whether the model without a unit computes what it would with all that reads the unit ignoring it.
        reason: why not.
    """

    name: str
    kind: UnitKind
    units: tuple[int, ...]
    members: tuple[Member, ...]
    parameters: int
    exact: bool
    reason: str | None


def groups(channels: Channels) -> list[ChannelGroup]:
    """Everything that can be removed, in the order of the weights that make it."""
    consumed = _consumed(channels)
    profiles: dict[int, list[Entries]] = defaultdict(list)
    order: dict[int, int] = {}
    for number, weight in enumerate(channels.weights):
        for place, ids in enumerate(weight.ids):
            labels = channels.classes.labels[ids]
            found, first, counts = np.unique(labels, return_index=True, return_counts=True)
            for label, start, count in zip(found.tolist(), first.tolist(), counts.tolist(), strict=True):
                profiles[label].append((number, place, count))
                order.setdefault(label, start)
    alike: dict[tuple[Profile, Traits], list[int]] = defaultdict(list)
    for label, profile in profiles.items():
        if label not in channels.classes.frozen:
            alike[tuple(profile), _traits(channels, label)].append(label)
    found_groups = [
        _group(channels, consumed, profile, sorted(labels, key=order.__getitem__))
        for (profile, _), labels in alike.items()
    ]
    return [group for group in found_groups if any(not member.consumes for member in group.members)]


def _traits(channels: Channels, label: int) -> Traits:
    classes = channels.classes
    return bool(classes.added[label]), classes.kinds.get(label), classes.inexact.get(label)


def _group(channels: Channels, consumed: npt.NDArray[np.bool_], profile: Profile, units: list[int]) -> ChannelGroup:
    members = tuple(
        Member(weight, place, count, bool(consumed[weight.ids[place]].any()))
        for weight, place, count in ((channels.weights[number], place, count) for number, place, count in profile)
    )
    coded = [member for member in members if not _encodes(member.weight)]
    makers = [member for member in coded if not member.consumes] or list(members)
    parameters = sum(
        member.count * _elements(member.weight) // len(member.weight.ids[member.place]) for member in coded
    )
    why = channels.classes.inexact.get(units[0])
    name = next((m for m in makers if len(m.weight.ids) > 1), makers[0]).weight.root.name or ""
    return ChannelGroup(name, _kind(channels, units[0], makers), tuple(units), members, parameters, why is None, why)


def _kind(channels: Channels, unit: int, makers: list[Member]) -> UnitKind:
    tagged = channels.classes.kinds.get(unit)
    matrices = [member for member in makers if len(member.weight.ids) > 1] or makers
    if tagged is not None:
        return tagged
    if channels.classes.added[unit]:
        return "residual"
    convolved = any("Conv" in node.op_type for member in matrices for node in multipliers(member.weight))
    return "conv" if convolved else "neurons"


def multipliers(weight: Weight) -> list[ir.Node]:
    """The nodes that read a weight, dequantized, cast or turned as it may be."""
    found = dict[ir.Node, None]()
    nodes = [node for node, _ in weight.uses]
    while nodes:
        node = nodes.pop()
        if node.op_type in _CARRIERS:
            nodes += [user for value in node.outputs for user, _ in value.uses()]
        else:
            found[node] = None
    return list(found)


def _encodes(weight: Weight) -> bool:
    """Whether a constant is the scale or the zero point of others: no parameter, and nothing that makes units."""
    return all(index in ENCODING.get(key(node), ()) for node, index in weight.uses)


def _consumed(channels: Channels) -> npt.NDArray[np.bool_]:
    """Whether each channel id is an entry of a weight that is summed over.

    Where all that a node reads is constant, what is computed is summed over by what is stored.
    """
    found = np.zeros(len(channels.classes.labels), bool)
    stored = {use for weight in channels.weights for use in weight.uses}
    for consumption in channels.consumed:
        node, use = consumption.node, (consumption.node, consumption.index)
        if not channels.is_constant(node.inputs[consumption.index]):
            continue
        if use in stored or not channels.is_constant(node.outputs[0]):
            ids = vector(consumption.axis)
            if ids is not None:
                found[ids] = True
    return found


def _elements(weight: Weight) -> int:
    return prod(len(ids) for ids in weight.ids)


__all__ = ["ChannelGroup", "Member", "UnitKind", "groups", "multipliers"]
