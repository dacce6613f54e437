"""Where half precision reaches, and so how closely outputs must agree."""

from collections.abc import Iterable

import onnx_ir as ir

from onnxopt.analysis.reach import reached
from onnxopt.analysis.shapes import Shapes, infer
from onnxopt.analysis.structure import topological
from onnxopt.comparing import HALF, TIGHT
from onnxopt.model import Model
from onnxopt.nodes import bodies, with_inner

_HALF = frozenset((ir.DataType.FLOAT16, ir.DataType.BFLOAT16))


def default_tolerance(model: Model) -> dict[str, float]:
    """Relative L2 that the exact contract allows, by name of a value of the main graph.

    5e-3 where a value is half precision itself or is computed from one that is; weights, and what is computed from
    weights alone (scales that dequantize them), do not count. Else 1e-4. Linear in nodes.
    """
    types = _Types(model)
    half = reached(model, _computes_in_half(model, types))
    values = (*model.graph.inputs, *model.graph.outputs, *(v for node in model.graph for v in node.outputs))
    return {v.name: HALF if v in half or types.is_half(v) else TIGHT for v in values if v.name}


class _Types:
    """Types of values; inference runs only when a declaration is missing."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._shapes: Shapes | None = None

    def is_half(self, value: ir.Value) -> bool:
        if value.type is not None and value.dtype is not None:
            return value.dtype in _HALF
        if self._shapes is None:
            self._shapes = infer(self._model)
        return self._shapes.dtype(value) in _HALF


def _computes_in_half(model: Model, types: _Types) -> set[ir.Node]:
    """Nodes, of subgraphs too, that give half precision and do not read weights alone."""
    functions = {key for key, function in model.ir.functions.items() if _mentions_half(function.all_nodes())}
    constants: set[ir.Value] = set()
    found = set()
    for node in (inner for outer in topological(model.graph) for inner in with_inner(outer)):
        inputs = [value for value in node.inputs if value is not None]
        plain = (bool(inputs) or node.op_type == "Constant") and not any(True for _ in bodies(node))
        if plain and all(value in constants or value.const_value is not None for value in inputs):
            constants.update(node.outputs)
        elif node.op_identifier() in functions or any(v.name and types.is_half(v) for v in node.outputs):
            found.add(node)
    return found


def _mentions_half(nodes: Iterable[ir.Node]) -> bool:
    """Whether a function's body casts to half precision or declares values of it; it need not say any types."""
    return any(_casts_to_half(node) or any(value.dtype in _HALF for value in node.outputs) for node in nodes)


def _casts_to_half(node: ir.Node) -> bool:
    to = node.attributes.get("to")
    return to is not None and to.type == ir.AttributeType.INT and not to.is_ref() and to.as_int() in _HALF
