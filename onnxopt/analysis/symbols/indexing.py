"""Operators about sizes and indices: Shape, Slice, Gather, ScatterND, Range, Pad and their like."""

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols.expressions import Polynomial, Scalar, at_most, low, product
from onnxopt.analysis.symbols.facts import (
    MOST_ELEMENTS,
    Affine,
    Element,
    Fact,
    element,
    filled,
    is_integer,
    of_array,
    of_elements,
    scalar,
)
from onnxopt.analysis.symbols.functions import larger, quotient, sliced
from onnxopt.analysis.symbols.rules import Call, normalized, only_numbers, rule

_INT64 = ir.DataType.INT64


@rule("Shape")
def shape(call: Call) -> list[Fact]:
    """The sizes as a tensor."""
    sizes = call.shape(0)
    if sizes is None:
        return [Fact(_INT64)]
    rank = len(sizes)
    start, end = call.integer("start", 0), call.integer("end", rank)
    start, end = (min(max(at + rank if at < 0 else at, 0), rank) for at in (start, end))
    return [of_elements(sizes[start:end], (max(0, end - start),), _INT64)]


@rule("Size")
def size(call: Call) -> list[Fact]:
    """The number of elements."""
    sizes = call.shape(0)
    return [Fact(_INT64, ()) if sizes is None else scalar(product(sizes), _INT64)]


@rule("Slice")
def slice_(call: Call) -> list[Fact]:
    """Part of some axes."""
    fact = call.fact(0)
    if fact.shape is None:
        return [Fact(fact.dtype)]
    bounds = slice_bounds(call)
    if bounds is None:
        return [Fact(fact.dtype, tuple(call.space.fresh() for _ in fact.shape))]
    sizes, steps, starts = list(fact.shape), [1] * len(fact.shape), dict[int, Scalar]()
    for axis, (start, end, step) in bounds.items():
        starts[axis], sizes[axis] = sliced(call.space, fact.shape[axis], start, end, step)
        steps[axis] = step
    if fact.content is not None:
        firsts = only_numbers(starts.get(axis, 0) for axis in range(len(sizes))) or []
        counts = only_numbers(sizes)
        if len(firsts) == len(sizes) and counts is not None:
            taken = [first + step * np.arange(n) for first, step, n in zip(firsts, steps, counts, strict=True)]
            return [of_array(fact.content[np.ix_(*taken)] if taken else fact.content, fact.dtype)]
    found = fact.as_affine()
    if found is None:
        return [Fact(fact.dtype, tuple(sizes))]
    if found.uniform:
        return [filled(tuple(sizes), found.base, fact.dtype)]
    base = found.base
    for axis, start in starts.items():
        base = base + found.steps[axis] * start  # type: ignore[operator]
    rule_ = Affine(base, tuple(0 if n == 1 else a * b for a, b, n in zip(found.steps, steps, sizes, strict=True)))
    return [Fact(fact.dtype, tuple(sizes), None, rule_)]


def slice_bounds(call: Call) -> dict[int, tuple[Scalar, Scalar, int]] | None:
    """Axis -> start, end and step of a Slice; None where they are not known."""
    sizes, cut = call.shape(0), cuts(call)
    if sizes is None or cut is None:
        return None
    found = {normalized(axis, len(sizes)): each for axis, each in cut.items()}
    return found if len(found) == len(cut) else None


def cuts(call: Call) -> dict[int, tuple[Scalar, Scalar, int]] | None:
    """The same by the axes as the node counts them, negative ones from the end: of tensors of any rank."""
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = call.numbers(3, "axes") if call.given(3, "axes") else list(range(len(starts)))
    steps = call.numbers(4) if call.has(4) else [1] * len(starts)
    if axes is None or steps is None or 0 in steps or not len(set(axes)) == len(axes) == len(steps) == len(starts):
        return None
    return dict(zip(axes, zip(starts, ends, steps, strict=True), strict=True))


