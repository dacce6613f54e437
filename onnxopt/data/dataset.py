"""Batches that fit a model: checked once when they are opened, then read as often as needed."""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxopt.data.archive import Array
from onnxopt.data.layout import batch_rows
from onnxopt.data.sources import RawBatch, Source
from onnxopt.data.validate import LABEL, conform
from onnxopt.errors import DataError
from onnxopt.model import Signature

Rows: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """What one call of the model gets.

    Attributes:
        feeds: input name -> array, in the order of the model's inputs.
        labels: label name -> array, for these samples.
        index: place among the dataset's batches.
        samples: how many samples it holds.
    """

    feeds: dict[str, Array]
    labels: dict[str, Array]
    index: int
    samples: int


@dataclass(frozen=True)
class Pick:
    """A batch of the source that a dataset has, or some rows of it."""

    batch: int
    rows: Rows | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Batches for a model; one batch at a time is in memory. Picklable where its source is.

    Attributes:
        name: what messages and reports call it.
        signature: of the model that it was checked against.
        label_names: labels that every batch has.
        notes: what was converted or left out, a line each.
        is_synthetic: whether the inputs are random numbers.
    """

    name: str
    signature: Signature
    label_names: tuple[str, ...]
    notes: tuple[str, ...]
    is_synthetic: bool
    _source: Source = field(repr=False)
    _rows: Rows = field(repr=False)
    _divisible: bool = field(repr=False)
    _content: str = field(repr=False)
    _picks: tuple[Pick, ...] = field(repr=False)

    @property
    def samples(self) -> int:
        """Number of samples; a batch counts as one where its first axis does not say (see `layout.batch_rows`)."""
        return sum(map(self._samples, self._picks))

    @property
    def batch_count(self) -> int:
        """Number of batches."""
        return len(self._picks)

    @property
    def labels(self) -> Mapping[str, Array]:
        """Each label over all samples.

        Raises:
            DataError: a label's batches differ in more than their first axis; `Batch.labels` has them one by one.
        """
        parts: dict[str, list[Array]] = {name: [] for name in self.label_names}
        for batch in self.batches():
            for name, found in parts.items():
                found.append(np.atleast_1d(batch.labels[name]))
        for name, found in parts.items():
            if len({array.shape[1:] for array in found}) > 1:
                raise DataError(f"{self.name}: label {name!r} differs in shape between batches")
        return {name: np.concatenate(found) for name, found in parts.items() if found}

    def batches(self) -> Iterator[Batch]:
        """Read, check and convert the batches, always in the same order.

        Raises:
            DataError: the data are no longer what they were when they were opened.
        """
        raw = self._source.read([pick.batch for pick in self._picks])
        for index, (pick, found) in enumerate(zip(self._picks, raw, strict=True)):
            feeds, labels = split_labels(found, self.signature)
            feeds = conform(self.signature, feeds, found.where)
            count = batch_rows(self.signature, feeds)[0]
            if count != self._rows[pick.batch]:
                raise DataError(f"{found.where}: {count} samples where there were {self._rows[pick.batch]} before")
            if pick.rows is not None:
                feeds = {name: _cut(array, pick.rows, count) for name, array in feeds.items()}
                labels = {name: _cut(array, pick.rows, count) for name, array in labels.items()}
            yield Batch(feeds, labels, index, self._samples(pick))

    def first(self) -> Batch:
        """The first batch.

        Raises:
            DataError: there is none (an empty part of a split).
        """
        batch = next(self.batches(), None)
        if batch is None:
            raise DataError(f"{self.name}: this part of the data is empty")
        return batch

    def take(self, samples: int) -> "Dataset":
        """The first samples; at least one batch, and a whole one where batches cannot be cut."""
        picks: list[Pick] = []
        left = samples
        for pick in self._picks:
            if left <= 0 and picks:
                break
            size = self._samples(pick)
            if self._divisible and size > max(left, 1):
                pick = Pick(pick.batch, self._rows_of(pick)[: max(left, 1)])
            picks.append(pick)
            left -= size
        return replace(self, _picks=tuple(picks))

    def split(self, fraction: float, seed: int) -> "tuple[Dataset, Dataset]":
        """Hold back a random part, the same for the same seed and data; no sample is in both.

        Whole batches are held back where the part makes up at least one or batches cannot be cut, else rows of
        batches. A single batch that cannot be cut is not held back: the second dataset is then empty.

        Args:
            fraction: share of the samples (batches, where they are held back whole) for the second dataset.
            seed: of the choice.
        """
        rng = np.random.default_rng(seed)
        count = len(self._picks)
        if not self._divisible or fraction * count >= 1:
            held = _choice(rng, count, fraction)
            parts = [tuple(p for i, p in enumerate(self._picks) if (i in held) is side) for side in (False, True)]
        else:
            units = [(pick.batch, row) for pick in self._picks for row in self._rows_of(pick)]
            held = _choice(rng, len(units), fraction)
            parts = [_grouped([u for i, u in enumerate(units) if (i in held) is side]) for side in (False, True)]
        kept, back = (replace(self, _picks=part) for part in parts)
        return kept, back

    def digest(self) -> str:
        """sha256 over all feeds and labels as they are fed (names, dtypes, shapes, values), in hex.

        The same on every machine and for every form of the same batches.
        """
        if self._picks == tuple(map(Pick, range(len(self._rows)))):
            return self._content
        return hashlib.sha256(f"{self._content} {[(p.batch, p.rows) for p in self._picks]}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the batches as a folder that `open_data` takes, one .npz a batch; the digest stays the same."""
        folder.mkdir(parents=True, exist_ok=True)
        for batch in self.batches():
            arrays = {**batch.feeds, **{LABEL + name: array for name, array in batch.labels.items()}}
            with zipfile.ZipFile(folder / f"batch{batch.index:06d}.npz", "w") as file:
                for name, array in arrays.items():
                    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, _storable(array), allow_pickle=False)

    def _samples(self, pick: Pick) -> int:
        return self._rows[pick.batch] if pick.rows is None else len(pick.rows)

    def _rows_of(self, pick: Pick) -> Rows:
        return tuple(range(self._rows[pick.batch])) if pick.rows is None else pick.rows


