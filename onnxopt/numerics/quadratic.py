"""Which units to remove together when nothing is refitted: a quadratic form over sets of units.

The output error of removing the units with z_u = 1 is `q(z) = z^T Q z`, `Q_uv = tr(W_u S_uv W_v^T)`: two units that
say the same add up to four times the error of one. Greedy: Luo et al. 2017, "ThiNet". Exchange of pairs: Yu et al.
2022, "The Combinatorial Brain Surgeon"; Rosenberg et al. 2024, "iCBS", which anneal instead. A linear term of a
second-order model of the loss fits in as well: z is 0 or 1, so it belongs on the diagonal.
"""

from itertools import count

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from .units import Array, Indices, Units, check_units, columns_of, complement

_GAIN = 1e-12
"""Exchanges that gain less than this share of the form's size are rounding."""

_TENURE = 3
"""Exchanges after which a unit that was exchanged may be again, if that does not lead to a better set anyway."""


def interactions(weight: npt.ArrayLike, scatter: npt.ArrayLike, units: Units) -> Array:
    """`Q_uv = sum over columns a of u, b of v of (W^T W)_ab S_ab`, `[units, units]`, symmetric.

    Readers of the same units add up their matrices.

    Args:
        weight: `[out, C]`.
        scatter: `[C, C]`; with a Gram matrix in its place the error is that without correction of the bias.
        units: columns of each.

    Cost: out * C^2.
    """
    full, matrix = np.asarray(weight, np.float64), np.asarray(scatter, np.float64)
    check_units(units, len(matrix))
    own = columns_of(units, range(len(units)))
    starts = np.cumsum([0, *map(len, units)])
    member = csr_array((np.ones(len(own)), own, starts), shape=(len(units), len(matrix)))
    products = full.T @ full
    products *= matrix
    form: Array = np.asarray(member @ (member @ products).T)
    return (form + form.T) / 2


def error_of(form: Array, chosen: npt.ArrayLike) -> float:
    """`q` of a set of units, from `[units, units]`."""
    own = np.asarray(chosen, np.int64)
    return float(form[np.ix_(own, own)].sum())


def greedy(form: Array, size: int) -> Indices:
    """`size` units, each the one that adds least to `q` of those before it; ties: the first in order.

    Args:
        form: `[units, units]`, symmetric.

    Cost: size * units.
    """
    if not 0 <= size <= len(form):
        raise ValueError(f"{size} of {len(form)} units are to be chosen")
    order = np.zeros(size, np.int64)
    added = form.diagonal().copy()
    for step in range(size):
        order[step] = int(added.argmin())
        added += 2 * form[order[step]]
        added[order[: step + 1]] = np.inf
    return order


def swaps(form: npt.ArrayLike, start: npt.ArrayLike, patience: int = 16) -> Indices:
    """Improve a set of units by exchanging one of them for one outside, the best exchange first.

    With `f = Q z` kept up to date an exchange of i for j changes q by `Q_ii + Q_jj - 2 Q_ij + 2 (f_j - f_i)`. Where no
    exchange gains any more, the one that loses least is made, and what was exchanged last may not go back at once
    (tabu search: Glover 1989); the best set met on the way is returned. It is never worse than the one to begin with,
    no exchange improves it, and the same input gives the same set; of equal exchanges the first in order is made.

    Args:
        form: `[units, units]`, symmetric.
        start: the set to begin with, say from `greedy` or `elimination`.
        patience: exchanges to make without a better set; 0 stops at the first set that no exchange improves.

    Returns:
        `[size of start]`, ascending.

    Cost: `|z| (units - |z|)` an exchange.

    Raises:
        ValueError: the form is not square or not finite, or `start` is outside or names a unit twice.
    """
    matrix = np.asarray(form, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise ValueError(f"a quadratic form is square and finite, not {matrix.shape}")
    first, _ = complement(start, len(matrix))
    chosen = np.zeros(len(matrix), bool)
    chosen[first] = True
    best, value, lowest, waited = chosen.copy(), 0.0, 0.0, 0
    least = _GAIN * float(np.abs(matrix).max(initial=0.0))
    field, free = matrix @ chosen, np.zeros(len(matrix), np.int64)
    for step in count(1):
        inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        change = _changes(matrix, field, inside, outside)
        tabu = (free[inside, None] >= step) | (free[outside] >= step)
        change[tabu & (value + change >= lowest - least)] = np.inf
        if not np.isfinite(change).any():
            break
        taken = int(change.argmin())
        waited = 0 if value + change.flat[taken] < lowest - least else waited + 1
        if waited > patience:
            break
        leave, enter = inside[taken // len(outside)], outside[taken % len(outside)]
        value += float(change.flat[taken])
        chosen[[leave, enter]] = False, True
        free[[leave, enter]] = step + _TENURE
        field += matrix[enter] - matrix[leave]
        if not waited:
            best, lowest = chosen.copy(), value
    return np.flatnonzero(best).astype(np.int64)


def _changes(form: Array, field: Array, inside: Indices, outside: Indices) -> Array:
    """By how much q changes when one inside is exchanged for one outside, `[inside, outside]`."""
    diagonal = form.diagonal()
    change = -2 * form[np.ix_(inside, outside)]
    change += (diagonal - 2 * field)[inside, None]
    change += (diagonal + 2 * field)[outside]
    return change


__all__ = ["error_of", "greedy", "interactions", "swaps"]
