"""Casts, element by element."""

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols.elementwise import fits, ruled
from onnxopt.analysis.symbols.expressions import Polynomial
from onnxopt.analysis.symbols.facts import PLAIN, Element, Fact, element, filled, is_integer, of_array
from onnxopt.analysis.symbols.rules import Call, rule


@rule("Cast", "CastLike")
def cast(call: Call) -> list[Fact]:
    """Another element type."""
    fact, to = call.fact(0), _target(call)
    if to is None or fact.dtype is None:
        return [Fact(to, fact.shape)]
    if fact.dtype == to:
        return [fact]
    if fact.content is not None:
        return [_converted(call, fact, to)]
    found = fact.affine
    if found is not None and found.uniform and fact.shape is not None:
        value = _cast_one(call, found.base, fact.dtype, to)
        return [Fact(to, fact.shape) if value is None else filled(fact.shape, value, to)]
    if found is not None and fact.shape is not None and is_integer(to) and is_integer(fact.dtype):
        return [ruled(fact.shape, found, to)]
    return [Fact(to, fact.shape)]


def _target(call: Call) -> ir.DataType | None:
    if call.node.op_type == "CastLike":
        return call.fact(1).dtype
    to = call.integer("to", 0)
    return ir.DataType(to) if to in set(ir.DataType) else None


def _converted(call: Call, fact: Fact, to: ir.DataType) -> Fact:
    assert fact.dtype is not None
    if (
        fact.known
        and fact.content is not None
        and fact.content.dtype.kind in "biu"
        and np.dtype(to.numpy()).name in PLAIN
    ):
        return of_array(fact.content.astype(to.numpy()), to)
    values = [_cast_one(call, each, fact.dtype, to) for each in fact.elements or []]
    if any(value is None for value in values) or fact.content is None:
        return Fact(to, fact.shape)
    array = np.empty(len(values), object)
    array[:] = values
    return of_array(array.reshape(fact.content.shape), to)


def _cast_one(call: Call, value: Element, dtype: ir.DataType, to: ir.DataType) -> Element | None:
    """One element of another type; None where runtimes may differ."""
    kind, target = np.dtype(dtype.numpy()), np.dtype(to.numpy())
    if kind.name not in PLAIN or target.name not in PLAIN:
        return None
    if isinstance(value, Polynomial):
        if is_integer(dtype) and is_integer(to) and fits(value, to):
            return value
        bounds = (0, 1) if target.kind == "b" else (None, None)
        return call.space.function(f"cast:{dtype.name}:{to.name}", value, low=bounds[0], high=bounds[1])
    if kind.kind == "f" and target.kind in "iu":
        info = np.iinfo(target)
        if not np.isfinite(value) or not info.min < value < info.max:
            return None
        return int(value)
    with np.errstate(all="ignore"):
        return element(np.asarray(value, kind).astype(target)[()])
