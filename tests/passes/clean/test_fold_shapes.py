"""fold-shapes: outputs are the same at all sizes, what sizes settle goes, and open axes stay open."""

import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.fold_shapes import FoldShapes

chains = runpy.run_path(str(Path(__file__).parents[2] / "shape_chains.py"))

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def target(model: Model, op: str = "Reshape") -> list[int]:
    """The constant that the only node of a kind takes."""
    (node,) = (node for node in model.nodes() if node.op_type == op)
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    return list(value.const_value.numpy().tolist())


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_graphs_give_the_same_at_all_sizes(data: st.DataObject) -> None:
    chain = chains["chain"](data.draw, 16)
    outputs = data.draw(st.lists(st.sampled_from(list(chain.values)[3:]), min_size=1, max_size=4, unique=True))
    proto = chain.model(outputs)
    try:  # node by node it ran; as a whole it may not
        whole = ort.InferenceSession(proto.SerializeToString(), chains["options"]())
        for sizes in chains["SIZES"]:
            whole.run(None, chains["feeds"](sizes))
    except ort.capi.onnxruntime_pybind11_state.Fail:
        assume(False)
    model = load(proto)
    FoldShapes().run(model, RunContext(model))
    session = ort.InferenceSession(model.proto().SerializeToString(), chains["options"]())
    for at, sizes in enumerate(chains["SIZES"]):
        for name, found in zip(outputs, session.run(outputs, chains["feeds"](sizes)), strict=True):
            np.testing.assert_array_equal(found, chain.values[name][at], strict=True)
    assert not FoldShapes().run(model, RunContext(model)).changed


def test_a_shape_chain_becomes_a_constant_target(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, s, 8] x) => (float[p, q, r, t] y) <int64 zero = {{0}}, int64 one = {{1}},
        int64 last = {{2}}, int64 two = {{2}}, int64[1] axis = {{0}}, int64[1] four = {{2}}> {{
        n = Shape(x) b0 = Gather(n, zero) m = Shape(x) s0 = Gather(m, one) c = Gather(m, last)
        half = Div(c, two) wide = Cast<to = 7>(half) bu = Unsqueeze(b0, axis) su = Unsqueeze(s0, axis)
        hu = Unsqueeze(wide, axis) shape = Concat<axis = 0>(bu, su, four, hu) y = Reshape(x, shape) }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(2, 3, 8)}, {"x": floats(1, 5, 8)}])
    assert ops(model) == ["Reshape"]
    assert target(model) == [0, 0, 2, 4]


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ("t = Concat<axis = 0>(su, bu, rest)", [-1]),
        ("t = Concat<axis = 0>(bu, rest)", [0, -1]),
        ("n0 = Mul(bu, su) t = Concat<axis = 0>(n0, rest)", [-1, 8]),
    ],
)
def test_targets(exact: Any, chain: str, expected: list[int]) -> None:
    """At most one axis is left to be inferred; what moves two open axes stays computed."""
    text = f"""{HEAD} g (float[b, s, 8] x) => (float[p] z) <int64[1] zero = {{0}}, int64[1] one = {{1}},
        int64[1] rest = {{-1}}> {{ n = Shape(x) bu = Gather(n, zero) su = Gather(n, one) {chain}
        y = Reshape(x, t) z = Flatten(y) }}"""
    proto = onnx.parser.parse_model(text.replace("float[p] z", "float[p, q] z"))
    model, _ = exact(load(proto), FoldShapes(), [{"x": floats(2, 3, 8)}, {"x": floats(4, 1, 8)}])
    if expected == [-1]:
        assert any(node.op_type == "Concat" for node in model.nodes())
    else:
        assert target(model) == expected


