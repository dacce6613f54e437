"""What differs between two states of a model, node by node.

Nodes belong together by the names of the values that they make; constants are what they hold, whatever their names.
"""

import hashlib
from collections import deque
from collections.abc import Collection, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import networkx as nx
import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.analysis.structure import constant_tensor, reads, topological
from onnxopt.carried import node_proto
from onnxopt.model import Model
from onnxopt.nodes import with_inner

_T = TypeVar("_T")

_WIDEST = 16
"""Nodes that are added to a part so that both its sides read the same, beside as many as it has old ones."""

_HASHED = 2**16
"""Constants of more bytes are compared with the one of the same name only."""


@dataclass(frozen=True)
class Part:
    """Nodes of the old graph and those of the new one that make the same values; in an order in which they can run."""

    old: list[ir.Node]
    new: list[ir.Node]


class Differences:
    """The nodes of the main graphs that are not the same in both: operator, its meaning, attributes, names, weights.

    Every large weight is read once, unless both lie at the same place of the same file. Linear in nodes.

    Attributes:
        pieces: what differs, cut at the values that both graphs make. If each piece computes the same the whole
            does, but not the other way round: the new graph may have given a name to another value.
    """

    def __init__(self, old: Model, new: Model) -> None:
        changed = _other_weights(old, new)
        self._old, self._new = _Known(old, changed), _Known(new, changed)
        left = [node for node, form in self._old.forms.items() if form not in self._new.distinct]
        right = [node for node, form in self._new.forms.items() if form not in self._old.distinct]
        both = {name for node in left for name in _made(node)} & {name for node in right for name in _made(node)}
        self.pieces = self._parts([*left, *right], both)

    def enlarged(self, pieces: Sequence[Part], others: Sequence[Part], reach: int) -> list[Part]:
        """Pieces with the nodes that read them, and with what lies between them over at most `reach` nodes.

        Args:
            pieces: what each part that is given back holds at least one of.
            others: what is taken in as well where it is that near.
            reach: how far.
        """
        wanted = {node for piece in pieces for node in _all(piece)}
        seeds = wanted | {node for piece in others for node in _all(piece)}
        near = self._old.near(seeds, reach) | self._new.near(seeds, reach)
        taken = seeds | {node for graph in (self._old, self._new) for name in near if (node := graph.makers.get(name))}
        taken |= {node for piece in self.pieces for node in _all(piece) if not taken.isdisjoint(_all(piece))}
        nodes = [node for graph in (self._old, self._new) for node in graph.forms if node in taken]
        return [part for part in self._parts(nodes, ()) if not wanted.isdisjoint(_all(part))]

    def widened(self, part: Part, both: bool = False, deep: bool = False, behind: int = 0) -> Part:
        """The part, with what makes the values that its new nodes alone read; not many nodes.

        Args:
            part: some of `pieces`, or of what was made of them.
            both: do the same for values that its old nodes alone read.
            deep: go on to values that the part itself reads on the other side, for that is what equal ones come from.
            behind: first take in so many nodes that make what they read, nearest first: that keeps those values from
                being just any, and ties them to one another.
        """
        old, new = _Side(self._old, part.old), _Side(self._new, part.new)
        names = [name for node in _all(part) for name in _read(node)] if behind else []
        for name in names:
            if behind == 0:
                break
            further = [*old.add(name), *new.add(name)]
            names += further
            behind -= bool(further)
        read = old.read.keys(), new.read.keys()
        given = [set(names) for names in read] if deep else read
        left = _WIDEST + len(part.old)
        while left and (lacking := new.lacking(given[0]) or (old.lacking(given[1]) if both else None)):
            old.add(lacking)
            new.add(lacking)
            left -= 1
        return Part(self._old.sorted(old.nodes), self._new.sorted(new.nodes))

    def _parts(self, nodes: Sequence[ir.Node], cuts: Container[str]) -> list[Part]:
        old = self._old.forms
        groups = _groups(nodes, cuts)
        return [Part([n for n in group if n in old], [n for n in group if n not in old]) for group in groups]


