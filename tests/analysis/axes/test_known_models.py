"""Trained models: as many units as their architecture has, and removing any of them is ignoring them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt import models
from onnxopt.analysis.axes import Channels, channel_ids, groups, lost_to
from onnxopt.model import load

Check = Callable[..., Channels]

SHIPPED = Path(models.__path__[0])
UNITS = {
    "byte_gpt": {"heads": 4 * 6, "neurons": 4 * 1536, "residual": 384},
    "digits_cnn": {"conv": 120, "residual": 72},
    "digits_transformer": {"heads": 12, "neurons": 768, "residual": 64},
}
ZOO = {
    "digits_cnn_bn_dynamo": {"conv": 64},
    "digits_lstm_legacy": {"recurrent": 96},
    "digits_transformer_legacy": {"heads": 16, "neurons": 768, "residual": 48},
    "fashion_se_net_legacy": {"conv": 526, "residual": 72},
    "hf_bert_tiny_dynamo": {"heads": 2 * 8, "neurons": 2 * 512},
    "resnet20_cifar_dynamo": {"conv": 3 * (16 + 32 + 64)},
}


def _units(channels: Channels) -> Counter[str]:
    found: Counter[str] = Counter()
    for group in groups(channels):
        found[group.kind] += len(group.units)
    return found


@pytest.mark.parametrize("name", UNITS)
def test_shipped_models(name: str) -> None:
    channels = channel_ids(load(SHIPPED / f"{name}.onnx"))
    assert _units(channels) == UNITS[name]
    assert lost_to(channels, "needs-rule") == 0


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name: str, zoo: Path) -> None:
    channels = channel_ids(load(zoo / f"{name}.onnx"))
    found = _units(channels)
    assert {kind: found[kind] for kind in ZOO[name]} == ZOO[name]
    assert lost_to(channels, "needs-rule") == 0


@pytest.mark.parametrize("name", ["digits_cnn", "digits_transformer"])
def test_removal_is_exact(name: str, assert_exact: Check) -> None:
    proto = onnx.load(SHIPPED / f"{name}.onnx")
    with np.load(SHIPPED / "digits.eval.npz") as data:
        feeds = {each.name: data[each.name][:3] for each in proto.graph.input}
    assert_exact(proto, feeds, tolerance=1e-4)
