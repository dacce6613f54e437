"""The registry of rules, one an operator, and what a rule gets to see and may say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from onnxopt.analysis.axes.axis import Axes, Axis, channels, entries, fixed, hold, reason, taken, united, vector
from onnxopt.analysis.axes.ids import Freeze, Ids, Kind, Reason
from onnxopt.analysis.axes.reshape import at_sizes, followed, regrouped
from onnxopt.analysis.symbols import Call as Known
from onnxopt.analysis.symbols import Fact, Scalar
from onnxopt.analysis.symbols.facts import Shape
from onnxopt.nodes import bodies, label

if TYPE_CHECKING:
    from onnxopt.analysis.axes.engine import Engine
    from onnxopt.analysis.axes.patch import Patch


SHARED = "read by several, each of which takes its part"
"""Why an axis stays of which readers take what they like."""


@dataclass(frozen=True)
class Part:
    """A reader takes part of an axis of an input that others read as well.

    Attributes:
        node: the reader.
        index: of the input.
        place: of the axis.
        axis: the entries as this reader sees them.
    """

    node: ir.Node
    index: int
    place: int
    axis: Axis


@dataclass(frozen=True)
class Consumption:
    """An operator sums over an axis of an input: what it gives loses nothing but the removed entries' part.

    Attributes:
        node: the operator.
        index: of the input.
        place: of the axis.
        axis: its channels.
        zero: index of the input that holds what stands for 0, in quantized operators; None where 0 does.
        inside: whether the operator itself makes what it sums over, so that nothing but this input, which that is
            multiplied with, can be seen from outside.
    """

    node: ir.Node
    index: int
    place: int
    axis: Axis
    zero: int | None = None
    inside: bool = False


@dataclass(frozen=True)
class Call:
    """A node, the axes of its inputs, and the statements that a rule can make about them.

    Attributes:
        node: the node.
        known: what holds of the shapes and the small integers that it reads.
    """

    node: ir.Node
    known: Known
    _engine: "Engine" = field(repr=False)

    def grouped(self, inside: int, rows: Axis) -> bool:
        """State that groups of so many channels are convolved into rows; whether they are to go as wholes."""
        self._engine.grouped[self.node] = inside, rows
        return self.node in self._engine.whole

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def axes(self, index: int) -> Axes | None:
        """Axes of an input; None for an unknown rank. Constants of integers keep their length."""
        return self._engine.axes_of(self.node, index) if self.has(index) else None

    def parameter(self, index: int) -> Axes | None:
        """The same where constants of any type are weights: a quantized one, its zero points."""
        return self._engine.axes_of(self.node, index, parameter=True) if self.has(index) else None

    def constant(self, index: int) -> bool:
        """Whether an input is computed from constants alone."""
        return self._engine.is_constant(self.node.inputs[index])

    def out(self, index: int = 0) -> Fact:
        """What is known of an output's shape."""
        return self._engine.symbols.of(self.node.outputs[index])

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return self.node.attributes.get_int(name, default)

    def give(self, axes: Axes | None, index: int = 0) -> None:
        """State the axes of an output; None for an unknown rank."""
        self._engine.give(self.node, index, axes)

    def unite(self, a: Axis, b: Axis, *, added: bool = False) -> None:
        """Position by position, two axes are of the same channels; `added`: see `Ledger.unite`."""
        united(self._engine.ledger, a, b, added=added, node=label(self.node))

    def united(self, axes: Sequence[Axis], *, added: bool = False) -> Axis:
        """One axis for several of the same channels: one that may lose entries, if any may; `added`: as in `unite`."""
        chosen = next((axis for axis in axes if any(digit.live for digit in axis)), axes[0])
        for axis in axes:
            if axis is not chosen:
                self.unite(chosen, axis, added=added)
        return chosen

    def consume(self, index: int, place: int, axis: Axis, *, zero: int | None = None, inside: bool = False) -> None:
        """The operator sums over an axis of an input; `zero`, `inside`: see `Consumption`."""
        if vector(axis) is not None:
            self._engine.consumed.append(Consumption(self.node, index, place, axis, zero, inside))

    def hold(self, axis: Axis, why: str, reason: Reason = "semantics") -> None:
        """No entry of an axis may go."""
        hold(axis, Freeze(reason, why, label(self.node)))

    def hold_input(self, index: int, why: str, reason: Reason = "semantics") -> None:
        """No entry of any axis of an input may go."""
        for axis in self.axes(index) or ():
            self.hold(axis, why, reason)

    def hold_captured(self, why: str) -> None:
        """No entry of any value of the main graph that a subgraph of the node reads may go."""
        for body in bodies(self.node):
            for inner in body.all_nodes():
                self._engine.hold_all(inner.inputs, Freeze("semantics", why, label(self.node)))
            for graph in (body, *body.subgraphs()):
                self._engine.hold_all(graph.outputs, Freeze("semantics", why, label(self.node)))

    def taken(self, axes: Axes, place: int, index: Ids, why: str) -> Axes:
        """The axes of what has these entries of one axis."""
        return taken(self._engine.ledger, axes, place, index, Freeze("semantics", why, label(self.node)))

    def together(self, place: int, axis: Axis) -> Axis:
        """An axis of the result of a Reshape; channels again, if a chain of nodes took them apart and permuted them."""
        return self._engine.together(self.node, place, axis)

    def reshaped(self, axes: Axes, shape: Shape) -> Axes:
        """The axes of what has these axes, reshaped to this shape by the node."""
        found = followed(axes, shape, self.known.space)
        if found is None:
            found = at_sizes(axes, shape, self._engine.shapes_seen(self.node), self.known.space)
        return regrouped(axes, shape, self.known.space) if found is None else found

    def apart(self, axis: Axis, outer: int, inner: int) -> tuple[Axis, Axis]:
        """An axis of `outer * inner` entries as two."""
        first, second = regrouped((axis,), (outer, inner), self.known.space)
        return first, second

    def fixed(self, index: int, why: str, reason: Reason = "semantics") -> None:
        """State that all axes of an output keep their length."""
        shape, freeze = self.out(index).shape, Freeze(reason, why, label(self.node))
        self.give(None if shape is None else tuple(fixed(size, freeze) for size in shape), index)

    def inexact(self, axis: Axis, why: str) -> None:
        """What is left depends on how many entries of the axis there are, or on those removed."""
        ids = entries(axis)
        if ids is not None:
            self._engine.ledger.inexact(ids, f"{why} ({label(self.node)})")

    def tag(self, axis: Axis, kind: Kind) -> None:
        """Say what the entries of an axis are units of."""
        ids = entries(axis)
        if ids is not None:
            self._engine.ledger.tag(ids, kind)
            self._engine.tagged.update((digit.block, digit.at) for digit in axis if digit.block is not None)

    def is_tagged(self, axis: Axis) -> bool:
        """Whether it was said what the entries of an axis are units of."""
        return any(digit.live and (digit.block, digit.at) in self._engine.tagged for digit in axis)

    def axes_out(self, index: int = 0) -> Axes | None:
        """Axes of an output, once they are given."""
        return self._engine.axes.get(self.node.outputs[index])

    def channels(self, ids: Ids) -> Axis:
        """An axis of these channels."""
        return channels(self._engine.ledger, ids)

    def frozen(self, count: int, why: Freeze) -> Ids:
        """Channels of their own that stay, for entries beside others that may go."""
        ids = self._engine.ledger.fresh(count)
        self._engine.ledger.freeze(ids, why)
        return ids

    def fresh(self, count: int) -> Ids:
        """Channels of their own, for an axis along which a value is repeated."""
        return self._engine.ledger.fresh(count)

    def length(self, size: Scalar, why: str) -> Axis:
        """An axis that keeps its length, because of this node."""
        return fixed(size, Freeze("semantics", why, label(self.node)))

    def repeated(self, count: int) -> Axis:
        """An axis along which a value is repeated: as often as its reader likes, and each reader for itself."""
        axis = self.channels(self.fresh(count))
        self._engine.repeated.update(digit.block for digit in axis if digit.block is not None)
        return axis

    def is_shared(self, index: int) -> bool:
        """Whether others read a computed input as well."""
        value = self.node.inputs[index]
        return value is not None and not self.constant(index) and len(value.uses()) > 1

    def part(self, index: int, place: int) -> Axis:
        """An axis of an input of which this reader takes what it likes, whatever others do; the whole stays."""
        return self._engine.part(self.node, index, place)

    def rest(self, rank: int, why: str, *, last: bool = False) -> Axes:
        """Axes of the first output behind batch and channels, or between them where channels are `last`: windows and
        images, which keep their length.
        """
        shape = self.out().shape
        known = shape if shape is not None else tuple(self.known.space.fresh() for _ in range(rank))
        sizes = known[1:-1] if last else known[2:]
        return tuple(self.length(size, why) for size in sizes)

    def reason(self, axis: Axis) -> Freeze:
        """Why an axis keeps its length."""
        return reason(axis)


Rule: TypeAlias = Callable[[Call], None]
Rewrite: TypeAlias = Callable[["Patch"], None]
Key: TypeAlias = tuple[str, str]

RULES: dict[Key, Rule] = {}
"""(domain, operator) -> what it does to channels."""

REWRITES: dict[Key, Rewrite] = {}
"""(domain, operator) -> how its attributes and constants follow from the channels that are kept."""


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for operators."""

    def register(function: Rule) -> Rule:
        RULES.update({(domain, op): function for op in ops})
        return function

    return register


def rewrite(*ops: str, domain: str = "") -> Callable[[Rewrite], Rewrite]:
    """Register how operators are adapted once channels are gone."""

    def register(function: Rewrite) -> Rewrite:
        REWRITES.update({(domain, op): function for op in ops})
        return function

    return register


def key(node: ir.Node) -> Key:
    """What a node's rule is registered under."""
    return ("" if node.domain == "ai.onnx" else node.domain), node.op_type
