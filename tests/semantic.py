"""What two ONNX models say, compared field by field: how the tests know that a round trip lost nothing.

Every field of every message is compared, those of future versions of onnx included, but for the normalisations
that `docs/normalisations.md` lists: each is a rule below, and nothing else may differ.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import numpy_helper

_LIMIT = 20


def differences(a: onnx.ModelProto, b: onnx.ModelProto) -> list[str]:
    """Where the models differ, as `path: in a | in b`; empty when they say the same. External data must be loaded.

    At most 20 differences are listed.
    """
    found: list[str] = []
    _compare(plain(a), plain(b), "model", found)
    return found


def plain(message: Message) -> Any:
    """A message as dictionaries, lists and values, without what may differ."""
    if type(message).__name__ in _SPECIAL:
        return _SPECIAL[type(message).__name__](message)
    return _fields(message)


def _fields(message: Message, *without: str) -> dict[str, Any]:
    """The fields that are set; an empty string or message field says as much as none."""
    out: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in without:
            continue
        if field.name in _KEYED:
            out[field.name] = _keyed(value, _KEYED[field.name])
        elif isinstance(value, Message):
            out[field.name] = plain(value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            out[field.name] = [plain(item) for item in value]
        elif isinstance(value, str | bytes | int | float):
            out[field.name] = value
        else:
            out[field.name] = list(value)
    return {name: value for name, value in out.items() if value not in ("", b"", {}, [])}


_KEYED: dict[str, tuple[str, ...]] = {
    "metadata_props": ("key",),
    "quant_parameter_tensor_names": ("key",),
    "quantization_annotation": ("tensor_name",),
    "value_info": ("name",),
    "opset_import": ("domain",),
    "functions": ("domain", "name", "overload"),
    "attribute_proto": ("name",),
}
"""Lists whose order says nothing, and the fields that name an entry."""


def _keyed(items: Iterable[Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """Entries by name; a second entry of the same name shows."""
    out: dict[str, Any] = {}
    for item in items:
        name = "/".join(str(getattr(item, field)) for field in fields)
        out[f"{name} (again)" if name in out else name] = plain(item)
    return out


def _tensor(tensor: onnx.TensorProto) -> dict[str, Any]:
    """Values count, not the field that holds them; the bits are compared, so NaN equals NaN and 0 is not -0."""
    stored = ("raw_data", "data_location", "external_data", *(f"{kind}_data" for kind in _TYPED))
    out = _fields(tensor, *stored)
    out["dims"] = list(tensor.dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        out["external"] = {entry.key: entry.value for entry in tensor.external_data}
    elif tensor.data_type == onnx.TensorProto.STRING:
        out["strings"] = list(tensor.string_data)
    elif tensor.HasField("raw_data"):
        out["bytes"] = tensor.raw_data
    else:
        out["bytes"] = _packed(tensor)
    return out


_TYPED = ("float", "int32", "string", "int64", "double", "uint64")


def _packed(tensor: onnx.TensorProto) -> bytes:
    return numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensor))).raw_data


def _node(node: onnx.NodeProto) -> dict[str, Any]:
    out = _fields(node, "attribute", "output", "domain")
    outputs = list(node.output)
    while outputs and not outputs[-1]:
        outputs.pop()
    out["output"] = outputs
    out["domain"] = "" if node.domain == "ai.onnx" else node.domain
    out["attribute"] = {attribute.name: plain(attribute) for attribute in node.attribute}
    return out


def _attribute(attribute: onnx.AttributeProto) -> dict[str, Any]:
    """An empty list and a zero are values here: the type says which."""
    out = _fields(attribute)
    kind = onnx.AttributeProto.AttributeType.Name(attribute.type).lower()
    field = {"int": "i", "float": "f", "string": "s"}.get(kind)
    if field and not attribute.ref_attr_name:
        out[field] = np.float32(attribute.f).tobytes() if field == "f" else getattr(attribute, field)
    return out


def _graph(graph: onnx.GraphProto) -> dict[str, Any]:
    out = _fields(graph, "value_info", "initializer", "sparse_initializer")
    out["initializer"] = {tensor.name: plain(tensor) for tensor in graph.initializer}
    out["sparse_initializer"] = {tensor.values.name: plain(tensor) for tensor in graph.sparse_initializer}
    stated = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in graph.initializer}
    out["value_info"] = {
        info.name: plain(info)
        for info in graph.value_info
        if plain(info).keys() - {"name"} and not _repeats(info, stated.get(info.name))
    }
    return out


def _repeats(info: onnx.ValueInfoProto, stated: tuple[int, list[int]] | None) -> bool:
    kind = info.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    bare = not info.doc_string and not info.metadata_props and not info.type.denotation
    bare = bare and not any(dim.denotation for dim in kind.shape.dim)
    return stated is not None and bare and (kind.elem_type, dims) == stated


def _tensor_type(kind: onnx.TypeProto.Tensor) -> dict[str, Any]:
    """A shape of rank 0 is a statement; no shape is another."""
    out = _fields(kind)
    if kind.HasField("shape"):
        out["shape"] = [plain(dim) for dim in kind.shape.dim]
    return out


def _dim(dim: Any) -> dict[str, Any]:
    out = _fields(dim)
    if dim.HasField("dim_value"):
        out["dim_value"] = dim.dim_value
    return out


_SPECIAL: dict[str, Callable[[Any], Any]] = {
    "TensorProto": _tensor,
    "NodeProto": _node,
    "AttributeProto": _attribute,
    "GraphProto": _graph,
    "Tensor": _tensor_type,
    "SparseTensor": _tensor_type,
    "Dimension": _dim,
}


def _compare(a: Any, b: Any, path: str, found: list[str]) -> None:
    if len(found) >= _LIMIT or (a is b):
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            _compare(a.get(key), b.get(key), f"{path}.{key}", found)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, pair in enumerate(zip(a, b, strict=True)):
            _compare(*pair, f"{path}[{index}]", found)
    elif a != b and not (a is None and b in ({}, [])) and not (b is None and a in ({}, [])):
        found.append(f"{path}: {_short(a)} | {_short(b)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
