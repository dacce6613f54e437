"""Shapes that operators give which do the work of many: attention, and ONNX Runtime's own."""

from onnxopt.analysis.symbols.expressions import Scalar
from onnxopt.analysis.symbols.facts import Fact, Shape
from onnxopt.analysis.symbols.functions import divided
from onnxopt.analysis.symbols.layers import convolved, matrices_multiplied, multiplied, pooled
from onnxopt.analysis.symbols.rules import MICROSOFT, Call, broadcast_shapes, rule


@rule("SimplifiedLayerNormalization", "RotaryEmbedding")
@rule("BiasAdd", "Gelu", "GroupNorm", "QuickGelu", "RotaryEmbedding", domain=MICROSOFT)
def same(call: Call) -> list[Fact]:
    """The first input's shape."""
    return [Fact(call.fact(0).dtype, call.shape(0))]


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def normalized_sum(call: Call) -> list[Fact]:
    """The first input's shape; two statistics, which nothing computes; the sum that is normalized."""
    fact = Fact(call.fact(0).dtype, call.shape(0))
    return [fact, Fact(), Fact(), fact]


@rule("SkipGroupNorm", domain=MICROSOFT)
def grouped_sum(call: Call) -> list[Fact]:
    """The first input's shape, twice: normalized, and as it is summed."""
    return [Fact(call.fact(0).dtype, call.shape(0))] * 2


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def embedded(call: Call) -> list[Fact]:
    """Rows of a table, one a token; one number a sequence; the rows before they are normalized."""
    tokens, table = call.shape(0), call.shape(2)
    if tokens is None or table is None:
        return []
    rows = Fact(call.fact(2).dtype, (*tokens, table[-1]))
    return [rows, Fact(None, tokens[:1]), rows]


@rule("BiasGelu", "FastGelu", domain=MICROSOFT)
def biased(call: Call) -> list[Fact]:
    """A tensor and a bias element by element."""
    shapes = [call.shape(index) for index in range(len(call.inputs)) if call.has(index)]
    return [Fact(call.fact(0).dtype, broadcast_shapes(call.space, shapes))]


@rule("BiasSplitGelu", domain=MICROSOFT)
def gated(call: Call) -> list[Fact]:
    """One half of the last axis times a function of the other."""
    shape = call.shape(0)
    half = None if shape is None else divided(call.space, shape[-1], 2)
    if shape is None:
        return []
    return [Fact(call.fact(0).dtype, (*shape[:-1], call.space.fresh() if half is None else half))]


@rule("FusedConv", domain=MICROSOFT)
def convolution(call: Call) -> list[Fact]:
    """A convolution; what is added to it has its shape."""
    return [Fact(call.fact(0).dtype, convolved(call, call.shape(0), call.shape(1)))]


