"""Which units to remove, one after the other, when those that stay are refitted: backward elimination on Gram matrices.

The loss of a set P of columns of a layer, with the best weights for the rest, is `tr(W_P (Hinv_PP)^-1 W_P^T)`,
`H = S + lam I` (Hassibi and Stork 1993, "Optimal Brain Surgeon", for sets of columns). Removing the unit that loses
least and bringing the rest up to date,

    W    -= W_P (Hinv_PP)^-1 Hinv_P:
    Hinv -= Hinv_:P (Hinv_PP)^-1 Hinv_P:

leads to the next choice, and never takes both of two that stand in for each other. The losses of the steps add up to
that of the whole set, so that one run tells what every width costs.

How it is computed: the downdates are the steps of a Cholesky factorization of Hinv that takes its pivots by loss. Rows
U of the factor are made when their unit is chosen; neither Hinv nor W changes until some 128 columns are gone, then all
at once by matrix products, and what is gone is left out from there. Of the pending rest only the diagonal blocks are
kept up to date. Everything is scaled to `diag(H) = 1` first. Where a probe `H (Hinv v) = v` shows drift, the rest is
factored anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr

from .definite import Factor, as_scatter, damping, equilibrated
from .leastsquares import RIDGE
from .units import Array, Indices, Units, check_units

_PENDING = 128
"""Columns that are removed before the whole inverse is brought up to date."""

_DRIFT = 1e-8
"""Relative error of the inverse above which it is computed anew."""

_TIE = 1e-9
"""Losses that differ by less than this are equal: the first unit goes, whatever way a machine rounds."""

_NOTHING = 1e-15
"""Share of all energy under which a loss is rounding."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads units.

    Attributes:
        weight: `[out, C]`; scaled by the root of what the layer's errors count. Layers with the same inputs are one
            reader, their weights stacked.
        scatter: `[C, C]`, sum or mean of `(x - mean)(x - mean)^T` of its inputs.
        units: for each unit its columns here, none where the layer does not read it. Columns of no unit stay.
    """

    weight: Array
    scatter: Array
    units: Units


@dataclass(frozen=True, eq=False)
class Elimination:
    """Units in the order in which they go.

    Attributes:
        order: `[removed]`, units, first the one that goes first.
        losses: `[removed]`, by how much each raises the loss: squared error in the units of the scatter, with the
            penalty of the ridge in it; not negative.
        energy: `tr(W S W^T)`, what the loss of all compares with.
    """

    order: Indices
    losses: Array
    energy: float

    @property
    def cumulative(self) -> Array:
        """`[removed]`, the loss when the first 1, 2, ... units are gone."""
        total: Array = np.cumsum(self.losses)
        return total

    def removed(self, count: int) -> Indices:
        """The first `count` units to go, ascending."""
        return np.sort(self.order[:count])


def energy(weight: npt.ArrayLike, scatter: npt.ArrayLike, units: Units) -> Array:
    """What each unit alone takes from the outputs when nothing makes up for it: `tr(W_P S_PP W_P^T)` `[units]`.

    With a scatter that is what is lost with the bias corrected, with a Gram matrix without.

    Args:
        weight: `[out, C]`.
        scatter: `[C, C]`.
        units: columns of each.

    Cost: out * sum of |P|^2.
    """
    full, matrix = np.asarray(weight, np.float64), np.asarray(scatter, np.float64)
    check_units(units, full.shape[1])
    return np.array([np.sum((full[:, own] @ matrix[np.ix_(own, own)]) * full[:, own]) for own in units])


def eliminate(readers: Sequence[Reader], count: int | None = None, ridge: float = RIDGE) -> Elimination:
    """Remove units one by one, each time the one whose loss, summed over all readers after their refit, is least.

    Dead units go first. Ties: the first in order.

    Args:
        readers: all layers that read the units; as many units in each.
        count: how many to remove; None: all, so that the loss of every width is known.
        ridge: damping, `lam = ridge * mean of diag(S)` over all live columns, the same at every step. The losses are
            those of refits with this `lam`; a refit alone takes the mean over kept columns, which differs a little.
            At 0 dependent columns cost eigenvalues at every update of the inverse, some ten times as much.

    Cost, for each reader: C^3 for the inverse, for removed columns p another `p C (2 C + 2 min(out, C))`; memory
    `8 (4 C^2 + out C)` bytes. 2304 columns in 256 units of which half go: about 2 s on one core.

    Raises:
        ValueError: units that differ in number or share columns, shapes that do not fit, entries that are not finite,
            `ridge` < 0 or more units to remove than there are.
    """
    if not readers:
        raise ValueError("there is no reader to lose anything")
    units = len(readers[0].units)
    if any(len(reader.units) != units for reader in readers):
        raise ValueError(f"readers have {', '.join(str(len(reader.units)) for reader in readers)} units")
    steps = units if count is None else count
    if not 0 <= steps <= units:
        raise ValueError(f"{steps} of {units} units are to be removed")
    sides = [_Side(reader, ridge) for reader in readers]
    total = sum(side.energy for side in sides)
    gone = np.zeros(units, bool)
    order, losses = np.zeros(steps, np.int64), np.zeros(steps)
    for step in range(steps):
        costs = np.where(gone, np.inf, 0.0)
        for side in sides:
            costs[side.alive] += side.costs()
        chosen = int(np.argmax(costs <= costs.min() * (1 + _TIE) + _NOTHING * total))
        gone[chosen] = True
        order[step] = chosen
        losses[step] = sum(side.remove(chosen) for side in sides)
    return Elimination(order, losses, total)


class _Side:
    """One reader while units leave it.

    Columns lie unit by unit, `width` each, narrower units filled up with dead columns, and after them those of no unit.
    Between two updates arrays keep their removed columns; what is computed of these is not used.

    Attributes:
        energy: `tr(W S W^T)`.
        width: columns of a unit.
        limit: columns that may be pending.
        hessian: `[n, n]`, scaled and damped; dense: `[r, n]`, the weights to go with it. Both stay as they are.
        left: `[m]`, columns at the last update; alive: `[u]`, units then.
        inverse: `[m, m]`; weight: `[r, m]`, of the columns left, at the last update.
        rows: `[limit, m]`; effects: `[r, limit]`: what is `pending` is `rows^T rows` less of the inverse, and
            `effects rows` less of the weights.
        variances: `[u, width, width]`, blocks of the inverse; energies: the same of `W^T W`. Both are up to date.
        gone: `[u]`, units that went since.
    """

    alive: Indices
    left: Indices
    inverse: Array
    weight: Array
    rows: Array
    effects: Array
    variances: Array
    energies: Array
    gone: npt.NDArray[np.bool_]
    pending: int

    def __init__(self, reader: Reader, ridge: float) -> None:
        weight, scatter = np.asarray(reader.weight, np.float64), as_scatter(reader.scatter)
        damp = damping(scatter, ridge)
        if weight.ndim != 2 or weight.shape[1] != len(scatter) or not np.isfinite(weight).all():
            raise ValueError(
                f"weights {weight.shape} have to be finite, with columns as the {len(scatter)} of the scatter"
            )
        check_units(reader.units, len(scatter))
        self.energy = max(0.0, float(np.sum((weight @ scatter) * weight)))
        self.alive = np.array([unit for unit, own in enumerate(reader.units) if len(own)], np.int64)
        columns = _laid_out([reader.units[unit] for unit in self.alive], len(scatter))
        self.width = max((len(reader.units[unit]) for unit in self.alive), default=1)
        filled = columns >= 0
        scatter = np.where(filled & filled[:, None], scatter[np.ix_(columns, columns)], 0.0)
        self.hessian, factors = equilibrated(scatter, damp)
        inverse_factors = np.divide(1.0, factors, out=np.zeros_like(factors), where=factors > 0)
        self.dense: Array = _fewest_rows(np.where(filled, weight[:, columns], 0.0) * inverse_factors)
        self.left = np.arange(len(columns), dtype=np.int64)
        self.limit = max(self.width, _PENDING // self.width * self.width)
        self._factor()

    def costs(self) -> Array:
        """Loss of each unit in `alive`; infinite for those that are gone already."""
        if self.width == 1:
            found = self.energies[:, 0, 0] / self.variances[:, 0, 0]
        else:
            found = np.trace(np.linalg.solve(self.variances, self.energies), axis1=1, axis2=2)
        costs: Array = np.where(self.gone, np.inf, np.maximum(found, 0))
        return costs

    def remove(self, unit: int) -> float:
        """Take a unit out, the others brought up to date; by how much the loss rises."""
        place = np.searchsorted(self.alive, unit)
        if place == len(self.alive) or self.alive[place] != unit:
            return 0.0
        slot, own = int(place), slice(int(place) * self.width, (int(place) + 1) * self.width)
        whiten = _whitener(self.variances[slot])
        rows, effects = self.rows[: self.pending], self.effects[:, : self.pending]
        row = whiten @ (self.inverse[own] - rows[:, own].T @ rows)
        current = self.weight[:, own] - effects @ rows[:, own]
        effect = whiten @ current.T
        self._update_blocks(row, effect, effect @ self.weight - (effect @ effects) @ rows)
        self.variances[slot], self.energies[slot], self.gone[slot] = np.eye(self.width), 0, True
        self.rows[self.pending : self.pending + self.width] = row
        self.effects[:, self.pending : self.pending + self.width] = effect.T
        self.pending += self.width
        if self.pending >= self.limit:
            self._settle()
        return float(np.sum(effect**2))

    def _update_blocks(self, row: Array, effect: Array, reach: Array) -> None:
        """Bring `Hinv_uu` and `W_u^T W_u` of all units up to date; `reach` is `effect` times the weights, `[w, m]`."""
        reach -= 0.5 * (effect @ effect.T) @ row
        rows, reaches = self._by_unit(row), self._by_unit(reach)
        self.variances -= rows.swapaxes(1, 2) @ rows
        change = reaches.swapaxes(1, 2) @ rows
        self.energies -= change
        self.energies -= change.swapaxes(1, 2)

    def _by_unit(self, array: Array) -> Array:
        """`[rows, columns]` as `[units, rows, width]`."""
        units = len(self.alive)
        return array[:, : units * self.width].reshape(len(array), units, self.width).swapaxes(0, 1)

    def _settle(self) -> None:
        """Bring the inverse and the weights up to date, and leave out what is gone."""
        stay = np.concatenate([np.repeat(~self.gone, self.width), np.ones(len(self.left) - self._own(), bool)])
        rows, effects = self.rows[: self.pending, stay], self.effects[:, : self.pending]
        self.left, self.alive = self.left[stay], self.alive[~self.gone]
        self.inverse = self.inverse[np.ix_(stay, stay)] - rows.T @ rows
        self.weight = self.weight[:, stay] - effects @ rows
        if self._drift() > _DRIFT:
            self._factor()
        else:
            self._begin()

    def _factor(self) -> None:
        """Inverse and refitted weights of the columns that are left, from the matrices as they were given."""
        self.inverse = Factor(self.hessian[np.ix_(self.left, self.left)]).inverse()
        lost = np.setdiff1d(np.arange(len(self.hessian)), self.left, assume_unique=True)
        self.weight = self.dense[:, self.left]
        if lost.size:
            self.weight = self.weight + self.dense[:, lost] @ self.hessian[np.ix_(lost, self.left)] @ self.inverse
        self._begin()

    def _drift(self) -> float:
        """How far `H (Hinv v)` is from a v of alternating signs."""
        probe = 1.0 - 2.0 * (np.arange(len(self.left)) % 2)
        spread = np.zeros(len(self.hessian))
        spread[self.left] = self.inverse @ probe
        error = (self.hessian @ spread)[self.left] - probe
        return float(np.abs(error).max(initial=0.0))

    def _begin(self) -> None:
        """Nothing is pending; blocks from the whole matrices."""
        units, size = len(self.alive), len(self.left)
        corner = self.inverse[: self._own(), : self._own()].reshape(units, self.width, units, self.width)
        self.variances = np.einsum("uaub->uab", corner).copy()
        weights = self._by_unit(self.weight)
        self.energies = weights.swapaxes(1, 2) @ weights
        self.gone = np.zeros(units, bool)
        self.pending = 0
        self.rows = np.zeros((self.limit, size))
        self.effects = np.zeros((len(self.weight), self.limit))

    def _own(self) -> int:
        """How many columns belong to units."""
        return len(self.alive) * self.width


def _laid_out(units: Units, columns: int) -> Indices:
    """Columns unit by unit, -1 where one is narrower than the widest, then those of no unit."""
    table = np.full((len(units), max(map(len, units), default=1)), -1, np.int64)
    for row, own in zip(table, units, strict=True):
        row[: len(own)] = own
    return np.concatenate([table.reshape(-1), np.setdiff1d(np.arange(columns), table)])


def _whitener(variance: Array) -> Array:
    """`R` with `R^T R = variance^-1`, of a small matrix that may have no full rank, to working precision."""
    values, vectors = np.linalg.eigh(variance)
    floor = np.finfo(np.float64).eps * float(values[-1])
    whitener: Array = (vectors / np.sqrt(np.maximum(values, floor))).T
    return whitener


def _fewest_rows(weight: Array) -> Array:
    """A matrix with the same `W^T W` and no more rows than columns."""
    if len(weight) <= weight.shape[1]:
        return weight
    triangle: Array = qr(weight, mode="r", check_finite=False)[0][: weight.shape[1]]
    return triangle


__all__ = ["Elimination", "Reader", "eliminate", "energy"]
