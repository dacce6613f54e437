"""Edits: applied whole or refused, the signature kept, orphans gone."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models.builders import RARE


def chain(*ops: str) -> Model:
    """x -> ops[0] -> ops[1] ... -> y, all float [2, 3]; Add adds the weight w."""
    names = ["x", *(f"t{i}" for i in range(len(ops) - 1)), "y"]
    nodes = [
        helper.make_node(op, [a, "w"] if op == "Add" else [a], [b], name=f"n{i}")
        for i, (op, a, b) in enumerate(zip(ops, names, names[1:], strict=False))
    ]
    w = [numpy_helper.from_array(np.float32([1, 2, 3]), "w")] if "Add" in ops else []
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])], w,
    )  # fmt: skip
    return load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]))


def run(model: Model, x: np.ndarray) -> np.ndarray:
    proto = model.proto()
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]


X = np.float32([[-1, 2, -3], [4, -5, 6]])


def node(model: Model, at: int) -> ir.Node:
    return list(model.graph)[at]


def test_remove_and_rewire_keeps_the_output_name() -> None:
    model = chain("Relu", "Neg")
    neg, edit = node(model, 1), Edit("test")
    edit.rewire(neg.outputs[0], neg.inputs[0])
    edit.remove(neg)
    model.apply(edit)
    assert model.revision == 1
    assert [v.name for v in model.signature.outputs] == ["y"]
    np.testing.assert_array_equal(run(model, X), np.maximum(X, 0))


def test_output_fed_by_the_input_gets_an_identity() -> None:
    model = chain("Relu")
    relu, edit = node(model, 0), Edit()
    edit.rewire(relu.outputs[0], relu.inputs[0])
    edit.remove(relu)
    model.apply(edit)
    np.testing.assert_array_equal(run(model, X), X)


def test_inserted_node_keeps_reading_what_it_replaces() -> None:
    model = chain("Relu", "Neg")
    relu, edit = node(model, 0), Edit()
    square = ir.node("Mul", [relu.outputs[0], relu.outputs[0]])
    edit.insert([square], after=relu)
    edit.rewire(relu.outputs[0], square.outputs[0])
    model.apply(edit)
    np.testing.assert_array_equal(run(model, X), -(np.maximum(X, 0) ** 2))


def test_replacing_the_last_node_behind_an_output() -> None:
    model = chain("Relu", "Neg")
    neg, edit = node(model, 1), Edit()
    absolute = ir.node("Abs", [neg.inputs[0]])
    edit.insert([absolute], before=neg)
    edit.rewire(neg.outputs[0], absolute.outputs[0])
    edit.remove(neg)
    model.apply(edit)
    np.testing.assert_array_equal(run(model, X), np.maximum(X, 0))


def test_a_read_node_is_not_removed_and_nothing_changes() -> None:
    model = chain("Relu", "Neg")
    before = model.proto()
    edit = Edit("my-rule")
    edit.add_weight("extra", np.zeros(3, np.float32))
    edit.remove(node(model, 0))
    with pytest.raises(ModelError, match=r"my-rule: node n0 \(Relu\) cannot be removed: node n1 \(Neg\) reads t0"):
        model.apply(edit)
    assert model.proto() == before
    assert model.revision == 0


def test_output_cannot_lose_its_maker() -> None:
    model = chain("Relu")
    edit = Edit()
    edit.remove(node(model, 0))
    with pytest.raises(ModelError, match="makes the graph output y"):
        model.apply(edit)


def test_types_must_agree() -> None:
    model = chain("Relu", "Neg")
    relu, edit = node(model, 0), Edit()
    relu.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    other = edit.add_weight("w", np.zeros((2, 3), np.float16))
    edit.rewire(relu.outputs[0], other)
    with pytest.raises(ModelError, match="cannot be replaced"):
        model.apply(edit)


def test_orphaned_weights_go_and_shared_ones_stay() -> None:
    model = chain("Add", "Add")
    first, second = node(model, 0), node(model, 1)
    edit = Edit()
    edit.rewire(first.outputs[0], first.inputs[0])
    edit.remove(first)
    model.apply(edit)
    assert "w" in model.graph.initializers
    edit = Edit()
    edit.rewire(second.outputs[0], second.inputs[0])
    edit.remove(second)
    model.apply(edit)
    assert not model.graph.initializers


def test_replaced_weight_brings_its_shape_and_type() -> None:
    model = chain("Add")
    value, edit = model.graph.initializers["w"], Edit()
    edit.replace_weight(value, np.full((2, 3), 10, np.float32))
    model.apply(edit)
    assert value.shape is not None
    assert value.shape.numpy() == (2, 3)
    np.testing.assert_array_equal(run(model, X), X + 10)


def test_what_has_changed_since() -> None:
    """Contents alone, or more: another shape or type, an attribute, the whole graph."""

    def edited(tensor: np.ndarray | None = None, op: str = "Add", **attributes: float) -> set[str | None] | None:
        model, edit = chain(op, "Add"), Edit()
        if tensor is not None:
            edit.replace_weight(model.graph.initializers["w"], tensor)
        for name, value in attributes.items():
            edit.set_attribute(node(model, 0), name, value)
        model.apply(edit)
        assert model.contents_since(1) == set()
        found = model.contents_since(0)
        return None if found is None else {value.name for value in found}

    three = np.float32([4, 5, 6])
    assert edited() == set()
    assert edited(three) == {"w"}
    assert edited(np.stack([three, three])) is None
    assert edited(three.astype(np.float64)[:1]) is None
    assert edited(three, "LeakyRelu", alpha=0.5) is None
    model = chain("Add")
    model.replace(chain("Relu").ir)
    assert model.contents_since(0) is None


def test_names_of_new_things_are_unique() -> None:
    model = chain("Add", "Neg")
    edit = Edit()
    weight = edit.add_weight("w", np.float32([5, 5, 5]))
    extra = ir.node("Add", [node(model, 0).outputs[0], weight], name="n0")
    edit.insert([extra], after=node(model, 0))
    edit.rewire(node(model, 0).outputs[0], extra.outputs[0])
    model.apply(edit)
    names = [n.name for n in model.graph]
    assert len(set(names)) == len(names)
    assert weight.name == "w_1"
    np.testing.assert_array_equal(run(model, X), -(X + [1, 2, 3] + 5))


def test_removing_control_flow_frees_what_its_bodies_read() -> None:
    body = helper.make_graph(
        [helper.make_node("Neg", ["t"], ["b"])],
        "body",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [2, 3])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["t"], name="relu"),
            helper.make_node("If", ["c"], ["z"], name="if", then_branch=body, else_branch=body),
            helper.make_node("Abs", ["x"], ["y"], name="abs"),
        ],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])], [numpy_helper.from_array(np.array(True), "c")],
    )  # fmt: skip
    model = load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]))
    relu, if_, _ = list(model.graph)
    edit = Edit()
    edit.remove(relu, if_)
    model.apply(edit)
    assert [n.op_type for n in model.graph] == ["Abs"]
    assert not model.graph.initializers
    np.testing.assert_array_equal(run(model, X), np.abs(X))


def test_an_optional_output_is_left_out() -> None:
    model = load(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 1, 4, 4] x) => (float[1, 1, 3, 3] p) { p, i = MaxPool<kernel_shape = [2, 2]>(x) }""")
    )
    pool, edit = node(model, 0), Edit("test")
    edit.leave_out(pool.outputs[1])
    assert edit.touched == [pool]
    model.apply(edit)
    assert (model.revision, [value.name for value in pool.outputs]) == (1, ["p"])
    edit = Edit("test")
    edit.leave_out(pool.outputs[0])
    with pytest.raises(ModelError, match="test: p cannot be left out"):
        model.apply(edit)


