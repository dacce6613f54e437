"""Operators that may stand between a stored weight and the layer that reads it, and the same in numpy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""Types in which layers compute."""

_OPAQUE = frozenset({ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128, ir.DataType.UNDEFINED})


@dataclass(frozen=True)
class Form:
    """What a tensor is like without its content."""

    shape: tuple[int, ...]
    dtype: ir.DataType


class Operand(Protocol):
    """A constant that a step reads."""

    @property
    def form(self) -> Form: ...
    def array(self) -> Array:
        """The content, one element an entry."""
        ...


Operands = Sequence[Operand | None]


@dataclass(frozen=True)
class Step:
    """How one operator passes a constant on. Input 0 is the constant, further ones say how.

    Attributes:
        infer: form of the result, or why it is not known.
        evaluate: the result, given the node, the inputs' contents and the result's form; may be a view.
        constant: how many leading inputs must be constants too; None for all.
    """

    infer: Callable[[ir.Node, Operands], Form | str]
    evaluate: Callable[[ir.Node, Sequence[Array | None], Form], Array]
    constant: int | None = None

    def constant_inputs(self, node: ir.Node) -> tuple[ir.Value | None, ...]:
        """The inputs that must be constants, an absent optional one as None."""
        return tuple(node.inputs[: self.constant])


def step_of(node: ir.Node) -> Step | None:
    """How a node passes a constant on; None where it does more than that."""
    return STEPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None


def _first(operands: Operands) -> Form:
    assert operands[0] is not None
    return operands[0].form


def _unchanged(node: ir.Node, operands: Operands) -> Form | str:
    return _first(operands)


def _pass_on(node: ir.Node, arrays: Sequence[Array | None], form: Form) -> Array:
    assert arrays[0] is not None
    return arrays[0]


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints("perm", range(rank)[::-1]))


def _transposed_form(node: ir.Node, operands: Operands) -> Form | str:
    form = _first(operands)
    permutation = _permutation(node, len(form.shape))
    if sorted(permutation) != list(range(len(form.shape))):
        return f"its perm {list(permutation)} does not fit rank {len(form.shape)}"
    return Form(tuple(form.shape[axis] for axis in permutation), form.dtype)


def _transpose(node: ir.Node, arrays: Sequence[Array | None], form: Form) -> Array:
    return _pass_on(node, arrays, form).transpose(_permutation(node, len(form.shape)))


def _cast_form(node: ir.Node, operands: Operands) -> Form | str:
    return _cast_to(_first(operands), ir.DataType(node.attributes.get_int("to", 0)))


def _cast_like_form(node: ir.Node, operands: Operands) -> Form | str:
    like = node.inputs[1].dtype if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return "the type it casts to is not known" if like is None else _cast_to(_first(operands), like)


def _cast_to(form: Form, dtype: ir.DataType) -> Form | str:
    return Form(form.shape, dtype) if dtype in FLOATS and form.dtype not in _OPAQUE else f"it casts to {dtype}"


def _cast(node: ir.Node, arrays: Sequence[Array | None], form: Form) -> Array:
    with np.errstate(over="ignore"):  # too large for the type is infinity, as in any runtime
        return _pass_on(node, arrays, form).astype(form.dtype.numpy(), copy=False)


def _reshaped_form(node: ir.Node, operands: Operands) -> Form | str:
    form = _first(operands)
    target = operands[1].array().ravel().tolist() if len(operands) > 1 and operands[1] is not None else None
    if target is None:
        return "it has no shape input"
    keeps = node.attributes.get_int("allowzero", 0) == 0
    sizes = [form.shape[i] if size == 0 and keeps and i < len(form.shape) else size for i, size in enumerate(target)]
    known, total = math.prod(size for size in sizes if size != -1), math.prod(form.shape)
    if sizes.count(-1) == 1 and known:
        sizes[sizes.index(-1)] = total // known
    if min(sizes, default=0) < 0 or math.prod(sizes) != total:
        return f"its shape {target} does not fit {list(form.shape)}"
    return Form(tuple(sizes), form.dtype)


def _reshape(node: ir.Node, arrays: Sequence[Array | None], form: Form) -> Array:
    return _pass_on(node, arrays, form).reshape(form.shape)


@dataclass(frozen=True)
class _Granularity:
    """Along which axis, and in blocks of how many (0: one for each index), scales differ; axis None: nowhere."""

    axis: int | None
    block: int

    def spread(self, part: Array, shape: tuple[int, ...]) -> Array:
        """One scale or zero point for each element of a tensor of that shape (broadcastable)."""
        if self.axis is None:
            return part.reshape(())
        if self.block:
            return np.repeat(part, self.block, self.axis)[(slice(None),) * self.axis + (slice(shape[self.axis]),)]
        return part.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])


def _granularity(node: ir.Node, shape: tuple[int, ...], scale: tuple[int, ...]) -> _Granularity | str:
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    if not block and len(scale) <= 1 and math.prod(scale) == 1:
        return _Granularity(None, 0)
    if not -len(shape) <= axis < len(shape):
        return f"its axis {axis} does not fit rank {len(shape)}"
    axis %= len(shape)
    fits = scale == (shape[axis],)
    if block:
        fits = scale == (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])
    return _Granularity(axis, block) if fits else f"its scale of shape {list(scale)} does not fit {list(shape)}"


def _dequantized_form(node: ir.Node, operands: Operands) -> Form | str:
    form = _first(operands)
    scale = operands[1].form if len(operands) > 1 and operands[1] is not None else None
    if scale is None:
        return "it has no scale"
    granularity = _granularity(node, form.shape, scale.shape)
    if isinstance(granularity, str):
        return granularity
    zero = operands[2].form if len(operands) > 2 and operands[2] is not None else None
    if zero is not None and math.prod(zero.shape) != math.prod(scale.shape):
        return f"its zero point of shape {list(zero.shape)} does not fit its scale of shape {list(scale.shape)}"
    dtype = ir.DataType(node.attributes.get_int("output_dtype", 0)) or scale.dtype
    return Form(form.shape, dtype) if dtype in FLOATS else f"it gives {dtype}"


def _dequantize(node: ir.Node, arrays: Sequence[Array | None], form: Form) -> Array:
    """(x - zero_point) * scale: the difference is taken in int32, the product in float32, as runtimes do."""
    codes, scale, zero = (*arrays, None)[:3]
    assert codes is not None
    assert scale is not None
    granularity = _granularity(node, form.shape, scale.shape)
    assert isinstance(granularity, _Granularity)
    integers = codes.dtype.kind in "iu" or codes.dtype.name.startswith(("int", "uint"))
    wide = codes.astype(np.int32 if integers else np.float32)
    if zero is not None:
        wide -= granularity.spread(zero, form.shape).astype(wide.dtype)
    result = wide.astype(np.float32, copy=False)
    result *= granularity.spread(scale, form.shape).astype(np.float32)
    with np.errstate(over="ignore"):
        return result.astype(form.dtype.numpy(), copy=False)


STEPS: dict[str, Step] = {
    "Identity": Step(_unchanged, _pass_on),
    "Transpose": Step(_transposed_form, _transpose),
    "Reshape": Step(_reshaped_form, _reshape),
    "Cast": Step(_cast_form, _cast),
    "CastLike": Step(_cast_like_form, _cast, constant=1),
    "DequantizeLinear": Step(_dequantized_form, _dequantize),
}
