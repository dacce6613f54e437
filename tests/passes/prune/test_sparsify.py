"""sparsify: what becomes zero in weights of every kind of layer, what the others become, and what is refused."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

import onnxopt
from onnxopt import models, recipe
from onnxopt.analysis.linear import linears
from onnxopt.context import RunContext
from onnxopt.data import open_data
from onnxopt.errors import DataError, ModelError, OnnxOptError, RecipeError
from onnxopt.model import Model, load
from onnxopt.models.builders.linears import FORMS, linear
from onnxopt.models.builders.sketch import Sketch
from onnxopt.models.stdlib_text import training_bytes, windows
from onnxopt.overrides import Override
from onnxopt.passing import Findings, make
from onnxopt.pruning.sparse import by_sparsegpt, by_wanda, gradually, output_error
from onnxopt.pruning.sparse_layers import columns_of, inputs_of, is_depthwise, rows_of
from onnxopt.statistics import gram

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
METHODS = ("sparsegpt", "wanda", "magnitude")
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def sparse(
    source: Any, samples: Mapping[str, Array] | None = None, overrides: Sequence[Override] = (), **options: Any
) -> tuple[Model, Findings]:
    """The model and what the pass says; samples are fed one by one."""
    model = load(source)
    signature = model.signature
    data = None if samples is None else open_data(dict(samples), signature)
    findings = make("sparsify", options).run(model, RunContext(model, calibration=data, overrides=overrides))
    assert findings.changed == (model.revision > 0)
    assert model.signature == signature
    onnx.checker.check_model(model.proto(), full_check=True)
    return model, findings


def weight(model: Model | onnx.ModelProto, name: str = "w") -> Array:
    proto = model.proto() if isinstance(model, Model) else model
    return numpy_helper.to_array(next(each for each in proto.graph.initializer if each.name == name))


def ran(model: Model | onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    proto = model.proto() if isinstance(model, Model) else model
    return ort.InferenceSession(proto.SerializeToString()).run(None, dict(feeds))[0]


def whys(findings: Findings) -> dict[str, str]:
    return {declined.node: declined.why for declined in findings.declined}


# Every kind of layer


@dataclass(frozen=True)
class Kind:
    """A layer with room for patterns.

    Attributes:
        x: shape of its input.
        stored: shape of its weight.
        turned: the stored weight as `[groups, outputs, taps, inputs]`.
        attributes: of the node; `left`: the weight comes first.
    """

    op: str
    x: Sequence[Any]
    stored: tuple[int, ...]
    turned: Callable[[Array], Array]
    attributes: Mapping[str, Any]
    left: bool = False


def _filters(groups: int, *, transposed: bool = False) -> Callable[[Array], Array]:
    def turned(stored: Array) -> Array:
        grouped = stored.reshape(groups, -1, *stored.shape[1:])
        own = grouped.swapaxes(1, 2) if transposed else grouped
        return own.reshape(*own.shape[:3], -1).swapaxes(2, 3)

    return turned


KINDS = {
    "matmul": Kind("MatMul", ["n", 3, 10], (10, 6), lambda w: w.T[None, :, None], {}),
    "matmul-left": Kind("MatMul", ["n", 10, 4], (6, 10), lambda w: w[None, :, None], {}, left=True),
    "gemm": Kind("Gemm", ["n", 10], (10, 6), lambda w: w.T[None, :, None], {}),
    "gemm-trans-b": Kind("Gemm", ["n", 10], (6, 10), lambda w: w[None, :, None], {"transB": 1, "alpha": 0.5}),
    "gemm-left-trans-a": Kind("Gemm", [10, "n"], (10, 6), lambda w: w.T[None, :, None], {"transA": 1}, left=True),
    "conv": Kind("Conv", ["n", 6, 7, 7], (5, 6, 3, 2), _filters(1), {"pads": [1, 1, 1, 1]}),
    "conv-1d": Kind("Conv", ["n", 8, 9], (5, 8, 3), _filters(1), {"strides": [2]}),
    "conv-pointwise": Kind("Conv", ["n", 8, 5, 5], (4, 8, 1, 1), _filters(1), {}),
    "conv-grouped": Kind("Conv", ["n", 12, 7, 7], (6, 6, 3, 3), _filters(2), {"group": 2}),
    "conv-transpose": Kind("ConvTranspose", ["n", 6, 5, 5], (6, 4, 3, 3), _filters(1, transposed=True), {}),
    "conv-transpose-grouped": Kind(
        "ConvTranspose", ["n", 12, 5, 5], (12, 3, 2, 2), _filters(2, transposed=True), {"group": 2}
    ),
}  # fmt: skip


def drawn(kind: Kind, dtype: type = np.float32) -> onnx.ModelProto:
    sketch = Sketch()
    number = TensorProto.FLOAT if dtype is np.float32 else TensorProto.FLOAT16
    x, w = sketch.input("x", kind.x, number), sketch.weight("w", sketch.normal(*kind.stored).astype(dtype))
    sketch.output(sketch.node(kind.op, *((w, x) if kind.left else (x, w)), **kind.attributes), None, number)
    return onnx.shape_inference.infer_shapes(sketch.model())


def fed(kind: Kind, samples: int = 24) -> dict[str, Array]:
    """Inputs with correlated channels. Where `n` is not the first axis the model takes a sample at a time."""
    if kind.x[0] != "n":
        return {"x": RNG.normal(size=(4, kind.x[0], samples)).astype(np.float32)}
    x = RNG.normal(size=(samples, *kind.x[1:])).astype(np.float32)
    return {"x": x + 0.7 * np.roll(x, 1, axis=2 if kind.op == "MatMul" and not kind.left else 1)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", KINDS)
def test_magnitude_keeps_the_largest(name: str, dtype: type) -> None:
    kind = KINDS[name]
    model, findings = sparse(drawn(kind, dtype), ratio=0.3)
    before, after = weight(drawn(kind, dtype)), weight(model)
    count = round(0.7 * before.size)
    threshold = np.sort(np.abs(before), axis=None)[::-1][count - 1]
    kept = np.abs(before) >= threshold
    scale = dtype(kind.attributes.get("alpha", 1))  # Gemm's alpha goes into the weight
    np.testing.assert_array_equal(after, np.where(kept, before * scale, 0))
    assert findings.measures["nonzero_after"] == np.count_nonzero(after) == kept.sum()
    assert findings.measures["dense_bytes"] == after.nbytes
    assert findings.measures["density"] == pytest.approx(0.7, abs=1 / before.size)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["2:4", "1:3"])
@pytest.mark.parametrize("name", KINDS)
def test_patterns_run_along_the_inputs(name: str, pattern: str, method: str) -> None:
    kind = KINDS[name]
    samples = fed(kind)
    model, findings = sparse(drawn(kind), None if method == "magnitude" else samples, pattern=pattern, method=method)
    n, m = map(int, pattern.split(":"))
    kept = kind.turned(weight(model)) != 0
    for first in range(0, kept.shape[-1], m):
        part = kept[..., first : first + m]
        assert (part.sum(-1) == min(n, part.shape[-1])).all()
    assert [change.node for change in findings.changes] == [linears(model)[0].name]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("name", KINDS)
def test_ratios_with_data(name: str, method: str) -> None:
    kind = KINDS[name]
    samples = fed(kind)
    model, findings = sparse(drawn(kind), samples, ratio=0.4, method=method)
    kept = kind.turned(weight(model)) != 0
    if method == "wanda":
        assert (kept.sum((2, 3)) == round(0.6 * kept[0, 0].size)).all()
    else:
        assert (kept.sum((1, 2, 3)) == round(0.6 * kept[0].size)).all()
    error = np.linalg.norm(outputs(model, samples) - outputs(drawn(kind), samples))
    relative = error / np.linalg.norm(outputs(drawn(kind), samples))
    if kind.op != "ConvTranspose":  # there the Gram matrix knows no taps
        assert findings.measures["mean_error"] == pytest.approx(relative, rel=1e-3)


def outputs(model: Model | onnx.ModelProto, samples: Mapping[str, Array]) -> Array:
    x = samples["x"]
    rank = len((model.proto() if isinstance(model, Model) else model).graph.input[0].type.tensor_type.shape.dim)
    return ran(model, {"x": x}) if x.ndim == rank else np.stack([ran(model, {"x": each}) for each in x])


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_of_every_operator(form: str) -> None:
    """Changed, or declined with a reason; half of the weights that change are zero afterwards."""
    proto = linear(form)
    layers = linears(load(proto))
    if not layers or is_depthwise(layers[0]):
        with pytest.raises(RecipeError, match="nothing can be sparse: "):
            sparse(proto, ratio=0.5)
        return
    model, _ = sparse(proto, ratio=0.5)
    assert np.count_nonzero(weight(model)) <= np.ceil(weight(model).size / 2)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [(method, wanted) for method in METHODS for wanted in ({"ratio": 0.4}, {"pattern": "2:4"})]
    + [("global", {"ratio": 0.4})],
)
def test_a_second_run_changes_nothing(method: str, wanted: dict[str, Any]) -> None:
    once, _ = sparse(mlp(), XS, method=method, **wanted)
    twice, findings = sparse(once.proto(), XS, method=method, **wanted)
    assert not findings.changed
    assert sum("as sparse already" in why for why in whys(findings).values()) == 3
    assert twice.proto() == once.proto()


# Data


def mlp(widths: Sequence[int] = (16, 12, 12, 8)) -> onnx.ModelProto:
    sketch = Sketch()
    x = sketch.input("x", ["n", widths[0]])
    for number, (before, after) in enumerate(pairwise(widths)):
        x = sketch.node("MatMul", x, sketch.weight(f"w{number}", sketch.normal(before, after) / before**0.5))
        x = sketch.node("Relu", x) if number < len(widths) - 2 else x
    sketch.output(x, ["n", widths[-1]])
    return sketch.model()


XS = {"x": (RNG.normal(size=(80, 16)) @ RNG.normal(size=(16, 16)) / 4).astype(np.float32)}


def by_hand(x: Array, matrix: Array, **options: Any) -> Array:
    wide = x.astype(np.float64)
    return by_sparsegpt(matrix.T[None], 1, 0.5, (wide.T @ wide)[None], **options)[0].T


@pytest.mark.parametrize("sequential", [True, False])
def test_what_layers_see(sequential: bool) -> None:
    """Sequentially the inputs that the sparse layers before make, else those of the dense model."""
    model, _ = sparse(mlp(), XS, ratio=0.5, sequential=sequential)
    x = XS["x"]
    for number in range(3):
        dense, found = weight(mlp(), f"w{number}"), weight(model, f"w{number}")
        np.testing.assert_allclose(found, by_hand(x, dense), atol=1e-4)
        x = np.maximum(x @ (found if sequential else dense), 0)


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_counted_without_products(name: str) -> None:
    model = load(drawn(KINDS[name]))
    layer = linears(model)[0]
    context = RunContext(model, calibration=open_data(fed(KINDS[name]), model.signature))
    found = context.collect([rows_of(layer), inputs_of(layer)])
    assert found.rows(rows_of(layer)) == found[inputs_of(layer)].rows
    assert columns_of(layer) == found[inputs_of(layer)].scatter.shape[-1]


def test_options_of_sparsegpt_count() -> None:
    model, _ = sparse(mlp(), XS, ratio=0.5, damp=0.3, block=3)
    dense = weight(mlp(), "w0")
    np.testing.assert_allclose(weight(model, "w0"), by_hand(XS["x"], dense, damp=0.3, block=3), atol=1e-4)
    assert np.abs(weight(model, "w0") - by_hand(XS["x"], dense)).max() > 1e-2


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_rounds_see_what_the_ones_before_left(method: str) -> None:
    model, findings = sparse(mlp(), XS, ratio=0.6, rounds=3, method=method)
    matrices = [weight(mlp(), f"w{number}").T[None] for number in range(3)]
    function = {"wanda": by_wanda, "sparsegpt": by_sparsegpt}[method]
    for density in gradually(1 - 0.6, 3):
        x = XS["x"].astype(np.float64)
        for number in range(3):
            matrices[number] = function(matrices[number], 1, density, (x.T @ x)[None])
            x = np.maximum(x @ matrices[number][0].T.astype(np.float64), 0)
    for number in range(3):
        np.testing.assert_allclose(weight(model, f"w{number}").T, matrices[number][0], atol=1e-4)
    assert len(findings.changes) == 3
    # Errors are told against the dense weights, not those of the round before.
    once, _ = sparse(mlp(), XS, ratio=0.6, method=method)
    first = output_error(weight(mlp(), "w0").T[None], weight(model, "w0").T[None], grammed(XS["x"]), 1)
    assert f"change by {100 * first:.2g} %" in findings.changes[0].what
    assert np.abs(weight(once, "w1") - weight(model, "w1")).max() > 1e-3


def grammed(x: Array) -> Array:
    wide = x.astype(np.float64)
    return (wide.T @ wide)[None]


def test_sparsegpt_loses_less_than_wanda_and_that_less_than_magnitude() -> None:
    """Two layers of the GPT at two settings, on text that nothing was chosen by."""
    dense = load(models.path("byte-gpt"))
    text = windows(training_bytes(tests=False), 128, 14)[:, :-1]
    names = ["blocks.0.up/MatMul", "blocks.1.attention.qkv/MatMul"]
    layers = {layer.name: layer for layer in linears(dense) if layer.name in names}
    context = RunContext(dense, calibration=open_data({"tokens": text[8:]}, dense.signature))
    seen = context.collect(map(gram, layers.values()))
    for wanted in ({"ratio": 0.5}, {"pattern": "2:4"}):
        errors = []
        for method in METHODS:
            options = {**wanted, "method": method, "include": names, "sequential": False}
            model, _ = sparse(models.path("byte-gpt"), {"tokens": text[:8]}, **options)
            after = {layer.name: layer.matrix() for layer in linears(model)}
            errors.append([output_error(layers[n].matrix(), after[n], seen[gram(layers[n])].gram(), 1) for n in names])
        assert (np.diff(errors, axis=0) > 0).all(), errors


def test_auto_without_data() -> None:
    model, findings = sparse(mlp(), ratio=0.5)
    expected, _ = sparse(mlp(), ratio=0.5, method="magnitude")
    assert model.proto().graph.initializer == expected.proto().graph.initializer
    assert any("in 3 layers the smallest" in note and "no calibration data" in note for note in findings.notes)
    assert "mean_error" not in findings.measures


@pytest.mark.parametrize("sequential", [True, False])
def test_auto_with_few_rows(sequential: bool) -> None:
    """Magnitude in the layer that sees fewer rows than it has inputs, which the others see; Wanda is content."""
    few = {"x": XS["x"][:13]}
    model, findings = sparse(mlp(), few, ratio=0.5, sequential=sequential)
    assert methods_of(findings) == ["magnitude", "sparsegpt", "sparsegpt"]
    expected, _ = sparse(mlp(), ratio=0.5, method="magnitude")
    np.testing.assert_array_equal(weight(model, "w0"), weight(expected, "w0"))
    assert any("in 1 layers the smallest" in note and "fewer rows" in note for note in findings.notes)
    _, findings = sparse(mlp(), few, ratio=0.5, method="wanda", sequential=sequential)
    assert methods_of(findings) == ["wanda"] * 3


def methods_of(findings: Findings) -> list[str]:
    return [change.what.split(":")[0] for change in findings.changes]


def batched_and_inner() -> onnx.ModelProto:
    """A batch of matrices, a layer in a branch, and an ordinary layer."""
    then, other = Sketch("then"), Sketch("else")
    then.output(then.node("MatMul", "h", then.random("inner", 8, 8), outputs=["t"]), None)
    other.output(other.node("Neg", "h", outputs=["e"]), None)
    sketch = Sketch()
    x = sketch.input("x", ["n", 2, 6, 8])
    h = sketch.node("Relu", sketch.node("MatMul", x, sketch.random("many", 2, 8, 8)), outputs=["h"])
    yes = sketch.node("Greater", sketch.node("ReduceMax", h, keepdims=0), sketch.weight("zero", np.float32(-1)))
    y = sketch.node("If", yes, then_branch=then.graph(), else_branch=other.graph())
    sketch.output(sketch.node("MatMul", y, sketch.random("last", 8, 4)), None)
    return onnx.shape_inference.infer_shapes(sketch.model())


@pytest.mark.parametrize("sequential", [True, False])
def test_layers_whose_inputs_cannot_be_seen(sequential: bool) -> None:
    samples = {"x": RNG.normal(size=(9, 2, 6, 8)).astype(np.float32)}
    model, findings = sparse(batched_and_inner(), samples, ratio=0.5, sequential=sequential)
    assert sorted(methods_of(findings)) == ["magnitude", "sparsegpt", "sparsegpt"]
    assert np.count_nonzero(weight(model, "many")) == 64
    assert any("in 1 layers" in note and "cannot be seen" in note for note in findings.notes)
    _, findings = sparse(batched_and_inner(), samples, ratio=0.5, method="wanda", sequential=sequential)
    assert sum("wanda cannot see its inputs" in why for why in whys(findings).values()) == 1


# One threshold over all layers


@pytest.mark.parametrize("least", [0.0, 0.2])
def test_global_has_one_threshold(least: float) -> None:
    proto = mlp()
    for tensor, factor in zip(proto.graph.initializer, (1.0, 0.01, 1.0), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    model, findings = sparse(proto, ratio=0.6, method="global", min_kept=least)
    before, after = ([weight(each, f"w{number}") for number in range(3)] for each in (proto, model))
    sizes = np.array([each.size for each in before])
    kept = np.array([np.count_nonzero(each) for each in after])
    assert kept.sum() == round(0.4 * sizes.sum()) == findings.measures["nonzero_after"]
    assert kept[1] == int(np.ceil(least * sizes[1]))
    removed = [np.abs(before[n][after[n] == 0]).max() for n in (0, 2)]
    stay = [np.abs(after[n][after[n] != 0]).min() for n in (0, 2)]
    assert max(removed) < min(stay)


def test_the_share_of_all_parameters_is_told() -> None:
    proto = mlp()
    model, findings = sparse(proto, ratio=0.5, include=["w1"])
    every = [onnx.numpy_helper.to_array(each) for each in proto.graph.initializer]
    zeros, count = np.count_nonzero(weight(model, "w1") == 0), sum(each.size for each in every)
    assert f"{zeros} weights are zero: {zeros / count:.1%} of the model's parameters" in findings.notes


def test_overrides_of_layers() -> None:
    overrides = [
        Override(match="w0", skip=True), Override(match="w1", pattern="1:4"), Override(match="w2", ratio=0.25),
    ]  # type: ignore[call-arg]  # fmt: skip
    model, findings = sparse(mlp(), ratio=0.5, overrides=overrides)
    assert whys(findings)["MatMul_node"] == "an override skips it"
    kept = [weight(model, f"w{number}") != 0 for number in range(3)]
    assert kept[0].all()
    assert (kept[1].reshape(3, 4, 12).sum(1) == 1).all()
    assert kept[2].sum() == 72
    model, _ = sparse(mlp(), pattern="2:4", overrides=[Override(match="*", ratio=0.25)])  # type: ignore[call-arg]
    assert [np.count_nonzero(weight(model, f"w{n}")) for n in range(3)] == [144, 108, 72]
    with pytest.raises(RecipeError, match=r"overrides for MatMul_node: pattern: '4:2' is no pattern N:M"):
        sparse(mlp(), ratio=0.5, overrides=[Override(match="w0", pattern="4:2")])  # type: ignore[call-arg]


def test_include_and_exclude() -> None:
    model, findings = sparse(mlp(), ratio=0.5, include=("re:w[01]",), exclude=("MatMul_node",))
    assert [np.count_nonzero(weight(model, f"w{n}")) for n in range(3)] == [192, 72, 96]
    assert whys(findings) == {"MatMul_node": "exclude names it", "MatMul_node_2": "include does not name it"}
    with pytest.raises(RecipeError, match=r"sparsify.exclude: 'MatMul_nod' names no .* did you mean MatMul_node"):
        sparse(mlp(), ratio=0.5, exclude=("MatMul_nod",))


# What is left alone


def test_depthwise_layers_have_to_be_named() -> None:
    sketch = Sketch()
    x = sketch.node("Conv", sketch.input("x", ["n", 8, 6, 6]), sketch.random("deep", 8, 1, 3, 3), group=8)
    sketch.output(sketch.node("Conv", x, sketch.random("wide", 4, 8, 1, 1)), None)
    proto = onnx.shape_inference.infer_shapes(sketch.model())
    model, findings = sparse(proto, ratio=0.5)
    assert np.count_nonzero(weight(model, "deep")) == 72
    assert "a depthwise convolution" in whys(findings)["Conv_node"]
    model, _ = sparse(proto, ratio=0.5, include=("deep", "w*"))
    assert np.count_nonzero(weight(model, "deep")) == 36
    assert np.count_nonzero(weight(model, "wide")) == 16


def test_others_are_told() -> None:
    sketch = Sketch(opset=13)
    ids = sketch.input("ids", ["n"], TensorProto.INT64)
    x = sketch.node("Gather", sketch.random("table", 20, 8), ids)
    tied = sketch.node("Transpose", sketch.random("tied", 8, 8))
    x = sketch.node("MatMul", sketch.node("MatMul", x, tied), sketch.node("Transpose", "tied"))
    codes = sketch.weight("codes", RNG.integers(-9, 9, (8, 8)).astype(np.int8))
    x = sketch.node("MatMul", x, sketch.node("DequantizeLinear", codes, sketch.weight("scale", np.float32(0.1))))
    x = sketch.node("MatMul", x, sketch.random("thin", 8, 2))
    sketch.output(sketch.node("MatMul", x, sketch.random("two", 2, 9)), None)
    proto = onnx.shape_inference.infer_shapes(sketch.model())
    model, findings = sparse(proto, pattern="2:4")
    told = whys(findings)
    assert told["table"] == "read by Gather, no product with a matrix"
    assert "weight tied is also read by" in told["MatMul_node"]
    assert "weight tied is also read by" in told["MatMul_node_1"]
    assert told["MatMul_node_2"] == "its weight is quantized, stored as INT8: make it sparse before"
    assert told["MatMul_node_4"] == "its inputs, 2, are no more than 2:4 keeps"
    assert [change.node for change in findings.changes] == ["MatMul_node_3"]
    assert "scale" not in told
    for name in ("table", "tied", "codes", "two"):
        np.testing.assert_array_equal(weight(model, name), weight(proto, name))


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.FLOAT8E4M3FN])
def test_quantized_weights_stay(dtype: int) -> None:
    sketch = Sketch(opset=19, ir_version=9)
    codes = sketch.weight("codes", helper.make_tensor("codes", dtype, (8, 8), RNG.integers(-9, 9, 64)))
    w = sketch.node("DequantizeLinear", codes, sketch.weight("scale", np.float32(0.1)))
    sketch.output(sketch.node("MatMul", sketch.input("x", ["n", 8]), w), ["n", 8])
    with pytest.raises(RecipeError, match="its weight is quantized, stored as"):
        sparse(sketch.model(), ratio=0.5)


def test_a_default_of_an_input_is_left_alone() -> None:
    proto = mlp()
    proto.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [12, 12]))
    model, findings = sparse(proto, ratio=0.5)
    assert "the default of a graph input" in whys(findings)["MatMul_node_1"]
    assert np.count_nonzero(weight(model, "w1")) == 144


def test_notes_say_what_is_won() -> None:
    _, findings = sparse(mlp(), ratio=0.75)
    assert any("ONNX Runtime is no faster" in note for note in findings.notes)
    found = findings.measures
    assert found["bitmask_bytes"] == found["weights"] // 8 + 4 * found["nonzero_after"]
    assert found["zip_bytes"] < 0.5 * found["dense_bytes"]
    assert found["nonzero_before"] == found["weights"] == 16 * 12 + 12 * 12 + 12 * 8


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of ratio, pattern; none is given"),
        ({"ratio": 0.5, "pattern": "2:4"}, "both are given"),
        ({"ratio": 1.0}, "less than 1"),
        ({"ratio": 0}, "greater than 0"),
        ({"pattern": "4:2"}, "'4:2' is no pattern N:M like 2:4"),
        ({"pattern": "4:4"}, "'4:4' is no pattern N:M like 2:4"),
        ({"pattern": "0:4"}, "'0:4' is no pattern N:M like 2:4"),
        ({"pattern": "half"}, "'half' is no pattern N:M like 2:4"),
        ({"pattern": True}, "valid string"),
        ({"pattern": "2:4", "method": "global"}, "global needs ratio"),
        ({"ratio": 0.95, "method": "global", "min_kept": 0.1}, "min_kept 0.1 is more than ratio 0.95 leaves"),
        ({"ratio": 0.5, "method": "magnitude", "rounds": 2}, "rounds is for wanda and sparsegpt"),
        ({"ratio": 0.5, "damp": 0}, "greater than 0"),
        ({"ratio": 0.5, "include": ["re:("]}, "no regular expression"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make("sparsify", options)


@pytest.mark.parametrize(("written", "meant"), [("2:4", "2:4"), ("'2:4'", "2:4"), ("1:16", "1:16"), ("3:128", "3:128")])
def test_patterns_as_yaml_reads_them(written: str, meant: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"version: 1\npasses:\n  - sparsify: {{pattern: {written}}}\n")
    assert recipe.load(file).passes[0].options() == {"pattern": meant}


def poisoned(value: float) -> onnx.ModelProto:
    proto = mlp()
    array = weight(proto, "w2").copy()
    array[3, 5] = value
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "w2"))
    return proto


BAD: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, Any], Mapping[str, Array] | None, type, str]] = {
    "nan": (lambda: poisoned(np.nan), {}, XS, ModelError, r"weight w2 of layer MatMul_node_2 is nan at \[0, 5, 3\]"),
    "infinity": (lambda: poisoned(np.inf), {"method": "global"}, None, ModelError, "weight w2 .* is inf"),
    "no data": (mlp, {"method": "wanda"}, None, DataError, "wanda needs calibration data"),
    "no data for rounds": (mlp, {"rounds": 4}, None, DataError, "more than one round needs calibration data"),
    "few rows": (
        mlp, {"method": "sparsegpt"}, {"x": XS["x"][:13]}, DataError,
        "sparsegpt needs 16 rows .* layer MatMul_node, which gets 13: give about 2 times as many",
    ),
    "few rows at the end": (
        lambda: mlp((6, 6, 40, 8)), {"method": "sparsegpt"}, {"x": XS["x"][:20, :6]}, DataError, "needs 40 rows",
    ),
    "few rows, as the model comes": (
        mlp, {"method": "sparsegpt", "sequential": False}, {"x": XS["x"][:13]}, DataError, "needs 16 rows",
    ),
    "overflow": (mlp, {}, {"x": np.full((80, 16), 3e38, np.float32)}, DataError, "sample 0"),
    "nothing": (lambda: mlp((1, 1)), {}, None, RecipeError, "nothing can be sparse: MatMul_node: its share of 1"),
    "excluded": (mlp, {"exclude": ("w*",)}, None, RecipeError, "nothing can be sparse: MatMul_node: exclude names"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_errors_leave_the_model_alone(name: str) -> None:
    source, options, samples, kind, message = BAD[name]
    model = load(source())
    data = None if samples is None else open_data(dict(samples), model.signature)
    ratio = 0.3 if name == "nothing" else 0.5
    with pytest.raises(kind, match=message) as caught:
        make("sparsify", {"ratio": ratio, **options}).run(model, RunContext(model, calibration=data))
    assert isinstance(caught.value, OnnxOptError)
    assert "\n" not in str(caught.value)
    assert model.revision == 0
    assert model.proto().graph == load(source()).proto().graph


# The whole way


def test_a_model_stays_good(tmp_path: Path) -> None:
    folder = Path(models.__file__).parent
    result = onnxopt.optimize(
        models.path("digits-cnn"), ["clean", {"sparsify": {"pattern": "2:4"}}], output=tmp_path / "out.onnx",
        data=str(folder / "digits.calib.npz"), evaluation=str(folder / "digits.eval.npz"), metric="top1",
        limits={"metric_drop": 0.02},
    )  # fmt: skip
    second = linears(result.model)[1].matrix()
    assert np.count_nonzero(second) == second.size // 2


@pytest.mark.slow
def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer errors of the GPT have their order; in bits per byte SparseGPT is ahead by three standard errors."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("sparsify")
    bench = module.Bench(16, 32)
    dense = bench.score(bench.dense)
    for wanted in ("50 %", "2:4"):
        ours, *others = rows = [bench.row(module.VARIANTS[f"{wanted} {each}"]) for each in METHODS]
        assert [row.error for row in rows] == sorted(row.error for row in rows)
        assert module.paired_difference(dense, ours.score)[0] > 0
        for other in others:
            change, stderr = module.paired_difference(ours.score, other.score)
            assert change > 3 * stderr
