"""The walk over a model that gives every axis of every tensor its channel ids."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes import (  # noqa: F401  (they register rules)
    rules_attention,
    rules_convolution,
    rules_einsum,
    rules_elementwise,
    rules_fused,
    rules_indexing,
    rules_layout,
    rules_matmul,
    rules_norm,
    rules_quantized,
    rules_recurrent,
    rules_reduce,
    rules_space,
)
from onnxopt.analysis.axes.axis import Axes, Axis, Block, channels, fixed, hold, size_of, vector
from onnxopt.analysis.axes.ids import Classes, Freeze, Ids, Ledger, Reason
from onnxopt.analysis.axes.reshape import whole
from onnxopt.analysis.axes.rules import RULES, SHARED, Call, Consumption, Part, key
from onnxopt.analysis.axes.sampled import at_sizes
from onnxopt.analysis.axes.weights import REMADE, Use, Weight, Weights
from onnxopt.analysis.macs import OWN
from onnxopt.analysis.structure import topological
from onnxopt.analysis.symbols import Symbols, symbols
from onnxopt.model import Model
from onnxopt.nodes import bodies, label

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shuffle:
    """A Reshape at the end of a chain that does nothing but permute the channels of one axis.

    Attributes:
        source: what the chain reads.
        place: of the axis.
        order: position in the result -> position in the source.
        chain: the nodes before it, which nobody else reads.
    """

    source: ir.Value
    place: int
    order: Ids
    chain: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Channels:
    """Channel ids of a whole model at one revision.

    Attributes:
        model: the model.
        symbols: what holds of its shapes.
        classes: which ids are one channel, and what holds of each.
        weights: every constant that has channels.
        consumed: who sums over which channels.
        shuffles: Reshape -> what it and the nodes before it permute.
        parts: readers that take part of what others read as well.
        grouped: convolution of several groups -> channels that each group reads, and the axis of those that it makes.
        whole: see `channel_ids`.
    """

    model: Model
    revision: int
    symbols: Symbols
    classes: Classes
    weights: tuple[Weight, ...]
    consumed: tuple[Consumption, ...]
    shuffles: Mapping[ir.Node, Shuffle]
    parts: tuple[Part, ...]
    grouped: Mapping[ir.Node, tuple[int, Axis]]
    whole: Collection[ir.Node]
    _engine: "Engine" = field(repr=False)

    def of(self, value: ir.Value) -> Axes | None:
        """Axes of a value that a node makes or that is fed; None for an unknown rank."""
        return self._engine.axes.get(value)

    def of_input(self, node: ir.Node, index: int) -> Axes | None:
        """Axes of what a node reads."""
        return self._engine.axes_of(node, index, new=False)

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value is computed from constants alone."""
        return self._engine.is_constant(value)

    @cached_property
    def rows(self) -> list[Ids]:
        """The classes along every axis that may lose entries, of weights and of what nodes make; each once."""
        found: dict[tuple[Block, int], Ids] = {}
        for axes in (
            *self._engine.axes.values(),
            *(weight.axes for weight in self.weights),
            *([each.axis] for each in self.parts),
        ):
            for digit in (digit for axis in axes or () for digit in axis):
                if digit.block is not None and digit.live and not digit.block.free:
                    found.setdefault((digit.block, digit.at), self.classes.labels[digit.block.along(digit.at)])
        return list(found.values())

    def spared(self, units: Iterable[int]) -> list[int]:
        """Those of some units that may go together: the last of those without which an axis would be empty stay.

        Args:
            units: classes of channel ids, the least important one first.
        """
        wanted = list(dict.fromkeys(units))
        leaving = np.zeros(self.classes.count, bool)
        leaving[wanted] = True
        rank = np.zeros(self.classes.count, np.int64)
        rank[wanted] = np.arange(len(wanted))
        for row in self.rows:
            if leaving[row].all():
                leaving[row[np.argmax(rank[row])]] = False
        return [unit for unit in wanted if leaving[unit]]


def channel_ids(model: Model, known: Symbols | None = None, whole: Collection[ir.Node] = ()) -> Channels:
    """Find which channels of a model live and die together.

    Nodes inside functions and subgraphs are not looked into: what they read keeps its channels.
    Cost: linear in nodes and in the sum of the weights' axis lengths; weights are not read.

    Args:
        model: the model.
        known: its shapes, if they are at hand.
        whole: convolutions of which groups go as wholes; of others the same places of each group do, but where groups
            are narrow and more of them than places in one.
    """
    engine = Engine(model, known or symbols(model), whole)
    for node in topological(model.graph):
        engine.visit(node)
    return engine.finish()


_MISFITS = (IndexError, KeyError, ValueError, TypeError, ArithmeticError)


class Engine:
    """The state of one walk; what rules speak to, through `Call`."""

    def __init__(self, model: Model, known: Symbols, whole: Collection[ir.Node] = ()) -> None:
        self.model = model
        self.symbols = known
        self.whole = frozenset(whole)
        self.grouped: dict[ir.Node, tuple[int, Axis]] = {}
        self.ledger = Ledger()
        self.axes: dict[ir.Value, Axes | None] = {}
        self.consumed: list[Consumption] = []
        self.shuffles: dict[ir.Node, Shuffle] = {}
        self.parts: list[Part] = []
        self.repeated: set[Block] = set()
        self.tagged: set[tuple[Block | None, int]] = set()
        self._seen: dict[Use, Axes] = {}
        self.weights = Weights(model, known, self.ledger)
        self._constants: set[ir.Value] = set()
        self._fed = {value for value in model.graph.inputs if not self.weights.is_weight(value)}
        for value in self._fed:
            self.axes[value] = self._fixed(value, Freeze("semantics", f"input {value.name} of the model"))

    def visit(self, node: ir.Node) -> None:
        """Let the node's rule speak; without one, everything that it touches stays."""
        if node.inputs and all(self.is_constant(value) for value in node.inputs if value is not None):
            self._constants.update(node.outputs)
        if self.weights.remakes(node):
            self.axes[node.outputs[0]] = self._fixed(node.outputs[0], REMADE)
            return  # each of its readers has it for itself
        if self.weights.hands_on(node):
            return  # its readers are those of what it reads
        call = Call(node, self.symbols.call(node), self)
        found = RULES.get(key(node)) if not any(True for _ in bodies(node)) else None
        try:
            if found is not None:
                found(call)
            else:
                _unknown(call)
        except _MISFITS as error:  # the model is not as it should be
            logger.debug("the rule for %s gave up: %s", label(node), error)
            for index in range(len(node.inputs)):
                call.hold_input(index, f"the rule of {node.op_type} does not fit: {error}", "needs-rule")
        for index, value in enumerate(node.outputs):
            if value not in self.axes:
                call.fixed(index, f"made by {node.op_type}")

    def axes_of(self, node: ir.Node, index: int, *, parameter: bool = False, new: bool = True) -> Axes | None:
        """Axes of what a node reads. See `Call.axes` and `Call.parameter`."""
        value = node.inputs[index]
        if value is None:
            return None
        if (node, index) in self._seen:
            return self._seen[node, index]
        maker = self.weights.remade(value)
        if maker is not None and new:
            self._seen[node, index] = self.weights.seen_remade(maker, (node, index))
            return self._seen[node, index]
        root = self.weights.root(value)
        if self.weights.is_weight(root):
            return self.weights.axes(root, (node, index), parameter=parameter, new=new)
        return self._with_parts(node, index, value) if new else self.axes.get(value)

    def part(self, node: ir.Node, index: int, place: int) -> Axis:
        """See `Call.part`."""
        axes = self.axes_of(node, index)
        assert axes is not None
        size = size_of(axes[place])
        if not isinstance(size, int) or size < 2:
            return axes[place]
        hold(axes[place], Freeze("semantics", SHARED, label(node)))
        axis = channels(self.ledger, self.ledger.fresh(size))
        self._seen[node, index] = (*axes[:place], axis, *axes[place + 1 :])
        self.parts.append(Part(node, index, place, axis))
        return axis

    def _with_parts(self, node: ir.Node, index: int, value: ir.Value) -> Axes | None:
        """Axes of a computed value; where it is merely repeated and others read it too, as this one sees it."""
        axes = self.axes.get(value)
        if axes is None or not self.repeated or len(value.uses()) < 2:
            return axes
        self._seen[node, index] = axes
        for place, axis in enumerate(axes):
            if len(axis) == 1 and axis[0].block in self.repeated:
                self.part(node, index, place)
        return self._seen[node, index]

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value is computed from constants alone."""
        return value is not None and (value in self._constants or self.weights.is_weight(value))

    def give(self, node: ir.Node, index: int, axes: Axes | None) -> None:
        """State the axes of an output."""
        if index < len(node.outputs):
            self.axes[node.outputs[index]] = axes

    def shapes_seen(self, node: ir.Node) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Shapes of what a node reads first and of what it gives, at two choices of open sizes; none if not numbers."""
        found = []
        for known in self._at_sizes:
            before, behind = known.of(node.inputs[0]).static, known.of(node.outputs[0]).static
            if before is None or behind is None or 0 in before:
                return []
            found.append((before, behind))
        return found

    @cached_property
    def _at_sizes(self) -> list[Symbols]:
        return at_sizes(self.model)

    def hold_all(self, values: Iterable[ir.Value | None], why: Freeze) -> None:
        """No entry of any axis of values may go; constants that readers see apart are not theirs."""
        for value in values:
            weight = None if value is None else self.weights.shared(value)
            axes = self.axes.get(value) if weight is None and value is not None else weight and weight.axes
            for axis in axes or ():
                hold(axis, why)

    def together(self, node: ir.Node, place: int, axis: Axis) -> Axis:
        """See `Call.together`."""
        block = whole(axis)
        if block is None:
            return axis
        chain = _permutations(node)
        source = chain[0].inputs[0] if chain else None
        before = None if source is None else self.axes.get(source)
        if source is None or before is None or self.symbols.of(source).shape != self.symbols.of(node.outputs[0]).shape:
            block.settle()
            return axis
        order = np.arange(block.ids.size).reshape(block.ids.shape).transpose([digit.at for digit in axis]).reshape(-1)
        ids = vector(before[place])
        if ids is None or not np.array_equal(ids[order], block.ids.reshape(-1)[order]):
            block.settle()
            return axis
        block.free = True
        self.shuffles[node] = Shuffle(source, place, order, tuple(chain))
        return channels(self.ledger, ids[order])

    def finish(self) -> Channels:
        """Draw the conclusions."""
        for value in self.model.graph.outputs:
            self.hold_all([value], Freeze("semantics", f"output {value.name} of the model"))
        for axes in self.axes.values():
            for axis in axes or ():
                for digit in axis:
                    if digit.block is not None:
                        digit.block.settle()
        return Channels(
            self.model, self.model.revision, self.symbols, self.ledger.solved(),
            self.weights.all(), tuple(self.consumed), self.shuffles, tuple(self.parts), self.grouped,
            self.whole, self,
        )  # fmt: skip

    def _fixed(self, value: ir.Value, why: Freeze) -> Axes | None:
        shape = self.symbols.of(value).shape
        return None if shape is None else tuple(fixed(size, why) for size in shape)


def _permutations(node: ir.Node) -> list[ir.Node]:
    """The nodes before a Reshape that only move entries, from another Reshape on; nobody else reads what they give."""
    chain: list[ir.Node] = []
    value = node.inputs[0]
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        maker = value.producer()
        if maker is None or maker.op_type not in ("Reshape", "Transpose") or key(maker)[0]:
            break
        chain.insert(0, maker)
        if maker.op_type == "Reshape":
            return chain
        value = maker.inputs[0]
    return []


def _unknown(call: Call) -> None:
    """A node without a rule: all channels that it, or what lies inside it, reads stay as they are."""
    inside = any(True for _ in bodies(call.node))
    domain = f"{call.node.domain}::" if call.node.domain else ""
    own = call.node.domain == OWN
    why = f"control flow: {call.node.op_type}" if inside else f"no rule for {domain}{call.node.op_type}"
    why = f"{domain}{call.node.op_type} is made for the layer as it is" if own else why
    reason: Reason = "semantics" if inside or own else "needs-rule"
    for index in range(len(call.node.inputs)):
        call.hold_input(index, why, reason)
    call.hold_captured(why)
    for index in range(len(call.node.outputs)):
        call.fixed(index, why, reason)
