"""The signature as callers see it."""

from onnx import TensorProto, helper

from onnxopt.model import ValueInfo, load


def test_negative_sizes_are_dynamic() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 3, "H", "?"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [-1, 3, "H", "?"])],
    )
    model = load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    (x,) = model.signature.inputs
    assert x == ValueInfo("x", x.dtype, (None, 3, "H", None))
