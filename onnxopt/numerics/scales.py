"""Scale rules: how a block of weights chooses the step between its levels.

A new rule is a registered function `(blocks, grid, store) -> BlockScale`. Every rule passes its scales through
`store` before it derives anything from them, so zero points and codes fit the scales that the file will hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .grids import Codes, Floats, Grid
from .registry import Registry


@dataclass(frozen=True)
class BlockScale:
    """Scale `[...]`, in the type that is stored, and zero point `[...]` (grids with one) of blocks `[..., g]`."""

    scale: Floats
    zero_point: Codes | None = None


Store: TypeAlias = Callable[[Floats], Floats]
ScaleRule: TypeAlias = Callable[[Floats, Grid, Store], BlockScale]

SCALE_RULES: Registry[ScaleRule] = Registry("scale rule")


def store_scale(scale: Floats, dtype: npt.DTypeLike) -> Floats:
    """Return float32 scales as they are stored in `dtype`: usable divisors, sign kept.

    A zero (a block of zeros) becomes 1, which decodes code 0 to 0 as well as any other; magnitudes under the
    smallest normal number are raised to it, since subnormal scales lose precision and some processors flush them.
    What is too large becomes infinite: the caller, who knows where the block lies, has to refuse it.
    """
    smallest = np.float32(np.finfo(np.dtype(dtype)).smallest_normal)
    tiny = np.abs(scale) < smallest
    usable = np.where(tiny, np.where(scale == 0, np.float32(1), np.copysign(smallest, scale)), scale)
    with np.errstate(over="ignore"):
        stored: npt.NDArray[np.floating[Any]] = usable.astype(dtype)
    return stored


@SCALE_RULES.register("minmax")
def minmax(blocks: Floats, grid: Grid, store: Store) -> BlockScale:
    """Spread the levels over the block's range, so that its extreme element is kept almost exactly.

    With a zero point: from min(block, 0) to max(block, 0), hence 0 is always a level. Without: the element of largest
    magnitude lands on the level of largest magnitude; on a grid that reaches further on one side the scale takes the
    sign that brings it there (the smaller side then clips; see `grids` for what that is worth).
    """
    high = np.maximum(_fold(np.maximum, blocks), 0)
    low = np.minimum(_fold(np.minimum, blocks), 0)
    first, last = grid.levels[[0, -1]]
    if grid.has_zero_point:
        with np.errstate(over="ignore"):
            scale = store((high - low) / (last - first))
        zero_point = np.clip(np.rint(-low / scale), first, last).astype(grid.code_dtype)
        return BlockScale(scale, zero_point)
    if first == -last:
        return BlockScale(store(np.maximum(high, -low) / last))
    extreme = np.where(high >= -low, high, low)
    return BlockScale(store(extreme / max(first, last, key=abs)))


def _fold(combine: np.ufunc, blocks: Floats) -> Floats:
    """Return `combine.reduce(blocks, axis=-1)`, pair by pair: 2 to 18 times faster over axes of 256 to 16 elements."""
    while blocks.shape[-1] % 2 == 0:
        blocks = combine(blocks[..., 0::2], blocks[..., 1::2])
    folded: Floats = combine.reduce(blocks, axis=-1)
    return folded
