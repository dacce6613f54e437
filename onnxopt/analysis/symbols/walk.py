"""The walk over a model that finds what holds of each value, whatever the sizes of the inputs' open axes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.structure import constant_tensor, topological
from onnxopt.analysis.symbols import (  # noqa: F401  (they register rules)
    casting,
    elementwise,
    fused,
    indexing,
    layers,
    layout,
    quantized,
)
from onnxopt.analysis.symbols.expressions import Space
from onnxopt.analysis.symbols.facts import MOST_ELEMENTS, PLAIN, Fact, Shape, of_array
from onnxopt.analysis.symbols.fallback import inferred
from onnxopt.analysis.symbols.rules import RULES, UNKNOWN, Call, key
from onnxopt.model import Model
from onnxopt.nodes import bodies

logger = logging.getLogger(__name__)

_KEPT: WeakKeyDictionary[Model, tuple[int, "Symbols"]] = WeakKeyDictionary()
"""What was found of models as they are: passes ask for it again and again."""

_ROUNDS = 4
"""Walks at most; sizes that one finds to be equal are taken so by the next."""


@dataclass(frozen=True)
class Symbols:
    """What holds of a model's values, in every run that does not fail.

    Attributes:
        order: all nodes, subgraphs' included, each after those that it reads.
    """

    space: Space
    order: tuple[ir.Node, ...]
    opset: int
    _facts: Mapping[ir.Value, Fact] = field(repr=False)

    def of(self, value: ir.Value | None) -> Fact:
        """What is known of a value; nothing for those that are left out."""
        return UNKNOWN if value is None else self._facts.get(value, UNKNOWN)

    def call(self, node: ir.Node) -> Call:
        """A node with what is known of its inputs."""
        return Call(node, _inputs(node, self._facts), self.space, self.opset)


def symbols(model: Model, sizes: Mapping[str, Shape] | None = None) -> Symbols:
    """Follow shapes, and elements of small tensors, through a model.

    Believed are: declared types; declared sizes of the inputs' axes where they are numbers, for the runtime refuses
    anything else (not so for inputs declared without axes, which take any rank); and that two open axes of inputs are
    equal where the model calls them by one name and also combines them with one another. No declared shape of
    any other value counts.

    What is found holds for all sizes from 1 to 2**31 - 1, with 64-bit integers that do not overflow. Comparisons
    are decided, and slices measured, for empty axes as well; a Reshape of an empty tensor, and a Concat of tensors
    that do not fit and of which the empty ones are ignored, may give another shape than the one found.

    Found once for each revision of a model, unless sizes are given.

    Args:
        model: the model.
        sizes: input name -> shape, where what holds is asked for these sizes alone.
    """
    if sizes is not None:
        return _settled(model, sizes)
    kept = _KEPT.get(model)
    if kept is None or kept[0] != model.revision:
        kept = _KEPT[model] = (model.revision, _settled(model, {}))
    return kept[1]


def _settled(model: Model, sizes: Mapping[str, Shape]) -> Symbols:
    space = Space()
    for _ in range(_ROUNDS):
        space.merged = False
        facts, order = _walk(model, space, sizes)
        if not space.merged:
            break
    return Symbols(space, tuple(order), model.opset, facts)


def _walk(model: Model, space: Space, sizes: Mapping[str, Shape]) -> tuple[dict[ir.Value, Fact], list[ir.Node]]:
    facts: dict[ir.Value, Fact] = {}
    order: list[ir.Node] = []
    functions = set(model.ir.functions)
    open_: list[tuple[ir.Node | None, Iterator[ir.Node | ir.Graph]]] = [(None, iter([model.graph]))]
    while open_:
        node, rest = open_[-1]
        item = next(rest, None)
        if isinstance(item, ir.Graph):
            _enter(model, item, node, facts, space, sizes)
            open_.append((None, iter(topological(item))))
        elif isinstance(item, ir.Node):
            if any(True for _ in bodies(item)):
                open_.append((item, iter(list(bodies(item)))))
            else:
                order.append(item)
                space.certain = item.graph is model.graph
                found = () if item.op_identifier() in functions else _found(item, facts, space, model.opset)
                _note(item, found, facts)
        else:
            open_.pop()
            if node is not None:
                order.append(node)
                _note(node, _of_bodies(node, facts), facts)
    return facts, order


def _enter(
    model: Model,
    graph: ir.Graph,
    node: ir.Node | None,
    facts: dict[ir.Value, Fact],
    space: Space,
    sizes: Mapping[str, Shape],
) -> None:
    """Facts of a graph's inputs and weights."""
    main = graph is model.graph
    given = () if node is None else _handed_in(node, facts, model.opset)
    for index, value in enumerate(graph.inputs):
        if main:
            given_size = sizes.get(value.name or "")
            facts[value] = _input(value, space) if given_size is None else Fact(value.dtype, given_size)
        else:
            facts[value] = Fact(value.dtype, given[index] if index < len(given) else None)
    for value in graph.initializers.values():
        if value.is_graph_input() and model.ir.ir_version >= 4:
            continue
        facts[value] = constant_fact(value)


