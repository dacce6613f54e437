"""Sparse weights whose kept entries make up for the removed ones, column by column.

Removing weight j of a row and moving the others so that the output changes least has a closed form in the inverse of
the Gram matrix (optimal brain surgeon). Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can be
Accurately Pruned in One-Shot": go through the columns from left to right and let only columns further right make up
for what goes; then all rows share one sequence of inverses, the rows of a Cholesky factor.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky
from scipy.linalg.lapack import dtrtri

from .definite import as_scatter, damping, equilibrated
from .sparsity import Mask, Scores, Weights, kept_count, largest, n_of_m
from .units import Array

Matrix: TypeAlias = npt.NDArray[np.floating[Any]]

_Choose: TypeAlias = Callable[[Scores, int], Mask]
"""`choose(scores [rows, c], first)`: which of the columns `first .. first + c` to keep, by what they would cost."""


def sparsegpt(
    weight: Weights,
    gram: npt.ArrayLike,
    pattern: float | tuple[int, int],
    damp: float = 0.01,
    block: int = 128,
) -> tuple[Weights, Mask]:
    """Choose a mask and update the kept weights in one sweep over the columns.

    What a weight would cost is `w^2 / U_jj^2`, with `U` the upper Cholesky factor of the inverse Gram: its squared
    diagonal is the inverse's once the columns before are fixed. A density is met in each block of columns over all
    rows, n:m in each group of m columns when the sweep gets there, with the weights as they are by then.

    Columns whose input is always zero do not matter to the output: they are removed, whatever the pattern.

    Args:
        weight: `[rows, columns]`, any float type; the sweep runs in float64 for float64 and else in float32.
        gram: `[columns, columns]`, `X^T X` of the inputs, times anything.
        pattern: the density, or `(n, m)`: n of every m columns are kept.
        damp: how much of the mean of the Gram's diagonal is added to it.
        block: columns that are updated together; for n:m rounded up to a multiple of m.

    Returns:
        the new weights, zero outside of the mask, in the type of `weight`; and the mask. With C columns and O rows:
        about `C^3 + 2 O C^2` flops, `24 C^2 + 8 O C` bytes at most beside the arguments.

    Raises:
        ValueError: no density or pattern; shapes that do not fit; weights or a Gram that are not finite; a Gram that
            is not positive definite in spite of the damping.
    """
    if isinstance(pattern, tuple):
        choose, span = _groups(*pattern), pattern[1]
        block = -(-block // span) * span
    else:
        choose, span = _density(weight.shape[0], pattern), block
    scatter = _checked(weight, gram)
    live = scatter.diagonal() > 0
    changed, mask = _sweep(np.where(live, _working(weight), 0), _factor(scatter, damp), choose, block, span)
    mask &= live
    return np.where(mask, changed, 0).astype(weight.dtype), mask


def compensate(weight: Weights, gram: npt.ArrayLike, mask: Mask, damp: float = 0.01, block: int = 128) -> Weights:
    """Remove what a given mask removes; the kept columns to the right of each removed weight make up for it.

    Removing whole columns that come first gives the least squares refit of the others, with `damp * mean diagonal` as
    ridge towards their weights.

    Args:
        weight: see `sparsegpt`.
        gram: see `sparsegpt`.
        mask: `[rows, columns]`.
        damp: see `sparsegpt`.
        block: columns that are updated together.

    Returns:
        the new weights, zero outside of `mask`, in the type of `weight`. Costs and errors: see `sparsegpt`.
    """
    if mask.shape != weight.shape:
        raise ValueError(f"the mask has shape {mask.shape}, the weight {weight.shape}")

    def given(scores: Scores, first: int) -> Mask:
        return mask[:, first : first + scores.shape[1]]

    changed, _ = _sweep(_working(weight), _factor(_checked(weight, gram), damp), given, block, block)
    return np.where(mask, changed, 0).astype(weight.dtype, order="C")


def _sweep(weight: Matrix, upper: Array, choose: _Choose, block: int, span: int) -> tuple[Matrix, Mask]:
    """The columns from left to right; `span` of them are chosen at a time, `block` updated (`span` divides it)."""
    work = np.ascontiguousarray(weight.T)
    mask = np.ones(weight.shape, bool)
    for first in range(0, len(work), block):
        part = work[first : first + block]
        last = first + len(part)
        along = upper[first:last, first:].astype(work.dtype)
        errors = np.empty_like(part)
        for place in range(len(part)):
            if place % span == 0:
                chosen = slice(place, min(place + span, len(part)))
                scores = (part[chosen].T / along.diagonal()[chosen]) ** 2
                mask[:, first + chosen.start : first + chosen.stop] = choose(scores, first + place)
            removed = np.where(mask[:, first + place], 0, part[place])
            errors[place] = removed / along[place, place]
            part[place] -= removed
            part[place + 1 :] -= np.outer(along[place, place + 1 : len(part)], errors[place])
        work[last:] -= along[:, len(part) :].T @ errors
    return work.T, mask


def _working(weight: Weights) -> Matrix:
    return weight.astype(np.float64 if weight.dtype == np.float64 else np.float32)


def _checked(weight: Weights, gram: npt.ArrayLike) -> Array:
    scatter = as_scatter(gram)
    if weight.ndim != 2 or weight.shape[1] != len(scatter):
        raise ValueError(f"a weight [rows, columns] needs a Gram of its columns, not {weight.shape}, {scatter.shape}")
    if not np.isfinite(weight).all():
        raise ValueError("the weight has entries that are not finite")
    return scatter


def _factor(gram: Array, damp: float) -> Array:
    """The upper triangle U with `U^T U` the inverse of the damped Gram; the inverse itself is never formed.

    The Cholesky factor of the Gram with its columns in reverse gives an upper R with `R R^T` the Gram; `U = R^-1`. Dead
    columns become those of the identity.
    """
    if not len(gram):
        return np.zeros((0, 0))
    scaled, factors = equilibrated(gram, damping(gram, damp))
    try:
        lower = cholesky(scaled[::-1, ::-1], lower=True, check_finite=False)
    except LinAlgError as error:
        raise ValueError(f"the Gram matrix is not positive definite with damp {damp:g}; use a larger one") from error
    del scaled
    upper: Array = dtrtri(lower[::-1, ::-1])[0]
    upper *= np.where(factors > 0, factors, 1.0)
    return upper


def _density(rows: int, density: float) -> _Choose:
    """Keep a share of each block; whatever the blocks, the whole has `kept_count` of all."""
    kept_count(0, density)

    def choose(scores: Scores, first: int) -> Mask:
        count = kept_count(rows * (first + scores.shape[1]), density) - kept_count(rows * first, density)
        return largest(scores.reshape(-1), count).reshape(scores.shape)

    return choose


def _groups(n: int, m: int) -> _Choose:
    n_of_m(np.zeros((0, 0)), n, m)
    return lambda scores, first: n_of_m(scores, n, m)


__all__ = ["compensate", "sparsegpt"]