@rule("Gather")
def gather(call: Call) -> list[Fact]:
    """Rows named by indices."""
    fact, index = call.fact(0), call.fact(1)
    if fact.shape is None or index.shape is None:
        return [Fact(fact.dtype)]
    axis = normalized(call.integer("axis", 0), len(fact.shape))
    result = (*fact.shape[:axis], *index.shape, *fact.shape[axis + 1 :])
    if fact.content is not None and index.known and index.content is not None:
        try:
            return [of_array(np.take(fact.content, index.content, axis), fact.dtype)]
        except IndexError:
            return [Fact(fact.dtype, result)]
    found, chosen = fact.as_affine(), index.as_affine()
    if found is None or (not found.uniform and chosen is None):
        return [Fact(fact.dtype, result)]
    if found.uniform:
        return [filled(result, found.base, fact.dtype)]
    assert chosen is not None
    base, along = chosen.base, found.steps[axis]
    least = low(base) if isinstance(base, int | Polynomial) else None
    if least is None or least < 0 or not all(isinstance(step, int) and step >= 0 for step in chosen.steps):
        return [Fact(fact.dtype, result)]
    steps = (*found.steps[:axis], *(along * step for step in chosen.steps), *found.steps[axis + 1 :])
    return [Fact(fact.dtype, result, None, Affine(found.base + along * base, steps))]  # type: ignore[operator]


@rule("GatherElements")
def gather_elements(call: Call) -> list[Fact]:
    """One element an index."""
    return [Fact(call.fact(0).dtype, call.shape(1))]


@rule("GatherND")
def gather_nd(call: Call) -> list[Fact]:
    """Slices named by tuples of indices."""
    fact, index = call.fact(0), call.fact(1)
    if fact.shape is None or not index.shape or not isinstance(index.shape[-1], int):
        return [Fact(fact.dtype)]
    taken = call.integer("batch_dims", 0) + index.shape[-1]
    result = (*index.shape[:-1], *fact.shape[taken:])
    value = fact.uniform
    return [Fact(fact.dtype, result) if value is None else filled(result, value, fact.dtype)]


@rule("ScatterND", "ScatterElements", "Scatter")
def scatter(call: Call) -> list[Fact]:
    """The first input with some elements replaced."""
    fact, index, update = call.fact(0), call.fact(1), call.fact(2)
    result = Fact(fact.dtype, fact.shape)
    reduction = call.node.attributes.get("reduction")
    if (reduction is not None and reduction.as_string() != "none") or fact.content is None or update.content is None:
        return [result]
    if not index.known or index.content is None or fact.content.size > MOST_ELEMENTS:
        return [result]
    content, new = fact.content.astype(object), update.content.astype(object)
    try:
        if call.node.op_type == "ScatterND":
            for place in np.ndindex(*index.content.shape[:-1]):
                content[tuple(index.content[place])] = new[place]
        else:
            axis = normalized(call.integer("axis", 0), content.ndim)
            for place in np.ndindex(*index.content.shape):
                content[(*place[:axis], int(index.content[place]), *place[axis + 1 :])] = new[place]
    except (IndexError, ValueError):
        return [result]
    return [of_array(content, fact.dtype)]


@rule("Range")
def range_(call: Call) -> list[Fact]:
    """Numbers from a start, by steps."""
    dtype = next((call.fact(index).dtype for index in range(3) if call.fact(index).dtype is not None), None)
    ends = [call.integers(index) for index in range(3)]
    if not is_integer(dtype) or any(end is None or len(end) != 1 for end in ends):
        return [Fact(dtype, (call.space.fresh(),))]
    start, limit, step = (end[0] for end in ends if end is not None)
    if not isinstance(step, int) or step == 0:
        return [Fact(dtype, (call.space.fresh(),))]
    count = larger(call.space, (limit - start) if step > 0 else (start - limit), 0)
    if abs(step) != 1:
        count = quotient(call.space, count + (abs(step) - 1), abs(step))
    if isinstance(count, int) and count <= MOST_ELEMENTS:
        return [of_elements([start + step * index for index in range(count)], (count,), dtype)]
    return [Fact(dtype, (count,), None, Affine(start, (step,)))]


@rule("ConstantOfShape")
def constant_of_shape(call: Call) -> list[Fact]:
    """One number everywhere."""
    attribute = call.node.attributes.get("value")
    tensor = attribute.as_tensor() if attribute is not None else None
    dtype = tensor.dtype if tensor is not None else ir.DataType.FLOAT
    value: Element = element(np.asarray(tensor.numpy()).reshape(-1)[0]) if tensor is not None else 0.0
    sizes = call.integers(0)
    if sizes is None:
        length = call.fact(0).static
        return [Fact(dtype, tuple(call.space.fresh() for _ in range(length[0])) if length else None)]
    plain = np.dtype(dtype.numpy()).kind in "biuf"
    return [filled(tuple(sizes), value, dtype) if plain else Fact(dtype, tuple(sizes))]


