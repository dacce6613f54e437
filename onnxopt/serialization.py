"""Model to message and to file. Weights are streamed: one at a time is in memory.

onnx-ir carries nearly everything of a model; what it does not is the matter of `carried`.
"""

import contextlib
import glob
import itertools
import logging
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt import carried
from onnxopt.atomic import fill, told
from onnxopt.errors import ModelError
from onnxopt.external import Place, location_of, places, proto_tensors
from onnxopt.reading import from_proto, locations
from onnxopt.wire import field

logger = logging.getLogger(__name__)

PROTOBUF_LIMIT = 2**31 - 1
_HEADROOM = 64 * 2**20
"""Left under protobuf's limit for everything that is no weight of the main graph."""

_EMBED_BELOW = 1024
"""Weights below so many bytes stay in the model file: shape constants are wanted there."""

_ALIGNMENT = 64
"""Weights begin at multiples of it in the data file: mapped, they can be read with vector instructions."""


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The whole model as one message, every weight in memory."""
    return _finish(carried.to_proto(model))


_STUB = "onnxopt-stub:"


def with_stubs(model: ir.Model, tensors: list[ir.TensorProtocol]) -> onnx.ModelProto:
    """The message with a reference in place of each tensor but strings; `tensors` gets what they refer to."""
    held = [place for place in places(model) if _has_size(place)]
    start = len(tensors)
    tensors.extend(place.tensor for place in held)
    try:
        for at, place in enumerate(held, start):
            place.put(ir.serde.deserialize_tensor(stub(at, place.tensor, place.name)))
        proto = carried.to_proto(model)
    finally:
        for place in held:
            place.put(place.tensor)
    return _finish(proto)


def stub(at: int, tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """A message that stands for the tensor in place `at` of a list."""
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    proto.doc_string = tensor.doc_string or ""
    for key, text in sorted(tensor.metadata_props.items()):
        proto.metadata_props.add(key=key, value=text)
    proto.data_location = onnx.TensorProto.EXTERNAL
    proto.external_data.add(key="location", value=f"{_STUB}{at}")
    return proto


def stub_index(proto: onnx.TensorProto) -> int | None:
    """The place that a stub stands for; None for any other tensor."""
    location = location_of(proto)
    return int(location.removeprefix(_STUB)) if location.startswith(_STUB) else None


def from_stubs(proto: onnx.ModelProto, tensors: list[ir.TensorProtocol]) -> ir.Model:
    """The model of a message made with stubs, the tensors back in their places."""
    model = from_proto(proto)
    for place in list(places(model)):
        if isinstance(place.tensor, ir.ExternalTensor) and str(place.tensor.location).startswith(_STUB):
            place.put(tensors[int(str(place.tensor.location).removeprefix(_STUB))])
    return model


Ready: TypeAlias = Callable[[Sequence[Path]], None]
"""Called with the files that are written in full, the model's and its data, under the names they have until then."""


def write(model: ir.Model, path: Path, *, external_data: bool | None = None, ready: Ready | None = None) -> None:
    """Write beside the target, then rename: the old file stays whole until the new one is.

    A symbolic link stays one: the file that it leads to is replaced, and its data lie beside that file.
    Where `ready` raises, nothing is renamed.
    """
    path = path.resolve()
    if not path.parent.is_dir():
        raise ModelError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ModelError(f"cannot write {path}: it is a folder")
    with told(path), contextlib.ExitStack() as cleanup:
        plan = _plan(model, path, external_data)
        moves = []
        if plan.external:
            data = path.with_name(plan.location)
            moves.append((fill(data, cleanup, lambda file: _write_data(plan, file)), data))
        skeleton = _skeleton(model, plan)
        moves.append((fill(path, cleanup, lambda file: _write_model(skeleton, plan, file)), path))
        if ready is not None:
            ready([temporary for temporary, _ in reversed(moves)])
        for temporary, target in moves:
            os.replace(temporary, target)
        _forget_replaced(plan, path)


@dataclass(frozen=True)
class _Weight:
    place: Place
    offset: int | None
    """Where it begins in the data file; None for a weight that stays in the model file."""

    @property
    def tensor(self) -> ir.TensorProtocol:
        return self.place.tensor


@dataclass(frozen=True)
class _Plan:
    weights: list[_Weight]
    """Initializers of the main graph, which are streamed."""
    inner: list[_Weight]
    """Tensors of subgraphs and attributes that come from a data file or go to one."""
    location: str
    """Name of the data file."""
    replaced: frozenset[str]
    """Data files of ours that only the model file about to be replaced refers to."""

    @property
    def external(self) -> bool:
        return any(weight.offset is not None for weight in (*self.weights, *self.inner))


