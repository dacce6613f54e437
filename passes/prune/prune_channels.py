"""Structured pruning by magnitude: what carries least leaves the model for good, and with it all that it touches."""

from collections.abc import Iterator, Mapping, Sequence
from math import gcd
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import AfterValidator, Field, PositiveInt

from onnxopt.analysis.axes import ChannelGroup, Channels, channel_ids, frozen, groups, lost_to, removal
from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.checking import Checker, describe
from onnxopt.analysis.axes.constants import Constants, correcting
from onnxopt.analysis.axes.groups import UnitKind
from onnxopt.analysis.axes.rules import REWRITES, key
from onnxopt.analysis.axes.scoring import magnitudes
from onnxopt.analysis.parameters import stored
from onnxopt.errors import ContractViolation, RecipeError
from onnxopt.globs import is_name, matches
from onnxopt.model import Model
from onnxopt.nodes import label
from onnxopt.numerics.importance import Scores, normalised, under_threshold, weakest, width_to_keep
from onnxopt.passes.prune import Names, checked, names_of, not_found
from onnxopt.passing import Context, Findings, Lossy, Pass

_PREFERRED: Mapping[tuple[str, str], int] = {("cpu", "conv"): 8}
"""(target, kind) -> the multiple below which removal makes nothing faster; 1 elsewhere.

ONNX Runtime convolves in blocks of 8 or 16 channels: between 64 channels and 48, widths that are no multiple of 4 take
10 to 30 % longer than 64 itself. Matrix products take any width alike.
"""

_ROUNDED = frozenset({"conv", "neurons", "residual"})
"""Kinds whose units are single rows of a matrix; a head or a recurrent unit is a block of its own."""

_MOST = 0.9
"""Share of one group that a global threshold may take."""

_REASONS = 3
"""Reasons to give where nothing can be pruned."""

Leaving: TypeAlias = tuple[ChannelGroup, list[int]]
"""A group and the units that it loses."""

Patterns = Annotated[tuple[str, ...], AfterValidator(checked)]


