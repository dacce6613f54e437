"""`onnxopt compare A B`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.models.builders import Sketch

Cli = Callable[..., Any]


@pytest.fixture
def pair(folder: Path) -> Path:
    """`tiny.onnx`, and `other.onnx` with all weights a tenth larger."""
    model = onnx.load("tiny.onnx")
    weight = model.graph.initializer[0]
    larger = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.1), weight.name)
    weight.CopyFrom(larger)
    onnx.save(model, "other.onnx")
    return folder


def test_the_same(cli: Cli, pair: Path) -> None:
    ran = cli("compare", "tiny.onnx", "tiny.onnx", "--json", "--tolerance", "0")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out, parse_constant=pytest.fail)
    assert [drift["relative_l2"] for drift in found["outputs"]] == [0.0]
    assert found["a"] == found["b"]


def test_drift(cli: Cli, pair: Path) -> None:
    found = json.loads(cli("compare", "tiny.onnx", "other.onnx", "--data", "x.npz", "--json").out)
    assert found["outputs"][0]["output"] == "y"
    assert found["outputs"][0]["relative_l2"] == pytest.approx(0.1, rel=1e-3)
    assert "1.00e-01" in cli("compare", "tiny.onnx", "other.onnx").out


def test_tolerance(cli: Cli, pair: Path) -> None:
    ran = cli("compare", "tiny.onnx", "other.onnx", "--tolerance", "0.05")
    assert ran.code == 4
    assert ran.err == "error: other.onnx drifts 0.1 from tiny.onnx, allowed 0.05\n"
    assert cli("compare", "tiny.onnx", "other.onnx", "--tolerance", "0.2").code == 0


def test_nan_breaks_any_tolerance(cli: Cli, folder: Path) -> None:
    sketch = Sketch()
    sketch.output(sketch.node("Log", sketch.node("Neg", sketch.node("Abs", sketch.input("x", ["n", 8])))), ["n", 8])
    onnx.save(sketch.model(), "nan.onnx")
    model = onnx.load("tiny.onnx")
    model.graph.output[0].name = model.graph.node[-1].output[0] = sketch.outputs[0].name
    onnx.save(model, "tiny.onnx")
    ran = cli("compare", "tiny.onnx", "nan.onnx", "--tolerance", "1000", "--json")
    assert ran.code == 4
    assert json.loads(ran.out, parse_constant=pytest.fail)["outputs"][0]["differs"]


def test_other_inputs(cli: Cli, digits: Path) -> None:
    line = cli("compare", "tiny.onnx", "cnn.onnx").refusal(3)
    assert "different inputs" in line
    assert "'images'" in line


def test_missing_file(cli: Cli, folder: Path) -> None:
    assert "no such model file: no.onnx" in cli("compare", "tiny.onnx", "no.onnx").refusal(3)
