"""Operators on images and sequences: pooling, resampling, padding, and channels moved into space or back."""

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes.axis import Axes, Axis, size_of, vector
from onnxopt.analysis.axes.ids import WINDOW
from onnxopt.analysis.axes.patch import Patch
from onnxopt.analysis.axes.rules import Call, rewrite, rule
from onnxopt.analysis.axes.rules_convolution import Places, convolved
from onnxopt.analysis.axes.rules_reduce import stays
from onnxopt.analysis.symbols.expressions import Scalar
from onnxopt.analysis.symbols.indexing import pads
from onnxopt.analysis.symbols.rules import normalized

_RESAMPLED = "resampled"
_GROUP = "the number of groups of offsets of a convolution"


def _used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


@rule("MaxPool", "AveragePool", "LpPool")
def _pool(call: Call) -> None:
    x = call.axes(0)
    if x is None:
        return
    for axis in x[2:]:
        call.hold(axis, WINDOW)
    if len(call.node.outputs) > 1 and _used(call.node.outputs[1]):
        for axis in x[:2]:
            call.hold(axis, "counted by the indices that pooling gives")
    result = (*x[:2], *call.rest(len(x), WINDOW))
    call.give(result)
    call.give(result, 1)


@rule("GlobalAveragePool", "GlobalMaxPool")
def _whole(call: Call) -> None:
    x = call.axes(0)
    if x is not None:
        for axis in x[2:]:
            call.inexact(axis, f"{call.node.op_type} over all of them")
        call.give((*x[:2], *((),) * (len(x) - 2)))


@rule("GlobalLpPool")
def _norm(call: Call) -> None:
    x = call.axes(0)
    if x is not None:
        for place in range(2, len(x)):
            call.consume(0, place, x[place])
        call.give((*x[:2], *((),) * (len(x) - 2)))


@rule("MaxRoiPool", "RoiAlign")
def _regions(call: Call) -> None:
    x, regions = call.axes(0), call.axes(1)
    if x is None or regions is None:
        for index in range(len(call.node.inputs)):
            call.hold_input(index, "cut to regions, or regions, of unknown rank", "needs-rule")
        return
    for axis in (x[0], *x[2:], *regions[1:]):
        call.hold(axis, WINDOW)
    if call.has(2):
        call.unite(regions[0], (call.axes(2) or ((),))[0])
    call.give((regions[0], x[1], *call.rest(len(x), WINDOW)))


@rule("GridSample")
def _sampled(call: Call) -> None:
    x, grid = call.axes(0), call.axes(1)
    if x is None or grid is None:
        for index in (0, 1):
            call.hold_input(index, "sampled by, or a grid, of unknown rank", "needs-rule")
        return
    call.unite(x[0], grid[0])
    for axis in (*x[2:], *grid[1:]):
        call.hold(axis, WINDOW)
    call.give((x[0], x[1], *call.rest(len(x), WINDOW)))


