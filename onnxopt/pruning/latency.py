"""Widths at which a model takes so much of its time: MACs say how groups get narrower, the clock says how far."""

from collections.abc import Callable, Sequence

from onnxopt.analysis.axes.engine import Channels
from onnxopt.errors import RecipeError
from onnxopt.numerics.allocation import Curve
from onnxopt.numerics.allocation_cost import Widths
from onnxopt.passing import Context
from onnxopt.pruning.budgets import target
from onnxopt.pruning.costs import cost_model, full
from onnxopt.pruning.curves import Candidate, without
from onnxopt.pruning.widths import Allocation, Budget, widths_for

_TRIES = 7

_NEAR = 0.025
"""How near to its target, relatively, a measured latency has to be, twice on average."""


def widths_for_latency(
    budget: Budget, allocation: Allocation, channels: Channels, candidates: Sequence[Candidate],
    curves: Sequence[Curve], context: Context,
) -> tuple[Widths, float]:  # fmt: skip
    """The widths that meet a budget of time, and the share of the time that they were measured to take.

    Variants are timed without repair, which changes no shape, in turn with the model itself.

    Raises:
        RecipeError: it cannot be measured here, or not be reached.
    """
    model = channels.model
    before = _times(budget, context.times([model]))
    wanted = budget.value if isinstance(budget.value, float) else target(budget.value, 0.0) / before[0]

    def widths(share: float) -> Widths:
        return widths_for(Budget(budget.option, "macs", share), allocation, channels, candidates, curves, context.cost)

    def share_of_time(chosen: Widths) -> float:
        pairs = zip(candidates, chosen.tolist(), strict=True)
        units = [unit for each, width in pairs for unit in each.leaving(width)]
        found = _times(budget, context.times([model, without(channels, channels.spared(units), (), None)]))
        return found[1] / found[0]

    narrowest = [int(each.widths[0]) for each in candidates]
    model_cost = cost_model(channels, [each.group for each in candidates], context.cost, "macs")
    least = float(model_cost.total(narrowest)) / full(context.cost, "macs")
    chosen, share = search(wanted, widths, share_of_time, least)
    if share > wanted * (1 + _NEAR):
        raise RecipeError(
            f"{budget.option} of {budget.value} cannot be reached: the least that was measured is {share:.0%} of the "
            "time; kinds, round_to and min_width decide how narrow groups may get"
        )
    return chosen, share


def _times(budget: Budget, found: list[float] | None) -> list[float]:
    if found is None:
        raise RecipeError(f"{budget.option}: latency cannot be measured here; give keep_macs instead")
    return found


def search(
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
        if abs(found - wanted) <= _NEAR * wanted:  # chance, perhaps
            found = (found + measured(chosen)) / 2
        if best is None or abs(found - wanted) < best[0]:
            best = abs(found - wanted), chosen, found
        if abs(found - wanted) <= _NEAR * wanted:
            break
        low, high = (low, share) if found > wanted else (share, high)
        share = (low + high) / 2
    assert best is not None
    return best[1], best[2]
