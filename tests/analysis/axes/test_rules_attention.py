"""Attention as one operator: heads, or groups of them, leave with all that is theirs."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxopt.analysis.axes import Channels, channel_ids, groups, lost_to
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]
Attention = Callable[[Sketch, str], str]

MICROSOFT = "com.microsoft"
HEADS, SIZE, WIDTH, BATCH, LENGTH, PAST = 6, 16, 10, 2, 5, 3


def _projected(sketch: Sketch, x: str, name: str, width: int, *, bias: bool = False) -> str:
    x = sketch.node("MatMul", x, sketch.random(f"{name}.weight", WIDTH, width))
    return sketch.node("Add", x, sketch.random(f"{name}.bias", width)) if bias else x


def _reshaped(sketch: Sketch, x: str, *shape: int) -> str:
    return sketch.node("Reshape", x, sketch.weight("shape", np.array(shape, np.int64)))


def _by_heads(sketch: Sketch, x: str, heads: int = HEADS) -> str:
    """[batch, heads, tokens, size]."""
    return sketch.node("Transpose", _reshaped(sketch, x, 0, 0, heads, SIZE), perm=[0, 2, 1, 3])


def _microsoft(sketch: Sketch, op: str, *inputs: str, **attributes: Any) -> str:
    sketch.domains[MICROSOFT] = 1
    return sketch.node(op, *inputs, domain=MICROSOFT, **attributes)


def _sized(sketch: Sketch, x: str, sizes: tuple[int, ...] = ()) -> str:
    """com.microsoft's Attention, which has the projections inside; sizes of queries, keys and values."""
    total = sum(sizes) or 3 * HEADS * SIZE
    weight, bias = sketch.random("weight", WIDTH, total), sketch.random("bias", total)
    scores = sketch.random("scores", 1, HEADS, LENGTH, LENGTH)
    inputs = [x, weight, bias, "", "", scores]
    attributes = {"qkv_hidden_sizes": list(sizes)} if sizes else {}
    return _microsoft(sketch, "Attention", *inputs, num_heads=HEADS, **attributes)


def _quantized(sketch: Sketch, x: str) -> str:
    names = [sketch.fresh(each) for each in ("codes", "scale", "zero")]
    sketch.node("DynamicQuantizeLinear", x, outputs=names)
    total = 3 * HEADS * SIZE
    weight = sketch.weight("weight", sketch.rng.integers(-100, 100, (WIDTH, total)).astype(np.int8))
    by = sketch.weight("by", sketch.rng.random(total, np.float32) * 0.01)
    points = sketch.weight("points", np.zeros(total, np.int8))
    inputs = [names[0], weight, sketch.random("bias", total), names[1], by, "", names[2], points]
    return _microsoft(sketch, "QAttention", *inputs, num_heads=HEADS)


def _separate(sketch: Sketch, x: str) -> str:
    q, k, v = (_projected(sketch, x, name, HEADS * SIZE) for name in "qkv")
    bias, scores = sketch.random("bias", 3 * HEADS * SIZE), sketch.random("scores", 1, HEADS, LENGTH, LENGTH)
    return _microsoft(sketch, "MultiHeadAttention", q, k, v, bias, "", scores, num_heads=HEADS)


def _crossed(sketch: Sketch, x: str) -> str:
    """Keys and values by heads already."""
    q, k, v = (_projected(sketch, x, name, HEADS * SIZE) for name in "qkv")
    k, v = _by_heads(sketch, k), _by_heads(sketch, v)
    return _microsoft(sketch, "MultiHeadAttention", q, k, v, num_heads=HEADS)


def _packed(sketch: Sketch, x: str) -> str:
    """[batch, tokens, heads, 3, size]."""
    x = _reshaped(sketch, _projected(sketch, x, "qkv", 3 * HEADS * SIZE), 0, 0, HEADS, 3, SIZE)
    return _microsoft(sketch, "MultiHeadAttention", x, num_heads=HEADS)


def _packed_keys(sketch: Sketch, x: str) -> str:
    q = _projected(sketch, x, "q", HEADS * SIZE)
    kv = _reshaped(sketch, _projected(sketch, x, "kv", 2 * HEADS * SIZE), 0, 0, HEADS, 2, SIZE)
    return _microsoft(sketch, "MultiHeadAttention", q, kv, num_heads=HEADS)


