"""Random inputs for a model, where no data are given."""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxopt.data.archive import Array
from onnxopt.data.dataset import Dataset
from onnxopt.data.layout import batch_rows
from onnxopt.data.sources import RawBatch, Source
from onnxopt.data.survey import survey
from onnxopt.data.validate import describe, fits, nearest
from onnxopt.errors import DataError
from onnxopt.model import Signature, ValueInfo

BATCH, LENGTH = 2, 16
"""Sizes of symbolic axes that nothing else settles: the first axis, and any other."""

_WORDS = ("", "a", "word", "two words", "\u00fcnic\u00f6de")
_LONGEST_EXPRESSION = 200

Shape: TypeAlias = tuple[int, ...]
Bounds: TypeAlias = Mapping[str, tuple[int, int]]


def synthetic(
    signature: Signature,
    shapes: Mapping[str, Shape] | None,
    bounds: Bounds | None,
    samples: int,
    rng: np.random.Generator,
) -> Dataset:
    """Random inputs: standard normal floats, fair booleans, integers within bounds.

    Integers without bounds are 0 or 1, of 8 bits anything (images). A symbolic first axis gets size 2, other
    symbolic axes 16, and one symbol one size everywhere; sums, differences and products of symbols
    (`past + 1`) are computed. Inputs that are no tensors (optionals) are left out.

    Args:
        signature: the model's.
        shapes: input name -> shape, where it should be another; symbols in it bind the other inputs.
        bounds: integer input's name -> smallest and largest value (`analysis.index_bounds`).
        samples: how many samples at least; batches are of equal size.
        rng: its next number seeds all of them.

    Raises:
        DataError: a shape given that does not fit, or none for an input of unknown rank.
    """
    sizes = input_shapes(signature, shapes or {})
    infos = tuple(info for info in signature.inputs if info.name in sizes)
    rows, _ = batch_rows(signature, {name: np.broadcast_to(np.uint8(0), shape) for name, shape in sizes.items()})
    count = max(-(-samples // rows), 1)
    source = SyntheticSource(infos, sizes, dict(bounds or {}), int(rng.integers(2**63)), count)
    return survey(source, signature, "synthetic data", synthetic=True)


@dataclass(frozen=True)
class SyntheticSource:
    """Batches that are made when they are read, each from the seed and its number."""

    infos: Sequence[ValueInfo]
    shapes: Mapping[str, Shape]
    bounds: Bounds
    seed: int
    count: int

    def read(self, indices: Sequence[int] | None) -> Iterator[RawBatch]:
        """Draw the batches."""
        for index in range(self.count) if indices is None else indices:
            rng = np.random.default_rng([self.seed, index])
            arrays = {
                info.name: draw(info, self.shapes[info.name], self.bounds.get(info.name), rng) for info in self.infos
            }
            yield RawBatch(f"synthetic data, batch {index}", arrays)

    def aligned(self, rows: Sequence[int], leads: Sequence[int]) -> tuple[Source, Sequence[str]]:
        """There are no labels."""
        return self, ()


def draw(info: ValueInfo, shape: Shape, bounds: tuple[int, int] | None, rng: np.random.Generator) -> Array:
    """Random values of an input's dtype."""
    assert info.dtype is not None
    if info.dtype.is_string():
        return np.asarray(rng.choice(np.array(_WORDS, dtype=object), shape), dtype=object)
    dtype = info.dtype.numpy()
    values: Array
    if info.dtype.is_integer():
        low, high = _range(info.dtype, bounds)
        values = rng.integers(low, high, shape, dtype=np.int64, endpoint=True)
    elif info.dtype == ir.DataType.BOOL:
        values = rng.integers(0, 2, shape)
    else:
        values = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype.kind == "c" else 0)
        values = np.abs(values) if info.dtype == ir.DataType.FLOAT8E8M0 else values  # the one float without sign
    return np.asarray(values).astype(dtype)


def _range(dtype: ir.DataType, bounds: tuple[int, int] | None) -> tuple[int, int]:
    """Smallest and largest value, inside what the dtype (and int64, in which they are drawn) can hold."""
    least, most = int(dtype.min), min(int(dtype.max), 2**63 - 1)
    low, high = bounds or ((least, most) if dtype.bitwidth <= 8 else (0, 1))
    low = min(max(low, least), most)
    return low, min(max(high, low), most)


def input_shapes(signature: Signature, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """A concrete shape for each tensor input.

    Raises:
        DataError: as for `synthetic`.
    """
    inputs = {info.name: info for info in signature.inputs if info.dtype is not None}
    for name in given:
        if name not in inputs:
            raise DataError(f"a shape for {name!r}, which is no tensor input of the model{nearest(name, list(inputs))}")
    symbols = _bound(inputs, given)
    for info in inputs.values():
        for axis, dim in enumerate(info.shape or ()):
            if isinstance(dim, str) and _evaluated(dim, {}) is None and dim.isidentifier():
                symbols.setdefault(dim, LENGTH if axis else BATCH)
    return {name: given.get(name) or _sized(info, symbols) for name, info in inputs.items()}


def _bound(inputs: Mapping[str, ValueInfo], given: Mapping[str, Shape]) -> dict[str, int]:
    """What the given shapes say of symbols."""
    symbols: dict[str, int] = {}
    for name, shape in given.items():
        if not fits(inputs[name], shape):
            raise DataError(f"input {name!r} takes {describe(inputs[name])}, the shape given is {list(shape)}")
        dims = inputs[name].shape or ()
        symbols |= {dim: size for dim, size in zip(dims, shape, strict=False) if isinstance(dim, str)}
    return symbols


def _sized(info: ValueInfo, symbols: Mapping[str, int]) -> Shape:
    if info.shape is None:
        raise DataError(f"input {info.name!r} has an unknown rank; give its shape (--shape {info.name}:1,2,3)")
    return tuple(_size(dim, axis, symbols) for axis, dim in enumerate(info.shape))


def _size(dim: int | str | None, axis: int, symbols: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    default = LENGTH if axis else BATCH
    if dim is None:
        return default
    found = symbols.get(dim)
    found = _evaluated(dim, symbols) if found is None else found
    return default if found is None or found < 0 else found


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: int.__add__,
    ast.Sub: int.__sub__,
    ast.Mult: int.__mul__,
    ast.FloorDiv: int.__floordiv__,
}


def _evaluated(expression: str, symbols: Mapping[str, int]) -> int | None:
    """An arithmetic expression of symbols, as exporters write them; None where it is none."""
    if len(expression) > _LONGEST_EXPRESSION:
        return None
    try:
        return _value(ast.parse(expression, mode="eval").body, symbols)
    except (SyntaxError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _value(node: ast.expr, symbols: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return symbols[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, symbols), _value(right, symbols))
    raise ValueError("no arithmetic")
