"""Importance of units from weights and what flows into them, and ways to make scores of different groups comparable.

Every criterion gives one score per unit, float64 `[units]`; the smallest goes first. What needs Gram matrices is in
`elimination` and `quadratic`, magnitudes are in `importance`.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .importance import Scores, normalised, under_threshold
from .registry import Registry
from .units import Units, check_units

Normalisation: TypeAlias = Callable[[Scores], Scores]

NORMALISATIONS: Registry[Normalisation] = Registry("normalisation")
"""Scores `[units]` of one group -> scores that compare with those of other groups; the order of a group stays."""


def wanda(weight: npt.ArrayLike, squared_norms: npt.ArrayLike, units: Units) -> Scores:
    """`sum over columns j of u of |x_j| sum_i |W_ij|`: weights times the norm of what they are multiplied with.

    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models" (Wanda), summed over a unit's
    columns and all rows.

    Args:
        weight: `[out, C]`, of a layer that reads the units; scores of several add up.
        squared_norms: `[C]`, sum or mean of `x_j^2`.
        units: columns of each.
    """
    columns = np.abs(np.asarray(weight, np.float64)).sum(0)
    return _by_unit(columns * np.sqrt(np.asarray(squared_norms, np.float64)), units)


def fluctuation(weight: npt.ArrayLike, variances: npt.ArrayLike, units: Units) -> Scores:
    """`sum over columns j of u of var(x_j) |W_:j|^2`: what a corrected bias does not make up for, columns apart.

    An et al. 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (FLAP, its WIFV).

    Args:
        weight: `[out, C]`, of a layer that reads the units; scores of several add up.
        variances: `[C]`, about the mean.
        units: columns of each.
    """
    columns = np.square(np.asarray(weight, np.float64)).sum(0)
    return _by_unit(columns * np.asarray(variances, np.float64), units)


def _by_unit(columns: Scores, units: Units) -> Scores:
    check_units(units, len(columns))
    return np.array([columns[own].sum() for own in units], np.float64)


def geometric_median(rows: npt.ArrayLike) -> Scores:
    """`sum over v of |w_u - w_v|`: a unit near the geometric median of its group can be replaced by the others.

    He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration" (FPGM).
    It compares units of one group only. Distances come from products, `|a|^2 + |b|^2 - 2 a b` about the mean, so two
    that are all but equal are told apart to about 1e-8 of their size.

    Args:
        rows: `[units, n]`, what makes each unit.

    Cost: units^2 * n products, units^2 numbers.
    """
    vectors = np.asarray(rows, np.float64)
    if not vectors.size:
        return np.zeros(len(vectors))
    vectors = vectors - vectors.mean(0)
    squares = np.einsum("un,un->u", vectors, vectors)
    distances = vectors @ vectors.T
    distances *= -2
    distances += squares
    distances += squares[:, None]
    np.fill_diagonal(distances, 0)
    summed: Scores = np.sqrt(np.maximum(distances, 0)).sum(1)
    return summed


def random(units: int, rng: np.random.Generator) -> Scores:
    """Uniform in [0, 1): what every criterion has to beat."""
    return rng.random(units)


@NORMALISATIONS.register("none")
def as_they_are(scores: Scores) -> Scores:
    """Nothing changes."""
    return scores


NORMALISATIONS.register("mean")(normalised)


@NORMALISATIONS.register("max")
def by_maximum(scores: Scores) -> Scores:
    """Scores that are not negative by their largest; a group of zeros stays one."""
    largest = float(scores.max(initial=0))
    return scores / largest if largest > 0 else np.zeros_like(scores)


@NORMALISATIONS.register("standard")
def standard(scores: Scores) -> Scores:
    """`(s - mean) / standard deviation`, as FLAP compares layers; 0 where all are equal."""
    if not scores.size:
        return np.zeros(0)
    deviations = scores - scores.mean()
    spread = float(np.sqrt(np.mean(deviations**2)))
    return deviations / spread if spread > 1e-12 * float(np.abs(scores).max()) else np.zeros_like(scores)


@NORMALISATIONS.register("lamp")
def lamp(scores: Scores) -> Scores:
    """`s_u / sum of all s_v that are no smaller`: the share of what is left when u goes; the largest of a group has 1.

    Lee et al. 2021, "Layer-Adaptive Sparsity for the Magnitude-based Pruning" (LAMP), for scores that are squared
    magnitudes. Of equal scores the first in order counts as the smaller. Scores that are 0 stay 0.

    Args:
        scores: `[units]`, none negative.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    left = np.cumsum(ranked[::-1])[::-1]
    shares = np.zeros(len(scores))
    shares[order] = np.divide(ranked, left, out=np.zeros(len(scores)), where=left > 0)
    return shares


def under_thresholds(
    scores: Sequence[Scores], kinds: Sequence[Hashable], ratio: float, most: Sequence[int]
) -> list[int]:
    """How many units each group loses when groups of one kind share a threshold, each kind losing the same share.

    Scores of heads, neurons and channels do not compare: Fang et al. 2024, "Isomorphic Pruning for Vision Models",
    ranks only units whose dependencies look alike.

    Args:
        scores: for each group `[units]`, comparable within a kind.
        kinds: of each group; groups of one kind are ranked together.
        ratio: share of each kind's units that goes.
        most: for each group, how many units it may lose.

    Returns:
        for each group the number of its smallest scores that go.
    """
    lost = [0] * len(scores)
    for kind in dict.fromkeys(kinds):
        own = [place for place, each in enumerate(kinds) if each == kind]
        counts = under_threshold([scores[place] for place in own], ratio, [most[place] for place in own])
        for place, number in zip(own, counts, strict=True):
            lost[place] = number
    return lost


__all__ = [
    "NORMALISATIONS",
    "Normalisation",
    "as_they_are",
    "by_maximum",
    "fluctuation",
    "geometric_median",
    "lamp",
    "random",
    "standard",
    "under_thresholds",
    "wanda",
]
