"""Model files and messages in. Large embedded weights are views of the mapped file, never copies.

What is read stays readable when the file is replaced by another of its name (as saving does); it must not be
overwritten in place.
"""

import hashlib
import mmap
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxopt import carried
from onnxopt.errors import ModelError, innermost
from onnxopt.external import NUMERIC, check_external, check_locations, check_sizes, location_of, places, proto_tensors
from onnxopt.scoping import unshadow
from onnxopt.wire import Cutter

_MAPPED_BYTES = 16 * 2**20
"""Smaller files are read whole: nothing that happens to them later can then be felt."""

_FILES_REMEMBERED = 32

Operator = tuple[str, str]
"""Domain ("" for the default) and type."""


def read(path: Path) -> ir.Model:
    """Read a model file; external data are checked now and mapped when used."""
    model = from_bytes(_content(path), str(path))
    check_external(model, path)
    return model


def from_bytes(content: bytes | memoryview, what: str) -> ir.Model:
    """A serialized message to an onnx-ir model, whose large weights are views of the bytes."""
    proto, cut = _parse(content, what)
    return _build(proto, cut, what)


def from_proto(proto: onnx.ModelProto, what: str = "the model") -> ir.Model:
    """Message to onnx-ir model; the model's tensors share the message's memory, so do not change it afterwards."""
    return _build(proto, {}, what)


def digest(path: Path) -> str:
    """SHA-256 of a model file and its external data."""
    return digest_of((path, *external_files(path)))


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of files one after the other, read in pieces."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(2**22):
                total.update(piece)
    return total.hexdigest()


def external_files(path: Path) -> list[Path]:
    """The external data files that a model file refers to.

    Raises:
        ModelError: no model file, or one that refers to files it must not (see `external.check_external`).
    """
    held = locations(path)
    check_locations(held, path)
    return sorted({path.resolve().parent / location for location in held})


def locations(path: Path) -> frozenset[str]:
    """The external data that a model file names, as it names them and whether or not they are there."""
    return _facts_of(path).locations


def operators(path: Path) -> frozenset[Operator]:
    """The operators that a model file uses anywhere: in its graph, subgraphs and functions."""
    return _facts_of(path).operators


@dataclass(frozen=True)
class _Facts:
    locations: frozenset[str]
    operators: frozenset[Operator]


def _facts_of(path: Path) -> _Facts:
    try:
        path = path.resolve()
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _read_facts(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(_FILES_REMEMBERED)
def _read_facts(path: Path, version: tuple[int, ...]) -> _Facts:
    """Facts of a file as it is at one time."""
    proto, cut = _parse(_content(path), str(path))
    nodes = (node for scope in carried.proto_scopes(proto) for node in scope.node)
    return _Facts(
        frozenset(location_of(tensor) for tensor in proto_tensors(proto) if _is_external(tensor)) - cut.keys(),
        frozenset(("" if node.domain == "ai.onnx" else node.domain, node.op_type) for node in nodes),
    )


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _content(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < _MAPPED_BYTES:
                return memoryview(file.read())
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ModelError:
    if isinstance(error, FileNotFoundError):
        return ModelError(f"no such model file: {path}")
    return ModelError(f"cannot read model file {path}: {error.strerror}")


def _parse(content: bytes | memoryview, what: str) -> tuple[onnx.ModelProto, Mapping[str, memoryview]]:
    """The message without its large tensors, and their bytes by the location that stands for them."""
    # The name cannot be known beforehand: no file can claim to hold one.
    cutter = Cutter(memoryview(content), NUMERIC, f"onnxopt-cut:{secrets.token_hex(8)}:")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(cutter.skeleton())  # type: ignore[arg-type]  # takes any buffer
    except DecodeError as error:
        raise ModelError(f"{what} is not an ONNX model, or is cut short: protobuf cannot parse it") from error
    return proto, cutter.views


def _build(proto: onnx.ModelProto, cut: Mapping[str, memoryview], what: str) -> ir.Model:
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{what} is not an ONNX model, or is cut short: it has no graph")
    check_sizes(proto, what, cut)
    extras = carried.take(proto)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx-ir raises whatever its readers raise; the cause is kept
        raise ModelError(f"{what} is not a valid ONNX model: {innermost(error)}") from error
    finally:
        carried.put(proto, extras)
    carried.attach(model, extras)
    for place in list(places(model)) if cut else ():
        if isinstance(place.tensor, ir.ExternalTensor) and place.tensor.location in cut:
            place.put(_view(place.tensor, cut[str(place.tensor.location)]))
    unshadow(model.graph)
    return model


def _view(reference: ir.ExternalTensor, content: memoryview) -> ir.TensorProtocol:
    """The tensor that a reference stands for; its array is the bytes themselves."""
    dtype, shape = reference.dtype, reference.shape
    tensor: ir.PackedTensor[np.ndarray] | ir.Tensor[np.ndarray]
    if dtype.bitwidth < 8:
        tensor = ir.PackedTensor(np.frombuffer(content, np.uint8), dtype, shape=shape)
    else:
        tensor = ir.Tensor(np.frombuffer(content, dtype.numpy()).reshape(shape.numpy()), dtype, shape=shape)
    tensor.name, tensor.doc_string = reference.name, reference.doc_string
    tensor.metadata_props.update(reference.metadata_props)
    return tensor
