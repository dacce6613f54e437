"""What onnx-ir cannot hold, kept beside the graph and put back.

Sparse initializers, training info, types with a map inside, and attributes with sparse tensors, map types or bytes
that are no UTF-8. Such an attribute stays on its node as an opaque `ir.Attr` whose value is its message.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import onnx
import onnx_ir as ir

from onnxopt.nodes import bodies, with_inner

_KEY = "onnxopt.carried"

ProtoScope: TypeAlias = onnx.GraphProto | onnx.FunctionProto
Scope: TypeAlias = ir.Graph | ir.Function
_M = TypeVar("_M", onnx.SparseTensorProto, onnx.TrainingInfoProto, onnx.TypeProto, onnx.AttributeProto)


@dataclass
class _ScopeExtras:
    sparse: list[onnx.SparseTensorProto] = field(default_factory=list)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    """By the name of their value."""
    attributes: dict[int, list[onnx.AttributeProto]] = field(default_factory=dict)
    """By the place of their node."""


@dataclass
class Extras:
    """What was taken off a message: per graph and function in walking order, and the training info."""

    scopes: list[_ScopeExtras]
    training_info: list[onnx.TrainingInfoProto]


def take(proto: onnx.ModelProto) -> Extras:
    """Remove from the message what onnx-ir cannot hold."""
    extras = Extras([_take_scope(scope) for scope in proto_scopes(proto)], [_copied(t) for t in proto.training_info])
    proto.ClearField("training_info")
    return extras


def put(proto: onnx.ModelProto, extras: Extras) -> None:
    """Put it back into the message, or into one made from the model."""
    proto.training_info.extend(extras.training_info)
    for scope, more in zip(proto_scopes(proto), extras.scopes, strict=True):
        if isinstance(scope, onnx.GraphProto) and more.sparse:
            _undeclare(scope, {tensor.values.name for tensor in more.sparse})
            scope.sparse_initializer.extend(more.sparse)
        _put_types(scope, more.types)
        for at, attributes in more.attributes.items():
            scope.node[at].attribute.extend(attributes)


def attach(model: ir.Model, extras: Extras) -> None:
    """Put what was taken where it belongs in the model."""
    model.meta[_KEY] = extras.training_info
    for scope, more in zip(scopes(model), extras.scopes, strict=True):
        if isinstance(scope, ir.Graph):
            for tensor in more.sparse:
                _release(scope, tensor.values.name)
        if more.sparse or more.types:
            held = {value: more.types[value.name or ""] for value in _values(scope) if value.name in more.types}
            scope.meta[_KEY] = (more.sparse, held)
        if more.attributes:
            for at, node in enumerate(scope):
                for attribute in more.attributes.get(at, ()):
                    node.attributes[attribute.name] = _opaque(attribute)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The message of a model, with all that is carried beside it."""
    extras = Extras([_extras_of(scope) for scope in scopes(model)], model.meta.get(_KEY, []))
    hidden = [(node, attr) for scope in scopes(model) for node in scope for attr in _opaque_attributes(node)]
    for node, attr in hidden:
        del node.attributes[attr.name]
    try:
        proto = ir.to_proto(model)
    finally:
        for node, attr in hidden:
            node.attributes[attr.name] = attr
    put(proto, extras)
    return proto


def node_proto(node: ir.Node) -> onnx.NodeProto:
    """The message of one node and its subgraphs, opaque attributes included; what else is carried is left out."""
    nodes = list(with_inner(node))
    hidden = [(inner, attr) for inner in nodes for attr in _opaque_attributes(inner)]
    for inner, attr in hidden:
        del inner.attributes[attr.name]
    try:
        proto = ir.serde.serialize_node(node)
    finally:
        for inner, attr in hidden:
            inner.attributes[attr.name] = attr
    if hidden:
        for inner, message in zip(nodes, _with_inner_protos(proto), strict=True):
            message.attribute.extend(attr.value for attr in _opaque_attributes(inner))
    return proto


