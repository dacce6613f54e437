"""What a model will cost without some units is what it then costs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt import models
from onnxopt.analysis.axes import ChannelGroup, Channels, channel_ids, groups, removal
from onnxopt.analysis.cost import Cost, cost
from onnxopt.analysis.shapes import infer
from onnxopt.edit import Edit
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.pruning.costs import cost_model, full

SHIPPED = Path(models.__path__[0])
ZOO = [
    "digits_cnn_bn_dynamo", "digits_lstm_legacy", "digits_transformer_legacy", "fashion_se_net_legacy",
    "hf_bert_tiny_dynamo", "resnet20_cifar_dynamo",
]  # fmt: skip
OF = ("macs", "params", "bytes")
DRAWS = 3


def sizes_of(model: Model) -> dict[str, tuple[int, ...]]:
    """Small numbers for open sizes, one a name."""
    named: dict[str, int] = {}
    return {
        value.name or "": tuple(d if isinstance(d, int) else named.setdefault(str(d), 2 + len(named)) for d in shape)
        for value in model.graph.inputs
        if not value.is_initializer() and (shape := value.shape) is not None
    }


def cost_of(model: Model) -> Cost:
    return cost(model, infer(model, sizes_of(model), thorough=True))


def drawn(channels: Channels, found: list[ChannelGroup], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Some units of every group, and how many each keeps without them."""
    units: list[int] = []
    for group in found:
        if len(group.units) > 1:
            units += rng.choice(group.units, int(rng.integers(1, len(group.units))), replace=False).tolist()
    gone = set(channels.spared(units))
    return units, [len(group.units) - len(gone & set(group.units)) for group in found]


def check(source: Path | onnx.ModelProto, *, notes: int = 300) -> Channels:
    """Predictions for random widths against models that were cut; bytes may lack `notes`, what cutting writes down."""
    model = load(source)
    channels, before = channel_ids(model), cost_of(model)
    found = groups(channels)
    predicted = {of: cost_model(channels, found, before, of) for of in OF}
    for each in predicted.values():
        assert len({tuple(sorted(term.groups)) for term in each.terms}) == len(each.terms)
    for seed in range(DRAWS):
        pruned = load(source)
        units, widths = drawn(channels, found, np.random.default_rng(seed))
        pruned.apply(removal(channel_ids(pruned), units))
        after = cost_of(pruned)
        assert (after.unknown_macs, before.unknown_macs) == ((), ())
        assert predicted["macs"].total(widths) == pytest.approx(after.macs, rel=1e-12)
        assert predicted["params"].total(widths) == after.params < before.params
        assert abs(predicted["bytes"].total(widths) - after.file_bytes) <= notes
    return channels


def kinds(channels: Channels) -> list[tuple[str, int]]:
    return [(group.kind, len(group.units)) for group in groups(channels)]


def exact_at_full(source: onnx.ModelProto) -> bool:
    model = load(source)
    channels, before = channel_ids(model), cost_of(model)
    found = groups(channels)
    widths = [len(group.units) for group in found]
    return all(cost_model(channels, found, before, of).total(widths) == full(before, of) for of in OF)


@pytest.mark.parametrize(("name", "notes"), [("byte_gpt", 4000), ("digits_cnn", 0), ("digits_transformer", 400)])
def test_shipped_models(name: str, notes: int) -> None:
    check(SHIPPED / f"{name}.onnx", notes=notes)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name: str, zoo: Path) -> None:
    check(zoo / f"{name}.onnx", notes=4000)


def image(middle: Callable[[Sketch, str], str], channels: int, *, rows: int) -> onnx.ModelProto:
    """What is tested between a convolution that makes its channels and one that reads them."""
    sketch = Sketch()
    x = sketch.input("image", ("batch", 3, 9, 8))
    x = sketch.node("Conv", x, sketch.random("first.weight", channels, 3, 3, 3), sketch.random("first.bias", channels))
    x = sketch.node("Conv", middle(sketch, x), sketch.random("last.weight", 4, rows, 1, 1))
    sketch.output(x, [None] * 4)
    return sketch.model()


def tokens(middle: Callable[[Sketch, str], str], *, opset: int = 18) -> onnx.ModelProto:
    """A vector of 10 for each of 5 tokens, on both sides of what is tested."""
    sketch = Sketch(opset=opset)
    x = sketch.input("tokens", ("batch", 5, 10))
    sketch.output(middle(sketch, x), ("batch", 5, 10))
    return sketch.model()