def split_labels(found: RawBatch, signature: Signature) -> tuple[dict[str, Any], dict[str, Array]]:
    """A batch's inputs and its labels, these without prefix; an input may itself be called `label/NAME`."""
    inputs = {info.name for info in signature.inputs}
    aside = {name for name in found.arrays if name.startswith(LABEL) and name not in inputs}
    feeds = {name: array for name, array in found.arrays.items() if name not in aside}
    labels = {name.removeprefix(LABEL): np.asarray(array) for name, array in found.arrays.items() if name in aside}
    return feeds, labels


def _cut(array: Array, rows: Rows, count: int) -> Array:
    return array[list(rows)] if array.ndim and array.shape[0] == count else array


def _storable(array: Array) -> Array:
    """An array that an .npy file can hold: strings of fixed width, bfloat16 and its like as void bytes."""
    if array.dtype == object:
        return array.astype(str)
    return array.view(f"V{array.itemsize}") if array.dtype.isbuiltin == 2 else array


def _choice(rng: np.random.Generator, count: int, fraction: float) -> set[int]:
    """A random share of 0..count-1: at least one, never all, none of a single one."""
    size = min(max(round(fraction * count), 1), count - 1)
    return set(rng.permutation(count)[:size].tolist())


def _grouped(units: Sequence[tuple[int, int]]) -> tuple[Pick, ...]:
    rows: dict[int, list[int]] = {}
    for batch, row in units:
        rows.setdefault(batch, []).append(row)
    return tuple(Pick(batch, tuple(found)) for batch, found in rows.items())
