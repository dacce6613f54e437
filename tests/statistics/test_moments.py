"""Variances survive means that E[xx] - E[x]E[x] would drown them in."""

import numpy as np

from onnxopt.statistics import Moments


def test_variance_far_from_zero_in_any_split() -> None:
    values = np.random.default_rng(0).normal(size=(400_000, 1)) + 1e8
    whole, parts = Moments().begin("x"), Moments().begin("x")
    whole.update(values)
    for part in np.split(values, [1, 5, 150_000]):
        state = Moments().begin("x")
        state.update(part)
        parts.merge(state)
    for state in (whole, parts):
        np.testing.assert_allclose(state.result().variance, values.var(0), rtol=1e-9)
        np.testing.assert_allclose(state.result().mean, values.mean(0), rtol=1e-14)
