"""Edits around nodes with thousands of inputs: all are rewired at once."""

import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.edit import Edit
from onnxopt.model import Model, load


def wide(count: int) -> Model:
    """`count` copies of the input, each negated and then all summed up."""
    nodes = [helper.make_node("Neg", ["x"], [f"n{i}"], f"n{i}") for i in range(count)]
    nodes.append(helper.make_node("Sum", [f"n{i}" for i in range(count)], ["s"], "s"))
    nodes.append(helper.make_node("Abs", ["s"], ["y"], "y"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    weight = numpy_helper.from_array(np.float32([1, 2]), "w")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize("count", [10, 300])
def test_inputs_and_uses_agree_afterwards(count: int) -> None:
    model = wide(count)
    *negs, total, _ = model.graph
    x, weight = model.graph.inputs[0], model.graph.initializers["w"]
    edit = Edit()
    for neg in negs[1::2]:
        edit.rewire(neg.outputs[0], x)
        edit.remove(neg)
    edit.set_input(total, 0, weight)
    edit.set_input(total, count, weight)
    edit.set_input(total, count + 2, x)
    edit.remove(negs[0])
    model.apply(edit)
    names = [f"n{i}" if i % 2 == 0 else "x" for i in range(count)]
    assert isinstance(total.inputs, tuple)
    assert [value and value.name for value in total.inputs] == ["w", *names[1:], "w", None, "x"]
    for value in {value for value in total.inputs if value is not None}:
        uses = [index for user, index in value.uses() if user is total]
        assert sorted(uses) == [index for index, each in enumerate(total.inputs) if each is value]
    edit = Edit()
    edit.rewire(total.outputs[0], x)
    edit.remove(total, *negs[2::2])
    model.apply(edit)
    assert [node.op_type for node in model.nodes()] == ["Abs"]
    assert [user.op_type for user, _ in x.uses()] == ["Abs"]
    assert not model.graph.initializers


def test_many_inputs_take_linear_time() -> None:
    model = wide(20_000)
    *negs, total, _ = model.graph
    edit = Edit()
    for neg in negs:
        edit.rewire(neg.outputs[0], model.graph.inputs[0])
        edit.remove(neg)
    start = time.process_time()
    model.apply(edit)
    edit = Edit()
    edit.rewire(total.outputs[0], model.graph.inputs[0])
    edit.remove(total)
    model.apply(edit)
    assert time.process_time() - start < 4
    assert len(list(model.nodes())) == 1
