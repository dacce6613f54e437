"""Ranges: the extremes of values and of magnitudes, per tensor or per channel."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.statistics.accumulators import Accumulator, Footprint, RowState, Shape, elementwise_footprint
from onnxopt.statistics.masks import Array


@dataclass(frozen=True, eq=False)
class Range:
    """Least and greatest values, exact, float64 [channels] ([] without an axis), and how many rows were seen."""

    low: Array
    high: Array
    count: int


@dataclass(frozen=True)
class MinMax(Accumulator[Array, Range]):
    """Least and greatest value.

    Attributes:
        axis: of the channels; None: of the whole tensor.
    """

    axis: int | None = None

    def begin(self, tensor: str, first_sample: int = 0) -> "MinMaxState":
        """An empty state."""
        return MinMaxState(self, tensor, first_sample, self.axis)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`."""
        return elementwise_footprint(shapes[0], self.axis, 2)


class MinMaxState(RowState[Range]):
    """See `MinMax`."""

    low: Array
    high: Array

    def _allocate(self, channels: int) -> None:
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def _add(self, piece: Array) -> None:
        np.minimum(self.low, piece.min(axis=0), out=self.low)
        np.maximum(self.high, piece.max(axis=0), out=self.high)

    def _join(self, other: RowState[Range]) -> None:
        assert isinstance(other, MinMaxState)
        np.minimum(self.low, other.low, out=self.low)
        np.maximum(self.high, other.high, out=self.high)

    def _result(self) -> Range:
        return Range(self._shaped(self.low), self._shaped(self.high), self.rows)

    @property
    def nbytes(self) -> int:
        """See `State.nbytes`."""
        return 0 if self.channels is None else self.low.nbytes + self.high.nbytes


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """Largest and mean magnitude, float64 [channels] ([] without an axis), and how many rows were seen."""

    absmax: Array
    mean: Array
    count: int


@dataclass(frozen=True)
class Magnitude(Accumulator[Array, Magnitudes]):
    """Largest and mean |x|: what SmoothQuant and AWQ scale channels by.

    Attributes:
        axis: of the channels; None: of the whole tensor.
    """

    axis: int | None = -1

    def begin(self, tensor: str, first_sample: int = 0) -> "MagnitudeState":
        """An empty state."""
        return MagnitudeState(self, tensor, first_sample, self.axis)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`."""
        return elementwise_footprint(shapes[0], self.axis, 2)


class MagnitudeState(RowState[Magnitudes]):
    """See `Magnitude`."""

    absmax: Array
    total: Array

    def _allocate(self, channels: int) -> None:
        self.absmax, self.total = np.zeros(channels), np.zeros(channels)

    def _add(self, piece: Array) -> None:
        sizes = np.abs(piece)
        np.maximum(self.absmax, sizes.max(axis=0), out=self.absmax)
        self.total += sizes.sum(axis=0, dtype=np.float64)

    def _join(self, other: RowState[Magnitudes]) -> None:
        assert isinstance(other, MagnitudeState)
        np.maximum(self.absmax, other.absmax, out=self.absmax)
        self.total += other.total

    def _result(self) -> Magnitudes:
        return Magnitudes(self._shaped(self.absmax), self._shaped(self.total / self.rows), self.rows)

    @property
    def nbytes(self) -> int:
        """See `State.nbytes`."""
        return 0 if self.channels is None else self.absmax.nbytes + self.total.nbytes
