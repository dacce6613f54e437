"""Nodes that only lay their input's elements out in another shape, or transpose them, whatever they are written as."""

from collections.abc import Callable
from typing import NamedTuple

import onnx_ir as ir

from onnxopt.analysis.symbols.expressions import Scalar, low, product
from onnxopt.analysis.symbols.facts import Affine, Fact, Shape, span
from onnxopt.analysis.symbols.rules import Call, normalized

Root = Callable[[ir.Value], ir.Value]
"""What is read in place of a value."""

Facts = Callable[[ir.Value | None], Fact]

LAYS_OUT = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze"))
"""Operators that keep the order of their first input's elements, whatever shape they give them."""


class View(NamedTuple):
    """A value, and the order in which its axes are taken (None: as they are), whose elements are those of another."""

    source: ir.Value
    order: tuple[int, ...] | None


def view(call: Call, of: Facts, root: Root) -> View | None:
    """What the output of a node is a view of, if that is not just its input; None else.

    Found are lookups by indices that count through everything, and transpositions between two reshapes.
    """
    node = call.node
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Reshape":
        return _transposed(call, of, root)
    counts = {"Gather": _gather_counts, "GatherND": _gather_nd_counts}.get(node.op_type)
    source = node.inputs[0] if node.inputs else None
    if counts is None or source is None or not counts(call, of, root):
        return None
    return View(laid_out_from(root(source), of, root), None)


def laid_out_from(value: ir.Value, of: Facts, root: Root) -> ir.Value:
    """The value whose elements, in the same order, a chain of nodes gives: reshapes, and what moves axes of size 1."""
    node = value.producer()
    while node is not None and node.domain in ("", "ai.onnx") and node.inputs and node.inputs[0] is not None:
        if node.op_type not in LAYS_OUT and not _keeps_order(node, of(node.inputs[0]).shape):
            break
        value = root(node.inputs[0])
        node = value.producer()
    return value


def _keeps_order(node: ir.Node, shape: Shape | None) -> bool:
    """Whether a Transpose moves nothing but axes of size 1."""
    if node.op_type != "Transpose" or shape is None:
        return False
    moved = [axis for axis in _order(node, len(shape)) if shape[axis] != 1]
    return moved == sorted(moved)


def _order(node: ir.Node, rank: int) -> list[int]:
    attribute = node.attributes.get("perm")
    return list(attribute.as_ints()) if attribute is not None else list(reversed(range(rank)))


def inserted_axes(shape: Shape, result: Shape) -> list[int] | None:
    """The axes of size 1 that make one shape of another; None where that is not all."""
    axes, left = [], list(shape)
    for axis, size in enumerate(result):
        if left and left[0] == size:
            left.pop(0)
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return None if left else axes


def _gather_counts(call: Call, of: Facts, root: Root) -> bool:
    shape, index = call.shape(0), call.fact(1)
    if shape is None or index.shape is None:
        return False
    rule, size = index.as_affine(), shape[normalized(call.integer("axis", 0), len(shape))]
    return rule is not None and _counts(rule, index.shape, size)


def _gather_nd_counts(call: Call, of: Facts, root: Root) -> bool:
    shape, index = call.shape(0), call.fact(1)
    if shape is None or not index.shape or call.integer("batch_dims", 0) or call.node.inputs[1] is None:
        return False
    parts = _parts(root(call.node.inputs[1]), index, of)
    if parts is None or len(parts) != index.shape[-1]:
        return False
    base: Scalar = 0
    steps: list[Scalar] = [0] * (len(index.shape) - 1)
    for place, (rule, fact) in enumerate(parts):
        stride, first = product(shape[place + 1 : len(parts)]), rule.base
        start = span(fact)[0]
        least = None if start is None else low(start)
        if least is None or least < 0 or isinstance(first, float):
            return False
        base = base + stride * first
        steps = [step + stride * more for step, more in zip(steps, rule.steps, strict=False)]
    return _counts(Affine(base, tuple(steps)), index.shape[:-1], product(shape[: len(parts)]))


def _parts(value: ir.Value, index: Fact, of: Facts) -> list[tuple[Affine, Fact]] | None:
    """Tuples of indices taken apart: one rule an entry."""
    node, rank = value.producer(), len(index.shape or ())
    facts = [index]
    if node is not None and node.op_type == "Concat" and node.attributes.get_int("axis", 0) in (-1, rank - 1):
        facts = [of(each) for each in node.inputs]
    if any(fact.shape is None or fact.shape[-1:] != (1,) for fact in facts):
        return None
    rules = [fact.as_affine() for fact in facts]
    found = [(rule, fact) for rule, fact in zip(rules, facts, strict=True) if rule is not None]
    return found if len(found) == len(facts) else None


def _counts(rule: Affine, shape: Shape, size: Scalar) -> bool:
    """Whether indices are 0, 1, 2, ... in order, up to the last."""
    if rule.base != 0 or product(shape) != size:
        return False
    strides = (product(shape[axis + 1 :]) for axis in range(len(shape)))
    moving = zip(rule.steps, strides, shape, strict=True)
    return all(step == stride for step, stride, length in moving if length != 1)


def _transposed(call: Call, of: Facts, root: Root) -> View | None:
    """Axes merged, transposed and parted again, where one transposition does the same."""
    middle = _before(call.node, "Transpose", root)
    first = None if middle is None else _before(middle, "Reshape", root)
    if middle is None or first is None or first.inputs[0] is None or len(middle.outputs[0].uses()) != 1:
        return None
    source = root(first.inputs[0])
    shape, merged, result = of(source).shape, of(first.outputs[0]).shape, of(call.node.outputs[0]).shape
    if shape is None or merged is None or result is None:
        return None
    order, runs = _order(middle, len(merged)), _runs(shape, merged)
    if runs is None:
        return None
    axes = tuple(axis for place in order for axis in runs[place])
    return View(source, axes) if tuple(shape[axis] for axis in axes) == result else None


def _before(node: ir.Node, op: str, root: Root) -> ir.Node | None:
    """The node that makes what a node reads first, if it is of a kind."""
    producer = None if node.inputs[0] is None else root(node.inputs[0]).producer()
    return producer if producer is not None and producer.op_type == op and producer.graph is node.graph else None


def _runs(shape: Shape, merged: Shape) -> list[range] | None:
    """Which axes of a shape make each axis of one that merges neighbours; None where it does more than that."""
    runs: list[range] = []
    start = 0
    for size in merged:
        end, total = start, product(())
        while total != size and end < len(shape):
            total, end = total * shape[end], end + 1
        if total != size:
            return None
        runs.append(range(start, end))
        start = end
    if any(size != 1 for size in shape[start:]) or not runs:
        return None
    runs[-1] = range(runs[-1].start if len(runs[-1]) else start, len(shape))
    return runs
