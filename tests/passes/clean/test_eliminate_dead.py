"""eliminate-dead: all that no output depends on goes, nothing else does."""

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
from onnxopt.edit import Edit
from onnxopt.model import Model, load
from onnxopt.passes.clean.eliminate_dead import EliminateDead

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def cleaned(text: str) -> Model:
    model = load(onnx.parser.parse_model(text))
    EliminateDead().run(model, RunContext(model))
    return model


def test_dead_chains_go_with_their_weights(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[2] x) => (float[2] y)
        <float[2] w = {{1, 2}}, float[2] v = {{3, 4}}, float[2] u = {{5, 6}}>
        {{ y = Add(x, w) a = Mul(y, v) b = Neg(a) c = Add(b, a) }}"""
    model, findings = exact(text, EliminateDead())
    assert ops(model) == ["Add"]
    assert list(model.graph.initializers) == ["w"]
    assert {change.what.split()[0] for change in findings.changes} == {"Mul", "Neg", "Add", "weight"}


def test_control_flow_that_nobody_needs_frees_what_its_branches_captured(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (bool b, float[2] x) => (float[2] y) {{
        captured = Neg(x)
        z = If(b)<then_branch = t () => (float[2] p) {{ p = Relu(captured) dead = Abs(p) }},
                  else_branch = e () => (float[2] q) {{ q = Abs(captured) }}>
        y = Relu(x) }}"""
    model, _ = exact(text, EliminateDead())
    assert ops(model) == ["Relu"]


def test_dead_nodes_and_weights_of_branches(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (bool b, float[2] x) => (float[2] y) {{
        outer = Neg(x)
        y = If(b)<then_branch = t () => (float[2] p) <float[2] w = {{1, 2}}> {{ p = Relu(x) dead = Add(outer, w) }},
                  else_branch = e () => (float[2] q) {{ q = Abs(x) }}> }}"""
    feeds = [{"b": np.array(b), "x": np.float32([-1, 2])} for b in (True, False)]
    model, _ = exact(text, EliminateDead(), feeds)
    assert ops(model) == ["If", "Relu", "Abs"]
    assert not any(graph.initializers for graph in model.graphs())


def test_unused_inputs_are_part_of_the_signature(exact: Any) -> None:
    model, findings = exact(
        f"{HEAD} g (float[2] x, float[2] unused) => (float[2] y) {{ y = Relu(x) }}", EliminateDead()
    )
    assert [value.name for value in model.graph.inputs] == ["x", "unused"]
    assert not findings.changed


@pytest.mark.parametrize(("ir_version", "left"), [(3, ["x", "w"]), (8, ["x", "w", "unread"])])
def test_weights_that_are_inputs(exact: Any, ir_version: int, left: list[str]) -> None:
    """Before IR 4 the list of inputs had to have them and says nothing; later it means that callers may feed them."""
    text = f"""<ir_version: {ir_version}, opset_import: ["" : 9]>
        g (float[2] x, float[2] w = {{1, 2}}, float[2] unread = {{3, 4}}) => (float[2] y) {{ y = Add(x, w) }}"""
    model, _ = exact(text, EliminateDead())
    assert [value.name for value in model.graph.inputs] == left
    assert list(model.graph.initializers) == left[1:]


def test_outputs_that_are_weights_or_inputs_stay() -> None:
    model = cleaned(f"{HEAD} g (float[2] x) => (float[2] x, float[2] w) <float[2] w = {{1, 2}}> {{ d = Neg(w) }}")
    assert [value.name for value in model.graph.outputs] == ["x", "w"]
    assert list(model.graph.initializers) == ["w"]
    assert not list(model.nodes())


def test_optional_outputs_are_left_out(exact: Any) -> None:
    """The LSTM's first output is blank in the middle of the list, MaxPool's second is cut off."""
    text = f"""{HEAD} g (float[3, 2, 4] s, float[1, 1, 4, 4] x) => (float[1, 2, 5] c, float[1, 1, 3, 3] p)
        <float[1, 20, 4] w = {{{", ".join(["0.1"] * 80)}}}, float[1, 20, 5] r = {{{", ".join(["0.2"] * 100)}}}> {{
        y, h, c = LSTM<hidden_size = 5>(s, w, r)
        p, i = MaxPool<kernel_shape = [2, 2]>(x) }}"""
    model, findings = exact(text, EliminateDead())
    assert [[value.name for value in node.outputs] for node in model.nodes()] == [["", "", "c"], ["p"]]
    assert len(findings.changes) == 3


def test_the_number_of_outputs_that_tells_training_from_inference_stays() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]> g (float[2, 3] x) => (float[2, 3] y)
        <float[3] s = {1, 1, 1}> { y, m, v = BatchNormalization(x, s, s, s, s) }"""
    assert len(next(iter(cleaned(text).nodes())).outputs) == 3


def test_functions_and_imports_that_nobody_uses() -> None:
    model = cleaned("""<ir_version: 8, opset_import: ["" : 17, "f" : 1, "g" : 1, "com.microsoft" : 1]>
        g (float[2] x) => (float[2] y) { y = f.outer(x) }
        <opset_import: ["" : 17, "g" : 1], domain: "f"> outer (a) => (b) { b = g.inner(a) }
        <opset_import: ["" : 17], domain: "g"> inner (a) => (b) { b = Neg(a) }
        <opset_import: ["" : 17], domain: "g"> idle (a) => (b) { b = Neg(a) }""")
    assert [key[1] for key in model.ir.functions] == ["outer", "inner"]
    assert dict(model.ir.opset_imports) == {"": 17, "f": 1, "g": 1}


def test_the_default_import_stays_under_either_name() -> None:
    proto = onnx.parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Relu(x) }}")
    proto.opset_import[0].domain = "ai.onnx"
    model = load(proto)
    EliminateDead().run(model, RunContext(model))
    assert model.opset == 17


