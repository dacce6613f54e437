"""Operators that lay elements out anew: reshaping, transposing, joining, parting, repeating."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols.elementwise import stretched
from onnxopt.analysis.symbols.expressions import Polynomial, Scalar, low, product
from onnxopt.analysis.symbols.facts import Affine, Fact, Shape, filled, is_integer, of_array, same
from onnxopt.analysis.symbols.functions import divided, quotient
from onnxopt.analysis.symbols.rules import Call, broadcast_shapes, normalized, only_numbers, rule


@rule("Identity")
def identity(call: Call) -> list[Fact]:
    """The same again."""
    return [call.fact(0)]


@rule("Reshape")
def reshape(call: Call) -> list[Fact]:
    """The elements in order, in another shape."""
    fact, target = call.fact(0), call.integers(1, "shape")
    if target is None:
        length = call.fact(1).static
        return [Fact(fact.dtype, tuple(call.space.fresh() for _ in range(length[0])) if length else None)]
    return [laid_out(fact, reshaped(call, fact.shape, target))]


def reshaped(call: Call, shape: Shape | None, target: Sequence[Scalar]) -> Shape:
    """Shape that Reshape gives.

    An entry that is 0 at run time means a copied size. An expression is taken as it is only where it is 0 for empty
    tensors alone: where it is one of the sizes, or divides their product.
    """
    result: list[Scalar | None] = []
    for index, entry in enumerate(target):
        if entry == 0 and not call.integer("allowzero", 0):
            result.append(shape[index] if shape is not None and index < len(shape) else call.space.fresh())
        elif entry == -1:
            result.append(None)
        else:
            result.append(entry if _is_size(call, entry, shape) else call.space.fresh())
    if None in result:
        known = product(size for size in result if size is not None)
        inferred = None if shape is None else divided(call.space, product(shape), known)
        if inferred is None and shape is not None:
            inferred = _without_common(call, shape, [size for size in result if size is not None])
        result = [(call.space.fresh() if inferred is None else inferred) if size is None else size for size in result]
    return tuple(size if size is not None else call.space.fresh() for size in result)


def _is_size(call: Call, entry: Scalar, shape: Shape | None) -> bool:
    """Whether an entry of a target is the size that it asks for."""
    least = low(entry)
    if least is None or least < 0 or call.integer("allowzero", 0):
        return least is not None and least >= 0
    if least >= 1 or shape is None:
        return least >= 1
    return entry in shape or divided(call.space, product(shape), entry) is not None


def _without_common(call: Call, shape: Shape, known: Sequence[Scalar]) -> Scalar | None:
    """The size that is left over, where sums are among the sizes: what occurs on both sides is left out."""
    left, by = list(shape), []
    for size in known:
        if size in left:
            left.remove(size)
        else:
            by.append(size)
    inferred = divided(call.space, product(left), product(by))
    if inferred is None and only_numbers(by) is not None:
        whole = product(left)
        return quotient(call.space, whole, product(by))
    return inferred


def laid_out(fact: Fact, shape: Shape) -> Fact:
    """The elements of a tensor, in order, in a shape with as many."""
    static = Fact(None, shape).static
    if fact.content is not None and static is not None and math.prod(static) == fact.content.size:
        return of_array(fact.content.reshape(static), fact.dtype)
    found = fact.affine
    if found is None or fact.shape is None:
        return Fact(fact.dtype, shape)
    if found.uniform:
        return filled(shape, found.base, fact.dtype)
    moving = [(step, size) for step, size in zip(found.steps, fact.shape, strict=True) if size != 1]
    if [size for _, size in moving] != [size for size in shape if size != 1]:
        return Fact(fact.dtype, shape)
    steps = iter(step for step, _ in moving)
    return Fact(fact.dtype, shape, None, Affine(found.base, tuple(0 if size == 1 else next(steps) for size in shape)))


@rule("Flatten")
def flatten(call: Call) -> list[Fact]:
    """Two axes of all."""
    fact = call.fact(0)
    if fact.shape is None:
        return [Fact(fact.dtype, (call.space.fresh(), call.space.fresh()))]
    axis = call.integer("axis", 1)
    axis = axis + len(fact.shape) if axis < 0 else axis
    return [laid_out(fact, (product(fact.shape[:axis]), product(fact.shape[axis:])))]


@rule("Unsqueeze")
def unsqueeze(call: Call) -> list[Fact]:
    """Axes of size 1 come in."""
    fact, axes = call.fact(0), call.numbers(1, "axes")
    if fact.shape is None or axes is None:
        return [Fact(fact.dtype)]
    rank = len(fact.shape) + len(axes)
    new = {normalized(axis, rank) for axis in axes}
    sizes = iter(fact.shape)
    return [laid_out(fact, tuple(1 if axis in new else next(sizes) for axis in range(rank)))]


@rule("Squeeze")
def squeeze(call: Call) -> list[Fact]:
    """Axes of size 1 go: those named, or all."""
    fact = call.fact(0)
    if fact.shape is None:
        return [Fact(fact.dtype)]
    if call.given(1, "axes"):
        axes = call.numbers(1, "axes")
        if axes is None:
            return [Fact(fact.dtype)]
        gone = {normalized(axis, len(fact.shape)) for axis in axes}
    elif any(isinstance(size, Polynomial) for size in fact.shape):
        return [Fact(fact.dtype)]
    else:
        gone = {axis for axis, size in enumerate(fact.shape) if size == 1}
    shape = tuple(size for axis, size in enumerate(fact.shape) if axis not in gone)
    lone = tuple(1 if axis in gone else size for axis, size in enumerate(fact.shape))
    return [laid_out(replace(fact, shape=lone), shape)]


@rule("Transpose")
def transpose(call: Call) -> list[Fact]:
    """Axes in another order."""
    fact = call.fact(0)
    if fact.shape is None:
        return [Fact(fact.dtype)]
    attribute = call.node.attributes.get("perm")
    order = list(attribute.as_ints()) if attribute is not None else list(reversed(range(len(fact.shape))))
    if fact.content is not None:
        return [of_array(np.transpose(fact.content, order), fact.dtype)]
    found = fact.affine
    moved = None if found is None else Affine(found.base, tuple(found.steps[axis] for axis in order))
    return [Fact(fact.dtype, tuple(fact.shape[axis] for axis in order), None, moved)]


@rule("Expand")
def expand(call: Call) -> list[Fact]:
    """Repeated along axes of size 1."""
    fact, target = call.fact(0), call.integers(1)
    if target is None:
        length = call.fact(1).static
        if fact.shape is None or not length:
            return [Fact(fact.dtype)]
        return [Fact(fact.dtype, tuple(call.space.fresh() for _ in range(max(length[0], len(fact.shape)))))]
    shape = broadcast_shapes(call.space, (fact.shape, tuple(target)), meet=False)
    return [Fact(fact.dtype) if shape is None else stretched(fact, shape, fact.dtype)]


@rule("Tile")
def tile(call: Call) -> list[Fact]:
    """Repeated as a whole along each axis."""
    fact, repeats = call.fact(0), call.integers(1)
    if fact.shape is None:
        return [Fact(fact.dtype)]
    if repeats is None or len(repeats) != len(fact.shape):
        return [Fact(fact.dtype, tuple(call.space.fresh() for _ in fact.shape))]
    shape = tuple(size * count for size, count in zip(fact.shape, repeats, strict=True))
    counts = only_numbers(repeats)
    if counts is not None and fact.content is not None and fact.content.size * math.prod(counts) <= 4096:
        return [of_array(np.tile(fact.content, counts), fact.dtype)]
    found = fact.as_affine()
    if found is not None:
        lone = [size == 1 or count == 1 for size, count in zip(fact.shape, repeats, strict=True)]
        if found.uniform:
            return [filled(shape, found.base, fact.dtype)]
        if all(fine or step == 0 for fine, step in zip(lone, found.steps, strict=True)):
            return [Fact(fact.dtype, shape, None, found)]
    return [Fact(fact.dtype, shape)]


@rule("Concat")
def concat(call: Call) -> list[Fact]:
    """Tensors one after the other along an axis."""
    facts = [call.fact(index) for index in range(len(call.inputs))]
    dtype = next((fact.dtype for fact in facts if fact.dtype is not None), None)
    shapes = [fact.shape for fact in facts if fact.shape is not None]
    if not shapes:
        return [Fact(dtype)]
    axis = normalized(call.integer("axis", 1), len(shapes[0]))
    sizes = [fact.shape[axis] if fact.shape is not None else call.space.fresh() for fact in facts]
    total: Scalar = 0
    for size in sizes:
        total = total + size
    shape = tuple(total if index == axis else _common(call, shapes, index) for index in range(len(shapes[0])))
    contents = [fact.content for fact in facts if fact.content is not None]
    if len(contents) == len(facts) and sum(content.size for content in contents) <= 4096:
        symbolic = any(content.dtype == object for content in contents)
        arrays = [content.astype(object) if symbolic else content for content in contents]
        try:
            return [of_array(np.concatenate(arrays, axis), dtype)]
        except ValueError:  # the runtime leaves empty tensors out
            return [Fact(dtype)]
    return [_joined(facts, shape, axis, dtype)]


def _joined(facts: Sequence[Fact], shape: Shape, axis: int, dtype: ir.DataType | None) -> Fact:
    """Tensors that go on with one another's rule."""
    unknown = Fact(dtype, shape)
    found = [
        (fact.shape, rule_) for fact in facts if fact.shape is not None and (rule_ := fact.as_affine()) is not None
    ]
    if len(found) != len(facts):
        return unknown
    (start, first), *rest = found
    base, at, steps = first.base, start[axis], list(first.steps)
    if all(rule_.uniform and same(rule_.base, base) for _, rule_ in found):
        return filled(shape, base, dtype)
    if not is_integer(dtype):
        return unknown
    for sizes, rule_ in rest:
        if at == 1:  # one element along the axis: whatever leads to the next is the step
            steps[axis] = rule_.base - base  # type: ignore[operator, assignment]
        ahead = list(rule_.steps)
        if sizes[axis] == 1:
            ahead[axis] = steps[axis]
        if steps != ahead or base + steps[axis] * at != rule_.base:  # type: ignore[operator]
            return unknown
        at = at + sizes[axis]
    return Fact(dtype, shape, None, Affine(base, tuple(steps)))


