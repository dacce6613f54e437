"""fold-batchnorm: into every kind of layer, exactly; a reason for each that stays."""

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
from onnxopt.passes.clean.fold_batchnorm import FoldBatchnorm

RNG = np.random.default_rng(5)
START = RNG.bit_generator.state
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _same_numbers_in_whatever_order_tests_run() -> None:
    RNG.bit_generator.state = START


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def statistics(channels: int, prefix: str = "") -> Arrays:
    """scale, bias, mean, variance."""
    arrays = [random(channels), random(channels), random(channels), RNG.random(channels).astype(np.float32) + 0.1]
    return {prefix + name: array for name, array in zip(("scale", "shift", "mean", "var"), arrays, strict=True)}


def model(body: str, x: str, weights: Arrays, head: str = '<ir_version: 8, opset_import: ["" : 17]>') -> Model:
    dims = ", ".join(f"D{axis}" for axis in range(x.count(",") + 1))
    proto = onnx.parser.parse_model(f"{head} g ({x} x) => ({x.split('[')[0]}[{dims}] y) {{ {body} }}")
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    if proto.ir_version < 4:
        info = helper.make_tensor_value_info
        dtype = helper.np_dtype_to_tensor_dtype
        proto.graph.input.extend(info(n, dtype(a.dtype), a.shape) for n, a in weights.items())
    return load(proto)


NORM = "y = BatchNormalization(c, scale, shift, mean, var)"


@pytest.mark.parametrize(
    ("layer", "x", "weights", "left"),
    [
        ("c = Conv(x, w)", "float[2, 4, 8, 8]", {"w": (6, 4, 3, 3)}, ["Conv"]),
        ("c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w, b)", "float[2, 4, 8, 8]",
         {"w": (6, 4, 3, 3), "b": (6,)}, ["Conv"]),
        ("c = Conv<group = 2>(x, w, b)", "float[2, 4, 8]", {"w": (6, 2, 3), "b": (6,)}, ["Conv"]),
        ("c = Conv<group = 6>(x, w)", "float[1, 6, 5, 5, 5]", {"w": (6, 1, 2, 2, 2)}, ["Conv"]),
        ("c = ConvTranspose(x, w)", "float[2, 4, 5, 5]", {"w": (4, 6, 3, 3)}, ["ConvTranspose"]),
        ("c = ConvTranspose<group = 2>(x, w, b)", "float[2, 4, 5, 5]",
         {"w": (4, 3, 3, 3), "b": (6,)}, ["ConvTranspose"]),
        ("c = Gemm(x, w, b)", "float[3, 4]", {"w": (4, 6), "b": (6,)}, ["Gemm"]),
        ("c = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b)", "float[3, 4]", {"w": (6, 4), "b": (6,)}, ["Gemm"]),
        ("c = Gemm<transB = 1>(x, w)", "float[3, 4]", {"w": (6, 4)}, ["Gemm"]),
        ("c = MatMul(x, w)", "float[3, 4]", {"w": (4, 6)}, ["MatMul", "Add"]),
        ("d = MatMul(x, w) c = Add(d, b)", "float[3, 4]", {"w": (4, 6), "b": (6,)}, ["MatMul", "Add"]),
        ("c = MatMul(w, x)", "float[3, 4, 5]", {"w": (6, 4)}, ["MatMul", "Add"]),
        ("c = MatMul(w, x)", "float[2, 4, 5]", {"w": (2, 6, 4)}, ["MatMul", "Add"]),
    ],
)  # fmt: skip
def test_every_kind_of_layer(exact: Any, ops: Any, layer: str, x: str, weights: Any, left: list[str]) -> None:
    arrays = {name: random(*shape) for name, shape in weights.items()} | statistics(6)
    folded, findings = exact(model(f"{layer} {NORM}", x, arrays), FoldBatchnorm(), tolerance=2e-6)
    assert ops(folded) == left
    assert len(findings.changes) == 1
    assert not {"scale", "shift", "mean", "var"} & set(folded.graph.initializers)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_every_version_of_the_operator(exact: Any, ops: Any, opset: int) -> None:
    head = f'<ir_version: {3 if opset < 9 else 8}, opset_import: ["" : {opset}]>'
    body = "c = Conv(x, w) y = BatchNormalization<epsilon = 0.01, momentum = 0.5>(c, scale, shift, mean, var)"
    source = model(body, "float[2, 4, 8, 8]", {"w": random(6, 4, 3, 3)} | statistics(6), head)
    folded, _ = exact(source, FoldBatchnorm(), tolerance=2e-6)
    assert ops(folded) == ["Conv"]


