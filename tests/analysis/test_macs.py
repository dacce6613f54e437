"""MACs against loops that count them, against shapes of real runs, and against decomposed forms."""

from itertools import product
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.analysis.macs import conv_macs, count, has_macs, matmul_macs
from onnxopt.analysis.shapes import infer
from onnxopt.model import load

MS = "com.microsoft"


def macs(op: str, *shapes: tuple[int, ...] | None, domain: str = "", types: str = "", **attributes: Any) -> int | None:
    """MACs of one node whose inputs have these shapes (None: left out); `types` has a letter an input."""
    elements = {"f": 1, "b": 3, "u": 2, "h": 10}
    inputs, names = [], []
    for index, shape in enumerate(shapes):
        names.append("" if shape is None else f"i{index}")
        if shape is not None:
            letter = types[index] if index < len(types) else "f"
            inputs.append(onnx.helper.make_tensor_value_info(f"i{index}", elements[letter], shape))
    node = onnx.helper.make_node(op, names, ["y"], domain=domain, **attributes)
    graph = onnx.helper.make_graph([node], "g", inputs, [onnx.helper.make_empty_tensor_value_info("y")])
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(MS, 1)]
    model = load(onnx.helper.make_model(graph, opset_imports=imports))
    return count(model.graph[0], infer(model))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int, dict[str, Any]]:
    """x, w, groups and attributes of a convolution that fits."""
    rank = draw(st.integers(1, 3))
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    sizes = [draw(st.integers(4, 7)) for _ in range(rank)]
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    attributes: dict[str, Any] = {"strides": [draw(st.integers(1, 3)) for _ in range(rank)]}
    attributes["auto_pad"] = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if attributes["auto_pad"] == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    if not attributes["auto_pad"].startswith("SAME"):
        attributes["dilations"] = [draw(st.integers(1, 2)) if k < 3 else 1 for k in kernel]
    x = (draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), *sizes)
    return x, (groups * per_group, x[1] // groups, *kernel), groups, attributes


def looped(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> int:
    """Walk over every place where the kernel fits into the padded input, and count what it multiplies there."""
    rank = len(w) - 2
    pads, strides = attributes.get("pads", [0] * 2 * rank), attributes["strides"]
    dilations = attributes.get("dilations", [1] * rank)
    starts: list[list[int]] = []
    for axis in range(rank):
        reach, size = (w[2 + axis] - 1) * dilations[axis], x[2 + axis]
        if attributes["auto_pad"].startswith("SAME"):
            starts.append(list(range(0, size, strides[axis])))
        else:
            end = size + pads[axis + rank]
            starts.append([s for s in range(-pads[axis], end, strides[axis]) if s + reach < end])
    places = sum(1 for _ in product(range(x[0]), *starts))
    taps = sum(1 for _ in product(range(w[0]), *(range(size) for size in w[1:])))
    return places * taps


@given(convolutions())
def test_conv_counts_every_product(case: tuple[tuple[int, ...], tuple[int, ...], int, dict[str, Any]]) -> None:
    x, w, groups, attributes = case
    assert conv_macs(x, w, **attributes) == looped(x, w, attributes)
    assert macs("Conv", x, w, group=groups, **attributes) == looped(x, w, attributes)


@given(convolutions())
def test_conv_has_as_many_places_as_onnx_infers(
    case: tuple[tuple[int, ...], tuple[int, ...], int, dict[str, Any]],
) -> None:
    x, w, groups, attributes = case
    inputs = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", x), ("w", w))]
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=groups, **attributes)
    graph = onnx.helper.make_graph([node], "g", inputs, [onnx.helper.make_empty_tensor_value_info("y")])
    output = infer(load(onnx.helper.make_model(graph))).concrete("y")
    assert output is not None
    assert conv_macs(x, w, **attributes) == prod(output) * prod(w[1:])


def test_other_forms_of_conv() -> None:
    x, w = (2, 4, 9, 9), (6, 2, 3, 3)
    expected = 2 * 6 * 7 * 7 * 2 * 9
    scale = ()
    assert macs("Conv", x, w, group=2) == expected
    assert macs("ConvInteger", x, w, types="uu", group=2) == expected
    assert macs("FusedConv", x, w, domain=MS, group=2, activation="Relu") == expected
    quantized = (x, scale, scale, w, scale, scale, scale, scale)
    assert macs("QLinearConv", *quantized, types="ufuufufu", group=2) == expected
    assert macs("QLinearConv", *quantized, types="ufuufufu", domain=MS, group=2, channels_last=1) is None


def test_conv_transpose_counts_every_product() -> None:
    x, w = (2, 4, 5, 3), (4, 3, 2, 2)
    products = sum(1 for _ in product(range(2), range(4), range(5), range(3), range(3), range(2), range(2)))
    assert macs("ConvTranspose", x, w, strides=[2, 1], group=2) == products


@given(st.lists(st.integers(1, 3), max_size=2), st.lists(st.integers(1, 3), max_size=2), *[st.integers(1, 5)] * 3)
def test_matmul_counts_as_numpy_broadcasts(a: list[int], b: list[int], m: int, k: int, n: int) -> None:
    for i in range(1, 1 + min(len(a), len(b))):
        a[-i], b[-i] = (1, b[-i]) if a[-i] != b[-i] else (a[-i], b[-i])
    left, right = (*a, m, k), (*b, k, n)
    expected = (np.ones(left) @ np.ones(right)).sum()  # each product is 1
    assert matmul_macs(left, right) == expected
    assert macs("MatMul", left, right) == expected
    assert macs("QLinearMatMul", left, (), (), right, (), (), (), (), types="ufuufufu") == expected


def test_matmul_of_vectors() -> None:
    assert macs("MatMul", (5,), (5,)) == 5
    assert macs("MatMul", (5,), (2, 5, 3)) == 30
    assert macs("MatMul", (2, 3, 5), (5,)) == 30
    assert macs("MatMul", (2, 3), (4, 5)) is None


@pytest.mark.parametrize("turned", list(product([0, 1], repeat=4)))
def test_fused_matmul_counts_what_the_runtime_computes(turned: tuple[int, int, int, int]) -> None:
    attributes: dict[str, Any] = dict(zip(("transA", "transB", "transBatchA", "transBatchB"), turned, strict=True))
    shapes = []
    for rows, columns, transposed, moved in ((2, 5, turned[0], turned[2]), (5, 7, turned[1], turned[3])):
        matrix = (columns, rows) if transposed else (rows, columns)
        shapes.append((matrix[0], 3, 4, matrix[1]) if moved else (3, 4, *matrix))
    inputs = [onnx.helper.make_tensor_value_info(f"i{k}", 1, shape) for k, shape in enumerate(shapes)]
    node = onnx.helper.make_node("FusedMatMul", ["i0", "i1"], ["y"], domain=MS, **attributes)
    output = onnx.helper.make_tensor_value_info("y", 1, None)
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(MS, 1)]
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", inputs, [output]), opset_imports=imports)
    proto.ir_version = 10
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {f"i{k}": np.ones(shape, np.float32) for k, shape in enumerate(shapes)})
    assert macs("FusedMatMul", *shapes, domain=MS, **attributes) == result.sum() == 3 * 4 * 2 * 5 * 7


