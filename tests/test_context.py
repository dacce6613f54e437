"""What passes have computed for them: in another process, which reads weights from their files itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.backends.jobs import evaluate_bytes
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext, embedded
from onnxopt.model import Model, load, save

X = {"x": np.float32([[1, -2, 3]]), "b": np.array(True)}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Weights in a file, also of a subgraph and of 4 bits, and a few numbers in the model itself."""
    model = load(
        onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 3] x, bool b) => (float[N, 1024] y) <float[1] scale = {0.5}> {
            w = DequantizeLinear(q, scale)
            m = MatMul(x, w)
            y = If(b)<then_branch = t () => (float[N, 1024] o) { o = Add(m, inner) },
                      else_branch = e () => (float[N, 1024] u) { u = Neg(m) }> }""")
    )
    rng = np.random.default_rng(0)
    branch = next(node for node in model.nodes() if node.op_type == "If").attributes["then_branch"].as_graph()
    reader = {node.op_type: node for node in model.nodes()}
    quarters = ir.Tensor(rng.integers(-8, 8, (3, 1024)).astype(ir.DataType.INT4.numpy()), dtype=ir.DataType.INT4)
    for graph, node, at, name, tensor in (
        (model.graph, reader["DequantizeLinear"], 0, "q", quarters),
        (branch, reader["Add"], 1, "inner", ir.Tensor(rng.standard_normal(1024).astype(np.float32))),
    ):
        value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        graph.initializers.add(value)
        node.replace_input_with(at, value)
    save(model, tmp_path / "m.onnx", external_data=True)
    return load(tmp_path / "m.onnx")


def test_weights_on_disk_are_read_where_they_are_needed(
    model: Model, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {value.name: value.const_value for value in model.weights()}
    assert sum(isinstance(tensor, ir.ExternalTensor) for tensor in tensors.values()) == 2
    expected = evaluate_bytes(embedded(model.ir).SerializeToString(), X)
    sent: list[bytes] = []
    call = worker.call

    def watched(function: Any, content: bytes, *rest: Any) -> Any:
        sent.append(content)
        return call(function, content, *rest)

    monkeypatch.setattr(worker, "call", watched)
    monkeypatch.chdir(tmp_path.parent)
    for found in (RunContext(model, worker=worker).evaluate(model.ir, X), RunContext(model).evaluate(model.ir, X)):
        np.testing.assert_array_equal(found["y"], expected["y"])
    assert len(sent[0]) < 1024 < sum(tensor.nbytes for tensor in tensors.values() if tensor is not None)
    assert {value.name: value.const_value for value in model.weights()} == tensors


def test_observed_sizes_fill_in_what_is_open() -> None:
    """Rows that depend on the data are as a run showed them; columns are as the graph has them by now."""
    model = load(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 21]>
        g (float[4, 3] x) => (float[K, 5] y)
        <float[3, 7] a = {%s}, float[7, 5] b = {%s}, int64[2] turn = {-1, 3}> {
            places = NonZero(x)
            rows = Transpose<perm = [1, 0]>(places)
            cast = Cast<to = 1>(rows)
            wide = Concat<axis = 1>(cast, cast)
            three = Slice(wide, zero, end, one)
            h = MatMul(three, a)
            y = MatMul(h, b)
        }""".replace("int64[2] turn = {-1, 3}", "int64[1] one = {1}, int64[1] end = {3}, int64[1] zero = {0}")
            % (", ".join(["1"] * 21), ", ".join(["1"] * 35))
        )
    )
    for node in model.graph:
        if node.op_type == "Slice":
            node.replace_input_with(3, next(v for v in model.graph.initializers.values() if v.name == "one"))
    stale = {"places": (2, 9), "rows": (9, 2), "cast": (9, 2), "wide": (9, 4), "three": (9, 3), "h": (9, 70)}
    context = RunContext(model, sizes={"x": (4, 3)}, observed={**stale, "y": (9, 5)})
    assert context.shapes.concrete("h") == (9, 7)
    assert context.cost.macs == 9 * (3 * 7 + 7 * 5)
