"""Nodes that give back what they were given: a small rule for each operator."""

import numpy as np
import onnx_ir as ir

from onnxopt.model import Model
from onnxopt.passes.known import Known, cuts, input_of, int_of, ints_of, made_by, text_of
from onnxopt.passes.rewriting import Outcome, Rule, rewrite
from onnxopt.passing import Context, Findings, Pass

_EVERYTHING = 2**31 - 1
"""Slices that end here or later have no end: no tensor has more entries along an axis."""


class EliminateNoops(Pass):
    """Remove nodes that give their input back: additions of 0, casts to the same type, permutations of nothing.

    What depends on a type or size goes only where inference proves it for every input that the model takes; what
    the file declares of inner values proves nothing. Where a graph output needs a node of its own, an Identity
    takes the node's place.
    """

    def run(self, model: Model, context: Context) -> Findings:
        return rewrite(model, RULES, self.name)


def _same_type(node: ir.Node, known: Known) -> Outcome:
    dtype = known.dtype(node.inputs[0])
    to = ir.DataType(int_of(node, "to", 0)) if node.op_type == "Cast" else known.dtype(input_of(node, 1))
    return node.inputs[0] if dtype is not None and dtype == to else None


def _dropout(node: ir.Node, known: Known) -> Outcome:
    """Up to opset 6 an attribute says whether the model is tested; from 12 on an input says whether it is trained."""
    opset = known.model.opset
    if opset < 7:
        return node.inputs[0] if int_of(node, "is_test", 0) else "it drops entries: its attribute is_test is 0"
    training = input_of(node, 2) if opset >= 12 else None
    if training is None or known.is_all(training, False) or known.is_all(input_of(node, 1), 0):
        return node.inputs[0]
    return "it drops entries: it is in training mode" if known.is_all(training, True) else None


def _transpose(node: ir.Node, known: Known) -> Outcome:
    """Also where nothing but axes of size 1 change places."""
    dims, perm = known.dims(node.inputs[0]), ints_of(node, "perm")
    if perm is None:
        perm = None if dims is None else list(reversed(range(len(dims))))
    if perm is None or perm == sorted(perm):
        return None if perm is None else node.inputs[0]
    if dims is None or len(dims) != len(perm):
        return None
    moved = [axis for axis in perm if dims[axis] != 1]
    return node.inputs[0] if moved == sorted(moved) and known.same_shape(*_ends(node)) else None


