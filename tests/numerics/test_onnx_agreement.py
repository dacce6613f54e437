"""What is computed here is what ONNX means: DequantizeLinear in the reference evaluator and in ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxopt.backends.capabilities import features
from onnxopt.numerics import Quantized, QuantSpec, dequantize, pack, quantize

STORED: dict[tuple[int, bool], int] = {
    (2, True): TensorProto.INT2,
    (2, False): TensorProto.UINT2,
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
}


def stored(name: str, codes: np.ndarray, spec: QuantSpec) -> onnx.TensorProto:
    """Return `[..., O, n]` codes as the `[..., n, O]` tensor of a file."""
    kind = STORED[spec.storage_bits, spec.symmetric]
    raw = pack(codes.swapaxes(-1, -2), spec.storage_bits).tobytes()
    return helper.make_tensor(name, kind, codes.swapaxes(-1, -2).shape, raw, raw=True)


def model_of(quantized: Quantized, *, matmul: bool = False) -> onnx.ModelProto:
    """Return `() -> W [I, O]`, or `x -> x W`, with the quantized weight dequantized in the graph."""
    spec, (outputs, inputs) = quantized.spec, quantized.codes.shape
    scale = quantized.scale.T if spec.block_size else quantized.scale[:, 0]
    initializers = [stored("B", quantized.codes, spec), numpy_helper.from_array(np.ascontiguousarray(scale), "scale")]
    operands = ["B", "wide_scale"]
    if quantized.zero_point is not None:
        initializers.append(stored("zero_point", quantized.zero_point, spec))
        if not spec.block_size:
            initializers[-1].dims[:] = [outputs]
        operands.append("zero_point")
    axis: dict[str, Any] = {"axis": 0, "block_size": spec.block_size} if spec.block_size else {"axis": 1}
    nodes = [
        helper.make_node("Cast", ["scale"], ["wide_scale"], to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", operands, ["W"], **axis),
    ]
    taken = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])] if matmul else []
    given = helper.make_tensor_value_info("W", TensorProto.FLOAT, [inputs, outputs])
    if matmul:
        nodes.append(helper.make_node("MatMul", ["x", "W"], ["y"]))
        given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])
    graph = helper.make_graph(nodes, "dequantize", taken, [given], initializers)
    opset, ir_version = (25, 13) if spec.storage_bits == 2 else (21, 10)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def needs_kernels(bits: int) -> None:
    """Skip where the runtime has none for codes of that width."""
    if bits == 2 and not features()["int2"]:
        pytest.skip("this ONNX Runtime takes no 2-bit weights")


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], **config: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in config.items():
        options.add_session_config_entry(f"session.{key}", value)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def lopsided(outputs: int, inputs: int) -> np.ndarray:
    rng = np.random.default_rng(outputs + inputs)
    weight = rng.normal(rng.normal(size=(outputs, 1)), 1, (outputs, inputs)).astype(np.float32)
    weight[1] = 0
    return weight


SPECS: list[dict[str, Any]] = [
    *({"bits": bits, "symmetric": symmetric} for bits in range(2, 9) for symmetric in (True, False)),
    *({"bits": bits, "grid": grid} for bits in (2, 4, 8) for grid in ("narrow", "full")),
    *({"bits": bits, "symmetric": symmetric, "block_size": None} for bits in (2, 4, 8) for symmetric in (True, False)),
    {"bits": 4, "block_size": 16, "scale_dtype": "float16"},
    {"bits": 2, "block_size": 256, "symmetric": False, "scale_dtype": "float16"},
]


@pytest.mark.parametrize("options", SPECS, ids=str)
@pytest.mark.parametrize("shape", [(8, 64), (7, 75)], ids=str)
def test_dequantize_equals_onnx_bit_for_bit(options: dict[str, Any], shape: tuple[int, int]) -> None:
    quantized = quantize(lopsided(*shape), QuantSpec.model_validate(options))
    needs_kernels(quantized.spec.storage_bits)
    expected = dequantize(quantized).T
    model = model_of(quantized)
    assert run(model, {}).tobytes() == expected.tobytes()
    (by_reference,) = ReferenceEvaluator(model).run(None, {})
    np.testing.assert_array_equal(by_reference, expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", [{}, {"grid": "full"}, {"grid": "narrow"}, {"symmetric": False}], ids=str)
def test_low_bit_matmul_takes_every_grid(bits: int, kind: dict[str, Any]) -> None:
    """The runtime fuses the pattern to its low-bit kernel, which has to take negative scales as well."""
    needs_kernels(bits)
    quantized = quantize(lopsided(32, 160), QuantSpec.model_validate({"bits": bits, **kind}))
    model = model_of(quantized, matmul=True)
    x = np.random.default_rng(1).normal(size=(3, 160)).astype(np.float32)
    expected = x @ dequantize(quantized).T
    for level, tolerance in (("1", 1e-5), ("4", 2e-2)):
        result = run(model, {"x": x}, qdq_matmulnbits_accuracy_level=level)
        assert np.linalg.norm(result - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_equal_onnx_quantize_linear(bits: int) -> None:
    """With our scales and zero points QuantizeLinear picks our codes, ties and clipping included."""
    needs_kernels(bits)
    spec = QuantSpec.model_validate({"bits": bits, "symmetric": False})
    weight = np.round(lopsided(8, 64) * 4) / np.float32(4)
    quantized = quantize(weight, spec)
    assert quantized.zero_point is not None
    scale = numpy_helper.from_array(np.ascontiguousarray(quantized.scale.T), "scale")
    values = [scale, stored("zero_point", quantized.zero_point, spec)]
    node = helper.make_node("QuantizeLinear", ["w", "scale", "zero_point"], ["q"], axis=0, block_size=32)
    back = helper.make_node("Cast", ["q"], ["codes"], to=TensorProto.INT32)
    # An input, not a constant: the runtime (1.31) fails to fold QuantizeLinear to 2-bit constants.
    taken = helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 8])
    given = helper.make_tensor_value_info("codes", TensorProto.INT32, [64, 8])
    graph = helper.make_graph([node, back], "quantize", [taken], [given], values)
    opset, ir_version = (25, 13) if bits == 2 else (21, 10)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    np.testing.assert_array_equal(run(model, {"w": np.ascontiguousarray(weight.T)}), quantized.codes.T)
