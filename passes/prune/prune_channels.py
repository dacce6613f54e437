"""Structured pruning: what matters least leaves the model for good, and with it all that it touches."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from onnxopt.analysis.axes import ChannelGroup, Channels, channel_ids, groups
from onnxopt.analysis.axes.constants import Constants
from onnxopt.analysis.axes.groups import UnitKind
from onnxopt.analysis.cost import Cost as ModelCost
from onnxopt.analysis.linear.recurrent import recurrents
from onnxopt.analysis.linear.sources import Use
from onnxopt.errors import DataError, RecipeError
from onnxopt.globs import is_name, matches
from onnxopt.model import Model
from onnxopt.numerics.allocation import allowed_widths
from onnxopt.passes.prune import Names, checked, names_of, not_found
from onnxopt.passing import Context, Findings, Lossy, Pass
from onnxopt.pruning import gradients as gradients_
from onnxopt.pruning import ranking, telling
from onnxopt.pruning.budgets import KeepBytes, KeepLatency, KeepMacs, KeepParams, target
from onnxopt.pruning.choosing import Plan, choose
from onnxopt.pruning.costs import full
from onnxopt.pruning.curves import Candidate
from onnxopt.pruning.fitting import Method
from onnxopt.pruning.inputs import inputs_of
from onnxopt.pruning.proving import check_finite, proven, skipped
from onnxopt.pruning.ranking import NEED_DATA, Importance, Normalization
from onnxopt.pruning.readers import Reader, by_group, readers
from onnxopt.pruning.removing import Lost, remove
from onnxopt.pruning.rounding import block_of_units, channels_for
from onnxopt.pruning.telling import Leaving
from onnxopt.pruning.widths import Allocation, Budget, BudgetError
from onnxopt.statistics import Collected

_SHORT = 0.9
"""Less of a budget than this is worth a word."""

_BUDGETS = {
    "ratio": "units",
    "keep_macs": "macs",
    "keep_params": "params",
    "keep_bytes": "bytes",
    "keep_latency": "latency",
}
"""Options of which one is given -> what they count."""

Patterns = Annotated[tuple[str, ...], AfterValidator(checked)]


class PruneChannels(Pass):
    """Remove the channels, heads and neurons that matter least, and repair what read them.

    What has to go together is found in the graph: the row that makes a channel, its normalization, the columns of all
    layers that read it. The file gets smaller and holds no masks. Before anything is touched a random draw is removed
    from all groups and compared with the model that ignores the same units; groups that fail are left alone.
    With calibration data units go in the order in which the layers that read them, refitted, lose least (backward
    elimination on Gram matrices), each group loses what changes the outputs least, and what reads the units is refitted
    to what it gave before (least squares, stage by stage). Without data: magnitudes, and no repair.
    Fang et al. 2023, "DepGraph"; Hassibi and Stork 1993, "Optimal Brain Surgeon"; He et al. 2017, "Channel Pruning";
    Xu et al. 2023, "Layer-Adaptive Weight Pruning".
    """

    phase = "structure"
    contract = Lossy()

    ratio: float | None = Field(None, gt=0, lt=1, description="share of units to remove, between 0 and 1")
    keep_macs: KeepMacs = Field(None, description="multiply-accumulates to keep: a share, or an amount like '300M'")
    keep_params: KeepParams = Field(None, description="parameters to keep: a share, or an amount like '5M'")
    keep_bytes: KeepBytes = Field(None, description="bytes of the file to keep: a share, or an amount like '40MB'")
    keep_latency: KeepLatency = Field(
        None, description="time of one run to keep, measured here: a share, or a time like '12ms'"
    )
    importance: Literal["auto", Importance] = Field(
        "auto", description="in which order units go; auto: elimination with calibration data, else magnitude"
    )
    allocation: Literal["auto", Allocation] = Field(
        "auto", description="uniform: each group loses the same share; global: one ranking of all groups by loss for "
        "what it saves; isomorphic: one ranking for each kind of units, all kinds losing the same share; distortion: "
        "what changes the outputs least, measured. auto: distortion for keep_macs and the like with calibration data, "
        "else uniform"
    )  # fmt: skip
    repair: Literal["auto", "none", Method] = Field(
        "auto", description="what layers that lose inputs get: least-squares: new weights, stage by stage; bias: a "
        "corrected bias; batch-norm: nothing; with all three, statistics of BatchNormalization follow what it reads. "
        "auto: least-squares with calibration data, else none"
    )  # fmt: skip
    gradients: str | None = Field(
        None, description="for importance taylor: .npz of the loss's gradients by weight, averaged over samples"
    )
    normalization: Literal["auto", Normalization] = Field(
        "auto", description="how scores of different groups are made comparable, for one ranking of all: by their "
        "mean or max; standard: less their mean, by their standard deviation; lamp: as shares of those that are no "
        "smaller; none; auto: as suits the importance"
    )  # fmt: skip
    norm: Literal["l1", "l2"] = Field("l2", description="magnitude of a unit's weights: sum, or root of squares")
    round_to: PositiveInt | Literal["auto"] = Field(
        "auto", description="what the kept channels and neurons are a multiple of, the nearest; narrower groups stay "
        "as they are; auto: 8 for convolutions on target cpu, whole groups or blocks of grouped ones, else 1; heads "
        "and recurrent units are never rounded"
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
    max_seconds: PositiveFloat = Field(120, description="time for measuring what each group loses, about")

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = "none is given" if not given else f"{' and '.join(given)} are given"
            raise ValueError(f"give one of {', '.join(_BUDGETS)}; {found}")
        if (self.importance == "taylor") != (self.gradients is not None):
            raise ValueError("importance taylor and gradients go together")
        return self

    def run(self, model: Model, context: Context) -> Findings:
        """Choose units, prove that they can go, remove them, repair what read them."""
        channels = channels_for(model, self.round_to, context.target.name, self._may)
        try:
            return self._run(channels, context)
        except BudgetError:
            if not channels.whole:
                raise
        findings = self._run(channel_ids(model), context)
        findings.notes.append(
            f"{len(channels.whole)} grouped convolutions lose the same places of every group, which is slower for what "
            f"is left: with whole groups {self._asked()} cannot be met"
        )
        return findings

    def _run(self, channels: Channels, context: Context) -> Findings:
        """With the channels found one way or another; nothing is edited where the budget cannot be met."""
        model, findings = channels.model, Findings()
        found = groups(channels)
        if not any(len(group.units) > 1 for group in found):
            raise RecipeError(f"{self.name}: nothing can be pruned: {telling.reasons(channels)}; leave the pass out")
        chosen = list(self._allowed(channels, found, context, findings))
        check_finite(chosen)
        chosen = proven(channels, chosen, context, findings, self.name, self._forced)
        constants = Constants(channels)
        free = constants.free(group for group in chosen if group.exact)
        findings.notes.extend(free.notes)
        reading = by_group(chosen, readers(channels, [*context.linears, *recurrents(model)]))
        collected = self._collected(reading, context)
        candidates = self._candidates(channels, chosen, reading, collected, free.units, context, findings)
        leaving = self._leaving(channels, candidates, collected, context, findings)
        telling.explain(channels, findings)
        if leaving:
            findings.chosen |= self._resolved(collected, context)
            before, lost = context.cost, Lost(channels, leaving, reading, constants, free.units)
            remove(lost, self._method(context), context, findings, self.name)
            findings.notes += [*self._reached(context, before), telling.share(chosen, leaving)]
            findings.measures |= telling.units_by_kind(found, leaving)
        return findings

    def _resolved(self, collected: Collected | None, context: Context) -> dict[str, str]:
        """What `auto` stands for here."""
        blocks = "blocks of convolutions" if context.target.name == "cpu" else "1"
        found = {
            "importance": "magnitude" if collected is None else "elimination",
            "allocation": self._allocation(context), "repair": self._method(context) or "none", "round_to": blocks,
        }  # fmt: skip
        return {name: value for name, value in found.items() if getattr(self, name) == "auto"}

    def _collected(self, reading: Sequence[Sequence[Reader]], context: Context) -> Collected | None:
        """Gram matrices of what is read; None where nothing asks for them.

        Raises:
            DataError: the importance or the repair needs data, and there are none or too few.
        """
        asked = self.importance in NEED_DATA or self.repair not in ("auto", "none")
        if not context.samples:
            if asked or self.allocation == "distortion":
                needs = self.importance if self.importance in NEED_DATA else self.repair if asked else "distortion"
                raise DataError(f"{self.name}: {needs} needs calibration data: give data.calibration (--data)")
            return None
        if self.importance not in (*NEED_DATA, "auto") and self._method(context) in (None, "batch-norm"):
            return None
        stats = list(dict.fromkeys(inputs_of(reader) for each in reading for reader in each))
        collected = context.collect(stats)
        why = next((collected.why(stat) for stat in stats if collected.why(stat)), "")
        if why and self.importance in NEED_DATA:
            raise DataError(f"{self.name}: {why}")
        return collected

    def _candidates(
        self, channels: Channels, chosen: Sequence[ChannelGroup], reading: Sequence[Sequence[Reader]],
        collected: Collected | None, free: set[int], context: Context, findings: Findings,
    ) -> list[Candidate]:  # fmt: skip
        """The groups that can get narrower, with the order in which their units go."""
        found = gradients_.read(self.gradients, channels.model) if self.gradients else None
        unfounded, candidates = list[str](), list[Candidate]()
        power, uses = {"l1": 1, "l2": 2}[self.norm], ranking.consumers(channels, chosen)
        normalization = None if self.normalization == "auto" else self.normalization
        evidence = ranking.Evidence(channels, power, context.rng, collected, found, normalization)
        for group, own in zip(chosen, reading, strict=True):
            width, multiple = len(group.units), block_of_units(group, self.round_to, context.target.name)
            constant = [unit for unit in group.units if unit in free]
            widths = allowed_widths(width, multiple, self.min_width)
            widths = widths[: np.searchsorted(widths, max(width - len(constant), 1)) + 1]  # nothing is lost with these
            if widths.tolist() == [width]:
                findings.decline(group.name, self.name, self._whole(width, multiple))
                continue
            importance, why = self._importance(own, uses[group], collected)
            if why:
                unfounded.append(f"{group.name}: {why}")
            candidates.append(Candidate(group, own, ranking.ranked(group, own, importance, evidence, constant), widths))
        if unfounded:
            findings.notes.append(f"{len(unfounded)} groups are ranked by magnitude for want of data: {unfounded[0]}")
        lifted = ranking.lifted([each.ranking for each in candidates])
        return [replace(each, ranking=own) for each, own in zip(candidates, lifted, strict=True)]

    def _importance(
        self, own: Sequence[Reader], uses: Collection[Use], collected: Collected | None
    ) -> tuple[Importance, str]:
        """The criterion for a group, and why it is not the one that was asked for."""
        wanted = self.importance
        if wanted == "auto":
            wanted = "magnitude" if collected is None else "elimination"
        if wanted not in NEED_DATA:
            return wanted, ""
        assert collected is not None
        why = (
            "" if ranking.is_covered(own, uses) else "it is read by what is no matrix of constants, or a quantized one"
        )
        why = why or next((told for reader in own if (told := collected.why(inputs_of(reader)))), "")
        return ("magnitude", why) if why else (wanted, "")

    def _allocation(self, context: Context) -> Allocation:
        if self.allocation != "auto":
            return self.allocation
        return "distortion" if self.ratio is None and context.samples else "uniform"

    def _budget(self) -> Budget:
        option = next(name for name in _BUDGETS if getattr(self, name) is not None)
        value = getattr(self, option)
        return Budget(f"{self.name}.{option}", _BUDGETS[option], 1 - value if option == "ratio" else value)  # type: ignore[arg-type]

    def _leaving(
        self, channels: Channels, candidates: Sequence[Candidate], collected: Collected | None, context: Context,
        findings: Findings,
    ) -> list[Leaving]:  # fmt: skip
        """The units that go, of each group that loses any, the least important one first."""
        refits = self._method(context) not in (None, "batch-norm")
        plan = Plan(
            self._budget(), self._allocation(context), self.allocation != "auto",
            collected if refits else None, refits, self.max_seconds,
        )  # fmt: skip
        leaving = []
        for candidate, width in zip(candidates, choose(plan, channels, candidates, context, findings), strict=True):
            if width < candidate.width:
                leaving.append((candidate.group, candidate.leaving(width)))
            else:
                why = f"{self._asked()} is met without it, or its share rounds to none"
                findings.decline(candidate.group.name, self.name, why)
        return _possible(channels, leaving)

    def _asked(self) -> str:
        option = next(name for name in _BUDGETS if getattr(self, name) is not None)
        return f"{option} {getattr(self, option)}"

    def _reached(self, context: Context, before: ModelCost) -> Iterator[str]:
        """What was asked for beside what came of it, and why they differ."""
        budget = self._budget()
        if budget.of == "units" or budget.of == "latency":
            return
        share = full(context.cost, budget.of) / max(full(before, budget.of), 1)
        wanted = target(budget.value, full(before, budget.of)) / max(full(before, budget.of), 1)
        why = "" if share > _SHORT * wanted else ": widths that groups may keep are far apart (round_to, few units)"
        yield f"{self._asked()}: {share:.3f} of {budget.of} are left{why}"

    def _method(self, context: Context) -> Method | None:
        """How layers are repaired; None: not at all."""
        if self.repair == "auto":
            return "least-squares" if context.samples else None
        return None if self.repair == "none" else self.repair

    def _allowed(
        self, channels: Channels, found: Sequence[ChannelGroup], context: Context, findings: Findings
    ) -> Iterator[ChannelGroup]:
        """The groups that options and overrides leave."""
        names = [names_of(channels, group) for group in found]
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if pattern != "*" and (error := not_found(f"{self.name}.{option}", pattern, channels.model, names)):
                    raise error
        protected = skipped(channels, context)
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

    def _may(self, group: ChannelGroup) -> bool:
        """Whether groups of a kind are pruned at all, whatever their names."""
        return group.kind in self.kinds and (group.exact or self.inexact)

    def _forced(self, channels: Channels, group: ChannelGroup) -> bool:
        """Whether somebody asks for a group by its very name."""
        makers = names_of(channels, group).makers
        return any(is_name(pattern) and pattern in makers for pattern in self.include)

    def _whole(self, width: int, multiple: int) -> str:
        """Why a group loses nothing."""
        if width == 1:
            return "one has to stay"
        if width <= multiple and multiple > 1:
            return f"no wider than the multiple that kept widths are rounded to, {multiple} (round_to)"
        if width <= self.min_width:
            return f"min_width is {self.min_width}"
        return f"no multiple of {multiple} (round_to) lies between its width and the fewest that it may keep"


def _possible(channels: Channels, leaving: Sequence[Leaving]) -> list[Leaving]:
    """The same without units but for which an axis would be empty: part of a group may be all that a layer reads."""
    able = set(channels.spared(unit for _, units in leaving for unit in units))
    kept = [(group, [unit for unit in units if unit in able]) for group, units in leaving]
    return [(group, units) for group, units in kept if units]
