"""Real models: every layer of theirs is seen, computes what its matrix says, and takes it back to the bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxopt.analysis.linear import Linear, find_linears
from onnxopt.model import load

Run = Callable[..., dict[str, np.ndarray]]
Product = Callable[[Linear, np.ndarray], np.ndarray]

LAYERS = {
    "digits_cnn_bn_dynamo": 5,
    "digits_lstm_legacy": 1,
    "digits_transformer_legacy": 18,
    "fashion_se_net_legacy": 27,
    "hf_bert_tiny_dynamo": 24,
    "resnet20_cifar_dynamo": 20,
}
"""All layers of these models have a bias; what else multiplies are the two products of each attention."""


@pytest.mark.parametrize("name", LAYERS)
def test_real_model(zoo: Path, run: Run, product: Product, name: str) -> None:
    model = load(zoo / f"{name}.onnx")
    with np.load(zoo / f"{name}.calib.npz") as data:
        wanted = {f"feed0000/{entry.name}": entry.name for entry in model.signature.inputs}
        feeds = {short: data[long][:4] for long, short in wanted.items()}
    layers, declined = find_linears(model)
    assert (len(layers), all(layer.bias for layer in layers)) == (LAYERS[name], True)
    assert len(declined) == (8 if "transformer" in name or "bert" in name else 0)
    assert {each.why for each in declined} <= {"both operands are activations"}
    inner = {value.name or "" for layer in layers for value in (layer.x, layer.y)} - feeds.keys()
    values = {**feeds, **run(model, feeds, tuple(inner))}
    for layer in layers:
        expected, y = product(layer, values[layer.x.name or ""]), values[layer.y.name or ""]
        assert np.linalg.norm(y - expected) <= 1e-5 * np.linalg.norm(expected)
    outputs = [entry.name for entry in model.signature.outputs]
    for layer in layers:
        model.apply(layer.replaced(layer.matrix(), layer.bias_vector()))
    after = run(model, feeds)
    assert all(after[each].tobytes() == values[each].tobytes() for each in outputs)
