"""Rounding rules against a search over all levels of each block."""

import numpy as np
import pytest

from onnxopt.numerics.grids import GRIDS
from onnxopt.numerics.rounding import nearest
from onnxopt.numerics.scales import BlockScale


@pytest.mark.parametrize("name", sorted(GRIDS))
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_nearest_has_the_least_error_of_all_codes(name: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    grid = GRIDS[name](bits)
    blocks = rng.normal(size=(6, 4, 16)).astype(np.float32)
    scale = rng.uniform(0.05, 0.5, (6, 4)).astype(np.float32) * rng.choice([-1, 1], (6, 4)).astype(np.float32)
    points = rng.integers(0, 2**bits, (6, 4)).astype(np.uint8) if grid.has_zero_point else None
    fit = BlockScale(scale, points)
    codes = nearest(blocks, fit, grid)
    assert codes.dtype == grid.code_dtype
    decoded = grid.decode(codes, points) * scale[..., None]
    offset = 0 if points is None else points[..., None].astype(np.float32)
    levels = (grid.levels - offset) * scale[..., None]
    least = np.abs(levels[..., None, :] - blocks[..., None]).min(axis=-1)
    np.testing.assert_allclose(np.abs(decoded - blocks), least, atol=1e-6)
