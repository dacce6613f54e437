"""Grouped convolutions: what keeps them on ONNX Runtime's fast path, and that what is left is the rest."""

import re
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxopt.analysis.axes import groups, masking
from onnxopt.analysis.axes.scoring import magnitudes
from onnxopt.backends.target import Target
from onnxopt.context import RunContext
from onnxopt.data import open_data
from onnxopt.errors import RecipeError
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.passing import Findings, make
from onnxopt.pruning.rounding import channels_for
from onnxopt.serialization import to_proto


def network(groups_: int, inside: int, outside: int, side: int = 3) -> onnx.ModelProto:
    """first makes `groups_ * inside` channels, grouped `groups_ * outside` of them, last reads these."""
    sketch = Sketch()
    wide, made = groups_ * inside, groups_ * outside
    x = sketch.input("image", ("batch", 3, 5, 5))
    x = sketch.node("Relu", sketch.node("Conv", x, sketch.random("first", wide, 3, 1, 1), sketch.random("b", wide)))
    weight = sketch.random("grouped", made, inside, side, side)
    x = sketch.node("Relu", sketch.node("Conv", x, weight, group=groups_, pads=[side // 2] * 4))
    sketch.output(sketch.node("Conv", x, sketch.random("last", 2, made, 1, 1)), ("batch", 2, 5, 5))
    return sketch.model()


def pruned(proto: onnx.ModelProto, samples: int = 0, target: str = "cpu", **options: Any) -> tuple[Model, Findings]:
    model = load(proto)
    data = open_data({"image": images(samples)}, model.signature) if samples else None
    sizes = {"image": (1, 3, 5, 5)}
    context = RunContext(model, calibration=data, target=Target(name=target), sizes=sizes)  # type: ignore[arg-type]
    return model, make("prune-channels", options).run(model, context)


def images(count: int) -> Any:
    return np.random.default_rng(7).standard_normal((count, 3, 5, 5)).astype(np.float32)


def ran(model: Model) -> Any:
    proto = to_proto(model.ir)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"image": images(2)}
    )[0]


def shape(model: Model, name: str) -> tuple[int, ...]:
    return next(tuple(value.shape) for value in model.weights() if value.name == name and value.shape)  # type: ignore[misc]


def group_of(model: Model) -> int:
    return next(n.attributes.get_int("group", 1) for n in model.nodes() if "grouped" in {v.name for v in n.inputs if v})


@pytest.mark.parametrize(
    ("sizes", "options", "left"),
    [
        ((4, 12, 12), {"round_to": 8}, (24, 6, 4)),  # a unit is a place in each of 4 groups
        ((4, 12, 12), {"target": "portable"}, (24, 6, 4)),
        ((4, 12, 12), {}, (24, 12, 2)),  # groups go as wholes
        ((4, 16, 16), {}, (32, 16, 2)),
        ((4, 16, 8), {}, (16, 16, 2)),
        ((4, 32, 32), {}, (64, 16, 4)),
        ((4, 32, 16), {}, (64, 16, 4)),  # what is made is one block a group
        ((2, 24, 24), {}, (32, 16, 2)),  # blocks of 8
        ((2, 20, 20), {}, (24, 12, 2)),  # none: multiples of 8 over both
        ((16, 4, 4), {}, (32, 4, 8)),
    ],
)
def test_blocks_within_groups(sizes: tuple[int, int, int], options: dict[str, Any], left: tuple[int, int, int]) -> None:
    model, _ = pruned(network(*sizes), ratio=0.5, **options)
    found = shape(model, "grouped")
    assert (*found[:2], group_of(model)) == left
    ran(model)


def _lost(what: str) -> int:
    before, after = (int(each) for each in re.findall(r"(\d+) -> (\d+)", what)[0])
    return before - after


@pytest.mark.parametrize("sizes", [(4, 12, 12), (4, 16, 32), (3, 32, 32), (8, 8, 8)])
@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_what_is_left_is_the_rest(sizes: tuple[int, int, int], ratio: float) -> None:
    """Of groups that go as wholes, too, what is left computes what the model does that ignores the rest."""
    proto = network(*sizes)
    before = load(proto)
    channels = channels_for(before, "auto", "cpu", lambda group: True)
    gone = []
    model, findings = pruned(proto, ratio=ratio)
    lost = {each.node: _lost(each.what) for each in findings.changes}
    for group in groups(channels):
        scores = magnitudes(channels, group.units, 2)
        ranked = sorted(group.units, key=lambda unit, known=scores: float(known[unit]))  # type: ignore[misc]
        gone += ranked[: lost.get(group.name, 0)]
    before.apply(masking(channels, gone))
    assert findings.changed
    assert not findings.notes or "failed" not in " ".join(findings.notes)
    np.testing.assert_allclose(ran(model), ran(before), rtol=1e-4, atol=1e-5)


def test_whole_groups_are_measured_and_repaired() -> None:
    """With data: trials, losses and refits all know of the wholes; nothing is declined but what cannot get narrower."""
    proto = network(4, 16, 16)
    dense = ran(load(proto))
    found, findings = pruned(proto, 256, keep_macs=0.5)
    bare, _ = pruned(proto, 256, keep_macs=0.5, repair="none")
    assert shape(found, "grouped")[1] == 16
    assert group_of(found) < 4
    assert not any("refitted" in each.why for each in findings.declined)
    assert np.linalg.norm(ran(found) - dense) < np.linalg.norm(ran(bare) - dense)


def onto_stream() -> onnx.ModelProto:
    """A grouped convolution that reads a stream, whose width is not pruned: its groups cannot go as wholes."""
    sketch = Sketch()
    x = sketch.input("image", ("batch", 3, 5, 5))
    stream = sketch.node("Relu", sketch.node("Conv", x, sketch.random("stem", 32, 3, 1, 1)))
    inner = sketch.node("Relu", sketch.node("Conv", stream, sketch.random("inner", 32, 32, 1, 1)))
    stream = sketch.node("Add", stream, sketch.node("Conv", inner, sketch.random("outer", 32, 32, 1, 1)))
    x = sketch.node("Relu", sketch.node("Conv", stream, sketch.random("grouped", 128, 8, 1, 1), group=4))
    sketch.output(sketch.node("Conv", x, sketch.random("last", 2, 128, 1, 1)), ("batch", 2, 5, 5))
    return sketch.model()


def test_groups_that_cannot_go_lose_places() -> None:
    model, _ = pruned(onto_stream(), ratio=0.5)
    assert (shape(model, "grouped")[:2], group_of(model)) == ((64, 8), 4)
    model, findings = pruned(onto_stream(), 64, keep_macs=0.6)
    assert findings.changed
    ran(model)


def test_a_budget_that_whole_groups_cannot_meet() -> None:
    """One of four groups at the least: a quarter of the grouped convolution, and of all around it."""
    proto = network(4, 16, 16)
    model, findings = pruned(proto, 64, keep_macs=0.1)
    assert group_of(model) == 4
    assert any("with whole groups keep_macs 0.1 cannot be met" in note for note in findings.notes)
    whole, findings = pruned(proto, 64, keep_macs=0.4)
    assert group_of(whole) < 4
    assert not any("whole groups" in note for note in findings.notes)


def test_nothing_to_prune_is_no_met_budget() -> None:
    sketch = Sketch()
    x = sketch.input("image", ("batch", 3, 5, 5))
    x = sketch.node("Relu", sketch.node("Conv", x, sketch.random("only", 6, 3, 1, 1)))
    sketch.output(sketch.node("Conv", x, sketch.random("last", 2, 6, 1, 1)), ("batch", 2, 5, 5))
    for budget in ({"keep_macs": 0.5}, {"keep_params": 0.5}, {"keep_bytes": 0.5}, {"keep_latency": 0.5}):
        for samples in (0, 64):
            with pytest.raises(RecipeError, match="cannot be reached"):
                pruned(sketch.model(), samples, **budget)
    _, findings = pruned(sketch.model(), 64, ratio=0.5)
    assert not findings.changed
    assert not findings.chosen
    assert "nothing was removed: no group may get narrower" in findings.notes