def _ends(node: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    return node.inputs[0], node.outputs[0]


def _same_shape(node: ir.Node, known: Known) -> Outcome:
    return node.inputs[0] if known.same_shape(*_ends(node)) else None


def _own_shape(node: ir.Node, known: Known) -> Outcome:
    """Reshape or Expand to the shape that it has; Reshape by zeros alone, which stand for the sizes there are."""
    shape = made_by(input_of(node, 1), "Shape")
    if shape is not None and shape.inputs[0] is node.inputs[0] and not shape.attributes:
        return node.inputs[0]
    sizes = known.integers(input_of(node, 1))
    if sizes is None or node.op_type == "Expand":
        ones = sizes is not None and set(sizes) <= {1}
        rank = known.rank(node.inputs[0])
        return node.inputs[0] if ones and sizes is not None and (rank or 0) >= len(sizes) else None
    zeros = set(sizes) == {0} and not int_of(node, "allowzero", 0)
    return node.inputs[0] if zeros and known.rank(node.inputs[0]) == len(sizes) else None


def _flatten(node: ir.Node, known: Known) -> Outcome:
    return node.inputs[0] if known.rank(node.inputs[0]) == 2 and int_of(node, "axis", 1) in (1, -1) else None


def _neutral(number: float, *places: int) -> Rule:
    """x op `number` is x, where the number may be at these inputs and does not widen x."""

    def rule(node: ir.Node, known: Known) -> Outcome:
        if "axis" in node.attributes or "broadcast" in node.attributes:  # before opset 7
            return None
        for place in places:
            value, other = node.inputs[1 - place], node.inputs[place]
            if value is None or not known.is_all(other, number):
                continue
            if known.keeps_shape(value, other):
                return value
            if known.dims(value) is not None:
                return f"the constant {other.name if other else ''} may broadcast {value.name} to a larger shape"
        return None

    return rule


def _where(node: ir.Node, known: Known) -> Outcome:
    condition, yes, no = node.inputs
    if yes is no:
        return yes if known.keeps_shape(yes, condition) else None
    chosen, other = (yes, no) if known.is_all(condition, True) else (no, yes)
    if chosen is no and not known.is_all(condition, False):
        return None
    return chosen if known.keeps_shape(chosen, condition) and known.keeps_shape(chosen, other) else None


def _single(node: ir.Node, known: Known) -> Outcome:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _single_output(node: ir.Node, known: Known) -> Outcome:
    return node.inputs[0] if len(node.outputs) == 1 else None


def _einsum(node: ir.Node, known: Known) -> Outcome:
    terms, _, result = text_of(node, "equation", "").replace(" ", "").partition("->")
    letters = terms.replace("...", "")
    plain = len(node.inputs) == 1 and terms == result and len(set(letters)) == len(letters)
    return node.inputs[0] if plain and letters else None


def _pad(node: ir.Node, known: Known) -> Outcome:
    pads = ints_of(node, "pads") or ints_of(node, "paddings")
    if pads is None:
        pads = known.integers(input_of(node, 1))
    return node.inputs[0] if pads is not None and not any(pads) else None


def _slice(node: ir.Node, known: Known) -> Outcome:
    cut, dims = cuts(node, known), known.dims(node.inputs[0])
    if cut is None:
        return None
    for axis, (start, end, step) in cut.items():
        size = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
        first = start == 0 or start <= -_EVERYTHING or (isinstance(size, int) and start <= -size)
        last = end >= _EVERYTHING or (isinstance(size, int) and end >= size)
        if not (first and last and step == 1):
            return None
    return node.inputs[0]


def _tile(node: ir.Node, known: Known) -> Outcome:
    repeats = known.integers(input_of(node, 1)) if known.model.opset >= 6 else None
    return node.inputs[0] if repeats is not None and all(repeat == 1 for repeat in repeats) else None


def _resize(node: ir.Node, known: Known) -> Outcome:
    """Sampling each entry where it is; some modes of old shift the grid nevertheless."""
    if text_of(node, "coordinate_transformation_mode", "half_pixel").startswith("tf_"):
        return None
    attribute = node.attributes.get("scales")
    if attribute is not None:
        ones = not attribute.is_ref() and all(scale == 1 for scale in attribute.as_floats())
        return node.inputs[0] if ones else None
    scales = input_of(node, 1 if node.op_type == "Upsample" or known.model.opset < 11 else 2)
    sized = known.integers(input_of(node, 3)) is not None and known.same_shape(*_ends(node))
    return node.inputs[0] if known.is_all(scales, 1) or sized else None


def _reduce(node: ir.Node, known: Known) -> Outcome:
    """No axes, where that means none of them, or axes of size 1 that stay."""
    axes = ints_of(node, "axes")
    given = input_of(node, 1)
    if given is not None:
        axes = known.integers(given)
        if axes is None:
            return None
    if not axes:
        return node.inputs[0] if int_of(node, "noop_with_empty_axes", 0) else None
    dims = known.dims(node.inputs[0])
    if dims is None or not int_of(node, "keepdims", 1) or not all(-len(dims) <= axis < len(dims) for axis in axes):
        return None
    return node.inputs[0] if all(dims[axis] == 1 for axis in axes) else None


def _clip(node: ir.Node, known: Known) -> Outcome:
    """Of integers: a missing limit is the type's largest number, which infinity passes."""
    unlimited = known.model.opset >= 11 and input_of(node, 1) is None and input_of(node, 2) is None
    dtype = known.dtype(node.inputs[0])
    return node.inputs[0] if unlimited and dtype is not None and dtype.is_integer() else None


def _global_pool(node: ir.Node, known: Known) -> Outcome:
    dims = known.dims(node.inputs[0])
    return node.inputs[0] if dims is not None and len(dims) > 2 and set(dims[2:]) == {1} else None


def _pool(node: ir.Node, known: Known) -> Outcome:
    """A window of one entry at every place."""
    kernel, pads = ints_of(node, "kernel_shape"), ints_of(node, "pads") or []
    strides = ints_of(node, "strides") or []
    return node.inputs[0] if kernel and set(kernel) == {1} and set(strides) <= {1} and not any(pads) else None


def _block(node: ir.Node, known: Known) -> Outcome:
    return node.inputs[0] if int_of(node, "blocksize", 0) == 1 else None


def _involution(node: ir.Node, known: Known) -> Outcome:
    inner = made_by(node.inputs[0], node.op_type)
    return None if inner is None else inner.inputs[0]


def _after(*op_types: str) -> Rule:
    """Nothing to do for what these operators make."""
    return lambda node, known: None if made_by(node.inputs[0], *op_types) is None else node.inputs[0]


def _relu_after_clip(node: ir.Node, known: Known) -> Outcome:
    clip = made_by(node.inputs[0], "Clip")
    if clip is None:
        return None
    attribute = clip.attributes.get("min")
    if attribute is not None:
        return node.inputs[0] if not attribute.is_ref() and attribute.as_float() >= 0 else None
    low, high = known.array(input_of(clip, 1)), known.array(input_of(clip, 2))
    if low is None or (high is None and input_of(clip, 2) is not None) or low.size != 1:
        return None
    return node.inputs[0] if np.all(low >= 0) and (high is None or np.all(high >= 0)) else None


_ROUNDED = ("Ceil", "Floor", "Round")


RULES: dict[str, list[Rule]] = {
    "Abs": [_after("Abs", "Relu")],
    "Add": [_neutral(0, 0, 1)],
    "And": [_neutral(True, 0, 1)],
    "AveragePool": [_pool],
    "BitShift": [_neutral(0, 1)],
    "BitwiseOr": [_neutral(0, 0, 1)],
    "BitwiseXor": [_neutral(0, 0, 1)],
    "Cast": [_same_type],
    "CastLike": [_same_type],
    "Ceil": [_after(*_ROUNDED)],
    "Clip": [_clip],
    "Concat": [_single],
    "DepthToSpace": [_block],
    "Div": [_neutral(1, 1)],
    "Dropout": [_dropout],
    "Einsum": [_einsum],
    "Expand": [_own_shape, _same_shape],
    "Flatten": [_flatten, _same_shape],
    "Floor": [_after(*_ROUNDED)],
    "GlobalAveragePool": [_global_pool],
    "GlobalMaxPool": [_global_pool],
    "Max": [_single],
    "MaxPool": [_pool],
    "Mean": [_single],
    "Min": [_single],
    "Mul": [_neutral(1, 0, 1)],
    "Neg": [_involution],
    "Not": [_involution],
    "Or": [_neutral(False, 0, 1)],
    "Pad": [_pad],
    "Pow": [_neutral(1, 1)],
    "ReduceMax": [_reduce],
    "ReduceMean": [_reduce],
    "ReduceMin": [_reduce],
    "ReduceProd": [_reduce],
    "ReduceSum": [_reduce],
    "Relu": [_after("Relu"), _relu_after_clip],
    "Reshape": [_own_shape, _same_shape],
    "Resize": [_resize],
    "Round": [_after(*_ROUNDED)],
    "Sign": [_after("Sign")],
    "Slice": [_slice],
    "SpaceToDepth": [_block],
    "Split": [_single_output],
    "Squeeze": [_same_shape],
    "Sub": [_neutral(0, 1)],
    "Sum": [_single],
    "Tile": [_tile, _same_shape],
    "Transpose": [_transpose],
    "Unsqueeze": [_same_shape],
    "Upsample": [_resize],
    "Where": [_where],
    "Xor": [_neutral(False, 0, 1)],
}
