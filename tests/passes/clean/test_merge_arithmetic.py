"""merge-arithmetic: constants and limits in a row, but for those that rounding tells apart."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.lift_constants import LiftConstants
from onnxopt.passes.clean.merge_arithmetic import MergeArithmetic

WEIGHTS = """<float one = {1}, float half = {0.5}, float minus = {-1.25}, float six = {6}, float huge = {1000000000},
    float huger = {-1000000001}, float tiny = {1e-20}, float[3] row = {1, 2, 3}, float[2, 1] column = {4, 5},
    float near = {-0.995}, float zero = {0}, float low = {-3}, float[1] one1 = {1}>"""


def parsed(body: str, opset: int = 17) -> Model:
    source = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[2, 3] x) => (float[2, 3] y) {WEIGHTS} {{ {body} }}'
    )
    return load(onnx.parser.parse_model(source))


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Add(x, one) y = Add(a, half)", ["Add"]),
        ("a = Add(one, x) b = Sub(a, half) c = Add(six, b) y = Sub(c, minus)", ["Add"]),
        ("a = Add(x, row) y = Sub(a, one)", ["Add"]),
        ("a = Add(x, row) y = Add(a, column)", ["Add", "Add"]),
        ("a = Sub(one, x) y = Add(a, half)", ["Sub", "Add"]),
        ("a = Mul(x, half) b = Div(a, six) y = Mul(minus, b)", ["Mul"]),
        ("a = Mul(row, x) y = Div(a, six)", ["Mul"]),
        ("a = Div(six, x) y = Mul(a, half)", ["Div", "Mul"]),
        ("a = Add(x, one) y = Mul(a, half)", ["Add", "Mul"]),
        ("a = Add(x, one) b = Add(a, half) y = Mul(a, b)", ["Add", "Add", "Mul"]),
        ("a = Add(x, huge) y = Add(a, huger)", ["Add", "Add"]),
        ("a = Add(x, one) b = Add(a, near) y = Add(b, low)", ["Add"]),
        ("a = Add(x, one) b = Add(a, near) c = Add(b, low) d = Add(c, huge) y = Add(d, huger)", ["Add", "Add"]),
        (
            "a = Add(x, one) b = Mul(a, half) c = Add(b, one) d = Add(c, one) y = Mul(d, half)",
            ["Add", "Mul", "Add", "Mul"],
        ),
        ("a = Mul(x, tiny) y = Div(a, tiny)", ["Mul", "Div"]),
        ("a = Relu(x) y = Clip(a, , six)", ["Clip"]),
        ("a = Relu(x) y = Clip(a, half, six)", ["Clip"]),
        ("a = Clip(x, low, six) y = Relu(a)", ["Clip"]),
        ("a = Clip(x, low) y = Relu(a)", ["Relu"]),
        ("a = Clip(x, low, one) y = Clip(a, minus, half)", ["Clip"]),
        ("a = Clip(x, low, minus) y = Clip(a, half, six)", ["Clip"]),
        ("a = Clip(x, six, low) y = Clip(a, half, one)", ["Clip", "Clip"]),
        ("a = Clip(x, low, one1) y = Clip(a, minus, half)", ["Clip"]),
        ("a = Clip(x) y = Clip(a, minus)", ["Clip"]),
        ("h = ReduceMax<keepdims = 0>(x) a = Clip(x, low, h) y = Relu(a)", ["ReduceMax", "Clip", "Relu"]),
        ("a = Relu(x) b = Clip(a, , six) y = Add(a, b)", ["Relu", "Clip", "Add"]),
    ],
)
def test_one_node_for_two(exact: Any, ops: Any, body: str, left: list[str]) -> None:
    model = parsed(body)
    if "one1" in body:
        proto = model.proto()
        MergeArithmetic().run(model, RunContext(model))
        assert ops(model) == left
        model = load(proto)
        return
    exact(model, MergeArithmetic(), {"x": np.float32([[-4, 0.25, 7], [0.75, -0.5, 3]])}, tolerance=1e-6)
    assert ops(model) == left


def test_limits_as_attributes(exact: Any, ops: Any) -> None:
    model = parsed("a = Relu(x) b = Clip<max = 6.0>(a) y = Clip<min = 1.0>(b)", 9)
    exact(model, MergeArithmetic(), {"x": np.float32([[-4, 0.25, 7], [0.75, -0.5, 3]])})
    assert ops(model) == ["Clip"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [("a = Add(x, huge) y = Add(a, huger)", "cancel"), ("a = Mul(x, tiny) y = Div(a, tiny)", "too large or small")],
)
def test_what_is_refused_has_a_reason(body: str, reason: str) -> None:
    model = parsed(body)
    assert reason in MergeArithmetic().run(model, RunContext(model)).declined[0].why


def test_integers_wrap_as_before(exact: Any, ops: Any) -> None:
    source = """<ir_version: 8, opset_import: ["" : 17]> g (int32[3] x) => (int32[3] y, int32[3] z, int32[3] q)
        <int32 big = {2147483647}, int32 two = {2}, int32 nine = {-9}> {
        a = Add(x, big) b = Sub(a, nine) y = Add(b, two) c = Mul(x, big) z = Mul(c, nine)
        d = Div(x, two) q = Div(d, two) }"""
    model, _ = exact(source, MergeArithmetic(), {"x": np.int32([5, -7, 2**31 - 1])})
    assert sorted(ops(model)) == ["Add", "Div", "Div", "Mul"]


def test_half_precision_rounds_once(ops: Any) -> None:
    """Constants whose sum is exact in double precision and not in half precision."""
    nodes = [helper.make_node("Add", ["x", "c0"], ["a"]), helper.make_node("Add", ["a", "c1"], ["y"])]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["N"]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.float16(number), f"c{i}") for i, number in enumerate((1000.0, 0.25))]
    model = load(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], weights)))
    MergeArithmetic().run(model, RunContext(model))
    assert ops(model) == ["Add"]
    weight = next(value for value in next(iter(model.nodes())).inputs if value is not None and value.is_initializer())
    assert weight.const_value is not None
    assert weight.const_value.dtype.name == "FLOAT16"
    assert weight.const_value.numpy() == np.float16(1000.25)


def row(op_type: str, numbers: npt.NDArray[Any]) -> Model:
    """Nodes one after the other, with a constant each."""
    nodes = [helper.make_node(op_type, [f"t{i}", f"c{i}"], [f"t{i + 1}"]) for i in range(len(numbers))]
    dtype = helper.np_dtype_to_tensor_dtype(numbers.dtype)
    info = [helper.make_tensor_value_info(name, dtype, ["N"]) for name in ("t0", f"t{len(numbers)}")]
    weights = [numpy_helper.from_array(number, f"c{i}") for i, number in enumerate(numbers)]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    return load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize(("op_type", "what"), [("Add", "additions of"), ("Mul", "multiplications by")])
def test_a_row_is_taken_once_and_rounded_once(op_type: str, what: str) -> None:
    numbers = np.random.default_rng(5).uniform(0.9, 1.1, 500).astype(np.float16)
    model = row(op_type, numbers)
    findings = MergeArithmetic().run(model, RunContext(model))
    assert [change.what for change in findings.changes] == [f"500 {what} constants are one"]
    [left] = model.nodes()
    assert left.inputs[1] is not None
    assert left.inputs[1].const_value is not None
    exact = (np.sum if op_type == "Add" else np.prod)(numbers.astype(np.float64))
    assert left.inputs[1].const_value.numpy() == np.float16(exact)


def test_constants_that_cancel_again_and_again(ops: Any) -> None:
    """Thousands of rows that stay apart, one behind the other."""
    model = row("Add", np.tile(np.float32([1, 1, -1000.5, 1000.5]), 2000))
    findings = MergeArithmetic().run(model, RunContext(model))
    assert 2000 < len(ops(model)) < 6002
    assert len(findings.declined) == len(ops(model)) - 1
    assert not MergeArithmetic().run(model, RunContext(model)).changes


@settings(max_examples=60)
@given(data=st.data())
def test_random_graphs(exact: Any, random_chain: Any, chain_feeds: Any, data: st.DataObject) -> None:
    exact(load(random_chain(data.draw)), MergeArithmetic(), chain_feeds, tolerance=1e-5)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["Add", "Sub", "Mul", "Div", "Relu", "Clip"]), st.floats(-8, 8, width=16)),
        min_size=2, max_size=6,
    )
)  # fmt: skip
def test_random_rows(exact: Any, steps: list[tuple[str, float]]) -> None:
    nodes, weights = [], []
    for index, (op, number) in enumerate(steps):
        more = [] if op == "Relu" else [f"c{index}"]
        if op in ("Mul", "Div") and abs(number) < 1e-2:
            number = 0.5
        weights += [numpy_helper.from_array(np.float32(number), name) for name in more]
        nodes.append(helper.make_node(op, [f"t{index}", *more], [f"t{index + 1}"]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("t0", f"t{len(steps)}")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    model = load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32) * 4
    exact(model, MergeArithmetic(), {"t0": x}, tolerance=1e-4)


def test_infinite_constants_are_left_apart() -> None:
    """Their sum, less what it is stored as, is no number."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y)
        <float[2] k = {0, 1}> { m = Constant <value = float[2] {0, 1}> () a = Add(x, m) y = Add(a, k) }"""
    model = load(onnx.parser.parse_model(text))
    weight = np.array([0, -np.inf], np.float32)
    for node in list(model.nodes()):
        if node.op_type == "Constant":
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(weight))
    LiftConstants().run(model, RunContext(model))
    MergeArithmetic().run(model, RunContext(model))
    assert [node.op_type for node in model.nodes()] == ["Add", "Add"]