class PruneChannels(Pass):
    """Remove the channels, heads and neurons of least magnitude.

    What has to go together is found in the graph: the row that makes a channel, its normalization, the columns of all
    layers that read it. The file gets smaller and holds no masks. Before anything is touched a random draw is removed
    from all groups and compared with the model that ignores the same units; groups that fail are left alone.
    Magnitudes: Li et al. 2017, "Pruning Filters for Efficient ConvNets"; Fang et al. 2023, "DepGraph".
    """

    phase = "structure"
    contract = Lossy()

    ratio: float = Field(gt=0, lt=1, description="share of units to remove, between 0 and 1")
    allocation: Literal["uniform", "global"] = Field(
        "uniform", description="uniform: each group loses that share; global: one threshold over all scores, each "
        "relative to the mean of its group, at most 90 % of a group"
    )  # fmt: skip
    norm: Literal["l1", "l2"] = Field("l2", description="magnitude of a unit's weights: sum, or root of squares")
    round_to: PositiveInt | Literal["auto"] = Field(
        "auto", description="what the kept channels and neurons are a multiple of, the nearest; narrower groups stay "
        "as they are; auto: 8 for convolutions on target cpu, else 1; heads and recurrent units are never rounded"
    )  # fmt: skip
    min_width: PositiveInt = Field(1, description="fewest units that a group keeps")
    include: Patterns = Field(
        ("*",), description="groups to prune, by names of the weights that make their units or of the nodes that read "
        "these: globs, or re: and a regular expression"
    )  # fmt: skip
    exclude: Patterns = Field(
        (), description="groups to leave alone, named likewise or by a layer that reads the units"
    )
    kinds: tuple[UnitKind, ...] = Field(
        ("conv", "neurons", "heads", "kv-groups", "recurrent"),
        description="kinds of units to prune; residual: the width of streams that several layers add to",
    )
    inexact: bool = Field(
        False, description="also prune what normalizations or means mix, so that the rest of it changes too; such "
        "groups cannot be proven"
    )  # fmt: skip

    def run(self, model: Model, context: Context) -> Findings:
        """Choose units, prove that they can go, remove them."""
        channels, findings = channel_ids(model), Findings()
        found = groups(channels)
        if not any(len(group.units) > 1 for group in found):
            raise RecipeError(f"{self.name}: nothing can be pruned: {_reasons(channels)}; leave the pass out")
        chosen = list(self._allowed(channels, found, context, findings))
        chosen = self._proven(channels, chosen, context, findings)
        constants = Constants(channels)
        free = constants.free(group for group in chosen if group.exact)
        findings.notes.extend(free.notes)
        leaving = _possible(channels, self._selected(channels, chosen, free.units, context, findings))
        if leaving:
            self._remove(channels, leaving, constants, free.units, findings)
            findings.measures |= _units(found, leaving)
            findings.notes.append(_share(chosen, leaving))
        _explain(channels, findings)
        return findings

    def _remove(
        self, channels: Channels, leaving: Sequence[Leaving], constants: Constants, free: set[int], findings: Findings
    ) -> None:
        """Take units out, with what constant ones gave put into the biases of their readers."""
        model, removed = channels.model, [unit for _, units in leaving for unit in units]
        before = sum(each.params for each in stored(model))
        corrections = constants.corrections(free.intersection(removed), removed)
        model.apply(removal(channels, removed, self.name))
        if corrections:
            model.apply(correcting(model, corrections, self.name))
        for group, units in leaving:
            what = f"{len(group.units)} -> {len(group.units) - len(units)}, {group.parameters} parameters each"
            findings.change(group.name, self.name, f"{group.kind}: {what}")
        after = sum(each.params for each in stored(model))
        findings.measures |= {"parameters_before": before, "parameters_after": after}
        if lost := len(free.intersection(removed)):
            findings.notes.append(f"{lost} of the units are constant: they go first, and nothing is lost with them")

    def _allowed(
        self, channels: Channels, found: Sequence[ChannelGroup], context: Context, findings: Findings
    ) -> Iterator[ChannelGroup]:
        """The groups that options and overrides leave."""
        names = [names_of(channels, group) for group in found]
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if pattern != "*" and (error := not_found(f"{self.name}.{option}", pattern, channels.model, names)):
                    raise error
        protected = _protected(channels, context)
        for group, own in zip(found, names, strict=True):
            why = self._refusal(group, own, protected)
            if why is None:
                yield group
            else:
                findings.decline(group.name, self.name, why)
        for pattern in self.include:
            if pattern != "*" and not any(matches(pattern, own.makers) for own in names):
                findings.decline(pattern, self.name, "include names nothing that makes units which can be removed")

    def _refusal(self, group: ChannelGroup, names: Names, protected: Mapping[int, str]) -> str | None:
        """Why a group is not to be pruned; None where it is."""
        skipped = next((protected[unit] for unit in group.units if unit in protected), None)
        if skipped is not None:
            return f"an override skips {skipped}"
        if group.kind not in self.kinds:
            return f"kinds does not name {group.kind}"
        if not any(matches(pattern, names.makers) for pattern in self.include):
            return "include does not name it"
        if any(matches(pattern, names.all) for pattern in self.exclude):
            return "exclude names it, or a layer that reads it"
        if not group.exact and not self.inexact:
            return f"not exact: {group.reason}; `inexact: true` prunes it all the same"
        return None

    def _proven(
        self, channels: Channels, chosen: Sequence[ChannelGroup], context: Context, findings: Findings
    ) -> list[ChannelGroup]:
        """The groups that a random draw of units from all of them does not refute."""
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
            named = [group.name for group in failure.groups if self._forced(names_of(channels, group))]
            if named:
                raise ContractViolation(f"{self.name}: {named[0]}, which include names, {why}; leave it out of include")
            for group in failure.groups:
                findings.decline(group.name, self.name, why)
            refuted.update(failure.groups)
        return [group for group in chosen if group not in refuted]

    def _forced(self, names: Names) -> bool:
        """Whether somebody asks for a group by its very name."""
        return any(is_name(pattern) and pattern in names.makers for pattern in self.include)

    def _selected(
        self, channels: Channels, chosen: Sequence[ChannelGroup], free: set[int], context: Context, findings: Findings
    ) -> list[Leaving]:
        """The units to remove of each group that loses any: first what is constant, then the weakest."""
        power = {"l1": 1, "l2": 2}[self.norm]
        sums = magnitudes(channels, [unit for group in chosen for unit in group.units], power)
        scores = [normalised(sums[list(group.units)] ** (1 / power)) for group in chosen]
        scores = [
            np.where([unit in free for unit in group.units], -np.inf, score)
            for group, score in zip(chosen, scores, strict=True)
        ]
        leaving = []
        for group, score, lost in zip(chosen, scores, self._wanted(scores), strict=True):
            width, multiple = len(group.units), self._multiple(group, context.target.name)
            wanted = min(width - lost, float(np.isfinite(score).sum()))
            keep = width_to_keep(width, wanted, multiple, max(self.min_width, min(multiple, width)))
            if keep < width:
                leaving.append((group, [group.units[at] for at in weakest(score, width - keep)]))
                continue
            findings.decline(group.name, self.name, self._whole(width, multiple))
        return leaving

    def _wanted(self, scores: Sequence[Scores]) -> Sequence[float]:
        """Units that each group should lose, before rounding."""
        if self.allocation == "uniform":
            return [self.ratio * len(score) for score in scores]
        most = [min(int(_MOST * len(score)), max(0, len(score) - self.min_width)) for score in scores]
        return under_threshold(scores, self.ratio, most)

    def _multiple(self, group: ChannelGroup, target: str) -> int:
        """What the units that a group keeps should be a multiple of."""
        if group.kind not in _ROUNDED:
            return 1
        wanted = _PREFERRED.get((target, group.kind), 1) if self.round_to == "auto" else self.round_to
        rows = [member.count for member in group.members if not member.consumes]
        return wanted // gcd(wanted, *rows)

    def _whole(self, width: int, multiple: int) -> str:
        """Why a group loses nothing."""
        if width == 1:
            return "one has to stay"
        if width <= multiple and multiple > 1:
            return f"no wider than the multiple that kept widths are rounded to, {multiple} (round_to)"
        if width <= self.min_width:
            return f"min_width is {self.min_width}"
        if self.allocation == "global" and multiple == 1:
            return "all its units lie above the threshold"
        return f"its share of ratio {self.ratio:g} rounds to none, kept widths being multiples of {multiple}"


