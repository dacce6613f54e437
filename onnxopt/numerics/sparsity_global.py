"""One magnitude threshold over all layers: GlobalMP, with a least number of weights that each layer keeps.

Gupta et al. 2022, "Is Complexity Required for Neural Network Pruning? A Case Study on Global Magnitude Pruning": one
threshold on `|w|` and no normalisation, with a minimum that keeps layers from vanishing.

The bits of a non-negative float32, read as a number, order like the float does. So the threshold is found exactly by
counting the upper halves of all bits, then the lower halves of those in the bin that the threshold lies in: the layers
are looked at twice, one after the other, and never held together.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .sparsity import Weights, kept_count, pieces

Layer: TypeAlias = Callable[[], Weights]
Counts: TypeAlias = npt.NDArray[np.int64]

_UPPER = 1 << 15
_LOWER = 1 << 16
_NOT_FINITE = 0x7F80
"""Upper halves from here on are infinite or NaN."""

_CHUNK = 1 << 20
"""Elements that are looked at together."""


def global_counts(layers: Sequence[Layer], density: float, least: int | Sequence[int] = 0) -> Counts:
    """How many weights each layer keeps when the largest of all layers stay.

    `largest(magnitudes(w).reshape(-1), count)` is then the layer's mask.

    Args:
        layers: each returns its weights, or scores to rank by their absolute value, of any shape; called twice.
        density: share of all weights that stays. Where the layers' minima are more, they win.
        least: every layer keeps at least so many, or all that it has; one number, or one a layer.

    Returns:
        `[layers]`; they sum to `kept_count(all, density)`. Ties at the threshold stay in the order of the layers.
        O(weights) time; at most a few hundred KB a layer beside the layer that is looked at.

    Raises:
        ValueError: density not from 0 to 1, or weights that are not finite in float32 (the message says which layer).
    """
    sizes, kept = np.zeros(len(layers), np.int64), np.zeros(_UPPER, np.int64)
    floors = np.broadcast_to(np.asarray(least, np.int64), sizes.shape)
    for place, layer in enumerate(layers):
        counts = _upper_counts(layer(), place)
        sizes[place] = counts.sum()
        kept += np.maximum(_from_there(counts), np.minimum(floors[place], sizes[place]))
    minima = np.minimum(sizes, floors)
    wanted = max(kept_count(int(sizes.sum()), density), int(minima.sum()))
    upper = int(np.flatnonzero(kept >= wanted)[-1]) if sizes.size else 0

    above, ties = np.zeros_like(sizes), []
    kept = np.zeros(_LOWER, np.int64)
    for place, layer in enumerate(layers):
        above[place], found = _lower_counts(layer(), upper)
        ties.append(found)
        kept += np.maximum(above[place] + _from_there(_dense(found)), minima[place])
    lower = int(np.flatnonzero(kept >= wanted)[-1]) if sizes.size else 0

    beyond = [int(counts[values > lower].sum()) for values, counts in ties]
    equal = [int(counts[values == lower].sum()) for values, counts in ties]
    sure = np.maximum(above + np.array(beyond, np.int64), minima)
    possible = np.maximum(above + np.array(beyond, np.int64) + np.array(equal, np.int64), minima) - sure
    earlier = np.cumsum(possible) - possible
    extra: Counts = np.clip(wanted - sure.sum() - earlier, 0, possible)
    return sure + extra


def _bits(weights: Weights) -> Iterator[npt.NDArray[np.uint32]]:
    for part in pieces(weights, _CHUNK):
        with np.errstate(over="ignore"):
            values = np.abs(part.astype(np.float32)).reshape(-1)
        yield values.view(np.uint32)


def _upper_counts(weights: Weights, place: int) -> Counts:
    counts = np.zeros(_UPPER, np.int64)
    for bits in _bits(weights):
        counts += np.bincount(bits >> 16, minlength=_UPPER)
    if counts[_NOT_FINITE:].any():
        raise ValueError(f"layer {place}: {counts[_NOT_FINITE:].sum()} weights are not finite in float32")
    return counts


def _lower_counts(weights: Weights, upper: int) -> tuple[int, tuple[Counts, Counts]]:
    """How many upper halves are over `upper`; the lower halves of those equal to it, and how often each occurs."""
    above, counts = 0, np.zeros(_LOWER, np.int64)
    for bits in _bits(weights):
        halves = bits >> 16
        above += int(np.count_nonzero(halves > upper))
        counts += np.bincount(bits[halves == upper] & 0xFFFF, minlength=_LOWER)
    values = np.flatnonzero(counts)
    return above, (values, counts[values])


def _dense(found: tuple[Counts, Counts]) -> Counts:
    counts = np.zeros(_LOWER, np.int64)
    counts[found[0]] = found[1]
    return counts


def _from_there(counts: Counts) -> Counts:
    """How many lie in each bin or over it."""
    summed: Counts = np.cumsum(counts[::-1])[::-1]
    return summed


__all__ = ["Counts", "Layer", "global_counts"]
