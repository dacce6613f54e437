"""Nodes that give back what they were given: a small rule for each operator."""

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols.repeats import NEUTRAL, REPEATS
from onnxopt.model import Model
from onnxopt.passes.known import Known, cuts, input_of, int_of, ints_of, made_by, text_of
from onnxopt.passes.rewriting import Outcome, Rule, Rules, rewrite
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
    perm = ints_of(node, "perm")
    return node.inputs[0] if perm and perm == sorted(perm) else None


def _own_shape(node: ir.Node, known: Known) -> Outcome:
    """Reshape or Expand to the shape that it has."""
    shape = made_by(input_of(node, 1), "Shape")
    own = shape is not None and shape.inputs[0] is node.inputs[0] and not shape.attributes
    return node.inputs[0] if own else None


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
    amounts = known.call(node).integers(1, "pads" if known.model.opset > 1 else "paddings")
    return node.inputs[0] if amounts is not None and not any(amounts) else None


def _slice(node: ir.Node, known: Known) -> Outcome:
    """From the first entry to the last, however many there are."""
    cut = cuts(node, known)
    if cut is None:
        return None
    whole = all(
        (start == 0 or start <= -_EVERYTHING) and end >= _EVERYTHING and step == 1 for start, end, step in cut.values()
    )
    return node.inputs[0] if whole else None


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
    return node.inputs[0] if known.is_all(scales, 1) else None


def _reduce(node: ir.Node, known: Known) -> Outcome:
    """No axes, where that means none of them."""
    given = input_of(node, 1)
    axes = ints_of(node, "axes") if given is None else known.integers(given)
    none = not axes and (given is None or axes is not None)
    return node.inputs[0] if none and int_of(node, "noop_with_empty_axes", 0) else None


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


def _repeats(node: ir.Node, known: Known) -> Outcome:
    """What the sizes of its inputs tell."""
    return known.repeated(node)


_ROUNDED = ("Ceil", "Floor", "Round")


_OWN: Rules = {
    "Abs": [_after("Abs", "Relu")],
    "AveragePool": [_pool],
    "Cast": [_same_type],
    "CastLike": [_same_type],
    "Ceil": [_after(*_ROUNDED)],
    "Clip": [_clip],
    "Concat": [_single],
    "DepthToSpace": [_block],
    "Dropout": [_dropout],
    "Einsum": [_einsum],
    "Expand": [_own_shape],
    "Floor": [_after(*_ROUNDED)],
    "GlobalAveragePool": [_global_pool],
    "GlobalMaxPool": [_global_pool],
    "Max": [_single],
    "MaxPool": [_pool],
    "Mean": [_single],
    "Min": [_single],
    "Neg": [_involution],
    "Not": [_involution],
    "Pad": [_pad],
    "ReduceMax": [_reduce],
    "ReduceMean": [_reduce],
    "ReduceMin": [_reduce],
    "ReduceProd": [_reduce],
    "ReduceSum": [_reduce],
    "Relu": [_after("Relu"), _relu_after_clip],
    "Reshape": [_own_shape],
    "Resize": [_resize],
    "Round": [_after(*_ROUNDED)],
    "Sign": [_after("Sign")],
    "Slice": [_slice],
    "SpaceToDepth": [_block],
    "Split": [_single_output],
    "Sum": [_single],
    "Tile": [_tile],
    "Transpose": [_transpose],
    "Upsample": [_resize],
    "Where": [_where],
}
"""Rules that need no sizes, or know more than those."""

_NEUTRALS: Rules = {op: [_neutral(number, *((0, 1) if either else (1,)))] for op, (number, either) in NEUTRAL.items()}

_SIZED: Rules = {op: [_repeats] for op in REPEATS if op not in NEUTRAL and op != "Identity"}
"""Identities are another pass's, which knows when one must stay."""

RULES: Rules = {**_NEUTRALS, **{op: [*_OWN.get(op, ()), *_SIZED.get(op, ())] for op in {**_OWN, **_SIZED}}}
