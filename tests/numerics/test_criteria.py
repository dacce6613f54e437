"""Criteria and normalisations against loops over their formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxopt.numerics.criteria import (
    NORMALISATIONS,
    fluctuation,
    geometric_median,
    lamp,
    random,
    standard,
    under_thresholds,
    wanda,
)
from onnxopt.numerics.elimination import energy
from onnxopt.numerics.importance import under_threshold

UNITS = [np.array([4, 0]), np.array([], np.int64), np.array([2, 3, 5])]
SCORES = arrays(np.float64, st.integers(0, 12), elements=st.integers(0, 5).map(float) | st.floats(0, 1e6))


def test_wanda_and_fluctuation_by_loops() -> None:
    rng = np.random.default_rng(0)
    rows, weight = rng.normal(1, 2, size=(30, 6)), rng.normal(size=(4, 6)).astype(np.float32)
    norm, spread = [], []
    for own in UNITS:
        norm.append(sum(abs(float(weight[i, j])) * np.linalg.norm(rows[:, j]) for i in range(4) for j in own))
        spread.append(sum(float(weight[i, j]) ** 2 * np.var(rows[:, j]) for i in range(4) for j in own))
    np.testing.assert_allclose(wanda(weight, np.sum(rows**2, 0), UNITS), norm, rtol=1e-9)
    np.testing.assert_allclose(fluctuation(weight, rows.var(0), UNITS), spread, rtol=1e-9)


def test_fluctuation_is_the_energy_of_uncorrelated_inputs() -> None:
    rng = np.random.default_rng(1)
    weight, variances = rng.normal(size=(4, 6)), rng.uniform(0, 2, 6)
    np.testing.assert_allclose(fluctuation(weight, variances, UNITS), energy(weight, np.diag(variances), UNITS))


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 5), st.sampled_from([0.0, 1e3]))
def test_distances_by_loops(seed: int, units: int, size: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(units, size)) + offset
    rows[rng.integers(units)] = rows[0]
    oracle = [sum(float(np.linalg.norm(a - b)) for b in rows) for a in rows]
    np.testing.assert_allclose(geometric_median(rows), oracle, rtol=1e-6, atol=1e-5)


def test_distances_of_long_rows() -> None:
    rows = np.random.default_rng(2).normal(size=(3, 5000))
    oracle = [sum(float(np.linalg.norm(a - b)) for b in rows) for a in rows]
    np.testing.assert_allclose(geometric_median(rows), oracle, rtol=1e-12)


def test_the_middle_one_is_least_important() -> None:
    assert geometric_median([[0.1, 0.0], [5.0, 0.0], [0.0, -6.0], [-4.0, 0.0], [0.5, 9.0]]).argmin() == 0
    assert geometric_median(np.zeros((3, 0))).tolist() == [0, 0, 0]
    assert geometric_median(np.ones((1, 4))).tolist() == [0]


@given(SCORES)
def test_lamp_by_loops(scores: np.ndarray) -> None:
    found = lamp(scores)
    for place, value in enumerate(scores):
        left = sum(each for other, each in enumerate(scores) if (each, other) >= (value, place))
        assert found[place] == pytest.approx(value / left if left > 0 else 0.0, rel=1e-9)
    if scores.any():
        assert found.max() == 1


@pytest.mark.parametrize("name", sorted(NORMALISATIONS))
@given(scores=SCORES)
def test_a_normalisation_keeps_the_order(name: str, scores: np.ndarray) -> None:
    before = scores.copy()
    found = NORMALISATIONS.find(name)(scores)
    assert found.shape == scores.shape
    assert np.isfinite(found).all()
    ranked = found[np.argsort(scores, kind="stable")]
    assert (np.diff(ranked) >= -1e-12 * np.abs(ranked[1:])).all()
    np.testing.assert_array_equal(scores, before)


def test_normalisations_by_example() -> None:
    scores = np.array([1.0, 3.0, 0.0, 4.0])
    assert sorted(NORMALISATIONS) == ["lamp", "max", "mean", "none", "standard"]
    assert NORMALISATIONS["mean"](scores).tolist() == [0.5, 1.5, 0, 2]
    assert NORMALISATIONS["max"](scores).tolist() == [0.25, 0.75, 0, 1]
    assert NORMALISATIONS["max"](np.zeros(2)).tolist() == [0, 0]
    assert NORMALISATIONS["none"](scores).tolist() == scores.tolist()
    np.testing.assert_allclose(standard(scores), (scores - 2) / scores.std())
    assert standard(np.full(3, 0.1)).tolist() == [0, 0, 0]
    assert lamp(scores).tolist() == [1 / 8, 3 / 7, 0, 1]


def test_random_scores_come_from_the_generator() -> None:
    first, again = (random(50, np.random.default_rng(3)) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert len(set(first.tolist())) == 50


def test_kinds_lose_the_same_share_each() -> None:
    rng = np.random.default_rng(4)
    scores = [rng.random(10), 1000 * rng.random(20), rng.random(30), 1000 * rng.random(4)]
    kinds = ["neurons", "heads", "neurons", "heads"]
    lost = under_thresholds(scores, kinds, 0.5, [9, 19, 29, 3])
    assert lost[0] + lost[2] == 20
    assert lost[1] + lost[3] == 12
    assert [lost[0], lost[2]] == under_threshold([scores[0], scores[2]], 0.5, [9, 29])
    assert under_threshold(scores, 0.5, [9, 19, 29, 3])[1] == 0
