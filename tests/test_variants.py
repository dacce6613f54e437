"""How far two variants of a model are apart, and on which input that is looked at."""

from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

import onnxopt
from onnxopt.backends import machine
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.edit import Edit
from onnxopt.model import Model, load
from onnxopt.models.builders import Sketch
from onnxopt.passing import Context, Findings, Lossy, Pass
from onnxopt.variants import Variants

Sizes = list[int | str | None]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared


def linear(factor: float = 1.0, *, sizes: Sizes | None = None, width: int = 4) -> Model:
    sketch = Sketch()
    x = sketch.input("x", sizes or ["n", 4])
    sketch.output(sketch.node("MatMul", x, sketch.weight("w", factor * sketch.normal(4, width))), ["n", width])
    return load(sketch.model())


def built(draw: Callable[[Sketch, str], str], dtype: int = TensorProto.FLOAT, sizes: Sizes | None = None) -> Model:
    """What a function draws from the input x, as a model."""
    sketch = Sketch()
    x = sketch.input("x", sizes or ["n", 4])
    sketch.output(draw(sketch, x), None, dtype)
    return load(sketch.model())


@pytest.mark.parametrize("processes", [False, True])
def test_relative_l2(processes: bool, worker: Worker, tmp_path: Path) -> None:
    variants = Variants(tmp_path, worker if processes else None)
    assert variants.drift(linear(), linear(1.25)) == pytest.approx(0.25, rel=1e-5)
    same = linear()
    assert variants.drift(same, same) == variants.drift(linear(), linear()) == 0
    assert list(tmp_path.iterdir()) == [], "files are gone"


def test_share_of_integers() -> None:
    def signs(bias: float) -> Model:
        def draw(sketch: Sketch, x: str) -> str:
            x = sketch.node("Reshape", x, sketch.weight("flat", np.array([-1])))
            zero, one, end = (sketch.weight(name, np.array([at])) for name, at in (("0", 0), ("1", 1), ("9", 999)))
            first, rest = sketch.node("Slice", x, zero, one), sketch.node("Slice", x, one, end)
            x = sketch.node(
                "Concat", sketch.node("Add", first, sketch.weight("b", np.array([bias], np.float32))), rest, axis=0
            )
            return sketch.node("Cast", sketch.node("Greater", x, sketch.weight("zero", np.array(0, np.float32))), to=7)

        return built(draw, TensorProto.INT64, [2, 4])

    assert Variants().drift(signs(-100), signs(100)) == 1 / 8


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (linear(width=5), "outputs of other sizes"),
        (built(lambda s, x: s.node("Nothing", x)), "Nothing"),
        (built(lambda s, x: s.node("Cast", x, to=7, outputs=["matmul"]), TensorProto.INT64), "became int64"),
        (built(lambda s, x: s.node("Log", x, outputs=["matmul"])), "NaN"),
    ],
)
def test_a_variant_that_is_worth_nothing(after: Model, why: str) -> None:
    variants = Variants()
    assert variants.drift(linear(), after) == inf
    assert why in variants.why


def test_a_variant_that_cannot_be_saved() -> None:
    after = linear()
    edit = Edit("wrong")

    def read() -> Any:
        raise IndexError("entry 9")

    weight = after.graph.initializers["w"]
    assert weight.const_value is not None
    lazy = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([4, 4]), name="w")
    edit.replace_weight(weight, lazy)
    after.apply(edit)
    variants = Variants()
    assert variants.drift(linear(), after) == inf
    assert "entry 9" in variants.why


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (built(lambda s, x: s.node("Nothing", x)), "Nothing"),
        (built(lambda s, x: s.node("Sqrt", s.node("Sub", s.node("Neg", s.node("Abs", x)), s.random("b", 4)))), "NaN"),
        (built(lambda s, x: s.node("Mul", x, s.weight("zero", np.array(0, np.float32)))), "same for all random inputs"),
        (built(lambda s, x: s.node("MatMul", x, s.random("w", 5, 2))), "MatMul"),
    ],
)
def test_nothing_can_be_told(before: Model, why: str) -> None:
    variants = Variants()
    assert variants.drift(before, linear()) is None
    assert why in variants.why
    assert "drift-before" not in variants.why


def test_nan_on_the_sample_or_in_the_first() -> None:
    root = built(lambda s, x: s.node("Sqrt", x))
    variants = Variants(sample=lambda: {"x": np.full((1, 4), -1, np.float32)})
    assert variants.drift(root, root) is None
    assert variants.why == "it gives NaN"
    assert variants.drift(linear(), linear()) == 0


def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_room", lambda needed: needed < 2 * 4 * 4 * 4)
    variants = Variants()
    assert variants.drift(linear(), linear()) is None
    assert "GiB" in variants.why


def at_least(size: int) -> Callable[[Sketch, str], str]:
    """Takes this many entries of the second axis."""

    def draw(sketch: Sketch, x: str) -> str:
        bounds = (sketch.weight(name, np.array([value])) for name, value in (("s", 0), ("e", size), ("a", 1)))
        return sketch.node("MatMul", sketch.node("Slice", x, *bounds), sketch.random("w", size, 3))

    return draw


