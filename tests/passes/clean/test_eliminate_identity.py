"""eliminate-identity: all Identity nodes go that no graph output needs; names of outputs stay."""

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
from onnxopt.edit import Edit
from onnxopt.errors import Declined
from onnxopt.model import load
from onnxopt.passes.clean.eliminate_identity import EliminateIdentity

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Identity(x) y = Neg(a)", ["Neg"]),
        ("a = Neg(x) y = Identity(a)", ["Neg"]),
        ("a = Neg(x) b = Identity(a) c = Identity(b) y = Identity(c)", ["Neg"]),
        ("a = Identity(w) b = Identity(a) y = Mul(b, a)", ["Mul"]),
        ("y = Identity(x)", ["Identity"]),
        ("a = Identity(x) y = Identity(a)", ["Identity"]),
        ("y = Identity(w)", ["Identity"]),
    ],
)
def test_what_goes_and_what_a_graph_output_needs(exact: Any, ops: Any, body: str, left: list[str]) -> None:
    text = f"{HEAD} g (float[2] x) => (float[2] y) <float[2] w = {{3, 4}}> {{ {body} }}"
    model, _ = exact(text, EliminateIdentity())
    assert ops(model) == left


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Neg(x) y = Identity(a) z = Identity(a)", ["Neg", "Identity"]),
        ("y = Neg(x) z = Identity(y)", ["Neg", "Identity"]),
        ("a = Neg(x) y = Identity(a) z = Abs(a)", ["Neg", "Abs"]),
        ("a = Neg(x) y = Identity(a) b = Identity(y) z = Abs(b)", ["Neg", "Abs"]),
    ],
)
def test_two_outputs_never_share_a_tensor(exact: Any, ops: Any, body: str, left: list[str]) -> None:
    text = f"{HEAD} g (float[2] x) => (float[2] y, float[2] z) {{ {body} }}"
    model, findings = exact(text, EliminateIdentity())
    assert ops(model) == left
    assert len(findings.changes) == text.count("Identity") - left.count("Identity")
    assert len(set(model.graph.outputs)) == 2


