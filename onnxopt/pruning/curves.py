"""What each group loses at each width: by its ranking alone, or measured at the model's outputs.

Cut one group, refit the layers that read it, and see how far the outputs move: done for each group at a few widths
(Xu et al. 2023, "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks"). Where that
takes too long, it is done at one width, and the ranking's losses are scaled to it.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxopt.analysis.axes.engine import Channels, channel_ids
from onnxopt.analysis.axes.groups import ChannelGroup
from onnxopt.analysis.axes.plan import removal
from onnxopt.analysis.extraction import copied
from onnxopt.errors import OnnxOptError
from onnxopt.model import Model
from onnxopt.numerics.allocation_cost import Widths
from onnxopt.numerics.allocation_curves import Curve
from onnxopt.passing import Context, Probe
from onnxopt.pruning.inputs import inputs_of
from onnxopt.pruning.ranking import Ranking
from onnxopt.pruning.readers import Reader
from onnxopt.pruning.repair import damaged, refit_alike
from onnxopt.statistics import Collected

logger = logging.getLogger(__name__)

LEVELS: Sequence[float] = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Shares of a group that are removed to measure, all of them and fewer where time is short."""

_HALF: Sequence[float] = (1 / 4, 1 / 2, 3 / 4)
_ONE: Sequence[float] = (1 / 2,)

SAMPLES = 256
"""Calibration samples that outputs are compared on."""

_WORST = 1e6
"""Distortion of a variant that gives no numbers."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A group that may get narrower.

    Attributes:
        group: the group.
        readers: the layers that read it.
        ranking: in which order its units go.
        widths: it may keep, ascending; the last is its own.
    """

    group: ChannelGroup
    readers: Sequence[Reader]
    ranking: Ranking
    widths: Widths

    @property
    def width(self) -> int:
        """Units that it has."""
        return len(self.group.units)

    def leaving(self, width: int) -> list[int]:
        """The units that go when a width stays, the least important one first."""
        return [self.group.units[place] for place in self.ranking.removed(self.width - width)]

    def by_ranking(self) -> Curve:
        """What the ranking says."""
        lost = np.concatenate([[0.0], self.ranking.losses])[self.width - self.widths]
        return Curve(self.widths, np.minimum.accumulate(lost))


def measured(
    channels: Channels, candidates: Sequence[Candidate], found: Collected | None, context: Context, seconds: float
) -> tuple[list[Curve], str]:
    """Curves of distortion at the outputs, and a word about how they came about.

    Args:
        channels: of the model as it is.
        candidates: groups.
        found: Gram matrices of what their readers see, for refits; None: nothing is refitted.
        context: gives outputs of variants.
        seconds: about how long it may take.
    """
    probe = context.probe(SAMPLES)
    try:
        levels, began, curves = LEVELS, time.monotonic(), list[Curve]()
        for at, candidate in enumerate(candidates):
            if at and time.monotonic() - began > seconds:
                break
            context.progress(at, len(candidates), "measuring what each group loses")
            curves.append(_curve(channels, candidate, levels, found, probe))
            spent = (time.monotonic() - began) / (at + 1)
            left = seconds - (time.monotonic() - began)
            needed = spent * (len(candidates) - at - 1) / len(levels)
            levels = next((each for each in (LEVELS, _HALF) if needed * len(each) <= left), _ONE)
        short = "" if levels is LEVELS else ", for lack of time at fewer widths"
        told = f"losses of {len(curves)} groups were measured at the outputs{short}"
        if rest := candidates[len(curves) :]:
            told = f"{told}; of the other {len(rest)} they follow from the rankings (max_seconds)"
            curves += _like(candidates[: len(curves)], curves, rest)
        return curves, told
    finally:
        probe.close()


def _like(known: Sequence[Candidate], curves: Sequence[Curve], rest: Sequence[Candidate]) -> list[Curve]:
    """What the rankings of other groups say, scaled as measurements scale those of known ones, in the middle."""
    pairs = [(curve.losses[0], each.by_ranking().losses[0]) for each, curve in zip(known, curves, strict=True)]
    factors = [measured / ranked for measured, ranked in pairs if measured > 0 and ranked > 0]
    factor = float(np.median(factors)) if factors else 1.0
    own = [each.by_ranking() for each in rest]
    return [Curve(each.widths, each.losses * factor) for each in own]


def _curve(
    channels: Channels, candidate: Candidate, shares: Sequence[float], found: Collected | None, probe: Probe
) -> Curve:
    full = candidate.width
    nearest = {int(candidate.widths[np.argmin(np.abs(candidate.widths - full * (1 - share)))]) for share in shares}
    widths = sorted(nearest - {full})
    if not widths:
        return candidate.by_ranking()
    losses = [_loss(channels, candidate, width, found, probe) for width in widths]
    if len(widths) > 1:
        return Curve.of_measured(widths, losses, full, candidate.widths)
    own = candidate.by_ranking()
    known = float(own.losses[np.searchsorted(own.widths, widths[0])])
    return Curve(own.widths, own.losses * (losses[0] / known)) if known > 0 else own


def _loss(channels: Channels, candidate: Candidate, width: int, found: Collected | None, probe: Probe) -> float:
    """Distortion when the group alone keeps a width."""
    try:
        variant = without(channels, candidate.leaving(width), candidate.readers, found)
        return min(probe.distortion(variant), _WORST)
    except OnnxOptError as error:
        logger.info("group %s at width %d: %s", candidate.group.name, width, error)
        return _WORST


def without(channels: Channels, units: Sequence[int], readers: Sequence[Reader], found: Collected | None) -> Model:
    """A copy of the model without some units, its readers refitted to the dense model's inputs."""
    copy, copies = copied(channels.model)
    copy.apply(removal(channel_ids(copy, whole=[copies[node] for node in channels.whole]), units))
    if found is not None:
        own = {reader.linear.weight.use: reader for reader in readers}
        layers = damaged(channels, readers, units, (), {use: reader.linear for use, reader in own.items()})
        sums = {use: found[inputs_of(reader)] for use, reader in own.items() if not found.why(inputs_of(reader))}
        refit_alike(copy, [replace(each, node=copies[each.node]) for each in layers if each.use in sums], sums)
    return copy
