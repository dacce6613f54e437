"""Mean and second moment, per tensor or per channel; of outputs, what repairs of biases and norms compare."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.statistics.accumulators import Accumulator, Footprint, RowState, Shape, elementwise_footprint
from onnxopt.statistics.masks import Array


@dataclass(frozen=True, eq=False)
class MeanAndVariance:
    """Mean and population variance, float64 [channels] ([] without an axis), and how many rows were seen."""

    mean: Array
    variance: Array
    count: int

    @property
    def second_moment(self) -> Array:
        """Mean of the squares."""
        moment: Array = self.variance + self.mean**2
        return moment


@dataclass(frozen=True)
class Moments(Accumulator[Array, MeanAndVariance]):
    """Mean and variance by the pairwise update of Chan, Golub and LeVeque (1979), in float64.

    Attributes:
        axis: of the channels; None: of the whole tensor.
    """

    axis: int | None = -1

    def begin(self, tensor: str, first_sample: int = 0) -> "MomentsState":
        """An empty state."""
        return MomentsState(self, tensor, first_sample, self.axis)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`."""
        return elementwise_footprint(shapes[0], self.axis, 2)


class MomentsState(RowState[MeanAndVariance]):
    """See `Moments`."""

    mean: Array
    squares: Array
    """Sums of squared deviations from the mean."""

    def _allocate(self, channels: int) -> None:
        self.mean, self.squares = np.zeros(channels), np.zeros(channels)

    def _add(self, piece: Array) -> None:
        mean = piece.mean(axis=0, dtype=np.float64)
        deviation = piece - mean
        self._chan(self.rows, len(piece), mean, np.square(deviation, out=deviation).sum(axis=0))

    def _join(self, other: RowState[MeanAndVariance]) -> None:
        assert isinstance(other, MomentsState)
        self._chan(self.rows, other.rows, other.mean, other.squares)

    def _chan(self, rows: int, more: int, mean: Array, squares: Array) -> None:
        if not more:
            return
        gap = mean - self.mean
        self.mean += gap * (more / (rows + more))
        self.squares += squares + gap**2 * (rows * (more / (rows + more)))

    def _result(self) -> MeanAndVariance:
        return MeanAndVariance(self._shaped(self.mean), self._shaped(self.squares / self.rows), self.rows)

    @property
    def nbytes(self) -> int:
        """See `State.nbytes`."""
        return 0 if self.channels is None else self.mean.nbytes + self.squares.nbytes
