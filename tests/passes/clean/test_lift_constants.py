"""lift-constants: every form of Constant, everywhere, names and values kept."""

import time
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxopt.context import RunContext
from onnxopt.model import load
from onnxopt.passes.clean.lift_constants import LiftConstants

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.mark.parametrize(
    ("attribute", "declared", "expected"),
    [
        ("value = float[2] {1.5, 2}", "float[2]", np.float32([1.5, 2])),
        ("value_float = 1.5", "float", np.float32(1.5)),
        ("value_floats = [1.5, 2.0]", "float[2]", np.float32([1.5, 2])),
        ("value_int = 3", "int64", np.int64(3)),
        ("value_ints = [3, 4]", "int64[2]", np.int64([3, 4])),
        ('value_string = "ä"', "string", np.array("ä", object)),
        ('value_strings = ["a", ""]', "string[2]", np.array(["a", ""], object)),
        ("value = int64[0] {}", "int64[0]", np.int64([])),
        ("value = bool {1}", "bool", np.bool_(True)),
    ],
)
def test_every_form_becomes_a_weight(exact: Any, ops: Any, attribute: str, declared: str, expected: Any) -> None:
    text = f"{HEAD} g () => ({declared} y) {{ c = Constant<{attribute}>() y = Identity(c) }}"
    model, findings = exact(text, LiftConstants(), {})
    assert ops(model) == ["Identity"]
    assert [change.rule for change in findings.changes] == ["lift-constants"]
    weight = model.graph.initializers["c"].const_value
    assert weight.dtype == model.signature.outputs[0].dtype
    texts = [string.decode() for string in weight.string_data()] if expected.dtype == object else None
    np.testing.assert_array_equal(expected.ravel() if texts else expected, texts or weight.numpy())


def test_what_is_no_tensor_is_declined(ops: Any) -> None:
    sparse = ir.Attr("sparse_value", ir.AttributeType.SPARSE_TENSOR, object())
    constant = ir.Node("", "Constant", [], [sparse], name="sparse")
    identity = ir.Node("", "Identity", constant.outputs, name="reader")
    constant.outputs[0].name = "c"
    graph = ir.Graph([], identity.outputs, nodes=[constant, identity], opset_imports={"": 17})
    model = load(ir.Model(graph, ir_version=8))
    findings = LiftConstants().run(model, RunContext(model))
    assert not findings.changed
    assert ops(model) == ["Constant", "Identity"]
    assert [(declined.node, "sparse_value" in declined.why) for declined in findings.declined] == [("sparse", True)]


def test_a_constant_that_is_an_output_stays(exact: Any, ops: Any) -> None:
    model, findings = exact(f"{HEAD} g () => (float y) {{ y = Constant<value_float = 1.0>() }}", LiftConstants(), {})
    assert ops(model) == ["Constant"]
    assert not findings.changed
    assert not findings.declined


def test_constants_of_subgraphs_stay_in_them(exact: Any) -> None:
    text = (
        HEAD
        + """ g (bool b, float[2] x) => (float[2] y) {
        y = If(b)<then_branch = t () => (float[2] p) { c = Constant<value_float = 2.0>() p = Mul(x, c) },
                  else_branch = e () => (float[2] q) { c = Constant<value_float = 3.0>() q = Mul(x, c) }> }"""
    )
    feeds = [{"b": np.array(b), "x": np.float32([1, 2])} for b in (True, False)]
    model, _ = exact(text, LiftConstants(), feeds)
    branches = list(model.graph.subgraphs())
    assert [list(branch.initializers) for branch in branches] == [["c"], ["c"]]
    assert not model.graph.initializers


def test_metadata_and_doc_strings_of_the_value_stay() -> None:
    text = f"{HEAD} g () => (float y) {{ c = Constant<value_float = 1.0>() y = Identity(c) }}"
    model = load(onnx.parser.parse_model(text))
    value = next(iter(model.nodes())).outputs[0]
    value.metadata_props["key"], value.doc_string = "kept", "told"
    LiftConstants().run(model, RunContext(model))
    weight = model.graph.initializers["c"]
    assert (weight.metadata_props, weight.doc_string) == ({"key": "kept"}, "told")


def test_before_ir_4_weights_are_listed_as_inputs(exact: Any) -> None:
    """Such files have initializers in the main graph only, and the checker wants each in the list of inputs."""
    text = """<ir_version: 3, opset_import: ["" : 9]> g (bool b, float[2] x) => (float[2] y) {
        c = Constant<value = float[2] {1, 2}>()
        s = Add(x, c)
        y = If(b)<then_branch = t () => (float[2] p) { d = Constant<value = float {2}>() p = Mul(s, d) },
                  else_branch = e () => (float[2] q) { d = Constant<value = float {3}>() q = Mul(s, d) }> }"""
    feeds = [{"b": np.array(b), "x": np.float32([1, 2])} for b in (True, False)]
    model, _ = exact(text, LiftConstants(), feeds)
    assert model.ir.ir_version == 3
    assert len(model.graph.initializers) == 3
    assert {value.name for value in model.graph.inputs} == {"b", "x", *model.graph.initializers}


def test_twenty_thousand_constants_take_linear_time() -> None:
    count = 20_000
    nodes = []
    for i in range(count // 2):
        nodes.append(helper.make_node("Constant", [], [f"c{i}"], value_float=1.0))
        nodes.append(helper.make_node("Add", [f"t{i}", f"c{i}"], [f"t{i + 1}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", f"t{count // 2}")]
    model = load(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])))
    start = time.process_time()
    findings = LiftConstants().run(model, RunContext(model))
    assert len(findings.changes) == count // 2
    assert time.process_time() - start < 5
