"""Units and groups of them: what can be removed, and what cannot and why."""

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.engine import Channels, Weight
from onnxopt.analysis.axes.ids import Freeze, Ids, Kind, Reason

UnitKind = Literal["conv", "neurons", "heads", "kv-groups", "recurrent", "residual"]
"""What units are. `residual`: the width of a stream to which several layers add."""

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


@dataclass(frozen=True)
class Frozen:
    """Why parameters cannot be removed.

    Attributes:
        freeze: the reason.
        parameters: elements of weights none of whose axes can lose their entries, one of them for this reason;
            those with several reasons count for each.
    """

    freeze: Freeze
    parameters: int


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
    makers = [member for member in members if not member.consumes] or list(members)
    parameters = sum(
        member.count * _elements(member.weight) // len(member.weight.ids[member.place]) for member in members
    )
    why = channels.classes.inexact.get(units[0])
    name = next((m for m in makers if len(m.weight.ids) > 1), makers[0]).weight.root.name or ""
    return ChannelGroup(name, _kind(channels, units[0], makers), tuple(units), members, parameters, why is None, why)


def _kind(channels: Channels, unit: int, makers: list[Member]) -> UnitKind:
    if channels.classes.added[unit]:
        return "residual"
    tagged = channels.classes.kinds.get(unit)
    matrices = [member for member in makers if len(member.weight.ids) > 1] or makers
    if tagged == "heads" and len({member.count for member in matrices}) > 1:
        return "kv-groups"
    if tagged is not None:
        return tagged
    convolved = any(node.op_type.startswith("Conv") for member in matrices for node, _ in member.weight.uses)
    return "conv" if convolved else "neurons"


def _consumed(channels: Channels) -> npt.NDArray[np.bool_]:
    """Whether each channel id is an entry of a weight that is summed over."""
    found = np.zeros(len(channels.classes.labels), bool)
    for consumption in channels.consumed:
        if channels.is_constant(consumption.node.inputs[consumption.index]):
            ids = vector(consumption.axis)
            if ids is not None:
                found[ids] = True
    return found


def _elements(weight: Weight) -> int:
    return prod(len(ids) for ids in weight.ids)


def frozen(channels: Channels) -> list[Frozen]:
    """What cannot be removed, most parameters first."""
    lost: dict[Freeze, int] = defaultdict(int)
    for weight in channels.weights:
        labels = [channels.classes.labels[ids] for ids in weight.ids]
        stay = [np.array([label in channels.classes.frozen for label in each.tolist()], bool) for each in labels]
        total = prod(int(each.sum()) for each in stay)
        for each, kept in zip(labels, stay, strict=True):
            count: dict[Freeze, int] = defaultdict(int)
            for label in each[kept].tolist():
                count[channels.classes.frozen[label][0]] += 1
            for freeze, entries in count.items():
                lost[freeze] += total * entries // max(int(kept.sum()), 1)
    return sorted((Frozen(freeze, count) for freeze, count in lost.items() if count), key=lambda each: -each.parameters)


def lost_to(channels: Channels, reason: Reason) -> int:
    """Elements of weights that stay for want of nothing but this: without it one of their axes could lose them."""
    return sum(_lost(channels, weight, reason) for weight in channels.weights)


def _lost(channels: Channels, weight: Weight, reason: Reason) -> int:
    kept, other = 1, 1
    for ids in weight.ids:
        why = [channels.classes.frozen.get(label) for label in channels.classes.labels[ids].tolist()]
        kept *= sum(each is not None for each in why)
        other *= sum(each is not None and any(freeze.reason != reason for freeze in each) for each in why)
    return kept - other


__all__ = ["ChannelGroup", "Frozen", "Ids", "Member", "UnitKind", "frozen", "groups", "lost_to"]
