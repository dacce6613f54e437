"""Operators that move, regroup, repeat or drop entries, without computing anything."""

from collections.abc import Sequence

import numpy as np

from onnxopt.analysis.axes.axis import Axes, Axis, fixed, size_of, vector
from onnxopt.analysis.axes.ids import Freeze, Ids
from onnxopt.analysis.axes.patch import Patch, sliced
from onnxopt.analysis.axes.reshape import regrouped
from onnxopt.analysis.axes.rules import SHARED, Call, rewrite, rule
from onnxopt.analysis.symbols import Fact
from onnxopt.analysis.symbols.expressions import Scalar, product
from onnxopt.analysis.symbols.indexing import slice_bounds
from onnxopt.analysis.symbols.rules import normalized

_TOGETHER = Freeze("semantics", "put together")
_PICKED = "entries are picked by their place"


@rule("Transpose")
def _transpose(call: Call) -> None:
    axes = call.axes(0)
    if axes is not None:
        order = call.node.attributes.get("perm")
        places = list(order.as_ints()) if order is not None else list(reversed(range(len(axes))))
        call.give(tuple(axes[place] for place in places))


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(call: Call) -> None:
    axes, shape = call.axes(0), call.out().shape
    if axes is None:
        return
    if shape is None or 0 in shape:
        call.hold_input(0, "reshaped to a shape that is not known", "needs-rule")
        return
    result = call.reshaped(axes, shape)
    call.give(tuple(call.together(place, axis) for place, axis in enumerate(result)))


@rewrite("Reshape")
def _target(patch: Patch) -> None:
    patch.reshape(1, "shape")


@rule("Concat")
def _concat(call: Call) -> None:
    concatenated(call, [call.axes(index) for index in range(len(call.node.inputs))])


def concatenated(call: Call, given: Sequence[Axes | None]) -> None:
    """State the axes of tensors put together along the axis that the attribute `axis` names."""
    known = [axes for axes in given if axes is not None]
    if len(known) < len(given) or len({len(axes) for axes in known}) != 1:
        for axis in (axis for axes in known for axis in axes):
            call.hold(axis, "put beside a tensor of unknown rank", "needs-rule")
        return
    rank = len(known[0])
    place = normalized(call.integer("axis", 0), rank)
    axes = [call.united([each[at] for each in known]) if at != place else () for at in range(rank)]
    axes[place] = _beside(call, [each[place] for each in known], place)
    call.give(tuple(axes))


def _beside(call: Call, axes: list[Axis], place: int) -> Axis:
    found = [vector(axis) for axis in axes]
    shape = call.out().shape
    total = shape[place] if shape is not None else sum((size_of(axis) for axis in axes), start=0)
    why = next((call.reason(axis) for axis, ids in zip(axes, found, strict=True) if ids is None), _TOGETHER)
    if any(ids is not None for ids in found):
        parts = [_entries(call, axis, ids) for axis, ids in zip(axes, found, strict=True)]
        known = [ids for ids in parts if ids is not None]
        if len(known) == len(parts):
            return call.channels(np.concatenate(known))
        for axis in axes:
            call.hold(axis, "put beside entries whose number is open")
    return fixed(total, why)


def _entries(call: Call, axis: Axis, ids: Ids | None) -> Ids | None:
    """Channels of a part of a Concat: of their own, which stay, where it has none; None where their number is open."""
    size = size_of(axis)
    return ids if ids is not None or not isinstance(size, int) else call.frozen(size, call.reason(axis))


@rule("Split")
def _split(call: Call) -> None:
    axes = call.axes(0)
    if axes is None:
        return
    place = normalized(call.integer("axis", 0), len(axes))
    shapes = [call.out(index).shape for index in range(len(call.node.outputs))]
    sizes = [None if shape is None else shape[place] for shape in shapes]
    counts = [size for size in sizes if isinstance(size, int)]
    if len(counts) < len(sizes) or sum(counts) != size_of(axes[place]):
        call.hold(axes[place], "split at places that are not known")
        for index, size in enumerate(sizes):
            rest = fixed(size, call.reason(axes[place])) if size is not None else ()
            call.give(None if size is None else (*axes[:place], rest, *axes[place + 1 :]), index)
        return
    first = 0
    for index, count in enumerate(counts):
        call.give(call.taken(axes, place, np.arange(first, first + count), _PICKED), index)
        first += count


@rewrite("Split")
def _lengths(patch: Patch) -> None:
    place = normalized(patch.integer("axis", 0), len(patch.axes(0)))
    if not patch.shrinks(0, place):
        return
    lengths = [patch.size_out(index, place) for index in range(len(patch.node.outputs))]
    patch.set_integers(1, lengths, "split")
    patch.set_attribute("num_outputs", None)


@rule("Slice")
def _slice(call: Call) -> None:
    axes, bounds = call.axes(0), slice_bounds(call.known)
    if axes is None:
        return
    if bounds is None:
        _sliced_somewhere(call, axes)
        return
    for place, (start, end, step) in bounds.items():
        axes = _sliced(call, axes, place, start, end, step)
    call.give(axes)


