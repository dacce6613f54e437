"""eliminate-common: what is computed twice is computed once, and nothing else is."""

import time
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxopt.context import RunContext
from onnxopt.model import load
from onnxopt.passes.clean.eliminate_common import EliminateCommon

HEAD = '<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>'


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Neg(x) b = Neg(x) y = Add(a, b) z = Abs(a)", ["Neg", "Add", "Abs"]),
        ("a = Add(x, w) b = Add(w, x) y = Sub(a, b) z = Abs(b)", ["Add", "Sub", "Abs"]),
        ("a = Sub(x, w) b = Sub(w, x) y = Sub(a, b) z = Abs(b)", ["Sub", "Sub", "Sub", "Abs"]),
        ("a = Add(x, w) b = Add(x, v) y = Sub(a, b) z = Abs(b)", ["Add", "Sub", "Abs"]),
        ("a = Add(x, w) b = Add(x, u) y = Sub(a, b) z = Abs(b)", ["Add", "Add", "Sub", "Abs"]),
        ("a = Neg(x) b = Neg(x) c = Abs(a) d = Abs(b) e = Exp(c) f = Exp(d) y = Add(e, f) z = Neg(y)",
         ["Neg", "Abs", "Exp", "Add", "Neg"]),
        ("a = LeakyRelu(x) b = LeakyRelu<alpha = 0.01>(x) y = Add(a, b) z = Neg(y)", ["LeakyRelu", "Add", "Neg"]),
        ("a = LeakyRelu(x) b = LeakyRelu<alpha = 0.02>(x) y = Add(a, b) z = Neg(y)",
         ["LeakyRelu", "LeakyRelu", "Add", "Neg"]),
        ("a = Clip(x) b = Clip(x, , ) y = Add(a, b) z = Neg(y)", ["Clip", "Add", "Neg"]),
        ("a, i = TopK(x, k) b, j = TopK(x, k) y = Add(a, b) f = Cast<to = 1>(i) g = Cast<to = 1>(j) z = Add(f, g)",
         ["TopK", "Add", "Cast", "Add"]),
        ("a = RandomUniformLike<seed = 1.0>(x) b = RandomUniformLike<seed = 1.0>(x) y = Sub(a, a) z = Sub(b, b)",
         ["RandomUniformLike", "RandomUniformLike", "Sub", "Sub"]),
        ("y = Neg(x) z = Neg(x)", ["Neg", "Neg"]),
        ("a = Neg(x) y = Neg(x) z = Abs(a)", ["Neg", "Abs"]),
        ("y = Neg(x) a = Neg(x) z = Abs(a)", ["Neg", "Abs"]),
        ("a = Neg(x) y = Neg(x) z = Neg(x)", ["Neg", "Neg"]),
        ("a = Exp(x) b = Exp(x) y = Neg(a) z = Neg(b)", ["Exp", "Neg", "Neg"]),
        ("y = Neg(x) b = Neg(x) c = Abs(y) d = Abs(b) z = Add(c, d)", ["Neg", "Abs", "Add"]),
        ("q = QuantizeLinear(x, s) p = QuantizeLinear(x, s) y = DequantizeLinear(q, s) z = DequantizeLinear(p, s)",
         ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear"]),
        ("a = DequantizeLinear(q8, s) b = DequantizeLinear(q8, s) y = Mul(x, a) z = Sub(x, b)",
         ["DequantizeLinear", "DequantizeLinear", "Mul", "Sub"]),
    ],
)  # fmt: skip
def test_what_is_the_same(exact: Any, ops: Any, body: str, left: list[str]) -> None:
    source = f"""{HEAD} g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {{3, 4}}, float[2] v = {{3, 4}},
        float[2] u = {{3, 5}}, int64[1] k = {{2}}, float s = {{0.5}}, uint8[2] q8 = {{1, 2}}> {{ {body} }}"""
    model, _ = exact(source, EliminateCommon())
    assert ops(model) == left


def test_foreign_operators_may_give_what_they_like(ops: Any) -> None:
    source = f"{HEAD} g (float[2] x) => (float[2] y) {{ a = mine.Roll(x) b = mine.Roll(x) y = Add(a, b) }}"
    model = load(onnx.parser.parse_model(source))
    assert not EliminateCommon().run(model, RunContext(model)).changed


