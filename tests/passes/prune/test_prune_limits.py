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
from onnxopt.errors import DataError, RecipeError
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.passing import Findings, make
from onnxopt.pruning import curves
from onnxopt.pruning.ranking import Ranking, consumers, is_covered, lifted
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


def test_what_cannot_be_reached_is_told_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_loss", lambda *_: pytest.fail("measured"))
    with pytest.raises(RecipeError, match=r"keep_params of 0.01 cannot be reached.*round_to and min_width decide"):
        pruned(stack(), keep_params=0.01, min_width=8)


def test_nothing_is_collected_that_nothing_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunContext, "collect", lambda *_: pytest.fail("collected"))
    _, findings = pruned(stack(), ratio=0.5, importance="magnitude", repair="none")
    assert findings.changed
    assert findings.chosen == {"allocation": "uniform", "round_to": "blocks of convolutions"}


def test_what_auto_stands_for_is_told() -> None:
    _, findings = pruned(stack(), keep_params=0.6)
    assert findings.chosen == {
        "importance": "elimination", "allocation": "distortion", "repair": "least-squares",
        "round_to": "blocks of convolutions",
    }  # fmt: skip


def uneven() -> onnx.ModelProto:
    """Two layers, the weights of the second a thousand times those of the first, and as uneven."""
    sketch = Sketch()
    x, scale = sketch.input("x", ("batch", 8)), np.geomspace(1, 4, 40)[:, None]
    for name, factor in (("small", 1e-3), ("large", 1.0)):
        weight = factor * scale * sketch.normal(40, 8)
        x = sketch.node("Relu", sketch.node("Gemm", x, sketch.weight(name, weight), transB=1))
        x = sketch.node("Gemm", x, sketch.weight(f"{name}_back", factor * sketch.normal(8, 40)), transB=1)
    sketch.output(x, ("batch", 8))
    return sketch.model()


@pytest.mark.parametrize("normalization", ["auto", "none", "mean", "max", "standard", "lamp"])
def test_scores_of_groups_are_made_comparable(normalization: str) -> None:
    """Raw, all of the small layer goes first, as far as it may; else both lose alike. The order within stays."""
    options: dict[str, Any] = {"importance": "magnitude", "repair": "none", "include": ["small", "large"]}
    model, _ = pruned(uneven(), ratio=0.4, allocation="global", normalization=normalization, **options)
    found = widths(model)
    assert found["small"] + found["large"] == 48
    if normalization == "none":
        assert found["small"] < 10
    else:
        assert 18 <= found["small"] <= 30
    reference, _ = pruned(uneven(), ratio=1 - found["small"] / 40, **options)
    own, same = ({v.name: v.const_value.numpy() for v in each.weights()} for each in (model, reference))  # type: ignore[union-attr]
    np.testing.assert_array_equal(own["small"], same["small"])


def test_a_criterion_that_cannot_be_had_everywhere_says_so() -> None:
    """What else reads a group, a product of two activations, has no matrix to be weighed by."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 8))
    hidden = sketch.node("Relu", sketch.node("Gemm", x, sketch.random("dense", 12, 8), transB=1))
    square = sketch.node("MatMul", sketch.node("Transpose", hidden, perm=[1, 0]), sketch.node("Identity", x))
    out = sketch.node("MatMul", hidden, square)
    sketch.output(out, ("batch", 8))
    _, findings = pruned(sketch.model(), ratio=0.5, importance="elimination")
    assert any(
        "1 groups are ranked by magnitude for want of data: dense: it is read by what" in each
        for each in findings.notes
    )


def test_what_goes_for_nothing_still_does_when_scores_are_lifted() -> None:
    order = np.arange(4)
    low = Ranking(order, np.cumsum([-2.0, -1.0, 0.5, 1.0]))
    dead = Ranking(order, np.cumsum([0.0, 0.0, 0.2, 0.3]), free=2)
    found = [np.diff(each.losses, prepend=0.0) for each in lifted([low, dead])]
    np.testing.assert_allclose(found[0], [0, 1, 2.5, 3])
    np.testing.assert_allclose(found[1], [0, 0, 2.2, 2.3])
    same = [Ranking(order, np.cumsum([0.0, 1.0, 1.0, 2.0]))]
    assert lifted(same) == same
