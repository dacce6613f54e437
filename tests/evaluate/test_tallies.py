"""The arithmetic of metrics against scikit-learn, scipy and the judges' own formulas."""

from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxopt.evaluate.tallies import Tally, cosine, hits, negative_log_likelihood, squared_error

LOGITS = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(2, 6)),
                    elements=st.integers(-3, 3).map(float))  # fmt: skip


def ratio(tally: Tally) -> float:
    return float(tally.values.sum() / tally.weights.sum())


@given(logits=LOGITS, data=st.data(), k=st.integers(1, 7))
def test_hits_are_those_of_a_stable_sort(logits: Any, data: st.DataObject, k: int) -> None:
    targets = data.draw(hnp.arrays(np.int64, logits.shape[:2], elements=st.integers(-1, logits.shape[2] - 1)))
    best = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
    right = (best == targets[..., None]).any(-1) & (targets >= 0)
    tally = hits(logits, targets, k)
    np.testing.assert_array_equal(tally.values, right.sum(1))
    np.testing.assert_array_equal(tally.weights, (targets >= 0).sum(1))
    if k == 1:
        np.testing.assert_array_equal(right, (logits.argmax(-1) == targets))


def test_a_constant_or_broken_model_hits_by_chance_at_most() -> None:
    targets = np.arange(10)
    assert ratio(hits(np.zeros((10, 10), np.float32), targets, 1)) == 0.1
    assert ratio(hits(np.full((10, 10), np.nan, np.float32), targets, 10)) == 0
    assert ratio(hits(np.full((10, 10), np.inf, np.float32), targets, 1)) == 0.1


def test_top_k_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((200, 12)), rng.integers(0, 12, 200)
    for k in (1, 3, 5):
        want = metrics.top_k_accuracy_score(targets, logits, k=k, labels=np.arange(12))
        assert ratio(hits(logits, targets, k)) == pytest.approx(want)


@given(logits=LOGITS, scale=st.sampled_from([1.0, 1e3]), data=st.data())
def test_likelihood_is_that_of_the_softmax(logits: Any, scale: float, data: st.DataObject) -> None:
    targets = data.draw(hnp.arrays(np.int64, logits.shape[:2], elements=st.integers(-1, logits.shape[2] - 1)))
    logits = logits * np.float32(scale)
    logs = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    picked = -np.take_along_axis(logs, np.maximum(targets, 0)[..., None], -1)[..., 0]
    tally = negative_log_likelihood(logits, targets)
    np.testing.assert_allclose(tally.values, np.where(targets >= 0, picked, 0).sum(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(tally.weights, (targets >= 0).sum(1))


def test_likelihood_of_half_precision_and_of_broken_logits() -> None:
    assert ratio(negative_log_likelihood(np.zeros((3, 8), np.float16), np.arange(3))) == pytest.approx(np.log(8))
    assert np.isnan(ratio(negative_log_likelihood(np.full((3, 8), np.nan), np.arange(3))))
    assert np.isnan(ratio(negative_log_likelihood(np.full((3, 8), -np.inf), np.arange(3))))
    masked = np.where(np.arange(8) < 4, 0.0, -np.inf)[None]
    assert ratio(negative_log_likelihood(masked, np.array([1]))) == pytest.approx(np.log(4))


FLOATS = hnp.arrays(np.float32, (3, 2, 4), elements=st.floats(-100, 100, width=32))


@given(a=FLOATS, b=FLOATS)
def test_squared_error_and_cosine(a: Any, b: Any) -> None:
    flat_a, flat_b = a.reshape(3, -1).astype(float), b.reshape(3, -1).astype(float)
    tally = squared_error(a, b)
    np.testing.assert_allclose(tally.values, ((flat_a - flat_b) ** 2).sum(1))
    np.testing.assert_allclose(tally.weights, (flat_b**2).sum(1))
    for found, x, y in zip(cosine(a, b).values, flat_a, flat_b, strict=True):
        length = np.linalg.norm(x) * np.linalg.norm(y)
        assert found == pytest.approx(x @ y / length if length else float(np.array_equal(x, y)), abs=1e-9)


def test_equal_infinities_do_not_differ() -> None:
    a = np.array([[1.0, -np.inf], [1.0, 2.0]])
    np.testing.assert_array_equal(squared_error(a, a), [[0, 0], [1, 5]])
    assert np.isinf(squared_error(np.array([[1.0, 0.0]]), a[:1]).values[0])
    assert np.isnan(squared_error(np.array([[np.nan, 0.0]]), a[1:]).values[0])
    np.testing.assert_array_equal(cosine(a, a).values, [1, 1])


def test_integers_and_scalars() -> None:
    np.testing.assert_array_equal(squared_error(np.array([3], np.uint8), np.array([5], np.uint8)), [[4], [25]])
    np.testing.assert_array_equal(squared_error(np.array(3.0), np.array(5.0)), [[4], [25]])
