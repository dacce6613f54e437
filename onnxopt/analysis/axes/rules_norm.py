"""Normalizations: what is divided by a statistic of many entries.

Statistics of each channel alone, and of whole groups of channels, do not notice that other channels are gone. Those
over the channels themselves do: their channels may go, but what is left is normalized differently.
"""

from collections.abc import Sequence

from onnxopt.analysis.axes.axis import Axes, Axis, size_of
from onnxopt.analysis.axes.patch import Patch
from onnxopt.analysis.axes.rules import Call, rewrite, rule
from onnxopt.analysis.axes.rules_elementwise import broadcast
from onnxopt.analysis.symbols.expressions import product
from onnxopt.analysis.symbols.rules import MICROSOFT, normalized

_STATISTIC = "normalized by a statistic of all of them"
_BLOCK = "the size of what is removed whole: a group of a normalization"
_CHANNEL_SCALES_SINCE = 21
"""Before this opset GroupNormalization has one scale a group."""


def _vector(call: Call, index: int) -> Axis:
    return (call.axes(index) or ((),))[0]


@rule("BatchNormalization")
def _batch(call: Call) -> None:
    x = call.axes(0)
    if x is None or not call.integer("spatial", 1):
        for index in range(len(call.node.inputs)):
            call.hold_input(index, "normalized element by element, or of unknown rank", "needs-rule")
        return
    channels = x[1] if len(x) > 1 else ()
    for index in range(1, 5):
        if call.has(index):
            call.unite(channels, _vector(call, index))
    call.give(x)
    for index in range(1, len(call.node.outputs)):
        call.give((channels,), index)


@rule("InstanceNormalization")
def _instance(call: Call) -> None:
    x = call.axes(0)
    if x is None:
        call.hold_input(1, "scales a tensor of unknown rank", "needs-rule")
        call.hold_input(2, "shifts a tensor of unknown rank", "needs-rule")
        return
    call.unite(x[1], _vector(call, 1))
    call.unite(x[1], _vector(call, 2))
    for axis in x[2:]:
        call.inexact(axis, _STATISTIC)
    call.give(x)


@rule("GroupNormalization")
def _group(call: Call) -> None:
    grouped(call, 1, [1, 2], "num_groups", per_group=call.known.opset < _CHANNEL_SCALES_SINCE)


@rule("GroupNorm", domain=MICROSOFT)
def _group_fused(call: Call) -> None:
    grouped(call, _channels_at(call), [1, 2], "groups")


@rule("SkipGroupNorm", domain=MICROSOFT)
def _group_added(call: Call) -> None:
    x, skip, place = call.axes(0), call.axes(3), _channels_at(call)
    if x is None or skip is None:
        for index in (0, 3):
            call.hold_input(index, "added to a tensor of unknown rank", "needs-rule")
    elif len(skip) == len(x):
        for axis, other in zip(x, skip, strict=True):
            if axis and other:
                call.unite(axis, other, added=True)
    else:
        call.unite(x[0], skip[0])
        call.unite(x[place], skip[-1], added=True)
    grouped(call, place, [1, 2, 4], "groups")
    call.give(x, 1)


def _channels_at(call: Call) -> int:
    return -1 if call.integer("channels_last", 1) else 1


