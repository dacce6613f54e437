"""Weights as models hold them: shared by chance or on purpose, listed as inputs, in Constant nodes, in bodies."""

import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.analysis.axes import Channels, channel_ids, groups, removal
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.serialization import to_proto

Check = Callable[..., Channels]

WIDTH = 8
FEEDS = {"x": np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)}


def _layer(sketch: Sketch, x: str, name: str, rows: int, columns: int) -> str:
    return sketch.node("MatMul", x, sketch.random(name, rows, columns))


def _two_layers(sketch: Sketch, between: Callable[[str], str], *, second: str = "second") -> onnx.ModelProto:
    x = between(_layer(sketch, sketch.input("x", ("batch", 4)), "first", 4, WIDTH))
    sketch.output(_layer(sketch, x, second, WIDTH, 2), ("batch", 2))
    return sketch.model()


def _widths(channels: Channels) -> list[int]:
    return [len(group.units) for group in groups(channels)]


def test_neurons(assert_exact: Check) -> None:
    sketch = Sketch()
    model = _two_layers(sketch, lambda x: sketch.node("Relu", sketch.node("Add", x, sketch.random("bias", WIDTH))))
    (group,) = groups(assert_exact(model, FEEDS))
    assert (group.kind, group.exact, len(group.units), group.name) == ("neurons", True, WIDTH, "first")
    assert group.parameters == 4 + 1 + 2
    assert [(m.weight.root.name, m.place, m.count, m.consumes) for m in group.members] == [
        ("first", 1, 1, False), ("bias", 0, 1, False), ("second", 0, 1, True),
    ]  # fmt: skip


@pytest.mark.parametrize("identity", [False, True])
def test_equal_vectors_bind_nothing(identity: bool, assert_exact: Check) -> None:
    sketch = Sketch()
    ones = sketch.weight("ones", np.ones(WIDTH, np.float32))
    x = sketch.input("x", ("batch", 4))
    for name in ("first", "second"):
        own = sketch.node("Identity", ones) if identity else ones
        x = sketch.node("Mul", _layer(sketch, x, name, 4 if name == "first" else WIDTH, WIDTH), own)
    sketch.output(_layer(sketch, x, "last", WIDTH, 2), ("batch", 2))
    assert _widths(assert_exact(sketch.model(), FEEDS)) == [WIDTH, WIDTH]


def test_equal_vectors_leave_nothing_behind(removing: SimpleNamespace) -> None:
    sketch = Sketch()
    ones = sketch.weight("ones", np.ones(WIDTH, np.float32))
    x = sketch.input("x", ("batch", 4))
    for name in ("first", "second"):
        x = _layer(sketch, x, name, 4 if name == "first" else WIDTH, WIDTH)
        x = sketch.node("Mul", x, sketch.node("Identity", ones))
    sketch.output(_layer(sketch, x, "last", WIDTH, 2), ("batch", 2))
    first, second = groups(channel_ids(load(sketch.model())))
    cut = to_proto(removing.without(sketch.model(), (*first.units[:3], *second.units[:1])).ir)
    assert "Identity" not in {node.op_type for node in cut.graph.node}
    assert sorted(tuple(each.dims) for each in cut.graph.initializer) == [(4, 5), (5,), (5, 7), (7,), (7, 2)]


def test_tied_matrices_are_one(assert_exact: Check) -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 4))
    shared = sketch.random("shared", 4, WIDTH)
    a, b = sketch.node("Relu", sketch.node("MatMul", x, shared)), sketch.node("MatMul", x, shared)
    a, b = _layer(sketch, a, "after_a", WIDTH, 2), _layer(sketch, sketch.node("Tanh", b), "after_b", WIDTH, 2)
    sketch.output(sketch.node("Concat", a, b, axis=1), ("batch", 4))
    (group,) = groups(assert_exact(sketch.model(), FEEDS))
    assert [member.weight.root.name for member in group.members] == ["shared", "after_a", "after_b"]


def test_weights_listed_as_inputs(assert_exact: Check) -> None:
    sketch = Sketch(opset=9, ir_version=3)
    model = _two_layers(sketch, lambda x: sketch.node("Relu", x))
    model.graph.input.extend(
        helper.make_tensor_value_info(each.name, TensorProto.FLOAT, each.dims) for each in model.graph.initializer
    )
    assert _widths(assert_exact(model, FEEDS)) == [WIDTH]


def test_weights_that_may_be_fed_stay() -> None:
    sketch = Sketch()
    model = _two_layers(sketch, lambda x: sketch.node("Relu", x))
    model.graph.input.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, (4, WIDTH)))
    assert groups(channel_ids(load(model))) == []


def test_weights_in_constant_nodes(assert_exact: Check) -> None:
    sketch = Sketch()
    model = _two_layers(sketch, lambda x: sketch.node("Relu", x))
    for each in reversed(model.graph.initializer):
        model.graph.node.insert(0, helper.make_node("Constant", [], [each.name], value=each))
    del model.graph.initializer[:]
    assert _widths(assert_exact(model, FEEDS)) == [WIDTH]
    channels = channel_ids(load(model))
    channels.model.apply(removal(channels, groups(channels)[0].units[:2]))
    assert "Constant" not in {node.op_type for node in to_proto(channels.model.ir).graph.node}


