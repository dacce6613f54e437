"""prune-channels within its limits: what a repair adds counts, time for measuring ends, outputs may be labels."""

from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.analysis.axes import channel_ids, groups
from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.linear.recurrent import layers_of
from onnxopt.context import RunContext
from onnxopt.data import open_data
from onnxopt.errors import DataError
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.passing import Findings, make
from onnxopt.pruning import curves
from onnxopt.pruning.ranking import consumers, is_covered
from onnxopt.pruning.readers import by_group, readers
from tests.passes.prune.test_prune_channels import ran, widths


def stack(layers: int = 3, width: int = 24, labels: bool = False) -> onnx.ModelProto:
    """Layers without biases, each of which gets one when it is repaired."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 8))
    for at in range(layers):
        weight = sketch.random(f"dense{at}", width, width if at else 8)
        x = sketch.node("Relu", sketch.node("Gemm", x, weight, transB=1))
    x = sketch.node("Gemm", x, sketch.random("head", 4, width), transB=1)
    if labels:
        sketch.output(sketch.node("ArgMax", x, axis=1, keepdims=0), ("batch",), onnx.TensorProto.INT64)
    else:
        sketch.output(x, ("batch", 4))
    return sketch.model()


def pruned(proto: onnx.ModelProto, **options: Any) -> tuple[Model, Findings]:
    model = load(proto)
    data = open_data({"x": np.random.default_rng(3).standard_normal((64, 8), np.float32)}, model.signature)
    return model, make("prune-channels", options).run(model, RunContext(model, calibration=data))


@pytest.mark.parametrize("allocation", ["uniform", "global", "distortion"])
@pytest.mark.parametrize("share", [0.55, 0.7, 0.85])
def test_biases_of_repaired_layers_count(allocation: str, share: float) -> None:
    proto = stack()
    model, findings = pruned(proto, keep_params=share, allocation=allocation)
    after = sum(value.const_value.size for value in model.weights() if value.const_value is not None)
    before = sum(np.prod(each.dims) for each in proto.graph.initializer)
    assert findings.measures["layers_refitted"] > 0
    assert 0.9 * share < after / before <= share


def test_labels_are_no_measure_but_rankings_are() -> None:
    proto = stack(labels=True)
    model, findings = pruned(proto, keep_params=0.6)
    assert any("follows from their rankings" in note for note in findings.notes)
    feeds = {"x": np.random.default_rng(4).standard_normal((500, 8), np.float32)}
    (same,), (was,) = ran(model, feeds), ran(proto, feeds)
    assert np.mean(same == was) > 0.7
    with pytest.raises(DataError, match="no output of real numbers"):
        pruned(proto, keep_params=0.6, allocation="distortion")


def test_measuring_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    loss = curves._loss

    def counted(channels: Any, candidate: Any, *arguments: Any) -> float:
        asked.append(candidate.group.name)
        return loss(channels, candidate, *arguments)

    monkeypatch.setattr(curves, "_loss", counted)
    model, findings = pruned(stack(5), keep_params=0.6, max_seconds=1e-6)
    assert len(set(asked)) == 1
    assert any("of the other 4 they follow from the rankings" in note for note in findings.notes)
    assert all(width < 24 for width in widths(model).values() if width > 4)


def test_consumers_of_all_groups_are_those_of_each() -> None:
    model = load(stack(4))
    channels = channel_ids(model)
    found = groups(channels)
    reading = by_group(found, readers(channels, layers_of(model)))
    together = consumers(channels, found)
    for group, own in zip(found, reading, strict=True):
        direct = {
            (each.node, each.index) for each in channels.consumed
            if (ids := vector(each.axis)) is not None and {*channels.classes.labels[ids].tolist()} & {*group.units}
        }  # fmt: skip
        assert set(together[group]) == direct != set()
        assert is_covered(own, together[group])
        assert not is_covered([], together[group])
