"""inline-functions: bodies in place of calls, names unique, callers' tensors untouched."""

import time
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.inline_functions import InlineFunctions

HEAD = '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>'
DOUBLE = '<opset_import: ["" : 17], domain: "f"> double (a) => (b) { t = Add(a, a) b = Identity(t) }'


def parsed(text: str) -> Model:
    return load(onnx.parser.parse_model(text))


def inlined(text: str) -> tuple[Model, list[str]]:
    model = parsed(text)
    findings = InlineFunctions().run(model, RunContext(model))
    return model, [declined.why for declined in findings.declined]


def test_calls_become_bodies_with_names_of_their_own(exact: Any, ops: Any) -> None:
    text = f"{HEAD} g (float[2] x) => (float[2] y) {{ t = f.double(x) u = f.double(t) y = Relu(u) }} {DOUBLE}"
    model, findings = exact(text, InlineFunctions())
    assert ops(model) == ["Add", "Identity", "Add", "Identity", "Relu"]
    assert len(findings.changes) == 2
    assert not model.ir.functions


def test_nested_calls(exact: Any, ops: Any) -> None:
    outer = '<opset_import: ["" : 17, "f" : 1], domain: "f"> outer (a) => (c) { b = f.double(a) c = f.double(b) }'
    text = f"{HEAD} g (float[2] x) => (float[2] y) {{ y = f.outer(x) }} {DOUBLE} {outer}"
    model, _ = exact(text, InlineFunctions())
    assert ops(model) == ["Add", "Identity"] * 2


def test_attributes_given_by_default_and_left_out(exact: Any) -> None:
    function = """<opset_import: ["" : 17], domain: "f"> leak <axis: int, alpha: float = 0.5> (a) => (c) {
        b = LeakyRelu<alpha: float = @alpha>(a) c = Softmax<axis: int = @axis>(b) }"""
    calls = "p = f.leak<axis = 0>(x) q = f.leak<axis = 1, alpha = 0.25>(x) r = f.leak(x) s = Add(p, q) y = Add(s, r)"
    model, _ = exact(f"{HEAD} g (float[2, 3] x) => (float[2, 3] y) {{ {calls} }} {function}", InlineFunctions())
    leaks = [node.attributes["alpha"].as_float() for node in model.nodes() if node.op_type == "LeakyRelu"]
    assert leaks == [0.5, 0.25, 0.5]


def test_optional_inputs_that_are_left_out(exact: Any) -> None:
    function = '<opset_import: ["" : 17], domain: "f"> clip (a, low, high) => (b) { b = Clip(a, low, high) }'
    text = f"{HEAD} g (float[3] x, float h) => (float[3] y) {{ y = f.clip(x, , h) }} {function}"
    exact(text, InlineFunctions(), {"x": np.float32([-9, 0, 9]), "h": np.array(1, np.float32)})


@pytest.mark.parametrize(
    "body",
    [
        "pair (a) => (b, a) { b = Neg(a) }",
        "pair (a) => (a, b) { b = Neg(a) }",
        "pair (a) => (b, b) { b = Neg(a) }",
    ],
)
def test_outputs_that_are_inputs_or_equal_do_not_rename_the_callers_tensors(body: str) -> None:
    """onnxruntime refuses such functions, so onnx's own evaluator tells what is right, before and after."""
    text = f"""{HEAD} g (float[2] x) => (float[2] y, float[2] z) {{ y, z = f.pair(x) }}
        <opset_import: ["" : 17], domain: "f"> {body}"""
    model = parsed(text)
    x, signature = np.float32([1, -2]), model.signature
    expected = ReferenceEvaluator(model.proto()).run(None, {"x": x})
    InlineFunctions().run(model, RunContext(model))
    assert model.signature == signature
    onnx.checker.check_model(model.proto())
    np.testing.assert_array_equal(ReferenceEvaluator(model.proto()).run(None, {"x": x}), expected)


def test_node_names_stay_unique(exact: Any) -> None:
    """onnxruntime refuses two nodes of a name; that of the caller's node stays."""
    text = f"""{HEAD} g (float[2] x) => (float[2] y) {{ [a] t = f.two(x) [b] u = f.two(t) [n] y = Relu(u) }}
        <opset_import: ["" : 17], domain: "f"> two (a) => (c) {{ [n] b = Neg(a) [a] c = Exp(b) }}"""
    model, _ = exact(text, InlineFunctions())
    names = [node.name for node in model.nodes()]
    assert len(names) == len(set(names))
    assert names[-1] == "n"