def test_gemm_in_all_orientations() -> None:
    for a, b in product([0, 1], repeat=2):
        x, w = ((5, 2) if a else (2, 5)), ((7, 5) if b else (5, 7))
        assert macs("Gemm", x, w, (7,), transA=a, transB=b) == 70
        assert macs("FusedGemm", x, w, domain=MS, transA=a, transB=b, activation="Relu") == 70
    quantized = ((2, 5), (), (), (7, 5), (), ())
    assert macs("QGemm", *quantized, types="ufuufu", domain=MS, transB=1) == 70


def test_packed_matmul() -> None:
    packed = ((2, 3, 64), (10, 2, 16), (20,))
    assert macs("MatMulNBits", *packed, types="fuf", domain=MS, K=64, N=10, bits=4, block_size=32) == 2 * 3 * 64 * 10


def test_recurrent_layers_multiply_with_all_weights_each_step() -> None:
    for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        x, w, r = (7, 2, 5), (2, gates * 3, 5), (2, gates * 3, 3)
        steps = 7 * 2 * 2  # time, batch, direction
        assert macs(op, x, w, r, hidden_size=3, direction="bidirectional") == steps * gates * 3 * (5 + 3)


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("bik,bkj->bij", [(2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7),
        ("bik, bkj", [(2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7),
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 8), (2, 3, 5, 8)], 2 * 3 * 4 * 5 * 8),
        ("...ik,...kj->...ij", [(4, 2, 3, 5), (2, 5, 7)], 4 * 2 * 3 * 5 * 7),
        ("...ik,kj->...ij", [(1, 3, 5), (5, 7)], 3 * 5 * 7),
        ("i,j->ij", [(3,), (4,)], 12),
        ("bi,bi->b", [(2, 3), (2, 3)], 6),
        ("bi,bi->bi", [(2, 3), (2, 3)], 0),
        ("bi,i->bi", [(2, 3), (3,)], 0),
        ("ij->ji", [(2, 3)], 0),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], None),
        ("ij,jk->ik", [(2, 3, 4), (3, 4)], None),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]], expected: int | None) -> None:
    assert macs("Einsum", *shapes, equation=equation) == expected


def scores(batch: int, heads: int, queries: int, keys: int, size: int, value_size: int) -> int:
    """An attention's two products, written out."""
    first = matmul_macs((batch, heads, queries, size), (batch, heads, size, keys))
    return first + matmul_macs((batch, heads, queries, keys), (batch, heads, keys, value_size))


