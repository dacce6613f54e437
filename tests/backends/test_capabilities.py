"""Capabilities: plain, quick, and true of the runtime that is installed."""

import dataclasses
import json
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.backends import capabilities
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.errors import ModelError


def test_report_is_json_and_quick():
    for probe in (capabilities.max_opset, capabilities.max_ir, capabilities.features):
        probe.cache_clear()
    start = time.monotonic()
    report = capabilities.capabilities()
    assert time.monotonic() - start < 3
    assert json.loads(json.dumps(dataclasses.asdict(report))) == dataclasses.asdict(report)
    assert report.versions["numpy"] == np.__version__
    assert report.versions["onnx"] == onnx.__version__
    assert "CPUExecutionProvider" in report.providers
    assert (report.kernels is None) == (report.kernels_missing is not None)
    assert report.temp_free > 0


def test_missing_dependency_is_none():
    assert capabilities._version("no-such-distribution-for-onnxopt") is None


@pytest.mark.parametrize("field", ["opset", "ir"])
def test_limits_are_the_runtimes_own(build, field):
    limit = capabilities.max_opset() if field == "opset" else capabilities.max_ir()

    def load(version):
        model = build([helper.make_node("Identity", ["x"], ["y"])], **{field: version})
        return open_session(model.SerializeToString(), SessionMode.REFERENCE)

    assert run(load(limit), {"x": np.ones((1, 3), np.float32)})["y"].shape == (1, 3)
    with pytest.raises(ModelError, match=f"takes at most {limit}"):
        load(limit + 1)


def test_newest_stops_before_the_first_that_fails():
    assert capabilities._newest(lambda version: version <= 17, 5) == 17
    assert capabilities._newest(lambda version: False, 5) == 5


def test_features_are_consistent():
    features = capabilities.features()
    assert features["int8"]
    for name, answer in features.items():
        base = name.removesuffix("-matmulnbits")
        assert features[base] or not answer


def test_wrong_results_are_no_feature(build):
    """A model that runs but does not compute 32 does not count."""
    shape = ("x", TensorProto.FLOAT, (1, 32))
    wrong = build([helper.make_node("Relu", ["x"], ["y"])], [shape], [("y", TensorProto.FLOAT, (1, 32))])
    assert not capabilities._computes(wrong)
    assert not capabilities._fuses(wrong)