def _protected(channels: Channels, context: Context) -> dict[int, str]:
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


def _possible(channels: Channels, leaving: Sequence[Leaving]) -> list[Leaving]:
    """The same without units but for which an axis would be empty: part of a group may be all that a layer reads."""
    able = set(channels.spared(unit for _, units in leaving for unit in units))
    kept = [(group, [unit for unit in units if unit in able]) for group, units in leaving]
    return [(group, units) for group, units in kept if units]


def _share(chosen: Sequence[ChannelGroup], leaving: Sequence[Leaving]) -> str:
    """How many units went, which rounding may make more or fewer than was asked for."""
    before, lost = sum(len(group.units) for group in chosen), sum(len(units) for _, units in leaving)
    return f"{lost} of {before} units went ({lost / before:.0%})"


def _units(found: Sequence[ChannelGroup], leaving: Sequence[Leaving]) -> dict[str, int]:
    """Units by kind, before and after."""
    measures: dict[str, int] = {}
    for kind in dict.fromkeys(group.kind for group in found):
        before = sum(len(group.units) for group in found if group.kind == kind)
        lost = sum(len(units) for group, units in leaving if group.kind == kind)
        name = kind.replace("-", "_")
        measures |= {f"{name}_units_before": before, f"{name}_units_after": before - lost}
    return measures


def _reasons(channels: Channels) -> str:
    """What keeps most parameters of a model of which nothing can go."""
    told = [f"{each.freeze.why} ({each.freeze.reason}, {each.parameters} parameters)" for each in frozen(channels)]
    return "; ".join(told[:_REASONS]) or "there is no layer between two others"


def _explain(channels: Channels, findings: Findings) -> None:
    """Say what only lacks a rule."""
    lost = lost_to(channels, "needs-rule")
    if lost:
        why = next((each.freeze.why for each in frozen(channels) if each.freeze.reason == "needs-rule"), "")
        findings.notes.append(f"{lost} parameters stay only for want of a rule; most of them: {why}")
