"""Grids: the levels that a normalized weight `u = w / scale` may take, and the codes that stand for them.

A new grid is a registered function `bits -> Grid`. Three integer grids exist, for 2 to 8 bits:

| name     | codes                       | zero point | 4 bit  | 2 bit   |
|----------|-----------------------------|------------|--------|---------|
| narrow   | -(2^(b-1)-1) .. 2^(b-1)-1   | no         | -7..7  | -1..1   |
| full     | -2^(b-1) .. 2^(b-1)-1       | no         | -8..7  | -2..1   |
| unsigned | 0 .. 2^b-1                  | per block  | 0..15  | 0..3    |

`full` goes with a signed scale: the element of largest magnitude, whichever its sign, lands on the lowest level, so
all 2^b levels are used; what lies near the other end clips by up to one step. Squared error of the round trip relative
to `narrow`, scale rule `minmax`: median (least to most) over blocks of 16, 32, 128 and the whole row, of normal and
Laplace matrices and of the weights of six small networks (CNNs, an LSTM, transformers). "Unclipped" is the full grid
with a scale, of the better sign, that reaches both ends; `unsigned` also pays for its zero points.

| bits | full               | full, unclipped    | unsigned           |
|------|--------------------|--------------------|--------------------|
| 2    | 0.30 (0.28 - 0.51) | 0.66 (0.45 - 0.88) | 0.38 (0.31 - 0.65) |
| 3    | 0.60 (0.57 - 0.64) | 0.69 (0.61 - 0.79) | 0.59 (0.50 - 0.66) |
| 4    | 0.78 (0.77 - 0.82) | 0.80 (0.78 - 0.84) | 0.69 (0.57 - 0.78) |
| 5    | 0.89 (0.87 - 0.91) | 0.89 (0.88 - 0.90) | 0.76 (0.61 - 0.84) |
| 6    | 0.94 (0.94 - 0.96) | 0.94 (0.94 - 0.95) | 0.77 (0.63 - 0.87) |
| 7    | 0.97 (0.96 - 0.98) | 0.97 (0.95 - 0.98) | 0.80 (0.64 - 0.88) |
| 8    | 0.98 (0.98 - 1.00) | 0.98 (0.98 - 1.00) | 0.80 (0.65 - 0.89) |

In the outputs of those networks (relative L2, blocks of 32, median) going from `narrow` to `full` changes the drift
from 0.51 to 0.33 at 2 bits, 0.16 to 0.12 at 3, 0.082 to 0.060 at 4, and not measurably at 8. Hence `default_grid`:
`full` up to 7 bits, `narrow` at 8, where no output shows the 2 % and a code without -128 can be negated in 8 bits, as
some integer kernels do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .registry import Registry

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Codes: TypeAlias = npt.NDArray[np.integer[Any]]


class Grid(Protocol):
    """What scale rules and roundings know of a grid."""

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """All values of `decode` without a zero point, ascending."""

    @property
    def has_zero_point(self) -> bool:
        """Whether each block carries a zero point, the code of 0.0."""

    @property
    def code_dtype(self) -> np.dtype[np.integer[Any]]:
        """The type of codes and zero points in memory: int8 or uint8."""

    def encode(self, normalized: Floats, zero_point: Codes | None = None) -> Codes:
        """Return the codes `[..., g]` nearest to `w / scale` `[..., g]`; `zero_point` is `[...]`."""

    def decode(self, codes: Codes, zero_point: Codes | None = None) -> npt.NDArray[np.float32]:
        """Return the values `[..., g]`, still to be multiplied by the scale, of codes `[..., g]`."""


@dataclass(frozen=True)
class IntegerGrid:
    """The integers `low` to `high`; with a zero point the code q means `q - zero_point`.

    Nearest is half to even, before the zero point is added: what ONNX QuantizeLinear computes.
    """

    low: int
    high: int
    has_zero_point: bool = False

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        return np.arange(self.low, self.high + 1, dtype=np.float32)

    @property
    def code_dtype(self) -> np.dtype[np.integer[Any]]:
        return np.dtype(np.int8) if self.low < 0 else np.dtype(np.uint8)

    def encode(self, normalized: Floats, zero_point: Codes | None = None) -> Codes:
        nearest = np.rint(normalized)
        if zero_point is not None:
            nearest += zero_point[..., None]
        np.clip(nearest, self.low, self.high, out=nearest)
        return nearest.astype(self.code_dtype)

    def decode(self, codes: Codes, zero_point: Codes | None = None) -> npt.NDArray[np.float32]:
        values = codes.astype(np.float32)
        if zero_point is not None:
            values -= zero_point[..., None]
        return values


GRIDS: Registry[Callable[[int], Grid]] = Registry("grid")


@GRIDS.register("narrow")
def narrow(bits: int) -> Grid:
    """Return the symmetric integers that leave out the lowest code."""
    high = 2 ** (bits - 1) - 1
    return IntegerGrid(-high, high)


@GRIDS.register("full")
def full(bits: int) -> Grid:
    """Return all signed integers of that width; meant for scales of either sign."""
    return IntegerGrid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@GRIDS.register("unsigned")
def unsigned(bits: int) -> Grid:
    """Return all unsigned integers of that width, with a zero point."""
    return IntegerGrid(0, 2**bits - 1, has_zero_point=True)


def default_grid(bits: int, symmetric: bool) -> str:
    """Return the name of the grid with the least error measured for that width (table above)."""
    if not symmetric:
        return "unsigned"
    return "narrow" if bits == 8 else "full"
