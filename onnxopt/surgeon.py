"""The graphsurgeon view: a model as `onnx_graphsurgeon.Graph`, weights lazy, nothing lost on the way back.

graphsurgeon drops what it does not model. So the graph is written out once before the caller sees it: what reads the
same afterwards is taken from the original message, and of what was changed only the changed parts are graphsurgeon's.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from onnxopt import serialization
from onnxopt.carried import graph_scopes, proto_scopes
from onnxopt.edit import as_tensor
from onnxopt.errors import ModelError
from onnxopt.model import Model


@contextmanager
def surgeon(model: Model) -> Iterator[gs.Graph]:
    """Edit a model in onnx-graphsurgeon's terms; see `Model.surgeon`.

    An exception inside the block leaves the model as it was.

    Raises:
        ModelError: graphsurgeon cannot read the model, or cannot write the graph that the block left.
    """
    tensors: list[ir.TensorProtocol] = []
    before = serialization.with_stubs(model.ir, tensors)
    with _speaking_of("read the model"):
        graph = gs.import_onnx(_readable(before))
        original = _Original(graph, before, gs.export_onnx(graph, do_type_check=False))
    for constant in _constants(graph):
        _make_lazy(constant, tensors)
    yield graph
    for constant in _constants(graph):
        if not isinstance(constant._values, LazyValues):
            constant._values = _stub_of(constant, tensors)
    with _speaking_of("write the edited graph"):
        after = gs.export_onnx(graph, do_type_check=False)
    original.restore(graph, after)
    model.replace(serialization.from_stubs(after, tensors))


class _Weight(LazyValues):  # type: ignore[misc]  # graphsurgeon has no types
    """Values that are read from the model's own tensor when they are asked for."""

    def __init__(self, stub: onnx.TensorProto, source: ir.TensorProtocol) -> None:
        super().__init__(stub)
        self._source = source

    def load(self) -> npt.NDArray[Any]:
        """The values; a copy, so that writing into it is allowed."""
        return np.array(self._source.numpy())


def _make_lazy(constant: gs.Constant, tensors: list[ir.TensorProtocol]) -> None:
    lazy = constant._values
    if isinstance(lazy, LazyValues) and not isinstance(lazy, SparseValues):
        at = serialization.stub_index(lazy.tensor)
        if at is not None:
            constant._values = _Weight(lazy.tensor, tensors[at])


def _stub_of(constant: gs.Constant, tensors: list[ir.TensorProtocol]) -> LazyValues:
    """A reference to values that the block made or read: graphsurgeon itself cannot write every type."""
    tensor = as_tensor(np.asarray(constant._values), constant.name)
    if tensor.dtype == ir.DataType.STRING:
        return LazyValues(ir.serde.serialize_tensor(tensor))
    tensors.append(tensor)
    return LazyValues(serialization.stub(len(tensors) - 1, tensor, constant.name))


