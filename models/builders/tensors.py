"""Models with rare tensors: every element type, sparse, external, shared, empty, listed as inputs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxopt.models.builders.registry import add, on_disk, rare
from onnxopt.models.builders.sketch import Array, Sketch

_FLOATS = (0.5, 1.0, -2.0, 1.5, -0.5)
_SIGNED = (-2, 1, 0, -1, 1)
_UNSIGNED = (3, 1, 0, 2, 1)

ELEMENT_TYPES: dict[str, tuple[int, int, tuple[float, ...]]] = {
    "FLOAT": (18, 8, _FLOATS),
    "FLOAT16": (18, 8, _FLOATS),
    "BFLOAT16": (18, 8, _FLOATS),
    "DOUBLE": (18, 8, _FLOATS),
    "INT8": (18, 8, _SIGNED),
    "INT16": (18, 8, _SIGNED),
    "INT32": (18, 8, _SIGNED),
    "INT64": (18, 8, _SIGNED),
    "UINT8": (18, 8, _UNSIGNED),
    "UINT16": (18, 8, _UNSIGNED),
    "UINT32": (18, 8, _UNSIGNED),
    "UINT64": (18, 8, _UNSIGNED),
    "BOOL": (18, 8, (1, 0, 1, 1, 0)),
    "STRING": (18, 8, _UNSIGNED),
    "COMPLEX64": (18, 8, _FLOATS),
    "COMPLEX128": (18, 8, _FLOATS),
    "FLOAT8E4M3FN": (19, 9, _FLOATS),
    "FLOAT8E4M3FNUZ": (19, 9, _FLOATS),
    "FLOAT8E5M2": (19, 9, _FLOATS),
    "FLOAT8E5M2FNUZ": (19, 9, _FLOATS),
    "INT4": (21, 10, _SIGNED),
    "UINT4": (21, 10, _UNSIGNED),
    "FLOAT4E2M1": (23, 11, _FLOATS),
    "FLOAT8E8M0": (24, 12, (0.5, 1.0, 2.0, 4.0, 1.0)),
    "INT2": (25, 13, _SIGNED),
    "UINT2": (25, 13, _UNSIGNED),
    "FLOAT6E2M3": (28, 14, _FLOATS),
    "FLOAT6E3M2": (28, 14, _FLOATS),
}
"""Per element type: the opset and IR version that brought it to Constant and Cast, and five values it can hold."""

_UNCAST = {"STRING", "COMPLEX64", "COMPLEX128"}
_NO_KERNEL = {"COMPLEX64", "COMPLEX128", "FLOAT4E2M1", "FLOAT6E2M3", "FLOAT6E3M2"}
_NO_CONSTANT = {"FLOAT6E2M3", "FLOAT6E3M2"}


def of_type(dtype: str, storage: str) -> onnx.ModelProto:
    """y = x + Cast(c), where c holds five values of a type.

    An odd number of elements leaves padding in packed types. What cannot be cast is an output of its own.

    Args:
        dtype: a key of `ELEMENT_TYPES`.
        storage: "initializer" (raw bytes where the type has them) or "constant" (a Constant, typed fields).
    """
    opset, ir_version, values = ELEMENT_TYPES[dtype]
    sketch = Sketch(f"{dtype.lower()}-{storage}", opset, ir_version)
    number = TensorProto.DataType.Value(dtype)
    x = sketch.input("x", ["batch", len(values)])
    if storage == "initializer":
        c = sketch.weight("c", _raw(number, values))
    else:
        c = sketch.node("Constant", outputs=["c"], value=helper.make_tensor("c", number, [5], _typed(number, values)))
    if dtype in _UNCAST:
        sketch.output(sketch.node("Identity", c, outputs=["untouched"]), [5], number)
        term = sketch.random("bias", 5)
    else:
        term = sketch.node("Cast", c, to=TensorProto.FLOAT)
    sketch.output(sketch.node("Add", x, term, outputs=["y"]), ["batch", 5])
    return sketch.model()


def _typed(dtype: int, values: tuple[float, ...]) -> Array:
    return np.array([f"text {v}" for v in values] if dtype == TensorProto.STRING else values)


def _raw(dtype: int, values: tuple[float, ...]) -> TensorProto:
    if dtype == TensorProto.STRING:
        return helper.make_tensor("", dtype, [len(values)], _typed(dtype, values))
    return numpy_helper.from_array(np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(dtype)))


def _kinds() -> Iterator[tuple[str, str]]:
    """The element types that the installed onnx knows, with the storages it has for each."""
    known = {name for name, _ in TensorProto.DataType.items()}
    for dtype in (name for name in ELEMENT_TYPES if name in known):
        yield dtype, "initializer"
        if dtype not in _NO_CONSTANT:
            yield dtype, "constant"


for _dtype, _storage in _kinds():
    add(f"{_dtype.lower()}-{_storage}", partial(of_type, _dtype, _storage), runs=_dtype not in _NO_KERNEL)


@rare
def initializers_as_inputs() -> onnx.ModelProto:
    """IR 3: every initializer is listed among the graph's inputs."""
    sketch = Sketch("initializers-as-inputs", opset=9, ir_version=3)
    x = sketch.input("x", ["batch", 4])
    for name, shape in (("w", [4, 5]), ("b", [5])):
        sketch.random(name, *shape)
        sketch.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    sketch.output(sketch.node("Gemm", x, "w", "b", outputs=["y"]), ["batch", 5])
    return sketch.model()


