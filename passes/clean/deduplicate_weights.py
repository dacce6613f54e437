"""Weights of equal content, stored once."""

import hashlib
import mmap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.nodes import bodies
from onnxopt.passes.clean import is_constant
from onnxopt.passing import Context, Findings, Pass

_PIECE = 2**22
"""Bytes that are looked at together."""

_SAMPLES = 64
"""Bytes, evenly spaced, that tell most weights apart without reading them."""


class DeduplicateWeights(Pass):
    """Store weights of the same type, shape and bytes once, under the first one's name.

    How a file is written, no more: nothing is computed otherwise, and no later pass takes the readers for bound
    together. Weights that callers can override and those that are graph outputs stay. So do weights that a
    DequantizeLinear reads, scalars apart: runtimes fuse one with its reader only while nobody else reads it.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings, edit, saved = Findings(), Edit(self.name), 0
        outside = _outside(model)
        for equal in _equal([value for value in model.weights() if _may_merge(model, value)]):
            kept: list[ir.Value] = []
            for value in equal:
                assert isinstance(value.graph, ir.Graph) and value.const_value is not None
                first = next((other for other in kept if other.graph in outside[value.graph]), None)
                if first is None:
                    kept.append(value)
                    continue
                edit.rewire(value, first)
                saved += value.const_value.nbytes
                findings.change(value.name, self.name, f"the same as {first.name}: stored once")
        if findings.changed:
            model.apply(edit)
            findings.measures["saved_bytes"] = saved
        return findings


def _may_merge(model: Model, value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype == ir.DataType.STRING or value.is_graph_output() or not value.uses():
        return False
    if not is_constant(model, value):
        return False
    return tensor.size <= 1 or all(reader.op_type != "DequantizeLinear" for reader in value.consumers())


def _outside(model: Model) -> dict[ir.Graph, set[ir.Graph]]:
    """Each graph -> itself and those around it, whose values it sees."""
    found: dict[ir.Graph, set[ir.Graph]] = {model.graph: {model.graph}}
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        for body in (body for node in graph for body in bodies(node)):
            found[body] = {body, *found[graph]}
            waiting.append(body)
    return found


def _equal(values: Iterable[ir.Value]) -> Iterator[list[ir.Value]]:
    """Values of equal content, in groups. Content is read only where everything cheaper agrees."""
    groups: list[list[ir.Value]] = [list(values)]
    for kind in (_kind, _sample, _digest):
        groups = [same for group in groups for same in _split(group, kind) if len(same) > 1]
    yield from groups


def _split(values: Iterable[ir.Value], kind: Any) -> list[list[ir.Value]]:
    found: dict[Any, list[ir.Value]] = {}
    for value in values:
        found.setdefault(kind(value.const_value), []).append(value)
    return list(found.values())


def _kind(tensor: ir.TensorProtocol) -> tuple[ir.DataType, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape.numpy())


def _sample(tensor: ir.TensorProtocol) -> bytes:
    """Some bytes of a tensor; all of a small one."""
    size = tensor.nbytes
    places = range(size) if size <= _SAMPLES else np.linspace(0, size - 1, _SAMPLES).astype(int)
    if isinstance(tensor, ir.ExternalTensor) and tensor.raw is None:
        with open(tensor.path, "rb") as file:
            return b"".join(_at(file, (tensor.offset or 0) + place) for place in places)
    content = _bytes(tensor)
    return bytes(content[place] for place in places)


def _at(file: Any, place: int) -> bytes:
    file.seek(place)
    byte: bytes = file.read(1)
    return byte


def _digest(tensor: ir.TensorProtocol) -> bytes:
    total = hashlib.sha256()
    for piece in _pieces(tensor):
        total.update(piece)
    return total.digest()


def _pieces(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor, of which only one piece is held at a time.

    A file that nobody has mapped is read, not mapped; what is mapped does not stay in memory for having been read.
    """
    if isinstance(tensor, ir.ExternalTensor) and tensor.raw is None:
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset or 0)
            left = tensor.nbytes
            while left > 0 and (piece := file.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece
        return
    content = _bytes(tensor)
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE].data
    if len(content) >= _PIECE:
        _let_go(content)


def _bytes(tensor: ir.TensorProtocol) -> npt.NDArray[np.uint8]:
    if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None:
        return np.frombuffer(tensor.raw, np.uint8, tensor.nbytes, tensor.offset or 0)
    if isinstance(tensor, ir.PackedTensor):
        return np.ascontiguousarray(tensor.numpy_packed()).reshape(-1).view(np.uint8)
    if isinstance(tensor, ir.Tensor) and tensor.dtype.bitwidth >= 8:
        return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    return np.frombuffer(tensor.tobytes(), np.uint8)


def _let_go(array: npt.NDArray[Any]) -> None:
    """Give the pages of a mapped file back; they are read again when somebody asks."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.obj if isinstance(base, memoryview) else base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
