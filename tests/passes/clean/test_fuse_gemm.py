"""fuse-gemm: products with what is added to them and how they are turned; forms that stay."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean.fuse_gemm import FuseGemm
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": (4, 6), "wt": (6, 4), "b": (6,), "b1": (1, 6), "one": (), "one1": (1,), "column": (3, 1), "whole": (3, 6),
    "b3": (1, 1, 6), "v": (6, 4),
}  # fmt: skip
ARRAYS = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in WEIGHTS.items()}


def model(body: str, inputs: str = "float[n, 4] x", rank: int = 2, head: str = HEAD, **arrays: Any) -> Model:
    dims = ", ".join(f"D{axis}" for axis in range(rank))
    kind = inputs.split("[")[0]
    proto = onnx.parser.parse_model(f"{head} g ({inputs}) => ({kind}[{dims}] y) {{ {body} }}")
    used = {name for node in proto.graph.node for name in node.input} | set(arrays)
    used |= {name for node in proto.graph.node for a in node.attribute for inner in a.g.node for name in inner.input}
    weights = {name: array for name, array in (ARRAYS | arrays).items() if name in used}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    return load(proto)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("m = MatMul(x, w) y = Add(m, b)", "float[n, 4] x"),
        ("m = MatMul(x, w) y = Add(b1, m)", "float[n, 4] x"),
        ("m = MatMul(x, w) y = Add(m, one)", "float[n, 4] x"),
        ("m = MatMul(x, w) y = Add(m, one1)", "float[n, 4] x"),
        ("m = MatMul(x, w) y = Add(m, column)", "float[3, 4] x"),
        ("m = MatMul(x, w) y = Add(m, whole)", "float[3, 4] x"),
        ("m = MatMul(wt, x) y = Add(m, b)", "float[4, 6] x"),
        ("m = MatMul(x, z) y = Add(m, b)", "float[n, 4] x, float[4, 6] z"),
        ("m = MatMul(x, w) y = Add(m, z)", "float[n, 4] x, float[n, 6] z"),
        ("m = Gemm<transB = 1, alpha = 0.5>(x, wt) y = Add(m, b)", "float[n, 4] x"),
        ("t = Transpose<perm = [1, 0]>(x) m = MatMul(t, w) y = Add(m, b)", "float[4, n] x"),
        ("t = Transpose(x) y = MatMul(t, w)", "float[4, n] x"),
        ("t = Transpose(x) y = Gemm(t, w, b)", "float[4, n] x"),
        ("t = Transpose(x) u = Transpose(t) y = Gemm<transB = 1>(u, wt, b)", "float[n, 4] x"),
        ("t = Transpose(wt) y = MatMul(x, t)", "float[n, 4] x"),
        ("t = Transpose(x) y = Gemm<transA = 1>(t, w, b)", "float[n, 4] x"),
        ("t = Transpose(x) u = Transpose(wt) m = Gemm(t, u) y = Add(m, b)", "float[4, n] x"),
    ],
)
def test_one_gemm(exact: Any, ops: Any, body: str, inputs: str) -> None:
    done, findings = exact(model(body, inputs), FuseGemm(), tolerance=1e-6)
    assert ops(done) == ["Gemm"]
    assert len(findings.changes) == 1


@pytest.mark.parametrize(
    ("body", "inputs", "rank"),
    [
        ("m = MatMul(x, w) y = Add(m, b)", "float[n, 3, 4] x", 3),
        ("m = MatMul(x, w) y = Add(m, b3)", "float[n, 4] x", 3),
        ("m = MatMul(x, w) y = Add(m, whole)", "float[n, 4] x", 2),
        ("m = MatMul(x, w) y = Add(m, z)", "float[n, 4] x, float[k, 6] z", 2),
        ("m = MatMul(x, w) y = Add(m, m)", "float[n, 4] x", 2),
        ("m = MatMul(x, w) a = Add(m, b) y = Mul(a, m)", "float[n, 4] x", 2),
        ("m = Gemm(x, w, b) y = Add(m, b)", "float[n, 4] x", 2),
        ("m = MatMul(x, b) y = Add(m, one)", "float[n, 6] x", 1),
        ("t = Transpose<perm = [0, 1]>(x) y = Gemm(t, w, b)", "float[n, 4] x", 2),
        ("t = Transpose(x) a = Gemm(t, w, b) c = Gemm(t, w) y = Add(a, c)", "float[4, 4] x", 2),
    ],
)
def test_what_stays(ops: Any, body: str, inputs: str, rank: int) -> None:
    source = model(body, inputs, rank)
    before = ops(source)
    findings = FuseGemm().run(source, RunContext(source))
    if "c = Gemm" in body:
        assert ops(source) == ["Transpose", "Gemm", "Gemm"], "the sum of two products is one Gemm's C"
        return
    assert ops(source) == before
    assert not findings.changed


def test_a_size_that_is_not_known_is_told() -> None:
    source = model("m = MatMul(x, w) y = Add(m, z)", "float[n, 4] x, float[k, 6] z")
    findings = FuseGemm().run(source, RunContext(source))
    assert ["z, which is added" in declined.why for declined in findings.declined] == [True]


def test_a_quantized_weight_stays_in_matmul(ops: Any) -> None:
    body = "w8 = DequantizeLinear(q, s) m = MatMul(x, w8) y = Add(m, b)"
    source = model(body, q=np.ones((4, 6), np.int8), s=np.float32(0.5))
    findings = FuseGemm().run(source, RunContext(source))
    assert ops(source) == ["DequantizeLinear", "MatMul", "Add"]
    assert ["quantized" in declined.why for declined in findings.declined] == [True]


def test_names_stay_and_weights_are_shared_as_before(exact: Any) -> None:
    body = """m = MatMul(x, w) a = Add(m, b) r = Relu(a) t = Transpose(w) n = MatMul(r, t) c = Add(n, b4)
        o = MatMul(c, w) y = Add(o, b)"""
    source = model(body, b4=np.ones(4, np.float32))
    done, _ = exact(source, FuseGemm(), tolerance=1e-6)
    assert [node.outputs[0].name for node in done.graph] == ["a", "r", "c", "y"]
    assert [node.op_type for node in done.graph] == ["Gemm", "Relu", "Gemm", "Gemm"]
    assert set(done.graph.initializers) == {"w", "b", "b4"}


@pytest.mark.parametrize(("opset", "left"), [(6, ["MatMul", "Add"]), (7, ["Gemm"])])
def test_old_operator_sets(ops: Any, opset: int, left: list[str]) -> None:
    source = model("m = MatMul(x, w) y = Add(m, b)", head=f'<ir_version: 8, opset_import: ["" : {opset}]>')
    FuseGemm().run(source, RunContext(source))
    assert ops(source) == left


def test_without_an_addend_old_gemm_cannot_be(ops: Any) -> None:
    source = model("t = Transpose(x) y = MatMul(t, w)", head='<ir_version: 8, opset_import: ["" : 9]>')
    FuseGemm().run(source, RunContext(source))
    assert ops(source) == ["Transpose", "MatMul"]


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_types(exact: Any, ops: Any, dtype: str) -> None:
    arrays = {name: ARRAYS[name].astype(np.dtype(dtype)) for name in ("w", "b")}
    source = model("m = MatMul(x, w) y = Add(m, b)", f"{dtype}[n, 4] x", **arrays)
    done, _ = exact(source, FuseGemm(), tolerance=2e-3 if dtype == "float16" else 1e-14)
    assert ops(done) == ["Gemm"]


def test_integers_stay(ops: Any) -> None:
    arrays = {name: np.ones(WEIGHTS[name], np.int32) for name in ("w", "b")}
    source = model("m = MatMul(x, w) y = Add(m, b)", "int32[n, 4] x", **arrays)
    FuseGemm().run(source, RunContext(source))
    assert ops(source) == ["MatMul", "Add"]


RESHAPED = "r = Reshape(x, s) m = MatMul(r, w) a = Add(m, b) y = Reshape(a, t)"


@pytest.mark.parametrize("target", [[-1, 2, 3], [2, -1], [0, 2, 2, 3], [0, 0, 6], [-1]])
def test_between_reshapes(exact: Any, ops: Any, target: list[int]) -> None:
    arrays = {"s": np.int64([2, -1, 4] if target[:2] != [0, 0] else [2, 2, 4]), "t": np.int64(target)}
    source = model(RESHAPED, "float[4, n] x" if target[:2] != [0, 0] else "float[4, 4] x", len(target), **arrays)
    feeds = {"x": RNG.standard_normal((4, 4)).astype(np.float32)}
    done, findings = exact(source, FuseGemm(), feeds, tolerance=1e-6)
    assert ops(done) == ["Reshape", "Gemm", "Reshape"]
    assert len(findings.changes) == 1


def test_a_reshape_that_repeats_an_open_size_stays(exact: Any, ops: Any) -> None:
    source = model(RESHAPED, "float[n, k] x", 4, s=np.int64([0, -1, 4]), t=np.int64([0, 0, 2, 3]))
    done, _ = exact(source, FuseGemm(), {"x": RNG.standard_normal((3, 8)).astype(np.float32)})
    assert ops(done) == ["Reshape", "MatMul", "Add", "Reshape"]


@pytest.mark.parametrize(("product", "left"), [("Gemm(r, w, b)", ["MatMul", "Add"]), ("Gemm(r, w)", ["MatMul"])])
def test_leading_axes_need_no_reshape(exact: Any, ops: Any, product: str, left: list[str]) -> None:
    source = model(f"r = Reshape(x, s) m = {product} y = Reshape(m, t)", "float[2, 3, 4] x", 3,
                   s=np.int64([-1, 4]), t=np.int64([2, 3, 6]))  # fmt: skip
    done, _ = exact(source, FuseGemm(), tolerance=1e-6)
    assert ops(done) == left


def test_leading_axes_of_open_size(exact: Any, ops: Any) -> None:
    body = """z = Shape<start = 0, end = 2>(x) t = Concat<axis = 0>(z, six) r = Reshape(x, s) m = Gemm(r, w, b)
        y = Reshape(m, t)"""
    feeds = [{"x": RNG.standard_normal((n, k, 4)).astype(np.float32)} for n, k in ((2, 3), (1, 5))]
    source = model(body, "float[n, k, 4] x", 3, s=np.int64([-1, 4]), six=np.int64([6]))
    done, _ = exact(source, FuseGemm(), feeds, tolerance=1e-6)
    assert ops(done) == ["Shape", "Concat", "MatMul", "Add"]


def test_axes_that_change_places_need_theirs(exact: Any, ops: Any) -> None:
    source = model("r = Reshape(x, s) m = Gemm(r, w, b) y = Reshape(m, t)", "float[2, 3, 4] x", 3,
                   s=np.int64([-1, 4]), t=np.int64([3, 2, 6]))  # fmt: skip
    done, _ = exact(source, FuseGemm())
    assert ops(done) == ["Reshape", "Gemm", "Reshape"]


def test_in_a_branch(exact: Any, ops: Any) -> None:
    body = """t = Constant<value = bool {1}>() o = MatMul(x, w)
        y = If(t)<then_branch = b1 () => (float[n, 6] p) { m = MatMul(x, w) a = Add(m, b) c = Add(o, b) p = Mul(a, c) },
                  else_branch = b2 () => (float[n, 6] q) { q = MatMul(x, w) }>"""
    source = model(body, w=ARRAYS["w"], b=ARRAYS["b"])
    done, findings = exact(source, FuseGemm(), tolerance=1e-6)
    assert len(findings.changes) == 1
    assert ops(done).count("Add") == 1


def test_what_it_makes_can_be_quantized(ops: Any) -> None:
    arrays = {"w": RNG.standard_normal((64, 32)).astype(np.float32), "b": RNG.standard_normal(32).astype(np.float32)}
    source = model("m = MatMul(x, w) y = Add(m, b)", "float[n, 64] x", head='<ir_version: 10, opset_import: ["" : 21]>',
                   **arrays)  # fmt: skip
    FuseGemm().run(source, RunContext(source))
    assert ops(source) == ["Gemm"]
    assert QuantizeWeights(bits=8).run(source, RunContext(source)).changed
    assert "Gemm" not in ops(source)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_product(exact: Any, data: st.DataObject) -> None:
    """Turned or not, of whatever form, with whatever is added: never more nodes, always the same numbers."""
    sides = []
    lines = []
    for name, rows, columns in (("x", "n", "4"), ("z", "4", "6")):
        turned = data.draw(st.integers(0, 2))
        kept = data.draw(st.booleans())
        shape = [rows, columns] if (turned + kept) % 2 == 0 else [columns, rows]
        lines += [f"{name}{i + 1} = Transpose({name}{i})" for i in range(turned)]
        sides.append((f"float[{', '.join(shape)}] {name}0", f"{name}{turned}", kept))
    if data.draw(st.booleans()) and not any(kept for *_, kept in sides):
        lines.append(f"m = MatMul({sides[0][1]}, {sides[1][1]})")
    else:
        flags = f"transA = {int(sides[0][2])}, transB = {int(sides[1][2])}, alpha = 0.5"
        addend = data.draw(st.sampled_from(["", ", b", ", one"]))
        lines.append(f"m = Gemm<{flags}>({sides[0][1]}, {sides[1][1]}{addend})")
    added = data.draw(st.sampled_from(["b", "b1", "one", "column", "whole", "m"]))
    lines.append(f"y = Add(m, {added})")
    source = model(" ".join(lines), ", ".join(side[0] for side in sides))
    count = len(list(source.nodes()))
    done, _ = exact(source, FuseGemm(), tolerance=1e-5)
    assert len(list(done.nodes())) <= count
