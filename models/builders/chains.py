"""A model of nodes that do nothing, the same as others, or what one of them could: work for the clean-up."""

import numpy as np
import onnx
from onnx import numpy_helper

from onnxopt.models.builders.registry import rare
from onnxopt.models.builders.sketch import Sketch


@rare
def chains() -> onnx.ModelProto:
    """Padding before a convolution, arithmetic with constants in a row, limits, casts, transpositions, shapes."""
    sketch = Sketch("chains")
    x = sketch.input("x", ["batch", 3, 8, 8])
    pads = sketch.weight("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    y = sketch.node("Conv", sketch.node("Pad", x, pads), sketch.random("w", 4, 3, 3, 3))
    y = sketch.node(
        "Add", sketch.node("Mul", y, sketch.weight("one", np.ones(1, np.float32))), sketch.random("b", 4, 1, 1)
    )
    y = sketch.node("Add", y, sketch.weight("c", np.full(1, 0.5, np.float32)))
    y = sketch.node(
        "Clip", sketch.node("Relu", y), "", sketch.weight("six", numpy_helper.from_array(np.array(6, np.float32)))
    )
    y = sketch.node("Cast", sketch.node("Cast", y, to=onnx.TensorProto.DOUBLE), to=onnx.TensorProto.FLOAT)
    turned = sketch.node("Sigmoid", sketch.node("Transpose", y, perm=[0, 2, 3, 1]))
    y = sketch.node("Transpose", turned, perm=[0, 3, 1, 2])
    once = sketch.node("Mul", sketch.node("Tanh", y), sketch.weight("half", np.full(1, 0.25, np.float32)))
    again = sketch.node("Mul", sketch.weight("also", np.full(1, 0.25, np.float32)), sketch.node("Tanh", y))
    flat = sketch.node("Flatten", sketch.node("Add", once, again))
    shape = sketch.weight("shape", np.array([-1, 4, 64]))
    sketch.output(sketch.node("Reshape", flat, shape, outputs=["y"]), ["batch", 4, 64])
    return sketch.model()
