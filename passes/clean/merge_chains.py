"""Chains of nodes that move or convert data, which fewer nodes can do: a small rule for each kind of chain."""

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols.arguments import reshape_target
from onnxopt.analysis.symbols.facts import Shape
from onnxopt.analysis.symbols.repeats import moves_nothing
from onnxopt.model import Model
from onnxopt.passes.known import Known, cuts, input_of, int_of, ints_of, made_by, read_once
from onnxopt.passes.rewriting import Outcome, Put, Rules, rewrite
from onnxopt.passing import Context, Findings, Pass

_SHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that leave the data as it lies and give it another shape."""

_FEW = 16
"""Readers of a slice that are looked at; more would take quadratic time."""

_INTEGERS = {
    ir.DataType.INT8: (1, 7), ir.DataType.INT16: (1, 15), ir.DataType.INT32: (1, 31), ir.DataType.INT64: (1, 63),
    ir.DataType.UINT8: (0, 8), ir.DataType.UINT16: (0, 16), ir.DataType.UINT32: (0, 32), ir.DataType.UINT64: (0, 64),
    ir.DataType.BOOL: (0, 1),
}  # fmt: skip
"""Bits of sign and magnitude."""

_FLOATS = {
    ir.DataType.FLOAT16: (11, 5), ir.DataType.BFLOAT16: (8, 8), ir.DataType.FLOAT: (24, 8), ir.DataType.DOUBLE: (53, 11)
}  # fmt: skip
"""Bits of precision and exponent."""


class MergeChains(Pass):
    """Merge changes of shape, casts, slices and concatenations that follow one another.

    Shapes count where inference proves them for every input that the model takes; dynamic axes stay dynamic.
    """

    def run(self, model: Model, context: Context) -> Findings:
        return rewrite(model, RULES, self.name)


def _shaping(value: ir.Value | None, known: Known) -> ir.Node | None:
    """The node that makes a value, if all it does is to give data another shape."""
    node = made_by(value, *_SHAPING, "Transpose")
    return node if node is not None and (node.op_type != "Transpose" or moves_nothing(known.call(node))) else None


def _last_reshape(node: ir.Node, known: Known) -> Outcome:
    """The last Reshape of a chain says all, unless it copies sizes that the one before makes."""
    inner, sizes = _shaping(node.inputs[0], known), known.integers(input_of(node, 1))
    if inner is None or sizes is None:
        return None
    source = inner.inputs[0]
    if known.same_shape(source, node.outputs[0]):
        return source
    before, after = known.dims(source), known.dims(node.inputs[0])
    copied = [] if int_of(node, "allowzero", 0) else [axis for axis, size in enumerate(sizes) if size == 0]
    if not all(_same(before, after, axis) for axis in copied):
        return None
    return Put("Reshape", [source, node.inputs[1]], node.attributes, f"{inner.op_type} before Reshape is left out")


def _same(a: Shape | None, b: Shape | None, axis: int) -> bool:
    return a is not None and b is not None and axis < min(len(a), len(b)) and a[axis] == b[axis]


def _shapes(node: ir.Node, known: Known) -> Outcome:
    """Two changes of shape are one Reshape, or none, where the last shape can be written down."""
    inner = _shaping(node.inputs[0], known)
    if inner is None or known.model.opset < 5 or (node.op_type == "Transpose" and not moves_nothing(known.call(node))):
        return None
    if inner.op_type == node.op_type == "Transpose":
        return None
    source = inner.inputs[0]
    if known.same_shape(source, node.outputs[0]):
        return source
    sizes = _target(source, node, known)
    if sizes is None:
        return None
    what = f"{inner.op_type} and {node.op_type} are one Reshape to {sizes}"
    return Put("Reshape", [source, np.array(sizes, np.int64)], {}, what)


def _static_shape(node: ir.Node, known: Known) -> Outcome:
    """A shape that is computed, and always comes out as the same few numbers."""
    shape = input_of(node, 1)
    if shape is None or shape.producer() is None:
        return None
    sizes = _target(node.inputs[0], node, known)
    if sizes is None:
        return None
    return Put("Reshape", [node.inputs[0], np.array(sizes, np.int64)], {}, f"the shape is always {sizes}")


def _target(source: ir.Value | None, node: ir.Node, known: Known) -> list[int] | None:
    """What a Reshape of a value is to be told to give what a node gives."""
    result = known.dims(node.outputs[0])
    return None if result is None else reshape_target(known.dims(source), result)


def _axes(node: ir.Node, known: Known) -> list[int] | None:
    """The axes of Squeeze and Unsqueeze, sorted, where they are constants and counted from the front."""
    axes = ints_of(node, "axes") if known.model.opset < 13 else known.integers(input_of(node, 1))
    return sorted(axes) if axes and min(axes) >= 0 else None


def _new_axes(node: ir.Node, known: Known) -> Outcome:
    """Squeeze after Squeeze, Unsqueeze after Unsqueeze, and what one does and the other undoes; of any shape."""
    inner = made_by(node.inputs[0], "Squeeze", "Unsqueeze")
    if inner is None:
        return None
    first, then = _axes(inner, known), _axes(node, known)
    if first is None or then is None:
        return None
    if inner.op_type != node.op_type:
        return inner.inputs[0] if node.op_type == "Squeeze" and first == then else None
    fixed, moved = (first, then) if node.op_type == "Squeeze" else (then, first)
    axes = sorted([*fixed, *_places(fixed, moved)])
    what = f"two nodes {node.op_type} are one: axes {axes}"
    if known.model.opset < 13:
        return Put(node.op_type, [inner.inputs[0]], {"axes": axes}, what)
    return Put(node.op_type, [inner.inputs[0], np.array(axes, np.int64)], {}, what)


def _places(taken: list[int], axes: list[int]) -> list[int]:
    """Where axes come to lie when those that are taken are put in among them; both sorted."""
    places = []
    for axis in axes:
        for other in taken:
            axis += other <= axis
        places.append(axis)
    return places


def _casts(node: ir.Node, known: Known) -> Outcome:
    """A cast that loses nothing, before another."""
    inner = made_by(node.inputs[0], "Cast")
    if inner is None:
        return None
    source = inner.inputs[0]
    first, middle, last = known.dtype(source), *(ir.DataType(int_of(n, "to", 0)) for n in (inner, node))
    if first is None or last not in {*_INTEGERS, *_FLOATS} or not _holds(middle, first):
        return None
    if first == last:
        return source
    what = f"the cast from {first} to {middle} before that to {last} is left out"
    return Put("Cast", [source], node.attributes, what)


def _holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether a type has every number of another."""
    if narrow in _FLOATS:
        return wide in _FLOATS and all(w >= n for w, n in zip(_FLOATS[wide], _FLOATS[narrow], strict=True))
    if narrow not in _INTEGERS:
        return False
    if wide in _INTEGERS:
        return all(w >= n for w, n in zip(_INTEGERS[wide], _INTEGERS[narrow], strict=True))
    return wide in _FLOATS and _FLOATS[wide][0] >= _INTEGERS[narrow][1]


