"""Random inputs for a model, where no data are given."""

import ast
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
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

LENGTHS = (LENGTH, 28, 32, 64, 128, 224, 256, 299, 384, 512, 640, 1024, 16_000)
"""Sizes that networks are made for (images, audio), tried in turn where the default does not run."""

LEAST = (3, 8)
"""Small sizes that are tried first where an input is to be as small as it can be and still tell something.

Of size 1 is what is broadcast, and a softmax over one entry gives 1 whatever it reads.
"""

_MOST_ELEMENTS = 2**24
"""Larger inputs are not tried."""

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


def fitting(
    signature: Signature,
    given: Mapping[str, Shape] | None,
    bounds: Bounds | None,
    runs: Callable[[Mapping[str, Array]], bool],
    lengths: Sequence[int] | None = None,
) -> dict[str, Shape] | None:
    """Shapes that a model takes random inputs of, where it does not take the default ones.

    Tried in turn: the sizes of `LENGTHS`, in batches of two and of one, with the batch on the first axis or on an
    input's first symbolic one (`[layers, batch, hidden]`). A symbol has one size everywhere.

    Args:
        signature: the model's.
        given: input name -> shape that is not up for change.
        bounds: as for `synthetic`.
        runs: whether the model takes such inputs.
        lengths: sizes to try instead; the default ones are then not left out.

    Returns:
        The first shapes that it runs on; None where there are none.
    """
    for shapes in _ladder(signature, given or {}, lengths):
        if runs(synthetic(signature, shapes, bounds, 1, np.random.default_rng(0)).first().feeds):
            return shapes
    return None


def _ladder(
    signature: Signature, given: Mapping[str, Shape], lengths: Sequence[int] | None
) -> Iterator[dict[str, Shape]]:
    """Shapes of all inputs, in the order of the lengths, none twice; with those of `LENGTHS`, not the default ones."""
    seen = [input_shapes(signature, given)] if lengths is None else []
    for length, batch, leading in itertools.product(lengths or LENGTHS, (BATCH, 1), (True, False)):
        shapes = input_shapes(signature, given, Open(batch, length, leading))
        if shapes not in seen and all(prod(shape) <= _MOST_ELEMENTS for shape in shapes.values()):
            seen.append(shapes)
            yield shapes


@dataclass(frozen=True)
class Open:
    """Sizes of the symbolic axes that nothing else settles.

    Attributes:
        batch: the batch axis.
        length: any other.
        leading: whether the batch axis is the first one, or else the first symbolic one.
    """

    batch: int = BATCH
    length: int = LENGTH
    leading: bool = True

    def size(self, info: ValueInfo, axis: int) -> int:
        """Size of one axis of an input."""
        symbolic = (i for i, dim in enumerate(info.shape or ()) if not isinstance(dim, int))
        return self.batch if axis == (0 if self.leading else next(symbolic, 0)) else self.length


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

    def aligned(self, rows: Sequence[int], leads: Sequence[int]) -> tuple[Source, Mapping[str, str]]:
        """There are no labels."""
        return self, {}


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


def input_shapes(signature: Signature, given: Mapping[str, Shape], sizes: Open = Open()) -> dict[str, Shape]:
    """A concrete shape for each tensor input.

    Args:
        signature: the model's.
        given: input name -> shape, where it is known; symbols in it bind the other inputs.
        sizes: of symbolic axes that nothing else settles.

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
                symbols.setdefault(dim, sizes.size(info, axis))
    return {name: given.get(name) or _sized(info, symbols, sizes) for name, info in inputs.items()}


def _bound(inputs: Mapping[str, ValueInfo], given: Mapping[str, Shape]) -> dict[str, int]:
    """What the given shapes say of symbols."""
    symbols: dict[str, int] = {}
    for name, shape in given.items():
        if not fits(inputs[name], shape):
            raise DataError(f"input {name!r} takes {describe(inputs[name])}, the shape given is {list(shape)}")
        dims = inputs[name].shape or ()
        symbols |= {dim: size for dim, size in zip(dims, shape, strict=False) if isinstance(dim, str)}
    return symbols


def _sized(info: ValueInfo, symbols: Mapping[str, int], sizes: Open) -> Shape:
    if info.shape is None:
        raise DataError(f"input {info.name!r} has an unknown rank; give its shape (--shape {info.name}:1,2,3)")
    return tuple(_size(dim, sizes.size(info, axis), symbols) for axis, dim in enumerate(info.shape))


def _size(dim: int | str | None, default: int, symbols: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
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
