"""Pooling, resampling, padding, and channels moved into space or back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.analysis.axes import Channels, channel_ids, frozen, groups
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]
Sandwich = Callable[..., tuple[Any, Any]]
Middle = Callable[[Sketch, str], str]

SIZE = 8


def _ints(sketch: Sketch, *values: int) -> str:
    return sketch.weight("ints", np.array(values, np.int64))


def _floats(sketch: Sketch, *values: float) -> str:
    return sketch.weight("floats", np.array(values, np.float32))


def _max_pool(sketch: Sketch, x: str) -> str:
    return sketch.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])


def _average_pool(sketch: Sketch, x: str) -> str:
    return sketch.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)


def _lp_pool(sketch: Sketch, x: str) -> str:
    return sketch.node("LpPool", x, kernel_shape=[2, 2])


def _regions(sketch: Sketch, x: str) -> str:
    boxes = sketch.weight("boxes", np.array([[0, 0, 3, 3], [1, 0, 2, 3]], np.float32))
    return sketch.node("RoiAlign", x, boxes, _ints(sketch, 0, 1), output_height=2, output_width=2)


def _pooled_regions(sketch: Sketch, x: str) -> str:
    boxes = sketch.weight("boxes", np.array([[0, 0, 0, 3, 3], [1, 1, 0, 2, 3]], np.float32))
    return sketch.node("MaxRoiPool", x, boxes, pooled_shape=[2, 2])


def _sampled(sketch: Sketch, x: str) -> str:
    return sketch.node("GridSample", x, sketch.random("grid", 2, 3, 3, 2))


def _by_scales(sketch: Sketch, x: str) -> str:
    return sketch.node("Resize", x, "", _floats(sketch, 1, 1, 2, 2))


def _by_sizes(sketch: Sketch, x: str) -> str:
    return sketch.node("Resize", x, "", "", _ints(sketch, 2, SIZE, 12, 8), mode="linear")


def _by_computed_sizes(sketch: Sketch, x: str) -> str:
    before = sketch.node("Slice", sketch.node("Shape", x), _ints(sketch, 0), _ints(sketch, 2), _ints(sketch, 0))
    return sketch.node("Resize", x, "", "", sketch.node("Concat", before, _ints(sketch, 12, 8), axis=0))


def _by_some_sizes(sketch: Sketch, x: str) -> str:
    return sketch.node("Resize", x, "", "", _ints(sketch, 12, 8), axes=[2, 3], keep_aspect_ratio_policy="not_larger")


def _all_sizes_by_name(sketch: Sketch, x: str) -> str:
    return sketch.node("Resize", x, "", "", _ints(sketch, 12, SIZE, 8), axes=[-2, 1, 3])


def _upsampled(sketch: Sketch, x: str) -> str:
    return sketch.node("Upsample", x, _floats(sketch, 1, 1, 2, 3))


def _border(sketch: Sketch, x: str) -> str:
    return sketch.node("Pad", x, _ints(sketch, 0, 0, 1, 2, 0, 0, 1, -1), mode="reflect")


def _centered(sketch: Sketch, x: str) -> str:
    return sketch.node("CenterCropPad", x, _ints(sketch, SIZE, 4, 6), axes=[1, 2, 3])


def _deformed(sketch: Sketch, x: str) -> str:
    offsets = sketch.weight("offsets", sketch.normal(2, 16, 6, 4) * np.float32(0.3))
    weight, bias = sketch.random("middle.weight", SIZE, SIZE, 2, 2), sketch.random("middle.bias", SIZE)
    return sketch.node("DeformConv", x, weight, offsets, bias, offset_group=2, pads=[0, 0, 1, 1], kernel_shape=[2, 2])


def _reversed(sketch: Sketch, x: str) -> str:
    return sketch.node("ReverseSequence", x, _ints(sketch, 2, 3), batch_axis=0, time_axis=1)


def _frequencies(sketch: Sketch, x: str) -> str:
    x = sketch.node("DFT", sketch.node("Unsqueeze", x, _ints(sketch, 4)), axis=2)
    return sketch.node("Gather", x, sketch.weight("real", np.int64(0)), axis=4)


@pytest.mark.parametrize(
    ("middle", "units", "options"),
    [
        (_max_pool, [SIZE], {}),
        (_average_pool, [SIZE], {}),
        (_lp_pool, [SIZE], {}),
        (_regions, [SIZE], {}),
        (_pooled_regions, [SIZE], {}),
        (_sampled, [SIZE], {"opset": 20}),
        (_by_scales, [SIZE], {}),
        (_by_sizes, [SIZE], {}),
        (_by_computed_sizes, [SIZE], {}),
        (_by_some_sizes, [SIZE], {}),
        (_all_sizes_by_name, [SIZE], {}),
        (_upsampled, [SIZE], {"opset": 9}),
        (_border, [SIZE], {}),
        (_centered, [SIZE], {}),
        (_deformed, [SIZE // 2, SIZE], {"opset": 19}),
        (_reversed, [SIZE], {"tokens": True}),
        (_frequencies, [SIZE], {}),
    ],
)
def test_channels_pass(
    middle: Middle, units: list[int], options: dict[str, int], sandwich: Sandwich, assert_exact: Check
) -> None:
    found = groups(assert_exact(*sandwich(middle, **options)))
    assert [(len(group.units), group.exact) for group in found] == [(each, True) for each in units]


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_whole_images(op: str, sandwich: Sandwich, assert_exact: Check) -> None:
    found = groups(assert_exact(*sandwich(lambda sketch, x: sketch.node(op, x))))
    assert [(len(group.units), group.exact) for group in found] == [(SIZE, True)]


@pytest.mark.parametrize(
    ("op", "exact"), [("GlobalAveragePool", False), ("GlobalMaxPool", False), ("GlobalLpPool", True)]
)
def test_channels_that_are_pooled(op: str, exact: bool, sandwich: Sandwich, assert_exact: Check) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        return sketch.node(op, sketch.node("Transpose", x, perm=[0, 2, 3, 1]))

    found = groups(assert_exact(*sandwich(middle, rows=0, rank=4)))
    assert [(len(group.units), group.exact) for group in found] == [(SIZE, exact)]


def _counted(sketch: Sketch, x: str) -> str:
    y, places = sketch.fresh("y"), sketch.fresh("places")
    sketch.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], outputs=[y, places])
    return sketch.node("Add", y, sketch.node("Cast", places, to=1))


def _unpooled(sketch: Sketch, x: str) -> str:
    _, places = sketch.node("MaxPool", "data", kernel_shape=[2, 2], outputs=["few", "places"]), "places"
    return sketch.node("MaxUnpool", x, places, kernel_shape=[2, 2])


def _between_channels(sketch: Sketch, x: str) -> str:
    return sketch.node("Resize", x, "", _floats(sketch, 1, 2, 1, 1))


def _more_by_sizes(sketch: Sketch, x: str) -> str:
    return sketch.node("Resize", x, "", "", _ints(sketch, 2, 2 * SIZE, 6, 4))


def _a_little_more(sketch: Sketch, x: str) -> str:
    return sketch.node("Resize", x, "", _floats(sketch, 1, 1.05, 1, 1))


def _cropped_by_regions(sketch: Sketch, x: str) -> str:
    regions = _floats(sketch, 0, 0.2, 0, 0, 1, 1, 1, 1)
    sizes = _ints(sketch, 2, SIZE, 6, 4)
    return sketch.node("Resize", x, regions, "", sizes, coordinate_transformation_mode="tf_crop_and_resize")


def _in_proportion(sketch: Sketch, x: str) -> str:
    return sketch.node(
        "Resize", x, "", "", _ints(sketch, SIZE, 3, 4), axes=[1, 2, 3], keep_aspect_ratio_policy="not_larger"
    )


def _turned(sketch: Sketch, x: str) -> str:
    return sketch.node("ReverseSequence", x, _ints(sketch, 2, 3), batch_axis=0, time_axis=1)


def _mirrored(sketch: Sketch, x: str) -> str:
    return sketch.node("Pad", x, _ints(sketch, 0, 1, 0, 0, 0, 1, 0, 0), mode="reflect")


def _fewer(sketch: Sketch, x: str) -> str:
    return sketch.node("CenterCropPad", x, _ints(sketch, 6), axes=[1])


@pytest.mark.parametrize(
    "middle",
    [
        _counted,
        _unpooled,
        _more_by_sizes,
        _between_channels,
        _a_little_more,
        _cropped_by_regions,
        _in_proportion,
        _turned,
        _mirrored,
        _fewer,
    ],
)
def test_channels_stay(middle: Middle, sandwich: Sandwich) -> None:
    assert not groups(channel_ids(load(sandwich(middle, rows=0)[0])))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, sandwich: Sandwich, assert_exact: Check) -> None:
    model, feeds = sandwich(
        lambda sketch, x: sketch.node("DepthToSpace", x, blocksize=2, mode=mode), channels=20, rows=5
    )
    found = groups(assert_exact(model, feeds))
    assert [len(group.units) for group in found] == [5]
    assert {member.count for member in found[0].members} == {1, 4}


def test_space_to_depth(sandwich: Sandwich, assert_exact: Check) -> None:
    model, feeds = sandwich(lambda sketch, x: sketch.node("SpaceToDepth", x, blocksize=2), rows=4 * SIZE)
    assert [len(group.units) for group in groups(assert_exact(model, feeds))] == [SIZE]


def test_columns_to_an_image(sandwich: Sandwich, assert_exact: Check) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        columns = sketch.node("Reshape", x, _ints(sketch, 0, 20, 24))
        return sketch.node("Col2Im", columns, _ints(sketch, 5, 7), _ints(sketch, 2, 2))

    model, feeds = sandwich(middle, channels=20, rows=5)
    assert [len(group.units) for group in groups(assert_exact(model, feeds))] == [5]


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_border_of_some_axes(opset: int, sandwich: Sandwich, assert_exact: Check) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        if opset < 11:
            return sketch.node("Pad", x, pads=[0, 0, 1, 2, 0, 0, 1, 0])
        if opset < 18:
            return sketch.node("Pad", x, _ints(sketch, 0, 0, 1, 2, 0, 0, 1, 0))
        return sketch.node("Pad", x, _ints(sketch, 1, 2, 1, 0), "", _ints(sketch, 2, 3))

    for sizes in ((6, 4), ("height", "width")):
        model, feeds = sandwich(middle, opset=opset, sizes=sizes)
        assert [len(group.units) for group in groups(assert_exact(model, feeds))] == [SIZE]


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_channels_beside_padding_are_added_to(
    value: float, opset: int, sandwich: Sandwich, assert_exact: Check
) -> None:
    """A shortcut without weights: where the padding lies, the other summand's channels go alone."""

    def middle(sketch: Sketch, x: str) -> str:
        pads = [0, 3, 0, 0, 0, 1, 0, 0]
        if opset < 11:
            y = sketch.node("Pad", x, pads=pads, value=value)
        elif opset < 18:
            y = sketch.node("Pad", x, _ints(sketch, *pads), sketch.weight("value", np.float32(value)))
        else:
            y = sketch.node("Pad", x, _ints(sketch, 3, 1), sketch.weight("value", np.float32(value)), _ints(sketch, -3))
        return sketch.node("Add", y, sketch.node("Conv", x, sketch.random("inner.weight", SIZE + 4, SIZE, 1, 1)))

    model, feeds = sandwich(middle, rows=SIZE + 4, opset=opset)
    found = groups(assert_exact(model, feeds, draws=6))
    assert sorted(len(group.units) for group in found) == [4, SIZE]
    assert {group.kind for group in found} == {"residual"}


