"""Nodes that only repeat one of their inputs, as far as sizes tell."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from onnxopt.analysis.symbols.expressions import Scalar
from onnxopt.analysis.symbols.facts import Fact
from onnxopt.analysis.symbols.indexing import covers, is_identity_index, pads, slice_bounds
from onnxopt.analysis.symbols.layers import scales_of
from onnxopt.analysis.symbols.rules import Call, normalized

Repeat: TypeAlias = Callable[[Call, Fact], int | None]
"""Given a call and what is known of its first output: the input that this equals, or None."""

REPEATS: dict[str, Repeat] = {}

_EXACT_RESIZE = frozenset(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"))
"""Transformations of coordinates that leave them as they are where nothing is scaled."""


def repeated(call: Call, result: Fact) -> int | None:
    """Index of the input that the first output equals, element by element and in shape; None where none is known to."""
    index = stretched_from(call, result)
    return index if index is not None and call.shape(index) == result.shape else None


def stretched_from(call: Call, result: Fact) -> int | None:
    """The same for an input that may have to be repeated, as broadcasting does, to get the output's shape.

    Only operators that broadcast give one that is smaller; of others, `repeated` tells whether it is equal.
    """
    found = REPEATS.get(call.node.op_type)
    if found is None or call.node.domain not in ("", "ai.onnx") or result.shape is None:
        return None
    return found(call, result)


def _register(*ops: str) -> Callable[[Repeat], Repeat]:
    def register(function: Repeat) -> Repeat:
        REPEATS.update(dict.fromkeys(ops, function))
        return function

    return register


@_register("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Identity")
def _same_shape(call: Call, result: Fact) -> int | None:
    """Nothing but the shape could change."""
    return 0


@_register("Slice")
def _whole(call: Call, result: Fact) -> int | None:
    bounds, shape = slice_bounds(call), call.shape(0)
    if bounds is None or shape is None:
        return None
    return 0 if all(covers(shape[axis], *each) for axis, each in bounds.items()) else None


@_register("Pad")
def _nothing_added(call: Call, result: Fact) -> int | None:
    amounts = pads(call)
    return 0 if amounts is not None and all(pair == (0, 0) for pair in amounts) else None


@_register("Concat")
def _one_of_all(call: Call, result: Fact) -> int | None:
    """All but one are empty along the axis."""
    shapes = [call.shape(index) for index in range(len(call.inputs))]
    axis = normalized(call.integer("axis", 1), len(result.shape or ()))
    full = [index for index, shape in enumerate(shapes) if shape is None or shape[axis] != 0]
    return full[0] if len(full) == 1 else None


@_register("Split")
def _one_part(call: Call, result: Fact) -> int | None:
    return 0 if len(call.node.outputs) == 1 else None


@_register("Where")
def _decided(call: Call, result: Fact) -> int | None:
    chosen = call.fact(0).uniform
    return None if not isinstance(chosen, bool) else 1 if chosen else 2


NEUTRAL: Mapping[str, tuple[float | bool, bool]] = {
    "Mul": (1, True), "Div": (1, False), "Pow": (1, False), "Add": (0, True), "Sub": (0, False),
    "And": (True, True), "Or": (False, True), "Xor": (False, True),
    "BitShift": (0, False), "BitwiseOr": (0, True), "BitwiseXor": (0, True),
}  # fmt: skip
"""Operator -> the operand that changes nothing, and whether it may come first."""


@_register(*NEUTRAL)
def _neutral(call: Call, result: Fact) -> int | None:
    """Combined with what changes nothing, but for the sign of a zero to which 0 is added."""
    neutral, either = NEUTRAL[call.node.op_type]
    for index, other in ((0, 1), (1, 0)) if either else ((0, 1),):
        value = call.fact(other).uniform
        if isinstance(value, int | float) and value == neutral:
            return index
    return None


@_register("Gather")
def _all_rows(call: Call, result: Fact) -> int | None:
    shape = call.shape(0)
    if shape is None:
        return None
    axis = normalized(call.integer("axis", 0), len(shape))
    return 0 if is_identity_index(call.fact(1), shape[axis]) else None


@_register("Transpose")
def _moved(call: Call, result: Fact) -> int | None:
    return 0 if moves_nothing(call) else None


def moves_nothing(call: Call) -> bool:
    """Whether a Transpose lets only axes of size 1 change places: the elements stay in order."""
    shape, attribute = call.shape(0), call.node.attributes.get("perm")
    if shape is None:
        return False
    order = list(attribute.as_ints()) if attribute is not None else list(reversed(range(len(shape))))
    kept = [axis for axis in order if axis >= len(shape) or shape[axis] != 1]
    return kept == sorted(kept)


@_register("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
def _of_one(call: Call, result: Fact) -> int | None:
    """Only axes of size 1 are reduced."""
    shape = call.shape(0)
    if shape is None or not call.given(1, "axes"):
        return None
    axes = call.numbers(1, "axes")
    gone: list[Scalar] = [shape[normalized(axis, len(shape))] for axis in axes or ()]
    return 0 if gone and all(size == 1 for size in gone) else None


@_register("Resize")
def _same_size(call: Call, result: Fact) -> int | None:
    scales = scales_of(call)
    if scales is not None and any(scale != 1 for scale in scales):
        return None
    attribute = call.node.attributes.get("coordinate_transformation_mode")
    mode = attribute.as_string() if attribute is not None else "half_pixel"
    return 0 if mode in _EXACT_RESIZE else None
