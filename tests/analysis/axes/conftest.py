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
from onnxopt.analysis.symbols import Polynomial, symbols
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.serialization import to_proto

Feeds = Mapping[str, npt.NDArray[Any]]


def outputs(model: Model | onnx.ModelProto, feeds: Feeds, *, check: bool = True) -> list[npt.NDArray[Any]]:
    """What ONNX Runtime computes, without optimizations; the model passes the full checker first."""
    proto = to_proto(model.ir) if isinstance(model, Model) else model
    if check and all(each.domain in ("", "ai.onnx") for each in proto.opset_import):
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


def _assert_shapes(proto: onnx.ModelProto, feeds: Feeds) -> None:
    """What is found of the shapes and types of all values, at the sizes of some feeds, is what the runtime gives."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    for info in proto.graph.input:
        for dim, size in zip(info.type.tensor_type.shape.dim, feeds[info.name].shape, strict=True):
            dim.dim_value = size
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for node in proto.graph.node for name in node.output)
    model = load(proto)
    found = symbols(model)
    for value, array in zip(model.graph.outputs, outputs(proto, feeds, check=False), strict=True):
        fact = found.of(value)
        assert fact.shape is not None, value.name
        assert len(fact.shape) == array.ndim, value.name
        sizes = [
            real if isinstance(size, Polynomial) else size for size, real in zip(fact.shape, array.shape, strict=True)
        ]
        assert sizes == list(array.shape), value.name
        assert fact.dtype is not None, value.name
        assert fact.dtype.numpy() == array.dtype, value.name


@pytest.fixture(scope="session")
def check() -> Callable[[onnx.ModelProto, Feeds], Channels]:
    """See `_assert_exact`, after `_assert_shapes`."""

    def both(proto: onnx.ModelProto, feeds: Feeds) -> Channels:
        _assert_shapes(proto, feeds)
        return _assert_exact(proto, feeds)

    return both


def _sandwich(
    middle: Callable[[Sketch, str], str], *, channels: int = 8, rows: int | None = None, tokens: bool = False,
    sizes: tuple[int | str, ...] = (6, 4), rank: int = 0, opset: int = 18, **domains: int,
) -> tuple[onnx.ModelProto, Feeds]:  # fmt: skip
    """What is tested between a layer that makes its channels and one that reads them.

    With `rows` 0 none reads: all is summed, so that nothing but what is tested holds channels, or is what comes out.

    Args:
        middle: draws what is tested, given the name of an image of 6 by 4, or of 5 tokens.
        channels: that it reads.
        rows: that it gives, where these are others.
        tokens: whether channels are last.
        sizes: of the image, as they are declared.
        rank: of the result, where it is another; with `rows` 0 it is not summed.
        opset: of the model.
        domains: other operator sets.
    """
    sketch = Sketch(opset=opset)
    sketch.domains.update({name.replace("_", "."): version for name, version in domains.items()})
    summed = rows == 0 and rank == 0
    rows = channels if rows is None else rows
    if tokens:
        x = sketch.input("data", ("batch", 5, 3))
        x = sketch.node("MatMul", x, sketch.random("first.weight", 3, channels))
        x = middle(sketch, sketch.node("Add", x, sketch.random("first.bias", channels)))
        x = sketch.node("MatMul", x, sketch.random("last.weight", rows, 4)) if rows else x
    else:
        x = sketch.input("data", ("batch", 3, *sizes))
        first = sketch.random("first.weight", channels, 3, 1, 1), sketch.random("first.bias", channels)
        x = middle(sketch, sketch.node("Conv", x, *first))
        x = sketch.node("Conv", x, sketch.random("last.weight", 4, rows, 1, 1)) if rows else x
    shape = (2, 5, 3) if tokens else (2, 3, 6, 4)
    if summed:
        x, rank = sketch.node("ReduceSum", sketch.node("Cast", x, to=1), keepdims=0), 0
    sketch.output(x, [None] * (0 if summed else rank or len(shape)))
    return sketch.model(), {"data": np.random.default_rng(1).normal(size=shape).astype(np.float32)}


@pytest.fixture(scope="session")
def sandwich() -> Callable[..., tuple[onnx.ModelProto, Feeds]]:
    """See `_sandwich`."""
    return _sandwich
