"""What integer inputs can be, and that synthetic data inside those bounds run."""

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.data import synthetic
from onnxopt.model import load

TABLE = numpy_helper.from_array(np.zeros((50, 4), np.float32), "table")
SMALL = numpy_helper.from_array(np.zeros((7, 4), np.float32), "small")


def build(
    text: str, *weights: onnx.TensorProto, inputs: str = "int64[N, T] ids", functions: str = ""
) -> onnx.ModelProto:
    header = '<ir_version: 10, opset_import: ["" : 21, "f" : 1, "com.microsoft" : 1]>'
    model = onnx.parser.parse_model(f"{header} g ({inputs}) => (y) {{ {text} }} {functions}")
    model.graph.initializer.extend(weights)
    return model


def constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


ONE, TWO, AXES, DEPTH = constant("one", 1), constant("two", [[2]]), constant("axes", [0]), constant("depth", [9])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = Gather(table, ids)", (0, 49)),
        ("y = Gather<axis = 1>(table, ids)", (0, 3)),
        ("y = Gather<axis = -1>(table, ids)", (0, 3)),
        ("a = Cast<to = 6>(ids) b = Unsqueeze(a, axes) c = Transpose(b) y = Gather(table, c)", (0, 49)),
        ("a = Concat<axis = 0>(ids, ids) y = Gather(table, a)", (0, 49)),
        ("a = Gather(table, ids) b = Gather(small, ids) y = Add(a, b)", (0, 6)),
        ("a = Add(ids, two) y = Gather(table, a)", (0, 47)),
        ("a = Add(one, ids) y = Gather(table, a)", (0, 48)),
        ("a = Sub(ids, one) y = Gather(table, a)", (1, 50)),
        ("a = Sub(one, ids) y = Gather(table, a)", None),
        ("a = Sub(ids, hundred) b = Gather(table, a) c = Gather(table, ids) y = Add(b, c)", (100, 100)),
        ("m = Equal(ids, one) a = Where(m, one, ids) y = Gather(table, a)", (0, 49)),
        ("a = Unsqueeze(ids, axes) y = GatherND(table, a)", (0, 0)),
        ("y = GatherElements<axis = 0>(table, ids)", (0, 49)),
        ("t = Identity(table) y = Gather(t, ids)", (0, 49)),
        ("t = Constant<value = float[3, 2] {1, 2, 3, 4, 5, 6}>() y = Gather(t, ids)", (0, 2)),
        ("t = Exp(table) y = Gather(t, ids)", (0, 0)),
        ("y = OneHot(ids, depth, values)", (0, 8)),
        ("m = Cast<to = 9>(ids) y = Cast<to = 1>(m)", (0, 1)),
        ("m = Greater(ids, one) y = Cast<to = 1>(m)", (0, 1)),
        ("m = Greater(ids, one) n = Cast<to = 1>(m) a = Gather(table, ids) y = Add(n, a)", (0, 49)),
        ("y = Expand(one, ids)", (1, 1)),
        ("a = Add(ids, one) y = Expand(one, a)", (0, 0)),
        ("y = Cast<to = 1>(ids)", None),
        ("y = Mul(ids, ids)", None),
        ("y = com.microsoft.GatherBlockQuantized<gather_axis = 0>(table, ids, table)", (0, 49)),
        ("y = com.microsoft.EmbedLayerNormalization(ids, ids, table, table, small)", (0, 6)),
        ("y = com.microsoft.Gather(table, ids)", None),
        ("y = com.microsoft.Expand(one, ids)", None),
        ("a, b = Split<num_outputs = 2>(ids) y = Gather(table, b)", (0, 49)),
        ("r = Gather(table, ids) y = ScatterND(r, ids, table)", (0, 0)),
    ],
)
def test_bounds(text: str, expected: tuple[int, int] | None) -> None:
    values = constant("values", np.array([0, 1], np.float32))
    found = index_bounds(load(build(text, TABLE, SMALL, ONE, TWO, AXES, DEPTH, constant("hundred", 100), values)))
    assert found == ({} if expected is None else {"ids": expected})