@rare
def typed_fields() -> onnx.ModelProto:
    """Weights in float_data, double_data, int32_data and int64_data instead of raw bytes."""
    sketch = Sketch("typed-fields")
    x = sketch.input("x", ["batch", 4])
    y = sketch.node("MatMul", x, sketch.weight("w", in_typed_field(sketch.normal(4, 6))))
    scale = sketch.weight("scale", in_typed_field(sketch.rng.standard_normal(6)))
    y = sketch.node("Mul", y, sketch.node("Cast", scale, to=TensorProto.FLOAT))
    half = sketch.weight("half", in_typed_field(sketch.normal(6).astype(np.float16)))
    y = sketch.node("Add", y, sketch.node("Cast", half, to=TensorProto.FLOAT))
    shape = sketch.weight("shape", in_typed_field(np.array([-1, 2, 3])))
    sketch.output(sketch.node("Reshape", y, shape, outputs=["y"]), ["batch", 2, 3])
    return sketch.model()


def in_typed_field(array: Array) -> TensorProto:
    """A tensor whose values lie in `float_data`, `int32_data`, ... as its type asks for."""
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor("", dtype, array.shape, array.flatten())


@rare
def sparse_initializers() -> onnx.ModelProto:
    """Two sparse initializers, indexed linearly and by coordinates.

    onnx's shape inference refuses them as inputs of any standard operator; its plain checker does not.
    """
    sketch = Sketch("sparse-initializers")
    hidden = sketch.node("MatMul", sketch.input("x", ["batch", 4]), "linear")
    sketch.output(sketch.node("MatMul", hidden, "coordinates", outputs=["y"]), ["batch", 3])
    model = sketch.model()
    coordinates = _sparse("coordinates", np.array([[0, 1], [2, 2], [4, 0]]), [5, 3])
    model.graph.sparse_initializer.extend([_sparse("linear", np.array([0, 7, 18]), [4, 5]), coordinates])
    return model


@rare
def sparse_constant() -> onnx.ModelProto:
    """A Constant whose value is sparse."""
    sketch = Sketch("sparse-constant")
    w = sketch.node("Constant", outputs=["w"], sparse_value=_sparse("", np.array([1, 6, 11]), [4, 5]))
    sketch.output(sketch.node("MatMul", sketch.input("x", ["batch", 4]), w, outputs=["y"]), ["batch", 5])
    return sketch.model()


def _sparse(name: str, indices: Array, shape: list[int]) -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, TensorProto.FLOAT, [3], [1.0, -2.0, 0.5])
    at = helper.make_tensor(f"{name}_indices", TensorProto.INT64, indices.shape, indices.flatten())
    return helper.make_sparse_tensor(values, at, shape)


