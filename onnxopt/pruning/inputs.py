"""What the layers that read units see: Gram matrices, in the form that rankings and repairs take them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.analysis.linear.recurrent import Layer
from onnxopt.numerics import elimination
from onnxopt.numerics.units import Array, Indices
from onnxopt.pruning.readers import Reader
from onnxopt.statistics import Collected, GramMatrix, Stat, gram

WIDEST = 2304
"""Columns of a convolution above which one predictor over channels serves all taps: 9 times smaller matrices."""


FEWEST = 10
"""Columns for each of which there has to be a row, for an order of units to be more than chance."""


def taps_apart(linear: Layer) -> bool:
    """Whether each tap of a layer is a column of its own."""
    return linear.kind != "conv_transpose" and linear.shape[2] <= WIDEST


def inputs_of(reader: Reader) -> Stat[GramMatrix]:
    """The Gram matrix of what a layer reads; with few rows for its columns it says nothing of most directions."""
    linear, apart = reader.linear, taps_apart(reader.linear)
    columns = linear.shape[2] if apart else linear.in_features
    return gram(linear, taps=apart, least_rows=max(2, columns // FEWEST))


def weights(linear: Layer) -> Array:
    """Its matrices `[groups, out, columns]` where taps are columns, else `[groups, out, features, taps]`."""
    matrix = linear.matrix().astype(np.float64)
    return matrix if taps_apart(linear) else matrix.reshape(*matrix.shape[:2], linear.in_features, linear.taps)


@dataclass(frozen=True, eq=False)
class Seen:
    """One matrix of a layer with what it multiplies.

    Attributes:
        weight: `[out, C]`; where taps share a predictor, `[out * taps, C]`.
        scatter: `[C, C]`, about the mean.
        mean: `[C]`.
        count: rows.
        units: for each unit of a group its columns here.
    """

    weight: Array
    scatter: Array
    mean: Array
    count: float
    units: Sequence[Indices]

    @property
    def energy(self) -> float:
        """How much the outputs vary, summed over rows."""
        return float(np.sum((self.weight @ self.scatter) * self.weight))

    def scaled(self) -> elimination.Reader:
        """The same with outputs that vary by 1 in all, so that layers compare."""
        energy = self.energy
        factor = energy**-0.5 if energy > 0 else 1.0
        return elimination.Reader(self.weight * factor, self.scatter, self.units)


def seen(readers: Iterable[Reader], units: Sequence[int], found: Collected) -> list[Seen]:
    """What all layers that read some units see of them.

    Raises:
        DataError: a statistic is missing, or stands on too few rows.
    """
    result = []
    for reader in readers:
        linear = reader.linear
        matrix, matrices = found[inputs_of(reader)], weights(linear)
        for group, weight in enumerate(matrices):
            flat = weight if weight.ndim == 2 else weight.transpose(0, 2, 1).reshape(-1, weight.shape[1])
            columns = reader.columns(group, units, taps_apart(linear))
            if any(len(each) for each in columns):
                result.append(Seen(flat, matrix.scatter[group], matrix.mean[group], matrix.count, columns))
    return result
