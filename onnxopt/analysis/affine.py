"""Nodes that compute scale * x + shift with constants, and rows of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.linear.sources import Source
from onnxopt.nodes import label

Vector = npt.NDArray[np.float64]
Shape = tuple[int, ...]

_STEPS = frozenset({"Add", "Div", "Mul", "Neg", "Sub"})
_FARTHEST = 1e20
"""Factors beyond this, or below its inverse, would leave the range of a weight's type."""


@dataclass(frozen=True)
class Step:
    """A node that computes scale * x + shift with constants.

    Attributes:
        node: the node.
        x: what it computes on.
        constant: the other operand; None for Neg.
        name: what to call the node.
    """

    node: ir.Node
    x: ir.Value
    constant: Source | None
    name: str

    @property
    def shape(self) -> Shape:
        """Shape of the constant."""
        return () if self.constant is None else self.constant.form.shape

    @property
    def shifts(self) -> bool:
        """Whether it adds."""
        return self.node.op_type in ("Add", "Sub")

    def terms(self, over: Shape) -> tuple[Vector, Vector]:
        """Scale and shift, one for each element of a tensor of that shape, flattened."""
        if self.constant is None:
            return np.array([-1.0]), np.array([0.0])
        array = np.array(self.constant.array(), np.float64)
        self.constant.release()
        cut = array.reshape(array.shape[max(array.ndim - len(over), 0) :])
        c = cut.ravel() if cut.size == 1 else np.broadcast_to(cut, over).ravel()
        nothing, once = np.zeros_like(c), np.ones_like(c)
        if self.node.op_type == "Sub":
            return (-once, c) if self.node.inputs[1] is self.x else (once, -c)
        if self.node.op_type == "Add":
            return once, c
        with np.errstate(divide="ignore"):
            return (1 / c if self.node.op_type == "Div" else c), nothing


@dataclass
class Chain:
    """Steps in a row, as one: scale * x + shift; each a number, or one for each feature."""

    scale: Vector = field(default_factory=lambda: np.ones(1))
    shift: Vector = field(default_factory=lambda: np.zeros(1))
    steps: list[Step] = field(default_factory=list)

    def extended(self, step: Step, over: Shape, *, before: bool) -> "Chain | str":
        """The chain with a step behind it, or before it; or why the step cannot be taken."""
        scale, shift = step.terms(over)
        with np.errstate(over="ignore", invalid="ignore"):
            shift = self.scale * shift + self.shift if before else self.shift * scale + shift
            steps = [step, *self.steps] if before else [*self.steps, step]
            longer = Chain(self.scale * scale, shift, steps)
        size = abs(longer.scale)
        if not (np.isfinite(longer.scale).all() and np.isfinite(shift).all() and size.all()):
            return "it scales by zero or something that is no number"
        if size.max() > _FARTHEST or size.min() < 1 / _FARTHEST:
            return "its factor is too large or too small to be part of a weight"
        return longer


def step_at(node: ir.Node, constant: Callable[[ir.Value | None], Source | None]) -> Step | None:
    """A node as scale * x + shift; None where it is something else.

    Args:
        node: any node.
        constant: where a value comes from, where it counts as a constant.
    """
    if node.op_type not in _STEPS or node.domain:
        return None
    if node.op_type == "Neg":
        return None if node.inputs[0] is None else Step(node, node.inputs[0], None, label(node))
    found = [constant(value) for value in node.inputs]
    index = 0 if found[1] is None else 1
    x = node.inputs[1 - index]
    if x is None or (found[0] is None) == (found[1] is None) or (node.op_type == "Div" and index == 0):
        return None
    return Step(node, x, found[index], label(node))


def known_pattern(step: Step) -> str | None:
    """Why a factor before a layer belongs to what runtimes recognise as a whole, and would compute slower in parts."""
    value = step.x
    for _ in range(3):
        node = value.producer()
        if node is None or node.op_type not in ("Add", "Cast", "Div", "Mul"):
            return None
        before = [v.producer() for v in node.inputs if v is not None]
        if node.op_type in ("Div", "Mul") and any(map(_is_deviation, before)):
            return "it belongs to a normalization that is written as operators"
        if node.op_type == "Mul" and any(map(_is_gate, before)):
            return "it belongs to an activation that is written as operators"
        value = next((v for v in node.inputs if v is not None and v.producer() is not None), value)
    return None


def _is_deviation(node: ir.Node | None) -> bool:
    """Whether a node computes a standard deviation, or what it is divided by."""
    if node is not None and node.op_type == "Div":
        divisor = node.inputs[1]
        node = None if divisor is None else divisor.producer()
    return node is not None and node.op_type in ("Pow", "Reciprocal", "Sqrt")


def _is_gate(node: ir.Node | None) -> bool:
    """Whether a node is 1 + erf(...) or 1 + tanh(...), of GELU."""
    parts = [] if node is None or node.op_type != "Add" else [v.producer() for v in node.inputs if v is not None]
    return any(part is not None and part.op_type in ("Erf", "Tanh") for part in parts)
