"""Graphs that nobody thought of: whatever is removed from them, what is left computes what it should."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from onnxopt.analysis.axes import Channels, rules
from onnxopt.analysis.axes.rules import Call
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]
SIDE = 4


@dataclass
class Picture:
    """A graph on images [batch, channels, 4, 4] that grows; every tensor made may be used again."""

    draw: DrawFn
    sketch: Sketch = field(default_factory=Sketch)
    made: list[tuple[str, int]] = field(default_factory=list)

    def some(self, *, like: int | None = None) -> tuple[str, int]:
        """A tensor, with its number of channels."""
        fits = [each for each in self.made if like is None or each[1] == like]
        return fits[self.draw(st.integers(0, len(fits) - 1))]

    def keep(self, name: str, channels: int) -> None:
        """Offer a tensor for use."""
        self.made.append((name, channels))

    def convolve(self, x: str, channels: int, rows: int, groups: int = 1) -> str:
        """A convolution that keeps the size of images."""
        side = self.draw(st.sampled_from([1, 3]))
        weight = self.sketch.random("weight", rows, channels // groups, side, side)
        return self.sketch.node("Conv", x, weight, self.sketch.random("bias", rows), group=groups, pads=[side // 2] * 4)


def _conv(picture: Picture) -> None:
    x, channels = picture.some()
    groups = picture.draw(st.sampled_from([each for each in (1, 2, 3, channels) if channels % each == 0]))
    rows = groups * picture.draw(st.integers(1, 3)) if groups > 1 else picture.draw(st.integers(1, 9))
    picture.keep(picture.convolve(x, channels, rows, groups), rows)


def _activate(picture: Picture) -> None:
    x, channels = picture.some()
    op = picture.draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Softplus"]))
    picture.keep(picture.sketch.node(op, picture.sketch.node("Tanh", x)), channels)


def _combine(picture: Picture) -> None:
    x, channels = picture.some()
    y, _ = picture.some(like=channels)
    picture.keep(picture.sketch.node(picture.draw(st.sampled_from(["Add", "Mul", "Sub", "Max"])), x, y), channels)


def _scale(picture: Picture) -> None:
    x, channels = picture.some()
    shape = picture.draw(st.sampled_from([(channels, 1, 1), (1, channels, 1, 1), (1, 1), (channels, SIDE, SIDE)]))
    constant = picture.sketch.random("constant", *shape)
    picture.keep(picture.sketch.node(picture.draw(st.sampled_from(["Add", "Mul"])), x, constant), channels)


def _concat(picture: Picture) -> None:
    (x, a), (y, b) = picture.some(), picture.some()
    picture.keep(picture.sketch.node("Concat", x, y, axis=1), a + b)


def _split(picture: Picture) -> None:
    x, channels = picture.some()
    if channels < 2:
        return
    first = picture.draw(st.integers(1, channels - 1))
    sizes = picture.sketch.weight("sizes", np.array([first, channels - first], np.int64))
    a, b = picture.sketch.fresh("left"), picture.sketch.fresh("right")
    picture.sketch.node("Split", x, sizes, outputs=[a, b], axis=1)
    picture.keep(a, first)
    picture.keep(b, channels - first)


def _slice(picture: Picture) -> None:
    x, channels = picture.some()
    step = picture.draw(st.sampled_from([1, 2, -1]))
    bounds = picture.draw(st.tuples(st.integers(-channels, channels - 1), st.integers(-channels - 1, channels + 1)))
    kept = len(range(channels)[slice(bounds[0], None if step < 0 and bounds[1] < -channels else bounds[1], step)])
    if not kept:
        return
    start, end, axis, by = (picture.sketch.weight("bound", np.array([n])) for n in (*bounds, 1, step))
    picture.keep(picture.sketch.node("Slice", x, start, end, axis, by), kept)


def _pick(picture: Picture) -> None:
    x, channels = picture.some()
    places = picture.draw(st.lists(st.integers(-channels, channels - 1), min_size=1, max_size=6))
    index = picture.sketch.weight("places", np.array(places, np.int64))
    picture.keep(picture.sketch.node("Gather", x, index, axis=1), len(places))


def _shuffle(picture: Picture) -> None:
    x, channels = picture.some()
    groups = picture.draw(st.sampled_from([each for each in (2, 3, 4) if channels % each == 0] or [1]))
    if picture.draw(st.booleans()):
        x = picture.sketch.node("Relu", x)
    apart = picture.sketch.weight("apart", np.array([0, groups, channels // groups, SIDE, SIDE], np.int64))
    x = picture.sketch.node("Transpose", picture.sketch.node("Reshape", x, apart), perm=[0, 2, 1, 3, 4])
    if picture.draw(st.booleans()):
        x = picture.sketch.node("Tanh", x)
    together = picture.sketch.weight("together", np.array([0, channels, SIDE, SIDE], np.int64))
    picture.keep(picture.sketch.node("Reshape", x, together), channels)


def _gate(picture: Picture) -> None:
    x, channels = picture.some()
    squeezed = picture.draw(st.integers(1, 4))
    y = picture.sketch.node("MaxPool", x, kernel_shape=[SIDE, SIDE]) if picture.draw(st.booleans()) else x
    y = picture.sketch.node("Relu", picture.convolve(y, channels, squeezed))
    y = picture.sketch.node("Sigmoid", picture.convolve(y, squeezed, channels))
    picture.keep(picture.sketch.node("Mul", x, y), channels)


def _attend(picture: Picture) -> None:
    """Pixels attend to each other, channels being heads."""
    x, channels = picture.some()
    heads, size = picture.draw(st.integers(1, 3)), picture.draw(st.integers(1, 3))
    apart = picture.sketch.weight("heads", np.array([0, heads, size, -1], np.int64))
    q, k, v = (picture.sketch.node("Reshape", picture.convolve(x, channels, heads * size), apart) for _ in range(3))
    scores = picture.sketch.node("MatMul", picture.sketch.node("Transpose", q, perm=[0, 1, 3, 2]), k)
    scores = picture.sketch.node("Transpose", picture.sketch.node("Softmax", scores), perm=[0, 1, 3, 2])
    together = picture.sketch.weight("image", np.array([0, heads * size, SIDE, SIDE], np.int64))
    picture.keep(picture.sketch.node("Reshape", picture.sketch.node("MatMul", v, scores), together), heads * size)


def _normalize(picture: Picture) -> None:
    x, channels = picture.some()
    scale, shift, mean = (picture.sketch.random(name, channels) for name in ("scale", "shift", "mean"))
    if picture.draw(st.booleans()):
        picture.keep(picture.sketch.node("InstanceNormalization", x, scale, shift, epsilon=0.1), channels)
        return
    variance = picture.sketch.weight("variance", picture.sketch.rng.uniform(0.5, 2, channels).astype(np.float32))
    picture.keep(picture.sketch.node("BatchNormalization", x, scale, shift, mean, variance), channels)


def _pool(picture: Picture) -> None:
    x, channels = picture.some()
    op = picture.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    picture.keep(picture.sketch.node(op, x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), channels)


def _pad(picture: Picture) -> None:
    x, channels = picture.some()
    before, behind = picture.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    pads = picture.sketch.weight("pads", np.array([0, before, 0, 0, 0, behind, 0, 0], np.int64))
    picture.keep(picture.sketch.node("Pad", x, pads), before + channels + behind)


def _tile(picture: Picture) -> None:
    x, channels = picture.some()
    times = picture.sketch.weight("times", np.array([1, 2, 1, 1], np.int64))
    picture.keep(picture.sketch.node("Tile", x, times), 2 * channels)


def _transposed(picture: Picture) -> None:
    x, channels = picture.some()
    groups = picture.draw(st.sampled_from([each for each in (1, 2, channels) if channels % each == 0]))
    rows = picture.draw(st.integers(1, 4))
    weight = picture.sketch.random("weight", channels, rows, 1, 1)
    bias = picture.sketch.random("bias", rows * groups)
    picture.keep(picture.sketch.node("ConvTranspose", x, weight, bias, group=groups), rows * groups)


def _blocks(picture: Picture) -> None:
    """Normalized in groups of channels, by reshaping."""
    x, channels = picture.some()
    groups = picture.draw(st.sampled_from([each for each in (1, 2, 3, 4) if channels % each == 0]))
    apart = picture.sketch.weight("blocks", np.array([0, groups, -1], np.int64))
    scale, shift = (picture.sketch.random(name, groups) for name in ("scale", "shift"))
    x = picture.sketch.node("Reshape", x, apart)
    x = picture.sketch.node("InstanceNormalization", x, scale, shift, epsilon=0.1)
    together = picture.sketch.weight("whole", np.array([0, channels, SIDE, SIDE], np.int64))
    picture.keep(picture.sketch.node("Reshape", x, together), channels)


def _sum(picture: Picture) -> None:
    """A gate from what all channels add up to."""
    x, channels = picture.some()
    axes = picture.sketch.weight("axes", np.array([1], np.int64))
    gate = picture.sketch.node("Tanh", picture.sketch.node("ReduceSum", x, axes, keepdims=1))
    picture.keep(picture.sketch.node("Mul", x, gate), channels)


_STEPS = (
    _normalize, _pool, _pad, _tile, _transposed, _blocks, _sum,
    _conv, _conv, _conv, _activate, _combine, _scale, _concat, _split, _slice, _pick, _shuffle, _gate, _attend,
)  # fmt: skip


@st.composite
def pictures(draw: DrawFn) -> onnx.ModelProto:
    """A random graph; all tensors that nobody reads are convolved and added up."""
    picture = Picture(draw)
    x = picture.sketch.input("image", ("batch", 3, SIDE, SIDE))
    rows = draw(st.integers(4, 12))
    picture.keep(picture.convolve(x, 3, rows), rows)
    for step in draw(st.lists(st.sampled_from(_STEPS), min_size=2, max_size=10)):
        step(picture)
    read = {name for node in picture.sketch.nodes for name in node.input}
    ends = [picture.convolve(name, channels, 2) for name, channels in picture.made if name not in read]
    result = ends[0]
    for end in ends[1:]:
        result = picture.sketch.node("Add", result, end)
    picture.sketch.output(result, ("batch", 2, None, None))
    return picture.sketch.model()


FEEDS = {"image": np.random.default_rng(3).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32)}


@settings(max_examples=150, phases=[Phase.generate])
@given(pictures())
def test_removal_is_exact(assert_exact: Check, model: onnx.ModelProto) -> None:
    assert_exact(model, FEEDS, draws=2, tolerance=1e-4)


@pytest.mark.slow
@settings(max_examples=3000)
@given(pictures())
def test_removal_is_exact_many_times(assert_exact: Check, model: onnx.ModelProto) -> None:
    assert_exact(model, FEEDS, draws=2, tolerance=1e-4)


def test_a_wrong_rule_is_noticed(assert_exact: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(call: Call) -> None:
        call.give(call.axes(0))

    monkeypatch.setitem(rules.RULES, ("", "Mul"), forgets)

    @settings(max_examples=100, phases=[Phase.generate])
    @given(pictures())
    def search(model: onnx.ModelProto) -> None:
        assert_exact(model, FEEDS, draws=2, tolerance=1e-4)

    with pytest.raises(Exception, match=r".+"):  # a wrong number, or a file that does not load
        search()
