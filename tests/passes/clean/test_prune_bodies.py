"""prune-bodies: outputs, states and collected values that nobody reads; states that never change."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.prune_bodies import PruneBodies

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
X = [{"x": np.float32([[1, -2], [0.5, 3]])}, {"x": np.float32([[-1, -2], [0.5, 0], [2, 7]])}]


def graph(body: str, outputs: str = "float[n, 2] y", head: str = HEAD) -> Model:
    return load(onnx.parser.parse_model(f"{head} g (float[n, 2] x) => ({outputs}) {{ {body} }}"))


CHOICE = """s = ReduceSum<keepdims = 0>(x) zero = Constant<value_float = 0.0>() c = Less(s, zero) a = Neg(x)
    {outputs} = If(c)<
        then_branch = b1 () => (float[n, 2] p1, float[n, 2] p2, float[n, 2] p3)
            {{ q = Abs(a) p1 = Exp(q) p2 = Add(q, x) p3 = Tanh(a) }},
        else_branch = b2 () => (float[n, 2] r1, float[n, 2] r2, float[n, 2] r3)
            {{ r1 = Sigmoid(a) r2 = Mul(r1, x) r3 = Sin(x) }}>"""


@pytest.mark.parametrize(
    ("reads", "gone"),
    [
        ("y = Neg(o1)", {"Add", "Tanh", "Mul", "Sin"}),
        ("y = Neg(o2)", {"Exp", "Tanh", "Sin"}),
        ("y = Neg(o3)", {"Abs", "Exp", "Add", "Sigmoid", "Mul"}),
        ("y = Add(o1, o3)", {"Add", "Mul"}),
    ],
)
def test_outputs_of_branches(exact: Any, ops: Any, reads: str, gone: set[str]) -> None:
    body = CHOICE.format(outputs="o1, o2, o3")
    source = graph(f"{body} {reads}")
    before = set(ops(source))
    done, findings = exact(source, PruneBodies(), X)
    assert before - set(ops(done)) == gone - ({"Add"} if "y = Add" in reads else set())
    assert len(findings.changes) == 3 - sum(f"o{i}" in reads for i in (1, 2, 3))


def test_outputs_of_the_graph_keep_their_names(exact: Any) -> None:
    done, findings = exact(graph(CHOICE.format(outputs="o1, o2, y")), PruneBodies(), X)
    assert len(findings.changes) == 2
    assert [len(node.outputs) for node in done.graph if node.op_type == "If"] == [1]


def test_what_everybody_reads_stays(exact: Any) -> None:
    source = graph(CHOICE.format(outputs="o1, y, o3") + "z = Add(o1, o3)", "float[n, 2] y, float[n, 2] z")
    _, findings = exact(source, PruneBodies(), X)
    assert not findings.changed


def test_an_if_that_nobody_reads_is_left_to_others(exact: Any) -> None:
    _, findings = exact(graph(CHOICE.format(outputs="o1, o2, o3") + "y = Neg(x)"), PruneBodies(), X)
    assert not findings.changed


def loop(states: str, results: str, inner: str, outputs: str, initial: str) -> str:
    return f"""m = Constant<value_int = 3>() t = Constant<value = bool {{1}}>()
        w = Constant<value_floats = [1.0, 2.0]>()
        {outputs} = Loop(m, t, {initial})<body = step (int64 i, bool go, {states}) => (bool on, {results}) {{
            on = Identity(go) {inner} }}>"""


STATES = "float[n, 2] a, float[2] b, float[n, 2] c"


@pytest.mark.parametrize(
    ("inner", "left"),
    [
        ("a2 = Add(a, x) b2 = Neg(b) c2 = Mul(c, b)", 1),
        ("a2 = Add(a, b) b2 = Neg(b) c2 = Mul(c, b)", 2),
        ("a2 = Add(a, c) b2 = Neg(b) c2 = Mul(c, b)", 3),
        ("a2 = Add(a, x) b2 = Neg(b) c2 = Mul(a, b)", 1),
    ],
)
def test_states_that_only_feed_themselves(exact: Any, inner: str, left: int) -> None:
    body = loop(STATES, "float[n, 2] a2, float[2] b2, float[n, 2] c2", inner, "y, o2, o3", "x, w, x")
    done, _ = exact(graph(body), PruneBodies(), X)
    node = next(node for node in done.graph if node.op_type == "Loop")
    assert len(node.inputs) == 2 + left
    assert len(node.outputs) == left
    assert len(node.attributes["body"].as_graph().inputs) == 2 + left


def test_a_state_that_decides_when_to_stop_stays(exact: Any) -> None:
    body = """m = Constant<value_int = 5>() t = Constant<value = bool {1}>() zero = Constant<value_float = 0.0>()
        y, o = Loop(m, t, x, zero)<body = step (int64 i, bool go, float[n, 2] a, float b)
            => (bool on, float[n, 2] a2, float b2) {
            one = Constant<value_float = 1.0>() b2 = Add(b, one) three = Constant<value_float = 3.0>()
            on = Less(b2, three) a2 = Add(a, a) }>"""
    done, findings = exact(graph(body), PruneBodies(), X)
    assert not findings.changed
    assert len(done.graph[-1].outputs) == 2


def test_collected_values(exact: Any, ops: Any) -> None:
    results = "float[n, 2] a2, float[n, 2] e1, float[n, 2] e2, float[n, 2] e3"
    inner = "a2 = Add(a, x) e1 = Exp(a) e2 = Sin(a) e3 = Tanh(a)"
    body = loop("float[n, 2] a", results, inner, "o, o1, y, o3", "x")
    done, findings = exact(graph(body, "float[k, n, 2] y"), PruneBodies(), X)
    assert {"Exp", "Tanh"}.isdisjoint(ops(done))
    assert [change.what for change in findings.changes] == [
        f"collected output {index} removed: nobody reads it" for index in (1, 3)
    ]


@pytest.mark.parametrize("kept", ["b2 = Identity(b)", ""])
def test_states_that_never_change_are_read_from_outside(exact: Any, kept: str) -> None:
    results = f"float[n, 2] a2, float[2] {'b2' if kept else 'b'}"
    body = loop("float[n, 2] a, float[2] b", results, f"a2 = Mul(a, b) {kept}", "o, v", "x, w")
    done, findings = exact(graph(f"{body} y = Add(o, v)"), PruneBodies(), X)
    node = next(node for node in done.graph if node.op_type == "Loop")
    assert (len(node.inputs), len(node.outputs)) == (3, 1)
    assert ["never changes" in change.what for change in findings.changes] == [True]


def test_a_state_that_never_changes_may_be_an_output_of_the_graph(exact: Any, ops: Any) -> None:
    body = loop("float[n, 2] a, float[n, 2] b", "float[n, 2] a2, float[n, 2] b", "a2 = Add(a, b)", "y, z", "x, x")
    done, _ = exact(graph(body, "float[n, 2] y, float[n, 2] z"), PruneBodies(), X)
    assert ops(done).count("Identity") == 2


def test_a_state_that_is_collected_as_it_is_stays(exact: Any) -> None:
    results = "float[n, 2] a2, float[2] b, float[2] b"
    body = loop("float[n, 2] a, float[2] b", results, "a2 = Mul(a, b)", "y, v, z", "x, w")
    done = graph(body, "float[n, 2] y, float[k, 2] z")
    assert not PruneBodies().run(done, RunContext(done)).changed


def test_inside_a_nested_body(exact: Any, ops: Any) -> None:
    """The state reaches a graph within the body."""
    inner = """b2 = Identity(b) s = ReduceSum<keepdims = 0>(a) zero = Constant<value_float = 0.0>() c = Less(s, zero)
        a2, rest = If(c)<then_branch = t1 () => (float[n, 2] p, float[n, 2] u) { p = Add(a, b) u = Exp(b) },
                   else_branch = e1 () => (float[n, 2] q, float[n, 2] v) { q = Mul(a, b) v = Tanh(b) }>"""
    body = loop("float[n, 2] a, float[2] b", "float[n, 2] a2, float[2] b2", inner, "y, o", "x, w")
    done, findings = exact(graph(body), PruneBodies(), X)
    assert {"Exp", "Tanh"}.isdisjoint(ops(done))
    assert len(findings.changes) == 2


def scan(reads: str, axes: str = "") -> str:
    return f"""w = Constant<value_floats = [1.0, 2.0]>() z = Constant<value_floats = [0.0, 0.0]>()
        last, kept, own, all1, all2, all3 = Scan<num_scan_inputs = 1{axes}, body = step
            (float[2] h, float[2] k, float[2] o, float[2] e)
            => (float[2] h2, float[2] k2, float[2] o2, float[2] s1, float[2] s2, float[2] s3) {{
            h1 = Add(h, e) h2 = Mul(h1, k) k2 = Identity(k) o2 = Sub(o, e)
            s1 = Exp(e) s2 = Tanh(h) s3 = Sin(e) }}>(z, w, z, x) {reads}"""


def test_scan(exact: Any, ops: Any) -> None:
    axes = ", scan_output_axes = [0, 1, 0], scan_output_directions = [0, 1, 0]"
    done, findings = exact(graph(scan("y = Identity(all2)", axes), "float[2, n] y"), PruneBodies(), X)
    node = next(node for node in done.graph if node.op_type == "Scan")
    assert (len(node.inputs), len(node.outputs)) == (2, 2)
    assert list(node.attributes["scan_output_axes"].as_ints()) == [1]
    assert list(node.attributes["scan_output_directions"].as_ints()) == [1]
    assert {"Exp", "Sin", "Sub"}.isdisjoint(ops(done))
    assert len(findings.changes) == 4


def test_the_scan_of_old_is_left_alone(exact: Any) -> None:
    source = graph(scan("y = Identity(all2)"), "float[2, n] y", '<ir_version: 8, opset_import: ["" : 8]>')
    assert not PruneBodies().run(source, RunContext(source)).changed


@settings(max_examples=40)
@given(data=st.data())
def test_any_loop(data: st.DataObject) -> None:
    """States are made of one another at random, some are read; what is read has the same values afterwards."""
    count = data.draw(st.integers(1, 5))
    values = [f"s{i}" for i in range(count)]
    nodes = [helper.make_node("Identity", ["go"], ["on"])]
    for index in range(data.draw(st.integers(0, 8))):
        inputs = [data.draw(st.sampled_from([*values, "x", "w"])) for _ in range(2)]
        nodes.append(helper.make_node(data.draw(st.sampled_from(["Add", "Mul", "Sub"])), inputs, [f"v{index}"]))
        values.append(f"v{index}")
    results = []
    for index in range(count + data.draw(st.integers(0, 2))):
        results.append(f"r{index}")
        nodes.append(helper.make_node("Identity", [data.draw(st.sampled_from(values))], [f"r{index}"]))
    info = lambda name, dtype=1, shape=(2,): helper.make_tensor_value_info(name, dtype, shape)  # noqa: E731
    body = helper.make_graph(
        nodes, "body", [info("i", 7, []), info("go", 9, []), *(info(f"s{i}") for i in range(count))],
        [info("on", 9, []), *map(info, results)],
    )  # fmt: skip
    outputs = [f"o{index}" for index in range(len(results))]
    read = data.draw(st.lists(st.sampled_from(range(len(outputs))), min_size=1, unique=True))
    node = helper.make_node("Loop", ["m", "t", *("xw"[i % 2] for i in range(count))], outputs, "loop", body=body)
    weights = {"m": np.int64(3), "t": np.bool_(True), "w": np.float32([0.5, -1])}
    made = helper.make_graph(
        [node], "g", [info("x")],
        [info(f"o{i}", TensorProto.FLOAT, (2,) if i < count else (3, 2)) for i in read],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    source = helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    model = load(source)
    findings = PruneBodies().run(model, RunContext(model))
    onnx.checker.check_model(model.proto())
    assert not PruneBodies().run(model, RunContext(model)).changed
    assert findings.changed == (model.revision > 0)
    for before, after in zip(executed(source), executed(model.proto()), strict=True):
        np.testing.assert_array_equal(after, before)


def executed(proto: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": np.float32([3, -0.5])}))
