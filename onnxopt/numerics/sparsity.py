"""Sparse weights: which to keep, and what they take to store.

Weights are matrices `[rows, columns]`: outputs by inputs, the columns being the axis that a product sums over. Masks
are bool of that shape, True where a weight is kept. *Density* is the share that is kept.

A mask is a choice from scores: magnitude (`magnitudes`), or Wanda's (Sun et al. 2024, "A Simple and Effective Pruning
Approach for Large Language Models"), over a layer (`by_layer`), in each row (`by_row`), in groups (`n_of_m`), or over
many layers (`sparsity_global`). `sparsity_updates` also makes the other weights make up for what goes.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Weights: TypeAlias = npt.NDArray[Any]
Scores: TypeAlias = npt.NDArray[np.floating[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]

_CHUNK = 1 << 22
"""Bytes that are compressed at a time."""


def kept_count(size: int, density: float) -> int:
    """How many of `size` weights a density keeps; ValueError unless it is from 0 to 1."""
    if not 0 <= density <= 1:
        raise ValueError(f"a density is the share that is kept, from 0 to 1, not {density}")
    return round(density * size)


def largest(scores: Scores, count: int) -> Mask:
    """Mark the `count` largest scores along the last axis; of equal ones the first.

    Args:
        scores: `[..., n]`, no NaN.
        count: from 0 to n.

    Returns:
        `[..., n]`; O(size).

    Raises:
        ValueError: NaN scores.
    """
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: the weights or the statistics that they come from are not finite")
    if count in (0, scores.shape[-1]):
        return np.full(scores.shape, count > 0)
    threshold = np.partition(scores, -count, axis=-1)[..., -count, None]
    above = scores > threshold
    ties = scores == threshold
    spare = count - above.sum(-1, keepdims=True)
    chosen: Mask = above | (ties & (np.cumsum(ties, -1) <= spare))
    return chosen


def magnitudes(weight: Weights) -> Scores:
    """Absolute values, float64 of float64 and else float32."""
    sizes: Scores = np.abs(weight.astype(np.float64 if weight.dtype == np.float64 else np.float32))
    return sizes


def wanda_scores(weight: Weights, norms: npt.ArrayLike) -> Scores:
    """`|W_ij| * ||x_j||`: how much each weight adds to its output; comparable inside a row.

    Args:
        weight: `[rows, columns]`.
        norms: `[columns]`, root of the (mean) square of each input, which is the root of a Gram's diagonal.
    """
    sizes = magnitudes(weight)
    scores: Scores = sizes * np.asarray(norms).astype(sizes.dtype)
    return scores


def by_layer(scores: Scores, density: float) -> Mask:
    """Keep the largest of all scores: `kept_count(size, density)` of them."""
    return largest(scores.reshape(-1), kept_count(scores.size, density)).reshape(scores.shape)


def by_row(scores: Scores, density: float) -> Mask:
    """Keep the largest of each row: `kept_count(columns, density)` of them."""
    return largest(scores, kept_count(scores.shape[-1], density))


def n_of_m(scores: Scores, n: int, m: int) -> Mask:
    """Keep `n` of every `m` neighbouring columns: 2:4 keeps two of four, so each group has at most n non-zeros.

    Where `m` does not divide the columns, the last group is filled up with columns that are never kept; of its own
    it keeps `n`, or as many as it has.

    Args:
        scores: `[rows, columns]`.
        n: from 1 to `m`.
        m: columns of a group.

    Raises:
        ValueError: `n` is not from 1 to `m`, or NaN scores.
    """
    if not 1 <= n <= m:
        raise ValueError(f"a pattern n:m keeps n of m columns, 1 <= n <= m, not {n}:{m}")
    rows, columns = scores.shape
    filled = np.pad(scores, ((0, 0), (0, -columns % m)), constant_values=-np.inf)
    kept = largest(filled.reshape(rows, filled.shape[1] // m, m), n).reshape(filled.shape)[:, :columns]
    return np.ascontiguousarray(kept)


def schedule(final: float, rounds: int) -> list[float]:
    """Densities of gradual sparsification in `rounds` rounds: `d + (1 - d) (1 - t / rounds)^3` for t = 1 .. rounds.

    It removes most while there is much to choose from; the last is `final`. Zhu and Gupta 2017, "To prune, or not to
    prune: exploring the efficacy of pruning for model compression".

    Raises:
        ValueError: `final` is no density, or fewer than one round.
    """
    kept_count(0, final)
    if rounds < 1:
        raise ValueError(f"sparsification takes at least one round, not {rounds}")
    return [final + (1 - final) * (1 - place / rounds) ** 3 for place in range(1, rounds + 1)]


def pieces(weight: Weights, elements: int) -> Iterator[Weights]:
    """A weight of any shape in parts along its first axis, of about so many elements or one index; none if empty."""
    if weight.size:
        array = np.atleast_1d(weight)
        step = max(1, elements * len(array) // array.size)
        yield from (array[start : start + step] for start in range(0, len(array), step))


@dataclass(frozen=True)
class Sizes:
    """What weights take to store, in bytes.

    Attributes:
        dense: every value.
        bitmask: a bit for each value that says whether it is zero, and the others.
        zipped: the dense bytes deflated (zlib, level 6).
        nonzero: how many values are not zero.
    """

    dense: int
    bitmask: int
    zipped: int
    nonzero: int


def stored_sizes(weight: Weights) -> Sizes:
    """The sizes of a weight of any shape; it is read in pieces, in the order of its elements."""
    deflate = zlib.compressobj(6)
    nonzero = zipped = 0
    for part in pieces(weight, _CHUNK // weight.itemsize):
        nonzero += int(np.count_nonzero(part))
        zipped += len(deflate.compress(part.tobytes()))
    zipped += len(deflate.flush())
    return Sizes(weight.nbytes, -(-weight.size // 8) + nonzero * weight.itemsize, zipped, nonzero)


def layer_error(weight: Weights, changed: Weights, gram: npt.NDArray[np.floating[Any]]) -> float:
    """How much of a layer's output energy a change of its weights costs: `tr(D G D^T) / tr(W G W^T)`, `D = W - W'`.

    Args:
        weight: `[rows, columns]`.
        changed: of the same shape.
        gram: `[columns, columns]`, `X^T X` of the inputs, times anything.

    Returns:
        0 where both energies are 0. `4 * rows * columns^2` flops in double precision.
    """
    dense = weight.astype(np.float64)
    difference = dense - changed.astype(np.float64)
    lost, energy = (float(np.vdot(each @ gram, each)) for each in (difference, dense))
    return lost / energy if lost else 0.0


__all__ = [
    "Mask",
    "Scores",
    "Sizes",
    "Weights",
    "by_layer",
    "by_row",
    "kept_count",
    "largest",
    "layer_error",
    "magnitudes",
    "n_of_m",
    "pieces",
    "schedule",
    "stored_sizes",
    "wanda_scores",
]
