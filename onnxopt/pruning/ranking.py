"""In which order the units of a group go, and what is lost with each: the criteria that a recipe can name."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.groups import ChannelGroup
from onnxopt.analysis.axes.scoring import contents, magnitudes
from onnxopt.analysis.linear.recurrent import Layer, Recurrent
from onnxopt.analysis.linear.sources import Use
from onnxopt.numerics import criteria
from onnxopt.numerics.elimination import eliminate, energy
from onnxopt.numerics.quadratic import interactions, swaps
from onnxopt.pruning.inputs import Seen, seen
from onnxopt.pruning.readers import Reader
from onnxopt.statistics import Collected

Importance = Literal[
    "magnitude", "lamp", "geometric-median", "random", "taylor", "wanda", "flap", "energy", "elimination", "swaps"
]
NEED_DATA: Collection[str] = ("wanda", "flap", "energy", "elimination", "swaps")
Normalization = Literal["none", "mean", "max", "standard", "lamp"]
assert set(get_args(Normalization)) == set(criteria.NORMALISATIONS)

_USUAL: Mapping[str, Normalization] = {"magnitude": "mean", "geometric-median": "mean"}
"""How scores of different groups are made comparable; all others are: shares of what readers give, or of a loss."""

Array: TypeAlias = npt.NDArray[np.float64]
Gradients = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Ranking:
    """How a group gets narrower.

    Attributes:
        order: places of units in the group, the first to go first.
        losses: `[units]`, what is lost when the first 1, 2, ... are gone; comparable between groups of one criterion.
        form: for exchanging units of a width's choice; None: the order is all there is.
        free: of the first so many nothing is lost: they are constant.
    """

    order: npt.NDArray[np.int64]
    losses: Array
    form: Array | None = field(default=None, repr=False)
    free: int = 0

    def removed(self, count: int) -> list[int]:
        """The places of the units that go when so many do, the least important one first."""
        first = self.order[:count]
        if self.form is None or not 0 < count < len(self.order):
            return [int(each) for each in first]
        return [int(each) for each in swaps(self.form, first)]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What rankings are made from.

    Attributes:
        channels: of the model as it is.
        power: of magnitudes, 1 or 2.
        rng: for what is random.
        found: Gram matrices; None without data.
        gradients: initializer -> gradient of the loss, averaged over samples.
        normalization: how scores of different groups are made comparable; None: as suits the criterion.
    """

    channels: Channels
    power: int
    rng: np.random.Generator
    found: Collected | None
    gradients: Gradients | None
    normalization: Normalization | None = None


def ranked(
    group: ChannelGroup, readers: Sequence[Reader], importance: Importance, evidence: Evidence, first: Collection[int]
) -> Ranking:
    """The ranking of a group.

    Args:
        group: the group.
        readers: the layers that read it. Where the importance needs data all of them have their statistics, and
            nothing else reads the group, see `is_covered`.
        importance: the criterion.
        evidence: what it is made from.
        first: units that go before all others: constant ones.
    """
    if importance in ("elimination", "swaps"):
        sides = [each.scaled() for each in _seen(group, readers, evidence)]
        found = eliminate(sides)
        ranking = Ranking(found.order, found.cumulative / len(sides))
        if importance == "swaps":
            form = sum(interactions(side.weight, side.scatter, side.units) for side in sides)
            ranking = Ranking(ranking.order, ranking.losses, np.asarray(form))
    else:
        ranking = _of_scores(_SCORES[importance](group, readers, evidence))
    scale = criteria.NORMALISATIONS.find(evidence.normalization or _USUAL.get(importance, "none"))
    ranking = replace(ranking, losses=np.cumsum(scale(np.diff(ranking.losses, prepend=0.0))))
    return _after(ranking, [place for place, unit in enumerate(group.units) if unit in first])


def lifted(rankings: Sequence[Ranking]) -> list[Ranking]:
    """The same with all scores raised by as much, so that none is below 0; what goes for nothing still does."""
    steps = [np.diff(each.losses, prepend=0.0) for each in rankings]
    least = min((float(each.min()) for each in steps if each.size), default=0.0)
    if least >= 0:
        return list(rankings)
    for each, own in zip(rankings, steps, strict=True):
        own[each.free :] -= least
    return [replace(each, losses=np.cumsum(own)) for each, own in zip(rankings, steps, strict=True)]


