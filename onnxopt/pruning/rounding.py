"""What the units that a group keeps should be a multiple of, for what is left to be faster."""

from collections.abc import Callable, Mapping, Sequence
from math import gcd, lcm
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.engine import Channels, channel_ids
from onnxopt.analysis.axes.groups import ChannelGroup, Member, groups, multipliers
from onnxopt.analysis.symbols import symbols
from onnxopt.model import Model

_PREFERRED: Mapping[str, int] = {"cpu": 8}
"""Target -> what the width of a convolution should be a multiple of; 1 elsewhere.

ONNX Runtime convolves in blocks of 8 or 16 channels: between 64 channels and 48, widths that are no multiple of 4 take
10 to 30 % longer than 64 itself. Matrix products take any width alike.
"""

_BLOCKS: Mapping[str, Sequence[int]] = {"cpu": (16, 8)}
"""Target -> the same within each group of a grouped convolution: the first of which the group's width is a multiple.

ONNX Runtime convolves groups of whole blocks (16 channels with AVX-512, 8 with AVX2) like one wide convolution, all
others one after the other as matrices: in each of 4 groups 24 of 32 channels take 1.3 to 1.5 times as long as 32, and 8
of 16 take 0.9 to 1.8 times as long as 16. So groups of a single block go as wholes. Where groups are no whole blocks to
begin with, any channel less helps.
"""

_SEVERAL = 4
"""Groups of which a convolution has to have so many for them to go as wholes: of fewer, each is too much."""

_ROWS = frozenset({"conv", "neurons", "residual"})
"""Kinds whose units are single rows of a matrix; a head or a recurrent unit is a block of its own."""


def channels_for(
    model: Model, wanted: int | Literal["auto"], target: str, may: Callable[[ChannelGroup], bool]
) -> Channels:
    """Channel ids with which convolutions stay fast: groups of a single block go as wholes, wherever several can.

    Cost: as `channel_ids`; three times that, or more where convolutions depend on each other, with such convolutions.

    Args:
        model: the model.
        wanted, target: as of `block_of_units`.
        may: whether a group may be pruned.
    """
    known = symbols(model)
    channels = channel_ids(model, known)
    block = max(_BLOCKS.get(target, ()), default=0) if wanted == "auto" else 0
    whole = [node for node, (inside, _) in channels.grouped.items() if 1 < inside <= block]
    while whole:
        tried = channel_ids(model, known, whole)
        sizes = {unit: len(group.units) for group in groups(tried) if may(group) for unit in group.units}
        able = [node for node in whole if _least_units(tried, node, sizes) >= _SEVERAL]
        if len(able) == len(whole):
            return tried
        whole = able
    return channels


def _least_units(channels: Channels, node: ir.Node, sizes: Mapping[int, int]) -> int:
    """The units of the smallest group that a convolution makes channels of; 0 where some cannot go."""
    ids = vector(channels.grouped[node][1])
    labels = [] if ids is None else np.unique(channels.classes.labels[ids]).tolist()
    return min((sizes.get(label, 0) for label in labels), default=0)


def block_of_units(group: ChannelGroup, wanted: int | Literal["auto"], target: str) -> int:
    """What the number of units that a group keeps should be a multiple of.

    Args:
        group: the group.
        wanted: what the channels along its matrices should be; auto: what is faster on a target.
        target: where the model will run.
    """
    if group.kind not in _ROWS:
        return 1
    makers = [member for member in group.members if not member.consumes]
    matrices = [member for member in makers if len(member.weight.ids) > 1] or makers  # scales may be one a unit
    rows = [member.count for member in matrices]
    if wanted != "auto":
        return wanted // gcd(wanted, *rows)
    if not any(_convolutions(member) for member in matrices):
        return 1
    whole = _PREFERRED.get(target, 1)
    inside = [_within(member, _BLOCKS.get(target, ())) for member in group.members]
    return lcm(whole // gcd(whole, *rows), *inside)


def _within(member: Member, blocks: Sequence[int]) -> int:
    """What keeps the groups of grouped convolutions that a weight is read by at multiples of blocks; 1 of others."""
    least, width = 1, len(member.weight.ids[member.place])
    for node in _convolutions(member):
        parts = node.attributes.get_int("group", 1)
        if parts == 1 or len(member.weight.ids[1]) <= max(blocks, default=0) or "Transpose" in node.op_type:
            continue  # no block is less
        inside = width if member.consumes else width // parts
        count = member.count if member.consumes else member.count // parts
        block = next((each for each in blocks if inside % each == 0), 1)
        least = lcm(least, block // gcd(block, count))
    return least


def _convolutions(member: Member) -> list[ir.Node]:
    """The convolutions that multiply by a weight."""
    nodes = multipliers(member.weight) if len(member.weight.ids) > 1 else []
    return [node for node in nodes if "Conv" in node.op_type]
