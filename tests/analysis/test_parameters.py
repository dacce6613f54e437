"""What counts as a parameter, and how many bytes constants take."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.analysis.parameters import stored
from onnxopt.model import Model, load

MS, OWN = "com.microsoft", "ai.onnxopt"


def graph_of(nodes: list[ir.Node], weights: dict[str, Any]) -> Model:
    """A model of nodes whose inputs are named after its weights; anything else is a graph input."""
    values = {}
    for name, content in weights.items():
        tensor = content if isinstance(content, ir.Tensor) else ir.Tensor(np.asarray(content), name=name)
        values[name] = ir.Value(
            name=name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype)
        )
    inputs: dict[str, ir.Value] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value.producer() is None:
                name = value.name or ""
                known = values.get(name) or inputs.setdefault(name, value)
                node.replace_input_with(index, known)
    graph = ir.Graph(list(inputs.values()), [], nodes=nodes, initializers=list(values.values()), name="g")
    return Model(ir.Model(graph, ir_version=10))


def node(op: str, *inputs: str | ir.Value | None, domain: str = "", **attributes: Any) -> ir.Node:
    values = [ir.Value(name=given) if isinstance(given, str) else given for given in inputs]
    return ir.Node(domain, op, values, [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()])


def params(model: Model) -> dict[str, int]:
    return {constant.value.name or "": constant.params for constant in stored(model)}


def test_floats_are_parameters_and_sizes_and_scalars_are_not() -> None:
    weights = {
        "w": np.ones((3, 4), np.float32), "h": np.ones((5,), np.float16), "one": np.ones((1,), np.float32),
        "scalar": np.float32(2), "size": np.array([1, -1]), "mask": np.ones((4, 4), bool), "unread": np.ones(7),
        "index": np.ones(9, np.int32),
    }  # fmt: skip
    product = node("MatMul", "x", "w")
    nodes = [product, node("Pow", product.outputs[0], "scalar"), node("Reshape", product.outputs[0], "size")]
    expected = {"w": 12, "h": 5, "one": 1, "scalar": 0, "size": 0, "mask": 0, "unread": 7, "index": 0}
    assert params(graph_of(nodes, weights)) == expected


def test_a_constant_node_counts_as_an_initializer() -> None:
    for form, count in (({"value_floats": [1.0, 2.0]}, 2), ({"value_float": 1.0}, 0), ({"value_ints": [1, 2]}, 0)):
        (constant,) = stored(graph_of([node("Constant", **form)], {}))
        assert constant.params == count
    (constant,) = stored(graph_of([node("Constant", value=ir.tensor(np.ones((2, 3), np.float32)))], {}))
    assert (constant.params, constant.nbytes) == (6, 24)


def test_quantized_weights_count_their_elements_and_scales_count_none() -> None:
    weights = {
        "w": ir.Tensor(np.zeros((8, 6), ml_dtypes.int4), dtype=ir.DataType.INT4),
        "scale": np.ones((2, 6), np.float16), "zero": ir.Tensor(np.zeros((2, 6), ml_dtypes.int4)),
        "bias": np.ones(6, np.int32), "bias_scale": np.float32(1),
    }  # fmt: skip
    wide = node("Cast", "scale", to=1)
    nodes = [
        wide,
        node("DequantizeLinear", "w", wide.outputs[0], "zero", axis=0, block_size=4),
        node("DequantizeLinear", "bias", "bias_scale"),
    ]
    model = graph_of(nodes, weights)
    assert params(model) == {"w": 48, "scale": 0, "zero": 0, "bias": 6, "bias_scale": 0}
    assert {c.value.name: c.nbytes for c in stored(model)} == {
        "w": 24, "scale": 24, "zero": 6, "bias": 24, "bias_scale": 4,
    }  # fmt: skip


def test_quantized_operators() -> None:
    byte, scale, zero = np.zeros((4, 2, 3, 3), np.uint8), np.ones(4, np.float32), np.zeros(4, np.uint8)
    conv = node("QLinearConv", "x", "s1", "z1", "w", "s2", "z2", "s3", "z3", "b")
    weights = {"w": byte, "s1": scale, "z1": zero, "s2": scale, "z2": zero, "s3": scale, "z3": zero}
    assert params(graph_of([conv], weights | {"b": np.zeros(4, np.int32)})) == {
        "w": 72, "b": 4, **dict.fromkeys(("s1", "z1", "s2", "z2", "s3", "z3"), 0),
    }  # fmt: skip


def test_packed_weights_count_what_they_unpack_to() -> None:
    packed = {"w": np.zeros((10, 2, 16), np.uint8), "s": np.ones(20, np.float32), "z": np.zeros(10, np.uint8)}
    matmul = node("MatMulNBits", "x", "w", "s", "z", domain=MS, K=64, N=10, bits=4, block_size=32)
    assert params(graph_of([matmul], packed)) == {"w": 640, "s": 0, "z": 0}
    gather = node("GatherBlockQuantized", "w", "i", "s", domain=MS, bits=4)
    assert params(graph_of([gather], packed))["w"] == 640
    matmul = node("MatMulFpQ4", "x", "w", "shape", domain=MS)
    assert params(graph_of([matmul], packed | {"shape": np.array([64, 10])}))["w"] == 640
    planes = {"p": np.zeros((3, 64, 2), np.uint8), "s": np.ones((2, 16), np.float32)}
    assert params(graph_of([node("LowBitMatMulPlanes", "x", "p", "s", domain=OWN)], planes)) == {"p": 1024, "s": 0}


def test_the_bias_of_an_own_operator_is_known_by_its_name_in_the_body() -> None:
    function = onnx.parser.parse_function(
        """<domain: "ai.onnxopt", opset_import: ["": 21]>
        F (x, w, scale, bias) => (y) { m = MatMul(x, w) y = Add(m, bias) }"""
    )
    weights = [onnx.numpy_helper.from_array(np.ones(n, np.float32), name) for n, name in ((4, "w"), (2, "s"), (3, "b"))]
    call = onnx.helper.make_node("F", ["x", "w", "s", "b"], ["y"], domain=OWN)
    x, y = onnx.helper.make_tensor_value_info("x", 1, [4]), onnx.helper.make_empty_tensor_value_info("y")
    graph = onnx.helper.make_graph([call], "g", [x], [y], weights)
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(OWN, 1)]
    model = load(onnx.helper.make_model(graph, functions=[function], opset_imports=imports))
    assert params(model) == {"w": 4, "s": 0, "b": 3}


@pytest.mark.parametrize(("domain", "count"), [("mine", 6), (OWN, 0)])
def test_constants_of_functions_count_once_and_those_of_own_functions_are_formulas(domain: str, count: int) -> None:
    table = onnx.helper.make_node(
        "Constant", [], ["t"], value=onnx.numpy_helper.from_array(np.ones((2, 3), np.float32))
    )
    body = [table, onnx.helper.make_node("MatMul", ["a", "t"], ["b"])]
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(domain, 1)]
    function = onnx.helper.make_function(domain, "F", ["a"], ["b"], body, imports[:1])
    calls = [onnx.helper.make_node("F", ["x"], [name], domain=domain) for name in ("y", "z")]
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "y", "z")]
    graph = onnx.helper.make_graph(calls, "g", values[:1], values[1:])
    model = load(onnx.helper.make_model(graph, functions=[function], opset_imports=imports))
    assert [(constant.params, constant.nbytes) for constant in stored(model)] == [(count, 24)]


@pytest.mark.parametrize("dtype", ["INT4", "UINT2", "FLOAT8E4M3FN", "BFLOAT16", "INT8", "FLOAT4E2M1"])
def test_bytes_are_those_of_the_file(dtype: str) -> None:
    kind = ir.DataType[dtype]
    content = ir.Tensor(np.zeros(9, kind.numpy()), dtype=kind)
    (constant,) = stored(graph_of([], {"w": content}))
    assert constant.params == 9
    assert constant.nbytes == len(ir.serde.serialize_tensor(content).raw_data)


def test_large_weights_are_not_read() -> None:
    def never() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = graph_of([], {"w": np.ones((2, 3), np.float32)})
    value = model.graph.initializers["w"]
    value.const_value = ir.LazyTensor(never, ir.DataType.FLOAT, ir.Shape([1000, 30]), name="w")
    (constant,) = stored(model)
    assert (constant.params, constant.nbytes) == (30_000, 120_000)
