"""States of recurrent layers: the Gram matrix of each direction's rows, whatever the split and the mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.errors import DataError
from onnxopt.statistics import StateGram


def moments(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(0)).T @ (rows - rows.mean(0))


@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 2]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from([0, 1, 2, 3]),
)
@settings(max_examples=40, deadline=None)
def test_directions_apart(seed: int, directions: int, sizes: list[int], axes: int) -> None:
    rng = np.random.default_rng(seed)
    states = [StateGram(groups=directions).begin("y") for _ in range(2)]
    seen: list[np.ndarray] = []
    for at, size in enumerate(sizes):
        batch = rng.standard_normal((5, directions, size, 3))
        mask = rng.random((5, size)) < 0.7 if axes > 1 else rng.random((5, 1)) < 0.7
        mask[2] = True
        given_mask = {0: None, 1: mask[:, 0], 2: mask, 3: mask[:, None]}[axes]
        states[at % 2].update(batch, given_mask)
        rows = batch.transpose(0, 2, 1, 3)
        seen.append(rows.reshape(-1, directions, 3) if axes == 0 else rows[np.broadcast_to(mask, (5, size))])
    states[0].merge(states[1])
    found, rows = states[0].result(), np.concatenate(seen)
    assert found.count == len(rows)
    for direction in range(directions):
        np.testing.assert_allclose(found.scatter[direction], moments(rows[:, direction]), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(found.mean[direction], rows[:, direction].mean(0), atol=1e-12)


def test_what_does_not_fit() -> None:
    batch = np.zeros((4, 2, 3, 5), np.float32)
    with pytest.raises(DataError, match=r"holds no states \[steps, 1, batch, hidden\]"):
        StateGram().begin("y").update(batch)
    state = StateGram(groups=2).begin("y")
    with pytest.raises(DataError, match="tells directions apart"):
        state.update(batch, np.ones((4, 2, 3), bool))
    batch[1, 1, 2, 4] = np.nan
    with pytest.raises(DataError, match=r"NaN in sample 1, at \[1, 1, 2, 4\]"):
        state.update(batch)
    assert state.rows == state.samples == 0


def test_footprint_covers_what_is_held() -> None:
    batch = np.random.default_rng(0).normal(size=(6, 2, 4, 7)).astype(np.float32)
    request = StateGram(groups=2)
    state = request.begin("y")
    state.update(batch)
    bound = request.footprint(batch.shape, dtype=batch.dtype)
    assert state.nbytes <= bound.state
    assert bound.work >= batch.nbytes
