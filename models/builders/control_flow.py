"""Models with subgraphs: If, Loop and Scan, nested, capturing outer values, with weights of their own."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxopt.models.builders.registry import rare
from onnxopt.models.builders.sketch import Sketch


@rare
def if_capturing() -> onnx.ModelProto:
    """Both branches capture outer values; one has its own weight; their inner names are the same."""
    sketch = Sketch("if-capturing")
    x = sketch.input("x", ["batch", 4])
    w = sketch.random("w", 4, 4)
    hidden = sketch.node("MatMul", x, w)
    positive = Sketch("positive")
    positive.output(positive.node("MatMul", hidden, positive.random("inner", 4, 4), outputs=["branch"]), ["batch", 4])
    negative = Sketch("negative")
    negative.output(negative.node("MatMul", hidden, w, outputs=["branch"]), ["batch", 4])
    y = sketch.node("If", _is_positive(sketch, x), then_branch=positive.graph(), else_branch=negative.graph())
    sketch.output(sketch.node("Add", y, x, outputs=["y"]), ["batch", 4])
    return sketch.model()


@rare
def if_without_inputs() -> onnx.ModelProto:
    """Branches that only produce constants, one of them an initializer that is the branch's output."""
    sketch = Sketch("if-without-inputs")
    x = sketch.input("x", ["batch", 4])
    positive = Sketch("positive")
    positive.output(positive.random("kept", 4), [4])
    negative = Sketch("negative")
    negative.output(negative.node("Constant", value_floats=[1.0, 2.0, 3.0, 4.0]), [4])
    y = sketch.node("If", _is_positive(sketch, x), then_branch=positive.graph(), else_branch=negative.graph())
    sketch.output(sketch.node("Mul", y, x, outputs=["y"]), ["batch", 4])
    return sketch.model()


@rare
def loop() -> onnx.ModelProto:
    """Three steps of h = tanh(h w), with a carried state and a scanned output."""
    sketch = Sketch("loop")
    x = sketch.input("x", ["batch", 4])
    w = sketch.random("w", 4, 4)
    body = _loop_body("step")
    state = body.node("Tanh", body.node("MatMul", "state_in", w), outputs=["state_out"])
    body.output(state, ["batch", 4])
    body.output(body.node("ReduceSum", state, keepdims=0, outputs=["total"]), [])
    trips, keep = _trips(sketch, 3)
    sketch.node("Loop", trips, keep, x, outputs=["y", "totals"], body=body.graph())
    sketch.output("y", ["batch", 4])
    sketch.output("totals", [None])
    return sketch.model()


@rare
def scan() -> onnx.ModelProto:
    """A plain recurrent cell over the sequence axis."""
    sketch = Sketch("scan")
    x = sketch.input("x", ["batch", 5, 4])
    steps = sketch.node("Transpose", x, perm=[1, 0, 2])
    start = sketch.node("ReduceSum", x, sketch.weight("axis", np.array([1])), keepdims=0)
    body = Sketch("cell")
    body.input("h", ["batch", 4])
    body.input("step", ["batch", 4])
    recurrent = body.node("MatMul", "h", body.random("recurrent", 4, 4))
    h = body.node("Tanh", body.node("Add", recurrent, "step"), outputs=["h_next"])
    body.output(h, ["batch", 4])
    body.output(body.node("Relu", h, outputs=["rectified"]), ["batch", 4])
    sketch.node("Scan", start, steps, outputs=["last", "all"], body=body.graph(), num_scan_inputs=1)
    sketch.output("last", ["batch", 4])
    sketch.output("all", [5, "batch", 4])
    return sketch.model()


@rare
def nested_subgraphs() -> onnx.ModelProto:
    """An If in a Loop in an If: weights at every level, values captured across two levels."""
    sketch = Sketch("nested-subgraphs")
    x = sketch.input("x", ["batch", 4])
    outer = sketch.random("outer", 4, 4)
    body = _loop_body("middle")
    middle = body.random("middle", 4, 4)
    inner_then, inner_else = Sketch("inner-then"), Sketch("inner-else")
    inner_then.output(inner_then.node("MatMul", "state_in", outer, outputs=["deep"]), ["batch", 4])
    product, innermost = inner_else.node("MatMul", "state_in", middle), inner_else.random("innermost", 4)
    inner_else.output(inner_else.node("Add", product, innermost, outputs=["deep"]), ["batch", 4])
    choice = body.node(
        "If", _is_positive(body, "state_in"), then_branch=inner_then.graph(), else_branch=inner_else.graph()
    )
    body.output(body.node("Tanh", choice, outputs=["state_out"]), ["batch", 4])
    then, other = Sketch("then"), Sketch("else")
    then.output(then.node("Loop", *_trips(then, 2), x, outputs=["looped"], body=body.graph()), ["batch", 4])
    other.output(other.node("Neg", x, outputs=["negated"]), ["batch", 4])
    y = sketch.node("If", _is_positive(sketch, x), then_branch=then.graph(), else_branch=other.graph(), outputs=["y"])
    sketch.output(y, ["batch", 4])
    return sketch.model()


def _loop_body(name: str) -> Sketch:
    """The start of a Loop's body with one state `state_in` [batch, 4], whose condition is passed on."""
    body = Sketch(name)
    body.input("iteration", [], TensorProto.INT64)
    keep = body.input("keep", [], TensorProto.BOOL)
    body.input("state_in", ["batch", 4])
    body.output(body.node("Identity", keep, outputs=["keep_going"]), [], TensorProto.BOOL)
    return body


def _trips(sketch: Sketch, count: int) -> tuple[str, str]:
    trips = sketch.weight(f"{sketch.name}_trips", np.array(count))
    true = helper.make_tensor("", TensorProto.BOOL, [], [1])
    return trips, sketch.node("Constant", outputs=[f"{sketch.name}_keep"], value=true)


def _is_positive(sketch: Sketch, x: str) -> str:
    total = sketch.node("ReduceSum", x, keepdims=0, outputs=[f"{sketch.name}_total"])
    zero = sketch.node("Constant", value_float=0.0, outputs=[f"{sketch.name}_zero"])
    return sketch.node("Greater", total, zero, outputs=[f"{sketch.name}_positive"])
