"""Shapes with numbers for open sizes, where expressions of them tell too little."""

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnxopt.analysis.symbols import Scalar, Symbols, symbols
from onnxopt.model import Model

_CHOICES = ((3, 1607, 1613, 1619, 1621), (5, 2017, 2027, 2029, 2039))
"""Sizes for open axes, first axes first: primes, so that none is a factor of another by accident."""


def at_sizes(model: Model) -> list[Symbols]:
    """What holds of a model's shapes at two choices of open sizes."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return [symbols(model, _sizes(inputs, choice)) for choice in _CHOICES]


def _sizes(inputs: Iterable[ir.Value], choice: Sequence[int]) -> dict[str, tuple[Scalar, ...]]:
    """Shapes of the inputs with numbers for open sizes: one a name, small ones for first axes."""
    named: dict[str, int] = {}
    found: dict[str, tuple[Scalar, ...]] = {}
    for value in inputs:
        sizes: list[Scalar] = []
        for place, dim in enumerate(value.shape or ()):
            name = (dim.value if isinstance(dim, ir.SymbolicDim) else None) or f"{value.name}.{place}"
            known = dim if isinstance(dim, int) and dim > 0 else named.get(name)
            named[name] = known or (choice[0] if place == 0 else choice[1 + len(named) % (len(choice) - 1)])
            sizes.append(known or named[name])
        found[value.name or ""] = tuple(sizes)
    return found
