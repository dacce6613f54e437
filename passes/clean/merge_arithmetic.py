"""Arithmetic with constants in a row, and limits in a row: one node does as well."""

from dataclasses import dataclass, replace

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

_ALIKE = {"Add": ("Add", "Sub"), "Sub": ("Add", "Sub"), "Mul": ("Mul", "Div"), "Div": ("Mul", "Div")}
"""Operator -> those that may stand in a row with it."""


class MergeArithmetic(Pass):
    """Merge additions of constants, multiplications by constants, and limits (Relu, Clip) that follow one another.

    Constants are computed in double precision. Those that nearly cancel stay apart: the sum of both would be more
    exact than the model is.
    """

    def run(self, model: Model, context: Context) -> Findings:
        merged, kept = _rows(model, Known(model))

        def in_a_row(node: ir.Node, known: Known) -> Outcome:
            return merged.pop(node, None) or kept.get(node)

        return rewrite(model, {**_LIMITED, **{op_type: [in_a_row] for op_type in _ALIKE}}, self.name)


@dataclass(frozen=True)
class _Row:
    """x + sign * number, or x * number ** sign: a node, or so many in a row.

    Attributes:
        node: the last of them.
        source: x.
        number: as it is stored for one node, in double precision for several; integers in their own type.
        dtype: of the constants.
        count: how many nodes.
        before: the row that makes x and cannot be one with this.
        why: why it cannot, where that is worth saying.
    """

    node: ir.Node
    source: ir.Value
    number: Array
    sign: int
    dtype: np.dtype[np.generic]
    count: int = 1
    before: "_Row | None" = None
    why: str | None = None


def _rows(model: Model, known: Known) -> tuple[dict[ir.Node, Put], dict[ir.Node, str]]:
    """What to put in the place of the last nodes of rows, and why rows are not longer.

    Every constant is taken once. What was kept apart is tried again when the row behind it has grown.
    """
    rows: dict[ir.Node, _Row] = {}
    for node in model.nodes():
        if node.domain or node.op_type not in _ALIKE or (row := _row(node, known)) is None:
            continue
        inner = made_by(row.source, *_ALIKE[node.op_type])
        if inner is not None and inner.graph is node.graph and read_once(inner.outputs[0]):
            row = replace(row, before=rows.get(inner))
        while (a := row.before) is not None:
            number = _together(a, row)
            if number is None or isinstance(number, str):
                row = replace(row, why=number)
                break
            del rows[a.node]
            row = _Row(node, a.source, number, 1, row.dtype, a.count + row.count, a.before)
        rows[node] = row
    merged = {node: _put(row) for node, row in rows.items() if row.count > 1}
    return merged, {node: row.why for node, row in rows.items() if row.why}


def _row(node: ir.Node, known: Known) -> _Row | None:
    if {"axis", "broadcast"} & node.attributes.keys():  # before opset 7
        return None
    sign = 1 if node.op_type in ("Add", "Mul") else -1
    for place in (1, 0) if sign == 1 else (1,):
        source, number = node.inputs[1 - place], known.array(node.inputs[place])
        if source is None or number is None or known.array(source) is not None:
            continue
        if number.dtype.kind in ("fV" if node.op_type == "Div" else "fiuV"):
            return _Row(node, source, number, sign, number.dtype)
    return None


def _together(a: _Row, b: _Row) -> Array | str | None:
    """What both add or multiply by, where one constant holds it that is no larger than they are."""
    if a.dtype != b.dtype:
        return None
    try:
        size = np.broadcast(a.number, b.number).size
    except ValueError:
        return None
    if size > max(a.number.size, b.number.size):
        return None
    with np.errstate(all="ignore"):
        total = _sum(a, b) if a.node.op_type in _ALIKE["Add"] else _product(a, b)
        return total if isinstance(total, str) or a.dtype.kind in "iu" or _holds(a.dtype, total) else None


def _sum(a: _Row, b: _Row) -> Array | str:
    x, y = (_exactly(row) if row.sign > 0 else -_exactly(row) for row in (a, b))
    total = np.asarray(x + y)
    if a.dtype.kind not in "iu":
        largest = max(float(np.linalg.norm(x)), float(np.linalg.norm(y)))
        if largest > _CANCELLED.get(a.dtype.itemsize, 1.0) * float(np.linalg.norm(total)):
            return "the constants that it and the node before it add cancel, and with them what rounding leaves of x"
    return total


def _product(a: _Row, b: _Row) -> Array | str:
    factors = [_exactly(row) if row.sign > 0 else 1 / _exactly(row) for row in (a, b)]
    if a.dtype.kind not in "iu" and not all(map(_is_moderate, factors)):
        return "the constants that it and the node before it multiply by are too large or small for one product"
    return np.asarray(factors[0] * factors[1])


def _is_moderate(factor: Array) -> bool:
    size = np.abs(factor)
    return bool(np.all((size >= _FACTORS[0]) & (size <= _FACTORS[1])))


def _exactly(row: _Row) -> Array:
    """The number in double precision; an integer as it is, for it wraps."""
    return row.number if row.dtype.kind in "iu" else row.number.astype(np.float64, copy=False)


def _put(row: _Row) -> Put:
    op_type, what = ("Add", "additions of") if row.node.op_type in _ALIKE["Add"] else ("Mul", "multiplications by")
    return Put(op_type, [row.source, row.number.astype(row.dtype)], {}, f"{row.count} {what} constants are one")


def _holds(dtype: np.dtype[np.generic], total: Array) -> bool:
    """Whether a type has numbers about as exactly as others of that type; False also where one is infinite."""
    error = np.abs(total.astype(dtype).astype(np.float64) - total)
    return bool(np.all(error <= 2.0 ** (1 - _PRECISION.get(dtype.name, 1)) * np.abs(total)))


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


_LIMITED: Rules = {"Clip": [_clips], "Relu": [_clips]}
