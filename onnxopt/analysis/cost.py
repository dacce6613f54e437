"""What a model costs: multiply-accumulates, parameters, bytes; by node and in total."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.analysis.macs import count, has_macs
from onnxopt.analysis.parameters import stored
from onnxopt.analysis.shapes import Shapes
from onnxopt.analysis.skeleton import Dims
from onnxopt.analysis.structure import constant_array, reads, topological
from onnxopt.model import Model
from onnxopt.nodes import bodies, label

_FIELD = 3
"""About the bytes that a message field takes beside its content: tag and length, and those of what holds it."""


@dataclass(frozen=True)
class NodeCost:
    """What one node of the main graph costs, its subgraphs included.

    Attributes:
        name: what the node is called (`onnxopt.nodes.label`).
        op_type: its operator.
        macs: multiply-accumulates of one run; None where a size or the operator is not known.
        params: parameters that it reads and no node before it.
        weight_bytes: bytes, as stored, of the constants that it reads and no node before it.
        activation_bytes: bytes of its outputs; None where a size is not known.
    """

    name: str
    op_type: str
    macs: int | None
    params: int
    weight_bytes: int
    activation_bytes: int | None


@dataclass(frozen=True)
class Cost:
    """What a model costs at certain sizes.

    Attributes:
        nodes: the main graph's nodes in an order in which they can run.
        macs: multiply-accumulates of one run, as far as they are known.
        unknown_macs: names of the nodes (of subgraphs, too) whose MACs are missing from it.
        params: parameters; each constant counts once, however many nodes read it.
        weight_bytes: bytes of all constants as stored.
        file_bytes: about the size of the file with its external data.
        activation_peak: most bytes of activations alive at a time, when the nodes run in that order, buffers are
            never shared and the caller keeps the inputs; None where a size is not known. Subgraphs' own
            activations do not count.
        sizes: the inputs' shapes that all this holds for.
        notes: what was assumed.
    """

    nodes: tuple[NodeCost, ...]
    macs: int
    unknown_macs: tuple[str, ...]
    params: int
    weight_bytes: int
    file_bytes: int
    activation_peak: int | None
    sizes: Mapping[str, Dims | None]
    notes: tuple[str, ...] = ()


def cost(model: Model, shapes: Shapes) -> Cost:
    """Count. `onnxopt.analysis.macs` and `onnxopt.analysis.parameters` say what counts.

    Of If, the branch with more MACs counts; the body of Loop and Scan as often as it runs where that is known,
    else once, with a note. A call of a function that is not inlined is unknown when its body multiplies.

    Args:
        model: the model as it is when `shapes` were found.
        shapes: its shapes; concrete ones, or MACs are unknown.
    """
    nodes = topological(model.graph)
    counter = _Counter(model, shapes)
    readers = _first_readers(nodes)
    params: dict[ir.Node, int] = {}
    weight_bytes: dict[ir.Node, int] = {}
    constants = list(stored(model))
    for constant in constants:
        reader = readers.get(constant.value)
        if reader is not None:
            params[reader] = params.get(reader, 0) + constant.params
            weight_bytes[reader] = weight_bytes.get(reader, 0) + constant.nbytes
    costs = tuple(
        NodeCost(
            label(node), node.op_type, counter.macs(node), params.get(node, 0), weight_bytes.get(node, 0),
            _total(_output_bytes(node, shapes)),
        )
        for node in nodes
    )  # fmt: skip
    total_bytes = sum(constant.nbytes for constant in constants)
    return Cost(
        nodes=costs,
        macs=sum(node.macs or 0 for node in costs),
        unknown_macs=tuple(counter.unknown),
        params=sum(constant.params for constant in constants),
        weight_bytes=total_bytes,
        file_bytes=total_bytes + _graph_bytes(model),
        activation_peak=_activation_peak(model.graph, nodes, shapes),
        sizes={value.name or "": shapes.of(value) for value in model.graph.inputs if not value.is_initializer()},
        notes=tuple(counter.notes),
    )


class _Counter:
    """Counts MACs, and keeps what could not be counted and what was assumed."""

    def __init__(self, model: Model, shapes: Shapes) -> None:
        self._shapes = shapes
        self._heavy = _multiplying_functions(model)
        self._functions = set(model.ir.functions)
        self.unknown: list[str] = []
        self.notes: list[str] = []

    def macs(self, node: ir.Node) -> int | None:
        """MACs of a node and its subgraphs; what is known of them, where nodes inside are unknown."""
        graphs = list(bodies(node))
        if graphs:
            inside = [sum(self.macs(inner) or 0 for inner in topological(graph)) for graph in graphs]
            return max(inside) if node.op_type == "If" else sum(inside) * self._trips(node)
        identifier = node.op_identifier()
        if identifier in self._functions and not (identifier[0] == "ai.onnxopt" and has_macs(node)):
            found = None if identifier in self._heavy else 0
        else:
            found = count(node, self._shapes)
        if found is None:
            self.unknown.append(label(node))
        return found

    def _trips(self, node: ir.Node) -> int:
        rule = _TRIPS.get(node.op_type)
        trips = rule(node, self._shapes) if rule is not None else None
        if trips is None:
            self.notes.append(f"{label(node)}: how often the body of {node.op_type} runs is not known; it counts once")
            return 1
        return trips


def _loop_trips(node: ir.Node, shapes: Shapes) -> int | None:
    """A constant trip count, where the condition cannot end the loop before."""
    limit = constant_array(node.inputs[0]) if node.inputs else None
    body = next(bodies(node))
    if limit is None or limit.size != 1 or not body.outputs:
        return None
    start = node.inputs[1] if len(node.inputs) > 1 else None
    given = body.inputs[1] if len(body.inputs) > 1 else None
    goes_on: ir.Value | None = body.outputs[0]
    while goes_on is not None and (producer := goes_on.producer()) is not None and producer.op_type == "Identity":
        goes_on = producer.inputs[0]
    starts = start is None or _is_true(start)
    return max(0, int(limit.item())) if starts and (goes_on is given or _is_true(goes_on)) else None


def _is_true(value: ir.Value | None) -> bool:
    array = constant_array(value)
    return array is not None and array.size == 1 and bool(array.item())


def _scan_trips(node: ir.Node, shapes: Shapes) -> int | None:
    """The length of the scanned axis (opset 9 and later; before, a batch axis comes first)."""
    scanned = node.attributes["num_scan_inputs"].as_int() if "num_scan_inputs" in node.attributes else 0
    if not 0 < scanned <= len(node.inputs) or len(node.inputs) != len(next(bodies(node)).inputs):
        return None
    first = node.inputs[len(node.inputs) - scanned]
    axes = node.attributes["scan_input_axes"].as_ints() if "scan_input_axes" in node.attributes else [0]
    shape = None if first is None else shapes.of(first)
    length = shape[axes[0]] if shape and axes and -len(shape) <= axes[0] < len(shape) else None
    return length if isinstance(length, int) else None


_TRIPS = {"Loop": _loop_trips, "Scan": _scan_trips}


def _multiplying_functions(model: Model) -> set[ir.OperatorIdentifier]:
    """Functions that multiply and accumulate, themselves or through functions that they call."""
    calls = {name: [node.op_identifier() for node in f.all_nodes()] for name, f in model.ir.functions.items()}
    heavy = {
        name
        for name, function in model.ir.functions.items()
        if any(has_macs(node) for node in function.all_nodes() if node.op_identifier() not in calls)
    }
    callers: dict[ir.OperatorIdentifier, list[ir.OperatorIdentifier]] = {}
    for name, called in calls.items():
        for callee in called:
            callers.setdefault(callee, []).append(name)
    stack = list(heavy)
    while stack:
        for caller in callers.get(stack.pop(), ()):
            if caller not in heavy:
                heavy.add(caller)
                stack.append(caller)
    return heavy


def _first_readers(nodes: Iterable[ir.Node]) -> dict[ir.Value, ir.Node]:
    first: dict[ir.Value, ir.Node] = {}
    for node in nodes:
        for value in reads(node):
            first.setdefault(value, node)
    return first


def _bytes_of(value: ir.Value, shapes: Shapes) -> int | None:
    shape, dtype = shapes.concrete(value), shapes.dtype(value)
    if shape is None or dtype is None or dtype == ir.DataType.STRING:
        return None
    size = dtype.bitwidth
    for dim in shape:
        size *= dim
    return -(-size // 8)


def _output_bytes(node: ir.Node, shapes: Shapes) -> Iterator[int | None]:
    """Bytes of each output; a Constant's is a weight."""
    if node.op_type != "Constant":
        yield from (_bytes_of(value, shapes) for value in node.outputs if value.name != "")


