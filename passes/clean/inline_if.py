"""Branches that are always taken, and loops that run once or never."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.structure import constant_array, constant_tensor
from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.nodes import bodies, label
from onnxopt.passes.clean import is_constant
from onnxopt.passing import Context, Findings, Pass

Mapping = dict[ir.Value, ir.Value]
"""A value of a subgraph -> what stands for it where the subgraph is taken in."""


class InlineIf(Pass):
    """Put the branch that a constant condition chooses in the place of an If, and the body of a Loop of one trip.

    A Loop that never runs gives its initial values. Nested ones follow. Names are kept where they are free.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        renamed: dict[ir.Node | ir.Value, str] = {}
        waiting = list(reversed(list(model.graph)))
        while waiting:
            node = waiting.pop()
            taken = _ASKED[node.op_type](model, node) if node.op_type in _ASKED and not node.domain else None
            moved = None
            if isinstance(taken, _Taken):
                moved = self._inline(model, node, taken, findings, renamed)
            elif taken is not None:
                findings.decline(label(node), self.name, taken)
            inner = [n for body in bodies(node) for n in body] if moved is None else moved
            waiting += reversed(inner)
        _restore(model, renamed)
        return findings

    def _inline(
        self,
        model: Model,
        node: ir.Node,
        taken: "_Taken",
        findings: Findings,
        renamed: dict[ir.Node | ir.Value, str],
    ) -> list[ir.Node] | None:
        """Do it; gives the nodes that came in the node's place, or None where it cannot be done."""
        assert isinstance(node.graph, ir.Graph)
        edit, name = Edit(self.name), label(node)
        known: Mapping = {}
        for value, given in taken.given.items():
            known[value] = (
                given if isinstance(given, ir.Value) else edit.add_weight(value.name or "", given, node.graph)
            )
        copies = [] if taken.body is None else _copies(taken.body, known, edit, node.graph)
        names = {thing: str(thing.name) for thing in _named(copies, known) if thing.name}
        if copies:
            edit.insert(copies, before=node)
        for old, new in zip(node.outputs, taken.outputs, strict=True):
            if new is not None:
                edit.rewire(old, known.get(new, new))
        edit.remove(node)
        try:
            model.apply(edit)
        except ModelError as error:
            findings.decline(name, self.name, str(error))
            return None
        renamed.update(names)
        findings.change(name, self.name, taken.what)
        return copies