@rule("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def convolution_of_last(call: Call) -> list[Fact]:
    """A convolution of [N, ..., C] with [M, ..., C / groups], or with [M, C / groups, ...] where that is what fits."""
    x, w = call.shape(0), call.shape(1)
    if x is None or w is None or len(x) != len(w):
        return []
    weight = w if w[1] * call.integer("group", 1) == x[-1] else (w[0], w[-1], *w[1:-1])
    return [Fact(call.fact(0).dtype, _last(convolved(call, (x[0], x[-1], *x[1:-1]), weight)))]


@rule("NhwcMaxPool", domain=MICROSOFT)
def pool_of_last(call: Call) -> list[Fact]:
    """A window's maximum at each place of [N, ..., C]."""
    x = call.shape(0)
    return [Fact(call.fact(0).dtype, _last(pooled(call, x and (x[0], x[-1], *x[1:-1]))))]


def _last(shape: Shape | None) -> Shape | None:
    return shape and (shape[0], *shape[2:], shape[1])


@rule("FusedGemm", domain=MICROSOFT)
def matrices(call: Call) -> list[Fact]:
    """A product of matrices, each transposed or not."""
    return [Fact(call.fact(0).dtype, matrices_multiplied(call, call.shape(0), call.shape(1)))]


@rule("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def product(call: Call) -> list[Fact]:
    """A product of tensors, each transposed or not."""
    shapes = []
    for index, name in enumerate("AB"):
        shape = call.shape(index)
        shapes.append(None if shape is None else tuple(shape[at] for at in transposed(call, name, len(shape))))
    return [Fact(call.fact(0).dtype, multiplied(call, *shapes))]


def transposed(call: Call, name: str, rank: int) -> list[int]:
    """The axes of an operand of FusedMatMul in the order in which they are multiplied.

    Args:
        call: the operator.
        name: A or B.
        rank: of the operand.
    """
    order = list(range(rank))
    if rank > 2 and call.integer(f"transBatch{name}", 0):
        order = [*order[1:-1], 0, order[-1]]
    if rank > 1 and call.integer(f"trans{name}", 0):
        order[-2:] = order[:-3:-1]
    return order


@rule("Attention")
def attention(call: Call) -> list[Fact]:
    """What queries [batch, (heads,) length, ...] find; keys and values with those before; scores."""
    q, k, v = (call.shape(index) for index in range(3))
    dtype = call.fact(0).dtype
    if q is None or k is None or v is None:
        return [Fact(dtype)]
    queries, keys, values = (
        _by_heads(call, shape, name) for shape, name in ((q, "q_num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads"))
    )
    if queries is None or keys is None or values is None:
        return [Fact(dtype)]
    past = call.shape(4)
    before: Scalar = 0 if not call.has(4) else past[2] if past is not None else call.space.fresh()
    total = before + keys[2]
    found = (*queries[:3], values[3])
    result = found if len(q) == 4 else (q[0], q[1], queries[1] * values[3])
    caches = [Fact(call.fact(1 + at).dtype, (*each[:2], total, each[3])) for at, each in enumerate((keys, values))]
    return [Fact(dtype, result), *caches, Fact(dtype, (*queries[:3], total))]


def _by_heads(call: Call, shape: Shape, name: str) -> Shape | None:
    """Shape as [batch, heads, length, size]."""
    if len(shape) == 4:
        return shape
    heads = call.integer(name, 0)
    size = divided(call.space, shape[2], heads) if heads else None
    return None if size is None else (shape[0], heads, shape[1], size)


@rule("Attention", "QAttention", domain=MICROSOFT)
def projected_attention(call: Call) -> list[Fact]:
    """What tokens [batch, length, width] find, whose queries, keys and values one matrix makes; keys and values."""
    x, weight = call.shape(0), call.shape(1)
    dtype = call.fact(3 if call.node.op_type == "QAttention" else 0).dtype
    if x is None or weight is None:
        return [Fact(dtype)]
    sizes = call.node.attributes.get_ints("qkv_hidden_sizes", [])
    third = divided(call.space, weight[1], 3)
    width = sizes[2] if sizes else call.space.fresh() if third is None else third
    size = divided(call.space, width, call.integer("num_heads", 1))
    lengths = call.space.fresh()
    cache = (2, x[0], call.integer("num_heads", 1), lengths, call.space.fresh() if size is None else size)
    return [Fact(dtype, (x[0], x[1], width)), Fact(dtype, cache)]


@rule("MultiHeadAttention", "DecoderMaskedMultiHeadAttention", domain=MICROSOFT)
def heads_attention(call: Call) -> list[Fact]:
    """What queries find, in values of any of the layouts; keys, values; scores."""
    q, k, v = (call.shape(index) for index in range(3))
    dtype, heads = call.fact(0).dtype, call.integer("num_heads", 1)
    packed = q if not call.has(1) else k if not call.has(2) else None
    width: Scalar | None = None
    if packed is not None and len(packed) == 5:
        width = packed[2] * packed[4]
    elif packed is not None and len(packed) == 3 and not call.has(1):
        width = divided(call.space, packed[2], 3)
    elif v is not None:
        width = v[2] if len(v) == 3 else v[1] * v[3] if len(v) == 4 else None
    if q is None or width is None:
        return [Fact(dtype)]
    size = divided(call.space, width, heads)
    lengths = call.space.fresh()
    caches = [
        Fact(dtype, (q[0], heads, lengths, each))
        for each in (call.space.fresh(), call.space.fresh() if size is None else size)
    ]
    return [Fact(dtype, (q[0], q[1], width)), *caches, Fact(dtype, (q[0], heads, q[1], lengths))]


@rule("GroupQueryAttention", domain=MICROSOFT)
def grouped_attention(call: Call) -> list[Fact]:
    """What queries find, each group of them in its own keys and values; keys, values; scores."""
    q, dtype = call.shape(0), call.fact(0).dtype
    heads, groups = call.integer("num_heads", 1), call.integer("kv_num_heads", 1)
    size = None if q is None else divided(call.space, q[2], heads if call.has(1) else heads + 2 * groups)
    if q is None or size is None:
        return [Fact(dtype)]
    length = call.space.fresh()
    cache = Fact(call.fact(3).dtype if call.has(3) else dtype, (q[0], groups, length, size))
    return [Fact(dtype, (q[0], q[1], size * heads)), cache, cache, Fact(dtype, (q[0], heads, q[1], length))]