@rule("Pad")
def pad(call: Call) -> list[Fact]:
    """Elements before and behind."""
    fact = call.fact(0)
    if fact.shape is None:
        return [Fact(fact.dtype)]
    amounts = pads(call)
    if amounts is None:
        return [Fact(fact.dtype, tuple(call.space.fresh() for _ in fact.shape))]
    sizes = tuple(size + before + behind for size, (before, behind) in zip(fact.shape, amounts, strict=True))
    if not any(before != 0 or behind != 0 for before, behind in amounts):
        return [fact]
    return [Fact(fact.dtype, sizes)]


def pads(call: Call) -> list[tuple[Scalar, Scalar]] | None:
    """What Pad adds before and behind, one pair an axis; None where that is not known."""
    sizes, amounts = call.shape(0), call.integers(1, "pads" if call.opset > 1 else "paddings")
    if amounts is None or (sizes is None and call.has(3)):
        return None
    rank = len(amounts) // 2 if sizes is None else len(sizes)
    axes = call.numbers(3) if call.has(3) else list(range(rank))
    if axes is None or len(amounts) != 2 * len(axes) or not all(-rank <= axis < rank for axis in axes):
        return None
    result: list[tuple[Scalar, Scalar]] = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        result[normalized(axis, rank)] = (amounts[place], amounts[place + len(axes)])
    return result


@rule("TopK")
def top_k(call: Call) -> list[Fact]:
    """The largest along an axis, and where they are."""
    fact, count = call.fact(0), call.integers(1, "k")
    if fact.shape is None:
        return [Fact(fact.dtype), Fact(_INT64)]
    axis = normalized(call.integer("axis", -1), len(fact.shape))
    number = count[0] if count else call.space.fresh()
    sizes = (*fact.shape[:axis], number, *fact.shape[axis + 1 :])
    return [Fact(fact.dtype, sizes), Fact(_INT64, sizes)]


@rule("OneHot")
def one_hot(call: Call) -> list[Fact]:
    """A new axis."""
    sizes, depth = call.shape(0), call.integers(1)
    if sizes is None:
        return [Fact(call.fact(2).dtype)]
    axis = normalized(call.integer("axis", -1), len(sizes) + 1)
    size = depth[0] if depth else call.space.fresh()
    return [Fact(call.fact(2).dtype, (*sizes[:axis], size, *sizes[axis:]))]


@rule("NonZero")
def non_zero(call: Call) -> list[Fact]:
    """Indices of what is not zero."""
    fact = call.fact(0)
    if fact.known and fact.content is not None and fact.content.ndim:
        return [of_array(np.array(np.nonzero(fact.content), np.int64), _INT64)]
    value = fact.uniform
    if fact.rank == 1 and fact.shape is not None and value is not None and not isinstance(value, Polynomial) and value:
        return [Fact(_INT64, (1, fact.shape[0]), None, Affine(0, (0, 1)))]
    return [Fact(_INT64, None if not fact.rank else (fact.rank, call.space.fresh()))]


@rule("CumSum")
def cumulative(call: Call) -> list[Fact]:
    """Running sums along an axis."""
    fact, axes = call.fact(0), call.numbers(1)
    if fact.shape is not None and fact.uniform == 0:
        return [filled(fact.shape, fact.uniform, fact.dtype)]
    result = Fact(fact.dtype, fact.shape)
    if not is_integer(fact.dtype) or fact.content is None or not axes or fact.content.dtype == object:
        return [result]
    if call.integer("exclusive", 0) or call.integer("reverse", 0):
        return [result]
    return [of_array(np.cumsum(fact.content, axes[0], dtype=fact.content.dtype), fact.dtype)]


@rule("Compress", "Unique")
def chosen(call: Call) -> list[Fact]:
    """As many as turn out."""
    return [Fact(call.fact(0).dtype)]


@rule("EyeLike")
def eye(call: Call) -> list[Fact]:
    """The input's shape."""
    return [Fact(None, call.shape(0))]


def covers(size: Scalar, start: Scalar, end: Scalar, step: int) -> bool:
    """Whether a slice takes an axis whole, as it is."""
    if step != 1:
        return False
    begins = start == 0 or (isinstance(start, int) and start < 0 and at_most(size, -start))
    return begins and at_most(size, end)


def is_identity_index(index: Fact, size: Scalar) -> bool:
    """Whether indices are 0, 1, ... up to the last of an axis."""
    if index.shape != (size,):
        return False
    if size == 1:
        return index.content is not None and element(index.content.flat[0]) in (0, -1)
    rule_ = index.as_affine()
    return rule_ is not None and rule_.base == 0 and rule_.steps == (1,)
