"""What all statistics that stream have in common: a request that is a fact, and a state that takes batches.

A request (`MinMax`, `Gram`, ...) is frozen and hashable: equal requests for one tensor can share a state. A state takes
batches of any sizes in any split, merges with states of other shards, and gives its result at any time.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from onnxopt.errors import DataError
from onnxopt.statistics.masks import PIECE, Array, Mask, Rows, check_finite, samples_in

BatchT = TypeVar("BatchT")
ResultT = TypeVar("ResultT")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Footprint:
    """Bytes that a state needs at most, batches themselves aside.

    Attributes:
        state: held from the first batch to the end.
        work: on top of that while a batch is added; states that take turns share it.
    """

    state: int
    work: int


class Accumulator(ABC, Generic[BatchT, ResultT]):
    """A statistic that can be asked for. Subclasses are frozen dataclasses."""

    @abstractmethod
    def begin(self, tensor: str, first_sample: int = 0) -> "State[BatchT, ResultT]":
        """An empty state.

        Args:
            tensor: name of what is watched.
            first_sample: index of the first sample that this state will see; shards of one data set have their own.
        """

    @abstractmethod
    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """An upper bound of the memory for batches of a shape (one a side), before anything is run."""


class State(ABC, Generic[BatchT, ResultT]):
    """What has been seen so far.

    Attributes:
        samples: how many, masked ones included.
        rows: how many rows counted.
    """

    def __init__(self, request: Accumulator[BatchT, ResultT], tensor: str, first_sample: int) -> None:
        self.request, self.tensor, self.first_sample = request, tensor, first_sample
        self.samples = 0
        self.rows = 0

    @abstractmethod
    def update(self, batch: BatchT, mask: Mask | None = None) -> None:
        """Add a batch; one that is refused leaves the state as it was.

        Args:
            batch: an array, or one a side; sizes may change from batch to batch, the number of channels may not.
            mask: boolean over leading axes of the batch, of their sizes or 1; what is False does not count.

        Raises:
            DataError: NaN or infinity in what counts (names tensor and sample), or a shape or mask that does not fit.
        """

    def merge(self, other: "State[BatchT, ResultT]") -> None:
        """Add all that another state of the same request has seen; that one stays as it is."""
        if (self.request, self.tensor) != (other.request, other.tensor):
            raise ValueError(
                f"{other.request} of {other.tensor!r} cannot be merged into {self.request} of {self.tensor!r}"
            )
        self._merge(other)
        self.samples += other.samples
        self.rows += other.rows

    def result(self) -> ResultT:
        """The statistic of all that counted; DataError where that is nothing."""
        if not self.rows:
            raise DataError(
                f"tensor {self.tensor!r}: no data reached it, or all of it was masked; calibrate on samples that do"
            )
        return self._result()

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the state holds now."""

    @abstractmethod
    def _merge(self, other: "State[BatchT, ResultT]") -> None: ...

    @abstractmethod
    def _result(self) -> ResultT: ...


class RowState(State[Array, ResultT]):
    """A state of rows of one tensor: the subclass adds pieces `[rows, channels]` of float32 or float64."""

    def __init__(self, request: Accumulator[Array, ResultT], tensor: str, first_sample: int, axis: int | None) -> None:
        super().__init__(request, tensor, first_sample)
        self.axis = axis
        self.channels: int | None = None

    def update(self, batch: Array, mask: Mask | None = None) -> None:
        """See `State.update`."""
        rows = Rows.of(batch, self.axis, mask, self.tensor)
        same_channels(self.channels, rows.channels, self.tensor)
        self._check(rows.channels)
        check_finite(batch, rows, mask, self.tensor, self.first_sample + self.samples)
        self._allocated(rows.channels)
        for piece in rows.pieces(self._limit(rows.channels)):
            self._add(piece)
            self.rows += len(piece)
        self.samples += samples_in(batch)

    def _merge(self, other: State[Array, ResultT]) -> None:
        assert isinstance(other, type(self))
        if other.channels is not None:
            same_channels(self.channels, other.channels, self.tensor)
            self._allocated(other.channels)
            self._join(other)

    def _allocated(self, channels: int) -> None:
        if self.channels is None:
            self.channels = channels
            self._allocate(channels)

    def _shaped(self, values: Array) -> Array:
        """One number a channel, or a single one where channels are not told apart; a copy."""
        return values.copy() if self.axis is not None else values.reshape(()).copy()

    def _limit(self, channels: int) -> int:
        """Rows of a piece at most."""
        return max(1, PIECE // max(1, channels))

    def _check(self, channels: int) -> None:
        """Raise DataError for channels that the request cannot take."""

    @abstractmethod
    def _allocate(self, channels: int) -> None: ...

    @abstractmethod
    def _add(self, piece: Array) -> None: ...

    @abstractmethod
    def _join(self, other: "RowState[ResultT]") -> None: ...


def same_channels(known: int | None, channels: int, tensor: str) -> None:
    """Raise DataError for a number of channels other than that seen before."""
    if known is not None and known != channels:
        raise DataError(f"tensor {tensor!r} has {channels} channels, and had {known} in earlier batches")


def channels_of(shape: Shape, axis: int | None) -> int:
    """How many channels batches of a shape have."""
    return 1 if axis is None else shape[axis]


def elementwise_footprint(shape: Shape, axis: int | None, numbers: int) -> Footprint:
    """For states of some float64 numbers a channel that look at each entry by itself, six temporaries at most."""
    channels = channels_of(shape, axis)
    return Footprint(state=8 * numbers * channels, work=6 * 8 * max(PIECE, channels) + 16 * channels)
