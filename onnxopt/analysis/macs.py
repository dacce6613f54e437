"""Multiply-accumulates of one node, by operator.

Conventions, those of the usual tables: only contractions count (products that are summed up), one for each
weight that meets an activation, zeros of padding included; elementwise operators, normalisations, activations,
bias additions, pooling, resizing and transforms count none. Causal and sparse masks do not lower an attention's
count.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.shapes import Shapes

Rule: TypeAlias = Callable[["Operands"], int]
R = TypeVar("R", bound=Rule)

MICROSOFT = "com.microsoft"
OWN = "ai.onnxopt"

_KNOWN_DOMAINS = {"", "ai.onnx.ml", MICROSOFT, OWN}
"""Where an operator without a rule counts no MACs; elsewhere nothing is known of it."""

_OPAQUE = {
    "": {"CausalConvWithState", "LinearAttention"},
    "ai.onnx.ml": {"LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"},
    MICROSOFT: {
        "CDist", "CausalConvWithState", "DecoderAttention", "DecoderMaskedMultiHeadAttention",
        "DecoderMaskedSelfAttention", "GatedRelativePositionBias", "LinearAttention", "LongformerAttention", "MoE",
        "NhwcConv", "NhwcFusedConv", "PackedAttention", "PackedMultiHeadAttention", "PagedAttention",
        "QLinearConvTranspose", "QMoE", "QOrderedAttention", "QOrderedLongformerAttention", "QOrderedMatMul",
        "SparseAttention", "SparseToDenseMatMul",
    },
}  # fmt: skip
"""Operators that do multiply, in ways that are not counted here: their MACs are unknown."""

_RULES: dict[tuple[str, str], Rule] = {}


class UnknownSizeError(Exception):
    """A size that the count needs is not known; `count` turns it into None."""


class Operands:
    """A node's inputs and attributes as rules read them."""

    def __init__(self, node: ir.Node, shapes: Shapes) -> None:
        self.node = node
        self._shapes = shapes

    def has(self, index: int) -> bool:
        """Whether the input is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def shape(self, index: int) -> tuple[int, ...]:
        """The input's shape; raises UnknownSizeError where it is absent or not concrete."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return self._concrete(value)

    def output(self) -> tuple[int, ...]:
        """The first output's shape; raises UnknownSizeError where it is not concrete."""
        return self._concrete(self.node.outputs[0])

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def integers(self, name: str, default: Sequence[int] = ()) -> Sequence[int]:
        """An attribute that is a list of integers."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_ints()

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def _concrete(self, value: ir.Value | None) -> tuple[int, ...]:
        shape = None if value is None else self._shapes.concrete(value)
        if shape is None:
            raise UnknownSizeError
        return shape


def counts(*operators: str, domain: str = "") -> Callable[[R], R]:
    """Register the rule that counts the MACs of some operators of a domain."""

    def register(rule: R) -> R:
        _RULES.update({(domain, operator): rule for operator in operators})
        return rule

    return register


def has_macs(node: ir.Node) -> bool:
    """Whether a node multiplies and accumulates, or may do so for all that is known."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return domain not in _KNOWN_DOMAINS or node.op_type in _OPAQUE.get(domain, ()) or _rule(node) is not None


def count(node: ir.Node, shapes: Shapes) -> int | None:
    """The MACs of a node without its subgraphs; None where a size, or the operator, is not known."""
    if not has_macs(node):
        return 0
    rule = _rule(node)
    if rule is None:
        return None
    try:
        return rule(Operands(node, shapes))
    except (UnknownSizeError, IndexError, TypeError, ValueError, ZeroDivisionError):
        return None  # besides unknown sizes: operands that the operator would refuse, in a model that is not valid


def _rule(node: ir.Node) -> Rule | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain == OWN and "MatMul" in node.op_type:
        return _low_bit
    return _RULES.get((domain, node.op_type))


def matmul_macs(a: Sequence[int], b: Sequence[int]) -> int:
    """MACs of `numpy.matmul` for operands of these shapes."""
    left = (1, *a) if len(a) == 1 else tuple(a)
    right = (*b, 1) if len(b) == 1 else tuple(b)
    if left[-1] != right[-2]:
        raise UnknownSizeError
    return prod(np.broadcast_shapes(left[:-2], right[:-2])) * left[-2] * left[-1] * right[-1]