def test_channels_that_are_cut_off(sandwich: Sandwich, assert_exact: Check) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        y = sketch.node("Pad", x, _ints(sketch, 0, -2, 0, 0, 0, -1, 0, 0))
        return sketch.node("Add", y, sketch.node("Conv", x, sketch.random("inner.weight", 5, SIZE, 1, 1)))

    model, feeds = sandwich(middle, rows=5)
    assert sum(len(group.units) for group in groups(assert_exact(model, feeds, draws=6))) == SIZE


def test_unknown_amounts_hold_what_they_pad(sandwich: Sandwich, assert_exact: Check) -> None:
    """Amounts that depend on the content: of the named axes alone."""

    def amounts(sketch: Sketch, x: str) -> str:
        flat = sketch.node("Reshape", x, _ints(sketch, -1))
        found = sketch.node("Mod", sketch.node("ArgMax", flat, keepdims=1), _ints(sketch, 3))
        return sketch.node("Concat", _ints(sketch, 0), found, axis=0)

    def middle(sketch: Sketch, x: str) -> str:
        return sketch.node("Pad", x, amounts(sketch, x), "", _ints(sketch, 3))

    model, feeds = sandwich(middle)
    assert not groups(channel_ids(load(model)))  # the greatest element of all counts channels

    def other(sketch: Sketch, x: str) -> str:
        first = sketch.node("Slice", x, _ints(sketch, 0), _ints(sketch, 1), _ints(sketch, 1))
        return sketch.node("Pad", x, amounts(sketch, first), "", _ints(sketch, 3))

    model, feeds = sandwich(other)
    assert [len(group.units) for group in groups(assert_exact(model, feeds))] == [SIZE - 1]


