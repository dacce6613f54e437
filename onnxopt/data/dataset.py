"""Batches that fit a model: checked once when they are opened, then read as often as needed."""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count, groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxopt.data.archive import Array
from onnxopt.data.layout import batch_rows
from onnxopt.data.masks import Mask, as_mask, is_fed
from onnxopt.data.sources import RawBatch, Source
from onnxopt.data.validate import LABEL, MASK, conform
from onnxopt.errors import DataError
from onnxopt.model import Signature

Rows: TypeAlias = tuple[int, ...]
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """What one call of the model gets.

    Attributes:
        feeds: input name -> array, in the order of the model's inputs.
        labels: label name -> array, for these samples.
        index: place among the dataset's batches.
        samples: how many samples it holds.
        mask: [samples] or [samples, tokens], what counts (True) and what is padding; None: no mask was named.
    """

    feeds: dict[str, Array]
    labels: dict[str, Array]
    index: int
    samples: int
    mask: Mask | None = None


@dataclass(frozen=True)
class Pick:
    """A batch of the source that a dataset has, or some rows of it."""

    batch: int
    rows: Rows | None = None


@dataclass(frozen=True)
class Facts:
    """What the one pass over a source has found (`survey`).

    Attributes:
        rows: samples of each batch.
        shapes: of each batch's feeds, by input.
        divisible: whether some rows of a batch are a batch too, for all of them.
        content: digest of the batches.
        samples: digest of the samples' inputs and mask, where divisible the same for any cuts into batches.
    """

    rows: tuple[int, ...]
    shapes: tuple[Mapping[str, Shape], ...]
    divisible: bool
    content: str
    samples: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Batches for a model; one batch at a time is in memory. Picklable where its source is.

    Attributes:
        name: what messages and reports call it.
        signature: of the model that it was checked against.
        label_names: labels that every batch has.
        notes: what was converted or left out, a line each.
        is_synthetic: whether the inputs are random numbers.
        mask: name of the padding mask that every batch has; None: none was named.
        mask_names: masks `mask/NAME` that every batch has, by NAME, whether looked at or not.
    """

    name: str
    signature: Signature
    label_names: tuple[str, ...]
    notes: tuple[str, ...]
    is_synthetic: bool
    mask: str | None
    mask_names: tuple[str, ...]
    _source: Source = field(repr=False)
    _facts: Facts = field(repr=False)
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
    def largest_batch(self) -> int:
        """Samples of the largest batch; 0 without any."""
        return max(map(self._samples, self._picks), default=0)

    @property
    def divisible(self) -> bool:
        """Whether batches can be cut: some rows of a batch are a batch too."""
        return self._facts.divisible

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
        groups = [(batch, list(picks)) for batch, picks in groupby(self._picks, key=lambda pick: pick.batch)]
        raw = self._source.read([batch for batch, _ in groups])
        index = count()
        for (batch, picks), found in zip(groups, raw, strict=True):
            whole = self._whole(found, batch)
            for pick in picks:
                yield replace(_part(whole, pick.rows), index=next(index))

    def _whole(self, found: RawBatch, batch: int) -> Batch:
        """A batch of the source, checked."""
        feeds, labels, masks = split_aside(found, self.signature)
        feeds = conform(self.signature, feeds, found.where)
        rows, expected = batch_rows(self.signature, feeds)[0], self._facts.rows[batch]
        if rows != expected:
            raise DataError(f"{found.where}: {rows} samples where there were {expected} before")
        return Batch(feeds, labels, batch, rows, self._mask(feeds, masks, rows, found.where))

    def _mask(self, feeds: Mapping[str, Array], masks: Mapping[str, Array], rows: int, where: str) -> Mask | None:
        if self.mask is None:
            return None
        fed = is_fed(self.mask, self.signature)
        among = feeds if fed else masks
        if self.mask not in among:
            raise DataError(f"{where}: the padding mask {self.mask!r} is gone, which was there before")
        return as_mask(among[self.mask], self.mask, fed, (rows, first_axis(feeds)), where)

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
            if self.divisible and size > max(left, 1):
                pick = self._pick(pick.batch, self._rows_of(pick)[: max(left, 1)])
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
        batches = len(self._picks)
        if not self.divisible or fraction * batches >= 1:
            held = _choice(rng, batches, fraction)
            parts = [tuple(p for i, p in enumerate(self._picks) if (i in held) is side) for side in (False, True)]
        else:
            units = [(pick.batch, row) for pick in self._picks for row in self._rows_of(pick)]
            held = _choice(rng, len(units), fraction)
            parts = [self._grouped([u for i, u in enumerate(units) if (i in held) is side]) for side in (False, True)]
        kept, back = (replace(self, _picks=part) for part in parts)
        return kept, back

    def rebatched(self, rows: int) -> "Dataset":
        """The same samples in the same order, in batches of at most so many rows and at least one.

        Batches of the source are cut, never joined; where they cannot be cut (`divisible`), nothing changes. Labels
        without an entry for each sample go whole with every piece. A batch of the source is read once.
        """
        if not self.divisible:
            return self
        step = max(rows, 1)
        picks: list[Pick] = []
        for batch, found in groupby(self._picks, key=lambda pick: pick.batch):
            all_rows = tuple(row for pick in found for row in self._rows_of(pick))
            picks += [self._pick(batch, all_rows[start : start + step]) for start in range(0, len(all_rows), step)]
        return replace(self, _picks=tuple(picks))

    def largest_shapes(self) -> dict[str, Shape] | None:
        """Input name -> the largest size of each axis over all batches; nothing is read for that.

        None where there is no batch, or where an input's batches differ in rank.
        """
        sizes: dict[str, Shape] = {}
        for pick in self._picks:
            for name, shape in self._facts.shapes[pick.batch].items():
                if pick.rows is not None and shape[:1] == (self._facts.rows[pick.batch],):
                    shape = (len(pick.rows), *shape[1:])
                known = sizes.setdefault(name, shape)
                if len(known) != len(shape):
                    return None
                sizes[name] = tuple(map(max, known, shape))
        return sizes if self._picks else None

    def digest(self) -> str:
        """sha256 over all feeds, labels and the mask as they are fed (names, dtypes, shapes, values), in hex.

        The same on every machine and for every form of the same batches.
        """
        if self._picks == tuple(map(Pick, range(len(self._facts.rows)))):
            return self._facts.content
        return _sha256(f"{self._facts.content} {[(p.batch, p.rows) for p in self._picks]}")

    def samples_digest(self) -> str:
        """sha256 over the inputs and the mask of all samples, in hex; labels are left out.

        Where batches can be cut (`divisible`), it is the same however the samples are cut into batches, here
        (`rebatched`) or by whoever wrote them; else it is of the batches. Parts (`take`, `split`) are told from the
        whole by the places of their samples in it, so parts of different data differ even with the same samples.
        """
        if not self.divisible:
            batches = [pick.batch for pick in self._picks]
            whole = batches == list(range(len(self._facts.rows)))
            return self._facts.samples if whole else _sha256(f"{self._facts.samples} {batches}")
        offsets = list(accumulate(self._facts.rows, initial=0))
        spans: list[list[int]] = []
        for pick in self._picks:
            for place in (offsets[pick.batch] + row for row in self._rows_of(pick)):
                if spans and spans[-1][1] == place:
                    spans[-1][1] += 1
                else:
                    spans.append([place, place + 1])
        return self._facts.samples if spans == [[0, offsets[-1]]] else _sha256(f"{self._facts.samples} {spans}")

    def save(self, folder: Path) -> None:
        """Write the batches as a folder that `open_data` takes, one .npz a batch; the digest stays the same.

        Of masks only the one that was named is written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        aside = None if self.mask is None or is_fed(self.mask, self.signature) else MASK + self.mask
        for batch in self.batches():
            arrays = {**batch.feeds, **{LABEL + name: array for name, array in batch.labels.items()}}
            if aside is not None and batch.mask is not None:
                arrays[aside] = batch.mask
            with zipfile.ZipFile(folder / f"batch{batch.index:06d}.npz", "w") as file:
                for name, array in arrays.items():
                    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, _storable(array), allow_pickle=False)

    def _samples(self, pick: Pick) -> int:
        return self._facts.rows[pick.batch] if pick.rows is None else len(pick.rows)

    def _pick(self, batch: int, rows: Rows) -> Pick:
        """Some rows of a batch; all of them are the batch."""
        return Pick(batch, rows if len(rows) < self._facts.rows[batch] else None)

    def _grouped(self, units: Sequence[tuple[int, int]]) -> tuple[Pick, ...]:
        rows: dict[int, list[int]] = {}
        for batch, row in units:
            rows.setdefault(batch, []).append(row)
        return tuple(self._pick(batch, tuple(found)) for batch, found in rows.items())

    def _rows_of(self, pick: Pick) -> Rows:
        return tuple(range(self._facts.rows[pick.batch])) if pick.rows is None else pick.rows


