"""merge-transposes: pairs cancel, also around operators on single entries and through merged axes."""

import itertools
import time
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.merge_transposes import MergeTransposes

WEIGHTS = """<float one = {2}, float[3] row = {1, 2, 3}, float[4, 1] column = {4, 5, 6, 7},
    int64[3] merged = {-1, 4, 5}, int64[4] split = {-1, 3, 5, 4}, int64[4] other = {-1, 5, 3, 4},
    int64[3] rows = {0, 12, 5}, int64[4] rest = {0, 5, 3, 4}>"""

T = "Transpose<perm = [0, 2, 1]>"
TURN = "Transpose<perm = [1, 2, 0]>"


def parsed(body: str, x: str = "N, 3, 4", rank: int = 3) -> Model:
    dims = ", ".join(f"D{axis}" for axis in range(rank))
    return load(onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{x}] x) => (float[{dims}] y) {WEIGHTS} {{ {body} }}'
    ))  # fmt: skip


def feeds(*sizes: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((n, *sizes)).astype(np.float32)} for n in (2, 5)]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"a = {T}(x) y = {T}(a)", ["Identity"]),
        (f"a = {TURN}(x) y = {TURN}(a)", ["Transpose"]),
        (f"a = {TURN}(x) b = {TURN}(a) y = {TURN}(b)", ["Identity"]),
        ("a = Transpose(x) y = Transpose(a)", ["Identity"]),
        (f"a = Transpose(x) y = {TURN}(a)", ["Transpose"]),
        (f"a = {T}(x) b = {T}(a) c = Neg(a) d = {T}(c) y = Add(b, d)", ["Neg", "Add"]),
        (f"a = {T}(x) b = Relu(a) y = {T}(b)", ["Relu"]),
        (f"a = {T}(x) b = Relu(a) c = Mul(one, b) d = Sigmoid(c) y = {T}(d)", ["Relu", "Mul", "Sigmoid"]),
        (f"a = {TURN}(x) b = Relu(a) y = {TURN}(b)", ["Transpose", "Relu"]),
        (f"a = {T}(x) b = Sub(row, a) c = Add(b, column) y = {T}(c)", ["Sub", "Add"]),
        (f"a = {T}(x) b = Mul(a, column) y = {TURN}(b)", ["Transpose", "Mul"]),
        (f"a = {T}(x) n = Neg(x) b = {T}(n) c = Add(a, b) y = {T}(c)", ["Neg", "Add"]),
        (f"a = {T}(x) c = Add(a, a) y = {T}(c)", ["Add"]),
    ],
)
def test_what_goes(exact: Any, ops: Any, body: str, left: list[str]) -> None:
    model = parsed(body)
    exact(model, MergeTransposes(), feeds(3, 4))
    assert ops(model) == left


@pytest.mark.parametrize(
    "body",
    [
        f"a = {T}(x) b = Softmax<axis = -1>(a) y = {T}(b)",
        f"a = {T}(x) b = Relu(a) c = {T}(b) y = Concat<axis = 2>(c, x) z = Neg(b)",
        f"a = {TURN}(x) b = Relu(a) c = {TURN}(b) y = MatMul(c, a)",
        f"a = {T}(x) b = Concat<axis = 2>(a, a) y = {T}(b)",
    ],
)
def test_what_stays(ops: Any, body: str) -> None:
    proto = parsed(body).proto()
    if "z =" in body:
        proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["A", "B", "C"]))
    model = load(proto)
    before = ops(model)
    assert not MergeTransposes().run(model, RunContext(model)).changed
    assert ops(model) == before