def layer(sketch: Sketch, x: str, name: str, inputs: int, outputs: int) -> str:
    x = sketch.node("MatMul", x, sketch.random(f"{name}.weight", inputs, outputs))
    return sketch.node("Add", x, sketch.random(f"{name}.bias", outputs))


def heads_of(sketch: Sketch, x: str, name: str, heads: int) -> str:
    """[batch, heads, tokens, 4]."""
    x = layer(sketch, x, name, 10, 4 * heads)
    shape = sketch.weight("shape", np.array([0, 0, heads, 4], np.int64))
    return sketch.node("Transpose", sketch.node("Reshape", x, shape), perm=[0, 2, 1, 3])


def attended(sketch: Sketch, q: str, k: str, v: str) -> str:
    scores = sketch.node("MatMul", q, sketch.node("Transpose", k, perm=[0, 1, 3, 2]))
    x = sketch.node("Transpose", sketch.node("MatMul", sketch.node("Softmax", scores), v), perm=[0, 2, 1, 3])
    return sketch.node("Reshape", x, sketch.weight("flat", np.array([0, 0, -1], np.int64)))


@pytest.mark.parametrize(("groups_", "units"), [(1, 32), (2, 16), (8, 8), (32, 32)])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_grouped_convolutions(op: str, groups_: int, units: int) -> None:
    """Whole groups go of narrow ones, which are linear in what stays; the same places of wide ones, and depthwise."""

    def middle(sketch: Sketch, x: str) -> str:
        return sketch.node(op, x, sketch.random("weight", 32, 32 // groups_, 3, 3), group=groups_)

    channels = check(image(middle, 32, rows=32))
    assert ("conv", units) in kinds(channels)


def test_normalised_branches_that_are_concatenated_and_added() -> None:
    def middle(sketch: Sketch, x: str) -> str:
        norm = [sketch.random(f"norm.{part}", 12) for part in ("scale", "bias", "mean", "var")]
        x = sketch.node("Relu", sketch.node("BatchNormalization", x, *norm))
        y = sketch.node("Conv", x, sketch.random("inner.weight", 12, 12, 1, 1))
        return sketch.node("Concat", sketch.node("Add", x, y), x, axis=1)

    channels = check(image(middle, 12, rows=24))
    assert kinds(channels) == [("residual", 12)]


def test_a_group_on_both_axes_is_squared() -> None:
    """A residual stream: x + relu(x W)."""

    def middle(sketch: Sketch, x: str) -> str:
        x = layer(sketch, x, "in", 10, 16)
        x = sketch.node("Add", x, sketch.node("Relu", layer(sketch, x, "square", 16, 16)))
        return layer(sketch, x, "out", 16, 10)

    model = load(tokens(middle))
    channels = check(tokens(middle))
    found = cost_model(channels, groups(channels), cost_of(model), "macs")
    assert {term.groups: term.coefficient for term in found.terms} == {(0,): 2 * 5 * 20, (0, 0): 2 * 5}
    assert found.constant == 0


def test_gated_linear_units() -> None:
    def middle(sketch: Sketch, x: str) -> str:
        gate = sketch.node("Sigmoid", layer(sketch, x, "gate", 10, 24))
        return layer(sketch, sketch.node("Mul", gate, layer(sketch, x, "up", 10, 24)), "down", 24, 10)

    channels = check(tokens(middle))
    assert kinds(channels) == [("neurons", 24)]
    assert exact_at_full(tokens(middle))


def _separate(sketch: Sketch, x: str) -> str:
    return attended(sketch, *(heads_of(sketch, x, name, 6) for name in "qkv"))


def _by_letters(sketch: Sketch, x: str) -> str:
    q, k, v = (heads_of(sketch, x, name, 6) for name in "qkv")
    scores = sketch.node("Softmax", sketch.node("Einsum", q, k, equation="bhtd,bhsd->bhts"))
    x = sketch.node("Einsum", scores, v, equation="bhts,bhsd->bthd")
    return sketch.node("Reshape", x, sketch.weight("flat", np.array([0, 0, -1], np.int64)))


def _grouped(sketch: Sketch, x: str) -> str:
    """Three query heads to one of keys and values."""
    q = heads_of(sketch, x, "q", 6)
    spread, joined = np.array([1, 2, 3, 5, 4], np.int64), np.array([0, 6, 5, 4], np.int64)
    repeated = []
    for name in "kv":
        few = sketch.node("Unsqueeze", heads_of(sketch, x, name, 2), sketch.weight("two", np.array([2])))
        many = sketch.node("Expand", few, sketch.weight("spread", spread))
        repeated.append(sketch.node("Reshape", many, sketch.weight("joined", joined)))
    return attended(sketch, q, *repeated)


def _standard(sketch: Sketch, x: str) -> str:
    parts = [heads_of(sketch, x, name, heads) for name, heads in (("q", 6), ("k", 2), ("v", 2))]
    x = sketch.node("Transpose", sketch.node("Attention", *parts), perm=[0, 2, 1, 3])
    return sketch.node("Reshape", x, sketch.weight("flat", np.array([0, 0, -1], np.int64)))


def _microsoft(sketch: Sketch, op: str, *inputs: str, **attributes: Any) -> str:
    sketch.domains["com.microsoft"] = 1
    return sketch.node(op, *inputs, domain="com.microsoft", **attributes)


def _multi_head(sketch: Sketch, x: str) -> str:
    return _microsoft(sketch, "MultiHeadAttention", *(layer(sketch, x, name, 10, 24) for name in "qkv"), num_heads=6)


def _group_query(sketch: Sketch, x: str) -> str:
    parts = [layer(sketch, x, name, 10, width) for name, width in (("q", 24), ("k", 8), ("v", 8))]
    lengths = [sketch.weight("last", np.array([4, 4], np.int32)), sketch.weight("total", np.int32(5))]
    return _microsoft(sketch, "GroupQueryAttention", *parts, "", "", *lengths, num_heads=6, kv_num_heads=2)


def _projected(sketch: Sketch, x: str) -> str:
    weight, bias = sketch.random("weight", 10, 72), sketch.random("bias", 72)
    return _microsoft(sketch, "Attention", x, weight, bias, num_heads=6)


@pytest.mark.parametrize(
    ("attention", "kind", "units", "opset"),
    [
        (_separate, "heads", 6, 18), (_by_letters, "heads", 6, 18), (_grouped, "kv-groups", 2, 18),
        (_standard, "kv-groups", 2, 23), (_multi_head, "heads", 6, 18), (_group_query, "kv-groups", 2, 18),
        (_projected, "heads", 6, 18),
    ],
)  # fmt: skip
def test_heads(attention: Callable[[Sketch, str], str], kind: str, units: int, opset: int) -> None:
    """Projections, and products of queries with keys and of scores with values, whose length nobody may change."""

    def middle(sketch: Sketch, x: str) -> str:
        return layer(sketch, attention(sketch, x), "out", 24, 10)

    proto = tokens(middle, opset=opset)
    for dim in (
        proto.graph.input[0].type.tensor_type.shape.dim[0],
        proto.graph.output[0].type.tensor_type.shape.dim[0],
    ):
        dim.dim_value = 1
    assert kinds(check(proto)) == [(kind, units)]


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(op: str, gates: int) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        x = layer(sketch, x, "in", 10, 7)
        weights = [sketch.random("w", 2, gates * 9, 7), sketch.random("r", 2, gates * 9, 9)]
        both = sketch.node(
            op, x, *weights, sketch.random("b", 2, 2 * gates * 9), hidden_size=9, direction="bidirectional"
        )
        both = sketch.node("Transpose", both, perm=[0, 2, 1, 3])
        return layer(sketch, sketch.node("Reshape", both, sketch.weight("flat", np.array([0, 0, 18]))), "out", 18, 10)

    channels = check(tokens(middle))
    assert ("recurrent", 9) in kinds(channels)


@pytest.mark.parametrize("equation", ["btd,df->btf", "tb...d,fd->tbf...", "abd,dc", "...d,df->...f"])
def test_einsum(equation: str) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        weight = sketch.random("letters", *((14, 12) if "fd" in equation else (12, 14)))
        x = sketch.node("Einsum", layer(sketch, x, "in", 10, 12), weight, equation=equation)
        return layer(sketch, sketch.node("Relu", x), "out", 14, 10)

    assert kinds(check(tokens(middle))) == [("neurons", 12), ("neurons", 14)]


def test_a_batch_of_products_of_two_computed_tensors() -> None:
    """The channels are rows of one operand and what is summed over in the next product."""

    def middle(sketch: Sketch, x: str) -> str:
        x = layer(sketch, x, "in", 10, 12)
        scores = sketch.node("MatMul", sketch.node("Transpose", x, perm=[0, 2, 1]), x)
        return layer(sketch, sketch.node("MatMul", x, scores), "out", 12, 10)

    assert kinds(check(tokens(middle))) == [("neurons", 12)]


def test_a_matrix_that_two_layers_share_counts_once() -> None:
    """An embedding, and the layer at the end that turns vectors back into words."""
    sketch = Sketch()
    table = sketch.random("table", 30, 12)
    x = sketch.node("Gather", table, sketch.input("words", ("batch", 5), onnx.TensorProto.INT64))
    x = sketch.node("Add", x, sketch.node("Relu", layer(sketch, x, "inner", 12, 12)))
    x = sketch.node("MatMul", x, sketch.node("Transpose", table, perm=[1, 0]))
    sketch.output(x, ("batch", 5, 30))
    channels = check(sketch.model())
    assert kinds(channels) == [("residual", 12)]
    assert exact_at_full(sketch.model())


def test_a_vector_that_two_layers_only_happen_to_share_counts_for_each() -> None:
    """For they part once it is cut; a third one that keeps all its channels keeps it whole."""

    def middle(sketch: Sketch, x: str) -> str:
        ones = sketch.weight("ones", np.ones(10, np.float32))
        for name in ("first", "second"):
            x = sketch.node("MatMul", x, sketch.random(f"{name}.weight", 10, 10))
            x = sketch.node("Relu", sketch.node("Add", x, ones))
        return sketch.node("Add", sketch.node("MatMul", x, sketch.random("last", 10, 10)), ones)

    channels = check(tokens(middle))
    assert kinds(channels) == [("neurons", 10)] * 2
    before = cost_of(channels.model)
    found = cost_model(channels, groups(channels), before, "params")
    assert found.total([10, 10]) == before.params + 20
    assert cost_model(channels, groups(channels)[:1], before, "params").total([10]) == before.params + 10
    assert cost_model(channels, [], before, "params").constant == before.params


def test_operators_of_which_nobody_knows_what_channels_do_cost_what_they_cost() -> None:
    def middle(sketch: Sketch, x: str) -> str:
        x = layer(sketch, sketch.node("Relu", layer(sketch, x, "up", 10, 16)), "down", 16, 12)
        x = sketch.node("Reshape", x, sketch.weight("rows", np.array([-1, 12])))
        x = _microsoft(sketch, "GemmFastGelu", x, sketch.random("weight", 12, 10))
        return sketch.node("Reshape", x, sketch.weight("back", np.array([-1, 5, 10])))

    proto = tokens(middle)
    model = load(proto)
    channels, before = channel_ids(model), cost_of(model)
    found = cost_model(channels, groups(channels), before, "macs")
    assert found.constant == 2 * 5 * 120
    assert found.total([4]) == 2 * 5 * (120 + 4 * 22)


def test_groups_that_are_not_named_stay_as_they_are() -> None:
    model = load(SHIPPED / "digits_transformer.onnx")
    channels, before = channel_ids(model), cost_of(model)
    chosen = [group for group in groups(channels) if group.kind == "heads"]
    found = {of: cost_model(channels, chosen, before, of) for of in OF}
    units = [group.units[0] for group in chosen]
    model.apply(removal(channels, units))
    after = cost_of(model)
    widths = [len(group.units) - 1 for group in chosen]
    assert found["macs"].total(widths) == after.macs < before.macs
    assert found["params"].total(widths) == after.params < before.params
    assert all(found[of].total([len(group.units) for group in chosen]) == full(before, of) for of in OF)


def test_what_is_not_of_the_same_model_is_refused() -> None:
    model, other = (load(SHIPPED / f"{name}.onnx") for name in ("digits_cnn", "digits_transformer"))
    channels, before = channel_ids(model), cost_of(other)
    for of in OF:
        with pytest.raises(ValueError, match="another model"):
            cost_model(channels, groups(channels), before, of)
    before = cost_of(model)
    model.apply(Edit())
    with pytest.raises(ValueError, match="before it was edited"):
        cost_model(channels, groups(channels), before, "macs")


def test_it_is_linear_in_nodes() -> None:
    """20,000 nodes and 1,000 groups."""
    sketch = Sketch()
    x = sketch.input("x", (1, 4))
    for _ in range(1000):
        x = sketch.node("MatMul", x, sketch.random("weight", 4, 6))
        for _ in range(18):
            x = sketch.node("Neg", x)
        x = sketch.node("MatMul", x, sketch.random("weight", 6, 4))
    sketch.output(sketch.node("MatMul", x, sketch.random("last", 4, 4)), (1, 4))
    model = load(sketch.model())
    channels, before = channel_ids(model), cost_of(model)
    found = groups(channels)
    assert len(found) >= 1000
    for of in OF:
        start = time.process_time()
        predicted = cost_model(channels, found, before, of)
        assert time.process_time() - start < 3
        assert predicted.total([len(group.units) for group in found]) == full(before, of)
