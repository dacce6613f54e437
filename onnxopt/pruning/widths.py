"""How many units each group keeps: what is asked for, what may be, and what that comes to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.groups import ChannelGroup
from onnxopt.analysis.cost import Cost as ModelCost
from onnxopt.errors import RecipeError
from onnxopt.numerics.allocation import Cost, Curve, Term, greedy, rate_distortion, uniform
from onnxopt.numerics.allocation_cost import Widths
from onnxopt.numerics.allocation_steps import Unreachable
from onnxopt.pruning.budgets import target
from onnxopt.pruning.costs import Of, cost_model, full
from onnxopt.pruning.curves import Candidate
from onnxopt.pruning.floors import floor

Allocation = Literal["uniform", "global", "distortion"]

_TRIES = 7
NEAR = 0.03
"""How near to its target, relatively, a measured latency has to be."""


@dataclass(frozen=True)
class Budget:
    """What is to be kept.

    Attributes:
        option: that asks for it.
        of: what is counted: units, or see `costs.Of`.
        value: the share, or an amount with its unit.
    """

    option: str
    of: Of | Literal["units", "latency"]
    value: float | str


def widths_for(
    budget: Budget, allocation: Allocation, channels: Channels, candidates: Sequence[Candidate],
    curves: Sequence[Curve], cost: ModelCost,
) -> Widths:  # fmt: skip
    """The widths that meet a budget.

    Args:
        budget: of units, MACs, parameters or bytes.
        allocation: how they are found; global takes the curves as losses that compare between groups.
        channels: of the model as it is.
        candidates: groups that may get narrower.
        curves: what each loses.
        cost: of the model.

    Raises:
        RecipeError: the budget is less than the groups can reach; says what that is.
    """
    groups = [each.group for each in candidates]
    if budget.of == "units":
        model = Cost(0.0, tuple(Term(1.0, (at,)) for at in range(len(candidates))))
        least = float(sum(int(each.widths[0]) for each in candidates))  # a ratio is a wish
        wanted = max(least, target(budget.value, float(sum(each.width for each in candidates))))
    else:
        assert budget.of != "latency"
        model = cost_model(channels, groups, cost, budget.of)
        wanted = target(budget.value, full(cost, budget.of))
    try:
        return _allocated(allocation, candidates, curves, model, wanted)
    except Unreachable as error:
        narrowest = [int(each.widths[0]) for each in candidates]
        assert budget.of != "units"
        told = floor(channels, groups, cost, budget.of, narrowest)
        raise RecipeError(f"{budget.option} of {budget.value} cannot be reached: {told}") from error


def _allocated(
    allocation: Allocation, candidates: Sequence[Candidate], curves: Sequence[Curve], model: Cost, wanted: float
) -> Widths:
    if allocation == "uniform":
        return uniform([each.width for each in candidates], model, wanted, [each.widths for each in candidates])
    if allocation == "global":
        return greedy(curves, model, wanted)
    return rate_distortion(curves, model, wanted)


def share_removed(candidates: Sequence[Candidate], ratio: float) -> Widths:
    """The allowed widths that are nearest to a share of each group, the larger of two as near."""
    return np.array(
        [each.widths[::-1][np.argmin(np.abs(each.widths[::-1] - (1 - ratio) * each.width))] for each in candidates],
        np.int64,
    )


def least_share(channels: Channels, groups: Sequence[ChannelGroup], cost: ModelCost, narrowest: Widths) -> float:
    """The share of MACs that is left with all groups at their narrowest."""
    return float(cost_model(channels, groups, cost, "macs").total(narrowest)) / full(cost, "macs")


def by_latency(
    wanted: float, widths: Callable[[float], Widths], measured: Callable[[Widths], float], least: float
) -> tuple[Widths, float]:
    """Widths at which a model takes a share of its time.

    MACs decide how groups get narrower; how much of them to keep is searched by measuring, for time is not in
    proportion to them.

    Args:
        wanted: share of the time.
        widths: share of MACs -> widths that keep it.
        measured: widths -> share of the time.
        least: share of MACs that can be kept at least.

    Returns:
        The widths, of those that were tried the nearest to what is wanted, and their share of the time.
    """
    low, high, share = least, 1.0, max(least, min(1.0, wanted))
    best: tuple[float, Widths, float] | None = None
    for _ in range(_TRIES):
        chosen = widths(share)
        found = measured(chosen)
        if best is None or abs(found - wanted) < best[0]:
            best = abs(found - wanted), chosen, found
        if abs(found - wanted) <= NEAR * wanted:
            break
        low, high = (low, share) if found > wanted else (share, high)
        share = (low + high) / 2
    assert best is not None
    return best[1], best[2]
