"""Real models: their data load as they are, and the metric is what it was when they were made."""

import json
from typing import Any

import onnxruntime as ort
import pytest

from onnxopt.data import open_data
from onnxopt.evaluate import MetricConfig, evaluate
from onnxopt.model import load

NAMES = (
    "digits_cnn_bn_dynamo", "digits_lstm_legacy", "digits_transformer_legacy", "fashion_se_net_legacy",
    "hf_bert_tiny_dynamo", "resnet20_cifar_dynamo",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_baselines(zoo: Any, name: str) -> None:
    model, facts = load(zoo / f"{name}.onnx"), json.loads((zoo / f"{name}.json").read_text())
    calibration = open_data(zoo / f"{name}.calib.npz", model.signature)
    data = open_data(zoo / f"{name}.npz", model.signature)
    assert data.batch_count == facts["n_feeds"]
    assert data.notes == calibration.notes == calibration.label_names == ()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(zoo / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(names, session.run(None, feeds), strict=True))

    kind = facts["metric"]["kind"]
    if kind == "none":
        assert evaluate(run, data, MetricConfig(kind="relative_l2").bind(data), run).value == 0
        return
    score = evaluate(run, data, MetricConfig.model_validate(kind).bind(data))
    assert score.samples == data.samples
    assert score.value == pytest.approx(facts["baseline"], abs=2 / score.samples)
