"""unlist-initializers: old files get rid of their list, callers' defaults stay unless told otherwise."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxopt.api import optimize
from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.models.builders import RARE
from onnxopt.passes.clean import is_constant
from onnxopt.passes.clean.unlist_initializers import UnlistInitializers
from onnxopt.passing import contract_of


def model(ir_version: int, opset: int = 8) -> Model:
    """Conv, BatchNormalization and Relu whose weights are all listed."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g (float[n, 2, 5, 5] x) => (float[n, 4, 3, 3] y) {{'
        "c = Conv(x, w) b = BatchNormalization(c, one, w1, w1, one) y = Relu(b) }"
    )
    arrays = {"w": rng.standard_normal((4, 2, 3, 3)), "w1": rng.standard_normal(4), "one": np.ones(4)}
    for name, array in arrays.items():
        tensor = numpy_helper.from_array(array.astype(np.float32), name)
        proto.graph.initializer.append(tensor)
        proto.graph.input.insert(0, helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return load(proto)


@pytest.mark.parametrize("opset", [7, 8, 11])
def test_old_files_list_nothing_any_more(exact: Any, opset: int) -> None:
    source = model(3, opset)
    done, findings = exact(source, UnlistInitializers())
    assert [value.name for value in done.graph.inputs] == ["x"]
    assert set(done.graph.initializers) == {"w", "w1", "one"}
    assert done.ir.ir_version == 4
    assert {change.node for change in findings.changes} == {"w", "w1", "one"}
    assert "IR 3 became 4" in findings.notes[0]


def test_what_callers_may_feed_stays_and_is_told(exact: Any) -> None:
    done, findings = exact(model(4), UnlistInitializers())
    assert not findings.changed
    assert {declined.node for declined in findings.declined} == {"w", "w1", "one"}
    assert all("defaults=drop" in declined.why for declined in findings.declined)
    assert len(done.graph.inputs) == 4


def test_what_callers_may_feed_becomes_constant_when_told() -> None:
    done = model(8)
    findings = UnlistInitializers(defaults="drop").run(done, RunContext(done))
    assert {change.node for change in findings.changes} == {"w", "w1", "one"}
    assert done.signature.defaults == ()
    assert [value.name for value in done.graph.inputs] == ["x"]
    assert done.ir.ir_version == 8
    assert all(is_constant(done, weight) for weight in done.weights())


def test_dropping_defaults_changes_the_signature_and_nothing_else_does() -> None:
    assert UnlistInitializers(defaults="drop").changes_signature
    assert not UnlistInitializers().changes_signature
    assert contract_of(UnlistInitializers()) == contract_of(UnlistInitializers(defaults="drop"))


def test_the_runtime_fuses_what_it_could_not(tmp_path: Any) -> None:
    def fused(source: Model) -> list[str]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "fused.onnx")
        ort.InferenceSession(source.proto().SerializeToString(), options)
        return [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]

    source = model(4)
    assert "BatchNormalization" in fused(source)
    UnlistInitializers(defaults="drop").run(source, RunContext(source))
    assert "BatchNormalization" not in fused(source)


@pytest.mark.parametrize("options", [{}, {"defaults": "drop"}])
def test_a_whole_run(tmp_path: Any, options: dict[str, str]) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(model(4 if options else 3).proto().SerializeToString())
    optimize(source, [{"unlist-initializers": options}], output=tmp_path / "out.onnx", data="synthetic")
    assert [value.name for value in load(tmp_path / "out.onnx").graph.inputs] == ["x"]


def test_on_a_graph_of_the_collection(exact: Any) -> None:
    source = load(RARE["initializers-as-inputs"]())
    _, findings = exact(source, UnlistInitializers())
    assert findings.changed
