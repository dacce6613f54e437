"""Attention as exporters spell it: heads, not their parts, are units."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxopt.analysis.axes import Channels, groups
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]
Attention = Callable[[Sketch, str], str]

HEADS, SIZE, WIDTH = 6, 4, 10


def _scores(sketch: Sketch, q: str, k: str, v: str) -> str:
    """Attention of [batch, heads, length, size] tensors, back as [batch, length, heads * size]."""
    turned = sketch.node("Transpose", k, perm=[0, 1, 3, 2])
    scores = sketch.node("Mul", sketch.node("MatMul", q, turned), sketch.weight("scale", np.float32(0.5)))
    context = sketch.node("MatMul", sketch.node("Softmax", scores, axis=-1), v)
    context = sketch.node("Transpose", context, perm=[0, 2, 1, 3])
    shape = sketch.weight("flat", np.array([0, 0, HEADS * SIZE], np.int64))
    return sketch.node("Reshape", context, shape)


def _split(sketch: Sketch, x: str, name: str, heads: int) -> str:
    x = sketch.node("MatMul", x, sketch.random(f"{name}.weight", WIDTH, heads * SIZE))
    x = sketch.node("Add", x, sketch.random(f"{name}.bias", heads * SIZE))
    shape = sketch.weight(f"{name}.shape", np.array([0, 0, heads, SIZE], np.int64))
    return sketch.node("Transpose", sketch.node("Reshape", x, shape), perm=[0, 2, 1, 3])


def _separate(sketch: Sketch, x: str) -> str:
    return _scores(sketch, *(_split(sketch, x, name, HEADS) for name in "qkv"))


def _grouped(sketch: Sketch, x: str) -> str:
    """Three query heads to one of keys and values."""
    q = _split(sketch, x, "q", HEADS)
    repeated = []
    for name in "kv":
        few = sketch.node("Unsqueeze", _split(sketch, x, name, HEADS // 3), sketch.weight(f"{name}.two", np.array([2])))
        length = sketch.node("Shape", few, start=3, end=4)
        batch = sketch.node("Shape", few, end=1)
        heads, times, size = (sketch.weight(f"{name}.{n}", np.array([n])) for n in (HEADS // 3, 3, SIZE))
        many = sketch.node("Expand", few, sketch.node("Concat", batch, heads, times, length, size, axis=0))
        shape = sketch.node("Concat", batch, sketch.weight(f"{name}.all", np.array([HEADS])), length, size, axis=0)
        repeated.append(sketch.node("Reshape", many, shape))
    return _scores(sketch, q, *repeated)


def _fused(sketch: Sketch, x: str) -> str:
    """One matrix for queries, keys and values: [3, heads, size]."""
    x = sketch.node("MatMul", x, sketch.random("qkv.weight", WIDTH, 3 * HEADS * SIZE))
    x = sketch.node("Reshape", x, sketch.weight("qkv.shape", np.array([0, 0, 3, HEADS, SIZE], np.int64)))
    x = sketch.node("Transpose", x, perm=[2, 0, 3, 1, 4])
    return _scores(sketch, *(sketch.node("Gather", x, sketch.weight(f"at{i}", np.int64(i)), axis=0) for i in range(3)))


def _rotated(sketch: Sketch, x: str) -> str:
    """Queries and keys turned by position: halves of a head combined."""
    parts = []
    for name in "qk":
        y = _split(sketch, x, name, HEADS)
        half, end, last = (sketch.weight(f"{name}.{n}", np.array([n])) for n in (SIZE // 2, SIZE, 3))
        zero = sketch.weight(f"{name}.zero", np.array([0]))
        upper, lower = sketch.node("Slice", y, half, end, last), sketch.node("Slice", y, zero, half, last)
        turned = sketch.node("Concat", sketch.node("Neg", upper), lower, axis=-1)
        y = sketch.node("Mul", y, sketch.random(f"{name}.cos", 7, SIZE))
        parts.append(sketch.node("Add", y, sketch.node("Mul", turned, sketch.random(f"{name}.sin", 7, SIZE))))
    return _scores(sketch, *parts, _split(sketch, x, "v", HEADS))


@pytest.mark.parametrize(
    ("attention", "units", "kind"),
    [
        (_separate, HEADS, "heads"),
        (_grouped, HEADS // 3, "kv-groups"),
        (_fused, HEADS, "heads"),
        (_rotated, HEADS, "heads"),
    ],
)
def test_heads(attention: Attention, units: int, kind: str, assert_exact: Check) -> None:
    sketch = Sketch()
    x = sketch.input("tokens", ("batch", "length", WIDTH))
    x = sketch.node("MatMul", attention(sketch, x), sketch.random("out.weight", HEADS * SIZE, WIDTH))
    sketch.output(x, ("batch", "length", WIDTH))
    feeds = {"tokens": np.random.default_rng(1).normal(size=(2, 7, WIDTH)).astype(np.float32)}
    found = groups(assert_exact(sketch.model(), feeds))
    assert [(len(group.units), group.kind, group.exact) for group in found] == [(units, kind, True)]


def _shuffled(rank: int) -> onnx.ModelProto:
    sketch = Sketch()
    x = sketch.input("image", ("batch", 3, 4, 4))
    x = sketch.node("Conv", x, sketch.random("first.weight", 12, 3, 1, 1))
    x = sketch.node("Reshape", x, sketch.weight("apart", np.array([0, 3, 4, 4, 4], np.int64)))
    x = sketch.node("Transpose", x, perm=[0, 2, 1, 3, 4])
    x = sketch.node("Reshape", x, sketch.weight("together", np.array([0, 12, 4, 4], np.int64)))
    left, right = sketch.fresh("left"), sketch.fresh("right")
    sketch.node("Split", x, outputs=[left, right], axis=1, num_outputs=2)
    x = sketch.node("Conv", right, sketch.random("second.weight", 5, 6, 1, 1))
    x = sketch.node("Concat", left, x, axis=1)
    x = sketch.node("Conv", x, sketch.random("last.weight", 2, 11, 1, 1))
    sketch.output(x, ("batch", 2, 4, 4))
    return sketch.model()


def test_a_shuffle_binds_nothing(assert_exact: Check) -> None:
    feeds = {"image": np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)}
    found = groups(assert_exact(_shuffled(4), feeds))
    assert sorted(len(group.units) for group in found) == [5, 6, 6]


def test_one_shuffle_after_another(assert_exact: Check) -> None:
    sketch = Sketch()
    x = sketch.input("image", ("batch", 3, 4, 4))
    x = sketch.node("Conv", x, sketch.random("first.weight", 12, 3, 1, 1))
    for count in (3, 2):
        x = sketch.node("Reshape", x, sketch.weight("apart", np.array([0, count, 12 // count, 4, 4], np.int64)))
        x = sketch.node("Transpose", x, perm=[0, 2, 1, 3, 4])
        x = sketch.node("Reshape", x, sketch.weight("together", np.array([0, 12, 4, 4], np.int64)))
    sketch.output(sketch.node("Conv", x, sketch.random("last.weight", 2, 12, 1, 1)), ("batch", 2, 4, 4))
    feeds = {"image": np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)}
    (group,) = groups(assert_exact(sketch.model(), feeds))
    assert len(group.units) == 12
