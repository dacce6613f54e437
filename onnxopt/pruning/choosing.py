"""The widths that meet a budget: of several ways to divide it among groups the one that changes the outputs least."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxopt.analysis.axes.engine import Channels
from onnxopt.errors import DataError
from onnxopt.numerics.allocation import Curve
from onnxopt.numerics.allocation_cost import Widths
from onnxopt.passing import Context, Findings
from onnxopt.pruning.curves import Candidate, measured
from onnxopt.pruning.joint import least_distorting
from onnxopt.pruning.latency import widths_for_latency
from onnxopt.pruning.widths import (
    Allocation,
    Budget,
    added_by_repair,
    capped,
    check_reachable,
    share_kept,
    widths_for,
)
from onnxopt.statistics import Collected

_OTHERS: Sequence[tuple[str, Allocation]] = (("one ranking", "global"), ("equal shares", "uniform"))
"""What measured losses, which need not add up, are compared with."""


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        budget: what is to be kept.
        allocation: how it is divided.
        insists: whether losses that cannot be measured are an error.
        fitted: Gram matrices for refits of what is measured; None: it is measured without.
        refits: whether a repair gives layers new weights and biases.
        seconds: for measuring, about.
    """

    budget: Budget
    allocation: Allocation
    insists: bool
    fitted: Collected | None
    refits: bool
    seconds: float


def choose(
    plan: Plan, channels: Channels, candidates: Sequence[Candidate], context: Context, findings: Findings
) -> list[int]:
    """The width of each candidate.

    Args:
        plan: what is asked for.
        channels: of the model as it is.
        candidates: groups.
        context: measures outputs and time.
        findings: gets how widths came about.

    Raises:
        BudgetError: the budget cannot be met.
        DataError: losses cannot be measured, and the plan insists.
    """
    budget = plan.budget
    check_reachable(budget, channels, candidates, context.cost)
    if not candidates:
        findings.notes.append("nothing was removed: no group may get narrower")
        return []
    if budget.of == "units" and plan.allocation == "uniform":
        assert isinstance(budget.value, float)
        return [int(each) for each in share_kept(candidates, budget.value)]
    candidates = capped(budget, channels, candidates, context.cost)
    ranking = [each.by_ranking() for each in candidates]
    curves = _measured(plan, channels, candidates, context, findings) if plan.allocation == "distortion" else None

    def within(curves: Sequence[Curve], allocation: Allocation) -> Widths:
        return _within_budget(plan, allocation, channels, candidates, curves, context, findings)

    widths = within(ranking if curves is None else curves, plan.allocation)
    if curves is not None and budget.of != "latency":
        ways = {"measured losses": widths} | {way: within(ranking, other) for way, other in _OTHERS}
        widths, how = least_distorting(channels, candidates, ways, plan.fitted, context)
        findings.notes.append(how)
    return [int(each) for each in widths]


def _measured(
    plan: Plan, channels: Channels, candidates: Sequence[Candidate], context: Context, findings: Findings
) -> list[Curve] | None:
    """What groups lose at the outputs; None where these tell nothing, as labels do."""
    try:
        curves, how = measured(channels, candidates, plan.fitted, context, plan.seconds)
    except DataError as error:
        if plan.insists:
            raise
        findings.notes.append(f"what groups lose follows from their rankings: {error}")
        return None
    findings.notes.append(how)
    return curves


def _within_budget(
    plan: Plan, allocation: Allocation, channels: Channels, candidates: Sequence[Candidate],
    curves: Sequence[Curve], context: Context, findings: Findings,
) -> Widths:  # fmt: skip
    budget = plan.budget
    if budget.of == "latency":
        widths, share = widths_for_latency(budget, allocation, channels, candidates, curves, context)
        findings.measures["latency_share"] = share
        return widths
    if plan.refits:
        budget = replace(budget, added=added_by_repair(candidates, budget.of))
    return widths_for(budget, allocation, channels, candidates, curves, context.cost)
