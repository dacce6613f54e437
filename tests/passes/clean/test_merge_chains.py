"""merge-chains: one node for two where shapes are proven, and nothing where they are not."""

import itertools
import time
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.merge_chains import MergeChains

WEIGHTS = """<int64[2] two = {-1, 12}, int64[2] cut = {0, -1}, int64[2] six = {-1, 6},
    int64[3] cubic = {0, 4, 3}, int64[3] other = {-1, 2, 6},
    int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i3 = {3}, int64[1] last = {-1},
    int64[1] all = {-1}, int64[1] end = {9223372036854775807}>"""


def parsed(body: str, rank: int, opset: int = 17, x: str = "float[N, 3, 4]", y: str = "float") -> Model:
    dims = ", ".join(f"D{axis}" for axis in range(rank))
    return load(onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x} x) => ({y}[{dims}] y) {WEIGHTS} {{ {body} }}'
    ))  # fmt: skip


def feeds() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((n, 3, 4)).astype(np.float32)} for n in (2, 5)]


@pytest.mark.parametrize(
    ("rank", "body", "left"),
    [
        (2, "a = Reshape(x, other) y = Reshape(a, two)", ["Reshape"]),
        (2, "a = Reshape(x, six) y = Reshape(a, cut)", ["Reshape"]),
        (2, "a = Flatten<axis = 2>(x) y = Reshape(a, two)", ["Reshape"]),
        (3, "a = Reshape(x, two) y = Reshape(a, cubic)", ["Reshape"]),
        (2, "a = Transpose<perm = [0, 2, 1]>(x) y = Reshape(a, two)", ["Transpose", "Reshape"]),
        (2, "a = Flatten(x) b = Unsqueeze(a, i1) c = Squeeze(b, i1) y = Flatten(c)", ["Reshape"]),
        (3, "a = Unsqueeze(x, i0) y = Squeeze(a, i0)", ["Identity"]),
        (5, "a = Unsqueeze(x, i1) y = Unsqueeze(a, i0)", ["Unsqueeze"]),
        (5, "a = Unsqueeze(x, i0) y = Unsqueeze(a, i0)", ["Unsqueeze"]),
        (3, "a = Unsqueeze(x, i1) b = Transpose<perm = [1, 0, 2, 3]>(a) c = Squeeze(b, i0) y = Neg(c)", ["Neg"]),
        (4, "a = Unsqueeze(x, i1) b = Transpose<perm = [1, 0, 3, 2]>(a) y = Neg(b)", ["Unsqueeze", "Transpose", "Neg"]),
        (3, "a = Slice(x, i1, i3, i1) y = Slice(a, i0, i2, i2)", ["Slice"]),
        (3, "a = Slice(x, i1, i3, i1) y = Slice(a, i0, i2, last)", ["Slice"]),
        (3, "a = Slice(x, i1, i3, i1) y = Slice(a, i0, i1, i1)", ["Slice", "Slice"]),
        (3, "a = Slice(x, i1, i3, i1) b = Slice(a, i0, i2, i2) c = Slice(a, i2, end, i2) y = Add(b, c)",
         ["Slice", "Slice", "Add"]),
        (3, "a = Slice(x, i1, i3, i1) b = Slice(a, i0, i2, i2) c = Neg(a) d = Slice(c, i2, end, i2) y = Add(b, d)",
         ["Slice", "Slice", "Neg", "Slice", "Add"]),
        (3, "a = Concat<axis = 1>(x, x) b = Neg(x) y = Concat<axis = 1>(b, a, x)", ["Neg", "Concat"]),
        (3, "a = Concat<axis = 1>(x, x) y = Concat<axis = 1>(a, a)", ["Concat", "Concat"]),
        (3, "a = Concat<axis = 2>(x, x) y = Concat<axis = 1>(a, a)", ["Concat", "Concat"]),
        (3, "a, b, c = Split<axis = 1>(x) d = Concat<axis = 1>(a, b, c) y = Neg(d)", ["Neg"]),
        (3, "a, b, c = Split<axis = 1>(x) d = Concat<axis = 1>(a, c, b) y = Neg(d)", ["Split", "Concat", "Neg"]),
        (3, "a = Cast<to = 11>(x) y = Cast<to = 1>(a)", ["Identity"]),
        (3, "a = Cast<to = 10>(x) y = Cast<to = 1>(a)", ["Cast", "Cast"]),
        (3, "a = Cast<to = 11>(x) b = Cast<to = 10>(a) y = Cast<to = 1>(b)", ["Cast", "Cast"]),
        (3, "s = Shape(x) a = Reshape(x, s) y = Neg(a)", ["Reshape", "Neg"]),
        (2, "s = Shape(x) n = Gather(s, i0) t = Concat<axis = 0>(n, all) y = Reshape(x, t)", ["Reshape"]),
    ],
)  # fmt: skip
def test_one_node_for_two(exact: Any, ops: Any, rank: int, body: str, left: list[str]) -> None:
    model = parsed(body, rank)
    exact(model, MergeChains(), feeds())
    assert [op for op in ops(model) if op not in ("Shape", "Gather")] == left


@pytest.mark.parametrize(
    ("rank", "body", "left"),
    [
        (3, "a = Unsqueeze<axes = [0]>(x) y = Squeeze<axes = [0]>(a)", ["Identity"]),
        (5, "a = Unsqueeze<axes = [1]>(x) y = Unsqueeze<axes = [0, 2]>(a)", ["Unsqueeze"]),
    ],
)
def test_axes_as_attributes(exact: Any, ops: Any, rank: int, body: str, left: list[str]) -> None:
    model = parsed(body, rank, 11)
    exact(model, MergeChains(), feeds())
    assert ops(model)[: len(left)] == left


