"""Constants that may stand where a node is given computed sizes."""

from collections.abc import Callable
from typing import TypeAlias

from onnxopt.analysis.symbols.expressions import Polynomial, Scalar, at_most, low
from onnxopt.analysis.symbols.facts import Fact, Shape
from onnxopt.analysis.symbols.indexing import slice_bounds
from onnxopt.analysis.symbols.rules import Call, only_numbers

Arguments: TypeAlias = dict[int, list[int]]
"""Input index -> the integers to give there."""

_END = {"INT64": 2**63 - 1, "INT32": 2**31 - 1}


def constant_arguments(call: Call, result: Fact) -> Arguments:
    """Constants that, given instead of what some inputs are computed to, make no difference; often none.

    A Reshape's target may hold 0 (the input's size; `allowzero` must then be off) and a -1. A target with both makes
    the runtime refuse an empty tensor that it might have reshaped before.
    """
    found = _ARGUMENTS.get(call.node.op_type)
    return (
        {} if found is None or call.node.domain not in ("", "ai.onnx") or result.shape is None else found(call, result)
    )


def _reshape(call: Call, result: Fact) -> Arguments:
    if call.opset < 5 or not call.has(1):
        return {}
    entries = reshape_target(call.shape(0), result.shape or ())
    return {} if entries is None else {1: entries}


def reshape_target(shape: Shape | None, result: Shape) -> list[int] | None:
    """A Reshape's constant target that makes one shape of another; None where there is none."""
    entries: list[int] = []
    if 0 in result and not all(isinstance(size, int) for size in result):
        return None  # beside an axis of no entries nothing can be inferred
    for index, size in enumerate(result):
        if isinstance(size, int) and size > 0:
            entries.append(size)
        elif shape is not None and index < len(shape) and shape[index] == size:
            entries.append(0)
        elif -1 not in entries and isinstance(size, Polynomial):
            entries.append(-1)
        else:
            return None
    return entries


def _expand(call: Call, result: Fact) -> Arguments:
    shape, full = call.shape(0), result.shape or ()
    if shape is None:
        return {}
    lone = (1,) * (len(full) - len(shape)) + shape
    entries = only_numbers(1 if size == before and size != 0 else size for size, before in zip(full, lone, strict=True))
    return {} if entries is None else {1: entries}


def _slice(call: Call, result: Fact) -> Arguments:
    bounds, shape = slice_bounds(call), call.shape(0)
    if bounds is None or shape is None or not call.has(1) or not call.has(2):
        return {}
    dtype = call.fact(2).dtype
    last = _END.get(dtype.name if dtype is not None else "")
    if last is None:
        return {}
    starts = [_from_end(shape[axis], start) for axis, (start, _, _) in bounds.items()]
    ends = [_until(shape[axis], end, step, last) for axis, (_, end, step) in bounds.items()]
    return _given({1: starts, 2: ends})


def _from_end(size: Scalar, index: Scalar) -> int | None:
    """An index as a number, counted from the end if need be."""
    if isinstance(index, int):
        return index
    behind = size - index
    least = low(size)
    fits = isinstance(behind, int) and behind > 0 and (behind == 1 or (least is not None and least >= behind))
    return -behind if isinstance(behind, int) and fits else None


def _until(size: Scalar, end: Scalar, step: int, last: int) -> int | None:
    if isinstance(end, Polynomial) and step > 0 and at_most(size, end):
        return last
    return _from_end(size, end)


def _given(found: dict[int, list[int | None]]) -> Arguments:
    numbers = {index: [each for each in values if each is not None] for index, values in found.items()}
    return {index: values for index, values in numbers.items() if len(values) == len(found[index])}


_ARGUMENTS: dict[str, Callable[[Call, Fact], Arguments]] = {"Reshape": _reshape, "Expand": _expand, "Slice": _slice}
