"""Gram matrices of the patches that convolutions see (im2col), of all positions or of a sample of them.

The matrix of patches is never formed: each tap of the kernel reads the image shifted, and a block of positions at a
time is gathered. Columns are ordered (input feature, taps...), as in the weight; padding counts as the zeros it is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

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

    def rows(self, count: int) -> Array:
        """The first so many rows, `[rows, features * taps]`."""
        return self.values.reshape(-1, self.values.shape[2])[:, :count].T


class _PatchState(State[BatchT, ResultT]):
    """Of one side or two, whose patches are gathered at the same positions."""

    def __init__(self, request: Accumulator[BatchT, ResultT], patches: Patches, tensor: str, first_sample: int) -> None:
        super().__init__(request, tensor, first_sample)
        self.patches = patches
        self.moments: CoMoments | None = None

    def _update(self, sides: tuple[Array, ...], mask: Mask | None) -> None:
        self._check(sides, mask)
        if self.moments is None:
            columns = (side.shape[1] // self.patches.groups * self.patches.taps for side in sides)
            self.moments = CoMoments(self.patches.groups, *columns)
        spatial = sides[0].shape[2:]
        count = math.prod(self.patches.sizes(spatial))
        counted = range(len(sides[0])) if mask is None else np.flatnonzero(np.broadcast_to(mask, len(sides[0])))
        if count:
            self._gather(sides, [int(sample) for sample in counted], spatial, count)
        self.samples += len(sides[0])

    def _gather(self, sides: tuple[Array, ...], counted: list[int], spatial: Shape, count: int) -> None:
        used = min(count, self.patches.positions or count)
        capacity = min(BLOCK, used * len(counted))
        buffers = [_Buffer(side.shape[1], self.patches.taps, capacity, float_type(side.dtype)) for side in sides]
        # All positions of images that fit into a block are the same ones every time.
        known = list(self.patches.sources(np.arange(count), spatial)) if used == count <= BLOCK else None
        filled = 0
        for sample in counted:
            images = [as_float(side[sample].reshape(side.shape[1], -1)) for side in sides]
            positions = self.patches.drawn(count, self.first_sample + self.samples + sample)
            for start in range(0, used, BLOCK):
                chunk = positions[start : start + BLOCK]
                if filled + len(chunk) > capacity:
                    self._flush(buffers, filled, count / used)
                    filled = 0
                sources = known if known is not None else list(self.patches.sources(chunk, spatial))
                for buffer, image in zip(buffers, images, strict=True):
                    buffer.fill(filled, image, sources)
                filled += len(chunk)
        self._flush(buffers, filled, count / used)

    def _flush(self, buffers: list[_Buffer], filled: int, weight: float) -> None:
        assert self.moments is not None
        if filled:
            self.moments.add(*(buffer.rows(filled) for buffer in buffers), weight=weight)
            self.rows += filled

    def _check(self, sides: tuple[Array, ...], mask: Mask | None) -> None:
        rank, first = len(self.patches.windows.kernel), self.first_sample + self.samples
        for each, side in enumerate(sides):
            shape = side.shape
            if side.ndim != rank + 2 or (shape[0], *shape[2:]) != (len(sides[0]), *sides[0].shape[2:]):
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
                same_channels(self.moments.means[each].size // self.patches.taps, shape[1], self.tensor)
            rows = Rows.of(side, 1, mask, self.tensor)
            check_finite(side, rows, mask, self.tensor, first)

    def _merge(self, other: State[BatchT, ResultT]) -> None:
        assert isinstance(other, _PatchState)
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
        return _footprint(self.patches, shapes, dtype)


class ConvGramState(_PatchState[Array, GramMatrix]):
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
        return _footprint(self.patches, shapes, dtype)


class ConvCrossGramState(_PatchState[Sides, CrossGramMatrix]):
    """See `ConvCrossGram`."""

    def update(self, batch: Sides, mask: Mask | None = None) -> None:
        """See `State.update`; a mask tells whole samples apart."""
        self._update(tuple(batch), mask)

    def _result(self) -> CrossGramMatrix:
        assert self.moments is not None
        return cross_gram_matrix(self.moments, self.rows)


def _footprint(patches: Patches, shapes: tuple[Shape, ...], dtype: npt.DTypeLike) -> Footprint:
    entry = float_type(dtype).itemsize
    features = [shape[1] for shape in shapes]
    columns = tuple(-(-each // patches.groups) * patches.taps for each in features)
    sums = comoments_footprint(patches.groups, columns, dtype, gathered=1)
    pixels = math.prod(shapes[0][2:])
    images = 2 * entry * pixels * sum(features)
    positions = 8 * math.prod(patches.sizes(shapes[0][2:]))
    gathering = entry * BLOCK * max(features) + (9 * patches.taps + 8 * 8 + 8 * sum(patches.windows.kernel)) * BLOCK
    return Footprint(sums.state, sums.work + images + 2 * positions + gathering)
