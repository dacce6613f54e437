"""Files and protobuf messages in, files out. Weights are streamed: one at a time is in memory.

onnx-ir carries nearly everything of a model. What it does not (sparse initializers, training info, map
types) is taken off the message on the way in, kept beside the graph, and put back on the way out.
"""

import contextlib
import errno
import glob
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from onnxopt import carried
from onnxopt.errors import ModelError
from onnxopt.external import check_external, check_sizes

logger = logging.getLogger(__name__)

PROTOBUF_LIMIT = 2**31 - 1
_HEADROOM = 64 * 2**20
"""Left under protobuf's limit for everything that is no weight of the main graph."""

_EMBED_BELOW = 1024
"""Weights below so many bytes stay in the model file: shape constants are wanted there."""


def read(path: Path) -> ir.Model:
    """Read a model file; external data are checked now and mapped when used."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"no such model file: {path}") from error
    except OSError as error:
        raise ModelError(f"cannot read model file {path}: {error.strerror}") from error
    model = from_proto(parse(content, str(path)), what=str(path))
    check_external(model, path)
    return model


def parse(content: bytes, what: str) -> onnx.ModelProto:
    """Bytes to a message; `what` names them in the error."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{what} is not an ONNX model, or is cut short: protobuf cannot parse it") from error
    return proto


