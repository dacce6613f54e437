"""Values whose elements may as well be repeated by whoever reads them."""

from collections.abc import Iterable

import onnx_ir as ir

from onnxopt.analysis.symbols.repeats import stretched_from
from onnxopt.analysis.symbols.rules import broadcast_shapes
from onnxopt.analysis.symbols.walk import Symbols

BROADCASTS = frozenset((
    "Add", "Sub", "Mul", "Div", "Mod", "Pow", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater",
    "GreaterOrEqual", "Where", "Min", "Max", "Sum", "Mean",
))  # fmt: skip
"""Operators that repeat all their inputs along axes of size 1, or along missing ones (from opset 7 on)."""

_MOST_INPUTS = 8
"""Nodes with more inputs are left alone: each input is weighed against all others."""


def loose_values(found: Symbols, nodes: Iterable[ir.Node]) -> set[ir.Value]:
    """Values that may be given with size 1 where they only repeat: their readers come to the same.

    Each reader broadcasts, and either gets the full size from another input or is itself read in the same way. All of
    the values may be given so at once. Values with known elements are left out.

    Args:
        nodes: those that matter, each after those that it reads.
    """
    if found.opset < 8:  # Max, Min, Sum and Mean repeat nothing before
        return set()
    nodes = list(nodes)
    shrinking = _shrinking(found, nodes)
    fitting: dict[ir.Value, bool] = {}
    loose: set[ir.Value] = set()
    for node in reversed(nodes):
        for value in node.outputs:
            if fitting.get(value, False) and not value.is_graph_output() and value in shrinking:
                loose.add(value)
        able = _able(found, node, loose, shrinking)
        for read in node.inputs:
            if read is not None:
                fitting[read] = fitting.get(read, True) and read in able
    return loose


def _shrinking(found: Symbols, nodes: Iterable[ir.Node]) -> set[ir.Value]:
    """Values that are smaller when what repeats is not repeated, so that it is worth while to ask for it."""
    shrinking: set[ir.Value] = set()
    for node in nodes:
        value = node.outputs[0]
        fact = found.of(value)
        if fact.content is not None or fact.shape is None or node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Expand" or isinstance(fact.uniform, int | float):
            shrinking.add(value)
        elif node.op_type in BROADCASTS:
            index = stretched_from(found.call(node), fact)
            repeats = index is not None and found.of(node.inputs[index]).shape != fact.shape
            if repeats or any(read in shrinking for read in node.inputs):
                shrinking.add(value)
    return shrinking


def _able(found: Symbols, node: ir.Node, loose: set[ir.Value], shrinking: set[ir.Value]) -> set[ir.Value]:
    """Inputs of a node that need not have their full size."""
    if node.op_type not in BROADCASTS or node.domain not in ("", "ai.onnx"):
        return set()
    inputs = [value for value in node.inputs if value is not None]
    if node.outputs[0] in loose:
        return set(inputs)
    shape = found.of(node.outputs[0]).shape
    if shape is None or len(set(inputs)) != len(inputs) or len(inputs) > _MOST_INPUTS:
        return set()
    full = list(inputs)
    for value in (value for value in inputs if value in shrinking):
        rest = [found.of(other).shape for other in full if other is not value]
        if broadcast_shapes(found.space, rest) == shape:
            full.remove(value)
    return set(inputs).difference(full)
