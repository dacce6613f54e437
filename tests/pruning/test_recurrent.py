"""Recurrent layers as linear ones: what they compute with other weights, and how they make up for units that go."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from onnxopt.analysis.axes import channel_ids, groups
from onnxopt.analysis.linear.recurrent import recurrents
from onnxopt.context import RunContext
from onnxopt.data import open_data
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.passing import Findings, make
from onnxopt.pruning import fitting
from onnxopt.pruning.curves import without
from onnxopt.pruning.inputs import inputs_of
from onnxopt.pruning.ranking import consumers, is_covered
from onnxopt.pruning.readers import given, readers
from onnxopt.serialization import to_proto

Array = npt.NDArray[Any]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
IN, HIDDEN, STEPS, OUT = 5, 6, 7, 3


def twins(stored: Array, gates: int) -> Array:
    """Weights `[directions, gates * HIDDEN, ...]` with which the second unit gives what the first one gives."""
    apart = stored.reshape(len(stored), gates, HIDDEN, *stored.shape[2:]).copy()
    apart[:, :, 1] = apart[:, :, 0]
    return apart.reshape(stored.shape)


def network(
    op: str = "LSTM", layers: int = 1, *, bias: bool = True, both: bool = False, last: bool = False, **options: Any
) -> onnx.ModelProto:
    """Recurrent layers upon one another, in each of which two units are one, and a MatMul.

    Args:
        last: the MatMul reads the last states, and those of all steps are no output.
    """
    sketch, directions, gates = Sketch(), 1 + both, GATES[op]
    x, size = sketch.node("Transpose", sketch.input("x", ("batch", STEPS, IN)), perm=[1, 0, 2]), IN
    for at in range(layers):
        wide = sketch.normal(directions, gates * HIDDEN, size), sketch.normal(directions, gates * HIDDEN, HIDDEN)
        weights = [sketch.weight(f"{n}{at}", twins(w * 0.5, gates)) for n, w in zip("wr", wide, strict=True)]
        if bias:
            weights.append(sketch.weight(f"b{at}", twins(sketch.normal(directions, 2 * gates * HIDDEN), 2 * gates)))
        outputs = ["", f"h{at}"] if last else [f"y{at}"]
        options |= {"direction": "bidirectional"} if both else {}
        sketch.node(op, x, *weights, outputs=outputs, hidden_size=HIDDEN, **options)
        order = [1, 0, 2] if last else [0, 2, 1, 3]
        turned = sketch.node("Transpose", outputs[-1], perm=order)
        x = sketch.node("Reshape", turned, sketch.weight(f"shape{at}", np.array([0, -1] if last else [0, 0, -1])))
        size = directions * HIDDEN
    sketch.output(
        sketch.node("MatMul", x, sketch.random("head", size, OUT)), ("batch", OUT) if last else (STEPS, "batch", OUT)
    )
    return sketch.model()


def images(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, STEPS, IN)).astype(np.float32)


def ran(model: Model | onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    proto = to_proto(model.ir) if isinstance(model, Model) else model
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    found: Array = session.run(None, feeds)[0]
    return found


def pruned(proto: onnx.ModelProto, **options: Any) -> tuple[Model, Findings]:
    """The model without one unit of each group, chosen and repaired by data."""
    model = load(proto)
    data = open_data([{"x": images(30, seed)} for seed in range(10)], model.signature)
    context = RunContext(model, calibration=data, sizes={"x": (30, STEPS, IN)})
    return model, make("prune-channels", {"ratio": 1 / HIDDEN, **options}).run(model, context)


def distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


KINDS = [("LSTM", {}), ("GRU", {"linear_before_reset": 1}), ("GRU", {}), ("RNN", {})]


@pytest.mark.parametrize(("op", "options"), KINDS)
@pytest.mark.parametrize(("layers", "bias", "both"), [(1, True, False), (2, False, False), (2, True, True)])
def test_what_others_tell_is_made_up_for(
    op: str, options: dict[str, int], layers: int, bias: bool, both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_RIDGES", (1e-9, 1e-9))
    proto = network(op, layers, bias=bias, both=both, **options)
    model, findings = pruned(proto)
    assert findings.measures["recurrent_units_after"] == layers * (HIDDEN - 1)
    assert findings.measures["layers_refitted"] == 2 * layers
    feeds = {"x": images(20, 99)}
    assert distance(ran(model, feeds), ran(proto, feeds)) < 1e-4
    onnx.checker.check_model(to_proto(model.ir), full_check=True)


def test_without_repair_it_is_lost() -> None:
    proto = network()
    feeds = {"x": images(20, 99)}
    assert distance(ran(pruned(proto, repair="none")[0], feeds), ran(proto, feeds)) > 0.05


def test_losses_are_measured_after_the_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_RIDGES", (1e-9, 1e-9))
    proto = network(layers=2, both=True)
    model = load(proto)
    data = open_data([{"x": images(30, seed)} for seed in range(10)], model.signature)
    context, channels = RunContext(model, calibration=data, sizes={"x": (30, STEPS, IN)}), channel_ids(model)
    reading = readers(channels, [*context.linears, *recurrents(model)])
    found, feeds = context.collect([inputs_of(reader) for reader in reading]), {"x": images(20, 99)}
    for group in groups(channels):
        variants = [without(channels, group.units[1:2], reading, each) for each in (found, None)]
        lost = [distance(ran(variant, feeds), ran(proto, feeds)) for variant in variants]
        assert lost[0] < 1e-4
        assert lost[1] > 0.05


def one_node(op: str, weights: dict[str, Array], **options: Any) -> onnx.ModelProto:
    sketch = Sketch()
    x = sketch.input("x", (STEPS, "batch", IN))
    names = [sketch.weight(name, array) for name, array in weights.items()]
    sketch.output(sketch.node(op, x, *names, hidden_size=HIDDEN, **options), None)
    return sketch.model()


def arrays(op: str, directions: int, bias: bool, seed: int) -> dict[str, Array]:
    rng, rows = np.random.default_rng(seed), GATES[op] * HIDDEN
    shapes = {"w": (directions, rows, IN), "r": (directions, rows, HIDDEN), "b": (directions, 2 * rows)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items() if bias or name != "b"}


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bias", [True, False])
def test_other_weights_are_those_that_the_node_computes_with(op: str, direction: str, bias: bool) -> None:
    directions, rows = 1 + (direction == "bidirectional"), GATES[op] * HIDDEN
    options = {"direction": direction} | ({"linear_before_reset": 1} if op == "GRU" else {})  # biases apart
    model = load(one_node(op, arrays(op, directions, bias, 0), **options))
    new = arrays(op, directions, True, 1)
    halves = new["b"].reshape(directions, 2, rows)
    for at, layer in enumerate(recurrents(model)):  # the second was found before B was made
        old = layer.bias_vector()
        assert (old is not None) == (bias or at == 1)
        matrix = new["wr"[at]].reshape(layer.shape)
        model.apply(layer.replaced(matrix, halves[:, at].flatten()))
        np.testing.assert_array_equal(layer.matrix(), matrix)
        found = layer.bias_vector()
        assert found is not None
        np.testing.assert_array_equal(found, halves[:, at].flatten())
    feeds = {"x": np.random.default_rng(2).normal(size=(STEPS, 4, IN)).astype(np.float32)}
    np.testing.assert_array_equal(ran(model, feeds), ran(one_node(op, new, **options), feeds))


def test_matrices_give_what_the_node_gives() -> None:
    """One step of an RNN by hand."""
    model = load(one_node("RNN", arrays("RNN", 2, True, 0), direction="bidirectional"))
    w, r = recurrents(model)
    x = np.random.default_rng(2).normal(size=(STEPS, 1, IN)).astype(np.float32)
    states = ran(model, {"x": x})[:, :, 0]
    biases = [layer.bias_vector() for layer in (w, r)]
    assert biases[0] is not None
    assert biases[1] is not None
    by_input = (x[1, 0] @ w.matrix()[0].T + biases[0]).reshape(2, HIDDEN)
    for direction, before in enumerate((0, 2)):
        own = r.matrix()[direction] @ states[before, direction] + biases[1].reshape(2, HIDDEN)[direction]
        np.testing.assert_allclose(states[1, direction], np.tanh(by_input[direction] + own), atol=1e-6)


def test_what_shares_a_bias_keeps_it() -> None:
    sketch, found = Sketch(), arrays("RNN", 1, True, 0)
    x = sketch.input("x", (STEPS, "batch", IN))
    shared = [sketch.weight(name, found[name]) for name in "wrb"]
    for number in range(2):
        sketch.output(sketch.node("RNN", x, *shared, hidden_size=HIDDEN, outputs=[f"y{number}"]), None)
    proto = sketch.model()
    model = load(proto)
    layer = recurrents(model)[2]
    assert layer.weight.is_shared
    model.apply(layer.replaced(layer.matrix() * 2, np.ones(HIDDEN, np.float32)))
    feeds = {"x": np.random.default_rng(2).normal(size=(STEPS, 4, IN)).astype(np.float32)}
    np.testing.assert_array_equal(ran(model, feeds), ran(proto, feeds))
    biases = [each.bias_vector() for each in recurrents(model)]
    assert [bias is not None and bias.tolist() == [1] * HIDDEN for bias in biases] == [False, False, True, False]


def test_sizes_that_do_not_fit() -> None:
    layer = recurrents(load(one_node("GRU", arrays("GRU", 1, True, 0))))[1]
    with pytest.raises(ModelError, match=r"takes a matrix \[1, 18, 6\] and a bias \[18\], not \[1, 18, 5\]"):
        layer.replaced(np.zeros((1, 18, 5), np.float32), np.zeros(18, np.float32))


def test_readers_and_rows_are_told_by_channel() -> None:
    model = load(network("LSTM", 2, both=True))
    channels = channel_ids(model)
    found = readers(channels, recurrents(model))
    first, second = (group.units for group in groups(channels) if group.kind == "recurrent")
    # what the input layer's W reads cannot go, but is told as well
    r0, w1, r1 = found[-3:]
    assert [reader.linear.weight.root.name for reader in (r0, w1, r1)] == ["r0", "w1", "r1"]
    assert r0.classes.tolist() == [list(first)] * 2
    assert w1.classes.tolist() == [list(first) * 2]
    assert r1.classes.tolist() == [list(second)] * 2
    assert [each.tolist() for each in w1.columns(0, first[:2])] == [[0, HIDDEN], [1, HIDDEN + 1]]
    for reader, units in ((r0, first), (w1, second), (r1, second)):
        rows = given(channels, reader.linear)
        assert rows is not None
        assert rows.tolist() == list(units) * 8


@pytest.mark.parametrize("proto", [network(last=True), network("GRU", layout=1)], ids=["last states", "batch first"])
def test_where_states_cannot_be_seen_their_matrix_is_left_out(proto: onnx.ModelProto) -> None:
    assert [layer.weight.root.name for layer in recurrents(load(proto))] == ["w0"]


def test_rankings_need_every_reader() -> None:
    model = load(network(layers=2))
    channels = channel_ids(model)
    found = [reader for reader in readers(channels, [*RunContext(model).linears, *recurrents(model)])]
    first = next(group for group in groups(channels) if set(group.units) & set(found[-3].classes[0].tolist()))
    uses = consumers(channels, [first])[first]
    assert is_covered(found, uses)
    for name in ("r0", "w1"):
        assert not is_covered([each for each in found if each.linear.weight.root.name != name], uses)


def test_units_seen_in_their_last_states_alone_fall_back() -> None:
    model, findings = pruned(network(last=True))
    assert findings.measures["recurrent_units_after"] == HIDDEN - 1
    assert findings.measures["layers_refitted"] == 1
    assert np.isfinite(ran(model, {"x": images(3)})).all()


def test_half_of_the_digits_model(zoo: Path) -> None:
    name = "digits_lstm_legacy"
    model = load(zoo / f"{name}.onnx")

    def accuracy() -> float:
        data = open_data(str(zoo / f"{name}.npz"), model.signature)
        right = [ran(model, dict(each.feeds)).argmax(-1) == next(iter(each.labels.values())) for each in data.batches()]
        return float(np.concatenate(right).mean())

    dense = accuracy()
    data = open_data(str(zoo / f"{name}.calib.npz"), model.signature)
    sizes = {key: value.shape for key, value in data.take(1).first().feeds.items()}
    make("prune-channels", {"keep_macs": 0.5}).run(model, RunContext(model, calibration=data, sizes=sizes))
    assert accuracy() > dense - 0.03
