"""What is certain of a model's nodes and values in every run: what rules of rewriting ask."""

from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.symbols import Call, Fact, Symbols, constant_fact, indexing, symbols
from onnxopt.analysis.symbols.facts import Shape
from onnxopt.analysis.symbols.repeats import repeated
from onnxopt.model import Model
from onnxopt.passes.clean import is_constant

Array: TypeAlias = npt.NDArray[Any]

_READ_BYTES = 2**20
"""Larger constants are not looked into."""


class Known:
    """What rules may ask: what is certain of values in every run of the model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._heirs: dict[ir.Value, ir.Value] = {}

    @cached_property
    def _symbols(self) -> Symbols:
        """As the model is when first asked; rewrites change no value that stays."""
        return symbols(self.model)

    def inherit(self, value: ir.Value, of: ir.Value) -> None:
        """Let a new value have the facts of the one whose place it takes."""
        self._heirs[value] = self._heirs.get(of, of)

    def _fact(self, value: ir.Value | None) -> Fact:
        found = self._symbols.of(None if value is None else self._heirs.get(value, value))
        new = found.shape is None and value is not None and is_constant(self.model, value)
        return constant_fact(value) if new and value is not None else found

    def call(self, node: ir.Node) -> Call:
        """A node with what is known of its inputs."""
        inputs = tuple(None if value is None else self._fact(value) for value in node.inputs)
        return Call(node, inputs, self._symbols.space, self.model.opset)

    def repeated(self, node: ir.Node) -> ir.Value | None:
        """The input that a node's first output equals, as far as shapes tell; None where none is known to."""
        index = repeated(self.call(node), self._fact(node.outputs[0]))
        return None if index is None else node.inputs[index]

    def dims(self, value: ir.Value | None) -> Shape | None:
        """Sizes of the axes: numbers, and expressions of the sizes of inputs; None for an unknown rank."""
        return self._fact(value).shape

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of axes, where it is known."""
        return self._fact(value).rank

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type; None where it is unknown or the value is no tensor."""
        return self._fact(value).dtype

    def array(self, value: ir.Value | None) -> Array | None:
        """The content of a small constant of numbers."""
        if value is None or not is_constant(self.model, value):
            return None
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes > _READ_BYTES or tensor.dtype == ir.DataType.STRING:
            return None
        return np.asarray(tensor.numpy())

    def integers(self, value: ir.Value | None) -> list[int] | None:
        """The content of a small constant of integers, as a flat list."""
        array = self.array(value)
        return None if array is None or array.dtype.kind not in "iu" else [int(entry) for entry in array.ravel()]

    def is_all(self, value: ir.Value | None, number: float) -> bool:
        """Whether a small constant has entries and all of them are this number."""
        array = self.array(value)
        return array is not None and array.size > 0 and bool(np.all(array == np.asarray(number, array.dtype)))

    def same_shape(self, a: ir.Value | None, b: ir.Value | None) -> bool:
        """Whether two values have the same shape in every run."""
        x, y = self.dims(a), self.dims(b)
        return x is not None and x == y

    def keeps_shape(self, value: ir.Value | None, other: ir.Value | None) -> bool:
        """Whether broadcasting `value` with `other` gives the shape of `value` in every run."""
        small, large = self.dims(other), self.dims(value)
        if small == ():
            return True
        if small is None or large is None or len(small) > len(large):
            return False
        pairs = zip(reversed(small), reversed(large), strict=False)
        return all(s in (1, d) for s, d in pairs)


def ints_of(node: ir.Node, name: str) -> list[int] | None:
    """A list attribute; None where it is missing."""
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else [int(entry) for entry in attribute.as_ints()]


def int_of(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else int(attribute.as_int())


def text_of(node: ir.Node, name: str, default: str) -> str:
    """A string attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_string()


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes a value as its first output, if it is one of these standard operators."""
    producer = None if value is None else value.producer()
    if producer is None or producer.domain or producer.op_type not in op_types or value is not producer.outputs[0]:
        return None
    return producer


def read_once(value: ir.Value) -> bool:
    """Whether one node is all that reads a value, once."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def cuts(node: ir.Node, known: Known) -> dict[int, tuple[int, int, int]] | None:
    """What a Slice takes of each axis, as it counts them: start, end, step; None where that is not known in numbers."""
    found = indexing.cuts(known.call(node)) or {}
    numbers = {
        axis: (start, end, step)
        for axis, (start, end, step) in found.items()
        if isinstance(start, int) and isinstance(end, int)
    }
    return numbers if numbers and len(numbers) == len(found) else None
