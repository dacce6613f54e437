"""Transpositions that another one undoes, wherever they stand."""

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols import Scalar
from onnxopt.analysis.symbols.facts import Shape
from onnxopt.model import Model
from onnxopt.passes.known import Array, Known, ints_of, made_by, read_once
from onnxopt.passes.rewriting import Outcome, Put, Rules, rewrite
from onnxopt.passing import Context, Findings, Pass

_SHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu",
    "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan",
    "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Operators that look at each entry of their first input alone; other inputs are scalars."""

_BINARY = ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub")

_FAR = 16
"""Operators between two transpositions, at most."""


class MergeTransposes(Pass):
    """Merge transpositions that follow one another, or that only operators on single entries separate.

    What lies between is computed in the order of axes of its input; constants there are transposed. A
    transposition of merged axes that are split again is one of the axes themselves.
    """

    def run(self, model: Model, context: Context) -> Findings:
        return rewrite(model, RULES, self.name)


def _transposes(node: ir.Node, known: Known) -> Outcome:
    inner = made_by(node.inputs[0], "Transpose")
    if inner is None:
        return None
    first, then = ints_of(inner, "perm"), ints_of(node, "perm")
    rank = len(first or then or ())
    backwards = list(reversed(range(rank)))
    perm = [(first or backwards)[axis] for axis in (then or backwards)]
    if perm == sorted(perm):
        return inner.inputs[0]
    return Put("Transpose", [inner.inputs[0]], {"perm": perm}, f"two transpositions are one: {perm}")


def _plain_transpose(node: ir.Node, known: Known) -> Outcome:
    """Axes are merged, moved and split again: a transposition that never needed to merge them."""
    transpose = made_by(node.inputs[0], "Transpose")
    merge = None if transpose is None else made_by(transpose.inputs[0], *_SHAPING)
    if transpose is None or merge is None or not _spare(transpose.outputs[0], node):
        return None
    source = merge.inputs[0]
    fine, coarse, after = known.dims(source), known.dims(merge.outputs[0]), known.dims(node.outputs[0])
    if fine is None or coarse is None or after is None or len(after) != len(fine):
        return None
    groups, perm = _groups(fine, coarse), ints_of(transpose, "perm") or list(reversed(range(len(coarse))))
    if groups is None or len(perm) != len(groups):
        return None
    order = [axis for place in perm for axis in groups[place]]
    if any(fine[axis] != size for axis, size in zip(order, after, strict=True)):
        return None
    return Put("Transpose", [source], {"perm": order}, f"merged, moved and split axes are one transposition: {order}")


def _groups(fine: Shape, coarse: Shape) -> list[list[int]] | None:
    """Which neighbouring axes of one shape make each axis of another; None where that is not certain."""
    groups, axis = list[list[int]](), 0
    for size in coarse:
        group = list[int]()
        product: Scalar = 1
        while product != size or not group:
            if axis == len(fine):
                return None
            group.append(axis)
            product, axis = product * fine[axis], axis + 1
        groups.append(group)
    rest = list(range(axis, len(fine)))
    return None if any(fine[axis] != 1 for axis in rest) else [*groups[:-1], [*groups[-1], *rest]]


def _around(node: ir.Node, known: Known) -> Outcome:
    """A transposition behind operators on single entries behind a transposition: all but one are of no use."""
    between: list[tuple[ir.Node, int]] = []
    value, then = node.inputs[0], ints_of(node, "perm")
    while then and value is not None and len(between) < _FAR and (first := made_by(value, "Transpose")) is None:
        inner = made_by(value, *_UNARY, *_BINARY)
        place = None if inner is None or not _spare(value, node) else _moving(inner, known)
        if inner is None or place is None:
            return None
        between.append((inner, place))
        value = inner.inputs[place]
    if not then or value is None or not between or first is None:
        return None
    perm = ints_of(first, "perm")
    if perm is None or len(perm) != len(then):
        return None
    order = [perm[axis] for axis in then]
    back = order == sorted(order)
    if not back and not _spare(value, node):
        return None
    made: ir.Value | Put | None = first.inputs[0] if back else Put("Transpose", [first.inputs[0]], {"perm": order})
    for inner, place in reversed(between):
        inputs = [made if index == place else _moved(v, then, known) for index, v in enumerate(inner.inputs)]
        made = Put(inner.op_type, inputs, inner.attributes, f"{inner.op_type} takes its input untransposed", inner)
    return made


def _moving(node: ir.Node, known: Known) -> int | None:
    """The input whose axes the node's output has; the others must be constants of no more axes, or scalars."""
    if "axis" in node.attributes or "broadcast" in node.attributes:  # before opset 7
        return None
    if node.op_type in _UNARY:
        return 0
    constant = [index for index, value in enumerate(node.inputs) if known.array(value) is not None]
    rank = known.rank(node.outputs[0])
    if len(node.inputs) != 2 or len(constant) != 1 or rank is None:
        return None
    moving = 1 - constant[0]
    return moving if known.rank(node.inputs[moving]) == rank else None


def _moved(value: ir.Value | None, perm: list[int], known: Known) -> ir.Value | Array | None:
    """A constant beside a value whose axes change places."""
    array = known.array(value)
    if array is None or array.size == 1:
        return value
    return np.ascontiguousarray(array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(perm))


def _both(node: ir.Node, known: Known) -> Outcome:
    """An operator on two values that are transposed alike, and its result transposed back."""
    inner, then = made_by(node.inputs[0], *_BINARY), ints_of(node, "perm")
    if inner is None or then is None or len(inner.inputs) != 2 or not _spare(inner.outputs[0], node):
        return None
    sources = [made_by(value, "Transpose") for value in inner.inputs]
    perms = [None if source is None else ints_of(source, "perm") for source in sources]
    if perms[0] is None or perms[0] != perms[1] or {"axis", "broadcast"} & inner.attributes.keys():
        return None
    if len(then) != len(perms[0]) or [perms[0][axis] for axis in then] != sorted(then):
        return None
    inputs = [source.inputs[0] for source in sources if source is not None]
    return Put(inner.op_type, inputs, inner.attributes, f"{inner.op_type} takes its inputs untransposed", inner)


def _spare(value: ir.Value, node: ir.Node) -> bool:
    """Whether a value is of no use but to what leads to a node, and made no less often than it."""
    return read_once(value) and value.graph is node.graph


RULES: Rules = {
    "Flatten": [_plain_transpose],
    "Reshape": [_plain_transpose],
    "Squeeze": [_plain_transpose],
    "Transpose": [_transposes, _around, _both],
    "Unsqueeze": [_plain_transpose],
}
