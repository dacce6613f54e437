"""Sparse weights of layers: what `numerics.sparsity` does to one matrix, done to `Linear.matrix()`.

Matrices are `[groups, out, features * taps]`, the taps of a kernel varying fastest. Gram matrices are
`[groups, columns, columns]` of the same columns, or of features alone: then every tap of a kernel is a row of its own.
What is *wanted* is a density, the share that is kept, or `(n, m)`: n of every m neighbouring input features of one
output at one tap, which is the axis that runtimes and formats with n:m sparsity sum over.
"""

from typing import TypeAlias

import numpy as np

from onnxopt.numerics.sparsity import (
    Mask,
    Scores,
    Weights,
    by_layer,
    kept_count,
    largest,
    magnitudes,
    n_of_m,
    schedule,
    wanda_scores,
)
from onnxopt.numerics.sparsity_updates import sparsegpt
from onnxopt.numerics.units import Array

Wanted: TypeAlias = float | tuple[int, int]


def gradually(wanted: Wanted, rounds: int) -> list[Wanted]:
    """What is wanted in each of some rounds, more and more sparse along a cubic; the last is all of it.

    Of patterns n goes down, so that several rounds may want the same. See `numerics.sparsity.schedule`.
    """
    if isinstance(wanted, tuple):
        n, m = wanted
        return [(max(n, round(density * m)), m) for density in schedule(n / m, rounds)]
    return list(schedule(wanted, rounds))


def by_magnitude(matrix: Weights, taps: int, wanted: Wanted) -> Weights:
    """The largest weights of all matrices together, or of each group of features."""
    scores = magnitudes(matrix)
    mask = _by_pattern(scores, taps, wanted) if isinstance(wanted, tuple) else by_layer(scores, wanted)
    return np.where(mask, matrix, matrix.dtype.type(0))


def by_count(matrix: Weights, count: int) -> Weights:
    """The `count` largest weights of all matrices together."""
    mask = largest(magnitudes(matrix).reshape(-1), count).reshape(matrix.shape)
    return np.where(mask, matrix, matrix.dtype.type(0))


def by_wanda(matrix: Weights, taps: int, wanted: Wanted, gram: Array) -> Weights:
    """The weights that add most to each output, compared within its row, which keeps one at least; no update."""
    norms = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    if norms.shape[1] != matrix.shape[2]:
        norms = np.repeat(norms, taps, axis=1)
    scores = wanda_scores(matrix, norms[:, None])
    if isinstance(wanted, tuple):
        mask = _by_pattern(scores, taps, wanted)
    else:
        mask = largest(scores, max(1, kept_count(matrix.shape[2], wanted)))
    return np.where(mask, matrix, matrix.dtype.type(0))


def by_sparsegpt(
    matrix: Weights, taps: int, wanted: Wanted, gram: Array, damp: float = 0.01, block: int = 128
) -> Weights:
    """Columns from left to right, what stays making up for what goes; see `numerics.sparsity_updates.sparsegpt`.

    Columns are taken tap by tap. Where a pattern's m does not divide the features, each tap is filled up with features
    that are always zero.

    Raises:
        ValueError: a Gram matrix that is not positive definite in spite of the damping, or values that are not finite.
    """
    groups, out, _ = matrix.shape
    features = matrix.shape[2] // taps
    fill = -features % wanted[1] if isinstance(wanted, tuple) else 0
    filled = np.pad(matrix.reshape(groups, out, features, taps).swapaxes(2, 3), ((0, 0),) * 3 + ((0, fill),))
    apart = gram.shape[1] == matrix.shape[2]
    changed = np.empty_like(filled)
    for group in range(groups):
        weight = filled[group].reshape(out if apart else out * taps, -1)
        changed[group] = sparsegpt(weight, _tap_by_tap(gram[group], features, fill), wanted, damp, block)[0].reshape(
            out, taps, -1
        )
    return np.ascontiguousarray(changed[..., :features].swapaxes(2, 3)).reshape(matrix.shape)


def output_error(before: Weights, after: Weights, gram: Array, taps: int) -> float:
    """Norm of what a change of weights does to a layer's outputs, relative to that of the outputs.

    Where the Gram matrix knows no taps, as if what the taps add were not correlated. 0 where nothing changes.
    """
    dense = before.astype(np.float64)
    lost, energy = (_energy(each, gram, taps) for each in (dense - after, dense))
    return float(np.sqrt(lost / energy)) if lost > 0 else 0.0


def _energy(matrix: Array, gram: Array, taps: int) -> float:
    total = 0.0
    for weights, scatter in zip(matrix, gram, strict=True):
        if len(scatter) != weights.shape[1]:
            weights = weights.reshape(len(weights), -1, taps).swapaxes(1, 2).reshape(-1, len(scatter))
        total += float(np.vdot(weights @ scatter, weights))
    return total


def _by_pattern(scores: Scores, taps: int, wanted: tuple[int, int]) -> Mask:
    groups, out, columns = scores.shape
    features = columns // taps
    last = scores.reshape(groups, out, features, taps).swapaxes(2, 3)
    mask = n_of_m(last.reshape(-1, features), *wanted).reshape(last.shape)
    return np.ascontiguousarray(mask.swapaxes(2, 3)).reshape(scores.shape)


def _tap_by_tap(gram: Array, features: int, fill: int) -> Array:
    """`[columns, columns]` with the features varying fastest, and those that fill a tap up."""
    taps = len(gram) // features
    turned = gram.reshape(features, taps, features, taps).transpose(1, 0, 3, 2)
    filled = np.pad(turned, ((0, 0), (0, fill), (0, 0), (0, fill)))
    return filled.reshape(taps * (features + fill), -1)


__all__ = ["Wanted", "by_count", "by_magnitude", "by_sparsegpt", "by_wanda", "gradually", "output_error"]
