"""The signature as callers see it."""

import numpy as np
import onnx
import onnx.parser
import pytest
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


@pytest.mark.parametrize(("ir_version", "defaults"), [(3, []), (4, ["w"]), (8, ["w"])])
def test_inputs_with_defaults_are_part_of_it(ir_version: int, defaults: list[str]) -> None:
    source = '<ir_version: 8, opset_import: ["" : 8]> g (float[2] x, float[2] w) => (float[2] y) { y = Add (x, w) }'
    proto = onnx.parser.parse_model(source)
    proto.ir_version = ir_version
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1, 2]), "w"))
    signature = load(proto).signature
    assert [info.name for info in signature.inputs] == ["x"]
    assert [info.name for info in signature.defaults] == defaults