def grouped(call: Call, place: int, vectors: Sequence[int], name: str, *, per_group: bool = False) -> None:
    """State the axes of a normalization of groups of channels: of several, whole ones go.

    Args:
        call: the operator; its first input is normalized.
        place: of the channels.
        vectors: indices of the inputs with one entry a channel.
        name: of the attribute that has the number of groups.
        per_group: whether those have one entry a group.
    """
    x, count = call.axes(0), call.integer(name, 0)
    size = None if x is None else size_of(x[place])
    if x is None or not isinstance(size, int) or count < 1 or size % count:
        for index in (0, *vectors):
            call.hold_input(index, "groups of a number of channels that is open", "needs-rule")
        return
    outer, inside = call.apart(x[place], count, size // count)
    if count > 1:
        call.hold(inside, _BLOCK)
    else:
        call.inexact(x[place], _STATISTIC)
    for index in vectors:
        if call.has(index):
            call.unite(outer if per_group else x[place], _vector(call, index))
    for at, axis in enumerate(x):
        if at not in (0, place % len(x)):
            call.inexact(axis, _STATISTIC)
    call.give(x)


@rewrite("GroupNormalization")
def _groups(patch: Patch) -> None:
    _count(patch, 1, "num_groups")


@rewrite("GroupNorm", "SkipGroupNorm", domain=MICROSOFT)
def _groups_fused(patch: Patch) -> None:
    _count(patch, -1 if patch.integer("channels_last", 1) else 1, "groups")


def _count(patch: Patch, place: int, name: str) -> None:
    count = patch.integer(name, 1)
    total = product(digit.size for digit in patch.axes(0)[place])
    if count > 1 and isinstance(total, int):
        patch.set_attribute(name, patch.size(0, place) * count // total)


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _layer(call: Call) -> None:
    normalized_from(call, call.axes(0), [1, 2], call.integer("axis", -1))


@rule("LayerNormalization", "SimplifiedLayerNormalization", domain=MICROSOFT)
def _layer_fused(call: Call) -> None:
    normalized_from(call, call.axes(0), [1, 2], call.integer("axis", -1))


@rule("SkipLayerNormalization", domain=MICROSOFT)
def _layer_added(call: Call) -> None:
    _skipped(call, [2, 3, 4])


@rule("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _root_mean_square_added(call: Call) -> None:
    _skipped(call, [2, 3])


def _skipped(call: Call, vectors: Sequence[int]) -> None:
    total = broadcast(call, [call.axes(0), call.axes(1)], added=not (call.constant(0) or call.constant(1)))
    normalized_from(call, total, vectors, -1)
    call.give(total, 3)


def normalized_from(call: Call, axes: Axes | None, vectors: Sequence[int], first: int) -> None:
    """State the axes of a normalization over all axes from one on.

    Args:
        call: the operator.
        axes: of what is normalized.
        vectors: indices of the inputs that scale and shift the result.
        first: the first of the axes.
    """
    given = [index for index in vectors if call.has(index)]
    result = broadcast(call, [axes, *(call.axes(index) for index in given)])
    call.give(result)
    if result is None:
        return
    place = normalized(first, len(result))
    for axis in result[place:]:
        call.inexact(axis, _STATISTIC)
    for index in (1, 2):
        call.give((*result[:place], *((),) * (len(result) - place)), index)


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def _embedded(call: Call) -> None:
    tables = [index for index in (2, 3, 4) if call.has(index)]
    rows = call.axes(0)
    found = [axes for axes in (call.axes(index) for index in tables) if axes is not None and len(axes) == 2]
    if rows is None or len(found) < len(tables):
        for index in range(2, 7):
            call.hold_input(index, "looked up by indices of unknown shape", "needs-rule")
        return
    for table in found:
        call.hold(table[0], "looked up by computed indices")
        call.unite(found[0][1], table[1], added=True)
    total = (*rows, found[0][1])
    normalized_from(call, total, [5, 6], -1)
    call.give(rows[:1], 1)
    call.give(total, 2)


@rule("LpNormalization")
def _lp(call: Call) -> None:
    axes = call.axes(0)
    if axes is not None:
        place = normalized(call.integer("axis", -1), len(axes))
        call.consume(0, place, axes[place])
        call.give(axes)


@rule("LRN")
def _local(call: Call) -> None:
    axes = call.axes(0)
    if axes is not None:
        call.hold(axes[1], "normalized by its neighbours")
        call.give(axes)


@rule("MeanVarianceNormalization")
def _mean_variance(call: Call) -> None:
    axes = call.axes(0)
    if axes is not None:
        listed = call.known.numbers(len(call.node.inputs), "axes")
        for place in (0, 2, 3) if listed is None else listed:
            call.inexact(axes[normalized(place, len(axes))], _STATISTIC)
        call.give(axes)
