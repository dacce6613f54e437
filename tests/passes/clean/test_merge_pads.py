"""merge-pads: padding goes into what can pad alike, and nowhere else."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.merge_pads import MergePads

WEIGHTS = """<int64[8] p = {0, 0, 1, 2, 0, 0, 0, 1}, int64[8] channel = {0, 1, 1, 1, 0, 0, 1, 1},
    int64[4] q = {1, 2, 0, 1}, int64[2] axes = {2, -1}, int64[8] crop = {0, 0, -1, 0, 0, 0, 0, 0}, float two = {2},
    float zero = {0}, float lowest = {-3.4028235e38}, float[2, 3, 3, 3] w, float[1, 2] nothing = {0, 0}>"""


def parsed(body: str, opset: int = 18) -> Model:
    source = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 3, 8, 8] x) => (float[A, B, C, D] y) {WEIGHTS.replace(", float[2, 3, 3, 3] w", "")} {{ {body} }}"""
    proto = onnx.parser.parse_model(source)
    weight = np.random.default_rng(1).standard_normal((2, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return load(proto)


def feeds() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((n, 3, 8, 8)).astype(np.float32)} for n in (1, 3)]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Pad(x, p) y = Conv(a, w)", ["Conv"]),
        ("a = Pad(x, p, zero) y = Conv<pads = [1, 0, 2, 1], strides = [2, 1]>(a, w)", ["Conv"]),
        ('a = Pad(x, q, , axes) y = Conv<auto_pad = "VALID", dilations = [2, 1]>(a, w)', ["Conv"]),
        ('a = Pad(x, p) y = Conv<auto_pad = "SAME_UPPER">(a, w)', ["Pad", "Conv"]),
        ("a = Pad(x, p, two) y = Conv(a, w)", ["Pad", "Conv"]),
        ('a = Pad<mode = "reflect">(x, p) y = Conv(a, w)', ["Pad", "Conv"]),
        ("a = Pad(x, crop) y = Conv(a, w)", ["Pad", "Conv"]),
        ("a = Pad(x, p) b = Pad(a, p) y = Conv(b, w)", ["Conv"]),
        ("a = Pad(x, p, two) y = Pad(a, channel, two)", ["Pad"]),
        ("a = Pad(x, q, , axes) y = Pad(a, channel)", ["Pad"]),
        ("a = Pad(x, p, two) y = Pad(a, channel)", ["Pad", "Pad"]),
        ("a = Pad(x, p) y = Pad(a, crop)", ["Pad", "Pad"]),
        ("a = Pad(x, p) y = AveragePool<kernel_shape = [3, 3]>(a)", ["AveragePool"]),
        ("a = Pad(x, p) y = AveragePool<kernel_shape = [3, 3], pads = [1, 0, 1, 0], count_include_pad = 1>(a)",
         ["AveragePool"]),
        ("a = Pad(x, p) y = AveragePool<kernel_shape = [3, 3], pads = [1, 0, 1, 0]>(a)", ["Pad", "AveragePool"]),
        ("a = Pad(x, p) y = AveragePool<kernel_shape = [3, 3], ceil_mode = 1>(a)", ["Pad", "AveragePool"]),
        ("a = Pad(x, p, lowest) y = MaxPool<kernel_shape = [3, 3]>(a)", ["MaxPool"]),
        ("a = Pad(x, p) y = MaxPool<kernel_shape = [3, 3]>(a)", ["Pad", "MaxPool"]),
        ("r = Relu(x) a = Pad(r, p) y = MaxPool<kernel_shape = [3, 3], pads = [1, 0, 1, 0]>(a)", ["Relu", "MaxPool"]),
        ("a = Pad(x, p) b = Conv(a, w) c = Conv<pads = [1, 1, 1, 1], strides = [1, 1]>(x, w) d = Neg(a) e = Conv(d, w) "
         "y = Add(b, e)", None),
    ],
)  # fmt: skip
def test_where_padding_goes(exact: Any, ops: Any, body: str, left: list[str] | None) -> None:
    model = parsed(body)
    exact(model, MergePads(), feeds(), tolerance=1e-6)
    assert ops(model) == (["Pad", "Conv", "Conv", "Neg", "Conv", "Add"] if left is None else left)


