"""The quantizer: a weight matrix and a QuantSpec in, codes and scales out, and back.

It puts together a grid, a scale rule and a rounding; a published method is a choice of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .grids import Codes, Floats
from .rounding import ROUNDINGS
from .scales import SCALE_RULES, store_scale
from .spec import QuantSpec

# Elements of the weight that are worked on at a time: the temporaries stay in a processor's cache.
_CHUNK = 1 << 18

_Index: TypeAlias = tuple[int | slice, ...]


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized weight of O outputs and I inputs, in G blocks a row; leading axes are batches or groups.

    Attributes:
        codes: `[..., O, I]`, one code an element, in the grid's type: int8 (narrow, full) or uint8 (unsigned).
        scale: `[..., O, G]`, `spec.scale_dtype`; may be negative.
        zero_point: `[..., O, G]` uint8, or None.
        spec: how it was made.

    Raises:
        ValueError: shapes or types that do not belong together.
    """

    codes: Codes
    scale: Floats
    zero_point: Codes | None
    spec: QuantSpec

    def __post_init__(self) -> None:
        _require_matrix(self.codes.shape)
        grid = self.spec.make_grid()
        expected = (*self.codes.shape[:-1], self.spec.block_count(self.codes.shape[-1]))
        if self.codes.dtype != grid.code_dtype or self.scale.dtype != self.spec.scale_type:
            raise ValueError(
                f"codes {self.codes.dtype} and scale {self.scale.dtype} "
                f"where the spec says {grid.code_dtype} and {self.spec.scale_type}"
            )
        if self.scale.shape != expected:
            raise ValueError(f"scale has shape {self.scale.shape}, codes {self.codes.shape} need {expected}")
        points = self.zero_point
        if grid.has_zero_point != (points is not None):
            raise ValueError(
                f"zero point {'given' if points is not None else 'missing'} with symmetric={self.spec.symmetric}"
            )
        if points is not None and (points.shape != expected or points.dtype != grid.code_dtype):
            raise ValueError(f"zero point is {points.dtype}{points.shape}, not {grid.code_dtype}{expected}")

    @property
    def nbytes(self) -> int:
        """Bytes in a file: codes and zero points packed at `spec.storage_bits`, and the scales."""
        points = 0 if self.zero_point is None else self.zero_point.size
        return sum(-(-n * self.spec.storage_bits // 8) for n in (self.codes.size, points)) + self.scale.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits in a file for each weight, scales and zero points included."""
        return 8 * self.nbytes / self.codes.size


def quantize(weight: npt.NDArray[Any], spec: QuantSpec) -> Quantized:
    """Quantize a weight `[..., O, I]` of any float type (float64 is read as float32).

    Codes are computed against the scales as stored. Any memory layout will do, memory-mapped included; temporaries
    stay at a few MB (or a few rows, when these are longer).

    Raises:
        ValueError: not a non-empty float array of two or more axes; NaN or infinity in it (the first is named); a
            scale beyond the range of `spec.scale_dtype` (its row and block are named).
    """
    _require_matrix(weight.shape)
    _require_float(weight.dtype)
    grid = spec.make_grid()
    rule, rounding = SCALE_RULES.find(spec.scale), ROUNDINGS.find(spec.rounding)
    store = partial(store_scale, dtype=spec.scale_type)
    per_block = (*weight.shape[:-1], spec.block_count(weight.shape[-1]))
    codes = np.empty(weight.shape, grid.code_dtype)
    scale = np.empty(per_block, spec.scale_type)
    zero_point = np.empty(per_block, grid.code_dtype) if grid.has_zero_point else None
    for index in _row_chunks(weight.shape):
        rows = _finite_float32(weight, index)
        for columns, blocks_at, width in _block_runs(weight.shape[-1], spec.block_size):
            blocks = rows[:, columns].reshape(len(rows), -1, width)
            fit = rule(blocks, grid, store)
            codes[index][:, columns] = rounding(blocks, fit, grid).reshape(len(rows), -1)
            scale[index][:, blocks_at] = fit.scale
            if zero_point is not None:
                zero_point[index][:, blocks_at] = fit.zero_point
    _require_finite_scale(scale)
    return Quantized(codes, scale, zero_point, spec)


def dequantize(quantized: Quantized) -> npt.NDArray[np.float32]:
    """Return the weight `[..., O, I]` that the codes stand for: what ONNX DequantizeLinear computes, bit for bit.

    Float16 scales are widened before they multiply, as by a Cast to float32 in front of DequantizeLinear.
    """
    codes, points, spec = quantized.codes, quantized.zero_point, quantized.spec
    grid = spec.make_grid()
    weight = np.empty(codes.shape, np.float32)
    for index in _row_chunks(codes.shape):
        scale = quantized.scale[index].astype(np.float32)
        for columns, blocks_at, width in _block_runs(codes.shape[-1], spec.block_size):
            blocks = codes[index][:, columns].reshape(len(scale), -1, width)
            values = grid.decode(blocks, None if points is None else points[index][:, blocks_at])
            values *= scale[:, blocks_at, None]
            weight[index][:, columns] = values.reshape(len(scale), -1)
    return weight


def _row_chunks(shape: tuple[int, ...]) -> Iterator[_Index]:
    """Yield indices that cut `[..., O, I]` into `[rows, I]` pieces of about `_CHUNK` elements, in order."""
    *outer, rows, columns = shape
    step = max(1, _CHUNK // columns)
    for batch in np.ndindex(*outer):
        for start in range(0, rows, step):
            yield (*batch, slice(start, min(start + step, rows)))


def _block_runs(columns: int, block_size: int | None) -> Iterator[tuple[slice, slice, int]]:
    """Yield (columns, blocks, block width) of the full blocks of a row, then of its short last block."""
    width = min(block_size or columns, columns)
    count = columns // width
    yield slice(0, count * width), slice(0, count), width
    if count * width < columns:
        yield slice(count * width, columns), slice(count, count + 1), columns - count * width


def _finite_float32(weight: npt.NDArray[Any], index: _Index) -> npt.NDArray[np.float32]:
    """Return `weight[index]` `[rows, I]` as float32; ValueError names the first element that is not finite there."""
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(weight[index], dtype=np.float32)
    finite = np.isfinite(rows)
    if not finite.all():
        row, column = np.unravel_index(int(finite.argmin()), finite.shape)
        *batch, cut = index
        start = cut.start if isinstance(cut, slice) else cut
        where = [*batch, start + int(row), int(column)]
        raise ValueError(f"weight{where} is {weight[index][row, column]}: quantization needs finite float32 values")
    return rows


def _require_matrix(shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or prod(shape) == 0:
        raise ValueError(
            f"a weight of shape {list(shape)} cannot be quantized: it must be [..., outputs, inputs], not empty"
        )


def _require_float(dtype: np.dtype[Any]) -> None:
    if dtype.kind != "f" and dtype != ml_dtypes.bfloat16:
        raise ValueError(
            f"a weight of type {dtype} cannot be quantized: it must be float16, bfloat16, float32 or float64"
        )


def _require_finite_scale(scale: Floats) -> None:
    finite = np.isfinite(scale)
    if not finite.all():
        *row, block = (int(i) for i in np.unravel_index(int(finite.argmin()), finite.shape))
        raise ValueError(
            f"scale{[*row, block]} is beyond {scale.dtype}: choose a wider scale_dtype or skip this weight"
        )
