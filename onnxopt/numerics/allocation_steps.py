"""Moving widths step by step: narrower until the budget holds, wider while it holds, one for another.

All of it counts with the cost as it is at that moment, neighbours included.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .allocation_cost import Cost, Floats, Widths, padded
from .allocation_curves import Curve

Levels: TypeAlias = npt.NDArray[np.int64]


class Unreachable(ValueError):
    """No allowed widths meet the target.

    Attributes:
        target: the cost that was asked for.
        floor: what the model costs with every group at the narrowest width that it may have.
    """

    def __init__(self, target: float, floor: float) -> None:
        super().__init__(f"cost {target:g} is below the floor of {floor:g}, all groups at their narrowest")
        self.target = target
        self.floor = floor


@dataclass(frozen=True, eq=False)
class Options:
    """The widths and losses of all groups as matrices, and what moving between them costs.

    A choice is `[groups]`, for each group the number of its level, 0 the narrowest.

    Attributes:
        curves: one a group.
        cost: of the model.
    """

    curves: Sequence[Curve]
    cost: Cost

    @cached_property
    def last(self) -> Levels:
        """The choice in which every group keeps its full width."""
        return np.array([len(curve.widths) - 1 for curve in self.curves], np.int64)

    @cached_property
    def widths(self) -> Floats:
        """`[groups, most levels]`; a group with fewer repeats its full width."""
        return self._table([curve.widths.astype(np.float64) for curve in self.curves])

    @cached_property
    def losses(self) -> Floats:
        """`[groups, most levels]`."""
        return self._table([curve.losses for curve in self.curves])

    def _table(self, rows: Sequence[Floats]) -> Floats:
        places = np.minimum(np.arange(int(self.last.max(initial=0)) + 1), self.last[:, None])
        return np.array([row[place] for row, place in zip(rows, places, strict=True)]).reshape(places.shape)

    def chosen(self, choice: Levels) -> Widths:
        """Its widths `[groups]`."""
        return self._at(self.widths, choice).astype(np.int64)

    def loss(self, choice: Levels) -> float:
        """The sum of its losses."""
        return float(self._at(self.losses, choice).sum())

    def total(self, choice: Levels) -> float:
        """What it costs."""
        return float(self.cost.total(self._at(self.widths, choice)))

    def prices(self, choice: Levels) -> Floats:
        """`[groups, levels]`: by how much the cost changes when one group alone moves there; O(terms + levels)."""
        along = self.cost.polynomials(self._at(self.widths, choice))
        costs = np.zeros_like(self.widths)
        for power in range(along.shape[1] - 1, 0, -1):
            costs = (costs + along[:, power, None]) * self.widths
        return costs - self._at(costs, choice)[:, None]

    def gains(self, choice: Levels) -> Floats:
        """`[groups, levels]`: how much less is lost there; negative where more is."""
        return self._at(self.losses, choice)[:, None] - self.losses

    @staticmethod
    def _at(table: Floats, choice: Levels) -> Floats:
        return table[np.arange(len(choice)), choice]

    def require_reachable(self, target: float) -> None:
        """Raise Unreachable where even the narrowest widths cost more than `target`."""
        floor = self.total(np.zeros_like(self.last))
        if not floor <= target:
            raise Unreachable(target, floor)


def shrink(options: Options, choice: Levels, target: float, beta: float = 1.0, held: int = -1) -> Levels:
    """Narrow one group after the other until the cost is within `target`, the smallest loss per cost first.

    A step takes a group to the narrower width with the least `loss / saving ** beta`, so that a costly unit in front
    of cheap ones does not shield them. Keys wait in a heap; since a neighbour that gets narrower only makes a group's
    units cheaper, and so its key larger, a key that is still the smallest after it was computed anew is the smallest
    of all. Each step costs the terms and the levels of one group.

    Args:
        options: of all groups.
        choice: where to start.
        target: what it may cost. Where it cannot be met all groups end at their narrowest.
        beta: see above.
        held: a group that stays as it is.
    """
    at = choice.copy()
    widths = padded(options.chosen(at))
    spent = options.total(at)
    heap = [_step(options, widths, at, group, beta) for group in range(len(at)) if group != held]
    heapq.heapify(heap)
    while spent > target and heap:
        _, group, _, _ = heapq.heappop(heap)
        key, _, level, saving = step = _step(options, widths, at, group, beta)
        if not np.isfinite(key):
            continue
        if heap and step[:2] > heap[0][:2]:
            heapq.heappush(heap, step)
            continue
        at[group] = level
        widths[group] = options.widths[group, level]
        spent -= saving
        if spent <= target:
            spent = options.total(at)
        heapq.heappush(heap, _step(options, widths, at, group, beta))
    return at


def _step(options: Options, widths: Floats, at: Levels, group: int, beta: float) -> tuple[float, int, int, float]:
    """The key of a group's best step down, the group, the level that it leads to and what it saves."""
    level = int(at[group])
    if level == 0:
        return (np.inf, group, 0, 0.0)
    along = options.cost.polynomial(widths, group)
    extents = options.widths[group, : level + 1]
    costs = np.zeros(level + 1)
    for factor in along[:0:-1]:
        costs = (costs + factor) * extents
    savings = costs[level] - costs[:level]
    worth = np.where(savings > 0, savings, 1.0) ** beta
    losses = options.losses[group, :level] - options.losses[group, level]
    keys = np.where(savings > 0, losses / worth, np.inf)
    best = int(keys.argmin())
    return (float(keys[best]), group, best, float(savings[best]))


