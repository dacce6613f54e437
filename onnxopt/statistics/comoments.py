"""Sums of products of deviations from the mean, exact enough to be inverted.

Rows come in blocks. Of each block the mean of all rows so far is taken off first (of the first block its own), the
product then made by BLAS in the type of the rows (float32 for float32), and added in float64 by the formula of Chan,
Golub and LeVeque: what float32 rounds away is relative to the spread of the channels over all rows, not to their mean,
and does not grow with the number of rows. In float64 the
result agrees with that of all rows at once to about 1e-13. Products of one side with itself are symmetric to the bit.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from onnxopt.statistics.accumulators import Footprint
from onnxopt.statistics.masks import NUMPY_BUFFERS, Array, checking_bytes, float_type

BLOCK = 2048
"""Rows of a block: BLAS is at full speed, and float32 sums stay short."""

_STRIP = 1 << 16
_SAFE = (1e-12, 1e15)  # magnitudes whose squares float32 holds, sums of a block included


class CoMoments:
    """Weighted count, means and scatter of one side with itself, or of two sides.

    Attributes:
        count: sum of the weights.
        means: float64 [groups, channels], one a side.
        scatter: float64 [groups, left channels, right channels], sum of (x - mean x)(y - mean y).
    """

    def __init__(self, groups: int, *channels: int) -> None:
        """Of `groups` independent groups, `channels` of each of them, one number a side."""
        self.count = 0.0
        self.means = [np.zeros((groups, each)) for each in channels]
        self.scatter: Array = np.zeros((groups, channels[0], channels[-1]))
        self._lent = False

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.scatter.nbytes + sum(mean.nbytes for mean in self.means)

    def add(self, *sides: Array, weight: float = 1.0) -> None:
        """Add a block.

        Args:
            sides: float32 or float64 [rows, groups * channels], one a side.
            weight: how many rows each row stands for.
        """
        rows = len(sides[0])
        blocks = [_Block(side, mean, self.count > 0) for side, mean in zip(sides, self.means, strict=True)]
        left, right = blocks[0], blocks[-1]
        product = left.deviations.swapaxes(1, 2) @ right.deviations
        factor = weight * left.scale * right.scale
        root = math.sqrt(weight * rows)
        slack = [block.slack * root for block in blocks]

        def scatter(strip: slice) -> Array:
            exact: Array = product[:, strip] * np.float64(factor)
            return exact.__isub__(_outer(slack[0][:, strip], slack[-1]))

        self._chan(weight * rows, [block.mean for block in blocks], scatter)

    def merge(self, other: "CoMoments") -> None:
        """Add all that another one holds."""
        if other.count:
            self._chan(other.count, other.means, lambda strip: other.scatter[:, strip])

    def lend(self) -> Array:
        """The scatter, without copying; the next block to be added copies it instead."""
        self._lent = True
        view = self.scatter.view()
        view.flags.writeable = False
        return view

    def _chan(self, more: float, means: list[Array], scatter: Callable[[slice], Array]) -> None:
        if self._lent:
            self.scatter, self._lent = self.scatter.copy(), False
        share = more / (self.count + more)
        gaps = [mean - known for mean, known in zip(means, self.means, strict=True)]
        apart = [gap * math.sqrt(self.count * share) for gap in gaps]
        for strip in self._strips():
            self.scatter[:, strip] += scatter(strip)
            self.scatter[:, strip] += _outer(apart[0][:, strip], apart[-1])
        if len(means) == 1:
            diagonal = np.einsum("gii->gi", self.scatter)
            np.maximum(diagonal, 0, out=diagonal)  # rounding may leave -1e-40 where nothing varies
        for known, gap in zip(self.means, gaps, strict=True):
            known += gap * share
        self.count += more

    def _strips(self) -> Iterator[slice]:
        groups, height, width = self.scatter.shape
        step = max(1, _STRIP // max(1, groups * width))
        return (slice(start, start + step) for start in range(0, height, step))


class _Block:
    """One side of a block: its mean, and its rows about a point near it, `[groups, rows, channels]` over `scale`.

    Args:
        rows: [rows, groups * channels].
        about: [groups, channels], the mean of the rows before.
        known: whether there were any.
    """

    def __init__(self, rows: Array, about: Array, known: bool) -> None:
        shift = (about.reshape(-1) if known else rows.mean(axis=0, dtype=np.float64)).astype(rows.dtype)
        deviations = rows - shift
        self.scale = _scale(deviations)
        if self.scale != 1:
            deviations *= deviations.dtype.type(1 / self.scale)
        # What the shift misses of the mean. In float32 this is exact to 1e-7 of the spread, as rows lie on both sides.
        slack = (np.ones(len(rows), rows.dtype) @ deviations).astype(np.float64) * (self.scale / len(rows))
        self.mean: Array = (shift + slack).reshape(about.shape)
        self.slack: Array = slack.reshape(about.shape)
        self.deviations: Array = deviations.reshape(len(rows), *about.shape).swapaxes(0, 1)


def _scale(deviations: Array) -> float:
    """A power of two that brings float32 where squares neither overflow nor vanish; mostly 1."""
    largest = max(float(deviations.max(initial=0)), -float(deviations.min(initial=0)))
    if deviations.dtype != np.float32 or not largest or _SAFE[0] < largest < _SAFE[1]:
        return 1.0
    return math.ldexp(1.0, max(math.frexp(largest)[1], -120))


def _outer(left: Array, right: Array) -> Array:
    outer: Array = left[:, :, None] * right[:, None, :]
    return outer


def comoments_footprint(groups: int, channels: tuple[int, ...], dtypes: npt.DTypeLike, gathered: int) -> Footprint:
    """Bytes of a `CoMoments` and of adding a block to it.

    Args:
        groups: how many.
        channels: of each group, one number a side.
        dtypes: of the rows, as they come.
        gathered: copies of a block that its maker holds while it is added.
    """
    entry = float_type(dtypes).itemsize
    height, width = channels[0], channels[-1]
    state = 8 * groups * (height * width + sum(channels))
    blocks = (gathered + 1) * entry * BLOCK * groups * sum(channels)
    product = entry * groups * height * width
    strip = 4 * 8 * max(_STRIP, groups * width)
    adding = blocks + product + strip + 16 * 8 * groups * sum(channels) + NUMPY_BUFFERS
    return Footprint(state, max(adding, checking_bytes(groups * max(channels))))
