"""Edits: the only way in which a graph changes. Described first, checked, then applied whole or not at all."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt import carried
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.nodes import label, with_inner

Tensor = npt.NDArray[Any] | ir.TensorProtocol

_OutputPlaces = dict[ir.Graph | ir.Function, dict[ir.Value, list[int]]]
"""Where in its list of outputs a graph has each of them: looked up once an edit, for thousands of them."""


@dataclass(frozen=True)
class _Insertion:
    nodes: tuple[ir.Node, ...]
    anchor: ir.Node
    after: bool


class Edit:
    """A change to a model: record it step by step, then `model.apply(edit)`.

    Whatever the order of recording, weights come first, then insertions, rewiring, inputs and attributes,
    removals last. Uses by nodes that the same edit inserts are left alone by `rewire`, so a node may be put
    behind a value by inserting `f(x) -> y` and rewiring x to y. Initializers that lose their last use go too, unless
    the model's training info names them.

    Attributes:
        rule: which rule of which pass asked for it; named in errors and in the report.
    """

    def __init__(self, rule: str = "") -> None:
        self.rule = rule
        self._replaced: list[tuple[ir.Value, ir.TensorProtocol]] = []
        self._added: list[tuple[ir.Value, ir.Graph | None]] = []
        self._insertions: list[_Insertion] = []
        self._rewired: list[tuple[ir.Value, ir.Value]] = []
        self._inputs: list[tuple[ir.Node, int, ir.Value | None]] = []
        self._attributes: list[tuple[ir.Node, str, Any]] = []
        self._removed: dict[ir.Node, None] = {}
        self._dropped: list[ir.Value] = []
        self._imports: dict[str, int] = {}
        self._exports: list[str] = []
        self._functions: list[ir.OperatorIdentifier] = []
        self._left_out: list[ir.Value] = []
        self._shapes: list[tuple[ir.Value, ir.Shape | None]] = []

    @property
    def inserted(self) -> list[ir.Node]:
        """The nodes that the edit brings in."""
        return [node for insertion in self._insertions for node in insertion.nodes]

    @property
    def removed(self) -> list[ir.Node]:
        """The nodes that the edit takes out."""
        return list(self._removed)

    @property
    def rewired(self) -> list[tuple[ir.Value, ir.Value]]:
        """Pairs (old, new): who read the old value reads the new one afterwards."""
        return list(self._rewired)

    @property
    def replaced_weights(self) -> list[tuple[ir.Value, ir.TensorProtocol]]:
        """Initializers that get another tensor."""
        return list(self._replaced)

    @property
    def contents(self) -> tuple[ir.Value, ...] | None:
        """The initializers that get other content of the same shape and type; None where anything else is changed."""
        recorded = {name: steps for name, steps in vars(self).items() if name not in ("rule", "_replaced")}
        alike = (
            (old := value.const_value) is not None
            and old.dtype == tensor.dtype
            and old.shape.numpy() == tensor.shape.numpy()
            for value, tensor in self._replaced
        )
        return None if any(recorded.values()) or not all(alike) else tuple(value for value, _ in self._replaced)

    @property
    def touched(self) -> list[ir.Node]:
        """Nodes that stay and compute something else afterwards: other weights, inputs or attributes."""
        read_anew = (*(value for value, _ in self._replaced), *(old for old, _ in self._rewired))
        users = [user for value in read_anew for user, _ in value.uses() if user not in self.inserted]
        changed = [*(node for node, *_ in self._inputs), *(node for node, *_ in self._attributes)]
        changed += [node for value in self._left_out if (node := value.producer()) is not None]
        return [node for node in dict.fromkeys((*users, *changed)) if node not in self._removed]

    def replace_weight(self, value: ir.Value, tensor: Tensor) -> None:
        """Give an initializer another tensor; the value's shape and type follow."""
        self._replaced.append((value, as_tensor(tensor, value.name)))

    def add_weight(self, stem: str, tensor: Tensor, graph: ir.Graph | None = None) -> ir.Value:
        """A new initializer, in the main graph unless another is given; it may be used before the edit is applied."""
        content = as_tensor(tensor, stem)
        value = ir.Value(
            name=stem, shape=ir.Shape(content.shape.numpy()), type=ir.TensorType(content.dtype), const_value=content
        )
        self._added.append((value, graph))
        return value

    def insert(self, nodes: Sequence[ir.Node], *, before: ir.Node | None = None, after: ir.Node | None = None) -> None:
        """Bring in nodes, already wired among themselves and to existing values, beside an existing node."""
        anchor = before if before is not None else after
        if anchor is None or (before is not None and after is not None):
            raise ValueError("insert needs exactly one of before= and after=")
        self._insertions.append(_Insertion(tuple(nodes), anchor, before is None))

    def rewire(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader of `old` read `new`; a graph output keeps its name and its declared type."""
        self._rewired.append((old, new))

    def remove(self, *nodes: ir.Node) -> None:
        """Take nodes out; nothing may read them once the edit is applied."""
        self._removed.update(dict.fromkeys(nodes))

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let one input of a node read another value (None: leave an optional input out)."""
        self._inputs.append((node, index, value))

    def set_attribute(self, node: ir.Node, name: str, value: Any) -> None:
        """Set an attribute to a Python value, an `ir.Attr`, or None to take it away."""
        self._attributes.append((node, name, value))

    def remove_weight(self, value: ir.Value) -> None:
        """Take out an initializer that nobody reads."""
        self._dropped.append(value)

    def leave_out(self, output: ir.Value) -> None:
        """Leave out an optional output that nobody reads, so that runtimes need not compute it."""
        self._left_out.append(output)

    def declare_shape(self, value: ir.Value, shape: ir.Shape | None) -> None:
        """State the shape of a value that a node makes."""
        self._shapes.append((value, shape))

    def drop_function(self, identifier: ir.OperatorIdentifier) -> None:
        """Take out a function that nobody calls."""
        self._functions.append(identifier)

    def drop_domain(self, domain: str) -> None:
        """Take back the import of an operator set that no node is from."""
        self._exports.append(domain)

    def use_domain(self, domain: str, version: int) -> None:
        """Import an operator set that inserted nodes need."""
        self._imports[domain] = version

    def apply_to(self, model: Model) -> None:
        """Check and carry out; called by `Model.apply`."""
        self._check()
        orphans = list(self._possible_orphans())
        for domain, version in self._imports.items():
            model.ir.opset_imports.setdefault(domain, version)
        for value, tensor in self._replaced:
            value.const_value = tensor
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        for value, graph in self._added:
            _name(model, value, value.name or "weight")
            _place_weight(model, value, model.graph if graph is None else graph)
        for insertion in self._insertions:
            _insert(model, insertion)
        with _Wiring() as wiring:
            self._rewire(model, wiring)
        for node, name, content in self._attributes:
            _set_attribute(node, name, content)
        for value in self._left_out:
            _leave_out(value)
        for value, shape in self._shapes:
            value.shape = shape
        with _Wiring() as wiring:
            self._take_out(model, orphans, wiring)

    def _rewire(self, model: Model, wiring: "_Wiring") -> None:
        inserted = set(self.inserted)
        outputs: _OutputPlaces = {}
        for old, new in self._rewired:
            for user, index in old.uses():
                if user not in inserted:
                    wiring.put(user, index, new)
            if old.is_graph_output():
                _replace_output(model, old, new, outputs)
        for node, index, source in self._inputs:
            wiring.put(node, index, source)

    def _check(self) -> None:
        inserted = set(self.inserted)
        rewired = {old for old, _ in self._rewired}
        redirected = {(node, index) for node, index, _ in self._inputs}
        leaving = {inner for node in self._removed for inner in with_inner(node)}
        for node in self._removed:
            for value in node.outputs:
                if value.is_graph_output() and value not in rewired:
                    raise self._refusal(f"{_label(node)} makes the graph output {value.name} and cannot be removed")
                for user, index in value.uses():
                    redirects = (value in rewired and user not in inserted) or (user, index) in redirected
                    if user not in leaving and not redirects:
                        raise self._refusal(f"{_label(node)} cannot be removed: {_label(user)} reads {value.name}")
        for old, new in self._rewired:
            if old.dtype is not None and new.dtype is not None and old.dtype != new.dtype:
                raise self._refusal(f"{old.name} is {old.dtype} and cannot be replaced by {new.name}, a {new.dtype}")
        for insertion in self._insertions:
            if insertion.anchor.graph is None:
                raise self._refusal(f"{_label(insertion.anchor)} is in no graph; nothing can be inserted beside it")
        for node, _, _ in self._inputs:
            if node.graph is None and node not in inserted:
                raise self._refusal(f"{_label(node)} is in no graph; its inputs cannot be set")
        for value in self._left_out:
            if value.uses() or value.is_graph_output() or value.producer() is None:
                raise self._refusal(f"{value.name} cannot be left out: it is read, or no node makes it")
        for value, _ in self._replaced:
            if not value.is_initializer():
                raise self._refusal(f"{value.name} is not an initializer and has no weight to replace")

    def _refusal(self, why: str) -> ModelError:
        return ModelError(f"edit {self.rule}: {why}" if self.rule else f"edit: {why}")

    def _possible_orphans(self) -> Iterator[ir.Value]:
        """Initializers that may lose their last reader, and those that may never get one."""
        readers = [inner for node in self._removed for inner in with_inner(node)]
        yield from (value for node in readers for value in node.inputs if value is not None)
        yield from (old for old, _ in self._rewired)
        yield from (
            value for node, i, _ in self._inputs if i < len(node.inputs) and (value := node.inputs[i]) is not None
        )
        yield from (value for value, _ in self._added)

    def _take_out(self, model: Model, orphans: Iterable[ir.Value], wiring: "_Wiring") -> None:
        for node in self._removed:
            for inner in with_inner(node):
                for index in range(len(inner.inputs)):
                    wiring.put(inner, index, None)
        by_graph: dict[ir.Graph | ir.Function, list[ir.Node]] = {}
        for node in self._removed:
            if node.graph is not None:
                by_graph.setdefault(node.graph, []).append(node)
        for graph, nodes in by_graph.items():
            graph.remove(nodes)
        _drop_weights(model, dict.fromkeys((*orphans, *self._dropped)))
        for identifier in self._functions:
            model.ir.functions.pop(identifier, None)
        for domain in self._exports:
            model.ir.opset_imports.pop(domain, None)


def as_tensor(tensor: Tensor, name: str | None) -> ir.TensorProtocol:
    """An onnx-ir tensor of an array (strings included) or of what already is one."""
    if not isinstance(tensor, np.ndarray | np.generic):
        return tensor
    array = np.asarray(tensor)
    if array.dtype.kind in "OSU":
        strings = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
        return ir.StringTensor(strings, shape=ir.Shape(array.shape), name=name)
    return ir.Tensor(array, name=name)


def _place_weight(model: Model, value: ir.Value, graph: ir.Graph) -> None:
    """Before IR 4 a file has initializers in the main graph alone, and lists each as one of its inputs."""
    if model.ir.ir_version >= 4:
        graph.initializers.add(value)
        return
    model.graph.initializers.add(value)
    model.graph.inputs.append(value)


def _drop_weights(model: Model, values: Iterable[ir.Value]) -> None:
    """Take out the weights among the values that nothing reads; from IR 4 on, listed inputs may be fed and stay."""
    listed, trained = set(), carried.training_names(model.ir)
    for value in values:
        if not value.is_initializer() or value.uses() or value.is_graph_output():
            continue
        if value.name in trained and value.graph is model.graph:
            continue
        if value.is_graph_input() and (model.ir.ir_version >= 4 or value.graph is not model.graph):
            continue
        assert value.graph is not None and value.name is not None
        value.graph.initializers.pop(value.name, None)
        if value.is_graph_input():
            listed.add(value)
    if listed:
        inputs = [value for value in model.graph.inputs if value not in listed]
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)


