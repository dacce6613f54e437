"""The oracle that the tests of channel ids share: a model without units against one that ignores them."""

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from onnxopt.analysis.axes import ChannelGroup, Channels, channel_ids, groups, masking, removal
from onnxopt.model import Model, load
from onnxopt.serialization import to_proto

Feeds = Mapping[str, npt.NDArray[Any]]


def outputs(model: Model | onnx.ModelProto, feeds: Feeds) -> list[npt.NDArray[Any]]:
    """What ONNX Runtime computes, without optimizations; the model passes the full checker first."""
    proto = to_proto(model.ir) if isinstance(model, Model) else model
    if all(each.domain in ("", "ai.onnx") for each in proto.opset_import):
        onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, dict(feeds))  # type: ignore[no-any-return]


def without(proto: onnx.ModelProto, units: Iterable[int]) -> Model:
    """The model without some units."""
    model = load(proto)
    model.apply(removal(channel_ids(model), units))
    return model


def ignoring(proto: onnx.ModelProto, units: Iterable[int]) -> Model:
    """The model in which all that reads some units reads 0."""
    model = load(proto)
    model.apply(masking(channel_ids(model), units))
    return model


def drawn(
    found: Iterable[ChannelGroup], rng: np.random.Generator, *, most: float = 0.5, inexact: bool = False
) -> list[int]:
    """Up to a share of the units of every group, never all of one."""
    chosen: list[int] = []
    for group in found:
        if len(group.units) > 1 and (group.exact or inexact):
            count = int(rng.integers(0, max(1, int(most * len(group.units))) + 1))
            chosen += rng.choice(group.units, min(count, len(group.units) - 1), replace=False).tolist()
    return chosen


def _assert_exact(proto: onnx.ModelProto, feeds: Feeds, *, draws: int = 3, tolerance: float = 1e-5) -> Channels:
    """Removal equals ignoring, for draws from all exact groups at once and for one unit of each group alone.

    Returns:
        the channels, so that a test can say more about them.
    """
    channels = channel_ids(load(proto))
    found = groups(channels)
    rng = np.random.default_rng(0)
    trials = [drawn(found, rng) for _ in range(draws)]
    trials += [[int(rng.choice(group.units))] for group in found if group.exact and len(group.units) > 1]
    for units in trials:
        for cut, masked in zip(
            outputs(without(proto, units), feeds), outputs(ignoring(proto, units), feeds), strict=True
        ):
            assert cut.shape == masked.shape
            scale = float(np.linalg.norm(masked.astype(np.float64)))
            assert np.linalg.norm(cut.astype(np.float64) - masked) <= tolerance * scale + 1e-6 * np.sqrt(cut.size)
    return channels


@pytest.fixture(scope="session")
def assert_exact() -> Callable[..., Channels]:
    """See `_assert_exact`."""
    return _assert_exact


@pytest.fixture(scope="session")
def removing() -> SimpleNamespace:
    """The parts of the oracle: `outputs`, `without`, `ignoring`, `drawn`."""
    return SimpleNamespace(outputs=outputs, without=without, ignoring=ignoring, drawn=drawn)
