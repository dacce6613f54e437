"""Normalizations: of each channel and of groups of them exact, over the channels marked."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxopt.analysis.axes import Channels, channel_ids, groups
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]
Sandwich = Callable[..., tuple[Any, Any]]
Middle = Callable[[Sketch, str], str]

SIZE = 8


def _positive(sketch: Sketch, name: str) -> str:
    return sketch.weight(name, np.abs(sketch.normal(SIZE)) + np.float32(0.5))


def _vectors(sketch: Sketch, *names: str, size: int = SIZE) -> list[str]:
    return [sketch.random(name, size) for name in names]


def _batch(sketch: Sketch, x: str) -> str:
    return sketch.node(
        "BatchNormalization", x, *_vectors(sketch, "scale", "shift", "mean"), _positive(sketch, "variance")
    )


def _training(sketch: Sketch, x: str) -> str:
    y, mean, variance = (sketch.fresh(name) for name in ("y", "mean", "variance"))
    vectors = *_vectors(sketch, "scale", "shift", "m"), _positive(sketch, "v")
    sketch.node("BatchNormalization", x, *vectors, outputs=[y, mean, variance], training_mode=1)
    shape = sketch.weight("shape", np.array([1, -1, 1, 1], np.int64))
    return sketch.node("Add", y, sketch.node("Reshape", mean, shape))


def _instance(sketch: Sketch, x: str) -> str:
    return sketch.node("InstanceNormalization", x, *_vectors(sketch, "scale", "shift"))


def _group(sketch: Sketch, x: str) -> str:
    return sketch.node("GroupNormalization", x, *_vectors(sketch, "scale", "shift"), num_groups=4)


def _group_scales(sketch: Sketch, x: str) -> str:
    """Of opset 18, which the checker calls deprecated: it does not check models with operators of other domains."""
    return sketch.node("GroupNormalization", x, *_vectors(sketch, "scale", "shift", size=4), num_groups=4)


def _single_group(sketch: Sketch, x: str) -> str:
    return sketch.node("GroupNormalization", x, *_vectors(sketch, "scale", "shift"), num_groups=1)


def _group_reshaped(sketch: Sketch, x: str) -> str:
    """As exporters spell it."""
    shape = sketch.node("Shape", x)
    x = sketch.node("Reshape", x, sketch.weight("groups", np.array([0, 4, -1], np.int64)))
    ones, zeros = sketch.weight("ones", np.ones(4, np.float32)), sketch.weight("zeros", np.zeros(4, np.float32))
    x = sketch.node("Reshape", sketch.node("InstanceNormalization", x, ones, zeros), shape)
    x = sketch.node("Mul", x, sketch.random("scale", SIZE, 1, 1))
    return sketch.node("Add", x, sketch.random("shift", SIZE, 1, 1))


def _normalized(sketch: Sketch, x: str, axes: list[int], opset: int) -> str:
    """By mean and standard deviation, operator by operator."""

    def mean(y: str) -> str:
        if opset < 18:
            return sketch.node("ReduceMean", y, axes=axes)
        return sketch.node("ReduceMean", y, sketch.weight("axes", np.array(axes)))

    centred = sketch.node("Sub", x, mean(x))
    variance = mean(sketch.node("Pow", centred, sketch.weight("two", np.float32(2))))
    variance = sketch.node("Add", variance, sketch.weight("epsilon", np.float32(1e-5)))
    return sketch.node("Div", centred, sketch.node("Sqrt", variance))


def _group_decomposed(sketch: Sketch, x: str) -> str:
    y = sketch.node("Reshape", x, sketch.weight("groups", np.array([0, 4, 2, 6, 4], np.int64)))
    y = _normalized(sketch, y, [2, 3, 4], sketch.opset)
    y = sketch.node("Reshape", y, sketch.weight("whole", np.array([-1, 8, 6, 4], np.int64)))
    return sketch.node("Mul", y, sketch.random("scale", SIZE, 1, 1))


def _layer(sketch: Sketch, x: str) -> str:
    return sketch.node("LayerNormalization", x, *_vectors(sketch, "scale", "shift"))


def _layer_statistics(sketch: Sketch, x: str) -> str:
    y, mean, spread = (sketch.fresh(name) for name in ("y", "mean", "spread"))
    sketch.node("LayerNormalization", x, *_vectors(sketch, "scale", "shift"), outputs=[y, mean, spread])
    shape = sketch.weight("shape", np.array([-1, 5, 1]))
    return sketch.node("Mul", sketch.node("Add", y, sketch.node("Reshape", mean, shape)), spread)


def _layer_decomposed(sketch: Sketch, x: str) -> str:
    y = sketch.node("Mul", _normalized(sketch, x, [-1], sketch.opset), sketch.random("scale", SIZE))
    return sketch.node("Add", y, sketch.random("shift", SIZE))


def _root_mean_square(sketch: Sketch, x: str) -> str:
    return sketch.node("RMSNormalization", x, *_vectors(sketch, "scale"))


def _simplified(sketch: Sketch, x: str) -> str:
    """ONNX Runtime's own, in the default domain all the same."""
    return sketch.node("SimplifiedLayerNormalization", x, *_vectors(sketch, "scale"), axis=-1)


