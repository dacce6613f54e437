"""fold-constants: computed by the runtime in few sessions, never at the cost of a larger file, reasons for the rest."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.eliminate_dead import EliminateDead
from onnxopt.passes.clean.fold_constants import FoldConstants

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def parsed(text: str) -> Model:
    return load(onnx.parser.parse_model(text))


def why(findings: Any) -> dict[str, str]:
    return {declined.node: declined.why for declined in findings.declined}


class Counting(RunContext):
    """Counts the sessions and the bytes that go into each."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.fed: list[int] = []

    def evaluate(self, model: ir.Model, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.fed.append(sum(np.asarray(value).nbytes for value in feeds.values()))
        return super().evaluate(model, feeds)


def test_a_cone_of_constants_becomes_one_weight(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[2] x) => (float[2] y) <float[2] w = {{3, 4}}, float[2] v = {{5, 6}}> {{
        a = Mul(w, v) b = Sqrt(a) c = Sub(b, w) y = Add(x, c) }}"""
    model, findings = exact(text, FoldConstants())
    assert ops(model) == ["Add"]
    assert list(model.graph.initializers) == ["c"]
    np.testing.assert_array_equal(
        model.graph.initializers["c"].const_value.numpy(), np.sqrt(np.float32([15, 24])) - np.float32([3, 4])
    )
    assert len(findings.changes) == 3


def test_one_session_for_all() -> None:
    lines = " ".join(f"a{i} = Neg(w{i}) b{i} = Mul(a{i}, w{i}) t{i + 1} = Add(t{i}, b{i})" for i in range(40))
    weights = ", ".join(f"float[2] w{i} = {{{i}, 1}}" for i in range(40))
    model = parsed(f"{HEAD} g (float[2] t0) => (float[2] t40) <{weights}> {{ {lines} }}")
    context = Counting(model)
    FoldConstants().run(model, context)
    assert [node.op_type for node in model.nodes()] == ["Add"] * 40
    assert len(context.fed) == 1


def test_several_outputs_some_unused(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[2] x) => (float[2] y) <float[4] w = {{1, 4, 2, 3}}, int64[1] k = {{2}}> {{
        a, b = TopK(w, k) c, d = Split(w) e = Mul(x, a) y = Sub(e, d) }}"""
    model, _ = exact(text, FoldConstants())
    assert ops(model) == ["Mul", "Sub"]
    assert set(model.graph.initializers) == {"a", "d"}


def test_what_callers_can_feed_is_no_constant(exact: Any, ops: Any) -> None:
    text = "g (float[2] x, float[2] w = {3, 4}) => (float[2] y) { a = Neg(w) y = Add(x, a) }"
    model, _ = exact(f'<ir_version: 8, opset_import: ["" : 9]> {text}', FoldConstants())
    assert ops(model) == ["Neg", "Add"]
    model, _ = exact(f'<ir_version: 3, opset_import: ["" : 9]> {text}', FoldConstants())
    assert ops(model) == ["Add"], "before IR 4 nobody can"
    assert [value.name for value in model.graph.inputs] == ["x", "a"]


def test_constants_in_branches_fold_there(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (bool b, float[2] x) => (float[2] y) <float[2] w = {{3, 4}}> {{
        y = If(b)<then_branch = t () => (float[2] p) <float[2] v = {{1, 2}}> {{
                      a = Mul(w, v) c = Neg(a) p = Add(x, c) }},
                  else_branch = e () => (float[2] q) {{ a = Exp(w) q = Add(x, a) }}> }}"""
    feeds = [{"b": np.array(b), "x": np.float32([-1, 2])} for b in (True, False)]
    model, _ = exact(text, FoldConstants(), feeds)
    assert ops(model) == ["If", "Add", "Add"]
    assert [list(graph.initializers) for graph in model.graph.subgraphs()] == [["c"], ["a"]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("y = RandomNormalLike(w)", "random"),
        ("a = RandomUniformLike(w) y = Add(a, x)", "random"),
        ("a = DequantizeLinear(q, s) y = Add(x, a)", "quantized"),
        ("y = Neg(w)", "graph output"),
        ("q1 = SequenceConstruct(w, w) y = SequenceAt(q1, i)", "sequences"),
        ("y = If(t)<then_branch = a () => (float[2] p) {p = Neg(x)}, else_branch = b () => (float[2] r) {r = Abs(x)}>",
         "control flow"),
        ("a = com.microsoft.Gelu(w) y = Add(x, a)", "standard"),
    ],
)  # fmt: skip
def test_what_is_left_with_a_reason(ops: Any, line: str, reason: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[2] x) => (float[2] y)
        <float[2] w = {{3, 4}}, int8[2] q = {{1, 2}}, float s = {{0.5}}, int64 i = {{0}}, bool t = {{1}}>
        {{ {line} }}"""
    model = parsed(text)
    before = ops(model)
    findings = FoldConstants().run(model, RunContext(model))
    assert ops(model) == before
    assert any(reason in text for text in why(findings).values())


def test_what_the_runtime_has_no_kernel_for_is_left_and_the_rest_is_folded(ops: Any) -> None:
    """Det has no kernel for double; its neighbours, before it, behind it and beside it, are not in its way."""
    text = f"""{HEAD} g (double[2, 2] x) => (double[2, 2] y) <double[2, 2] w = {{1, 2, 3, 4}}> {{
        a = Neg(w)
        [bad] d = Det(a)
        e = Exp(d)
        f = Mul(w, w)
        h = Add(x, e)
        y = Add(h, f) }}"""
    model = parsed(text)
    findings = FoldConstants().run(model, RunContext(model))
    assert ops(model) == ["Det", "Exp", "Add", "Add"]
    assert set(model.graph.initializers) == {"a", "f"}
    assert list(why(findings)) == ["bad"]
    assert "no kernel" in why(findings)["bad"]


def test_nodes_without_names_that_fail_are_found_too(ops: Any) -> None:
    """Shapes that do not fit, told at run time about nodes that nobody can name."""
    shapes = ["bad" if i in (3, 11) else "good" for i in range(16)]
    lines = " ".join(f"a{i} = Reshape(w, {shape}) t{i + 1} = Add(t{i}, a{i})" for i, shape in enumerate(shapes))
    weights = "float[2] w = {1, 2}, int64[1] good = {2}, int64[1] bad = {3}"
    text = f"{HEAD} g (float[2] t0) => (float[2] t16) <{weights}> {{ {lines} }}"
    model = parsed(text)
    for node in model.nodes():
        node.name = ""
    context = Counting(model)
    findings = FoldConstants().run(model, context)
    assert ops(model).count("Reshape") == 2
    assert len(findings.declined) == 2
    assert len(context.fed) < 20


def test_strings_are_no_weights_and_what_leads_to_them_folds(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[2] x) => (string[2] s, float[2] y) <float[2] w = {{3, 4}}> {{
        a = Mul(w, w) b = Neg(a) t = Cast<to = 8>(b) s = Identity(t) y = Add(x, a) }}"""
    model, findings = exact(text, FoldConstants())
    assert sorted(ops(model)) == ["Add", "Cast", "Identity"]
    assert set(model.graph.initializers) == {"a", "b"}
    assert any("numbers" in text for text in why(findings).values())


def big(body: str, elements: int = 10_000) -> Model:
    """A model with a weight `w` of 40 kB (10,000 floats) and a `shape`."""
    graph = onnx.parser.parse_graph(f"g (float[{elements}] x) => (float[M] y, float[N] z) {{ {body} }}")
    graph.initializer.append(numpy_helper.from_array(np.arange(elements, dtype=np.float32), "w"))
    graph.initializer.append(numpy_helper.from_array(np.arange(elements).astype(np.float16), "half"))
    graph.initializer.append(numpy_helper.from_array(np.int64([elements]), "shape"))
    graph.initializer.append(numpy_helper.from_array(np.int64([elements // 2]), "part"))
    graph.initializer.append(numpy_helper.from_array(np.int64([0]), "zero"))
    graph.initializer.append(numpy_helper.from_array(np.int64([elements // 80]), "little"))
    graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
    return load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize(
    ("body", "left"),
    [
        # As large as the weight that goes: folded. The same with the weight still in use: left.
        ("a = Mul(w, two) y = Add(x, a) z = Neg(y)", ["Add", "Neg"]),
        ("a = Mul(w, two) b = Add(x, a) y = Add(b, w) z = Neg(y)", ["Mul", "Add", "Add", "Neg"]),
        # Made out of nothing.
        ("a = Expand(two, shape) y = Add(x, a) z = Neg(y)", ["Expand", "Add", "Neg"]),
        # The size is computed, then the large result, then one computed of it: only the first may fold.
        ("s = Add(part, part) a = Expand(two, s) b = Neg(a) y = Add(x, b) z = Neg(y)", ["Expand", "Neg", "Add", "Neg"]),
        # Large in between, small in the end.
        ("a = Expand(two, shape) b = ReduceSum(a) y = Add(x, b) z = Neg(y)", ["Add", "Neg"]),
        # float16 storage stays.
        ("a = Cast<to = 1>(half) y = Add(x, a) z = Mul(w, y)", ["Cast", "Add", "Mul"]),
        # Two halves of a weight together replace it.
        (
            "a = Slice(w, zero, part) b = Slice(w, part, shape) c = Concat<axis = 0>(x, a) y = Concat<axis = 0>(c, b) "
            "z = Neg(y)",
            ["Concat", "Concat", "Neg"],
        ),
        # Each of two results is as large as the weight; both together are not.
        ("a = Neg(w) b = Abs(w) y = Add(x, a) z = Mul(x, b)", ["Neg", "Abs", "Add", "Mul"]),
    ],
)
def test_folding_never_makes_the_file_grow(exact: Any, ops: Any, body: str, left: list[str]) -> None:
    model, findings = exact(big(body), FoldConstants())
    assert ops(model) == left
    refused = [text for text in why(findings).values() if "bytes" in text]
    assert bool(refused) == (left not in (["Add", "Neg"], ["Concat", "Concat", "Neg"]))


def test_results_that_grow_are_taken_all_or_none(exact: Any, ops: Any) -> None:
    """Two results of 500 bytes where 1 % is 600: else a second run, with 600 of its own, would take the other."""
    both = "a = Expand(two, little) b = Expand(half, little) y = Concat<axis = 0>(x, a) z = Neg(b)"
    model, findings = exact(big(both.replace("half", "two")), FoldConstants())
    assert ops(model) == ["Expand", "Expand", "Concat", "Neg"]
    assert len([text for text in why(findings).values() if "others add 1000 bytes" in text]) == 2
    model, _ = exact(big("a = Expand(two, little) y = Concat<axis = 0>(x, a) z = Neg(y)"), FoldConstants())
    assert ops(model) == ["Concat", "Neg"]


def test_growth_can_be_allowed(exact: Any, ops: Any) -> None:
    model, _ = exact(big("a = Expand(two, shape) y = Add(x, a) z = Neg(y)"), FoldConstants(max_growth=0.7))
    assert ops(model) == ["Add", "Neg"]


def test_large_weights_go_one_session_at_a_time_and_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxopt.passes.clean.fold_constants._BATCH_BYTES", 100_000)
    weights = [numpy_helper.from_array(np.full((100, 200), i, np.float32), f"w{i}") for i in range(4)]
    nodes = []
    for i in range(4):
        nodes.append(helper.make_node("Transpose", [f"w{i}"], [f"u{i}"]))
        nodes.append(helper.make_node("MatMul", ["x", f"u{i}"], [f"y{i}"]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y0", "y1", "y2", "y3")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = load(tmp_path / "m.onnx")
    tensors = [value.const_value for value in model.weights()]
    context = Counting(model)
    FoldConstants().run(model, context)
    assert [node.op_type for node in model.nodes()] == ["MatMul"] * 4
    assert context.fed == [80_000] * 4
    assert all(tensor.raw is None for tensor in tensors if isinstance(tensor, ir.ExternalTensor)), (
        "mappings are released"
    )


def test_types_that_numpy_lacks(ops: Any) -> None:
    text = f"""{HEAD} g (bfloat16[2] x) => (bfloat16[2] y) <float[2] w = {{3, 4}}> {{
        a = Cast<to = 16>(w) y = Add(a, x) }}"""
    model = parsed(text)
    FoldConstants().run(model, RunContext(model))
    assert ops(model) == ["Add"]
    tensor = model.graph.initializers["a"].const_value
    assert tensor.dtype == ir.DataType.BFLOAT16
    np.testing.assert_array_equal(tensor.numpy().astype(np.float32), [3, 4])


@settings(max_examples=40)
@given(data=st.data())
def test_random_graphs(exact: Any, ops: Any, random_model: Any, data: st.DataObject) -> None:
    alive = load(random_model(data.draw))
    EliminateDead().run(alive, RunContext(alive))
    model, _ = exact(load(alive.proto()), FoldConstants())
    for node in model.nodes():
        constant = all(value.is_initializer() for value in node.inputs)
        assert not constant or node.outputs[0].is_graph_output()


@pytest.mark.parametrize("shape", ["chain", "wide", "alone"])
def test_many_nodes_take_linear_time(shape: str) -> None:
    """A chain of constants; many readers of one weight; many folds that have nothing to do with one another."""
    count = 20_000 if shape == "chain" else 8_000
    weights = [numpy_helper.from_array(np.float32([1]), name) for name in ("t0", *(f"w{i}" for i in range(count)))]
    nodes, names = [], []
    for i in range(count):
        source = {"chain": f"t{i}", "wide": "t0", "alone": f"w{i}"}[shape]
        nodes.append(helper.make_node("Neg", [source], [f"t{i + 1}"]))
        names.append(f"t{i + 1}")
    read = names[-1:] if shape == "chain" else names
    sums = [helper.make_node("Sum", ["x", *read[i : i + 100]], [f"y{i}"]) for i in range(0, len(read), 100)]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", *(s.output[0] for s in sums))]
    used = weights if shape == "alone" else weights[:1]
    graph = helper.make_graph([*nodes, *sums], "g", info[:1], info[1:], used)
    model = load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    context = Counting(model)
    start = time.process_time()
    FoldConstants().run(model, context)
    assert {node.op_type for node in model.nodes()} == {"Sum"}
    assert len(context.fed) < 200
    assert time.process_time() - start < 5
