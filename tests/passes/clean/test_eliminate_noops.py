"""eliminate-noops: each rule where it holds, and where it nearly does."""

import itertools
import time
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.eliminate_noops import EliminateNoops

WEIGHTS = """<float zero = {0}, float one = {1}, float[2] zeros = {0, 0}, float[1, 2] row = {0, 0},
    float nought = {-0.0},
    float[3, 2] full = {0, 0, 0, 0, 0, 0}, float[2] ones = {1, 1}, bool yes = {1}, bool no = {0}, bool[3, 2] yeses =
    {1, 1, 1, 1, 1, 1}, int64[2] i_ones = {1, 1}, int64[4] i_zeros = {0, 0, 0, 0}, int64[2] i_copy = {0, 0},
    int64[1] start = {0}, int64[1] end = {9223372036854775807}, int64[1] minus = {-2}, int64[1] two = {2},
    int64[1] axis = {1}, float[2] scales = {1, 1}, int64[1] three = {3}, float limit = {0.5}, float low = {-1},
    int64[0] none = {}, int32[2] i = {3, 4}, int32 i_zero = {0}, float[2] w = {3, 4}>"""


def text(body: str, opset: int = 17, shape: str = "N, 2") -> str:
    out = ", ".join(f"D{axis}" for axis in range(shape.count(",") + 1))
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[{shape}] x) => (float[{out}] y) {WEIGHTS} {{ {body} y = Neg(a) }}"""


def parsed(source: str) -> Model:
    return load(onnx.parser.parse_model(source))


@pytest.mark.parametrize(
    "body",
    [
        "a = Cast<to = 1>(x)", "a = CastLike(x, w)", "a = Dropout(x)", "a = Dropout(x, limit, no)",
        "a = Dropout(x, zero, yes)",
        "a = Transpose<perm = [0, 1]>(x)", "a = Add(x, zero)", "a = Add(zeros, x)", "a = Add(x, row)",
        "a = Add(x, nought)", "a = Sub(x, zero)", "a = Mul(x, one)", "a = Mul(ones, x)", "a = Div(x, ones)",
        "a = Pow(x, one)", "a = Concat<axis = 0>(x)", "a = Sum(x)", "a = Max(x)", "a = Min(x)", "a = Mean(x)",
        'a = Einsum<equation = "ij->ij">(x)', 'a = Einsum<equation = "...i -> ...i">(x)',
        "a = Pad(x, i_zeros)", "a = Slice(x, start, end)", "a = Slice(x, minus, two, axis)",
        "a = Slice(x, start, two, axis, axis)",
        "a = Expand(x, i_ones)", "a = Tile(x, i_ones)", "a = Resize(x, , scales)", "a = Split<axis = 0>(x)",
        "a = ReduceSum<noop_with_empty_axes = 1>(x)", "a = ReduceSum<noop_with_empty_axes = 1>(x, none)",
        "a = Flatten(x)", "a = Reshape(x, i_copy)", "s = Shape(x) a = Reshape(x, s)", "s = Shape(x) a = Expand(x, s)",
        "a = Where(yes, x, zeros)", "a = Where(no, row, x)", "a = Where(yeses, x, x)",
    ],
)  # fmt: skip
def test_what_goes(exact: Any, ops: Any, body: str) -> None:
    feeds = [{"x": np.float32(np.random.default_rng(0).standard_normal((n, 2)))} for n in (3, 1)]
    if "yeses" in body:
        feeds = feeds[:1]
        model = parsed(text(body, shape="3, 2"))
    else:
        model = parsed(text(body))
    exact(model, EliminateNoops(), feeds)
    assert ops(model) == ["Neg"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Cast<to = 11>(x) b = Cast<to = 1>(a) c = Neg(b)", "a = Dropout(x, limit, yes)", "a = Transpose(x)",
        "a = Add(x, one)", "a = Add(x, full)",
        "a = Sub(zero, x)", "a = Div(one, x)", "a = Pow(one, x)",
        "a = Mul(x, w)", "a = Concat<axis = 0>(x, x)", 'a = Einsum<equation = "ij->ji">(x)',
        'a = Einsum<equation = "ii->i">(x)',
        "a = Slice(x, start, axis)", "a = Slice(x, start, two)",
        "a = Slice(x, start, end, axis, two)", "a = Slice(x, minus, end)",
        "a = ReduceSum(x)", "a = ReduceSum<keepdims = 0>(x, axis)", "a = Clip(x, low)", "a = Where(yeses, x, zeros)",
        "a = Where(yes, zeros, x)", "a = GlobalAveragePool(x)", "a = Relu(x)",
        "b = Neg(x) a = Abs(b)",
    ],
)  # fmt: skip
def test_what_stays(ops: Any, body: str) -> None:
    model = parsed(text(body))
    before = ops(model)
    findings = EliminateNoops().run(model, RunContext(model))
    assert not findings.changed
    assert ops(model) == before


@pytest.mark.parametrize(
    ("opset", "body", "left"),
    [
        (6, "a = Dropout<is_test = 1>(x)", []),
        (6, "a = Dropout<is_test = 0>(x)", ["Dropout"]),
        (7, "a = Dropout(x)", []),
        (7, "a = Upsample<scales = [1.0, 1.0]>(x)", []),
        (7, "a = Upsample<scales = [1.0, 2.0]>(x)", ["Upsample"]),
        (9, "a = Upsample(x, scales)", []),
        (10, "a = Resize(x, scales)", []),
        (9, "a = Pad<pads = [0, 0, 0, 0]>(x)", []),
        (9, "a = Pad<pads = [0, 0, 1, 0]>(x)", ["Pad"]),
        (9, "a = Slice<starts = [0], ends = [9223372036854775807]>(x)", []),
        (9, "a = Slice<starts = [1], ends = [9223372036854775807]>(x)", ["Slice"]),
        (9, "a = Clip(x)", ["Clip"]),
        (6, "a = Add<broadcast = 1, axis = 0>(x, zero)", ["Add"]),
        (12, "a = Squeeze<axes = [0]>(x)", ["Squeeze"]),
        (18, "a = Split<num_outputs = 1>(x)", []),
    ],
)
def test_operators_of_other_versions(ops: Any, opset: int, body: str, left: list[str]) -> None:
    model = parsed(text(body, opset))
    EliminateNoops().run(model, RunContext(model))
    assert ops(model) == [*left, "Neg"]


@pytest.mark.parametrize(
    ("shape", "body", "left"),
    [
        ("N, 3, 1, 1", "a = GlobalAveragePool(x)", []),
        ("N, 3, 1, M", "a = GlobalAveragePool(x)", ["GlobalAveragePool"]),
        ("N, 3, 4, 4", "a = MaxPool<kernel_shape = [1, 1]>(x)", []),
        ("N, 3, 4, 4", "a = AveragePool<kernel_shape = [1, 1], strides = [2, 2]>(x)", ["AveragePool"]),
        ("N, 3, 4, 4", "a = DepthToSpace<blocksize = 1>(x)", []),
        ("N, 1, 3", "a = ReduceMean<axes = [1]>(x)", []),
        ("N, 1, 3", "a = Transpose<perm = [1, 0, 2]>(x)", ["Transpose"]),
        ("1, 1, 3", "a = Transpose<perm = [1, 0, 2]>(x)", []),
        ("N", "b = Neg(x) a = Neg(b)", []),
        ("N", "b = Abs(x) a = Abs(b)", ["Abs"]),
        ("N", "b = Relu(x) c = Relu(b) a = Abs(c)", ["Relu"]),
        ("N", "b = Floor(x) a = Round(b)", ["Floor"]),
        ("N", "b = Clip(x, limit, one) a = Relu(b)", ["Clip"]),
        ("N", "b = Clip(x, low, one) a = Relu(b)", ["Clip", "Relu"]),
        ("N", "b = Add(x, zeros) a = Abs(b)", ["Add", "Abs"]),
        ("N", "b = Add(x, zero) a = Sub(b, zero)", []),
    ],
)
def test_what_depends_on_sizes_and_on_neighbours(exact: Any, ops: Any, shape: str, body: str, left: list[str]) -> None:
    dims = [int(dim) if dim.isdigit() else 2 for dim in shape.split(", ")]
    model = parsed(text(body, shape=shape))
    exact(model, EliminateNoops(), {"x": np.float32(np.random.default_rng(0).standard_normal(dims))})
    assert ops(model) == [*left, "Neg"]


def test_integers_and_logic(exact: Any, ops: Any) -> None:
    source = f"""<ir_version: 8, opset_import: ["" : 17]> g (int32[N, 2] x, bool[N] b) => (int32[N, 2] y, bool[N] z)
        {WEIGHTS} {{ a = Add(x, i_zero) y = Mul(a, a) c = And(b, yes) d = Or(no, c) e = Xor(d, no) f = Not(e) g = Not(f)
        h = Not(g) z = Not(h) }}"""
    model, _ = exact(source, EliminateNoops())
    assert ops(model) == ["Mul", "Identity"]


def test_what_is_declared_proves_nothing(ops: Any) -> None:
    """The file says that `b` has 2 columns; it has as many as callers like."""
    source = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, M] x) => (float[K, L] y) <float[2] zeros = {0, 0},
        float[3, 2] b, float[3, 2] a> { b = Relu(x) a = Add(b, zeros) y = Neg(a) }"""
    model = load(onnx.parser.parse_model(source))
    findings = EliminateNoops().run(model, RunContext(model, sizes={"x": (3, 2)}))
    assert ops(model) == ["Relu", "Add", "Neg"]
    assert "larger shape" in findings.declined[0].why