def conv_macs(
    x: Sequence[int], w: Sequence[int], *, strides: Sequence[int] = (), pads: Sequence[int] = (),
    dilations: Sequence[int] = (), auto_pad: str = "NOTSET",
) -> int:  # fmt: skip
    """MACs of a convolution of x `[N, C, *sizes]` with w `[M, C/groups, *kernel]`; attributes as ONNX has them."""
    rank = len(w) - 2
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * (2 * rank)
    places = 1
    for axis in range(rank):
        size, reach = x[2 + axis], dilations[axis] * (w[2 + axis] - 1) + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            places *= -(-size // strides[axis])
        else:
            padding = pads[axis] + pads[axis + rank] if auto_pad == "NOTSET" else 0
            places *= max(0, (size + padding - reach) // strides[axis] + 1)
    return x[0] * places * prod(w)


@counts("MatMul", "MatMulInteger")
@counts("DynamicQuantizeMatMul", "GemmFastGelu", "MatMulInteger16", "MatMulIntegerToFloat", domain=MICROSOFT)
def _matmul(op: Operands) -> int:
    return matmul_macs(op.shape(0), op.shape(1))


@counts("QLinearMatMul")
def _qlinear_matmul(op: Operands) -> int:
    return matmul_macs(op.shape(0), op.shape(3))


@counts("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", domain=MICROSOFT)
def _fused_matmul(op: Operands) -> int:
    return matmul_macs(
        _arranged(op.shape(0), op.integer("transA"), op.integer("transBatchA")),
        _arranged(op.shape(1), op.integer("transB"), op.integer("transBatchB")),
    )


def _arranged(shape: tuple[int, ...], transposed: int, batch_moved: int) -> tuple[int, ...]:
    """An operand of FusedMatMul as MatMul takes it: first the batch axes back in front, then the matrix turned."""
    if len(shape) < 2:
        return shape
    if batch_moved:
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if transposed else shape


@counts("Gemm")
@counts("FusedGemm", "GemmFloat8", domain=MICROSOFT)
def _gemm(op: Operands, b: int = 1) -> int:
    rows, inner = op.shape(0)[:: -1 if op.integer("transA") else 1]
    return rows * inner * op.shape(b)[0 if op.integer("transB") else 1]


@counts("QGemm", domain=MICROSOFT)
def _qgemm(op: Operands) -> int:
    return _gemm(op, b=3)


@counts("MatMulBnb4", "MatMulNBits", domain=MICROSOFT)
def _packed_matmul(op: Operands) -> int:
    return prod(op.shape(0)[:-1]) * op.integer("K") * op.integer("N")


def _low_bit(op: Operands) -> int:
    """This project's own products, x `[..., K]` with a packed weight: `[K, N]` says N, else the output does."""
    x, weight = op.shape(0), op.shape(1)
    columns = weight[1] if len(weight) == 2 and weight[0] == x[-1] else op.output()[-1]
    return prod(x) * columns


@counts("Conv", "ConvInteger", "DeformConv")
@counts("FusedConv", domain=MICROSOFT)
def _conv(op: Operands, w: int = 1) -> int:
    return conv_macs(
        op.shape(0), op.shape(w), strides=op.integers("strides"), pads=op.integers("pads"),
        dilations=op.integers("dilations"), auto_pad=op.text("auto_pad", "NOTSET"),
    )  # fmt: skip


@counts("QLinearConv")
@counts("QLinearConv", domain=MICROSOFT)
def _qlinear_conv(op: Operands) -> int:
    if op.integer("channels_last"):
        raise UnknownSizeError
    return _conv(op, w=3)


@counts("ConvTranspose")
@counts("ConvTransposeWithDynamicPads", domain=MICROSOFT)
def _conv_transpose(op: Operands) -> int:
    """Each input element meets its channel's whole kernel; what falls outside of the output counts too."""
    return prod(op.shape(0)) * prod(op.shape(1)[1:])


@counts("GRU", "LSTM", "RNN")
@counts("DynamicQuantizeLSTM", domain=MICROSOFT)
def _recurrent(op: Operands) -> int:
    """Every step multiplies with all of W and R, in each direction."""
    steps, batch, _ = op.shape(0)
    return steps * batch * (prod(op.shape(1)) + prod(op.shape(2)))


@counts("Einsum")
def _einsum(op: Operands) -> int:
    """Two operands: the product of all sizes in the equation. What only multiplies elementwise counts none."""
    equation = op.text("equation", "").replace(" ", "")
    operands = len(op.node.inputs)
    if operands == 1:
        return 0
    terms, arrow, result = equation.partition("->")
    labels = terms.split(",")
    if operands > 2 or len(labels) != operands:
        raise UnknownSizeError  # the order of contraction is the runtime's choice
    sizes: dict[str, int] = {}
    for index, term in enumerate(labels):
        for label, size in _labelled(term, op.shape(index)):
            sizes[label] = max(size, sizes.get(label, 1)) if size else 0
    first, second = (set(term) for term in labels)
    summed = (first | second) - set(result) if arrow else {c for c in first | second if terms.count(c) > 1} - {"."}
    if not summed and (first <= second or second <= first):
        return 0
    return prod(sizes.values())


def _labelled(term: str, shape: tuple[int, ...]) -> list[tuple[str, int]]:
    """Label and size of each axis; axes of an ellipsis are counted from the last, as they are broadcast."""
    before, dots, after = term.partition("...")
    hidden = len(shape) - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        raise UnknownSizeError
    names = [*before, *(f"...{hidden - i}" for i in range(hidden)), *after]
    return list(zip(names, shape, strict=True))


@counts("Attention")
def _attention(op: Operands) -> int:
    """QK^T and PV. Operands `[batch, heads, length, size]` or `[batch, length, heads * size]`; a past lengthens."""
    q, k, v = op.shape(0), op.shape(1), op.shape(2)
    past = op.shape(4)[2] if op.has(4) else 0
    if len(q) == 4:
        return prod(q[:3]) * (k[2] + past) * (q[3] + v[3])
    heads, groups = op.integer("q_num_heads"), op.integer("kv_num_heads")
    return q[0] * q[1] * (k[1] + past) * (q[2] + heads * (v[2] // groups))


@counts("Attention", domain=MICROSOFT)
def _fused_attention(op: Operands, past: int = 4) -> int:
    """The projections of x `[batch, length, size]` by one weight `[size, q + k + v]`, QK^T and PV."""
    (batch, length, size), weight = op.shape(0), op.shape(1)
    q, _, v = op.integers("qkv_hidden_sizes") or [weight[1] // 3] * 3
    reach = length + (op.shape(past)[3] if op.has(past) else 0)
    return batch * length * (size * weight[1] + reach * (q + v))


@counts("QAttention", domain=MICROSOFT)
def _quantized_attention(op: Operands) -> int:
    return _fused_attention(op, past=8)


@counts("MultiHeadAttention", domain=MICROSOFT)
def _multi_head_attention(op: Operands) -> int:
    """QK^T and PV; query, key and value apart, or packed as `[batch, length, heads, 2 or 3, size]`."""
    q = op.shape(0)
    past = op.shape(6)[2] if op.has(6) else 0
    if len(q) == 5:
        return q[0] * q[1] * (q[1] + past) * 2 * q[2] * q[4]
    k = op.shape(1)
    length = k[2] if len(k) == 4 else k[1]
    if len(k) == 5:
        values = k[2] * k[4]
    else:
        v = op.shape(2)
        values = v[1] * v[3] if len(v) == 4 else v[2]
    return q[0] * q[1] * (length + past) * (q[2] + values)


@counts("GroupQueryAttention", domain=MICROSOFT)
def _group_query_attention(op: Operands) -> int:
    """QK^T and PV over the past, as large as its buffer, and the new tokens; without a key, q holds all three."""
    batch, length, size = op.shape(0)
    heads = op.integer("num_heads")
    if not op.has(1):
        size = size * heads // (heads + 2 * op.integer("kv_num_heads"))
    reach = length + (op.shape(3)[2] if op.has(3) else 0)
    return batch * length * reach * 2 * size
