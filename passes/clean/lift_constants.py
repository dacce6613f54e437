"""Constant nodes to initializers."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxopt.errors import Declined
from onnxopt.model import Model
from onnxopt.passes.clean import become_weights
from onnxopt.passing import Context, Findings, Pass


class LiftConstants(Pass):
    """Turn Constant nodes into weights, so that all constants are found in one place.

    A Constant inside a branch or loop becomes a weight of that subgraph. One that makes a graph output stays.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        tensors = {}
        for node in model.nodes():
            if node.op_type != "Constant" or node.domain or node.outputs[0].is_graph_output():
                continue
            tensor = constant_tensor(node)
            if isinstance(tensor, Declined):
                findings.declined.append(tensor)
            else:
                tensors[node.outputs[0]] = tensor
                findings.change(node.name, self.name, f"its value is the weight {node.outputs[0].name}")
        if tensors:
            nodes = [node for value in tensors if (node := value.producer()) is not None]
            become_weights(model, self.name, tensors, nodes)
        return findings


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | Declined:
    """What a Constant node makes, or why that is no plain tensor."""
    if len(node.attributes) != 1:
        return Declined(node.name or "", LiftConstants.name, "a Constant needs exactly one attribute")
    attribute = next(iter(node.attributes.values()))
    form = None if attribute.is_ref() else _FORMS.get(attribute.name)
    if form is None:
        return Declined(node.name or "", LiftConstants.name, f"{attribute.name} cannot be written as an initializer")
    return form(attribute)


def _strings(attribute: ir.Attr, texts: tuple[str, ...], shape: tuple[int, ...]) -> ir.TensorProtocol:
    return ir.StringTensor([text.encode() for text in texts], shape=ir.Shape(shape))


_FORMS: dict[str, Callable[[ir.Attr], ir.TensorProtocol]] = {
    "value": lambda a: a.as_tensor(),
    "value_int": lambda a: ir.Tensor(np.array(a.as_int(), np.int64)),
    "value_ints": lambda a: ir.Tensor(np.array(a.as_ints(), np.int64)),
    "value_float": lambda a: ir.Tensor(np.array(a.as_float(), np.float32)),
    "value_floats": lambda a: ir.Tensor(np.array(a.as_floats(), np.float32)),
    "value_string": lambda a: _strings(a, (a.as_string(),), ()),
    "value_strings": lambda a: _strings(a, tuple(a.as_strings()), (len(a.as_strings()),)),
}
