"""Quantization: fewer bits for weights, in standard ONNX. What the passes share is here: integer formats in a graph.

A quantized layer is `MatMul(x, DequantizeLinear(codes, scale, zero_point?))` with codes `[K, N]`, one of the rows of
`docs/formats.md`; ONNX Runtime turns it into one operator that reads the codes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from math import prod

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.linear import Linear
from onnxopt.analysis.structure import constant_tensor
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.numerics import Quantized, QuantSpec, dequantize
from onnxopt.numerics.grids import Codes, Floats
from onnxopt.passing import Context

_CODE_TYPES = {
    (2, True): ir.DataType.INT2,
    (2, False): ir.DataType.UINT2,
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""Types of weights that can be quantized."""

_CHUNK = 1 << 20
"""Elements that an error is computed of at a time."""


@dataclass(frozen=True)
class Stored:
    """Initializers of a quantized weight, and how DequantizeLinear reads them.

    Attributes:
        codes: `[..., K, N]`.
        scale: `[..., ceil(K / block), N]`, or `[N]` where there is one scale for each column.
        zero_point: of the scale's shape and the codes' type; None for symmetric grids.
        axis: DequantizeLinear's attribute.
        block_size: DequantizeLinear's attribute; None where there is one scale for each column.
    """

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    axis: int
    block_size: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        tensors = (value.const_value for value in (self.codes, self.scale, self.zero_point) if value is not None)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def stored_tensor(layer: Linear) -> ir.TensorProtocol:
    """The tensor at the beginning of the weight's chain."""
    return layer.weight.source.root.tensor


