"""What is constant behind operators that move, regroup, repeat, pick or add entries."""

from math import prod

import numpy as np

from onnxopt.analysis.axes.axis import runs
from onnxopt.analysis.axes.patch import sliced
from onnxopt.analysis.axes.patterns import MOST, Given, Open, Pattern, effect, level, numbers, spread
from onnxopt.analysis.symbols.indexing import pads, slice_bounds
from onnxopt.analysis.symbols.rules import normalized


@effect("Identity")
def _same(given: Given) -> Pattern:
    return given.pattern(0)


@effect("Dropout")
def _kept(given: Given) -> Pattern:
    training = given.constant(2)
    if given.known.has(2) and (training is None or training.any()):
        raise Open("drops entries at random")
    return given.pattern(0)


@effect("Transpose")
def _transposed(given: Given) -> Pattern:
    order = given.node.attributes.get("perm")
    return given.pattern(0).transpose(None if order is None else list(order.as_ints()))


@effect("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshaped(given: Given) -> Pattern:
    """Runs of axes that become one another; only those along which numbers differ need sizes that are known."""
    x, old, new = given.pattern(0), given.shape(0), given.shape_out()
    source, target = [], []
    for (start, end), (first, last) in runs(old, new):
        if all(size == 1 for size in x.shape[start:end]):
            source += [1] * (end - start)
            target += [1] * (last - first)
            continue
        sizes, result = numbers(old[start:end]), numbers(new[first:last])
        if prod(sizes) != prod(result):
            raise Open("sizes that do not fit")
        source, target = [*source, *sizes], [*target, *result]
    return spread(x, source).reshape(target)


@effect("Expand")
def _expanded(given: Given) -> Pattern:
    x = given.pattern(0)
    return x.reshape((1,) * (len(given.shape_out()) - x.ndim) + x.shape)


@effect("Tile")
def _tiled(given: Given) -> Pattern:
    x, times = given.pattern(0), given.known.integers(1)
    if times is None or len(times) != x.ndim:
        raise Open("repeated a number of times that is not known")
    again = numbers(by if size > 1 else 1 for by, size in zip(times, x.shape, strict=True))
    if prod(again) * x.size > MOST:
        raise Open("too many numbers")
    return np.tile(x, again)


@effect("Concat")
def _together(given: Given) -> Pattern:
    place = normalized(given.known.integer("axis", 0), len(given.shape(0)))
    parts = [given.stretched(given.pattern(index), index, [place]) for index in range(len(given.node.inputs))]
    shape = np.broadcast_shapes(*((*part.shape[:place], 1, *part.shape[place + 1 :]) for part in parts))
    spread(np.zeros((1,) * len(shape)), [*shape[:place], sum(part.shape[place] for part in parts), *shape[place + 1 :]])
    wide = [np.broadcast_to(part, (*shape[:place], part.shape[place], *shape[place + 1 :])) for part in parts]
    return np.concatenate(wide, place)


@effect("Split")
def _split(given: Given) -> list[Pattern]:
    x = given.pattern(0)
    place = normalized(given.known.integer("axis", 0), x.ndim)
    counts = range(len(given.node.outputs))
    if x.shape[place] == 1:
        return [x for _ in counts]
    ends = np.cumsum(numbers(given.shape_out(index)[place] for index in counts))
    if ends[-1] != x.shape[place]:
        raise Open("sizes that do not fit")
    return np.split(x, ends[:-1], place)


@effect("Slice")
def _sliced(given: Given) -> Pattern:
    x, bounds = given.pattern(0), slice_bounds(given.known)
    if bounds is None:
        raise Open("cut at places that are not known")
    for place, (start, end, step) in bounds.items():
        if x.shape[place] > 1:
            first, last = numbers([start, end])
            x = x[(slice(None),) * place + (sliced(first, last, step, x.shape[place]),)]
    return x


@effect("Gather")
def _picked(given: Given) -> Pattern:
    x, index = given.pattern(0), given.known.fact(1)
    place = normalized(given.known.integer("axis", 0), x.ndim)
    if x.shape[place] == 1:
        return x.reshape((*x.shape[:place], *(1,) * len(given.shape(1)), *x.shape[place + 1 :]))
    if not index.known or index.content is None:
        raise Open("picked by computed indices")
    return np.take(x, index.content.astype(np.int64), place)


@effect("Pad")
def _padded(given: Given) -> Pattern:
    x, amounts = given.pattern(0), pads(given.known)
    if amounts is None:
        raise Open("padded by amounts that are not known")
    touched = [place for place, each in enumerate(amounts) if any(amount != 0 for amount in each)]
    if given.text("mode", "constant") != "constant":
        return level(x, touched)
    try:
        ends = [numbers(each) for each in amounts]
        wide = given.stretched(x, 0, touched)
        spread(np.zeros((1,) * x.ndim), [size + sum(each) for size, each in zip(wide.shape, ends, strict=True)])
    except Open:
        x = level(x, touched)
        return np.where(x == _filling(given), x, np.nan)
    cut = tuple(slice(max(-a, 0), size - max(-b, 0)) for size, (a, b) in zip(wide.shape, ends, strict=True))
    more = [(max(a, 0), max(b, 0)) for a, b in ends]
    return np.pad(wide[cut], more, constant_values=_filling(given))


def _filling(given: Given) -> float:
    if given.known.has(2):
        value = given.constant(2)
        if value is None:
            raise Open("padded with a number that is computed")
        return float(value.reshape(()))
    return given.node.attributes.get_float("value", 0.0)
