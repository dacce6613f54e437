"""A model without its weights, as the message that onnx's shape inference reads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx
import onnx_ir as ir

from onnxopt.analysis.structure import topological
from onnxopt.model import Model
from onnxopt.nodes import tensor_value

Dim: TypeAlias = int | str | None
Dims: TypeAlias = tuple[Dim, ...]
Facts: TypeAlias = Mapping[ir.Value, tuple[ir.DataType, Dims]]

_INTEGERS = {
    ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8,
    ir.DataType.UINT64, ir.DataType.UINT32, ir.DataType.UINT16, ir.DataType.UINT8,
}  # fmt: skip
_KEEP_BYTES = 1024
"""Integer constants up to this size may take part in shape arithmetic: their contents are kept."""
_KEEP_ELEMENTS = 16
"""So may any constant of so few elements (Resize's scales, Range's limits)."""
_UNSAFE = {("ai.onnx.ml", "DictVectorizer")}
"""Inference reads the type of their input without asking whether there is one, and takes the process down with it."""


@dataclass
class Skeleton:
    """The message, and which of its names stands for which value.

    Names are the message's own (`v0`, `v1`, ...): subgraphs may use a name twice, and values may have none.
    """

    proto: onnx.ModelProto
    names: dict[ir.Value, str] = field(default_factory=dict)

    def name(self, value: ir.Value | None) -> str:
        """The value's name in the message; empty for an input or output that is left out."""
        if value is None or (value.name == "" and value.producer() is not None):
            return ""
        return self.names.setdefault(value, f"v{len(self.names)}")


def declared(value: ir.Value) -> Dims | None:
    """The shape that a value carries in the model; negative sizes, as old exporters write them, are unknown."""
    if value.shape is None:
        return None
    return tuple((d if d >= 0 else None) if isinstance(d, int) else (d.value or None) for d in value.shape)


def skeleton(model: Model, inputs: Mapping[ir.Value, Dims | None], facts: Facts) -> Skeleton:
    """Write the model with typed stubs for its weights; the model itself is not touched.

    Large weights, subgraphs' too, become inputs of the main graph that have a type and a shape. Shapes declared
    for values inside and for outputs are left out.

    Args:
        model: the model; its nodes may be unsorted.
        inputs: the shapes of the main graph's inputs; they stand in for the declared ones.
        facts: element types and shapes of nodes' outputs that hold whatever inference says.
    """
    result = Skeleton(onnx.ModelProto(ir_version=10))
    graph = result.proto.graph
    graph.name = "skeleton"
    for value in model.graph.inputs:
        if not value.is_initializer():
            _add_info(graph.input.add(name=result.name(value)), value.type, inputs.get(value), value)
    _write_graph(result, model.graph, graph, facts)
    for function in model.ir.functions.values():
        _write_function(result, function)
    _write_imports(result.proto.opset_import, model.ir.opset_imports, _domains(model))
    return result


def _domains(model: Model) -> Iterator[str]:
    yield from (node.domain for node in model.nodes())
    yield from (function.domain for function in model.ir.functions.values())


def _write_imports(into: Iterable[onnx.OperatorSetIdProto], imports: Mapping[str, int], used: Iterable[str]) -> None:
    """Imports, and version 1 for domains that are used without: inference stops at those otherwise."""
    versions = {"" if domain == "ai.onnx" else domain: version for domain, version in imports.items()}
    for domain in used:
        versions.setdefault("" if domain == "ai.onnx" else domain, 1)
    into.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())  # type: ignore[attr-defined]


def _write_graph(result: Skeleton, graph: ir.Graph, proto: onnx.GraphProto, facts: Facts) -> None:
    known = {value for value in graph.inputs if value is not None}
    for value in graph.initializers.values():
        known.add(value)
        _write_constant(result, value, value.const_value, proto)
    for node in topological(graph):
        large = _large_constant(node)
        if large is not None:
            _write_stub(result, node.outputs[0], large.dtype, tuple(large.shape.numpy()))
        else:
            _write_loose_inputs(result, node, known)
            _write_node(result, node, proto.node.add(), facts)
            for value in node.outputs:
                if value in facts:
                    dtype, dims = facts[value]
                    _add_info(proto.value_info.add(name=result.name(value)), ir.TensorType(dtype), dims, value)
        known.update(node.outputs)
    proto.output.extend(onnx.ValueInfoProto(name=result.name(value)) for value in graph.outputs)


def _write_loose_inputs(result: Skeleton, node: ir.Node, known: set[ir.Value]) -> None:
    """Values that nothing in the graph makes (sparse initializers, which onnx-ir does not hold) become inputs."""
    for value in node.inputs:
        if value is None or value in known or value.producer() is not None or value.graph is not None:
            continue
        known.add(value)
        if value not in result.names:
            _add_info(result.proto.graph.input.add(name=result.name(value)), value.type, declared(value), value)


