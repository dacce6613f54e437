"""What every layer asks of a node: what to call it, and what lies inside it."""

from collections.abc import Iterator

import onnx_ir as ir

DRAWING = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip
"""Standard operators that draw random numbers; Dropout does in training mode."""


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def label(node: ir.Node) -> str:
    """What to call a node before people: its name, else its first output's, else its operator."""
    return node.name or next((value.name for value in node.outputs if value.name), None) or node.op_type


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs of a node itself, without those nested inside them."""
    for attribute in node.attributes.values():
        if attribute.type not in _GRAPHS or attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        else:
            yield from attribute.as_graphs()


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """All graphs inside a node, nested ones included."""
    for body in bodies(node):
        yield body
        yield from body.subgraphs()


def with_inner(node: ir.Node) -> Iterator[ir.Node]:
    """The node and all nodes of all graphs inside it."""
    yield node
    for body in bodies(node):
        yield from body.all_nodes()


def tensor_value(attribute: ir.Attr) -> ir.TensorProtocol:
    """The tensor of an attribute of that type; `Attr.as_tensor` checks all of a protocol, which takes 0.1 ms."""
    tensor: ir.TensorProtocol = attribute.value
    return tensor
