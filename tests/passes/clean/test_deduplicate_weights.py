"""deduplicate-weights: equal bytes are stored once; what callers and runtimes need apart stays apart."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.passes.clean import deduplicate_weights
from onnxopt.passes.clean.deduplicate_weights import DeduplicateWeights

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def names(model: Model) -> list[str]:
    return sorted(value.name or "" for value in model.weights())


@pytest.mark.parametrize(
    ("weights", "left"),
    [
        ("float[2] a = {1, 2}, float[2] b = {1, 2}, float[2] c = {1, 2}", ["a"]),
        ("float[2] a = {1, 2}, float[2] b = {1, 3}, float[2] c = {1, 2}", ["a", "b"]),
        ("float[2] a = {1, 2}, float[1, 2] b = {1, 2}, float[2, 1] c = {1, 2}", ["a", "b", "c"]),
        ("float[2] a = {0, 2}, float[2] b = {-0.0, 2}, float[2] c = {0, 2}", ["a", "b"]),
    ],
)
def test_equal_bytes(exact: Any, weights: str, left: list[str]) -> None:
    source = f"{HEAD} g (float[2, 2] x) => (float[2, 2] y) <{weights}> {{ d = Add(x, a) e = Mul(d, b) y = Sub(e, c) }}"
    model, findings = exact(source, DeduplicateWeights())
    assert names(model) == left
    assert findings.measures.get("saved_bytes", 0) == 8 * (3 - len(left))


def test_types_tell_apart() -> None:
    source = f"""{HEAD} g (float x) => (float y, int32 z) <float[2] a = {{0, 0}}, int32[2] b = {{0, 0}}> {{
        y = ReduceSum<keepdims = 0>(a) z = ReduceSum<keepdims = 0>(b) }}"""
    model = load(onnx.parser.parse_model(source))
    assert not DeduplicateWeights().run(model, RunContext(model)).changed


def test_what_callers_feed_and_get_stays(exact: Any) -> None:
    source = f"""{HEAD} g (float[2] x, float[2] a = {{1, 2}}) => (float[2] y, float[2] d, float[2] z)
        <float[2] b = {{1, 2}}, float[2] c = {{1, 2}}, float[2] d = {{1, 2}}> {{
        e = Add(x, a) f = Mul(e, b) y = Sub(f, c) z = Neg(d) }}"""
    model = load(onnx.parser.parse_model(source))
    DeduplicateWeights().run(model, RunContext(model))
    assert sorted(model.graph.initializers) == ["a", "b", "d"]


def test_old_files_list_weights_as_inputs() -> None:
    source = """<ir_version: 3, opset_import: ["" : 9]> g (float[2] x, float[2] a, float[2] b) => (float[2] y)
        <float[2] a = {1, 2}, float[2] b = {1, 2}> { c = Add(x, a) y = Mul(c, b) }"""
    model = load(onnx.parser.parse_model(source))
    assert DeduplicateWeights().run(model, RunContext(model)).changed
    assert [value.name for value in model.graph.inputs] == ["x", "a"]


def test_quantized_weights_stay_apart_but_for_scalars(exact: Any) -> None:
    source = f"""{HEAD} g (float[2] x) => (float[2] y) <uint8[2] a = {{1, 2}}, uint8[2] b = {{1, 2}}, float s = {{0.5}},
        float t = {{0.5}}> {{ c = DequantizeLinear(a, s) d = DequantizeLinear(b, t) e = Mul(x, c) y = Sub(e, d) }}"""
    model, _ = exact(source, DeduplicateWeights())
    assert names(model) == ["a", "b", "s"]


def test_bodies_read_from_outside_but_not_from_one_another(exact: Any) -> None:
    source = f"""{HEAD} g (bool b, float[2] x) => (float[2] y) <float[2] w = {{1, 2}}> {{
        h = Add(x, w)
        y = If(b)<then_branch = t () => (float[2] p) <float[2] w1 = {{1, 2}}, float[2] v1 = {{5, 2}}>
                      {{ i = Add(h, w1) p = Mul(i, v1) }},
                  else_branch = e () => (float[2] q) <float[2] w2 = {{1, 2}}, float[2] v2 = {{5, 2}}>
                      {{ j = Add(h, w2) q = Mul(j, v2) }}> }}"""
    feeds = [{"b": np.array(b), "x": np.float32([-1, 2])} for b in (True, False)]
    model, _ = exact(source, DeduplicateWeights(), feeds)
    assert names(model) == ["v1", "v2", "w"]


@pytest.mark.parametrize("dtype", [TensorProto.INT4, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN])
def test_types_that_numpy_lacks(dtype: int) -> None:
    tensors = [
        helper.make_tensor(name, dtype, [3], values)
        for name, values in zip("abc", ([1, 2, 3], [1, 2, 3], [1, 2, 4]), strict=True)
    ]
    nodes = [helper.make_node("Cast", [name], [f"y{name}"], to=TensorProto.FLOAT) for name in "abc"]
    info = [helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, [3]) for name in "abc"]
    model = load(helper.make_model(helper.make_graph(nodes, "g", [], info, tensors)))
    DeduplicateWeights().run(model, RunContext(model))
    assert names(model) == ["a", "c"]


def large(folder: Path, *, external: bool) -> Model:
    """Four weights of 8 MB: the first three equal but for the last byte of the third."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal(2**21).astype(np.float32)
    third = first.copy()
    third.view(np.uint8)[-1] ^= 1
    arrays = {"a": first, "b": first, "c": third, "d": first[::-1].copy()}
    nodes = [helper.make_node("Sum", ["x", *arrays], ["y"])]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2**21]) for name in "xy"]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    proto = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], weights), ir_version=8)
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=external)
    return load(path)


@pytest.mark.parametrize("external", [False, True])
def test_large_weights_are_neither_held_nor_mapped(tmp_path: Path, external: bool, monkeypatch: Any) -> None:
    model = large(tmp_path, external=external)
    digested = []
    digest = deduplicate_weights._digest
    monkeypatch.setattr(deduplicate_weights, "_digest", lambda t: (digested.append(t.name), digest(t))[1])
    DeduplicateWeights().run(model, RunContext(model))
    assert names(model) == ["a", "c", "d"]
    assert digested == ["a", "b"] or digested == ["a", "b", "c"], "samples tell most of them apart"
    tensors = [value.const_value for value in model.weights()]
    assert not any(isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None for tensor in tensors)


@settings(max_examples=40)
@given(data=st.data())
def test_random_graphs(exact: Any, random_chain: Any, chain_feeds: Any, data: st.DataObject) -> None:
    model, _ = exact(load(random_chain(data.draw)), DeduplicateWeights(), chain_feeds)
    contents = [(v.const_value.dtype, tuple(v.shape), v.const_value.tobytes()) for v in model.weights() if v.uses()]
    assert len(contents) == len(set(contents))