def test_functions_and_imports_go() -> None:
    model = load(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[2] x) => (float[2] y) { y = Neg(x) }
        <domain: "f", opset_import: ["" : 17]> double (a) => (b) { b = Add(a, a) }""")
    )
    edit = Edit("test")
    edit.drop_function(("f", "double", ""))
    edit.drop_domain("f")
    model.apply(edit)
    assert (model.revision, list(model.ir.functions), dict(model.ir.opset_imports)) == (1, [], {"": 17})


def test_a_shape_is_declared() -> None:
    model, edit = chain("Relu", "Neg"), Edit("test")
    value = node(model, 0).outputs[0]
    edit.declare_shape(value, ir.Shape([2, 3]))
    model.apply(edit)
    assert (model.revision, value.shape) == (1, ir.Shape([2, 3]))


def test_a_weight_that_training_names_stays() -> None:
    model = load(RARE["training-info"]())
    matmul, edit = node(model, 0), Edit("test")
    edit.set_input(matmul, 1, edit.add_weight("other", np.ones((4, 5), np.float32)))
    model.apply(edit)
    assert sorted(model.graph.initializers) == ["other", "w"]
    onnx.checker.check_model(model.proto())


def test_refusals_name_nodes_without_names_by_their_output() -> None:
    model, edit = chain("Relu", "Neg"), Edit("test")
    for unnamed in model.graph:
        unnamed.name = None
    edit.remove(node(model, 0))
    with pytest.raises(ModelError, match=r"node t0 \(Relu\) cannot be removed: node y \(Neg\) reads t0"):
        model.apply(edit)
