"""Operators that combine tensors element by element."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols.expressions import Polynomial, Scalar, at_most, below, high, low
from onnxopt.analysis.symbols.facts import (
    MOST_ELEMENTS,
    Affine,
    Array,
    Element,
    Fact,
    element,
    filled,
    is_integer,
    of_array,
    same,
    span,
)
from onnxopt.analysis.symbols.functions import absolute, larger, modulo, quotient, smaller
from onnxopt.analysis.symbols.rules import RULES, Call, Rule, aligned, broadcast_shapes, rule

_SAME_TYPE = (
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Celu",
    "Cos", "Cosh", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "LogSoftmax",
    "Mean", "Mish", "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Sinh", "Softmax", "Softplus", "Softsign",
    "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "BitShift", "Hardmax", "Shrink", "LpNormalization",
    "MeanVarianceNormalization", "LRN", "Trilu", "RMSNormalization", "Scaler", "Round",
)  # fmt: skip
"""Operators of which only the shape is followed; those that take scalars after the first broadcast them all the same,
which changes nothing."""

_FIRST_ONLY = frozenset((
    "Shrink", "Trilu", "LpNormalization", "MeanVarianceNormalization", "LRN", "RMSNormalization", "PRelu",
))  # fmt: skip
"""Operators whose result has the shape of the first input."""

_Exact: TypeAlias = Callable[..., Any]


def _divide(a: Array, b: Array) -> Array | None:
    if a.dtype.kind == "f":
        return np.divide(a, b)
    if not np.all(b):
        return None
    return np.asarray(np.where((a < 0) == (b < 0), 1, -1) * (np.abs(a) // np.abs(b))).astype(a.dtype)


def _remainder(a: Array, b: Array) -> Array | None:
    return None if a.dtype.kind == "f" or not np.all(b) else np.mod(a, b)


def _ordered(function: _Exact) -> _Exact:
    def apply(*arrays: Array) -> Array | None:
        nan = any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in arrays)
        return None if nan else function(*arrays)

    return apply


_NUMPY: dict[str, _Exact] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Mod": _remainder,
    "Min": _ordered(np.minimum), "Max": _ordered(np.maximum), "Neg": np.negative, "Abs": np.abs, "Floor": np.floor,
    "Ceil": np.ceil, "Sqrt": np.sqrt, "Sign": np.sign, "Not": np.logical_not, "And": np.logical_and,
    "Or": np.logical_or, "Xor": np.logical_xor, "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal,
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Where": np.where,
}  # fmt: skip
"""What numpy computes exactly as every runtime does: nothing that rounds in more than one way."""

_TO_BOOL = frozenset(("Not", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"))


def _equal(a: Scalar, b: Scalar) -> bool | None:
    if a == b:
        return True
    return False if below(a, b) or below(b, a) else None


def _less(a: Scalar, b: Scalar) -> bool | None:
    return True if below(a, b) else False if at_most(b, a) else None


def _not(a: bool | None) -> bool | None:
    return None if a is None else not a


_DECIDED: dict[str, Callable[[Scalar, Scalar], bool | None]] = {
    "Equal": _equal,
    "Less": _less,
    "Greater": lambda a, b: _less(b, a),
    "LessOrEqual": lambda a, b: _not(_less(b, a)),
    "GreaterOrEqual": lambda a, b: _not(_less(a, b)),
}

_INTEGER: dict[str, Callable[..., Scalar]] = {
    "Add": lambda space, a, b: a + b,
    "Sub": lambda space, a, b: a - b,
    "Mul": lambda space, a, b: a * b,
    "Div": quotient,
    "Mod": modulo,
    "Min": smaller,
    "Max": larger,
    "Neg": lambda space, a: -a,
    "Abs": absolute,
}


def _symbolic(call: Call, op: str, values: tuple[Element, ...], dtype: ir.DataType | None) -> Element:
    """One element of the result of an operator on elements of which at least one is an expression.

    Where there is no closed form the element is named by the operator and its operands, so that equal ones are seen
    to be equal.
    """
    space = call.space
    if is_integer(dtype) and op in _INTEGER:
        found = _INTEGER[op](space, *values)
        if fits(found, dtype):
            return found
    elif is_integer(dtype) and op in _DECIDED:
        decided = _DECIDED[op](*values)  # type: ignore[arg-type]
        if decided is not None:
            return decided
    elif op in ("And", "Or"):
        a, b = values
        absorbing = op == "Or"
        for one, other in ((a, b), (b, a)):
            if one is absorbing:
                return absorbing
            if one is (not absorbing):
                return other
    kind = f"{op}:{dtype.name if dtype else None}"
    bounds = (0, 1) if op in _TO_BOOL else (None, None)
    return space.function(kind, *map(_key, values), low=bounds[0], high=bounds[1])


def fits(value: Scalar, dtype: ir.DataType | None) -> bool:
    """Whether an integer cannot leave the range of a type.

    64 bits hold whatever counts elements of tensors; nothing is assumed of smaller types.
    """
    if dtype in (ir.DataType.INT64, None) and isinstance(value, Polynomial):
        return True
    least, most = low(value), high(value)
    info = np.iinfo(dtype.numpy()) if dtype is not None else np.iinfo(np.int64)
    return least is not None and most is not None and info.min <= least and most <= info.max


def _key(value: Element) -> Any:
    """What tells elements of a type apart: 0.0 is not -0.0, 1 is not True."""
    return value if isinstance(value, Polynomial) else (type(value).__name__, repr(value))


def combined(call: Call, op: str, facts: Sequence[Fact], dtype: ir.DataType | None, to: ir.DataType | None) -> Fact:
    """The result of an elementwise operator.

    Args:
        dtype: of the operands.
        to: of the result.
    """
    shape = broadcast_shapes(call.space, (fact.shape for fact in facts))
    if shape is None or dtype is None:
        return Fact(to, shape)
    contents = [fact.content for fact in facts]
    if all(content is not None for content in contents):
        array = _of_contents(call, op, contents, dtype)  # type: ignore[arg-type]
        return Fact(to, shape) if array is None else of_array(array, to)
    return _of_rules(call, op, facts, shape, dtype, to)


def _of_contents(call: Call, op: str, contents: Sequence[Array], dtype: ir.DataType) -> Array | None:
    try:
        if all(content.dtype != object for content in contents):
            with np.errstate(all="ignore"):
                result = _NUMPY[op](*contents)
            return None if result is None else np.asarray(result)
        arrays = np.broadcast_arrays(*contents)
    except ValueError:  # shapes that do not fit together: the runtime's error
        return None
    result = np.empty(arrays[0].shape, object)
    flat = [[element(each) for each in array.flat] for array in arrays]
    for index, values in enumerate(zip(*flat, strict=True)):
        result.flat[index] = _one(call, op, values, dtype)
    return result


def _one(call: Call, op: str, values: tuple[Element, ...], dtype: ir.DataType) -> Element:
    if any(isinstance(value, Polynomial) for value in values):
        return _symbolic(call, op, values, dtype)
    kind = dtype.numpy()
    with np.errstate(all="ignore"):
        result = _NUMPY[op](*(np.asarray(value, kind) for value in values))
    return call.space.unknown() if result is None else element(np.asarray(result)[()])


def _of_rules(
    call: Call, op: str, facts: Sequence[Fact], shape: tuple[Scalar, ...], dtype: ir.DataType, to: ir.DataType | None
) -> Fact:
    rules = [fact.as_affine() for fact in facts]
    if any(each is None for each in rules):
        absorbed = _absorbed(op, facts)
        return Fact(to, shape) if absorbed is None else filled(shape, absorbed, to)
    known = [each for each in rules if each is not None]
    if all(each.uniform for each in known):
        return filled(shape, _one(call, op, tuple(each.base for each in known), dtype), to)
    if is_integer(dtype) and op in _DECIDED:
        return _compared(op, facts, shape)
    steps = [aligned(each, fact.shape or (), shape) for each, fact in zip(known, facts, strict=True)]
    if not is_integer(dtype) or any(step is None for step in steps) or len(known) != 2:
        return Fact(to, shape)
    (a, b), (first, second) = known, (step or () for step in steps)
    if not isinstance(a.base, int | Polynomial) or not isinstance(b.base, int | Polynomial):
        return Fact(to, shape)
    if op in ("Add", "Sub"):
        sign = 1 if op == "Add" else -1
        added = tuple(x + sign * y for x, y in zip(first, second, strict=True))
        return ruled(shape, Affine(a.base + sign * b.base, added), to)
    if op == "Mul" and (a.uniform or b.uniform):
        by, moving, other = (b.base, first, a.base) if b.uniform else (a.base, second, b.base)
        return ruled(shape, Affine(other * by, tuple(step * by for step in moving)), to)
    return Fact(to, shape)


def ruled(shape: tuple[Scalar, ...], rule: Affine, dtype: ir.DataType | None) -> Fact:
    fact = Fact(dtype, shape, None, rule)
    if dtype != ir.DataType.INT64 and not all(end is not None and fits(end, dtype) for end in span(fact)):
        return Fact(dtype, shape)
    return fact


def _absorbed(op: str, facts: Sequence[Fact]) -> Element | None:
    """What an operand that decides alone makes of all others."""
    if op in ("And", "Or"):
        deciding = op == "Or"
        if any(fact.uniform is deciding for fact in facts):
            return deciding
    return None


def _compared(op: str, facts: Sequence[Fact], shape: tuple[Scalar, ...]) -> Fact:
    """A comparison of counters, where it comes out alike for all elements."""
    (least, most), (other_least, other_most) = map(span, facts)
    fact = Fact(ir.DataType.BOOL, shape)
    if least is None or most is None or other_least is None or other_most is None:
        return fact
    if op == "Equal":
        apart = below(most, other_least) or below(other_most, least)
        return filled(shape, False, ir.DataType.BOOL) if apart else fact
    decided, greater = _DECIDED[op], op.startswith("Greater")
    far, near = (least, other_most), (most, other_least)
    if decided(*(far if greater else near)):
        return filled(shape, True, ir.DataType.BOOL)
    if decided(*(near if greater else far)) is False:
        return filled(shape, False, ir.DataType.BOOL)
    return fact


@rule(*(op for op in _NUMPY if op != "Where"))
def elementwise(call: Call) -> list[Fact]:
    """Operators whose elements are followed."""
    op = call.node.op_type
    facts = [call.fact(index) for index in range(len(call.inputs))]
    dtype = next((fact.dtype for fact in facts if fact.dtype is not None), None)
    to = ir.DataType.BOOL if op in _TO_BOOL else dtype
    if call.opset < 7 and call.integer("broadcast", 0):
        return [Fact(to, facts[0].shape)]
    if op == "Mod" and call.integer("fmod", 0):
        return [Fact(to, broadcast_shapes(call.space, (fact.shape for fact in facts)))]
    if op in ("Min", "Max") and len(facts) != 2:
        result = facts[0]
        for fact in facts[1:]:
            result = combined(call, op, (result, fact), dtype, to)
        return [result]
    return [combined(call, op, facts, dtype, to)]


@rule("Clip")
def clip(call: Call) -> list[Fact]:
    """No less than one bound, then no more than the other."""
    fact = result = call.fact(0)
    for index, (op, name) in enumerate((("Max", "min"), ("Min", "max")), 1):
        attribute = call.node.attributes.get(name)
        bound = call.fact(index) if call.has(index) else None
        if attribute is not None and fact.dtype is not None:
            bound = of_array(np.asarray(attribute.as_float(), fact.dtype.numpy()), fact.dtype)
        if bound is not None:
            result = combined(call, op, (result, bound), fact.dtype, fact.dtype)
    return [result if result.shape == fact.shape else Fact(fact.dtype, fact.shape)]


@rule("Where")
def where(call: Call) -> list[Fact]:
    """The one or the other operand, element by element."""
    facts = [call.fact(index) for index in range(3)]
    dtype = facts[1].dtype or facts[2].dtype
    shape = broadcast_shapes(call.space, (fact.shape for fact in facts))
    chosen = facts[0].uniform
    if shape is not None and isinstance(chosen, bool):
        return [stretched(facts[1 if chosen else 2], shape, dtype)]
    contents = [fact.content for fact in facts]
    if shape is None or any(content is None for content in contents):
        return [Fact(dtype, shape)]
    try:
        arrays = np.broadcast_arrays(*(content for content in contents if content is not None))
    except ValueError:
        return [Fact(dtype, shape)]
    result = np.empty(arrays[0].shape, object)
    for index, (condition, a, b) in enumerate(
        zip(*([element(x) for x in array.flat] for array in arrays), strict=True)
    ):
        result.flat[index] = _choice(call, condition, a, b)
    return [of_array(result, dtype)]


def _choice(call: Call, condition: Element, a: Element, b: Element) -> Element:
    if not isinstance(condition, Polynomial):
        return a if condition else b
    return a if same(a, b) else call.space.function("Where", condition, _key(a), _key(b))


def stretched(fact: Fact, shape: tuple[Scalar, ...], dtype: ir.DataType | None) -> Fact:
    """A tensor broadcast to a shape that it fits."""
    if fact.shape == shape:
        return fact if fact.dtype == dtype else replace(fact, dtype=dtype)
    static = Fact(None, shape).static
    if fact.content is not None and static is not None and math.prod(static) <= MOST_ELEMENTS:
        try:
            return of_array(np.broadcast_to(fact.content, static), dtype)
        except ValueError:
            return Fact(dtype, shape)
    found = fact.as_affine()
    steps = aligned(found, fact.shape, shape) if found is not None and fact.shape is not None else None
    if found is None or steps is None:
        return Fact(dtype, shape)
    return filled(shape, found.base, dtype) if found.uniform else Fact(dtype, shape, None, Affine(found.base, steps))


def _shape_only(call: Call) -> list[Fact]:
    fact = call.fact(0)
    if call.node.op_type in _FIRST_ONLY:
        return [Fact(fact.dtype, fact.shape)]
    shapes = (call.shape(index) for index in range(len(call.inputs)) if call.has(index))
    return [Fact(fact.dtype, broadcast_shapes(call.space, shapes))]


_SHAPE_ONLY: Rule = _shape_only
RULES.update(dict.fromkeys(_SAME_TYPE, _SHAPE_ONLY))


@rule("IsNaN", "IsInf")
def tested(call: Call) -> list[Fact]:
    """A boolean an element."""
    return [Fact(ir.DataType.BOOL, call.shape(0))]


@rule("Pow")
def power(call: Call) -> list[Fact]:
    """The base's type; powers round in more than one way, so elements are not followed."""
    return [Fact(call.fact(0).dtype, broadcast_shapes(call.space, (call.shape(0), call.shape(1))))]


@rule("Dropout")
def dropout(call: Call) -> list[Fact]:
    """Two results of the input's shape."""
    return [Fact(call.fact(0).dtype, call.shape(0)), Fact(ir.DataType.BOOL, call.shape(0))]