def _total(sizes: Iterable[int | None]) -> int | None:
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


def _activation_peak(graph: ir.Graph, nodes: Sequence[ir.Node], shapes: Shapes) -> int | None:
    """Each output lives from its node to its last reader, the graph's inputs and outputs to the end."""
    inputs = _total(_bytes_of(value, shapes) for value in graph.inputs if not value.is_initializer())
    last = {value: index for index, node in enumerate(nodes) for value in reads(node)}
    last |= dict.fromkeys(graph.outputs, len(nodes))
    ends: list[int] = [0] * (len(nodes) + 1)
    alive = peak = inputs
    for index, node in enumerate(nodes):
        made = _total(_output_bytes(node, shapes))
        if alive is None or peak is None or made is None:
            return None
        if made:
            for value in node.outputs:
                if value.name != "":
                    ends[last.get(value, index)] += _bytes_of(value, shapes) or 0
        alive += made
        peak = max(peak, alive)
        alive -= ends[index]
    return peak


def _graph_bytes(model: Model) -> int:
    """About the bytes that the file takes beside its constants, from the lengths of names and attributes."""
    size = 64 + _texts(model.ir.metadata_props, model.ir.producer_name, model.ir.doc_string)
    for graph in model.graphs():
        size += _texts(graph.metadata_props, graph.name, graph.doc_string)
        size += sum(_texts({}, name) + 4 * _FIELD for name in graph.initializers)
        size += sum(_value_bytes(value) for value in (*graph.inputs, *graph.outputs))
    functions = list(model.ir.functions.values())
    for node in (*model.nodes(), *(node for function in functions for node in function.all_nodes())):
        size += _node_bytes(node)
    return size + sum(_texts(f.metadata_props, f.name, f.domain, f.doc_string) for f in functions)


