"""Nodes that compute what another node computes already."""

import hashlib
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.analysis.structure import topological
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.nodes import DRAWING, bodies
from onnxopt.passes.clean import is_constant
from onnxopt.passing import Context, Findings, Pass

_DOMAINS = frozenset({"", "ai.onnx.ml"})
"""Of other operators nobody knows whether they give the same twice."""

_RANDOM = DRAWING | {"Dropout"}
_COMMUTATIVE = frozenset({"Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Mul", "Or", "Xor"})

_CONTENT_BYTES = 1024
"""Constants up to this size are the same where their contents are; larger ones where they are one weight."""


class EliminateCommon(Pass):
    """Compute once what several nodes compute: the same operator on the same inputs with the same attributes.

    Inside a branch or loop, values from outside serve, too; not the other way round. Random operators, those with
    bodies, and those of foreign domains stay. So do a second DequantizeLinear of the same weight, which runtimes
    fuse with its reader, and nodes that make graph outputs which another output equals.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings, sweep = Findings(), _Sweep(model)
        sweep.graph(model.graph)
        if not sweep.replaced:
            return findings
        edit = Edit(self.name)
        for node, first in sweep.replaced.items():
            for value, source in zip(node.outputs, first.outputs, strict=True):
                if value.name:
                    edit.rewire(value, source)
            edit.remove(node)
            findings.change(node.name, self.name, f"{node.op_type} computes the same as {first.name}: gone")
        model.apply(edit)
        for node, first in sweep.replaced.items():
            for value, source in zip(node.outputs, first.outputs, strict=True):
                if source.shape is None and not source.is_graph_output():
                    source.shape = value.shape
        return findings


class _Sweep:
    """One walk in the order of execution.

    Attributes:
        replaced: node -> the one before it that computes the same.
    """

    def __init__(self, model: Model) -> None:
        self.replaced: dict[ir.Node, ir.Node] = {}
        self._model = model
        self._same: dict[ir.Value, ir.Value] = {}
        self._contents: dict[Hashable, ir.Value] = {}
        self._ranks: dict[ir.Value, int] = {}
        self._nodes: dict[Hashable, ir.Node] = {}
        self._outputs: set[ir.Value] = set()

    def graph(self, graph: ir.Graph) -> None:
        """Walk a graph; what it computes is forgotten afterwards, for only its own nodes see it."""
        added: list[Hashable] = []
        for node in topological(graph):
            for body in bodies(node):
                self.graph(body)
            key = self._key(node)
            if key is None:
                continue
            first = self._nodes.get(key)
            if first is None:
                self._nodes[key] = node
                added.append(key)
            else:
                self._meet(node, first)
        for key in added:
            del self._nodes[key]

    def _meet(self, node: ir.Node, first: ir.Node) -> None:
        pairs = [(value, source) for value, source in zip(node.outputs, first.outputs, strict=True) if value.name]
        if any(None not in (v.dtype, s.dtype) and v.dtype != s.dtype for v, s in pairs):
            return
        self._same.update(pairs)
        outputs = [(value, source) for value, source in pairs if value.is_graph_output()]
        if all(source.graph is value.graph and not self._is_output(source) for value, source in outputs):
            self._outputs.update(source for _, source in outputs)
            self.replaced[node] = first

    def _is_output(self, value: ir.Value) -> bool:
        return value.is_graph_output() or value in self._outputs

    def _key(self, node: ir.Node) -> Hashable | None:
        """What makes two nodes compute the same; None where nothing does."""
        if node.domain not in _DOMAINS or node.op_type in _RANDOM or node.op_identifier() in self._model.ir.functions:
            return None
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and self._is_weight(node.inputs[0]):
            return None
        attributes = _attributes(node, self._model.opset)
        if attributes is None:
            return None
        inputs = [-1 if value is None else self._rank(value) for value in node.inputs]
        while inputs and inputs[-1] == -1:
            inputs.pop()
        if node.op_type in _COMMUTATIVE and not node.attributes:
            inputs.sort()
        written = tuple(bool(value.name) for value in node.outputs)
        return (node.domain, node.op_type, node.overload, tuple(inputs), attributes, written)

    def _rank(self, value: ir.Value) -> int:
        """A number for the value and all that are known to equal it."""
        value = self._same.get(value, value)
        if value not in self._ranks and (content := self._content(value)) is not None:
            value = self._contents.setdefault(content, value)
        return self._ranks.setdefault(value, len(self._ranks))

    def _content(self, value: ir.Value) -> Hashable | None:
        if not self._is_weight(value):
            return None
        tensor = value.const_value
        assert tensor is not None
        return _tensor(tensor) if tensor.nbytes <= _CONTENT_BYTES else None

    def _is_weight(self, value: ir.Value) -> bool:
        return is_constant(self._model, value)


def _attributes(node: ir.Node, opset: int) -> Hashable | None:
    """The attributes, those at their defaults left out; None where they cannot be compared."""
    defaults = _defaults(node.op_type, node.domain, opset) if not node.domain else {}
    found = []
    for name, attribute in node.attributes.items():
        content = _CONTENTS.get(attribute.type, lambda _: None)(attribute.value)
        if attribute.is_ref() or content is None:
            return None
        if defaults.get(name) != content:
            found.append((name, content))
    return tuple(sorted(found))


@cache
def _defaults(op_type: str, domain: str, opset: int) -> dict[str, Hashable]:
    try:
        schema = onnx.defs.get_schema(op_type, max(opset, 1), domain)
    except onnx.defs.SchemaError:
        return {}
    given = ((name, attribute.default_value) for name, attribute in schema.attributes.items())
    stated = ((name, ir.from_proto(value)) for name, value in given if value.name)
    return {name: _CONTENTS.get(value.type, lambda _: None)(value.value) for name, value in stated}


def _tensor(tensor: ir.TensorProtocol) -> Hashable:
    if tensor.dtype == ir.DataType.STRING:
        texts = [bytes(text) for text in np.asarray(tensor.numpy(), object).ravel()]
        return ("string", tuple(tensor.shape.numpy()), tuple(texts))
    return (tensor.dtype.name, tuple(tensor.shape.numpy()), hashlib.sha256(tensor.tobytes()).digest())


def _floats(values: Any) -> Hashable:
    return ("floats", np.asarray(values, np.float32).tobytes())


_CONTENTS: dict[ir.AttributeType, Callable[[Any], Hashable]] = {
    ir.AttributeType.INT: lambda value: ("int", int(value)),
    ir.AttributeType.INTS: lambda value: ("ints", *map(int, value)),
    ir.AttributeType.FLOAT: _floats,
    ir.AttributeType.FLOATS: _floats,
    ir.AttributeType.STRING: lambda value: ("string", str(value)),
    ir.AttributeType.STRINGS: lambda value: ("strings", *map(str, value)),
    ir.AttributeType.TENSOR: lambda value: ("tensor", _tensor(value)),
    ir.AttributeType.TYPE_PROTO: lambda value: ("type", str(value)),
}
