"""Importance of units from magnitudes, and how many units of a group to keep.

A unit that carries little weight changes its readers little. Magnitude as the sum over all of a unit's slices, what
makes it and what reads it: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"; normalised by each group's
mean, so that groups of different fan-in compare. BatchNorm folded in: Liu et al. 2017, "Network Slimming", reads the
same scale.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Scores: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]

_CHUNK = 1 << 20
"""Elements that are looked at in double precision at a time."""


def slice_sums(
    array: npt.NDArray[Any], axes: Sequence[int], power: int, factors: Mapping[int, Scores] | None = None
) -> list[Scores]:
    """Sums of `|w| ** power` over all axes but one, for several axes at once.

    Args:
        array: weights, of any shape and any real type; read in pieces.
        axes: which axes to keep, one at a time.
        power: 1 for L1, 2 for (squared) L2.
        factors: axis -> numbers that scale the entries along it first, `[size of the axis]`.

    Returns:
        for each of `axes`, `[size of the axis]`.
    """
    sums = [np.zeros(array.shape[axis]) for axis in axes]
    if not array.size:
        return sums
    scale = np.ones((1,) * array.ndim)
    for axis, along in (factors or {}).items():
        scale = scale * along.reshape([-1 if place == axis else 1 for place in range(array.ndim)])
    scale = np.broadcast_to(np.abs(scale), (array.shape[0] if scale.shape[0] > 1 else 1, *scale.shape[1:]))
    step = max(1, _CHUNK * array.shape[0] // array.size)
    for start in range(0, array.shape[0], step):
        rows = slice(start, start + step)
        part = np.abs(array[rows].astype(np.float64)) * (scale[rows] if scale.shape[0] > 1 else scale)
        part = part**power
        for total, axis in zip(sums, axes, strict=True):
            found = part.sum(tuple(place for place in range(array.ndim) if place != axis))
            if axis == 0:
                total[rows] += found
            else:
                total += found
    return sums


def normalised(scores: Scores) -> Scores:
    """Scores `[units]` by their mean; a group of zeros stays one."""
    mean = float(scores.mean()) if scores.size else 0.0
    return scores / mean if mean > 0 else np.zeros_like(scores)


def weakest(scores: Scores, count: int) -> Counts:
    """Positions of the `count` smallest scores `[units]`, smallest first; of equal ones the first in order."""
    return np.argsort(scores, kind="stable")[:count].astype(np.int64)


def under_threshold(scores: Sequence[Scores], ratio: float, most: Sequence[int]) -> list[int]:
    """How many units each group loses when one threshold over all scores takes a share of all units.

    Args:
        scores: for each group `[units]`, comparable between groups.
        ratio: share of all units that goes.
        most: for each group, how many units it may lose; the threshold rises until the others make up for it.

    Returns:
        for each group the number of its smallest scores that go. Ties: by the order of groups, then of positions.
    """
    ranked = [np.sort(each)[:limit] for each, limit in zip(scores, most, strict=True)]
    owner = np.repeat(np.arange(len(ranked)), [len(each) for each in ranked])
    wanted = round(ratio * sum(len(each) for each in scores))
    order = weakest(np.concatenate([np.zeros(0), *ranked]), wanted)
    lost: list[int] = np.bincount(owner[order], minlength=len(ranked)).tolist()
    return lost


def width_to_keep(width: int, wanted: float, multiple: int = 1, least: int = 1) -> int:
    """The width that a group keeps: the multiple nearest to what is wanted, or its own; the larger of two as near.

    A group narrower than the multiple keeps its width: without whole blocks nothing gets faster.

    Args:
        width: units that it has.
        wanted: units that it should keep.
        multiple: what the kept width should be divisible by.
        least: fewest units to keep.
    """
    fewest = max(1, least)
    possible = [width, *(each for each in range(multiple, width, multiple) if each >= fewest)]
    return min(possible, key=lambda each: (abs(each - wanted), -each))


__all__ = ["Scores", "normalised", "slice_sums", "under_threshold", "weakest", "width_to_keep"]