class _Side:
    """Nodes of one graph that grow against the stream, with the names that they read and make."""

    def __init__(self, graph: "_Known", nodes: Iterable[ir.Node]) -> None:
        self._graph = graph
        self.nodes = set[ir.Node]()
        self.read, self._made = dict[str, None](), set[str]()
        self._waiting = deque[str]()
        for node in nodes:
            self._take(node)

    def add(self, name: str) -> list[str]:
        """Take in what makes a value, if anything does; give back what is read now and was not."""
        node = self._graph.makers.get(name)
        return [] if node is None or node in self.nodes else self._take(node)

    def lacking(self, given: Container[str]) -> str | None:
        """A value that the nodes read though it is not given, and that nodes beside them make."""
        while self._waiting:
            name = self._waiting.popleft()
            if name not in self._made and name not in given and name in self._graph.makers:
                return name
        return None

    def _take(self, node: ir.Node) -> list[str]:
        self.nodes.add(node)
        self._made.update(_made(node))
        names = [name for name in dict.fromkeys(_read(node)) if name not in self.read]
        self.read.update(dict.fromkeys(names))
        self._waiting.extend(names)
        return names


class _Known:
    """The main graph's nodes in order, and what makes each what it is."""

    def __init__(self, model: Model, changed: set[str]) -> None:
        self._imports = {"" if domain == "ai.onnx" else domain: v for domain, v in model.ir.opset_imports.items()}
        self._functions = _functions(model)
        self._contents: dict[ir.Value, bytes | None] = {}
        order = (node for node in topological(model.graph) if not is_constant(node))
        self.forms = {node: self._form(node, changed) for node in order}
        self._place = {node: place for place, node in enumerate(self.forms)}
        self.distinct = set(self.forms.values())
        self.makers = {name: node for node in self.forms for name in _made(node)}

    def sorted(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """The nodes in an order in which they can run."""
        return sorted(nodes, key=self._place.__getitem__)

    def near(self, seeds: Container[ir.Node], reach: int) -> set[str]:
        """Values made by the readers of seeds, and by nodes on ways of at most `reach` nodes from one to another."""
        before = {node: [maker for name in _read(node) if (maker := self.makers.get(name))] for node in self.forms}
        after: dict[ir.Node, list[ir.Node]] = {node: [] for node in self.forms}
        for node, sources in before.items():
            for source in sources:
                after[source].append(node)
        start = [node for node in self.forms if node in seeds]
        below, above = _within(start, after, reach), _within(start, before, reach)
        met = (below & above) | _within(start, after, 1)
        return {name for node in met for name in _made(node)}

    def _form(self, node: ir.Node, changed: set[str]) -> tuple[Hashable, ...] | ir.Node:
        """Equal for nodes that compute the same; the node itself where it reads another large weight than before."""
        constants = {value.name or "": self._content(value) for value in reads(node) if value.name}
        if any(content is None and name in changed for name, content in constants.items()):
            return node
        proto = node_proto(node)
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in proto.attribute)
        held = tuple((name, content) for name, content in constants.items() if content is not None)
        inner = held if len(with_one := list(with_inner(node))) > 1 else ()
        meaning = frozenset(self._meaning(each) for each in with_one)
        inputs = tuple(constants.get(name) or name for name in proto.input)
        return (proto.op_type, proto.domain, proto.overload, inputs, tuple(proto.output), *attributes, inner, meaning)

    def _content(self, value: ir.Value) -> bytes | None:
        """What stands for a small constant of the main graph; None for anything else."""
        if value not in self._contents:
            tensor = None if value.is_graph_input() else constant_tensor(value)
            self._contents[value] = None if tensor is None or _is_large(tensor) else _digest(tensor)
        return self._contents[value]

    def _meaning(self, node: ir.Node) -> Hashable:
        """The functions that it calls, or since when the operator has meant the same."""
        function = self._functions.get(node.op_identifier())
        if function is not None:
            return function
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self._imports.get(domain, 1)
        try:
            return onnx.defs.get_schema(node.op_type, version, domain).since_version
        except onnx.defs.SchemaError:
            return version


