"""The matrices of recurrent layers as linear layers: W, which reads what comes in, and R, which reads the states.

What they give is nowhere to be seen, as gates are computed from the sum of both; what they read is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.linear.find import linears
from onnxopt.analysis.linear.layer import Linear, Parameter, Store
from onnxopt.analysis.linear.replacing import as_stored, put
from onnxopt.analysis.linear.sources import Source, Sources
from onnxopt.analysis.linear.steps import FLOATS, Array
from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.nodes import label

_OPERATORS = frozenset(("LSTM", "GRU", "RNN"))
_X, _W, _R, _B = range(4)


@dataclass(frozen=True, eq=False)
class Recurrent:
    """W or R of an LSTM, GRU or RNN as a layer y = W x + b, as `Linear` is.

    W is one matrix `[1, directions * gates * hidden, in]` that reads the node's input `[steps, batch, in]`; R is one
    for each direction, `[directions, gates * hidden, hidden]`, and reads what that direction gave a step before, of
    the node's output Y `[steps, directions, batch, hidden]`. (One gate of a GRU with `linear_before_reset` 0 reads
    states that another gate has scaled down first; of its columns the second moments of the states tell less.)

    Attributes:
        node: the LSTM, GRU or RNN.
        weight: W or R as it reaches the node.
        x: what the matrix reads, or for R what the node gives.
    """

    node: ir.Node
    weight: Parameter
    x: ir.Value

    kind: ClassVar[Literal["recurrent"]] = "recurrent"
    taps: ClassVar[int] = 1
    x_axis: ClassVar[int] = -1

    @property
    def name(self) -> str:
        """The node's name, or its output's where it has none."""
        return label(self.node)

    @property
    def dtype(self) -> ir.DataType:
        """Type in which the layer computes."""
        return self.weight.dtype

    @property
    def reads_states(self) -> bool:
        """Whether it is R."""
        return self.weight.index == _R

    @property
    def summed(self) -> tuple[int, ...]:
        """The node's inputs that the matrix sums over: itself, and what W reads."""
        return (_R,) if self.reads_states else (_X, _W)

    @property
    def directions(self) -> int:
        """1 or 2."""
        return self.weight.shape[0]

    @property
    def groups(self) -> int:
        """Matrices that do not meet: the directions of R."""
        return self.directions if self.reads_states else 1

    @property
    def out_features(self) -> int:
        """Rows of one group: units of all gates, and for W of all directions."""
        return self.directions * self.weight.shape[1] // self.groups

    @property
    def in_features(self) -> int:
        """Input features of one group."""
        return self.weight.shape[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of `matrix()`."""
        return self.groups, self.out_features, self.in_features

    def matrix(self) -> Array:
        """`[groups, out, in]`, float32 (float64 for DOUBLE), the caller's own.

        Raises:
            ModelError: the layer was changed since it was found.
        """
        self._check_current()
        return self.weight.array().reshape(self.shape)

    def bias_vector(self) -> Array | None:
        """Its half of B as `[groups * out]`; None where the node has none."""
        bias = self._bias()
        return None if bias is None else self._own(bias.array()).flatten()

    def replaced(self, matrix: Array, bias: Array, *, store: Store | None = None, rule: str = "") -> Edit:
        """An edit after which the node computes with another matrix and its half of B, of the sizes they have.

        Args:
            matrix: `[groups, out, in]`.
            bias: `[groups * out]`.
            store, rule: as of `Linear.replaced`.

        Raises:
            ModelError: the layer was changed since it was found; sizes do not fit; values do not fit the type.
        """
        self._check_current()
        if matrix.shape != self.shape or bias.shape != (self.groups * self.out_features,):
            sizes = f"a matrix {list(self.shape)} and a bias [{self.groups * self.out_features}]"
            raise ModelError(f"layer {self.name} takes {sizes}, not {list(matrix.shape)} and {list(bias.shape)}")
        edit = Edit(rule)
        put(edit, self.weight, matrix.reshape(self.weight.shape), None, store)
        known = self._bias()
        whole = np.zeros((self.directions, 2 * self.weight.shape[1]), bias.dtype) if known is None else known.array()
        self._own(whole)[:] = bias.reshape(self.directions, -1)
        if known is not None:
            put(edit, known, whole, None, None)
            return edit
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        tensor = as_stored(whole, self.dtype, None, self.name)
        edit.set_input(self.node, _B, edit.add_weight(f"{self.name}_bias", tensor, graph))
        return edit

    def _own(self, biases: Array) -> Array:
        """Its half of `[directions, halves * rows]`, a view."""
        half = int(self.reads_states)
        return biases.reshape(self.directions, 2, -1)[:, half]

    def _bias(self) -> Parameter | None:
        """B as it is now: W and R share it, and an edit of either changes it."""
        source = _constant(self.node, _B, Sources())
        return Parameter(source, self.node, _B) if isinstance(source, Source) else None

    def _check_current(self) -> None:
        if not self.weight.is_current:
            raise ModelError(f"layer {self.name} was changed since it was looked at; ask for the layers again")


Layer: TypeAlias = Linear | Recurrent
"""What reads features, weighs and sums them."""


def layers_of(model: Model) -> list[Layer]:
    """The linear layers, and those of recurrent ones."""
    return [*linears(model), *recurrents(model)]


def recurrents(model: Model) -> list[Recurrent]:
    """W and R of all recurrent layers of the main graph whose weights are constants, in order.

    R is left out where the node gives only its last states, and with `layout` 1, with which ONNX Runtime runs none.
    """
    sources = Sources()
    return [layer for node in model.graph if node.op_type in _OPERATORS for layer in _layers(node, sources)]


def _layers(node: ir.Node, sources: Sources) -> Iterator[Recurrent]:
    if node.domain not in ("", "ai.onnx"):
        return
    bias = _constant(node, _B, sources)
    for index in (_W, _R):
        source = _constant(node, index, sources)
        if not isinstance(source, Source) or len(source.form.shape) != 3 or 0 in source.form.shape:
            continue
        directions, rows, _ = source.form.shape
        x = node.inputs[_X] if index == _W else _states(node)
        if x is not None and (bias is None or (isinstance(bias, Source) and bias.form.shape == (directions, 2 * rows))):
            yield Recurrent(node, Parameter(source, node, index), x)


def _constant(node: ir.Node, index: int, sources: Sources) -> Source | str | None:
    """A constant input in a type that layers compute in, why it is none, or None where it is left out."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    source = sources.find(value)
    return source if isinstance(source, str) or source.form.dtype in FLOATS else "is no floating-point type"


def _states(node: ir.Node) -> ir.Value | None:
    """The states of all steps, where the node gives them."""
    batch_first = bool(node.attributes.get_int("layout", 0))
    return node.outputs[0] if node.outputs and node.outputs[0].name and not batch_first else None