def test_several_axes_at_once() -> None:
    grid = constant("grid", np.zeros((5, 9, 3), np.float32))
    model = build("y = GatherND(grid, at)", grid, inputs="int64[N, 2] at")
    assert index_bounds(load(model)) == {"at": (0, 4)}
    batched = build("y = GatherND<batch_dims = 1>(grid, at)", grid, inputs="int64[5, 2] at")
    assert index_bounds(load(batched)) == {"at": (0, 2)}


def test_through_subgraphs_and_loops() -> None:
    branch = "then_branch = t () => (float[N, T, 4] a) { a = Gather(table, ids) }, "
    other = "else_branch = e () => (float[N, T, 4] b) { b = Gather(small, ids) }"
    model = build(f"y = If<{branch}{other}>(c)", TABLE, SMALL, inputs="int64[N, T] ids, bool c")
    assert index_bounds(load(model)) == {"ids": (0, 6)}
    body = "body = b (int64 i, bool c, int64[N, T] s) => (bool d, int64[N, T] n, float[N, T, 4] o)"
    inner = "d = Identity(c) n = Identity(s) p = Gather(table, s) q = Gather(small, i) o = Add(p, q)"
    text = f"z, y = Loop<{body} {{ {inner} }}>(count, yes, ids)"
    model = build(text, TABLE, SMALL, constant("yes", True), inputs="int64 count, int64[N, T] ids")
    assert index_bounds(load(model)) == {"count": (1, 1), "ids": (0, 49)}


def test_through_the_models_functions() -> None:
    function = '<domain: "f", opset_import: ["" : 21]> embed (w, i) => (o) { j = Identity(i) o = Gather(w, j) }'
    model = build("t = Identity(table) y = f.embed(t, ids)", TABLE, functions=function)
    assert index_bounds(load(model)) == {"ids": (0, 49)}
    shifted = '<domain: "f", opset_import: ["" : 21]> shift (i, s) => (o) { o = Add(i, s) }'
    model = build("y = f.shift(ids, one)", ONE, functions=shifted)
    assert index_bounds(load(model)) == {}
    gather = '<domain: "f", opset_import: ["" : 21]> embed (w, i, s) => (o) { j = Add(i, s) o = Gather(w, j) }'
    model = build("y = f.embed(table, ids, one)", TABLE, ONE, functions=gather)
    assert index_bounds(load(model)) == {"ids": (0, 48)}


def test_only_integer_inputs_that_are_no_weights() -> None:
    weight = constant("w", np.zeros((2, 2), np.int64))
    model = build("a = Gather(table, w) b = Gather(table, ids) c = Exp(x) y = Identity(a)", TABLE, weight,
                  inputs="int64[N, T] ids, int64[2, 2] w, float[N] x")  # fmt: skip
    assert index_bounds(load(model)) == {"ids": (0, 49)}


def test_a_long_chain_is_no_problem() -> None:
    names = ["ids", *(f"v{i}" for i in range(20_000))]
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in pairwise(names)]
    nodes.append(helper.make_node("Gather", ["table", names[-1]], ["y"]))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    model = helper.make_model(helper.make_graph(nodes, "g", [ids], [y], [TABLE]))
    assert index_bounds(load(model)) == {"ids": (0, 49)}


def test_many_paths_are_walked_once() -> None:
    names = ["ids", *(f"v{i}" for i in range(100))]
    text = " ".join(f"{b} = Concat<axis = 0>({a}, {a})" for a, b in pairwise(names))
    assert index_bounds(load(build(f"{text} y = Gather(table, {names[-1]})", TABLE))) == {"ids": (0, 49)}


def test_synthetic_data_inside_the_bounds_run(zoo: Any) -> None:
    path = zoo / "hf_bert_tiny_dynamo.onnx"
    model = load(path)
    bounds = index_bounds(model)
    assert bounds == {"input_ids": (0, 999), "attention_mask": (0, 1)}
    session = ort.InferenceSession(str(path))
    for batch in synthetic(model.signature, None, bounds, 8, np.random.default_rng(0)).batches():
        assert np.isfinite(session.run(None, batch.feeds)[0]).all()
