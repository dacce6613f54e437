"""Gram matrices of the inputs of linear layers: of one tensor, or of the dense and the current model's side by side."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxopt.errors import DataError
from onnxopt.statistics.accumulators import Accumulator, Footprint, RowState, Shape, State, same_channels
from onnxopt.statistics.comoments import BLOCK, CoMoments, comoments_footprint
from onnxopt.statistics.masks import Array, Mask, Rows, check_finite, samples_in


class Sides(NamedTuple):
    """The same samples in two models: `dense`, as it was, and `current`, as it is by now."""

    dense: Array
    current: Array


@dataclass(frozen=True, eq=False)
class GramMatrix:
    """Second-order statistics of rows x, group by group, shaped as weights `[groups, out, columns]` need them.

    Attributes:
        scatter: float64 [groups, columns, columns], sum of (x - mean)(x - mean)^T; read-only.
        mean: float64 [groups, columns].
        count: how many rows the sums stand for.
        rows: how many were looked at; fewer where positions were sampled.
    """

    scatter: Array
    mean: Array
    count: float
    rows: int

    def gram(self) -> Array:
        """Sum of x x^T, a new array; adding the mean back loses nothing, taking it off afterwards would."""
        return _with_means(self.scatter, self.mean, self.mean, self.count)


@dataclass(frozen=True, eq=False)
class CrossGramMatrix:
    """The same of rows x of the dense side and y of the current one.

    Attributes:
        scatter: float64 [groups, dense columns, current columns], sum of (x - mean x)(y - mean y)^T; read-only.
        mean_dense: float64 [groups, dense columns].
        mean_current: float64 [groups, current columns].
        count: how many rows the sums stand for.
        rows: how many were looked at.
    """

    scatter: Array
    mean_dense: Array
    mean_current: Array
    count: float
    rows: int

    def gram(self) -> Array:
        """Sum of x y^T, a new array."""
        return _with_means(self.scatter, self.mean_dense, self.mean_current, self.count)


def _with_means(scatter: Array, left: Array, right: Array, count: float) -> Array:
    root = np.sqrt(count)
    whole: Array = (left * root)[:, :, None] * (right * root)[:, None, :]
    whole += scatter
    return whole


def gram_matrix(moments: CoMoments, rows: int) -> GramMatrix:
    """The result of a one-sided state."""
    return GramMatrix(moments.lend(), moments.means[0].copy(), moments.count, rows)


def cross_gram_matrix(moments: CoMoments, rows: int) -> CrossGramMatrix:
    """The result of a two-sided state."""
    dense, current = (mean.copy() for mean in moments.means)
    return CrossGramMatrix(moments.lend(), dense, current, moments.count, rows)


def check_groups(channels: int, groups: int, tensor: str) -> None:
    """Raise DataError for channels that do not divide into groups."""
    if channels % groups:
        raise DataError(f"tensor {tensor!r}: {channels} channels do not divide into {groups} groups")


@dataclass(frozen=True)
class Gram(Accumulator[Array, GramMatrix]):
    """Gram matrix of rows of channels; see `comoments` for how exact.

    Attributes:
        axis: of the channels.
        groups: consecutive parts of the channels that do not meet, e.g. of a Gram too large to be whole.
    """

    axis: int = -1
    groups: int = 1

    def begin(self, tensor: str, first_sample: int = 0) -> "GramState":
        """An empty state."""
        return GramState(self, tensor, first_sample, self.axis)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`."""
        return comoments_footprint(self.groups, (-(-shapes[0][self.axis] // self.groups),), dtype, gathered=3)


class GramState(RowState[GramMatrix]):
    """See `Gram`."""

    request: Gram
    moments: CoMoments

    def _check(self, channels: int) -> None:
        check_groups(channels, self.request.groups, self.tensor)

    def _limit(self, channels: int) -> int:
        return BLOCK

    def _allocate(self, channels: int) -> None:
        self.moments = CoMoments(self.request.groups, channels // self.request.groups)

    def _add(self, piece: Array) -> None:
        self.moments.add(piece)

    def _join(self, other: RowState[GramMatrix]) -> None:
        assert isinstance(other, GramState)
        self.moments.merge(other.moments)

    def _result(self) -> GramMatrix:
        return gram_matrix(self.moments, self.rows)

    @property
    def nbytes(self) -> int:
        """See `State.nbytes`."""
        return 0 if self.channels is None else self.moments.nbytes


@dataclass(frozen=True)
class CrossGram(Accumulator[Sides, CrossGramMatrix]):
    """Products of rows of the dense model with the same rows of the current one, which may have fewer channels.

    Attributes:
        axis: of the channels.
        groups: as in `Gram`.
    """

    axis: int = -1
    groups: int = 1

    def begin(self, tensor: str, first_sample: int = 0) -> "CrossGramState":
        """An empty state."""
        return CrossGramState(self, tensor, first_sample)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`; shapes of the dense and of the current side."""
        channels = tuple(-(-shape[self.axis] // self.groups) for shape in shapes)
        return comoments_footprint(self.groups, channels, dtype, gathered=3)


class CrossGramState(State[Sides, CrossGramMatrix]):
    """See `CrossGram`."""

    request: CrossGram

    def __init__(self, request: CrossGram, tensor: str, first_sample: int) -> None:
        super().__init__(request, tensor, first_sample)
        self.moments: CoMoments | None = None

    def update(self, batch: Sides, mask: Mask | None = None) -> None:
        """See `State.update`; the mask holds for both sides."""
        groups, first = self.request.groups, self.first_sample + self.samples
        sides = [Rows.of(side, self.request.axis, mask, self.tensor) for side in batch]
        if sides[0].values.shape[:-1] != sides[1].values.shape[:-1]:
            shapes = " and ".join(str(list(side.shape)) for side in batch)
            raise DataError(f"tensor {self.tensor!r}: sides of shapes {shapes} do not have the same rows")
        for each, side in enumerate(sides):
            check_groups(side.channels, groups, self.tensor)
            if self.moments is not None:
                same_channels(self.moments.means[each].size, side.channels, self.tensor)
        for array, side in zip(batch, sides, strict=True):
            check_finite(array, side, mask, self.tensor, first)
        if self.moments is None:
            self.moments = CoMoments(groups, *(side.channels // groups for side in sides))
        for dense, current in zip(*(side.pieces(BLOCK) for side in sides), strict=True):
            self.moments.add(dense, current)
            self.rows += len(dense)
        self.samples += samples_in(batch.dense)

    def _merge(self, other: State[Sides, CrossGramMatrix]) -> None:
        assert isinstance(other, CrossGramState)
        self.moments = joined(self.moments, other.moments, self.tensor)

    def _result(self) -> CrossGramMatrix:
        assert self.moments is not None
        return cross_gram_matrix(self.moments, self.rows)

    @property
    def nbytes(self) -> int:
        """See `State.nbytes`."""
        return 0 if self.moments is None else self.moments.nbytes


def joined(mine: CoMoments | None, other: CoMoments | None, tensor: str) -> CoMoments | None:
    """What two states have seen together; `other` stays as it is."""
    if other is None:
        return mine
    if mine is None:
        mine = CoMoments(len(other.scatter), *(mean.shape[1] for mean in other.means))
    for known, mean in zip(mine.means, other.means, strict=True):
        same_channels(known.size, mean.size, tensor)
    mine.merge(other)
    return mine
