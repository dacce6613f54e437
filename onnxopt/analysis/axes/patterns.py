"""What is the same for every input, as numbers along the axes of a value; the registry of what operators do to them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.structure import constant_array, constant_tensor
from onnxopt.analysis.symbols import Call as Known
from onnxopt.analysis.symbols import Scalar

Pattern: TypeAlias = npt.NDArray[np.float64]
"""Numbers of a value, of its rank: an axis is as long as the value's, or 1 where the numbers are the same all along it.
NaN stands for what depends on the input."""

MOST = 1 << 20
"""Patterns with more numbers are not kept."""


class Open(ValueError):
    """Nothing can be told: a size is open, or there are too many numbers."""


@dataclass(frozen=True)
class Given:
    """A node and what is constant of what it reads.

    Attributes:
        node: the node.
        known: what holds of the shapes and the small integers that it reads.
        channels: of the model.
        patterns: of values that nodes make; those of which nothing is constant are left out.
    """

    node: ir.Node
    known: Known
    channels: Channels
    patterns: Mapping[ir.Value, Pattern]

    def pattern(self, index: int) -> Pattern:
        """The numbers of an input, be it computed or constant.

        Raises:
            Open: the rank is unknown, or there are too many.
        """
        value = self.node.inputs[index]
        assert value is not None
        if value in self.patterns:
            return self.patterns[value]
        tensor = constant_tensor(value) if self.channels.is_constant(value) else None
        if tensor is not None and tensor.size <= MOST:
            return np.asarray(tensor.numpy()).astype(np.float64)
        return np.full((1,) * len(self.shape(index)), np.nan)

    def constant(self, index: int) -> npt.NDArray[Any] | None:
        """What a constant input holds; None for a computed one, or one that is left out."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return constant_array(value) if self.channels.is_constant(value) else None

    def shape(self, index: int) -> tuple[Scalar, ...]:
        """Shape of an input.

        Raises:
            Open: the rank is unknown.
        """
        return _ranked(self.known.shape(index))

    def shape_out(self, index: int = 0) -> tuple[Scalar, ...]:
        """Shape of an output, likewise."""
        return _ranked(self.channels.symbols.of(self.node.outputs[index]).shape)

    def stretched(self, pattern: Pattern, index: int, places: Iterable[int]) -> Pattern:
        """The pattern of an input with the numbers of some axes one by one.

        Raises:
            Open: a size is open, or there are too many.
        """
        wanted: list[Scalar] = list(pattern.shape)
        for place in places:
            wanted[place] = self.shape(index)[place]
        return spread(pattern, wanted)

    def reads(self) -> bool:
        """Whether anything is constant of what a node made and this one reads."""
        return any(value in self.patterns for value in self.node.inputs if value is not None)

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()


def spread(pattern: Pattern, shape: Sequence[Scalar]) -> Pattern:
    """The pattern over a whole shape.

    Raises:
        Open: a size is open, or there are too many numbers.
    """
    sizes = numbers(shape)
    if prod(sizes) > MOST:
        raise Open("too many numbers")
    return np.broadcast_to(pattern, sizes)


def numbers(sizes: Iterable[Scalar]) -> list[int]:
    """Sizes that are numbers.

    Raises:
        Open: one is not.
    """
    sizes = list(sizes)
    found = [size for size in sizes if isinstance(size, int)]
    if len(found) < len(sizes):
        raise Open("a size is open")
    return found


def level(pattern: Pattern, places: Iterable[int]) -> Pattern:
    """One number for all entries of some axes, where they have the same."""
    axes = tuple(place for place in places if pattern.shape[place] != 1)
    if not axes:
        return pattern
    low, high = pattern.min(axes, keepdims=True), pattern.max(axes, keepdims=True)
    return np.where(low == high, low, np.nan)


def shrunk(pattern: Pattern) -> Pattern:
    """The same with axes of size 1 where all entries are alike."""
    for place in range(pattern.ndim):
        first = pattern.take([0], place)
        if pattern.shape[place] > 1 and np.array_equal(pattern, np.broadcast_to(first, pattern.shape), equal_nan=True):
            pattern = first
    return pattern


def _ranked(shape: tuple[Scalar, ...] | None) -> tuple[Scalar, ...]:
    if shape is None or 0 in shape:
        raise Open("a rank is unknown, or there are no entries")
    return shape


Effect: TypeAlias = Callable[[Given], Pattern | Sequence[Pattern]]
"""What is constant of what a node gives; Open where nothing is."""

EFFECTS: dict[str, Effect] = {}
"""Operator of the default domain -> its effect. One that is not here leaves nothing constant."""

STARTS: set[str] = set()
"""Operators that make constants of what is none: layers with rows of zeros, products with 0."""


def effect(*ops: str, starts: bool = False) -> Callable[[Effect], Effect]:
    """Register the effect of operators; `starts`: see STARTS."""

    def register(function: Effect) -> Effect:
        EFFECTS.update(dict.fromkeys(ops, function))
        STARTS.update(ops if starts else ())
        return function

    return register
