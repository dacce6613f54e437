"""What depends on what: the values of the main graph that some nodes have a part in."""

from collections.abc import Container

import onnx_ir as ir

from onnxopt.analysis.structure import reads, topological
from onnxopt.model import Model
from onnxopt.nodes import with_inner


def reached(model: Model, sources: Container[ir.Node]) -> set[ir.Value]:
    """The values of the main graph that are computed by the sources or from what they make.

    Args:
        model: the model.
        sources: nodes of the main graph and of subgraphs; what holds one of them is taken for one.
    """
    found: set[ir.Value] = set()
    for node in topological(model.graph):
        if any(value in found for value in reads(node)) or any(inner in sources for inner in with_inner(node)):
            found.update(node.outputs)
    return found
