"""The least that a model can cost, and what keeps the rest: for those who ask for less."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from onnxopt.analysis.axes.axis import INSIDE
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.groups import ChannelGroup
from onnxopt.analysis.axes.ids import WINDOW, Freeze, Ids, Reason
from onnxopt.analysis.cost import Cost as ModelCost
from onnxopt.pruning.costs import Counted, Of, cost_model, counted, full, leaving

_NOUNS = {"macs": "MACs", "params": "parameters", "bytes": "bytes"}
_UNWANTED = Freeze("user", "groups that are left alone")
_NARROWEST = "groups at their narrowest"
_GRAPH = "nodes and names"
_OTHER = "what no rule knows channels of"
_BESIDE = {WINDOW, INSIDE.why}
"""Why axes keep their length beside others that are the reason for it."""

_REASONS = 3
_FIRST: tuple[Reason, ...] = ("semantics", "user", "needs-rule")
"""Of several reasons for which a channel stays, the one that is told, as where losses are counted."""


@dataclass(frozen=True)
class Floor:
    """The least cost that removal reaches.

    Attributes:
        of: what is counted.
        cost: the least.
        full: what the model costs as it is.
        held: what keeps it -> how much of it, most first; what several things keep counts for each.
    """

    of: Of
    cost: float
    full: float
    held: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        reasons = ", ".join(f"{_percent(much, self.full)} {what}" for what, much in self.held[:_REASONS])
        kept = f"the least that can be kept is {_percent(self.cost, self.full)} of {_NOUNS[self.of]}"
        return f"{kept} ({self.cost:,.0f})" + (f": {reasons}" if reasons else "")


def floor(
    channels: Channels, groups: Sequence[ChannelGroup], cost: ModelCost, of: Of, narrowest: Sequence[int]
) -> Floor:
    """What is left when every group is as narrow as it may be, and why.

    Args:
        channels: of the model as it is.
        groups: those that may lose units.
        cost: of the same model.
        of: what is counted.
        narrowest: units that each group keeps at least.
    """
    model, going = cost_model(channels, groups, cost, of), leaving(channels, groups)
    least = float(model.total(narrowest))
    held = _held(channels, counted(channels, cost, of, going), going)
    held[_NARROWEST] = least - model.constant
    held[_GRAPH] = cost.file_bytes - cost.weight_bytes if of == "bytes" else 0
    most_first = sorted(((what, much) for what, much in held.items() if much), key=lambda each: -each[1])
    return Floor(of, least, full(cost, of), tuple(most_first))


def _held(channels: Channels, found: Iterable[Counted], going: npt.NDArray[np.bool_]) -> dict[str, float]:
    """What stays whatever goes, by what is told of the reasons."""
    why, told = _reasons(channels)
    held: dict[str, float] = defaultdict(float)
    for each in found:
        stay = [row[~going[row]] for row in each.rows]
        left = float(each.amount) * prod(len(a) / len(b) for a, b in zip(stay, each.rows, strict=True) if len(b))
        if not left:
            continue
        counts = [_counts(why[row]) for row in stay if len(row) > 1]
        shares = _shares([row for row in counts if any(told[at].why != WINDOW for at in row)] or counts)
        reasons = {told[at]: share for at, share in shares.items()}
        reasons |= dict.fromkeys((freeze for freeze in each.held if freeze.why not in _BESIDE), 1.0)
        for freeze, share in reasons.items():
            held[_told(freeze)] += left * share
        if not reasons:
            held[_OTHER] += left
    return held


def _reasons(channels: Channels) -> tuple[Ids, list[Freeze]]:
    """The number of the reason for which each class stays, the first for those that nobody wants; and all reasons."""
    numbers: dict[int, int] = {}  # by identity: there are many classes, and few objects
    why, told = np.zeros(channels.classes.count, np.int64), [_UNWANTED]
    for unit, freezes in channels.classes.frozen.items():
        first = min(freezes, key=lambda freeze: _FIRST.index(freeze.reason))
        if id(first) not in numbers:
            numbers[id(first)] = len(told)
            told.append(first)
        why[unit] = numbers[id(first)]
    return why, told


def _counts(reasons: Ids) -> dict[int, int]:
    found, counts = np.unique(reasons, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _shares(axes: Sequence[Mapping[int, int]]) -> dict[int, float]:
    """The share of what has these axes, each with some entries for each reason, in which a reason is among those."""
    lengths = [sum(axis.values()) for axis in axes]
    return {
        reason: 1 - prod(1 - axis.get(reason, 0) / length for axis, length in zip(axes, lengths, strict=True))
        for reason in dict.fromkeys(reason for axis in axes for reason in axis)
    }


def _told(freeze: Freeze) -> str:
    return freeze.why if freeze is _UNWANTED else f"{freeze.why} ({freeze.reason})"


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 1 or not share else f"{share:.2g} %"
