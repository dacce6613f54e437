"""Recurrent layers: units leave with their gates, states and columns of the recurrence, and nobody notices."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxopt.analysis.axes import Channels, channel_ids, groups, masking, removal
from onnxopt.analysis.axes import engine as engine_module
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.serialization import to_proto

Check = Callable[..., Channels]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OPEN = {"y": [None] * 4, "y_h": [None] * 3, "y_c": [None] * 3}
INPUTS, UNITS, STEPS, BATCH = 5, 6, 7, 2


def _weights(sketch: Sketch, op: str, name: str, inputs: int, directions: int) -> list[str]:
    rows = GATES[op] * UNITS
    return [
        sketch.random(f"{name}.w", directions, rows, inputs),
        sketch.random(f"{name}.r", directions, rows, UNITS),
        sketch.random(f"{name}.b", directions, 2 * rows),
    ]


def _flat(sketch: Sketch, y: str, directions: int) -> str:
    """[steps, directions, batch, units] as [steps, batch, directions * units]."""
    y = sketch.node("Transpose", y, perm=[0, 2, 1, 3])
    return sketch.node("Reshape", y, sketch.weight("flat", np.array([0, 0, directions * UNITS], np.int64)))


def _model(op: str, directions: int = 1, *, states: str = "", **attributes: Any) -> onnx.ModelProto:
    """A product, the layer with all that it takes, and products of all that it gives."""
    sketch = Sketch(opset=18)
    x = sketch.node("MatMul", sketch.input("x", (STEPS, "batch", 3)), sketch.random("before", 3, INPUTS))
    inputs = [x, *_weights(sketch, op, "layer", INPUTS, directions)]
    if states:
        inputs.append(sketch.weight("lengths", np.array([STEPS, 4], np.int32)))
        for name in ("h", "c") if op == "LSTM" else ("h",):
            value = sketch.normal(directions, BATCH, UNITS)
            if states == "zeros":
                value[:] = 0
            inputs.append(
                sketch.input(name, value.shape) if states == "fed" else sketch.weight(f"initial_{name}", value)
            )
        if op == "LSTM":
            inputs.append(sketch.random("peepholes", directions, 3 * UNITS))
    names = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    if directions == 2:
        attributes["direction"] = "bidirectional"
    sketch.node(op, *inputs, outputs=names, hidden_size=UNITS, **attributes)
    flat, after = _flat(sketch, "y", directions), sketch.random("after", directions * UNITS, 4)
    sketch.output(sketch.node("MatMul", flat, after), [None] * 3)
    for name in names[1:]:
        sketch.output(sketch.node("MatMul", name, sketch.random(f"after_{name}", UNITS, 4)), OPEN[name])
    return sketch.model()


def _feeds(**more: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shapes = {"x": (STEPS, BATCH, 3), **more}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("LSTM", {}),
        ("LSTM", {"input_forget": 1, "clip": 0.5}),
        ("GRU", {}),
        ("GRU", {"linear_before_reset": 1}),
        ("RNN", {}),
    ],
)
@pytest.mark.parametrize("states", ["", "constant", "zeros"])
def test_units(op: str, attributes: dict[str, Any], directions: int, states: str, assert_exact: Check) -> None:
    found = groups(assert_exact(_model(op, directions, states=states, **attributes), _feeds()))
    assert [(len(g.units), g.kind, g.exact) for g in found] == [
        (INPUTS, "neurons", True),
        (UNITS, "recurrent", True),
    ]


def test_activations_that_do_not_keep_zero(assert_exact: Check) -> None:
    """A unit without inputs need not be silent; what makes it one is that nobody reads it."""
    activations = ["Sigmoid", "HardSigmoid", "Softplus"]
    found = groups(assert_exact(_model("LSTM", 1, states="constant", activations=activations), _feeds()))
    assert [len(g.units) for g in found] == [INPUTS, UNITS]


def test_states_that_are_fed_keep_their_units(assert_exact: Check) -> None:
    states = (1, BATCH, UNITS)
    found = groups(assert_exact(_model("LSTM", states="fed"), _feeds(h=states, c=states)))
    assert [(len(g.units), g.kind) for g in found] == [(INPUTS, "neurons")]


def test_two_layers_that_share_zeros_as_states(assert_exact: Check, removing: SimpleNamespace) -> None:
    """One tensor of zeros for all layers binds nothing, and does not stay in the way."""
    sketch = Sketch()
    x = sketch.input("x", (STEPS, "batch", 3))
    batch = sketch.node("Shape", x, start=1, end=2)
    two, units = (sketch.weight(name, np.array([size])) for name, size in (("two", 2), ("units", UNITS)))
    zeros = sketch.node("ConstantOfShape", sketch.node("Concat", two, batch, units, axis=0))
    for layer, inputs in enumerate((3, UNITS)):
        start, end, axis = (sketch.weight(f"{n}{layer}", np.array([n])) for n in (layer, layer + 1, 0))
        state = sketch.node("Slice", zeros, start, end, axis)
        weights = _weights(sketch, "GRU", f"layer{layer}", inputs, 1)
        y = sketch.node("GRU", x, *weights, "", state, outputs=[f"y{layer}"], hidden_size=UNITS)
        x = sketch.node("Squeeze", y, sketch.weight(f"place{layer}", np.array([1])))
    sketch.output(sketch.node("MatMul", x, sketch.random("last", UNITS, 4)), [None] * 3)
    found = groups(assert_exact(sketch.model(), _feeds()))
    assert [(len(g.units), g.kind) for g in found] == [(UNITS, "recurrent")] * 2
    cut = removing.without(sketch.model(), [group.units[0] for group in found])
    assert [node.inputs[5:] for node in cut.nodes() if node.op_type == "GRU"] == [(None,)] * 2


def test_batch_first() -> None:
    """No runtime at hand computes it but the reference, which knows one direction."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", STEPS, INPUTS))
    inputs = [x, *_weights(sketch, "LSTM", "layer", INPUTS, 1), ""]
    inputs += [sketch.random(name, BATCH, 1, UNITS) for name in "hc"]
    sketch.node("LSTM", *inputs, outputs=["y", "y_h"], hidden_size=UNITS, layout=1)
    for name in ("y", "y_h"):
        sketch.output(sketch.node("MatMul", name, sketch.random(f"after_{name}", UNITS, 4)), OPEN[name])
    proto = sketch.model()
    (group,) = groups(channel_ids(load(proto)))
    assert (len(group.units), group.kind) == (UNITS, "recurrent")
    feeds = {"x": _feeds()["x"].transpose(1, 0, 2) @ np.ones((3, INPUTS), np.float32)}
    found = []
    for change in (removal, masking):
        model = load(proto)
        model.apply(change(channel_ids(model), group.units[1:4]))
        found.append(ReferenceEvaluator(to_proto(model.ir)).run(None, feeds))
    for cut, ignored in zip(*found, strict=True):
        np.testing.assert_allclose(cut, ignored, rtol=1e-4, atol=1e-5)


def test_a_unit_that_others_read_is_noticed(removing: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without zeros in the recurrence the unit lives on in the others: the oracle depends on them."""
    proto = _model("LSTM")
    units = groups(channel_ids(load(proto)))[1].units[:3]
    original = engine_module.Consumption
    monkeypatch.setattr(
        "onnxopt.analysis.axes.rules.Consumption",
        lambda node, index, place, axis, zero, inside: original(node, index, place, axis, zero, False),
    )
    cut, ignored = (
        removing.outputs(change(proto, units), _feeds())[0] for change in (removing.without, removing.ignoring)
    )
    assert not np.allclose(cut, ignored, atol=1e-3)