def test_calls_and_bodies_with_control_flow(exact: Any) -> None:
    """Subgraphs of a body capture its inputs; a branch of the caller calls; names of both would clash."""
    function = """<opset_import: ["" : 17], domain: "f"> choose (c, a) => (d) {
        t = Neg(a)
        d = If(c)<then_branch = tb () => (p) { p = Add(t, a) }, else_branch = eb () => (q) { q = Mul(t, a) }> }"""
    text = f"""{HEAD} g (bool c, float[2] x) => (float[2] y, float[2] t) {{
        s = If(c)<then_branch = tb () => (float[2] p) {{ p = f.choose(c, x) }},
                  else_branch = eb () => (float[2] q) {{ t_1 = Abs(x) q = f.choose(c, t_1) }}>
        y = f.choose(c, s)
        t = Relu(y) }} {function}"""
    feeds = [{"c": np.array(c), "x": np.float32([-1, 2])} for c in (True, False)]
    model, _ = exact(text, InlineFunctions(), feeds)
    names = [value.name for node in model.nodes() for value in node.outputs]
    assert len(names) == len(set(names))


def test_our_own_operators_stay_calls(exact: Any, ops: Any) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "f" : 1, "ai.onnxopt" : 1]>
        g (float[2] x) => (float[2] y) {{ t = ai.onnxopt.op(x) y = f.double(t) }} {DOUBLE}
        <opset_import: ["" : 17], domain: "ai.onnxopt"> op (a) => (b) {{ b = Neg(a) }}"""
    model, _ = exact(text, InlineFunctions())
    assert ops(model) == ["op", "Add", "Identity"]
    assert [key[0] for key in model.ir.functions] == ["ai.onnxopt"]


def test_another_opset_is_fine_where_it_means_the_same(exact: Any, ops: Any) -> None:
    """Neg is of opset 13; ReduceSum changed in 13, Softmax too."""
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[2] x) => (float[2] y) { y = f.neg(x) }
        <opset_import: ["" : 14], domain: "f"> neg (a) => (b) { b = Neg(a) }"""
    model, _ = exact(text, InlineFunctions())
    assert ops(model) == ["Neg"]
    assert dict(model.ir.opset_imports)[""] == 17


def test_another_opset_is_declined_where_it_differs(ops: Any) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[2, 3] x) => (float[2, 3] y) { y = f.old(x) }
        <opset_import: ["" : 12, "f" : 1], domain: "f"> old (a) => (c) { b = Softmax(a) c = f.inner(b) }
        <opset_import: ["" : 17, "f" : 1], domain: "f"> inner (a) => (b) { b = f.core(a) }
        <opset_import: ["" : 17], domain: "f"> core (a) => (b) { b = Neg(a) }"""
    model, why = inlined(text)
    assert ops(model) == ["old"]
    assert len(model.ir.functions) == len(why) == 3
    assert any("Softmax" in reason and "12" in reason and "17" in reason for reason in why)
    assert any("f::old" in reason for reason in why), "what a function that stays calls has to stay"
    assert model.revision == 0


def test_two_functions_that_disagree_about_a_domain_the_model_lacks(ops: Any) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[2] x) => (float[2] z) { y = f.a(x) z = f.b(y) }
        <opset_import: ["" : 17, "other" : 1], domain: "f"> a (a) => (b) { b = other.Op(a) }
        <opset_import: ["" : 17, "other" : 2], domain: "f"> b (a) => (b) { b = other.Op(a) }"""
    model, why = inlined(text)
    assert ops(model) == ["Op", "b"]
    assert model.ir.opset_imports["other"] == 1
    assert len(why) == 1


