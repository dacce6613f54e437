"""The removal itself: units go, what constant ones gave goes into biases, what read them is repaired."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxopt.analysis.axes.constants import Constants, correcting
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.plan import removal
from onnxopt.analysis.parameters import stored
from onnxopt.model import Model
from onnxopt.passing import Context, Findings
from onnxopt.pruning.batchnorm import normalizations
from onnxopt.pruning.fitting import Damaged, Method
from onnxopt.pruning.readers import Reader, others
from onnxopt.pruning.repair import damaged, layers_of_copy, repair
from onnxopt.pruning.telling import Leaving


@dataclass(frozen=True, eq=False)
class Lost:
    """What goes, and whom it concerns.

    Attributes:
        channels: of the model as it is.
        leaving: the units of each group.
        reading: the layers that read each group that may be pruned.
        constants: what constant channels give.
        free: constant units, which go for nothing.
    """

    channels: Channels
    leaving: Sequence[Leaving]
    reading: Sequence[Sequence[Reader]]
    constants: Constants
    free: Collection[int]

    @cached_property
    def units(self) -> list[int]:
        """All that go."""
        return [unit for _, units in self.leaving for unit in units]

    @cached_property
    def constant(self) -> set[int]:
        """Those that were constant."""
        return set(self.free).intersection(self.units)


def remove(lost: Lost, method: Method | None, context: Context, findings: Findings, rule: str) -> None:
    """Take units out of a model, and repair it.

    Args:
        lost: what goes.
        method: how layers that lose inputs are repaired; None: not at all.
        context: of the model.
        findings: gets what was done and what could not be.
        rule: what edits and refusals are called.
    """
    channels, model = lost.channels, lost.channels.model
    before = _parameters(model)
    corrections = lost.constants.corrections(lost.constant, lost.units)
    norms = normalizations(channels, lost.units) if method is not None else {}
    layers = _damaged(lost, findings, rule) if method in ("bias", "least-squares") else []
    stages = context.stages() if method is not None else None
    model.apply(removal(channels, lost.units, rule))
    if corrections:
        model.apply(correcting(model, corrections, rule))
    if stages is not None and method is not None:
        repair(model, context, stages, layers, norms, method, findings, rule)
    for group, units in lost.leaving:
        what = f"{len(group.units)} -> {len(group.units) - len(units)}, {group.parameters} parameters each"
        findings.change(group.name, rule, f"{group.kind}: {what}")
    findings.measures |= {"parameters_before": before, "parameters_after": _parameters(model)}
    if count := len(lost.constant):
        findings.notes.append(f"{count} of the units are constant: they go first, and nothing is lost with them")


def _damaged(lost: Lost, findings: Findings, rule: str) -> list[Damaged]:
    """The layers to refit when units are gone; those that cannot be are told."""
    found = dict.fromkeys(reader for each in lost.reading for reader in each)
    layers = damaged(lost.channels, found, lost.units, lost.free, layers_of_copy(lost.channels.model))
    for node in others(lost.channels, {layer.use for layer in layers}, lost.units):
        findings.decline(node, rule, "not refitted: its weights are quantized or shared, or no one matrix")
    return layers


def _parameters(model: Model) -> int:
    return sum(each.params for each in stored(model))
