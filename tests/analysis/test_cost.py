"""Totals: published figures, hand counts, control flow, sizes of files."""

import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.analysis.cost import Cost, cost
from onnxopt.analysis.shapes import infer
from onnxopt.model import Model, load

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.example": 1]>'


def cost_of(text: str, **sizes: tuple[int, ...]) -> Cost:
    model = load(onnx.parser.parse_model(HEAD + text))
    return cost(model, infer(model, sizes))


def test_resnet_20_has_its_published_cost(zoo: Path) -> None:
    """He et al. 2016: 0.27 M parameters; 41 M multiply-adds at 32 x 32, here summed up from the architecture."""
    model = load(zoo / "resnet20_cifar_dynamo.onnx")
    found = cost(model, infer(model, {"image": (1, 3, 32, 32)}))
    first = 32 * 32 * 9 * 3 * 16
    stages = [
        (side * side * 9) * (before * width + 5 * width * width)
        for side, before, width in ((32, 16, 16), (16, 16, 32), (8, 32, 64))
    ]
    assert found.macs == first + sum(stages) + 64 * 10
    assert found.macs / 1e6 == pytest.approx(40.8, rel=0.01)
    assert found.params / 1e6 == pytest.approx(0.27, abs=0.005)
    assert found.unknown_macs == ()
    assert found.sizes == {"image": (1, 3, 32, 32)}
    batch = cost(model, infer(model, {"image": (7, 3, 32, 32)}))
    assert batch.macs == 7 * found.macs
    assert (batch.params, batch.weight_bytes) == (found.params, found.weight_bytes)


def test_a_dynamic_batch_is_unknown_until_it_has_a_size() -> None:
    text = "g (float[N,4] x) => (y) <float[4,2] w = {1,2,3,4,5,6,7,8}> { [first] y = MatMul(x, w) }"
    found = cost_of(text)
    assert (found.macs, found.unknown_macs, found.activation_peak) == (0, ("first",), None)
    assert (found.nodes[0].macs, found.nodes[0].activation_bytes) == (None, None)
    assert found.sizes == {"x": ("N", 4)}
    found = cost_of(text, x=(3, 4))
    assert (found.macs, found.unknown_macs, found.nodes[0].activation_bytes) == (24, (), 24)


def test_a_shared_weight_counts_once_and_at_its_first_reader() -> None:
    found = cost_of("""g (float[2,2] x) => (y) <float[2,2] w = {1,2,3,4}>
        { k = Constant<value_floats = [1.0, 2.0]>() a = MatMul(x, w) b = MatMul(a, w) c = Add(b, k) y = Add(c, k) }""")
    assert [(n.op_type, n.params, n.weight_bytes) for n in found.nodes] == [
        ("Constant", 0, 0), ("MatMul", 4, 16), ("MatMul", 0, 0), ("Add", 2, 8), ("Add", 0, 0),
    ]  # fmt: skip
    assert (found.params, found.weight_bytes, found.macs) == (6, 24, 16)
    assert found.nodes[1].name == "a"


def test_lifting_a_constant_changes_no_count() -> None:
    node = cost_of("""g (float[2,4] x) => (y)
        { w = Constant<value = float[4,2] {1,2,3,4,5,6,7,8}>() y = MatMul(x, w) }""")
    weight = cost_of("g (float[2,4] x) => (y) <float[4,2] w = {1,2,3,4,5,6,7,8}> { y = MatMul(x, w) }")
    for kind in ("params", "weight_bytes", "macs", "activation_peak"):
        assert getattr(node, kind) == getattr(weight, kind)


def test_the_larger_branch_of_an_if_counts_with_its_weights() -> None:
    found = cost_of("""g (float[2,4] x, bool c) => (y) {
        [choice] y = If (c) <
          then_branch = t () => (u) {
            w = Constant<value = float[4,3] {1,2,3,4,5,6,7,8,9,10,11,12}>() u = MatMul(x, w) },
          else_branch = e () => (v) { t = Transpose(x) r = MatMul(x, t) v = Relu(r) }> }""")
    assert found.macs == max(2 * 4 * 3, 2 * 4 * 2)
    assert [(n.name, n.macs, n.params, n.weight_bytes) for n in found.nodes] == [("choice", 24, 12, 48)]


LOOP = """g (float[2,2] x, int64 m) => (y) { n = Constant<value_int = 5>() yes = Constant<value = bool {1}>()
    [loop] y = Loop (%s, x) <body = b (int64 i, bool go, float[2,2] h) => (go2, h2) { %s h2 = MatMul(h, x) }> }"""


@pytest.mark.parametrize(
    ("limits", "body", "trips"),
    [
        ("n, yes", "go2 = Identity(go)", 5),
        ("n, ", "go2 = Identity(go)", 5),
        ("n, yes", "go2 = Constant<value = bool {1}>()", 5),
        ("m, yes", "go2 = Identity(go)", None),
        ("n, yes", "s = ReduceSum<keepdims = 0>(h) f = Cast<to = 9>(s) go2 = Identity(f)", None),
    ],
)
def test_a_loop_counts_as_often_as_it_runs(limits: str, body: str, trips: int | None) -> None:
    found = cost_of(LOOP % (limits, body))
    assert found.macs == (trips or 1) * 8
    assert [note.split(":")[0] for note in found.notes] == ([] if trips else ["loop"])