def is_constant(node: ir.Node) -> bool:
    """Whether a node is as good as an initializer: a Constant that is neither sparse nor a function's argument."""
    return node.op_type == "Constant" and bool(node.outputs) and constant_tensor(node.outputs[0]) is not None


def _functions(model: Model) -> dict[ir.OperatorIdentifier, frozenset[bytes]]:
    """By function: its body, and those of the functions that it calls, directly or through others."""
    functions = model.ir.functions
    bodies = {key: ir.serde.serialize_function(f).SerializeToString(deterministic=True) for key, f in functions.items()}
    calls = {key: {node.op_identifier() for node in f.all_nodes()} & bodies.keys() for key, f in functions.items()}
    return {key: frozenset(bodies[each] for each in {key} | _within([key], calls, len(calls))) for key in calls}


def _all(part: Part) -> list[ir.Node]:
    return [*part.old, *part.new]


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype == ir.DataType.STRING or tensor.nbytes > _HASHED


def _digest(tensor: ir.TensorProtocol) -> bytes:
    head = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    return hashlib.blake2b(head + tensor.tobytes(), digest_size=16).digest()


def _other_weights(old: Model, new: Model) -> set[str]:
    """Names of large constants of the main graph that only one model has, or that have other values."""
    before, after = _large(old), _large(new)
    both = before.keys() & after.keys()
    return (before.keys() ^ after.keys()) | {name for name in both if not _same(before[name], after[name])}


def _large(model: Model) -> dict[str, ir.TensorProtocol]:
    values = [*model.graph.initializers.values()]
    values += [node.outputs[0] for node in model.graph if node.op_type == "Constant" and node.outputs]
    found = ((value, constant_tensor(value)) for value in values)
    return {
        value.name: tensor
        for value, tensor in found
        if value.name and tensor is not None and (_is_large(tensor) or value.is_graph_input())
    }


def _same(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if isinstance(a, ir.ExternalTensor) and isinstance(b, ir.ExternalTensor):
        places = ((tensor.path, tensor.offset, tensor.length) for tensor in (a, b))
        if next(places) == next(places):
            return True
    if a.dtype == ir.DataType.STRING:
        return bool((a.numpy() == b.numpy()).all())
    if a.dtype.bitwidth < 8:
        return a.tobytes() == b.tobytes()
    one, other = (np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8) for tensor in (a, b))
    return np.array_equal(one, other)


def _made(node: ir.Node) -> Iterator[str]:
    return (value.name for value in node.outputs if value.name)


def _read(node: ir.Node) -> Iterator[str]:
    return (value.name for value in reads(node) if value.name)


def _within(start: Iterable[_T], near: Mapping[_T, Collection[_T]], reach: int) -> set[_T]:
    """What is at least one step away, and at most `reach` steps."""
    met, front = set[_T](), set(start)
    for _ in range(reach):
        front = {other for node in front for other in near[node]} - met
        if not front:
            break
        met |= front
    return met


def _groups(nodes: Sequence[ir.Node], cuts: Container[str]) -> list[list[ir.Node]]:
    """Nodes that are tied by a name: those that make it, and unless it is a cut those that read it. All in order."""
    rank = {node: place for place, node in enumerate(nodes)}
    ties = nx.Graph()
    ties.add_nodes_from(nodes)
    ties.add_edges_from((node, name) for node in nodes for name in _made(node))
    read = ((node, name) for node in nodes for name in _read(node))
    ties.add_edges_from((node, name) for node, name in read if name in ties and name not in cuts)
    found = ([each for each in group if isinstance(each, ir.Node)] for group in nx.connected_components(ties))
    return sorted((sorted(group, key=rank.__getitem__) for group in found), key=lambda group: rank[group[0]])
