"""Named arrays, in an .npz file or in memory, of which only what is asked for is loaded.

numpy's own reader loads a member whole; here rows of a member are read one run after the other, sizes are
checked against the file before anything is allocated, and pickled objects are refused.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.errors import DataError

Array: TypeAlias = npt.NDArray[Any]

_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Header:
    """What is known of an array before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Reader(Protocol):
    """An open archive."""

    def array(self, name: str) -> Array:
        """The whole array."""

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows `start` to `stop` along the first axis; cheap when calls ascend."""


class Archive(Protocol):
    """Arrays by name; picklable, and opened anew for each pass over the data."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def headers(self) -> Mapping[str, Header]:
        """Shape and dtype of each array."""

    def open(self) -> AbstractContextManager[Reader]:
        """Open it for reading."""


class ArrayArchive:
    """Arrays in memory."""

    def __init__(self, arrays: Mapping[str, Any], name: str) -> None:
        self.name = name
        self._arrays = {str(key): np.asarray(value) for key, value in arrays.items()}
        self.headers = {key: Header(array.shape, array.dtype) for key, array in self._arrays.items()}

    def open(self) -> AbstractContextManager[Reader]:
        """There is nothing to open."""
        return nullcontext(self)

    def array(self, name: str) -> Array:
        """The whole array."""
        return self._arrays[name]

    def rows(self, name: str, start: int, stop: int) -> Array:
        """A view of some rows."""
        return self._arrays[name][start:stop]


class NpzArchive:
    """An .npz file, compressed or not.

    Raises:
        DataError: missing, no zip file, truncated, or with members that are no plain arrays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.headers: dict[str, Header] = {}
        with _unzipped(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                with _reading(path, name), archive.open(info) as member:
                    header, _ = _read_header(member)
                    _check_size(info, header, member.tell())
                self.headers[name] = header

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """Open the file; members are opened when they are first read."""
        with _unzipped(self.path) as archive:
            reader = _NpzReader(self.path, archive)
            try:
                yield reader
            finally:
                reader.close()


class _NpzReader:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self._members: dict[str, _Member] = {}

    def array(self, name: str) -> Array:
        with _reading(self._path, name), self._archive.open(f"{name}.npy") as stream:
            return _Member(stream).whole()

    def rows(self, name: str, start: int, stop: int) -> Array:
        with _reading(self._path, name):
            if name not in self._members:
                self._members[name] = _Member(self._archive.open(f"{name}.npy"))
            return self._members[name].rows(start, stop)

    def close(self) -> None:
        for member in self._members.values():
            member.stream.close()


class _Member:
    """An .npy stream that lies at some row."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self._header, self._fortran = _read_header(stream)
        self._start = stream.tell()
        self._columns: Array | None = None

    def whole(self) -> Array:
        shape = self._header.shape
        if self._fortran:
            return self._read(0, shape[::-1]).T
        return self._read(0, shape)

    def rows(self, start: int, stop: int) -> Array:
        shape = self._header.shape
        if self._fortran:  # rows are scattered over the file
            if self._columns is None:
                self._columns = self.whole()
            return self._columns[start:stop]
        stop = min(stop, shape[0])
        return self._read(start * math.prod(shape[1:]), (max(stop - start, 0), *shape[1:]))

    def _read(self, first: int, shape: tuple[int, ...]) -> Array:
        dtype = self._header.dtype
        offset, size = self._start + first * dtype.itemsize, math.prod(shape) * dtype.itemsize
        if self.stream.tell() != offset:
            self.stream.seek(offset)
        content = self.stream.read(size)
        if len(content) != size:
            raise EOFError("it ends early")
        return np.ndarray(shape, dtype, content)


@contextmanager
def _unzipped(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}); write it with numpy.savez") from error
    with archive:
        yield archive


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    """Only around reads: what the caller does with the array must not pass through here."""
    try:
        yield
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: array {name!r} cannot be read: {reason}; write the file anew") from error


def _read_header(stream: IO[bytes]) -> tuple[Header, bool]:
    version = np.lib.format.read_magic(stream)
    if version not in _READ_HEADER:
        raise ValueError(f".npy version {version} is for structured types, which no tensor has")
    shape, fortran, dtype = _READ_HEADER[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects; save plain numbers or fixed-width strings")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape {shape} is impossible")
    return Header(tuple(shape), dtype), bool(fortran)


def _check_size(info: zipfile.ZipInfo, header: Header, start: int) -> None:
    stated = math.prod(header.shape) * header.dtype.itemsize
    if info.file_size - start < stated:
        there = info.file_size - start
        raise ValueError(f"{list(header.shape)} {header.dtype} takes {stated} bytes, the file has {there}")