def test_a_false_type_is_declined(ops: Any) -> None:
    model = parsed(text("a = Add(x, zero)"))
    next(iter(model.nodes())).outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)
    findings = EliminateNoops().run(model, RunContext(model))
    assert ops(model) == ["Add", "Neg"]
    assert "declared" in findings.declined[0].why


def test_outputs_that_are_read_keep_their_node(ops: Any) -> None:
    source = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y, bool[N, 2] m)
        { a, m = Dropout(x) y = Neg(a) }"""
    model = load(onnx.parser.parse_model(source))
    findings = EliminateNoops().run(model, RunContext(model))
    assert ops(model) == ["Dropout", "Neg"]
    assert "m is read" in findings.declined[0].why


def test_training_is_declined() -> None:
    model = parsed(text("a = Dropout(x, limit, yes)"))
    assert "training" in EliminateNoops().run(model, RunContext(model)).declined[0].why


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = Add(x, zero) z = Neg(x)", ["Neg", "Identity"]),
        ("a = Neg(x) y = Add(a, zero) z = Abs(a)", ["Neg", "Abs"]),
        ("a = Neg(x) y = Add(a, zero) z = Sub(a, zero)", ["Neg", "Identity"]),
        ("y = Neg(x) z = Add(y, zero)", ["Neg", "Identity"]),
        ("y = Neg(x) a = Neg(y) z = Sub(a, zero)", ["Neg", "Identity"]),
    ],
)
def test_graph_outputs_keep_names_and_nodes_of_their_own(exact: Any, ops: Any, body: str, left: list[str]) -> None:
    source = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x) => (float[N] y, float[N] z) <float zero = {{0}}> {{ {body} }}"""
    model, _ = exact(source, EliminateNoops())
    assert ops(model) == left