def test_half_precision(exact: Any, ops: Any) -> None:
    arrays = {name: a.astype(np.float16) for name, a in ({"w": random(6, 4, 3, 3)} | statistics(6)).items()}
    source = model(f"c = Conv(x, w) {NORM}", "float16[2, 4, 8, 8]", arrays)
    folded, _ = exact(source, FoldBatchnorm(), tolerance=4e-3)
    assert ops(folded) == ["Conv"]
    assert folded.graph.initializers["w"].dtype == ir.DataType.FLOAT16


def test_double_precision(exact: Any, ops: Any) -> None:
    arrays = {name: a.astype(np.float64) for name, a in ({"w": random(4, 6)} | statistics(6)).items()}
    source = model(f"c = Gemm(x, w) {NORM}", "double[3, 4]", arrays)
    folded, _ = exact(source, FoldBatchnorm(), tolerance=1e-14)
    assert ops(folded) == ["Gemm"]


def test_two_in_a_row(exact: Any, ops: Any) -> None:
    body = f"""c = Conv(x, w) {NORM.replace("y =", "d =")}
        y = BatchNormalization(d, two_scale, two_shift, two_mean, two_var)"""
    arrays = {"w": random(6, 4, 3, 3)} | statistics(6) | statistics(6, "two_")
    folded, _ = exact(model(body, "float[2, 4, 8, 8]", arrays), FoldBatchnorm(), tolerance=5e-6)
    assert ops(folded) == ["Conv"]


def test_the_norms_parameters_may_be_shared(exact: Any, ops: Any) -> None:
    body = """c = Conv(x, w) d = BatchNormalization(c, scale, shift, mean, var)
        e = Conv(d, v) y = BatchNormalization(e, scale, shift, mean, var)"""
    arrays = {"w": random(6, 4, 3, 3), "v": random(6, 6, 1, 1)} | statistics(6)
    folded, _ = exact(model(body, "float[2, 4, 8, 8]", arrays), FoldBatchnorm(), tolerance=5e-6)
    assert ops(folded) == ["Conv", "Conv"]


def test_in_a_branch(exact: Any, ops: Any) -> None:
    body = f"""t = Constant<value = bool {{1}}>()
        y = If(t)<then_branch = a () => (float[N, 6, M, L] p) {{ c = Conv(x, w) {NORM.replace("y =", "p =")} }},
                  else_branch = b () => (float[N, 6, M, L] q) {{ q = Conv(x, v) }}>"""
    arrays = {"w": random(6, 4, 3, 3), "v": random(6, 4, 3, 3)} | statistics(6)
    folded, _ = exact(model(body, "float[2, 4, 8, 8]", arrays), FoldBatchnorm(), tolerance=2e-6)
    assert ops(folded) == ["Constant", "If", "Conv", "Conv"]


CONV = "c = Conv(x, w)"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{CONV} d = BatchNormalization(c, scale, shift, mean, var) y = Add(d, c)", "other readers"),
        (f"{CONV} d = Relu(c) {NORM.replace('(c', '(d')}", "Relu"),
        ("c = Conv(x, w) d = Conv(x, w) e = BatchNormalization(c, scale, shift, mean, var) y = Add(e, d)", "weight w"),
        (f"v = Neg(x) {NORM.replace('(c', '(x')}", "no output of a node"),
        (f"m = ReduceMean<axes = [0, 2, 3], keepdims = 0>(x) {CONV} {NORM.replace('mean', 'm')}", "parameter m"),
        (f"{CONV} {NORM.replace('zation(', 'zation<training_mode = 1>(')}", "training"),
        (f"{CONV} {NORM.replace('y =', 'y, m, v =')}", "statistics"),
        (f"q = DequantizeLinear(qw, s) c = Conv(x, q) {NORM}", "quantized"),
        (f"h = Cast<to = 1>(hw) c = Conv(x, h) {NORM}", "FLOAT16"),
    ],
)  # fmt: skip
def test_what_stays_with_a_reason(ops: Any, body: str, reason: str) -> None:
    arrays = {
        "w": random(4, 4, 3, 3), "qw": np.ones((4, 4, 3, 3), np.int8), "s": np.float32(0.5),
        "hw": random(4, 4, 3, 3).astype(np.float16),
    } | statistics(4)  # fmt: skip
    source = model(body, "float[2, 4, 8, 8]", arrays)
    findings = FoldBatchnorm().run(source, RunContext(source))
    assert "BatchNormalization" in ops(source)
    assert [reason in declined.why for declined in findings.declined] == [True], findings.declined


