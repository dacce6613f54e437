"""Which values an integer input can take: below the size of what it indexes, 0 or 1 where it is a mask."""

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import onnx_ir as ir

from onnxopt.analysis.structure import constant_tensor
from onnxopt.model import Model
from onnxopt.nodes import bodies

Kind = Literal["index", "size", "mask"]


class Evidence(NamedTuple):
    """What one use of a value says of it.

    Attributes:
        kind: an `index` into something, a `size` that shapes depend on, or a `mask`.
        limit: size of what is indexed; None where it is unknown.
    """

    kind: Kind
    limit: int | None = None


Rule: TypeAlias = Callable[[ir.Node, int, "_Sizes"], Evidence | None]

_MICROSOFT = "com.microsoft"
_ONNX = ("", "ai.onnx")

_CARRY_FIRST = frozenset((
    "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Slice", "Split",
    "Gather", "GatherElements", "GatherND", "Pad", "Compress", "Trilu", "ReverseSequence", "CenterCropPad",
    "DepthToSpace", "SpaceToDepth",
))  # fmt: skip
"""Operators whose outputs hold values of their first input and, at most, constants."""

_CARRY_SOME: Mapping[str, Container[int]] = {
    "Where": (1, 2), "ScatterElements": (0, 2), "ScatterND": (0, 2), "Concat": range(2**31),
}  # fmt: skip
"""The same of other inputs."""

_COMPARES = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "CumSum"))
"""Operators that read masks; weak evidence, for token ids are compared too."""

_SIZES: Mapping[str, Container[int]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "TopK": (1,),
    "Slice": (1, 2, 4), "Split": (1,), "Resize": (3,), "Pad": (1,), "CenterCropPad": (1,), "Loop": (0,),
    "ReverseSequence": (1,), "RNN": (4,), "LSTM": (4,), "GRU": (4,), "OneHot": (1,), "NonMaxSuppression": (2,),
    "DFT": (1,), "STFT": (1, 3), "HannWindow": (0,), "HammingWindow": (0,), "BlackmanWindow": (0,),
}  # fmt: skip
"""Inputs on which shapes, lengths or repetitions depend."""


_KEEPS_SHAPE = frozenset(("Identity", "Cast", "DequantizeLinear", "QuantizeLinear", "Clip", "Neg", "Relu"))
"""Operators whose output has their first input's shape: what may lie between a table and its lookup."""


class _Sizes:
    """Sizes of values, also where a value stands for what a function is called with."""

    def __init__(self) -> None:
        self._actual: dict[ir.Value, ir.Value | None] = {}

    def enter(self, function: ir.Function, call: ir.Node) -> None:
        """Note what a function's inputs stand for; of several calls the first counts."""
        for formal, actual in zip(function.inputs, call.inputs, strict=False):
            self._actual.setdefault(formal, actual)

    def size(self, value: ir.Value | None, axis: int) -> int | None:
        """Size of an axis; None where it is unknown."""
        shape = self.shape(value)
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    def shape(self, value: ir.Value | None) -> Sequence[int | None] | None:
        """Found at what computes the value where it is not noted; None for an unknown rank."""
        while value is not None:
            constant = constant_tensor(value)
            shape = constant.shape if constant is not None else value.shape
            if shape is not None:
                return [dim if isinstance(dim, int) else None for dim in shape]
            node = value.producer()
            if node is None:
                value = self._actual.get(value)
            else:
                value = node.inputs[0] if node.op_type in _KEEPS_SHAPE else None
        return None

    def scalar(self, value: ir.Value | None) -> int | None:
        """The integer that a constant holds, if it holds a single one."""
        while value in self._actual:
            value = self._actual[value]
        tensor = constant_tensor(value)
        if tensor is None or tensor.size != 1 or not tensor.dtype.is_integer():
            return None
        return int(tensor.numpy().reshape(-1)[0])


def index_bounds(model: Model) -> dict[str, tuple[int, int]]:
    """Smallest and largest sensible value of each integer input that the graph says something of.

    Follows inputs through operators that carry values on (Cast, Reshape, Concat, ...), constants added, and calls
    of the model's functions. An input that indexes gets 0 to the smallest size that it indexes, less one (0 to 0
    where no size is known); one that sizes depend on gets 1 to 1; one that is compared, cast to a boolean or used
    as a mask gets 0 to 1. Index goes before size, size before mask. Linear in the number of uses.
    """
    found = {}
    for value in model.graph.inputs:
        is_integer = value.dtype is not None and value.dtype.is_integer()
        if not is_integer or value.is_initializer() or not value.name:
            continue
        bounds = _bounds(list(_uses(model, value)))
        if bounds is not None:
            found[value.name] = bounds
    return found


