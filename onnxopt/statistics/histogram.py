"""A histogram whose range grows with the data and that loses no count.

The range is always a power of two and so is the number of bins. Widening it by 2^k makes one bin of each 2^k, exactly;
hence the counts do not depend on the order of the data, and equal those of all data at once.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.statistics.accumulators import Accumulator, Footprint, RowState, Shape
from onnxopt.statistics.masks import PIECE, Array


@dataclass(frozen=True, eq=False)
class Distribution:
    """Counts of values.

    Attributes:
        counts: int64 [bins].
        edges: float64 [bins + 1]; a bin holds its edge on the side of zero and not the other, 0 itself lies above 0.
        low: least value of x, also where magnitudes are counted; exact.
        high: greatest value of x; exact.
        count: how many values.
    """

    counts: Array
    edges: Array
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Histogram(Accumulator[Array, Distribution]):
    """A histogram of all values of a tensor over [-R, R], or of their magnitudes over [0, R].

    R is the least power of two above all magnitudes: between half of the bins and all of them are in use.

    Attributes:
        bins: a power of two from 2 on.
        magnitudes: of |x| rather than of x.
    """

    bins: int = 2048
    magnitudes: bool = False

    def __post_init__(self) -> None:
        """Refuse bins that do not merge in pairs."""
        if self.bins < 2 or self.bins & (self.bins - 1):
            raise ValueError(f"bins must be a power of two from 2 on, not {self.bins}")

    def begin(self, tensor: str, first_sample: int = 0) -> "HistogramState":
        """An empty state."""
        return HistogramState(self, tensor, first_sample, None)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`."""
        return Footprint(state=8 * self.bins, work=6 * 8 * PIECE + 4 * 8 * self.bins)


class HistogramState(RowState[Distribution]):
    """See `Histogram`: counts [signs, bins a side], magnitudes from 0 outwards; exponent: R is 2 to its power."""

    request: Histogram
    counts: Array
    low, high = math.inf, -math.inf
    exponent: int | None = None  # of zeros alone

    @property
    def side(self) -> int:
        """Bins on one side of zero."""
        return self.request.bins if self.request.magnitudes else self.request.bins // 2

    def _allocate(self, channels: int) -> None:
        self.counts = np.zeros((1 if self.request.magnitudes else 2, self.side), np.int64)

    def _add(self, piece: Array) -> None:
        values = piece.reshape(-1)
        self._stretch(float(values.min()), float(values.max()))
        sizes = np.abs(values, dtype=np.float64)
        self._widen(math.frexp(sizes.max())[1] if sizes.any() else None)
        shift = self.side.bit_length() - 1 - (self.exponent or 0)
        places = np.ldexp(sizes, shift, out=sizes).astype(np.int64)
        if not self.request.magnitudes:
            places += (values < 0) * self.side
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)

    def _join(self, other: RowState[Distribution]) -> None:
        assert isinstance(other, HistogramState)
        self._stretch(other.low, other.high)
        self._widen(other.exponent)
        merged = other._merged_bins(self.exponent)
        self.counts[:, : merged.shape[1]] += merged

    def _stretch(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)

    def _widen(self, exponent: int | None) -> None:
        """Grow the range to 2^exponent, if it is smaller."""
        if exponent is None or (self.exponent is not None and exponent <= self.exponent):
            return
        if self.exponent is not None:
            merged = self._merged_bins(exponent)
            self.counts[:] = 0
            self.counts[:, : merged.shape[1]] = merged
        self.exponent = exponent

    def _merged_bins(self, exponent: int | None) -> Array:
        """The counts [signs, fewer] as they are in a range of 2^exponent; zeros stay in the first bin of any."""
        if self.exponent is None or exponent is None:
            return self.counts
        run = 1 << min(exponent - self.exponent, self.side.bit_length() - 1)
        merged: Array = self.counts.reshape(len(self.counts), -1, run).sum(axis=2)
        return merged

    def _result(self) -> Distribution:
        edges = np.ldexp(np.arange(self.side + 1) / self.side, self.exponent or 0)
        if self.request.magnitudes:
            return Distribution(self.counts[0].copy(), edges, self.low, self.high, self.rows)
        counts = np.concatenate([self.counts[1, ::-1], self.counts[0]])
        return Distribution(counts, np.concatenate([-edges[:0:-1], edges]), self.low, self.high, self.rows)

    @property
    def nbytes(self) -> int:
        """See `State.nbytes`."""
        return 0 if self.channels is None else self.counts.nbytes
