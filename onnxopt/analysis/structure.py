"""Walking a graph and reading its constants: what the analyses share."""

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.nodes import bodies, tensor_value

_LISTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""Attributes of Constant that hold plain numbers, and the type of the tensor that they stand for."""


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Every value that a node reads: its inputs, then what its subgraphs read (their own values too)."""
    yield from (value for value in node.inputs if value is not None)
    for body in bodies(node):
        for inner in body.all_nodes():
            yield from (value for value in inner.inputs if value is not None)
        for graph in (body, *body.subgraphs()):
            yield from graph.outputs


def topological(graph: ir.Graph) -> list[ir.Node]:
    """The graph's own nodes, each after those whose values it or its subgraphs read.

    As near to the stored order as that allows; exactly it where it is sorted already. Nodes on a cycle, which
    no valid model has, come last in stored order. Linear in nodes for a sorted graph, n log n else.
    """
    nodes = list(graph)
    place = {node: index for index, node in enumerate(nodes)}
    needed = [{place[p] for v in reads(n) if (p := v.producer()) is not None and p in place} for n in nodes]
    if all(max(before, default=-1) < index for index, before in enumerate(needed)):
        return nodes
    users: list[list[int]] = [[] for _ in nodes]
    for index, before in enumerate(needed):
        for earlier in before:
            users[earlier].append(index)
    missing = [len(before) for before in needed]
    ready = [index for index, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users[index]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, user)
    placed = set(order)
    return [nodes[i] for i in (*order, *(i for i in range(len(nodes)) if i not in placed))]


def ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that it takes to compute some values, in whatever graphs they are."""
    found: set[ir.Node] = set()
    stack = [node for value in values if (node := value.producer()) is not None]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(p for v in reads(node) if (p := v.producer()) is not None and p not in found)
    return found


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node, unread; None for anything else.

    An initializer that is a graph input as well counts as constant: that is how old files list weights.
    """
    if value is None:
        return None
    node = value.producer()
    if node is None:
        return value.const_value if value.is_initializer() else None
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return tensor_value(attribute)
        if name in _LISTS:
            return ir.Tensor(np.asarray(attribute.value, _LISTS[name]))
        if name in ("value_string", "value_strings"):
            one = name == "value_string"
            texts = [attribute.as_string()] if one else list(attribute.as_strings())
            return ir.StringTensor([text.encode() for text in texts], shape=ir.Shape(() if one else (len(texts),)))
    return None


def constant_array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """What an initializer or a Constant node holds, in any of its forms; None for anything else.

    One element an entry: types that numpy lacks come as `ml_dtypes` arrays, strings as bytes.
    A sparse Constant gives None. The whole tensor is read, so ask `constant_tensor` for the size of a large one.
    """
    tensor = constant_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())
