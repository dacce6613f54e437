"""Operators that repeat, pick, place and make entries by their number."""

import numpy as np

from onnxopt.analysis.axes.axis import Axis, size_of
from onnxopt.analysis.axes.ids import Ids
from onnxopt.analysis.axes.patch import Patch
from onnxopt.analysis.axes.rules import Call, rewrite, rule
from onnxopt.analysis.axes.rules_reduce import stays
from onnxopt.analysis.axes.rules_space import repeated
from onnxopt.analysis.symbols import Call as Known
from onnxopt.analysis.symbols.expressions import Scalar
from onnxopt.analysis.symbols.rules import normalized

_PLACES = "places that indices speak of"
_COUNTED = "entries that are counted, or told from one another, by their place"


@rule(
    "AffineGrid", "BlackmanWindow", "EyeLike", "HammingWindow", "HannWindow", "MaxUnpool", "MelWeightMatrix",
    "Multinomial", "NonMaxSuppression", "NonZero", "Range", "STFT", "Unique",
)  # fmt: skip
def _whole(call: Call) -> None:
    for index in range(len(call.node.inputs)):
        call.hold_input(index, _COUNTED)


@rule("Bernoulli", "RandomNormalLike", "RandomUniformLike")
def _drawn(call: Call) -> None:
    call.give(call.axes(0))


@rule("Tile")
def _tiled(call: Call) -> None:
    axes, times = call.axes(0), call.known.integers(1)
    if axes is None:
        return
    if times is None or len(times) != len(axes):
        call.hold_input(0, "repeated a number of times that is not known")
        return
    call.give(tuple(_again(call, axis, by) for axis, by in zip(axes, times, strict=True)))


def _again(call: Call, axis: Axis, times: Scalar) -> Axis:
    if not axis and isinstance(times, int):
        return call.repeated(times)
    return repeated(call, times, axis)


@rewrite("Tile")
def _repeats(patch: Patch) -> None:
    changed = [place for place, axis in enumerate(patch.axes(0)) if not axis and patch.shrinks_out(0, place)]
    patch.change_integers(1, {place: patch.size_out(0, place) for place in changed})


@rule("ConstantOfShape", "RandomNormal", "RandomUniform")
def _made(call: Call) -> None:
    """Numbers at every place; integers are sizes and indices, and keep theirs."""
    shape, dtype = call.out().shape, call.out().dtype
    if shape is not None and (dtype is None or dtype.is_floating_point()):
        call.give(tuple(_free(call, size) for size in shape))


def _free(call: Call, size: Scalar) -> Axis:
    return call.repeated(size) if isinstance(size, int) else call.length(size, "a size that is open")


@rewrite("ConstantOfShape")
def _made_smaller(patch: Patch) -> None:
    rank = len(patch.axes_out())
    patch.change_integers(0, {place: patch.size_out(0, place) for place in range(rank) if patch.shrinks_out(0, place)})


@rewrite("RandomNormal", "RandomUniform")
def _drawn_smaller(patch: Patch) -> None:
    patch.set_attribute("shape", [patch.size_out(0, place) for place in range(len(patch.axes_out()))])


@rule("OneHot")
def _hot(call: Call) -> None:
    axes = call.axes(0)
    shape = call.out().shape
    if axes is None or shape is None:
        call.hold_input(0, "indices of unknown rank", "needs-rule")
        return
    place = normalized(call.integer("axis", -1), len(shape))
    call.give((*axes[:place], call.length(shape[place], "the number of classes"), *axes[place:]))


@rule("Compress")
def _compressed(call: Call) -> None:
    axes = call.axes(0)
    if axes is None or "axis" not in call.node.attributes:
        call.hold_input(0, _COUNTED)
    else:
        call.give(stays(call, axes, normalized(call.integer("axis", 0), len(axes)), _PLACES))


