"""What other cleaners are known to get wrong: `clean` from file to file, held to the exact contract."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passing import Change, contract_of, make, rounds
from onnxopt.recipe import Verify
from onnxopt.verify import Verifier

CLEAN = make("clean")
X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


@dataclass(frozen=True)
class Cleaned:
    """What came out: the model as its file says, the file's size and the input's, what was done."""

    model: Model
    size: int
    before: int
    changes: list[Change]


Cleaner = Callable[..., Cleaned]


def apply(model: Model, sizes: dict[str, tuple[int, ...]] | None = None) -> list[Change]:
    """Run `clean` to its fixed point."""
    changes, context = [], RunContext(model, sizes=sizes)
    for part in rounds(CLEAN, lambda: model.revision):
        changes += part.run(model, context).changes
    return changes


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared


@pytest.fixture
def clean(worker: Worker, tmp_path: Path) -> Cleaner:
    """File in, file out; signature and outputs must stay, and a second run must change nothing."""

    def run(proto: onnx.ModelProto, feeds: Sequence[dict[str, Any]]) -> Cleaned:
        source, target = tmp_path / "before.onnx", tmp_path / "after.onnx"
        source.write_bytes(proto.SerializeToString())
        verifier = Verifier(worker, source, feeds, (), Verify(), real_data=False, scratch=tmp_path)
        verifier.prepare(load(source))
        assert verifier.unverified is None, verifier.unverified
        model = load(source)
        signature = model.signature
        changes = apply(model, {name: np.shape(array) for name, array in feeds[0].items()})
        assert model.signature == signature
        model.save(target)
        verdict, _ = verifier.judge(target, contract_of(CLEAN), guard=False)
        assert verdict.broken == ()
        again = load(target)
        assert not apply(again)
        return Cleaned(again, target.stat().st_size, source.stat().st_size, changes)

    return run


def parsed(text: str, ir_version: int = 8, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {text}')


def with_weights(proto: onnx.ModelProto, **arrays: Any) -> onnx.ModelProto:
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    return proto


@pytest.mark.parametrize(
    "declared",
    ["float[2, 9] t", "float[N, 9] t", "float[2] t", "float[2, 3] t", "float[2, 2, 2] t"],
    ids=["size", "symbol", "rank", "input", "more"],
)
@pytest.mark.parametrize("place", ["output", "inner"])
def test_a_false_declared_shape_is_never_believed(place: str, declared: str, clean: Cleaner) -> None:
    """Its Shape, a Reshape and an Expand to it, a Flatten and a Slice to its end: each would go wrong."""
    outputs, infos = (f", {declared}", "") if place == "output" else ("", f", {declared}")
    proto = parsed(f"""g (float[N, 3] x) => (float[a] s, float[b, c] e, float[d, f] r, float[h, i] l{outputs})
        <int64[1] zero = {{0}}, int64[1] end = {{9}}, int64[1] one = {{1}}, float[1] k = {{1}}{infos}> {{
        t = MatMul(x, w)
        q = Shape(t)
        s = Cast<to = 1>(q)
        e = Expand(k, q)
        same = Reshape(t, q)
        flat = Flatten(same)
        r = Relu(flat)
        cut = Slice(t, zero, end, one)
        l = Tanh(cut)
    }}""")
    proto = with_weights(proto, w=np.arange(12, dtype=np.float32).reshape(3, 4))
    done = clean(proto, [{"x": X}, {"x": X[:1].repeat(5, axis=0)}])
    operators = [node.op_type for node in done.model.nodes()]
    assert "Reshape" not in operators, "the true shape tells that it changes nothing"
    assert done.size <= done.before


BEHIND = {
    "gemm": "m = MatMul(t, w)  y = Add(m, c)",
    "bias": "m = MatMul(t, w)  y = Add(m, c1)",
    "factor": "m = MatMul(t, w)  y = Mul(m, c1)",
    "factor before": "n = Mul(t, c1)  m = MatMul(n, w)  y = Neg(m)",
    "left": "m = MatMul(w, t)  y = Add(m, c2)",
    "left factor": "m = MatMul(w, t)  y = Mul(m, c2)",
    "batch": "m = MatMul(t, w3)  y = Add(m, c)",
    "norm": "m = MatMul(t, w)  y = BatchNormalization(m, c, c, c, v)",
    "norm of a sum": "m = MatMul(t, w)  a = Add(m, c)  y = BatchNormalization(a, c, c, c, v)",
    "factor of all": "m = MatMul(t, w)  r = Reshape(m, flat)  y = Mul(r, one)",
    "noop": "u = Mul(t, one)  y = Add(u, zero)",
    "flatten": "u = Flatten(t)  y = Neg(u)",
    "reshapes": "m = MatMul(t, w)  a = Add(m, c)  u = Reshape(a, flat)  y = Reshape(u, same)",
    "transposes": "u = Transpose(t)  n = Relu(u)  q = Transpose(n)  y = MatMul(q, w)",
}
RUNTIME_ERRORS = (Fail, InvalidArgument, RuntimeException)
TRUE_SHAPES = [(4,), (4, 4), (1, 4, 4), (2, 4, 4)]
CONSTANTS = {
    "w": np.arange(16).reshape(4, 4) % 7 - 3.0, "w3": np.arange(32).reshape(2, 4, 4) % 7 - 3.0,
    "c": np.arange(4) - 1.5, "c1": np.arange(4).reshape(1, 4) + 1.5, "c2": np.arange(4).reshape(4, 1) + 1.5,
    "v": np.ones(4), "one": np.ones((1, 1)), "zero": np.zeros((1, 1)),
}  # fmt: skip


@pytest.mark.parametrize(
    "stated",
    ["float t", "float[4] t", "float[A, 4] t", "float[A, B, 4] t", "float[4, 4] t", "float[A, 4] t, float[A, 4] m"],
)
@pytest.mark.parametrize("behind", BEHIND.values(), ids=list(BEHIND))
def test_a_declared_rank_that_nothing_proves_is_never_believed(behind: str, stated: str) -> None:
    """The shape is fed: whatever the file says of it, each true one must be computed with as before."""
    proto = parsed(f"""g (float[N] x, int64[K] shape) => (float[] y)
        <int64[1] flat = {{-1}}, int64[2] same = {{-1, 4}}, {stated}> {{ t = Reshape(x, shape)  {behind} }}""")
    proto = with_weights(proto, **{name: array.astype(np.float32) for name, array in CONSTANTS.items()})
    model = load(proto)
    apply(model)
    before, after = plain_session(proto), plain_session(model.proto())
    compared = 0
    for shape in TRUE_SHAPES:
        x = np.random.default_rng(0).standard_normal(int(np.prod(shape))).astype(np.float32)
        feeds = {"x": x, "shape": np.array(shape, np.int64)}
        try:
            (expected,) = before.run(None, feeds)
        except RUNTIME_ERRORS:
            continue
        (found,) = after.run(None, feeds)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        compared += 1
    assert compared


def plain_session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """Without declared shapes of inner values, which the runtime believes."""
    del proto.graph.value_info[:]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options)


def test_weights_shared_through_identity_stay_one(clean: Cleaner) -> None:
    """Tied layers as exporters write them, with the weight under many names; the file must not grow."""
    nodes, last = [], "x"
    for index in range(12):
        nodes.append(helper.make_node("Identity", ["w" if index % 3 else f"tied{index - 1}" if index else "w"],
                                      [f"tied{index}"]))  # fmt: skip
        if index % 2:
            nodes.append(helper.make_node("Transpose", [f"tied{index}"], [f"turned{index}"], perm=[1, 0]))
        weight = f"turned{index}" if index % 2 else f"tied{index}"
        nodes += [helper.make_node("MatMul", [last, weight], [f"m{index}"]),
                  helper.make_node("Tanh", [f"m{index}"], [f"t{index}"])]  # fmt: skip
        last = f"t{index}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 48]) for name in "xy"]
    weight = np.random.default_rng(1).standard_normal((48, 48)).astype(np.float32) / 7
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [numpy_helper.from_array(weight, "w")])
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    feeds = np.random.default_rng(2).standard_normal((3, 48)).astype(np.float32)
    done = clean(proto, [{"x": feeds}])
    assert done.size <= done.before
    assert not {"Identity"} & {node.op_type for node in done.model.nodes()}
    assert sum(value.const_value.nbytes for value in done.model.weights() if value.const_value) <= weight.nbytes + 256


NESTED = """g (bool b, bool c, float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> {
    kept = Mul(x, w)
    idle = Neg(kept)
    p = Identity(kept)
    y = If(b)<then_branch = outer_then () => (float[N, 3] o) {
                  middle = Add(p, w)
                  same = Identity(middle)
                  o = If(c)<then_branch = inner_then () => (float[N, 3] i) {
                                k = Constant<value = float {2}>()
                                twice = Mul(k, k)
                                far = Add(same, p)
                                i = Mul(far, twice) },
                            else_branch = inner_else () => (float[N, 3] j) { j = Identity(p) }> },
              else_branch = outer_else () => (float[N, 3] u) { z = Identity(p) u = Relu(z) }> }"""


def test_nested_if_with_captured_outer_values(clean: Cleaner) -> None:
    feeds = [{"b": np.array(b), "c": np.array(c), "x": X} for b in (True, False) for c in (True, False)]
    done = clean(parsed(NESTED), feeds)
    operators = sorted(node.op_type for node in done.model.nodes())
    assert operators == ["Add", "Add", "Identity", "If", "If", "Mul", "Mul", "Relu"]


def test_half_precision_inside_if(clean: Cleaner) -> None:
    """Constants of a branch are computed and the branch keeps its type, with and without a known condition."""
    proto = parsed("""g (bool b, float[N, 3] x) => (float16[N, 3] y, float16[N, 3] z) <bool known = {1}> {
        h = Cast<to = 10>(x)
        y = If(b)<then_branch = t () => (float16[N, 3] o) {
                      f = Constant<value = float {0.333333}>() k = Cast<to = 10>(f) l = Mul(k, k) o = Mul(h, l) },
                  else_branch = e () => (float16[N, 3] u) { v = Cast<to = 10>(h) u = Neg(v) }>
        z = If(known)<then_branch = t2 () => (float16[N, 3] o2) {
                      f2 = Constant<value = float {3}>() k2 = Cast<to = 10>(f2) o2 = Add(h, k2) },
                  else_branch = e2 () => (float16[N, 3] u2) { u2 = Identity(h) }>
    }""")
    done = clean(proto, [{"b": np.array(b), "x": X} for b in (True, False)])
    assert sorted(node.op_type for node in done.model.nodes()) == ["Add", "Cast", "If", "Mul", "Neg"]
    assert {str(value.dtype) for value in done.model.weights()} == {"FLOAT16"}


@pytest.mark.parametrize("ir_version", [3, 8])
def test_constants_that_are_graph_inputs(ir_version: int, clean: Cleaner, worker: Worker, tmp_path: Path) -> None:
    """Before IR 4 a listed weight is a constant and is unlisted; later it is a default that callers may replace."""
    proto = parsed("g (float[N, 3] x, float[3, 4] w, float[4] k, int64[2] to) => (float[R, C] y) {"
                   "m = MatMul(x, w) n = Mul(k, k) s = Mul(m, n) r = Reshape(s, to) y = Relu(r) }",
                   ir_version, 8)  # fmt: skip
    w, k = np.arange(12, dtype=np.float32).reshape(3, 4) - 5, np.float32([1, 2, 3, 4])
    proto = with_weights(proto, w=w, k=k, to=np.int64([0, -1]))
    feeds: list[dict[str, Any]] = [{"x": X}, {"x": X[:1]}]
    if ir_version >= 4:
        feeds.append({"x": X, "w": w + 1, "k": k - 3, "to": np.int64([-1, 1])})
    done = clean(proto, feeds)
    if ir_version < 4:
        assert [value.name for value in done.model.graph.inputs] == ["x"]
        assert [node.op_type for node in done.model.nodes()] == ["MatMul", "Relu"]
    else:
        assert [value.name for value in done.model.signature.defaults] == ["w", "k", "to"]
        assert len(list(done.model.nodes())) == 5
    assert done.size <= done.before


def test_stale_declarations_of_weights(clean: Cleaner) -> None:
    """Exporters declare each weight once more as a value; when the weight changes, that must not stay behind."""
    proto = parsed("""g (float[N, 2, 5, 5] x) => (float[N, R] y) {
        c = Conv<kernel_shape = [3, 3]>(x, w, b)
        n = BatchNormalization(c, scale, shift, mean, variance)
        i = Identity(c2)
        t = Transpose<perm = [1, 0]>(i)
        f = Flatten(n)
        m = MatMul(f, t)
        y = Add(m, shift2)
    }""")
    rng = np.random.default_rng(3)
    shapes = {"w": (4, 2, 3, 3), "b": (4,), "scale": (4,), "shift": (4,), "mean": (4,), "c2": (7, 36), "shift2": (7,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    proto = with_weights(proto, **arrays, variance=np.ones(4, np.float32))
    for tensor in proto.graph.initializer:
        proto.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for name, shape in (("c", ["N", 4, 3, 3]), ("n", ["N", 4, 3, 3]), ("t", [36, 7]), ("i", [7, 36])):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.checker.check_model(proto, full_check=True)
    done = clean(proto, [{"x": rng.standard_normal((2, 2, 5, 5)).astype(np.float32)}])
    written = done.model.proto()
    onnx.checker.check_model(written, full_check=True)
    assert not {info.name for info in written.graph.value_info} & {each.name for each in written.graph.initializer}
    assert done.size < done.before
    assert "BatchNormalization" not in {node.op_type for node in done.model.nodes()}


MANY = 20_000


def deep() -> onnx.ModelProto:
    """Layers, arithmetic that cannot be merged and nodes that do nothing, one after the other."""
    kinds: list[tuple[str, list[str]]] = [
        ("Tanh", []), ("Add", ["w"]), ("Relu", []), ("MatMul", ["v"]), ("Sigmoid", []), ("Identity", []),
    ]  # fmt: skip
    nodes = []
    for index in range(MANY):
        kind, more = kinds[index % len(kinds)]
        nodes.append(helper.make_node(kind, [f"t{index}", *more], [f"t{index + 1}"], f"n{index}"))
    weights = [numpy_helper.from_array(np.full(4, 1.5, np.float32), "w"),
               numpy_helper.from_array(np.eye(4, dtype=np.float32) / 2, "v")]  # fmt: skip
    return _vector_model(nodes, f"t{MANY}", weights)


def merging() -> onnx.ModelProto:
    """A chain that shrinks to a single addition."""
    nodes = [helper.make_node("Add", [f"t{i}", "w"], [f"t{i + 1}"], f"n{i}") for i in range(MANY)]
    return _vector_model(nodes, f"t{MANY}", [numpy_helper.from_array(np.full(4, 0.5, np.float32), "w")])


def wide() -> onnx.ModelProto:
    """Branches with a weight each, all read by one node."""
    nodes, weights, half = [], [], MANY // 2
    for index in range(half):
        weights.append(numpy_helper.from_array(np.full(4, index + 2, np.float32), f"w{index}"))
        nodes += [helper.make_node("Mul", ["t0", f"w{index}"], [f"m{index}"], f"m{index}"),
                  helper.make_node("Tanh", [f"m{index}"], [f"u{index}"], f"u{index}")]  # fmt: skip
    nodes.append(helper.make_node("Sum", [f"u{index}" for index in range(half)], ["sum"], "sum"))
    return _vector_model(nodes, "sum", weights)


def alike() -> onnx.ModelProto:
    """The same branch ten thousand times."""
    nodes = []
    for index in range(MANY // 2):
        nodes += [helper.make_node("Neg", ["t0"], [f"m{index}"], f"m{index}"),
                  helper.make_node("Tanh", [f"m{index}"], [f"u{index}"], f"u{index}")]  # fmt: skip
    nodes.append(helper.make_node("Concat", [f"u{index}" for index in range(MANY // 2)], ["all"], "all", axis=1))
    nodes.append(helper.make_node("ReduceMax", ["all"], ["most"], "most", axes=[1]))
    return _vector_model(nodes, "most", [], outputs=["N", 1])


def _vector_model(
    nodes: list[onnx.NodeProto], last: str, weights: list[TensorProto], outputs: Sequence[int | str] = ("N", 4)
) -> onnx.ModelProto:
    nodes.append(helper.make_node("Identity", [last], ["y"], "last"))
    x = helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


LEFT = {"deep": MANY - MANY // 6, "merging": 1, "wide": MANY + 1, "alike": 4}
"""Nodes that remain."""


@pytest.mark.slow
@pytest.mark.parametrize("build", [deep, merging, wide, alike])
def test_twenty_thousand_nodes_take_seconds(build: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    """Load, clean, save under 6 s of processor time; nothing recurses over the depth, nothing is quadratic."""
    source, target = tmp_path / "before.onnx", tmp_path / "after.onnx"
    source.write_bytes(build().SerializeToString())
    start = time.process_time()
    model = load(source)
    apply(model)
    model.save(target)
    seconds = time.process_time() - start
    assert len(list(load(target).nodes())) == LEFT[build.__name__]
    assert seconds < 6


@pytest.mark.parametrize("build", [deep, merging, wide, alike])
def test_many_nodes_compute_the_same(
    build: Callable[[], onnx.ModelProto], clean: Cleaner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs of the timed test, small enough to be run."""
    monkeypatch.setitem(globals(), "MANY", 60)
    t0 = np.random.default_rng(4).standard_normal((3, 4)).astype(np.float32)
    done = clean(build(), [{"t0": t0}, {"t0": t0[:1]}])
    assert len(list(done.model.nodes())) <= {"deep": 50, "merging": 1, "wide": 61, "alike": 4}[build.__name__]
