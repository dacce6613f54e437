"""What onnx-ir cannot hold, kept beside the graph: sparse initializers, training info, map types."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

_KEY = "onnxopt.carried"


@dataclass
class _GraphExtras:
    sparse_initializers: list[onnx.SparseTensorProto] = field(default_factory=list)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    """Types with a map inside, by the name of their value."""


@dataclass
class Extras:
    """What was taken off a message: per graph in walking order, and the training info."""

    graphs: list[_GraphExtras]
    training_info: list[onnx.TrainingInfoProto]


def take(proto: onnx.ModelProto) -> Extras:
    """Remove from the message what onnx-ir cannot hold."""
    extras = Extras([_take_graph(graph) for graph in proto_graphs(proto.graph)], list(proto.training_info))
    proto.ClearField("training_info")
    return extras


def attach(model: ir.Model, extras: Extras) -> None:
    """Put what was taken beside the graphs it belongs to."""
    model.meta[_KEY] = extras.training_info
    for graph, graph_extras in zip(_graphs(model.graph), extras.graphs, strict=True):
        if graph_extras.sparse_initializers or graph_extras.types:
            graph.meta[_KEY] = graph_extras


def restore(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Put it back into a message made from the model."""
    proto.training_info.extend(model.meta.get(_KEY, []))
    for graph, graph_proto in zip(_graphs(model.graph), proto_graphs(proto.graph), strict=True):
        extras = graph.meta.get(_KEY)
        if extras is None:
            continue
        graph_proto.sparse_initializer.extend(extras.sparse_initializers)
        for info in (*graph_proto.input, *graph_proto.output, *graph_proto.value_info):
            if info.name in extras.types:
                info.type.CopyFrom(extras.types[info.name])


def _take_graph(graph: onnx.GraphProto) -> _GraphExtras:
    extras = _GraphExtras(list(graph.sparse_initializer))
    graph.ClearField("sparse_initializer")
    for info in (*graph.input, *graph.output, *graph.value_info):
        if _has_map(info.type):
            extras.types[info.name] = onnx.TypeProto()
            extras.types[info.name].CopyFrom(info.type)
            info.ClearField("type")
    return extras


def _has_map(type_: onnx.TypeProto) -> bool:
    while True:
        match type_.WhichOneof("value"):
            case "map_type":
                return True
            case "sequence_type":
                type_ = type_.sequence_type.elem_type
            case "optional_type":
                type_ = type_.optional_type.elem_type
            case _:
                return False


def proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every subgraph, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from proto_graphs(body)


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _graphs(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    yield from _graphs(body)
