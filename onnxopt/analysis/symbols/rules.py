"""The registry of rules, one an operator, and what a rule gets to see."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnxopt.analysis.symbols.expressions import Polynomial, Scalar, Space
from onnxopt.analysis.symbols.facts import Affine, Fact, Shape, is_integer
from onnxopt.analysis.symbols.functions import broadcast

UNKNOWN = Fact()


@dataclass(frozen=True)
class Call:
    """A node with what is known of its inputs.

    Attributes:
        inputs: one an input; None where an optional one is left out.
    """

    node: ir.Node
    inputs: tuple[Fact | None, ...]
    space: Space
    opset: int

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def fact(self, index: int) -> Fact:
        """What is known of an input; nothing, where it is left out."""
        found = self.inputs[index] if index < len(self.inputs) else None
        return UNKNOWN if found is None else found

    def shape(self, index: int) -> Shape | None:
        """Shape of an input; None for an unknown rank."""
        return self.fact(index).shape

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return self.node.attributes.get_int(name, default)

    def integers(self, index: int, name: str = "") -> list[Scalar] | None:
        """Integers given by an input or, in older opsets, by an attribute; None where they are not known."""
        if self.has(index):
            fact = self.fact(index)
            found = fact.elements if is_integer(fact.dtype) else None
            return None if found is None else [each for each in found if isinstance(each, int | Polynomial)]
        attribute = self.node.attributes.get(name) if name else None
        return list(attribute.as_ints()) if attribute is not None else None

    def numbers(self, index: int, name: str = "") -> list[int] | None:
        """The same where all of them are numbers."""
        found = self.integers(index, name)
        return None if found is None else only_numbers(found)

    def given(self, index: int, name: str) -> bool:
        """Whether what an input or an attribute may give is given at all."""
        return self.has(index) or name in self.node.attributes


Rule: TypeAlias = Callable[[Call], Sequence[Fact]]

RULES: dict[str, Rule] = {}
"""Operator of the default domain -> its rule; those of other domains as `DOMAIN::OPERATOR`."""

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys((key(domain, op) for op in ops), function))
        return function

    return register


def key(domain: str, op: str) -> str:
    """What the rule of an operator is registered under."""
    return op if domain in ("", "ai.onnx") else f"{domain}::{op}"


def only_numbers(values: Iterable[Scalar]) -> list[int] | None:
    """The values if none of them is an expression."""
    values = list(values)
    numbers = [value for value in values if isinstance(value, int)]
    return numbers if len(numbers) == len(values) else None


def normalized(axis: int, rank: int) -> int:
    """An axis counted from the front; IndexError where there is none such."""
    if not -rank <= axis < rank:
        raise IndexError(f"no axis {axis} of {rank}")
    return axis % rank


def broadcast_shapes(space: Space, shapes: Iterable[Shape | None], *, meet: bool = True) -> Shape | None:
    """Shape of the result of an operator that combines tensors element by element.

    Args:
        space: of the sizes.
        shapes: of the operands.
        meet: whether it goes wrong where sizes differ and neither is 1; Expand takes a size of 1 for any.
    """
    result: Shape = ()
    for shape in shapes:
        if shape is None:
            return None
        count = max(len(result), len(shape))
        left, right = padded(result, count), padded(shape, count)
        result = tuple(broadcast(space, a, b, meet) for a, b in zip(left, right, strict=True))
    return result


def padded(shape: Shape, rank: int) -> Shape:
    """The shape with axes of size 1 in front."""
    return (1,) * (rank - len(shape)) + shape


def aligned(rule: Affine, shape: Shape, result: Shape) -> tuple[Scalar, ...] | None:
    """The steps of a tensor along the axes of what it is broadcast to; None where that is not certain.

    Along an axis that may or may not be repeated only a constant stays a rule.
    """
    steps = (0,) * (len(result) - len(shape)) + rule.steps
    for step, size, full in zip(steps, padded(shape, len(result)), result, strict=True):
        if step != 0 and size != full:
            return None
    return steps