@pytest.mark.parametrize(
    ("body", "opset", "left"),
    [
        ("a = Pad<pads = [0, 0, 1, 2, 0, 0, 0, 1]>(x) y = Conv(a, w)", 10, ["Conv"]),
        ("a = Pad<pads = [0, 0, 1, 2, 0, 0, 0, 1], value = 1.0>(x) y = Conv(a, w)", 10, ["Pad", "Conv"]),
        ("a = Pad<pads = [0, 0, 1, 2, 0, 0, 0, 1]>(x) y = Pad<pads = [0, 0, 1, 2, 0, 1, 0, 1]>(a)", 10, ["Pad"]),
    ],
)
def test_pads_as_attributes(exact: Any, ops: Any, body: str, opset: int, left: list[str]) -> None:
    model = parsed(body, opset)
    exact(model, MergePads(), feeds(), tolerance=1e-6)
    assert ops(model) == left


@pytest.mark.parametrize(
    "body",
    [
        "a = Pad(x, p) y = AveragePool<kernel_shape = [3, 2]>(a)",
        "a = Pad(x, p, lowest) y = MaxPool<kernel_shape = [3, 2]>(a)",
    ],
)
def test_windows_without_an_entry_stay(ops: Any, body: str) -> None:
    """No runtime takes pads as large as the window (onnxruntime fails on its own attempt to merge them)."""
    model = parsed(body)
    assert not MergePads().run(model, RunContext(model)).changed


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Pad(x, p, two) y = Conv(a, w)", "by 2"),
        ("a = Pad(x, p) y = AveragePool<kernel_shape = [3, 3], pads = [1, 0, 1, 0]>(a)", "does not count"),
    ],
)
def test_what_is_refused_has_a_reason(body: str, reason: str) -> None:
    model = parsed(body)
    assert reason in MergePads().run(model, RunContext(model)).declined[0].why


@settings(max_examples=60)
@given(data=st.data())
def test_random_pads_and_windows(exact: Any, data: st.DataObject) -> None:
    """Pads, then one operator with a window, of random geometry."""
    nodes, last = [helper.make_node("Relu", ["x"], ["r"])], data.draw(st.sampled_from(["x", "r"]))
    small = st.lists(st.integers(0, 1), min_size=4, max_size=4)
    weights = [numpy_helper.from_array(np.random.default_rng(1).standard_normal((2, 3, 3, 3)).astype(np.float32), "w")]
    for index in range(data.draw(st.integers(1, 2))):
        pads = data.draw(small)
        weights.append(numpy_helper.from_array(np.int64([0, 0, *pads[:2], 0, 0, *pads[2:]]), f"p{index}"))
        number = data.draw(st.sampled_from([0.0, -np.inf, 1.0]))
        weights.append(numpy_helper.from_array(np.float32(number), f"n{index}"))
        nodes.append(helper.make_node("Pad", [last, f"p{index}", f"n{index}"], [f"a{index}"]))
        last = f"a{index}"
    op = data.draw(st.sampled_from(["Conv", "AveragePool", "MaxPool"]))
    window: dict[str, Any] = {
        "kernel_shape": [3, 3] if op == "Conv" else [5, 4],
        "strides": data.draw(st.sampled_from([[1, 1], [2, 1]])),
    }
    if data.draw(st.booleans()):
        window["pads"] = data.draw(small)
    if op != "Conv" and data.draw(st.booleans()):
        window["ceil_mode"] = 1
    if op == "AveragePool" and data.draw(st.booleans()):
        window["count_include_pad"] = 1
    nodes.append(helper.make_node(op, [last, "w"] if op == "Conv" else [last], ["y"], **window))
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 6]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)]  # fmt: skip
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    model = load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    exact(model, MergePads(), {"x": x}, tolerance=1e-6)
