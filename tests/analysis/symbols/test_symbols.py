"""What the walk finds holds at every size that the runtime takes."""

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxopt.analysis.symbols import Atom, Fact, Polynomial, Symbols, at_most, symbols
from onnxopt.analysis.symbols.expressions import Space
from onnxopt.analysis.symbols.functions import absolute, larger, modulo, quotient, sliced, smaller
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


def truncated(a: int, b: int) -> int:
    return int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


@settings(max_examples=300)
@given(st.data())
def test_functions_of_expressions_are_those_of_their_values(data: st.DataObject) -> None:
    space = Space()
    sizes = {("x", axis): data.draw(st.integers(0, 9)) for axis in (0, 1)}
    values: list[Any] = [space.dim("x", 0, None), space.dim("x", 1, None), *data.draw(st.lists(st.integers(-5, 12)))]
    operations: dict[str, Any] = {
        "+": (lambda a, b: a + b, lambda a, b: a + b),
        "-": (lambda a, b: a - b, lambda a, b: a - b),
        "*": (lambda a, b: a * b, lambda a, b: a * b),
        "/": (lambda a, b: quotient(space, a, b), truncated),
        "%": (lambda a, b: modulo(space, a, b), lambda a, b: a % b),
        "min": (lambda a, b: smaller(space, a, b), min),
        "max": (lambda a, b: larger(space, a, b), max),
        "abs": (lambda a, b: absolute(space, a), lambda a, b: abs(a)),
    }
    for _ in range(data.draw(st.integers(1, 6))):
        symbolic, plain = operations[name := data.draw(st.sampled_from(sorted(operations)))]
        a, b = (data.draw(st.sampled_from(values)) for _ in range(2))
        left, right = evaluate(a, sizes), evaluate(b, sizes)
        if name in "/%" and right == 0:
            continue
        found = symbolic(a, b)
        assert evaluate(found, sizes) == plain(left, right)
        assert not at_most(a, b) or left <= right
        values.append(found)


def test_equal_expressions_compare_equal() -> None:
    space = Space()
    a, b = space.dim("x", 0, None), space.dim("x", 1, None)
    assert (a + b) * (a - b) == a * a - b * b
    assert quotient(space, 6 * a * b, 3 * b) == 2 * a
    assert quotient(space, 64 * a, 128) == quotient(space, a, 2)
    assert modulo(space, 4 * a + 3, 2) == 1
    assert larger(space, a, b) == larger(space, b, a)
    assert quotient(space, a + 7, 2) == quotient(space, a + 1, 2) + 3
    assert a - a == 0
    assert isinstance(a - a, int)


@pytest.mark.parametrize("step", [1, 2, 3, -1, -2])
def test_slices_of_numbers(step: int) -> None:
    space = Space()
    for size in range(1, 6):
        for start in range(-7, 8):
            for end in range(-7, 8):
                first, count = sliced(space, size, start, end, step)
                place = start + size if start < 0 else start
                stop = end + size if end < 0 else end
                place = min(max(place, 0), size if step > 0 else size - 1)
                stop = min(max(stop, 0), size) if step > 0 else min(max(stop, -1), size - 1)
                expected = list(range(place, stop, step))
                assert [first + step * index for index in range(count)] == expected  # type: ignore[operator, arg-type]


def shape_of(text: str, name: str) -> Any:
    _, found = facts(load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')))
    return found[name]


def test_an_open_axis_broadcast_with_a_fixed_one_is_fixed() -> None:
    assert shape_of("g (float[b] x, float[4] w) => (float[4] y) { y = Add(x, w) }", "y").shape == (4,)
    assert shape_of("g (float[b] x, float[1] w) => (float[b] y) { y = Add(w, x) }", "y").static is None


def test_the_first_positions_of_a_table_fit_what_they_are_added_to() -> None:
    """`table[:s] + x`: more positions than the table has would not fit, so the result is as long as x."""
    text = """g (float[s, 2] x) => (float[s, 2] y) <float[3, 2] table = {0, 1, 2, 3, 4, 5}, int64[1] i0 = {0}> {
        n = Shape(x) s = Gather(n, i0) head = Slice(table, i0, s, i0) y = Add(head, x) m = Shape(y) d = Equal(m, n) }"""
    assert shape_of(text, "d").content.tolist() == [True, True]


def test_a_counter_that_may_be_repeated_is_no_counter() -> None:
    text = """g (float[b] x, float[c] z) => (int64[d] y) <int64 i0 = {0}, int64 i1 = {1}> {
        n = Shape(x) b = Squeeze(n) r = Range(i0, b, i1) m = Shape(z) zeros = ConstantOfShape<value = int64[1] {0}>(m)
        y = Add(r, zeros) k = Add(r, i1) }"""
    assert shape_of(text, "y").affine is None
    assert shape_of(text, "k").affine.base == 1


def test_sizes_of_empty_axes_decide_nothing() -> None:
    """Caches of decoders start with no entries at all."""
    text = """g (float[b] x) => (bool[1] y) <int64[1] i0 = {0}, int64[1] less = {-1}> {
        n = Shape(x) y = Greater(n, i0) k = Greater(n, less) }"""
    assert not shape_of(text, "y").known
    assert shape_of(text, "k").content.tolist() == [True]


def test_clipped_numbers_are_followed() -> None:
    """Padding that depends on the size of an image is computed so."""
    text = """g (float[b, 7] x) => (int64[4] y) <int64 i1 = {1}, int64[2] twice = {2, 2}, int64 two = {2}> {
        n = Shape(x) low = Clip(n, two) high = Clip(twice, , i1) both = Clip(n, two, two)
        y = Concat<axis = 0>(both, high) }"""
    assert shape_of(text, "y").content.tolist()[1:] == [2, 1, 1]
    assert shape_of(text, "low").content.tolist()[1] == 7
    for size in (1, 9):
        assert _function("max", [size, 2], {}) == evaluate(shape_of(text, "low").content[0], {("x", 0): size})


def test_old_bounds_are_attributes() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 6]> g (float[2] x) => (float[2] y) {
        c = Constant<value = float[2] {-3.0, 0.25}>() y = Clip<min = -1.0, max = 0.0>(c) }""")
    _, found = facts(load(model))
    assert found["y"].content.tolist() == [-1, 0]


def test_statistics_of_a_batch_are_as_long_as_it_has_channels() -> None:
    text = """g (float[b, 7, c] x, float[7] v) => (float[b, 7, c] y) {
        y, mean, variance = BatchNormalization<training_mode = 1>(x, v, v, v, v) }"""
    assert shape_of(text, "mean").shape == shape_of(text, "variance").shape == (7,)


@pytest.mark.parametrize(("axis", "slices"), [(0, [4]), (1, ["dim(x, 0)"]), (-1, ["dim(x, 0)"])])
def test_a_scan_hands_slices_and_states_to_its_body(axis: int, slices: list[Any]) -> None:
    """Whatever the body declares; a state keeps its shape, as the runtime demands."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[3, 2] a, float[N, 4] x) => (float[A, B] y, float[C, D] z) {{
            y, z = Scan<
                num_scan_inputs = 1, scan_input_axes = [{axis}],
                body = body (float[1, 1, 1] s, float e) => (float[] t, float[] u) {{ t = Neg(s)  u = Exp(e) }}
            >(a, x)
        }}
    """)
    found = symbols(load(model))
    shapes = {node.op_type: found.of(node.outputs[0]).shape for node in found.order}
    assert shapes["Neg"] == (3, 2)
    assert [size if isinstance(size, int) else "dim(x, 0)" for size in shapes["Exp"] or ()] == slices
