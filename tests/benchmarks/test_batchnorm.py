"""The benchmark of BatchNormalization: what is put back computes what was there, and rules do what they are called."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from onnxopt.context import RunContext
from onnxopt.data import Dataset, open_data
from onnxopt.model import load
from onnxopt.passing import make
from onnxopt.statistics import Moments, Stat

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("batchnorm")


def gap(model: Any, data: Dataset) -> float:
    """How far statistics are from the moments of what is read, at most, in deviations."""
    norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
    seen = {node: Stat(node.inputs[0].name, Moments(axis=1)) for node in norms}
    found, worst = RunContext(model, calibration=data).collect(seen.values()), list[float]()
    for node, stat in seen.items():
        mean, variance = (node.inputs[at].const_value.numpy() for at in (3, 4))
        deviation = np.sqrt(found[stat].variance + 1e-6)
        worst.append(np.max(np.abs(mean - found[stat].mean) / deviation))
        worst.append(np.max(np.abs(np.sqrt(variance) - np.sqrt(found[stat].variance)) / deviation))
    return max(worst)


@pytest.mark.parametrize(("name", "norms"), [("digits_cnn_bn_dynamo", 4), ("fashion_se_net_legacy", 16)])
def test_a_model_computes_the_same_with_normalizations_put_back(
    bench: ModuleType, zoo: Path, name: str, norms: int
) -> None:
    path = zoo / f"{name}.onnx"
    data = open_data(path.with_suffix(".calib.npz"), load(path).signature).take(32)
    labelled = open_data(path.with_suffix(".npz"), load(path).signature).take(100)
    model = bench.unfolded(path, data)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph) == norms
    assert gap(model, data) < 1e-3
    np.testing.assert_allclose(bench.outputs(model, labelled)[0], bench.outputs(load(path), labelled)[0], atol=1e-4)


def test_only_plain_moments_are_moments_and_what_stays_stays(bench: ModuleType, zoo: Path) -> None:
    path = zoo / "digits_cnn_bn_dynamo.onnx"
    labelled, data = (open_data(path.with_suffix(end), load(path).signature) for end in (".npz", ".calib.npz"))
    gaps, kept = {}, {}
    for name, rule in bench.STATISTICS.items():
        model = bench.unfolded(path, labelled)
        with patch.object(bench.repair, "reestimate", rule):
            options = {"ratio": 0.5, "repair": "batch-norm"}
            findings = make("prune-channels", options).run(model, RunContext(model, calibration=data))
        gaps[name], kept[name] = gap(model, data), int(findings.measures["norms_reestimated"])
    assert gaps["plain moments"] < 1e-3 < 10 * gaps["following"] < gaps["as they were"]
    assert kept["as they were"] == 0 < kept["following"] <= kept["plain moments"]
