"""Arithmetic with constants in a row, and limits in a row: one node does as well."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.model import Model
from onnxopt.passes.known import Array, Known, input_of, made_by, read_once
from onnxopt.passes.rewriting import Outcome, Put, Rules, rewrite
from onnxopt.passing import Context, Findings, Pass

_CANCELLED = {2: 2.0, 4: 100.0, 8: 1e6}
"""Bytes of a type -> how many times larger than their sum two constants may be: rounding that they bring about grows
as much."""

_FACTORS = (1e-6, 1e6)
"""Sizes of factors that no intermediate result overflows or vanishes by."""


class MergeArithmetic(Pass):
    """Merge additions of constants, multiplications by constants, and limits (Relu, Clip) that follow one another.

    Constants are computed in double precision. Those that nearly cancel stay apart: the sum of both would be more
    exact than the model is.
    """

    def run(self, model: Model, context: Context) -> Findings:
        return rewrite(model, RULES, self.name)


@dataclass(frozen=True)
class _Step:
    """x + sign * number, or x * number ** sign."""

    source: ir.Value
    number: Array
    sign: int


def _step(node: ir.Node, known: Known) -> _Step | None:
    if {"axis", "broadcast"} & node.attributes.keys():  # before opset 7
        return None
    for place in (1, 0) if node.op_type in ("Add", "Mul") else (1,):
        source, number = node.inputs[1 - place], known.array(node.inputs[place])
        if source is None or number is None or known.array(source) is not None:
            continue
        if number.dtype.kind in "fiuV":
            return _Step(source, number, 1 if node.op_type in ("Add", "Mul") else -1)
    return None


def _steps(node: ir.Node, known: Known, *op_types: str) -> tuple[_Step, _Step] | None:
    """Two such nodes of which nobody else reads the first, with constants that stay as small as they are."""
    inner, then = None, _step(node, known)
    if then is not None:
        inner = made_by(then.source, *op_types)
    if inner is None or then is None or not read_once(inner.outputs[0]) or inner.graph is not node.graph:
        return None
    first = _step(inner, known)
    if first is None or first.number.dtype != then.number.dtype:
        return None
    try:
        size = np.broadcast(first.number, then.number).size
    except ValueError:
        return None
    return (first, then) if size <= max(first.number.size, then.number.size) else None


def _sums(node: ir.Node, known: Known) -> Outcome:
    steps = _steps(node, known, "Add", "Sub")
    if steps is None:
        return None
    (a, b), dtype = steps, steps[0].number.dtype
    what = "two additions of constants are one"
    if dtype.kind in "iu":
        with np.errstate(over="ignore"):
            whole = _signed(a) + _signed(b)
        return Put("Add", [a.source, whole], {}, what)
    total = a.sign * a.number.astype(np.float64) + b.sign * b.number.astype(np.float64)
    largest = max(float(np.linalg.norm(step.number.astype(np.float64))) for step in steps)
    if largest > _CANCELLED.get(dtype.itemsize, 1.0) * float(np.linalg.norm(total)):
        return "the constants that it and the node before it add cancel, and with them what rounding leaves of x"
    stored = _stored(total, dtype)
    return None if stored is None else Put("Add", [a.source, stored], {}, what)


def _signed(step: _Step) -> Array:
    return step.number if step.sign > 0 else np.zeros_like(step.number) - step.number


def _products(node: ir.Node, known: Known) -> Outcome:
    steps = _steps(node, known, "Mul", "Div")
    if steps is None:
        return None
    (a, b), dtype = steps, steps[0].number.dtype
    what = "two multiplications by constants are one"
    if dtype.kind in "iu":
        if a.sign < 0 or b.sign < 0:
            return None
        with np.errstate(over="ignore"):
            return Put("Mul", [a.source, np.asarray(a.number * b.number)], {}, what)
    factors = [np.abs(step.number.astype(np.float64)) for step in steps]
    if not all(np.all((factor >= _FACTORS[0]) & (factor <= _FACTORS[1])) for factor in factors):
        return "the constants that it and the node before it multiply by are too large or small for one product"
    total = a.number.astype(np.float64) ** a.sign * b.number.astype(np.float64) ** b.sign
    stored = _stored(total, dtype)
    return None if stored is None else Put("Mul", [a.source, stored], {}, what)


def _stored(total: Array, dtype: np.dtype[np.generic]) -> Array | None:
    """Numbers in a type that holds them about as exactly as others of that type; None also where one is infinite."""
    if not np.isfinite(total).all():
        return None
    with np.errstate(over="ignore", under="ignore"):
        stored = np.asarray(total.astype(dtype))
    error = np.abs(stored.astype(np.float64) - total)
    return stored if np.all(error <= 2.0 ** (1 - _PRECISION.get(dtype.name, 1)) * np.abs(total)) else None


_PRECISION = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


@dataclass(frozen=True)
class _Limits:
    """Numbers are kept within `low` and `high`; `given` has the values that say so."""

    low: float
    high: float
    given: tuple[ir.Value | None, ir.Value | None] = (None, None)
    dtype: np.dtype[np.generic] | None = None


def _limits(node: ir.Node, known: Known) -> _Limits | None:
    if node.op_type == "Relu":
        return _Limits(0.0, np.inf)
    if known.model.opset < 11:
        ends = [node.attributes.get(name) for name in ("min", "max")]
        low, high = (d if end is None else end.as_float() for end, d in zip(ends, (-np.inf, np.inf), strict=True))
        return _Limits(low, high)
    given = input_of(node, 1), input_of(node, 2)
    arrays = [known.array(value) for value in given]
    if any(v is not None and (array is None or array.size != 1) for v, array in zip(given, arrays, strict=True)):
        return None
    low, high = (d if a is None else float(a.ravel()[0]) for a, d in zip(arrays, (-np.inf, np.inf), strict=True))
    if any(array is not None and array.dtype.kind in "iu" and abs(int(array.ravel()[0])) > 2**53 for array in arrays):
        return None  # no float is it
    dtype = next((array.dtype for array in arrays if array is not None), None)
    return _Limits(low, high, given, dtype)


def _clips(node: ir.Node, known: Known) -> Outcome:
    inner = made_by(node.inputs[0], "Clip", "Relu")
    if inner is None or inner.op_type == node.op_type == "Relu" or known.model.opset < 6:
        return None
    first, then = _limits(inner, known), _limits(node, known)
    if first is None or then is None or not read_once(inner.outputs[0]):
        return None
    if not (first.low <= first.high and then.low <= then.high):
        return None
    low, high = (min(max(end, then.low), then.high) for end in (first.low, first.high))
    what = f"{inner.op_type} and {node.op_type} are one: from {low:g} to {high:g}"
    if (low, high) == (0, np.inf) and "Relu" in (inner.op_type, node.op_type):
        return Put("Relu", [inner.inputs[0]], {}, what)
    if known.model.opset < 11:
        ends = {name: end for name, end in (("min", low), ("max", high)) if np.isfinite(end)}
        return Put("Clip", [inner.inputs[0]], ends, what)
    given = [_end(low, -np.inf, 0, first, then), _end(high, np.inf, 1, first, then)]
    return Put("Clip", [inner.inputs[0], *given], {}, what)


def _end(number: float, none: float, place: int, *limits: _Limits) -> ir.Value | Array | None:
    """A limit as an input: a value that has it already, or a new constant; nothing where there is no limit."""
    if number == none:
        return None
    for limit in limits:
        if limit.given[place] is not None and number == (limit.low, limit.high)[place]:
            return limit.given[place]
    dtype = next((limit.dtype for limit in limits if limit.dtype is not None), None)
    return np.array(number, dtype)


RULES: Rules = {
    "Add": [_sums],
    "Clip": [_clips],
    "Div": [_products],
    "Mul": [_products],
    "Relu": [_clips],
    "Sub": [_sums],
}
