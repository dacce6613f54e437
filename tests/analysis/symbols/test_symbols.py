"""What the walk finds holds at every size that the runtime takes."""

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxopt.analysis.symbols import Atom, Fact, Polynomial, Symbols, symbols
from onnxopt.model import Model, load

chains = runpy.run_path(str(Path(__file__).parents[2] / "shape_chains.py"))


class Unknown(Exception):
    """An expression holds something that is not known before the model runs."""


def evaluate(value: Any, sizes: Mapping[tuple[str, int], int]) -> Any:
    """An expression at some sizes."""
    if not isinstance(value, Polynomial):
        return value
    return sum(c * int(np.prod([of_atom(atom, sizes) for atom in m], dtype=object)) for m, c in value.terms.items())


def of_atom(atom: Atom, sizes: Mapping[tuple[str, int], int]) -> int:
    if atom.kind == "dim":
        return sizes[atom.args]  # type: ignore[index]
    if atom.kind == "fresh":
        raise Unknown
    found = _function(atom.kind, [evaluate(arg, sizes) for arg in atom.args], sizes)
    assert atom.low is None or atom.low <= found
    assert atom.high is None or found <= atom.high
    return found


def _function(kind: str, args: list[Any], sizes: Mapping[tuple[str, int], int]) -> int:
    if kind == "div":
        return int(abs(args[0]) // abs(args[1])) * (1 if (args[0] < 0) == (args[1] < 0) else -1)
    if kind == "mod":
        return int(args[0] % args[1])
    if kind in ("min", "max"):
        return int({"min": min, "max": max}[kind](args))
    if kind == "bound":
        index, size = args
        return int(min(max(index + size if index < 0 else index, 0), size))
    if kind == "broadcast":
        found = {evaluate(arg, sizes) for arg in args[0]} - {1}
        return int(found.pop()) if found else 1
    raise Unknown


def check(fact: Fact, actual: np.ndarray, sizes: Mapping[tuple[str, int], int]) -> int:
    """Fail where a fact does not hold; how many facts were checked."""
    checked = 0
    if fact.shape is not None:
        assert len(fact.shape) == actual.ndim
        for size, real in zip(fact.shape, actual.shape, strict=True):
            checked += _agrees(size, real, sizes)
    if fact.content is not None:
        for element, real in zip(fact.elements or (), actual.flat, strict=True):
            checked += _agrees(element, real, sizes)
    if fact.affine is not None and actual.size:
        for index in {tuple(0 for _ in actual.shape), tuple(size - 1 for size in actual.shape)}:
            expected = fact.affine.base
            for step, at in zip(fact.affine.steps, index, strict=True):
                expected = expected + step * at if step else expected
            checked += _agrees(expected, actual[index], sizes)
    if fact.dtype is not None:
        assert fact.dtype.numpy() == actual.dtype
    return checked


def _agrees(found: Any, real: Any, sizes: Mapping[tuple[str, int], int]) -> int:
    try:
        assert evaluate(found, sizes) == real
    except Unknown:
        return 0
    return 1


def known_sizes(sizes: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Input and axis -> size."""
    return {
        (name, axis): sizes.get(dim, dim) for name, dims in chains["INPUTS"].items() for axis, dim in enumerate(dims)
    }


def facts(model: Model) -> tuple[Symbols, dict[str, Fact]]:
    found = symbols(model)
    return found, {value.name or "": found.of(value) for node in found.order for value in node.outputs}


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_is_found_of_random_graphs_holds(data: st.DataObject) -> None:
    chain = chains["chain"](data.draw, 14)
    _, found = facts(load(chain.model(list(chain.values)[3:])))
    for at, sizes in enumerate(chains["SIZES"]):
        for name in list(chain.values)[3:]:
            check(found[name], chain.values[name][at], known_sizes(sizes))
