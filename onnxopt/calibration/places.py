"""Arrays in files: appended once, then seen through read-only maps that cost no memory of their own.

A `Place` is all that has to travel between the process that wrote an array and the one that reads it.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import DataError, OnnxOptError
from onnxopt.statistics.masks import PIECE, Array, spans

ALIGNMENT = 64
"""Bytes: of a cache line, and of the widest vector registers."""


@dataclass(frozen=True)
class Place:
    """Where an array lies; small and picklable.

    Attributes:
        path: of the file.
        offset: of the first byte.
        nbytes: how many bytes it takes there.
        shape: of the array.
        dtype: of the array; object for strings, which are kept as UTF-8 behind their lengths.
    """

    path: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def end(self) -> int:
        """Size of the file when the array had been written."""
        return self.offset + self.nbytes


def free_bytes(folder: Path) -> int:
    """What is free on the disk that a folder is on, or will be."""
    return shutil.disk_usage(next(each for each in (folder, *folder.absolute().parents) if each.exists())).free


def write(path: Path, array: Array) -> Place:
    """Append an array to a file, or begin the file with it; nothing large is copied.

    Args:
        path: of the file; its folder is made where it is missing. One process at a time writes to it.
        array: of any type that numpy or ml_dtypes has, or of strings (`str` objects).

    Raises:
        OnnxOptError: it cannot be written; the file is then as it was.
        DataError: objects that are no strings.
    """
    content = _from_strings(array, path) if array.dtype.hasobject else array
    with _told(path, "write", "make room there, or name another work folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            offset = -(-start // ALIGNMENT) * ALIGNMENT
            try:
                _write_all(file, memoryview(bytes(offset - start)))
                for piece in _pieces(content):
                    _write_all(file, piece)
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(start)
                raise
    return Place(path, offset, content.nbytes, array.shape, array.dtype)


def read(place: Place) -> Array:
    """The array, as a view of a read-only map of its file (strings: a new array); it lives on when the file is deleted.

    Raises:
        OnnxOptError: the file is gone, or shorter than it was.
    """
    return view(mapped(place.path), place)


def mapped(path: Path) -> Array:
    """A whole file as a read-only map, uint8 [bytes]. Each map keeps a file open as long as a view of it lives.

    Raises:
        OnnxOptError: it cannot be read.
    """
    with _told(path, "read", "leave the work folder alone while a run uses it"):
        if not path.stat().st_size:
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, "r").view(np.ndarray)


def view(content: Array, place: Place) -> Array:
    """The array in a file that is mapped; OnnxOptError where the file is too short for it."""
    if place.end > len(content):
        raise OnnxOptError(
            f"{place.path} has {len(content)} bytes where {place.end} were written; "
            "leave the work folder alone while a run uses it"
        )
    part = content[place.offset : place.end]
    if place.dtype.hasobject:
        return _to_strings(part, place.shape)
    return np.ndarray(place.shape, place.dtype, buffer=part)


@contextlib.contextmanager
def _told(path: Path, doing: str, cure: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OnnxOptError(f"cannot {doing} {path}: {error.strerror or error}; {cure}") from error


def _pieces(array: Array) -> Iterator[memoryview]:
    """The bytes of an array in row-major order, without copying it whole."""
    if array.flags.c_contiguous:
        yield _bytes_of(array)
    else:
        yield from (_bytes_of(np.ascontiguousarray(array[span])) for span in spans(array.shape, PIECE))


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


def _write_all(file: FileIO, content: memoryview) -> None:
    """Write to a file that takes as much at a time as it likes."""
    while content:
        content = content[file.write(content) :]


def _from_strings(array: Array, path: Path) -> Array:
    """Lengths (int64), then the texts in UTF-8; uint8 [bytes]."""
    texts = array.reshape(-1).tolist()
    odd = [type(each).__name__ for each in texts if not isinstance(each, str)]
    if odd:
        raise DataError(f"cannot keep objects of type {odd[0]} in {path}: only numbers and strings")
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return np.concatenate([lengths.view(np.uint8), np.frombuffer(b"".join(encoded), np.uint8)])


def _to_strings(content: Array, shape: tuple[int, ...]) -> Array:
    found = np.empty(shape, np.object_)
    lengths = content[: 8 * found.size].view(np.int64)
    ends = 8 * found.size + np.cumsum(lengths)
    flat = found.reshape(-1)
    for at, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        flat[at] = content[end - length : end].tobytes().decode("utf-8", "surrogatepass")
    return found