def _rotated(sketch: Sketch, x: str, *, apart: bool = False, domain: str = MICROSOFT, told: bool = False) -> str:
    """Queries and keys turned."""
    q, k, v = (_projected(sketch, x, name, HEADS * SIZE) for name in "qkv")
    places = sketch.weight("places", np.arange(LENGTH, dtype=np.int64)[None].repeat(BATCH, 0))
    angles = [sketch.random(name, 8, SIZE // 2) for name in ("cos", "sin")]
    turned = []
    for y in (q, k):
        y = _by_heads(sketch, y) if apart else y
        inputs = [y, places, *angles] if domain else [y, *angles, places]
        heads = {"num_heads": HEADS} if told else {}
        more = {"rotary_embedding_dim": SIZE} if told and domain else {}
        sketch.domains[MICROSOFT] = 1
        y = sketch.node("RotaryEmbedding", *inputs, domain=domain, **heads, **more)
        if apart:
            y = _reshaped(sketch, sketch.node("Transpose", y, perm=[0, 2, 1, 3]), 0, 0, HEADS * SIZE)
        turned.append(y)
    return _microsoft(sketch, "MultiHeadAttention", *turned, v, num_heads=HEADS)


def _group_query(sketch: Sketch, x: str, *, kv: int = 2, packed: bool = False) -> str:
    lengths = sketch.weight("lengths", np.full(BATCH, LENGTH - 1, np.int32))
    total = sketch.weight("total", np.asarray(LENGTH, np.int32))
    angles = [sketch.random(name, 8, SIZE // 2) for name in ("cos", "sin")]
    if packed:
        made = [_projected(sketch, x, "qkv", (HEADS + 2 * kv) * SIZE), "", ""]
    else:
        made = [_projected(sketch, x, name, n * SIZE) for name, n in (("q", HEADS), ("k", kv), ("v", kv))]
    inputs = [*made, "", "", lengths, total, *angles]
    return _microsoft(sketch, "GroupQueryAttention", *inputs, num_heads=HEADS, kv_num_heads=kv, do_rotary=1)


def _standard(sketch: Sketch, x: str, *, kv: int = HEADS, apart: bool = False, mask: bool = False) -> str:
    sketch.require(23, 11)
    parts = [_projected(sketch, x, name, n * SIZE, bias=True) for name, n in (("q", HEADS), ("k", kv), ("v", kv))]
    told = {"q_num_heads": HEADS, "kv_num_heads": kv}
    if apart:
        parts = [_by_heads(sketch, part, n) for part, n in zip(parts, (HEADS, kv, kv), strict=True)]
        told = {}
    masks = [sketch.random("mask", HEADS, LENGTH, LENGTH)] if mask else []
    y = sketch.node("Attention", *parts, *masks, **told)
    return _reshaped(sketch, sketch.node("Transpose", y, perm=[0, 2, 1, 3]), 0, 0, HEADS * SIZE) if apart else y


def _standard_rotated(sketch: Sketch, x: str, *, apart: bool) -> str:
    sketch.require(23, 11)
    return _rotated(sketch, x, apart=apart, domain="", told=not apart)


def _decomposed(sketch: Sketch, x: str) -> str:
    q, k, v = (_by_heads(sketch, _projected(sketch, x, name, HEADS * SIZE)) for name in "qkv")
    scores = sketch.node("MatMul", q, sketch.node("Transpose", k, perm=[0, 1, 3, 2]))
    y = sketch.node("MatMul", sketch.node("Softmax", scores, axis=-1), v)
    return _reshaped(sketch, sketch.node("Transpose", y, perm=[0, 2, 1, 3]), 0, 0, HEADS * SIZE)


def _model(attention: Attention, out: int = HEADS * SIZE) -> onnx.ModelProto:
    sketch = Sketch(opset=18)
    x = attention(sketch, sketch.input("tokens", ("batch", "length", WIDTH)))
    sketch.output(sketch.node("MatMul", x, sketch.random("out.weight", out, WIDTH)), ("batch", "length", WIDTH))
    return sketch.model()


FEEDS = {"tokens": np.random.default_rng(1).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)}


def _units(channels: Channels) -> list[tuple[int, str]]:
    assert lost_to(channels, "needs-rule") == 0
    found = groups(channels)
    assert all(group.exact for group in found)
    return [(len(group.units), group.kind) for group in found]


@pytest.mark.parametrize(
    "attention",
    [
        _decomposed,
        _sized,
        _quantized,
        _separate,
        _crossed,
        _rotated,
        lambda sketch, x: _rotated(sketch, x, apart=True),
        lambda sketch, x: _rotated(sketch, x, told=True),
        lambda sketch, x: _standard_rotated(sketch, x, apart=True),
        lambda sketch, x: _standard_rotated(sketch, x, apart=False),
        _standard,
        lambda sketch, x: _standard(sketch, x, mask=True),
        lambda sketch, x: _standard(sketch, x, apart=True, mask=True),
    ],
)
def test_heads(attention: Attention, check: Check) -> None:
    assert _units(check(_model(attention), FEEDS)) == [(HEADS, "heads")]


@pytest.mark.parametrize("attention", [_packed, _packed_keys])
def test_packed_layouts(attention: Attention, removing: SimpleNamespace) -> None:
    """No runtime at hand computes these: what is left must be what is left of the heads side by side."""
    proto = _model(attention)
    found = groups(channel_ids(load(proto)))
    assert [(len(group.units), group.kind) for group in found] == [(HEADS, "heads")]
    cut = removing.without(proto, found[0].units[1:3])
    weights = {value.name: np.asarray(value.const_value) for value in cut.weights()}
    old = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for name in weights:
        if name.endswith(".weight") and name != "out.weight":
            by_head = old[name].reshape(WIDTH, HEADS, -1)[:, [0, 3, 4, 5]]
            np.testing.assert_array_equal(weights[name], by_head.reshape(WIDTH, -1))
    (node,) = (node for node in cut.nodes() if node.op_type == "MultiHeadAttention")
    assert node.attributes.get_int("num_heads") == HEADS - 2


def test_values_of_another_width(check: Check) -> None:
    wide = 2 * HEADS * SIZE
    model = _model(lambda sketch, x: _sized(sketch, x, (HEADS * SIZE, HEADS * SIZE, wide)), wide)
    assert _units(check(model, FEEDS)) == [(HEADS, "heads")]


@pytest.mark.parametrize(
    "attention",
    [
        _group_query,
        lambda sketch, x: _group_query(sketch, x, packed=True),
        lambda sketch, x: _standard(sketch, x, kv=2),
        lambda sketch, x: _standard(sketch, x, kv=2, apart=True, mask=True),
    ],
)
def test_groups_of_heads(attention: Attention, check: Check) -> None:
    assert _units(check(_model(attention), FEEDS)) == [(2, "kv-groups")]


@pytest.mark.parametrize(
    "attention",
    [
        lambda sketch, x: _group_query(sketch, x, kv=1),
        lambda sketch, x: _group_query(sketch, x, kv=1, packed=True),
        lambda sketch, x: _standard(sketch, x, kv=1),
        lambda sketch, x: _standard(sketch, x, kv=1, apart=True),
    ],
)
def test_with_one_head_of_keys_the_units_are_heads_of_queries(attention: Attention, check: Check) -> None:
    assert _units(check(_model(attention), FEEDS)) == [(HEADS, "heads")]


def _with_past(sketch: Sketch, x: str, *, fed: bool) -> str:
    q, k, v = (_projected(sketch, x, name, HEADS * SIZE) for name in "qkv")
    shape = (BATCH, HEADS, PAST, SIZE)
    past = [sketch.input(f"past_{n}", shape) if fed else sketch.random(f"past_{n}", *shape) for n in "kv"]
    x = _microsoft(sketch, "MultiHeadAttention", q, k, v, "", "", "", *past, num_heads=HEADS)
    sketch.nodes[-1].output.extend(["present_key", "present_value"])  # without them the runtime takes no past
    return x


@pytest.mark.parametrize("fed", [False, True])
def test_keys_and_values_of_earlier_tokens(fed: bool, check: Check) -> None:
    """Those that are fed keep all heads: the model's signature stays."""
    feeds = dict(FEEDS)
    if fed:
        rng = np.random.default_rng(2)
        feeds |= {f"past_{n}": rng.normal(size=(BATCH, HEADS, PAST, SIZE)).astype(np.float32) for n in "kv"}
    expected = [] if fed else [(HEADS, "heads")]
    assert _units(check(_model(lambda sketch, x: _with_past(sketch, x, fed=fed)), feeds)) == expected


def test_one_token_at_a_time(check: Check) -> None:
    """DecoderMaskedMultiHeadAttention, with the keys and values of those before."""
    sketch = Sketch(opset=18)
    x = sketch.input("tokens", (BATCH, 1, WIDTH))
    q, k, v = (_projected(sketch, x, name, HEADS * SIZE) for name in "qkv")
    past = [sketch.random(f"past_{n}", BATCH, HEADS, PAST, SIZE) for n in "kv"]
    bias = sketch.random("bias", 3 * HEADS * SIZE)
    inputs = [q, k, v, "", "", *past, sketch.weight("before", np.array([PAST - 1], np.int32)), "", "", bias]
    x = _microsoft(sketch, "DecoderMaskedMultiHeadAttention", *inputs, num_heads=HEADS, past_present_share_buffer=1)
    sketch.nodes[-1].output.extend(["present_key", "present_value"])
    sketch.output(sketch.node("MatMul", x, sketch.random("out.weight", HEADS * SIZE, WIDTH)), (BATCH, 1, WIDTH))
    assert _units(check(sketch.model(), {"tokens": FEEDS["tokens"][:, :1]})) == [(HEADS, "heads")]


def test_keys_that_are_handed_on_stay(check: Check) -> None:
    sketch = Sketch(opset=18)
    x = _separate(sketch, sketch.input("tokens", (BATCH, LENGTH, WIDTH)))
    sketch.nodes[-1].output.extend(["present_key", "present_value"])
    sketch.output(sketch.node("MatMul", x, sketch.random("out.weight", HEADS * SIZE, WIDTH)), (BATCH, LENGTH, WIDTH))
    sketch.output("present_key", (BATCH, HEADS, LENGTH, SIZE))
    assert _units(check(sketch.model(), FEEDS)) == []


def test_lookups_of_rank_that_nobody_knows_hold_all() -> None:
    """No axes, no units; and no crash."""
    sketch = Sketch(opset=18)
    sketch.inputs.append(onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    x = _separate(sketch, "x")
    sketch.output(sketch.node("MatMul", x, sketch.random("out.weight", HEADS * SIZE, WIDTH)), None)
    assert groups(channel_ids(load(sketch.model()))) == []