def _bounds(evidence: Sequence[tuple[Evidence, int]]) -> tuple[int, int] | None:
    """Of all that was found, each with what had been added to the input there."""
    indexed = [(max(0, -shift), (found.limit or 1) - 1 - shift) for found, shift in evidence if found.kind == "index"]
    if indexed:
        low, high = max(low for low, _ in indexed), min(high for _, high in indexed)
        return low, max(low, high)
    sizes = [1 - shift for found, shift in evidence if found.kind == "size"]
    if sizes:
        return max(sizes), max(sizes)
    return (0, 1) if evidence else None


def _uses(model: Model, start: ir.Value) -> Iterator[tuple[Evidence, int]]:
    """Evidence from all that reads the value, directly or through operators that carry it."""
    seen, queue, sizes = {start}, deque([(start, 0)]), _Sizes()
    while queue:
        value, shift = queue.popleft()
        for node, index in value.uses():
            evidence = _evidence(node, index, sizes)
            if evidence is not None:
                yield evidence, shift
            for carried, added in _carried(model, node, index, sizes):
                if carried not in seen:
                    seen.add(carried)
                    queue.append((carried, shift + added))


def _carried(model: Model, node: ir.Node, index: int, sizes: _Sizes) -> Iterable[tuple[ir.Value, int]]:
    """Values that hold those of a node's input, and what was added."""
    function = model.ir.functions.get(node.op_identifier())
    if function is not None:
        sizes.enter(function, node)
        return [(function.inputs[index], 0)] if index < len(function.inputs) else []
    if node.domain not in _ONNX:
        return []
    if node.op_type in ("Loop", "Scan"):
        first = 2 if node.op_type == "Loop" else 0
        return [(body.inputs[index], 0) for body in bodies(node) if first <= index < len(body.inputs)]
    if node.op_type in ("Add", "Sub"):
        added = sizes.scalar(node.inputs[1 - index])
        if added is None or (node.op_type == "Sub" and index == 1):
            return []
        return [(node.outputs[0], added if node.op_type == "Add" else -added)]
    if node.op_type == "Cast" and not _casts_to(node, ir.DataType.is_integer):
        return []
    carries = (index == 0 and node.op_type in _CARRY_FIRST) or index in _CARRY_SOME.get(node.op_type, ())
    return [(output, 0) for output in node.outputs] if carries else []


def _evidence(node: ir.Node, index: int, sizes: _Sizes) -> Evidence | None:
    domain = "" if node.domain in _ONNX else node.domain
    rule = _RULES.get((domain, node.op_type))
    found = rule(node, index, sizes) if rule is not None else None
    if found is not None or domain:
        return found
    if index in _SIZES.get(node.op_type, ()):
        return Evidence("size")
    return Evidence("mask") if node.op_type in _COMPARES else None


_RULES: dict[tuple[str, str], Rule] = {}


def _rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update({(domain, op): rule for op in ops})
        return rule

    return register


@_rule("Gather", "GatherElements", "ScatterElements")
@_rule("GatherBlockQuantized", domain=_MICROSOFT)
def _along_an_axis(node: ir.Node, index: int, sizes: _Sizes) -> Evidence | None:
    key = "gather_axis" if node.op_type == "GatherBlockQuantized" else "axis"
    return Evidence("index", sizes.size(node.inputs[0], node.attributes.get_int(key, 0))) if index == 1 else None


@_rule("GatherND", "ScatterND")
def _of_several_axes(node: ir.Node, index: int, sizes: _Sizes) -> Evidence | None:
    if index != 1:
        return None
    first, shape = node.attributes.get_int("batch_dims", 0), sizes.shape(node.inputs[1])
    count = shape[-1] if shape else None
    limits = [sizes.size(node.inputs[0], axis) for axis in range(first, first + count)] if count else [None]
    return Evidence("index", None if None in limits else min(size for size in limits if size is not None))


@_rule("OneHot")
def _one_hot(node: ir.Node, index: int, sizes: _Sizes) -> Evidence | None:
    return Evidence("index", sizes.scalar(node.inputs[1])) if index == 0 else None


@_rule("RoiAlign")
def _roi_align(node: ir.Node, index: int, sizes: _Sizes) -> Evidence | None:
    return Evidence("index", sizes.size(node.inputs[0], 0)) if index == 2 else None


@_rule("Cast")
def _cast(node: ir.Node, index: int, sizes: _Sizes) -> Evidence | None:
    return Evidence("mask") if _casts_to(node, lambda dtype: dtype == ir.DataType.BOOL) else None


@_rule("EmbedLayerNormalization", "QEmbedLayerNormalization", domain=_MICROSOFT)
def _embeddings(node: ir.Node, index: int, sizes: _Sizes) -> Evidence | None:
    tables = {0: 2, 1: 4, 8: 3}
    if index in tables and len(node.inputs) > tables[index]:
        return Evidence("index", sizes.size(node.inputs[tables[index]], 0))
    return Evidence("mask") if index == 7 else None


def _casts_to(node: ir.Node, wanted: Callable[[ir.DataType], bool]) -> bool:
    target = node.attributes.get_int("to", 0)
    return target in set(ir.DataType) and wanted(ir.DataType(target))
