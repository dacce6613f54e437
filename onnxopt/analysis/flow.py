"""How data flow through the main graph, in integers: what repeated walks over large graphs are made on."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.analysis.parameters import Stored, stored
from onnxopt.analysis.structure import constant_tensor, reads, topological
from onnxopt.model import Model
from onnxopt.nodes import inner_graphs, with_inner

_SIZES_ONLY = {"Shape", "Size"}
"""Operators whose result is the same for whatever data of that size."""

_CONTRACTIONS = {"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"}
"""Operators whose constants are weights even where only one axis of them is longer than 1."""

_NO_TENSORS = {
    "Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap",
    "SplitToSequence", "ZipMap",
}  # fmt: skip
"""Operators that make sequences, optional values and maps."""

_PASS_ON = {"Identity", "If", "Loop", "OptionalGetElement"}
"""Standard operators that give those out when they are given them."""


@dataclass(frozen=True)
class Flow:
    """The main graph: values and nodes by number, each after what it depends on.

    Attributes:
        nodes: in an order in which they run.
        values: graph inputs that are no initializers, then the outputs of the nodes.
        makers: by value: the number of its node; -1 for an input.
        outputs: by node: the numbers of its outputs.
        needs: by node: the values that it or its subgraphs read, initializers left out.
        data: the same without what only its size is asked of.
        fed: by value: whether it depends on an input.
        carries: by value: whether data of an input, and not only their sizes, have a part in it.
        tensor: by value: whether it is a tensor for certain.
        bytes: by node: size of the weights (see `parameters.stored`) that it or its subgraphs read; each weight counts
            for its first reader.
        weighs: by node: whether it reads a weight matrix: one with two axes longer than 1, or a contraction's.
    """

    nodes: list[ir.Node]
    values: list[ir.Value]
    makers: list[int]
    outputs: list[range]
    needs: list[list[int]]
    data: list[list[int]]
    fed: list[bool]
    carries: list[bool]
    tensor: list[bool]
    bytes: list[int]
    weighs: list[bool]


def flow(model: Model) -> Flow:
    """Number the main graph of a model. Linear in nodes."""
    nodes = topological(model.graph)
    values = [value for value in model.graph.inputs if not value.is_initializer()]
    makers, outputs = [-1] * len(values), []
    for at, node in enumerate(nodes):
        outputs.append(range(len(values), len(values) + len(node.outputs)))
        values.extend(node.outputs)
        makers.extend([at] * len(node.outputs))
    number = {value: at for at, value in enumerate(values)}
    needs = [[number[value] for value in dict.fromkeys(reads(node)) if value in number] for node in nodes]
    data = [[number[value] for value in dict.fromkeys(_data(node)) if value in number] for node in nodes]
    weights = {each.value: each for each in stored(model) if each.params}
    return Flow(
        nodes, values, makers, outputs, needs, data,
        _spread(needs, makers, outputs), _spread(data, makers, outputs), _tensors(model, nodes, number),
        _bytes(nodes, weights), [_weighs(node, weights) for node in nodes],
    )  # fmt: skip


def _data(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads the data of; a subgraph that asks only for the size of a value reads none."""
    for inner in with_inner(node):
        if inner.op_type not in _SIZES_ONLY or inner.domain not in ("", "ai.onnx"):
            yield from (value for value in inner.inputs if value is not None)
    for graph in inner_graphs(node):
        yield from graph.outputs


def _spread(read: list[list[int]], makers: list[int], outputs: list[range]) -> list[bool]:
    """By value: whether an input has a part in it."""
    reached = [maker < 0 for maker in makers]
    for values, made in zip(read, outputs, strict=True):
        if any(reached[value] for value in values):
            for value in made:
                reached[value] = True
    return reached


def _tensors(model: Model, nodes: list[ir.Node], number: dict[ir.Value, int]) -> list[bool]:
    makes = {key: any(_makes_others(n) for n in function.all_nodes()) for key, function in model.ir.functions.items()}
    certain = [_declared(value) is not False for value in number]
    for node in nodes:
        inner = any(map(_makes_others, with_inner(node))) or makes.get(node.op_identifier(), False)
        passes = node.op_type in _PASS_ON or node.domain not in ("", "ai.onnx", "ai.onnx.ml")
        given = passes and not all(certain[number[value]] for value in reads(node) if value in number)
        for value in node.outputs:
            declared = _declared(value)
            certain[number[value]] = not (inner or given) if declared is None else declared
    return certain


def _makes_others(node: ir.Node) -> bool:
    return node.op_type in _NO_TENSORS


def _declared(value: ir.Value) -> bool | None:
    """Whether a value is said to be a tensor; None where nothing is said."""
    return None if value.type is None else isinstance(value.type, ir.TensorType)


def _bytes(nodes: list[ir.Node], weights: dict[ir.Value, Stored]) -> list[int]:
    counted: set[ir.Value] = set()
    found = []
    for node in nodes:
        fresh = {value for value in reads(node) if value in weights and value not in counted}
        counted |= fresh
        found.append(sum(weights[value].nbytes for value in fresh))
    return found


def _weighs(node: ir.Node, weights: dict[ir.Value, Stored]) -> bool:
    return any(
        _is_matrix(value, inner.op_type in _CONTRACTIONS)
        for inner in with_inner(node)
        for value in inner.inputs
        if value is not None and value in weights
    )


def _is_matrix(value: ir.Value, multiplied: bool) -> bool:
    """Whether a constant is more than a scale, a shift or a bias, which have one axis, written with ones or not."""
    tensor = constant_tensor(value)
    dims = () if tensor is None else tensor.shape.numpy()
    return len(dims) > 1 if multiplied else sum(dim > 1 for dim in dims) > 1
