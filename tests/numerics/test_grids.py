"""Grids: levels, encode and decode against a search over all levels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.numerics.grids import GRIDS, Grid

BITS = range(2, 9)


def grids() -> list[Grid]:
    return [make(bits) for make in GRIDS.values() for bits in BITS]


def zero_points(grid: Grid) -> np.ndarray | None:
    """All zero points of a grid, one a block, or None."""
    return grid.levels.astype(grid.code_dtype) if grid.has_zero_point else None


@pytest.mark.parametrize("bits", BITS)
def test_levels(bits: int) -> None:
    half = 2 ** (bits - 1)
    assert GRIDS["narrow"](bits).levels.tolist() == list(range(1 - half, half))
    assert GRIDS["full"](bits).levels.tolist() == list(range(-half, half))
    assert GRIDS["unsigned"](bits).levels.tolist() == list(range(2 * half))


@pytest.mark.parametrize("grid", grids(), ids=str)
def test_every_level_survives(grid: Grid) -> None:
    points = zero_points(grid)
    codes = grid.levels.astype(grid.code_dtype)
    codes = codes if points is None else np.tile(codes, (len(points), 1))
    again = grid.encode(grid.decode(codes, points), points)
    assert again.dtype == codes.dtype
    np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize("grid", grids(), ids=str)
@given(value=st.floats(-600, 600, width=32))
def test_encode_finds_the_nearest_level(grid: Grid, value: float) -> None:
    points = zero_points(grid)
    levels = grid.levels if points is None else grid.levels - points[:, None].astype(np.float32)
    normalized = np.full((*levels.shape[:-1], 1), value, np.float32)
    decoded = grid.decode(grid.encode(normalized, points), points)
    least = np.abs(levels - normalized).min(axis=-1, keepdims=True)
    np.testing.assert_array_equal(np.abs(decoded - normalized), least)


def test_ties_go_to_even_before_the_zero_point() -> None:
    ties = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]], np.float32)
    assert GRIDS["narrow"](4).encode(ties).tolist() == [[-2, -2, 0, 0, 2, 2]]
    assert GRIDS["unsigned"](4).encode(ties, np.array([5], np.uint8)).tolist() == [[3, 3, 5, 5, 7, 7]]


def test_encode_leaves_its_argument_alone() -> None:
    normalized = np.array([[0.4, 99.0]], np.float32)
    GRIDS["full"](4).encode(normalized)
    assert normalized.tolist() == np.array([[0.4, 99.0]], np.float32).tolist()
