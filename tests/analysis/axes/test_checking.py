"""The oracle as a feature: right rules pass it, wrong ones are found and named."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from onnxopt.analysis.axes import channel_ids
from onnxopt.analysis.axes.axis import channels, vector
from onnxopt.analysis.axes.checking import Checker, describe, smallest
from onnxopt.analysis.axes.rules import RULES, Call
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.models import path
from onnxopt.models.builders.sketch import Sketch
from onnxopt.nodes import label
from onnxopt.variants import Variants

WIDTH = 8


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared


def stack(*between: str, dtype: type = np.float32) -> Model:
    """Linear layers w0, w1, ..., and an operator after each but the last."""
    sketch = Sketch()
    x = sketch.input("x", ["n", 4], onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    sizes = [4, *[WIDTH] * len(between), 3]
    for at, (rows, columns) in enumerate(pairwise(sizes)):
        x = sketch.node("MatMul", x, sketch.weight(f"w{at}", sketch.normal(rows, columns).astype(dtype)))
        if at < len(between):
            x = sketch.node(between[at], x)
    sketch.output(x, ["n", 3], onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return load(sketch.model())


def checker(model: Model) -> Checker:
    return Checker(model, Variants().drift)


@pytest.mark.parametrize("name", ["byte-gpt", "digits-cnn", "digits-transformer"])
def test_models_that_ship(name: str, worker: Worker) -> None:
    model = load(path(name))
    context = RunContext(model, worker=worker)
    check = Checker(model, context.drift)
    assert len(check.groups) >= 5
    assert check.able()
    draw = check.drawn(context.rng)
    assert check.failures(draw) == []
    units = [unit for some in draw.values() for unit in some]
    drift, why = check.trial(units)
    assert (drift <= 1e-5, why) == (True, "")
    effect = check.effect(units)
    assert effect is not None
    assert effect > 0.01, "there is something to see"
    assert model.revision == 0


@given(st.integers(0, 2**32), st.floats(0.01, 1))
def test_draws(seed: int, share: float) -> None:
    check = checker(stack("Relu", "Sigmoid", "Tanh"))
    draw = check.drawn(np.random.default_rng(seed), share)
    assert [group.name for group in draw] == ["w0", "w1", "w2"]
    for group, units in draw.items():
        assert 1 <= len(units) == len(set(units)) <= max(1, min(share * WIDTH, WIDTH - 1))
        assert set(units) <= set(group.units)
    assert draw == check.drawn(np.random.default_rng(seed), share)


def test_draws_are_of_all_sizes() -> None:
    check = checker(stack("Relu", "Tanh"))
    rng = np.random.default_rng(0)
    assert {len(units) for _ in range(60) for units in check.drawn(rng).values()} == {1, 2, 3, 4}
    assert {len(units) for _ in range(99) for units in check.drawn(rng, 1.0).values()} == set(range(1, WIDTH))


def _turned(call: Call) -> None:
    """The wrong channels: counted from the end."""
    axes = call.axes(0)
    assert axes is not None
    ids = vector(axes[1])
    assert ids is not None
    call.give((axes[0], channels(call._engine.ledger, ids[::-1])))


def _apart(call: Call) -> None:
    """A union that is left out: the result has channels of its own."""
    axes = call.axes(0)
    assert axes is not None
    call.give((axes[0], call.channels(call.fresh(WIDTH))))


def _crashing(call: Call) -> None:
    """A rule whose statement cannot be carried out."""
    _apart(call)
    call.consume(0, 9, (call.axes(0) or ())[1])


@pytest.mark.parametrize(("rule", "runs"), [(_turned, True), (_apart, False), (_crashing, False)])
def test_a_wrong_rule_is_found_and_named(
    rule: Callable[[Call], None], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, ("", "Tanh"), rule)
    check = checker(stack("Relu", "Tanh", "Relu", "Sigmoid"))
    found = check.failures(check.drawn(np.random.default_rng(0)))
    assert found
    for failure in found:
        assert {group.name for group in failure.groups} <= {"w1", "w2"}, "those on either side of it"
        assert failure.drift > check.tolerance
        assert math.isfinite(failure.drift) is runs
        assert bool(failure.why) is not runs
        assert any(node.op_type == "Tanh" for group in failure.groups for node in check.course(group))
        text = describe(check, failure)
        assert all(group.name in text for group in failure.groups)
        assert "8 neurons that join at " in text


def test_several_wrong_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, ("", "Tanh"), _turned)
    check = checker(stack("Tanh", "Relu", "Tanh", "Relu", "Relu", "Tanh"))
    draw = {group: list(group.units[:2]) for group in check.groups}
    found = check.failures(draw)
    assert sorted([group.name for group in failure.groups] for failure in found) == [["w0"], ["w2"], ["w5"]]


def test_so_many_failures_that_the_rest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, ("", "Tanh"), _turned)
    check = checker(stack(*["Tanh"] * 11))
    found = check.failures({group: list(group.units[:2]) for group in check.groups})
    assert [len(failure.groups) for failure in found] == [1] * 8 + [3]
    assert len({group.name for failure in found for group in failure.groups}) == 11
    assert "not told apart" in found[-1].why


def test_where_streams_join() -> None:
    sketch = Sketch()
    x = sketch.node("MatMul", sketch.input("x", ["n", 4]), sketch.random("stem", 4, WIDTH))
    y = sketch.node("Relu", sketch.node("MatMul", x, sketch.random("inner", WIDTH, WIDTH)))
    x = sketch.node("Add", x, y)
    sketch.output(sketch.node("MatMul", x, sketch.random("head", WIDTH, 3)), ["n", 3])
    check = checker(load(sketch.model()))
    (group,) = check.groups
    joint = check.joint(group)
    assert joint is not None
    assert (joint.op_type, label(joint)) == ("Add", "Add_node")
    assert [node.op_type for node in check.course(group)] == ["MatMul", "MatMul", "Relu", "Add", "MatMul"]


def test_models_that_cannot_be_checked() -> None:
    assert not checker(stack("Nothing")).able()
    assert not Checker(stack("Relu"), lambda before, after: 1.0).able(), "it differs from itself"
    unable = Checker(stack("Relu"), lambda before, after: None)
    assert unable.trial([unable.groups[0].units[0]]) == (math.inf, "the model that ignores the units does not run")


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float16, 5e-3)])
def test_tolerance(dtype: type, tolerance: float) -> None:
    check = checker(stack("Relu", dtype=dtype))
    assert check.tolerance == tolerance
    assert check.failures(check.drawn(np.random.default_rng(0))) == []


def test_tolerance_of_several_outputs() -> None:
    """Drift is the worst of all outputs, so it may be what the least exact one may be."""
    sketch = Sketch()
    x = sketch.input("x", ["n", 4])
    sketch.output(sketch.node("Relu", x), ["n", 4])
    sketch.output(sketch.node("Cast", x, to=TensorProto.FLOAT16), ["n", 4], TensorProto.FLOAT16)
    assert checker(load(sketch.model())).tolerance == 5e-3


def test_analyses_of_copies_number_alike() -> None:
    model = load(path("digits-transformer"))
    first, again = channel_ids(model), channel_ids(Model(model.ir.clone()))
    np.testing.assert_array_equal(first.classes.labels, again.classes.labels)


@given(st.integers(1, 60), st.data())
def test_the_smallest_part_that_fails(count: int, data: st.DataObject) -> None:
    culprits = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
    calls: list[int] = []

    def fails(some: object) -> bool:
        calls.append(1)
        assert isinstance(some, list)
        return culprits <= set(some)

    assert smallest(range(count), fails) == sorted(culprits)
    assert len(calls) <= 2 * len(culprits) * (math.ceil(math.log2(count)) + 1) if count > 1 else not calls


@given(st.integers(2, 40), st.data())
def test_one_of_several_parts_that_fail(count: int, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.sets(st.integers(0, count - 1), min_size=1, max_size=3), min_size=1, max_size=4))

    def fails(some: object) -> bool:
        assert isinstance(some, list)
        return any(part <= set(some) for part in parts)

    found = smallest(range(count), fails)
    assert fails(found) or count == 1
    assert not any(fails([each for each in found if each != left]) for left in found)
