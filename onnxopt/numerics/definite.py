"""Systems with scatter matrices: scaled to a diagonal of ones, damped, and solved also where they have no full rank."""

from contextlib import suppress

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_solve, cholesky, eigh
from scipy.linalg.lapack import dpotri

from .units import Array


def as_scatter(array: npt.ArrayLike) -> Array:
    """The array in float64; ValueError where it is not square or not finite."""
    scatter = np.asarray(array, np.float64)
    if scatter.ndim != 2 or scatter.shape[0] != scatter.shape[1]:
        raise ValueError(f"a scatter matrix is square, this one has shape {scatter.shape}")
    if not np.isfinite(scatter).all():
        raise ValueError("a scatter matrix has entries that are not finite")
    return scatter


def damping(scatter: Array, ridge: float) -> float:
    """`ridge` times the mean of the diagonal, without the dead columns: these do not change what the others get.

    Raises:
        ValueError: `ridge` is negative or not a number.
    """
    if not ridge >= 0:
        raise ValueError(f"ridge is {ridge}, it has to be at least 0")
    alive = scatter.diagonal()[scatter.diagonal() > 0]
    return ridge * float(alive.mean()) if alive.size else 0.0


def equilibrated(scatter: Array, damp: float) -> tuple[Array, Array]:
    """`D (S + damp I) D` with a diagonal of ones, and the diagonal of D; dead columns become those of the identity.

    Nothing has a smaller condition number by more than a factor of the number of columns (van der Sluis 1969), so
    channels of very different sizes are solved for as exactly as equal ones.

    Args:
        scatter: `[n, n]`.
        damp: what to add to its diagonal.

    Returns:
        `[n, n]`, and `[n]`, 0 for dead columns: those whose diagonal is not positive.
    """
    diagonal = scatter.diagonal()
    alive = diagonal > 0
    factors = np.zeros(len(diagonal))
    factors[alive] = 1 / np.sqrt(diagonal[alive] + damp)
    scaled = scatter * factors[:, None]
    scaled *= factors
    np.fill_diagonal(scaled, 1.0)
    return scaled, factors


_NOISE = 1e-12
"""Rounding: shares of a column that others leave unexplained, and of the largest eigenvalue, not above this."""


class Factor:
    """A symmetric matrix with a diagonal of ones, factored once: by Cholesky, or by eigenvalues where that fails.

    Cholesky fails, or leaves pivots that are nothing but rounding, where columns depend on each other. Then the
    spectrum is clipped: eigenvalues not above a small share of the largest, or not above the size of the most
    negative one, are noise.

    Cost: n^3 / 3; the other way about 10 n^3.
    """

    def __init__(self, matrix: Array) -> None:
        """Factor `[n, n]`."""
        self._triangle: Array | None = None
        if not len(matrix):
            self._triangle = np.zeros((0, 0))
            return
        noise = max(_NOISE, len(matrix) * np.finfo(np.float64).eps)
        with suppress(LinAlgError):
            triangle: Array = cholesky(matrix, lower=True, check_finite=False)
            if triangle.diagonal().min() ** 2 > noise:
                self._triangle = triangle
                return
        self._values, self._vectors = eigh(matrix, check_finite=False)
        self._floor = max(noise * float(self._values[-1]), -float(self._values[0]))

    def solve(self, right: Array) -> Array:
        """`matrix^-1 right` `[n, m]`; the solution of least norm where there are several."""
        if not right.size:
            return np.zeros(right.shape)
        if self._triangle is not None:
            solution: Array = cho_solve((self._triangle, True), right, check_finite=False)
            return solution
        real = self._values > self._floor
        vectors = self._vectors[:, real]
        solution = vectors @ ((vectors.T @ right) / self._values[real, None])
        return solution

    def inverse(self) -> Array:
        """`[n, n]`, symmetric and positive definite: what was noise counts as the least that is none."""
        if self._triangle is None:
            half = self._vectors / np.sqrt(np.maximum(self._values, self._floor))
            inverse: Array = half @ half.T
            return inverse
        if not len(self._triangle):
            return np.zeros((0, 0))
        half, _ = dpotri(self._triangle, lower=True)  # what is above the diagonal stays 0
        inverse = half + half.T
        np.fill_diagonal(inverse, half.diagonal())
        return inverse


def solve_damped(scatter: Array, damp: float, right: Array) -> Array:
    """`(S + damp I)^-1 right` `[n, m]`; 0 in the rows of dead columns."""
    scaled, factors = equilibrated(scatter, damp)
    solution = Factor(scaled).solve(right * factors[:, None])
    solution *= factors[:, None]
    return solution


__all__ = ["Factor", "as_scatter", "damping", "equilibrated", "solve_damped"]
