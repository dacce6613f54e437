"""What a tensor holds, as a digest: read in pieces, and once for as long as the tensor object lives."""

import hashlib
import math
import mmap
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Update: TypeAlias = Callable[[bytes | memoryview], object]

_PIECE = 2**22
"""Bytes of a mapped weight that are looked at together."""

_known: WeakKeyDictionary[ir.TensorProtocol, bytes] = WeakKeyDictionary()


def digest(tensor: ir.TensorProtocol) -> bytes:
    """SHA-256 over element type, shape and content, however the tensor is stored; names do not matter.

    Tensors do not change, so one that was read is not read again. A file that nobody has mapped is read, not mapped;
    what is mapped does not stay in memory for having been read.
    """
    found = _known.get(tensor)
    if found is None:
        total = hashlib.sha256(joined((tensor.dtype.name.encode(), str(tensor.shape.numpy()).encode())))
        _feed(tensor, total.update)
        found = _known[tensor] = total.digest()
    return found


def joined(parts: Iterable[bytes]) -> bytes:
    """Parts of any length, one after the other, such that no other parts give the same bytes."""
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)


class _Stream:
    """A file, as far as tensors write to it."""

    def __init__(self, update: Update) -> None:
        self.write = update


def _feed(tensor: ir.TensorProtocol, update: Update) -> None:
    """Give out the bytes as a file would hold them; texts with their lengths."""
    while isinstance(tensor, ir.LazyTensor):
        tensor = tensor.raw()
    if tensor.dtype == ir.DataType.STRING:
        texts = np.asarray(tensor.numpy()).reshape(-1).tolist()
        update(joined(text.encode() if isinstance(text, str) else bytes(text) for text in texts))
    elif isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None:
        _feed_array(np.frombuffer(tensor.raw, np.uint8, tensor.nbytes, tensor.offset or 0), update)
    elif isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(_Stream(update))
    elif isinstance(tensor, ir.PackedTensor):
        _feed_array(tensor.numpy_packed(), update)
    elif isinstance(tensor, ir.Tensor) and tensor.dtype.bitwidth >= 8 and tensor.numpy().dtype.isnative:
        _feed_array(tensor.numpy(), update)
    else:
        update(tensor.tobytes())


def _feed_array(array: npt.NDArray[Any], update: Update) -> None:
    """The array's elements in C order, as the file format wants them: lowest byte first."""
    plain = array.view(f"V{array.itemsize}")
    mapping = _mapping(array)
    for piece in _pieces(plain):
        little = sys.byteorder == "little"
        update(piece.view(np.uint8).data if little else piece.view(array.dtype).byteswap().tobytes())
        if mapping is not None and piece.nbytes >= _PIECE:
            mapping.madvise(mmap.MADV_DONTNEED)


def _pieces(array: npt.NDArray[Any]) -> Iterable[npt.NDArray[Any]]:
    """Runs of elements `[n]`, contiguous in memory; copies of a piece each where the array is not."""
    count = max(_PIECE // array.itemsize, 1)
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        return (flat[start : start + count] for start in range(0, flat.size, count))
    rows = array if array.ndim else array.reshape(1)
    inner = math.prod(rows.shape[1:])
    if inner > count and len(rows.shape) > 1:
        return (piece for row in rows for piece in _pieces(row))
    step = max(count // max(inner, 1), 1)
    return (np.ascontiguousarray(rows[at : at + step]).reshape(-1) for at in range(0, len(rows), step))


def _mapping(array: npt.NDArray[Any]) -> mmap.mmap | None:
    """The file mapping behind an array, whose pages may be given back: they are read again when somebody asks.

    None for one that may be written to: what was written to it could be lost.
    """
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.obj if isinstance(base, memoryview) else base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and memoryview(base).readonly:
        return base
    return None