@pytest.mark.parametrize(
    ("middle", "left"),
    [
        ("a = Reshape(x, merged) b = Transpose<perm = [0, 2, 1]>(a) y = Reshape(b, split)", ["Transpose"]),
        ("a = Reshape(x, merged) b = Transpose<perm = [0, 2, 1]>(a) y = Reshape(b, other)",
         ["Reshape", "Transpose", "Reshape"]),
        ("a = Reshape(x, rows) b = Transpose<perm = [0, 2, 1]>(a) y = Reshape(b, rest)", ["Transpose"]),
        ("a = Reshape(x, merged) b = Transpose<perm = [1, 2, 0]>(a) y = Reshape(b, rest)",
         ["Reshape", "Transpose", "Reshape"]),
    ],
)  # fmt: skip
def test_merged_and_split_axes(exact: Any, ops: Any, middle: str, left: list[str]) -> None:
    model = parsed(middle, "N, 3, 4, 5", 4)
    samples = feeds(3, 4, 5) if "[1, 2, 0]" not in middle else [{"x": np.ones((4, 3, 4, 5), np.float32)}]
    exact(model, MergeTransposes(), samples)
    assert ops(model) == left


def test_constants_turn_with_what_they_meet(exact: Any) -> None:
    model = parsed(f"a = {TURN}(x) b = Mul(a, row) c = Transpose<perm = [2, 0, 1]>(b) y = Neg(c)", "3, 4, 5")
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    model, findings = exact(model, MergeTransposes(), {"x": x})
    assert [node.op_type for node in model.nodes()] == ["Mul", "Neg"]
    weight = next(iter(model.nodes())).inputs[1]
    assert weight.shape == [3, 1, 1]
    assert findings.changes


def test_work_stays_outside_of_a_loop() -> None:
    source = """<ir_version: 8, opset_import: ["" : 17]> g (float[3, 4] x) => (float[3, 4] y)
        <int64 n = {3}, bool true = {1}> {
        a = Transpose<perm = [1, 0]>(x) b = Exp(a)
        y = Loop(n, true, x)<body = l (int64 i, bool c, float[3, 4] s) => (bool d, float[3, 4] u) {
            d = Identity(c) e = Transpose<perm = [1, 0]>(b) u = Add(e, s) }> }"""
    model = load(onnx.parser.parse_model(source))
    assert not MergeTransposes().run(model, RunContext(model)).changed


@settings(max_examples=50)
@given(data=st.data())
def test_random_graphs(exact: Any, random_chain: Any, chain_feeds: Any, data: st.DataObject) -> None:
    model = load(random_chain(data.draw))
    count = len(list(model.nodes()))
    exact(model, MergeTransposes(), chain_feeds)
    assert len(list(model.nodes())) <= count


@settings(max_examples=60)
@given(
    perms=st.lists(st.permutations(range(3)), min_size=2, max_size=5),
    between=st.lists(st.sampled_from(["Relu", "Sigmoid", "Add", "Mul"]), min_size=5, max_size=5),
)
def test_random_permutations(exact: Any, perms: list[list[int]], between: list[str]) -> None:
    nodes, sizes = [], [3, 3, 3]
    for index, perm in enumerate(perms):
        nodes.append(helper.make_node("Transpose", [f"t{index}" if index else "x"], [f"p{index}"], perm=perm))
        more = [] if between[index] in ("Relu", "Sigmoid") else ["w"]
        nodes.append(helper.make_node(between[index], [f"p{index}", *more], [f"t{index + 1}"]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("x", f"t{len(perms)}")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3], [1, 2, 3])
    model = load(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], [weight]), ir_version=8,
                                   opset_imports=[helper.make_opsetid("", 17)]))  # fmt: skip
    exact(model, MergeTransposes())
    assert sum(node.op_type == "Transpose" for node in model.nodes()) <= 1


def test_a_long_chain() -> None:
    names = [f"t{i}" for i in range(10_001)]
    nodes = [helper.make_node("Transpose", [a], [b], perm=[1, 2, 0]) for a, b in itertools.pairwise(names)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2, 2]) for name in (names[0], names[-1])]
    model = load(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:])))
    start = time.process_time()
    MergeTransposes().run(model, RunContext(model))
    assert [node.attributes["perm"].value for node in model.nodes()] == [(1, 2, 0)]
    assert time.process_time() - start < 6
