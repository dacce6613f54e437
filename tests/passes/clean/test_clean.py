"""clean: the whole clean-up, in an order that leaves nothing to a second run."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.clean import Clean
from onnxopt.passing import Context, Findings, Pass, make, rounds


class Together(Pass):
    """All steps of `clean` as one pass, as the pipeline runs them."""

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        for step in rounds(Clean(), lambda: model.revision):
            findings.add(step.run(model, context))
        return findings


EVERYTHING = """<ir_version: 8, opset_import: ["" : 17, "f" : 1, "com.microsoft" : 1]>
    g (bool b, float[N, 4, 8, 8] x, float unused) => (float[N, 4, 8, 8] y)
    <float[4, 4, 1, 1] w, float[4] ones, int64[1] four = {4}, int8[4] quantized = {1, 2, 3, 4}, float half = {0.5}> {
    two = Constant<value = float {2}>()
    scale = f.scaled(ones, two)
    a = Identity(x)
    c = Conv(a, w)
    mean = DequantizeLinear(quantized, half)
    n = BatchNormalization(c, scale, ones, mean, ones)
    idle = Neg(c)
    s = Concat<axis = 0>(four, four)
    e = ConstantOfShape(s)
    r = ReduceSum<keepdims = 0>(e)
    p = Add(n, r)
    i = Identity(p)
    y = If(b)<then_branch = t () => (float[N, 4, 8, 8] q) {
                  k = Constant<value = float {3}>() m = Mul(k, k) q = Mul(i, m) },
              else_branch = l () => (float[N, 4, 8, 8] z) { j = Identity(i) dead = Neg(j) z = Relu(j) }> }
    <opset_import: ["" : 17], domain: "f"> scaled (v, u) => (o) {
        t = Constant<value_float = 0.5>() h = Mul(v, t) o = Mul(h, u) }
    <opset_import: ["" : 17], domain: "f"> idle (v) => (o) { o = Neg(v) }"""


def everything() -> Model:
    proto = onnx.parser.parse_model(EVERYTHING)
    rng = np.random.default_rng(0)
    del proto.graph.value_info[:]
    for name, shape in (("w", (4, 4, 1, 1)), ("ones", (4,))):
        array = np.abs(rng.standard_normal(shape)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return load(proto)


def test_each_step_does_its_part(exact: Any, ops: Any) -> None:
    x = np.random.default_rng(1).standard_normal((3, 4, 8, 8)).astype(np.float32)
    feeds = [{"b": np.array(b), "x": x, "unused": np.array(0, np.float32)} for b in (True, False)]
    model, findings = exact(everything(), Together(), feeds, tolerance=2e-6)
    assert ops(model) == ["Conv", "If", "Mul", "Relu"]
    assert {change.rule for change in findings.changes} >= {
        "inline-functions", "lift-constants", "eliminate-identity", "eliminate-dead", "fold-constants",
        "fold-batchnorm",
    }  # fmt: skip
    assert not model.ir.functions
    assert set(model.ir.opset_imports) == {""}


def test_what_each_step_changes_leaves_the_others_nothing_to_do() -> None:
    """Also the other way round: no step undoes what an earlier one did."""
    model = everything()
    Together().run(model, RunContext(model))
    for step in reversed(Clean().expand()):
        assert not step.run(model, RunContext(model)).changes, step.name


def test_a_model_that_is_clean_stays_untouched() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    model = load(onnx.parser.parse_model(text))
    assert not Together().run(model, RunContext(model)).changes
    assert model.revision == 0


def test_it_is_found_by_name_and_is_exact() -> None:
    clean = make("clean")
    assert isinstance(clean, Clean)
    assert clean.phase == "clean"
    assert [step.phase for step in clean.expand()] == ["clean"] * len(clean.expand())


@pytest.mark.slow
def test_a_chain_of_twenty_thousand_nodes() -> None:
    """Constants, identities, dead ends and arithmetic on constants, every fourth node each."""
    nodes = []
    for i in range(5_000):
        nodes.append(helper.make_node("Constant", [], [f"c{i}"], f"c{i}", value_float=float(i % 3)))
        nodes.append(helper.make_node("Neg", [f"c{i}"], [f"d{i}"], f"d{i}"))
        nodes.append(helper.make_node("Add", [f"t{i}", f"d{i}"], [f"u{i}"], f"u{i}"))
        nodes.append(helper.make_node("Identity", [f"u{i}"], [f"t{i + 1}"], f"t{i + 1}"))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", "t5000")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    model = load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    start = time.process_time()
    Together().run(model, RunContext(model))
    assert [node.op_type for node in model.nodes()] == ["Add"]  # constants added in a row are one
    assert time.process_time() - start < 10


@pytest.mark.slow
def test_the_zoo(exact: Any, zoo: Path) -> None:
    for path in sorted(zoo.glob("*.onnx")):
        with np.load(path.with_suffix(".calib.npz")) as data:
            prefix = "feed0000/"
            feeds = {name.removeprefix(prefix): data[name] for name in data.files if name.startswith(prefix)}
        before = load(path)
        nodes, size = len(list(before.nodes())), path.stat().st_size
        model, _ = exact(before, Together(), feeds, tolerance=1e-5)
        assert len(list(model.nodes())) <= nodes
        assert len(model.proto().SerializeToString()) <= 1.01 * size, path.name
