"""Every orientation x storage x sharing: the matrix is the right one, and other matrices go in exactly."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxopt.analysis.linear import Linear, find_linears, linears
from onnxopt.edit import Edit
from onnxopt.model import Model, load
from onnxopt.models import builders

Run = Callable[..., dict[str, np.ndarray]]
Product = Callable[[Linear, np.ndarray], np.ndarray]

NOT_LINEAR = {"matmul-vector", "matmul-left-vector"}
FORMS = sorted(set(builders.FORMS) - NOT_LINEAR)
TYPICAL = ("matmul-bias-after", "matmul-left", "matmul-batched", "gemm-alpha-beta", "gemm-left-trans-a",
           "conv-2d-grouped-bias", "conv-transpose-2d-grouped")  # fmt: skip
ALL = [(form, storage, sharers) for form in FORMS for storage in builders.STORAGES for sharers in (1, 2)]
FEW = [
    (form, storage, sharers)
    for form, storage, sharers in ALL
    if (storage == "raw") or (form in TYPICAL and sharers == 2) or (form == "gemm-trans-b" and sharers == 1)
]

cases = pytest.mark.parametrize(("form", "storage", "sharers"), FEW)
all_cases = pytest.mark.parametrize(("form", "storage", "sharers"), sorted(set(ALL) - set(FEW)))


def drawn(form: str, storage: str, sharers: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    proto = builders.linear(form, storage, sharers)
    return proto, builders.feeds(proto, np.random.default_rng(1))


def output(layer: Linear) -> str:
    """The model's output that hangs on the layer: y, or y behind Identity or what else reads it."""
    value = layer.y
    while not value.is_graph_output():
        value = value.uses()[0].node.outputs[0]
    return value.name or ""


def check_matrix(run: Run, product: Product, form: str, storage: str, sharers: int) -> None:
    proto, feeds = drawn(form, storage, sharers)
    model = load(proto)
    layers = linears(model)
    assert len(layers) == sharers
    ys = run(model, feeds, tuple(layer.y.name or "" for layer in layers))
    for layer in layers:
        expected = product(layer, feeds[layer.x.name or ""])
        if layer.addend is not None:
            expected = expected + addend(run, model, layer, feeds)
        np.testing.assert_allclose(ys[layer.y.name or ""], expected, rtol=1e-5, atol=1e-5)
        assert layer.matrix().shape == layer.shape
        assert layer.weight.is_shared == (sharers > 1)
        assert {user for user, _ in layer.weight.sharers} == {other.node for other in layers}


def addend(run: Run, model: Model, layer: Linear, feeds: dict[str, np.ndarray]) -> np.ndarray:
    assert layer.addend is not None
    if layer.addend.const_value is not None:
        return layer.addend.const_value.numpy()
    return run(model, feeds, (layer.addend.name or "",))[layer.addend.name or ""]


def check_same(run: Run, form: str, storage: str, sharers: int) -> None:
    proto, feeds = drawn(form, storage, sharers)
    model = load(proto)
    before = run(model, feeds)
    for layer in linears(model):
        model.apply(layer.replaced(layer.matrix(), layer.bias_vector()))
    after = run(model, feeds)
    for name, y in before.items():
        if storage == "as-input" and sharers > 1:
            # What was an input becomes a constant; the runtime packs it, and a packed product adds in another order.
            np.testing.assert_allclose(after[name], y, rtol=1e-6, atol=1e-6)
        else:
            assert after[name].tobytes() == y.tobytes()
    plain = {"Transpose", "Reshape", "DequantizeLinear"}
    # A factor other than 1 keeps the weight as it is: dividing by it would not give the same bits.
    assert form.startswith("gemm-alpha") or not plain & {node.op_type for node in model.nodes()}


def check_doubled(run: Run, product: Product, form: str, storage: str, sharers: int) -> None:
    proto, feeds = drawn(form, storage, sharers)
    model = load(proto)
    before = run(model, feeds)
    first, *others = linears(model)
    doubled = 2 * first.matrix()
    model.apply(first.replaced(doubled))
    again, *others_again = linears(model)
    assert np.array_equal(again.matrix(), doubled)
    after = run(model, feeds, (again.y.name or "",))
    expected = product(again, feeds[again.x.name or ""])
    if again.addend is not None:
        expected = expected + addend(run, model, again, feeds)
    np.testing.assert_allclose(after[again.y.name or ""], expected, rtol=1e-5, atol=1e-5)
    for layer in others:
        assert after[output(layer)].tobytes() == before[output(layer)].tobytes()
    assert len(others) == len(others_again)


def check_matmul(run: Run, form: str, storage: str, sharers: int) -> None:
    proto, feeds = drawn(form, storage, sharers)
    model = load(proto)
    before = run(model, feeds)
    for layer in linears(model):
        if layer.can_be_matmul() is not None:
            assert layer.kind.startswith("conv")
            continue
        edit = Edit("test")
        layer.rewired_to_matmul(edit, edit.add_weight("kn", layer.to_matmul(layer.matrix())))
        model.apply(edit)
    after = run(model, feeds)
    assert list(after) == list(before)
    for name, y in before.items():
        np.testing.assert_allclose(after[name], y, rtol=1e-5, atol=1e-5)
    assert "Gemm" not in {node.op_type for node in model.nodes()}
    assert all(layer.geometry or layer.weight.index == 1 for layer in linears(model))


@cases
def test_matrix_times_input_is_what_the_runtime_gives(
    run: Run, product: Product, form: str, storage: str, sharers: int
) -> None:
    check_matrix(run, product, form, storage, sharers)


@cases
def test_replaced_by_itself_is_the_same_to_the_bit(run: Run, form: str, storage: str, sharers: int) -> None:
    check_same(run, form, storage, sharers)


@cases
def test_doubled_alone(run: Run, product: Product, form: str, storage: str, sharers: int) -> None:
    check_doubled(run, product, form, storage, sharers)


@cases
def test_as_matmul(run: Run, form: str, storage: str, sharers: int) -> None:
    check_matmul(run, form, storage, sharers)


@pytest.mark.slow
@all_cases
def test_every_combination(run: Run, product: Product, form: str, storage: str, sharers: int) -> None:
    check_matrix(run, product, form, storage, sharers)
    check_same(run, form, storage, sharers)
    check_doubled(run, product, form, storage, sharers)
    check_matmul(run, form, storage, sharers)


@pytest.mark.parametrize("form", sorted(NOT_LINEAR))
def test_a_dot_product_is_no_layer(form: str) -> None:
    layers, declined = find_linears(load(builders.linear(form)))
    assert layers == []
    assert "axes" in declined[0].why
