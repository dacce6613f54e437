"""Scaled and damped systems against numpy, with full rank and without."""

import numpy as np
import pytest

from onnxopt.numerics.definite import Factor, as_scatter, damping, equilibrated, solve_damped


def correlations(rank: int, size: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(rank, size))
    return equilibrated(rows.T @ rows, 0.0)[0]


@pytest.mark.parametrize("size", [0, 1, 7])
def test_full_rank(size: int) -> None:
    matrix = correlations(20, size)
    right = np.random.default_rng(1).normal(size=(size, 3))
    factor = Factor(matrix)
    np.testing.assert_allclose(matrix @ factor.solve(right), right, atol=1e-12)
    inverse = factor.inverse()
    np.testing.assert_allclose(inverse, np.linalg.inv(matrix), rtol=1e-9)
    np.testing.assert_array_equal(inverse, inverse.T)


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_without_full_rank_the_least_solution(noise: float) -> None:
    """Noise as of products in single precision makes eigenvalues negative: those and their like count for nothing."""
    matrix = correlations(4, 9)
    rng = np.random.default_rng(2)
    noisy = rng.normal(size=(9, 9)) * noise
    matrix = matrix + noisy + noisy.T
    right = correlations(4, 9) @ rng.normal(size=(9, 2))
    factor = Factor(matrix)
    solution = factor.solve(right)
    if not noise:
        np.testing.assert_allclose(solution, np.linalg.pinv(matrix, rcond=1e-9, hermitian=True) @ right, rtol=1e-6)
    assert np.abs(solution).max() < 10
    np.testing.assert_allclose(matrix @ solution, right, atol=1e-6)
    inverse = factor.inverse()
    assert (np.linalg.eigvalsh(inverse) > 0).all()
    assert np.abs(inverse).max() <= 1.01 / max(noise, 1e-13)


def test_pivots_that_are_rounding_count_as_none() -> None:
    """Cholesky goes through, and would make 50 of what is 1e-13 off."""
    matrix = np.array([[1.0, 1 - 1e-15], [1 - 1e-15, 1.0]])
    np.testing.assert_allclose(Factor(matrix).solve(np.array([[1.0], [1 + 1e-13]])), 0.5, rtol=1e-6)


def test_scaling_and_dead_columns() -> None:
    scatter = np.array([[4.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 9.0]])
    scaled, factors = equilibrated(scatter, 0.0)
    np.testing.assert_allclose(scaled, [[1, 0, 1 / 3], [0, 1, 0], [1 / 3, 0, 1]])
    np.testing.assert_allclose(factors, [1 / 2, 0, 1 / 3])
    solution = solve_damped(scatter, 0.5, np.ones((3, 1)))
    alive = [0, 2]
    np.testing.assert_allclose(
        solution[alive, 0], np.linalg.solve(scatter[np.ix_(alive, alive)] + np.eye(2) / 2, [1, 1])
    )
    assert solution[1] == 0


def test_damping_leaves_dead_columns_out() -> None:
    assert damping(np.diag([2.0, 0.0, 4.0]), 0.1) == pytest.approx(0.3)
    assert damping(np.zeros((2, 2)), 0.1) == 0
    with pytest.raises(ValueError, match="square"):
        as_scatter(np.ones((2, 3)))
    with pytest.raises(ValueError, match="finite"):
        as_scatter([[np.nan]])
    with pytest.raises(ValueError, match="ridge"):
        damping(np.eye(2), -0.1)