def external_files(path: Path) -> list[Path]:
    """The external data files that a model file refers to."""
    model = read(path)
    tensors = (
        value.const_value for graph in (model.graph, *model.graph.subgraphs()) for value in graph.initializers.values()
    )
    return sorted({Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def digest(path: Path) -> str:
    """SHA-256 of a model file and its external data, read in pieces."""
    total = hashlib.sha256()
    for file in (path, *external_files(path)):
        with file.open("rb") as stream:
            while piece := stream.read(2**22):
                total.update(piece)
    return total.hexdigest()


def from_proto(proto: onnx.ModelProto, what: str = "the model") -> ir.Model:
    """Message to onnx-ir model. The message may share memory with the result: leave it alone afterwards."""
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{what} is not an ONNX model, or is cut short: it has no graph")
    check_sizes(proto.graph.initializer, what)
    extras = carried.take(proto)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx-ir raises whatever its readers raise; the cause is kept
        raise ModelError(f"{what} is not a valid ONNX model: {_innermost(error)}") from error
    carried.attach(model, extras)
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The whole model as one message, every weight in memory."""
    return _finish(model, ir.to_proto(model))


_STUB = "onnxopt-stub:"


def with_stubs(model: ir.Model, tensors: list[ir.TensorProtocol]) -> onnx.ModelProto:
    """The message with a reference in place of each initializer; `tensors` gets what they refer to."""
    values = [v for graph in (model.graph, *model.graph.subgraphs()) for v in graph.initializers.values()]
    held = [(value, value.const_value) for value in values if value.const_value is not None]
    start = len(tensors)
    tensors.extend(tensor for _, tensor in held)
    try:
        for at, (value, tensor) in enumerate(held, start):
            value.const_value = ir.serde.deserialize_tensor(stub(at, tensor, value.name or ""))
        proto = ir.to_proto(model)
    finally:
        for value, tensor in held:
            value.const_value = tensor
    return _finish(model, proto)


def stub(at: int, tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """A message that stands for the tensor in place `at` of a list."""
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    proto.data_location = onnx.TensorProto.EXTERNAL
    proto.external_data.add(key="location", value=f"{_STUB}{at}")
    return proto


def stub_index(proto: onnx.TensorProto) -> int | None:
    """The place that a stub stands for; None for any other tensor."""
    location = next((e.value for e in proto.external_data if e.key == "location"), "")
    return int(location.removeprefix(_STUB)) if location.startswith(_STUB) else None


def from_stubs(proto: onnx.ModelProto, tensors: list[ir.TensorProtocol]) -> ir.Model:
    """The model of a message made with stubs, the tensors back in their places."""
    model = from_proto(proto)
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor) and str(value.const_value.location).startswith(_STUB):
                value.const_value = tensors[int(str(value.const_value.location).removeprefix(_STUB))]
    return model


def write(model: ir.Model, path: Path, *, external_data: bool | None = None) -> None:
    """Write beside the target, then rename: the old file stays whole until the new one is."""
    if external_data is None:
        external_data = any(isinstance(w, ir.ExternalTensor) for w in _weights(model))
    plan = _plan(model, path, external_data)
    if not path.parent.is_dir():
        raise ModelError(f"cannot write {path}: the folder {path.parent} does not exist")
    with _writing(path), contextlib.ExitStack() as cleanup:
        moves = []
        if plan.external:
            data = path.with_name(plan.location)
            moves.append((_fill(data, cleanup, lambda file: _write_data(plan, file)), data))
        skeleton = _skeleton(model, plan)
        moves.append((_fill(path, cleanup, lambda file: _write_model(skeleton, plan, file)), path))
        for temporary, target in moves:
            os.replace(temporary, target)
    _forget_replaced(plan, path)


@dataclass(frozen=True)
class _Weight:
    value: ir.Value
    tensor: ir.TensorProtocol
    offset: int | None
    """Place in the data file; None for a weight that stays in the model file."""


@dataclass(frozen=True)
class _Plan:
    weights: list[_Weight]
    external: bool
    location: str
    """Name of the data file."""
    replaced: frozenset[str]
    """Data files of ours that only the model file about to be replaced refers to."""


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value


def _plan(model: ir.Model, path: Path, external: bool) -> _Plan:
    total = sum(tensor.nbytes for tensor in _weights(model) if tensor.dtype != ir.DataType.STRING)
    external = external or total > PROTOBUF_LIMIT - _HEADROOM
    weights, offset = [], 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        tensor.name = value.name
        outside = external and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _EMBED_BELOW
        weights.append(_Weight(value, tensor, offset if outside else None))
        offset += tensor.nbytes if outside else 0
    own = _own_data_names(path)
    location = next(name for name in _data_names(path) if name not in own)
    return _Plan(weights, external and offset > 0, location, own)


def _data_names(path: Path) -> Iterator[str]:
    """`NAME.data`, then numbered names for when that one is still needed by the present model file."""
    yield f"{path.name}.data"
    yield from (f"{path.name}.{count}.data" for count in itertools.count(1))


def _own_data_names(path: Path) -> frozenset[str]:
    """Data files that the present model file refers to and that carry a name we would give."""
    candidates = {file.name for file in path.parent.glob(f"{glob.escape(path.name)}*.data")}
    if not candidates or not path.is_file():
        return frozenset()
    try:
        present = parse(path.read_bytes(), str(path))
    except ModelError:
        return frozenset()
    used = {entry.value for t in present.graph.initializer for entry in t.external_data if entry.key == "location"}
    ours = re.compile(rf"{re.escape(path.name)}(\.\d+)?\.data")
    return frozenset(name for name in candidates & used if ours.fullmatch(name))


def _skeleton(model: ir.Model, plan: _Plan) -> onnx.ModelProto:
    """The message with a stub for each weight of the main graph.

    Stubs are references into a data file: cheap to serialize, and already right where the weight goes there.
    """
    try:
        for weight in plan.weights:
            weight.value.const_value = ir.ExternalTensor(
                plan.location, weight.offset or 0, weight.tensor.nbytes if weight.offset is not None else 0,
                weight.tensor.dtype, shape=weight.tensor.shape, name=weight.value.name or "",
                doc_string=weight.tensor.doc_string, metadata_props=dict(weight.tensor.metadata_props),
            )  # fmt: skip
        proto = ir.to_proto(model)
    finally:
        for weight in plan.weights:
            weight.value.const_value = weight.tensor
    return _finish(model, proto)


def _finish(model: ir.Model, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put back what is carried beside the graph, and drop what only repeats a weight's own type and shape."""
    carried.restore(model, proto)
    for graph in carried.proto_graphs(proto.graph):
        weights = {tensor.name for tensor in graph.initializer}
        kept = [i for i in graph.value_info if i.name not in weights or i.metadata_props or i.doc_string]
        if len(kept) < len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(kept)
    return proto


def _write_data(plan: _Plan, file: BinaryIO) -> None:
    for weight in plan.weights:
        if weight.offset is not None:
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
    total = len(graph) + sum(len(_field(5, size)) + size for size in sizes)
    if total > PROTOBUF_LIMIT:
        raise ModelError(f"the graph without its large weights takes {total / 2**30:.1f} GiB; protobuf allows 2 GiB")
    file.write(skeleton.SerializeToString(deterministic=True))
    file.write(_field(7, total))
    file.write(graph)
    for weight, head, body, size in zip(plan.weights, heads, bodies, sizes, strict=True):
        file.write(_field(5, size) + head + body)
        if body:
            _write_raw(weight.tensor, file)


def _tensor_head(weight: _Weight, stub: onnx.TensorProto) -> bytes:
    """All of a TensorProto but its raw data."""
    if weight.offset is not None:
        return stub.SerializeToString(deterministic=True)
    if not _streams(weight):
        proto = ir.serde.serialize_tensor(weight.tensor)
        proto.name = weight.value.name or ""
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
    return _field(9, weight.tensor.nbytes) if _streams(weight) else b""


def _write_raw(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    before = file.tell()
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)
        tensor.release()  # a mapping that stays counts as our memory
    else:
        file.write(tensor.tobytes())
    if file.tell() - before != tensor.nbytes:
        raise ModelError(
            f"weight {tensor.name} gave {file.tell() - before} bytes where its shape needs {tensor.nbytes}"
        )


def _field(number: int, size: int) -> bytes:
    """Tag and length of a length-delimited protobuf field."""
    out = bytearray([number << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def _fill(target: Path, cleanup: contextlib.ExitStack, writer: Callable[[BinaryIO], None]) -> Path:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    cleanup.callback(temporary.unlink, missing_ok=True)
    with temporary.open("wb") as file:
        writer(file)
        file.flush()
        os.fsync(file.fileno())
    return temporary


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else (error.strerror or str(error))
        raise ModelError(f"cannot write {path}: {why}; what was there before is unchanged") from error
    except (EncodeError, ValueError) as error:
        raise ModelError(f"cannot write {path}: {_innermost(error)}") from error


def _forget_replaced(plan: _Plan, path: Path) -> None:
    """Remove the replaced model's data files; weights that were read from them come from the new files now."""
    for name in plan.replaced:
        file = path.with_name(name)
        for weight in plan.weights:
            if isinstance(weight.tensor, ir.ExternalTensor) and Path(weight.tensor.path) == file:
                _rebind(weight, plan, path)
        file.unlink(missing_ok=True)


def _rebind(weight: _Weight, plan: _Plan, path: Path) -> None:
    if weight.offset is None:
        weight.value.const_value = ir.Tensor(weight.tensor.numpy().copy(), name=weight.tensor.name)
        return
    weight.value.const_value = ir.ExternalTensor(
        plan.location, weight.offset, weight.tensor.nbytes, weight.tensor.dtype,
        shape=weight.tensor.shape, name=weight.value.name or "", base_dir=path.parent,
    )  # fmt: skip


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