def _readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the types and attributes that graphsurgeon stumbles over."""
    given = onnx.ModelProto()
    given.CopyFrom(model)
    for scope in proto_scopes(given):
        infos = (*scope.input, *scope.output) if isinstance(scope, onnx.GraphProto) else ()
        for info in (*infos, *scope.value_info):
            if info.type.WhichOneof("value") not in ("tensor_type", "sparse_tensor_type"):
                info.ClearField("type")
        for node in scope.node:
            kept = [attribute for attribute in node.attribute if _known(attribute)]
            if len(kept) < len(node.attribute):
                copies = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
                node.ClearField("attribute")
                node.attribute.extend(copies)
    return given


_PLAIN = {onnx.AttributeProto.AttributeType.Value(n) for n in ("FLOAT", "INT", "TENSOR", "GRAPH", "FLOATS", "INTS")}
_TEXTS = {onnx.AttributeProto.STRING, onnx.AttributeProto.STRINGS}


def _known(attribute: onnx.AttributeProto) -> bool:
    if attribute.ref_attr_name:
        return True
    kinds = onnx.AttributeProto
    lists = {kinds.FLOATS: attribute.floats, kinds.INTS: attribute.ints, kinds.STRINGS: attribute.strings}
    if attribute.type in lists and not lists[attribute.type]:
        return False
    if attribute.type not in _TEXTS:
        return attribute.type in _PLAIN
    try:
        return all(text.decode() is not None for text in (attribute.s, *attribute.strings))
    except UnicodeDecodeError:
        return False


def _scopes(graph: gs.Graph) -> Iterator[Any]:
    """The graph, its functions, and the subgraphs of both."""
    for outer in (graph, *graph.functions):
        yield from _inner(outer)


def _inner(scope: Any) -> Iterator[Any]:
    yield scope
    for node in scope.nodes:
        for attribute in node.attrs.values():
            if isinstance(attribute, gs.Graph):
                yield from _inner(attribute)


def _constants(graph: gs.Graph) -> list[gs.Constant]:
    found: dict[int, gs.Constant] = {}
    for scope in _scopes(graph):
        inside = (value for node in scope.nodes for value in node.attrs.values())
        for tensor in (*scope.tensors().values(), *inside):
            if isinstance(tensor, gs.Constant):
                found[id(tensor)] = tensor
    return list(found.values())


class _Original:
    """A model's messages, found again by the identity of the graphsurgeon objects that were made of them."""

    def __init__(self, graph: gs.Graph, model: onnx.ModelProto, written: onnx.ModelProto) -> None:
        self._model = model
        self._notes: dict[int, tuple[Any, Any, Any]] = {}
        """By id: the object, held so that its id stays its own, its message, and how graphsurgeon wrote it."""
        self._infos: dict[tuple[str, int], tuple[onnx.ValueInfoProto, onnx.ValueInfoProto | None]] = {}
        """By role and id of a tensor."""
        self._listed: set[str] = set()
        """Inputs that are initializers, which graphsurgeon does not count among the inputs."""
        self._weights: dict[int, dict[str, Any]] = {}
        """By id of a graph: its initializers' tensors by name; None where nobody reads one."""
        self._homes: dict[int, Any] = {}
        """By id of an initializer's tensor: the graph that holds it; graphsurgeon gives it to all that read it."""
        self._moved: dict[tuple[int, str], onnx.TensorProto] = {}
        """By id of a graph and name: initializers that graphsurgeon wrote into an inner graph."""
        self._note_scope(graph, model.graph, written.graph, ())
        for function, message, baseline in zip(graph.functions, model.functions, written.functions, strict=True):
            self._note_scope(function, message, baseline, ())

    def _note_scope(self, scope: Any, message: Any, written: Any, outer: tuple[Any, ...]) -> None:
        self._note(scope, message, written)
        around = (scope, *outer)
        if isinstance(message, onnx.GraphProto):
            self._note_infos("input", scope.inputs, message.input, written.input)
            self._note_infos("output", scope.outputs, message.output, written.output)
            self._listed.update({info.name for info in message.input} - {info.name for info in written.input})
            tensors = scope.tensors()
            baseline = {info.name: info for info in written.value_info}
            for info in message.value_info:
                if info.name in tensors:
                    tensor = tensors[info.name]
                    self._infos["value_info", id(tensor)] = (info, baseline.get(info.name))
            self._weights[id(scope)] = dict.fromkeys(tensor.name for tensor in message.initializer)
            for tensor in tensors.values():
                self._note(tensor, tensor.name, None)
                home = next((graph for graph in around if tensor.name in self._weights.get(id(graph), ())), None)
                if home is not None and isinstance(tensor, gs.Constant):
                    self._weights[id(home)][tensor.name] = tensor
                    self._homes[id(tensor)] = home
        for node, proto, baseline_node in zip(scope.nodes, message.node, written.node, strict=True):
            self._note(node, proto, baseline_node)
            graphs = {attribute.name: attribute.g for attribute in baseline_node.attribute}
            for attribute in proto.attribute:
                if isinstance(node.attrs.get(attribute.name), gs.Graph):
                    self._note_scope(node.attrs[attribute.name], attribute.g, graphs[attribute.name], around)

    def _note(self, item: Any, message: Any, written: Any) -> None:
        self._notes.setdefault(id(item), (item, message, written))

    def _note_infos(self, role: str, tensors: Iterable[Any], infos: Iterable[Any], written: Iterable[Any]) -> None:
        messages = {info.name: info for info in infos}
        for tensor, baseline in zip(tensors, written, strict=True):
            self._infos[role, id(tensor)] = (messages[baseline.name], baseline)

    def restore(self, graph: gs.Graph, after: onnx.ModelProto) -> None:
        """Put back into the written model whatever the block left alone."""
        for field, _ in self._model.ListFields():
            if field.name not in ("graph", "functions", "opset_import"):
                after.ClearField(field.name)
        rest = onnx.ModelProto()
        rest.CopyFrom(self._model)
        for name in ("graph", "functions", "opset_import"):
            rest.ClearField(name)
        after.MergeFrom(rest)
        for function, message in zip(graph.functions, after.functions, strict=True):
            self._restore_function(function, message)
        self._restore_graph(graph, after.graph)
        self._list_inputs(graph, after.graph)

    def _restore_function(self, function: Any, message: onnx.FunctionProto) -> None:
        _, original, written = self._notes.get(id(function), (None, None, None))
        if original is None:
            return
        if message == written:
            message.CopyFrom(original)
            return
        message.overload, message.doc_string = original.overload, original.doc_string
        message.metadata_props.extend(original.metadata_props)
        message.value_info.extend(original.value_info)
        self._restore_nodes(function, message)

    def _restore_graph(self, graph: gs.Graph, message: onnx.GraphProto) -> None:
        _, original, _ = self._notes.get(id(graph), (None, None, None))
        tensors = graph.tensors()
        made = {tensor.name for node in graph.nodes for tensor in node.outputs}
        self._send_home(graph, tensors, message)
        _keep(message.value_info, [info for info in message.value_info if info.name in made])
        self._restore_nodes(graph, message)
        if original is None:
            return
        self._restore_weights(graph, message, original)
        message.doc_string = original.doc_string
        message.metadata_props.extend(original.metadata_props)
        for role, ends, infos in (("input", graph.inputs, message.input), ("output", graph.outputs, message.output)):
            for tensor, info in zip(ends, infos, strict=True):
                self._restore_info(role, tensor, info)
        known = {info.name: info for info in message.value_info}
        weights = {tensor.name: tensor for tensor in message.initializer}
        for name, tensor in tensors.items():
            if name in known:
                self._restore_info("value_info", tensor, known[name])
            elif (held := self._infos.get(("value_info", id(tensor)))) is not None and held[1] is None:
                message.value_info.add().CopyFrom(held[0])
                message.value_info[-1].name = name
                _fit(message.value_info[-1], weights.get(name))
        names = {self._notes[id(t)][1]: name for name, t in tensors.items() if id(t) in self._notes}
        for annotation in original.quantization_annotation:
            if annotation.tensor_name in names:
                message.quantization_annotation.add().CopyFrom(annotation)
                message.quantization_annotation[-1].tensor_name = names[annotation.tensor_name]

    def _restore_info(self, role: str, tensor: Any, info: onnx.ValueInfoProto) -> None:
        original, written = self._infos.get((role, id(tensor)), (None, None))
        if original is None:
            return
        name = info.name
        if written is not None and written.type == info.type:
            info.CopyFrom(original)
            info.name = name
        else:
            info.doc_string = original.doc_string
            info.metadata_props.extend(original.metadata_props)

    def _restore_nodes(self, scope: Any, message: Any) -> None:
        protos = list(message.node)[len(message.node) - len(scope.nodes) :]
        for node, proto in zip(scope.nodes, protos, strict=True):
            _, original, written = self._notes.get(id(node), (None, None, None))
            if original is not None and proto == written:
                proto.CopyFrom(original)
                continue
            if original is not None:
                _restore_node(proto, original, written)
            for attribute in proto.attribute:
                if isinstance(inner := node.attrs.get(attribute.name), gs.Graph):
                    self._restore_graph(inner, attribute.g)

    def _send_home(self, graph: gs.Graph, tensors: dict[str, Any], message: onnx.GraphProto) -> None:
        """Take out the initializers of outer graphs."""
        own = []
        for weight in message.initializer:
            home = self._homes.get(id(tensors.get(weight.name)), graph)
            if home is graph:
                own.append(weight)
            else:
                self._moved[id(home), weight.name] = onnx.TensorProto.FromString(weight.SerializeToString())
        if len(own) < len(message.initializer):
            _keep(message.initializer, own)

    def _restore_weights(self, graph: gs.Graph, message: onnx.GraphProto, original: onnx.GraphProto) -> None:
        """Initializers that only inner graphs read, or nobody to begin with."""
        have = {tensor.name for tensor in message.initializer}
        once, now = _read(original), _read(message)
        for weight in original.initializer:
            name = self._name_now(graph, weight.name)
            if name not in have and (name in now or weight.name not in once):
                message.initializer.add().CopyFrom(self._moved.get((id(graph), name), weight))
                message.initializer[-1].name = name

    def _name_now(self, graph: gs.Graph, name: str) -> str:
        tensor = self._weights[id(graph)].get(name)
        return name if tensor is None else str(tensor.name)

    def _list_inputs(self, graph: gs.Graph, message: onnx.GraphProto) -> None:
        """Initializers that the model lists among its inputs, in their places."""
        weights = {tensor.name: tensor for tensor in message.initializer}
        order: dict[str, int] = {}
        for at, info in enumerate(self._model.graph.input):
            name = self._name_now(graph, info.name)
            order[name] = at
            if info.name in self._listed and name in weights:
                message.input.add().CopyFrom(info)
                message.input[-1].name = name
                _fit(message.input[-1], weights[name])
        if self._listed:
            _keep(message.input, sorted(message.input, key=lambda info: order.get(info.name, len(order))))


