"""What is known of a value: its shape, and its elements where they are few or follow a rule."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.symbols.expressions import Polynomial, Scalar, high, low, product

Element: TypeAlias = int | float | bool | Polynomial
"""An element of a tensor; in a tensor of floats or booleans a polynomial is nothing but a name for it."""

Shape: TypeAlias = tuple[Scalar, ...]
Array: TypeAlias = npt.NDArray[Any]

MOST_ELEMENTS = 4096
"""Tensors with more elements have no content here."""

_MOST_SYMBOLIC = 256
"""The same for tensors with elements that are no numbers."""


PLAIN = frozenset((
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
))  # fmt: skip
"""Types whose numbers numpy has: only they have content, and numpy converts them as every runtime does."""


@dataclass(frozen=True, slots=True)
class Affine:
    """Elements that are `base + sum(step * index)` over the axes: constant tensors, counters along an axis.

    Attributes:
        base: the first element.
        steps: what each axis adds an index; 0 along axes of size 1.
    """

    base: Element
    steps: tuple[Scalar, ...]

    @property
    def uniform(self) -> bool:
        """Whether all elements are equal."""
        return not any(self.steps)


@dataclass(frozen=True, slots=True)
class Fact:
    """What holds of a value in every run that does not fail.

    Attributes:
        dtype: element type; None where it is unknown or the value is no tensor.
        shape: sizes of the axes; None for an unknown rank.
        content: its elements, of numpy's type where all are numbers and as objects where some are expressions.
        affine: its elements where they follow a rule, for tensors of any size.
    """

    dtype: ir.DataType | None = None
    shape: Shape | None = None
    content: Array | None = None
    affine: Affine | None = None

    @property
    def rank(self) -> int | None:
        """Number of axes; None where it is unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def known(self) -> bool:
        """Whether every element is a number."""
        return self.content is not None and self.content.dtype != object

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape where every size is a number."""
        sizes = tuple(size for size in self.shape or () if isinstance(size, int))
        return sizes if self.shape is not None and len(sizes) == len(self.shape) else None

    @property
    def uniform(self) -> Element | None:
        """The element that all elements equal; None where they differ, or there is none."""
        if self.affine is not None:
            return self.affine.base if self.affine.uniform else None
        if self.content is None or not self.content.size:
            return None
        first = self.content.flat[0]
        if self.content.dtype != object:
            return element(first) if bool(np.all(self.content == first)) else None
        return first if all(other is first or same(other, first) for other in self.content.flat) else None

    @property
    def elements(self) -> list[Element] | None:
        """All elements in order; None where they are not known one by one."""
        return None if self.content is None else [element(each) for each in self.content.flat]

    def as_affine(self) -> Affine | None:
        """The rule that the elements follow, also where they are known one by one."""
        if self.affine is not None or self.content is None or not self.content.size:
            return self.affine
        value = self.uniform
        if value is not None:
            return Affine(value, (0,) * self.content.ndim)
        if not is_integer(self.dtype):
            return None
        return _progression(self.content)


def is_integer(dtype: ir.DataType | None) -> bool:
    """Whether elements are integers that expressions compute with."""
    return dtype is not None and dtype.is_integer()


def element(value: Any) -> Element:
    """An array's element as a plain number or expression."""
    return value.item() if isinstance(value, np.generic) else value  # type: ignore[no-any-return]


def same(a: Element, b: Element) -> bool:
    """Whether two elements of one type are certainly equal; zeros of different sign are not, NaNs are not."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b and np.signbit(a) == np.signbit(b)
    return bool(a == b)


def _progression(content: Array) -> Affine | None:
    base = element(content.flat[0])
    if not isinstance(base, int | Polynomial) or (content.size > 64 * max(1, content.ndim) and content.dtype == object):
        return None
    steps: list[Scalar] = []
    for axis, size in enumerate(content.shape):
        second = tuple(1 if index == axis else 0 for index in range(content.ndim))
        step = element(content[second]) - base if size > 1 else 0  # type: ignore[operator]
        steps.append(step)  # type: ignore[arg-type]
    expected: Any = np.full((1,) * content.ndim, base, content.dtype)
    for axis, step in enumerate(steps):
        index = np.arange(content.shape[axis]).astype(content.dtype)
        expected = expected + (index * step).reshape([-1 if i == axis else 1 for i in range(content.ndim)])
    return Affine(base, tuple(steps)) if bool(np.all(expected == content)) else None


def span(fact: Fact) -> tuple[Scalar | None, Scalar | None]:
    """Bounds of the elements of a tensor of integers with a rule: expressions that they are not below, not above.

    Only where there are elements at all; in an empty tensor anything holds.
    """
    rule = fact.as_affine()
    if rule is None or fact.shape is None or not isinstance(rule.base, int | Polynomial):
        return None, None
    least: Scalar = rule.base
    most: Scalar = rule.base
    for step, size in zip(rule.steps, fact.shape, strict=True):
        down, up = low(step), high(step)
        if down is not None and down >= 0:
            most = most + step * (size - 1)
        elif up is not None and up <= 0:
            least = least + step * (size - 1)
        else:
            return None, None
    return least, most


def of_array(array: Array, dtype: ir.DataType | None) -> Fact:
    """The fact of an array of numbers or, as objects, of expressions; those that are all numbers become numbers."""
    array = np.asarray(array)
    if array.dtype == object:
        if dtype is not None and not any(isinstance(each, Polynomial) for each in array.flat):
            array = numbers(array, dtype)
        elif array.size > _MOST_SYMBOLIC:
            return Fact(dtype, tuple(array.shape))
    return Fact(dtype, tuple(array.shape), array if array.size <= MOST_ELEMENTS else None)


def numbers(array: Array, dtype: ir.DataType) -> Array:
    """An array of objects that are numbers, in the numpy type of `dtype`; integers wrap."""
    kind = np.dtype(dtype.numpy())
    if kind.kind in "iu":
        mask, half = (1 << (8 * kind.itemsize)) - 1, 1 << (8 * kind.itemsize - 1)
        wrapped = [int(each) & mask for each in array.flat]
        if kind.kind == "i":
            wrapped = [each - (mask + 1) if each >= half else each for each in wrapped]
        return np.array(wrapped, kind).reshape(array.shape)
    return np.array(list(array.flat), kind).reshape(array.shape)


def of_elements(elements: Sequence[Element], shape: Sequence[int], dtype: ir.DataType | None) -> Fact:
    """The fact of a tensor with these elements."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return of_array(array.reshape(tuple(shape)), dtype)


def scalar(value: Element, dtype: ir.DataType | None) -> Fact:
    """A tensor without axes."""
    return of_elements([value], (), dtype)


def filled(shape: Shape, value: Element, dtype: ir.DataType | None) -> Fact:
    """A tensor whose elements all equal one another; element by element where there are few."""
    fact = Fact(dtype, shape, None, Affine(value, (0,) * len(shape)))
    static = fact.static
    count = product(static) if static is not None else None
    if (
        static is None
        or not isinstance(count, int)
        or count > (_MOST_SYMBOLIC if isinstance(value, Polynomial) else MOST_ELEMENTS)
    ):
        return fact
    return replace(of_elements([value] * count, static, dtype), affine=fact.affine if count else None)
