"""`onnxopt compare A B`."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.backends.jobs import latency
from onnxopt.backends.timing import Latency, Ratio
from onnxopt.backends.worker import Worker
from onnxopt.models.builders import Sketch

Cli = Callable[..., Any]
Tiny = Callable[..., onnx.ModelProto]


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
    for facts in (found["a"], found["b"]):
        assert facts.pop("latency_ms") > 0
    assert found["a"] == found["b"]
    assert {key: value for key, value in found["b_to_a"].items() if key != "latency_ms"} == dict.fromkeys(found["a"], 1)


def test_ratios_are_b_to_a_as_those_of_a_run_are_after_to_before(cli: Cli, folder: Path, tiny: Tiny) -> None:
    onnx.save(tiny(80), "wide.onnx")
    found = json.loads(cli("compare", "tiny.onnx", "wide.onnx", "--shape", "x:4,8", "--json").out)
    assert (found["a"]["parameters"], found["b"]["parameters"]) == (8 * 8, 8 * 80)
    assert found["b_to_a"]["parameters"] == found["b_to_a"]["macs"] == 10
    ran = cli("compare", "tiny.onnx", "wide.onnx")
    assert re.search(r"^ +A +B +B/A$", ran.out, re.MULTILINE)
    assert re.search(r"^parameters +64 +640 +x10\.00$", ran.out, re.MULTILINE)


def test_latency_ratio(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(*_: object) -> list[Latency]:
        return [Latency(s, s, s, s, 1, Ratio(s / 2, s / 2, s / 2)) for s in (2.0, 1.0)]

    real = Worker.call
    monkeypatch.setattr(
        Worker, "call", lambda self, job, *args, **named: (half if job is latency else partial(real, self, job))(*args)
    )
    found = json.loads(cli("compare", "tiny.onnx", "tiny.onnx", "--json").out)
    assert (found["a"]["latency_ms"], found["b"]["latency_ms"], found["b_to_a"]["latency_ms"]) == (2000, 1000, 0.5)
    assert "x0.50" in cli("compare", "tiny.onnx", "tiny.onnx").out


def test_sizes_that_the_models_take(cli: Cli, folder: Path) -> None:
    sketch = Sketch()
    x = sketch.input("x", [None, None])
    window = sketch.node("Slice", x, *(sketch.weight(n, np.array([v])) for n, v in zip("sea", (0, 40, 1), strict=True)))
    sketch.output(sketch.node("MatMul", window, sketch.random("w", 40, 3)), [None, 3])
    onnx.save(sketch.model(), "long.onnx")
    ran = cli("compare", "long.onnx", "long.onnx", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["sizes"] == {"x": [2, 64]}
    assert "float32 [?, ?]" in cli("compare", "long.onnx", "long.onnx", "--shape", "x:2").refusal(3)
    assert "MatMul" in cli("compare", "long.onnx", "long.onnx", "--shape", "x:2,30").refusal(3)


def test_drift(cli: Cli, pair: Path) -> None:
    found = json.loads(cli("compare", "tiny.onnx", "other.onnx", "--data", "x.npz", "--json").out)
    assert found["outputs"][0]["output"] == "y"
    assert found["outputs"][0]["relative_l2"] == pytest.approx(0.1, rel=1e-3)
    assert "1.0e-01" in cli("compare", "tiny.onnx", "other.onnx").out


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