def test_bodies_of_branches_and_loops(exact: Any, ops: Any) -> None:
    source = """<ir_version: 8, opset_import: ["" : 17]> g (bool b, float[2] x) => (float[2] y, float[2] z)
        <float zero = {0}, int64 n = {3}, bool true = {1}> {
        outer = Neg(x)
        y = If(b)<then_branch = t () => (float[2] p) { p = Add(outer, zero) },
                  else_branch = e () => (float[2] q) { r = Add(outer, zero) s = Abs(r) q = Sub(s, zero) }>
        z = Loop(n, true, x)<body = l (int64 i, bool c, float[2] s) => (bool d, float[2] u) {
            d = Identity(c) t = Mul(s, s) u = Add(t, zero) }> }"""
    feeds = [{"b": np.array(b), "x": np.float32([-1, 2])} for b in (True, False)]
    model, _ = exact(source, EliminateNoops(), feeds)
    assert ops(model) == ["Neg", "If", "Identity", "Abs", "Loop", "Identity", "Mul"]


def test_a_state_may_change_its_shape(ops: Any) -> None:
    """What a body declares for a state is its shape at first."""
    source = """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[K] y)
        <int64 n = {3}, bool true = {1}, float[2] zeros = {0, 0}> {
        y = Loop(n, true, x)<body = l (int64 i, bool c, float[2] s) => (bool d, float[K] u) {
            d = Identity(c) t = Add(s, zeros) u = Concat<axis = 0>(t, t) }> }"""
    model = load(onnx.parser.parse_model(source))
    assert not EliminateNoops().run(model, RunContext(model)).changed


def test_weights_that_callers_may_feed_are_no_constants(exact: Any, ops: Any) -> None:
    source = """<ir_version: 8, opset_import: ["" : 9]>
        g (float[2] x, float zero = {0}) => (float[2] y) { a = Add(x, zero) y = Neg(a) }"""
    model, _ = exact(source, EliminateNoops(), {"x": np.float32([1, 2]), "zero": np.array(3, np.float32)})
    assert ops(model) == ["Add", "Neg"]


@settings(max_examples=60)
@given(data=st.data())
def test_random_graphs(exact: Any, random_chain: Any, chain_feeds: Any, data: st.DataObject) -> None:
    exact(load(random_chain(data.draw)), EliminateNoops(), chain_feeds)


@pytest.mark.parametrize("wide", [False, True])
def test_twenty_thousand_nodes(wide: bool) -> None:
    names = [f"t{i}" for i in range(20_001)]
    nodes = [
        helper.make_node("Dropout", ["t0" if wide else before], [after]) for before, after in itertools.pairwise(names)
    ]
    nodes.append(helper.make_node("Neg", [names[-1]], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", "y"))
    model = load(helper.make_model(helper.make_graph(nodes, "g", [x], [y])))
    start = time.process_time()
    EliminateNoops().run(model, RunContext(model))
    assert [node.op_type for node in model.nodes()] == ["Neg"]
    assert time.process_time() - start < 5