def _euclidean(sketch: Sketch, x: str) -> str:
    return sketch.node("LpNormalization", x, axis=1, p=2)


def _mean_variance(sketch: Sketch, x: str) -> str:
    return sketch.node("MeanVarianceNormalization", x, axes=[0, 2, 3])


def _mean_variance_channels(sketch: Sketch, x: str) -> str:
    return sketch.node("MeanVarianceNormalization", x, axes=[1, 2, 3])


def _local(sketch: Sketch, x: str) -> str:
    return sketch.node("LRN", x, size=3)


@pytest.mark.parametrize(
    ("middle", "units", "options"),
    [
        (_batch, SIZE, {}),
        (_batch, SIZE, {"opset": 9}),
        (_training, SIZE, {}),
        (_instance, SIZE, {}),
        (_group, 4, {"opset": 21}),
        (_group_scales, 4, {"com_microsoft": 1}),
        (_group_reshaped, 4, {}),
        (_group_decomposed, 4, {"opset": 13}),
        (_group_decomposed, 4, {}),
        (_euclidean, SIZE, {}),
        (_mean_variance, SIZE, {}),
    ],
)
def test_what_each_channel_or_group_has_to_itself(
    middle: Middle, units: int, options: dict[str, int], sandwich: Sandwich, assert_exact: Check
) -> None:
    found = groups(assert_exact(*sandwich(middle, **options)))
    assert [(len(group.units), group.exact) for group in found] == [(units, True)]


@pytest.mark.parametrize(
    ("middle", "options"),
    [
        (_single_group, {"opset": 21}),
        (_layer, {"tokens": True}),
        (_layer_statistics, {"tokens": True}),
        (_layer_decomposed, {"tokens": True}),
        (_layer_decomposed, {"tokens": True, "opset": 13}),
        (_simplified, {"tokens": True, "com_microsoft": 1}),
        (_root_mean_square, {"tokens": True, "opset": 23}),
        (_mean_variance_channels, {}),
    ],
)
def test_statistics_over_channels_are_marked(
    middle: Middle, options: dict[str, Any], sandwich: Sandwich, removing: SimpleNamespace
) -> None:
    model, feeds = sandwich(middle, **options)
    found = groups(channel_ids(load(model)))
    assert [(len(group.units), group.exact) for group in found] == [(SIZE, False)]
    assert found[0].reason
    cut = removing.without(model, found[0].units[1:4])
    assert removing.outputs(cut, feeds)[0].shape == removing.outputs(model, feeds)[0].shape


def test_neighbours_hold(sandwich: Sandwich) -> None:
    assert not groups(channel_ids(load(sandwich(_local, rows=0)[0])))


