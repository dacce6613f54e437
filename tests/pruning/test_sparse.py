"""Sparse matrices of layers: which weights stay, what the others become, and what that does to outputs."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.numerics.sparsity_updates import sparsegpt
from onnxopt.pruning.sparse import by_count, by_magnitude, by_sparsegpt, by_wanda, gradually, output_error

Array = npt.NDArray[Any]
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4))
"""Groups, outputs, features, taps."""


def drawn(seed: int, sizes: tuple[int, int, int, int], *, apart: bool = True) -> tuple[Array, Array, Array]:
    """A matrix, the rows that each group sees, and their Gram matrices."""
    groups, out, features, taps = sizes
    rng = np.random.default_rng(seed)
    columns = features * taps if apart else features
    rows = rng.normal(size=(groups, 3 * columns + 5, columns)) @ rng.normal(size=(columns, columns))
    return rng.normal(size=(groups, out, features * taps)), rows, rows.swapaxes(1, 2) @ rows


def channels_last(matrix: Array, taps: int) -> Array:
    groups, out, columns = matrix.shape
    return np.moveaxis(matrix.reshape(groups, out, columns // taps, taps), 2, 3)


@given(SEEDS, SIZES, st.sampled_from([(1, 2), (2, 4), (3, 5)]), st.booleans())
def test_patterns_hold_along_the_features_of_each_tap(
    seed: int, sizes: tuple[int, int, int, int], pattern: tuple[int, int], apart: bool
) -> None:
    matrix, _, gram = drawn(seed, sizes, apart=apart)
    n, m = pattern
    for found in (
        by_magnitude(matrix, sizes[3], pattern), by_wanda(matrix, sizes[3], pattern, gram),
        by_sparsegpt(matrix, sizes[3], pattern, gram),
    ):  # fmt: skip
        assert found.shape == matrix.shape
        kept = channels_last(found, sizes[3]) != 0
        for first in range(0, sizes[2], m):
            part = kept[..., first : first + m]
            assert (part.sum(-1) == min(n, part.shape[-1])).all()


@given(SEEDS, SIZES, st.sampled_from([0.2, 0.5, 0.75]), st.booleans())
def test_wanda_ranks_inside_rows(seed: int, sizes: tuple[int, int, int, int], density: float, apart: bool) -> None:
    matrix, rows, gram = drawn(seed, sizes, apart=apart)
    norms = np.linalg.norm(rows, axis=1)
    norms = norms if apart else np.repeat(norms, sizes[3], axis=1)
    count = max(1, round(density * matrix.shape[2]))
    found = by_wanda(matrix, sizes[3], density, gram)
    for group, row in np.ndindex(*matrix.shape[:2]):
        best = np.argsort(-np.abs(matrix[group, row]) * norms[group])[:count]
        expected = np.zeros_like(matrix[group, row])
        expected[best] = matrix[group, row, best]
        np.testing.assert_array_equal(found[group, row], expected)


@given(SEEDS, SIZES, st.sampled_from([0.3, 0.5]))
def test_magnitude_ranks_all_groups_together(seed: int, sizes: tuple[int, int, int, int], density: float) -> None:
    matrix, _, _ = drawn(seed, sizes)
    count = round(density * matrix.size)
    threshold = np.sort(np.abs(matrix), axis=None)[::-1][count - 1] if count else np.inf
    expected = np.where(np.abs(matrix) >= threshold, matrix, 0)
    np.testing.assert_array_equal(by_magnitude(matrix, sizes[3], density), expected)
    np.testing.assert_array_equal(by_count(matrix, count), expected)


@pytest.mark.parametrize("wanted", [0.5, (2, 4)])
def test_taps_are_columns_or_rows(wanted: Any) -> None:
    """With columns tap by tap, as numpy turns them, each group is what `sparsegpt` makes of it."""
    matrix, _, gram = drawn(0, (2, 6, 8, 3))
    order = np.arange(24).reshape(8, 3).T.reshape(-1)
    found = by_sparsegpt(matrix, 3, wanted, gram, damp=0.1, block=16)
    for group in range(2):
        turned = gram[group][np.ix_(order, order)]
        expected = sparsegpt(matrix[group][:, order], turned, wanted, 0.1, 16)[0]
        np.testing.assert_allclose(found[group][:, order], expected, atol=1e-12)
    matrix, _, gram = drawn(1, (1, 6, 8, 3), apart=False)
    rows = matrix[0].reshape(6, 8, 3).swapaxes(1, 2).reshape(18, 8)
    expected = sparsegpt(rows, gram[0], wanted)[0].reshape(6, 3, 8).swapaxes(1, 2).reshape(6, 24)
    np.testing.assert_allclose(by_sparsegpt(matrix, 3, wanted, gram)[0], expected, atol=1e-12)


@given(SEEDS, SIZES)
def test_the_error_is_that_of_the_outputs(seed: int, sizes: tuple[int, int, int, int]) -> None:
    matrix, rows, gram = drawn(seed, sizes)
    after = by_magnitude(matrix, sizes[3], 0.5)
    lost, dense = (np.linalg.norm(rows @ each.swapaxes(1, 2)) for each in (matrix - after, matrix))
    assert output_error(matrix, after, gram, sizes[3]) == pytest.approx(lost / dense, rel=1e-6)
    assert output_error(matrix, matrix, gram, sizes[3]) == 0


def test_the_error_where_taps_share_a_gram() -> None:
    matrix, rows, gram = drawn(3, (1, 4, 5, 3), apart=False)
    after = by_magnitude(matrix, 3, 0.5)
    lost, dense = (
        np.linalg.norm(np.einsum("rf,oft->rot", rows[0], each.reshape(4, 5, 3)))
        for each in (matrix[0] - after[0], matrix[0])
    )
    assert output_error(matrix, after, gram, 3) == pytest.approx(lost / dense, rel=1e-6)


def test_rounds_get_there_along_the_cubic() -> None:
    assert gradually(0.5, 1) == [0.5]
    assert gradually(0.2, 3) == pytest.approx([0.2 + 0.8 * (2 / 3) ** 3, 0.2 + 0.8 / 27, 0.2])
    assert gradually((2, 4), 1) == [(2, 4)]
    assert gradually((1, 8), 4) == [(4, 8), (2, 8), (1, 8), (1, 8)]