@pytest.mark.parametrize(
    ("sizes", "least", "expected"),
    [
        (["n", "t"], 2, (2, 3)), (["n", "t"], 4, (2, 8)), (["n", "t"], 30, (2, 32)), ([1, "t"], 3, (1, 3)),
        (["n", 5], 5, (2, 5)), ([1, 5], 5, (1, 5)),
    ],
)  # fmt: skip
def test_the_smallest_input(sizes: Sizes, least: int, expected: tuple[int, ...], worker: Worker) -> None:
    model = built(at_least(least), sizes=sizes)
    variants = Variants(None, worker)
    assert variants.drift(model, model) == 0
    assert variants.sizes == {"x": expected}


def test_sizes_that_are_given_or_known() -> None:
    model = built(at_least(45), sizes=[None, None])
    for options, expected in (
        ({"given": {"x": (3, 50)}}, (3, 50)), ({"known": {"x": (1, 47)}}, (1, 47)), ({}, (2, 64)),
    ):  # fmt: skip
        variants = Variants(**options)  # type: ignore[arg-type]
        assert variants.drift(model, model) == 0
        assert variants.sizes == {"x": expected}
    assert Variants(given={"x": (3, 40)}).drift(model, model) is None
    small = built(at_least(2), sizes=[None, None])
    variants = Variants(known={"x": (4, 16)})
    assert variants.drift(small, small) == 0
    assert variants.sizes == {"x": (2, 3)}


def test_an_unknown_rank() -> None:
    sketch = Sketch()
    sketch.inputs.append(onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    sketch.output(sketch.node("MatMul", "x", sketch.random("w", 4, 2)), None)
    model = load(sketch.model())
    assert Variants(known={"x": (3, 4)}).drift(model, model) == 0
    variants = Variants()
    assert variants.drift(model, model) is None
    assert "unknown rank" in variants.why


def test_sizes_at_which_outputs_say_nothing() -> None:
    """What is normalized over 3 entries of one number each gives 0; over more it does not."""

    def draw(sketch: Sketch, x: str) -> str:
        stride = sketch.weight("s", np.array([4])), sketch.weight("e", np.array([9]))
        far = sketch.node("Slice", x, *stride, sketch.weight("a", np.array([1])))
        return sketch.node("ReduceSum", far, keepdims=0)

    model = built(draw, sizes=["n", "t"])
    variants = Variants()
    assert variants.drift(model, model) == 0
    assert variants.sizes == {"x": (2, 8)}


def test_values_within_bounds() -> None:
    """Of a table whose first rows are alike, others must be looked up to see anything; there are seven."""
    sketch = Sketch()
    x = sketch.input("x", ["n", "t"], TensorProto.INT64)
    table = sketch.weight("table", np.array([[1], [1], [2], [3], [4], [5], [6]], np.float32))
    sketch.output(sketch.node("Gather", table, x), ["n", "t", 1])
    model = load(sketch.model())
    assert Variants().drift(model, model) == 0


def test_a_sample(worker: Worker) -> None:
    sample = {"x": np.full((1, 4), 2, np.float32)}
    variants = Variants(None, worker, sample=lambda: sample)
    assert variants.drift(linear(), linear(2)) == pytest.approx(1)
    assert variants.sizes == {"x": (1, 4)}
    nothing = Variants(None, worker, sample=lambda: None)
    assert nothing.drift(linear(), linear(2)) == pytest.approx(1)
    assert nothing.sizes == {"x": (2, 4)}


def test_chance_is_no_drift() -> None:
    model = built(lambda s, x: s.node("Add", x, s.node("RandomNormalLike", x)))
    assert Variants().drift(model, load(model.proto())) == 0


def test_weights_are_not_sent(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear(width=4096)
    model.save(tmp_path / "m.onnx", external_data=True)
    sent: list[Any] = []
    call = worker.call

    def watched(function: Any, *arguments: Any, **options: Any) -> Any:
        sent.append(arguments)
        return call(function, *arguments, **options)

    monkeypatch.setattr(worker, "call", watched)
    monkeypatch.setattr(Model, "proto", lambda self: pytest.fail("the model was put into one message"))
    stored = load(tmp_path / "m.onnx")
    assert RunContext(stored, worker=worker).drift(stored, load(tmp_path / "m.onnx")) == 0
    assert sent
    assert all(isinstance(path, str) and len(str(feeds)) < 1000 for path, _, feeds in sent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


@pytest.mark.parametrize("data", [False, True])
def test_in_a_run(data: bool, tmp_path: Path) -> None:
    measured: list[float | None] = []
    fed: list[dict[str, tuple[int, ...]]] = []

    class Measures(Pass):
        """Compare the model with one of larger weights."""

        contract = Lossy()

        def run(self, model: Model, context: Context) -> Findings:
            other = Model(model.ir.clone())
            edit = Edit(self.name)
            edit.replace_weight(other.graph.initializers["w"], np.arange(16, dtype=np.float32).reshape(4, 4))
            other.apply(edit)
            measured.append(context.drift(model, other))
            assert isinstance(context, RunContext)
            fed.append(context._variants.sizes)
            return Findings()

    onnx.save(linear().proto(), tmp_path / "m.onnx")
    samples = {"x": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)} if data else None
    work = tmp_path / "work"
    onnxopt.optimize(tmp_path / "m.onnx", [Measures()], data=samples, work=work)
    assert measured[0] is not None
    assert measured[0] > 0.5
    assert fed == [{"x": (1, 4) if data else (2, 4)}]
    assert list(work.glob("drift*")) == []
