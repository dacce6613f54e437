"""Which parameters cannot be removed, and whom that is told of."""

import time
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.analysis.axes import Channels, Frozen, channel_ids, frozen, groups, lost_to
from onnxopt.analysis.axes.ids import WINDOW
from onnxopt.analysis.axes.losses import parameters, removable
from onnxopt.analysis.axes.rules import RULES
from onnxopt.model import load
from onnxopt.models import path
from onnxopt.models.builders.sketch import Sketch


@pytest.fixture(autouse=True)
def _unruled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that keeps shapes, and that nothing is known of otherwise."""
    monkeypatch.delitem(RULES, ("", "Tanh"))


def analysed(sketch: Sketch) -> Channels:
    return channel_ids(load(sketch.model()))


def told(found: list[Frozen]) -> dict[str, int]:
    """By the reason alone."""
    total: Counter[str] = Counter()
    for each in found:
        total[each.freeze.why] += each.parameters
    return dict(total)


def test_windows_are_no_reason() -> None:
    sketch = Sketch()
    x = sketch.input("x", ["n", 3, 8, 8])
    x = sketch.node("Conv", x, sketch.random("first", 6, 3, 3, 3), sketch.random("bias", 6))
    x = sketch.node("Tanh", x, outputs=["held"])
    sketch.output(sketch.node("Conv", x, sketch.random("second", 5, 6, 3, 3), outputs=["y"]), ["n", 5, 4, 4])
    channels = analysed(sketch)
    found = told(frozen(channels))
    assert WINDOW not in found
    first, second = 6 * 3 * 9, 5 * 6 * 9
    assert found == {
        "no rule for Tanh": first + 6 + second,
        "input x of the model": first,
        "output y of the model": second,
    }
    assert lost_to(channels, "needs-rule") == first + 6 + second
    assert lost_to(channels, "semantics") == first + second
    assert lost_to(channels, "user") == 0
    assert removable(channels, []) == 0


def test_what_has_no_channels_at_all_is_told_too() -> None:
    sketch = Sketch()
    x = sketch.node("Conv", sketch.input("x", ["n", 1, 8, 8]), sketch.random("blur", 1, 1, 3, 3))
    sketch.output(sketch.node("Mul", x, sketch.random("factor", 1)), ["n", 1, 6, 6])
    found = told(frozen(analysed(sketch)))
    assert found.pop(WINDOW) == 9
    assert list(found.values()) == [9 + 1], "the only one"


def test_one_axis_that_can_go_is_enough() -> None:
    sketch = Sketch()
    x = sketch.node("MatMul", sketch.input("x", ["n", 4]), sketch.random("first", 4, 8))
    sketch.output(sketch.node("MatMul", sketch.node("Relu", x), sketch.random("second", 8, 3)), ["n", 3])
    channels = analysed(sketch)
    assert frozen(channels) == []
    (group,) = groups(channels)
    assert parameters(channels) == removable(channels, group.units) == 4 * 8 + 8 * 3
    assert removable(channels, group.units[:3]) == 3 * (4 + 3)


def test_a_missing_rule_counts_where_nothing_else_holds() -> None:
    """The same channels are held by an operator without a rule and by an output."""
    sketch = Sketch()
    x = sketch.input("x", ["n", 4])
    a, b = (sketch.node("MatMul", x, sketch.random(f"w{at}", 4, 8), outputs=[f"y{at}"]) for at in range(2))
    both = sketch.node("Add", a, b)
    sketch.output(b, ["n", 8])
    sketch.output(sketch.node("MatMul", both, sketch.random("w2", 8, 3), outputs=["y2"]), ["n", 3])
    sketch.output(sketch.node("Tanh", a), ["n", 8])
    channels = analysed(sketch)
    assert lost_to(channels, "needs-rule") == 0
    reasons = {"input x of the model": 64, "output y1 of the model": 88, "output y2 of the model": 24}
    assert told(frozen(channels)) == reasons


def test_constants_that_no_rule_sees() -> None:
    sketch = Sketch()
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "inner"], ["sum"])], "body", [],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(8, np.float32), "inner")],
    )  # fmt: skip
    sketch.random("unread", 2, 5)
    x = sketch.node("MatMul", sketch.input("x", ["n", 4]), sketch.random("w", 4, 8), outputs=["h"])
    condition = sketch.weight("c", np.array(True))
    x = sketch.node("If", condition, then_branch=body, else_branch=body)
    sketch.require(ir_version=10)
    sketch.output(sketch.node("Add", x, sketch.random("default", 8)), ["n", 8])
    proto = sketch.model()
    proto.graph.input.append(helper.make_tensor_value_info("default", TensorProto.FLOAT, [8]))
    channels = channel_ids(load(proto))
    found = told(frozen(channels))
    assert parameters(channels) == 2 * 5 + 4 * 8 + 2 * 8 + 8
    assert found["no node reads it"] == 10
    assert found["inside control flow or a function"] == 2 * 8
    assert found["input default of the model"] == 8
    assert found["control flow: If"] == 4 * 8


@pytest.mark.parametrize("known", [False, True])
def test_packed_weights_count_what_they_unpack_to(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.delitem(RULES, ("com.microsoft", "MatMulNBits"))
    sketch = Sketch()
    sketch.domains["com.microsoft"] = 1
    packed = sketch.weight("packed", np.zeros((8, 2, 16), np.uint8))
    x = sketch.node(
        "MatMulNBits", sketch.input("x", ["n", 64]), packed, sketch.random("scales", 8, 2),
        domain="com.microsoft", K=64, N=8, bits=4, block_size=32,
    )  # fmt: skip
    sketch.output(sketch.node("MatMul", x, sketch.random("last", 8, 2)), ["n", 2])
    channels = analysed(sketch)
    assert parameters(channels) == 64 * 8 + 8 * 2
    if known:
        (group,) = groups(channels)
        assert removable(channels, group.units[:3]) == 3 * (64 + 2)
    else:
        assert lost_to(channels, "needs-rule") == 64 * 8 + 8 * 2


def test_equal_vectors_count_once() -> None:
    sketch = Sketch()
    x, ones = sketch.input("x", ["n", 4]), sketch.weight("ones", np.ones(4, np.float32))
    for _ in range(3):
        x = sketch.node("Mul", x, ones)
    sketch.output(x, ["n", 4])
    channels = analysed(sketch)
    assert len(channels.weights) == 3
    assert parameters(channels) == 4
    assert [each.parameters for each in frozen(channels)] == [4]


@pytest.mark.parametrize("name", ["byte-gpt", "digits-cnn", "digits-transformer"])
def test_what_goes_and_what_stays_is_everything(name: str) -> None:
    channels = channel_ids(load(path(name)))
    units = [unit for unit in range(channels.classes.count) if unit not in channels.classes.frozen]
    stays = parameters(channels) - removable(channels, units)
    losses = [each.parameters for each in frozen(channels)]
    assert max(losses, default=0) <= stays <= sum(losses)
    assert losses == sorted(losses, reverse=True)
    assert lost_to(channels, "needs-rule") <= stays


@pytest.mark.parametrize("seed", range(20))
def test_counts_entry_by_entry(seed: int) -> None:
    """Against counting each entry of each weight."""
    rng = np.random.default_rng(seed)
    sketch = Sketch()
    x = sketch.input("x", ["n", 4])
    for at in range(5):
        x = sketch.node("MatMul", x, sketch.random(f"w{at}", 4, 4))
        kept, held = (
            sketch.node(
                "Slice",
                x,
                *(sketch.weight(f"{n}{p}{at}", np.array([v])) for n, v in zip("sea", (p, p + 2, 1), strict=True)),
            )
            for p in (0, 2)
        )
        if rng.random() < 0.5:
            held = sketch.node("Tanh", held)
        x = sketch.node("Concat", kept, held, axis=1)
    sketch.output(x, ["n", 4])
    channels = analysed(sketch)
    expected: dict[str, int] = {}
    needed = 0
    for weight in channels.weights:
        why = [[channels.classes.frozen.get(label) for label in channels.classes.labels[ids]] for ids in weight.ids]
        for row in why[0]:
            for column in why[1]:
                if row and column:
                    reasons = {min(each, key=lambda f: f.reason == "needs-rule") for each in (row, column)}
                    needed += any(freeze.reason == "needs-rule" for freeze in reasons)
                    for freeze in reasons:
                        expected[f"{freeze}"] = expected.get(f"{freeze}", 0) + 1
    assert {f"{each.freeze}": each.parameters for each in frozen(channels)} == expected
    assert lost_to(channels, "needs-rule") == needed


def test_speed() -> None:
    """A chain of 20,000 nodes, each of which is a reason."""
    sketch = Sketch()
    x = sketch.input("x", ["n", 16])
    weight = numpy_helper.from_array(np.zeros((16, 16), np.float32))
    for at in range(10_000):
        copy = onnx.TensorProto()
        copy.CopyFrom(weight)
        x = sketch.node("Tanh", sketch.node("MatMul", x, sketch.weight(f"w{at}", copy)))
    sketch.output(x, ["n", 16])
    channels = analysed(sketch)
    started = time.process_time()
    found = frozen(channels)
    assert time.process_time() - started < 1
    assert len(found) == 10_001
