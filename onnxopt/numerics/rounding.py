"""Rounding rules: how weights become codes once their blocks have scales.

A new rule is a registered function `(blocks, fit, grid) -> codes`. Rows of a weight are independent of each other,
so a rule may be called on any subset of rows.
"""

from collections.abc import Callable
from typing import TypeAlias

from .grids import Codes, Floats, Grid
from .registry import Registry
from .scales import BlockScale

Rounding: TypeAlias = Callable[[Floats, BlockScale, Grid], Codes]

ROUNDINGS: Registry[Rounding] = Registry("rounding")


@ROUNDINGS.register("nearest")
def nearest(blocks: Floats, fit: BlockScale, grid: Grid) -> Codes:
    """Give each weight of `[..., g]` the nearest level, ties to even codes: the least error of each on its own."""
    return grid.encode(blocks / fit.scale[..., None], fit.zero_point)