def _slices(node: ir.Node, known: Known) -> Outcome:
    """Slices along different axes, where all who read the first one are such slices."""
    inner = made_by(node.inputs[0], "Slice")
    if inner is None or inner.outputs[0].is_graph_output() or len(inner.outputs[0].uses()) > _FEW:
        return None
    both = _both_cuts(inner, node, known)
    if both is None or any(_both_cuts(inner, reader, known) is None for reader in inner.outputs[0].consumers()):
        return None
    starts, ends, steps = (list(numbers) for numbers in zip(*both.values(), strict=True))
    what = f"two slices are one, along the axes {list(both)}"
    if known.model.opset < 10:
        return Put("Slice", [inner.inputs[0]], {"starts": starts, "ends": ends, "axes": list(both)}, what)
    given = [np.array(numbers, np.int64) for numbers in (starts, ends, list(both), steps)]
    return Put("Slice", [inner.inputs[0], *given], {}, what)


def _both_cuts(inner: ir.Node, node: ir.Node, known: Known) -> dict[int, tuple[int, int, int]] | None:
    if node.domain or node.op_type != "Slice" or node.inputs[0] is not inner.outputs[0]:
        return None
    first, then = cuts(inner, known), cuts(node, known)
    if not first or not then:
        return None
    if min(*first, *then) < 0 <= max(*first, *then):
        rank = known.rank(node.inputs[0])
        if rank is None:
            return None
        first, then = ({axis % rank: cut for axis, cut in each.items()} for each in (first, then))
    return None if first.keys() & then.keys() else {**first, **then}


def _concats(node: ir.Node, known: Known) -> Outcome:
    """What only serves to be concatenated once more."""
    axis, inputs = int_of(node, "axis", 1), list[ir.Value | None]()
    for value in node.inputs:
        inner = made_by(value, "Concat")
        merged = inner is not None and value is not None and read_once(value) and inner.graph is node.graph
        inputs += inner.inputs if inner is not None and merged and int_of(inner, "axis", 1) == axis else [value]
    if len(inputs) == len(node.inputs):
        return None
    return Put("Concat", inputs, node.attributes, f"nested concatenations are one of {len(inputs)} inputs")


def _concat_of_split(node: ir.Node, known: Known) -> Outcome:
    """All parts of a Split, put together as they were."""
    split = None if node.inputs[0] is None else node.inputs[0].producer()
    if split is None or split.domain or split.op_type != "Split":
        return None
    together = list(node.inputs) == list(split.outputs) and int_of(node, "axis", 1) == int_of(split, "axis", 0)
    return split.inputs[0] if together else None


RULES: Rules = {
    "Cast": [_casts],
    "Concat": [_concat_of_split, _concats],
    "Flatten": [_shapes],
    "Reshape": [_last_reshape, _shapes, _static_shape],
    "Slice": [_slices],
    "Squeeze": [_new_axes, _shapes],
    "Transpose": [_shapes],
    "Unsqueeze": [_new_axes, _shapes],
}
