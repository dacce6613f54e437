"""inline-if: the branch that is taken, whatever it captures, holds and gives; loops of one trip or none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.inline_if import InlineIf

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
T, F = "t = Constant<value = bool {1}>()", "t = Constant<value = bool {0}>()"
CAPTURING = """a = Neg(x)
    y = If(t)<then_branch = b1 () => (float[n, 2] p) { a1 = Abs(a) p = Add(a1, a) },
              else_branch = b2 () => (float[n, 2] q) { a1 = Neg(a) q = Mul(a1, x) }>"""


def graph(body: str, outputs: str = "float[n, 2] y", inputs: str = "float[n, 2] x", head: str = HEAD) -> Model:
    return load(onnx.parser.parse_model(f"{head} g ({inputs}) => ({outputs}) {{ {body} }}"))


def executed(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime gives (onnx's own evaluator mixes up values of one name in graphs within graphs)."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x}))


@pytest.mark.parametrize(("condition", "left"), [(T, ["Abs", "Add"]), (F, ["Neg", "Mul"])])
def test_the_branch_that_is_taken(exact: Any, ops: Any, condition: str, left: list[str]) -> None:
    done, findings = exact(graph(f"{condition} {CAPTURING}"), InlineIf())
    assert ops(done) == ["Constant", "Neg", *left]
    assert [change.node for change in findings.changes] == ["y"]
    assert [v.name for v in done.graph[-2].outputs] == ["a1"], "names that are free are kept"


def test_a_condition_that_the_model_computes_is_told(exact: Any, ops: Any) -> None:
    source = graph(f"s = ReduceSum<keepdims = 0>(x) z = Constant<value_float = 0.0>() t = Less(s, z) {CAPTURING}")
    done, findings = exact(source, InlineIf())
    assert "If" in ops(done)
    assert ["condition t" in declined.why for declined in findings.declined] == [True]


def test_nested_branches(exact: Any, ops: Any) -> None:
    body = f"""{T} a = Neg(x)
        y, z = If(t)<
            then_branch = b1 () => (float[n, 2] p, float[n, 2] q) {{
                a1 = Abs(a) u = Identity(t)
                p = If(t)<then_branch = b3 () => (float[n, 2] r) {{ r = Mul(a1, a) }},
                          else_branch = b4 () => (float[n, 2] s) {{ s = Neg(a) }}>
                q = Exp(a1) }},
            else_branch = b2 () => (float[n, 2] p2, float[n, 2] q2) {{ p2 = Abs(x) q2 = Neg(x) }}>"""
    done, findings = exact(graph(body, "float[n, 2] y, float[n, 2] z"), InlineIf())
    assert sorted(ops(done)) == ["Abs", "Constant", "Exp", "Identity", "Mul", "Neg"]
    assert len(findings.changes) == 2


def test_an_open_if_inside_keeps_what_it_captures(exact: Any, ops: Any) -> None:
    body = f"""{T} s = ReduceSum<keepdims = 0>(x) z = Constant<value_float = 0.0>() c = Less(s, z)
        y = If(t)<
            then_branch = b1 () => (float[n, 2] p) {{
                a = Abs(x)
                p = If(c)<then_branch = b3 () => (float[n, 2] r) {{ a2 = Neg(a) r = Mul(a2, x) }},
                          else_branch = b4 () => (float[n, 2] s2) {{ s2 = Exp(a) }}> }},
            else_branch = b2 () => (float[n, 2] p2) {{ p2 = Abs(x) }}>"""
    x = np.float32([[1, -2], [0.5, 3]])
    done, _ = exact(graph(body), InlineIf(), [{"x": x}, {"x": -x}])
    assert ops(done).count("If") == 1


def test_inside_an_open_if(exact: Any, ops: Any) -> None:
    body = f"""{T} s = ReduceSum<keepdims = 0>(x) z = Constant<value_float = 0.0>() c = Less(s, z)
        y = If(c)<
            then_branch = b1 () => (float[n, 2] p) {{
                p = If(t)<then_branch = b3 () => (float[n, 2] r) {{ r = Mul(x, x) }},
                          else_branch = b4 () => (float[n, 2] s2) {{ s2 = Exp(x) }}> }},
            else_branch = b2 () => (float[n, 2] p2) {{ p2 = Abs(x) }}>"""
    x = np.float32([[1, -2], [0.5, 3]])
    done, _ = exact(graph(body), InlineIf(), [{"x": x}, {"x": -x}])
    assert ops(done).count("If") == 1
    assert "Exp" not in ops(done)


def branch(name: str, nodes: list[onnx.NodeProto], output: str, *weights: onnx.TensorProto, dtype: int = 1) -> Any:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, dtype, None)], list(weights))


def with_branches(then: Any, other: Any, dtype: int = 1, weights: Any = (), y: str = "y") -> Model:
    condition = numpy_helper.from_array(np.array(True), "t")
    nodes = [helper.make_node("If", ["t"], [y], "choice", then_branch=then, else_branch=other)]
    info = [helper.make_tensor_value_info(name, dtype, [3, 3]) for name in ("x", "y")]
    return load(helper.make_model(
        helper.make_graph(nodes, "g", info[:1], info[1:], [condition, *weights]),
        ir_version=8, opset_imports=[helper.make_opsetid("", 17)],
    ))  # fmt: skip


def neg(output: str) -> Any:
    return branch("else", [helper.make_node("Neg", ["x"], [output])], output)


def test_weights_of_the_branch_move_and_names_do_not_clash(exact: Any, ops: Any) -> None:
    inner = numpy_helper.from_array(np.eye(3, dtype=np.float32) * 2, "w")
    outer = numpy_helper.from_array(np.eye(3, dtype=np.float32) * 3, "w")
    then = branch("then", [helper.make_node("MatMul", ["x", "w"], ["m"])], "m", inner)
    source = with_branches(then, neg("e"), weights=[outer], y="mid")
    source = load(_with_more(source, [helper.make_node("MatMul", ["mid", "w"], ["y"])]))
    x = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    InlineIf().run(source, RunContext(source))
    onnx.checker.check_model(source.proto())
    np.testing.assert_allclose(executed(source.proto(), x)[0], x * 6, rtol=1e-6)
    assert ops(source) == ["MatMul", "MatMul"]


def _with_more(source: Model, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    proto = source.proto()
    proto.graph.node.extend(nodes)
    return proto


def test_a_weight_that_is_the_branchs_output(exact: Any, ops: Any) -> None:
    then = branch("then", [], "w", numpy_helper.from_array(np.eye(3, dtype=np.float32), "w"))
    done, _ = exact(with_branches(then, neg("e")), InlineIf())
    assert ops(done) == ["Identity"], "a graph output needs a node"


def test_half_precision(exact: Any, ops: Any) -> None:
    half = TensorProto.FLOAT16
    then = branch("then", [helper.make_node("Exp", ["x"], ["p"])], "p", dtype=half)
    other = branch("else", [helper.make_node("Neg", ["x"], ["q"])], "q", dtype=half)
    done, _ = exact(with_branches(then, other, half), InlineIf(), {"x": np.ones((3, 3), np.float16)})
    assert ops(done) == ["Exp"]


def test_one_value_for_two_outputs_that_are_the_graphs(ops: Any) -> None:
    """ONNX Runtime loses the second one in the If itself."""
    body = f"""{T} y, z = If(t)<then_branch = b1 () => (float[n, 2] p, float[n, 2] p) {{ p = Abs(x) }},
        else_branch = b2 () => (float[n, 2] q, float[n, 2] q) {{ q = Neg(x) }}>"""
    source = graph(body, "float[n, 2] y, float[n, 2] z")
    InlineIf().run(source, RunContext(source))
    assert sorted(ops(source)) == ["Abs", "Constant", "Identity"]
    x = np.float32([[1, -2], [0.5, 3]])
    np.testing.assert_array_equal(executed(source.proto(), x), [abs(x), abs(x)])


def test_sequences(exact: Any, ops: Any) -> None:
    body = f"""{T} s = If(t)<then_branch = b1 () => (seq(float[n, 2]) p) {{ p = SequenceConstruct(x, x) }},
        else_branch = b2 () => (seq(float[n, 2]) q) {{ q = SequenceConstruct(x) }}>
        i = Constant<value_int = 1>() y = SequenceAt(s, i)"""
    done, _ = exact(graph(body), InlineIf())
    assert "If" not in ops(done)


def test_what_callers_can_feed_is_no_constant(ops: Any) -> None:
    source = with_branches(branch("then", [helper.make_node("Abs", ["x"], ["p"])], "p"), neg("e"))
    proto = source.proto()
    proto.graph.input.append(helper.make_tensor_value_info("t", TensorProto.BOOL, []))
    fed = load(proto)
    assert not InlineIf().run(fed, RunContext(fed)).changed
    assert "If" in ops(fed)


def loop(trips: str, keep: str = T, counts: str = "") -> str:
    return f"""m = Constant<value_int = {trips}>() {keep} w = Constant<value_floats = [1.0, 2.0]>()
        y, v{counts and ", all"} = Loop(m, t, x, w)<body = step
            (int64 i, bool go, float[n, 2] state, float[2] kept) =>
            (bool on, float[n, 2] next, float[2] kept_on{counts and ", float[n, 2] each"}) {{
            on = Identity(go) f = Cast<to = 1>(i) g = Add(state, f) next = Add(g, kept) kept_on = Neg(kept)
            {counts} }}>"""


@pytest.mark.parametrize(
    ("trips", "keep", "left"),
    [("0", T, []), ("-1", T, []), ("7", F, []), ("1", T, ["Add", "Add", "Cast", "Neg"]), ("1", F, [])],
)
def test_loops_of_one_trip_or_none(exact: Any, ops: Any, trips: str, keep: str, left: list[str]) -> None:
    done, _ = exact(graph(loop(trips, keep), "float[n, 2] y, float[2] v"), InlineIf())
    assert sorted(op for op in ops(done) if op not in ("Constant", "Identity")) == left


def test_loops_of_several_trips_stay(exact: Any, ops: Any) -> None:
    done, findings = exact(graph(loop("2"), "float[n, 2] y, float[2] v"), InlineIf())
    assert "Loop" in ops(done)
    assert not findings.declined


@pytest.mark.parametrize("trips", ["0", "1"])
def test_what_a_loop_collects_keeps_it(exact: Any, ops: Any, trips: str) -> None:
    source = graph(loop(trips, counts="each = Abs(state)"), "float[n, 2] y, float[2] v, float[k, n, 2] all")
    done, findings = exact(source, InlineIf())
    assert "Loop" in ops(done)
    assert ["collects" in declined.why for declined in findings.declined] == [True]


def test_the_body_sees_the_first_iteration_in_the_rank_that_it_declares(exact: Any, ops: Any) -> None:
    body = """m = Constant<value = int64[1] {1}>() t = Constant<value = bool[1] {1}>()
        y = Loop(m, t, x)<body = step (int64[1] i, bool[1] go, float[n, 2] state) => (bool[1] on, float[m, 2] next) {
            on = Identity(go) f = Cast<to = 1>(i) one = Constant<value = int64[1] {1}>()
            two = Constant<value = int64[2] {1, 2}>() e = Reshape(f, one) g = Expand(e, two)
            next = Concat<axis = 0>(state, g) }>"""
    done, _ = exact(graph(body, "float[k, 2] y"), InlineIf())
    assert "Loop" not in ops(done)


@given(depth=st.integers(1, 6), choices=st.lists(st.booleans(), min_size=6, max_size=6), shared=st.booleans())
def test_any_nest_of_branches(depth: int, choices: list[bool], shared: bool) -> None:
    """Each level has its own condition, captures from all levels above and uses the same names."""
    made = _nested(depth, choices, shared)
    x = np.float32([[1, -2], [0.5, 3]])
    expected = executed(made, x)
    model = load(made)
    InlineIf().run(model, RunContext(model))
    assert "If" not in [node.op_type for node in model.nodes()]
    onnx.checker.check_model(model.proto())
    np.testing.assert_array_equal(executed(model.proto(), x), expected)


def _nested(depth: int, choices: list[bool], shared: bool) -> onnx.ModelProto:
    name: Callable[[str, int], str] = lambda stem, level: stem if shared and stem == "own" else f"{stem}{level}"  # noqa: E731
    inner: list[onnx.NodeProto] = [helper.make_node("Mul", ["x", "v0"], ["r"])]
    result = "r"
    for level in reversed(range(depth)):
        weight = numpy_helper.from_array(np.float32([level + 2, 1]), name("own", level))
        nodes = [helper.make_node("Mul", [f"v{level}", weight.name], [f"v{level + 1}"]), *inner]
        nodes.append(helper.make_node("Add", [result, f"v{level + 1}"], [f"s{level}"]))
        then = helper.make_graph(nodes, "then", [], [helper.make_tensor_value_info(f"s{level}", 1, None)], [weight])
        tail = [helper.make_node("Sub", [f"v{level}", "x"], ["other"])]
        other = helper.make_graph(tail, "else", [], [helper.make_tensor_value_info("other", 1, None)])
        result = f"o{level}" if level else "y"
        inner = [helper.make_node("If", [f"c{level}"], [result], then_branch=then, else_branch=other)]
    conditions = [numpy_helper.from_array(np.array(choices[level]), f"c{level}") for level in range(depth)]
    info = [helper.make_tensor_value_info(key, 1, [2, 2]) for key in ("x", "y")]
    nodes = [helper.make_node("Neg", ["x"], ["v0"]), *inner]
    return helper.make_model(
        helper.make_graph(nodes, "g", info[:1], info[1:], conditions),
        ir_version=8, opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip


def test_a_thousand_in_a_row(ops: Any) -> None:
    """Each takes the time of its own branch."""
    choice = """v{after} = If(t)<then_branch = b () => (float[n, 2] p) {{ p = Neg(v{before}) }},
        else_branch = c () => (float[n, 2] q) {{ q = Abs(v{before}) }}>"""
    row = " ".join(choice.format(before=i, after=i + 1) for i in range(1000))
    source = graph(f"{T} v0 = Abs(x) {row} y = Abs(v1000)")
    assert len(InlineIf().run(source, RunContext(source)).changes) == 1000
    assert ir.DataType.FLOAT in {v.dtype for v in source.graph.outputs}
    assert ops(source).count("Neg") == 1000