def _insert(model: Model, insertion: _Insertion) -> None:
    graph = insertion.anchor.graph
    if graph is None:
        raise ModelError(f"{_label(insertion.anchor)} is in no graph; nothing can be inserted beside it")
    for node in insertion.nodes:
        node.name = model.fresh_name(node.name or node.op_type)
        for index, value in enumerate(node.outputs):
            if value.name != "":
                _name(model, value, value.name or (f"{node.name}_{index}" if index else f"{node.name}_out"))
    place = graph.insert_after if insertion.after else graph.insert_before
    place(insertion.anchor, insertion.nodes)


def _name(model: Model, value: ir.Value, stem: str) -> None:
    value.name = model.fresh_name(stem)


class _Wiring:
    """Sets inputs of nodes. onnx-ir copies all inputs of a node to set one: 5 s for the 10,000 of one Concat.

    Nodes with many inputs have them as a list until the block ends.
    """

    _MANY = 256

    def __init__(self) -> None:
        self._open: dict[ir.Node, list[ir.Value | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node, inputs in self._open.items():
            node._inputs = tuple(inputs)

    def put(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let an input read a value; inputs up to it are added where the node has fewer."""
        if max(len(node.inputs), index + 1) < self._MANY or getattr(node, "device_configurations", None):
            if index >= len(node.inputs):
                node.resize_inputs(index + 1)
            node.replace_input_with(index, value)
            return
        if node not in self._open:
            node._inputs = self._open[node] = list(node.inputs)  # type: ignore[assignment]
        inputs = self._open[node]
        inputs.extend([None] * (index + 1 - len(inputs)))
        old, inputs[index] = inputs[index], value
        if old is not None:
            old._remove_usage(node, index)
        if value is not None:
            value._add_usage(node, index)


def _replace_output(model: Model, old: ir.Value, new: ir.Value, outputs: _OutputPlaces) -> None:
    graph = old.graph
    assert graph is not None
    producer = new.producer()
    if producer is None or new.graph is not graph or new.is_graph_output() or new.is_graph_input():
        identity = ir.node("Identity", [new], name=model.fresh_name("Identity"))
        graph.append(identity)
        new = identity.outputs[0]
    new.type, new.shape = old.type, old.shape
    new.metadata_props.update(old.metadata_props)
    new.doc_string = old.doc_string
    if graph not in outputs:
        outputs[graph] = {}
        for index, value in enumerate(graph.outputs):
            outputs[graph].setdefault(value, []).append(index)
    places = outputs[graph][new] = outputs[graph].pop(old)
    for index in places:
        graph.outputs[index] = new
    name, old.name = old.name, model.fresh_name(f"{old.name}_old")
    new.name = name


def _leave_out(output: ir.Value) -> None:
    node = output.producer()
    assert node is not None
    output.name = ""
    node.resize_outputs(max((index + 1 for index, value in enumerate(node.outputs) if value.name), default=0))


def _set_attribute(node: ir.Node, name: str, content: Any) -> None:
    if content is None:
        node.attributes.pop(name, None)
    else:
        node.attributes[name] = (
            content if isinstance(content, ir.Attr) else ir.convenience.convert_attribute(name, content)
        )


def _label(node: ir.Node) -> str:
    return f"node {label(node)} ({node.op_type})"
