"""The separable problem: one level a group, least sum of losses, sum of prices within a budget.

Two solvers. The Lagrangian one walks down the lower convex hulls: optimal for the budget that it ends at, off by at
most one step of one group. Dynamic programming over a discretised budget finds what lies above the hulls, too, but
counts prices in bins only: Xu et al. 2023, "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep
Neural Networks". With few groups the second wins, with many the first.
"""

from itertools import pairwise

import numpy as np

from .allocation_cost import Floats
from .allocation_steps import Levels


def along_hulls(losses: Floats, prices: Floats, budget: float) -> Levels:
    """From the cheapest levels up the edges of the lower convex hulls, the steepest of all groups first.

    Args:
        losses: `[groups, levels]`.
        prices: `[groups, levels]`, not decreasing along the levels.
        budget: at most this sum of prices, or the sum of the cheapest where that is more.

    Returns:
        the level of each group. O(groups * levels).
    """
    at = np.zeros(len(losses), np.int64)
    edges = [
        (lost[here] - lost[there], paid[there] - paid[here], group, there)
        for group, (lost, paid) in enumerate(zip(losses.tolist(), prices.tolist(), strict=True))
        for here, there in _hull(lost, paid)
    ]
    edges.sort(key=lambda edge: (-edge[0] / edge[1] if edge[1] > 0 else -np.inf, edge[2], edge[3]))
    left = budget - float(prices[:, 0].sum())
    for _, price, group, there in edges:
        if price > left:
            break
        left -= price
        at[group] = there
    return at


def _hull(losses: list[float], prices: list[float]) -> list[tuple[int, int]]:
    """The edges of the lower convex hull as pairs of levels, from the cheapest to the one that loses least."""
    points: list[int] = []
    for level in range(len(losses)):
        if points and losses[level] >= losses[points[-1]]:
            continue
        while len(points) > 1:
            before, last = points[-2], points[-1]
            flat = (losses[before] - losses[last]) * (prices[level] - prices[last])
            steep = (losses[last] - losses[level]) * (prices[last] - prices[before])
            if flat > steep:
                break
            points.pop()
        points.append(level)
    return list(pairwise(points))


def by_bins(losses: Floats, prices: Floats, budget: float, bins: int = 2000) -> Levels:
    """`T_g(b) = min over levels of T_(g-1)(b - price) + loss`, prices rounded to the nearest of `bins` bins.

    Args:
        losses: `[groups, levels]`.
        prices: `[groups, levels]`, not decreasing along the levels.
        budget: see `along_hulls`. Since prices are rounded, the result may be a little over it.
        bins: into how many the budget that is left over the cheapest levels is cut.

    Returns:
        the level of each group. O(groups * levels * bins), `2 * groups * bins` bytes of back pointers.
    """
    above = prices - prices[:, :1]
    budget -= float(prices[:, 0].sum())
    if budget <= 0:
        return np.zeros(len(losses), np.int64)
    in_bins = np.rint(np.minimum(above / budget, 2.0) * bins).astype(np.int64)
    least = np.zeros(bins + 1)
    chosen = np.zeros((len(losses), bins + 1), np.int16 if losses.shape[1] < 1 << 15 else np.int64)
    for group in range(len(losses)):
        found = np.full(bins + 1, np.inf)
        for level in _undominated(in_bins[group], losses[group]):
            spent = int(in_bins[group, level])
            if spent > bins:
                break
            reached = least[: bins + 1 - spent] + losses[group, level]
            better = reached < found[spent:]
            found[spent:][better] = reached[better]
            chosen[group, spent:][better] = level
        least = found
    at = np.zeros(len(losses), np.int64)
    left = bins
    for group in range(len(losses) - 1, -1, -1):
        at[group] = chosen[group, left]
        left -= int(in_bins[group, at[group]])
    return at


def _undominated(spent: Levels, losses: Floats) -> list[int]:
    """Of the levels with a price in the same bin the one that loses least; of equals the first."""
    levels: list[int] = []
    for level, (price, loss) in enumerate(zip(spent.tolist(), losses.tolist(), strict=True)):
        if levels and loss >= losses[levels[-1]]:
            continue
        if levels and price == spent[levels[-1]]:
            levels.pop()
        levels.append(level)
    return levels


__all__ = ["along_hulls", "by_bins"]
