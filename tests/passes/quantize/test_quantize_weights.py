"""Weights as integers: the result against numpy, what ONNX Runtime makes of it, and everything that is refused."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, version_converter
from pydantic import ValidationError

from onnxopt.analysis.linear import find_linears
from onnxopt.backends.capabilities import features
from onnxopt.backends.sessions import SessionMode, create, open_session, run, session_options
from onnxopt.context import RunContext
from onnxopt.errors import Declined, ModelError, RecipeError
from onnxopt.model import Model, load
from onnxopt.models.builders.linears import FORMS, linear
from onnxopt.models.builders.sketch import Sketch, feeds
from onnxopt.numerics import QuantSpec, dequantize, quantize
from onnxopt.passes.quantize import quantize_weights
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights
from onnxopt.passing import Findings, Pass, parts
from onnxopt.recipe import Override
from onnxopt.workdir import WorkDir

Array = npt.NDArray[Any]
Draw = Callable[[Sketch, Array], None]


def _apply(
    source: onnx.ModelProto | Model, workdir: WorkDir | None = None, overrides: list[dict[str, Any]] | None = None,
    **options: Any,
) -> tuple[Model, Findings]:  # fmt: skip
    """Run the pass, check that the result is valid and that callers see what they saw."""
    model = load(source)
    signature = model.signature
    rules = [Override(**override) for override in overrides or ()]
    context = RunContext(model, workdir=workdir, overrides=rules)
    findings = QuantizeWeights(**options).run(model, context)
    assert model.signature == signature
    if workdir is None:
        onnx.checker.check_model(model.proto(), full_check=True)
    return model, findings


def _outputs(model: Model | onnx.ModelProto, values: Mapping[str, Array], mode: SessionMode) -> list[Array]:
    proto = model.proto() if isinstance(model, Model) else model
    return list(run(open_session(proto.SerializeToString(), mode), values).values())


def _distance(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(found - wide)) / max(float(np.linalg.norm(wide)), 1e-30)


def _operators(model: Model, folder: Path) -> Counter[str]:
    """Operator types, with their numbers, of the graph that ONNX Runtime makes of the model."""
    options = session_options(SessionMode.DEPLOYED)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    create(model.proto().SerializeToString(), options, None)
    optimized = onnx.load(folder / "optimized.onnx")
    graphs = [optimized.graph, *(a.g for node in optimized.graph.node for a in node.attribute if a.HasField("g"))]
    return Counter(node.op_type for graph in graphs for node in graph.node)


def _why(findings: Findings, name: str) -> str:
    found = [declined.why for declined in findings.declined if declined.node == name]
    assert len(found) == 1, findings.declined
    return found[0]


def _stack(*layers: tuple[str, Array], opset: int = 21, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """MatMuls one behind the other, named and with weights `[K, N]` of the same names."""
    sketch = Sketch(opset=opset, ir_version=10)
    value = sketch.input("x", ["rows", layers[0][1].shape[0]], dtype)
    for name, weight in layers:
        sketch.weight(f"{name}.weight", weight)
        value = sketch.node("MatMul", value, f"{name}.weight")
        sketch.nodes[-1].name = name
    sketch.output(sketch.node("Identity", value, outputs=["y"]), None, dtype)
    return onnx.shape_inference.infer_shapes(sketch.model())


def _normal(*shape: int, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _right(sketch: Sketch, weight: Array) -> None:
    x = sketch.input("x", ["batch", 2, weight.shape[2]])
    sketch.output(sketch.node("MatMul", x, sketch.weight("w", weight[0].T), outputs=["y"]), ["batch", 2, None])


def _left(sketch: Sketch, weight: Array) -> None:
    x = sketch.input("x", ["batch", weight.shape[2], 2])
    sketch.output(sketch.node("MatMul", sketch.weight("w", weight[0]), x, outputs=["y"]), ["batch", None, 2])


def _gemm(sketch: Sketch, weight: Array) -> None:
    x = sketch.input("x", ["batch", weight.shape[2]])
    y = sketch.node("Gemm", x, sketch.weight("w", weight[0]), outputs=["y"], transB=1)
    sketch.output(y, ["batch", None])


def _gemm_left(sketch: Sketch, weight: Array) -> None:
    x = sketch.input("x", [weight.shape[2], "batch"])
    y = sketch.node("Gemm", sketch.weight("w", weight[0].T), x, outputs=["y"], transA=1)
    sketch.output(y, [None, "batch"])


def _batched(sketch: Sketch, weight: Array) -> None:
    x = sketch.input("x", ["batch", len(weight), 2, weight.shape[2]])
    y = sketch.node("MatMul", x, sketch.weight("w", weight.swapaxes(1, 2)), outputs=["y"])
    sketch.output(y, ["batch", None, 2, None])


_ORIENTATIONS: dict[str, tuple[Draw, Callable[[Array, Array], Array]]] = {
    "right": (_right, lambda x, w: x @ w[0].T),
    "left": (_left, lambda x, w: w[0] @ x),
    "gemm": (_gemm, lambda x, w: x @ w[0].T),
    "gemm-left": (_gemm_left, lambda x, w: w[0] @ x),
    "batched": (_batched, lambda x, w: x @ w.swapaxes(1, 2)),
}
"""How a layer with the weight `[groups, outputs, inputs]` is drawn, and what it computes."""


def _versions(bits: int) -> dict[str, int]:
    """Opset and IR that a width needs; skips the test where the runtime has no kernels for it."""
    if bits > 2:
        return {"opset": 21, "ir_version": 10}
    if not features()["int2"]:
        pytest.skip("this ONNX Runtime takes no 2-bit weights")
    return {"opset": 25, "ir_version": 13}


def _needs_fusion() -> None:
    """Skip where the runtime is one that fuses some widths only, and those not in every form."""
    if not all(features()[f"int{bits}-matmulnbits"] for bits in (2, 4, 8)):
        pytest.skip("this ONNX Runtime does not fuse MatMul with weights of 2, 4 and 8 bits")


def _oriented(orientation: str, weight: Array, bits: int) -> onnx.ModelProto:
    sketch = Sketch(**_versions(bits))
    _ORIENTATIONS[orientation][0](sketch, weight)
    return sketch.model()


@given(
    orientation=st.sampled_from(sorted(_ORIENTATIONS)), outputs=st.integers(1, 40), inputs=st.integers(1, 70),
    bits=st.integers(2, 8), block_size=st.sampled_from([16, 32, 64, 128, 256, None]), symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "float32"]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=120)
def test_the_result_multiplies_by_what_the_codes_stand_for(
    orientation: str,
    outputs: int,
    inputs: int,
    bits: int,
    block_size: Any,
    symmetric: bool,
    scale_dtype: Any,
    seed: int,
) -> None:
    assume(bits > 2 or features()["int2"])
    weight = _normal(3 if orientation == "batched" else 1, outputs, inputs, seed=seed)
    source = _oriented(orientation, weight, bits)
    options = {"block_size": block_size, "symmetric": symmetric, "scale_dtype": scale_dtype}
    model, findings = _apply(source, bits=bits, min_elements=1, **options)
    assert len(findings.changes) == 1
    bits_there = 4 if bits == 2 and outputs % 4 else bits
    expected = dequantize(quantize(weight, QuantSpec(bits=bits_there, **options)))
    x = feeds(source, np.random.default_rng(seed))
    y = _ORIENTATIONS[orientation][1](x["x"], expected)
    assert _distance(_outputs(model, x, SessionMode.REFERENCE)[0], y) < 1e-5
    assert _distance(_outputs(model, x, SessionMode.DEPLOYED)[0], y) < 5e-2


_MATRICES = [name for name, form in FORMS.items() if not name.startswith("conv") and len(form.weight) > 1]


@pytest.mark.parametrize("form", _MATRICES)
@pytest.mark.parametrize("storage", ["raw", "transpose", "constant", "reshape", "cast"])
def test_every_form_of_a_layer_gives_what_replaced_weights_give(form: str, storage: str) -> None:
    source = linear(form, storage)
    source.opset_import[0].version, source.ir_version = 21, 10
    model, findings = _apply(source, block_size=16, min_elements=1)
    assert len(findings.changes) == 1
    assert not [value for value in model.weights() if value.name in ("w", "constant")], "the float weight goes"
    reference = load(source)
    layer = find_linears(reference)[0][0]
    weight = dequantize(quantize(layer.matrix(), QuantSpec(block_size=16, scale_dtype="float16")))
    reference.apply(layer.replaced(weight, dtype=ir.DataType.FLOAT))
    x = feeds(source, np.random.default_rng(1))
    found, expected = (_outputs(m, x, SessionMode.REFERENCE)[0] for m in (model, reference))
    assert _distance(found, expected) < 1e-5


@pytest.mark.parametrize("orientation", sorted(set(_ORIENTATIONS) - {"batched"}))
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_onnxruntime_makes_one_operator_of_a_layer(
    orientation: str, bits: int, block_size: int | None, symmetric: bool, tmp_path: Path
) -> None:
    _needs_fusion()
    source = _oriented(orientation, _normal(1, 24, 80), bits)
    model, _ = _apply(source, bits=bits, block_size=block_size, symmetric=symmetric, min_elements=1)
    operators = _operators(model, tmp_path)
    assert operators["MatMulNBits"] == 1
    assert not operators["DequantizeLinear"] + operators["MatMul"] + operators["Gemm"]


def test_two_bits_where_onnxruntime_would_be_wrong_become_four() -> None:
    source = _stack(("a", _normal(64, 64)), ("b", _normal(64, 50)), opset=25)
    source.ir_version = 13
    _, findings = _apply(source, bits=2)
    assert [change.what.split(",")[0] for change in findings.changes] == ["2 bit", "4 bit"]
    assert findings.notes == [
        "b: 4 bits in place of 2, as ONNX Runtime computes 2 bits wrongly where outputs, here 50, are no multiple of 4"
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize(("opset", "options"), [(21, {}), (13, {"bits": 8, "block_size": None})])
def test_layers_of_other_float_types(dtype: type, opset: int, options: dict[str, Any]) -> None:
    weight = _normal(64, 48, dtype=dtype)
    source = _stack(("a", weight), opset=opset, dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    model, _ = _apply(source, scale_dtype="float32", **options)
    scale = next(value for value in model.weights() if (value.name or "").endswith(".scale"))
    assert scale.dtype == (ir.DataType.FLOAT16 if dtype == np.float16 else ir.DataType.FLOAT)
    spec = QuantSpec(scale_dtype="float16" if dtype == np.float16 else "float32", **options)
    x = _normal(5, 64, dtype=dtype)
    expected = x.astype(np.float64) @ dequantize(quantize(weight.T, spec)).T
    assert _distance(_outputs(model, {"x": x}, SessionMode.REFERENCE)[0], expected) < (
        1e-3 if dtype == np.float16 else 1e-5
    )


def test_bfloat16_layers_stay_bfloat16() -> None:
    weight = ir.tensor(_normal(64, 48), ir.DataType.FLOAT).numpy().astype(ir.DataType.BFLOAT16.numpy())
    model, findings = _apply(_stack(("a", weight), dtype=TensorProto.BFLOAT16))
    assert [node.op_type for node in model.nodes()] == ["Cast", "DequantizeLinear", "Cast", "MatMul", "Identity"]
    assert findings.notes == [
        "1 layers are batched, share codes or cast them: plain ONNX Runtime dequantizes them in each run, "
        "which may be slower than before"
    ]


def test_float16_scales_give_way_where_they_cost_accuracy() -> None:
    large, small, mixed = _normal(64, 64) * 1e6, _normal(64, 64, seed=1) * 1e-4, _normal(64, 64, seed=2)
    mixed[:, 0] *= 1e-6
    source = _stack(("large", large), ("small", small), ("mixed", mixed))
    model, findings = _apply(source)
    types = {value.name: value.dtype for value in model.weights() if "scale" in (value.name or "")}
    assert types == {
        "large.weight.scale": ir.DataType.FLOAT,
        "small.weight.scale": ir.DataType.FLOAT,
        "mixed.weight.scale": ir.DataType.FLOAT16,
    }
    assert findings.notes == [
        "large: scales are float32: float16 does not reach that far",
        "small: scales are float32: they are too small for float16",
    ]
    assert float(findings.measures["worst_error"]) < 0.1


def _sharers(count: int, elements: int = 64, dtype: npt.DTypeLike = np.float32) -> onnx.ModelProto:
    """MatMul and Gemm in turns, all with the weight `w [elements, elements]` and inputs and outputs of their own."""
    sketch = Sketch(opset=21, ir_version=10)
    w = sketch.weight("w", _normal(elements, elements, dtype=dtype))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for i in range(count):
        op_type = "Gemm" if i % 2 else "MatMul"
        y = sketch.node(op_type, sketch.input(f"x{i}", ["rows", elements], kind), w, outputs=[f"y{i}"])
        sketch.nodes[-1].name = f"n{i}"
        sketch.output(y, ["rows", elements], kind)
    return sketch.model()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_layers_that_read_the_same_weight_get_codes_of_their_own_and_fuse(
    bits: int, symmetric: bool, dtype: type, tmp_path: Path
) -> None:
    source = _sharers({2: 4, 4: 5, 8: 2}[bits] // (2 if dtype == np.float16 else 1), dtype=dtype)
    _needs_fusion()
    source.opset_import[0].version, source.ir_version = _versions(bits).values()
    model, findings = _apply(source, bits=bits, symmetric=symmetric, min_elements=1)
    count = len(source.graph.input)
    assert [change.node for change in findings.changes] == [f"n{i}" for i in range(count)]
    operators = _operators(model, tmp_path)
    assert (operators["MatMulNBits"], operators["DequantizeLinear"]) == (count, 0)
    one = sum(tensor.nbytes for value in model.weights() if (tensor := value.const_value) is not None) // count
    assert findings.measures["weight_bytes_after"] == one * count
    assert findings.measures["bits_per_weight"] == 8 * one * count / 64**2
    assert [f", {one * (count - 1)} bytes in all" in note for note in findings.notes] == [True] * (count > 1)
    x = feeds(source, np.random.default_rng(0))
    spec = QuantSpec(bits=bits, symmetric=symmetric, scale_dtype="float16")
    weight = dequantize(quantize(_normal(64, 64, dtype=dtype).T, spec)).T
    for y, given_x in zip(_outputs(model, x, SessionMode.REFERENCE), x.values(), strict=True):
        assert _distance(y, given_x @ weight) < (1e-5 if dtype == np.float32 else 1e-3)


def test_codes_of_their_own_take_clearly_less_than_the_float_weight() -> None:
    _, findings = _apply(_sharers(4))
    assert len(findings.changes) == 4
    model, findings = _apply(_sharers(5))
    assert model.revision == 0
    assert _why(findings, "n0") == (
        "5 layers read w: codes for each would take about 13520 bytes and it has 16384 now; "
        "`shared: once` takes 4304, but ONNX Runtime would dequantize them in each run"
    )
    assert len(findings.declined) == 5
    assert ["1 weights stay in floating point" in note for note in findings.notes] == [True]


def test_layers_that_read_the_same_weight_can_share_its_codes() -> None:
    source = _sharers(7)
    model, findings = _apply(source, shared="once")
    assert len(findings.changes) == 7
    assert [note.split(":")[0] for note in findings.notes] == ["7 layers are batched, share codes or cast them"]
    assert sorted(value.name or "" for value in model.weights()) == ["w.codes", "w.scale"]
    assert findings.measures["bits_per_weight"] == 4.5
    x = feeds(source, np.random.default_rng(0))
    weight = dequantize(quantize(_normal(64, 64).T, QuantSpec(scale_dtype="float16"))).T
    for y, given_x in zip(_outputs(model, x, SessionMode.REFERENCE), x.values(), strict=True):
        assert _distance(y, given_x @ weight) < 1e-5


def test_layers_that_would_not_fuse_share_their_codes() -> None:
    model, findings = _apply(_sharers(4, dtype=np.float64))
    assert len(findings.changes) == 4
    assert sorted(value.name or "" for value in model.weights()) == ["w.codes", "w.scale"]


def test_copies_of_codes_survive_a_file(tmp_path: Path) -> None:
    model, _ = _apply(_sharers(3), workdir=WorkDir(tmp_path / "work", {}, resume=False))
    model.save(tmp_path / "inside.onnx")
    model.save(tmp_path / "beside.onnx", external_data=True)
    contents = []
    for name in ("inside", "beside"):
        read = onnx.load(tmp_path / f"{name}.onnx")
        codes = [tensor.raw_data for tensor in read.graph.initializer if "codes" in tensor.name]
        assert len({tensor.name for tensor in read.graph.initializer}) == 6
        assert len(codes) == 3
        contents += codes
    assert len(set(contents)) == 1


def _both_ways(elements: int = 64) -> onnx.ModelProto:
    sketch = Sketch(opset=21, ir_version=10)
    w = sketch.weight("w", _normal(elements, elements))
    hidden = sketch.node("Relu", sketch.node("MatMul", sketch.input("x", ["rows", elements]), w))
    sketch.output(sketch.node("MatMul", hidden, sketch.node("Transpose", w), outputs=["y"]), ["rows", elements])
    return sketch.model()


def test_a_weight_read_both_ways_round_is_quantized_twice() -> None:
    source = _both_ways()
    model, findings = _apply(source, bits=8)
    names = sorted(value.name or "" for value in model.weights())
    assert names == ["w.codes", "w.codes_1", "w.scale", "w.scale_1"]
    assert len(findings.changes) == 2
    x = {"x": _normal(3, 64)}
    found, expected = (_outputs(m, x, SessionMode.REFERENCE)[0] for m in (model, source))
    assert _distance(found, expected) < 2e-2


def _branches(opset: int, ir_version: int) -> onnx.ModelProto:
    """If with the same product, named after its branch, in both branches; the weight lies outside."""
    branches = []
    for name in ("then", "else"):
        body = Sketch(name)
        body.output(body.node("MatMul", "x", "w", outputs=[f"{name}_y"]), ["rows", 48])
        body.nodes[-1].name = name
        branches.append(body.graph())
    sketch = Sketch(opset=opset, ir_version=ir_version)
    sketch.input("x", ["rows", 64])
    sketch.weight("w", _normal(64, 48))
    if ir_version < 4:
        sketch.inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 48]))
    choice = sketch.input("choice", [], TensorProto.BOOL)
    y = sketch.node("If", choice, outputs=["y"], then_branch=branches[0], else_branch=branches[1])
    sketch.output(y, ["rows", 48])
    return sketch.model()


def test_codes_of_a_branch_lie_in_the_branch(tmp_path: Path) -> None:
    model, findings = _apply(_branches(21, 10))
    assert len(findings.changes) == 2
    assert _operators(model, tmp_path)["MatMulNBits"] == 2
    x = {"x": _normal(3, 64), "choice": np.array(True)}
    assert _distance(_outputs(model, x, SessionMode.DEPLOYED)[0], x["x"] @ _normal(64, 48)) < 0.15


def test_branches_of_a_file_without_weights_in_branches_are_declined() -> None:
    _, findings = _apply(_branches(13, 3), bits=8, block_size=None)
    why = "IR version 3 has no weights in subgraphs, where the codes would have to be"
    assert [declined.why for declined in findings.declined] == [why, why]


def test_old_files_that_list_weights_as_inputs_are_quantized() -> None:
    source = _stack(("a", _normal(64, 64)), opset=13)
    source.ir_version = 3
    source.graph.input.append(helper.make_tensor_value_info("a.weight", TensorProto.FLOAT, [64, 64]))
    model, _ = _apply(source, bits=8, block_size=None)
    assert {value.name for value in model.graph.inputs} == {"x", "a.weight.codes", "a.weight.scale"}


def test_a_weight_that_something_else_reads_stays_as_it_is() -> None:
    sketch = Sketch(opset=21, ir_version=10)
    table = sketch.weight("table", _normal(100, 64))
    hidden = sketch.node("Gather", table, sketch.input("ids", ["rows"], TensorProto.INT64))
    sketch.output(sketch.node("MatMul", hidden, sketch.node("Transpose", table), outputs=["y"]), ["rows", 100])
    model, findings = _apply(sketch.model())
    assert not findings.changed
    assert _why(findings, "MatMul_node") == (
        "weight table is also read by Gather Gather_node, which is not quantized, "
        "so it would stay in the file beside its codes"
    )
    assert model.revision == 0


def test_a_weight_that_is_an_output_stays() -> None:
    source = _stack(("a", _normal(64, 64)))
    source.graph.output.append(helper.make_tensor_value_info("a.weight", TensorProto.FLOAT, [64, 64]))
    _, findings = _apply(source)
    assert "weight a.weight is also the graph output a.weight" in _why(findings, "a")


def test_a_layer_that_cannot_become_a_matmul_stays() -> None:
    sketch = Sketch(opset=21, ir_version=10)
    c = sketch.node("Relu", sketch.input("c", ["rows", 64]))
    y = sketch.node("Gemm", sketch.input("x", ["rows", 64]), sketch.weight("w", _normal(64, 64)), c, beta=0.5)
    sketch.output(sketch.node("Identity", y, outputs=["y"]), None)
    _, findings = _apply(onnx.shape_inference.infer_shapes(sketch.model()))
    assert "beta = 0.5" in _why(findings, "Gemm_node")


def test_all_sharers_stay_where_one_is_left_out() -> None:
    source = linear("matmul", sharers=2)
    source.opset_import[0].version, source.ir_version = 21, 10
    _, findings = _apply(source, min_elements=1, exclude=["MatMul_node_1"])
    assert not findings.changed
    assert _why(findings, "MatMul_node_1") == "exclude names it"
    assert "also read by MatMul MatMul_node_1" in _why(findings, "MatMul_node")


def test_options_of_a_layer_come_from_overrides() -> None:
    source = _stack(*((name, _normal(64, 64)) for name in "abcd"))
    overrides: list[dict[str, Any]] = [
        {"match": "a", "skip": True},
        {"match": "b.weight", "bits": 8, "block_size": None},
        {"match": "re:^[bc]$", "symmetric": False},
    ]
    _, findings = _apply(source, overrides=overrides)
    whats = [f"{change.node}: {change.what.partition(', error')[0]}" for change in findings.changes]
    assert whats == ["b: 8 bit, per column, zero points", "c: 4 bit, block 32, zero points", "d: 4 bit, block 32"]
    assert _why(findings, "a") == "an override skips it"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ({"bits": 9}, "overrides for a: bits: must be 2, 3, 4, 5, 6, 7 or 8, not 9"),
        ({"block_size": 20}, "overrides for a: block_size: must be 16, 32, 64, 128 or 256, not 20"),
    ],
)
def test_wrong_overrides_are_errors(override: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError) as error:
        _apply(_stack(("a", _normal(64, 64))), overrides=[{"match": "*", **override}])
    assert str(error.value).startswith(line)


def test_include_and_exclude_name_nodes_or_weights() -> None:
    source = _stack(*((name, _normal(64, 64)) for name in ("mlp.up", "mlp.down", "head")))
    _, findings = _apply(source, include=["mlp.*", "nothing"], exclude=["*down.weight"])
    assert [change.node for change in findings.changes] == ["mlp.up"]
    assert _why(findings, "mlp.down") == "exclude names it"
    assert _why(findings, "head") == "include does not name it"
    assert findings.notes == ["include: 'nothing' names no layer"]


def test_small_weights_stay_where_nothing_is_won() -> None:
    source = _stack(("large", _normal(32, 32)), ("small", _normal(32, 3)))
    _, findings = _apply(source)
    assert [change.node for change in findings.changes] == ["large"]
    assert _why(findings, "small") == "it would take about 454 bytes with its nodes and has 384 now"
    _, findings = _apply(source, min_elements=2000)
    assert _why(findings, "large") == "its 1024 weights are fewer than min_elements, 2000"


def test_the_file_gets_smaller_by_what_is_said(tmp_path: Path) -> None:
    source = _stack(*((f"layers.{i}.proj", _normal(256, 256)) for i in range(4)))
    onnx.save(source, tmp_path / "before.onnx")
    model, findings = _apply(source)
    model.save(tmp_path / "after.onnx")
    saved = (tmp_path / "before.onnx").stat().st_size - (tmp_path / "after.onnx").stat().st_size
    measures = findings.measures
    assert measures["bits_per_weight"] == 4.5
    assert measures["quantized_share"] == 1
    told = int(measures["weight_bytes_before"]) - int(measures["weight_bytes_after"])
    assert told - saved == pytest.approx(4 * 400, abs=4 * 100)
    assert measures["weight_bytes_after"] == 4 * 256 * 256 * 4.5 / 8


def test_a_second_run_finds_all_quantized() -> None:
    model, _ = _apply(_stack(("a", _normal(256, 64)), ("b", _normal(64, 256))))
    before = model.proto().SerializeToString(deterministic=True)
    again, findings = _apply(model)
    assert not findings.changed
    assert findings.measures == {}
    assert findings.declined == [
        Declined(name, "quantize-weights", "already quantized: stored as INT4") for name in ("a", "b")
    ]
    assert again.proto().SerializeToString(deterministic=True) == before


def test_what_is_no_matrix_product_is_declined() -> None:
    sketch = Sketch(opset=21, ir_version=10)
    x = sketch.input("x", [5, 1, 16])
    sketch.node("LSTM", x, sketch.weight("lstm.w", _normal(1, 64, 16)), sketch.weight("lstm.r", _normal(1, 64, 16)),
                outputs=["h"], hidden_size=16)  # fmt: skip
    image = sketch.node("Reshape", "h", sketch.weight("shape", np.array([1, 16, 5, 1])))
    y = sketch.node("Conv", image, sketch.weight("conv.w", _normal(64, 16, 1, 1)))
    scores = sketch.node("MatMul", y, sketch.node("Transpose", y, perm=[0, 1, 3, 2]))
    sketch.output(sketch.node("Identity", scores, outputs=["y"]), None)
    _, findings = _apply(onnx.shape_inference.infer_shapes(sketch.model(), strict_mode=True))
    reasons = {declined.node: declined.why for declined in findings.declined}
    assert set(reasons) == {"lstm.w", "lstm.r", "Conv_node", "MatMul_node"}
    assert reasons["lstm.w"] == "read by LSTM, which takes no quantized weight"
    assert reasons["Conv_node"].startswith("runtimes have no convolution")
    assert reasons["MatMul_node"] == "both operands are activations"


def test_a_weight_that_callers_may_feed_stays() -> None:
    source = _stack(("a", _normal(64, 64)))
    source.graph.input.append(helper.make_tensor_value_info("a.weight", TensorProto.FLOAT, [64, 64]))
    _, findings = _apply(source)
    assert "default of a graph input" in _why(findings, "a")


@pytest.mark.parametrize(
    ("opset", "options", "needs"),
    [(20, {}, 21), (24, {"bits": 2}, 25), (20, {"bits": 8}, 21), (12, {"bits": 8, "block_size": None}, 13)],
)
def test_an_opset_that_lacks_the_format_is_declined(opset: int, options: dict[str, Any], needs: int) -> None:
    _, findings = _apply(_stack(("a", _normal(64, 64)), opset=opset), **options)
    assert f"needs opset {needs} and the model has {opset}" in _why(findings, "a")


class _Upgrade(Pass):
    """Stands for `upgrade-opset`."""

    to: int


@pytest.mark.parametrize(
    ("options", "opset"),
    [({}, 21), ({"bits": 2}, 25), ({"bits": 8}, 21), ({"bits": 8, "block_size": None}, 13), ({"block_size": None}, 21)],
)
def test_the_opset_is_raised_first_and_no_further_than_needed(
    options: dict[str, Any], opset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str, given_options: dict[str, Any]) -> Pass:
        assert name == "upgrade-opset"
        return _Upgrade(**given_options)

    monkeypatch.setattr(quantize_weights, "make", make)
    quantizer = QuantizeWeights(**options)
    assert quantizer.expand() == [_Upgrade(to=opset), quantizer]
    assert parts(quantizer) == [_Upgrade(to=opset), quantizer]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale_dtype", ["float16", "float32"])
def test_a_weight_that_is_not_finite_is_an_error(bad: float, scale_dtype: str) -> None:
    weight = _normal(64, 48)
    weight[3, 7] = bad
    with pytest.raises(ModelError) as error:
        _apply(_stack(("a", weight)), scale_dtype=scale_dtype)
    assert str(error.value).startswith(f"weight a.weight of layer a is {bad} at [3, 7]: ")


@pytest.mark.parametrize(
    "options", [{"bits": 1}, {"bits": 9}, {"block_size": 20}, {"preset": "best"}, {"min_elements": 0}, {"blocks": 3}]
)
def test_wrong_options_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QuantizeWeights(**options)


def test_stored_arrays_are_mapped_from_the_work_folder(tmp_path: Path) -> None:
    workdir = WorkDir(tmp_path / "work", {}, resume=False)
    weight = _normal(96, 50)
    model, _ = _apply(_stack(("a", weight)), workdir=workdir)
    kinds = {value.name: type(value.const_value) for value in model.weights()}
    assert kinds == {"a.weight.codes": ir.ExternalTensor, "a.weight.scale": ir.ExternalTensor}
    expected = quantize(weight.T, QuantSpec(scale_dtype="float16"))
    stored = {value.name: value.const_value.numpy() for value in model.weights() if value.const_value is not None}
    np.testing.assert_array_equal(stored["a.weight.codes"].astype(np.int8), expected.codes.T)
    np.testing.assert_array_equal(stored["a.weight.scale"], expected.scale.T)


@pytest.mark.parametrize(("name", "ratio"), [("hf_bert_tiny_dynamo", 0.34), ("digits_transformer_legacy", 0.27)])
def test_real_models_fuse_entirely(name: str, ratio: float, zoo: Path, tmp_path: Path) -> None:
    _needs_fusion()
    source = onnx.load(zoo / f"{name}.onnx")
    source = version_converter.convert_version(source, 21)
    source.ir_version = 10
    model, findings = _apply(source)
    model.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < ratio * (zoo / f"{name}.onnx").stat().st_size
    assert _operators(model, tmp_path)["MatMulNBits"] == len(findings.changes) > 15


_MEASURE = """
import sys, threading, time
from pathlib import Path
from onnxopt.context import RunContext
from onnxopt.model import load
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights
from onnxopt.workdir import WorkDir
folder = Path(sys.argv[1])
peak, over = 0, False
def watch():
    global peak
    while not over:
        text = Path("/proc/self/status").read_text()
        peak = max(peak, int(text.split("RssAnon:")[1].split()[0]))
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
model = load(folder / "large.onnx")
findings = QuantizeWeights().run(model, RunContext(model, workdir=WorkDir(folder / "work", {}, resume=False)))
model.save(folder / "small.onnx")
over = True
thread.join()
print(len(findings.changes), peak // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_half_a_gigabyte_takes_less_than_300_mb_of_memory(tmp_path: Path) -> None:
    weight = np.tile(_normal(64, 4096), (64, 1))
    model = _stack(*((f"layers.{i}", weight) for i in range(8)))
    onnx.save(model, tmp_path / "large.onnx", save_as_external_data=True, location="large.data")
    command = [sys.executable, "-c", _MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    changes, peak = map(int, done.stdout.split())
    assert changes == 8
    assert peak < 300
