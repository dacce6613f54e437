"""How many units each group keeps: what is asked for, what may be, and what that comes to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.cost import Cost as ModelCost
from onnxopt.analysis.linear.recurrent import Recurrent
from onnxopt.errors import RecipeError
from onnxopt.numerics.allocation import Cost, Curve, Term, greedy, rate_distortion, uniform
from onnxopt.numerics.allocation_cost import Widths
from onnxopt.numerics.allocation_steps import Unreachable
from onnxopt.numerics.criteria import under_thresholds
from onnxopt.pruning.budgets import target
from onnxopt.pruning.costs import Of, cost_model, full
from onnxopt.pruning.curves import Candidate
from onnxopt.pruning.floors import floor

Allocation = Literal["uniform", "global", "isomorphic", "distortion"]

_HALVINGS = 20

_RECORDS, _MENTIONS = 160, 6
"""Bytes in a file of an Add and its weight, at most: their records, and how often the layer's name is in these."""

_LEAST = 0.1
"""Share of a group that stays where groups lose different shares, unless the budget takes more."""


class BudgetError(RecipeError):
    """Groups cannot get as narrow as is asked for."""


@dataclass(frozen=True)
class Budget:
    """What is to be kept.

    Attributes:
        option: that asks for it.
        of: what is counted: units, or see `costs.Of`.
        value: the share, or an amount with its unit.
        added: how much of it a repair may add, see `added_by_repair`.
    """

    option: str
    of: Of | Literal["units", "latency"]
    value: float | str
    added: float = 0.0


def added_by_repair(candidates: Sequence[Candidate], of: str) -> float:
    """Parameters, or their bytes, of the biases that layers may get which have none; of MACs there are none."""
    readers = dict.fromkeys(reader for each in candidates for reader in each.readers)
    bare = [each.linear for each in readers if each.linear.bias_vector() is None]
    if of not in ("params", "bytes"):
        return 0.0
    # Of a recurrent layer W and R have one bias each, in one tensor.
    rows = [(each.groups * each.out_features * (1 + isinstance(each, Recurrent)), each.dtype) for each in bare]
    records = sum(_RECORDS + _MENTIONS * len(each.name) for each in bare) if of == "bytes" else 0
    return records + float(sum(count * (dtype.itemsize if of == "bytes" else 1) for count, dtype in rows))


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
        BudgetError: see `check_reachable`.
    """
    check_reachable(budget, channels, candidates, cost)
    model, wanted = _counted(budget, channels, candidates, cost)
    least = float(model.total([int(each.widths[0]) for each in candidates]))
    wanted = max(least, wanted) if budget.of == "units" else min(wanted, max(wanted - budget.added, least))
    return _allocated(allocation, candidates, curves, model, wanted)


def check_reachable(budget: Budget, channels: Channels, candidates: Sequence[Candidate], cost: ModelCost) -> None:
    """Make sure that a budget can be met, which takes no more than its cost model.

    Raises:
        BudgetError: it is less than the groups can reach; says what that is, and what holds the rest.
    """
    if budget.of == "latency" and not candidates:
        raise BudgetError(f"{budget.option} of {budget.value} cannot be reached: no group may get narrower")
    if budget.of == "units" or budget.of == "latency":  # a wish; to be measured
        return
    narrowest = [int(each.widths[0]) for each in candidates]
    model, wanted = _counted(budget, channels, candidates, cost)
    if model.total(narrowest) > wanted:
        told = floor(channels, [each.group for each in candidates], cost, budget.of, narrowest)
        wide = any(width > 1 for width in narrowest)
        hint = "; round_to and min_width decide how narrow groups may get" if wide else ""
        raise BudgetError(f"{budget.option} of {budget.value} cannot be reached: {told}{hint}")


def capped(budget: Budget, channels: Channels, candidates: Sequence[Candidate], cost: ModelCost) -> Sequence[Candidate]:
    """The candidates, none of which loses more than nine tenths, if the budget can be met so; else as they are.

    Under that hardly anything is measured, and all that is known of a group is how it loses more.
    """
    if budget.of == "latency":
        return candidates
    kept = [
        replace(each, widths=each.widths[each.widths >= min(_LEAST * each.width, each.widths[-1])])
        for each in candidates
    ]
    if budget.of == "units":  # a ratio is a wish
        return kept
    model, wanted = _counted(budget, channels, kept, cost)
    return kept if model.total([int(each.widths[0]) for each in kept]) <= wanted - budget.added else candidates


def _counted(
    budget: Budget, channels: Channels, candidates: Sequence[Candidate], cost: ModelCost
) -> tuple[Cost, float]:
    """What widths cost, and what they may."""
    if budget.of == "units":
        model = Cost(0.0, tuple(Term(1.0, (at,)) for at in range(len(candidates))))
        return model, target(budget.value, float(sum(each.width for each in candidates)))
    assert budget.of != "latency"
    model = cost_model(channels, [each.group for each in candidates], cost, budget.of)
    return model, target(budget.value, full(cost, budget.of))


def _allocated(
    allocation: Allocation, candidates: Sequence[Candidate], curves: Sequence[Curve], model: Cost, wanted: float
) -> Widths:
    if allocation == "uniform":
        return uniform([each.width for each in candidates], model, wanted, [each.widths for each in candidates])
    if allocation == "isomorphic":
        return _isomorphic(candidates, model, wanted)
    if allocation == "global":
        return greedy(curves, model, wanted)
    return rate_distortion(curves, model, wanted)


def _isomorphic(candidates: Sequence[Candidate], model: Cost, wanted: float) -> Widths:
    """The smallest share that every kind of units loses, each by a ranking of its own, for the budget to be met."""
    scores = [np.maximum(np.diff(each.ranking.losses, prepend=0.0), 0.0) for each in candidates]
    kinds = [each.group.kind for each in candidates]
    most = [each.width - int(each.widths[0]) for each in candidates]

    def widths(share: float) -> Widths:
        lost = under_thresholds(scores, kinds, share, most)
        return np.array(
            [_nearest(each, each.width - gone) for each, gone in zip(candidates, lost, strict=True)], np.int64
        )

    low, high = 0.0, 1.0
    if model.total(widths(high)) > wanted:
        raise Unreachable(wanted, float(model.total([int(each.widths[0]) for each in candidates])))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if model.total(widths(middle)) <= wanted else (middle, high)
    return widths(high)


def _nearest(candidate: Candidate, width: float) -> int:
    """The allowed width that is nearest, the larger of two as near."""
    descending = candidate.widths[::-1]
    return int(descending[np.argmin(np.abs(descending - width))])


def share_kept(candidates: Sequence[Candidate], share: float) -> Widths:
    """The allowed widths that are nearest to a share of each group, the larger of two as near."""
    return np.array([_nearest(each, share * each.width) for each in candidates], np.int64)
