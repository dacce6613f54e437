"""Clean-up: passes that change how a model is written, not what it computes. What they share is here."""

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from onnxopt.edit import Edit, Tensor
from onnxopt.model import Model


def is_constant(model: Model, value: ir.Value) -> bool:
    """Whether a value is a weight that callers cannot override.

    From IR 4 on, a weight that is also a graph input is only that input's default. Before, every weight had to
    be listed so, and runtimes take them all as constants.
    """
    if not value.is_initializer() or value.const_value is None:
        return False
    return not value.is_graph_input() or model.ir.ir_version < 4


def become_weights(model: Model, rule: str, tensors: Mapping[ir.Value, Tensor], without: Iterable[ir.Node]) -> None:
    """Put weights in the place of node outputs, and take out the nodes.

    The weights carry the names and metadata of the values whose place they take, and live in the same graph.
    None of the values may be a graph output.
    """
    edit = Edit(rule)
    weights = {}
    for value, tensor in tensors.items():
        assert value.graph is not None
        weight = edit.add_weight(value.name or "weight", tensor, value.graph)
        weight.doc_string = value.doc_string
        weight.metadata_props.update(value.metadata_props)
        weight.meta.update(value.meta)
        value.type = None  # what is declared may be wrong; the tensor knows
        edit.rewire(value, weight)
        weights[weight] = value
    homes = {weight: value.graph for weight, value in weights.items()}
    edit.remove(*without)
    model.apply(edit)
    for weight, value in weights.items():
        if weight.is_initializer() and weight.graph is homes[weight]:
            weight.name = value.name
