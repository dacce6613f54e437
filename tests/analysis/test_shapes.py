"""Shapes against what onnxruntime really computes, and against what models falsely say."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxopt.analysis.shapes import infer, observation, observed_from
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models.builders import RARE

Array = npt.NDArray[np.generic]

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.example": 1]>'


def model_of(text: str) -> Model:
    return load(onnx.parser.parse_model(HEAD + text))


def run(model: Model | ir.Model, feeds: dict[str, Array], folder: Path) -> dict[str, Array]:
    path = folder / "model.onnx"
    (model if isinstance(model, Model) else Model(model)).save(path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip([out.name for out in session.get_outputs()], session.run(None, feeds), strict=True))


def main_names(model: Model) -> list[str]:
    made = [value.name for node in model.graph for value in node.outputs if value.name]
    return [*(value.name or "" for value in model.graph.inputs if not value.is_initializer()), *made]


ZOO = [
    "digits_cnn_bn_dynamo", "digits_lstm_legacy", "digits_transformer_legacy", "fashion_se_net_legacy",
    "hf_bert_tiny_dynamo", "resnet20_cifar_dynamo",
]  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_every_shape_of_a_real_model_is_the_one_that_it_runs_with(name: str, zoo: Path, tmp_path: Path) -> None:
    model = load(zoo / f"{name}.onnx")
    arrays = np.load(zoo / f"{name}.calib.npz")
    feeds = {key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith("feed0000/")}
    sizes = {key: array.shape for key, array in feeds.items()}
    real = observed_from(run(observation(model, main_names(model)), feeds, tmp_path))
    assert set(real) == set(main_names(model))
    inferred = infer(model, sizes)
    assert {n: s for n in real if (s := inferred.concrete(n)) is not None and s != real[n]} == {}
    assert inferred.contradictions == ()
    complete = infer(model, sizes, real)
    assert complete.unknown() == []
    assert {n: complete.concrete(n) for n in real} == real
    assert complete.contradictions == ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning:onnx")  # onnx's own test cases overflow on purpose
def test_no_shape_of_onnx_own_node_tests_is_false() -> None:
    from onnx.backend.test.case.node import collect_testcases

    checked = 0
    for case in collect_testcases(None):
        assert case.model is not None
        for inputs, outputs in case.data_sets or ():
            model = load(case.model.SerializeToString())
            sizes = {
                v.name or "": np.shape(a)
                for v, a in zip(model.graph.inputs, inputs, strict=False)
                if isinstance(a, np.ndarray)
            }
            shapes = infer(model, sizes)
            for value, array in zip(model.graph.outputs, outputs, strict=False):
                found = shapes.concrete(value)
                if found is not None and isinstance(array, np.ndarray):
                    checked += 1
                    assert found == array.shape, case.name
    assert checked > 1500


def test_a_symbol_stands_for_one_size_wherever_it_occurs() -> None:
    model = model_of("g (float[N,T] x, float[N,4] y, float[T,M] z) => (float[N,M] out) { out = MatMul(x, z) }")
    assert infer(model).of("out") == ("N", "M")
    shapes = infer(model, {"x": (3, 5)})
    assert shapes.symbols == {"N": 3, "T": 5, "M": None}
    assert (shapes.of("y"), shapes.of("z"), shapes.of("out")) == ((3, 4), (5, "M"), (3, "M"))
    assert shapes.concrete("y") == (3, 4)
    assert shapes.concrete("out") is None
    assert shapes.unknown() == ["z", "out"]
    assert infer(model, {"x": (3, 5), "z": (5, 2)}).unknown() == []


def test_given_sizes_that_do_not_fit_win_and_are_told() -> None:
    model = model_of("g (float[N,4] x, float[N,4] y) => (float[N,4] out) { out = Neg(y) }")
    shapes = infer(model, {"x": (3, 5), "y": (2, 4), "label": (3,)})
    assert (shapes.of("x"), shapes.of("y"), shapes.of("out")) == ((3, 5), (2, 4), (2, 4))
    told = {(c.name, c.declared, c.inferred, c.where) for c in shapes.contradictions}
    assert told == {
        ("label", None, (3,), "input"), ("x", (3, 4), (3, 5), "input"), ("y", (3, 4), (2, 4), "input"),
        ("out", (3, 4), (2, 4), "output"),
    }  # fmt: skip


def test_declared_shapes_of_inner_values_are_not_believed() -> None:
    model = model_of("""g (float[2,8] x) => (float[2,64] y) <float[2,64] a, float[7] b>
        { a = Neg(x) b = Relu(a) y = Abs(b) }""")
    shapes = infer(model)
    assert {n: shapes.of(n) for n in "aby"} == {"a": (2, 8), "b": (2, 8), "y": (2, 8)}
    assert shapes.contradictions == (("y", (2, 64), (2, 8), "output"),)
    assert [value.shape for value in model.graph.outputs] == [[2, 64]]


def test_declared_shapes_count_where_nothing_can_be_inferred() -> None:
    model = model_of("""g (float[N,8] x) => (y, z) <float[N,6] a>
        { a = com.example.Mix(x) y = Relu(a) b = com.example.Mix(x) z = Relu(b) }""")
    shapes = infer(model, {"x": (2, 8)})
    assert (shapes.of("a"), shapes.of("y")) == ((2, 6), (2, 6))
    assert (shapes.of("b"), shapes.dtype("b"), shapes.is_tensor("b"), shapes.of("z")) == (None, None, None, None)
    assert shapes.unknown() == ["b", "z"]


def test_what_was_observed_wins_and_helps_those_behind() -> None:
    model = model_of("""g (float[N,8] x, bool c) => (k, y)
        { k = NonZero(x) w = Cast<to=1>(k)
          y = If (c) <then_branch = t () => (u) { u = Relu(w) }, else_branch = e () => (v) { v = Neg(w) }> }""")
    assert infer(model, {"x": (2, 8)}).of("k") == (2, None)
    shapes = infer(model, {"x": (2, 8)}, {"k": (2, 5)})
    assert [shapes.of(n) for n in ("k", "w", "u", "v", "y")] == [(2, 5)] * 5
    stale = infer(model, {"x": (2, 8)}, {"k": (2, 5), "x": (3, 8)})
    assert stale.of("x") == (3, 8)
    scalar = infer(model_of("g (float[2] x) => (y) { a = com.example.Mix(x) y = Relu(a) }"), None, {"a": ()})
    assert scalar.of("a") == ()


def test_an_observation_that_contradicts_the_graph_is_told() -> None:
    model = model_of("g (float[N,8] x) => (y) { a = Neg(x) y = Relu(a) }")
    shapes = infer(model, {"x": (2, 8)}, {"a": (2, 16)})
    assert shapes.of("a") == (2, 16)
    assert shapes.contradictions == (("a", (2, 8), (2, 16), "observed"),)


def test_where_inference_gives_up_declared_shapes_are_left() -> None:
    text = """g (float[N,8] x, float[3,8] w) => (float[N,8] y) <float[N,8] a> { a = com.example.F(x) y = Neg(a) }
        <domain: "com.example", opset_import: ["": 21, "com.example": 1]> F (u) => (v) { v = com.example.F(u) }"""
    shapes = infer(model_of(text), {"x": (2, 8)})
    assert shapes.failure is not None
    assert "recursive" in shapes.failure
    assert [shapes.of(n) for n in ("x", "w", "a", "y")] == [(2, 8), (3, 8), (2, 8), (2, 8)]


def test_functions_are_looked_into() -> None:
    model = model_of("""g (float[N,8] x) => (y) { y = com.example.F(x) }
        <domain: "com.example", opset_import: ["": 21]> F (u) => (v) { t = Transpose<perm=[1,0]>(u) v = Neg(t) }""")
    assert infer(model, {"x": (2, 8)}).of("y") == (8, 2)


def test_large_weights_are_not_read_and_small_integers_are() -> None:
    reads = []

    def content() -> ir.TensorProtocol:
        reads.append("w")
        return ir.tensor(np.ones((8, 1024), np.float32))

    model = model_of("""g (float[N,8] x) => (y) <float[8,1024] w, int64[2] size = {-1, 16}>
        { a = MatMul(x, w) k = Constant<value = int64[1] {4}>() b = Reshape(a, size) y = Unsqueeze(b, k) }""")
    w = next(value for node in model.graph for value in node.inputs if value is not None and value.name == "w")
    w.const_value = ir.LazyTensor(content, ir.DataType.FLOAT, ir.Shape([8, 1024]), name="w")
    model.graph.initializers.add(w)
    shapes = infer(model, {"x": (2, 8)})
    assert (shapes.of("w"), shapes.of("a"), shapes.of("b")) == ((8, 1024), (2, 1024), (128, 16))
    assert reads == []


def test_sizes_flow_through_shape_arithmetic() -> None:
    model = model_of("""g (float[N,8,4] x) => (y) <int64 zero = {0}, int64[1] at = {0}, int64[1] rest = {-1}>
        { s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, at) two = Add(u, u) k = Concat<axis=0>(two, rest)
          y = Reshape(x, k) }""")
    assert infer(model, {"x": (3, 8, 4)}).of("y") == (6, 16)


def test_integers_of_a_long_shape_are_read() -> None:
    ones = ", ".join(["1"] * 18)
    model = model_of(f"g (float[2,3] x) => (y) <int64[20] size = {{3, {ones}, 2}}> {{ y = Reshape(x, size) }}")
    assert infer(model).of("y") == (3, *[1] * 18, 2)


def test_a_domain_that_is_not_imported_stops_nothing() -> None:
    proto = onnx.parser.parse_model(HEAD + "g (float[N,8] x) => (y) { a = Neg(x) b = com.example.Mix(a) y = Abs(a) }")
    del proto.opset_import[1]
    shapes = infer(load(proto), {"x": (2, 8)})
    assert (shapes.failure, shapes.of("y"), shapes.of("b")) == (None, (2, 8), None)


def test_large_constants_of_subgraphs_have_a_shape_and_names_may_repeat() -> None:
    weight = onnx.numpy_helper.from_array(np.ones((4, 30), np.float32), "w")
    other = onnx.numpy_helper.from_array(np.ones((4, 20), np.float32), "w")
    constant = onnx.helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.ones(30, np.float32)))
    product, bias = onnx.helper.make_node("MatMul", ["x", "w"], ["p"]), onnx.helper.make_node("Add", ["p", "k"], ["q"])
    out = onnx.helper.make_empty_tensor_value_info("p")
    branches: dict[str, Any] = {
        "then_branch": onnx.helper.make_graph([constant, product, bias], "t", [], [bias_info()], [weight]),
        "else_branch": onnx.helper.make_graph([product], "e", [], [out], [other]),
    }
    node = onnx.helper.make_node("If", ["c"], ["y"], **branches)
    inputs = [onnx.helper.make_tensor_value_info("x", 1, ["N", 4]), onnx.helper.make_tensor_value_info("c", 9, [])]
    graph = onnx.helper.make_graph([node], "g", inputs, [onnx.helper.make_empty_tensor_value_info("y")])
    model = load(onnx.helper.make_model(graph))
    shapes = infer(model, {"x": (5, 4)})
    found = {
        (graph.name, value.name): shapes.of(value)
        for graph in model.graph.subgraphs()
        for inner in graph
        for value in inner.outputs
    }
    assert found == {("t", "k"): (30,), ("t", "p"): (5, 30), ("t", "q"): (5, 30), ("e", "p"): (5, 20)}


def bias_info() -> onnx.ValueInfoProto:
    return onnx.helper.make_empty_tensor_value_info("q")


def test_loops_and_scans_are_looked_into() -> None:
    model = model_of("""g (int64 n, bool c, float[N,4] x, float[T,4] s) => (y, ys, z, zs) {
      y, ys = Loop (n, c, x) <body = b (int64 i, bool go, float[N,4] h) => (bool go2, h2, o)
        { go2 = Identity(go) h2 = Neg(h) o = ReduceSum<keepdims=0>(h2) }>
      first = Constant<value = float[4] {0, 0, 0, 0}>()
      z, zs = Scan <num_scan_inputs = 1, body = sb (float[9] acc, float[7] row) => (acc2, o2)
        { acc2 = Add(acc, row) o2 = Identity(acc2) }> (first, s) }""")
    shapes = infer(model, {"x": (2, 4), "s": (6, 4)})
    assert [shapes.of(n) for n in ("h2", "o", "acc2", "zs")] == [(2, 4), (), (4,), (6, 4)]


def test_values_that_are_no_tensors() -> None:
    model = model_of(
        """g (float[2] x, seq(float[N]) s) => (y) { q = SequenceConstruct(x) y = SequenceAt(q, i)
        r = SplitToSequence(x) }""".replace("=> (y) {", "=> (y) { i = Constant<value_int = 0>()")
    )
    shapes = infer(model)
    assert [shapes.is_tensor(n) for n in ("x", "s", "q", "r", "y")] == [True, False, False, False, True]
    assert shapes.of("q") is None
    assert set(shapes.unknown()) <= {"y"}
    assert [out.name for out in observation(model, ["s", "q", "y"]).graph.outputs] == ["onnxopt.shape:y"]


def test_observation_leaves_out_types_that_shape_does_not_take() -> None:
    for opset, names in ((18, ["y"]), (21, ["q", "y"])):
        model = model_of("g (float[2] x, float s, float8e4m3fn z) => (y) { y = Neg(x) q = QuantizeLinear(x, s, z) }")
        model.ir.opset_imports[""] = opset
        assert [o.name for o in observation(model, ["q", "y"]).graph.outputs] == [f"onnxopt.shape:{n}" for n in names]


def test_observation_keeps_inputs_shares_weights_and_drops_what_it_does_not_need(tmp_path: Path) -> None:
    model = model_of("""g (float[N,4] x, float[N] unused) => (float[N,2] y) <float[4,2] w = {1,2,3,4,5,6,7,8}>
        { k = NonZero(x) a = MatMul(x, w) y = Relu(a) dead = Exp(y) }""")
    before = model.proto().SerializeToString(deterministic=True)
    variant = observation(model, ["k", "x", "k"])
    assert [value.name for value in variant.graph.inputs] == ["x", "unused"]
    assert [node.op_type for node in variant.graph] == ["NonZero", "Shape", "Shape"]
    assert variant.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    feeds: dict[str, Array] = {"x": np.eye(3, 4, dtype=np.float32), "unused": np.zeros(3, np.float32)}
    assert observed_from(run(variant, feeds, tmp_path)) == {"k": (2, 3), "x": (3, 4)}
    assert model.proto().SerializeToString(deterministic=True) == before
    infer(model, {"x": (3, 4)}, {"k": (2, 3)})
    assert model.proto().SerializeToString(deterministic=True) == before


def test_observation_of_a_sparse_initializer_and_of_unsorted_nodes(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(HEAD + "g (float[N,3] x) => (float[N,2] y) { y = Relu(a) a = MatMul(x, w) }")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(
        onnx.helper.make_tensor("w", 1, [2], [1.0, 2.0]), onnx.helper.make_tensor("w_i", 7, [2], [0, 3]), [3, 2]
    ))  # fmt: skip
    model = load(proto)
    uses = [len(tuple(v.uses())) for n in model.graph for v in n.inputs if v is not None]
    variant = observation(model, ["y", "a"])
    assert [value.name for value in variant.graph.inputs] == ["x"]
    assert [len(tuple(v.uses())) for n in model.graph for v in n.inputs if v is not None] == uses
    assert [node.op_type for node in variant.graph] == ["MatMul", "Relu", "Shape", "Shape"]
    assert observed_from(run(variant, {"x": np.ones((5, 3), np.float32)}, tmp_path)) == {"y": (5, 2), "a": (5, 2)}


def test_observation_of_a_value_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="no value 'w' to observe"):
        observation(model_of("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"), ["y", "w"])


@pytest.mark.parametrize("backwards", [False, True])
def test_a_chain_of_20000_nodes(backwards: bool) -> None:
    x = ir.Value(name="x", shape=ir.Shape(["N", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    weights, nodes, value = [], [], x
    for i in range(10_000):
        weights.append(ir.Value(name=f"w{i}", const_value=ir.tensor(np.ones(4, np.float32), name=f"w{i}")))
        nodes.append(ir.node("Add", [value, weights[-1]], name=f"add{i}"))
        nodes.append(ir.node("Relu", [nodes[-1].outputs[0]], name=f"relu{i}"))
        for node in nodes[-2:]:
            node.outputs[0].name = f"{node.name}_out"
        value = nodes[-1].outputs[0]
    graph = ir.Graph(
        [x], [value], nodes=nodes[::-1] if backwards else nodes, initializers=weights, opset_imports={"": 21}, name="g"
    )
    model = Model(ir.Model(graph, ir_version=10))
    start = time.process_time()
    shapes = infer(model, {"x": (3, 4)})
    seconds = time.process_time() - start
    assert shapes.concrete(value) == (3, 4)
    assert shapes.unknown() == []
    assert seconds < 3


def test_attributes_that_onnx_ir_cannot_hold_do_not_stop_inference() -> None:
    constant = infer(load(RARE["sparse-constant"]()))
    assert (constant.of("w"), constant.dtype("w")) == ((4, 5), ir.DataType.FLOAT)
    proto = onnx.parser.parse_model(
        HEAD
        + """g (bool c, float[2] x) => (float[n] y) {
        a = com.example.Mystery (x)
        y = If (c) <then_branch = t () => (float[k] p) { b = com.example.Mystery (x) p = Neg (x) },
                    else_branch = e () => (float[k] r) { r = Abs (x) }> }"""
    )
    floats = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    odd = [b"\xff", [b"a", b"\xff"], onnx.helper.make_map_type_proto(onnx.TensorProto.STRING, floats)]
    for node in (proto.graph.node[0], proto.graph.node[1].attribute[0].g.node[0]):
        node.attribute.extend(onnx.helper.make_attribute(f"odd{i}", content) for i, content in enumerate(odd))
    shapes = infer(load(proto))
    assert shapes.failure is None
    assert shapes.of("y") == (2,)


def test_operators_that_onnx_does_not_follow_are_followed() -> None:
    """A target that is divided, for which onnx's inference has no value."""
    model = model_of("""g (float[N,8] x) => (y) <int64[1] two = {2}, int64[1] rest = {-1}>
        { s = Shape<start=0, end=1>(x) h = Div(s, two) k = Concat<axis=0>(h, rest) r = Reshape(x, k) y = Relu(r) }""")
    assert infer(model, {"x": (6, 8)}, thorough=True).of("y") == (3, 16)
    assert infer(model, {"x": (6, 8)}).of("y") != (3, 16)
