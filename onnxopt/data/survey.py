"""The one pass over data when they are opened: everything is checked, counted and hashed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt.data.archive import Array
from onnxopt.data.dataset import Dataset, Pick, split_labels
from onnxopt.data.layout import batch_rows
from onnxopt.data.sources import RawBatch, Source
from onnxopt.data.validate import conform
from onnxopt.errors import DataError
from onnxopt.model import Signature


def survey(
    source: Source, signature: Signature, name: str, *, synthetic: bool = False, notes: Sequence[str] = ()
) -> Dataset:
    """Read everything once: check it, count samples, find the labels, take the digest.

    Args:
        source: the batches.
        signature: the model's.
        name: what messages call the data.
        synthetic: whether they are random.
        notes: what is known of them already.

    Raises:
        DataError: there is no batch, or one does not fit the model.
    """
    seen = _Seen(signature)
    for found in source.read(None):
        seen.add(found)
    if not seen.rows:
        raise DataError(f"{name}: empty, it gives no batches")
    aligned, misfits = source.aligned(seen.rows, seen.leads)
    if aligned is not source:  # its labels come out only now
        for found in aligned.read(None):
            seen.add_labels(split_labels(found, signature)[1])
    return Dataset(
        name=name,
        signature=signature,
        label_names=seen.complete_labels(),
        notes=(*notes, *seen.conversions, *misfits),
        is_synthetic=synthetic,
        _source=aligned,
        _rows=tuple(seen.rows),
        _divisible=seen.divisible,
        _content=seen.digest(),
        _picks=tuple(map(Pick, range(len(seen.rows)))),
    )


class _Seen:
    """What a survey has found so far."""

    def __init__(self, signature: Signature) -> None:
        self.rows: list[int] = []
        self.leads: list[int] = []
        self.divisible = True
        self.conversions: dict[str, None] = {}
        self._signature = signature
        self._content = hashlib.sha256()
        self._labels: dict[str, hashlib._Hash] = {}
        self._label_counts: dict[str, int] = {}

    def add(self, found: RawBatch) -> None:
        given, labels = split_labels(found, self._signature)
        feeds = conform(self._signature, given, found.where)
        self.conversions |= dict.fromkeys(_conversions(given, feeds))
        rows, divisible = batch_rows(self._signature, feeds)
        self.rows.append(rows)
        self.leads.append(next((array.shape[0] for array in feeds.values() if array.ndim), 1))
        self.divisible &= divisible
        for name, array in sorted(feeds.items()):
            _hash(self._content, name, array)
        self.add_labels(labels)

    def add_labels(self, labels: Mapping[str, Array]) -> None:
        for name, array in labels.items():
            self._label_counts[name] = self._label_counts.get(name, 0) + 1
            _hash(self._labels.setdefault(name, hashlib.sha256()), name, array)

    def complete_labels(self) -> tuple[str, ...]:
        """Labels that every batch has."""
        return tuple(name for name, count in self._label_counts.items() if count == len(self.rows))

    def digest(self) -> str:
        total = self._content.copy()
        for _, hashed in sorted(self._labels.items()):
            total.update(hashed.digest())
        return total.hexdigest()


def _hash(hashed: "hashlib._Hash", name: str, array: Array) -> None:
    if array.dtype.kind in "OU":
        items = [str(item).encode() for item in array.flat]
        hashed.update(f"{name} string {array.shape} {[len(item) for item in items]} ".encode())
        hashed.update(b"".join(items))
        return
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    hashed.update(f"{name} {array.dtype.name} {array.shape} ".encode())
    hashed.update(np.ascontiguousarray(little).tobytes())


def _conversions(given: Mapping[str, Any], feeds: Mapping[str, Array]) -> Iterator[str]:
    for name, array in feeds.items():
        have = np.asarray(given[name]).dtype
        if have.kind not in "VUO" and have.newbyteorder("=") != array.dtype:
            yield f"input {name!r}: {have} in the data was converted to {array.dtype}"
