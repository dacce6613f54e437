"""Each builder gives a valid model that holds what it is named after, the same on every call, and runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxopt.models.builders import ELEMENT_TYPES, FORMS, ON_DISK, RARE, RUNNABLE, STORAGES, feeds, linear, of_type

CPU = ["CPUExecutionProvider"]
OLDEST_RUNTIMES_OPSET = 23
NO_SHAPE_INFERENCE = {"sparse-initializers"}


def run(model: onnx.ModelProto | str, inputs: onnx.ModelProto) -> list[np.ndarray]:
    """Outputs on random feeds, with no graph optimization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = model if isinstance(model, str) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=CPU)
    outputs: list[np.ndarray] = session.run(None, feeds(inputs, np.random.default_rng(1)))
    return outputs


def run_unless_too_new(model: onnx.ModelProto) -> list[np.ndarray]:
    try:
        return run(model, model)
    except Exception as error:
        opset = max(entry.version for entry in model.opset_import if not entry.domain)
        if opset > OLDEST_RUNTIMES_OPSET:
            pytest.skip(f"this onnxruntime lacks opset {opset}: {error}")
        raise


@pytest.mark.parametrize("name", RARE)
def test_valid_and_the_same_on_every_call(name: str) -> None:
    model = RARE[name]()
    onnx.checker.check_model(model, full_check=name not in NO_SHAPE_INFERENCE)
    assert model == RARE[name]()
    assert model.ByteSize() < 20_000


@pytest.mark.parametrize("name", [name for name in RARE if name in RUNNABLE])
def test_runs(name: str) -> None:
    model = RARE[name]()
    outputs = run_unless_too_new(model)
    assert len(outputs) == len(model.graph.output)


@pytest.mark.parametrize("name", ON_DISK)
def test_runs_from_a_folder(name: str, tmp_path: Path) -> None:
    model = ON_DISK[name](tmp_path)
    assert all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    path = str(tmp_path / "model.onnx")
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    assert np.isfinite(run(path, model)[0]).all()


def test_old_and_new_versions_are_covered() -> None:
    models = [build() for build in RARE.values()]
    opsets = {entry.version for model in models for entry in model.opset_import if not entry.domain}
    assert {7, 9, 13, 18, 19, 21, 23, 24, 25, onnx.defs.onnx_opset_version()} <= opsets
    assert {3, 4, 7, 8, 9, 10, 11, 12, 13} <= {model.ir_version for model in models}


def annotated(model: onnx.ModelProto, field: str) -> set[str]:
    """The kinds of message with something in the field."""
    found: set[str] = set()
    todo: list[object] = [model]
    while todo:
        part = todo.pop()
        for descriptor, value in part.ListFields():  # type: ignore[attr-defined]
            if descriptor.name == field:
                found.add(type(part).__name__)
            elif descriptor.message_type is not None:
                todo += value if descriptor.is_repeated else [value]
    return found


ANNOTATED = {"ModelProto", "GraphProto", "NodeProto", "ValueInfoProto", "TensorProto", "FunctionProto"}
FEATURES: dict[str, Callable[[onnx.ModelProto], object]] = {
    "initializers-as-inputs": lambda m: len(m.graph.input) == 3 and len(m.graph.initializer) == 2,
    "typed-fields": lambda m: not any(t.raw_data for t in m.graph.initializer),
    "sparse-initializers": lambda m: len(m.graph.sparse_initializer) == 2,
    "sparse-constant": lambda m: m.graph.node[0].attribute[0].HasField("sparse_tensor"),
    "duplicated-initializers": lambda m: m.graph.initializer[0].raw_data == m.graph.initializer[1].raw_data,
    "nested-functions": lambda m: len(m.functions) == 2 and m.functions[0].attribute_proto,
    "overloaded-functions": lambda m: {f.overload for f in m.functions} == {"first", "second"},
    "quantization-annotation": lambda m: m.graph.quantization_annotation,
    "training-info": lambda m: m.training_info[0].algorithm.node,
    "device-configurations": lambda m: m.configuration and m.graph.node[0].device_configurations,
    "denotations": lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].denotation,
    "maps": lambda m: m.graph.input[0].type.HasField("map_type"),
    "sequences": lambda m: m.graph.input[0].type.HasField("sequence_type"),
    "optional-input": lambda m: m.graph.input[0].type.HasField("optional_type"),
    "sparse-input": lambda m: m.graph.input[0].type.HasField("sparse_tensor_type"),
    "custom-domain": lambda m: {a.type for a in m.graph.node[1].attribute} == set(range(1, 15)),
    "metadata-everywhere": lambda m: annotated(m, "metadata_props") == ANNOTATED,
    "doc-strings-everywhere": lambda m: annotated(m, "doc_string") == ANNOTATED | {"AttributeProto"},
}


@pytest.mark.parametrize("name", FEATURES)
def test_holds_what_it_is_named_after(name: str) -> None:
    assert FEATURES[name](onnx.load_from_string(RARE[name]().SerializeToString()))


@pytest.mark.parametrize("storage", ["initializer", "constant"])
@pytest.mark.parametrize("dtype", ["FLOAT8E4M3FN", "FLOAT8E5M2FNUZ", "INT4", "UINT4", "FLOAT4E2M1", "INT2", "BFLOAT16"])
def test_element_types_hold_their_values_exactly(dtype: str, storage: str) -> None:
    graph = of_type(dtype, storage).graph
    tensor = graph.initializer[0] if storage == "initializer" else graph.node[0].attribute[0].t
    assert tensor.data_type == onnx.TensorProto.DataType.Value(dtype)
    assert onnx.numpy_helper.to_array(tensor).astype(float).tolist() == list(ELEMENT_TYPES[dtype][2])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_linear_operator_does_not_depend_on_the_storage_of_its_weight(storage: str) -> None:
    for form in FORMS:
        plain, stored = linear(form), linear(form, storage)
        onnx.checker.check_model(stored, full_check=True)
        for expected, got in zip(run(plain, plain), run(stored, plain), strict=True):
            # The weights are equal to the bit; runtimes pack constant ones and then sum in another order.
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=form)


@pytest.mark.parametrize("form", FORMS)
def test_sharers_read_one_weight(form: str) -> None:
    model = linear(form, sharers=3)
    assert len(run(model, model)) == 3
    assert sum("w" in node.input for node in model.graph.node) == 3
    assert [tensor.name for tensor in model.graph.initializer].count("w") == 1
    biases = {tensor.name for tensor in model.graph.initializer} - {"w"}
    assert len(biases) in (0, 3)


def test_feeds_leave_initializers_out_and_follow_the_shapes() -> None:
    fed = feeds(RARE["initializers-as-inputs"](), np.random.default_rng(0), size=6)
    assert {name: value.shape for name, value in fed.items()} == {"x": (6, 4)}