@pytest.mark.parametrize("op", ["Transpose", "Identity", "Cast"])
def test_weights_behind_other_nodes(op: str, assert_exact: Check) -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 4))
    stored = sketch.weight("first", sketch.normal(WIDTH, 4) if op == "Transpose" else sketch.normal(4, WIDTH))
    options = {"Transpose": {"perm": [1, 0]}, "Cast": {"to": TensorProto.FLOAT}}.get(op, {})
    x = sketch.node("Relu", sketch.node("MatMul", x, sketch.node(op, stored, **options)))
    sketch.output(_layer(sketch, x, "second", WIDTH, 2), ("batch", 2))
    assert _widths(assert_exact(sketch.model(), FEEDS)) == [WIDTH]


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_weights_in_half_precision(dtype: object) -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 4))
    kind = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.BFLOAT16
    for name, shape in (("first", (4, WIDTH)), ("second", (WIDTH, 2))):
        weight = helper.make_tensor(name, kind, shape, sketch.normal(*shape).ravel().tolist())
        x = sketch.node("MatMul", x, sketch.node("Cast", sketch.weight(name, weight), to=TensorProto.FLOAT))
    sketch.output(x, ("batch", 2))
    channels = channel_ids(load(sketch.model()))
    (group,) = groups(channels)
    channels.model.apply(removal(channels, group.units[2:]))
    stored = {each.name: each for each in to_proto(channels.model.ir).graph.initializer}
    assert {name: (each.data_type, tuple(each.dims)) for name, each in stored.items()} == {
        "first": (kind, (4, 2)), "second": (kind, (2, 2)),
    }  # fmt: skip
    assert np.array_equal(
        numpy_helper.to_array(stored["first"]), numpy_helper.to_array(sketch.weights[0])[:, :2], equal_nan=False
    )


def test_channels_read_by_control_flow_stay() -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 4))
    inner = sketch.node("Relu", _layer(sketch, x, "first", 4, WIDTH))
    branch = Sketch()
    branch.output(branch.node("Identity", inner), None)
    chosen = sketch.node(
        "If", sketch.weight("yes", np.array(True)), then_branch=branch.graph(), else_branch=branch.graph()
    )
    sketch.output(_layer(sketch, chosen, "second", WIDTH, 2), ("batch", 2))
    channels = channel_ids(load(sketch.model()))
    assert groups(channels) == []
    reasons = {freeze.reason for each in channels.classes.frozen.values() for freeze in each}
    assert reasons == {"semantics"}


def test_sizes_that_are_asked_for_stay_what_they_were(removing: SimpleNamespace) -> None:
    """1 / sqrt(width), computed while the model runs."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 4))
    x = _layer(sketch, x, "first", 4, WIDTH)
    size = sketch.node("Cast", sketch.node("Shape", x, start=1), to=TensorProto.FLOAT)
    x = sketch.node("Div", x, sketch.node("Sqrt", size))
    sketch.output(_layer(sketch, x, "second", WIDTH, 2), ("batch", 2))
    (group,) = groups(channel_ids(load(sketch.model())))
    units = group.units[:3]
    cut, masked = removing.without(sketch.model(), units), removing.ignoring(sketch.model(), units)
    assert np.allclose(removing.outputs(cut, FEEDS)[0], removing.outputs(masked, FEEDS)[0], rtol=1e-5)


def test_removal_in_steps_is_removal_at_once(removing: SimpleNamespace) -> None:
    sketch = Sketch()
    model = _two_layers(sketch, lambda x: sketch.node("Relu", sketch.node("Add", x, sketch.random("bias", WIDTH))))
    units = groups(channel_ids(load(model)))[0].units
    at_once = to_proto(removing.without(model, [units[1], units[4], units[6]]).ir)
    first = removing.without(model, [units[4]])
    left = groups(channel_ids(first))[0].units
    stepwise = to_proto(removing.without(to_proto(first.ir), [left[1], left[5]]).ir)
    assert at_once.SerializeToString(deterministic=True) == stepwise.SerializeToString(deterministic=True)


def test_all_but_one_may_go(removing: SimpleNamespace) -> None:
    sketch = Sketch()
    model = _two_layers(sketch, lambda x: sketch.node("Relu", x))
    units = groups(channel_ids(load(model)))[0].units
    (result,) = removing.outputs(removing.without(model, units[1:]), FEEDS)
    assert result.shape == (3, 2)


@pytest.mark.slow
def test_twenty_thousand_nodes_take_seconds() -> None:
    """A chain of 6,666 layers, weights of their own."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", WIDTH))
    for _ in range(6_666):
        x = sketch.node("Tanh", sketch.node("Relu", _layer(sketch, x, "layer", WIDTH, WIDTH)))
    sketch.output(_layer(sketch, x, "last", WIDTH, 2), ("batch", 2))
    model = load(sketch.model())
    started = time.process_time()
    assert _widths(channel_ids(model)) == [WIDTH] * 6_666
    assert time.process_time() - started < 6


@pytest.mark.parametrize("constant", [False, True], ids=["computed", "constant"])
def test_a_long_way_of_identities_is_walked_once(constant: bool) -> None:
    """As often as there are nodes, it would take minutes."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 4))
    value = numpy_helper.from_array(np.ones((4, WIDTH), np.float32))
    start = passed = sketch.node("Constant", value=value) if constant else _layer(sketch, x, "first", 4, WIDTH)
    for _ in range(10_000):
        passed = sketch.node("Identity", passed)
    y = sketch.node("Relu", sketch.node("MatMul", x, passed) if constant else passed)
    sketch.output(_layer(sketch, y, "second", WIDTH, 2), ("batch", 2))
    if constant:
        sketch.output(_layer(sketch, sketch.node("MatMul", x, start), "third", WIDTH, 2), ("batch", 2))
    model = load(sketch.model())
    started = time.process_time()
    channels = channel_ids(model)
    model.apply(removal(channels, groups(channels)[0].units[:3]))
    assert time.process_time() - started < 10
    assert _widths(channel_ids(model))[0] == WIDTH - 3
