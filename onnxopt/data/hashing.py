"""Digests of data: of batches as they are fed, and of samples however they are cut into batches."""

import hashlib
from collections.abc import Mapping

import numpy as np

from onnxopt.data.archive import Array


class Stream:
    """One array over all batches, batch after batch, hashed as it comes: its values once, its cuts apart."""

    def __init__(self) -> None:
        self._values = hashlib.sha256()
        self._cuts = hashlib.sha256()
        self._runs: list[tuple[int, str]] = []

    def add(self, array: Array | None, rows: int) -> None:
        """Add a batch's array.

        Args:
            array: its first axis counts the rows; a single value goes with each of them; None: the batch has none.
            rows: samples of the batch.
        """
        if array is None:
            self._run(rows, "none")
            self._cuts.update(b"none ")
            return
        encoded, dtype = _encoded(array)
        self._cuts.update(f"{dtype} {array.shape} ".encode())
        self._run(rows, f"{dtype} {array.shape[1:] if array.ndim else 'each'}")
        self._values.update(encoded if array.ndim else encoded * rows)

    def _run(self, rows: int, kind: str) -> None:
        if self._runs and self._runs[-1][1] == kind:
            rows += self._runs.pop()[0]
        self._runs.append((rows, kind))

    def of_batches(self) -> str:
        """What the batches' arrays are, one by one."""
        return f"{self._values.hexdigest()} {self._cuts.hexdigest()}"

    def of_rows(self) -> str:
        """What the rows are, the same for any cuts between them, where all arrays count rows or are single values."""
        return f"{self._values.hexdigest()} {self._runs}"


def combined(kinds: Mapping[str, Mapping[str, str]]) -> str:
    """One sha256, in hex, of digests by kind and name, in whatever order they come."""
    ordered = sorted((kind, name, digest) for kind, found in kinds.items() for name, digest in found.items())
    return hashlib.sha256(str(ordered).encode()).hexdigest()


def _encoded(array: Array) -> tuple[bytes, str]:
    """Values, the same on every machine, of which those of several arrays can stand behind each other."""
    if array.dtype.kind in "OU":
        items = [str(item).encode() for item in array.flat]
        return b"".join(b"%d %s" % (len(item), item) for item in items), "string"
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).tobytes(), array.dtype.name
