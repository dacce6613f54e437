"""fold-scale: constants before and behind every kind of layer and normalization; a reason for each that stays."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.fold_scale import FoldScale

Arrays = dict[str, np.ndarray]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def random(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Numbers of either sign, none near zero."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.choice([-1, 1], shape) * rng.uniform(0.3, 2, shape)).astype(dtype)


def model(body: str, x: str, weights: Arrays, head: str = HEAD, rank: int | None = None) -> Model:
    count = x.count(",") + 1 if rank is None else rank
    dims = ", ".join(f"D{axis}" for axis in range(count))
    proto = onnx.parser.parse_model(f"{head} g ({x} x) => ({x.split('[')[0]}[{dims}] y) {{ {body} }}")
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    return load(proto)


CONV, GEMM = "float[n, 4, 8, 8]", "float[n, 4]"
LAYERS: dict[str, tuple[str, str, Arrays, tuple[int, ...], tuple[int, ...]]] = {
    "conv": ("Conv<pads = [1, 1, 1, 1]>(A, w)", CONV, {"w": random(6, 4, 3, 3)}, (6, 1, 1), (4, 1, 1)),
    "conv bias": ("Conv(A, w, b)", CONV, {"w": random(6, 4, 3, 3), "b": random(6)}, (6, 1, 1), (4, 1, 1)),
    "conv 1d groups": ("Conv<group = 2>(A, w)", "float[n, 4, 8]", {"w": random(6, 2, 3)}, (1, 6, 1), (4, 1)),
    "transposed": ("ConvTranspose<group = 2>(A, w, b)", CONV, {"w": random(4, 3, 3, 3), "b": random(6)},
                   (6, 1, 1), (4, 1, 1)),
    "gemm": ("Gemm(A, w, b)", GEMM, {"w": random(4, 6), "b": random(6)}, (6,), (4,)),
    "gemm turned": ("Gemm<transB = 1, alpha = 0.5, beta = 2.0>(A, w, b)", GEMM, {"w": random(6, 4), "b": random(6)},
                    (1, 6), (1, 4)),
    "gemm bare": ("Gemm<transB = 1>(A, w)", GEMM, {"w": random(6, 4)}, (6,), (4,)),
    "matmul": ("MatMul(A, w)", "float[n, 3, 4]", {"w": random(4, 6)}, (1, 1, 6), (4,)),
    "matmul left": ("MatMul(w, A)", "float[n, 4, 5]", {"w": random(6, 4)}, (6, 1), (4, 1)),
    "matmul batch": ("MatMul(A, w)", "float[2, 3, 4]", {"w": random(2, 4, 6)}, (2, 1, 6), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("per_feature", [True, False])
@pytest.mark.parametrize("op", ["Mul(@, c)", "Mul(c, @)", "Div(@, c)", "Neg(@)"])
def test_factors_behind(exact: Any, ops: Any, layer: str, per_feature: bool, op: str) -> None:
    text, x, weights, over, _ = LAYERS[layer]
    source = model(f"d = {text.replace('A', 'x')} y = {op.replace('@', 'd')}", x,
                   weights | {"c": random(*(over if per_feature else ()))})  # fmt: skip
    done, findings = exact(source, FoldScale(), tolerance=1e-6)
    assert len(ops(done)) == 1
    assert len(findings.changes) == 1


@pytest.mark.parametrize("layer", [name for name in LAYERS if "matmul" not in name])
@pytest.mark.parametrize("op", ["Add(d, c)", "Sub(d, c)", "Sub(c, d)"])
def test_what_is_added_behind(exact: Any, ops: Any, layer: str, op: str) -> None:
    text, x, weights, over, _ = LAYERS[layer]
    source = model(f"d = {text.replace('A', 'x')} y = {op}", x, weights | {"c": random(*over)})
    done, _ = exact(source, FoldScale(), tolerance=1e-6)
    assert len(ops(done)) == 1


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("per_feature", [True, False])
@pytest.mark.parametrize("op", ["Mul(c, x)", "Div(x, c)", "Neg(x)"])
def test_factors_before(exact: Any, ops: Any, layer: str, per_feature: bool, op: str) -> None:
    text, x, weights, _, over = LAYERS[layer]
    source = model(f"d = {op} y = {text.replace('A', 'd')}", x, weights | {"c": random(*(over if per_feature else ()))})
    done, _ = exact(source, FoldScale(), tolerance=1e-6)
    assert len(ops(done)) == 1


@pytest.mark.parametrize("layer", ["conv bias", "conv 1d groups", "gemm", "gemm turned", "gemm bare"])
@pytest.mark.parametrize("op", ["Add(x, c)", "Sub(x, c)", "Sub(c, x)"])
def test_what_is_added_before(exact: Any, ops: Any, layer: str, op: str) -> None:
    text, x, weights, _, over = LAYERS[layer]
    done, _ = exact(model(f"d = {op} y = {text.replace('A', 'd')}", x, weights | {"c": random(*over)}), FoldScale(),
                    tolerance=2e-6)  # fmt: skip
    assert len(ops(done)) == 1


def test_matmul_with_its_add(exact: Any, ops: Any) -> None:
    body = "a = Sub(x, m) b = Div(a, s) c = MatMul(b, w) d = Add(c, v) e = Mul(d, s6) f = Add(e, v) y = Neg(f)"
    weights = {"m": random(4), "s": random(4), "w": random(4, 6), "v": random(6), "s6": random(6)}
    done, findings = exact(model(body, "float[n, 3, 4]", weights), FoldScale(), tolerance=2e-6)
    assert ops(done) == ["MatMul", "Add"]
    assert len(findings.changes) == 5


def executed(source: Model, feeds: Arrays) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(source.proto().SerializeToString(), options).run(None, feeds)[0].astype(np.float64)


STEPS = ["Mul({}, {})", "Div({}, {})", "Add({}, {})", "Sub({1}, {0})", "Sub({}, {})"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_row_of_steps(data: st.DataObject) -> None:
    """Before and behind any layer, with any constants that broadcast: the same numbers from no more nodes."""
    text, x, weights, behind, before = LAYERS[data.draw(st.sampled_from(sorted(LAYERS)))]
    arrays, lines, value = dict(weights), [], "x"
    for over in (before, None, behind):
        if over is None:
            lines.append(f"l = {text.replace('A', value)}")
            value = "l"
            continue
        for _ in range(data.draw(st.integers(0, 3))):
            name = f"c{len(arrays)}"
            sizes = [data.draw(st.sampled_from([1, size])) for size in over]
            arrays[name] = random(*sizes[data.draw(st.integers(0, len(sizes))) :], seed=len(arrays))
            op = data.draw(
                st.sampled_from(["Mul({}, {})", "Div({}, {})", "Add({}, {})", "Sub({1}, {0})", "Sub({}, {})"])
            )
            lines.append(f"v{len(arrays)} = {op.format(value, name)}")
            value = f"v{len(arrays)}"
    lines.append(f"y = Abs({value})")
    source = model(" ".join(lines), x, arrays)
    feeds = {
        "x": random(*(3 if isinstance(d, str) or d is None else d for d in source.signature.inputs[0].shape or ()))
    }
    wide = executed(source, feeds)
    count = sum(1 for _ in source.nodes())
    findings = FoldScale().run(source, RunContext(source))
    after = executed(source, feeds)
    assert sum(1 for _ in source.nodes()) == count - len(findings.changes)
    assert np.linalg.norm(after - wide) <= 1e-5 * np.linalg.norm(wide) + 1e-5
    assert not FoldScale().run(source, RunContext(source)).changed


NORMS = {
    "LayerNormalization": ("LayerNormalization(x, g, b)", "float[n, 3, 6]", (6,), 17),
    "LayerNormalization wide": ("LayerNormalization<axis = 1>(x, g2, b2)", "float[n, 3, 6]", (3, 6), 17),
    "BatchNormalization": ("BatchNormalization(x, g, b, m, v)", "float[n, 6, 5, 5]", (6, 1, 1), 15),
    "InstanceNormalization": ("InstanceNormalization(x, g, b)", "float[n, 6, 5]", (6, 1), 17),
    "GroupNormalization": ("GroupNormalization<num_groups = 2>(x, g, b)", "float[n, 6, 5, 5]", (6, 1, 1), 21),
}


@pytest.mark.parametrize("norm", NORMS)
def test_normalizations(exact: Any, ops: Any, norm: str) -> None:
    text, x, over, opset = NORMS[norm]
    arrays = {
        "g": random(6), "b": random(6, seed=1), "g2": random(3, 6), "b2": random(3, 6, seed=1), "m": random(6, seed=2),
        "v": abs(random(6)), "c": random(*over), "d": random(*over, seed=3),
    }  # fmt: skip
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    source = model(f"n = {text} s = Mul(n, c) t = Add(d, s) u = Div(t, c) y = Neg(u)", x, arrays, head)
    done, findings = exact(source, FoldScale(), tolerance=2e-6)
    assert ops(done) == [norm.split()[0]]
    assert len(findings.changes) == 4


def test_a_normalization_without_shift_gets_one(exact: Any, ops: Any) -> None:
    source = model("n = LayerNormalization(x, g) y = Add(n, b)", "float[n, 6]", {"g": random(6), "b": random(6)})
    done, _ = exact(source, FoldScale(), tolerance=1e-6)
    assert ops(done) == ["LayerNormalization"]


def test_parameters_that_others_read_stay_as_they_are(exact: Any, ops: Any) -> None:
    body = "n = LayerNormalization(x, g, b) s = Mul(n, b) t = LayerNormalization(x, g, b) y = Add(s, t)"
    done, _ = exact(model(body, "float[n, 6]", {"g": random(6), "b": random(6)}), FoldScale(), tolerance=1e-6)
    assert ops(done).count("Mul") == 0


def test_factors_of_attention(exact: Any, ops: Any) -> None:
    """Beyond Reshape and Transpose; what is per feature or added stays."""
    body = """q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, s) q3 = Transpose<perm = [0, 2, 1, 3]>(q2)
        q = Mul(q3, c)
        k0 = MatMul(x, wk) k2 = Reshape(k0, s) k3 = Transpose<perm = [0, 2, 3, 1]>(k2) k = Div(k3, one)
        y = MatMul(q, k)"""
    arrays = {"wq": random(8, 8), "wk": random(8, 8), "bq": random(8), "s": np.int64([0, 0, 2, 4]),
              "c": np.float32(0.35), "one": np.float32([0.5])}  # fmt: skip
    done, findings = exact(model(body, "float[n, m, 8]", arrays, rank=4), FoldScale(), tolerance=1e-6)
    assert {"Mul", "Div"}.isdisjoint(ops(done))
    assert len(findings.changes) == 2


@pytest.mark.parametrize("step", ["Mul(t, c4)", "Add(t, half)", "Mul(half11111, t)"])
def test_what_does_not_pass_reshape(exact: Any, step: str) -> None:
    arrays = {"w": random(8, 8), "c8": random(8), "s": np.int64([0, 0, 2, 4]), "c4": random(4), "half": np.float32(0.5),
              "half11111": np.full((1,) * 5, 0.5, np.float32)}  # fmt: skip
    source = model(f"m = MatMul(x, w) l = Add(m, c8) t = Reshape(l, s) y = {step}", "float[n, m, 8]", arrays,
                   rank=5 if "11111" in step else 4)  # fmt: skip
    _, findings = exact(source, FoldScale())
    assert not findings.changed
    assert len(findings.declined) == 1


@pytest.mark.parametrize(
    ("body", "x", "reason"),
    [
        ("a = Add(x, b) c = Conv<pads = [1, 1, 1, 1]>(a, w) y = Neg(c)", CONV, "borders"),
        ("a = Add(x, big) y = Conv(a, w)", CONV, "too much"),
        ("c = Conv(x, w) y = Mul(c, zero)", CONV, "zero"),
        ("c = Conv(x, w) y = Mul(c, inf)", CONV, "no number"),
        ("c = Conv(x, w) y = Div(c, zero)", CONV, "no number"),
        ("c = Conv(x, w) d = Conv(x, w) e = Mul(c, b) y = Add(d, e)", CONV, "other readers"),
        ("c = Conv(x, w) y = Mul(c, image)", CONV, "none for each feature"),
        ("c = Conv(x, w, z) z = ReduceMean<axes = [0, 2, 3], keepdims = 0>(x) y = Mul(c, b)", CONV, "no constant bias"),
        ("q = DequantizeLinear(qw, b) c = Conv(x, q) y = Mul(c, b)", CONV, "quantized"),
        ("h = Cast<to = 1>(hw) c = Conv(x, h) y = Mul(c, third)", CONV, "stored as FLOAT16"),
        ("a = Mul(x, four) y = Conv(a, w)", "float[n, one, 8, 8]", "fewer features"),
        ("a = Mul(x, four1) y = MatMul(a, m)", "float[4]", "none for each"),
    ],
)
def test_what_stays_with_a_reason(body: str, x: str, reason: str) -> None:
    arrays = {
        "w": random(4, 4, 3, 3), "b": np.float32(0.5), "zero": np.float32(0), "inf": np.float32(np.inf),
        "image": random(6, 6), "big": np.float32(300), "qw": np.ones((4, 4, 3, 3), np.int8), "third": np.float32(1 / 3),
        "hw": random(4, 4, 3, 3, dtype=np.float16), "four": random(4, 1, 1), "four1": random(1, 4), "m": random(4, 4),
    }  # fmt: skip
    source = model(body, x, arrays)
    findings = FoldScale().run(source, RunContext(source))
    assert not [change for change in findings.changes if not change.what.startswith("Neg")]
    assert any(reason in declined.why for declined in findings.declined), findings.declined


def test_what_has_other_readers_is_no_ones_to_change(exact: Any) -> None:
    """The division of GELU reads a layer that the product reads too."""
    body = """c = MatMul(x, w) a = Add(c, b) d = Div(a, r) e = Erf(d) f = Add(e, one) g = Mul(a, f) h = Mul(g, half)
        y = MatMul(h, w2)"""
    arrays = {"w": random(4, 6), "b": random(6), "r": np.float32(2**0.5), "one": np.float32(1),
              "half": np.float32(0.5), "w2": random(6, 4)}  # fmt: skip
    _, findings = exact(model(body, "float[n, 3, 4]", arrays), FoldScale())
    assert not findings.changed
    assert ["activation" in declined.why for declined in findings.declined] == [True]


@pytest.mark.parametrize("reciprocal", [True, False])
def test_normalizations_written_as_operators_stay_whole(exact: Any, reciprocal: bool) -> None:
    scaled = "r = Reciprocal(q) n = Mul(x, r)" if reciprocal else "n = Div(x, q)"
    body = f"""s = Mul(x, x) m = ReduceMean<axes = [-1]>(s) e = Add(m, eps) q = Sqrt(e) {scaled}
        g = Mul(n, gain) h = Add(g, b) l = MatMul(h, w) y = Add(l, b)"""
    arrays = {"eps": np.float32(1e-6), "gain": random(4), "b": random(4), "w": random(4, 4)}
    _, findings = exact(model(body, "float[n, 3, 4]", arrays), FoldScale())
    assert not findings.changed
    assert ["normalization" in declined.why for declined in findings.declined] == [True]


@pytest.mark.parametrize(("factor", "folded"), [(0.125, True), (1 / 3, True), (1e-6, False), (1e6, False)])
def test_half_precision(exact: Any, factor: float, folded: bool) -> None:
    with np.errstate(over="ignore"):
        arrays = {"w": random(6, 4, dtype=np.float16), "c": np.float16(factor)}
    source = model("d = Gemm<transB = 1>(x, w) y = Mul(d, c)", "float16[n, 4]", arrays)
    feeds = {"x": random(5, 4, dtype=np.float16)}
    done, findings = exact(source, FoldScale(), feeds, tolerance=2e-3)
    assert findings.changed == folded
    assert done.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert bool(findings.declined) != folded


def test_double_precision(exact: Any) -> None:
    arrays = {"w": random(4, 6, dtype=np.float64), "c": random(6, dtype=np.float64)}
    done, _ = exact(model("d = Gemm(x, w) y = Div(d, c)", "double[n, 4]", arrays), FoldScale(), tolerance=1e-15)
    assert done.graph.initializers["w"].dtype == ir.DataType.DOUBLE


def test_coarse_storage_takes_powers_of_two(exact: Any, ops: Any) -> None:
    arrays = {"hw": random(6, 4, dtype=np.float16), "c": np.float32(0.25)}
    done, _ = exact(model("w = Cast<to = 1>(hw) d = Gemm<transB = 1>(x, w) y = Mul(d, c)", GEMM, arrays), FoldScale())
    assert ops(done) == ["Cast", "Gemm"]
    assert done.graph.initializers["hw"].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize("name", ["w", "c"])
def test_what_callers_can_feed_is_no_constant(name: str) -> None:
    source = model("d = Gemm(x, w) y = Mul(d, c)", GEMM, {"w": random(4, 6), "c": random(6)}).proto()
    shape = [4, 6] if name == "w" else [6]
    source.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    fed = load(source)
    assert not FoldScale().run(fed, RunContext(fed)).changed


def test_in_a_branch_and_not_across_its_border(exact: Any, ops: Any) -> None:
    body = """t = Constant<value = bool {1}>() o = Gemm(x, w)
        y = If(t)<then_branch = b1 () => (float[n, 6] p) { d = Gemm(x, v) e = Mul(d, c) f = Mul(o, c) p = Add(e, f) },
                  else_branch = b2 () => (float[n, 6] q) { q = Gemm(x, u) }>"""
    arrays = {"w": random(4, 6), "v": random(4, 6), "u": random(4, 6), "c": random(6)}
    done, findings = exact(model(body, GEMM, arrays), FoldScale(), tolerance=1e-6)
    assert len(findings.changes) == 1
    assert ops(done).count("Mul") == 1


def test_a_long_row_takes_one_edit() -> None:
    row = " ".join(f"v{i + 1} = Mul(v{i}, c)" for i in range(3000))
    source = model(f"v0 = Gemm(x, w) {row} y = Neg(v3000)", GEMM, {"w": random(4, 6), "c": np.float32(1)})
    findings = FoldScale().run(source, RunContext(source))
    assert len(findings.changes) == 3001
    assert source.revision == 1