def is_covered(readers: Sequence[Reader], uses: Collection[Use]) -> bool:
    """Whether these layers are all who sum over units of a group, see `consumers`."""
    return bool(readers) and {use for reader in readers for use in _covered(reader.linear)}.issuperset(uses)


def consumers(channels: Channels, groups: Sequence[ChannelGroup]) -> dict[ChannelGroup, list[Use]]:
    """Who sums over units of groups, as which input: of all groups at once, in one pass over the graph."""
    owner = np.full(channels.classes.count, -1, np.int64)
    for at, group in enumerate(groups):
        owner[list(group.units)] = at
    found: dict[ChannelGroup, list[Use]] = {group: [] for group in groups}
    for consumption in channels.consumed:
        ids = vector(consumption.axis)
        if ids is not None:
            here = np.unique(owner[channels.classes.labels[ids]])
            for at in here[here >= 0].tolist():
                found[groups[at]].append((consumption.node, consumption.index))
    return found


def _covered(layer: Layer) -> Iterator[Use]:
    """The inputs of a layer's node that are summed over as the layer has it."""
    if isinstance(layer, Recurrent):
        yield from ((layer.node, index) for index in layer.summed)
    else:
        yield from ((layer.node, index) for index in range(len(layer.node.inputs)))


def _of_scores(scores: Array) -> Ranking:
    order = np.argsort(scores, kind="stable").astype(np.int64)
    return Ranking(order, np.cumsum(np.maximum(scores[order], 0)))


def _after(ranking: Ranking, first: Sequence[int]) -> Ranking:
    """The same with some units before all others, for nothing."""
    if not first:
        return ranking
    free = np.isin(ranking.order, first)
    steps = np.diff(ranking.losses, prepend=0.0)
    losses = np.cumsum(np.concatenate([np.zeros(int(free.sum())), steps[~free]]))
    return Ranking(np.concatenate([ranking.order[free], ranking.order[~free]]), losses, free=int(free.sum()))


def _seen(group: ChannelGroup, readers: Sequence[Reader], evidence: Evidence) -> list[Seen]:
    assert evidence.found is not None
    return seen(readers, group.units, evidence.found)


_Score = Callable[[ChannelGroup, Sequence[Reader], Evidence], Array]


def _magnitude(group: ChannelGroup, readers: Sequence[Reader], evidence: Evidence) -> Array:
    sums = magnitudes(evidence.channels, group.units, evidence.power)[list(group.units)]
    roots: Array = sums ** (1 / evidence.power)
    return roots


def _lamp(group: ChannelGroup, readers: Sequence[Reader], evidence: Evidence) -> Array:
    return criteria.lamp(magnitudes(evidence.channels, group.units, 2)[list(group.units)])


def _geometric_median(group: ChannelGroup, readers: Sequence[Reader], evidence: Evidence) -> Array:
    return criteria.geometric_median(contents(evidence.channels, group))


def _random(group: ChannelGroup, readers: Sequence[Reader], evidence: Evidence) -> Array:
    return criteria.random(len(group.units), evidence.rng)


def _taylor(group: ChannelGroup, readers: Sequence[Reader], evidence: Evidence) -> Array:
    """`|sum of w dL/dw|` over all entries of a unit: Molchanov et al. 2019."""
    assert evidence.gradients is not None
    scores: Array = np.abs(contents(evidence.channels, group, evidence.gradients).sum(1))
    return scores


def _summed(score: Callable[[Seen], Array]) -> _Score:
    """The sum over all layers that read the units, each relative to how much its outputs vary."""

    def total(group: ChannelGroup, readers: Sequence[Reader], evidence: Evidence) -> Array:
        sides = _seen(group, readers, evidence)
        result = np.zeros(len(group.units))
        for each in sides:
            if each.energy > 0:
                result += score(each) / each.energy
        return result

    return total


def _wanda(each: Seen) -> Array:
    squares = np.diagonal(each.scatter) + each.count * each.mean**2
    return criteria.wanda(each.weight, squares, each.units) ** 2


_SCORES: Mapping[str, _Score] = {
    "magnitude": _magnitude,
    "lamp": _lamp,
    "geometric-median": _geometric_median,
    "random": _random,
    "taylor": _taylor,
    "wanda": _summed(_wanda),
    "flap": _summed(lambda each: criteria.fluctuation(each.weight, np.diagonal(each.scatter), each.units)),
    "energy": _summed(lambda each: energy(each.weight, each.scatter, each.units)),
}
assert {*_SCORES, "elimination", "swaps"} == set(get_args(Importance))