@pytest.mark.parametrize(
    ("body", "head", "reason"),
    [
        (NORM.replace("zation(", "zation<spatial = 0>("), '<ir_version: 8, opset_import: ["" : 8]>', "spatial"),
        (NORM, '<ir_version: 8, opset_import: ["" : 6]>', "opset 6"),
    ],
)
def test_old_forms(body: str, head: str, reason: str) -> None:
    source = model(f"{CONV} {body}", "float[2, 4, 8, 8]", {"w": random(4, 4, 3, 3)} | statistics(4), head)
    findings = FoldBatchnorm().run(source, RunContext(source))
    assert [reason in declined.why for declined in findings.declined] == [True]


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_before_opset_14_the_number_of_outputs_says_that_it_trains(exact: Any, ops: Any, opset: int) -> None:
    """Whether anybody reads them or not: the runtime normalizes by the batch."""
    head = f'<ir_version: {3 if opset < 9 else 8}, opset_import: ["" : {opset}]>'
    body = f"{CONV} {NORM.replace('y =', 'y, m, v, saved_m, saved_v =')}"
    source = model(body, "float[2, 4, 8, 8]", {"w": random(4, 4, 3, 3)} | statistics(4), head)
    kept, findings = exact(source, FoldBatchnorm())
    assert ops(kept) == ["Conv", "BatchNormalization"]
    assert ["statistics" in declined.why for declined in findings.declined] == [True]


@pytest.mark.parametrize("x", [np.float16, np.float32])
@pytest.mark.parametrize("own", [np.float16, np.float32])
@pytest.mark.parametrize("running", [np.float16, np.float32])
def test_parameters_may_have_types_of_their_own(exact: Any, ops: Any, x: type, own: type, running: type) -> None:
    arrays: Arrays = {"w": random(6, 4, 3, 3).astype(x), "b": random(6).astype(x)}
    for name, array in statistics(6).items():
        arrays[name] = array.astype(own if name in ("scale", "shift") else running)
    source = model(f"c = Conv(x, w, b) {NORM}", f"{np.dtype(x).name.replace('32', '')}[2, 4, 8, 8]", arrays)
    folded, _ = exact(source, FoldBatchnorm(), tolerance=2e-6 if x == np.float32 else 4e-3)
    assert ops(folded) == ["Conv"]
    assert {value.dtype for value in folded.weights()} == {ir.DataType.from_numpy(np.dtype(x))}


@given(
    kind=st.sampled_from(["Conv", "ConvTranspose"]), group=st.sampled_from([1, 2, 3, 6]), inputs=st.integers(1, 3),
    outputs=st.integers(1, 3), kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3), data=st.data(),
)  # fmt: skip
@settings(max_examples=60)
def test_any_convolution(
    exact: Any, ops: Any, kind: str, group: int, inputs: int, outputs: int, kernel: list[int], data: st.DataObject
) -> None:
    """Groups, strides, dilations and pads of any kind, in one to three dimensions."""
    rank, few = len(kernel), st.integers(1, 2)
    pads = data.draw(st.lists(st.integers(0, 1), min_size=2 * rank, max_size=2 * rank))
    strides, dilations = (data.draw(st.lists(few, min_size=rank, max_size=rank)) for _ in range(2))
    first, second = (group * outputs, inputs) if kind == "Conv" else (group * inputs, outputs)
    arrays = {"w": random(first, second, *kernel)} | statistics(group * outputs)
    bias = data.draw(st.booleans())
    if bias:
        arrays["b"] = random(group * outputs)
    attributes = f"group = {group}, pads = {pads}, strides = {strides}, dilations = {dilations}"
    body = f"c = {kind}<{attributes}>(x, w{', b' * bias}) {NORM.replace('zation(', 'zation<epsilon = 0.1>(')}"
    x = f"float[2, {group * inputs}, {', '.join(['7'] * rank)}]"
    folded, _ = exact(model(body, x, arrays), FoldBatchnorm(), tolerance=5e-6)
    assert ops(folded) == [kind]


