"""Refits from second moments against numpy's least squares on the rows themselves."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.leastsquares import (
    HeldOut,
    bias_change,
    error_after,
    predictor,
    predictor_cross,
    refit,
    refit_cross,
)
from onnxopt.numerics.units import columns_of, consecutive

Seeds = st.integers(0, 10_000)


def rows_of(rng: np.random.Generator, count: int, columns: int) -> np.ndarray:
    """Correlated activations of a Relu, with means that are not 0."""
    mixed = rng.normal(size=(count, columns)) @ rng.normal(size=(columns, columns)) / np.sqrt(columns)
    return np.maximum(mixed + 0.3 * rng.normal(size=(count, columns)) + 0.4, 0)


def moments(rows: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    others = rows if others is None else others
    return (rows - rows.mean(0)).T @ (others - others.mean(0))


def by_rows(inputs: np.ndarray, targets: np.ndarray, prior: np.ndarray, lam: float) -> np.ndarray:
    """`argmin |targets - inputs W'^T - b'|^2 + lam |W' - prior|^2` by lstsq on stacked rows; returns [W', b']."""
    ones = np.ones((len(inputs), 1))
    shrink = np.hstack([np.sqrt(lam) * np.eye(inputs.shape[1]), np.zeros((inputs.shape[1], 1))])
    left = np.vstack([np.hstack([inputs, ones]), shrink])
    right = np.vstack([targets, np.sqrt(lam) * prior.T])
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def some_columns(rng: np.random.Generator, columns: int) -> np.ndarray:
    """At least one, in any order."""
    return rng.permutation(columns)[: rng.integers(1, columns + 1)]


@settings(deadline=None, max_examples=40)
@given(Seeds, st.integers(1, 9), st.sampled_from([0.0, 1e-3, 0.1, 10.0]))
def test_refit_is_least_squares_with_intercept(seed: int, columns: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    rows, weight, bias = rows_of(rng, 80, columns), rng.normal(size=(4, columns)), rng.normal(size=4)
    kept = some_columns(rng, columns)
    scatter = moments(rows)
    found = predictor(scatter, kept, ridge)
    new = found.apply(weight)
    lam = ridge * scatter.diagonal()[kept].mean()
    oracle = by_rows(rows[:, kept], rows @ weight.T + bias, weight[:, kept], lam)
    np.testing.assert_allclose(new, oracle[:, :-1], atol=1e-9)
    np.testing.assert_allclose(bias + found.bias(weight, rows.mean(0)), oracle[:, -1], atol=1e-9)
    np.testing.assert_array_equal(refit(weight, scatter, kept, ridge), new)
    change = bias_change(weight, new, rows.mean(0), rows.mean(0)[kept])
    np.testing.assert_allclose(change, found.bias(weight, rows.mean(0)), atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(Seeds, st.integers(1, 9), st.sampled_from([0.0, 1e-3, 0.1, 10.0]))
def test_cross_refit_aims_at_the_dense_outputs(seed: int, columns: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    dense, weight = rows_of(rng, 80, columns), rng.normal(size=(4, columns))
    kept = some_columns(rng, columns)
    current = dense[:, kept] * rng.uniform(0.7, 1.2, len(kept)) + 0.2 * rng.normal(size=(80, len(kept))) - 0.3
    cross, inner = moments(dense, current), moments(current)
    found = predictor_cross(cross, inner, kept, ridge)
    lam = ridge * inner.diagonal().mean()
    oracle = by_rows(current, dense @ weight.T, weight[:, kept], lam)
    np.testing.assert_allclose(found.apply(weight), oracle[:, :-1], atol=1e-9)
    means = dense.mean(0), current.mean(0)
    np.testing.assert_allclose(found.bias(weight, *means), oracle[:, -1], atol=1e-9)
    np.testing.assert_array_equal(refit_cross(weight, cross, inner, kept, ridge), found.apply(weight))
    closed = (weight @ cross + lam * weight[:, kept]) @ np.linalg.inv(inner + lam * np.eye(len(kept)))
    np.testing.assert_allclose(found.apply(weight), closed, atol=1e-8)


def test_cross_refit_on_unchanged_inputs_is_the_refit() -> None:
    rng = np.random.default_rng(0)
    rows, weight = rows_of(rng, 100, 12), rng.normal(size=(5, 12))
    kept, scatter = np.arange(0, 12, 2), moments(rows)
    one = refit(weight, scatter, kept)
    np.testing.assert_allclose(refit_cross(weight, scatter[:, kept], scatter[np.ix_(kept, kept)], kept), one, rtol=1e-9)


def test_units_of_several_columns_and_taps_read_together() -> None:
    """Columns that are patches of a convolution: its weights laid flat, units of taps columns."""
    rng = np.random.default_rng(1)
    rows, weight = rows_of(rng, 200, 12), rng.normal(size=(5, 4, 3))
    units = consecutive(4, 3)
    kept = columns_of(units, [3, 0])
    assert kept.tolist() == [9, 10, 11, 0, 1, 2]
    new = refit(weight.reshape(5, 12), moments(rows), kept, 0.0)
    oracle = by_rows(rows[:, kept], rows @ weight.reshape(5, 12).T, weight.reshape(5, 12)[:, kept], 0.0)
    np.testing.assert_allclose(new, oracle[:, :-1], atol=1e-9)
    assert new.reshape(5, 2, 3).shape == (5, 2, 3)


def test_one_predictor_over_channels_is_applied_to_every_tap() -> None:
    rng = np.random.default_rng(2)
    rows, weight = rows_of(rng, 200, 7), rng.normal(size=(5, 7, 3, 2))
    kept = np.array([6, 1, 2, 4])
    found = predictor(moments(rows), kept)
    new = found.apply(weight.astype(np.float32))
    assert new.shape == (5, 4, 3, 2)
    assert new.dtype == np.float64
    for tap in np.ndindex(3, 2):
        alone = found.apply(weight[..., *tap].astype(np.float32))
        np.testing.assert_allclose(new[..., *tap], alone, rtol=1e-12, atol=1e-12)
    mean = rows.mean(0)
    each = sum(found.bias(weight[..., *tap], mean) for tap in np.ndindex(3, 2))
    np.testing.assert_allclose(found.bias(weight, mean), each, rtol=1e-9)
    np.testing.assert_allclose(bias_change(weight, found.apply(weight), mean, mean[kept]), each, rtol=1e-9)


def test_nothing_removed_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    rows, weight = rows_of(rng, 50, 6), rng.normal(size=(3, 6))
    found = predictor(moments(rows), np.arange(6))
    np.testing.assert_array_equal(found.apply(weight), weight)
    np.testing.assert_array_equal(found.bias(weight, rows.mean(0)), np.zeros(3))
    assert error_after(weight, moments(rows), np.arange(6)).error == 0


def test_nothing_kept_leaves_the_mean() -> None:
    rng = np.random.default_rng(3)
    rows, weight = rows_of(rng, 50, 6), rng.normal(size=(3, 6))
    found = predictor(moments(rows), [])
    assert found.apply(weight).shape == (3, 0)
    np.testing.assert_allclose(found.bias(weight, rows.mean(0)), weight @ rows.mean(0))
    assert error_after(weight, moments(rows), []).relative == pytest.approx(1)


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_dead_inputs_keep_their_weights_and_change_no_others(ridge: float) -> None:
    rng = np.random.default_rng(4)
    rows, weight = rows_of(rng, 100, 8), rng.normal(size=(3, 8))
    dead = np.insert(rows, [0, 5, 8], 0.7, axis=1)
    wider = np.insert(weight, [0, 5, 8], 1.5, axis=1)
    where = np.array([1, 2, 3, 4, 5, 7, 8, 9])
    scatter = np.zeros((11, 11))
    scatter[np.ix_(where, where)] = moments(rows)
    kept = np.array([0, 1, 2, 3, 6])
    found = predictor(scatter, kept, ridge)
    new = found.apply(wider)
    np.testing.assert_allclose(new[:, [1, 2, 3]], refit(weight, moments(rows), [0, 1, 2], ridge), rtol=1e-12)
    np.testing.assert_array_equal(new[:, [0, 4]], wider[:, [0, 6]])
    left = dead[:, kept] @ new.T + found.bias(wider, dead.mean(0)) - dead @ wider.T
    np.testing.assert_allclose(left.mean(0), 0, atol=1e-12)


def test_dependent_columns_without_a_ridge() -> None:
    rng = np.random.default_rng(5)
    rows = rows_of(rng, 100, 6)
    rows = np.hstack([rows, rows[:, :3] @ rng.normal(size=(3, 3)), rows[:, :1]])
    weight = rng.normal(size=(4, 10))
    kept = [0, 1, 2, 3, 6, 7, 8, 9]
    scatter = moments(rows)
    new = refit(weight, scatter, kept, 0.0)
    oracle = by_rows(rows[:, kept], rows @ weight.T, weight[:, kept], 0.0)
    best = np.sum((rows[:, kept] @ oracle[:, :-1].T + oracle[:, -1] - rows @ weight.T) ** 2)
    assert np.abs(new).max() < 100
    assert error_after(weight, scatter, kept).error == pytest.approx(best, rel=1e-6)
    short = moments(rows[:5])
    assert error_after(weight, short, [0, 1, 2, 3, 6, 7]).relative == pytest.approx(0, abs=1e-9)


def test_channels_of_any_scale_are_solved_alike() -> None:
    rng = np.random.default_rng(6)
    rows, weight = rows_of(rng, 200, 10), rng.normal(size=(4, 10))
    sizes = 10.0 ** rng.integers(-7, 8, 10)
    kept = np.arange(6)
    plain = refit(weight, moments(rows), kept, 0.0)
    scaled = refit(weight / sizes, moments(rows * sizes), kept, 0.0)
    np.testing.assert_allclose(scaled * sizes[kept], plain, rtol=1e-8)


def test_a_strong_ridge_leaves_the_weights() -> None:
    rng = np.random.default_rng(7)
    rows, weight = rows_of(rng, 100, 6), rng.normal(size=(4, 6))
    np.testing.assert_allclose(refit(weight, moments(rows), [0, 2], 1e9), weight[:, [0, 2]], rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(Seeds, st.integers(1, 9), st.sampled_from([0.0, 1e-3, 1.0]))
def test_error_after_is_the_error_on_the_rows(seed: int, columns: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    rows, weight, kept = rows_of(rng, 60, columns), rng.normal(size=(4, columns)), some_columns(rng, columns)
    scatter = moments(rows)
    found = predictor(scatter, kept, ridge)
    outputs = rows @ weight.T
    left = outputs - rows[:, kept] @ found.apply(weight).T - found.bias(weight, rows.mean(0))
    loss = error_after(weight, scatter, kept, ridge)
    assert loss.error == pytest.approx(np.sum(left**2), rel=1e-8, abs=1e-9)
    assert loss.energy == pytest.approx(np.sum((outputs - outputs.mean(0)) ** 2), rel=1e-9)
    assert loss.relative == pytest.approx(loss.error / loss.energy)
    if ridge == 0:
        gone = np.setdiff1d(np.arange(columns), kept)
        schur = scatter[np.ix_(gone, gone)] - scatter[np.ix_(gone, kept)] @ np.linalg.solve(
            scatter[np.ix_(kept, kept)], scatter[np.ix_(kept, gone)]
        )
        assert loss.error == pytest.approx(np.trace(weight[:, gone] @ schur @ weight[:, gone].T), rel=1e-8, abs=1e-9)


def test_an_output_that_never_varies_loses_nothing() -> None:
    assert error_after(np.ones((2, 3)), np.zeros((3, 3)), [0]).relative == 0


@settings(deadline=None, max_examples=30)
@given(Seeds, st.integers(1, 8))
def test_held_out_error_is_that_on_the_rows(seed: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    dense, weight, kept = rows_of(rng, 40, columns), rng.normal(size=(4, columns)), some_columns(rng, columns)
    current = dense[:, kept] * 0.9 + 0.1 * rng.normal(size=(40, len(kept)))
    new, shift = rng.normal(size=(4, len(kept))), rng.normal(size=4)
    both = HeldOut(40, moments(dense), dense.mean(0), moments(dense, current), moments(current), current.mean(0))
    oracle = np.mean((dense @ weight.T - current @ new.T - shift) ** 2, axis=0)
    np.testing.assert_allclose(both.error(weight, new, shift), oracle, rtol=1e-9)
    one = HeldOut.of_one_side(40, moments(dense), dense.mean(0), kept)
    oracle = np.mean((dense @ weight.T - dense[:, kept] @ new.T) ** 2, axis=0)
    np.testing.assert_allclose(one.error(weight, new), oracle, rtol=1e-9)
    np.testing.assert_allclose(one.energy(weight), np.var(dense @ weight.T, axis=0), rtol=1e-9)


def test_held_out_rows_tell_a_fit_to_too_few() -> None:
    rng = np.random.default_rng(8)
    rows, weight, kept = rows_of(rng, 4000, 40), rng.normal(size=(6, 40)), np.arange(30)
    judge = HeldOut.of_one_side(3000, moments(rows[1000:]), rows[1000:].mean(0), kept)
    gap = {}
    for count in (32, 1000):
        found = predictor(moments(rows[:count]), kept, 0.0)
        mean = rows[:count].mean(0)
        masked = judge.error(weight, weight[:, kept], bias_change(weight, weight[:, kept], mean, mean[kept])).sum()
        gap[count] = judge.error(weight, found.apply(weight), found.bias(weight, mean)).sum() / masked
    assert gap[32] > 1 > gap[1000]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: predictor(np.eye(3), [0, 0]), "more than one"),
        (lambda: predictor(np.eye(3), [3]), "columns 3 to 3"),
        (lambda: predictor(np.ones((3, 2)), [0]), "square"),
        (lambda: predictor(np.diag([1, np.nan, 1]), [0, 1]), "not finite"),
        (lambda: predictor(np.eye(3), [0], -1.0), "ridge"),
        (lambda: predictor(np.eye(3), [0], float("nan")), "ridge"),
        (lambda: predictor_cross(np.ones((3, 2)), np.eye(3), [0, 1]), "do not fit"),
        (lambda: predictor_cross(np.ones((3, 3)), np.eye(2), [0, 1]), "do not fit"),
        (lambda: predictor_cross(np.full((3, 1), np.inf), np.eye(1), [0]), "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
