"""Scale rules: ranges against the definition, and scales as they are stored."""

from functools import partial

import numpy as np
import pytest

from onnxopt.numerics.grids import GRIDS
from onnxopt.numerics.scales import minmax, store_scale

AS_FLOAT32 = partial(store_scale, dtype="float32")
WIDTHS = [1, 3, 13, 16, 26, 32, 256]


def blocks_of(width: int) -> np.ndarray:
    blocks = np.random.default_rng(width).normal(size=(5, 3, width)).astype(np.float32)
    blocks[0] = np.abs(blocks[0])
    blocks[1] = -np.abs(blocks[1])
    return blocks


@pytest.mark.parametrize("width", WIDTHS)
def test_narrow_puts_the_largest_magnitude_on_the_last_level(width: int) -> None:
    blocks = blocks_of(width)
    fit = minmax(blocks, GRIDS["narrow"](4), AS_FLOAT32)
    np.testing.assert_array_equal(fit.scale, np.abs(blocks).max(axis=-1) / np.float32(7))
    assert fit.zero_point is None


@pytest.mark.parametrize("width", WIDTHS)
def test_full_puts_the_largest_magnitude_on_the_lowest_level_exactly(width: int) -> None:
    blocks = blocks_of(width)
    fit = minmax(blocks, GRIDS["full"](4), AS_FLOAT32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    np.testing.assert_array_equal(fit.scale * np.float32(-8), extreme)


@pytest.mark.parametrize("width", WIDTHS)
def test_zero_point_spans_the_range_and_holds_zero(width: int) -> None:
    blocks = blocks_of(width)
    fit = minmax(blocks, GRIDS["unsigned"](4), AS_FLOAT32)
    assert fit.zero_point is not None
    high, low = np.maximum(blocks.max(-1), 0), np.minimum(blocks.min(-1), 0)
    np.testing.assert_array_equal(fit.scale, (high - low) / np.float32(15))
    np.testing.assert_array_equal(fit.zero_point, np.rint(-low / fit.scale))
    assert (fit.zero_point[0] == 0).all()
    assert (fit.zero_point[1] == 15).all()


def test_a_grid_that_reaches_further_up_gets_the_mirrored_sign() -> None:
    class Up(type(GRIDS["full"](4))):  # type: ignore[misc]
        levels = np.array([-1, 0, 1, 2], np.float32)

    fit = minmax(np.array([[0.5, -3.0], [3.0, -0.5]], np.float32), Up(-1, 2), AS_FLOAT32)
    assert fit.scale.tolist() == [-1.5, 1.5]


def test_zero_points_follow_the_stored_scale() -> None:
    def doubled(scale: np.ndarray) -> np.ndarray:
        return scale * 2

    fit = minmax(np.array([[-1.0, 2.0]], np.float32), GRIDS["unsigned"](2), doubled)
    assert fit.zero_point is not None
    assert (fit.scale.tolist(), fit.zero_point.tolist()) == ([2.0], [0])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stored_scales_are_usable_divisors(dtype: str) -> None:
    tiny = np.finfo(dtype).smallest_normal
    given = np.array([0.0, -0.0, 0.3, -0.3, tiny / 2, -tiny / 2, tiny, 1e-45], np.float32)
    stored = store_scale(given, dtype)
    expected = np.array([1, 1, np.float32(0.3), np.float32(-0.3), tiny, -tiny, tiny, tiny]).astype(dtype)
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, expected)


def test_scales_beyond_the_type_become_infinite() -> None:
    assert store_scale(np.array([65504, 65520, -7e4], np.float32), "float16").tolist() == [65504, np.inf, -np.inf]
