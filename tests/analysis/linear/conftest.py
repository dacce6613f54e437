"""What a layer must compute, said in numpy without the linear view's own code, and a way to run a model."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxopt.analysis.linear import Linear
from onnxopt.backends.sessions import SessionMode, open_session
from onnxopt.model import Model

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="session")
def run() -> Callable[..., dict[str, np.ndarray]]:
    """Run a model in the reference session, checked in full before; `extra` names inner values to give out too."""

    def run(model: Model, feeds: Arrays, extra: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        proto = model.proto()
        onnx.checker.check_model(proto, full_check=True)
        known = {output.name for output in proto.graph.output}
        proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in extra if name not in known)
        session = open_session(proto.SerializeToString(), SessionMode.REFERENCE)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run


@pytest.fixture(scope="session")
def product() -> Callable[[Linear, np.ndarray], np.ndarray]:
    """y of a layer for an x, from its matrix and bias vector alone."""
    return _product


def _product(layer: Linear, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    matrix, bias = layer.matrix().astype(np.float64), layer.bias_vector()
    vector = np.zeros(layer.groups * layer.out_features) if bias is None else bias.astype(np.float64)
    if layer.geometry is not None:
        compute = _conv if layer.kind == "conv" else _conv_transpose
        return compute(layer, x, matrix) + vector.reshape(1, -1, *(1 for _ in layer.geometry.kernel))
    return _dense(layer, x, matrix, vector)


def _dense(layer: Linear, x: np.ndarray, matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    batch = layer.weight.shape[:-2]
    weight = matrix.reshape(*batch, *matrix.shape[1:]).swapaxes(-1, -2)
    rows = np.moveaxis(x, layer.x_axis, -1)
    biases = vector.reshape(*batch, 1, -1) if batch and x.ndim > 1 else vector.reshape(*batch, -1)
    return np.moveaxis(rows @ weight + biases, -1, layer.y_axis)


def _pads(layer: Linear, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    geometry = layer.geometry
    assert geometry is not None
    if geometry.auto_pad == "NOTSET":
        count = len(geometry.kernel)
        return list(zip(geometry.pads[:count], geometry.pads[count:], strict=True))
    assert geometry.auto_pad == "SAME_UPPER"
    needed = [
        max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        for n, s, d, k in zip(sizes, geometry.strides, geometry.dilations, geometry.kernel, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in needed]


def _conv(layer: Linear, x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    geometry = layer.geometry
    assert geometry is not None
    padded = np.pad(x, [(0, 0), (0, 0), *_pads(layer, x.shape[2:])])
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(padded.shape[2:], geometry.kernel, geometry.strides, geometry.dilations, strict=True)
    ]
    grouped = padded.reshape(x.shape[0], layer.groups, layer.in_features, *padded.shape[2:])
    weight = matrix.reshape(layer.groups, layer.out_features, layer.in_features, layer.taps)
    y = np.zeros((x.shape[0], layer.groups, layer.out_features, *sizes))
    for tap, place in enumerate(itertools.product(*map(range, geometry.kernel))):
        window = tuple(
            slice(p * d, p * d + s * (n - 1) + 1, s)
            for p, d, s, n in zip(place, geometry.dilations, geometry.strides, sizes, strict=True)
        )
        y += np.einsum("goi,bgi...->bgo...", weight[..., tap], grouped[(..., *window)])
    return y.reshape(x.shape[0], -1, *sizes)


def _conv_transpose(layer: Linear, x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    geometry = layer.geometry
    assert geometry is not None
    full = [
        s * (n - 1) + d * (k - 1) + 1 + o
        for n, k, s, d, o in zip(
            x.shape[2:], geometry.kernel, geometry.strides, geometry.dilations, geometry.output_padding, strict=True
        )
    ]
    grouped = x.reshape(x.shape[0], layer.groups, layer.in_features, *x.shape[2:])
    weight = matrix.reshape(layer.groups, layer.out_features, layer.in_features, layer.taps)
    y = np.zeros((x.shape[0], layer.groups, layer.out_features, *full))
    for tap, place in enumerate(itertools.product(*map(range, geometry.kernel))):
        window = tuple(
            slice(p * d, p * d + s * (n - 1) + 1, s)
            for p, d, s, n in zip(place, geometry.dilations, geometry.strides, x.shape[2:], strict=True)
        )
        y[(..., *window)] += np.einsum("goi,bgi...->bgo...", weight[..., tap], grouped)
    crop = tuple(slice(a, n - b) for (a, b), n in zip(_pads(layer, x.shape[2:]), full, strict=True))
    return y[(..., *crop)].reshape(x.shape[0], -1, *(s.stop - s.start for s in crop))