@settings(max_examples=60)
@given(data=st.data())
def test_what_is_left_is_what_outputs_need(exact: Any, random_model: Any, data: st.DataObject) -> None:
    proto = random_model(data.draw)
    made_by = {node.output[0]: node for node in proto.graph.node}
    needed, waiting = set(), [value.name for value in proto.graph.output]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += made_by[name].input if name in made_by else []
    model, _ = exact(load(proto), EliminateDead())
    assert {node.outputs[0].name for node in model.nodes()} == needed & made_by.keys()
    assert set(model.graph.initializers) == needed & {"w0", "w1"}


@pytest.mark.parametrize("wide", [False, True])
def test_twenty_thousand_nodes(wide: bool) -> None:
    """A dead chain, and as many dead readers of one value."""
    count = 20_000
    names = [f"t{i}" for i in range(count + 1)]
    nodes = [
        helper.make_node("Neg", ["t0" if wide else before], [after]) for before, after in itertools.pairwise(names)
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", "y"))
    graph = helper.make_graph([*nodes, helper.make_node("Abs", ["t0"], ["y"])], "g", [x], [y])
    model = load(helper.make_model(graph))
    start = time.process_time()
    findings = EliminateDead().run(model, RunContext(model))
    assert len(findings.changes) == count
    assert len(model.graph) == 1
    assert time.process_time() - start < 5


TRAINED = """<ir_version: 8, opset_import: ["" : 17, "f" : 1, "lone" : 1]> g (float[2] x) => (float[2] y)
    <float[2] w = {1, 2}, float[2] momentum = {0, 0}, float[2] stale = {0, 0}>
    { y = Mul(x, w) loss, unread = Dropout(y) gone = Neg(w) }
    <domain: "f", opset_import: ["" : 17]> step (a, b) => (c) { c = Sub(a, b) }
    <domain: "f", opset_import: ["" : 17]> idle (a) => (c) { c = Neg(a) }"""


def test_what_training_names_stays() -> None:
    proto = onnx.parser.parse_model(TRAINED)
    step = [helper.make_node("step", ["w", "loss"], ["w_next"], domain="f"),
            helper.make_node("Identity", ["momentum"], ["momentum_next"])]  # fmt: skip
    info = [helper.make_tensor_value_info(f"{name}_next", TensorProto.FLOAT, [2]) for name in ("w", "momentum")]
    training = proto.training_info.add(algorithm=helper.make_graph(step, "step", [], info))
    training.update_binding.add(key="w", value="w_next")
    training.update_binding.add(key="momentum", value="momentum_next")
    training.initialization_binding.add(key="stale", value="unread")
    model = load(proto)
    EliminateDead().run(model, RunContext(model))
    assert [node.op_type for node in model.nodes()] == ["Mul", "Dropout"]
    assert [value.name for value in list(model.graph)[1].outputs] == ["loss", "unread"]
    assert sorted(model.graph.initializers) == ["momentum", "stale", "w"]
    assert list(model.ir.functions) == [("f", "step", "")]
    assert sorted(model.ir.opset_imports) == ["", "f"]
    onnx.checker.check_model(model.proto())


def test_without_training_all_of_it_goes() -> None:
    model = cleaned(TRAINED)
    assert [node.op_type for node in model.nodes()] == ["Mul"]
    assert list(model.graph.initializers) == ["w"]
    assert (list(model.ir.functions), list(model.ir.opset_imports)) == ([], [""])


def test_every_change_goes_through_an_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(onnx.parser.parse_model(TRAINED))
    seen: list[bytes] = []
    apply = model.apply

    def watched(edit: Edit) -> None:
        assert not seen or seen[-1] == model.proto().SerializeToString(deterministic=True)
        apply(edit)
        seen.append(model.proto().SerializeToString(deterministic=True))

    monkeypatch.setattr(model, "apply", watched)
    findings = EliminateDead().run(model, RunContext(model))
    assert seen[-1] == model.proto().SerializeToString(deterministic=True)
    assert len(seen) == model.revision == 4
    assert len(findings.changes) == 8
    assert {change.node for change in findings.changes} == {
        "loss", "gone", "momentum", "stale", "f::step", "f::idle", "f", "lone"
    }  # fmt: skip
