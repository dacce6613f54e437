"""Which columns of a weight belong together: a head is d of them, a channel before a convolution one for each tap."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]
Units: TypeAlias = Sequence[npt.NDArray[np.integer[Any]]]
"""For each unit the columns it has; they may lie anywhere, and be none, but no column has two units."""


def consecutive(count: int, size: int) -> list[Indices]:
    """`count` units of `size` columns each, one after the other, as in weights `[out, units, size]` laid flat."""
    return list(np.arange(count * size, dtype=np.int64).reshape(count, size))


def columns_of(units: Units, chosen: Iterable[int]) -> Indices:
    """The columns of some units, unit by unit in the order given."""
    return np.concatenate([np.zeros(0, np.int64), *(units[unit] for unit in chosen)]).astype(np.int64)


def check_units(units: Units, columns: int) -> None:
    """Raise ValueError for a column outside `0 .. columns - 1` and for one that has two units."""
    every = columns_of(units, range(len(units)))
    if every.size and not 0 <= every.min() <= every.max() < columns:
        raise ValueError(f"units have columns {every.min()} to {every.max()}, the weight has {columns}")
    twice = np.flatnonzero(np.bincount(every) > 1)
    if twice.size:
        raise ValueError(f"column {twice[0]} belongs to more than one unit")


def complement(kept: npt.ArrayLike, columns: int) -> tuple[Indices, Indices]:
    """The kept columns as they were given, and the others in order; ValueError where one is outside or comes twice."""
    chosen = np.asarray(kept, np.int64).reshape(-1)
    check_units([chosen], columns)
    left = np.ones(columns, bool)
    left[chosen] = False
    return chosen, np.flatnonzero(left).astype(np.int64)


__all__ = ["Array", "Indices", "Units", "check_units", "columns_of", "complement", "consecutive"]