def _common(call: Call, shapes: Sequence[Shape], axis: int) -> Scalar:
    """The size that all share along an axis, a number if one says so.

    The runtime leaves out tensors without elements, so one with a size of 0 says nothing.
    """
    sizes = [shape[axis] for shape in shapes if 0 not in shape]
    for size in sizes[1:]:
        call.space.meet(sizes[0], size)
    return next((size for size in sizes if isinstance(size, int)), sizes[0] if sizes else call.space.fresh())


@rule("Split")
def split(call: Call) -> list[Fact]:
    """Parts along an axis."""
    fact, count = call.fact(0), len(call.node.outputs)
    if fact.shape is None:
        return [Fact(fact.dtype)] * count
    axis = normalized(call.integer("axis", 0), len(fact.shape))
    sizes = _parts(call, fact.shape[axis], count)
    numbers = only_numbers(sizes)
    if fact.content is not None and numbers is not None and sum(numbers) == fact.content.shape[axis]:
        ends = [int(end) for end in np.cumsum(numbers)[:-1]]
        return [of_array(part, fact.dtype) for part in np.split(fact.content, ends, axis)]
    shapes = [tuple(size if i == axis else s for i, s in enumerate(fact.shape)) for size in sizes]
    value = fact.affine.base if fact.affine is not None and fact.affine.uniform else None
    return [Fact(fact.dtype, shape) if value is None else filled(shape, value, fact.dtype) for shape in shapes]


def _parts(call: Call, size: Scalar, count: int) -> list[Scalar]:
    if call.given(1, "split"):
        parts = call.integers(1, "split")
        return parts if parts is not None and len(parts) == count else [call.space.fresh() for _ in range(count)]
    if isinstance(size, int):
        whole = -(-size // count)
        return [max(0, min(whole, size - whole * index)) for index in range(count)]
    part = divided(call.space, size, count)
    return [part if part is not None else call.space.fresh() for _ in range(count)]


@rule("DepthToSpace", "SpaceToDepth")
def blocks(call: Call) -> list[Fact]:
    """Channels against space."""
    fact, block = call.fact(0), call.integer("blocksize", 1)
    if fact.shape is None or len(fact.shape) != 4 or block < 1:
        return [Fact(fact.dtype)]
    batch, channels, *space = fact.shape
    if call.node.op_type == "DepthToSpace":
        return [Fact(fact.dtype, (batch, quotient(call.space, channels, block * block), *(s * block for s in space)))]
    return [Fact(fact.dtype, (batch, channels * block * block, *(quotient(call.space, s, block) for s in space)))]