def _with_inner_protos(proto: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node and those of its subgraphs, in the order of `with_inner`."""
    yield proto
    for attribute in list(proto.attribute):
        for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            for node in body.node:
                yield from _with_inner_protos(node)


def sparse_initializers(scope: Scope) -> dict[str, onnx.SparseTensorProto]:
    """The sparse initializers of a graph by name; their readers find a value without producer and tensor."""
    tensors: list[onnx.SparseTensorProto] = scope.meta.get(_KEY, ([], {}))[0]
    return {tensor.values.name: tensor for tensor in tensors}


def training_names(model: ir.Model) -> frozenset[str]:
    """Names that the training info uses: those of main graph values among them must not go."""
    infos: list[onnx.TrainingInfoProto] = model.meta.get(_KEY, [])
    names = {text for info in infos for entry in (*info.initialization_binding, *info.update_binding)
             for text in (entry.key, entry.value)}  # fmt: skip
    for graph in _training_graphs(model):
        if isinstance(graph, onnx.GraphProto):
            names.update(value.name for value in graph.output)
        names.update(name for node in graph.node for name in node.input)
    return frozenset(names - {""})


def training_calls(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """The operators and functions that the training info uses."""
    return {(node.domain, node.op_type, node.overload) for graph in _training_graphs(model) for node in graph.node}


def _training_graphs(model: ir.Model) -> Iterator[ProtoScope]:
    for info in model.meta.get(_KEY, []):
        for graph in (info.initialization, info.algorithm):
            yield from graph_scopes(graph)


def proto_scopes(model: onnx.ModelProto) -> Iterator[ProtoScope]:
    """The main graph, the functions, and after each the subgraphs inside it."""
    outer: list[ProtoScope] = [model.graph, *model.functions]
    for scope in outer:
        yield from graph_scopes(scope)


def scopes(model: ir.Model) -> Iterator[Scope]:
    """The same, in the same order, of a model in memory."""
    outer: list[Scope] = [model.graph, *model.functions.values()]
    for scope in outer:
        yield from _inner(scope)


def graph_scopes(scope: ProtoScope) -> Iterator[ProtoScope]:
    """A graph or function and the subgraphs inside it."""
    yield scope
    for node in scope.node:
        for attribute in node.attribute:
            for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from graph_scopes(body)


def _inner(scope: Scope) -> Iterator[Scope]:
    yield scope
    for node in scope:
        for body in bodies(node):
            yield from _inner(body)


def _take_scope(scope: ProtoScope) -> _ScopeExtras:
    extras = _ScopeExtras()
    if isinstance(scope, onnx.GraphProto):
        extras.sparse = [_copied(tensor) for tensor in scope.sparse_initializer]
        _declare(scope)
    for info in _infos(scope):
        if _has_map(info.type):
            extras.types[info.name] = _copied(info.type)
            info.ClearField("type")
    for at, node in enumerate(scope.node):
        if any(_unholdable(attribute) for attribute in node.attribute):
            extras.attributes[at] = [_copied(attribute) for attribute in node.attribute if _unholdable(attribute)]
            kept = [_copied(attribute) for attribute in node.attribute if not _unholdable(attribute)]
            node.ClearField("attribute")
            node.attribute.extend(kept)
    return extras


def _declare(graph: onnx.GraphProto) -> None:
    """Dense tensors without values in place of sparse ones: their readers find a value of that type."""
    listed = {info.name for info in graph.input}
    for tensor in graph.sparse_initializer:
        if tensor.values.name not in listed:
            kind, name = tensor.values.data_type, tensor.values.name
            stand_in = graph.initializer.add(name=name, data_type=kind, dims=tensor.dims)
            stand_in.data_location = onnx.TensorProto.EXTERNAL
            stand_in.external_data.add(key="location", value=_KEY)
    graph.ClearField("sparse_initializer")


def _undeclare(graph: onnx.GraphProto, names: set[str]) -> None:
    for at in reversed(range(len(graph.initializer))):
        if graph.initializer[at].name in names:
            del graph.initializer[at]


def _release(graph: ir.Graph, name: str) -> None:
    """A value that has a type and readers, but no producer and no dense tensor."""
    value = graph.initializers.get(name)
    if value is not None:
        del graph.initializers[name]
        value.const_value = None


def _extras_of(scope: Scope) -> _ScopeExtras:
    sparse, types = scope.meta.get(_KEY, ([], {}))
    attributes = {at: [attr.value for attr in _opaque_attributes(node)] for at, node in enumerate(scope)}
    return _ScopeExtras(
        sparse,
        {value.name: type_ for value, type_ in types.items() if value.name},
        {at: messages for at, messages in attributes.items() if messages},
    )


def _opaque(attribute: onnx.AttributeProto) -> ir.Attr:
    sparse = attribute.type in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)
    kind = ir.AttributeType(attribute.type) if sparse else ir.AttributeType.UNDEFINED
    return ir.Attr(attribute.name, kind, attribute, doc_string=attribute.doc_string)


def _opaque_attributes(node: ir.Node) -> list[ir.Attr]:
    return [attr for attr in node.attributes.values() if isinstance(attr.value, onnx.AttributeProto)]


def _unholdable(attribute: onnx.AttributeProto) -> bool:
    if attribute.ref_attr_name:
        return False
    kinds = onnx.AttributeProto
    match attribute.type:
        case kinds.SPARSE_TENSOR | kinds.SPARSE_TENSORS:
            return True
        case kinds.TYPE_PROTO | kinds.TYPE_PROTOS:
            return any(_has_map(type_) for type_ in (attribute.tp, *attribute.type_protos))
        case kinds.STRING | kinds.STRINGS:
            return not all(_is_text(text) for text in (attribute.s, *attribute.strings))
        case _:
            return False


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


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


def _put_types(scope: ProtoScope, types: dict[str, onnx.TypeProto]) -> None:
    known = {info.name: info for info in _infos(scope)}
    for name, type_ in types.items():
        info = known[name] if name in known else scope.value_info.add(name=name)
        info.type.CopyFrom(type_)


def _infos(scope: ProtoScope) -> list[onnx.ValueInfoProto]:
    ends = (*scope.input, *scope.output) if isinstance(scope, onnx.GraphProto) else ()
    return [*ends, *scope.value_info]


def _values(scope: Scope) -> Iterator[ir.Value]:
    yield from scope.inputs
    for node in scope:
        yield from node.outputs


def _copied(message: _M) -> _M:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
