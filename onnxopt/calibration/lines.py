"""One side of a run by stages: which values can be fed, which leave a stage, and which edits have overtaken."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from onnxopt.analysis.cones import Cones
from onnxopt.analysis.extraction import upstream
from onnxopt.analysis.shapes import Shapes
from onnxopt.analysis.structure import reads, topological
from onnxopt.calibration.frontier import Frontier
from onnxopt.calibration.places import Place
from onnxopt.calibration.running import Part, observable
from onnxopt.model import Model
from onnxopt.statistics import Side

_SIZES, _SCALES = 1024, 16
"""Elements of integers, and of other numbers, up to which they may be what an operator's shape follows from."""


@dataclass(frozen=True, eq=False)
class Sight:
    """A side as it is at some revision of its model, in some stage.

    Attributes:
        part: what can be run.
        leaving: values that later stages read and that are not available yet, each with the digest of what computes it.
        needed: all values that later stages read.
    """

    part: Part
    leaving: Mapping[ir.Value, str]
    needed: frozenset[ir.Value]


@dataclass(frozen=True)
class _Written:
    """A value on disk: what it is called there, whatever the model calls it by now, and what computed it."""

    key: str
    digest: str


@dataclass(frozen=True, eq=False)
class _Analysed:
    """What holds of a model at a revision, in any stage.

    Attributes:
        revision: which.
        structure: all that its shapes follow from.
        reads: its nodes in an order in which they run, each with what it reads of the main graph.
        named, shapes, cones: see `Part`.
    """

    revision: int
    structure: "_Structure"
    reads: list[tuple[ir.Node, tuple[ir.Value, ...]]]
    named: Mapping[str, ir.Value]
    shapes: Shapes
    cones: Cones


