"""Regions: some nodes of a model as a model of their own, with lazily shared weights."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from onnxopt import carried
from onnxopt.model import Model
from onnxopt.nodes import inner_graphs, with_inner

TypeAndShape = tuple[ir.DataType, Sequence[int | str | None]]


def region_inputs(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """Values that the nodes (subgraphs included) read and do not make, weights not counted; in reading order."""
    nodes = list(nodes)
    made = {value for node in nodes for inner in with_inner(node) for value in inner.outputs}
    bound = {value for node in nodes for graph in inner_graphs(node) for value in graph.inputs}
    read: dict[ir.Value, None] = {}
    for node in nodes:
        for inner in with_inner(node):
            read.update((v, None) for v in inner.inputs if v is not None and v not in made and v not in bound)
        for graph in inner_graphs(node):
            read.update((v, None) for v in graph.outputs if v not in made and v not in bound)
    return [value for value in read if value.const_value is None or value.is_graph_input()]


def region_outputs(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """Values made by the nodes that others read or that the graph gives out."""
    nodes = list(nodes)
    inside = {inner for node in nodes for inner in with_inner(node)}
    return [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in inside for user, _ in value.uses())
    ]


def region_model(model: Model, nodes: Sequence[ir.Node], types: Mapping[str, TypeAndShape]) -> Model:
    """The nodes as a model: the values they read become inputs, those that others read become outputs.

    Args:
        model: where the nodes come from; its operator sets are kept.
        nodes: nodes of one graph, in an order in which they can run.
        types: element type and shape of the values at the border, by name.
    """
    inputs, outputs = region_inputs(nodes), region_outputs(nodes)
    graph = onnx.GraphProto(name="region")
    for into, values in ((graph.input, inputs), (graph.output, outputs)):
        into.extend(_value_info(value, types) for value in values)
    weights = _weights_read(nodes)
    graph.input.extend(ir.serde.serialize_value(weight) for weight in weights)
    graph.node.extend(carried.node_proto(node) for node in nodes)
    proto = onnx.ModelProto(ir_version=model.ir.ir_version, graph=graph)
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.ir.opset_imports.items())
    extras = carried.take(proto)
    region = ir.from_proto(proto)
    carried.attach(region, extras)
    for node, copy in zip(nodes, region.graph, strict=True):
        _share_weights(node, copy)
    stand_ins = list(region.graph.inputs)[len(inputs) :]
    del region.graph.inputs[len(inputs) :]
    for value, weight in zip(stand_ins, weights, strict=True):
        value.const_value, value.shape, value.type = weight.const_value, weight.shape, weight.type
        region.graph.initializers.add(value)
    return Model(region)


def _share_weights(node: ir.Node, copy: ir.Node) -> None:
    """Let the subgraphs of a copied node have the weights themselves: in a message they lose the way to their file."""
    for graph, other in zip(inner_graphs(node), inner_graphs(copy), strict=True):
        for name, weight in graph.initializers.items():
            other.initializers[name].const_value = weight.const_value


def around(node: ir.Node) -> Iterator[ir.Node]:
    """The node and its neighbours in the same graph, nearest first."""
    seen, queue = {node}, deque([node])
    while queue:
        here = queue.popleft()
        yield here
        for near in (*here.predecessors(), *here.successors()):
            if near not in seen and near.graph is node.graph:
                seen.add(near)
                queue.append(near)


def _weights_read(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    read: dict[ir.Value, None] = {}
    for node in nodes:
        for inner in with_inner(node):
            read.update((v, None) for v in inner.inputs if v is not None and v.const_value is not None)
    inside = {id(graph) for node in nodes for graph in inner_graphs(node)}
    return [v for v in read if v.is_initializer() and not v.is_graph_input() and id(v.graph) not in inside]


def _value_info(value: ir.Value, types: Mapping[str, TypeAndShape]) -> onnx.ValueInfoProto:
    name = value.name or ""
    if name in types:
        dtype, shape = types[name]
        return onnx.helper.make_tensor_value_info(name, int(dtype), list(shape))
    return ir.serde.serialize_value(value)
