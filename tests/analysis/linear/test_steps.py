"""What lies between storage and layer: numpy against onnxruntime, to the bit, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxopt.analysis.linear.sources import Source, Sources
from onnxopt.backends.sessions import SessionMode, open_session
from onnxopt.model import Model, load
from onnxopt.models.builders import Sketch


def value_of(model: Model, name: str) -> ir.Value:
    return next(value for node in model.nodes() for value in node.outputs if value.name == name)


def source(sketch: Sketch, name: str) -> Source | str:
    """The source of a constant in a sketch, given out as float32."""
    return Sources().find(value_of(load(finished(sketch, name)), name))


def finished(sketch: Sketch, name: str) -> onnx.ModelProto:
    sketch.output(sketch.node("Cast", name, to=TensorProto.FLOAT, outputs=["y"]), None)
    return sketch.model()


def agree(sketch: Sketch, name: str) -> None:
    """Whether numpy gives the bits that onnxruntime gives."""
    proto = finished(sketch, name)
    found = Sources().find(value_of(load(proto), name))
    assert isinstance(found, Source), found
    (expected,) = open_session(proto.SerializeToString(), SessionMode.NOISE_NONE).run(["y"], {})
    assert found.form.shape == expected.shape
    assert found.array().shape == expected.shape
    assert found.array().dtype == found.form.dtype.numpy()
    assert found.array().astype(np.float32).tobytes() == expected.tobytes()


CODES = {
    TensorProto.INT8: (13, -128, 128),
    TensorProto.UINT8: (13, 0, 256),
    TensorProto.INT16: (21, -(2**15), 2**15),
    TensorProto.UINT16: (21, 0, 2**16),
    TensorProto.INT4: (21, -8, 8),
    TensorProto.UINT4: (21, 0, 16),
}
SCALES = {TensorProto.FLOAT: 13, TensorProto.FLOAT16: 19}


@given(
    st.sampled_from(sorted(CODES)),
    st.sampled_from(sorted(SCALES)),
    st.sampled_from(["tensor", "one", "axis", "blocks"]),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.booleans(),
    st.data(),
)
def test_dequantize_linear(
    code: int, scale: int, granularity: str, shape: list[int], with_zero: bool, data: st.DataObject
) -> None:
    opset, least, beyond = CODES[code]
    axis, block = data.draw(st.integers(-len(shape), len(shape) - 1)), data.draw(st.integers(1, 3))
    attributes: dict[str, Any] = {"axis": axis}
    parts = {"tensor": [], "one": [1], "axis": [shape[axis]]}.get(granularity)
    if parts is None:
        parts, opset = list(shape), 21
        parts[axis] = -(-shape[axis] // block)
        attributes["block_size"] = block
        assume(len(shape) > 1 or parts != [1])  # onnxruntime takes the one block of a vector for a whole tensor
    sketch = Sketch(opset=max(opset, SCALES[scale]), ir_version=10)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))

    def codes(name: str, sizes: list[int]) -> str:
        drawn = rng.integers(least, beyond, sizes).flatten().tolist()
        return sketch.weight(name, helper.make_tensor("", code, sizes, drawn))

    scales = rng.uniform(0.01, 2, parts).astype(helper.tensor_dtype_to_np_dtype(scale))
    inputs = [codes("q", shape), sketch.weight("s", np.asarray(scales))]
    agree(sketch, sketch.node("DequantizeLinear", *inputs, *([codes("z", parts)] if with_zero else []), **attributes))


@pytest.mark.parametrize("dtype", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_dequantize_float8(dtype: str) -> None:
    sketch = Sketch(opset=19, ir_version=9)
    values = sketch.normal(6)
    q = sketch.weight("q", helper.make_tensor("", getattr(TensorProto, dtype), [2, 3], values.tolist()))
    agree(sketch, sketch.node("DequantizeLinear", q, sketch.weight("s", np.array(0.3, np.float32))))


def test_dequantize_int32_bias() -> None:
    sketch = Sketch(opset=13)
    q = sketch.weight("q", np.array([2**31 - 1, -(2**31), 16777217, 3], np.int32))
    agree(sketch, sketch.node("DequantizeLinear", q, sketch.weight("s", np.array(0.37, np.float32))))


@pytest.mark.parametrize("stored", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT16", "INT64", "BOOL"])
@pytest.mark.parametrize("to", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"])
def test_cast(stored: str, to: str) -> None:
    sketch = Sketch(opset=13)
    values = [1.0, -3.14159, 1e-7, 77.7, 65536.0] if "FLOAT" in stored or stored == "DOUBLE" else [1, 0, 1]
    if stored == "FLOAT16":
        values = values[:-1]
    w = sketch.weight("w", helper.make_tensor("", getattr(TensorProto, stored), [len(values)], values))
    agree(sketch, sketch.node("Cast", w, to=getattr(TensorProto, to)))


def test_cast_like_an_activation_of_known_type() -> None:
    sketch = Sketch(opset=15)
    x = sketch.input("x", [2], TensorProto.FLOAT16)
    found = source(sketch, sketch.node("CastLike", sketch.random("w", 2, 3), x))
    assert isinstance(found, Source)
    assert found.form.dtype == ir.DataType.FLOAT16
    unknown = Sketch(opset=15)
    x = unknown.node("Relu", unknown.input("x", [2]))
    assert "not known" in str(source(unknown, unknown.node("CastLike", unknown.random("w", 2), x)))


@pytest.mark.parametrize("perm", [None, [0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_transpose(perm: list[int] | None) -> None:
    sketch = Sketch()
    agree(sketch, sketch.node("Transpose", sketch.random("w", 2, 3, 4), **({"perm": perm} if perm else {})))


@pytest.mark.parametrize(
    ("target", "attributes"),
    [([6, 4], {}), ([-1], {}), ([0, -1], {}), ([0, 0, 2, 2], {}), ([2, -1, 4], {"allowzero": 1})],
)
def test_reshape(target: list[int], attributes: dict[str, int]) -> None:
    sketch = Sketch()
    shape = sketch.weight("shape", np.array(target))
    agree(sketch, sketch.node("Reshape", sketch.random("w", 2, 3, 4), shape, **attributes))


def test_scales_may_be_quantized_themselves() -> None:
    sketch = Sketch(opset=21, ir_version=10)
    inner = sketch.weight("qs", np.array([3, 5, 7], np.uint8)), sketch.weight("ss", np.array(0.01, np.float32))
    scale = sketch.node("DequantizeLinear", *inner)
    q = sketch.weight("q", np.arange(6, dtype=np.int8).reshape(2, 3))
    agree(sketch, sketch.node("DequantizeLinear", q, scale))


def nested(sketch: Sketch) -> str:
    name = sketch.random("s", 1)
    for count in range(9):
        name = sketch.node("DequantizeLinear", sketch.weight(f"q{count}", np.array([1], np.int8)), name)
    return name


REFUSED: dict[str, tuple[Callable[[Sketch], str], str]] = {
    "graph input": (lambda s: s.node("Transpose", s.input("w", [2, 3])), "is an input of the graph"),
    "computed": (lambda s: s.node("Transpose", s.node("Relu", s.random("w", 2, 3))), "is computed by Relu"),
    "computed scale": (
        lambda s: s.node("DequantizeLinear", s.weight("q", np.zeros(2, np.int8)), s.node("Abs", s.random("s"))),
        "is computed by Abs",
    ),
    "to integers": (lambda s: s.node("Cast", s.random("w", 2), to=TensorProto.INT32), "casts to INT32"),
    "strings": (lambda s: s.node("Cast", s.weight("w", np.array(["1"], object)), to=TensorProto.FLOAT), "holds STRING"),
    "nested scales": (nested, "nest more than"),
    "unknown shape": (
        lambda s: s.node("Reshape", s.random("w", 2, 3), s.input("shape", [1], TensorProto.INT64)),
        "where shape is an input",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_reason(name: str) -> None:
    draw, why = REFUSED[name]
    sketch = Sketch(opset=21, ir_version=10)
    found = source(sketch, draw(sketch))
    assert isinstance(found, str)
    assert why in found


def test_a_cycle_ends() -> None:
    first = ir.node("Identity", [ir.Value(name="w")])
    second = ir.node("Identity", first.outputs)
    first.replace_input_with(0, second.outputs[0])
    assert Sources().find(second.outputs[0]) == "is on a cycle"