def test_a_scan_counts_as_often_as_it_runs() -> None:
    text = """g (float[2,2] x, float[T,2,2] s) => (z) {
        [scan] a, z = Scan <num_scan_inputs = 1, body = b (float[2,2] acc, float[2,2] row) => (acc2, o)
          { acc2 = MatMul(acc, row) o = Identity(acc2) }> (x, s) }"""
    assert cost_of(text, s=(6, 2, 2)).macs == 6 * 8
    assert cost_of(text).notes == ("scan: how often the body of Scan runs is not known; it counts once",)


def test_unknown_nodes_are_named_and_the_rest_is_counted() -> None:
    found = cost_of("""g (float[2,2] x, bool c) => (y) {
        [known] a = MatMul(x, x) [foreign] b = com.example.Mix(a)
        [choice] y = If (c) <then_branch = t () => (u) { [inner] p = MatMul(b, b) u = MatMul(x, x) },
                             else_branch = e () => (v) { v = Relu(a) }> }""")
    assert found.unknown_macs == ("foreign", "inner")
    assert [node.macs for node in found.nodes] == [8, None, 8]
    assert (found.macs, found.activation_peak) == (16, None)


def test_a_call_is_unknown_when_its_body_multiplies() -> None:
    found = cost_of("""g (float[2,2] x) => (y) { [light] a = com.example.Light(x) [heavy] y = com.example.Heavy(a) }
        <domain: "com.example", opset_import: ["": 21]> Light (u) => (v) { v = Relu(u) }
        <domain: "com.example", opset_import: ["": 21, "com.example": 1]> Heavy (u) => (v) { v = com.example.Inner(u) }
        <domain: "com.example", opset_import: ["": 21]> Inner (u) => (v) { v = MatMul(u, u) }""")
    assert [node.macs for node in found.nodes] == [0, None]
    assert found.unknown_macs == ("heavy",)


def test_an_own_product_is_counted_through_its_body() -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "ai.onnxopt": 1]>
        g (float[N,4] x, float[5,4] planes) => (y) { y = ai.onnxopt.LowBitMatMulPlanes(x, planes) }
        <domain: "ai.onnxopt", opset_import: ["": 21]>
        LowBitMatMulPlanes (x, w) => (y) { t = Transpose(w) y = MatMul(x, t) }"""
    model = load(onnx.parser.parse_model(text))
    assert cost(model, infer(model, {"x": (3, 4)})).macs == 3 * 4 * 5


def test_the_peak_of_activations() -> None:
    """The input stays; other values live from their node to their last reader, outputs to the end."""
    text = "g (float[8] x) => (%s) { a = Neg(x) b = Concat<axis=0>(a, a) c = Relu(b) y = ReduceSum(c) }"
    found = cost_of(text % "y")
    assert [node.activation_bytes for node in found.nodes] == [32, 64, 64, 4]
    assert found.activation_peak == 32 + 64 + 64
    assert cost_of(text % "y, a").activation_peak == 32 + 32 + 64 + 64
    half = cost_of("g (float16[7] x) => (y) { y = Neg(x) dead = Concat<axis=0>(y, y) z = Relu(x) }")
    assert half.activation_peak == 14 + 14 + 28
    assert cost_of("g (float[8] x, int64[1] s) => (y) { y = Slice(x, s, s) }").activation_peak is None


def test_file_size_is_about_that_of_the_file(zoo: Path) -> None:
    for path in sorted(zoo.glob("*.onnx")):
        model = load(path)
        assert cost(model, infer(model)).file_bytes == pytest.approx(path.stat().st_size, rel=0.02), path.name


def test_file_size_of_a_graph_without_weights(zoo: Path) -> None:
    """What is not weights is an estimate within a third."""
    for path in sorted(zoo.glob("*.onnx")):
        model = load(path)
        found = cost(model, infer(model))
        rest = path.stat().st_size - found.weight_bytes
        assert found.file_bytes - found.weight_bytes == pytest.approx(rest, rel=0.35), path.name


def test_a_chain_of_20000_nodes() -> None:
    x = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, weights, value = [], [], x
    for i in range(20_000):
        weights.append(ir.Value(name=f"w{i}", const_value=ir.tensor(np.ones(4, np.float32), name=f"w{i}")))
        nodes.append(ir.node("Add", [value, weights[-1]], name=f"n{i}"))
        value = nodes[-1].outputs[0]
        value.name = f"v{i}"
    graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="g")
    model = Model(ir.Model(graph, ir_version=10))
    shapes = infer(model)
    start = time.process_time()
    found = cost(model, shapes)
    assert time.process_time() - start < 3
    assert (found.params, found.macs, found.activation_peak) == (80_000, 0, 16 * 3)