def _sliced_somewhere(call: Call, axes: Axes) -> None:
    places = call.known.numbers(3, "axes") if call.known.given(3, "axes") else None
    cut = range(len(axes)) if places is None else [normalized(place, len(axes)) for place in places]
    shape = call.out().shape
    result = list(axes)
    for place in cut:
        call.hold(axes[place], "cut at places that are not known")
        size = shape[place] if shape is not None else call.known.space.fresh()
        result[place] = fixed(size, call.reason(axes[place]))
    call.give(tuple(result))


def _sliced(call: Call, axes: Axes, place: int, start: Scalar, end: Scalar, step: int) -> Axes:
    size, axis = size_of(axes[place]), axes[place]
    shape = call.out().shape
    if shape is not None and shape[place] == size and step > 0:
        return axes
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return call.taken(axes, place, np.arange(size)[sliced(start, end, step, size)], _PICKED)
    call.hold(axis, "cut at places that depend on the input")
    length = shape[place] if shape is not None else call.known.space.fresh()
    return (*axes[:place], fixed(length, call.reason(axis)), *axes[place + 1 :])


@rewrite("Slice")
def _cut(patch: Patch) -> None:
    patch.slice()


@rule("Gather")
def _gather(call: Call) -> None:
    axes, index = call.axes(0), call.known.fact(1)
    if axes is None or index.shape is None:
        call.hold_input(0, "picked from by indices of unknown shape", "needs-rule")
        return
    place = normalized(call.integer("axis", 0), len(axes))
    if _in_order(index, size_of(axes[place])):
        apart = regrouped((axes[place],), index.shape, call.known.space)
        call.give((*axes[:place], *apart, *axes[place + 1 :]))
        return
    if index.known and index.content is not None and index.content.ndim <= 1:
        size = size_of(axes[place])
        if isinstance(size, int):
            entries = np.atleast_1d(index.content).astype(np.int64) % size
            if index.content.ndim and call.is_shared(0):
                call.hold(axes[place], SHARED)
                call.give((*axes[:place], call.channels(call.fresh(len(entries))), *axes[place + 1 :]))
                return
            if not index.content.ndim:
                call.hold(axes[place], _PICKED)
            result = call.taken(axes, place, entries, _PICKED)
            call.give(result if index.content.ndim else (*result[:place], *result[place + 1 :]))
            return
    call.hold(axes[place], "looked up by computed indices")
    rows = call.axes(1) or tuple(fixed(each, call.reason(axes[place])) for each in index.shape)
    call.give((*axes[:place], *rows, *axes[place + 1 :]))


def _in_order(index: Fact, size: Scalar) -> bool:
    """Whether indices, of several axes, are all there are, each once and in order: a Reshape in disguise."""
    rule, shape = index.as_affine(), index.shape
    if rule is None or shape is None or len(shape) < 2 or rule.base != 0 or product(shape) != size:
        return False
    steps = [product(shape[at + 1 :]) for at in range(len(shape))]
    open_ = sum(not isinstance(each, int) for each in shape)
    return open_ < 2 and all(a == b for a, b, each in zip(rule.steps, steps, shape, strict=True) if each != 1)


@rewrite("Gather")
def _picked(patch: Patch) -> None:
    place = normalized(patch.integer("axis", 0), len(patch.axes(0)))
    if _in_order(patch.known.fact(1), product(digit.size for digit in patch.axes(0)[place])):
        patch.become_reshape()
        return
    entries = patch.integers(1)
    one = patch.known.shape(1) == ()
    if entries is None or not (patch.shrinks(0, place) or (not one and patch.shrinks_out(0, place))):
        return
    kept = patch.kept(0, place)
    taken = np.ones(1, bool) if one else patch.kept_out(0, place)
    rank = np.cumsum(kept) - 1
    patch.set_integers(1, [int(rank[each % len(kept)]) for each in np.asarray(entries)[taken]])


@rule("Expand")
def _expand(call: Call) -> None:
    axes, shape = call.axes(0), call.out().shape
    if axes is None or shape is None:
        call.hold_input(0, "expanded to a shape that is not known", "needs-rule")
        return
    padded = ((),) * (len(shape) - len(axes)) + axes
    call.give(tuple(_stretched(call, axis, size) for axis, size in zip(padded, shape, strict=True)))


def _stretched(call: Call, axis: Axis, size: Scalar) -> Axis:
    if size_of(axis) == size:
        return axis
    if not axis and isinstance(size, int):
        return call.repeated(size)
    call.hold(axis, "may be repeated")
    return fixed(size, call.reason(axis))


@rewrite("Expand")
def _expanded(patch: Patch) -> None:
    patch.expand(1)


@rewrite("Shape")
def _sizes(patch: Patch) -> None:
    """Keeps what it said: where sizes have to follow, the operators that take them are given them."""
    patch.keep_answer()


@rewrite("Size")
def _count(patch: Patch) -> None:
    patch.keep_count()


@rule("Shape", "Size")
def _asked(call: Call) -> None:
    call.fixed(0, "sizes")
