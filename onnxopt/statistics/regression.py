"""What a linear layer reads against what it should give: the moments that refit it to any target.

The target may be what a later sum should be, less what else goes into that sum: so a layer on a residual branch makes
up for what its stream has lost (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", 3.2).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxopt.analysis.axes.windows import Windows
from onnxopt.errors import DataError
from onnxopt.statistics.accumulators import Accumulator, Footprint, Shape, State, same_channels
from onnxopt.statistics.comoments import BLOCK, CoMoments, comoments_footprint
from onnxopt.statistics.conv_grams import Patches, PatchState, patches_footprint
from onnxopt.statistics.grams import check_groups, joined
from onnxopt.statistics.masks import Array, Mask, Rows, check_finite, samples_in

Looked = tuple[Array, ...]
"""Inputs, targets, and what is taken off the targets, if there is a third."""


@dataclass(frozen=True, eq=False)
class Regressed:
    """Second-order statistics of rows x and targets t, group by group.

    Attributes:
        products: float64 [groups, columns, out], sum of (x - mean)(t - mean)^T; read-only.
        mean_inputs: float64 [groups, columns].
        mean_targets: float64 [groups, out].
        count: how many rows the sums stand for.
        rows: how many were looked at.
    """

    products: Array
    mean_inputs: Array
    mean_targets: Array
    count: float
    rows: int


def _result(moments: CoMoments, rows: int) -> Regressed:
    inputs, targets = (mean.copy() for mean in moments.means)
    return Regressed(moments.lend(), inputs, targets, moments.count, rows)


def _target(looked: Looked, tensor: str) -> Array:
    if len(looked) < 3:
        return looked[1]
    if looked[1].shape != looked[2].shape:
        shapes = " and ".join(str(list(each.shape)) for each in looked[1:])
        raise DataError(f"tensor {tensor!r}: targets of shapes {shapes} cannot be told apart")
    difference: Array = looked[1] - looked[2]
    return difference


@dataclass(frozen=True)
class Regression(Accumulator[Looked, Regressed]):
    """Rows of inputs against rows of targets with the same leading axes.

    Attributes:
        axis: of the inputs' channels.
        target_axis: of the targets'.
        groups: consecutive parts of both that do not meet.
    """

    axis: int = -1
    target_axis: int = -1
    groups: int = 1

    def begin(self, tensor: str, first_sample: int = 0) -> "RegressionState":
        """An empty state."""
        return RegressionState(self, tensor, first_sample)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`; shapes of inputs and targets."""
        sizes = (shapes[0][self.axis], shapes[1][self.target_axis])
        sums = comoments_footprint(self.groups, tuple(-(-each // self.groups) for each in sizes), dtype, gathered=3)
        return Footprint(sums.state, sums.work + 8 * math.prod(shapes[1]) * (len(shapes) > 2))


class RegressionState(State[Looked, Regressed]):
    """See `Regression`."""

    request: Regression

    def __init__(self, request: Regression, tensor: str, first_sample: int) -> None:
        super().__init__(request, tensor, first_sample)
        self.moments: CoMoments | None = None

    def update(self, batch: Looked, mask: Mask | None = None) -> None:
        """See `State.update`."""
        request, first = self.request, self.first_sample + self.samples
        arrays = (batch[0], _target(batch, self.tensor))
        axes = (request.axis, request.target_axis)
        sides = [Rows.of(array, axis, mask, self.tensor) for array, axis in zip(arrays, axes, strict=True)]
        if sides[0].values.shape[:-1] != sides[1].values.shape[:-1]:
            shapes = " and ".join(str(list(array.shape)) for array in arrays)
            raise DataError(f"tensor {self.tensor!r}: inputs and targets of shapes {shapes} do not have the same rows")
        for each, (array, side) in enumerate(zip(arrays, sides, strict=True)):
            check_groups(side.channels, request.groups, self.tensor)
            if self.moments is not None:
                same_channels(self.moments.means[each].size, side.channels, self.tensor)
            check_finite(array, side, mask, self.tensor, first)
        if self.moments is None:
            self.moments = CoMoments(request.groups, *(side.channels // request.groups for side in sides))
        for inputs, targets in zip(*(side.pieces(BLOCK) for side in sides), strict=True):
            self.moments.add(inputs, targets)
            self.rows += len(inputs)
        self.samples += samples_in(batch[0])

    def _merge(self, other: State[Looked, Regressed]) -> None:
        assert isinstance(other, RegressionState)
        self.moments = joined(self.moments, other.moments, self.tensor)

    def _result(self) -> Regressed:
        assert self.moments is not None
        return _result(self.moments, self.rows)

    @property
    def nbytes(self) -> int:
        """See `State.nbytes`."""
        return 0 if self.moments is None else self.moments.nbytes


@dataclass(frozen=True)
class ConvRegression(Accumulator[Looked, Regressed]):
    """Patches that a convolution sees against targets `[samples, out, positions...]` of its outputs."""

    patches: Patches

    def begin(self, tensor: str, first_sample: int = 0) -> "ConvRegressionState":
        """An empty state."""
        return ConvRegressionState(self, self.patches, tensor, first_sample)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`; shapes of inputs and targets."""
        own = patches_footprint(self.patches, shapes[:1], dtype)
        columns = (-(-shapes[0][1] // self.patches.groups) * self.patches.taps, -(-shapes[1][1] // self.patches.groups))
        sums = comoments_footprint(self.patches.groups, columns, dtype, gathered=1)
        return Footprint(sums.state, own.work + sums.work + 16 * math.prod(shapes[1]))


class ConvRegressionState(PatchState[Looked, Regressed]):
    """See `ConvRegression`."""

    def _patches(self, each: int) -> Patches:
        """Outputs are looked at where they are: each position is a window of its own."""
        if each == 0:
            return self.patches
        one = (1,) * len(self.patches.windows.kernel)
        windows = Windows(one, one, one, (0,) * 2 * len(one), "NOTSET")
        return Patches(windows, self.patches.groups, self.patches.positions, self.patches.seed)

    def update(self, batch: Looked, mask: Mask | None = None) -> None:
        """See `State.update`; a mask tells whole samples apart."""
        self._update((batch[0], _target(batch, self.tensor)), mask)

    def _result(self) -> Regressed:
        assert self.moments is not None
        return _result(self.moments, self.rows)
