"""Which channels fire together: what reorderings put side by side."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.statistics.accumulators import Accumulator, Footprint, RowState, Shape
from onnxopt.statistics.comoments import BLOCK
from onnxopt.statistics.masks import NUMPY_BUFFERS, Array, checking_bytes, float_type


@dataclass(frozen=True, eq=False)
class FiringPairs:
    """Counts of rows.

    Attributes:
        both: int64 [channels, channels], in how many rows both channels fire; on the diagonal each one by itself.
        count: how many rows were seen.
    """

    both: Array
    count: int

    def jaccard(self) -> Array:
        """Rows where both fire among those where one does, float64 [channels, channels]; 0 for two silent ones."""
        single = np.diagonal(self.both)
        either = single[:, None] + single - self.both
        share: Array = self.both / np.maximum(either, 1)
        return share

    def agreement(self) -> Array:
        """Share of rows where both fire or neither does; with `signed` and threshold 0 that of equal signs."""
        single = np.diagonal(self.both)
        share: Array = (self.count - single[:, None] - single + 2 * self.both) / self.count
        return share


@dataclass(frozen=True)
class CoActivation(Accumulator[Array, FiringPairs]):
    """Counts of pairs of channels that fire in the same row: |x| > threshold.

    Attributes:
        axis: of the channels.
        threshold: what a firing channel is above.
        signed: x > threshold instead.
    """

    axis: int = -1
    threshold: float = 0.0
    signed: bool = False

    def begin(self, tensor: str, first_sample: int = 0) -> "CoActivationState":
        """An empty state."""
        return CoActivationState(self, tensor, first_sample, self.axis)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`."""
        channels, entry = shapes[0][self.axis], float_type(dtype).itemsize
        block = BLOCK * channels * (4 * entry + 4 + 1)
        adding = block + 4 * channels**2 + NUMPY_BUFFERS
        return Footprint(8 * channels**2, max(adding, checking_bytes(channels)))


class CoActivationState(RowState[FiringPairs]):
    """See `CoActivation`."""

    request: CoActivation
    both: Array

    def _limit(self, channels: int) -> int:
        return BLOCK

    def _allocate(self, channels: int) -> None:
        self.both = np.zeros((channels, channels), np.int64)

    def _add(self, piece: Array) -> None:
        sizes = piece if self.request.signed else np.abs(piece)
        firing = (sizes > self.request.threshold).astype(np.float32)
        # Counts of a block are far below 2^24, up to which float32 counts exactly.
        np.add(self.both, firing.T @ firing, out=self.both, casting="unsafe")

    def _join(self, other: RowState[FiringPairs]) -> None:
        assert isinstance(other, CoActivationState)
        self.both += other.both

    def _result(self) -> FiringPairs:
        return FiringPairs(self.both.copy(), self.rows)

    @property
    def nbytes(self) -> int:
        """See `State.nbytes`."""
        return 0 if self.channels is None else self.both.nbytes
