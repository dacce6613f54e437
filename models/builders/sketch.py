"""A graph being drawn, node by node, until `model()` makes an ONNX message of it."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = Sequence[int | str | None]


class Sketch:
    """Nodes, weights, inputs and outputs in the order they were added; every method returns a tensor's name.

    Attributes:
        rng: the only source of random numbers, seeded alike for every sketch.
        opset: version of the default operator set; `require` raises it.
        ir_version: raised by `require` too.
        domains: the other operator sets and their versions.
    """

    def __init__(self, name: str = "sketch", opset: int = 18, ir_version: int = 8) -> None:
        self.name = name
        self.opset = opset
        self.ir_version = ir_version
        self.rng = np.random.default_rng(0)
        self.domains: dict[str, int] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def require(self, opset: int = 0, ir_version: int = 0) -> None:
        """Raise the versions to at least these."""
        self.opset, self.ir_version = max(self.opset, opset), max(self.ir_version, ir_version)

    def fresh(self, stem: str) -> str:
        """A name not used yet: the stem itself, or with a number."""
        name = stem
        while name in self._taken:
            self._numbers[stem] = self._numbers.get(stem, 0) + 1
            name = f"{stem}_{self._numbers[stem]}"
        self._taken.add(name)
        return name

    def input(self, name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> str:
        """Add a graph input that is a tensor."""
        name = self.fresh(name)
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: Shape | None, dtype: int = TensorProto.FLOAT) -> str:
        """Declare a tensor, already made, as graph output; the shape None leaves even the rank open."""
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def weight(self, name: str, value: Array | TensorProto) -> str:
        """Add an initializer; an array is stored as raw bytes."""
        tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value, order="C"))
        tensor.name = self.fresh(name)
        self.weights.append(tensor)
        return tensor.name

    def random(self, name: str, *shape: int) -> str:
        """Add an initializer of float32 normals."""
        return self.weight(name, self.normal(*shape))

    def normal(self, *shape: int) -> npt.NDArray[np.float32]:
        """Float32 normals of the sketch's own generator."""
        return self.rng.standard_normal(shape, np.float32)

    def node(self, op: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **attributes: Any) -> str:
        """Add a node and return its first output, named after the operator where `outputs` is not given."""
        names = list(outputs) or [self.fresh(op.lower())]
        self._taken.update(names)
        label = self.fresh(f"{op}_node")
        self.nodes.append(helper.make_node(op, list(inputs), names, name=label, domain=domain, **attributes))
        return names[0]

    def graph(self) -> onnx.GraphProto:
        """The graph drawn so far; also the body of a control-flow node."""
        return helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.weights)

    def model(self, functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
        """The model drawn so far."""
        imports = [helper.make_opsetid(domain, version) for domain, version in {"": self.opset, **self.domains}.items()]
        return helper.make_model(
            self.graph(),
            producer_name="onnxopt.models.builders",
            ir_version=self.ir_version,
            opset_imports=imports,
            functions=functions,
        )


def feeds(model: onnx.ModelProto, rng: np.random.Generator, size: int = 3) -> dict[str, Any]:
    """Random values for every input that is not an initializer, as onnxruntime takes them.

    Floats are normal, integers 0 or 1; symbolic and unknown dimensions get `size`; a sequence has two items, a map one.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return {info.name: _value(info.type, rng, size) for info in model.graph.input if info.name not in weights}


def _value(kind: onnx.TypeProto, rng: np.random.Generator, size: int) -> Any:
    if kind.HasField("sequence_type"):
        return [_value(kind.sequence_type.elem_type, rng, size) for _ in range(2)]
    if kind.HasField("optional_type"):
        return _value(kind.optional_type.elem_type, rng, size)
    if kind.HasField("map_type"):
        return {"a": 1.5}
    shape = [dim.dim_value if dim.HasField("dim_value") else size for dim in kind.tensor_type.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
    if kind.tensor_type.elem_type == TensorProto.STRING:
        return np.full(shape, "text", object)
    drawn: Array = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(2, size=shape)
    return drawn.astype(dtype)
