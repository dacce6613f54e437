"""What a report says of a pruned model."""

from collections.abc import Sequence
from typing import TypeAlias

from onnxopt.analysis.axes import ChannelGroup, Channels, frozen, lost_to
from onnxopt.passing import Findings

Leaving: TypeAlias = tuple[ChannelGroup, list[int]]
"""A group and the units that it loses."""

_REASONS = 3
"""Reasons to give where nothing can be pruned."""


def share(chosen: Sequence[ChannelGroup], leaving: Sequence[Leaving]) -> str:
    """How many units went, which rounding may make more or fewer than was asked for."""
    before, lost = sum(len(group.units) for group in chosen), sum(len(units) for _, units in leaving)
    return f"{lost} of {before} units went ({lost / before:.0%})"


def units_by_kind(found: Sequence[ChannelGroup], leaving: Sequence[Leaving]) -> dict[str, int]:
    """Units by kind, before and after."""
    measures: dict[str, int] = {}
    for kind in dict.fromkeys(group.kind for group in found):
        before = sum(len(group.units) for group in found if group.kind == kind)
        lost = sum(len(units) for group, units in leaving if group.kind == kind)
        name = kind.replace("-", "_")
        measures |= {f"{name}_units_before": before, f"{name}_units_after": before - lost}
    return measures


def reasons(channels: Channels) -> str:
    """What keeps most parameters of a model of which nothing can go."""
    told = [f"{each.freeze.why} ({each.freeze.reason}, {each.parameters} parameters)" for each in frozen(channels)]
    return "; ".join(told[:_REASONS]) or "there is no layer between two others"


def explain(channels: Channels, findings: Findings) -> None:
    """Say what only lacks a rule."""
    lost = lost_to(channels, "needs-rule")
    if lost:
        why = next((each.freeze.why for each in frozen(channels) if each.freeze.reason == "needs-rule"), "")
        findings.notes.append(f"{lost} parameters stay only for want of a rule; most of them: {why}")
