"""Parameters that cannot be removed, and what holds them; parameters that can."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.ids import WINDOW, Freeze, Ids, Reason
from onnxopt.analysis.axes.weights import Weight
from onnxopt.analysis.parameters import stored
from onnxopt.nodes import label

Key = TypeVar("Key", bound=Hashable)

_FIRST: tuple[Reason, ...] = ("semantics", "user", "needs-rule")
"""Of several reasons for which channels stay, the one that is told: a rule that is missing matters where nothing else
holds them."""

_UNREAD = Freeze("semantics", "no node reads it")
_INSIDE = Freeze("semantics", "inside control flow or a function")


@dataclass(frozen=True)
class Frozen:
    """Why parameters cannot be removed.

    Attributes:
        freeze: the reason.
        parameters: those of weights none of whose axes can lose their entries, one of them for this reason; those
            with several reasons count for each. Windows and axes of size 1 are reasons only where there is no other.
    """

    freeze: Freeze
    parameters: int


def frozen(channels: Channels) -> list[Frozen]:
    """What cannot be removed, most parameters first. Linear in nodes and in the sum of the weights' axis lengths."""
    lost = _lost(channels, lambda freeze: freeze)
    return sorted((Frozen(freeze, count) for freeze, count in lost.items() if count), key=lambda each: -each.parameters)


def lost_to(channels: Channels, reason: Reason) -> int:
    """Parameters that stay for want of nothing but this: without it one of their axes could lose them."""
    return _lost(channels, lambda freeze: freeze.reason)[reason]


def parameters(channels: Channels) -> int:
    """All parameters that the model stores, as `analysis.parameters` counts them."""
    return sum(each.params for each in stored(channels.model))


def removable(channels: Channels, units: Iterable[int]) -> int:
    """Parameters that go with one or more of these units."""
    going = np.zeros(channels.classes.count, bool)
    going[list(units)] = True
    total = 0
    for weight, params in _counted(channels)[0]:
        left = prod(int(np.count_nonzero(~going[channels.classes.labels[ids]])) for ids in weight.ids)
        total += params - params * left // _elements(weight)
    return total


def _counted(channels: Channels) -> tuple[list[tuple[Weight, int]], dict[ir.Value, int]]:
    """Each constant that holds parameters once, as its first reader sees it, and how many; then those nobody sees."""
    params = {each.value: each.params for each in stored(channels.model) if each.params}
    seen = [(weight, params.pop(weight.root)) for weight in channels.weights if weight.root in params]
    return seen, params


def _reason(channels: Channels, value: ir.Value) -> Freeze:
    """Why a constant that no rule got to see stays."""
    if value.is_graph_input():
        return Freeze("semantics", f"input {value.name} of the model")
    readers = list(value.consumers())
    if not readers and value.graph is channels.model.graph:
        return _UNREAD
    outside = [node for node in readers if node.graph is channels.model.graph]
    return Freeze("needs-rule", "no rule takes it for a weight", label(outside[0])) if outside else _INSIDE


def _lost(channels: Channels, told: Callable[[Freeze], Key]) -> dict[Key, int]:
    """Parameters that stay, by what is told of the reasons."""
    weights, unseen = _counted(channels)
    reasons = _reasons(channels, [ids for weight, _ in weights for ids in weight.ids])
    lost: dict[Key, int] = defaultdict(int)
    for weight, params in weights:
        axes = [next(reasons) for _ in weight.ids]
        stay = [sum(each.values()) for each in axes]
        total, size = prod(stay), _elements(weight)
        if not total:
            continue
        carrying = [at for at, each in enumerate(axes) if _carries(weight.ids[at], each)] or range(len(axes))
        counts: dict[Key, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for at in carrying:
            for freeze, count in axes[at].items():
                counts[told(freeze)][at] += count
        for what, found in counts.items():
            others = prod(each - found.get(at, 0) for at, each in enumerate(stay))
            lost[what] += params * (total - others) // size
    for value, params in unseen.items():
        lost[told(_reason(channels, value))] += params
    return lost


def _reasons(channels: Channels, axes: list[Ids]) -> Iterator[Counter[Freeze]]:
    """Of each axis: why entries stay, and how many for this reason."""
    why = np.full(channels.classes.count, -1, np.int64)
    known: list[Freeze] = []
    numbers: dict[int, int] = {}  # by identity: there are many classes, and few objects
    for unit, freezes in channels.classes.frozen.items():
        first = freezes[0] if len(freezes) == 1 else min(freezes, key=lambda freeze: _FIRST.index(freeze.reason))
        number = numbers.get(id(first))
        if number is None:
            number = numbers[id(first)] = len(known)
            known.append(first)
        why[unit] = number
    of = why[channels.classes.labels[np.concatenate([np.zeros(0, np.int64), *axes])]]
    place = np.repeat(np.arange(len(axes)), [len(ids) for ids in axes])
    pairs, counts = np.unique(place[of >= 0] * max(len(known), 1) + of[of >= 0], return_counts=True)
    found: list[Counter[Freeze]] = [Counter() for _ in axes]
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        found[pair // len(known)][known[pair % len(known)]] += count
    return iter(found)


def _carries(ids: Ids, reasons: Counter[Freeze]) -> bool:
    """Whether channels might lie along an axis, going by why its entries stay."""
    return len(ids) > 1 and any(freeze.why != WINDOW for freeze in reasons)


def _elements(weight: Weight) -> int:
    return prod(len(ids) for ids in weight.ids)