def _plan(model: ir.Model, path: Path, external: bool | None) -> _Plan:
    found = list(places(model))
    if external is None:
        external = any(isinstance(place.tensor, ir.ExternalTensor) for place in found)
    total = sum(place.tensor.nbytes for place in found if place.value is not None and _has_size(place))
    external = external or total > PROTOBUF_LIMIT - _HEADROOM
    weights, inner, end = [], [], 0
    for place in found:
        offset = None
        if external and _goes_outside(place):
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = offset + place.tensor.nbytes
        if place.value is not None and place.value.graph is model.graph:
            place.tensor.name = place.value.name
            weights.append(_Weight(place, offset))
        elif offset is not None or isinstance(place.tensor, ir.ExternalTensor):
            inner.append(_Weight(place, offset))
    own = _own_data_names(path)
    sources = {Path(place.tensor.path) for place in found if isinstance(place.tensor, ir.ExternalTensor)}
    taken = own | {source.name for source in sources if source.parent == path.parent}
    location = next(name for name in _data_names(path) if name not in taken and not _is_needed(name, path))
    return _Plan(weights, inner, location, own)


def _has_size(place: Place) -> bool:
    return place.tensor.dtype != ir.DataType.STRING


def _goes_outside(place: Place) -> bool:
    """Initializers of some size; a tensor in an attribute only where it came from outside."""
    large = _has_size(place) and place.tensor.nbytes >= _EMBED_BELOW
    return large and (place.value is not None or isinstance(place.tensor, ir.ExternalTensor))


def _data_names(path: Path) -> Iterator[str]:
    """`NAME.data`, then numbered names for when that one is still needed by the present model file."""
    yield f"{path.name}.data"
    yield from (f"{path.name}.{count}.data" for count in itertools.count(1))


def _is_needed(name: str, path: Path) -> bool:
    """Whether a data file of that name exists and another model in the folder speaks of it: it may be renamed."""
    if not path.with_name(name).exists():
        return False
    others = (file for file in path.parent.glob("*.onnx") if file.name != path.name and file.stat().st_size)
    return any(_mentions(file, name.encode()) for file in others)


def _mentions(file: Path, text: bytes) -> bool:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def _own_data_names(path: Path) -> frozenset[str]:
    """Data files that the present model file refers to and that carry a name we would give."""
    candidates = {file.name for file in path.parent.glob(f"{glob.escape(path.name)}*.data")}
    if not candidates or not path.is_file():
        return frozenset()
    try:
        used = locations(path)
    except ModelError:
        return frozenset()
    ours = re.compile(rf"{re.escape(path.name)}(\.\d+)?\.data")
    return frozenset(name for name in candidates & used if ours.fullmatch(name))


def _skeleton(model: ir.Model, plan: _Plan) -> onnx.ModelProto:
    """The message with a stub for each weight of the main graph.

    Stubs are references into a data file: cheap to serialize, and already right where the weight goes there.
    """
    changed = (*plan.weights, *plan.inner)
    try:
        for weight in plan.weights:
            weight.place.put(_reference(weight, plan.location))
        for weight in plan.inner:
            weight.place.put(_embedded(weight) if weight.offset is None else _reference(weight, plan.location))
        proto = carried.to_proto(model)
    finally:
        for weight in changed:
            weight.place.put(weight.tensor)
    return _finish(proto)


def _reference(weight: _Weight, location: str, folder: str | Path = "") -> ir.ExternalTensor:
    length = 0 if weight.offset is None else weight.tensor.nbytes
    shape = ir.Shape(weight.tensor.shape.numpy())
    return ir.ExternalTensor(
        location, weight.offset or 0, length, weight.tensor.dtype, shape=shape, name=weight.place.name,
        doc_string=weight.tensor.doc_string, metadata_props=dict(weight.tensor.metadata_props), base_dir=folder,
    )  # fmt: skip


def _embedded(weight: _Weight) -> ir.TensorProtocol:
    """The values in memory."""
    return ir.Tensor(
        np.array(weight.tensor.numpy()), dtype=weight.tensor.dtype, name=weight.place.name,
        doc_string=weight.tensor.doc_string, metadata_props=dict(weight.tensor.metadata_props),
    )  # fmt: skip