def split_aside(found: RawBatch, signature: Signature) -> tuple[dict[str, Any], dict[str, Array], dict[str, Array]]:
    """A batch's inputs, its labels and its masks, these without prefix; an input may itself be called `label/NAME`."""
    inputs = {info.name for info in signature.inputs}
    feeds: dict[str, Any] = {}
    labels: dict[str, Array] = {}
    masks: dict[str, Array] = {}
    for name, array in found.arrays.items():
        if name not in inputs and name.startswith(LABEL):
            labels[name.removeprefix(LABEL)] = np.asarray(array)
        elif name not in inputs and name.startswith(MASK):
            masks[name.removeprefix(MASK)] = np.asarray(array)
        else:
            feeds[name] = array
    return feeds, labels, masks


def first_axis(feeds: Mapping[str, Array]) -> int:
    """Size of the first axis of the first input that has one; 1 where none has."""
    return next((array.shape[0] for array in feeds.values() if array.ndim), 1)


def _part(whole: Batch, rows: Rows | None) -> Batch:
    """Some rows of a batch, or all; of rows that follow each other, a view."""
    if rows is None:
        return whole
    follow = rows[-1] - rows[0] == len(rows) - 1
    chosen: slice | list[int] = slice(rows[0], rows[-1] + 1) if follow else list(rows)

    def cut(array: Array) -> Array:
        return array[chosen] if array.ndim and array.shape[0] == whole.samples else array

    return replace(
        whole,
        feeds={name: cut(array) for name, array in whole.feeds.items()},
        labels={name: cut(array) for name, array in whole.labels.items()},
        samples=len(rows),
        mask=None if whole.mask is None else cut(whole.mask),
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _storable(array: Array) -> Array:
    """An array that an .npy file can hold: strings of fixed width, bfloat16 and its like as void bytes."""
    if array.dtype == object:
        return array.astype(str)
    return array.view(f"V{array.itemsize}") if array.dtype.isbuiltin == 2 else array


def _choice(rng: np.random.Generator, count: int, fraction: float) -> set[int]:
    """A random share of 0..count-1: at least one, never all, none of a single one."""
    size = min(max(round(fraction * count), 1), count - 1)
    return set(rng.permutation(count)[:size].tolist())