@rule("DeformConv")
def _deformed(call: Call) -> None:
    x, offsets = call.axes(0), call.integer("offset_group", 1)
    for index in (2, 4):
        for at, axis in enumerate(call.axes(index) or ()):
            if at or x is None:
                call.hold(axis, WINDOW)
            else:
                call.unite(x[0], axis)
    size = None if x is None else size_of(x[1])
    if x is not None and isinstance(size, int) and offsets > 1:
        groups, _ = call.apart(x[1], offsets, size // offsets)
        call.hold(groups, _GROUP)
    convolved(call, Places(bias=3))


@rewrite("DeformConv")
def _groups(patch: Patch) -> None:
    patch.set_attribute("group", patch.size(0, 1) // patch.size(1, 1))


@rule("Col2Im")
def _columns(call: Call) -> None:
    x, shape, block = call.axes(0), call.out().shape, call.known.numbers(2)
    size = None if x is None else size_of(x[1])
    if x is None or shape is None or block is None or not isinstance(size, int):
        call.hold_input(0, "put together to an image of unknown size", "needs-rule")
        return
    window = int(np.prod(block))
    outer, inside = call.apart(x[1], size // window, window)
    call.hold(inside, WINDOW)
    call.hold(x[2], WINDOW)
    call.give((x[0], outer, *call.rest(len(shape), WINDOW)))


@rule("DepthToSpace")
def _to_space(call: Call) -> None:
    x, block = call.axes(0), call.integer("blocksize", 1) ** 2
    size = None if x is None else size_of(x[1])
    if x is None or not isinstance(size, int):
        call.hold_input(0, "blocks of a number of channels that is open", "needs-rule")
        return
    mode = call.node.attributes.get("mode")
    if mode is not None and mode.as_string() == "CRD":
        channels, inside = call.apart(x[1], size // block, block)
    else:
        inside, channels = call.apart(x[1], block, size // block)
    for axis in (inside, *x[2:]):
        call.hold(axis, WINDOW)
    call.give((x[0], channels, *call.rest(len(x), WINDOW)))


@rule("SpaceToDepth")
def _to_depth(call: Call) -> None:
    x, block = call.axes(0), call.integer("blocksize", 1) ** 2
    if x is not None:
        for axis in x[2:]:
            call.hold(axis, WINDOW)
        call.give((x[0], repeated(call, block, x[1]), *call.rest(len(x), WINDOW)))


def repeated(call: Call, times: Scalar, axis: Axis) -> Axis:
    """An axis again and again."""
    return call.length(times, "how often channels are repeated") + axis


@rule("Resize", "Upsample")
def _resized(call: Call) -> None:
    axes = call.axes(0)
    for index in range(1, min(len(call.node.inputs), 3)):
        call.hold_input(index, "by how much, and where, axes are resampled")
    if axes is not None:
        result = axes
        for place in set(range(len(axes))) - _untouched(call, axes):
            result = stays(call, result, place, _RESAMPLED)
        call.give(result)


def _untouched(call: Call, axes: Axes) -> set[int]:
    """The places of axes that are certainly not resampled."""
    attributes = call.node.attributes
    listed = attributes.get("axes")
    places = [normalized(place, len(axes)) for place in listed.as_ints()] if listed else list(range(len(axes)))
    others = set(range(len(axes))) - set(places)
    plain = {"keep_aspect_ratio_policy": "stretch", "coordinate_transformation_mode": "half_pixel"}
    policy, mode = (attributes[name].as_string() if name in attributes else plain[name] for name in plain)
    if policy != "stretch" or mode == "tf_crop_and_resize":
        return others
    sizes = call.known.integers(3)
    if sizes:
        return others | {place for place, size in zip(places, sizes, strict=True) if size == size_of(axes[place])}
    scales = attributes["scales"].as_floats() if "scales" in attributes else _factors(call)
    return others | {place for place, by in zip(places, scales, strict=False) if by == 1}


def _factors(call: Call) -> list[object]:
    index = 1 if call.node.op_type == "Upsample" or call.known.opset < 11 else 2
    return list(call.known.fact(index).elements or ())


@rewrite("Resize")
def _sizes(patch: Patch) -> None:
    listed = patch.node.attributes.get("axes")
    rank = len(patch.axes(0))
    places = [normalized(place, rank) for place in listed.as_ints()] if listed else list(range(rank))
    if patch.known.has(3) and patch.known.shape(3) != (0,):
        patch.change_integers(3, {at: patch.size_out(0, p) for at, p in enumerate(places) if patch.shrinks_out(0, p)})


@rule("CenterCropPad")
def _centered(call: Call) -> None:
    axes, shape = call.axes(0), call.out().shape
    if axes is None or shape is None:
        call.hold_input(0, "cut or padded to a shape that is not known", "needs-rule")
        return
    result = axes
    for place in _centered_axes(call.node, len(axes)):
        if shape[place] != size_of(axes[place]):
            result = stays(call, result, place, "cut or padded from both sides")
    call.give(result)


@rewrite("CenterCropPad")
def _centered_sizes(patch: Patch) -> None:
    places = _centered_axes(patch.node, len(patch.axes(0)))
    patch.change_integers(1, {at: patch.size_out(0, p) for at, p in enumerate(places) if patch.shrinks_out(0, p)})


def _centered_axes(node: ir.Node, rank: int) -> list[int]:
    listed = node.attributes.get("axes")
    return [normalized(place, rank) for place in listed.as_ints()] if listed else list(range(rank))


@rule("Pad")
def _pad(call: Call) -> None:
    axes, amounts = call.axes(0), pads(call.known)
    if axes is None:
        return
    listed = call.known.numbers(3) if call.known.has(3) else list(range(len(axes)))
    if amounts is None:
        for place in range(len(axes)) if listed is None else listed:
            axes = stays(call, axes, normalized(place, len(axes)), "padded by amounts that are not known")
        call.give(axes)
        return
    mode = call.node.attributes.get("mode")
    plain = mode is None or mode.as_string() == "constant"
    for place, (before, behind) in enumerate(amounts):
        if before != 0 or behind != 0:
            ids = _padded(call, axes[place], before, behind) if plain else None
            axes = _put(axes, place, ids) if ids is not None else stays(call, axes, place, "padded, or cut")
    call.give(axes)


def _put(axes: Axes, place: int, axis: Axis) -> Axes:
    return (*axes[:place], axis, *axes[place + 1 :])


def _padded(call: Call, axis: Axis, before: Scalar, behind: Scalar) -> Axis | None:
    """An axis with entries of nothing but the padding beside, any of which may go; None where it keeps its length."""
    ids = vector(axis) if isinstance(before, int) and isinstance(behind, int) else None
    if ids is None or not isinstance(before, int) or not isinstance(behind, int):
        return None
    inner = ids[max(-before, 0) : len(ids) - max(-behind, 0)]
    return call.channels(np.concatenate([call.fresh(max(before, 0)), inner, call.fresh(max(behind, 0))]))


@rewrite("Pad")
def _amounts(patch: Patch) -> None:
    given, rank = pads(patch.known), len(patch.axes(0))
    listed = (patch.integers(3) if patch.known.has(3) else None) or list(range(rank))
    changes: dict[int, int] = {}
    for at, place in enumerate(listed):
        if not (patch.shrinks(0, place) or patch.shrinks_out(0, place)):
            continue
        ends = (0, 0) if given is None else given[normalized(place, rank)]
        for end, (amount, where) in enumerate(zip(ends, (at, at + len(listed)), strict=True)):
            if isinstance(amount, int) and amount:
                mask = patch.kept(0, place) if amount < 0 else patch.kept_out(0, place)
                count = int((mask[-abs(amount) :] if end else mask[: abs(amount)]).sum())
                new = count if amount > 0 else -count
                changes.update({where: new} if new != amount else {})
    patch.change_integers(1, changes, "pads")


@rule("ReverseSequence")
def _reversed(call: Call) -> None:
    axes = call.axes(0)
    if axes is not None:
        for place in (call.integer("batch_axis", 1), call.integer("time_axis", 0)):
            call.hold(axes[normalized(place, len(axes))], "put in another order")
        call.give(axes)


@rule("DFT")
def _transformed(call: Call) -> None:
    axes, known = call.axes(0), call.known
    if axes is None:
        return
    along = known.numbers(2) if known.has(2) else [call.integer("axis", 1 if known.opset < 20 else -2)]
    places = range(len(axes)) if along is None else {normalized(along[0], len(axes)), len(axes) - 1}
    for place in places:
        axes = stays(call, axes, place, "transformed as a whole")
    call.give(axes)