def test_a_target_of_zeros_needs_allowzero_off(exact: Any) -> None:
    text = f"""{HEAD} g (float[b, 8] x) => (float[p, q, r] y) <int64[1] zero = {{0}}, int64[2] rest = {{2, 4}}> {{
        n = Shape(x) bu = Gather(n, zero) t = Concat<axis = 0>(bu, rest) y = Reshape<allowzero = 1>(x, t) }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(2, 8)}, {"x": floats(5, 8)}])
    assert target(model) == [0, 2, 4]


@pytest.mark.parametrize(
    "body",
    [
        "n = Shape(x) y = Expand(x, n)",
        "n = Shape(x) d = Gather(n, zero) e = Add(d, zero) y = Slice(x, zero, e)",
        "m = Shape(x) n = Sub(m, m) p = Concat<axis = 0>(n, n) y = Pad(x, p)",
        "m = Shape(x) n = Div(m, m) y = Tile(x, n)",
        "n = Shape(x) ok = ConstantOfShape<value = bool[1] {1}>(n) y = Where(ok, x, other)",
        "n = Shape(x) d = Gather(n, first) r = Range(first, d, by) y = Gather(x, r)",
        "n = Shape(x) y = Reshape(x, n)",
        "n = Shape(x) w = ConstantOfShape<value = float[1] {1}>(n) y = Mul(w, x)",
    ],
)
def test_what_changes_nothing_goes(exact: Any, ops: Any, body: str) -> None:
    text = f"""{HEAD} g (float[b, s] v) => (float[b, s] z) <int64[1] zero = {{0}}, int64 first = {{0}},
        int64 by = {{1}}, float other = {{3}}> {{ x = Neg(v) {body} z = Abs(y) }}"""
    model, _ = exact(text, FoldShapes(), [{"v": floats(2, 3)}, {"v": floats(1, 6)}])
    assert ops(model) == ["Neg", "Abs"]


def test_an_expand_before_a_broadcast_goes_and_others_stay(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, s] x, float[1, 1] m) => (float[b, s] y, float[b, s] z) {{
        n = Shape(x) e = Expand(m, n) y = Add(x, e) k = Neg(m) f = Expand(k, n) z = Abs(f) }}"""
    feeds = [{"x": floats(b, s), "m": floats(1, 1)} for b, s in ((2, 3), (4, 1))]
    model, _ = exact(text, FoldShapes(), feeds)
    assert sorted(ops(model)) == ["Abs", "Add", "Expand", "Neg", "Shape"]


def test_expand_does_not_say_that_sizes_of_one_name_are_equal(exact: Any, ops: Any) -> None:
    """It takes a size of 1 for any, and runtimes let callers feed that."""
    text = f"{HEAD} g (float[b, 4] x, float[b, 4] c) => (float[b, 4] y) {{ n = Shape(x) e = Expand(c, n) y = Neg(e) }}"
    model, _ = exact(text, FoldShapes(), [{"x": floats(3, 4), "c": floats(n, 4)} for n in (1, 3)])
    assert ops(model) == ["Shape", "Expand", "Neg"]


def test_an_entry_of_nothing_copies_a_size(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, 1] x) => (int64[1] y) <int64[1] z = {{0}}, int64[1] o = {{1}}, int64[1] t = {{2}},
        int64[1] m = {{-1}}> {{ s = Shape(x) n = Slice(s, z, o) d = Div(n, t) c = Concat<axis = 0>(m, d)
        r = Reshape(x, c) q = Shape(r) e = Slice(q, o, t) y = Neg(e) }}"""
    exact(text, FoldShapes(), [{"x": floats(n, 1)} for n in (1, 2, 4)])


def test_declared_shapes_that_cannot_be_are_repaired() -> None:
    text = f"""{HEAD} g (float[b, 4, 4] x) => (float[b, 4, 4] y) <float[b, 4] m> {{ m = Neg(x) y = Abs(m) }}"""
    model = load(onnx.parser.parse_model(text))
    findings = FoldShapes().run(model, RunContext(model))
    assert list(model.graph[0].outputs[0].shape or ()) != ["b", 4]
    assert "declared" in findings.changes[0].what
    assert not FoldShapes().run(model, RunContext(model)).changes


def test_a_mask_that_repeats_is_read_unrepeated_through_several_nodes(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, h, s, t] x, bool[b, 1, 1, t] m) => (float[b, h, s, t] y)
        <int64 i0 = {{0}}, int64 i1 = {{1}}, int64[1] i2 = {{2}}, int64[3] axes = {{0, 1, 3}},
         float zero = {{0}}, float low = {{-9}}> {{
        n = Shape(x) s1 = Gather(n, i2) s0 = Squeeze(s1) r = Range(i0, s0, i1) q = Unsqueeze(r, axes)
        ge = GreaterOrEqual(q, i0) both = And(ge, m) bias = Where(both, zero, low) y = Add(x, bias) }}"""
    feeds = [{"x": floats(b, 2, s, t), "m": np.arange(b * t).reshape(b, 1, 1, t) % 2 == 0}
             for b, s, t in ((2, 3, 5), (1, 4, 4))]  # fmt: skip
    model, _ = exact(text, FoldShapes(), feeds)
    assert ops(model) == ["Where", "Add"]


