"""Before anything is touched: what overrides protect, and which groups a trial refutes."""

from collections.abc import Callable, Sequence

import numpy as np

from onnxopt.analysis.axes import ChannelGroup, Channels
from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.checking import Checker, describe
from onnxopt.analysis.axes.rules import REWRITES, key
from onnxopt.analysis.structure import constant_array
from onnxopt.errors import ContractViolation, ModelError
from onnxopt.nodes import label
from onnxopt.passing import Context, Findings


def proven(
    channels: Channels, chosen: Sequence[ChannelGroup], context: Context, findings: Findings, rule: str,
    forced: Callable[[Channels, ChannelGroup], bool],
) -> list[ChannelGroup]:  # fmt: skip
    """The groups that a random draw of units from all of them does not refute.

    Args:
        channels: of the model as it is.
        chosen: groups to try; those that are not exact are let through untried.
        context: runs the trials.
        findings: gets what was refuted.
        rule: what refusals are called.
        forced: whether somebody asks for a group by its very name.

    Raises:
        ContractViolation: a group that somebody asks for is refuted.
    """
    exact = [group for group in chosen if group.exact and len(group.units) > 1]
    if mixed := sum(not group.exact for group in chosen):
        findings.notes.append(f"{mixed} groups are not exact and cannot be proven: the rest of them changes too")
    checker = Checker(channels.model, context.drift, channels)
    if not exact:
        return list(chosen)
    if not checker.able():
        findings.notes.append("the model cannot be run here, or differs from itself: that units can go is unproven")
        return list(chosen)
    draw = checker.drawn(context.rng, only=exact)
    refuted: set[ChannelGroup] = set()
    for failure in checker.failures(draw):
        why = failure.why or f"what is left differs by {failure.drift:.2g} from the model that ignores the units"
        why = f"failed the trial: {describe(checker, failure)}: {why}"
        named = [group.name for group in failure.groups if forced(channels, group)]
        if named:
            raise ContractViolation(f"{rule}: {named[0]}, which include names, {why}; leave it out of include")
        for group in failure.groups:
            findings.decline(group.name, rule, why)
        refuted.update(failure.groups)
    return [group for group in chosen if group not in refuted]


def check_finite(groups: Sequence[ChannelGroup]) -> None:
    """Look at every weight that units have entries of, one at a time.

    Raises:
        ModelError: one holds NaN or infinity, of which no order can be made.
    """
    roots = {member.weight.root: None for group in groups for member in group.members}
    for root in roots:
        array = constant_array(root)
        if array is not None and np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ModelError(
                f"weight {root.name!r} holds NaN or infinity: what it is worth cannot be told; mend the model"
            )


def skipped(channels: Channels, context: Context) -> dict[int, str]:
    """Class of channel ids -> what overrides skip and would be changed without it."""
    found: dict[int, str] = {}
    for weight in channels.weights:
        if context.skips(name := weight.root.name or ""):
            for ids in weight.ids:
                found.update(dict.fromkeys(channels.classes.labels[ids].tolist(), name))
    chained = {node for shuffle in channels.shuffles.values() for node in shuffle.chain}
    for node in channels.model.graph:
        changes = key(node) in REWRITES or node in chained or any(map(channels.is_constant, node.inputs))
        if not changes or not context.skips(label(node)):
            continue
        known = [channels.of_input(node, index) for index in range(len(node.inputs))]
        for axes in (*known, *map(channels.of, node.outputs)):
            for along in map(vector, axes or ()):
                if along is not None:
                    found.update(dict.fromkeys(channels.classes.labels[along].tolist(), label(node)))
    return found
