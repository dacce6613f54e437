"""Layers as MatMul(x, W[K, N]) with a weight from anywhere."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from onnxopt.analysis.linear import Linear, linears
from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models import builders
from onnxopt.models.builders import Sketch

Run = Callable[..., dict[str, np.ndarray]]

DENSE = sorted(
    form for form in builders.FORMS if "conv" not in form and not form.endswith(("matmul-vector", "left-vector"))
)


def layer_of(model: Model) -> Linear:
    (layer,) = linears(model)
    return layer


def quantized(edit: Edit, layer: Linear) -> ir.Value:
    """The layer's weight, multiples of 1/16 at least, as int8 behind DequantizeLinear."""
    codes = (layer.to_matmul(layer.matrix()) * 16).astype(np.int8)
    inputs = [edit.add_weight("codes", codes), edit.add_weight("scale", np.array(1 / 16, np.float32))]
    node = ir.node("DequantizeLinear", inputs)
    edit.insert([node], before=layer.node)
    return node.outputs[0]


@pytest.mark.parametrize("form", DENSE)
@pytest.mark.parametrize("storage", ["raw", "long-chain"])
def test_weight_made_by_a_node(run: Run, form: str, storage: str) -> None:
    proto = builders.linear(form, storage)
    model, feeds = load(proto), builders.feeds(proto, np.random.default_rng(1))
    before, signature = run(model, feeds), model.signature
    edit = Edit("test")
    layer = layer_of(model)
    matrix = layer.matrix()
    layer.rewired_to_matmul(edit, quantized(edit, layer))
    model.apply(edit)
    after = run(model, feeds)
    assert model.signature == signature
    for name, y in before.items():
        np.testing.assert_allclose(after[name], y, rtol=1e-5, atol=1e-5)
    assert {"codes", "scale"} <= set(model.graph.initializers) <= {"codes", "scale", "b"}
    assert "Gemm" not in [node.op_type for node in model.nodes()]
    again = layer_of(model)
    assert (again.kind, again.weight.index, again.weight.root.name) == ("matmul", 1, "codes")
    assert again.weight.shape == layer.matmul_shape
    np.testing.assert_array_equal(again.matrix(), matrix)


@pytest.mark.parametrize("sharers", [1, 2])
def test_sharers_keep_the_weight(run: Run, sharers: int) -> None:
    proto = builders.linear("gemm-trans-b", "transpose", sharers)
    model, feeds = load(proto), builders.feeds(proto, np.random.default_rng(1))
    before = run(model, feeds)
    edit = Edit("test")
    layer = linears(model)[0]
    layer.rewired_to_matmul(edit, quantized(edit, layer))
    model.apply(edit)
    for name, y in run(model, feeds).items():
        np.testing.assert_allclose(y, before[name], rtol=1e-5, atol=1e-5)
    assert ("w" in model.graph.initializers) == (sharers == 2)
    assert [node.op_type for node in model.nodes()].count("Transpose") == sharers - 1


def test_types_and_shapes_are_known_afterwards() -> None:
    for form in ("matmul-left-bias-column", "gemm-trans-a", "gemm-left-bias-column"):
        model = load(builders.linear(form))
        layer = layer_of(model)
        assert layer.x.shape is not None
        layer.node.outputs[0].shape = ir.Shape(["a", 5, 3] if layer.kind == "matmul" else ["a", "b"])
        layer.node.outputs[0].dtype = ir.DataType.FLOAT
        edit = Edit("test")
        layer.rewired_to_matmul(edit, edit.add_weight("kn", layer.to_matmul(layer.matrix())))
        model.apply(edit)
        made = [value for node in edit.inserted for value in node.outputs]
        assert all(value.dtype == ir.DataType.FLOAT and value.shape is not None for value in made)


def rewired(model: Model) -> None:
    layer = layer_of(model)
    edit = Edit("test")
    layer.rewired_to_matmul(edit, edit.add_weight("kn", layer.to_matmul(layer.matrix())))
    model.apply(edit)


def test_a_bias_of_factor_zero_is_not_added() -> None:
    model = load(builders.linear("gemm-beta-zero"))
    rewired(model)
    assert [node.op_type for node in model.nodes()] == ["MatMul", "Identity"]
    assert set(model.graph.initializers) == {"kn"}


def test_metadata_stay() -> None:
    model = load(builders.linear("gemm-trans-b"))
    layer_of(model).node.metadata_props["from"] = "here"
    rewired(model)
    assert layer_of(model).node.metadata_props["from"] == "here"


def test_matrix_times_vector(run: Run) -> None:
    sketch = Sketch(opset=13)
    y = sketch.node("MatMul", sketch.random("w", 5, 4), sketch.input("x", [4]))
    sketch.output(sketch.node("Add", y, sketch.random("b", 5), outputs=["y"]), [5])
    model = load(sketch.model())
    layer = layer_of(model)
    assert (layer.x_axis, layer.y_axis) == (-1, -1)
    assert layer.bias is not None
    feeds = {"x": np.float32([1, -2, 3, 4])}
    before = run(model, feeds)["y"]
    np.testing.assert_allclose(before, layer.matrix()[0] @ feeds["x"] + layer.bias_vector(), rtol=1e-5)
    rewired(model)
    assert [node.op_type for node in model.nodes()] == ["MatMul", "Add"]
    np.testing.assert_allclose(run(model, feeds)["y"], before, rtol=1e-5)


def refused(model: Model, why: str, weight: np.ndarray | None = None) -> None:
    layer = layer_of(model)
    edit = Edit("test")
    value = edit.add_weight("kn", np.ones((4, 5), np.float32) if weight is None else weight)
    with pytest.raises(ModelError, match=why):
        layer.rewired_to_matmul(edit, value)


def test_refused() -> None:
    refused(load(builders.linear("conv-2d-pointwise")), "a convolution is no matrix product")
    refused(load(builders.linear("gemm")), r"takes a weight of shape \[4, 5\]", np.ones((5, 4), np.float32))
    refused(load(builders.linear("gemm")), "computes in FLOAT", np.ones((4, 5), np.float16))
    with pytest.raises(ModelError, match=r"has no weight \[K, N\]"):
        assert layer_of(load(builders.linear("conv-1d"))).matmul_shape
    sketch = Sketch()
    c = sketch.input("c", [3, 5])
    y = sketch.node("Gemm", sketch.input("x", [3, 4]), sketch.random("w", 4, 5), c, beta=0.5)
    sketch.output(y, [3, 5])
    refused(load(sketch.model()), "c is scaled by beta = 0.5")
    sketch = Sketch()
    x = sketch.node("Reshape", sketch.input("x", [12]), sketch.input("shape", [None], TensorProto.INT64))
    sketch.output(sketch.node("MatMul", sketch.random("w", 5, 4), x), None)
    refused(load(sketch.model()), "rank of reshape, which would be transposed, is not known")