def test_branches_need_a_node_for_what_comes_from_outside(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (bool b, float[2] x) => (float[2] y) {{
        outer = Neg(x)
        y = If(b)<then_branch = t () => (float[2] p) {{ p = Identity(outer) }},
                  else_branch = e () => (float[2] q) {{ r = Identity(outer) s = Abs(r) q = Identity(s) }}> }}"""
    feeds = [{"b": np.array(b), "x": np.float32([-1, 2])} for b in (True, False)]
    model, _ = exact(text, EliminateIdentity(), feeds)
    assert ops(model) == ["Neg", "If", "Identity", "Abs"]


def test_loops_need_a_node_for_what_they_only_hand_on(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[2] x) => (float[2] y) <int64 n = {{3}}, bool true = {{1}}> {{
        y = Loop(n, true, x)<body = b (int64 i, bool c, float[2] s) => (bool d, float[2] u) {{
            d = Identity(c) t = Identity(s) v = Add(t, t) u = Identity(v) }}> }}"""
    model, _ = exact(text, EliminateIdentity())
    assert ops(model) == ["Loop", "Identity", "Add"]


def test_sequences_and_strings(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[2] x, string[2] s) => (int64 n, string[2] r) {{
        a = SequenceConstruct(x, x) b = Identity(a) n = SequenceLength(b)
        t = Identity(s) r = Identity(t) }}"""
    model, _ = exact(text, EliminateIdentity(), {"x": np.float32([1, 2]), "s": np.array(["a", "b"], object)})
    assert ops(model) == ["SequenceConstruct", "SequenceLength", "Identity"]


def test_a_weight_shared_through_identity_is_stored_once(exact: Any) -> None:
    text = f"""{HEAD} g (float[2] x) => (float[2] y) <float[2] w = {{3, 4}}> {{
        tied = Identity(w) a = Mul(x, w) y = Add(a, tied) }}"""
    model, _ = exact(text, EliminateIdentity())
    assert len(model.graph.initializers["w"].uses()) == 2
    assert list(model.graph.initializers) == ["w"]


def test_a_declared_type_that_contradicts_is_declined(ops: Any) -> None:
    model = load(onnx.parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ a = Identity(x) y = Neg(a) }}"))
    identity = next(iter(model.nodes()))
    identity.outputs[0].type = load(model.proto()).ir.graph.inputs[0].type.__class__(7)
    findings = EliminateIdentity().run(model, RunContext(model))
    assert ops(model) == ["Identity", "Neg"]
    assert len(findings.declined) == 1


def test_only_the_standard_operator_is_meant(ops: Any) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[2] x) => (float[2] y) { a = mine.Identity(x) y = Neg(a) }"""
    model = load(onnx.parser.parse_model(text))
    assert not EliminateIdentity().run(model, RunContext(model)).changed


def test_known_shapes_are_handed_on() -> None:
    model = load(
        onnx.parser.parse_model(
            f"{HEAD} g (float[2] x) => (float[2] y) <float[2] b> {{ a = Neg(x) b = Identity(a) y = Neg(b) }}"
        )
    )
    EliminateIdentity().run(model, RunContext(model))
    assert next(iter(model.nodes())).outputs[0].shape == [2]


@settings(max_examples=60)
@given(data=st.data())
def test_random_graphs(exact: Any, ops: Any, random_model: Any, data: st.DataObject) -> None:
    model, _ = exact(load(random_model(data.draw)), EliminateIdentity())
    for node in model.nodes():
        assert node.op_type != "Identity" or node.outputs[0].is_graph_output()


@pytest.mark.parametrize(("wide", "backwards"), [(False, False), (False, True), (True, False)])
def test_twenty_thousand_nodes(wide: bool, backwards: bool) -> None:
    count = 20_000
    names = [f"t{i}" for i in range(count + 1)]
    nodes = [
        helper.make_node("Identity", ["t0" if wide else before], [after]) for before, after in itertools.pairwise(names)
    ]
    nodes.append(helper.make_node("Neg", [names[-1]], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", "y"))
    graph = helper.make_graph(nodes[::-1] if backwards else nodes, "g", [x], [y])
    model = load(helper.make_model(graph))
    start = time.process_time()
    EliminateIdentity().run(model, RunContext(model))
    assert [node.op_type for node in model.nodes()] == ["Neg"]
    assert time.process_time() - start < 5


def test_ten_thousand_outputs_take_linear_time() -> None:
    count = 10_000
    nodes = []
    for i in range(count):
        nodes.append(helper.make_node("Neg", ["x"], [f"t{i}"]))
        nodes.append(helper.make_node("Identity", [f"t{i}"], [f"y{i}"]))
    names = [f"y{i}" for i in range(count)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", *names)]
    model = load(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:])))
    start = time.process_time()
    EliminateIdentity().run(model, RunContext(model))
    assert [value.name for value in model.graph.outputs] == names
    assert len(model.graph) == count
    assert time.process_time() - start < 3


INSIDE = f"{HEAD} g (float[2] x) => (float[2] y) {{ a = Neg(x) b = Identity(a) y = Abs(b) }}"


def test_an_identity_that_training_names_stays() -> None:
    proto = onnx.parser.parse_model(INSIDE)
    loss = helper.make_tensor_value_info("loss", TensorProto.FLOAT, [2])
    proto.training_info.add(algorithm=helper.make_graph([helper.make_node("Neg", ["b"], ["loss"])], "step", [], [loss]))
    model = load(proto)
    findings = EliminateIdentity().run(model, RunContext(model))
    assert model.revision == 0
    assert findings.declined == [Declined("b", "eliminate-identity", "training info names its output")]


def test_shapes_are_declared_within_the_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(onnx.parser.parse_model(INSIDE))
    neg, identity, _ = model.graph
    neg.outputs[0].shape, identity.outputs[0].shape = None, ir.Shape([2])
    seen, apply = [], model.apply

    def watched(edit: Edit) -> None:
        apply(edit)
        seen.append(neg.outputs[0].shape)

    monkeypatch.setattr(model, "apply", watched)
    EliminateIdentity().run(model, RunContext(model))
    assert seen == [ir.Shape([2])]
    assert model.revision == 1