def test_attributes_are_compared_by_content(ops: Any) -> None:
    tensors = [helper.make_tensor("t", TensorProto.FLOAT, [1], [number]) for number in (1, 1, 2)]
    nodes = [helper.make_node("ConstantOfShape", ["x"], [f"a{i}"], value=tensor) for i, tensor in enumerate(tensors)]
    nodes.append(helper.make_node("Sum", ["a0", "a1", "a2"], ["y"]))
    info = [
        helper.make_tensor_value_info("x", TensorProto.INT64, [2]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B"]),
    ]
    model = load(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:])))
    EliminateCommon().run(model, RunContext(model))
    assert ops(model) == ["ConstantOfShape", "ConstantOfShape", "Sum"]


def test_bodies_use_what_lies_outside_and_not_the_other_way_round(exact: Any, ops: Any) -> None:
    source = f"""{HEAD} g (bool b, float[2] x) => (float[2] y, float[2] z) {{
        outer = Exp(x)
        y = If(b)<then_branch = t () => (float[2] p) {{ i = Exp(x) j = Neg(x) p = Add(i, j) }},
                  else_branch = e () => (float[2] q) {{ i2 = Exp(x) j2 = Neg(x) q = Sub(i2, j2) }}>
        inner = Neg(x)
        z = Add(inner, outer) }}"""
    feeds = [{"b": np.array(b), "x": np.float32([-1, 2])} for b in (True, False)]
    model, _ = exact(source, EliminateCommon(), feeds)
    assert sorted(ops(model)) == ["Add", "Add", "Exp", "If", "Neg", "Neg", "Neg", "Sub"]


def test_outputs_of_bodies_need_a_node_of_their_own(exact: Any, ops: Any) -> None:
    source = f"""{HEAD} g (bool b, float[2] x) => (float[2] y) {{
        outer = Exp(x)
        w = If(b)<then_branch = t () => (float[2] p) {{ p = Exp(x) }},
                  else_branch = e () => (float[2] q) {{ q = Neg(x) }}>
        y = Add(outer, w) }}"""
    feeds = [{"b": np.array(b), "x": np.float32([-1, 2])} for b in (True, False)]
    model, _ = exact(source, EliminateCommon(), feeds)
    assert sorted(ops(model)) == ["Add", "Exp", "Exp", "If", "Neg"]


def test_nodes_in_any_order(ops: Any) -> None:
    """A file may list a node before the one that it repeats only in the order of execution."""
    nodes = [
        helper.make_node("Abs", ["b"], ["d"]), helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Abs", ["a"], ["c"]), helper.make_node("Neg", ["x"], ["b"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]  # fmt: skip
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    model = load(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:])))
    EliminateCommon().run(model, RunContext(model))
    assert sorted(ops(model)) == ["Abs", "Add", "Neg"]


@settings(max_examples=60)
@given(data=st.data())
def test_random_graphs(exact: Any, random_chain: Any, chain_feeds: Any, data: st.DataObject) -> None:
    exact(load(random_chain(data.draw)), EliminateCommon(), chain_feeds)


@settings(max_examples=60)
@given(data=st.data())
def test_random_arithmetic(exact: Any, random_model: Any, data: st.DataObject) -> None:
    model, _ = exact(load(random_model(data.draw)), EliminateCommon())
    kinds = [
        (n.op_type, tuple(sorted(id(v) for v in n.inputs))) for n in model.nodes() if not n.outputs[0].is_graph_output()
    ]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("wide", [False, True])
def test_twenty_thousand_nodes(wide: bool) -> None:
    """Two equal chains, whose nodes meet one after the other; many equal nodes."""
    count = 10_000
    nodes = []
    for chain in "ab":
        names = ["x" if wide else f"{chain}{i}" if i else "x" for i in range(count)]
        after = [f"{chain}{i}" for i in range(1, count + 1)]
        nodes += [helper.make_node("Neg", [a], [b]) for a, b in zip(names, after, strict=True)]
    nodes.append(helper.make_node("Add", [f"a{count}", f"b{count}"], ["y"]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    model = load(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:])))
    start = time.process_time()
    EliminateCommon().run(model, RunContext(model))
    assert len(list(model.nodes())) == (2 if wide else count + 1)
    assert model.revision == 1
    assert time.process_time() - start < 5
