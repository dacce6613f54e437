"""The oracle: a model without some units must compute what it computes when all that reads them ignores them.

A rule that is wrong, whatever is wrong about it, shows in that the two differ, or that the smaller one does not run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes.axis import Axes
from onnxopt.analysis.axes.engine import Channels, channel_ids
from onnxopt.analysis.axes.groups import ChannelGroup, groups
from onnxopt.analysis.axes.masking import masking
from onnxopt.analysis.axes.patch import Kept
from onnxopt.analysis.axes.plan import removal
from onnxopt.analysis.extraction import copied
from onnxopt.analysis.precision import default_tolerance
from onnxopt.comparing import TIGHT
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.nodes import label

T = TypeVar("T")

Drift: TypeAlias = Callable[[Model, Model], float | None]
"""How far the second model is from the first; infinite where only the first runs, None where that does not either."""

Draw: TypeAlias = Mapping[ChannelGroup, Sequence[int]]
"""Some units of each group."""

SHARE = 0.5
"""Of the units of a group, at most so many are drawn."""

_MOST = 8
"""So many sets of groups that fail are told apart; what is left when there are more is given up as a whole."""


@dataclass(frozen=True)
class Failure:
    """Groups of which units cannot be removed as the rules say.

    Attributes:
        groups: mostly one; several that fail only together.
        drift: between ignoring and removing the units drawn; infinite where what is left does not run.
        why: what went wrong, where it was no number.
    """

    groups: tuple[ChannelGroup, ...]
    drift: float
    why: str = ""


class Checker:
    """Tries removals on one state of a model, which stays as it is.

    Each trial is a run of two variants and two analyses. Weights are shared with the model and cut when they are read.

    Args:
        model: the model.
        drift: compares two variants (`Context.drift`).
        channels: of the model, if they are at hand.

    Attributes:
        groups: what is checked: all groups that are exact and of which a unit may go.
        tolerance: largest drift that is rounding: 1e-4, or 5e-3 with outputs of half precision.
    """

    def __init__(self, model: Model, drift: Drift, channels: Channels | None = None) -> None:
        self.channels = channels or channel_ids(model)
        self.groups = [group for group in groups(self.channels) if group.exact and len(group.units) > 1]
        allowed = default_tolerance(model)
        self.tolerance = max((allowed.get(value.name or "", TIGHT) for value in model.graph.outputs), default=TIGHT)
        self._model = model
        self._drift = drift

    def able(self) -> bool:
        """Whether the model runs, and gives the same twice: else nothing can be checked."""
        own = self._drift(self._model, self._model)
        return own is not None and own <= self.tolerance

    def drawn(
        self, rng: np.random.Generator, share: float = SHARE, only: Iterable[ChannelGroup] | None = None
    ) -> dict[ChannelGroup, list[int]]:
        """Units of every group, or of some of more than one unit: at least one, up to a share of them, never all."""
        chosen = {}
        for group in self.groups if only is None else only:
            most = min(max(1, int(share * len(group.units))), len(group.units) - 1)
            chosen[group] = sorted(rng.choice(group.units, int(rng.integers(1, most + 1)), replace=False).tolist())
        return chosen

    def trial(self, units: Iterable[int]) -> tuple[float, str]:
        """Drift between ignoring and removing units, and what went wrong where that is no number."""
        units = list(units)
        try:
            masked, cut = self._changed(masking, units), self._changed(removal, units)
        except Exception as error:  # what is checked is whether rules are right: they may fail in any way
            return inf, f"{type(error).__name__}: {error}"
        found = self._drift(masked, cut)
        if found is None:
            return inf, "the model that ignores the units does not run"
        return found, "" if found < inf else "what is left does not run, or gives other sizes"

    def effect(self, units: Iterable[int]) -> float | None:
        """Drift that ignoring units makes: where that is nothing, the check has nothing to see."""
        return self._drift(self._model, self._changed(masking, list(units)))

    def failures(self, draw: Draw) -> list[Failure]:
        """The groups of a draw that fail, found by bisection: with k of n, about 2 k log2(n) trials; one if none."""
        found: list[Failure] = []
        left = list(draw)
        while left:
            drift, why = self.trial(_units(draw, left))
            if drift <= self.tolerance:
                break
            if len(found) == _MOST:
                found.append(Failure(tuple(left), drift, why or f"not told apart, after {_MOST} others"))
                break
            bad = smallest(left, lambda some: self.trial(_units(draw, some))[0] > self.tolerance)
            found.append(Failure(tuple(bad), *self.trial(_units(draw, bad))))
            left = [group for group in left if not any(group is each for each in bad)]
        return found

    def course(self, group: ChannelGroup) -> list[ir.Node]:
        """The nodes that a group's channels go through, in the order of the graph."""
        kept = Kept(self.channels.classes.labels, group.units)
        return [node for node in self._model.graph if any(map(kept.touches, self._axes(node)))]

    def joint(self, group: ChannelGroup) -> ir.Node | None:
        """The first node at which computed tensors with a group's channels come together; else the last on their way.

        None where no node of the main graph has them.
        """
        kept = Kept(self.channels.classes.labels, group.units)
        course = self.course(group)
        for node in course:
            inputs = enumerate(node.inputs)
            computed = [at for at, value in inputs if value is not None and not self.channels.is_constant(value)]
            if sum(kept.touches(self.channels.of_input(node, at)) for at in computed) > 1:
                return node
        return course[-1] if course else None

    def _axes(self, node: ir.Node) -> list[Axes | None]:
        inputs = [self.channels.of_input(node, index) for index in range(len(node.inputs))]
        return [*inputs, *(self.channels.of(value) for value in node.outputs)]

    def _changed(self, edit: Callable[[Channels, list[int]], Edit], units: list[int]) -> Model:
        copy, copies = copied(self._model)
        copy.apply(edit(channel_ids(copy, whole=[copies[node] for node in self.channels.whole]), units))
        return copy


def smallest(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """A smallest part of what fails: it fails, and without any one of its items it does not.

    By halving (Junker, QuickXplain, 2004), taking it that what contains something that fails fails as well: about
    `2 k log2(n / k)` calls for k of n.

    Args:
        items: what fails as a whole.
        fails: whether some of the items fail.
    """

    def search(fixed: list[T], rest: list[T], grown: bool) -> list[T]:
        if grown and fails(fixed):
            return []
        if len(rest) == 1:
            return rest
        left, right = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        of_right = search([*fixed, *left], right, True)
        of_left = search([*fixed, *of_right], left, bool(of_right))
        return [*of_left, *of_right]

    return search([], list(items), False)


def describe(checker: Checker, failure: Failure) -> str:
    """A failure in a line: which groups, what they are, and where they join."""
    named = []
    for group in failure.groups:
        node = checker.joint(group)
        at = "" if node is None else f" that join at {node.op_type} {label(node)}"
        named.append(f"{group.name} ({len(group.units)} {group.kind}{at})")
    return " with ".join(named)


def _units(draw: Draw, some: Iterable[ChannelGroup]) -> list[int]:
    return [unit for group in some for unit in draw[group]]