def _write_constant(
    result: Skeleton, value: ir.Value, tensor: ir.TensorProtocol | None, proto: onnx.GraphProto
) -> None:
    if tensor is None:
        _add_info(result.proto.graph.input.add(name=result.name(value)), value.type, declared(value), value)
        return
    if _matters(tensor):
        try:
            content = ir.serde.serialize_tensor(tensor)
        except Exception:  # a file behind the tensor that went away; whoever needs the weight will say so
            content = None
        if content is not None:
            content.name = result.name(value)
            proto.initializer.append(content)
            return
    _write_stub(result, value, tensor.dtype, tuple(tensor.shape.numpy()))


def _write_stub(result: Skeleton, value: ir.Value, dtype: ir.DataType, dims: Dims) -> None:
    _add_info(result.proto.graph.input.add(name=result.name(value)), ir.TensorType(dtype), dims, value)


def _matters(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype == ir.DataType.STRING:
        return False
    return tensor.size <= _KEEP_ELEMENTS or (tensor.dtype in _INTEGERS and tensor.nbytes <= _KEEP_BYTES)


def _large_constant(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node whose contents no shape depends on."""
    attribute = node.attributes.get("value")
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or attribute is None or attribute.is_ref():
        return None
    tensor = tensor_value(attribute)
    return None if _matters(tensor) else tensor


def _write_node(result: Skeleton, node: ir.Node, proto: onnx.NodeProto, facts: Facts) -> None:
    proto.op_type, proto.domain = node.op_type, node.domain
    if (node.domain, node.op_type) in _UNSAFE:
        proto.op_type += " of unknown type"
    if node.overload:
        proto.overload = node.overload
    proto.input.extend([result.name(value) for value in node.inputs])
    proto.output.extend([result.name(value) for value in node.outputs])
    for attribute in node.attributes.values():
        written = _attribute(result, node, attribute, facts)
        if written is not None:
            proto.attribute.append(written)


def _attribute(result: Skeleton, node: ir.Node, attribute: ir.Attr, facts: Facts) -> onnx.AttributeProto | None:
    if attribute.is_ref():
        return ir.serde.serialize_reference_attribute(attribute)
    kind = attribute.type
    if kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        single = kind == ir.AttributeType.GRAPH
        proto = onnx.AttributeProto(name=attribute.name)
        proto.type = onnx.AttributeProto.GRAPH if single else onnx.AttributeProto.GRAPHS
        for body in (attribute.as_graph(),) if single else attribute.as_graphs():
            _write_body(result, node, body, proto.g if single else proto.graphs.add(), facts)
        return proto
    if kind == ir.AttributeType.TENSOR and not _matters(tensor_value(attribute)):
        return None
    if kind == ir.AttributeType.TENSORS:
        return None
    if isinstance(attribute.value, onnx.AttributeProto):
        return _opaque(attribute.value)
    return ir.serde.serialize_attribute(attribute)


def _opaque(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    """What onnx-ir cannot hold; of sparse tensors their types and shapes alone."""
    written = onnx.AttributeProto()
    written.CopyFrom(attribute)
    for tensor in (*((written.sparse_tensor,) if written.HasField("sparse_tensor") else ()), *written.sparse_tensors):
        kind = tensor.values.data_type
        tensor.ClearField("values")
        tensor.ClearField("indices")
        tensor.values.data_type = kind
    return written


def _write_body(result: Skeleton, node: ir.Node, body: ir.Graph, proto: onnx.GraphProto, facts: Facts) -> None:
    """A subgraph. Scan tells its body the sizes of its inputs; elsewhere only what the body declares is known."""
    proto.name = body.name or "body"
    for value in body.inputs:
        dims = None if node.op_type == "Scan" else declared(value)
        _add_info(proto.input.add(name=result.name(value)), value.type, dims, value)
    _write_graph(result, body, proto, facts)


def _write_function(result: Skeleton, function: ir.Function) -> None:
    proto = result.proto.functions.add(name=function.name, domain=function.domain)
    if function.overload:
        proto.overload = function.overload
    proto.input.extend([result.name(value) for value in function.inputs])
    proto.output.extend([result.name(value) for value in function.outputs])
    for attribute in function.attributes.values():
        if attribute.type == ir.AttributeType.UNDEFINED or attribute.value is None:
            proto.attribute.append(attribute.name)
        else:
            proto.attribute_proto.append(ir.serde.serialize_attribute(attribute))
    for node in function:
        if _large_constant(node) is None:
            _write_node(result, node, proto.node.add(), {})
    _write_imports(proto.opset_import, function.opset_imports, (node.domain for node in function))


def _add_info(proto: onnx.ValueInfoProto, type_: ir.TypeProtocol | None, dims: Dims | None, value: ir.Value) -> None:
    """Type and shape of a value; nothing where the type is unknown."""
    if type_ is None:
        return
    ir.serde.serialize_type_into(proto.type, type_)
    if not isinstance(type_, ir.TensorType):
        if value.shape is not None:
            ir.serde.serialize_shape_into(proto.type, value.shape)
        return
    if dims is None:
        return
    shape = proto.type.tensor_type.shape
    shape.SetInParent()
    for dim in dims:
        added = shape.dim.add()
        if isinstance(dim, int):
            added.dim_value = dim
        elif dim is not None:
            added.dim_param = dim