@rare
def duplicated_initializers() -> onnx.ModelProto:
    """Two initializers with the same content under two names."""
    sketch = Sketch("duplicated-initializers")
    content = sketch.normal(4, 4)
    hidden = sketch.node("MatMul", sketch.input("x", ["batch", 4]), sketch.weight("first", content))
    sketch.output(sketch.node("MatMul", hidden, sketch.weight("second", content), outputs=["y"]), ["batch", 4])
    return sketch.model()


@rare
def shared_initializer() -> onnx.ModelProto:
    """One weight that is an embedding, transposed the last layer, and a square one used twice between."""
    sketch = Sketch("shared-initializer")
    tokens = sketch.input("tokens", ["batch", "sequence"], TensorProto.INT64)
    table, square = sketch.random("table", 6, 4), sketch.random("square", 4, 4)
    hidden = sketch.node("Gather", table, tokens)
    hidden = sketch.node("MatMul", sketch.node("Tanh", sketch.node("MatMul", hidden, square)), square)
    head = sketch.node("Transpose", table, perm=[1, 0])
    sketch.output(sketch.node("MatMul", hidden, head, outputs=["logits"]), ["batch", "sequence", 6])
    return sketch.model()


@rare
def identity_shared_weights() -> onnx.ModelProto:
    """A weight shared through Identity nodes, as exporters write tied parameters."""
    sketch = Sketch("identity-shared-weights")
    w = sketch.random("w", 4, 4)
    y = sketch.input("x", ["batch", 4])
    for source in (w, sketch.node("Identity", w), sketch.node("Identity", sketch.node("Identity", w))):
        y = sketch.node("MatMul", y, source)
    sketch.output(sketch.node("Identity", y, outputs=["y"]), ["batch", 4])
    return sketch.model()


@rare
def odd_initializers() -> onnx.ModelProto:
    """An empty weight, a scalar, one nobody reads, one that is an output, and values that are not finite."""
    sketch = Sketch("odd-initializers")
    x = sketch.input("x", ["batch", 4])
    sketch.random("unused", 3)
    sketch.output(sketch.random("constant_output", 2, 2), [2, 2])
    empty = sketch.node("Concat", x, sketch.random("empty", 0, 4), axis=0)
    scaled = sketch.node("Mul", empty, sketch.weight("scalar", np.array(0.5, np.float32)))
    extremes = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
    sketch.output(sketch.node("Max", scaled, sketch.weight("extremes", extremes), outputs=["y"]), ["batch", 4])
    return sketch.model()


@on_disk
def external_data(folder: Path) -> onnx.ModelProto:
    """All weights in one file beside the model, at aligned offsets."""
    sketch = Sketch("external-data")
    hidden = sketch.node("MatMul", sketch.input("x", ["batch", 4]), sketch.random("w1", 4, 5))
    sketch.output(sketch.node("MatMul", hidden, sketch.random("w2", 5, 3), outputs=["y"]), ["batch", 3])
    return externalized(sketch.model(), folder)


@on_disk
def external_data_in_subfolder(folder: Path) -> onnx.ModelProto:
    """A weight in a subfolder's file, read to its end: neither offset nor length are given."""
    sketch = Sketch("external-data-in-subfolder")
    w = sketch.random("w", 4, 5)
    sketch.output(sketch.node("MatMul", sketch.input("x", ["batch", 4]), w, outputs=["y"]), ["batch", 5])
    (folder / "weights").mkdir(exist_ok=True)
    model = externalized(sketch.model(), folder, "weights/w.bin")
    del model.graph.initializer[0].external_data[1:]
    return model


def externalized(model: onnx.ModelProto, folder: Path, location: str = "weights.bin") -> onnx.ModelProto:
    """The model with the main graph's raw initializers moved to the file `folder / location`."""
    with open(folder / location, "wb") as file:
        for tensor in model.graph.initializer:
            file.write(bytes(-file.tell() % 64))
            place = {"location": location, "offset": str(file.tell()), "length": str(file.write(tensor.raw_data))}
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
    return model
