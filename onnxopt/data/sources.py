"""Where batches come from: one class per form of data, each giving the same batches at every pass."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

from onnxopt.data.archive import Archive, Array, NpzArchive, Reader
from onnxopt.data.code import load_function
from onnxopt.data.layout import Layout, Mode
from onnxopt.data.validate import ASIDE, LABEL, MASK
from onnxopt.errors import DataError

FEED = re.compile(r"feed(\d+)/(.+)")
"""Names of arrays that are fed as they are: the batch's number and the input."""


@dataclass(frozen=True)
class RawBatch:
    """A batch as it was found: inputs, labels as `label/NAME`, masks as `mask/NAME`.

    Attributes:
        where: what messages call it.
        arrays: name -> array.
    """

    where: str
    arrays: Mapping[str, Any]


class Source(Protocol):
    """Batches that can be read again and again."""

    def read(self, indices: Sequence[int] | None) -> Iterator[RawBatch]:
        """The batches of some ascending indices, or all."""

    def aligned(self, rows: Sequence[int], leads: Sequence[int]) -> tuple["Source", Mapping[str, str]]:
        """The source with labels and masks cut to batches; for those that do not fit, name -> why.

        Args:
            rows: samples of each batch.
            leads: size of the first axis of each batch's first input that has one.
        """


@dataclass(frozen=True)
class PlainSource:
    """Arrays named after the inputs, samples along the first axis."""

    archive: Archive
    layout: Layout

    def read(self, indices: Sequence[int] | None) -> Iterator[RawBatch]:
        """Cut batches out of the arrays."""
        labels = [name for name in self.archive.headers if name.startswith(LABEL) and name not in self.layout.modes]
        modes: Mapping[str, Mode] = {**self.layout.modes, **dict.fromkeys(labels, "rows")}
        with self.archive.open() as reader:
            for index in range(self.layout.batches) if indices is None else indices:
                span = self.layout.span(index)
                where = f"{self.archive.name}, samples {span[0]} to {span[1] - 1}"
                yield RawBatch(where, {name: _cut(reader, name, mode, span) for name, mode in modes.items()})

    def aligned(self, rows: Sequence[int], leads: Sequence[int]) -> tuple[Source, Mapping[str, str]]:
        """Labels are cut like inputs."""
        return self, {}


def _cut(reader: Reader, name: str, mode: Mode, span: tuple[int, int]) -> Array:
    if mode == "whole":
        return reader.array(name)
    rows = reader.rows(name, *span)
    return rows[0] if mode == "row" else rows


@dataclass(frozen=True)
class FeedSource:
    """Arrays named `feedNNNN/INPUT`; labels and masks over all samples.

    Attributes:
        archive: the arrays.
        spans: label's or mask's array -> the rows of it that belong to each batch.
    """

    archive: Archive
    spans: Mapping[str, Sequence[tuple[int, int]]]

    def read(self, indices: Sequence[int] | None) -> Iterator[RawBatch]:
        """Read whole arrays, a feed at a time."""
        feeds = self._feeds()
        with self.archive.open() as reader:
            for index in range(len(feeds)) if indices is None else indices:
                key, names = feeds[index]
                arrays = {input_: reader.array(f"{key}/{input_}") for input_ in names}
                aside = {name: reader.rows(name, *spans[index]) for name, spans in self.spans.items()}
                yield RawBatch(f"{self.archive.name}, {key}", arrays | aside)

    def _feeds(self) -> list[tuple[str, list[str]]]:
        found: dict[str, list[str]] = {}
        for name in self.archive.headers:
            if FEED.fullmatch(name):
                key, _, input_ = name.partition("/")
                found.setdefault(key, []).append(input_)
        return sorted(found.items(), key=lambda feed: int(feed[0].removeprefix("feed")))

    def aligned(self, rows: Sequence[int], leads: Sequence[int]) -> tuple[Source, Mapping[str, str]]:
        """Find the rows of each label: one a sample, else one a batch, else one a row of the first input.

        Those of a mask: one a sample, else one a row of the first input.
        """
        headers = {name: header for name, header in self.archive.headers.items() if name.startswith(ASIDE)}
        spans, misfits = {}, {}
        for name, header in headers.items():
            count = (*header.shape, 0)[0]
            ways = (rows, leads) if name.startswith(MASK) else (rows, [1] * len(rows), leads)
            fitting = next((per for per in ways if sum(per) == count), None)
            if fitting is None:
                misfits[name] = f"{name} has {count} entries for {sum(rows)} samples in {len(rows)} batches: not used"
            else:
                spans[name] = list(pairwise(accumulate(fitting, initial=0)))
        return (replace(self, spans=spans) if spans else self), misfits


@dataclass(frozen=True)
class FolderSource:
    """Files of one batch each, fed as they are; a file's labels belong to its batch."""

    files: tuple[Path, ...]

    def read(self, indices: Sequence[int] | None) -> Iterator[RawBatch]:
        """Read a file a batch."""
        for index in range(len(self.files)) if indices is None else indices:
            archive = NpzArchive(self.files[index])
            with archive.open() as reader:
                arrays = {name: reader.array(name) for name in archive.headers}
            yield RawBatch(archive.name, arrays)

    def aligned(self, rows: Sequence[int], leads: Sequence[int]) -> tuple[Source, Mapping[str, str]]:
        """Labels lie beside their inputs."""
        return self, {}


@dataclass(frozen=True)
class Imported:
    """The function `module:function`, imported where it is called, so that another process can call it too."""

    spec: str
    base: Path | None

    def __call__(self) -> Iterable[Mapping[str, Any]]:
        """Call it."""
        batches: Iterable[Mapping[str, Any]] = load_function(self.spec, allow_code=True, base=self.base)()
        return batches


@dataclass(frozen=True)
class Kept:
    """Batches in memory."""

    batches: Sequence[Mapping[str, Any]]

    def __call__(self) -> Iterable[Mapping[str, Any]]:
        """The batches."""
        return self.batches


@dataclass(frozen=True)
class CallSource:
    """A function without arguments that gives an iterable of batches, input name -> array, at every call."""

    function: Callable[[], Iterable[Mapping[str, Any]]]
    name: str

    def read(self, indices: Sequence[int] | None) -> Iterator[RawBatch]:
        """Call the function and pick batches; those behind the last are not asked for."""
        wanted = None if indices is None else set(indices)
        last = None if wanted is None else max(wanted, default=-1)
        for index, arrays in enumerate(self._batches() if last != -1 else ()):
            if wanted is None or index in wanted:
                yield RawBatch(f"{self.name}, batch {index}", arrays)
                if index == last:
                    return
        if wanted:
            raise DataError(f"{self.name}: batch {last} is gone; a function must give the same batches at each call")

    def _batches(self) -> Iterator[Mapping[str, Any]]:
        try:
            iterator = iter(self.function())
        except DataError:
            raise
        except Exception as error:
            raise self._failed("", error) from error
        index = 0
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                raise self._failed(f", batch {index}", error) from error
            if not isinstance(item, Mapping):
                kind = type(item).__name__
                raise DataError(f"{self.name}, batch {index}: a {kind}, not a dict of input name -> array")
            yield item
            index += 1

    def _failed(self, where: str, error: Exception) -> DataError:
        return DataError(f"{self.name}{where}: your code failed: {type(error).__name__}: {error}")

    def aligned(self, rows: Sequence[int], leads: Sequence[int]) -> tuple[Source, Mapping[str, str]]:
        """Labels come with their batch."""
        return self, {}
