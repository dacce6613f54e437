"""Importance of units: sums over slices, thresholds, widths to keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.numerics import importance
from onnxopt.numerics.importance import normalised, slice_sums, under_threshold, weakest, width_to_keep


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_sums_are_those_of_numpy(power: int, dtype: type, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "_CHUNK", chunk)
    array = (8 * np.random.default_rng(0).normal(size=(7, 5, 3))).astype(dtype)
    scale = np.array([1.0, -2.0, 0.0, 3.0, 0.5])
    plain = np.abs(array.astype(np.float64)) ** power
    for axis, found in zip((0, 1, 2), slice_sums(array, (0, 1, 2), power), strict=True):
        np.testing.assert_allclose(found, np.moveaxis(plain, axis, 0).reshape(array.shape[axis], -1).sum(1))
    scaled = plain * np.abs(scale[:, None]) ** power
    for axis, found in zip((2, 0), slice_sums(array, (2, 0), power, {1: scale}), strict=True):
        np.testing.assert_allclose(found, np.moveaxis(scaled, axis, 0).reshape(array.shape[axis], -1).sum(1))
    rows = np.arange(7.0)
    expected = (plain * (rows**power)[:, None, None]).sum((0, 2))
    np.testing.assert_allclose(slice_sums(array, (1,), power, {0: rows})[0], expected)


def test_sums_of_nothing() -> None:
    assert slice_sums(np.zeros((3, 0), np.float32), (0,), 2)[0].tolist() == [0, 0, 0]


def test_ties_go_in_order() -> None:
    assert weakest(np.array([1.0, 0.5, 1.0, 0.5, 0.5]), 4).tolist() == [1, 3, 4, 0]
    assert weakest(np.tile([1.0, 0.0], 200), 200).tolist() == list(range(1, 400, 2))


def test_normalised() -> None:
    assert normalised(np.array([1.0, 3.0])).tolist() == [0.5, 1.5]
    assert normalised(np.zeros(2)).tolist() == [0, 0]
    assert normalised(np.zeros(0)).tolist() == []


@given(
    st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=12), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.floats(0.1, 1),
)
def test_a_threshold(scores: list[list[float]], ratio: float, cap: float) -> None:
    arrays = [np.array(each) for each in scores]
    most = [int(cap * len(each)) for each in scores]
    lost = under_threshold(arrays, ratio, most)
    assert sum(lost) == min(round(ratio * sum(map(len, scores))), sum(most))
    assert all(0 <= count <= limit for count, limit in zip(lost, most, strict=True))
    gone = [value for each, count in zip(arrays, lost, strict=True) for value in np.sort(each)[:count]]
    open_ = [
        np.sort(each)[count]
        for each, count, limit in zip(arrays, lost, most, strict=True)
        if count < min(limit, len(each))
    ]
    assert not gone or not open_ or max(gone) <= min(open_)


@given(st.integers(1, 200), st.floats(0, 1), st.integers(1, 40), st.integers(1, 50))
def test_kept_width(width: int, share: float, multiple: int, least: int) -> None:
    wanted = share * width
    kept = width_to_keep(width, wanted, multiple, least)
    assert min(least, width) <= kept <= width
    assert kept == width or kept % multiple == 0
    if kept != width and kept - multiple >= max(1, least):
        assert abs(kept - wanted) <= abs(kept - multiple - wanted)
    if kept + multiple <= width:
        assert abs(kept - wanted) <= abs(kept + multiple - wanted) or kept == least


@pytest.mark.parametrize(
    ("width", "wanted", "multiple", "least", "kept"),
    [(10, 7, 8, 1, 8), (12, 10.8, 8, 1, 12), (12, 10.8, 8, 8, 12), (16, 12, 8, 1, 16), (64, 3.2, 8, 8, 8),
     (4, 1, 8, 4, 4), (8, 1, 8, 8, 8), (5, 2.5, 1, 1, 3), (3, 0.1, 1, 1, 1), (9, 0.5, 1, 5, 5)],
)  # fmt: skip
def test_kept_width_by_example(width: int, wanted: float, multiple: int, least: int, kept: int) -> None:
    assert width_to_keep(width, wanted, multiple, least) == kept