def test_standard_attention() -> None:
    assert macs("Attention", (2, 6, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)) == scores(2, 6, 5, 7, 8, 4)
    flat = ((2, 5, 48), (2, 7, 24), (2, 7, 12))
    assert macs("Attention", *flat, q_num_heads=6, kv_num_heads=3) == scores(2, 6, 5, 7, 8, 4)
    past = ((2, 6, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4), None, (2, 3, 9, 8), (2, 3, 9, 4))
    assert macs("Attention", *past) == scores(2, 6, 5, 16, 8, 4)


def test_fused_attentions() -> None:
    projections = matmul_macs((2, 5, 16), (16, 48))
    expected = projections + scores(2, 4, 5, 5, 4, 4)
    assert macs("Attention", (2, 5, 16), (16, 48), (48,), domain=MS, num_heads=4) == expected
    past = ((2, 5, 16), (16, 48), (48,), None, (2, 2, 4, 3, 4))
    assert macs("Attention", *past, domain=MS, num_heads=4) == projections + scores(2, 4, 5, 8, 4, 4)
    uneven = macs("Attention", (2, 5, 16), (16, 40), domain=MS, num_heads=4, qkv_hidden_sizes=[16, 16, 8])
    assert uneven == matmul_macs((2, 5, 16), (16, 40)) + scores(2, 4, 5, 5, 4, 2)
    quantized = ((2, 5, 16), (16, 48), (48,), (), ())
    assert macs("QAttention", *quantized, types="uufff", domain=MS, num_heads=4) == expected


def test_multi_head_and_grouped_attention() -> None:
    expected = scores(2, 4, 5, 7, 3, 3)
    op: dict[str, Any] = {"domain": MS, "num_heads": 4}
    assert macs("MultiHeadAttention", (2, 5, 12), (2, 7, 12), (2, 7, 12), **op) == expected
    assert macs("MultiHeadAttention", (2, 5, 12), (2, 4, 7, 3), (2, 4, 7, 3), **op) == expected
    assert macs("MultiHeadAttention", (2, 5, 12), (2, 7, 4, 2, 3), **op) == expected
    assert macs("MultiHeadAttention", (2, 5, 4, 3, 3), **op) == scores(2, 4, 5, 5, 3, 3)
    assert macs("MultiHeadAttention", (2, 5, 12), (2, 7, 12), (2, 7, 8), **op) == scores(2, 4, 5, 7, 3, 2)
    past = ((2, 5, 12), (2, 7, 12), (2, 7, 12), None, None, None, (2, 4, 6, 3), (2, 4, 6, 3))
    assert macs("MultiHeadAttention", *past, **op) == scores(2, 4, 5, 13, 3, 3)
    assert macs("MultiHeadAttention", (2, 5, 12), **op) is None
    op["kv_num_heads"] = 2
    assert macs("GroupQueryAttention", (2, 5, 12), (2, 5, 6), (2, 5, 6), **op) == scores(2, 4, 5, 5, 3, 3)
    assert macs("GroupQueryAttention", (2, 5, 24), **op) == scores(2, 4, 5, 5, 3, 3)
    step = ((2, 1, 12), (2, 1, 6), (2, 1, 6), (2, 2, 9, 3), (2, 2, 9, 3))
    assert macs("GroupQueryAttention", *step, **op) == scores(2, 4, 1, 10, 3, 3)


def test_own_products() -> None:
    own = "ai.onnxopt"
    assert macs("LowBitMatMul", (2, 3, 8), (8, 5), (1, 5), types="fbf", domain=own) == 2 * 3 * 8 * 5
    assert macs("LowBitMatMulPlanes", (2, 3, 8), (3, 8, 1), (1, 5), types="fuf", domain=own) is None
    assert macs("LowBitGather", (9, 8), (2,), types="bf", domain=own) == 0


def test_what_counts_none_and_what_is_not_known() -> None:
    for op in ("Add", "Softmax", "LayerNormalization", "AveragePool", "Resize", "ReduceSum", "Gather"):
        assert macs(op, (2, 3), (2, 3)) == 0
    assert macs("FastGelu", (2, 3), domain=MS) == 0
    assert macs("MoE", (2, 3), domain=MS) is None
    assert macs("Anything", (2, 3), domain="com.example") is None
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["y"], domain="ai.onnx")
    assert has_macs(load(_model([node])).graph[0])


def _model(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    inputs = [onnx.helper.make_tensor_value_info(name, 1, [2, 2]) for name in "ab"]
    graph = onnx.helper.make_graph(nodes, "g", inputs, [onnx.helper.make_empty_tensor_value_info("y")])
    return onnx.helper.make_model(graph)
