"""Channels that are constant: the model without them computes what the model with them does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from onnxopt.analysis.axes import channel_ids, groups, removal
from onnxopt.analysis.axes.constants import Constants, correcting
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.serialization import to_proto

Array = npt.NDArray[Any]
Middle = Callable[[Sketch, str], str]

SIZE = 6
"""Of the image."""


def without(proto: onnx.ModelProto) -> tuple[Model, int, tuple[str, ...]]:
    """The model without what is constant, how many units that is, and what was said of others."""
    model = load(proto)
    channels = channel_ids(model)
    constants = Constants(channels)
    free = constants.free(group for group in groups(channels) if group.exact)
    removed = channels.spared(sorted(free.units))
    corrections = constants.corrections(removed, removed)
    model.apply(removal(channels, removed))
    model.apply(correcting(model, corrections))
    return model, len(removed), free.notes


def ran(model: Model | onnx.ModelProto, count: int = 2) -> list[Array]:
    proto = to_proto(model.ir) if isinstance(model, Model) else model
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    rng = np.random.default_rng(count)
    side = {"batch": count, "side": SIZE + 1}
    feeds = {
        each.name: rng.normal(size=[side.get(size, size) for size in each.shape]).astype(np.float32)
        for each in session.get_inputs()
    }
    return session.run(None, feeds)


def assert_same(model: Model, proto: onnx.ModelProto) -> None:
    for count in (1, 3):
        for found, wanted in zip(ran(model, count), ran(proto, count), strict=True):
            assert found.shape == wanted.shape
            assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)


def head(
    sketch: Sketch, rows: int = 8, *, every: int = 2, name: str = "first", x: str = "image", before: int = 16
) -> str:
    """A convolution of which some rows are zero."""
    weight = sketch.normal(rows, before, 3, 3)
    weight[1::every] = 0
    return sketch.node("Conv", x, sketch.weight(name, weight), sketch.random(f"{name}.bias", rows), pads=[1, 1, 1, 1])


def network(middle: Middle, reader: Middle, size: int | str = SIZE) -> onnx.ModelProto:
    """Half of 8 channels constant; something in between; what reads it."""
    sketch = Sketch()
    x = head(sketch, x=sketch.input("image", ("batch", 16, size, size)))
    sketch.output(reader(sketch, middle(sketch, x)), None)
    return onnx.shape_inference.infer_shapes(sketch.model())


def conv(**attributes: Any) -> Middle:
    return lambda sketch, x: sketch.node("Conv", x, sketch.random("last", 4, 8, 3, 3), **attributes)


def turned(**attributes: Any) -> Middle:
    size = attributes.pop("size", 3)
    return lambda sketch, x: sketch.node(
        "ConvTranspose", x, sketch.random("last", 8, 4, size, size), sketch.random("b", 4), **attributes
    )


def sigmoid(sketch: Sketch, x: str) -> str:
    return sketch.node("Sigmoid", x)


def biased(sketch: Sketch, x: str) -> str:
    bias = sketch.node("Sigmoid", sketch.random("b", 4))
    return sketch.node("Conv", x, sketch.random("last", 4, 8, 3, 3), bias)


READERS: dict[str, Middle] = {
    "plain": conv(), "padded": conv(pads=[1, 1, 1, 1]), "uneven": conv(pads=[2, 0, 1, 1], strides=[2, 1]),
    "dilated": conv(pads=[2, 2, 2, 2], dilations=[2, 2]), "upper": conv(auto_pad="SAME_UPPER", strides=[2, 2]),
    "lower": conv(auto_pad="SAME_LOWER", strides=[1, 2]), "valid": conv(auto_pad="VALID", strides=[2, 2]),
    "turned": turned(), "turned 1 x 1": turned(size=1), "turned, in steps": turned(strides=[2, 2]),
    "turned, cut": turned(pads=[1, 0, 1, 1], strides=[2, 2], output_padding=[1, 0]),
    "turned, dilated": turned(pads=[1, 1, 0, 0], dilations=[2, 1]),
    "grouped": lambda sketch, x: sketch.node(
        "Conv", sketch.node("Concat", x, x, axis=1), sketch.random("last", 4, 8, 3, 3), group=2, pads=[1, 1, 1, 1]
    ),
    "computed bias": biased,
    "matrix": lambda sketch, x: sketch.node(
        "MatMul", sketch.node("Transpose", x, perm=[0, 2, 3, 1]), sketch.random("last", 8, 5)
    ),
    "flat": lambda sketch, x: sketch.node(
        "Gemm", sketch.node("Flatten", x), sketch.random("last", 5, 8 * SIZE * SIZE), transB=1, alpha=0.5
    ),
    "two": lambda sketch, x: sketch.node(
        "Add", conv(pads=[1, 1, 1, 1])(sketch, x), sketch.node("Conv", x, sketch.random("one", 4, 8, 1, 1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_readers(reader: Middle) -> None:
    proto = network(sigmoid, reader)
    model, count, notes = without(proto)
    assert (count, notes) == (4, ())
    assert_same(model, proto)


def gate(sketch: Sketch, x: str) -> str:
    """Half of both what is gated and the gate are constant."""
    return sketch.node("Mul", x, sketch.node("Sigmoid", head(sketch, name="gate")))


def squeezed(sketch: Sketch, x: str) -> str:
    x = sketch.node("Relu", x)
    squeeze = sketch.node("Conv", sketch.node("GlobalAveragePool", x), sketch.random("squeeze", 3, 8, 1, 1))
    weight = sketch.normal(8, 3, 1, 1)
    weight[1::2] = 0
    opened = sketch.node("Conv", sketch.node("Relu", squeeze), sketch.weight("open", weight), sketch.random("o", 8))
    return sketch.node("Mul", x, sketch.node("Sigmoid", opened))


def split(sketch: Sketch, x: str) -> str:
    names = [sketch.fresh("part") for _ in range(2)]
    sketch.node("Split", sketch.node("Sigmoid", x), outputs=names, axis=1, num_outputs=2)
    return sketch.node("Concat", sketch.node("Relu", names[1]), sketch.node("Tanh", names[0]), axis=1)


def scaled(op: str, count: int) -> Middle:
    def middle(sketch: Sketch, x: str) -> str:
        scale = sketch.normal(8)
        scale[1] = scale[0] = 0
        parts = [
            sketch.weight("scale", scale),
            *(sketch.weight(f"p{at}", abs(sketch.normal(8)) + 1) for at in range(count)),
        ]
        return sketch.node(op, x, *parts)

    return middle


def residual(sketch: Sketch, x: str) -> str:
    return sketch.node("Add", sketch.node("Sigmoid", x), head(sketch, name="other"))


def depthwise(**attributes: Any) -> Middle:
    return lambda sketch, x: sketch.node(
        "Conv", sigmoid(sketch, x), sketch.random("depth", 8, 1, 3, 3), sketch.random("d", 8), group=8, **attributes
    )


def ints(sketch: Sketch, *numbers: int) -> str:
    return sketch.weight("ints", np.array(numbers, np.int64))


def op(name: str, *more: tuple[int, ...], **attributes: Any) -> Middle:
    """One node behind a sigmoid; further inputs are integers."""
    return lambda sketch, x: sketch.node(
        name, sigmoid(sketch, x), *(ints(sketch, *each) for each in more), **attributes
    )


def padded(mode: str) -> Middle:
    return lambda sketch, x: sketch.node("Pad", sigmoid(sketch, x), ints(sketch, 0, 0, 1, 0, 0, 0, 1, 2), mode=mode)


def resized(mode: str) -> Middle:
    return lambda sketch, x: sketch.node(
        "Resize", sigmoid(sketch, x), "", sketch.weight("by", np.array([1, 1, 1.5, 2], np.float32)), mode=mode
    )


def averaged(**attributes: Any) -> Middle:
    return op("AveragePool", kernel_shape=[3, 2], pads=[1, 1, 1, 0], **attributes)


def reshaped(sketch: Sketch, x: str) -> str:
    """Of what goes together from here on half is not constant."""
    x = sketch.node("Tanh", sketch.node("Reshape", sigmoid(sketch, x), ints(sketch, 0, 2, 4, SIZE * SIZE)))
    return sketch.node("Reshape", x, ints(sketch, 0, 8, SIZE, SIZE))


def shuffled(sketch: Sketch, x: str) -> str:
    x = sketch.node("Reshape", sigmoid(sketch, x), ints(sketch, 0, 2, 4, SIZE, SIZE))
    x = sketch.node("Transpose", x, perm=[0, 2, 1, 3, 4])
    return sketch.node("Exp", sketch.node("Reshape", x, ints(sketch, 0, 8, SIZE, SIZE)))


def picked(sketch: Sketch, x: str) -> str:
    return sketch.node("Gather", sigmoid(sketch, x), ints(sketch, 7, 6, 5, 4, 3, 2, 1, 0), axis=1)


def sliced(sketch: Sketch, x: str) -> str:
    x = sketch.node("Concat", sigmoid(sketch, x), x, axis=1)
    return sketch.node("Slice", x, ints(sketch, -16), ints(sketch, 8), ints(sketch, 1))


def squashed(sketch: Sketch, x: str) -> str:
    return sketch.node(
        "Unsqueeze",
        sketch.node("Squeeze", sketch.node("GlobalMaxPool", sigmoid(sketch, x)), ints(sketch, 2, 3)),
        ints(sketch, 2, 3),
    )


def summed(sketch: Sketch, x: str) -> str:
    x = sketch.node("ReduceSum", sigmoid(sketch, x), ints(sketch, 2, 3), keepdims=1)
    return sketch.node("Expand", x, ints(sketch, 1, 1, SIZE, SIZE))


def summed_away(sketch: Sketch, x: str) -> str:
    return sketch.node("ReduceSum", sigmoid(sketch, x), ints(sketch, 2, 3), keepdims=0)


def behind_border(middle: Middle) -> Middle:
    """What is constant, but not the same from place to place."""
    return lambda sketch, x: middle(sketch, depthwise(pads=[1, 1, 1, 1])(sketch, x))


MIDDLES: dict[str, tuple[Middle, int]] = {
    "gate": (gate, 4), "squeezed": (squeezed, 4), "split": (split, 4), "residual": (residual, 4),
    "normalized": (scaled("BatchNormalization", 3), 5), "centred": (scaled("InstanceNormalization", 1), 5),
    "depthwise": (depthwise(), 4), "depthwise, padded": (depthwise(pads=[1, 1, 1, 1]), 4),
    "largest": (op("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 4), "averaged": (averaged(), 4),
    "averaged with zeros": (averaged(count_include_pad=1), 4), "padded": (padded("constant"), 4),
    "mirrored": (padded("reflect"), 4), "nearest": (resized("nearest"), 4), "linear": (resized("linear"), 4),
    "cubic": (resized("cubic"), 4), "reshaped": (reshaped, 0), "shuffled": (shuffled, 4), "picked": (picked, 4),
    "sliced": (sliced, 4), "squashed": (squashed, 4), "summed": (summed, 4),
    "tiled": (op("Tile", (1, 1, 2, 1)), 4), "cast": (op("Cast", to=onnx.TensorProto.FLOAT), 4),
    "dropout": (op("Dropout"), 4), "mean": (op("ReduceMean", (3,), keepdims=1), 4),
    "bordered, mirrored": (behind_border(padded("reflect")), 0),
    "bordered, nearest": (behind_border(resized("nearest")), 0),
    "bordered, largest": (behind_border(op("MaxPool", kernel_shape=[2, 2])), 0),
    "bordered, mean": (behind_border(op("GlobalAveragePool")), 4),
    "power": (lambda sketch, x: sketch.node("Pow", sketch.node("Abs", x), sketch.weight("p", np.float32([0.5]))), 4),
}  # fmt: skip


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize(("middle", "units"), MIDDLES.values(), ids=MIDDLES)
def test_carried(middle: Middle, units: int, pads: int) -> None:
    def reader(sketch: Sketch, x: str) -> str:
        return sketch.node("Conv", x, sketch.random("last", 2, 8, 1, 1), sketch.random("b", 2), pads=[pads] * 4)

    proto = network(middle, reader)
    model, count, notes = without(proto)
    assert (count, notes) == (units, ())
    assert_same(model, proto)


@pytest.mark.parametrize(
    "name",
    [
        "Abs", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max",
        "Mean", "Min", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt",
        "Sum", "Tanh", "ThresholdedRelu",
    ],
)  # fmt: skip
def test_activations(name: str) -> None:
    """What is not constant does not become so."""

    def middle(sketch: Sketch, x: str) -> str:
        x = sketch.node("Tanh", x)
        return sketch.node(name, sketch.node("Abs", x) if name in ("Log", "Reciprocal", "Sqrt") else x)

    proto = network(middle, conv())
    model, count, _ = without(proto)
    assert count == 4
    assert_same(model, proto)


def test_numbers_that_go_around() -> None:
    """What a recurrent layer starts with is constant, what it goes on with is not."""
    sketch = Sketch()
    x = sketch.input("x", (4, "batch", 5))
    weight = sketch.normal(5, 3)
    weight[:, 2] = 0
    last = sketch.node("Gather", x, sketch.weight("at", np.array(3)), axis=0)
    start = sketch.node("Gemm", last, sketch.weight("start", weight), sketch.random("bias", 3))
    states = sketch.node(
        "RNN", x, sketch.random("w", 1, 3, 5), sketch.random("r", 1, 3, 3), "", "",
        sketch.node("Unsqueeze", start, ints(sketch, 0)), hidden_size=3,
    )  # fmt: skip
    sketch.output(sketch.node("Slice", states, ints(sketch, 0), ints(sketch, 1), ints(sketch, 3)), (4, 1, "batch", 1))
    sketch.output(sketch.node("MatMul", start, sketch.random("read", 3, 2)), ("batch", 2))
    model, count, _ = without(sketch.model())
    assert count == 0
    assert_same(model, sketch.model())


def heads(columns: tuple[int, ...]) -> onnx.ModelProto:
    """Three units of two neurons each; some of the neurons constant."""
    sketch = Sketch()
    weight = sketch.normal(5, 6)
    weight[:, columns] = 0
    x = sketch.node("Gemm", sketch.input("x", ("batch", 5)), sketch.weight("first", weight), sketch.random("bias", 6))
    x = sketch.node("Sigmoid", sketch.node("Reshape", x, ints(sketch, 0, 3, 2)))
    x = sketch.node("Reshape", x, ints(sketch, 0, 6))
    sketch.output(sketch.node("Gemm", x, sketch.random("last", 6, 3)), ("batch", 3))
    return sketch.model()


@pytest.mark.parametrize(("columns", "units"), [((0, 2, 4), 0), ((0, 2, 3), 1), ((0, 1, 4, 5), 2)])
def test_units_of_several_entries(columns: tuple[int, ...], units: int) -> None:
    """All of them have to be constant, each with a number of its own."""
    model, count, _ = without(heads(columns))
    assert count == units
    assert_same(model, heads(columns))


@pytest.mark.parametrize(
    ("middle", "reader", "units"),
    [
        (sigmoid, "plain", 4), (sigmoid, "padded", 0), (sigmoid, "turned", 0), (sigmoid, "turned 1 x 1", 4),
        (depthwise(pads=[1, 1, 1, 1]), "plain", 0), (padded("constant"), "plain", 0), (padded("reflect"), "plain", 4),
        (averaged(), "plain", 4), (averaged(count_include_pad=1), "plain", 0), (averaged(ceil_mode=1), "plain", 0),
        (resized("linear"), "plain", 4), (op("GlobalAveragePool"), "padded", 4), (summed_away, "matrix of rows", 0),
        (op("ReduceMean", (2, 3), keepdims=0), "matrix of rows", 4),
    ],
)  # fmt: skip
def test_images_of_open_size(middle: Middle, reader: str, units: int) -> None:
    """What depends on the size is constant only where it is known; what stays is as it was."""
    rows = {"matrix of rows": lambda sketch, x: sketch.node("MatMul", x, sketch.random("last", 8, 5))}
    proto = network(middle, {**READERS, **rows}[reader], "side")
    model, count, notes = without(proto)
    assert count == units
    if reader in ("padded", "turned"):
        assert ["differs from place to place, and a size is open" in note for note in notes] == [True] * (units == 0)
    assert_same(model, proto)


def test_maps_larger_than_what_goes() -> None:
    proto = network(sigmoid, conv(pads=[1, 1, 1, 1]), 40)
    model, count, notes = without(proto)
    assert count == 0
    assert [
        "map that Conv_node_1 would need has 6400 numbers, more than the 724 that go" in each for each in notes
    ] == [True]
    assert_same(model, proto)


def test_maps_that_are_cut() -> None:
    """The layer that gets a map loses channels at the same time."""
    sketch = Sketch()
    x = sketch.node("Sigmoid", head(sketch, x=sketch.input("image", ("batch", 16, SIZE, SIZE))))
    weight, bias = sketch.normal(6, 8, 3, 3), sketch.normal(6)
    weight[:2] = 0
    x = sketch.node("Conv", x, sketch.weight("second", weight), sketch.weight("b", bias), pads=[1, 1, 1, 1])
    x = sketch.node("Relu", sketch.node("Add", x, sketch.random("each", 6, SIZE, SIZE)))
    sketch.output(sketch.node("Conv", x, sketch.random("last", 2, 6, 1, 1)), ("batch", 2, SIZE, SIZE))
    model, count, _ = without(sketch.model())
    assert count == 4 + 2
    assert_same(model, sketch.model())


@pytest.mark.parametrize("fed", [False, True])
def test_biases_that_may_be_fed(fed: bool) -> None:
    sketch = Sketch()
    weight, x = sketch.normal(5, 6), sketch.input("x", ("batch", 5))
    weight[:, :3] = 0
    x = sketch.node("Gemm", x, sketch.weight("first", weight), sketch.weight("bias", np.float32([0.5])))
    sketch.output(sketch.node("Gemm", x, sketch.random("last", 6, 3)), ("batch", 3))
    proto = sketch.model()
    if fed:
        proto.graph.input.append(onnx.helper.make_tensor_value_info("bias", onnx.TensorProto.FLOAT, [1]))
    assert without(proto)[1] == (0 if fed else 3)


def test_what_is_read_otherwise() -> None:
    """Nothing takes the place of a number in a sum that has no bias; of 0 nothing has to."""
    proto = network(sigmoid, lambda sketch, x: sketch.node("ReduceSum", x, ints(sketch, 1)))
    assert without(proto)[1] == 0
    assert "ReduceSum_node has no bias" in without(proto)[2][0]
    proto = network(
        lambda sketch, x: sketch.node("Mul", x, sketch.weight("by", np.float32([0, 1] * 4).reshape(8, 1, 1))),
        lambda sketch, x: sketch.node("ReduceSum", x, ints(sketch, 1)),
    )
    model, count, _ = without(proto)
    assert count == 4
    assert_same(model, proto)
