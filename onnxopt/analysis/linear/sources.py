"""Where a constant comes from: the stored tensor and the nodes between it and its reader."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from onnxopt.analysis.linear.steps import Array, Form, Step, step_of
from onnxopt.analysis.structure import constant_tensor
from onnxopt.errors import ModelError
from onnxopt.nodes import label

Use = tuple[ir.Node, int]
"""A node and the index of its input."""

_NESTING = 4
"""Scales may come from steps that have scales of their own, so deep."""

_UNREADABLE = frozenset({ir.DataType.STRING, ir.DataType.UNDEFINED})


@dataclass(frozen=True, eq=False)
class Root:
    """A stored tensor: an initializer, or the output of a Constant node. All that comes from it shares this object."""

    value: ir.Value

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The tensor as it is now, unread."""
        tensor = constant_tensor(self.value)
        if tensor is None:
            raise ModelError(f"weight {self.value.name} is no constant any more; ask for the linear layers again")
        return tensor

    @cached_property
    def readers(self) -> tuple[Use, ...]:
        """Who reads it, itself or behind steps, when this is first asked."""
        return tuple(self._readers())

    def _readers(self) -> Iterator[Use]:
        stack = [self.value]
        while stack:
            for node, index in stack.pop().uses():
                if index == 0 and step_of(node) is not None:
                    stack.append(node.outputs[0])
                else:
                    yield node, index


@dataclass(frozen=True, eq=False)
class Source:
    """A constant value and how it comes about.

    Attributes:
        value: the value.
        form: its shape and type, known without reading it.
        root: the stored tensor at the chain's beginning.
        node: the step that makes the value; None at the root.
        operands: what the step reads: the chain's rest, then scales and the like; absent ones None.
        nesting: how deep scales have scales of their own.
    """

    value: ir.Value
    form: Form
    root: Root
    node: ir.Node | None = None
    operands: "tuple[Source | None, ...]" = ()
    nesting: int = 0

    def chain(self) -> "list[Source]":
        """From the root to this value."""
        found, source = [self], self
        while source.operands:
            assert source.operands[0] is not None
            source = source.operands[0]
            found.append(source)
        return found[::-1]

    @property
    def steps(self) -> tuple[ir.Node, ...]:
        """The nodes from the root to this value."""
        return tuple(source.node for source in self.chain() if source.node is not None)

    def array(self) -> Array:
        """The content, computed from the stored tensor; may be a read-only view of it."""
        array = self.root.tensor.numpy()
        for source in self.chain()[1:]:
            assert source.node is not None
            sides = [None if side is None else side.array() for side in source.operands[1:]]
            array = _step(source.node).evaluate(source.node, [array, *sides], source.form)
        return array

    def release(self) -> None:
        """Give back file mappings that reading made, unless others still look at them."""
        for source in self.chain():
            for side in source.operands[1:]:
                if side is not None:
                    side.release()
        tensor = self.root.tensor
        if isinstance(tensor, ir.ExternalTensor):
            with contextlib.suppress(BufferError):
                tensor.release()

    def is_private(self, reader: Use) -> bool:
        """Whether that reader alone depends on the stored tensor."""
        for source in reversed(self.chain()):
            if source.value.is_graph_output() or any((node, index) != reader for node, index in source.value.uses()):
                return False
            if source.node is not None:
                reader = (source.node, 0)
        return True

    def only_for(self, reader: Use) -> list[ir.Node]:
        """The nodes that nobody needs once that reader reads something else; the last first."""
        found: list[ir.Node] = []
        stack: list[tuple[Source, Use]] = [(self, reader)]
        while stack:
            source, user = stack.pop()
            maker = source.value.producer()
            others = any((node, index) != user for node, index in source.value.uses())
            if maker is None or others or source.value.is_graph_output():
                continue
            found.append(maker)
            stack.extend((operand, (maker, i)) for i, operand in enumerate(source.operands) if operand is not None)
        return found


class Sources:
    """Finds out where values come from; remembers, so that a whole model takes time linear in its nodes."""

    def __init__(self) -> None:
        self._found: dict[ir.Value, Source | str] = {}

    def find(self, value: ir.Value) -> Source | str:
        """The source of a constant value, or why the value is not one, to be read after its name."""
        stack, opened = [value], set[ir.Value]()
        while stack:
            top = stack[-1]
            missing = [] if top in opened else [need for need in _needs(top) if need not in self._found]
            opened.add(top)
            if missing:
                stack += missing
                continue
            stack.pop()
            if top not in self._found:
                self._found[top] = self._describe(top)
        return self._found[value]

    def _describe(self, value: ir.Value) -> Source | str:
        tensor = constant_tensor(value)
        if tensor is not None:
            if tensor.dtype in _UNREADABLE:
                return f"holds {tensor.dtype}"
            return Source(value, Form(tuple(tensor.shape.numpy()), tensor.dtype), Root(value))
        node = value.producer()
        if node is None:
            return _unmade(value)
        if step_of(node) is None:
            return f"is computed by {node.op_type} ({label(node)})" if node.op_type != "Constant" else "is sparse"
        return self._behind(value, node)

    def _behind(self, value: ir.Value, node: ir.Node) -> Source | str:
        step = _step(node)
        here = f"comes from {node.op_type} ({label(node)})"
        operands: list[Source | None] = []
        for need in step.constant_inputs(node):
            source = None if need is None else self._found.get(need, "is on a cycle")
            if isinstance(source, str):
                return f"{here}, where {need.name if need else ''} {source}" if operands else source
            operands.append(source)
        if not operands or operands[0] is None:
            return f"{here}, which has no input"
        form = step.infer(node, operands)
        if isinstance(form, str):
            return f"{here}: {form}"
        nesting = max(operands[0].nesting, *(side.nesting + 1 for side in operands[1:] if side is not None), 0)
        if nesting > _NESTING:
            return f"{here}, whose scales nest more than {_NESTING} deep"
        return Source(value, form, operands[0].root, node, tuple(operands), nesting)


def _step(node: ir.Node) -> Step:
    step = step_of(node)
    assert step is not None
    return step


def _needs(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    step = None if node is None else step_of(node)
    if node is None or step is None:
        return []
    return [need for need in step.constant_inputs(node) if need is not None]


def _unmade(value: ir.Value) -> str:
    if value.is_graph_input():
        return "is an input of the graph"
    return "has no data" if value.is_initializer() else "is neither a dense initializer nor made by a node"
