"""What the recipe's `skip` protects: recorded before a lossy pass, and held against the model after it.

The graph is compared, not edits: a pass that puts a whole other graph in place is held to it too.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.model import Model
from onnxopt.nodes import bodies, label

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclass(frozen=True)
class _Node:
    """A node as it was: what it computes, and from which constants. Activations may come from elsewhere."""

    op: tuple[str, str]
    attributes: dict[str, ir.Attr]
    constants: tuple[str | None, ...]


@dataclass(frozen=True)
class _Weight:
    """A weight as it was, and who read it: all of them where it is skipped by its own name, else nobody."""

    tensor: ir.TensorProtocol
    readers: frozenset[str]


@dataclass(frozen=True)
class Skipped:
    """The nodes that a run must leave alone, what computes their constants, and the weights.

    Attributes:
        nodes, weights: by name; several where a name is that of several.
    """

    nodes: dict[str, list[_Node]]
    weights: dict[str, list[_Weight]]

    def touched(self, model: Model) -> str | None:
        """What is no longer as it was, in words; None where all is."""
        now = _recorded(model, self.nodes.__contains__, self.weights.__contains__, lambda name: True)
        for name, nodes in self.nodes.items():
            if len(now.nodes[name]) < len(nodes):
                return f"node {name}, which is gone"
            if not all(map(_same_node, nodes, now.nodes[name])):
                return f"node {name}"
        for name, weights in self.weights.items():
            if len(now.weights[name]) < len(weights):
                return f"weight {name}, which is gone"
            if not all(_same_tensor(a.tensor, b.tensor) for a, b in zip(weights, now.weights[name], strict=False)):
                return f"weight {name}"
            lost = [a.readers - b.readers for a, b in zip(weights, now.weights[name], strict=False)]
            if any(lost):
                return f"weight {name}, which {min(set().union(*lost))} no longer reads"
        return None


def skipped(model: Model, skips: Callable[[str], bool]) -> Skipped:
    """What of a model is to be skipped: nodes and weights that match, and the constants that such nodes read."""
    nodes, weights = set[str](), set[str]()
    constants = _constants(model)
    stack = [node for node in model.nodes() if skips(label(node))]
    while stack:
        node = stack.pop()
        if label(node) in nodes:
            continue
        nodes.add(label(node))
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if value in constants and producer is not None:
                stack.append(producer)
            elif value is not None and value.is_initializer():
                weights.add(value.name or "")
    return _recorded(model, nodes.__contains__, lambda name: name in weights or skips(name), skips)


def _recorded(
    model: Model, is_node: Callable[[str], bool], is_weight: Callable[[str], bool], with_readers: Callable[[str], bool]
) -> Skipped:
    found = Skipped(defaultdict(list), defaultdict(list))
    constants = _constants(model)
    for node in model.nodes():
        if is_node(name := label(node)):
            read = tuple(value.name if value is not None and value in constants else None for value in node.inputs)
            found.nodes[name].append(_Node((node.domain, node.op_type), dict(node.attributes), read))
    for value in model.weights():
        if is_weight(name := value.name or "") and value.const_value is not None:
            readers = _readers(value, constants) if with_readers(name) else frozenset[str]()
            found.weights[name].append(_Weight(value.const_value, readers))
    return found


def _readers(weight: ir.Value, constants: set[ir.Value]) -> frozenset[str]:
    """The nodes that read a weight, or what is computed of it and other constants."""
    found: set[ir.Node] = set()
    stack = [weight]
    while stack:
        new = {node for node, _ in stack.pop().uses()} - found
        found |= new
        stack += [value for node in new for value in node.outputs if value in constants]
    return frozenset(map(label, found))


def _constants(model: Model) -> set[ir.Value]:
    """Weights, and what nodes compute of nothing else."""
    found = set(model.weights())
    for node in model.nodes():
        given = [value for value in node.inputs if value is not None]
        if all(value in found for value in given) and not any(bodies(node)) and (given or node.op_type == "Constant"):
            found.update(node.outputs)
    return found


def _same_node(a: _Node, b: _Node) -> bool:
    if (a.op, a.constants, a.attributes.keys()) != (b.op, b.constants, b.attributes.keys()):
        return False
    return all(_same_attribute(attribute, b.attributes[name]) for name, attribute in a.attributes.items())


def _same_attribute(a: ir.Attr, b: ir.Attr) -> bool:
    """Whether two attributes say the same; the nodes of subgraphs have names of their own to be skipped by."""
    if a is b or a.type != b.type or a.type in _GRAPHS:
        return a.type == b.type
    if a.type == ir.AttributeType.TENSOR and not a.is_ref() and not b.is_ref():
        return _same_tensor(a.as_tensor(), b.as_tensor())
    return repr(a) == repr(b)


def _same_tensor(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a is b:
        return True
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    if a.dtype == ir.DataType.STRING:
        return bool((a.numpy() == b.numpy()).all())
    return a.tobytes() == b.tobytes()