def _restore_node(proto: onnx.NodeProto, original: onnx.NodeProto, written: onnx.NodeProto) -> None:
    """What the block cannot have changed, and the attributes that it did not."""
    proto.doc_string, proto.overload = original.doc_string, original.overload
    proto.metadata_props.extend(original.metadata_props)
    proto.device_configurations.extend(original.device_configurations)
    sources = {attribute.name: attribute for attribute in original.attribute}
    baseline = {attribute.name: attribute for attribute in written.attribute}
    for attribute in proto.attribute:
        if attribute.name in sources and attribute == baseline.get(attribute.name):
            attribute.CopyFrom(sources[attribute.name])
    present = {attribute.name for attribute in proto.attribute}
    proto.attribute.extend(a for name, a in sources.items() if name not in baseline and name not in present)


def _fit(info: onnx.ValueInfoProto, weight: onnx.TensorProto | None) -> None:
    """Let what is said of a weight agree with the weight."""
    if weight is None:
        return
    kind = info.type.tensor_type
    if kind.elem_type != weight.data_type or [dim.dim_value for dim in kind.shape.dim] != list(weight.dims):
        info.type.CopyFrom(onnx.helper.make_tensor_type_proto(weight.data_type, weight.dims))


def _read(graph: onnx.GraphProto) -> set[str]:
    """Names that nodes of the graph and inside it read, and those that the graphs give out."""
    inner = list(graph_scopes(graph))
    read = {name for scope in inner for node in scope.node for name in node.input}
    return read | {info.name for scope in inner if isinstance(scope, onnx.GraphProto) for info in scope.output}


def _keep(field: Any, items: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


@contextmanager
def _speaking_of(task: str) -> Iterator[None]:
    """One error for whatever graphsurgeon raises; without its warnings on standard output, once a tensor."""
    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
    try:
        yield
    except (
        OnnxGraphSurgeonException,
        AssertionError,
        AttributeError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"graphsurgeon cannot {task}: {why}") from error
    finally:
        G_LOGGER.severity = severity
