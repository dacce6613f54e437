"""What `skip` protects: found whatever way a pass takes to change it, and nothing else is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.edit import Edit
from onnxopt.model import Model, load
from onnxopt.skips import skipped

SOURCE = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z)
<float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {5, 6, 7, 8}, float[2] b = {1, 2}>
{
  [turn] t = Transpose <perm = [1, 0]> (w)
  [first] a = MatMul (x, t)
  [bias] c = Add (a, b)
  [second] d = MatMul (c, v)
  [act] y = LeakyRelu <alpha = 0.1> (d)
  [third] z = MatMul (x, v)
}"""


def model() -> Model:
    return load(onnx.parser.parse_model(SOURCE))


def node(of: Model, name: str) -> ir.Node:
    return next(each for each in of.graph if each.name == name)


def edited(of: Model, record: Callable[[Edit], None]) -> None:
    edit = Edit("test")
    record(edit)
    of.apply(edit)


def other_weight(of: Model, name: str) -> None:
    value = of.graph.initializers[name]
    edited(of, lambda edit: edit.replace_weight(value, np.ones((2, 2), np.float32)))


def own_weight(of: Model, name: str) -> None:
    """The second input of a node becomes another weight."""

    def record(edit: Edit) -> None:
        edit.set_input(node(of, name), 1, edit.add_weight("mine", np.ones((2, 2), np.float32)))

    edited(of, record)


def attribute(of: Model, name: str) -> None:
    edited(of, lambda edit: edit.set_attribute(node(of, name), "alpha", 0.5))


def other_node(of: Model, name: str) -> None:
    old = node(of, name)
    new = ir.node(old.op_type, list(old.inputs), name=name)

    def record(edit: Edit) -> None:
        edit.insert([new], before=old)
        edit.rewire(old.outputs[0], new.outputs[0])
        edit.remove(old)

    edited(of, record)


def behind_the_back(of: Model, name: str) -> None:
    of.graph.initializers[name].const_value = ir.Tensor(np.zeros((2, 2), np.float32), name=name)


def another_graph(of: Model, name: str) -> None:
    with of.surgeon() as graph:
        next(tensor for tensor in graph.tensors().values() if tensor.name == name).values = np.ones((2, 2), np.float32)


def same_graph(of: Model, name: str) -> None:
    with of.surgeon():
        pass


def moved_input(of: Model, name: str) -> None:
    """What a node reads of the data comes through another node."""
    old = node(of, name)
    assert old.inputs[0] is not None
    through = ir.node("Identity", [old.inputs[0]])

    def record(edit: Edit) -> None:
        edit.insert([through], before=old)
        edit.set_input(old, 0, through.outputs[0])

    edited(of, record)


@pytest.mark.parametrize(
    ("skip", "change", "at", "what"),
    [
        ("first", other_weight, "w", "weight w"),
        ("turn", other_weight, "w", "weight w"),
        ("w", other_weight, "w", "weight w"),
        ("first", own_weight, "first", "node first"),
        ("w", own_weight, "first", "weight w, which first no longer reads"),
        ("v", own_weight, "second", "weight v, which second no longer reads"),
        ("act", attribute, "act", "node act"),
        ("first", other_node, "turn", "node turn, which is gone"),
        ("act", other_node, "act", "node act, which is gone"),
        ("second", behind_the_back, "v", "weight v"),
        ("second", another_graph, "v", "weight v"),
        ("bias", own_weight, "bias", "node bias"),
    ],
)
def test_touched(skip: str, change: Callable[[Model, str], None], at: str, what: str) -> None:
    changed = model()
    before = skipped(changed, lambda name: name == skip)
    assert before.touched(changed) is None
    change(changed, at)
    assert before.touched(changed) == what


@pytest.mark.parametrize(
    ("skip", "change", "at"),
    [
        ("first", other_weight, "v"),
        ("third", own_weight, "second"),  # they share v, which third goes on reading
        ("second", other_node, "bias"),
        ("second", moved_input, "second"),
        ("act", other_weight, "v"),
        ("first", same_graph, ""),
        ("v", same_graph, ""),
    ],
)
def test_not_touched(skip: str, change: Callable[[Model, str], None], at: str) -> None:
    changed = model()
    before = skipped(changed, lambda name: name == skip)
    change(changed, at)
    assert before.touched(changed) is None


def test_nodes_without_names_go_by_their_outputs() -> None:
    source: Any = onnx.parser.parse_model(SOURCE)
    for each in source.graph.node:
        each.name = ""
    changed = load(source)
    before = skipped(changed, lambda name: name == "d")
    other_weight(changed, "v")
    assert before.touched(changed) == "weight v"


def test_a_chain_of_twenty_thousand_constants() -> None:
    value = ir.Value(name="c0", const_value=ir.Tensor(np.ones(1, np.float32), name="c0"))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    nodes = []
    last = value
    for index in range(20_000):
        nodes.append(ir.node("Neg", [last], name=f"neg{index}"))
        last = nodes[-1].outputs[0]
        last.name = f"c{index + 1}"
    nodes.append(ir.node("Add", [x, last], name="end"))
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, initializers=[value], opset_imports={"": 17}, name="g")
    deep = Model(ir.Model(graph, ir_version=8))
    before = skipped(deep, lambda name: name == "end")
    assert len(before.nodes) == 20_001
    assert before.touched(deep) is None