def _skip(sketch: Sketch, x: str, op: str, vectors: int, stream: int) -> str:
    """Two computed tensors added and normalized; what is added goes on as well."""
    other = sketch.node("MatMul", x, sketch.random("inner.weight", SIZE, SIZE))
    names = _vectors(sketch, *(f"vector{index}" for index in range(vectors)))
    outputs = [sketch.fresh("y"), "", "", sketch.fresh("total")]
    sketch.node(op, x, other, *names, outputs=outputs, domain="com.microsoft")
    return sketch.node("Add", outputs[0], outputs[3]) if stream else outputs[0]


@pytest.mark.parametrize(
    ("op", "vectors"),
    [("SkipLayerNormalization", 3), ("SkipLayerNormalization", 1), ("SkipSimplifiedLayerNormalization", 2)],
)
@pytest.mark.parametrize("stream", [0, 1])
def test_what_is_added_and_normalized_is_a_residual_stream(
    op: str, vectors: int, stream: int, sandwich: Sandwich, removing: SimpleNamespace
) -> None:
    model, feeds = sandwich(lambda sketch, x: _skip(sketch, x, op, vectors, stream), tokens=True, com_microsoft=1)
    found = groups(channel_ids(load(model)))
    assert [(len(group.units), group.kind, group.exact) for group in found] == [(SIZE, "residual", False)]
    cut = removing.without(model, found[0].units[1:4])
    assert removing.outputs(cut, feeds)[0].shape == removing.outputs(model, feeds)[0].shape


def test_embedding_tables_are_as_wide_as_one_another(removing: SimpleNamespace) -> None:
    sketch = Sketch()
    sketch.domains["com.microsoft"] = 1
    ids, segments = (sketch.input(name, ("batch", 5), 6) for name in ("ids", "segments"))
    tables = [sketch.random(name, rows, SIZE) for name, rows in (("words", 11), ("places", 7), ("segments.w", 2))]
    outputs = [sketch.fresh("y"), sketch.fresh("mask")]
    vectors = _vectors(sketch, "scale", "shift")
    sketch.node("EmbedLayerNormalization", ids, segments, *tables, *vectors, outputs=outputs, domain="com.microsoft")
    x = sketch.node("MatMul", outputs[0], sketch.random("last.weight", SIZE, 4))
    sketch.output(x, ("batch", 5, 4))
    model = sketch.model()
    found = groups(channel_ids(load(model)))
    assert [(len(group.units), group.kind, group.exact) for group in found] == [(SIZE, "residual", False)]
    feeds = {name: np.random.default_rng(1).integers(2, size=(2, 5)).astype(np.int32) for name in ("ids", "segments")}
    assert removing.outputs(removing.without(model, found[0].units[:3]), feeds)[0].shape == (2, 5, 4)


@pytest.mark.parametrize("op", ["GroupNorm", "SkipGroupNorm"])
@pytest.mark.parametrize("last", [0, 1])
def test_fused_group_normalizations_count_their_groups_anew(
    op: str, last: int, sandwich: Sandwich, removing: SimpleNamespace
) -> None:
    """ONNX Runtime has them for GPUs only: nothing is run."""

    def middle(sketch: Sketch, x: str) -> str:
        more = [sketch.node("Neg", x)] if op == "SkipGroupNorm" else []
        vectors = _vectors(sketch, "scale", "shift")
        options = {"groups": 4, "activation": 0, "channels_last": last}
        return sketch.node(op, x, *vectors, *more, domain="com.microsoft", **options)

    model, _ = sandwich(middle, tokens=bool(last), com_microsoft=1)
    found = groups(channel_ids(load(model)))
    assert [(len(group.units), group.exact) for group in found] == [(4, True)]
    cut = removing.without(model, found[0].units[:1])
    node = next(node for node in cut.nodes() if node.op_type == op)
    assert node.attributes.get_int("groups", 0) == 3
    assert [tuple(value.shape) for value in node.inputs[1:3] if value is not None and value.shape] == [(6,), (6,)]
