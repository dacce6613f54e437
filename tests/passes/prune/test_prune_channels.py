"""prune-channels: what it removes, that nothing else changes, what it leaves alone and says so."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxopt import models, recipe
from onnxopt.analysis.axes import ChannelGroup, channel_ids, groups, masking
from onnxopt.analysis.axes.rules import RULES, Call
from onnxopt.analysis.axes.scoring import magnitudes
from onnxopt.backends.target import Target
from onnxopt.context import RunContext
from onnxopt.errors import ContractViolation, RecipeError
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.overrides import Override
from onnxopt.passing import Findings, make
from onnxopt.serialization import to_proto

Array = npt.NDArray[Any]


def pruned(
    source: Any, ratio: float = 0.5, *, skip: Sequence[str] = (), target: str = "cpu", **options: Any
) -> tuple[Model, Findings]:
    """The model and what the pass says."""
    model = load(source)
    overrides = [Override(match=each, skip=True) for each in skip]
    context = RunContext(model, overrides=overrides, target=Target(name=target))  # type: ignore[arg-type]
    return model, make("prune-channels", {"ratio": ratio, **options}).run(model, context)


def ran(model: Model | onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """What ONNX Runtime computes of a model that the full checker accepts."""
    proto = to_proto(model.ir) if isinstance(model, Model) else model
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)


def widths(model: Model | onnx.ModelProto) -> dict[str, int]:
    """Group name -> units."""
    found = groups(channel_ids(model if isinstance(model, Model) else load(model)))
    return {group.name: len(group.units) for group in found}


def close(a: Sequence[Array], b: Sequence[Array], tolerance: float = 1e-5) -> bool:
    return all(
        x.shape == y.shape and np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y) + 1e-6 * np.sqrt(x.size)
        for x, y in zip(a, b, strict=True)
    )


def network(
    convs: Sequence[int] = (16, 24), neurons: Sequence[int] = (20,), *, depthwise: bool = False, norm: bool = False
) -> onnx.ModelProto:
    """Convolutions, then matrix products; fresh random weights."""
    sketch = Sketch()
    x, before = sketch.input("image", ("batch", 3, 5, 5)), 3
    for number, rows in enumerate(convs):
        x = sketch.node(
            "Conv", x, sketch.random(f"conv{number}", rows, before, 3, 3), sketch.random(f"conv{number}.bias", rows),
            pads=[1, 1, 1, 1],
        )  # fmt: skip
        if norm:
            parts = [sketch.weight(f"norm{number}.{at}", np.abs(sketch.normal(rows)) + 0.1) for at in range(4)]
            x = sketch.node("BatchNormalization", x, *parts)
        x = sketch.node("Relu", x)
        if depthwise:
            x = sketch.node("Relu", sketch.node("Conv", x, sketch.random(f"depth{number}", rows, 1, 3, 3), group=rows))
            depthwise = False
        before = rows
    x = sketch.node("Flatten", x)
    columns = before * (9 if len(convs) and any("depth" in each.name for each in sketch.weights) else 25)
    for number, rows in enumerate(neurons):
        x = sketch.node("Tanh", sketch.node("MatMul", x, sketch.random(f"dense{number}", columns, rows)))
        columns = rows
    x = sketch.node("Gemm", x, sketch.random("last", 4, columns), transB=1)
    sketch.output(x, ("batch", 4))
    return sketch.model()


def images(count: int) -> dict[str, Array]:
    return {"image": np.random.default_rng(count).normal(size=(count, 3, 5, 5)).astype(np.float32)}


@settings(deadline=None, max_examples=25)
@given(
    convs=st.lists(st.integers(1, 20), min_size=1, max_size=2),
    neurons=st.lists(st.integers(1, 12), max_size=2),
    depthwise=st.booleans(),
    norm=st.booleans(),
    ratio=st.floats(0.05, 0.95),
    options=st.fixed_dictionaries(
        {},
        optional={
            "allocation": st.sampled_from(["uniform", "global"]), "norm": st.sampled_from(["l1", "l2"]),
            "round_to": st.sampled_from(["auto", 1, 4]), "min_width": st.integers(1, 6),
        },
    ),
)  # fmt: skip
def test_what_is_left_is_the_rest(
    convs: list[int], neurons: list[int], depthwise: bool, norm: bool, ratio: float, options: dict[str, Any]
) -> None:
    proto = network(convs, neurons, depthwise=depthwise, norm=norm)
    before = load(proto)
    channels = channel_ids(before)
    found = groups(channels)
    assume(any(len(group.units) > 1 for group in found))
    power = 1 if options.get("norm") == "l1" else 2
    scores = magnitudes(channels, [unit for group in found for unit in group.units], power)
    model, findings = pruned(proto, ratio, **options)
    after = widths(model)
    gone: list[int] = []
    for group in found:
        width = len(group.units)
        kept = after.get(group.name, 1)
        gone += sorted(group.units, key=lambda unit: float(scores[unit]))[: width - kept]
        multiple = options.get("round_to", "auto")
        multiple = (8 if group.kind == "conv" else 1) if multiple == "auto" else multiple
        least = min(width, max(options.get("min_width", 1), min(multiple, width)))
        assert least <= kept <= width
        assert kept == width or kept % multiple == 0
        if options.get("allocation") != "global" and kept not in (least, width):
            assert abs(kept - (1 - ratio) * width) <= multiple / 2
        told = findings.changes if kept < width else findings.declined
        assert any(each.node == group.name for each in told)
    before.apply(masking(channels, gone))
    for count in (1, 3):
        assert close(ran(model, images(count)), ran(before, images(count)))
    assert findings.changed == bool(gone)
    if gone:
        assert not any("Where" in node.op_type for node in model.nodes())
        assert findings.measures["parameters_after"] < findings.measures["parameters_before"]
        again, _ = pruned(to_proto(model.ir), ratio, **options)
        ran(again, images(2))


def test_uniform_and_global() -> None:
    """One threshold takes most where most is weak, within limits."""
    proto = network((), (40, 40))
    weight = next(each for each in proto.graph.initializer if each.name == "dense0")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[:, :38] *= 1e-3
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "dense0"))
    assert widths(pruned(proto, 0.5, allocation="uniform")[0]) == {"dense0": 20, "dense1": 20}
    found = widths(pruned(proto, 0.5, allocation="global")[0])
    assert sum(found.values()) == 40
    assert 4 <= found["dense0"] < found["dense1"]
    assert widths(pruned(proto, 0.5, allocation="global", min_width=25)[0]) == {"dense0": 25, "dense1": 25}
    assert widths(pruned(proto, 0.9, allocation="global")[0]) == {"dense0": 4, "dense1": 4}


def test_the_same_twice() -> None:
    one, two = (pruned(network(norm=True), 0.4)[0] for _ in range(2))
    assert to_proto(one.ir).SerializeToString() == to_proto(two.ir).SerializeToString()


def test_rounding_follows_the_target() -> None:
    proto = network((20,), (20,))
    assert widths(pruned(proto, 0.3)[0]) == {"conv0": 16, "dense0": 14}
    assert widths(pruned(proto, 0.3, target="portable")[0]) == {"conv0": 14, "dense0": 14}
    assert widths(pruned(proto, 0.3, round_to=4)[0]) == {"conv0": 16, "dense0": 16}
    _, findings = pruned(network((6,), (20,)), 0.5)
    assert [each.why for each in findings.declined if each.node == "conv0"] == [
        "no wider than the multiple that kept widths are rounded to, 8 (round_to)"
    ]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"include": ["conv0"]}, {"conv0"}),
        ({"include": ["conv1"]}, {"conv1"}),
        ({"include": ["conv*"], "exclude": ["re:^dense"]}, {"conv0"}),
        ({"include": ["Conv_node_1", "dense?"]}, {"conv1", "dense0"}),
        ({"exclude": ["Gemm_node"]}, {"conv0", "conv1"}),
        ({"exclude": ["conv0.bias"]}, {"conv1", "dense0"}),
        ({"kinds": ["neurons"]}, {"dense0"}),
        ({"kinds": ["conv"]}, {"conv0", "conv1"}),
        ({"skip": ["conv1"]}, {"dense0"}),
        ({"skip": ["MatMul_node"]}, {"conv0"}),
    ],
)
def test_what_is_to_be_pruned(options: dict[str, Any], left: set[str]) -> None:
    _, findings = pruned(network(), 0.5, **options)
    assert {change.node for change in findings.changes} == left
    assert {each.node for each in findings.declined} >= {"conv0", "conv1", "dense0"} - left


@pytest.mark.parametrize("name", ["Relu_node", "last"])
def test_names_that_are_in_the_model_but_make_no_units(name: str) -> None:
    _, findings = pruned(network(), 0.5, include=[name, "dense0"])
    assert (name, "include names nothing that makes units which can be removed") in {
        (each.node, each.why) for each in findings.declined
    }


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_names_that_match_nothing(option: str) -> None:
    model = load(network())
    with pytest.raises(RecipeError, match=rf"prune-channels\.{option}: 'dense9' names no .*did you mean dense0"):
        make("prune-channels", {"ratio": 0.5, option: ["dense9"]}).run(model, RunContext(model))
    assert model.revision == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ratio": 0}, "ratio"), ({"ratio": 1.0}, "ratio"), ({"ratio": -1}, "ratio"),
        ({}, "give one of ratio, keep_macs"),
        ({"ratio": 0.5, "keep_macs": 0.5}, "ratio and keep_macs are given"), ({"keep_macs": 300}, "keep_macs"),
        ({"ratio": 0.5, "include": ["re:("]}, r"'re:\(' is no regular expression"),
        ({"ratio": 0.5, "kinds": ["head"]}, "did you mean heads"), ({"ratio": 0.5, "round_to": 0}, "round_to"),
        ({"ratio": 0.5, "min_width": 0}, "min_width"),
    ],
)  # fmt: skip
def test_impossible_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe.build({"passes": [{"prune-channels": options}]})


def test_nothing_to_prune() -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 8))
    sketch.output(sketch.node("Softmax", sketch.node("MatMul", x, sketch.random("w", 8, 6))), ("batch", 6))
    told = r"nothing can be pruned: .*\(semantics, \d+ parameters\).*; leave the pass out"
    with pytest.raises(RecipeError, match=told):
        pruned(sketch.model())


def residual() -> onnx.ModelProto:
    sketch = Sketch()
    x = sketch.node("Conv", sketch.input("image", ("batch", 3, 5, 5)), sketch.random("stem", 16, 3, 1, 1))
    y = sketch.node("Relu", sketch.node("Conv", x, sketch.random("inside", 16, 16, 1, 1)))
    x = sketch.node("Add", x, sketch.node("Conv", y, sketch.random("back", 16, 16, 1, 1)))
    sketch.output(sketch.node("Conv", x, sketch.random("last", 2, 16, 1, 1)), ("batch", 2, 5, 5))
    return sketch.model()


def test_streams_are_pruned_on_demand() -> None:
    assert widths(pruned(residual())[0]) == {"stem": 16, "inside": 8}
    model, findings = pruned(residual(), kinds=["conv", "residual"])
    assert widths(model) == {"stem": 8, "inside": 8}
    assert findings.measures["residual_units_after"] == 8
    ran(model, images(2))


def test_what_normalizations_mix_is_pruned_on_demand() -> None:
    sketch = Sketch()
    x = sketch.node("MatMul", sketch.input("x", ("batch", 8)), sketch.random("first", 8, 12))
    x = sketch.node("LayerNormalization", x, sketch.random("scale", 12), sketch.random("shift", 12))
    sketch.output(sketch.node("MatMul", x, sketch.random("last", 12, 3)), ("batch", 3))
    model, findings = pruned(sketch.model())
    assert model.revision == 0
    assert ["inexact: true" in each.why for each in findings.declined] == [True]
    model, findings = pruned(sketch.model(), inexact=True)
    assert any("1 groups are not exact" in note for note in findings.notes)
    assert widths(model) == {"first": 6}
    ran(model, {"x": np.ones((2, 8), np.float32)})


def forgetful(call: Call) -> None:
    """A wrong rule for Add: the channels of one operand are not those of the other."""
    call.give(call.axes(0))


def test_a_group_that_fails_the_trial_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, ("", "Add"), forgetful)
    model, findings = pruned(residual(), kinds=["conv", "residual"])
    assert {change.node for change in findings.changes} == {"inside"}
    refused = [each for each in findings.declined if "failed the trial" in each.why]
    assert {each.node for each in refused} >= {"stem"}
    ran(model, images(2))


def test_a_group_that_was_asked_for_and_fails_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, ("", "Add"), forgetful)
    model = load(residual())
    with pytest.raises(ContractViolation, match="stem, which include names, failed the trial"):
        make("prune-channels", {"ratio": 0.5, "include": ["stem"]}).run(model, RunContext(model))
    assert model.revision == 0


def test_what_cannot_be_run_is_pruned_unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunContext, "drift", lambda *_: None)
    _, findings = pruned(residual())
    assert {change.node for change in findings.changes} == {"inside"}
    assert any("unproven" in note for note in findings.notes)


@pytest.mark.parametrize("name", ["digits-cnn", "digits-transformer"])
def test_models_that_ship(name: str) -> None:
    images = np.load(models.path(name).with_name("digits.calib.npz"))["images"]
    model, findings = pruned(models.path(name), 0.3)
    assert findings.measures["parameters_after"] < 0.8 * findings.measures["parameters_before"]
    for count in (1, 5):
        ran(model, {"images": images[:count]})


Dead = Callable[[Sketch, str, Array], str]


def dead(
    middle: Dead, *, pads: int = 0, dense: bool = False, flat: bool = False, bias: bool = True, scale: float = 1.0
) -> onnx.ModelProto:
    """A convolution of which half the rows are zero, something in between, a layer that reads it."""
    sketch = Sketch()
    weight, offset = sketch.normal(8, 3, 3, 3), sketch.normal(8) * scale
    weight[1::2] = 0
    x = sketch.input("image", ("batch", 3, 5, 5))
    x = middle(sketch, sketch.node("Conv", x, sketch.weight("first", weight), sketch.weight("offset", offset)), offset)
    area = 16 if middle is pooled else 9
    if dense or flat:
        x = sketch.node("Flatten", x if flat else sketch.node("GlobalAveragePool", x))
        held = [sketch.random("bias", 4)] if bias else []
        op = ("Gemm", {"alpha": 0.5, "beta": 2.0}) if bias else ("MatMul", {})
        sketch.output(
            sketch.node(op[0], x, sketch.random("last", 8 * area if flat else 8, 4), *held, **op[1]), ("batch", 4)
        )  # type: ignore[arg-type]
        return sketch.model()
    held = [sketch.random("bias", 4)] if bias else []
    x = sketch.node("Conv", x, sketch.random("last", 4, 8, 3, 3), *held, pads=[pads] * 4)
    sketch.output(x, ("batch", 4, None, None))
    return sketch.model()


def plain(sketch: Sketch, x: str, _: Array) -> str:
    return sketch.node("Sigmoid", x)


def normalized(sketch: Sketch, x: str, _: Array) -> str:
    parts = [sketch.weight(f"norm.{at}", np.abs(sketch.normal(8)) + 0.1) for at in range(4)]
    return sketch.node("HardSwish", sketch.node("BatchNormalization", x, *parts))


def shifted(sketch: Sketch, x: str, _: Array) -> str:
    return sketch.node("Softplus", sketch.node("Add", x, sketch.random("shift", 8, 1, 1)))


def gated(sketch: Sketch, x: str, _: Array) -> str:
    return sketch.node("Mul", x, sketch.node("Sigmoid", x))


def pooled(sketch: Sketch, x: str, _: Array) -> str:
    return sketch.node("MaxPool", sketch.node("LeakyRelu", x), kernel_shape=[2, 2], pads=[1, 1, 1, 1])


def depthwise(sketch: Sketch, x: str, _: Array) -> str:
    return sketch.node(
        "Conv", sketch.node("Tanh", x), sketch.random("depth", 8, 1, 1, 1), sketch.random("d", 8), group=8
    )


@pytest.mark.parametrize("middle", [plain, normalized, shifted, gated, pooled, depthwise])
@pytest.mark.parametrize(
    "reader", [{}, {"bias": False}, {"dense": True}, {"dense": True, "bias": False}, {"flat": True}]
)
def test_constant_channels_go_first_and_nothing_is_lost(middle: Dead, reader: dict[str, bool]) -> None:
    proto = dead(middle, **reader)
    model, findings = pruned(proto, 0.1, round_to=1)
    assert widths(model)["first"] == 4
    assert any("4 of the units are constant" in note for note in findings.notes)
    for count in (1, 3):
        assert close(ran(model, images(count)), ran(proto, images(count)), 1e-6)


def test_constant_channels_beside_others_that_go() -> None:
    """The layer that takes the constants over loses rows at the same time."""
    sketch = Sketch()
    weight, x = sketch.normal(8, 3, 1, 1), sketch.input("image", ("batch", 3, 5, 5))
    weight[1::2] = 0
    x = sketch.node("Sigmoid", sketch.node("Conv", x, sketch.weight("first", weight)))
    x = sketch.node("Relu", sketch.node("Conv", x, sketch.random("second", 6, 8, 1, 1)))
    sketch.output(sketch.node("Conv", x, sketch.random("last", 2, 6, 1, 1)), ("batch", 2, 5, 5))
    proto = sketch.model()
    model, _ = pruned(proto, 0.5, round_to=1)
    assert widths(model) == {"first": 4, "second": 3}
    before = load(proto)
    channels = channel_ids(before)
    group = next(each for each in groups(channels) if each.name == "second")
    scores = magnitudes(channels, group.units, 2)
    before.apply(masking(channels, sorted(group.units, key=lambda unit: float(scores[unit]))[:3]))
    assert close(ran(model, images(2)), ran(before, images(2)), 1e-6)


def test_constants_at_a_border_of_zeros() -> None:
    """What is constant inside is not where a convolution reads zeros beyond the border: a map of numbers, if small."""
    proto = dead(plain, pads=1)
    model, findings = pruned(proto, 0.1, round_to=1)
    assert widths(model)["first"] == 4
    assert [node.op_type for node in model.nodes()][-1] == "Add"
    assert close(ran(model, images(2)), ran(proto, images(2)), 1e-6)
    del proto.graph.input[0].type.tensor_type.shape.dim[2:]
    for name in ("height", "width"):
        proto.graph.input[0].type.tensor_type.shape.dim.add().dim_param = name
    _, findings = pruned(proto, 0.5, round_to=1)
    (note,) = (note for note in findings.notes if "constant" in note)
    assert note.startswith("4 units of first are constant, but rank like all others: what Conv_node_1 makes of them")
    proto = dead(lambda sketch, x, _: sketch.node("Relu", x), pads=1, scale=0.0)
    model, findings = pruned(proto, 0.1, round_to=1)
    assert widths(model)["first"] == 4
    assert close(ran(model, images(2)), ran(proto, images(2)), 1e-6)


def test_the_last_of_an_axis_stays() -> None:
    """All that one of two readers sums up is 0."""
    sketch = Sketch()
    weight, x = sketch.normal(8, 3, 1, 1), sketch.input("image", ("batch", 3, 5, 5))
    weight[:4] = 0
    x = sketch.node("Relu", sketch.node("Conv", x, sketch.weight("first", weight)))
    sketch.node("Split", x, axis=1, num_outputs=2, outputs=["dead", "live"])
    both = [sketch.node("ReduceSum", each, sketch.weight("axis", np.array([1]))) for each in ("dead", "live")]
    sketch.output(sketch.node("Add", *both), ("batch", 1, 5, 5))
    proto = sketch.model()
    model, findings = pruned(proto, 0.1, round_to=1)
    assert [change.what for change in findings.changes] == ["conv: 8 -> 5, 3 parameters each"]
    assert {value.name: tuple(value.shape) for value in model.weights() if value.shape}["first"] == (5, 3, 1, 1)
    assert close(ran(model, images(2)), ran(proto, images(2)), 1e-6)


ACTIVATIONS = ("Relu", "Sigmoid", "Softplus", "HardSwish", "Tanh", "Identity")


@st.composite
def layers(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A small network of convolutions: for each its width, what is behind it, which of its rows are zero."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.integers(2, 9))
        found.append({
            "width": width, "kernel": draw(st.integers(1, 3)), "pads": draw(st.integers(0, 1)),
            "act": draw(st.sampled_from(ACTIVATIONS)), "norm": draw(st.booleans()), "bias": draw(st.booleans()),
            "then": draw(st.sampled_from(["", "depthwise", "pool", "resize", "gate", "twice", "add", "shuffle"])),
            "dead": draw(st.sets(st.integers(0, width - 1), min_size=1, max_size=width)),
        })  # fmt: skip
    return found


def drawn(made: Sequence[dict[str, Any]], size: int | None) -> onnx.ModelProto:
    """The network; the size of its images may be open."""
    sketch = Sketch()
    x, before = sketch.input("image", ("batch", 3, size or "side", size or "side")), 3
    for number, layer in enumerate(made):
        x, before = _behind(sketch, _dead_rows(sketch, x, before, layer, f"conv{number}"), layer, x, before)
    x = sketch.node("Conv", x, sketch.random("last", 3, before, 3, 3), pads=[1, 1, 1, 1])
    sketch.output(x, ("batch", 3, None, None))
    return sketch.model()


def _dead_rows(sketch: Sketch, x: str, before: int, layer: dict[str, Any], name: str) -> str:
    width, kernel = layer["width"], layer["kernel"]
    weight = sketch.normal(width, before, kernel, kernel)
    weight[list(layer["dead"])] = 0
    held = [sketch.random(f"{name}.bias", width)] if layer["bias"] else []
    x = sketch.node("Conv", x, sketch.weight(name, weight), *held, pads=[layer["pads"] + kernel // 2] * 4)
    if layer["norm"]:
        parts = [sketch.weight(f"{name}.{at}", np.abs(sketch.normal(width)) + 0.1) for at in range(4)]
        x = sketch.node("BatchNormalization", x, *parts)
    return sketch.node(layer["act"], x)


def _behind(sketch: Sketch, x: str, layer: dict[str, Any], source: str, before: int) -> tuple[str, int]:
    width, then = layer["width"], layer["then"]
    if then == "depthwise":
        x = sketch.node("Conv", x, sketch.random("depth", width, 1, 3, 3), group=width, pads=[1, 1, 1, 1])
    elif then == "pool":
        x = sketch.node("AveragePool", x, kernel_shape=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1)
    elif then == "resize":
        x = sketch.node("Resize", x, "", sketch.weight("by", np.array([1, 1, 2, 2], np.float32)), mode="linear")
    elif then == "gate":
        x = sketch.node("Mul", x, sketch.node("Sigmoid", sketch.node("GlobalAveragePool", x)))
    elif then == "twice":
        return sketch.node("Concat", x, sketch.node("Neg", x), axis=1), 2 * width
    elif then == "add":
        x = sketch.node("Add", x, _dead_rows(sketch, source, before, layer, "beside"))
    elif then == "shuffle" and width % 2 == 0:
        x = sketch.node("DepthToSpace", sketch.node("Concat", x, x, axis=1), blocksize=2)
        return x, width // 2
    return x, width


@settings(deadline=None, max_examples=25)
@given(made=layers(), size=st.sampled_from([None, 4, 6]))
def test_nothing_is_lost_with_what_is_constant(made: list[dict[str, Any]], size: int | None) -> None:
    proto = drawn(made, size)
    options = {"round_to": 1, "kinds": ["conv", "residual"]}
    model, findings = pruned(proto, 1e-6, **options)
    rng = np.random.default_rng(0)
    for count in (1, 3):
        feeds = {"image": rng.normal(size=(count, 3, size or count + 3, size or count + 3)).astype(np.float32)}
        assert close(ran(model, feeds), ran(proto, feeds), 1e-5)
    constant = [note for note in findings.notes if "constant" in note]
    assert constant or not any(layer["then"] == "" for layer in made)


def test_zeros_behind_a_gate() -> None:
    """What the gate is does not matter: a product with 0."""

    def gate(sketch: Sketch, x: str, _: Array) -> str:
        x = sketch.node("Relu", x)
        squeezed = sketch.node("Conv", sketch.node("GlobalAveragePool", x), sketch.random("squeeze", 4, 8, 1, 1))
        opened = sketch.node("Conv", sketch.node("Relu", squeezed), sketch.random("open", 8, 4, 1, 1))
        return sketch.node("Mul", x, sketch.node("Sigmoid", opened))

    proto = dead(gate, scale=0.0)
    model, _ = pruned(proto, 0.1, round_to=1, include=["first"])
    assert widths(model)["first"] == 4
    assert close(ran(model, images(2)), ran(proto, images(2)), 1e-6)


def test_sums_are_constant_where_both_sides_are() -> None:
    sketch = Sketch()
    x, sides = sketch.input("image", ("batch", 3, 5, 5)), []
    for name, step in (("first", 2), ("second", 3)):
        weight = sketch.normal(12, 3, 1, 1)
        weight[::step] = 0
        sides.append(sketch.node("Conv", x, sketch.weight(name, weight), sketch.random(f"{name}.bias", 12)))
    x = sketch.node("Sigmoid", sketch.node("Add", *sides))
    sketch.output(sketch.node("Conv", x, sketch.random("last", 4, 12, 1, 1)), ("batch", 4, 5, 5))
    proto = sketch.model()
    model, findings = pruned(proto, 0.1, round_to=1, kinds=["residual"])
    assert any(note.startswith("2 of the units are constant") for note in findings.notes)
    assert widths(model)["first"] == 10
    assert close(ran(model, images(2)), ran(proto, images(2)), 1e-6)


def test_a_normalization_that_scales_with_zero() -> None:
    sketch = Sketch()
    x = sketch.node("Conv", sketch.input("image", ("batch", 3, 5, 5)), sketch.random("first", 6, 3, 1, 1))
    gamma = np.array([1, 0, 2, 0, 0, 1], np.float32)
    parts = [sketch.weight(f"norm.{at}", np.abs(sketch.normal(6)) + 0.1) for at in range(3)]
    x = sketch.node("Relu", sketch.node("BatchNormalization", x, sketch.weight("gamma", gamma), *parts))
    sketch.output(sketch.node("Conv", x, sketch.random("last", 4, 6, 1, 1)), ("batch", 4, 5, 5))
    proto = sketch.model()
    model, _ = pruned(proto, 0.1, round_to=1)
    assert widths(model)["first"] == 3
    assert close(ran(model, images(2)), ran(proto, images(2)), 1e-6)


def test_all_constant() -> None:
    """One unit of a group stays in any case."""
    sketch = Sketch()
    x = sketch.node(
        "Conv", sketch.input("image", ("batch", 3, 5, 5)), sketch.weight("first", np.zeros((6, 3, 1, 1), np.float32))
    )
    x = sketch.node("Sigmoid", x)
    sketch.output(sketch.node("Conv", x, sketch.random("last", 4, 6, 1, 1)), ("batch", 4, 5, 5))
    proto = sketch.model()
    model, _ = pruned(proto, 0.1, round_to=1)
    assert {value.name: tuple(value.shape) for value in model.weights() if value.shape}["first"] == (1, 3, 1, 1)
    assert close(ran(model, images(2)), ran(proto, images(2)), 1e-6)


def test_groups_are_named_once() -> None:
    found: list[ChannelGroup] = groups(channel_ids(load(network())))
    assert len({group.name for group in found}) == len(found)
