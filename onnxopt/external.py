"""External data of models that nobody vouches for: every reference is checked before a byte is read."""

import math
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxopt.errors import ModelError


def check_external(model: ir.Model, path: Path) -> None:
    """Bind external tensors to the model's folder.

    Raises:
        ModelError: a location outside the folder (absolute, `..` or through a symlink), a missing file,
            or one that ends before the tensor does.
    """
    folder = path.resolve().parent
    tensors = [t for graph in (model.graph, *model.graph.subgraphs()) for t in _external(graph)]
    for location in {str(tensor.location) for tensor in tensors}:
        _check_location(location, folder, path)
    for tensor in tensors:
        tensor.base_dir = folder
        _check_extent(tensor, path)


def check_sizes(initializers: Iterable[onnx.TensorProto], what: str) -> None:
    """Embedded weights must hold as many bytes as their shape says, before anybody allocates by the shape."""
    for tensor in initializers:
        if any(dim < 0 for dim in tensor.dims):
            raise ModelError(f"{what}: weight {tensor.name} has a negative size in its shape {list(tensor.dims)}")
        if not tensor.HasField("raw_data") or tensor.data_type not in _KNOWN:
            continue
        needed = _bytes(ir.DataType(tensor.data_type), math.prod(tensor.dims))
        if len(tensor.raw_data) != needed:
            raise ModelError(
                f"{what}: weight {tensor.name} holds {len(tensor.raw_data)} bytes where its shape "
                f"{list(tensor.dims)} needs {needed}; the file is damaged"
            )


_KNOWN = {int(dtype) for dtype in ir.DataType} - {int(ir.DataType.UNDEFINED), int(ir.DataType.STRING)}


def _bytes(dtype: ir.DataType, elements: int) -> int:
    return math.ceil(elements * dtype.bitwidth / 8)


def _external(graph: ir.Graph) -> Iterable[ir.ExternalTensor]:
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value
    for node in graph:
        for attribute in node.attributes.values():
            if isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value


def _check_location(location: str, folder: Path, model: Path) -> None:
    place = folder / location
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise ModelError(f"{model}: external data {location!r} lie outside the model's folder; refused")
    if not place.exists():
        raise ModelError(f"{model}: external data file {location} is missing; it belongs beside the model")
    if not place.resolve().is_relative_to(folder) or place.is_symlink():
        raise ModelError(f"{model}: external data {location!r} are reached through a symbolic link; refused")
    if not place.is_file():
        raise ModelError(f"{model}: external data {location!r} are not a file")


def _check_extent(tensor: ir.ExternalTensor, model: Path) -> None:
    needed = _bytes(tensor.dtype, math.prod(tensor.shape.numpy()))
    length = needed if tensor.length is None else tensor.length
    end = (tensor.offset or 0) + length
    size = Path(tensor.path).stat().st_size
    where = f"{model}: weight {tensor.name} in {tensor.location}"
    if length != needed:
        raise ModelError(f"{where} is said to take {length} bytes; its shape {list(tensor.shape.numpy())} needs {needed}")
    if end > size:
        raise ModelError(f"{where} ends at byte {end}, but the file has {size}: it is cut short")
