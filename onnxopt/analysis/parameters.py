"""The constants that a model stores, and how many parameters each one stands for.

A parameter is an element of a floating-point constant, or of a quantized one (8 bits or fewer, or read where
DequantizeLinear or a quantized operator reads its weight); packed weights count what they unpack to. No
parameters: scales, zero points and codebooks, integers that are sizes or indices, and constants of rank 0, which
belong to a formula. An initializer and a Constant node count alike.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxopt.analysis.macs import MICROSOFT, OWN
from onnxopt.analysis.structure import constant_array, constant_tensor
from onnxopt.model import Model

_NARROW = {"INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2"}

ENCODING: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "QuantizeLinear"): (1, 2),
    ("", "DequantizeLinear"): (1, 2),
    ("", "QLinearConv"): (1, 2, 4, 5, 6, 7),
    ("", "QLinearMatMul"): (1, 2, 4, 5, 6, 7),
    ("", "MatMulInteger"): (2, 3),
    ("", "ConvInteger"): (2, 3),
    (MICROSOFT, "QuantizeLinear"): (1, 2),
    (MICROSOFT, "DequantizeLinear"): (1, 2),
    (MICROSOFT, "QLinearConv"): (1, 2, 4, 5, 6, 7),
    (MICROSOFT, "QLinearAdd"): (1, 2, 4, 5, 6, 7),
    (MICROSOFT, "QLinearMul"): (1, 2, 4, 5, 6, 7),
    (MICROSOFT, "QLinearAveragePool"): (1, 2, 3, 4),
    (MICROSOFT, "QLinearGlobalAveragePool"): (1, 2, 3, 4),
    (MICROSOFT, "QLinearLeakyRelu"): (1, 2, 3, 4),
    (MICROSOFT, "QLinearSigmoid"): (1, 2, 3, 4),
    (MICROSOFT, "QLinearSoftmax"): (1, 2, 3, 4),
    (MICROSOFT, "QGemm"): (1, 2, 4, 5, 7, 8),
    (MICROSOFT, "QAttention"): (3, 4, 6, 7),
    (MICROSOFT, "DynamicQuantizeMatMul"): (2, 3),
    (MICROSOFT, "DynamicQuantizeLSTM"): (8, 9, 10, 11),
    (MICROSOFT, "MatMulIntegerToFloat"): (2, 3, 4, 5),
    (MICROSOFT, "MatMulNBits"): (2, 3, 4),
    (MICROSOFT, "MatMulBnb4"): (2,),
    (MICROSOFT, "GatherBlockQuantized"): (2, 3),
}
"""Inputs that only say how others are encoded."""

_WIDE_WEIGHTS: Mapping[tuple[str, str], int] = {
    ("", "DequantizeLinear"): 0,
    ("", "QLinearConv"): 8,
    (MICROSOFT, "DequantizeLinear"): 0,
    (MICROSOFT, "QLinearConv"): 8,
    (MICROSOFT, "QGemm"): 6,
}
"""Inputs at which integers of more than 8 bits are weights, too."""

_SAME_CONTENT = {
    "Cast", "CastLike", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that a scale may pass on its way."""


@dataclass(frozen=True)
class Stored:
    """One constant of the file.

    Attributes:
        value: the initializer, or the output of a Constant node.
        params: the parameters that it stands for.
        nbytes: its size as stored (4-bit types packed, text without lengths).
    """

    value: ir.Value
    params: int
    nbytes: int


def stored(model: Model) -> Iterator[Stored]:
    """Every constant of the main graph, of subgraphs and of functions, read by anybody or not; no large one is read.

    What a function of ours holds is part of a formula and no parameter.
    """
    functions = list(model.ir.functions.values())
    nodes = [*model.nodes(), *(node for function in functions for node in function.all_nodes())]
    inner = (graph.initializers for function in functions for graph in function.subgraphs())
    weights = [*model.weights(), *(value for initializers in inner for value in initializers.values())]
    formulas = {node for function in functions if function.domain == OWN for node in function.all_nodes()}
    encodings = set(_encodings(model, nodes))
    for value in (*weights, *(node.outputs[0] for node in nodes if node.op_type == "Constant")):
        tensor = constant_tensor(value)
        if tensor is not None:
            counts = value not in encodings and value.producer() not in formulas
            yield Stored(value, _params(value, tensor) if counts else 0, tensor.nbytes)


def stored_bytes(model: Model) -> int:
    """Bytes of all constants, wherever they stand."""
    return sum(each.nbytes for each in stored(model))


def _encodings(model: Model, nodes: Iterable[ir.Node]) -> Iterator[ir.Value]:
    """Constants that are scales, zero points and the like of others."""
    for node in nodes:
        for index in _encoding_inputs(model, node):
            value = node.inputs[index] if index < len(node.inputs) else None
            while value is not None:
                yield value
                producer = value.producer()
                if producer is None or producer.op_type not in _SAME_CONTENT or not producer.inputs:
                    break
                value = producer.inputs[0]


def _encoding_inputs(model: Model, node: ir.Node) -> Iterable[int]:
    if node.domain != OWN:
        return ENCODING.get((_domain(node), node.op_type), ())
    function = model.ir.functions.get(node.op_identifier())
    names = [value.name for value in function.inputs] if function is not None else []
    return [i for i in range(2, len(node.inputs)) if i >= len(names) or names[i] != "bias"]


def _params(value: ir.Value, tensor: ir.TensorProtocol) -> int:
    if len(tensor.shape) == 0:
        return 0
    uses = [(user, index) for user, index in value.uses()]
    narrow = tensor.dtype.name in _NARROW
    wide = any(_WIDE_WEIGHTS.get((_domain(user), user.op_type)) == index for user, index in uses)
    if not (narrow or wide or tensor.dtype.is_floating_point()):
        return 0
    return next((n for user, index in uses if (n := _unpacked(user, index, tensor)) is not None), tensor.size)


def _unpacked(user: ir.Node, index: int, tensor: ir.TensorProtocol) -> int | None:
    """Elements of a weight that its reader unpacks from bytes; None where an element is one of the tensor."""
    attributes = user.attributes
    match (_domain(user), user.op_type, index):
        case (domain, "MatMulNBits" | "MatMulBnb4", 1) if domain == MICROSOFT:
            return attributes["K"].as_int() * attributes["N"].as_int() if {"K", "N"} <= set(attributes) else None
        case (domain, "MatMulFpQ4", 1) if domain == MICROSOFT:
            shape = constant_array(user.inputs[2])
            return None if shape is None else int(prod(shape.tolist()))
        case (domain, "GatherBlockQuantized", 0) if domain == MICROSOFT and tensor.dtype == ir.DataType.UINT8:
            bits = attributes["bits"].as_int() if "bits" in attributes else 4
            return tensor.size * 8 // bits
        case (domain, name, 1) if domain == OWN and "Planes" in name and len(tensor.shape) == 3:
            return tensor.size * 8 // int(tensor.shape.numpy()[0])
    return None


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain
