"""Nodes that compute constants to weights.

All such nodes are found first, then computed by the runtime in as few sessions as possible, then taken or left by
what their results would add to the file. Nodes that hang together form a *fold*, taken or left as a whole.
"""

import contextlib
import re
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from onnxopt.errors import OnnxOptError
from onnxopt.model import Model
from onnxopt.nodes import DRAWING, bodies
from onnxopt.passes.clean import become_weights, is_constant
from onnxopt.passing import Context, Findings, Pass

_FREE_BYTES = 256
"""A result up to this size takes no more of a file than the node that computes it."""

_BATCH_BYTES = 256 * 2**20
"""Constants given to one session at most; a larger one gets a session of its own."""

_BORDER = 400
"""Inputs and outputs of one session; onnxruntime takes time quadratic in them (4,000: 3 s)."""

_MOST_TRIES = 64
"""Sessions spent on finding out which nodes the runtime cannot compute."""

_RANDOM = DRAWING | {"Dropout"}
_SEQUENCES = frozenset({
    "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
})  # fmt: skip


class FoldConstants(Pass):
    """Compute once and for all what depends on constants alone.

    The runtime's own kernels compute it. Results stay nodes where they would make the file grow: what all of them
    add, beyond the weights that they make superfluous, is at most `max_growth` of the model's constants.
    DequantizeLinear stays, so that quantized weights remain so.
    """

    max_growth: float = Field(0.01, ge=0, description="share of all constants' bytes that the results may add")

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        constants = {value: _bytes(value) for value in model.weights() if is_constant(model, value) and _numeric(value)}
        runtime = _Runtime(model, constants, context, findings, self.name)
        folds = runtime.folds(_constant_nodes(model, constants, findings, self.name))
        folds = _affordable(folds, int(self.max_growth * sum(constants.values())), runtime)
        results = {value: runtime.results[value] for fold in folds for value in fold.results}
        if results:
            become_weights(model, self.name, results, [node for fold in folds for node in fold.nodes])
        for node in (node for fold in folds for node in fold.nodes):
            findings.change(node, self.name, f"{node.op_type} of constants was computed")
        return findings


def _constant_nodes(model: Model, given: Iterable[ir.Value], findings: Findings, rule: str) -> list[ir.Node]:
    """The nodes that may be computed: each after those it reads."""
    found = []
    unknown: dict[ir.Node, int] = {}
    constants = deque(given)
    while constants:
        for node in constants.popleft().consumers():
            if node not in unknown:
                unknown[node] = len({value for value in node.inputs if value is not None})
            unknown[node] -= 1
            if unknown[node]:
                continue
            if why := _refusal(model, node):
                findings.decline(node, rule, why)
            elif not _repeats_constant(node):
                found.append(node)
                constants.extend(value for value in node.outputs if value.name)
    return found


def _refusal(model: Model, node: ir.Node) -> str | None:
    if node.op_identifier() in model.ir.functions or node.domain:
        return f"{node.domain}::{node.op_type} is no standard operator"
    if any(True for _ in bodies(node)):
        return "control flow is not computed"
    if node.op_type in _RANDOM:
        return f"{node.op_type} is random"
    if node.op_type in _SEQUENCES:
        return "sequences and optionals cannot be weights"
    if node.op_type == "DequantizeLinear":
        return "its weight stays quantized"
    if node.op_type != "Identity" and any(value.is_graph_output() for value in node.outputs):
        return "it makes a graph output"
    return None


def _repeats_constant(node: ir.Node) -> bool:
    """Whether the node does no more than to make a graph output of a constant: nothing to compute."""
    return node.op_type == "Identity" and node.outputs[0].is_graph_output()


@dataclass(frozen=True, eq=False)
class _Fold:
    """Nodes that share values or weights, each after those it reads.

    Attributes:
        nodes: what goes when the fold is taken.
        results: the values among theirs that others read: what stays as weights.
        growth: bytes that this adds to the file: the results, less the weights that only these nodes read.
    """

    nodes: tuple[ir.Node, ...]
    results: tuple[ir.Value, ...]
    growth: int


def _affordable(folds: Sequence[_Fold], budget: int, runtime: "_Runtime") -> list[_Fold]:
    """The folds, or what is left of them, that together add at most `budget` bytes to the file.

    Those that add something are taken all or none: a second run, with a budget of its own, then decides the same.
    """
    taken = []
    for fold in folds:
        for each in [fold] if fold.growth <= budget else runtime.shrunk(fold):
            if each.growth <= budget:
                taken.append(each)
            else:
                runtime.refuse(each.nodes[-1], f"its result adds {each.growth} bytes to the file; allowed are {budget}")
    growing = {fold: None for fold in taken if fold.growth > 0}
    if (total := sum(fold.growth for fold in growing)) <= budget:
        return taken
    for fold in growing:
        runtime.refuse(fold.nodes[-1], f"this and {len(growing) - 1} others add {total} bytes; allowed are {budget}")
    return [fold for fold in taken if fold not in growing]


class _Runtime:
    """What constant nodes compute, and which of them the runtime cannot.

    Attributes:
        results: computed values, as far as anybody asked for them.
    """

    def __init__(
        self, model: Model, constants: Mapping[ir.Value, int], context: Context, findings: Findings, rule: str
    ) -> None:
        self.results: dict[ir.Value, ir.TensorProtocol] = {}
        self._model = model
        self._constants = constants
        self._context = context
        self._findings = findings
        self._rule = rule
        self._refused: set[ir.Node] = set()
        self._tries = 0

    def refuse(self, node: ir.Node, why: str) -> None:
        """Leave a node, and with it all that reads it, as it is."""
        self._refused.add(node)
        self._findings.decline(node, self._rule, why)

    def folds(self, nodes: Sequence[ir.Node]) -> list[_Fold]:
        """Compute the nodes; the folds of those that could be and that somebody reads."""
        batches = list(self._batches(self._connected(nodes)))
        for done, batch in enumerate(batches):
            self._context.progress(done, len(batches), self._rule)
            self._compute(batch)
        groups = self._connected(self._possible(nodes))
        return [self._fold(group, results) for group in groups if (results := _read_outside(group))]

    def shrunk(self, fold: _Fold) -> list[_Fold]:
        """What is left of a fold without the nodes that make large results of small inputs."""
        sizes = self._sizes(fold.nodes)

        def frugal(node: ir.Node) -> bool:
            inputs = {value for value in node.inputs if value is not None}
            given = sum(sizes[value] if value in sizes else self._constants[value] for value in inputs)
            made = sum(sizes.get(value, 0) for value in node.outputs)
            if made > max(given, _FREE_BYTES):
                self.refuse(node, f"it makes {made} bytes of {given}")
                return False
            return True

        return self.folds(self._reached(fold.nodes, frugal))

    def _fold(self, nodes: Sequence[ir.Node], results: Sequence[ir.Value]) -> _Fold:
        inside = set(nodes)
        sizes = (self.results[value].nbytes for value in results)
        large = [value for value in _read_from_outside(nodes) if self._constants[value] > _FREE_BYTES]
        freed = sum(self._constants[value] for value in large if inside.issuperset(value.consumers()))
        return _Fold(tuple(nodes), tuple(results), sum(size for size in sizes if size > _FREE_BYTES) - freed)

    def _batches(self, groups: Iterable[list[ir.Node]]) -> Iterator[list[ir.Node]]:
        """The groups in batches whose constants fit into one session."""
        batch: list[ir.Node] = []
        total = 0
        for group in groups:
            size = sum(self._constants[value] for value in _read_from_outside(group))
            if batch and total + size > _BATCH_BYTES:
                yield batch
                batch, total = [], 0
            batch += group
            total += size
        if batch:
            yield batch

    def _possible(self, nodes: Sequence[ir.Node], given: Container[ir.Value] = ()) -> list[ir.Node]:
        return self._reached(nodes, lambda node: node not in self._refused, given)

    def _reached(
        self, nodes: Sequence[ir.Node], keep: Callable[[ir.Node], bool], given: Container[ir.Value] = ()
    ) -> list[ir.Node]:
        """The nodes that are to be kept and read only constants, what is given, and one another."""
        reached, made = [], set[ir.Value]()
        for node in nodes:
            inputs = (value for value in node.inputs if value is not None)
            if all(v in self._constants or v in made or v in given for v in inputs) and keep(node):
                reached.append(node)
                made.update(node.outputs)
        return reached

    def _connected(self, nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
        """The nodes in groups that share neither values nor weights of some size."""
        leader = {node: node for node in nodes}

        def find(node: ir.Node) -> ir.Node:
            while leader[node] is not node:
                leader[node] = leader[leader[node]]
                node = leader[node]
            return node

        first: dict[ir.Value, ir.Node] = {}
        for node in nodes:
            for value in (value for value in node.inputs if value is not None):
                producer = value.producer()
                if producer in leader:
                    leader[find(node)] = find(producer)
                elif self._constants.get(value, 0) > _FREE_BYTES:
                    leader[find(node)] = find(first.setdefault(value, node))
        groups: dict[ir.Node, list[ir.Node]] = {}
        for node in nodes:
            groups.setdefault(find(node), []).append(node)
        return list(groups.values())

    def _compute(self, nodes: Sequence[ir.Node]) -> None:
        """Get the values that others read; where the runtime cannot, find out which nodes are to blame."""
        waiting = [list(nodes)]
        while waiting:
            nodes = self._possible(waiting.pop(), self.results)
            halves = [nodes[len(nodes) // 2 :], nodes[: len(nodes) // 2]]
            wanted = [value for value in _read_outside(nodes) if value not in self.results]
            if not wanted:
                continue
            if len(nodes) > 1 and len(wanted) + len(_read_from_outside(nodes)) > _BORDER:
                waiting += halves
                continue
            try:
                if not self._keep(self._evaluate(nodes, wanted)):
                    waiting.append(nodes)
            except OnnxOptError as error:
                self._tries += 1
                if len(nodes) > 1 and self._tries > _MOST_TRIES:
                    self.refuse(nodes[0], f"with {len(nodes) - 1} nodes beside it, not computed: {error}")
                    self._refused.update(nodes)
                elif (culprit := nodes[0] if len(nodes) == 1 else _named(str(error), nodes)) is not None:
                    self.refuse(culprit, str(error))
                    waiting.append(nodes)
                else:
                    waiting += halves

    def _keep(self, outputs: Mapping[ir.Value, Any]) -> bool:
        """Take results in; False when some are none, so that what leads to them is to be got instead."""
        kept = len(self.results) + len(outputs)
        for value, output in outputs.items():
            if not isinstance(output, np.ndarray | np.generic) or output.dtype.kind in "OSU":
                producer = value.producer()
                assert producer is not None
                self.refuse(producer, "its result is no tensor of numbers")
                continue
            array = np.asarray(output)
            large = array.nbytes > _FREE_BYTES
            self.results[value] = self._context.store(array) if large else ir.Tensor(array)
        return len(self.results) == kept

    def _sizes(self, nodes: Sequence[ir.Node]) -> dict[ir.Value, int]:
        """Bytes of all that the nodes compute."""
        values = [value for node in nodes for value in node.outputs if value.name]
        counts = self._evaluate(nodes, values, "Size")
        return {value: int(counts[value]) * (value.dtype.bitwidth if value.dtype else 64) // 8 for value in values}

    def _evaluate(
        self, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value], through: str | None = None
    ) -> dict[ir.Value, Any]:
        """Run the nodes, in a model of their own that is fed with the constants.

        Args:
            wanted: the values to get.
            through: an operator to put behind each of them.
        """
        copies: dict[ir.Value, ir.Value] = {}
        body = [_copy(node, copies) for node in nodes]
        constants = {value: self._tensor(value) for value in _read_from_outside(nodes)}
        outputs = [copies[value] for value in wanted]
        if through is not None:
            body += [ir.node(through, [value]) for value in outputs]
            outputs = [node.outputs[0] for node in body[-len(outputs) :]]
        for index, output in enumerate(outputs):
            output.name = output.name or f"out{index}"
        for value, tensor in constants.items():
            copies[value].type, copies[value].shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        graph = ir.Graph([copies[value] for value in constants], outputs, nodes=body, name="constants",
                         opset_imports={"": self._model.opset})  # fmt: skip
        model = ir.Model(graph, ir_version=max(self._model.ir.ir_version, 4))
        with _mapped({copies[value].name or "": tensor for value, tensor in constants.items()}) as feeds:
            found = self._context.evaluate(model, feeds)
        return {value: found[output.name or ""] for value, output in zip(wanted, outputs, strict=True)}

    def _tensor(self, value: ir.Value) -> ir.TensorProtocol:
        tensor = self.results.get(value, value.const_value)
        assert tensor is not None
        return tensor


def _copy(node: ir.Node, copies: dict[ir.Value, ir.Value]) -> ir.Node:
    """A node of the same kind on copies of its values; `copies` remembers whose copy is whose."""
    for value in node.inputs:
        if value is not None and value not in copies:
            copies[value] = ir.Value(name=f"v{len(copies)}")
    copy = ir.Node(
        "", node.op_type, [None if value is None else copies[value] for value in node.inputs],
        node.attributes.values(), num_outputs=len(node.outputs), name=node.name,
    )  # fmt: skip
    for value, output in zip(node.outputs, copy.outputs, strict=True):
        output.name = f"v{len(copies)}" if value.name else ""
        copies[value] = output
    return copy


@contextlib.contextmanager
def _mapped(tensors: Mapping[str, ir.TensorProtocol]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The tensors as arrays; what had to be mapped for it is released afterwards."""
    fresh = [tensor for tensor in tensors.values() if isinstance(tensor, ir.ExternalTensor) and tensor.raw is None]
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    try:
        yield arrays
    finally:
        arrays.clear()
        for tensor in fresh:
            with contextlib.suppress(BufferError):  # somebody else looks at it, too
                tensor.release()


def _read_outside(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """The values that the nodes make and others read."""
    inside = dict.fromkeys(nodes)
    made = (value for node in inside for value in node.outputs)
    return [value for value in made if any(reader not in inside for reader in value.consumers())]


def _read_from_outside(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """The values that the nodes read and do not make."""
    inside = dict.fromkeys(nodes)
    read = dict.fromkeys(value for node in inside for value in node.inputs if value is not None)
    return [value for value in read if value.producer() not in inside]


def _named(error: str, nodes: Iterable[ir.Node]) -> ir.Node | None:
    """The one node whose name the runtime's complaint gives."""
    names = set(re.findall(r"node '([^']+)'", error))
    found = [node for node in nodes if node.name in names]
    return found[0] if len(found) == 1 else None


def _numeric(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype != ir.DataType.STRING


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
