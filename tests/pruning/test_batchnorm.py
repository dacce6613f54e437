"""Statistics of BatchNormalization after pruning: against numpy's moments of what the nodes read."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from onnxopt import models
from onnxopt.context import RunContext
from onnxopt.data import open_data
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.overrides import Override
from onnxopt.passing import Findings, make
from onnxopt.pruning import removing
from onnxopt.serialization import to_proto
from tests.passes.prune.test_prune_channels import ran

Array = npt.NDArray[Any]
REASON = "statistics not estimated anew: "


def data(seed: int = 1, count: int = 64, *shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *(shape or (3, 6, 6)))).astype(dtype)


def pruned(proto: onnx.ModelProto, x: Array, *, skip: str = "", **options: Any) -> tuple[onnx.ModelProto, Findings]:
    model = load(proto)
    overrides = [Override(match=skip, skip=True)] if skip else []
    context = RunContext(model, calibration=open_data({_input(proto): x}, model.signature), overrides=overrides)
    findings = make("prune-channels", {"ratio": 0.5, "importance": "magnitude", "round_to": 1, **options}).run(
        model, context
    )
    return to_proto(model.ir), findings


def _input(proto: onnx.ModelProto) -> str:
    name: str = proto.graph.input[0].name
    return name


def norms(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == "BatchNormalization"]


def weights(proto: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def statistics(proto: onnx.ModelProto) -> Iterator[tuple[Array, Array]]:
    """Mean and variance of each BatchNormalization, as the file has them."""
    known = weights(proto)
    yield from ((known[node.input[3]], known[node.input[4]]) for node in norms(proto))


def moments(proto: onnx.ModelProto, x: Array) -> list[tuple[Array, Array]]:
    """The same of what they read, by ONNX Runtime and numpy."""
    seen = onnx.ModelProto()
    seen.CopyFrom(proto)
    del seen.graph.output[:]
    kind = proto.graph.input[0].type.tensor_type.elem_type
    seen.graph.output.extend(onnx.helper.make_tensor_value_info(node.input[0], kind, None) for node in norms(proto))
    session = ort.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    found = (value.astype(np.float64) for value in session.run(None, {"x": x}))
    return [(each.mean((0, *range(2, each.ndim))), each.var((0, *range(2, each.ndim)))) for each in found]


def with_statistics(proto: onnx.ModelProto, found: list[tuple[Array, Array]]) -> onnx.ModelProto:
    """The model with other statistics, and a scale that keeps what the nodes compute."""
    proto, known = onnx.ModelProto.FromString(proto.SerializeToString()), weights(proto)
    for node, (mean, variance) in zip(norms(proto), found, strict=True):
        for name, array in zip(node.input[3:], (mean, variance), strict=True):
            tensor = next(each for each in proto.graph.initializer if each.name == name)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(known[name].dtype), name))
    return proto


def network(
    opset: int = 18, *, own: bool = True, dtype: npt.DTypeLike = np.float32, **attributes: Any
) -> onnx.ModelProto:
    """Three convolutions with normalizations between them.

    Args:
        opset: of the model.
        own: whether the statistics are those of `data()`; else they are random.
        dtype: of the model.
        attributes: of the normalizations.
    """
    sketch, kind = Sketch(opset=opset), onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, before = sketch.input("x", ("batch", 3, 6, 6), kind), 3
    for number, rows in enumerate((16, 12)):
        weight = sketch.normal(rows, before, 3, 3) / np.sqrt(9 * before)
        x = sketch.node("Conv", x, sketch.weight(f"conv{number}", weight.astype(dtype)), pads=[1, 1, 1, 1])
        parts = [np.abs(sketch.normal(rows)) + 0.5, sketch.normal(rows), sketch.normal(rows), np.ones(rows)]
        named = [sketch.weight(f"norm{number}.{at}", part.astype(dtype)) for at, part in enumerate(parts)]
        x = sketch.node("Relu", sketch.node("BatchNormalization", x, *named, **attributes))
        before = rows
    last = (sketch.normal(5, before, 3, 3) / np.sqrt(9 * before)).astype(dtype)
    sketch.output(sketch.node("Conv", x, sketch.weight("last", last)), ("batch", 5, 4, 4), kind)
    proto = sketch.model()
    for _ in range(2 * own):  # the second one reads what the first one gives
        proto = with_statistics(proto, moments(proto, data(dtype=dtype)))
    return proto


def dense_network() -> onnx.ModelProto:
    """Matrix products with normalizations of [samples, features] between them."""
    sketch = Sketch()
    x, before = sketch.input("x", ("batch", 8)), 8
    for number, rows in enumerate((24, 16)):
        x = sketch.node("Gemm", x, sketch.random(f"gemm{number}", rows, before), transB=1)
        parts = [np.ones(rows), np.zeros(rows), np.zeros(rows), np.full(rows, before)]
        named = [sketch.weight(f"norm{number}.{at}", part.astype(np.float32)) for at, part in enumerate(parts)]
        x = sketch.node("Relu", sketch.node("BatchNormalization", x, *named))
        before = rows
    sketch.output(sketch.node("Gemm", x, sketch.random("last", before, 4)), ("batch", 4))
    return sketch.model()


def far(model: onnx.ModelProto, proto: onnx.ModelProto, x: Array) -> float:
    a, b = (np.asarray(ran(each, {_input(each): x})[0], np.float64) for each in (model, proto))
    return float(np.sum((a - b) ** 2) / np.sum((b - b.mean(0)) ** 2))


def told(findings: Findings) -> dict[str, str]:
    return {each.node: each.why.removeprefix(REASON) for each in findings.declined if each.why.startswith(REASON)}


def followed(dense: onnx.ModelProto, now: onnx.ModelProto, x: Array, kept: Array) -> tuple[Array, Array]:
    """What the second normalization should have."""
    (mean, variance), (was, spread), (is_, left) = (
        list(each)[1] for each in (statistics(dense), moments(dense, x), moments(now, x))
    )
    factor = np.sqrt(left / spread[kept])
    return is_ + (mean - was)[kept] * factor, variance[kept] * factor**2


def kept_rows(dense: onnx.ModelProto, now: onnx.ModelProto, norm: int = 1) -> Array:
    """The channels of a normalization that stayed, by their scales."""
    before, after = (weights(each)[norms(each)[norm].input[1]] for each in (dense, now))
    return np.array([int(np.flatnonzero(before == scale)[0]) for scale in after])


@pytest.mark.parametrize(
    ("repair", "opset"),
    [("batch-norm", 8), ("batch-norm", 9), ("batch-norm", 14), ("bias", 18), ("least-squares", 18)],
)
def test_statistics_of_the_data_become_those_of_what_is_read_now(repair: str, opset: int) -> None:
    proto = network(opset, **({"spatial": 1} if opset < 9 else {}))
    model, findings = pruned(proto, data(), repair=repair)
    assert findings.measures["norms_reestimated"] == 1  # what the first one reads is what it was
    for own, seen in zip(statistics(model), moments(model, data()), strict=True):
        for a, b in zip(own, seen, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_other_statistics_change_as_the_measured_ones_do() -> None:
    proto = network(own=False)
    model, findings = pruned(proto, data(), repair="batch-norm")
    assert findings.measures["layers_refitted"] == findings.measures["layers_bias_only"] == 0
    own = list(statistics(model))[1]
    for a, b in zip(own, followed(proto, model, data(), kept_rows(proto, model)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repair", ["batch-norm", "bias"])
def test_outputs_of_a_trained_model_are_nearer_to_what_they_were(repair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.load(models.path("digits-cnn"))
    x, fresh = (
        np.load(models.path("digits-cnn").with_name(f"digits.{part}.npz"))["images"][:64] for part in ("calib", "eval")
    )
    model, findings = pruned(proto, x, repair=repair)
    monkeypatch.setattr(removing, "normalizations", lambda *_: {})
    bare, _ = pruned(proto, x, repair="none" if repair == "batch-norm" else repair)
    assert findings.measures["norms_reestimated"]
    assert far(model, proto, fresh) < 0.7 * far(bare, proto, fresh)


@pytest.mark.parametrize("repair", ["bias", "least-squares"])
def test_layers_are_fitted_to_what_normalizations_before_them_give(
    repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the means of the last layer, which fits correct exactly, are those of the dense model; all in one stage."""
    stages = RunContext.stages
    monkeypatch.setattr(RunContext, "stages", lambda self: stages(self, cuts=[]))
    proto = network(own=False)
    model, findings = pruned(proto, data(), repair=repair)
    assert findings.measures["norms_reestimated"] == 1
    a, b = (ran(each, {"x": data()})[0].mean((0, 2, 3)) for each in (model, proto))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_features_without_places() -> None:
    proto, x = dense_network(), data(1, 256, 8)
    model, findings = pruned(proto, x, repair="batch-norm")
    assert findings.measures["norms_reestimated"] == 1
    own = list(statistics(model))[1]
    for a, b in zip(own, followed(proto, model, x, _kept_features(proto, model)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def _kept_features(dense: onnx.ModelProto, now: onnx.ModelProto) -> Array:
    """The rows of the last matrix that stayed."""
    before, after = (weights(each)["last"] for each in (dense, now))
    return np.array([int(np.flatnonzero((before == row).all(1))[0]) for row in after])


def test_few_rows_tell_nothing() -> None:
    proto = dense_network()
    model, findings = pruned(proto, data(1, 12, 8), repair="batch-norm")
    assert list(told(findings).values()) == ["12 rows of calibration data, and 16 are needed"]
    mean, variance = list(statistics(model))[1]
    assert (mean == 0).all()
    assert (variance == 24).all()


def branches() -> onnx.ModelProto:
    """Two normalizations with the same statistics, of which one reads what loses something."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 3, 6, 6))
    shared = [sketch.weight(name, sketch.normal(6) ** 2) for name in ("scale", "shift", "mean", "variance")]
    hidden = sketch.node("Relu", sketch.node("Conv", x, sketch.random("a", 16, 3, 3, 3)))
    sketch.output(
        sketch.node("BatchNormalization", sketch.node("Conv", hidden, sketch.random("b", 6, 16, 3, 3)), *shared),
        ("batch", 6, 2, 2),
    )
    other = sketch.node("Conv", x, sketch.random("c", 6, 3, 3, 3))
    sketch.output(sketch.node("BatchNormalization", other, *shared), ("batch", 6, 4, 4))
    return sketch.model()


def test_who_shares_a_constant_keeps_it() -> None:
    proto = branches()
    model, findings = pruned(proto, data(), repair="batch-norm")
    assert findings.measures["norms_reestimated"] == 1
    (new, _), (old, _) = statistics(model)
    assert not np.allclose(new, old)
    np.testing.assert_array_equal(old, weights(proto)["mean"])
    np.testing.assert_array_equal(ran(model, {"x": data(2)})[1], ran(proto, {"x": data(2)})[1])


@pytest.mark.parametrize("skip", ["norm1.2", "norm1.3", "BatchNormalization_node_1"])
def test_what_is_skipped_stays(skip: str) -> None:
    proto = network()
    model, findings = pruned(proto, data(), repair="batch-norm", skip=skip, include=["conv0"])
    assert list(told(findings).values()) == [f"an override skips {skip}" if "." in skip else "an override skips it"]
    for a, b in zip(list(statistics(model))[1], list(statistics(proto))[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_trains_is_left_alone() -> None:
    proto = network(own=False, training_mode=1)
    for node in norms(proto):
        node.output.extend([f"{node.output[0]}_mean", f"{node.output[0]}_variance"])
    model, findings = pruned(proto, data(), repair="batch-norm", include=["conv0"])
    assert list(told(findings).values()) == ["it gives running statistics, so it trains"]
    for a, b in zip(list(statistics(model))[1], list(statistics(proto))[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_callers_may_feed_is_left_alone() -> None:
    proto = network()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("norm1.2", TensorProto.FLOAT, [12]))
    _, findings = pruned(proto, data(), repair="batch-norm", include=["conv0"])
    assert list(told(findings).values()) == ["its parameter norm1.2 can be fed by callers"]


def test_half_precision() -> None:
    x = data(dtype=np.float16)
    proto = network(dtype=np.float16)
    model, findings = pruned(proto, x, repair="batch-norm")
    assert findings.measures["norms_reestimated"] == 1
    for own, seen in zip(statistics(model), moments(model, x), strict=True):
        for a, b in zip(own, seen, strict=True):
            assert a.dtype == np.float16
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("pair", "variance"), [((250.0, -249.0), 60000), ((0.5, 0.5), 3e-7)])
def test_what_the_type_cannot_hold_stays(pair: tuple[float, float], variance: float) -> None:
    """Variances that leave the range of float16: of two channels that cancel out or add up one is removed."""
    sketch, half = Sketch(), TensorProto.FLOAT16
    x = sketch.input("x", ("batch", 4), half)
    first = np.repeat(np.eye(4), 2, axis=0) + 1e-2 * sketch.normal(8, 4)
    second = np.kron(np.eye(4), [pair])
    parts = [sketch.weight(f"norm.{at}", np.full(4, each, np.float16)) for at, each in enumerate((1, 0, 0, variance))]
    hidden = sketch.node("Relu", sketch.node("Gemm", x, sketch.weight("a", first.astype(np.float16)), transB=1))
    made = sketch.node("Gemm", hidden, sketch.weight("b", second.astype(np.float16)), transB=1)
    sketch.output(sketch.node("BatchNormalization", made, *parts, epsilon=1e-12), ("batch", 4), half)
    model, findings = pruned(sketch.model(), data(1, 256, 4, dtype=np.float16), repair="batch-norm")
    assert list(told(findings).values()) == ["FLOAT16 is too coarse for a variance"]
    np.testing.assert_array_equal(weights(model)["norm.3"], np.full(4, variance, np.float16))


def test_a_channel_that_does_not_vary_any_more_keeps_its_variance() -> None:
    proto = network()
    drawn, _ = pruned(proto, data(), repair="none", include=["conv0"], importance="random")
    sees = weights(proto)["conv1"].copy()
    sees[0, kept_rows(proto, drawn, 0)] = 0  # what goes is all that this one sees
    tensor = next(each for each in proto.graph.initializer if each.name == "conv1")
    tensor.CopyFrom(numpy_helper.from_array(sees, "conv1"))
    model, findings = pruned(proto, data(), repair="batch-norm", include=["conv0"], importance="random")
    assert findings.measures["norms_reestimated"] == 1
    (_, was), (mean, now) = list(statistics(proto))[1], list(statistics(model))[1]
    assert now[0] == was[0]
    assert not np.isclose(now[1:], was[1:], rtol=1e-3).any()
    assert np.isfinite(mean).all()
    a, b = (ran(_up_to_second_norm(each), {"x": data()})[0].mean((0, 2, 3)) for each in (model, proto))
    np.testing.assert_allclose(a, b, atol=1e-4)


def _up_to_second_norm(proto: onnx.ModelProto) -> onnx.ModelProto:
    cut = onnx.ModelProto.FromString(proto.SerializeToString())
    del cut.graph.output[:], cut.graph.node[5:]
    shape = ["batch", 12, 6, 6]
    cut.graph.output.append(onnx.helper.make_tensor_value_info(norms(proto)[1].output[0], TensorProto.FLOAT, shape))
    return cut


def test_nothing_is_estimated_where_nothing_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removing, "normalizations", None)
    _, findings = pruned(network(), data(), repair="none")
    assert "norms_reestimated" not in findings.measures