@rule("Trilu")
def _triangle(call: Call) -> None:
    axes = call.axes(0)
    for axis in (axes or ())[-2:]:
        call.hold(axis, _COUNTED)
    call.give(axes)


@rule("GatherElements")
def _gathered(call: Call) -> None:
    data, indices = call.axes(0), call.axes(1)
    if data is None or indices is None or len(data) != len(indices):
        _unknown(call)
        return
    place = normalized(call.integer("axis", 0), len(data))
    call.hold(data[place], _PLACES)
    call.give(
        tuple(_beside(call, a, b) if at != place else b for at, (a, b) in enumerate(zip(data, indices, strict=True)))
    )


@rule("ScatterElements", "Scatter")
def _scattered(call: Call) -> None:
    data, indices, updates = call.axes(0), call.axes(1), call.axes(2)
    if data is None or indices is None or updates is None or len({len(data), len(indices), len(updates)}) > 1:
        _unknown(call)
        return
    place = normalized(call.integer("axis", 0), len(data))
    call.hold(data[place], _PLACES)
    for at, (axis, index, update) in enumerate(zip(data, indices, updates, strict=True)):
        _beside(call, index, update)
        if at != place:
            _beside(call, axis, index)
    call.give(data)


def _beside(call: Call, axis: Axis, other: Axis) -> Axis:
    """The shorter of two axes that begin alike; the same one, if they are as long as one another."""
    if size_of(axis) == size_of(other):
        call.unite(axis, other)
        return axis
    call.hold(axis, _PLACES)
    call.hold(other, _PLACES)
    return other


@rule("GatherND")
def _gathered_slices(call: Call) -> None:
    data, indices, depth = call.axes(0), call.axes(1), _depth(call)
    batch = call.integer("batch_dims", 0)
    if data is None or indices is None or depth is None:
        _unknown(call)
        return
    for axis, other in zip(data[:batch], indices[:batch], strict=True):
        call.unite(axis, other)
    for axis in (*data[batch : batch + depth], indices[-1]):
        call.hold(axis, _PLACES)
    call.give((*indices[:-1], *data[batch + depth :]))


@rule("ScatterND")
def _scattered_slices(call: Call) -> None:
    data, indices, updates, depth = call.axes(0), call.axes(1), call.axes(2), _depth(call)
    if data is None or indices is None or updates is None or depth is None:
        _unknown(call)
        return
    entries, size = _rows(call.known), size_of(data[0])
    if entries is not None and isinstance(size, int):
        rows = call.taken(data, 0, entries % size, _PLACES)[:1]
    else:
        rows = indices[:-1]
        for axis in data[:depth]:
            call.hold(axis, _PLACES)
    call.hold(indices[-1], _PLACES)
    for axis, other in zip((*rows, *data[depth:]), updates, strict=True):
        call.unite(axis, other)
    call.give(data)


@rewrite("ScatterND")
def _placed(patch: Patch) -> None:
    entries = _rows(patch.known)
    if entries is None or not patch.shrinks(0, 0):
        return
    kept = patch.kept(0, 0)
    old = entries % len(kept)
    new = (np.cumsum(kept) - 1)[old[kept[old]]]
    patch.edit.set_input(patch.node, 1, patch.edit.add_weight("rows", new.reshape(-1, 1), patch.graph))


def _rows(known: Known) -> Ids | None:
    """The rows that a ScatterND writes, where they are known and it writes nothing but whole ones."""
    index = known.fact(1)
    if index.shape is None or len(index.shape) != 2 or index.shape[1] != 1 or not index.known or index.content is None:
        return None
    return index.content.reshape(-1).astype(np.int64)


def _depth(call: Call) -> int | None:
    """How many axes an index has numbers for."""
    shape = call.known.shape(1)
    return shape[-1] if shape and isinstance(shape[-1], int) else None


def _unknown(call: Call) -> None:
    for index in range(len(call.node.inputs)):
        call.hold_input(index, "picked or placed by indices of unknown rank", "needs-rule")
