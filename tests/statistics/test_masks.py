"""Pieces cover a batch once and in order; masks and arrays that do not fit are refused."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.errors import DataError
from onnxopt.statistics.masks import Rows, as_float, spans


@given(shape=st.lists(st.integers(0, 5), max_size=4), limit=st.integers(1, 30))
def test_spans_cover_everything_once_in_order(shape: list[int], limit: int) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    pieces = [numbers[span].reshape(-1) for span in spans(shape, limit)]
    assert np.concatenate([[], *pieces]).tolist() == list(range(numbers.size))
    assert all(1 <= len(piece) <= limit for piece in pieces)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, None])
def test_rows_of_any_axis(axis: int | None) -> None:
    batch = np.random.default_rng(0).normal(size=(3, 4, 5))
    pieces = list(Rows.of(batch, axis, None, "x").pieces(7))
    expected = batch.reshape(-1, 1) if axis is None else np.moveaxis(batch, axis, -1).reshape(-1, batch.shape[axis])
    np.testing.assert_array_equal(np.concatenate(pieces), expected)


def test_a_scalar_and_a_vector_are_rows() -> None:
    assert [piece.tolist() for piece in Rows.of(np.array(2.0), None, None, "x").pieces(7)] == [[[2.0]]]
    assert [piece.tolist() for piece in Rows.of(np.array([2.0, 3.0]), 0, None, "x").pieces(7)] == [[[2.0, 3.0]]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((3, 2), bool), "does not fit tensor 'x'"),
        (np.ones((3, 4, 5, 1), bool), "does not fit tensor 'x'"),
        (np.ones(3), "a float64 mask"),
        (np.ones((3, 4), bool), "tells channels"),
    ],
)
def test_masks_that_do_not_fit(mask: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Rows.of(np.ones((3, 4, 5)), 1, mask, "x")


@pytest.mark.parametrize("batch", [np.ones((3, 4), complex), np.array([["a"]]), np.array([[None]])])
def test_only_real_numbers(batch: Any) -> None:
    with pytest.raises(DataError, match="need real numbers"):
        Rows.of(batch, 1, None, "x")


def test_no_such_axis() -> None:
    with pytest.raises(DataError, match=r"'x' of shape \[3, 4\] has no axis 2"):
        Rows.of(np.ones((3, 4)), 2, None, "x")


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(np.float16, 4), (ml_dtypes.bfloat16, 4), (np.int16, 4), (np.int32, 8), (np.float64, 8), (np.uint64, 8)],
)
def test_as_float_holds_all_of_a_type(dtype: Any, wide: int) -> None:
    values = np.array([0, 1, 100]).astype(dtype)
    assert as_float(values).dtype.itemsize == wide
    assert as_float(values).tolist() == [0, 1, 100]
