"""Models with model-local functions: nested, overloaded, with attributes by reference, in and around subgraphs."""

import onnx
from onnx import AttributeProto, helper

from onnxopt.models.builders.registry import rare
from onnxopt.models.builders.sketch import Sketch

DOMAIN = "test.functions"
_OPSET = [helper.make_opsetid("", 18)]
_BOTH = [*_OPSET, helper.make_opsetid(DOMAIN, 1)]


@rare
def nested_functions() -> onnx.ModelProto:
    """Layer calls Scaled, handing its attributes down; one has a default, one is an operator's own attribute."""
    sketch = _sketch("nested-functions")
    x = sketch.input("x", ["batch", 4])
    y = sketch.node("Layer", x, sketch.random("w1", 4, 4), domain=DOMAIN, factor=0.5, axis=1)
    y = sketch.node("Layer", y, sketch.random("w2", 4, 4), domain=DOMAIN, factor=2.0, axis=-1, slope=0.2, outputs=["y"])
    sketch.output(y, ["batch", 4])
    scaled = helper.make_function(
        DOMAIN,
        "Scaled",
        ["a"],
        ["b"],
        [
            _with_reference(helper.make_node("Constant", [], ["f"]), "value_float", "factor", AttributeProto.FLOAT),
            helper.make_node("Mul", ["a", "f"], ["b"]),
        ],
        _OPSET,
        attributes=["factor"],
    )
    call = helper.make_node("Scaled", ["s"], ["t"], domain=DOMAIN)
    layer = helper.make_function(
        DOMAIN,
        "Layer",
        ["x", "w"],
        ["y"],
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            _with_reference(helper.make_node("LeakyRelu", ["m"], ["l"]), "alpha", "slope", AttributeProto.FLOAT),
            _with_reference(helper.make_node("Softmax", ["l"], ["s"]), "axis", "axis", AttributeProto.INT),
            _with_reference(call, "factor", "factor", AttributeProto.FLOAT),
            helper.make_node("Add", ["t", "x"], ["y"]),
        ],
        _BOTH,
        attributes=["factor", "axis"],
        attribute_protos=[helper.make_attribute("slope", 0.1)],
    )
    return sketch.model([layer, scaled])


@rare
def function_with_subgraph() -> onnx.ModelProto:
    """A function whose body holds an If that captures the function's input; an If that calls a function."""
    sketch = _sketch("function-with-subgraph")
    x = sketch.input("x", ["batch", 4])
    then = Sketch("then")
    then.output(then.node("Rectify", x, domain=DOMAIN, outputs=["rectified"]), ["batch", 4])
    other = Sketch("other")
    other.output(other.node("Neg", x, outputs=["negated"]), ["batch", 4])
    condition = sketch.node("Greater", sketch.node("ReduceSum", x, keepdims=0), sketch.random("threshold"))
    y = sketch.node("If", condition, then_branch=then.graph(), else_branch=other.graph())
    sketch.output(sketch.node("Rectify", y, domain=DOMAIN, outputs=["y"]), ["batch", 4])
    return sketch.model([_rectify()])


def _rectify() -> onnx.FunctionProto:
    keep, zero = Sketch("keep"), Sketch("zero")
    keep.output(keep.node("Relu", "a", outputs=["kept"]), None)
    zero.output(zero.node("Mul", "a", "nought", outputs=["zeroed"]), None)
    nodes = [
        helper.make_node("Constant", [], ["nought"], value_float=0.0),
        helper.make_node("ReduceMax", ["a"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "nought"], ["any"]),
        helper.make_node("If", ["any"], ["b"], then_branch=keep.graph(), else_branch=zero.graph()),
    ]
    return helper.make_function(DOMAIN, "Rectify", ["a"], ["b"], nodes, _OPSET)


@rare
def overloaded_functions() -> onnx.ModelProto:
    """Two functions of one name that differ by `overload` (IR 10)."""
    sketch = _sketch("overloaded-functions", ir_version=10)
    y = sketch.input("x", ["batch", 4])
    functions = []
    for overload, op in (("first", "Relu"), ("second", "Tanh")):
        nodes = [helper.make_node(op, ["a"], ["b"])]
        functions.append(helper.make_function(DOMAIN, "Activate", ["a"], ["b"], nodes, _OPSET, overload=overload))
        y = sketch.node("Activate", y, domain=DOMAIN, outputs=[f"after_{overload}"])
        sketch.nodes[-1].overload = overload
    sketch.output(y, ["batch", 4])
    return sketch.model(functions)


@rare
def function_with_optional_input() -> onnx.ModelProto:
    """A function called without one of its inputs, and with an output that nobody reads."""
    sketch = _sketch("function-with-optional-input")
    x = sketch.input("x", ["batch", 4])
    sketch.node("Clamp", x, "", sketch.random("most"), domain=DOMAIN, outputs=["y", "unread"])
    sketch.output("y", ["batch", 4])
    nodes = [helper.make_node("Clip", ["a", "low", "high"], ["b"]), helper.make_node("Neg", ["a"], ["c"])]
    return sketch.model([helper.make_function(DOMAIN, "Clamp", ["a", "low", "high"], ["b", "c"], nodes, _OPSET)])


def _sketch(name: str, ir_version: int = 9) -> Sketch:
    sketch = Sketch(name, ir_version=ir_version)
    sketch.domains[DOMAIN] = 1
    return sketch


def _with_reference(node: onnx.NodeProto, attribute: str, of_function: str, kind: int) -> onnx.NodeProto:
    """The node with an attribute that takes the value of the surrounding function's attribute."""
    node.attribute.add(name=attribute, ref_attr_name=of_function, type=kind)
    return node