@dataclass(eq=False)
class Line:
    """One side.

    A value is available where it is a graph input, or lies on disk and is still computed as it was then: one that an
    edit of an earlier stage has changed is dropped, and computed again from what is left. So the values of a stage
    are those of the model as it is, whatever is edited when.

    Attributes:
        side: which.
        model: its model; the current one is the caller's.
        later: the nodes, of those at the beginning, that are behind the stage that is being run.
        shapes_of: infers a model's shapes.
        frontier: where values lie.
    """

    side: Side
    model: Model
    later: set[ir.Node]
    shapes_of: Callable[[Model], Shapes]
    frontier: Frontier
    _types: dict[ir.Value, ir.DataType] = field(default_factory=dict)
    _stored: dict[ir.Value, _Written] = field(default_factory=dict)
    _writing: dict[ir.Value, _Written] = field(default_factory=dict)
    _exits: dict[ir.Value, _Written] | None = None
    _analysed: "_Analysed | None" = None
    _seen: tuple[int, Sight] | None = None
    _ahead: "tuple[_Structure, tuple[set[ir.Node], dict[ir.Value, None]]] | None" = None
    _keys: int = 0

    def look(self) -> Sight:
        """The side as it is now; of the last stage too, until `begin`."""
        if self._seen is None or self._seen[0] != self.model.revision:
            self._seen = self.model.revision, self._sight()
        return self._seen[1]

    def sees(self, name: str) -> bool:
        """Whether it takes no node of a later stage to compute a value."""
        part = self.look().part
        value = part.values.get(name)
        return value is not None and upstream([value], part.available).isdisjoint(self.later)

    def begin(self, nodes: set[ir.Node]) -> None:
        """Go on to the stage of some nodes."""
        self.later -= nodes
        self._seen = self._ahead = None

    def is_done(self) -> bool:
        """Whether what leaves the stage is written, and of the model as it is."""
        return self._exits is not None and {v: each.digest for v, each in self._exits.items()} == self.look().leaving

    def open(self) -> dict[str, str]:
        """Begin to write what leaves the stage, in place of what was written before; by name, the files."""
        self._forget()
        for value, digest in self.look().leaving.items():
            self._keys += 1
            self._writing[value] = _Written(f"{self.side} {self._keys} {value.name}", digest)
        return {value.name or "": str(self.frontier.path(self.side, each.key)) for value, each in self._writing.items()}

    def admit(self, name: str, place: Place) -> None:
        """Take note of the next batch of a value that is being written."""
        value = self.look().part.values[name]
        self.frontier.admit(self.side, self._writing[value].key, place)
        self._types[value] = ir.DataType.from_numpy(place.dtype)

    def close(self) -> None:
        """All is written."""
        self._exits, self._writing = self._writing, {}

    def abandon(self) -> None:
        """What was being written is not wanted."""
        for each in self._writing.values():
            self.frontier.drop(self.side, each.key)
        self._writing = {}

    def share(self, dense: "Line") -> None:
        """Have what the dense side has written, in which the same leaves the stage."""
        self._forget()
        assert dense._exits is not None
        named = {value.name: value for value in dense._exits}
        self._exits = {value: dense._exits[named[value.name]] for value in self.look().leaving}
        for value, written in self._exits.items():
            self.frontier.share(written.key)
            self._types[value] = dense._types[named[value.name]]

    def leave(self) -> None:
        """Keep what left the stage, and nothing that no later one reads."""
        for value in self._stored.keys() - self.look().needed:
            self._drop(value)
        self._stored.update(self._exits or {})
        self._exits = None

    def place(self, name: str, batch: int) -> Place:
        """Where a batch of a value on disk lies."""
        return self.frontier.place(self.side, self._stored[self.look().part.values[name]].key, batch)

    def _forget(self) -> None:
        for each in (self._exits or {}).values():
            self.frontier.drop(self.side, each.key)
        self._exits = None

    def _drop(self, value: ir.Value) -> None:
        self.frontier.drop(self.side, self._stored.pop(value).key)

    def _sight(self) -> Sight:
        known = self._analysis()
        for value, written in list(self._stored.items()):
            if not _is_made(value, self.model) or known.cones.digest(value) != written.digest:
                self._drop(value)
        inputs = (value for value in self.model.graph.inputs if not value.is_initializer())
        available = frozenset((*inputs, *self._stored))
        order = [node for node, _ in known.reads]
        part = Part(self.model, available, known.shapes, known.cones, self._types, order, known.named)
        if self._ahead is None or self._ahead[0] is not known.structure:
            self._ahead = known.structure, self._rest(part, known)
        later, needed = self._ahead[1]
        here = (v for v in needed if v.producer() is not None and v.producer() not in later and v not in available)
        return Sight(part, {value: known.cones.digest(value) for value in here}, frozenset(needed))

    def _analysis(self) -> _Analysed:
        before, revision = self._analysed, self.model.revision
        contents = None if before is None else self.model.contents_since(before.revision)
        if before is not None and contents is not None and not any(map(_may_size, contents)):
            if contents:
                self._analysed = replace(before, revision=revision, cones=before.cones.updated(contents))
        elif before is None or before.revision != revision:
            structure = _Structure.of(self.model)
            # New contents of weights change no shape, and following shapes takes longest.
            same = before is not None and structure.same(before.structure)
            shapes = before.shapes if before is not None and same else self.shapes_of(self.model)
            order = [(node, tuple(_outer(node, self.model))) for node in topological(self.model.graph)]
            self._analysed = _Analysed(revision, structure, order, observable(self.model), shapes, Cones(self.model))
        assert self._analysed is not None
        return self._analysed

    def _rest(self, part: Part, known: _Analysed) -> tuple[set[ir.Node], dict[ir.Value, None]]:
        """The nodes of later stages as the graph is now, and the values that they read.

        Inserted nodes are later that read from such. What is no tensor is not written: the nodes that make it
        run again in each stage that reads it.
        """
        later, needed = set(self.later), dict[ir.Value, None]()
        for node, values in known.reads:
            if node in later or any(value.producer() in later for value in values):
                later.add(node)
                needed.update(dict.fromkeys(values))
        waiting = list(needed)
        while waiting:
            value = waiting.pop()
            maker = value.producer()
            if maker is not None and maker not in later and part.is_tensor(value) is False:
                later.add(maker)
                more = [each for each in _outer(maker, self.model) if each not in needed]
                needed.update(dict.fromkeys(more))
                waiting += more
        return later, needed


def _outer(node: ir.Node, model: Model) -> Iterator[ir.Value]:
    """What a node reads of the main graph: no values of its subgraphs' own."""
    for value in reads(node):
        maker = value.producer()
        if (value.graph if maker is None else maker.graph) in (None, model.graph):
            yield value


@dataclass(frozen=True, eq=False)
class _Structure:
    """What shapes follow from: nodes, how they are wired, attributes, and weights, of large ones the shape alone."""

    objects: list[Any]
    facts: list[Any]

    @classmethod
    def of(cls, model: Model) -> "_Structure":
        objects, facts = list[Any](), list[Any]()
        for node in model.nodes():
            objects += (node, *node.inputs, *node.outputs, *node.attributes.values())
            facts += (len(node.inputs), len(node.outputs))
        for value in model.weights():
            tensor = value.const_value
            assert tensor is not None
            small = _may_size(value)
            objects += (value, tensor if small else None)
            facts.append(None if small else (tensor.dtype, tuple(tensor.shape.numpy())))
        return cls(objects, facts)

    def same(self, other: "_Structure") -> bool:
        """Whether shapes that follow from one follow from the other."""
        return (
            len(self.objects) == len(other.objects)
            and all(map(operator.is_, self.objects, other.objects))
            and self.facts == other.facts
        )


def _may_size(value: ir.Value) -> bool:
    """Whether a shape may follow from what a weight holds."""
    tensor = value.const_value
    assert tensor is not None
    return tensor.size <= (_SIZES if tensor.dtype.is_integer() else _SCALES)


def _is_made(value: ir.Value, model: Model) -> bool:
    node = value.producer()
    return node is not None and node.graph is model.graph
