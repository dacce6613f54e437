"""Models with rare inputs, outputs, operator sets and attributes."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxopt.models.builders.registry import rare, rare_unrunnable
from onnxopt.models.builders.sketch import Sketch


@rare
def opset_7() -> onnx.ModelProto:
    """What later became inputs is attributes here: Slice, Squeeze, Clip, Upsample; Softmax flattens."""
    sketch = Sketch("opset-7", opset=7, ir_version=3)
    x = sketch.input("x", ["batch", 3, 4, 4])
    sketch.random("w", 6, 3, 3, 3)
    sketch.inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 3, 3, 3]))
    y = sketch.node("Upsample", x, mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])
    y = sketch.node("Clip", sketch.node("Conv", y, "w"), min=-1.0, max=1.0)
    y = sketch.node("Slice", y, axes=[2, 3], starts=[0, 0], ends=[1, 4])
    y = sketch.node("Dropout", sketch.node("Squeeze", y, axes=[2]), ratio=0.5)
    sketch.output(sketch.node("Softmax", y, axis=1, outputs=["y"]), ["batch", 6, 4])
    return sketch.model()


@rare
def opset_9_batchnorm() -> onnx.ModelProto:
    """Two convolutions with BatchNormalization of opset 9, one with a bias before it, around a residual."""
    sketch = Sketch("opset-9-batchnorm", opset=9, ir_version=4)
    x = sketch.input("x", ["batch", 3, 5, 5])
    y = x
    for biases in ([], [sketch.random("b", 3)]):
        y = sketch.node("Conv", y, sketch.random("w", 3, 3, 3, 3), *biases, pads=[1, 1, 1, 1])
        y = sketch.node("BatchNormalization", y, *_statistics(sketch, 3), epsilon=1e-3, momentum=0.9)
        y = sketch.node("Relu", y)
    sketch.output(sketch.node("Add", y, x, outputs=["y"]), ["batch", 3, 5, 5])
    return sketch.model()


def _statistics(sketch: Sketch, channels: int) -> list[str]:
    drawn = {name: sketch.normal(channels) for name in ("scale", "shift", "mean")}
    drawn["variance"] = sketch.rng.uniform(0.5, 2, channels).astype(np.float32)
    return [sketch.weight(name, array) for name, array in drawn.items()]


@rare_unrunnable
def newest_opset() -> onnx.ModelProto:
    """The newest operator set and IR version that the installed onnx knows; runtimes lag behind it."""
    sketch = Sketch("newest-opset", onnx.defs.onnx_opset_version(), onnx.IR_VERSION)
    w = sketch.random("w", 4, 5)
    sketch.output(sketch.node("MatMul", sketch.input("x", ["batch", 4]), w, outputs=["y"]), ["batch", 5])
    return sketch.model()


@rare
def sequences() -> onnx.ModelProto:
    """A sequence as input, taken apart and put together; another as output."""
    sketch = Sketch("sequences")
    item = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 4])
    kind = helper.make_sequence_type_proto(item)
    sketch.inputs.append(helper.make_value_info(sketch.fresh("items"), kind))
    first = sketch.node("SequenceAt", "items", sketch.weight("zero", np.array(0)))
    both = sketch.node("ConcatFromSequence", "items", axis=0)
    y = sketch.node("MatMul", both, sketch.random("w", 4, 4))
    longer = sketch.node("SequenceConstruct", first, y, outputs=["longer"])
    sketch.outputs.append(helper.make_value_info(longer, helper.make_sequence_type_proto(_loose_rows())))
    sketch.output(sketch.node("Relu", y, outputs=["y"]), [None, 4])
    return sketch.model()


def _loose_rows() -> onnx.TypeProto:
    return helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 4])


@rare
def optionals() -> onnx.ModelProto:
    """An optional made, asked for and opened; one that is empty, with its type as an attribute."""
    sketch = Sketch("optionals")
    x = sketch.input("x", ["batch", 4])
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 4])
    present = sketch.node("OptionalGetElement", sketch.node("Optional", x))
    sketch.output(sketch.node("MatMul", present, sketch.random("w", 4, 4), outputs=["y"]), ["batch", 4])
    nothing = sketch.node("Optional", type=kind)
    sketch.output(sketch.node("OptionalHasElement", nothing, outputs=["there"]), [], TensorProto.BOOL)
    return sketch.model()


@rare
def optional_input() -> onnx.ModelProto:
    """A graph input that is an optional tensor."""
    sketch = Sketch("optional-input")
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 4]))
    sketch.inputs.append(helper.make_value_info(sketch.fresh("maybe"), kind))
    x = sketch.node("OptionalGetElement", "maybe")
    sketch.output(sketch.node("MatMul", x, sketch.random("w", 4, 4), outputs=["y"]), ["batch", 4])
    return sketch.model()


@rare
def strings() -> onnx.ModelProto:
    """Strings as input, output, weight and attribute."""
    sketch = Sketch("strings")
    sketch.domains["ai.onnx.ml"] = 3
    words = sketch.input("words", ["count"], TensorProto.STRING)
    more = sketch.weight("more", helper.make_tensor("", TensorProto.STRING, [2], np.array(["Käse", "text"])))
    joined = sketch.node("Concat", words, more, axis=0, outputs=["joined"])
    sketch.output(joined, [None], TensorProto.STRING)
    keys = {"keys_strings": ["text", "Käse"], "values_int64s": [1, 2], "default_int64": 0}
    coded = sketch.node("LabelEncoder", joined, domain="ai.onnx.ml", outputs=["coded"], **keys)
    sketch.output(coded, [None], TensorProto.INT64)
    return sketch.model()


@rare
def maps() -> onnx.ModelProto:
    """A map as input (ai.onnx.ml)."""
    sketch = Sketch("maps")
    sketch.domains["ai.onnx.ml"] = 3
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    sketch.inputs.append(helper.make_value_info(sketch.fresh("counts"), kind))
    vector = sketch.node("DictVectorizer", "counts", domain="ai.onnx.ml", string_vocabulary=["a", "b", "c"])
    sketch.output(sketch.node("MatMul", vector, sketch.random("w", 3, 2), outputs=["y"]), [1, 2])
    return sketch.model()


@rare_unrunnable
def complex_input() -> onnx.ModelProto:
    """Complex numbers as input and output."""
    sketch = Sketch("complex-input")
    x = sketch.input("x", ["batch", 4], TensorProto.COMPLEX64)
    sketch.output(sketch.node("Identity", x, outputs=["y"]), ["batch", 4], TensorProto.COMPLEX64)
    return sketch.model()


@rare_unrunnable
def sparse_input() -> onnx.ModelProto:
    """A graph input of the sparse tensor type, handed through an operator of a domain of its own."""
    sketch = _custom_sketch("sparse-input")
    kind = helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, ["batch", 4])
    sketch.inputs.append(helper.make_value_info(sketch.fresh("x"), kind))
    sketch.output(sketch.node("Densify", "x", domain="org.example", outputs=["y"]), ["batch", 4])
    return sketch.model()


@rare_unrunnable
def custom_domain() -> onnx.ModelProto:
    """A node of a domain nobody knows between known ones, with attributes of every kind."""
    sketch = _custom_sketch("custom-domain")
    hidden = sketch.node("MatMul", sketch.input("x", ["batch", 4]), sketch.random("w", 4, 4))
    body = Sketch("body")
    body.output(body.node("Constant", value_float=1.0, outputs=["one"]), [])
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [2], [1.0, 2.0])
    index = helper.make_tensor("i", TensorProto.INT64, [2], [0, 3])
    sparse = helper.make_sparse_tensor(tensor, index, [4])
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"])
    kinds: dict[str, object] = {
        "f": 0.5, "i": 3, "s": "text", "t": tensor, "g": body.graph(), "sparse": sparse, "tp": kind,
        "floats": [0.5, 1.5], "ints": [1, 2], "strings": ["a", "b"], "tensors": [tensor, index],
        "graphs": [body.graph()], "sparses": [sparse], "types": [kind],
    }  # fmt: skip
    sketch.node("Mystery", hidden, "", domain="org.example", outputs=["mystery", "other"], **kinds)
    sketch.nodes[-1].attribute.append(helper.make_attribute("none", [], attr_type=onnx.AttributeProto.INTS))
    sketch.output(sketch.node("Relu", "mystery", outputs=["y"]), ["batch", 4])
    return sketch.model()


def _custom_sketch(name: str) -> Sketch:
    sketch = Sketch(name)
    sketch.domains["org.example"] = 3
    return sketch


@rare
def passed_through() -> onnx.ModelProto:
    """A graph input that is also an output, an input nobody reads, a value that is an output and read on."""
    sketch = Sketch("passed-through")
    x = sketch.input("x", ["batch", 4])
    sketch.input("unread", ["batch"])
    hidden = sketch.node("MatMul", x, sketch.random("w", 4, 4), outputs=["hidden"])
    sketch.output(x, ["batch", 4])
    sketch.output(hidden, ["batch", 4])
    sketch.output(sketch.node("Relu", hidden, outputs=["y"]), ["batch", 4])
    return sketch.model()


@rare
def omitted_inputs_and_outputs() -> onnx.ModelProto:
    """Empty names in the middle of a node's inputs, and a first output that is left out."""
    sketch = Sketch("omitted-inputs-and-outputs")
    x = sketch.node("Clip", sketch.input("x", [5, "batch", 4]), "", sketch.weight("most", np.array(0.5, np.float32)))
    batch = sketch.node("Shape", x, start=1, end=2)
    one, three = sketch.weight("one", np.array([1])), sketch.weight("three", np.array([3]))
    start = sketch.node("Expand", sketch.random("start", 3), sketch.node("Concat", one, batch, three, axis=0))
    weights = sketch.random("w", 1, 9, 4), sketch.random("r", 1, 9, 3)
    sketch.node("GRU", x, *weights, "", "", start, outputs=["", "last"], hidden_size=3)
    sketch.output("last", [1, "batch", 3])
    return sketch.model()


@rare
def random_operators() -> onnx.ModelProto:
    """Noise added to the input: the model differs from itself on every run."""
    sketch = Sketch("random-operators")
    x = sketch.input("x", ["batch", 4])
    noise = sketch.node("RandomNormalLike", x, scale=0.1)
    y = sketch.node("MatMul", sketch.node("Add", x, noise), sketch.random("w", 4, 4))
    sketch.output(sketch.node("Identity", y, outputs=["y"]), ["batch", 4])
    return sketch.model()


@rare
def data_dependent_shapes() -> onnx.ModelProto:
    """The output's size depends on the values of the input."""
    sketch = Sketch("data-dependent-shapes")
    x = sketch.input("x", ["batch", 4])
    y = sketch.node("MatMul", x, sketch.random("w", 4, 4))
    found = sketch.node("NonZero", sketch.node("Relu", y), outputs=["found"])
    sketch.output(found, [2, None], TensorProto.INT64)
    return sketch.model()
