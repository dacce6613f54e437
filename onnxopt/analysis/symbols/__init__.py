"""Shapes, and elements of small tensors, as expressions of the sizes of a model's inputs."""

from onnxopt.analysis.symbols.expressions import Atom, Polynomial, Scalar, at_most, high, low
from onnxopt.analysis.symbols.facts import Affine, Element, Fact
from onnxopt.analysis.symbols.rules import Call
from onnxopt.analysis.symbols.walk import Symbols, constant_fact, symbols

__all__ = [
    "Affine", "Atom", "Call", "Element", "Fact", "Polynomial", "Scalar", "Symbols", "at_most", "constant_fact", "high",
    "low", "symbols",
]  # fmt: skip
