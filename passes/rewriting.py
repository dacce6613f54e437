"""Rules that say how a node's output can be had for less, and the edits that carry out many of them at once."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx_ir as ir

from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.nodes import bodies
from onnxopt.passes.known import Array, Known
from onnxopt.passing import Findings


@dataclass(frozen=True)
class Put:
    """The node that is to make the first output of another, in its place.

    Attributes:
        op_type: a standard operator.
        inputs: what it reads; arrays become weights, what is to be put there nodes of their own.
        attributes: all of its attributes.
        what: what that means, for people.
        like: a node that it computes the same kind of thing as; its name and element type are taken over.
    """

    op_type: str
    inputs: Sequence["ir.Value | Array | Put | None"]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    what: str = ""
    like: ir.Node | None = None


Outcome: TypeAlias = ir.Value | Put | str | None
"""The value that the node's first output equals, what to put in the node's place, why not, or nothing to say."""

Rule: TypeAlias = Callable[[ir.Node, Known], Outcome]
Rules: TypeAlias = Mapping[str, Sequence[Rule]]
"""Standard operator -> rules for its nodes; the first that applies counts."""


def rewrite(model: Model, rules: Rules, name: str) -> Findings:
    """Apply rules until none applies any more.

    All rewrites of a round go into one edit, so that a chain of n nodes takes about log n edits. Nodes that lose
    their last reader go.

    Args:
        rules: they must each make the model strictly smaller or simpler; they see only nodes whose other outputs
            nobody reads.
        name: the pass's name, for findings.
    """
    findings, known, refused = Findings(), Known(model), dict[ir.Node, str]()
    waiting = [node for node in model.nodes() if _wanted(node, rules)]
    while waiting:
        batch = _Batch(model, known, name, findings)
        for node in waiting:
            refused.pop(node, None)
            outcome = _outcome(node, rules[node.op_type], known)
            if isinstance(outcome, str):
                refused[node] = outcome
            elif outcome is not None:
                batch.take(node, outcome)
        waiting = [node for node in dict.fromkeys(batch.carry_out()) if _wanted(node, rules)]
    for node, why in refused.items():
        if node.graph is not None:
            findings.decline(node.name, name, why)
    return findings


def _wanted(node: ir.Node, rules: Rules) -> bool:
    return not node.domain and node.op_type in rules and node.graph is not None and bool(node.outputs)


def _outcome(node: ir.Node, rules: Iterable[Rule], known: Known) -> Outcome:
    why: str | None = None
    for rule in rules:
        outcome = rule(node, known)
        if isinstance(outcome, str):
            why = outcome
        elif outcome is not None:
            idle = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
            if not idle:
                return outcome
            why = f"its output {idle[0].name} is read, too"
    return why


class _Batch:
    """Rewrites that one edit carries out. What they read and replace is looked up when all of them are known."""

    def __init__(self, model: Model, known: Known, name: str, findings: Findings) -> None:
        self._model = model
        self._known = known
        self._name = name
        self._findings = findings
        self._replaced: dict[ir.Value, ir.Value] = {}
        self._puts: dict[ir.Node, Put] = {}
        self._fresh: list[ir.Node] = []

    def take(self, node: ir.Node, outcome: ir.Value | Put) -> None:
        """Note a rewrite."""
        value = node.outputs[0]
        if isinstance(outcome, ir.Value):
            source = self._root(outcome)
            if None not in (value.dtype, source.dtype) and value.dtype != source.dtype:
                why = f"{value.name} is declared {value.dtype}, and {source.name}, which it equals, {source.dtype}"
                self._findings.decline(node.name, self._name, why)
                return
            self._replaced[value] = source
            self._findings.change(node.name, self._name, f"{node.op_type} gives back {source.name}: gone")
            return
        self._puts[node] = outcome
        self._findings.change(node.name, self._name, outcome.what)

    def carry_out(self) -> list[ir.Node]:
        """Apply the edit; gives the nodes that are new, or changed, or read something else."""
        if not self._replaced and not self._puts:
            return []
        edit = Edit(self._name)
        kept = {node: put for node, put in self._puts.items() if _fits(node, put)}
        for node, put in self._puts.items():
            if node not in kept:
                self._new(edit, node, put)
        for node in self._fresh:
            for index, value in enumerate(node.inputs):
                if value is not None and self._root(value) is not value:
                    node.replace_input_with(index, self._root(value))
        readers = _Readers(self._root)
        for node, put in kept.items():
            for index, source in enumerate(put.inputs):
                given = self._given(edit, node, source)
                if index >= len(node.inputs) or node.inputs[index] is not given:
                    edit.set_input(node, index, given)
                    readers.redirect(node, index, given)
            _set_attributes(edit, node, put.attributes)
        gone = {producer: None for value in self._replaced if (producer := value.producer()) is not None}
        for value in self._replaced:
            edit.rewire(value, self._root(value))
            readers.rewire(value)
        removed = readers.remove(gone)
        edit.remove(*removed)
        for value in self._replaced:
            if value.shape is not None and not self._root(value).is_graph_output():
                _hand_on_shape(value, self._root(value))
        changed = (*kept, *self._fresh)
        values = (*(node.outputs[0] for node in changed), *map(self._root, self._replaced))
        self._model.apply(edit)
        return [*changed, *(reader for value in dict.fromkeys(values) for reader in value.consumers())]

    def _new(self, edit: Edit, node: ir.Node, put: Put) -> None:
        """Make the node that takes the place of another."""
        new, old = self._made(edit, node, put), node.outputs[0]
        output = new.outputs[0]
        output.name, output.type, output.shape = old.name, old.type, old.shape
        output.metadata_props.update(old.metadata_props)
        self._known.inherit(output, old)
        self._replaced[old] = output

    def _made(self, edit: Edit, node: ir.Node, put: Put) -> ir.Node:
        """A new node, before one that is there, and those that it needs before it."""
        inputs = [self._given(edit, node, source) for source in put.inputs]
        like = put.like or node
        new = ir.Node(
            "", put.op_type, inputs, [_attribute(name, value) for name, value in put.attributes.items()],
            name=like.name, doc_string=like.doc_string,
        )  # fmt: skip
        new.metadata_props.update(like.metadata_props)
        edit.insert([new], before=node)
        self._fresh.append(new)
        return new

    def _given(self, edit: Edit, node: ir.Node, source: ir.Value | Array | Put | None) -> ir.Value | None:
        if source is None or isinstance(source, ir.Value):
            return None if source is None else self._root(source)
        if isinstance(source, Put):
            output = self._made(edit, node, source).outputs[0]
            output.type = None if source.like is None else source.like.outputs[0].type
            return output
        return edit.add_weight(f"{node.outputs[0].name}_constant", source, _home(node))

    def _root(self, value: ir.Value) -> ir.Value:
        return root(value, self._replaced)


def root(value: ir.Value, replaced: dict[ir.Value, ir.Value]) -> ir.Value:
    """What is read in place of a value in the end; the way there is shortened for whoever asks next."""
    path = []
    while value in replaced:
        path.append(value)
        value = replaced[value]
    for passed in path:
        replaced[passed] = value
    return value


def _fits(node: ir.Node, put: Put) -> bool:
    """Whether the node itself can become what is to be put in its place."""
    nested = any(isinstance(source, Put) for source in put.inputs)
    return node.op_type == put.op_type and len(node.inputs) <= len(put.inputs) and not nested


def _home(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _set_attributes(edit: Edit, node: ir.Node, attributes: Mapping[str, Any]) -> None:
    for name in [*node.attributes, *(name for name in attributes if name not in node.attributes)]:
        old, new = node.attributes.get(name), attributes.get(name)
        if isinstance(new, ir.Attr) or old is None or old.is_ref() or new is None or old.value != new:
            edit.set_attribute(node, name, None if new is None else _attribute(name, new))


def _attribute(name: str, value: Any) -> ir.Attr:
    """An attribute of one of the kinds that rules write; onnx-ir takes its time to tell them apart."""
    if isinstance(value, ir.Attr):
        return value
    if isinstance(value, list):
        return ir.AttrInt64s(name, value)
    return ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrFloat32(name, float(value))


def _hand_on_shape(value: ir.Value, source: ir.Value) -> None:
    if source.shape is None and source.producer() is not None and value.type is not None:
        source.type, source.shape = source.type or value.type, value.shape


class _Readers:
    """How many readers values will have, and which nodes none will be left for.

    Args:
        root: what is read in place of a value in the end.
    """

    def __init__(self, root: Callable[[ir.Value], ir.Value]) -> None:
        self._root = root
        self._change: Counter[ir.Value] = Counter()
        self._kept: set[ir.Value] = set()
        self._redirected: dict[tuple[ir.Node, int], ir.Value | None] = {}

    def rewire(self, value: ir.Value) -> None:
        """Give the readers of a value to the one that takes its place."""
        if value.is_graph_output():
            self._kept.add(self._root(value))
        self._change[self._root(value)] += len(value.uses())

    def redirect(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let an input of a node read another value."""
        self._redirected[node, index] = value
        if index < len(node.inputs) and (old := node.inputs[index]) is not None:
            self._change[self._root(old)] -= 1
        if value is not None:
            self._change[value] += 1

    def remove(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """The nodes, and all others that nobody reads once these and the redirected inputs are gone."""
        removed = dict.fromkeys(nodes)
        lost = [old for node, index in self._redirected if index < len(node.inputs) and (old := node.inputs[index])]
        waiting = [producer for value in lost if (producer := self._root(value).producer()) is not None]
        for node in removed:
            waiting.extend(self._lose(node))
        while waiting:
            node = waiting.pop()
            if node not in removed and not any(map(self._read, node.outputs)) and not any(True for _ in bodies(node)):
                removed[node] = None
                waiting.extend(self._lose(node))
        return list(removed)

    def _read(self, value: ir.Value) -> bool:
        return value.is_graph_output() or value in self._kept or len(value.uses()) + self._change[value] > 0

    def _lose(self, node: ir.Node) -> Iterator[ir.Node]:
        for index, old in enumerate(node.inputs):
            value = self._redirected.get((node, index), old)
            if value is not None:
                self._change[self._root(value)] -= 1
                if (producer := self._root(value).producer()) is not None:
                    yield producer
