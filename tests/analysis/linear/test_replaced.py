"""Other matrices and biases: where they are stored, what they leave alone, what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxopt.analysis.linear import Linear, linears
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models import builders
from onnxopt.models.builders import Sketch

Run = Callable[..., dict[str, np.ndarray]]
Product = Callable[[Linear, np.ndarray], np.ndarray]

FORMS = sorted(set(builders.FORMS) - {"matmul-vector", "matmul-left-vector"})
RNG = np.random.default_rng(2)


def drawn(form: str, storage: str = "raw", sharers: int = 1) -> tuple[Model, dict[str, np.ndarray]]:
    proto = builders.linear(form, storage, sharers)
    return load(proto), builders.feeds(proto, np.random.default_rng(1))


def layer_of(model: Model) -> Linear:
    (layer,) = linears(model)
    return layer


def initializers(model: Model) -> dict[str, ir.DataType | None]:
    return {value.name or "": value.dtype for value in model.weights()}


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.nodes()]


@pytest.mark.parametrize("form", FORMS)
def test_new_bias(run: Run, form: str) -> None:
    model, feeds = drawn(form)
    layer = layer_of(model)
    y = layer.y.name or ""
    before, old = run(model, feeds, (y,))[y], layer.bias_vector()
    bias = RNG.standard_normal(layer.groups * layer.out_features).astype(np.float32)
    model.apply(layer.replaced(layer.matrix(), bias))
    again = layer_of(model)
    name = again.y.name or ""
    if layer.addend is None:
        assert np.array_equal(again.bias_vector(), bias)
    elif again.addend is not None:
        # What Gemm adds itself stays; the bias comes behind it.
        name = again.y.uses()[0].node.outputs[0].name or ""
    change = bias if old is None else bias - old
    np.testing.assert_allclose(run(model, feeds, (name,))[name], before + spread(layer, change), rtol=1e-5, atol=1e-5)


def spread(layer: Linear, vector: np.ndarray) -> np.ndarray:
    """A vector over output features in a shape that adds to y."""
    if layer.geometry is not None:
        return vector.reshape(-1, *(1 for _ in layer.geometry.kernel))
    batch = layer.weight.shape[:-2]
    if layer.x.shape is not None and layer.x.shape.rank() == 1:
        return vector.reshape(*batch, -1)
    return np.moveaxis(vector.reshape(*batch, 1, -1), -1, layer.y_axis)


@pytest.mark.parametrize("form", FORMS)
def test_a_bias_alone(form: str) -> None:
    """The same as with the matrix that is there, and back."""
    (model, _), (other, _) = drawn(form), drawn(form)
    layer, twin = layer_of(model), layer_of(other)
    old, bias = layer.bias_vector(), RNG.standard_normal(layer.groups * layer.out_features).astype(np.float32)
    weight = layer.weight.root.const_value
    model.apply(layer.rebiased(bias))
    other.apply(twin.replaced(twin.matrix(), bias))
    assert ops(model)[-1] == ops(other)[-1]
    assert np.array_equal(layer_of(model).bias_vector(), layer_of(other).bias_vector())
    assert layer_of(model).weight.root.const_value is weight
    model.apply(layer_of(model).rebiased(None))
    assert layer_of(model).bias is None
    if old is None and layer.addend is None:
        assert ops(model) == ops(drawn(form)[0])


@pytest.mark.parametrize("form", FORMS)
def test_no_bias(run: Run, product: Product, form: str) -> None:
    model, feeds = drawn(form)
    layer = layer_of(model)
    had = layer.bias is not None
    model.apply(layer.replaced(layer.matrix(), None))
    again = layer_of(model)
    assert again.bias is None
    if had:
        name = again.y.name or ""
        expected = product(again, feeds[again.x.name or ""])
        np.testing.assert_allclose(run(model, feeds, (name,))[name], expected, rtol=1e-5, atol=1e-5)
        assert form == "matmul-bias-read-twice" or "b" not in initializers(model)


def test_a_shared_bias_stays_for_others(run: Run) -> None:
    model, _ = drawn("matmul-bias-read-twice")
    layer = layer_of(model)
    old = layer.bias_vector()
    assert old is not None
    model.apply(layer.replaced(layer.matrix(), 2 * old))
    assert np.array_equal(layer_of(model).bias_vector(), 2 * old)
    assert np.array_equal(model.graph.initializers["b"].const_value.numpy(), old)


def test_nodes_stay_where_nothing_but_a_cast_lies_between() -> None:
    model, _ = drawn("gemm-trans-b", "cast")
    before = list(model.nodes())
    layer = layer_of(model)
    model.apply(layer.replaced(layer.matrix() / 2))
    assert list(model.nodes()) == before


def test_what_made_a_dropped_bias_goes_too() -> None:
    sketch = Sketch(opset=13)
    b = sketch.node("Cast", sketch.weight("b", np.ones(5, np.float16)), to=TensorProto.FLOAT)
    y = sketch.node("Gemm", sketch.input("x", ["batch", 4]), sketch.random("w", 4, 5), b, outputs=["y"])
    sketch.output(y, ["batch", 5])
    model = load(sketch.model())
    model.apply(layer_of(model).replaced(layer_of(model).matrix(), None))
    assert ops(model) == ["Gemm"]
    assert set(initializers(model)) == {"w"}


def test_a_first_bias_is_not_scaled(run: Run) -> None:
    sketch = Sketch(opset=13)
    y = sketch.node("Gemm", sketch.input("x", [3, 4]), sketch.random("w", 4, 5), beta=0.5, outputs=["y"])
    sketch.output(y, [3, 5])
    model, bias = load(sketch.model()), np.arange(5, dtype=np.float32)
    before = run(model, {"x": ones(3, 4)})["y"]
    layer = layer_of(model)
    model.apply(layer.replaced(layer.matrix(), bias))
    np.testing.assert_allclose(run(model, {"x": ones(3, 4)})["y"], before + bias, rtol=1e-6)


def test_a_step_given_out_stays(run: Run) -> None:
    proto = builders.linear("gemm-trans-b", "transpose")
    (step,) = (node for node in proto.graph.node if node.op_type == "Transpose")
    proto.graph.output.append(helper.make_tensor_value_info(step.output[0], TensorProto.FLOAT, [5, 4]))
    model, feeds = load(proto), builders.feeds(proto, RNG)
    before = run(model, feeds)
    layer = layer_of(model)
    model.apply(layer.replaced(2 * layer.matrix()))
    assert np.array_equal(run(model, feeds)[step.output[0]], before[step.output[0]])


def test_unshared_weights_keep_their_names() -> None:
    for storage in set(builders.STORAGES) - {"constant", "constant-floats", "transpose-constant"}:
        model, _ = drawn("gemm-trans-b", storage)
        layer = layer_of(model)
        model.apply(layer.replaced(layer.matrix()))
        assert initializers(model) == {"w": ir.DataType.FLOAT16 if storage == "cast" else ir.DataType.FLOAT}
        assert ops(model) == (["Cast", "Gemm", "Identity"] if storage == "cast" else ["Gemm", "Identity"])


def test_narrow_storage_stays_narrow_when_shared(run: Run) -> None:
    model, feeds = drawn("matmul", "cast", 2)
    before = run(model, feeds)
    first = linears(model)[0]
    model.apply(first.replaced(first.matrix()))
    assert initializers(model) == {"w": ir.DataType.FLOAT16, "w_1": ir.DataType.FLOAT16}
    assert ops(model).count("Cast") == 2
    assert all(y.tobytes() == before[name].tobytes() for name, y in run(model, feeds).items())


def test_storage_type_of_choice(run: Run) -> None:
    model, feeds = drawn("gemm-c-vector")
    layer = layer_of(model)
    matrix = layer.matrix() + np.float32(1 / 3)
    model.apply(layer.replaced(matrix, dtype=ir.DataType.FLOAT16))
    assert initializers(model)["w"] == ir.DataType.FLOAT16
    assert np.array_equal(layer_of(model).matrix(), matrix.astype(np.float16).astype(np.float32))
    run(model, feeds)


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_other_floats_keep_their_bits(dtype: str) -> None:
    code = getattr(TensorProto, dtype)
    sketch = Sketch(opset=13)
    values = sketch.normal(4, 5).astype(np.float64)
    w = sketch.weight("w", helper.make_tensor("", code, [4, 5], values.flatten().tolist()))
    sketch.output(sketch.node("MatMul", sketch.input("x", ["batch", 4], code), w, outputs=["y"]), ["batch", 5], code)
    model = load(sketch.model())
    layer = layer_of(model)
    assert layer.matrix().dtype == (np.float64 if dtype == "DOUBLE" else np.float32)
    before = model.graph.initializers["w"].const_value
    assert before is not None
    model.apply(layer.replaced(layer.matrix()))
    after = model.graph.initializers["w"].const_value
    assert after is not None
    assert (after.dtype, after.tobytes()) == (before.dtype, before.tobytes())


def test_arrays_go_through_the_store() -> None:
    model, _ = drawn("matmul-bias-after", "dequantize")
    layer = layer_of(model)
    stored = []

    def store(array: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol:
        stored.append(ir.Tensor(array, dtype=dtype))
        return stored[-1]

    model.apply(layer.replaced(layer.matrix(), store=store))
    assert model.graph.initializers["w"].const_value is stored[0]


def test_the_model_does_not_look_at_the_callers_array() -> None:
    model, _ = drawn("gemm-trans-b")
    layer = layer_of(model)
    matrix, wanted = layer.matrix(), layer.matrix()
    model.apply(layer.replaced(matrix))
    matrix[:] = 0
    assert np.array_equal(layer_of(model).matrix(), wanted)


def test_an_edit_not_applied_changes_nothing() -> None:
    for form in FORMS:
        model, _ = drawn(form, "long-chain", 2)
        before = model.proto().SerializeToString(deterministic=True)
        layer = linears(model)[0]
        layer.replaced(2 * layer.matrix(), np.ones(layer.groups * layer.out_features, np.float32))
        assert model.proto().SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("form", "keep", "stored", "group"),
    [
        ("conv-2d-depthwise", np.s_[:3], (3, 1, 3, 3), 3),
        ("conv-transpose-2d-depthwise", np.s_[:3], (3, 1, 3, 3), 3),
        ("conv-2d-grouped", np.s_[:, :2], (4, 2, 3, 3), 2),
        ("conv-transpose-2d-grouped", np.s_[:, :2, :9], (2, 2, 3, 3), 2),
        ("conv-3d", np.s_[:, :, :24], (6, 2, 2, 3, 2), None),
        ("gemm-trans-b", np.s_[:, :3], (3, 4), None),
        ("matmul-left", np.s_[:, :3, :2], (3, 2), None),
        ("matmul-batched", np.s_[:, :3], (2, 4, 3), None),
    ],
)
def test_other_sizes(form: str, keep: Any, stored: tuple[int, ...], group: int | None) -> None:
    model, _ = drawn(form)
    layer = layer_of(model)
    wanted = layer.matrix()[keep]
    model.apply(layer.replaced(wanted))
    again = layer_of(model)
    assert again.weight.shape == stored
    assert tuple(again.weight.root.shape) == stored
    assert again.node.attributes.get_int("group") == group
    assert np.array_equal(again.matrix(), wanted)


def test_layers_of_subgraphs(run: Run) -> None:
    proto = builders.RARE["if-capturing"]()
    model, feeds = load(proto), builders.feeds(proto, np.random.default_rng(1))
    before = run(model, feeds)
    for layer in linears(model):
        model.apply(layer.replaced(layer.matrix(), np.zeros(4, np.float32)))
    after = run(model, feeds)
    assert all(np.array_equal(after[name], y) for name, y in before.items())
    assert not any(layer.weight.is_shared for layer in linears(model))
    assert all(layer.bias for layer in linears(model))


def test_a_weight_given_out_stays(run: Run) -> None:
    proto = builders.linear("matmul")
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 5]))
    feeds = builders.feeds(proto, RNG)
    model = load(proto)
    before = run(model, feeds)
    layer = layer_of(model)
    model.apply(layer.replaced(2 * layer.matrix()))
    after = run(model, feeds)
    assert np.array_equal(after["w"], before["w"])
    np.testing.assert_allclose(after["y"], 2 * before["y"], rtol=1e-6)


def test_alpha_and_beta_stay_while_nothing_changes() -> None:
    model, _ = drawn("gemm-alpha-beta")
    layer = layer_of(model)
    model.apply(layer.replaced(layer.matrix(), layer.bias_vector()))
    assert (layer_of(model).alpha, layer_of(model).beta) == (-0.5, 2.0)
    model.apply(layer.replaced(layer.matrix() + 1, layer.bias_vector()))
    assert (layer_of(model).alpha, layer_of(model).beta) == (1.0, 2.0)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("form", "matrix", "bias", "dtype", "why"),
    [
        ("gemm-c-vector", ones(5, 4), ones(5), None, "takes a matrix"),
        ("gemm-c-vector", ones(1, 5, 4), ones(4), None, r"takes a bias \[5\]"),
        ("gemm-c-vector", ones(2, 5, 4), ones(10), None, "batch of 1"),
        ("conv-2d-bias", ones(1, 6, 35), ones(6), None, "no multiple"),
        ("conv-2d-bias", ones(1, 5, 36), None, ir.DataType.INT8, "cannot be stored as INT8"),
        ("matmul", 1e6 * ones(1, 5, 4), None, ir.DataType.FLOAT16, r"up to 1e\+06, too large for FLOAT16"),
    ],
)
def test_refused(form: str, matrix: np.ndarray, bias: np.ndarray | None, dtype: ir.DataType | None, why: str) -> None:
    model, _ = drawn(form)
    with pytest.raises(ModelError, match=why):
        layer_of(model).replaced(matrix, bias, dtype=dtype)


def test_a_kept_bias_must_fit() -> None:
    model, _ = drawn("conv-2d-bias")
    with pytest.raises(ModelError, match="give a bias of that size too"):
        layer_of(model).replaced(ones(1, 5, 36))
    layer_of(drawn("matmul-bias-scalar")[0]).replaced(ones(1, 3, 4))


@pytest.mark.parametrize("storage", ["raw", "transpose"])
def test_a_changed_layer_says_so(storage: str) -> None:
    model, _ = drawn("gemm-trans-b", storage, 2)
    layer = linears(model)[0]
    model.apply(layer.replaced(layer.matrix()))
    for call in (layer.matrix, lambda: layer.replaced(ones(1, 5, 4))):
        with pytest.raises(ModelError, match="ask for the linear layers again"):
            call()


def test_unknown_rank_refuses_a_bias_of_unknown_shape() -> None:
    sketch = Sketch()
    x = sketch.node("Reshape", sketch.input("x", [12]), sketch.input("shape", [None], TensorProto.INT64))
    sketch.output(sketch.node("MatMul", sketch.random("w", 5, 4), x, outputs=["y"]), None)
    model = load(sketch.model())
    layer = layer_of(model)
    with pytest.raises(ModelError, match="rank of its input reshape is not known"):
        layer.replaced(layer.matrix(), ones(5))
    matrix = layer.matrix()
    model.apply(layer.replaced(2 * matrix, None))
    assert np.array_equal(layer_of(model).matrix(), 2 * matrix)
