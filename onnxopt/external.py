"""Where a model's tensors lie, and the checks of models that nobody vouches for: before a byte is read."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxopt.carried import proto_scopes, scopes
from onnxopt.errors import ModelError
from onnxopt.nodes import tensor_value


@dataclass(frozen=True)
class Place:
    """A tensor inside a model, and how to put another one there.

    Attributes:
        value: the initializer's value; None for a tensor in an attribute.
    """

    tensor: ir.TensorProtocol
    put: Callable[[ir.TensorProtocol], None]
    value: ir.Value | None = None

    @property
    def name(self) -> str:
        """Of the initializer, or of the tensor itself."""
        return (self.tensor.name if self.value is None else self.value.name) or ""


def places(model: ir.Model) -> Iterator[Place]:
    """Every tensor: first the main graph's initializers, then those of subgraphs and all nodes' attributes."""
    inner = list(scopes(model))
    for scope in inner:
        if isinstance(scope, ir.Graph):
            for value in scope.initializers.values():
                if value.const_value is not None:
                    yield Place(value.const_value, partial(setattr, value, "const_value"), value)
    for scope in inner:
        for node in scope:
            for attribute in tuple(node.attributes.values()):
                if not attribute.is_ref():
                    yield from _in_attribute(node, attribute)


def _in_attribute(node: ir.Node, attribute: ir.Attr) -> Iterator[Place]:
    if attribute.type == ir.AttributeType.TENSOR:
        yield Place(tensor_value(attribute), partial(_put_attribute, node, attribute.name, None))
    elif attribute.type == ir.AttributeType.TENSORS:
        for at, tensor in enumerate(attribute.as_tensors()):
            yield Place(tensor, partial(_put_attribute, node, attribute.name, at))


def _put_attribute(node: ir.Node, name: str, at: int | None, tensor: ir.TensorProtocol) -> None:
    old = node.attributes[name]
    content: object = tensor
    if at is not None:
        content = [tensor if i == at else other for i, other in enumerate(old.as_tensors())]
    node.attributes[name] = ir.Attr(name, old.type, content, doc_string=old.doc_string)


def check_external(model: ir.Model, path: Path) -> None:
    """Bind external tensors to the model's folder.

    Raises:
        ModelError: a location outside the folder (absolute, `..` or through a link), a missing file,
            or one that ends before the tensor does.
    """
    tensors = [place.tensor for place in places(model) if isinstance(place.tensor, ir.ExternalTensor)]
    check_locations({str(tensor.location) for tensor in tensors}, path)
    folder = path.resolve().parent
    for tensor in tensors:
        tensor.base_dir = folder
        _check_extent(tensor, path)


def check_locations(locations: Iterable[str], path: Path) -> None:
    """Raise ModelError where one of them is no file inside the model's folder."""
    folder = path.resolve().parent
    for location in locations:
        _check_location(location, folder, path)


def refuse_external(model: ir.Model, what: str) -> None:
    """Raise ModelError where a model that did not come from a file refers to one."""
    for place in places(model):
        if isinstance(place.tensor, ir.ExternalTensor):
            raise ModelError(
                f"{what} refers to external data {str(place.tensor.location)!r} (weight {place.name}), and no folder "
                "is known to hold them; load the model from its file"
            )


def check_sizes(model: onnx.ModelProto, what: str, cut: Mapping[str, memoryview]) -> None:
    """Embedded tensors must hold as much as their shape says, before anybody allocates by the shape.

    Args:
        cut: the bytes of tensors that were cut out of the message, by the location that stands for them.
    """
    for tensor in proto_tensors(model):
        if any(dim < 0 for dim in tensor.dims):
            raise ModelError(f"{what}: weight {tensor.name} has a negative size in its shape {list(tensor.dims)}")
        for entry in tensor.external_data:
            if entry.key in ("offset", "length") and not entry.value.isdecimal():
                raise ModelError(f"{what}: weight {tensor.name} has the {entry.key} {entry.value!r} in external data")
        held, needed, unit = _stored(tensor, cut)
        if held != needed:
            raise ModelError(
                f"{what}: weight {tensor.name} holds {held} {unit} where its shape {list(tensor.dims)} needs {needed}; "
                "the file is damaged"
            )


def proto_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor of a message: initializers and attributes of all graphs and functions."""
    for scope in proto_scopes(model):
        if isinstance(scope, onnx.GraphProto):
            yield from scope.initializer
        for node in scope.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


NUMERIC = frozenset(int(dtype) for dtype in ir.DataType) - {int(ir.DataType.UNDEFINED), int(ir.DataType.STRING)}
"""Element types that have a size."""
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_COMPLEX = (int(ir.DataType.COMPLEX64), int(ir.DataType.COMPLEX128))


def location_of(tensor: onnx.TensorProto) -> str:
    """Which external data a tensor's message names; empty where none."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _stored(tensor: onnx.TensorProto, cut: Mapping[str, memoryview]) -> tuple[int, int, str]:
    """How much the tensor holds, how much it should, and the unit; (0, 0) where nothing can be said."""
    elements = math.prod(tensor.dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        content = cut.get(location_of(tensor)) if cut else None
        if content is None:
            return 0, 0, ""
        return len(content), _bytes(ir.DataType(tensor.data_type), elements), "bytes"
    if tensor.data_type == onnx.TensorProto.STRING:
        return len(tensor.string_data), elements, "strings"
    if tensor.data_type not in NUMERIC:
        return 0, 0, ""
    needed = _bytes(ir.DataType(tensor.data_type), elements)
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), needed, "bytes"
    packed = ir.DataType(tensor.data_type).bitwidth < 8
    entries = needed if packed else elements * (2 if tensor.data_type in _COMPLEX else 1)
    return sum(len(getattr(tensor, name)) for name in _TYPED_FIELDS), entries, "entries"


def _bytes(dtype: ir.DataType, elements: int) -> int:
    return -(-elements * dtype.bitwidth // 8)


def _check_location(location: str, folder: Path, model: Path) -> None:
    place = folder / location
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise ModelError(f"{model}: external data {location!r} lie outside the model's folder; refused")
    if not place.exists():
        raise ModelError(f"{model}: external data file {location} is missing; it belongs beside the model")
    if place.resolve() != folder / location:
        raise ModelError(f"{model}: external data {location!r} are reached through a symbolic link; refused")
    if not place.is_file():
        raise ModelError(f"{model}: external data {location!r} are not a file")
    if place.stat().st_nlink > 1:
        raise ModelError(f"{model}: external data {location!r} have several hard links; refused, copy the file")


def _check_extent(tensor: ir.ExternalTensor, model: Path) -> None:
    shape = tensor.shape.numpy()
    where = f"{model}: weight {tensor.name} in {tensor.location}"
    if any(dim < 0 for dim in shape):
        raise ModelError(f"{where} has a negative size in its shape {list(shape)}")
    needed = _bytes(tensor.dtype, math.prod(shape))
    length = needed if tensor.length is None else tensor.length
    offset = tensor.offset or 0
    if length != needed:
        raise ModelError(f"{where} is said to take {length} bytes; its shape {list(shape)} needs {needed}")
    size = Path(tensor.path).stat().st_size
    if offset + length > size:
        raise ModelError(f"{where} ends at byte {offset + length}, but the file has {size}: it is cut short")
