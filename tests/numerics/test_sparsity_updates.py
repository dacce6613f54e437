"""SparseGPT: against least squares, against a loop with explicit inverses, and against masks alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.leastsquares import refit
from onnxopt.numerics.sparsity import by_layer, by_row, largest, layer_error, magnitudes, n_of_m, wanda_scores
from onnxopt.numerics.sparsity_updates import compensate, sparsegpt

SEEDS = st.integers(0, 1 << 30)


def correlated(rng: np.random.Generator, columns: int, samples: int = 0) -> np.ndarray:
    """The Gram of inputs that share factors and differ in size."""
    factors = rng.normal(size=(samples or 4 * columns, columns))
    inputs = factors @ (rng.normal(size=(columns, columns)) / columns**0.5 + np.eye(columns))
    inputs *= np.exp(0.7 * rng.normal(size=columns))
    return inputs.T @ inputs


@given(SEEDS, st.integers(2, 20), st.floats(1e-4, 1), st.sampled_from([1, 3, 8, 128]))
def test_whole_columns_removed_is_the_damped_least_squares_refit(
    seed: int, columns: int, damp: float, block: int
) -> None:
    rng = np.random.default_rng(seed)
    gram, weight = correlated(rng, columns), rng.normal(size=(4, columns))
    order = rng.permutation(columns)
    removed = int(rng.integers(1, columns))
    gone, kept = order[:removed], order[removed:]
    mask = np.tile(np.arange(columns) >= removed, (4, 1))
    found = compensate(weight[:, order], gram[np.ix_(order, order)], mask, damp, block)
    ridge = damp * gram.diagonal().mean() * np.eye(len(kept))
    right = np.linalg.solve(gram[np.ix_(kept, kept)] + ridge, gram[np.ix_(kept, gone)])
    expected = weight[:, kept] + weight[:, gone] @ right.T
    assert not found[:, :removed].any()
    np.testing.assert_allclose(found[:, removed:], expected, rtol=1e-7, atol=1e-9)
    tiny = compensate(weight[:, order], gram[np.ix_(order, order)], mask, 1e-7, block)[:, removed:]
    np.testing.assert_allclose(tiny, refit(weight, gram, kept, 1e-7), rtol=1e-3, atol=1e-4)


def naive(weight: np.ndarray, gram: np.ndarray, pattern: float | tuple[int, int], block: int) -> np.ndarray:
    """One column after the other; what is left of each inverse is computed anew for each."""
    columns = weight.shape[1]
    damped = gram + 0.01 * gram.diagonal().mean() * np.eye(columns)
    span = pattern[1] if isinstance(pattern, tuple) else block
    new, mask = weight.copy(), np.ones(weight.shape, bool)
    for j in range(columns):
        if j % span == 0:
            stop = min(j + span, columns)
            diagonal = [np.linalg.inv(damped[place:, place:])[0, 0] for place in range(j, stop)]
            scores = new[:, j:stop] ** 2 / np.array(diagonal)
            if isinstance(pattern, tuple):
                mask[:, j:stop] = n_of_m(scores, *pattern)
            else:
                count = round(pattern * len(weight) * stop) - round(pattern * len(weight) * j)
                mask[:, j:stop] = largest(scores.reshape(-1), count).reshape(scores.shape)
        inverse = np.linalg.inv(damped[j:, j:])
        gone = np.where(mask[:, j], 0, new[:, j])
        new[:, j:] -= np.outer(gone, inverse[0] / inverse[0, 0])
    return np.where(mask, new, 0)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 14), st.sampled_from([0.0, 0.3, 0.5, 1.0, (2, 4), (1, 3), (4, 4)]), st.integers(1, 9))
def test_the_sweep_is_that_of_explicit_inverses(
    seed: int, columns: int, pattern: float | tuple[int, int], block: int
) -> None:
    rng = np.random.default_rng(seed)
    gram, weight = correlated(rng, columns), rng.normal(size=(5, columns))
    found, mask = sparsegpt(weight, gram, pattern, block=block)
    np.testing.assert_allclose(found, naive(weight, gram, pattern, block), rtol=1e-6, atol=1e-8)
    assert not found[~mask].any()
    if isinstance(pattern, tuple):
        assert (mask.sum(1) == n_of_m(np.abs(weight), *pattern).sum(1)).all()
    else:
        assert mask.sum() == round(pattern * weight.size)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pattern", [0.5, (2, 4)])
def test_layer_errors_come_in_the_order_of_what_is_known(seed: int, pattern: float | tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    gram, weight = correlated(rng, 96), rng.normal(size=(64, 96)).astype(np.float32)
    norms = np.sqrt(gram.diagonal())
    if isinstance(pattern, tuple):
        wanda, plain = n_of_m(wanda_scores(weight, norms), *pattern), n_of_m(magnitudes(weight), *pattern)
    else:
        wanda, plain = by_row(wanda_scores(weight, norms), pattern), by_layer(magnitudes(weight), pattern)
    changed, mask = sparsegpt(weight, gram, pattern)
    errors = [
        layer_error(weight, each, gram)
        for each in (changed, compensate(weight, gram, wanda), weight * wanda, weight * plain)
    ]
    assert mask.mean() == 0.5
    assert errors == sorted(errors)
    assert errors[0] < 0.9 * errors[2] < 0.6 * errors[3]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_and_layout_are_kept(dtype: type) -> None:
    rng = np.random.default_rng(0)
    gram, weight = correlated(rng, 20), rng.normal(size=(6, 20)).astype(dtype)
    before = weight.copy(), gram.copy()
    changed, mask = sparsegpt(weight, gram, 0.5)
    again = compensate(weight, gram, np.asfortranarray(mask))
    for each in (changed, again):
        assert each.dtype == dtype
        assert each.flags.c_contiguous
    np.testing.assert_array_equal(changed, again)
    exact, _ = sparsegpt(weight.astype(np.float64), gram, 0.5)
    np.testing.assert_allclose(changed, exact, rtol=1e-2, atol=1e-2)
    np.testing.assert_array_equal(weight, before[0])
    np.testing.assert_array_equal(gram, before[1])


def test_the_scale_of_the_gram_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    gram, weight = correlated(rng, 20), rng.normal(size=(6, 20))
    gram[[3, 11]] = gram[:, [3, 11]] = 0
    one, tiny = (sparsegpt(weight, factor * gram, 0.5)[0] for factor in (1, 1e-12))
    np.testing.assert_allclose(one, tiny, rtol=1e-9)


@pytest.mark.parametrize("pattern", [0.5, 1.0, (2, 4)])
def test_columns_that_never_get_an_input_go(pattern: float | tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    gram, weight = correlated(rng, 12), rng.normal(size=(6, 12))
    dead = [0, 5, 11]
    gram[dead] = gram[:, dead] = 0
    changed, mask = sparsegpt(weight, gram, pattern)
    assert not mask[:, dead].any()
    assert not changed[:, dead].any()
    if pattern == 1.0:
        live = np.delete(np.arange(12), dead)
        np.testing.assert_array_equal(changed[:, live], weight[:, live])
    silent, none = sparsegpt(weight, np.zeros((12, 12)), pattern)
    assert not silent.any()
    assert not none.any()


def test_fewer_samples_than_columns_and_no_columns() -> None:
    rng = np.random.default_rng(0)
    gram, weight = correlated(rng, 30, samples=5), rng.normal(size=(6, 30))
    changed, _ = sparsegpt(weight, gram, (2, 4))
    assert layer_error(weight, changed, gram) < layer_error(weight, weight * n_of_m(np.abs(weight), 2, 4), gram)
    assert sparsegpt(np.zeros((3, 0)), np.zeros((0, 0)), 0.5)[0].shape == (3, 0)


@pytest.mark.parametrize(
    ("weight", "gram", "pattern", "damp", "says"),
    [
        (np.ones((2, 3)), np.eye(4), 0.5, 0.01, "Gram of its columns"),
        (np.ones(3), np.eye(3), 0.5, 0.01, "Gram of its columns"),
        (np.full((2, 3), np.nan), np.eye(3), 0.5, 0.01, "weight has entries that are not finite"),
        (np.ones((2, 3)), np.full((3, 3), np.inf), 0.5, 0.01, "not finite"),
        (np.ones((2, 3)), np.ones((3, 3)) - 2 * np.tri(3, k=-1) - 2 * np.tri(3, k=-1).T, 0.5, 0.01, "definite"),
        (np.ones((2, 3)), np.eye(3), 1.5, 0.01, "density"),
        (np.ones((2, 3)), np.eye(3), (3, 2), 0.01, "n of m"),
        (np.ones((2, 3)), np.eye(3), 0.5, -1.0, "at least 0"),
    ],
)
def test_what_cannot_be_swept(
    weight: np.ndarray, gram: np.ndarray, pattern: float | tuple[int, int], damp: float, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        sparsegpt(weight, gram, pattern, damp)


def test_a_mask_of_another_shape() -> None:
    with pytest.raises(ValueError, match="mask has shape"):
        compensate(np.ones((2, 3)), np.eye(3), np.ones((3, 2), bool))
