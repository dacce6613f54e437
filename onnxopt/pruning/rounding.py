"""What the units that a group keeps should be a multiple of, for what is left to be faster."""

from collections.abc import Mapping, Sequence
from math import gcd, lcm
from typing import Literal

import onnx_ir as ir

from onnxopt.analysis.axes.groups import ChannelGroup, Member, multipliers

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

_ROWS = frozenset({"conv", "neurons", "residual"})
"""Kinds whose units are single rows of a matrix; a head or a recurrent unit is a block of its own."""


def undivided_groups(wanted: int | Literal["auto"], target: str) -> int:
    """The channels up to which groups of convolutions go as wholes, see `channel_ids`."""
    return max(_BLOCKS.get(target, ()), default=0) if wanted == "auto" else 0


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
        groups = node.attributes.get_int("group", 1)
        if groups == 1 or len(member.weight.ids[1]) <= max(blocks, default=0) or "Transpose" in node.op_type:
            continue  # such groups go as wholes
        inside = width if member.consumes else width // groups
        count = member.count if member.consumes else member.count // groups
        block = next((each for each in blocks if inside % each == 0), 1)
        least = lcm(least, block // gcd(block, count))
    return least


def _convolutions(member: Member) -> list[ir.Node]:
    """The convolutions that multiply by a weight."""
    nodes = multipliers(member.weight) if len(member.weight.ids) > 1 else []
    return [node for node in nodes if "Conv" in node.op_type]
