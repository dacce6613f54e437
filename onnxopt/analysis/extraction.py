"""Some nodes of a model as a model of their own, to be run: in goes what is available, out comes what is wanted."""

from collections.abc import Callable, Collection, Iterable, Sequence

import onnx_ir as ir

from onnxopt.analysis.structure import reads, topological
from onnxopt.errors import ModelError
from onnxopt.model import Model

_OLDEST_IR = 4
"""Before it a file had to list its weights as inputs."""


def upstream(wanted: Iterable[ir.Value], available: Collection[ir.Value]) -> set[ir.Node]:
    """The nodes that it takes to compute some values from others, in whatever graphs they are."""
    found: set[ir.Node] = set()
    stack = [value for value in wanted if value not in available]
    while stack:
        node = stack.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            stack += [value for value in reads(node) if value not in available]
    return found


def extracted(
    model: Model,
    nodes: Sequence[ir.Node],
    available: Collection[ir.Value],
    wanted: Sequence[ir.Value],
    dtype: Callable[[ir.Value], ir.DataType | None],
) -> Model:
    """Nodes as a model of their own that shares the weights; of values at its border only the types are stated.

    Initializers that callers may feed are constants in it. Cost: about 10 us a node.

    Args:
        model: where the nodes come from.
        nodes: of the main graph, each after those that it reads.
        available: what they may be fed with; those that they read become the inputs.
        wanted: the outputs, each made by one of the nodes.
        dtype: element type of a value; None where unknown.

    Raises:
        ModelError: they read what is neither made by them nor available, or an input's type is unknown.
    """
    made = {value for node in nodes for value in node.outputs}
    read = {value: None for node in nodes for value in reads(node) if value not in made and _is_outer(value, model)}
    weights = [value for value in read if value.is_initializer()]
    loose = [value for value in read if is_loose(value)]
    inputs = [value for value in read if value in available and not value.is_initializer()]
    if missing := read.keys() - {*weights, *loose, *inputs}:
        raise ModelError(f"value {min(value.name or '' for value in missing)!r} is not available here")
    graph = cloned(model, nodes, inputs, wanted, weights, loose)
    for value, copy in zip((*inputs, *wanted), (*graph.inputs, *graph.outputs), strict=True):
        _state_type(value, copy, dtype)
    version = max(model.ir.ir_version, _OLDEST_IR)
    return Model(ir.Model(graph, ir_version=version, functions=list(model.ir.functions.values())))


def copied(model: Model) -> tuple[Model, dict[ir.Node, ir.Node]]:
    """A copy that later edits of the model leave alone, and each node of the main graph with its copy.

    Weights are shared, as tensors never change. The copy's nodes are sorted. Cost: about 10 us a node.

    Raises:
        ModelError: nodes of a subgraph are not sorted.
    """
    nodes, graph = topological(model.graph), model.graph
    loose = dict.fromkeys(value for node in nodes for value in reads(node) if is_loose(value))
    clone = cloned(model, nodes, graph.inputs, graph.outputs, list(graph.initializers.values()), list(loose))
    functions = [function.clone() for function in model.ir.functions.values()]
    copy = Model(ir.Model(clone, ir_version=model.ir.ir_version, functions=functions))
    return copy, dict(zip(nodes, clone, strict=True))


def cloned(
    model: Model, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value],
    weights: Sequence[ir.Value], loose: Sequence[ir.Value],
) -> ir.Graph:  # fmt: skip
    """Sorted nodes of the main graph as a graph of copies that shares the weights.

    Args:
        model: where the nodes come from.
        nodes: each after those that it reads.
        inputs, outputs: of the new graph, as the model has them.
        weights: initializers that it gets.
        loose: values that nothing makes (sparse initializers), which the writer puts back.

    Raises:
        ModelError: nodes of a subgraph are not sorted.
    """
    view = ir.GraphView(
        (*inputs, *loose), outputs, nodes=nodes, initializers=weights,
        opset_imports=dict(model.graph.opset_imports), name=model.graph.name,
    )  # fmt: skip
    try:
        graph = view.clone()
    except RuntimeError as error:
        raise ModelError("the model cannot be copied: the nodes of a subgraph are not sorted; sort them") from error
    for _ in loose:  # what nothing in the graph makes, the writer puts back (sparse initializers)
        graph.inputs.pop()
    if loose:
        graph.meta.update(model.graph.meta)
    return graph


def is_loose(value: ir.Value) -> bool:
    """Whether nothing makes a value, as is true of sparse initializers."""
    return value.producer() is None and value.graph is None


def _is_outer(value: ir.Value, model: Model) -> bool:
    """Whether a value is of the main graph, or of none, and not a subgraph's own."""
    node = value.producer()
    return (value.graph if node is None else node.graph) in (None, model.graph)


def _state_type(value: ir.Value, copy: ir.Value, dtype: Callable[[ir.Value], ir.DataType | None]) -> None:
    copy.shape = None
    known = dtype(value)
    if isinstance(value.type, ir.SequenceType | ir.OptionalType):
        copy.type = value.type
    elif known is not None:
        copy.type = ir.TensorType(known)
    elif copy.type is None and value.producer() is None:
        raise ModelError(f"the type of {value.name!r} is unknown")
