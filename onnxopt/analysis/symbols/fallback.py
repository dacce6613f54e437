"""onnx's own inference, a node at a time, for operators without a rule."""

from functools import cache

import onnx
import onnx_ir as ir

from onnxopt.analysis.symbols.expressions import Scalar
from onnxopt.analysis.symbols.facts import Fact
from onnxopt.analysis.symbols.rules import Call
from onnxopt.nodes import bodies


def inferred(call: Call) -> list[Fact]:
    """What onnx infers of a node; sizes that are expressions go in, and come back, as names.

    Nothing where the type of an input is unknown, or where onnx finds nothing or fails.
    """
    node = call.node
    schema = _schema(node.op_type, call.opset)
    given = [(value, fact) for value, fact in zip(node.inputs, call.inputs, strict=True) if value is not None]
    if schema is None or any(fact is None or fact.dtype is None for _, fact in given) or any(bodies(node)):
        return []
    names: dict[str, Scalar] = {}
    types, data = {}, {}
    for value, fact in given:
        assert fact is not None
        assert fact.dtype is not None
        types[value.name or ""] = _type(fact, names)
        if fact.known and fact.content is not None:
            data[value.name or ""] = onnx.numpy_helper.from_array(fact.content, value.name or "")
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, ir.to_proto(node), types, data)
    except Exception:  # onnx raises many types
        return []
    return [_fact(call, found.get(value.name or ""), names) for value in node.outputs]


@cache
def _schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    return onnx.defs.get_schema(op, opset) if onnx.defs.has(op) else None


def _type(fact: Fact, names: dict[str, Scalar]) -> onnx.TypeProto:
    assert fact.dtype is not None
    shape: list[int | str] | None = None if fact.shape is None else []
    for size in fact.shape or ():
        assert shape is not None
        if isinstance(size, int):
            shape.append(size)
        else:
            name = f"s{len(names)}"
            known = next((key for key, other in names.items() if other == size), name)
            names[known] = size
            shape.append(known)
    return onnx.helper.make_tensor_type_proto(int(fact.dtype), shape)


def _fact(call: Call, proto: onnx.TypeProto | None, names: dict[str, Scalar]) -> Fact:
    if proto is None or proto.WhichOneof("value") != "tensor_type":
        return Fact()
    tensor = proto.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Fact(dtype)
    sizes: list[Scalar] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            sizes.append(dim.dim_value)
        else:
            sizes.append(names[dim.dim_param] if dim.dim_param in names else call.space.fresh())
    return Fact(dtype, tuple(sizes))
