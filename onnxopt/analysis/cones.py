"""Digests of all that computes a value: equal ones mean the same computation, whatever a file calls its parts."""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt import carried
from onnxopt.analysis.contents import digest as content_digest
from onnxopt.analysis.contents import joined
from onnxopt.analysis.structure import constant_tensor
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.nodes import bodies, label

Encode: TypeAlias = Callable[[Any], bytes]

_GIVEN_WEIGHTS = 4
"""From this IR version on, an initializer that is a graph input as well is only that input's default."""


@dataclass(frozen=True, eq=False)
class _Scope:
    """Where a node stands.

    Attributes:
        depth: subgraphs around it, up to the main graph or the function.
        versions: of the operator sets, by domain.
        sparse: the graph's sparse initializers by name.
        outer: the scope around it.
    """

    depth: int
    versions: Mapping[str, int]
    sparse: Mapping[str, onnx.SparseTensorProto]
    outer: "_Scope | None" = None


class Cones:
    """Digests of the values of a model's main graph.

    A digest covers the nodes that a value depends on, with operator, version of its operator set, attributes and
    subgraphs, and the functions that they call; how they are wired; constants by element type, shape and content,
    and graph inputs by name and element type. It does not cover names of nodes and inner values, the order of nodes
    in the file, doc strings and metadata, declared shapes, operator sets that the cone does not use, or anything
    downstream. Whether a constant is an initializer or a Constant node makes no difference, and neither does
    how its bytes are stored.

    One object is for one revision of the model: after an edit make a new one, or ask for one that is `updated`.
    Contents of tensors are remembered from object to object, so that only what an edit replaced is read again. Linear
    in nodes; nothing recurses.

    Args:
        model: the model; it is not changed.
        known: digests of some of its values, which are not looked behind.
    """

    def __init__(self, model: Model, known: Mapping[ir.Value, str] | None = None) -> None:
        self._model = model
        self._values = {value: bytes.fromhex(digest) for value, digest in (known or {}).items()}
        self._nodes: dict[ir.Node, bytes] = {}
        self._scopes: dict[ir.Graph | ir.Function, _Scope] = {}
        self._arguments: dict[ir.Value, tuple[int, int]] = {}
        self._enter(model.graph)
        for function in model.ir.functions.values():
            self._enter(function.graph)
            self._scopes[function] = self._scopes[function.graph]
            self._bind(function.inputs, 0)

    def updated(self, contents: Iterable[ir.Value]) -> "Cones":
        """Those of the model after the content of some initializers has changed, and nothing else.

        What is not downstream of them is not computed again.
        """
        found, waiting = copy(self), list(contents)
        found._values, found._nodes = dict(self._values), dict(self._nodes)
        while waiting:
            value = waiting.pop()
            found._values.pop(value, None)
            places = [value.graph, *(node.graph for node, _ in value.uses())]
            if any(graph is not None and graph is not self._model.graph for graph in places):
                return Cones(self._model)
            for node, _ in value.uses():
                if found._nodes.pop(node, None) is not None:
                    waiting += node.outputs
        return found

    def digest(self, value: ir.Value) -> str:
        """The digest of a value of the main graph, in hex.

        Raises:
            ValueError: the value lies inside a subgraph, where what it is depends on the node around it, or is of
                another model.
            ModelError: the nodes that compute the value form a cycle.
        """
        if value.graph is not self._model.graph and (value.graph is not None or value.producer() is not None):
            raise ValueError(f"{value.name} is no value of the main graph; ask for one that is")
        self._compute(value)
        return self._values[value].hex()

    def _enter(self, graph: ir.Graph) -> None:
        """Make the scopes of a graph and all that are inside it."""
        versions = {_domain(domain): version for domain, version in graph.opset_imports.items()}
        self._scopes[graph] = _Scope(0, versions, carried.sparse_initializers(graph))
        waiting = [graph]
        while waiting:
            around = waiting.pop()
            outer = self._scopes[around]
            for body in (body for node in around for body in bodies(node)):
                sparse = carried.sparse_initializers(body)
                self._scopes[body] = _Scope(outer.depth + 1, versions, sparse, outer)
                self._bind(body.inputs, outer.depth + 1)
                waiting.append(body)

    def _bind(self, inputs: Iterable[ir.Value], depth: int) -> None:
        self._arguments.update((value, (depth, index)) for index, value in enumerate(inputs))

    def _compute(self, value: ir.Value) -> None:
        """Digest a value after all that it needs."""
        waiting = [(value, self._scopes[self._model.graph])]
        begun: set[ir.Node] = set()
        while waiting:
            value, scope = waiting[-1]
            node = value.producer()
            if value in self._values:
                waiting.pop()
            elif node is None or constant_tensor(value) is not None:
                self._values[value] = self._leaf(value, scope)
            elif node in self._nodes:
                self._values[value] = _hash(b"output", self._nodes[node], b"%d" % (value.index() or 0))
            elif missing := [each for each in self._needed(node) if each[0] not in self._values]:
                if node in begun:
                    raise ModelError(f"node {label(node)} computes what it depends on: the graph has a cycle")
                begun.add(node)
                waiting.extend(missing)
            else:
                self._nodes[node] = self._node(node)

    def _needed(self, node: ir.Node) -> Iterator[tuple[ir.Value, _Scope]]:
        """What a node's digest is made of: its inputs, and the outputs of its subgraphs and of what it calls."""
        scope = self._scope(node)
        yield from ((value, scope) for value in node.inputs if value is not None)
        for body in bodies(node):
            yield from ((value, self._scopes[body]) for value in body.outputs)
        function = self._model.ir.functions.get(node.op_identifier())
        if function is not None:
            yield from ((value, self._scopes[function]) for value in function.outputs)

    def _scope(self, node: ir.Node) -> _Scope:
        assert node.graph is not None
        return self._scopes[node.graph]

    def _leaf(self, value: ir.Value, scope: _Scope) -> bytes:
        """A value that no node computes, or a Constant."""
        if value in self._arguments:
            return _hash(b"argument", repr(self._arguments[value]).encode())
        tensor = constant_tensor(value)
        parts = [b"constant", content_digest(tensor)] if tensor is not None else []
        given = tensor is None or self._model.ir.ir_version >= _GIVEN_WEIGHTS
        if value.is_graph_input() and given:
            parts += [b"input", (value.name or "").encode(), _type(value.type)]
        elif tensor is None:
            parts += [b"sparse", _sparse(value, scope)]
        return _hash(*parts)

    def _node(self, node: ir.Node) -> bytes:
        inputs = [b"" if value is None else self._values[value] for value in node.inputs]
        while inputs and not inputs[-1]:
            inputs.pop()  # an input that is left out at the end is one that is not mentioned
        function = self._model.ir.functions.get(node.op_identifier())
        domain = _domain(node.domain)
        meaning = b"%d" % self._scope(node).versions.get(domain, 0) if function is None else self._function(function)
        kind = (domain.encode(), node.op_type.encode(), node.overload.encode(), meaning, b"%d" % len(node.outputs))
        attributes = (self._attribute(node.attributes[name]) for name in sorted(node.attributes))
        return _hash(b"node", *kind, joined(inputs), *attributes)

    def _function(self, function: ir.Function) -> bytes:
        outputs = joined(self._values[value] for value in function.outputs)
        defaults = (_named(default, _plain(default)) for _, default in sorted(function.attributes.items()))
        return joined((b"%d" % len(function.inputs), outputs, *defaults))

    def _attribute(self, attribute: ir.Attr) -> bytes:
        if attribute.is_ref():
            return _named(attribute, b"reference", (attribute.ref_attr_name or "").encode())
        within = list(_bodies(attribute))
        return _named(attribute, *map(self._body, within)) if within else _named(attribute, _plain(attribute))

    def _body(self, graph: ir.Graph) -> bytes:
        types = joined(_type(value.type) for value in graph.inputs)
        return joined((types, *(self._values[value] for value in graph.outputs)))


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(joined(parts)).digest()


