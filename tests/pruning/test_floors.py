"""The least that pruning reaches, and what is said to hold the rest."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt import models
from onnxopt.analysis.axes import channel_ids, groups, removal
from onnxopt.analysis.axes.losses import frozen
from onnxopt.analysis.cost import Cost, cost
from onnxopt.analysis.shapes import infer
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.pruning.costs import full
from onnxopt.pruning.floors import floor

SHIPPED = Path(models.__path__[0])
OUTPUT = "output y of the model (semantics)"
WORDS = "looked up by computed indices (semantics)"


def cost_of(model: Model) -> Cost:
    return cost(model, infer(model, thorough=True))


def drawn() -> onnx.ModelProto:
    """Words become vectors of 6, then 8 hidden ones of two layers; outputs of 5, and 3 of what no rule knows."""
    sketch = Sketch()
    x = sketch.node("Gather", sketch.random("table", 20, 6), sketch.input("words", (1, 4), onnx.TensorProto.INT64))
    hidden = sketch.node("Relu", sketch.node("MatMul", x, sketch.random("up", 6, 8)))
    sketch.output(sketch.node("MatMul", hidden, sketch.random("down", 8, 5), outputs=["y"]), (1, 4, 5))
    sketch.output(sketch.node("MatMul", x, sketch.random("side", 6, 3), outputs=["z"]), (1, 4, 3))
    return sketch.model()


def test_it_is_what_a_model_costs_that_was_cut_so_far() -> None:
    model = load(SHIPPED / "digits_cnn.onnx")
    channels, before = channel_ids(model), cost_of(model)
    found = groups(channels)
    told = [floor(channels, found, before, of, [2] * len(found)) for of in ("macs", "params")]
    model.apply(removal(channels, [unit for group in found for unit in group.units[2:]]))
    after = cost_of(model)
    assert [each.cost for each in told] == [after.macs, after.params]
    assert [each.full for each in told] == [before.macs, before.params]


def test_everything_is_told_that_holds_something() -> None:
    """Embedding, the two layers and the side: by hand, at one unit of each of the two groups."""
    model = load(drawn())
    channels, before = channel_ids(model), cost_of(model)
    found = groups(channels)
    assert [len(group.units) for group in found] == [6, 8]
    least = floor(channels, found, before, "macs", [1, 1])
    assert (least.cost, least.full) == (4 * (1 + 5 + 3), 4 * (48 + 40 + 18))
    assert dict(least.held) == {"groups at their narrowest": 36}
    alone = floor(channels, found[:1], before, "macs", [1])
    assert alone.cost == 4 * (8 + 40 + 3)
    assert dict(alone.held) == {
        "groups that are left alone": 4 * 40, OUTPUT: 4 * 40, "groups at their narrowest": 4 * 11
    }  # fmt: skip
    assert str(alone) == (
        "the least that can be kept is 48 % of MACs (204): 38 % groups that are left alone, "
        f"38 % {OUTPUT}, 10 % groups at their narrowest"
    )
    params = floor(channels, [], before, "params", [])
    assert params.cost == params.full == before.params == 120 + 48 + 40 + 18
    assert dict(params.held) == {
        "groups that are left alone": 226, WORDS: 120, OUTPUT: 40, "output z of the model (semantics)": 18
    }  # fmt: skip
    whole = floor(channels, found, before, "bytes", [1, 1])
    assert dict(whole.held) == {
        "nodes and names": before.file_bytes - before.weight_bytes, "groups at their narrowest": 4 * (20 + 1 + 5 + 3)
    }  # fmt: skip
    assert whole.full == full(before, "bytes") == before.file_bytes


def test_parameters_that_nothing_can_take_are_told_as_losses_are() -> None:
    """With all groups asked for: each reason holds as much as `inspect --groups` says."""
    model = load(SHIPPED / "byte_gpt.onnx")
    channels, before = channel_ids(model), cost(model, infer(model, {"tokens": (1, 16)}, thorough=True))
    found = groups(channels)
    least = floor(channels, found, before, "params", [1] * len(found))
    lost: dict[str, float] = {}
    for each in frozen(channels):
        told = f"{each.freeze.why} ({each.freeze.reason})"
        lost[told] = lost.get(told, 0) + each.parameters
    told_alike = {what: much for what, much in least.held if what in lost}
    assert len(told_alike) > 1
    assert told_alike == pytest.approx({what: lost[what] for what in told_alike}, rel=1e-9)


def test_a_window_is_no_reason_beside_others() -> None:
    sketch = Sketch()
    x = sketch.input("x", (1, 3, 8, 8))
    x = sketch.node("Conv", x, sketch.random("only.weight", 4, 3, 3, 3), outputs=["y"])
    sketch.output(x, (1, 4, 6, 6))
    model = load(sketch.model())
    channels, before = channel_ids(model), cost_of(model)
    for of in ("macs", "params"):
        least = floor(channels, [], before, of, [])
        assert dict(least.held) == dict.fromkeys((OUTPUT, "input x of the model (semantics)"), full(before, of))
        assert str(least).startswith("the least that can be kept is 100 % of ")


def test_a_rule_that_is_missing_is_told_only_where_nothing_else_holds() -> None:
    sketch = Sketch()
    sketch.domains["com.example"] = 1
    x = sketch.input("x", (1, 3))
    one, other = (sketch.node("MatMul", x, sketch.random("weight", 3, 4)) for _ in range(2))
    sketch.output(sketch.node("ReduceSum", sketch.node("Add", one, other), keepdims=0), ())
    sketch.output(sketch.node("Softmax", one, axis=-1), (1, 4))
    sketch.output(sketch.node("Unheard", other, domain="com.example"), (1, 4))
    model = load(sketch.model())
    channels = channel_ids(model)
    assert {"semantics", "needs-rule"} in [{each.reason for each in why} for why in channels.classes.frozen.values()]
    told = [what for what, _ in floor(channels, [], cost_of(model), "params", []).held]
    assert len(told) == 2
    assert all(what.endswith("(semantics)") for what in told)


def test_small_shares_are_told_with_two_digits() -> None:
    model = load(SHIPPED / "byte_gpt.onnx")
    channels, before = channel_ids(model), cost(model, infer(model, {"tokens": (1, 16)}, thorough=True))
    found = groups(channels)
    told = str(floor(channels, found, before, "params", np.ones(len(found), np.int64).tolist()))
    assert told.startswith("the least that can be kept is 0.47 % of parameters (34,331): 0.45 % ")