def test_a_residual_net_without_weights_in_its_shortcuts(assert_exact: Check) -> None:
    """Every second place, and channels padded on both sides, between stages of 4, 8 and 16 channels."""
    sketch = Sketch()
    x = sketch.input("data", ("batch", 3, 8, 8))
    x = sketch.node("Conv", x, sketch.random("stem.weight", 4, 3, 3, 3), pads=[1, 1, 1, 1])
    for width in (4, 8, 16):
        stride, before = (1, width) if width == 4 else (2, width // 2)
        y = sketch.node("Relu", x)
        y = sketch.node("Conv", y, sketch.random("a", width, before, 3, 3), pads=[1, 1, 1, 1], strides=[stride, stride])
        y = sketch.node("Conv", sketch.node("Relu", y), sketch.random("b", width, width, 3, 3), pads=[1, 1, 1, 1])
        if stride > 1:
            x = sketch.node(
                "Slice", x, _ints(sketch, 0, 0), _ints(sketch, 99, 99), _ints(sketch, 2, 3), _ints(sketch, 2, 2)
            )
            x = sketch.node("Pad", x, _ints(sketch, 0, width // 4, 0, 0, 0, width // 4, 0, 0))
        x = sketch.node("Add", x, y)
    x = sketch.node("Flatten", sketch.node("GlobalAveragePool", x))
    sketch.output(sketch.node("Gemm", x, sketch.random("last.weight", 16, 5)), ("batch", 5))
    model: onnx.ModelProto = sketch.model()
    feeds = {"data": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    found = groups(assert_exact(model, feeds, draws=8, tolerance=1e-4))
    assert sorted(len(group.units) for group in found if group.kind == "conv") == [4, 8, 16]
    assert sum(len(group.units) for group in found if group.kind == "residual") == 16


@pytest.mark.parametrize("opset", [9, 10, 18])
def test_scales_of_resampling_are_no_weights_for_want_of_a_rule(sandwich: Sandwich, opset: int) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        scales = _floats(sketch, 1, 1, 2, 2)
        inputs = (x, scales) if opset < 11 else (x, "", scales)
        return sketch.node("Upsample" if opset < 10 else "Resize", *inputs)

    proto, _ = sandwich(middle, opset=opset)
    assert {each.freeze.reason for each in frozen(channel_ids(load(proto)))} == {"semantics"}