def _texts(properties: Mapping[str, str], *texts: str | None) -> int:
    size = sum(len(key) + len(text) + 3 * _FIELD for key, text in properties.items())
    return size + sum(len(text) + _FIELD for text in texts if text)


def _node_bytes(node: ir.Node) -> int:
    size = _FIELD + _texts(node.metadata_props, node.name, node.op_type, node.domain, node.doc_string)
    size += _texts({}, *(value.name if value is not None else "_" for value in node.inputs))
    for value in node.outputs:
        size += _texts({}, value.name) + (_value_bytes(value) if value.shape is not None else 0)
    return size + sum(_attribute_bytes(attribute) for attribute in node.attributes.values())


def _value_bytes(value: ir.Value) -> int:
    """A value_info: name, type, and the dimensions."""
    dims = sum(_FIELD + (1 if isinstance(dim, int) else len(dim.value or "")) for dim in value.shape or ())
    return _texts(value.metadata_props, value.name, value.doc_string) + 5 * _FIELD + dims


def _attribute_bytes(attribute: ir.Attr) -> int:
    """An attribute without tensors and subgraphs, which count by themselves."""
    size = 3 * _FIELD + len(attribute.name)
    match attribute.value:
        case str() | bytes() as text:
            size += len(text)
        case [str() | bytes(), *_] as texts:
            size += sum(len(text) + _FIELD for text in texts)
        case [int() | float(), *_] as numbers:
            size += 4 * len(numbers)
    return size