def widen(options: Options, choice: Levels, target: float, most: Levels | None = None) -> Levels:
    """Spend what is left of `target`: widen the group with the best gain per cost that fits, until none does.

    What gains nothing stays as it is.

    Args:
        options: of all groups.
        choice: within the target.
        target: what it may cost.
        most: the widest level of each group; the full widths unless given.
    """
    at = choice.copy()
    closed = np.arange(options.widths.shape[1]) > (options.last if most is None else most)[:, None]
    while True:
        gains, prices = options.gains(at), options.prices(at)
        fits = (gains > 0) & (prices <= target - options.total(at)) & ~closed
        if not fits.any():
            return at
        group, level = _best_ratio(gains, prices, fits)
        wider = at.copy()
        wider[group] = level
        if options.total(wider) <= target:
            at = wider
        else:
            closed[group, level] = True


def _best_ratio(gains: Floats, prices: Floats, fits: npt.NDArray[np.bool_]) -> tuple[int, int]:
    with np.errstate(over="ignore"):
        ratios = np.where(prices > 0, gains / np.where(prices > 0, prices, 1.0), np.inf)
    group, level = np.unravel_index(np.where(fits, ratios, -np.inf).argmax(), ratios.shape)
    return int(group), int(level)


def exchange(options: Options, choice: Levels, target: float, tries: int) -> Levels:
    """Move one group and let the others make up for it, as long as less is lost in all.

    Args:
        options: of all groups.
        choice: within the target.
        target: what it may cost.
        tries: moves that are tried at most, in all; each costs a few looks at all terms and levels.
    """
    at, loss = choice, options.loss(choice)
    while tries > 0:
        better = None
        for group, level in _moves(options, at)[:tries]:
            tries -= 1
            moved = _forced(options, at, group, level, target)
            if options.loss(moved) < loss and options.total(moved) <= target:
                better = moved
                break
        if better is None:
            break
        at, loss = better, options.loss(better)
    return at


def _forced(options: Options, choice: Levels, group: int, level: int, target: float) -> Levels:
    """`choice` with one group moved to `level` and the others narrowed, then widened, to fit."""
    at = choice.copy()
    at[group] = level
    at = shrink(options, at, target, held=group)
    if options.total(at) <= target:
        at = widen(options, at, target)
    return at


def _moves(options: Options, choice: Levels) -> list[tuple[int, int]]:
    """All other levels of all groups, those that change the loss least first."""
    gains, levels = options.gains(choice), np.arange(options.losses.shape[1])
    possible = (levels != choice[:, None]) & (levels <= options.last[:, None])
    groups, found = np.nonzero(possible)
    order = np.argsort(np.abs(gains[possible]), kind="stable")
    return list(zip(groups[order].tolist(), found[order].tolist(), strict=True))


__all__ = ["Levels", "Options", "Unreachable", "exchange", "shrink", "widen"]
