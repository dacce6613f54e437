"""Models with much that need not be there: what exporters leave behind and clean-up takes away."""

import numpy as np
import onnx
from onnx import TensorProto

from onnxopt.models.builders.registry import rare
from onnxopt.models.builders.sketch import Sketch


@rare
def redundant_layers() -> onnx.ModelProto:
    """Layers with pads, scales and shifts beside them, layouts changed and changed back, sizes asked at run time."""
    sketch = Sketch("redundant-layers")
    x = sketch.input("x", ["batch", 3, 8, 8])
    padded = sketch.node("Pad", x, sketch.weight("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))
    image = sketch.node("Conv", padded, sketch.random("kernel", 4, 3, 3, 3), kernel_shape=[3, 3])
    image = sketch.node("Mul", image, sketch.random("scale", 4, 1, 1))
    image = sketch.node("Add", image, sketch.random("shift", 4, 1, 1))
    image = sketch.node("Transpose", sketch.node("Transpose", image, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    image = sketch.node("Add", image, sketch.weight("nothing", np.zeros((1, 4, 1, 1), np.float32)))
    zero, one = (sketch.weight(n, np.array(v, np.int64)) for n, v in (("zero", 0), ("axis", [0])))
    batch = sketch.node("Unsqueeze", sketch.node("Gather", sketch.node("Shape", image), zero), one)
    target = sketch.node("Concat", batch, sketch.weight("rest", np.array([256], np.int64)), axis=0)
    rows = sketch.node("Reshape", image, target)
    weight = sketch.normal(256, 5)
    left = sketch.node("MatMul", rows, sketch.weight("weight", weight))
    left = sketch.node("Add", left, sketch.random("bias", 5))
    again = sketch.node("Reshape", image, target)
    right = sketch.node("Relu", sketch.node("MatMul", again, sketch.weight("weight_again", weight)))
    sketch.output(sketch.node("Sub", left, right, outputs=["y"]), ["batch", 5])
    return sketch.model()


@rare
def redundant_control_flow() -> onnx.ModelProto:
    """An If whose condition is known, and a Loop with a result that nobody reads."""
    sketch = Sketch("redundant-control-flow")
    x = sketch.input("x", ["batch", 4])
    taken, other = Sketch("taken"), Sketch("other")
    taken.output(taken.node("Neg", x, outputs=["branch"]), ["batch", 4])
    other.output(other.node("Abs", x, outputs=["branch"]), ["batch", 4])
    always = sketch.weight("always", np.array(True))
    chosen = sketch.node("If", always, then_branch=taken.graph(), else_branch=other.graph())
    body = Sketch("body")
    body.input("step", [], TensorProto.INT64)
    going = body.input("going", [], TensorProto.BOOL)
    state = body.input("state", ["batch", 4])
    body.output(body.node("Identity", going), [], TensorProto.BOOL)
    body.output(body.node("Tanh", state), ["batch", 4])
    body.output(body.node("Exp", state), ["batch", 4])
    trips = sketch.weight("trips", np.array(3, np.int64))
    last = sketch.node("Loop", trips, "", chosen, outputs=["last", "every"], body=body.graph())
    sketch.output(sketch.node("Neg", last, outputs=["y"]), ["batch", 4])
    return sketch.model()
