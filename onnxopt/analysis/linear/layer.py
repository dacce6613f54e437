"""One linear layer: its facts, its matrix, and the edits that give it another one."""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.linear import replacing, rewiring
from onnxopt.analysis.linear.layouts import Dense, Geometry, Layout
from onnxopt.analysis.linear.sources import Source, Use
from onnxopt.analysis.linear.steps import Array
from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.nodes import label

Kind = Literal["matmul", "gemm", "conv", "conv_transpose"]
Store = Callable[[Array, ir.DataType], ir.TensorProtocol]


class Keep(enum.Enum):
    """Type of `KEEP`."""

    KEEP = enum.auto()


KEEP: Final = Keep.KEEP
"""Leave the bias as it is."""


@dataclass(frozen=True, eq=False)
class Parameter:
    """A constant that a layer reads: its weight or its bias.

    Attributes:
        source: where it comes from.
        node: who reads it: the layer's node, or the Add of the bias.
        index: as which input.
    """

    source: Source
    node: ir.Node
    index: int

    @property
    def value(self) -> ir.Value:
        """What the node reads: the end of the chain."""
        return self.source.value

    @property
    def root(self) -> ir.Value:
        """The beginning of the chain: an initializer or the output of a Constant node."""
        return self.source.root.value

    @property
    def steps(self) -> tuple[ir.Node, ...]:
        """The nodes from the root to the value, in this order."""
        return self.source.steps

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as the node reads it."""
        return self.source.form.shape

    @property
    def dtype(self) -> ir.DataType:
        """Type as the node reads it."""
        return self.source.form.dtype

    @property
    def use(self) -> Use:
        """Who reads it, as which input: what tells the layers of a model apart."""
        return self.node, self.index

    @property
    def overridable(self) -> bool:
        """Whether the root is listed as a graph input, so that callers may feed another tensor (IR 3: always)."""
        return self.root.is_graph_input()

    @property
    def sharers(self) -> tuple[Use, ...]:
        """All (node, input index) that read the root, itself or behind steps; this one among them."""
        return self.source.root.readers

    @property
    def is_shared(self) -> bool:
        """Whether anything but this input depends on the root, as the graph is now."""
        return not self.source.is_private((self.node, self.index))

    @property
    def is_current(self) -> bool:
        """Whether the node still reads this value, in the shape that was seen."""
        reads = self.index < len(self.node.inputs) and self.node.inputs[self.index] is self.value
        return reads and tuple(self.source.root.tensor.shape.numpy()) == self.source.chain()[0].form.shape

    def array(self) -> Array:
        """The content as a fresh array, float64 for DOUBLE and float32 for every other type; mappings are released."""
        wide = np.float64 if self.dtype == ir.DataType.DOUBLE else np.float32
        array = np.array(self.source.array(), wide, order="C")
        self.source.release()
        return array


@dataclass(frozen=True, eq=False)
class Linear:
    """A layer y = W x + b with constant W, as the graph was when it was found.

    Valid until an edit changes this very layer; edits elsewhere do no harm. W is seen as `[groups, out, in * taps]`:
    the matrices of a batched MatMul are groups; columns of a convolution are ordered (input feature, taps...).

    Attributes:
        node: the MatMul, Gemm, Conv or ConvTranspose.
        kind: which of them.
        weight: W as it reaches the node.
        bias: b, the input of Gemm or Conv or the other operand of an Add behind MatMul; None where there is none.
        addend: what Gemm or Conv adds that is no constant vector over output features; no part of `bias_vector`.
        x: the activation that comes in.
        y: what comes out, bias included.
        layout: which way round the node keeps W.
        geometry: how a convolution moves; None else.
        x_rank: rank of x where that is certain and the layer depends on it; else None.
        x_axis: axis of x with the input features: 1 for convolutions, else -1 or -2.
        y_axis: axis of y with the output features, likewise.
    """

    node: ir.Node
    kind: Kind
    weight: Parameter
    bias: Parameter | None
    addend: ir.Value | None
    x: ir.Value
    y: ir.Value
    layout: Layout
    geometry: Geometry | None
    x_rank: int | None
    x_axis: int
    y_axis: int

    @property
    def name(self) -> str:
        """The node's name, or its output's where it has none."""
        return label(self.node)

    @property
    def dtype(self) -> ir.DataType:
        """Type in which the layer computes."""
        return self.weight.dtype

    @property
    def groups(self) -> int:
        """Number of independent matrices: groups of a convolution, matrices of a batch."""
        return self.layout.groups(self.weight.shape)[0]

    @property
    def out_features(self) -> int:
        """Output features of one group."""
        return self.layout.groups(self.weight.shape)[1]

    @property
    def in_features(self) -> int:
        """Input features of one group."""
        return self.layout.groups(self.weight.shape)[2]

    @property
    def taps(self) -> int:
        """Number of places of the kernel; 1 for a matrix product."""
        return self.layout.groups(self.weight.shape)[3]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of `matrix()`: groups, output features, input features times taps."""
        groups, out, features, taps = self.layout.groups(self.weight.shape)
        return groups, out, features * taps

    @property
    def alpha(self) -> float:
        """Gemm's factor of the product, which `matrix()` contains; 1 for all others."""
        return self.node.attributes.get_float("alpha", 1.0) if self.kind == "gemm" else 1.0

    @property
    def beta(self) -> float:
        """Gemm's factor of C, which `bias_vector()` contains; 1 for all others."""
        return self.node.attributes.get_float("beta", 1.0) if self.kind == "gemm" else 1.0

    def matrix(self) -> Array:
        """W as `[groups, out, in * taps]`, float32 (float64 for DOUBLE), C order, the caller's own.

        Reads the stored tensor and computes what lies between it and the node.

        Raises:
            ModelError: the layer was changed since it was found.
        """
        self.check_current()
        matrix = np.ascontiguousarray(self.layout.to_matrix(self.weight.array()))
        if self.alpha != 1:
            matrix *= matrix.dtype.type(self.alpha)
        return matrix

    def bias_vector(self) -> Array | None:
        """b as `[groups * out]`, float32 (float64 for DOUBLE); None where there is none.

        Raises:
            ModelError: the layer was changed since it was found.
        """
        if self.bias is None:
            return None
        self.check_current()
        shape = self.vector_shape(self.groups, self.out_features)
        assert shape is not None
        array = self.bias.array()
        vector = np.broadcast_to(array.reshape(array.shape[max(array.ndim - len(shape), 0) :]), shape).flatten()
        return vector if self.beta == 1 else vector * vector.dtype.type(self.beta)

    def replaced(
        self,
        matrix: Array,
        bias: Array | Keep | None = KEEP,
        *,
        dtype: ir.DataType | None = None,
        store: Store | None = None,
        rule: str = "",
    ) -> Edit:
        """An edit after which this layer, and no other, computes with other weights.

        They are stored the way round that the node reads, so Transpose, DequantizeLinear and the like disappear from
        this layer's way. Numbers of features and of groups may differ from before; a batch stays as it is. What this
        layer has from `matrix()` and `bias_vector()` gives the same bits again.

        Args:
            matrix: `[groups, out, in * taps]`.
            bias: `[groups * out]`; None: no bias; KEEP: the present one.
            dtype: type to store W in, with a Cast where the node reads another. None: as it is stored now, or what
                the node reads where that is no wider, or where the present storage is quantized.
            store: puts the stored array away, as `Context.store`; None: it stays in memory.
            rule: the rule that asks for it.

        Raises:
            ModelError: the layer was changed since it was found; sizes do not fit; values do not fit the type.
        """
        edit = Edit(rule)
        replacing.record(edit, self, matrix, bias, dtype, store)
        return edit

    def rebiased(self, bias: Array | None, rule: str = "") -> Edit:
        """An edit after which this layer, and no other, has another bias, or none; see `replaced`.

        Args:
            bias: `[groups * out]`; None: no bias.
            rule: the rule that asks for it.

        Raises:
            ModelError: the layer was changed since it was found; the size does not fit; values do not fit the type.
        """
        edit = Edit(rule)
        replacing.record_bias(edit, self, bias)
        return edit

    def can_be_matmul(self) -> str | None:
        """Why `rewired_to_matmul` cannot be asked for; None where it can."""
        return rewiring.refusal(self)

    @property
    def matmul_shape(self) -> tuple[int, ...]:
        """Shape of the weight that `rewired_to_matmul` takes: `[K, N]`, for a batch `[..., K, N]`.

        Raises:
            ModelError: a convolution.
        """
        _, out, columns = self.shape
        return (*self._dense().batch, columns, out)

    def to_matmul(self, matrix: Array) -> Array:
        """`[groups, out, in]` as `[..., K, N]`; a view where that is possible.

        Raises:
            ModelError: a convolution.
        """
        turned = matrix.swapaxes(1, 2)
        return turned.reshape(*self._dense().batch, *turned.shape[1:])

    def rewired_to_matmul(self, edit: Edit, weight: ir.Value) -> None:
        """Record in an edit that this layer becomes `MatMul(x, weight)`, with Transpose and Add where needed.

        Args:
            edit: nodes that make the weight must be inserted through it before, at `self.node` or earlier.
            weight: any value of shape `matmul_shape` and type `dtype`; it stands for `to_matmul(matrix())`, Gemm's
                alpha included.

        Raises:
            ModelError: `can_be_matmul` gives a reason; the weight does not fit; the layer was changed.
        """
        rewiring.record(edit, self, weight)

    def vector_shape(self, groups: int, out: int) -> tuple[int, ...] | None:
        """Shape in which a vector over output features broadcasts against y; None where the rank of x decides.

        For a convolution it is the shape of its own bias input.
        """
        if not isinstance(self.layout, Dense):
            return (groups * out,)
        batch = self.layout.batch
        if self.x_rank is None and (batch or self.layout.left):
            return None
        if self.y_axis == -2:
            return (*batch, out, 1)
        return (*batch, 1, out) if batch and self.x_rank != 1 else (*batch, out)

    def check_current(self) -> None:
        """Raise ModelError where the layer is no longer what it was when it was found."""
        parameters = (self.weight,) if self.bias is None else (self.weight, self.bias)
        if not all(parameter.is_current for parameter in parameters):
            raise ModelError(f"layer {self.name} was changed since it was looked at; ask for the linear layers again")

    def _dense(self) -> Dense:
        if not isinstance(self.layout, Dense):
            raise ModelError(f"layer {self.name} is a convolution and has no weight [K, N]")
        return self.layout


def is_vector(shape: tuple[int, ...], over: tuple[int, ...], most_axes: int) -> bool:
    """Whether a tensor of that shape adds the same to y as a vector that broadcasts in the shape `over`.

    Args:
        shape: of the tensor.
        over: see `Linear.vector_shape`.
        most_axes: rank of y; a tensor of more axes would give y another shape.
    """
    if len(shape) > most_axes or math.prod(shape[: max(len(shape) - len(over), 0)]) != 1:
        return False
    return all(size in (1, full) for size, full in zip(shape[::-1], over[::-1], strict=False))