def _handed_in(node: ir.Node, facts: Mapping[ir.Value, Fact], opset: int) -> list[Shape | None]:
    """Shapes of what a Scan gives its body: states, which keep their shape, and slices. Of a Loop's states, any."""
    if node.op_type != "Scan" or node.domain or opset < 9:
        return []
    count = node.attributes.get_int("num_scan_inputs", 0)
    shapes = [UNKNOWN.shape if value is None else facts.get(value, UNKNOWN).shape for value in node.inputs]
    first = len(shapes) - count
    for axis, place in zip(
        node.attributes.get_ints("scan_input_axes", [0] * count), range(first, first + count), strict=False
    ):
        if (shape := shapes[place]) is not None:
            shapes[place] = tuple(size for at, size in enumerate(shape) if at != axis % max(len(shape), 1))
    return shapes


def _input(value: ir.Value, space: Space) -> Fact:
    if value.shape is None or not len(value.shape) or not isinstance(value.type, ir.TensorType):
        return Fact(value.dtype)
    name = value.name or ""
    sizes = (
        dim
        if isinstance(dim, int) and dim > 0
        else space.dim(name, axis, dim.value if isinstance(dim, ir.SymbolicDim) else None)
        for axis, dim in enumerate(value.shape)
    )
    return Fact(value.dtype, tuple(sizes))


def constant_fact(value: ir.Value) -> Fact:
    """What is known of an initializer or of a Constant's output; of large ones type and shape."""
    tensor = constant_tensor(value)
    if tensor is None:
        return Fact(value.dtype)
    shape = tuple(tensor.shape.numpy())
    plain = tensor.dtype != ir.DataType.STRING and np.dtype(tensor.dtype.numpy()).name in PLAIN
    if tensor.size > MOST_ELEMENTS or not plain:
        return Fact(tensor.dtype, shape)
    return of_array(np.asarray(tensor.numpy()), tensor.dtype)


def _inputs(node: ir.Node, facts: Mapping[ir.Value, Fact]) -> tuple[Fact | None, ...]:
    return tuple(None if value is None else facts.get(value, UNKNOWN) for value in node.inputs)


def _found(node: ir.Node, facts: Mapping[ir.Value, Fact], space: Space, opset: int) -> Sequence[Fact]:
    name = key(node.domain, node.op_type)
    if name == "Constant":
        tensor = constant_tensor(node.outputs[0])
        return () if tensor is None else [constant_fact(node.outputs[0])]
    call = Call(node, _inputs(node, facts), space, opset)
    rule = RULES.get(name)
    try:
        return rule(call) if rule is not None else inferred(call) if name == node.op_type else ()
    except (IndexError, KeyError, ValueError, TypeError, ArithmeticError) as error:  # the model is not as it should be
        logger.debug("nothing found for %s: %s", node.name, error)
        return ()


def _note(node: ir.Node, found: Sequence[Fact], facts: dict[ir.Value, Fact]) -> None:
    for index, value in enumerate(node.outputs):
        fact = found[index] if index < len(found) else UNKNOWN
        facts[value] = replace(fact, dtype=value.dtype) if fact.dtype is None and value.dtype is not None else fact


def _of_bodies(node: ir.Node, facts: Mapping[ir.Value, Fact]) -> Sequence[Fact]:
    """What an If gives where both branches give the same; nothing for loops."""
    graphs = list(bodies(node))
    if node.op_type != "If" or len(graphs) != 2 or node.domain:
        return ()
    pairs = zip(*(graph.outputs for graph in graphs), strict=False)
    return [_either(*(facts.get(value, UNKNOWN) for value in pair)) for pair in pairs]


def _either(a: Fact, b: Fact) -> Fact:
    dtype = a.dtype if a.dtype == b.dtype else None
    if a.shape is None or a.shape != b.shape:
        return Fact(dtype)
    return Fact(dtype, a.shape)