def test_functions_that_call_one_another_in_a_circle_are_declined() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[2] x) => (float[2] y) { y = f.a(x) }
        <opset_import: ["" : 17, "f" : 1], domain: "f"> a (p) => (q) { q = f.b(p) }
        <opset_import: ["" : 17, "f" : 1], domain: "f"> b (p) => (q) { q = f.a(p) }"""
    model, why = inlined(text)
    assert model.revision == 0
    assert why == ["its calls lead back to it"] * 2


def test_graphs_as_attributes_are_declined() -> None:
    model = parsed(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = f.double(x) }} {DOUBLE}")
    function = next(iter(model.ir.functions.values()))
    function.attributes.add(ir.Attr("body", ir.AttributeType.GRAPH, None))
    findings = InlineFunctions().run(model, RunContext(model))
    assert [declined.node for declined in findings.declined] == ["f::double"]
    assert not findings.changed


def test_metadata_of_call_and_result_stay() -> None:
    model = parsed(f"{HEAD} g (float[2] x) => (float[2] y) {{ t = f.double(x) y = Relu(t) }} {DOUBLE}")
    call = next(iter(model.nodes()))
    call.metadata_props["layer"], call.outputs[0].metadata_props["unit"] = "3", "mV"
    InlineFunctions().run(model, RunContext(model))
    add, identity, _ = model.nodes()
    assert add.metadata_props == identity.metadata_props == {"layer": "3"}
    assert identity.outputs[0].metadata_props == {"unit": "mV"}
    assert identity.outputs[0].name == "t"


@pytest.mark.parametrize(("call", "expected"), [("y = f.two(x)", [-1, 2]), (", y = f.two(x)", [1, 2])])
def test_outputs_that_the_call_leaves_out(call: str, expected: list[float]) -> None:
    """The body goes on reading them. (onnxruntime refuses the first call, so the result is given here.)"""
    model, _ = inlined(f"""{HEAD} g (float[2] x) => (float[2] y) {{ {call} }}
        <opset_import: ["" : 17], domain: "f"> two (a) => (b, c) {{ b = Neg(a) c = Abs(b) }}""")
    onnx.checker.check_model(model.proto())
    np.testing.assert_array_equal(ReferenceEvaluator(model.proto()).run(None, {"x": np.float32([1, -2])}), [expected])


def test_attributes_handed_down_through_nested_calls(exact: Any) -> None:
    """Given, by default, by the outer function's default, and left out; inside a branch of a body as well."""
    functions = """<opset_import: ["" : 17, "f" : 1], domain: "f"> outer <axis: int, slope: float = 0.5> (a) => (d) {
            b = f.inner<alpha: float = @slope>(a) c = f.inner(b) d = Softmax<axis: int = @axis>(c) }
        <opset_import: ["" : 17], domain: "f"> inner <alpha: float = 0.125> (a) => (b) {
            t = Constant<value = bool {1}>()
            b = If(t)<then_branch = tb () => (p) { p = LeakyRelu<alpha: float = @alpha>(a) },
                      else_branch = eb () => (q) { q = Neg(a) }> }"""
    calls = "p = f.outer<axis = 0, slope = 0.25>(x) q = f.outer(x) y = Add(p, q)"
    proto = onnx.parser.parse_model(f"{HEAD} g (float[2, 3] x) => (float[2, 3] y) {{ {calls} }} {functions}")
    outer = proto.functions[0]
    del outer.attribute_proto[0]  # the text form gives each attribute a default where one has any
    outer.attribute.append("axis")
    model, _ = exact(load(proto), InlineFunctions())
    leaks = [node.attributes["alpha"].as_float() for node in model.nodes() if node.op_type == "LeakyRelu"]
    assert sorted(leaks) == [0.125, 0.125, 0.25, 0.5]
    axes = [node.attributes.get("axis") for node in model.nodes() if node.op_type == "Softmax"]
    assert sorted(axis is None for axis in axes) == [False, True]


def test_an_output_that_the_body_leaves_out_stays_left_out() -> None:
    """Dropout without its mask."""
    text = f"""{HEAD} g (float[2] x) => (float[2] y) {{ t = f.drop(x) y = f.drop(t) }}
        <opset_import: ["" : 17], domain: "f"> drop (a) => (c) {{ b, unused = Dropout(a) c = Neg(b) }}"""
    model = parsed(text)
    next(iter(model.ir.functions.values()))[0].outputs[1].name = ""
    InlineFunctions().run(model, RunContext(model))
    drops = [node for node in model.proto().graph.node if node.op_type == "Dropout"]
    assert [[name for name in drop.output[1:] if name] for drop in drops] == [[], []]


def test_what_an_operator_of_ours_calls_stays(exact: Any, ops: Any) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "f" : 1, "ai.onnxopt" : 1]>
        g (float[2] x) => (float[2] y) {{ t = ai.onnxopt.op(x) u = f.neg(t) y = f.double(u) }} {DOUBLE}
        <opset_import: ["" : 17], domain: "f"> neg (a) => (b) {{ b = Neg(a) }}
        <opset_import: ["" : 17, "f" : 1], domain: "ai.onnxopt"> op (a) => (b) {{ b = f.double(a) }}"""
    model, _ = exact(text, InlineFunctions())
    assert ops(model) == ["op", "Neg", "Add", "Identity"]
    assert {key[1] for key in model.ir.functions} == {"op", "double"}


def test_a_call_that_gives_a_graph_is_declined() -> None:
    model = parsed(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = f.double(x) }} {DOUBLE}")
    call = next(iter(model.nodes()))
    call.attributes.add(ir.AttrGraph("body", ir.Graph([], [], nodes=[])))
    findings = InlineFunctions().run(model, RunContext(model))
    assert [(declined.node, "graph" in declined.why) for declined in findings.declined] == [("f::double", True)]
    assert not findings.changed


def test_time_is_linear_in_calls() -> None:
    """4,000 calls with names that clash, half of them of a function that calls twice."""
    twice = '<opset_import: ["" : 17, "f" : 1], domain: "f"> twice (a) => (c) { b = f.double(a) c = f.double(b) }'
    model = parsed(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Relu(x) }} {DOUBLE} {twice}")
    proto = model.proto()
    del proto.graph.node[:]
    for i in range(4000):
        at, to = "x" if i == 0 else f"v{i}", "y" if i == 3999 else f"v{i + 1}"
        proto.graph.node.add(domain="f", op_type=("twice", "double")[i % 2], name=f"n{i}", input=[at], output=[to])
    model = load(proto)
    started = time.process_time()
    InlineFunctions().run(model, RunContext(model))
    assert time.process_time() - started < 10
    nodes = list(model.nodes())
    assert len(nodes) == 12000
    assert len({node.name for node in nodes}) == len({node.outputs[0].name for node in nodes}) == 12000