@given(
    rows=st.integers(1, 3), inputs=st.integers(1, 5), outputs=st.integers(1, 5), gemm=st.booleans(),
    turned=st.booleans(), bias=st.sampled_from([None, (1,), (1, 1), "full"]), spatial=st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_any_matrix_product(
    exact: Any, ops: Any, rows: int, inputs: int, outputs: int, gemm: bool, turned: bool, bias: Any, spatial: bool
) -> None:
    """Features last in two axes, or first of three (the weight on the left, then)."""
    if spatial:
        x, weight, full = f"float[{rows}, {inputs}, 2]", (outputs, inputs), (outputs, 1)
        layer = "MatMul(w, x)"
    else:
        x, full = f"float[{rows}, {inputs}]", (outputs,)
        weight = (outputs, inputs) if gemm and turned else (inputs, outputs)
        given_bias = "" if bias is None else ", b"
        layer = f"Gemm<transB = {int(turned)}, beta = 0.5>(x, w{given_bias})" if gemm else "MatMul(x, w)"
    arrays = {"w": random(*weight)} | statistics(outputs)
    body = f"c = {layer} {NORM}"
    if bias is not None:
        arrays["b"] = random(*(full if bias == "full" else bias))
        body = body if "Gemm" in layer else f"d = {layer} c = Add(d, b) {NORM}"
    folded, _ = exact(model(body, x, arrays), FoldBatchnorm(), tolerance=1e-5)
    assert "BatchNormalization" not in ops(folded)


def test_a_variance_that_cannot_be_is_left_alone() -> None:
    arrays = {"w": random(4, 4, 3, 3)} | statistics(4) | {"var": np.float32([1, 1, -2, 1])}
    source = model(f"{CONV} {NORM}", "float[2, 4, 8, 8]", arrays)
    findings = FoldBatchnorm().run(source, RunContext(source))
    assert "variance" in findings.declined[0].why


@pytest.mark.parametrize("name", ["w", "mean"])
def test_what_callers_can_feed_is_no_constant(name: str) -> None:
    source = model(f"{CONV} {NORM}", "float[2, 4, 8, 8]", {"w": random(4, 4, 3, 3)} | statistics(4))
    proto = source.proto()
    shape = [4, 4, 3, 3] if name == "w" else [4]
    proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    fed = load(proto)
    findings = FoldBatchnorm().run(fed, RunContext(fed))
    assert [f"{name} " in declined.why and "callers" in declined.why for declined in findings.declined] == [True]


def test_what_a_layer_adds_besides_its_bias_would_be_normalized_too() -> None:
    source = model(f"z = Abs(x) c = Gemm(x, w, z) {NORM}", "float[3, 4]", {"w": random(4, 4)} | statistics(4))
    findings = FoldBatchnorm().run(source, RunContext(source))
    assert ["adds z" in declined.why for declined in findings.declined] == [True]


def test_a_layer_outside_of_the_branch_runs_for_both() -> None:
    body = f"""t = Constant<value = bool {{1}}>()
        c = Conv(x, w)
        y = If(t)<then_branch = a () => (float[N, 6, M, L] p) {{ {NORM.replace("y =", "p =")} }},
                  else_branch = b () => (float[N, 6, M, L] q) {{ q = Conv(x, v) }}>"""
    arrays = {"w": random(6, 4, 3, 3), "v": random(6, 4, 3, 3)} | statistics(6)
    source = model(body, "float[2, 4, 8, 8]", arrays)
    findings = FoldBatchnorm().run(source, RunContext(source))
    assert ["another graph" in declined.why for declined in findings.declined] == [True]


def test_gemm_with_the_weight_on_the_left_has_its_features_elsewhere() -> None:
    """Its output features are rows; the normalized channels are columns."""
    source = model(f"c = Gemm(w, x) {NORM}", "float[4, 6]", {"w": random(6, 4)} | statistics(6))
    findings = FoldBatchnorm().run(source, RunContext(source))
    assert "channels" in findings.declined[0].why
