"""What a model costs as a function of the widths of its groups: sums of products of extents.

MACs, parameters and bytes of a layer are a constant times the extents of the groups along its axes: a Conv is
`kernel * positions * inputs * outputs`, attention `sequence^2 * heads * size`. So what one unit costs changes as the
neighbours of its group get narrower; `polynomials` tells the cost along one group, all others held, at no more than
one look at each product.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Widths: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """A product: `coefficient` (>= 0) times the width of each of `groups`; a group that is named twice is squared."""

    coefficient: float
    groups: tuple[int, ...]


@dataclass(frozen=True)
class _Places:
    """Where groups occur in terms, sorted by group: one row for each pair of a group and a term that it touches.

    Attributes:
        group: `[pairs]`.
        power: `[pairs]`, how often the term names the group.
        coefficient: `[pairs]`, the term's.
        others: `[pairs, degree]`, the other groups of the term, -1 where there are no more.
        starts: `[groups + 1]`, where each group's rows begin.
    """

    group: npt.NDArray[np.int64]
    power: npt.NDArray[np.int64]
    coefficient: Floats
    others: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cost:
    """`constant` plus the sum of `terms`, in whatever unit the caller counts. Widths are `[groups]`, whole numbers.

    Whole coefficients are summed without rounding up to 2^53.

    Raises:
        ValueError: a coefficient that is negative or not finite, or a negative number of a group. With no negative
            coefficient narrower groups never cost more, which all allocation stands on.
    """

    constant: float
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not np.isfinite([self.constant, *(term.coefficient for term in self.terms)]).all():
            raise ValueError("the constant and the coefficients of a cost must be finite")
        for place, term in enumerate(self.terms):
            if term.coefficient < 0 or min(term.groups, default=0) < 0:
                raise ValueError(f"term {place} of the cost: coefficient and groups must not be negative, not {term}")

    def total(self, widths: npt.ArrayLike) -> Any:
        """The cost at `widths` `[..., groups]`, one number for each of the leading indices; O(terms) each.

        Raises:
            ValueError: fewer widths than groups.
        """
        coefficient, groups = self._products
        if groups.max(initial=-1) >= np.shape(widths)[-1]:
            raise ValueError(f"the cost has {groups.max() + 1} groups or more, not {np.shape(widths)[-1]}")
        return self.constant + padded(widths)[..., groups].prod(-1) @ coefficient

    def marginal(self, widths: npt.ArrayLike) -> Floats:
        """The derivative of the cost by each width `[groups]`: what the next unit costs, others held; O(terms)."""
        at = np.asarray(widths, np.float64)
        along = self.polynomials(at)
        degrees = np.arange(1, along.shape[1])
        slope: Floats = (along[:, 1:] * degrees * at[:, None] ** (degrees - 1)).sum(1)
        return slope

    def polynomials(self, widths: npt.ArrayLike) -> Floats:
        """The cost along each group with all others held: coefficients of its powers `[groups, degree + 1]`; O(terms).

        Moving group g alone from width w to v changes the cost by `sum_m row[g, m] * (v^m - w^m)`. Terms that do not
        touch g are left out of its row.
        """
        at = padded(widths)
        places, count = self._places, at.shape[0] - 1
        held = places.coefficient * at[places.others].prod(1)
        cells = places.group * (self._degree + 1) + places.power
        sums: Floats = np.bincount(cells, held, minlength=count * (self._degree + 1)).astype(np.float64, copy=False)
        return sums.reshape(count, self._degree + 1)

    def polynomial(self, widths: Floats, group: int) -> Floats:
        """One row of `polynomials`, at the cost of the terms that touch `group`.

        Args:
            widths: `[groups + 1]`, the last one 1: what `padded` returns.
            group: along which.
        """
        places = self._places
        if group + 1 >= len(places.starts):
            return np.zeros(self._degree + 1)
        rows = slice(places.starts[group], places.starts[group + 1])
        held = places.coefficient[rows] * widths[places.others[rows]].prod(1)
        row: Floats = np.bincount(places.power[rows], held, minlength=self._degree + 1).astype(np.float64, copy=False)
        return row

    @cached_property
    def _degree(self) -> int:
        return int(self._places.power.max(initial=1))

    @cached_property
    def _products(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Coefficients `[terms]` and groups `[terms, most groups of one]`, filled up with -1."""
        return np.array([term.coefficient for term in self.terms], np.float64), _filled(t.groups for t in self.terms)

    @cached_property
    def _places(self) -> _Places:
        rows = [
            (group, term.groups.count(group), term.coefficient, tuple(each for each in term.groups if each != group))
            for term in self.terms
            for group in dict.fromkeys(term.groups)
        ]
        rows.sort(key=lambda row: row[0])
        group = np.array([row[0] for row in rows], np.int64)
        return _Places(
            group,
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.float64),
            _filled(row[3] for row in rows),
            np.searchsorted(group, np.arange(group.max(initial=-1) + 2)).astype(np.int64),
        )


def padded(widths: npt.ArrayLike) -> Floats:
    """Widths `[..., groups]` with an extent of 1 after them, which is what the absent group -1 stands for."""
    at = np.asarray(widths, np.float64)
    return np.concatenate([at, np.ones((*at.shape[:-1], 1))], -1)


def _filled(rows: Iterable[tuple[int, ...]]) -> npt.NDArray[np.int64]:
    listed = list(rows)
    longest = max(map(len, listed), default=0)
    return np.array([row + (-1,) * (longest - len(row)) for row in listed], np.int64).reshape(len(listed), longest)


__all__ = ["Cost", "Floats", "Term", "Widths", "padded"]
