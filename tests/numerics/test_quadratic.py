"""Quadratic forms over sets of units: by rows, by brute force."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.elimination import energy
from onnxopt.numerics.quadratic import error_of, greedy, interactions, swaps
from onnxopt.numerics.units import columns_of, consecutive

Seeds = st.integers(0, 10_000)


def a_form(seed: int, units: int, width: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.maximum(rng.normal(size=(60, units * width)) @ rng.normal(size=(units * width, units * width)), 0)
    return interactions(rng.normal(size=(5, units * width)), rows.T @ rows, consecutive(units, width))


@settings(deadline=None, max_examples=25)
@given(Seeds)
def test_the_form_is_the_error_of_leaving_units_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, weight = rng.normal(size=(40, 11)), rng.normal(size=(3, 11))
    owner = rng.integers(-1, 5, 11)
    units = [rng.permutation(np.flatnonzero(owner == unit)) for unit in range(5)]
    form = interactions(weight, rows.T @ rows, units)
    np.testing.assert_array_equal(form, form.T)
    chosen = np.flatnonzero(rng.random(5) < 0.5)
    own = columns_of(units, chosen)
    assert error_of(form, chosen) == pytest.approx(np.sum((rows[:, own] @ weight[:, own].T) ** 2), rel=1e-9)
    np.testing.assert_allclose(form.diagonal(), energy(weight, rows.T @ rows, units), rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(Seeds, st.integers(1, 9), st.data())
def test_greedy_adds_what_adds_least(seed: int, units: int, data: st.DataObject) -> None:
    form = a_form(seed, units)
    order = greedy(form, data.draw(st.integers(0, units))).tolist()
    for step, unit in enumerate(order):
        costs = {each: error_of(form, [*order[:step], each]) for each in range(units) if each not in order[:step]}
        assert costs[unit] <= min(costs.values()) * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(Seeds, st.integers(1, 10), st.integers(0, 20), st.booleans(), st.data())
def test_swaps_end_where_none_gains(
    seed: int, units: int, patience: int, indefinite: bool, data: st.DataObject
) -> None:
    form = a_form(seed, units)
    if indefinite:
        form = form - np.diag(np.random.default_rng(seed).uniform(0, 2, units) * form.diagonal())
    start = data.draw(st.lists(st.integers(0, units - 1), unique=True, max_size=units))
    found = swaps(form, start, patience)
    assert len(found) == len(start)
    assert found.tolist() == sorted(set(found.tolist()))
    slack = 1e-9 * np.abs(form).max()
    assert error_of(form, found) <= error_of(form, start) + slack
    others = np.setdiff1d(np.arange(units), found)
    for leave in range(len(found)):
        for enter in others:
            assert error_of(form, [*np.delete(found, leave), enter]) >= error_of(form, found) - slack
    assert swaps(form, start, patience).tolist() == found.tolist()


def test_what_was_just_exchanged_goes_back_where_that_gains() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        form = rng.normal(size=(14, 14))
        form = form + form.T
        found = swaps(form, rng.permutation(14)[:7], 0)
        for leave in range(7):
            for enter in np.setdiff1d(np.arange(14), found):
                assert error_of(form, [*np.delete(found, leave), enter]) >= error_of(form, found) - 1e-9


@pytest.mark.parametrize(("units", "size"), [(6, 3), (8, 4), (10, 4)])
def test_swaps_mostly_find_the_best_set(units: int, size: int) -> None:
    hits = plain = 0
    for seed in range(100):
        form = a_form(seed, units)
        best = min(error_of(form, each) for each in combinations(range(units), size))
        hits += error_of(form, swaps(form, greedy(form, size))) <= best * (1 + 1e-9)
        plain += error_of(form, greedy(form, size)) <= best * (1 + 1e-9)
    assert hits >= 95
    assert hits > plain


def test_duplicates_are_not_left_out_together() -> None:
    """Units 0 and 1 are the same; each alone is cheapest, both together cost four times as much."""
    rows = np.random.default_rng(0).normal(size=(500, 4)) * [1.0, 1.0, 1.3, 1.4]
    rows[:, 1] = rows[:, 0]
    form = interactions(np.ones((1, 4)), rows.T @ rows, consecutive(4, 1))
    assert swaps(form, [0, 1]).tolist() in ([0, 2], [1, 2])


def test_equal_exchanges_are_made_in_order() -> None:
    assert swaps(np.diag([9.0, 9.0, 1.0, 1.0, 1.0]), [0, 1]).tolist() == [2, 3]
    assert swaps(np.zeros((4, 4)), [3, 1]).tolist() == [1, 3]
    assert swaps(np.eye(3), []).tolist() == []
    assert swaps(np.zeros((0, 0)), []).tolist() == []


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        swaps(np.ones((2, 3)), [0])
    with pytest.raises(ValueError, match="finite"):
        swaps(np.full((2, 2), np.nan), [0])
    with pytest.raises(ValueError, match="more than one"):
        swaps(np.eye(3), [1, 1])
    with pytest.raises(ValueError, match="4 of 3"):
        greedy(np.eye(3), 4)
    with pytest.raises(ValueError, match="more than one"):
        interactions(np.ones((1, 3)), np.eye(3), [np.array([0, 1]), np.array([1])])
