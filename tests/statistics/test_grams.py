"""What float32 rows leave of a Gram matrix, where plain float32 sums or E[xx] - E[x]E[x] leave nothing."""

import numpy as np
import pytest

from onnxopt.statistics import CrossGram, Gram, GramMatrix, Sides


def _gram(rows: np.ndarray, **options: int) -> GramMatrix:
    state = Gram(**options).begin("x")
    for start in range(0, len(rows), 3000):
        state.update(rows[start : start + 3000])
    return state.result()


@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_a_large_mean_does_not_drown_the_spread(mean: float) -> None:
    rows = (np.random.default_rng(0).normal(size=(9000, 8)) + mean).astype(np.float32)
    wide = rows.astype(np.float64)
    exact = (wide - wide.mean(0)).T @ (wide - wide.mean(0))
    assert np.abs(_gram(rows).scatter[0] - exact).max() < 1e-6 * exact.max()


@pytest.mark.parametrize("jump", [1e2, 1e5])
def test_rows_that_drift_lose_no_more_than_their_spread_allows(jump: float) -> None:
    """Blocks are taken about the mean of those before, which may lie far off."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(3000, 8)) + place * jump for place in (0, 1, -1, 3, 3, 3, 3)]
    rows = np.concatenate(parts).astype(np.float32)
    wide = rows.astype(np.float64)
    exact = (wide - wide.mean(0)).T @ (wide - wide.mean(0))
    result = _gram(rows)
    assert np.abs(result.scatter[0] - exact).max() < 2e-6 * exact.max()
    assert np.abs(result.mean[0] - wide.mean(0)).max() < 1e-6 * wide.std(0).max()


@pytest.mark.parametrize("rows", [7, 2048, 5000])
@pytest.mark.parametrize("groups", [1, 3])
def test_symmetric_to_the_bit_and_never_negative(rows: int, groups: int) -> None:
    values = np.random.default_rng(1).normal(3, 1, (rows, 30)).astype(np.float32)
    values[:, 4] = 0.1
    result = _gram(values, groups=groups)
    for matrix in (result.scatter, result.gram()):
        np.testing.assert_array_equal(matrix, matrix.swapaxes(1, 2))
    assert result.scatter.shape == (groups, 30 // groups, 30 // groups)
    assert result.scatter[0, 4, 4] == 0
    assert np.linalg.eigvalsh(result.gram()).min() > -1e-6 * rows


def test_constant_rows_have_no_scatter_and_a_gram() -> None:
    result = _gram(np.full((4000, 2), 0.1))
    assert (np.diagonal(result.scatter[0]) >= 0).all()
    np.testing.assert_allclose(result.scatter, 0, atol=1e-20)
    np.testing.assert_allclose(result.gram(), 40, rtol=1e-12)
    for count in range(2, 100):
        assert _gram(np.full((count, 1), 1 / count)).scatter[0, 0, 0] >= 0


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_float32_neither_overflows_nor_vanishes(scale: float) -> None:
    rows = np.random.default_rng(2).normal(size=(500, 3)) * scale
    exact = rows.T @ rows
    np.testing.assert_allclose(_gram(rows.astype(np.float32)).gram()[0], exact, atol=1e-5 * np.abs(exact).max())


def test_a_cross_gram_of_equal_sides_is_the_gram() -> None:
    rows = np.random.default_rng(3).normal(2, 1, (5000, 6))
    state = CrossGram().begin("x")
    state.update(Sides(rows, rows))
    np.testing.assert_allclose(state.result().gram(), _gram(rows).gram(), rtol=1e-12)


def test_a_result_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        _gram(np.ones((3, 2))).scatter[0, 0, 0] = 5