def _finish(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what only repeats: a weight's own type and shape, and metadata that onnx-ir writes twice."""
    for tensor in proto_tensors(proto):
        entries = {entry.key: entry.value for entry in tensor.metadata_props}
        if len(entries) < len(tensor.metadata_props):
            tensor.ClearField("metadata_props")
            for key in sorted(entries):
                tensor.metadata_props.add(key=key, value=entries[key])
    for graph in carried.proto_scopes(proto):
        if isinstance(graph, onnx.GraphProto):
            weights = {tensor.name for tensor in graph.initializer}
            kept = [i for i in graph.value_info if i.name not in weights or i.metadata_props or i.doc_string]
            if len(kept) < len(graph.value_info):
                del graph.value_info[:]
                graph.value_info.extend(kept)
    return proto


def _write_data(plan: _Plan, file: BinaryIO) -> None:
    for weight in (*plan.weights, *plan.inner):
        if weight.offset is not None:
            file.write(bytes(weight.offset - file.tell()))
            _write_raw(weight.tensor, file)


def _write_model(skeleton: onnx.ModelProto, plan: _Plan, file: BinaryIO) -> None:
    """Stream a ModelProto: fields may come in any order, so weights follow the rest of the graph."""
    stubs = list(skeleton.graph.initializer)
    del skeleton.graph.initializer[:]
    graph = skeleton.graph.SerializeToString(deterministic=True)
    skeleton.ClearField("graph")
    heads = [_tensor_head(weight, stub) for weight, stub in zip(plan.weights, stubs, strict=True)]
    bodies = [_raw_field(weight) for weight in plan.weights]
    sizes = [
        len(head) + len(body) + _raw_size(weight)
        for head, body, weight in zip(heads, bodies, plan.weights, strict=True)
    ]
    total = len(graph) + sum(len(field(5, size)) + size for size in sizes)
    if total > PROTOBUF_LIMIT:
        raise ModelError(f"the graph without its large weights takes {total / 2**30:.1f} GiB; protobuf allows 2 GiB")
    file.write(skeleton.SerializeToString(deterministic=True))
    file.write(field(7, total))
    file.write(graph)
    for weight, head, body, size in zip(plan.weights, heads, bodies, sizes, strict=True):
        file.write(field(5, size) + head + body)
        if body:
            _write_raw(weight.tensor, file)


def _tensor_head(weight: _Weight, stub: onnx.TensorProto) -> bytes:
    """All of a TensorProto but its raw data."""
    if weight.offset is not None:
        return stub.SerializeToString(deterministic=True)
    if not _streams(weight):
        proto = ir.serde.serialize_tensor(weight.tensor)
        proto.name = weight.place.name
        return proto.SerializeToString(deterministic=True)
    stub.ClearField("external_data")
    stub.ClearField("data_location")
    return stub.SerializeToString(deterministic=True)


def _streams(weight: _Weight) -> bool:
    """Whether the raw bytes are written after the head. Typed fields and strings are kept as they came."""
    if weight.offset is not None or weight.tensor.dtype == ir.DataType.STRING:
        return False
    return not (isinstance(weight.tensor, ir.TensorProtoTensor) and not weight.tensor.raw.HasField("raw_data"))


def _raw_size(weight: _Weight) -> int:
    return weight.tensor.nbytes if _streams(weight) else 0


def _raw_field(weight: _Weight) -> bytes:
    return field(9, weight.tensor.nbytes) if _streams(weight) else b""


def _write_raw(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    before = file.tell()
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)
        with contextlib.suppress(BufferError):  # somebody holds an array of it
            tensor.release()  # a mapping that stays counts as our memory
    else:
        file.write(_raw_bytes(tensor))
    if file.tell() - before != tensor.nbytes:
        raise ModelError(
            f"weight {tensor.name} gave {file.tell() - before} bytes where its shape needs {tensor.nbytes}"
        )


def _raw_bytes(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """As `tobytes`, but without a copy where the tensor's array is laid out as the file wants it."""
    if isinstance(tensor, ir.PackedTensor):
        array = tensor.numpy_packed()
    elif isinstance(tensor, ir.Tensor) and tensor.dtype.bitwidth >= 8:
        array = tensor.numpy()
    else:
        return tensor.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _forget_replaced(plan: _Plan, path: Path) -> None:
    """Remove the replaced model's data files, after whatever is read from them comes from elsewhere."""
    files = {path.with_name(name) for name in plan.replaced}
    if not files:
        return
    for weight in (*plan.weights, *plan.inner):
        if weight.offset is not None:
            weight.place.put(_reference(weight, plan.location, path.parent))
        elif _reads(weight.tensor, files):
            weight.place.put(_embedded(weight))
    for file in files:
        file.unlink(missing_ok=True)


def _reads(tensor: ir.TensorProtocol, files: set[Path]) -> bool:
    """Whether the tensor's values may come from the files; what a lazy tensor reads cannot be seen."""
    return isinstance(tensor, ir.LazyTensor) or (isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) in files)
