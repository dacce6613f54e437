"""Results of statistics off memory: large arrays lie in a file, and come back as views of its map.

A result is any structure of dataclasses, tuples, dicts, arrays and plain numbers. Its arrays go to the file; the rest
is a pickle of a few hundred bytes, the header, which travels with the `Stored` from the process that computed the
result to the one that wants it. Pickles can run code when they are loaded: this one never touches a disk. It comes
from the run's own worker through the run's own pipe, and what lies in the file is numbers and nothing else.
"""

import io
import pickle
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from onnxopt.calibration.places import Place, mapped, view, write
from onnxopt.errors import OnnxOptError
from onnxopt.statistics.masks import Array

ResultT = TypeVar("ResultT")

LARGE = 4096
"""Arrays of at most so many bytes stay in the header: a page is mapped whole anyway."""


@dataclass(frozen=True)
class Stored(Generic[ResultT]):
    """A result whose large arrays lie in a file; picklable.

    Attributes:
        path: the file; there is none where no array is large.
        nbytes: its size.
        header: all the rest; only ever load what this run has made.
    """

    path: Path
    nbytes: int
    header: bytes = field(repr=False)


def put(result: ResultT, path: Path) -> Stored[ResultT]:
    """Write a result's large arrays to a file, each once; they are not copied in memory.

    Args:
        result: see above; a dict of many results makes one file of them, of which `take` maps all at once.
        path: of the file, in the place of what was there. Views of what was there live on.

    Raises:
        OnnxOptError: it cannot be written; it is gone then.
    """
    path.unlink(missing_ok=True)
    header = io.BytesIO()
    pickler = _Pickler(header, path)
    try:
        pickler.dump(result)
    except OnnxOptError:
        path.unlink(missing_ok=True)
        raise
    return Stored(path, pickler.end, header.getvalue())


def take(stored: Stored[ResultT]) -> ResultT:
    """The result as it was; its large arrays are read-only views of the file's map and stay so when it is deleted.

    Raises:
        OnnxOptError: the file is gone, or shorter than it was.
    """
    result: ResultT = _Unpickler(io.BytesIO(stored.header), stored.path).load()
    return result


class _Pickler(pickle.Pickler):
    """Leaves large arrays out, and writes them to a file instead."""

    def __init__(self, header: io.BytesIO, path: Path) -> None:
        super().__init__(header, protocol=5)
        self._path = path
        self._written: dict[int, tuple[Array, Place]] = {}  # an array is kept, so that no other gets its id
        self.end = 0

    def persistent_id(self, obj: Any) -> Place | None:
        if type(obj) not in (np.ndarray, np.memmap) or obj.nbytes <= LARGE or obj.dtype.hasobject:
            return None
        if id(obj) not in self._written:
            place = write(self._path, obj)
            self._written[id(obj)] = obj, place
            self.end = place.end
        return self._written[id(obj)][1]


class _Unpickler(pickle.Unpickler):
    """Puts views of the file in the place of what was left out."""

    def __init__(self, header: io.BytesIO, path: Path) -> None:
        super().__init__(header)
        self._path = path

    @cached_property
    def _content(self) -> Array:
        return mapped(self._path)

    def persistent_load(self, pid: Place) -> Array:
        return view(self._content, pid)
