"""Masks, thresholds, schedules and sizes: against loops and definitions."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.numerics import sparsity, sparsity_global
from onnxopt.numerics.sparsity import (
    by_layer,
    by_row,
    kept_count,
    largest,
    layer_error,
    magnitudes,
    n_of_m,
    schedule,
    stored_sizes,
    wanda_scores,
)
from onnxopt.numerics.sparsity_global import global_counts

SEEDS = st.integers(0, 1 << 30)
DENSITIES = st.floats(0, 1)


def weights(rng: np.random.Generator, rows: int, columns: int, ties: bool) -> np.ndarray:
    drawn = rng.normal(size=(rows, columns)).astype(np.float32)
    return np.round(2 * drawn) / 2 if ties else drawn


def first_largest(scores: list[float], count: int) -> list[bool]:
    kept = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count]
    return [place in kept for place in range(len(scores))]


@given(SEEDS, st.integers(0, 4), st.integers(0, 9), DENSITIES, st.booleans())
def test_largest_of_layers_and_rows(seed: int, rows: int, columns: int, density: float, ties: bool) -> None:
    weight = weights(np.random.default_rng(seed), rows, columns, ties)
    scores = magnitudes(weight)
    layer = by_layer(scores, density)
    assert layer.reshape(-1).tolist() == first_largest(
        np.abs(weight).reshape(-1).tolist(), round(density * weight.size)
    )
    count = round(density * columns)
    assert by_row(scores, density).tolist() == [first_largest(np.abs(row).tolist(), count) for row in weight]


@given(SEEDS, st.integers(0, 4), st.integers(0, 13), st.integers(1, 6), st.integers(0, 5), st.booleans())
def test_n_of_m_keeps_n_of_every_m_columns(seed: int, rows: int, columns: int, m: int, fewer: int, ties: bool) -> None:
    n = max(1, m - fewer)
    scores = magnitudes(weights(np.random.default_rng(seed), rows, columns, ties))
    mask = n_of_m(scores, n, m)
    assert mask.shape == scores.shape
    for row, kept in zip(scores.tolist(), mask.tolist(), strict=True):
        for start in range(0, columns, m):
            group = row[start : start + m]
            assert kept[start : start + m] == first_largest(group, min(n, len(group)))


def test_which_of_two_four_is_kept() -> None:
    assert n_of_m(np.array([[1.0, 9, 5, 2, 0, 0, 0, 7, 3]]), 2, 4).astype(int).tolist() == [[0, 1, 1, 0, 1, 0, 0, 1, 1]]
    assert n_of_m(np.array([[1.0, 9, 5, 2, 8]]), 1, 4).astype(int).tolist() == [[0, 1, 0, 0, 1]]


def test_wanda_compares_what_weights_add_to_their_output() -> None:
    rng = np.random.default_rng(0)
    weight, inputs = weights(rng, 5, 8, False), rng.normal(size=(50, 8)) * np.arange(8)
    scores = wanda_scores(weight, np.linalg.norm(inputs, axis=0))
    expected = [[np.linalg.norm(inputs[:, j] * weight[i, j]) for j in range(8)] for i in range(5)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert scores.dtype == np.float32
    assert wanda_scores(weight.astype(np.float64), np.ones(8)).dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_magnitudes(dtype: type) -> None:
    found = magnitudes(np.array([[-100, 3]], dtype))
    assert found.tolist() == [[100, 3]]
    assert found.dtype == (np.float64 if dtype is np.float64 else np.float32)


@given(
    SEEDS, st.integers(0, 6), DENSITIES, st.integers(0, 40), st.integers(0, 9), st.booleans(),
    st.sampled_from([1, 7, 1 << 20]),
)  # fmt: skip
def test_one_threshold_over_all_layers(
    seed: int, count: int, density: float, least: int, rise: int, ties: bool, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    layers = [
        weights(rng, int(rng.integers(0, 8)), int(rng.integers(1, 9)), ties) * np.float32(10.0 ** rng.integers(-9, 9))
        for _ in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsity_global, "_CHUNK", chunk)
        each = [least + rise * place for place in range(count)]
        found = global_counts([lambda layer=layer: layer for layer in layers], density, each if rise else least)
    assert found.tolist() == by_adding_one_at_a_time(layers, density, each)


def by_adding_one_at_a_time(layers: list[np.ndarray], density: float, least: list[int]) -> list[int]:
    """Each layer's own minimum first; then the largest of what is left, of equal ones the earlier layer's."""
    ranked = [sorted(np.abs(layer).reshape(-1).tolist(), reverse=True) for layer in layers]
    counts = [min(few, len(each)) for few, each in zip(least, ranked, strict=True)]
    left = sorted(
        ((-value, place) for place, each in enumerate(ranked) for value in each[counts[place] :]),
    )
    for _, place in left[: max(0, kept_count(sum(map(len, ranked)), density) - sum(counts))]:
        counts[place] += 1
    return counts


def test_a_threshold_looks_at_one_layer_at_a_time_and_twice() -> None:
    seen: list[int] = []

    def layer(place: int) -> np.ndarray:
        seen.append(place)
        return np.full((3, 2), place + 1, np.float16)

    assert global_counts([lambda place=place: layer(place) for place in range(3)], 0.5).tolist() == [0, 3, 6]
    assert seen == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_layers_that_are_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="layer 1: 1 weights are not finite"):
        global_counts([lambda: np.ones((2, 2)), lambda: np.array([[1.0, value]])], 0.5)


@given(DENSITIES, st.integers(1, 20))
def test_the_schedule_is_cubic(final: float, rounds: int) -> None:
    found = schedule(final, rounds)
    initial, sparse = 0.0, 1 - final
    expected = [1 - (sparse + (initial - sparse) * (1 - t / rounds) ** 3) for t in range(1, rounds + 1)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[-1] == final
    assert all(0 <= later <= earlier <= 1 for earlier, later in pairwise(found))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_sizes_are_those_of_what_would_be_stored(dtype: type, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsity, "_CHUNK", chunk)
    weight = (10 * np.random.default_rng(0).normal(size=(7, 5, 3))).astype(dtype)
    weight[np.abs(weight) < 6] = 0
    found = stored_sizes(weight)
    values = weight[weight != 0]
    assert found.dense == len(weight.tobytes())
    assert found.bitmask == len(np.packbits(weight != 0).tobytes()) + len(values.tobytes())
    assert found.nonzero == values.size
    assert found.zipped == len(zlib.compress(weight.tobytes(), 6))
    assert stored_sizes(weight.T) == stored_sizes(np.ascontiguousarray(weight.T))


def test_sizes_of_scalars_and_nothing() -> None:
    assert stored_sizes(np.float32(3).reshape(())).bitmask == 5
    assert stored_sizes(np.zeros((0, 4), np.float32)).dense == 0
    assert stored_sizes(np.zeros((3, 0), np.float32)).bitmask == 0


def test_layer_error_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    inputs, weight, changed = rng.normal(size=(40, 6)), rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    expected = np.sum((inputs @ (weight - changed).T) ** 2) / np.sum((inputs @ weight.T) ** 2)
    np.testing.assert_allclose(layer_error(weight, changed, inputs.T @ inputs), expected)
    assert layer_error(weight, weight, np.zeros((6, 6))) == 0


def test_what_cannot_be_asked_for() -> None:
    scores = np.ones((2, 4))
    for density in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="density"):
            by_layer(scores, density)
        with pytest.raises(ValueError, match="density"):
            schedule(density, 3)
    for n, m in ((0, 4), (5, 4), (1, 0)):
        with pytest.raises(ValueError, match="n of m"):
            n_of_m(scores, n, m)
    with pytest.raises(ValueError, match="round"):
        schedule(0.5, 0)
    with pytest.raises(ValueError, match="NaN"):
        largest(np.array([1.0, np.nan]), 1)
