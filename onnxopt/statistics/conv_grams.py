"""Gram matrices of the patches that convolutions see (im2col), of all positions or of a sample of them.

The matrix of patches is never formed: each tap of the kernel reads the image shifted, and a block of positions at a
time is gathered: of several images, or of some lines of one; where positions are sampled, pixel by pixel. Columns are
ordered (input feature, taps...), as in the weight; padding counts as the zeros it is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.analysis.axes.windows import Windows
from onnxopt.errors import DataError
from onnxopt.statistics.accumulators import Accumulator, BatchT, Footprint, ResultT, Shape, State, same_channels
from onnxopt.statistics.comoments import BLOCK, CoMoments, comoments_footprint
from onnxopt.statistics.grams import (
    CrossGramMatrix,
    GramMatrix,
    Sides,
    check_groups,
    cross_gram_matrix,
    gram_matrix,
    joined,
)
from onnxopt.statistics.masks import Array, Mask, Rows, as_float, check_finite, float_type


@dataclass(frozen=True)
class Patches:
    """Which patches are looked at.

    Attributes:
        windows: geometry of the convolution.
        groups: of the convolution; each has a matrix of its own.
        positions: how many positions of each sample, drawn without replacement; None: all. Sums are scaled to all, so
            that they and the mean are unbiased also where sizes differ.
        seed: of the draw. A sample's positions follow from this and its index, whatever batch it comes in.
    """

    windows: Windows
    groups: int = 1
    positions: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse to look at nothing."""
        if self.positions is not None and self.positions < 1:
            raise ValueError(f"positions must be at least 1, not {self.positions}")

    @property
    def taps(self) -> int:
        """Entries of the kernel."""
        return math.prod(self.windows.kernel)

    def sizes(self, spatial: Shape) -> Shape:
        """How many windows fit along each axis."""
        windows, fitting = self.windows, []
        for axis, size in enumerate(spatial):
            span = size + sum(windows.ends(axis, size)) - windows.reach(axis)
            fitting.append(max(0, span // windows.strides[axis] + 1))
        return tuple(fitting)

    def tile(self, spatial: Shape) -> tuple[int, int] | None:
        """How many images, or lines of one, make a block where all positions are looked at; None: they make none."""
        sizes = self.sizes(spatial)
        count, line = math.prod(sizes), math.prod(sizes[1:])
        within = all(min(self.windows.ends(axis, size)) >= 0 for axis, size in enumerate(spatial))
        if not within or line > BLOCK or (self.positions is not None and self.positions < count):
            return None
        return max(1, BLOCK // max(1, count)), sizes[0] if count <= BLOCK else BLOCK // max(1, line)

    def shifted(self, images: Array, first: int, last: int) -> Iterator[Array]:
        """For each tap, what some lines of windows see of images `[..., spatial...]`: `[..., lines, rest of sizes]`."""
        windows, sizes = self.windows, images.shape[-len(self.windows.kernel) :]
        counts = (last - first, *self.sizes(sizes)[1:])
        ends = [windows.ends(axis, size) for axis, size in enumerate(sizes)]
        top = first * windows.strides[0] - ends[0][0]
        bottom = top + (counts[0] - 1) * windows.strides[0] + windows.reach(0)
        seen = slice(min(max(top, 0), sizes[0]), min(max(bottom, 0), sizes[0]))
        wide = [size + sum(end) for size, end in zip(sizes[1:], ends[1:], strict=True)]
        padded = np.zeros((*images.shape[: -len(sizes)], bottom - top, *wide), float_type(images.dtype))
        inner = [slice(end[0], end[0] + size) for size, end in zip(sizes[1:], ends[1:], strict=True)]
        rest = [slice(None)] * len(inner)
        target: tuple[Any, ...] = (..., slice(seen.start - top, seen.stop - top), *inner)
        source: tuple[Any, ...] = (..., seen, *rest)
        padded[target] = images[source]
        for offset in product(*map(range, windows.kernel)):
            starts = [place * dilation for place, dilation in zip(offset, windows.dilations, strict=True)]
            steps = zip(starts, counts, windows.strides, strict=True)
            at: tuple[Any, ...] = (
                ..., *(slice(start, start + (count - 1) * step + 1, step) for start, count, step in steps)
            )  # fmt: skip
            yield padded[at]

    def drawn(self, count: int, sample: int) -> Array:
        """Positions to look at, of `count` in all: int64, sorted."""
        if self.positions is None or self.positions >= count:
            return np.arange(count)
        drawn = np.random.default_rng((self.seed, sample)).choice(count, self.positions, replace=False, shuffle=False)
        return np.sort(drawn)

    def sources(self, positions: Array, spatial: Shape) -> Iterator[tuple[Array, Array | None]]:
        """For each tap, the pixels that it sees at the positions, and which of them are padding (None: none)."""
        windows, per_axis = self.windows, []
        for axis, (at, size) in enumerate(zip(np.unravel_index(positions, self.sizes(spatial)), spatial, strict=True)):
            start = at * windows.strides[axis] - windows.ends(axis, size)[0]
            per_axis.append([start + tap * windows.dilations[axis] for tap in range(windows.kernel[axis])])
        for places in product(*per_axis):
            outside = np.zeros(len(positions), np.bool_)
            pixels = np.zeros(len(positions), np.int64)
            for place, size in zip(places, spatial, strict=True):
                outside |= (place < 0) | (place >= size)
                pixels = pixels * size + place
            if outside.any():
                yield np.where(outside, 0, pixels), outside
            else:
                yield pixels, None


class _Buffer:
    """Patches of one side until there are enough for a product: `[features, taps, rows]`."""

    def __init__(self, features: int, taps: int, rows: int, dtype: np.dtype[np.floating]) -> None:
        self.values: Array = np.empty((features, taps, rows), dtype)

    def fill(self, at: int, image: Array, sources: list[tuple[Array, Array | None]]) -> None:
        """Write the patches of some positions of an image `[features, pixels]`, from row `at` on."""
        for tap, (pixels, outside) in enumerate(sources):
            target = self.values[:, tap, at : at + len(pixels)]
            if image.shape[1]:
                target[...] = image[:, pixels]
                if outside is not None:
                    target[:, outside] = 0
            else:
                target[...] = 0

    def tile(self, images: Array, patches: Patches, first: int, last: int) -> None:
        """Write the patches of some lines of images `[images, features, spatial...]`, from row 0 on."""
        for tap, seen in enumerate(patches.shifted(images.swapaxes(0, 1), first, last)):
            rows = math.prod(seen.shape[1:])
            self.values[:, tap, :rows].reshape(seen.shape)[...] = seen

    def rows(self, count: int) -> Array:
        """The first so many rows, `[rows, features * taps]`."""
        return self.values.reshape(-1, self.values.shape[2])[:, :count].T


class PatchState(State[BatchT, ResultT]):
    """Of one side or two, whose patches are gathered at the same positions."""

    def __init__(self, request: Accumulator[BatchT, ResultT], patches: Patches, tensor: str, first_sample: int) -> None:
        super().__init__(request, tensor, first_sample)
        self.patches = patches
        self.moments: CoMoments | None = None

    def _patches(self, each: int) -> Patches:
        """What is looked at on a side; as many positions on both."""
        return self.patches

    def _update(self, sides: tuple[Array, ...], mask: Mask | None) -> None:
        self._check(sides, mask)
        if self.moments is None:
            columns = (
                side.shape[1] // self.patches.groups * self._patches(each).taps for each, side in enumerate(sides)
            )
            self.moments = CoMoments(self.patches.groups, *columns)
        spatial = sides[0].shape[2:]
        count = math.prod(self.patches.sizes(spatial))
        counted = range(len(sides[0])) if mask is None else np.flatnonzero(np.broadcast_to(mask, len(sides[0])))
        tile = self.patches.tile(spatial)
        if count and tile is not None:
            self._tile(sides, np.asarray(counted), spatial, *tile)
        elif count:
            self._gather(sides, [int(sample) for sample in counted], spatial, count)
        self.samples += len(sides[0])

    def _tile(self, sides: tuple[Array, ...], counted: Array, spatial: Shape, images: int, lines: int) -> None:
        sizes = self.patches.sizes(spatial)
        line = math.prod(sizes[1:])
        capacity = min(images, len(counted)) * lines * line
        buffers = self._buffers(sides, capacity)
        for start in range(0, len(counted), images):
            chosen = counted[start : start + images]
            some = slice(chosen[0], chosen[-1] + 1) if chosen[-1] - chosen[0] == len(chosen) - 1 else chosen
            for first in range(0, sizes[0], lines):
                last = min(first + lines, sizes[0])
                for each, (buffer, side) in enumerate(zip(buffers, sides, strict=True)):
                    buffer.tile(side[some], self._patches(each), first, last)
                self._flush(buffers, len(chosen) * (last - first) * line, 1.0)

    def _gather(self, sides: tuple[Array, ...], counted: list[int], spatial: Shape, count: int) -> None:
        used = min(count, self.patches.positions or count)
        capacity = min(BLOCK, used * len(counted))
        buffers = self._buffers(sides, capacity)
        filled = 0
        for sample in counted:
            images = [as_float(side[sample].reshape(side.shape[1], -1)) for side in sides]
            positions = self.patches.drawn(count, self.first_sample + self.samples + sample)
            for start in range(0, used, BLOCK):
                chunk = positions[start : start + BLOCK]
                if filled + len(chunk) > capacity:
                    self._flush(buffers, filled, count / used)
                    filled = 0
                for each, (buffer, image) in enumerate(zip(buffers, images, strict=True)):
                    buffer.fill(filled, image, list(self._patches(each).sources(chunk, sides[each].shape[2:])))
                filled += len(chunk)
        self._flush(buffers, filled, count / used)

    def _buffers(self, sides: tuple[Array, ...], capacity: int) -> list[_Buffer]:
        return [
            _Buffer(side.shape[1], self._patches(each).taps, capacity, float_type(side.dtype))
            for each, side in enumerate(sides)
        ]

    def _flush(self, buffers: list[_Buffer], filled: int, weight: float) -> None:
        assert self.moments is not None
        if filled:
            self.moments.add(*(buffer.rows(filled) for buffer in buffers), weight=weight)
            self.rows += filled

    def _check(self, sides: tuple[Array, ...], mask: Mask | None) -> None:
        rank, first = len(self.patches.windows.kernel), self.first_sample + self.samples
        for each, side in enumerate(sides):
            shape = side.shape
            spatial = self._patches(each).sizes(shape[2:]) if side.ndim == rank + 2 else ()
            positions = self.patches.sizes(sides[0].shape[2:])
            if (len(shape) - 2, shape[:1], spatial) != (rank, sides[0].shape[:1], positions):
                fitting = f"[samples, features] and {rank} spatial sizes, the same on all sides"
                raise DataError(
                    f"tensor {self.tensor!r} of shape {list(shape)} does not fit its convolution: {fitting}"
                )
            if mask is not None and mask.ndim > 1:
                raise DataError(
                    f"tensor {self.tensor!r}: a mask of shape {list(mask.shape)} for patches, which overlap; "
                    "only whole samples can be left out"
                )
            check_groups(shape[1], self.patches.groups, self.tensor)
            if self.moments is not None:
                same_channels(self.moments.means[each].size // self._patches(each).taps, shape[1], self.tensor)
            rows = Rows.of(side, 1, mask, self.tensor)
            check_finite(side, rows, mask, self.tensor, first)

    def _merge(self, other: State[BatchT, ResultT]) -> None:
        assert isinstance(other, PatchState)
        self.moments = joined(self.moments, other.moments, self.tensor)

    @property
    def nbytes(self) -> int:
        """See `State.nbytes`."""
        return 0 if self.moments is None else self.moments.nbytes


@dataclass(frozen=True)
class ConvGram(Accumulator[Array, GramMatrix]):
    """Gram matrix of the patches of a convolution's input `[samples, features, spatial...]`."""

    patches: Patches

    def begin(self, tensor: str, first_sample: int = 0) -> "ConvGramState":
        """An empty state."""
        return ConvGramState(self, self.patches, tensor, first_sample)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`."""
        return patches_footprint(self.patches, shapes, dtype)


class ConvGramState(PatchState[Array, GramMatrix]):
    """See `ConvGram`."""

    def update(self, batch: Array, mask: Mask | None = None) -> None:
        """See `State.update`; a mask tells whole samples apart."""
        self._update((batch,), mask)

    def _result(self) -> GramMatrix:
        assert self.moments is not None
        return gram_matrix(self.moments, self.rows)


@dataclass(frozen=True)
class ConvCrossGram(Accumulator[Sides, CrossGramMatrix]):
    """Products of patches of the dense model with those of the current one at the same positions."""

    patches: Patches

    def begin(self, tensor: str, first_sample: int = 0) -> "ConvCrossGramState":
        """An empty state."""
        return ConvCrossGramState(self, self.patches, tensor, first_sample)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`; shapes of the dense and of the current side."""
        return patches_footprint(self.patches, shapes, dtype)


class ConvCrossGramState(PatchState[Sides, CrossGramMatrix]):
    """See `ConvCrossGram`."""

    def update(self, batch: Sides, mask: Mask | None = None) -> None:
        """See `State.update`; a mask tells whole samples apart."""
        self._update(tuple(batch), mask)

    def _result(self) -> CrossGramMatrix:
        assert self.moments is not None
        return cross_gram_matrix(self.moments, self.rows)


def patches_footprint(patches: Patches, shapes: tuple[Shape, ...], dtype: npt.DTypeLike) -> Footprint:
    """An upper bound of the memory for sums of products of patches, of one side or two."""
    entry = float_type(dtype).itemsize
    features = [shape[1] for shape in shapes]
    columns = tuple(-(-each // patches.groups) * patches.taps for each in features)
    sums = comoments_footprint(patches.groups, columns, dtype, gathered=1)
    pixels = math.prod(shapes[0][2:])
    images = 2 * entry * pixels * sum(features)
    positions = 8 * math.prod(patches.sizes(shapes[0][2:]))
    if (tile := patches.tile(shapes[0][2:])) is not None:
        return Footprint(sums.state, sums.work + entry * sum(features) * _tile_pixels(patches, shapes[0], *tile))
    gathering = entry * BLOCK * max(features) + (9 * patches.taps + 8 * 8 + 8 * sum(patches.windows.kernel)) * BLOCK
    return Footprint(sums.state, sums.work + images + 2 * positions + gathering)


def _tile_pixels(patches: Patches, shape: Shape, images: int, lines: int) -> int:
    """Pixels that are held at once besides the block: images, where they do not follow each other, and padded lines."""
    windows, spatial = patches.windows, shape[2:]
    wide = [size + sum(windows.ends(axis, size)) for axis, size in enumerate(spatial)]
    padded = ((lines - 1) * windows.strides[0] + windows.reach(0)) * math.prod(wide[1:])
    return min(images, shape[0]) * (math.prod(spatial) + padded)