def test_slices_as_attributes(exact: Any, ops: Any) -> None:
    slices = "a = Slice<starts = [1], ends = [3], axes = [1]>(x) y = Slice<starts = [1], ends = [9], axes = [2]>(a)"
    model = parsed(slices, 3, 9)
    exact(model, MergeChains(), feeds())
    assert ops(model) == ["Slice"]


@pytest.mark.parametrize(
    ("first", "left"),
    [
        ("Unsqueeze(x, i1) y = Unsqueeze(a, i0)", 1),
        ("Unsqueeze(x, i1) y = Squeeze(a, i1)", 1),
        ("Squeeze(x, i1) y = Squeeze(a, i1)", 1),
        ("Squeeze(x, i1) y = Unsqueeze(a, i1)", 2),
        ("Unsqueeze(x, last) y = Squeeze(a, last)", 2),
    ],
)
def test_shapes_of_which_nothing_is_known(ops: Any, first: str, left: int) -> None:
    """Only what holds for any rank."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[M] y) {WEIGHTS} {{ a = {first} }}'
    )
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.ClearField("shape")
    model = load(proto)
    MergeChains().run(model, RunContext(model))
    assert len(ops(model)) == left


def test_the_first_shape_stays_where_others_read_it(exact: Any, ops: Any) -> None:
    model = parsed("a = Reshape(x, other) b = Reshape(a, two) c = Neg(a) d = Reshape(c, two) y = Add(b, d)", 2)
    exact(model, MergeChains(), feeds())
    assert ops(model).count("Reshape") == 3


@pytest.mark.parametrize(
    ("types", "merged"),
    [
        ((TensorProto.INT8, TensorProto.INT32, TensorProto.FLOAT), True),
        ((TensorProto.INT8, TensorProto.FLOAT16, TensorProto.FLOAT), True),
        ((TensorProto.INT32, TensorProto.FLOAT, TensorProto.DOUBLE), False),
        ((TensorProto.INT32, TensorProto.INT8, TensorProto.INT64), False),
        ((TensorProto.UINT8, TensorProto.INT8, TensorProto.INT64), False),
        ((TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT), True),
        ((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT), False),
        ((TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT), False),
        ((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.STRING), False),
        ((TensorProto.INT64, TensorProto.DOUBLE, TensorProto.FLOAT), False),
    ],
)
def test_casts_that_lose_nothing(ops: Any, types: tuple[int, int, int], merged: bool) -> None:
    first, middle, last = types
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=middle),
        helper.make_node("Cast", ["a"], ["y"], to=last),
    ]
    x, y = (helper.make_tensor_value_info(name, dtype, ["N"]) for name, dtype in (("x", first), ("y", last)))
    model = load(helper.make_model(helper.make_graph(nodes, "g", [x], [y])))
    MergeChains().run(model, RunContext(model))
    assert len(ops(model)) == (1 if merged else 2)


def test_dynamic_axes_stay_dynamic(exact: Any) -> None:
    """The sizes of a sample are no constants."""
    model = parsed("s = Shape(x) a = Flatten(x) y = Reshape(a, s)", 3)
    context = RunContext(model, sizes={"x": (2, 3, 4)})
    MergeChains().run(model, context)
    for sizes in (2, 5):
        assert exact(load(model.proto()), MergeChains(), {"x": np.ones((sizes, 3, 4), np.float32)})


def test_nothing_moves_into_a_loop(ops: Any) -> None:
    source = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, M] y)
        <int64 n = {3}, bool true = {1}> {
        a = Concat<axis = 1>(x, x)
        y = Loop(n, true, x)<body = l (int64 i, bool c, float[N, K] s) => (bool d, float[N, L] u) {
            d = Identity(c) u = Concat<axis = 1>(a, s) }> }"""
    model = load(onnx.parser.parse_model(source))
    assert not MergeChains().run(model, RunContext(model)).changed


@settings(max_examples=50)
@given(data=st.data())
def test_random_graphs(exact: Any, random_chain: Any, chain_feeds: Any, data: st.DataObject) -> None:
    model = load(random_chain(data.draw))
    count = len(list(model.nodes()))
    exact(model, MergeChains(), chain_feeds)
    assert len(list(model.nodes())) <= count


@pytest.mark.parametrize("op", ["Reshape", "Concat"])
def test_long_chains_take_few_edits(op: str) -> None:
    count = 10_000 if op == "Reshape" else 2_000
    names = [f"t{i}" for i in range(count + 1)]
    shapes = [numpy_helper.from_array(np.int64(shape), f"s{i}") for i, shape in enumerate(([-1, 2], [-1, 3], [-1, 6]))]
    nodes = [
        helper.make_node("Reshape", [before, f"s{i % 3}"], [after])
        if op == "Reshape"
        else helper.make_node("Concat", [before, "t0"], [after], axis=0)
        for i, (before, after) in enumerate(itertools.pairwise(names))
    ]
    x = helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["N", 6])
    y = helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["M", None])
    model = load(helper.make_model(helper.make_graph(nodes, "g", [x], [y], shapes)))
    start = time.process_time()
    MergeChains().run(model, RunContext(model))
    assert len(list(model.nodes())) == 1
    assert model.revision < 18
    assert time.process_time() - start < 6