def test_of_two_operands_that_repeat_one_stays_repeated(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, s] x, float[1, 1] c, float[1, 1] r) => (float[b, s] y) {{
        n = Shape(x) p = Expand(c, n) q = Expand(r, n) y = Mul(p, q) }}"""
    feeds = [{"x": floats(b, s), "c": floats(1, 1), "r": floats(1, 1)} for b, s in ((2, 3), (1, 4))]
    model, _ = exact(text, FoldShapes(), feeds)
    assert sorted(ops(model)) == ["Expand", "Mul", "Shape"]


def test_transposing_merged_axes_is_one_transposition(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, 2, s, 4] x) => (float[b, 2, 4, s] y) <int64[1] i0 = {{0}}, int64[1] i2 = {{2}},
        int64[1] rest = {{-1}}, int64[1] two = {{2}}, int64[1] four = {{4}}> {{
        n = Shape(x) b0 = Gather(n, i0) s0 = Gather(n, i2) t = Concat<axis = 0>(rest, s0, four) flat = Reshape(x, t)
        turned = Transpose<perm = [0, 2, 1]>(flat) u = Concat<axis = 0>(b0, two, four, s0) y = Reshape(turned, u) }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(2, 2, 3, 4)}, {"x": floats(1, 2, 7, 4)}])
    assert ops(model) == ["Transpose"]
    (node,) = model.nodes()
    assert list(node.attributes["perm"].as_ints()) == [0, 1, 3, 2]


def test_looking_everything_up_in_order_is_a_view(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, s] x) => (float[b, 1, s] y) <int64 i0 = {{0}}, int64 i1 = {{1}},
        int64[1] second = {{1}}, int64[1] third = {{2}}, int64[2] before = {{0, 1}}, int64[1] last = {{-1}}> {{
        n = Shape(x) b0 = Gather(n, i0) s0 = Gather(n, i1) r = Range(i0, b0, i1) c = Range(i0, s0, i1)
        row = Unsqueeze(r, second) rows = Unsqueeze(row, third) columns = Unsqueeze(c, before)
        all = Max(rows, columns) full = Shape(all)
        p = Expand(rows, full) q = Expand(columns, full) pu = Unsqueeze(p, last) qu = Unsqueeze(q, last)
        index = Concat<axis = -1>(pu, qu) y = GatherND(x, index) }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(2, 3)}, {"x": floats(5, 1)}])
    assert ops(model) == ["Unsqueeze"]


def test_axes_of_size_1_move_without_a_transposition(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, s, 6] x) => (float[b, s, 3, 2] y) <int64[1] i0 = {{0}}, int64[1] i1 = {{1}},
        int64[2] one = {{1, -1}}, int64[2] rest = {{3, 2}}> {{
        n = Shape(x) b0 = Gather(n, i0) s0 = Gather(n, i1) t = Concat<axis = 0>(b0, s0, one) wide = Reshape(x, t)
        turned = Transpose<perm = [0, 2, 1, 3]>(wide) u = Concat<axis = 0>(b0, s0, rest) y = Reshape(turned, u) }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(2, 4, 6)}, {"x": floats(3, 1, 6)}])
    assert ops(model) == ["Reshape"]
    assert target(model) == [0, 0, 3, 2]


def test_recurrent_layers_start_from_zero_by_themselves(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[s, b, 2] x) => (float[s, 1, b, 3] y) <int64[1] i1 = {{1}}, int64[1] one = {{1}},
        int64[1] three = {{3}}, float[1, 9, 2] w = {{{", ".join(["0.5"] * 18)}}},
        float[1, 9, 3] r = {{{", ".join(["0.25"] * 27)}}}> {{
        n = Shape(x) b0 = Gather(n, i1) t = Concat<axis = 0>(one, b0, three) h = ConstantOfShape(t)
        y = GRU<hidden_size = 3>(x, w, r, , , h) }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(4, 2, 2)}, {"x": floats(1, 3, 2)}])
    assert ops(model) == ["GRU"]


def test_equal_computations_are_shared(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, s] x) => (float[p, q] y, float[p, q] z) <int64[1] i0 = {{0}}, int64[1] i1 = {{1}}> {{
        n = Shape(x) a = Gather(n, i0) c = Gather(n, i1) t = Concat<axis = 0>(c, a) u = Neg(x) m = Shape(u)
        d = Gather(m, i0) e = Gather(m, i1) v = Concat<axis = 0>(e, d) y = Reshape(x, t) z = Reshape(u, v) }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(2, 3)}, {"x": floats(5, 1)}])
    assert sorted(ops(model)) == ["Concat", "Gather", "Gather", "Neg", "Reshape", "Reshape", "Shape"]


def test_slices_to_the_end_end_at_the_end(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, s] x) => (float[b, t] y) <int64[1] one = {{1}}> {{
        n = Shape(x) e = Gather(n, one) y = Slice(x, one, e, one) }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(2, 3)}, {"x": floats(5, 1)}])
    assert ops(model) == ["Slice"]


def test_declared_shapes_of_inner_values_are_not_believed(exact: Any, ops: Any) -> None:
    proto = onnx.parser.parse_model(f"""{HEAD} g (float[b, s] x) => (int64[2] n) {{ y = Neg(x) n = Shape(y) }}""")
    proto.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 7]))
    model, findings = exact(load(proto), FoldShapes(), [{"x": floats(2, 3)}])
    assert not findings.changed
    assert ops(model) == ["Neg", "Shape"]


def test_inputs_declared_without_axes_may_have_some(ops: Any) -> None:
    text = f"{HEAD} g (float x) => (int64[r] m) {{ y = Neg(x) n = Shape(y) m = Abs(n) }}"
    model = load(onnx.parser.parse_model(text))
    FoldShapes().run(model, RunContext(model))
    session = ort.InferenceSession(model.proto().SerializeToString(), chains["options"]())
    assert session.run(None, {"x": floats(2, 3)})[0].tolist() == [2, 3]


def test_axes_of_one_name_are_equal_only_where_they_are_combined(exact: Any, ops: Any) -> None:
    apart = f"""{HEAD} g (float[b] x, float[b] z) => (bool[1] y) {{ n = Shape(x) m = Shape(z) y = Equal(n, m) }}"""
    feeds = [{"x": floats(2), "z": floats(2)}, {"x": floats(2), "z": floats(5)}]
    model, _ = exact(apart, FoldShapes(), feeds)
    assert ops(model) == ["Shape", "Shape", "Equal"]
    renamed = f"""{HEAD} g (float[b] x, float[c] z) => (float[d] w, bool[1] y) {{
        w = Add(x, z) n = Shape(x) m = Shape(z) s = Equal(n, m) y = Not(s) }}"""
    exact(renamed, FoldShapes(), [{"x": floats(1), "z": floats(5)}])
    combined = f"""{HEAD} g (float[b] x, float[b] z) => (float[b] y) {{
        w = Add(x, z) n = Shape(x) y = Reshape(w, n) }}"""
    model, _ = exact(combined, FoldShapes(), feeds[:1])
    assert ops(model) == ["Add"]


def test_what_a_branch_demands_of_sizes_proves_nothing(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b] x, float[b] z) => (float[c] y) {{
        n = Shape(x) m = Shape(z) same = Equal(n, m) flag = Squeeze(same)
        y = If (flag) <then_branch = t () => (float[p] v) {{ v = Add(x, z) }},
                       else_branch = e () => (float[q] w) {{ w = Neg(x) }}> }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(2), "z": floats(2)}, {"x": floats(3), "z": floats(5)}])
    assert "If" in ops(model)


def test_branches_share_with_what_is_around_them_and_not_with_one_another(exact: Any) -> None:
    text = f"""{HEAD} g (float[b, s] x, bool c) => (float[p] y) <int64[1] i0 = {{0}}, int64[1] i1 = {{1}}> {{
        y = If (c) <then_branch = t () => (float[p] v) {{ n = Shape(x) a = Gather(n, i1) d = Gather(n, i0)
                    u = Concat<axis = 0>(a, d) r = Reshape(x, u) k = Flatten<axis = 0>(r) v = Squeeze(k, i0) }},
                    else_branch = e () => (float[q] w) {{ n2 = Shape(x) a2 = Gather(n2, i1) d2 = Gather(n2, i0)
                    u2 = Concat<axis = 0>(a2, d2) r2 = Reshape(x, u2) k2 = Flatten<axis = 0>(r2)
                    w = Squeeze(k2, i0) }}> }}"""
    feeds = [{"x": floats(2, 3), "c": np.array(flag)} for flag in (True, False)]
    exact(text, FoldShapes(), feeds)


def test_a_weight_that_callers_may_override_is_no_constant(ops: Any) -> None:
    text = f"{HEAD} g (float[4] x, int64[2] t) => (float[p, q] y) {{ u = Abs(t) y = Reshape(x, u) }}"
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.int64([2, 2]), "t"))
    model = load(proto)
    FoldShapes().run(model, RunContext(model))
    session = ort.InferenceSession(model.proto().SerializeToString(), chains["options"]())
    assert session.run(None, {"x": floats(4), "t": np.int64([4, 1])})[0].shape == (4, 1)


def test_resizing_to_about_the_same_size_stays(exact: Any, ops: Any) -> None:
    text = f"""{HEAD} g (float[b, 1, 4, 4] x) => (float[b, 1, 4, 4] z) <float[4] by = {{1, 1, 1.1, 1}}> {{
        v = Neg(x) y = Resize<mode = "linear">(v, , by) z = Abs(y) }}"""
    model, findings = exact(text, FoldShapes(), [{"x": floats(1, 1, 4, 4)}])
    assert ops(model) == ["Neg", "Resize", "Abs"]
    assert not findings.changed


def test_outputs_keep_their_names_and_nodes(exact: Any, ops: Any) -> None:
    text = f"{HEAD} g (float[b, s] x) => (float[b, s] y) {{ n = Shape(x) y = Reshape(x, n) }}"
    model, findings = exact(text, FoldShapes(), [{"x": floats(2, 3)}])
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert len(findings.declined) == 1


@pytest.mark.parametrize("name", ["digits_transformer_legacy", "digits_lstm_legacy"])
def test_real_models(zoo: Path, ops: Callable[[Model], list[str]], name: str) -> None:
    model = load(zoo / f"{name}.onnx")
    path = str(zoo / f"{name}.onnx")
    before = ort.InferenceSession(path, chains["options"]())
    FoldShapes().run(model, RunContext(model))
    after = ort.InferenceSession(model.proto().SerializeToString(), chains["options"]())
    assert not {"Shape", "Concat", "ConstantOfShape", "Unsqueeze"} & set(ops(model))
    for size in (1, 3):
        feeds = {"x": floats(size, 8, 8)}
        np.testing.assert_array_equal(after.run(None, feeds)[0], before.run(None, feeds)[0])
    assert not isinstance(model.graph.inputs[0].shape[0], int)  # type: ignore[index]


def test_linear_time() -> None:
    nodes, last, count = [], "x", 2500
    for i in range(count):
        nodes += [
            helper.make_node("Shape", [last], [f"n{i}"]),
            helper.make_node("Gather", [f"n{i}", "i0"], [f"b{i}"]),
            helper.make_node("Unsqueeze", [f"b{i}", "axes"], [f"u{i}"]),
            helper.make_node("Concat", [f"u{i}", "rest"], [f"t{i}"], axis=0),
            helper.make_node("Relu", [last], [f"r{i}"]),
            helper.make_node("Reshape", [f"r{i}", f"t{i}"], [f"x{i}"]),
        ]
        last = f"x{i}"
    weights = {"i0": np.int64(0), "axes": np.int64([0]), "rest": np.int64([-1])}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 4])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["b", 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    begin = time.process_time()
    FoldShapes().run(model, RunContext(model))
    assert time.process_time() - begin < 6
    assert sum(1 for node in model.nodes() if node.op_type != "Relu") <= 1


def test_weights_stay_out_of_the_way(exact: Any) -> None:
    """Equal sizes are one weight, and it lies in the main graph."""
    text = f"""{HEAD} g (float[b, 8] x) => (int64[1] y, int64[1] z) <int64[1] one = {{1}}> {{
        n = Shape(x) a = Gather(n, one) y = Neg(a) m = Neg(x) k = Shape(m) c = Gather(k, one) z = Abs(c) }}"""
    model, _ = exact(text, FoldShapes(), [{"x": floats(2, 8)}])
    used = {value for node in model.nodes() for value in node.inputs if value is not None and value.is_initializer()}
    assert all(isinstance(value, ir.Value) for value in used)
    assert len(used) == 1


def test_shapes_declared_for_values_that_shrink_are_not_left_behind() -> None:
    """Without the Expand, what is computed of it has fewer elements than the model says; its reader repeats them."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 4, 3, 5] s, float[2, 1, 1, 5] m)
        => (float[2, 4, 3, 5] y)
        <int64[4] full = {2, 1, 3, 5}, float c = {2}, float[2, 1, 3, 5] e, float[2, 1, 3, 5] w> {
        e = Expand(m, full) w = Mul(e, c) y = Add(s, w) }"""
    model = load(onnx.parser.parse_model(text))
    FoldShapes().run(model, RunContext(model))
    assert [node.op_type for node in model.nodes()] == ["Mul", "Add"]
    onnx.checker.check_model(model.proto(), full_check=True)