def _bodies(attribute: ir.Attr) -> Iterable[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def _named(attribute: ir.Attr, *content: bytes) -> bytes:
    return joined((attribute.name.encode(), attribute.type.name.encode(), *content))


def _plain(attribute: ir.Attr) -> bytes:
    """What an attribute says; nothing for a function's attribute without a default."""
    if attribute.value is None:
        return b""
    encode = None if isinstance(attribute.value, onnx.AttributeProto) else _ENCODERS.get(attribute.type)
    return _message(attribute) if encode is None else encode(attribute.value)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _type(kind: ir.TypeProtocol | None) -> bytes:
    """Element type and what holds it, without what the type is said to denote."""
    found: list[str] = []
    while kind is not None:
        found.append(type(kind).__name__)
        element = kind.elem_type
        if isinstance(element, ir.DataType):
            found.append(element.name)
            break
        kind = element
    return " ".join(found).encode()


def _sparse(value: ir.Value, scope: _Scope | None) -> bytes:
    """The content of a sparse initializer, of the innermost graph that has one of that name; else the name."""
    name = value.name or ""
    while scope is not None:
        if name in scope.sparse:
            return _sparse_content(scope.sparse[name])
        scope = scope.outer
    return name.encode()


def _sparse_content(tensor: onnx.SparseTensorProto) -> bytes:
    sides = (content_digest(ir.from_proto(side)) for side in (tensor.values, tensor.indices))
    return joined((str(list(tensor.dims)).encode(), *sides))


def _message(attribute: ir.Attr) -> bytes:
    """A rare kind of attribute by its message."""
    proto = onnx.AttributeProto()
    opaque = isinstance(attribute.value, onnx.AttributeProto)
    proto.CopyFrom(attribute.value if opaque else ir.serde.serialize_attribute(attribute))
    proto.ClearField("doc_string")
    if proto.HasField("sparse_tensor") or proto.sparse_tensors:
        held = [proto.sparse_tensor] if proto.HasField("sparse_tensor") else list(proto.sparse_tensors)
        return joined(map(_sparse_content, held))
    return proto.SerializeToString(deterministic=True)


def _floats(values: Iterable[float]) -> bytes:
    """As files hold them: in single precision."""
    with np.errstate(over="ignore"):
        return np.array(tuple(values), np.float64).astype("<f4").tobytes()


_ENCODERS: Mapping[ir.AttributeType, Encode] = {
    ir.AttributeType.FLOAT: lambda value: _floats((value,)),
    ir.AttributeType.FLOATS: _floats,
    ir.AttributeType.INT: lambda value: struct.pack("<q", value),
    ir.AttributeType.INTS: lambda values: struct.pack(f"<{len(values)}q", *values),
    ir.AttributeType.STRING: lambda value: value.encode() if isinstance(value, str) else bytes(value),
    ir.AttributeType.STRINGS: lambda values: joined(v.encode() if isinstance(v, str) else bytes(v) for v in values),
    ir.AttributeType.TENSOR: content_digest,
    ir.AttributeType.TENSORS: lambda values: joined(map(content_digest, values)),
}