@dataclass(frozen=True)
class _Taken:
    """What stands for a node.

    Attributes:
        what: in words.
        body: the graph whose nodes come in its place; None: none do.
        given: the body's inputs, and what they are.
        outputs: for each output of the node the body's, or the outer, value; None where nobody reads it.
    """

    what: str
    body: ir.Graph | None
    given: dict[ir.Value, "ir.Value | np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]
    outputs: tuple[ir.Value | None, ...]


def _branch(model: Model, node: ir.Node) -> _Taken | str | None:
    """The branch that an If takes, or why it is not known."""
    condition = node.inputs[0]
    chosen = _scalar(model, condition)
    if chosen is None:
        return f"its condition {condition.name if condition is not None else ''} is no constant"
    name = "then_branch" if chosen else "else_branch"
    body = node.attributes[name].as_graph()
    return _Taken(f"replaced by its {name}, which is always taken", body, {}, tuple(body.outputs))


def _trip(model: Model, node: ir.Node) -> _Taken | str | None:
    """What a Loop of no or one trip stands for, or why it has to stay; None for one that may run more often."""
    count, condition = (*node.inputs, None, None)[:2]
    trips = None if count is None else _scalar(model, count)
    goes_on = True if condition is None else _scalar(model, condition)
    never = (trips is not None and trips <= 0) or goes_on is False
    if not never and not (trips == 1 and goes_on):
        return None
    initial = [value for value in node.inputs[2:] if value is not None]
    if any(value.uses() or value.is_graph_output() for value in node.outputs[len(initial) :]):
        return "it runs once or never, but collects what its body gives in each trip"
    body = node.attributes["body"].as_graph()
    unread = (None,) * (len(node.outputs) - len(initial))
    if never:
        return _Taken("replaced by its initial values: it never runs", None, {}, (*initial, *unread))
    first, going, *carried = body.inputs
    given = {first: _like(first, np.int64(0)), going: _like(going, np.bool_(True))}
    outputs = (*body.outputs[1 : len(initial) + 1], *unread)
    return _Taken(
        "replaced by its body, which runs once", body, given | dict(zip(carried, initial, strict=True)), outputs
    )


_ASKED = {"If": _branch, "Loop": _trip}


def _scalar(model: Model, value: ir.Value | None) -> bool | int | None:
    """What a constant of one element holds."""
    if value is None or (value.is_initializer() and not is_constant(model, value)):
        return None
    tensor = constant_tensor(value)
    array = constant_array(value) if tensor is not None and tensor.size == 1 else None
    return None if array is None else array.item()


def _like(value: ir.Value, scalar: np.generic) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """A scalar, or the one element that a body declares in its place."""
    return np.full((1,) * (value.shape.rank() if value.shape is not None else 0), scalar)


def _copies(body: ir.Graph, known: Mapping, edit: Edit, home: ir.Graph) -> list[ir.Node]:
    """Copies of a body's nodes, which read what `known` has for its inputs; `known` gets all other values.

    The body itself stays as it is: the edit may be refused. Its weights become those of the new home.
    """
    for value in body.initializers.values():
        if value.const_value is not None and value not in known:
            weight = known[value] = edit.add_weight(value.name or "", value.const_value, home)
            weight.doc_string = value.doc_string
            weight.metadata_props.update(value.metadata_props)
            weight.meta.update(value.meta)
    for node in body.all_nodes():
        inner = [value for graph in bodies(node) for value in (*graph.inputs, *graph.initializers.values())]
        known.update((value, _copy(value)) for value in (*node.outputs, *inner))
    return [_copied_node(node, known) for node in body]


def _copied_node(node: ir.Node, known: Mapping) -> ir.Node:
    copy = ir.Node(
        node.domain, node.op_type, [None if value is None else known.get(value, value) for value in node.inputs],
        [_copied_attribute(attribute, known) for attribute in node.attributes.values()],
        overload=node.overload, outputs=[known[value] for value in node.outputs], version=node.version,
        name=node.name, doc_string=node.doc_string, metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    copy.meta.update(node.meta)
    return copy


def _copied_attribute(attribute: ir.Attr, known: Mapping) -> ir.Attr:
    if attribute.is_ref():
        return attribute
    if attribute.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(attribute.name, _copied_graph(attribute.as_graph(), known))
    if attribute.type == ir.AttributeType.GRAPHS:
        return ir.AttrGraphs(attribute.name, [_copied_graph(graph, known) for graph in attribute.as_graphs()])
    return attribute


def _copied_graph(graph: ir.Graph, known: Mapping) -> ir.Graph:
    """A copy of a nested graph, whose values `known` has; how deep graphs nest bounds the recursion."""
    copy = ir.Graph(
        [known[value] for value in graph.inputs], [known.get(value, value) for value in graph.outputs],
        nodes=[_copied_node(node, known) for node in graph],
        initializers=[known[value] for value in graph.initializers.values()],
        doc_string=graph.doc_string, opset_imports=dict(graph.opset_imports), name=graph.name,
        metadata_props=dict(graph.metadata_props),
    )  # fmt: skip
    copy.meta.update(graph.meta)
    return copy


def _copy(value: ir.Value) -> ir.Value:
    copy = ir.Value(
        name=value.name, shape=None if value.shape is None else value.shape.copy(), type=value.type,
        doc_string=value.doc_string, const_value=value.const_value, metadata_props=dict(value.metadata_props),
    )  # fmt: skip
    copy.meta.update(value.meta)
    return copy


def _named(copies: Iterable[ir.Node], known: Mapping) -> Iterable[ir.Node | ir.Value]:
    """What gets a fresh name when the edit is applied."""
    for node in copies:
        yield node
        yield from node.outputs
    yield from (value for value in known.values() if value.producer() is None and value.graph is None)


def _restore(model: Model, renamed: dict[ir.Node | ir.Value, str]) -> None:
    """Give back the names that nothing else in the model has."""
    renamed = {thing: name for thing, name in renamed.items() if thing.graph is not None and thing.name != name}
    if not renamed:
        return
    taken = {node.name for node in model.nodes()} | {value.name for node in model.nodes() for value in node.outputs}
    for graph in model.graphs():
        taken.update(value.name for value in (*graph.inputs, *graph.initializers.values()))
    for thing, name in renamed.items():
        if name not in taken and not (isinstance(thing, ir.Value) and thing.is_graph_output()):
            thing.name = name
            taken.add(name)