def constants(model: Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """All constants: initializers, and what Constant nodes hold."""
    made = (node.outputs[0] for node in model.nodes() if node.op_type == "Constant")
    for value in chain(model.weights(), made):
        tensor = constant_tensor(value)
        if tensor is not None:
            yield value, tensor


def weight_sizes(model: Model) -> tuple[int, int]:
    """Bytes of all constants, and elements of those in floating point."""
    sized = [tensor for _, tensor in constants(model) if tensor.dtype != ir.DataType.STRING]
    return sum(tensor.nbytes for tensor in sized), sum(tensor.size for tensor in sized if tensor.dtype in FLOATS)


def refusal(layer: Linear, model: Model) -> str | None:
    """Why a layer cannot read quantized weights; None where it can."""
    return next((why for check in _REFUSALS if (why := check(layer, model)) is not None), None)


def code_type(spec: QuantSpec) -> ir.DataType:
    """The type in which codes are stored: the narrowest of 2, 4 and 8 bits that holds them."""
    return _CODE_TYPES[spec.storage_bits, spec.make_grid().code_dtype == np.int8]


def needed_opset(spec: QuantSpec, *, batched: bool = False) -> int:
    """The first opset whose DequantizeLinear takes the format: 13 by column, 21 in blocks and 4 bits, 25 for 2 bits."""
    if spec.storage_bits == 2:
        return 25
    return 13 if spec.storage_bits == 8 and spec.block_size is None and not batched else 21


def stored_bytes(shape: tuple[int, int, int], spec: QuantSpec) -> int:
    """Bytes of codes, scales and zero points of a weight `[groups, out, in]`."""
    scales = shape[0] * shape[1] * spec.block_count(shape[2])
    points = scales if spec.make_grid().has_zero_point else 0
    return sum(-(-n * spec.storage_bits // 8) for n in (prod(shape), points)) + scales * spec.scale_type.itemsize


def relative_error(matrix: Floats, quantized: Quantized) -> float:
    """Frobenius norm of what quantization changed, over that of the matrix `[groups, out, in]`; 0 for zeros."""
    changed = total = 0.0
    for rows in _row_chunks(matrix.shape):
        points = None if quantized.zero_point is None else quantized.zero_point[rows]
        part = Quantized(quantized.codes[rows], quantized.scale[rows], points, quantized.spec)
        exact = matrix[rows].astype(np.float64)
        total += float(np.square(exact).sum())
        changed += float(np.square(exact - dequantize(part)).sum())
    return (changed / total) ** 0.5 if total else 0.0


def store(edit: Edit, layer: Linear, quantized: Quantized, context: Context) -> Stored:
    """Put a quantized `layer.matrix()` away as initializers, named after the weight, of the layer's own graph.

    In the layer's graph, because ONNX Runtime refuses to load a subgraph whose codes lie in a graph around it.
    """
    graph, name = layer.node.graph, layer.weight.root.name or layer.name
    assert isinstance(graph, ir.Graph)
    dtype, batched = code_type(quantized.spec), len(layer.matmul_shape) > 2
    by_column = quantized.spec.block_size is None and not batched

    def add(stem: str, array: Codes | Floats, stored: ir.DataType, *, vector: bool = False) -> ir.Value:
        turned = array.reshape(-1) if vector else layer.to_matmul(array)
        return edit.add_weight(f"{name}.{stem}", context.store(turned, stored), graph)

    codes = add("codes", quantized.codes, dtype)
    scale = add("scale", quantized.scale, ir.DataType.from_numpy(quantized.scale.dtype), vector=by_column)
    points = quantized.zero_point
    zero_point = None if points is None else add("zero_point", points, dtype, vector=by_column)
    if by_column:
        return Stored(codes, scale, zero_point, 1, None)
    block_size = quantized.spec.block_size or layer.matmul_shape[-2]
    return Stored(codes, scale, zero_point, len(layer.matmul_shape) - 2, block_size)


def copied(edit: Edit, layer: Linear, stored: Stored) -> Stored:
    """The same weight, stored once more, for a layer of its own: ONNX Runtime fuses no codes and scales that two read.

    The copy has the tensors themselves, so that it takes no memory.
    """
    graph = layer.node.graph
    assert isinstance(graph, ir.Graph)

    def again(value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        return edit.add_weight(value.name or "", value.const_value, graph)

    points = stored.zero_point
    return replace(
        stored,
        codes=again(stored.codes),
        scale=again(stored.scale),
        zero_point=None if points is None else again(points),
    )


def is_fusible(layer: Linear, spec: QuantSpec, opset: int) -> bool:
    """Whether ONNX Runtime makes one operator (MatMulNBits) of the quantized layer, if nobody else reads its codes."""
    return len(layer.matmul_shape) == 2 and layer.dtype == _works_in(
        layer, ir.DataType.from_numpy(spec.scale_type), opset
    )


def read_by(edit: Edit, layer: Linear, stored: Stored, opset: int) -> ir.Value:
    """Let a layer multiply by a quantized weight; gives the weight as the layer reads it.

    DequantizeLinear works in the layer's type where that is float32, or float16 with an opset (19) that knows it and
    scales of that type; else in float32, and a Cast follows.
    """
    assert stored.scale.dtype is not None
    works_in = _works_in(layer, stored.scale.dtype, opset)
    nodes = []
    scale = stored.scale
    if scale.dtype != works_in:
        nodes.append(_cast(scale, works_in, f"{layer.name}.scale_cast"))
        scale = nodes[-1].outputs[0]
    inputs = [stored.codes, scale] if stored.zero_point is None else [stored.codes, scale, stored.zero_point]
    attributes = {"axis": stored.axis} | ({"block_size": stored.block_size} if stored.block_size else {})
    nodes.append(ir.node("DequantizeLinear", inputs, attributes, name=f"{layer.name}.dequantize"))
    weight = nodes[-1].outputs[0]
    weight.type, weight.shape = ir.TensorType(works_in), ir.Shape(layer.matmul_shape)
    if layer.dtype != works_in:
        nodes.append(_cast(weight, layer.dtype, f"{layer.name}.weight_cast"))
        weight = nodes[-1].outputs[0]
    edit.insert(nodes, before=layer.node)
    layer.rewired_to_matmul(edit, weight)
    return weight


def _works_in(layer: Linear, scale_dtype: ir.DataType, opset: int) -> ir.DataType:
    """The type that DequantizeLinear gives for a layer."""
    half = layer.dtype == ir.DataType.FLOAT16 == scale_dtype and opset >= 19
    return ir.DataType.FLOAT16 if half else ir.DataType.FLOAT


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype}, name=name)
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node


def _row_chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Indices that cut `[groups, out, in]` into matrices of about `_CHUNK` elements."""
    groups, out, columns = shape
    step = max(1, _CHUNK // columns)
    for group in range(groups):
        yield from ((group, slice(start, start + step)) for start in range(0, out, step))


def _is_convolution(layer: Linear, model: Model) -> str | None:
    if layer.kind not in ("conv", "conv_transpose"):
        return None
    return "runtimes have no convolution that reads quantized weights alone; they would be dequantized in each run"


def _is_quantized(layer: Linear, model: Model) -> str | None:
    stored = stored_tensor(layer).dtype
    dequantized = any(node.op_type == "DequantizeLinear" for node in layer.weight.steps)
    return f"already quantized: stored as {stored}" if dequantized or stored not in FLOATS else None


def _is_no_matmul(layer: Linear, model: Model) -> str | None:
    return layer.can_be_matmul()


def _is_default_of_input(layer: Linear, model: Model) -> str | None:
    if not layer.weight.overridable or model.ir.ir_version < 4:
        return None
    return f"weight {layer.weight.root.name} is the default of a graph input, for which callers may feed another"


def _is_in_old_subgraph(layer: Linear, model: Model) -> str | None:
    if layer.node.graph is model.graph or model.ir.ir_version >= 4:
        return None
    return f"IR version {model.ir.ir_version} has no weights in subgraphs, where the codes would have to be"


_REFUSALS: tuple[Callable[[Linear, Model], str | None], ...] = (
    _is_convolution, _is_quantized, _is_no_matmul, _is_default_of_input, _is_in_old_subgraph,
)  # fmt: skip
