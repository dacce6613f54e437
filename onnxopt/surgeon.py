"""The graphsurgeon view: a model as `onnx_graphsurgeon.Graph`, weights lazy, nothing lost on the way back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from onnxopt import serialization
from onnxopt.edit import as_tensor
from onnxopt.errors import ModelError
from onnxopt.model import Model

_KEPT_FIELDS = ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version")


@contextmanager
def surgeon(model: Model) -> Iterator[gs.Graph]:
    """Edit a model in onnx-graphsurgeon's terms; see `Model.surgeon`.

    An exception inside the block leaves the model as it was.

    Raises:
        ModelError: graphsurgeon cannot write the graph that the block left.
    """
    tensors: list[ir.TensorProtocol] = []
    proto = serialization.with_stubs(model.ir, tensors)
    before = onnx.ModelProto()
    before.CopyFrom(proto)
    with _quiet():
        graph = gs.import_onnx(proto)
    for constant in _constants(graph):
        if (
            isinstance(constant._values, LazyValues)
            and (at := serialization.stub_index(constant._values.tensor)) is not None
        ):
            constant._values = _Weight(constant._values.tensor, tensors[at])
    notes = _notes(graph, before.graph)
    yield graph
    for constant in _constants(graph):
        if not isinstance(constant._values, LazyValues):
            constant._values = _stub_of(constant, tensors)
    try:
        with _quiet():
            after = gs.export_onnx(graph, do_type_check=False)
    except (OnnxGraphSurgeonException, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"graphsurgeon cannot write the edited graph: {str(error).splitlines()[0]}") from error
    _restore(graph, notes, before, after)
    model.replace(serialization.from_stubs(after, tensors))


class _Weight(LazyValues):  # type: ignore[misc]  # graphsurgeon has no types
    """Values that are read from the model's own tensor when they are asked for."""

    def __init__(self, stub: onnx.TensorProto, source: ir.TensorProtocol) -> None:
        super().__init__(stub)
        self._source = source

    def load(self) -> npt.NDArray[Any]:
        """The values; a copy, so that writing into it is allowed."""
        return np.array(self._source.numpy())


def _stub_of(constant: gs.Constant, tensors: list[ir.TensorProtocol]) -> LazyValues:
    """A reference to values that the block made or read: graphsurgeon itself cannot write every type."""
    tensor = as_tensor(np.asarray(constant._values), constant.name)
    tensors.append(tensor)
    return LazyValues(serialization.stub(len(tensors) - 1, tensor, constant.name))


def _graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    yield graph
    for node in graph.nodes:
        for attribute in node.attrs.values():
            if isinstance(attribute, gs.Graph):
                yield from _graphs(attribute)


def _constants(graph: gs.Graph) -> list[gs.Constant]:
    found: dict[int, gs.Constant] = {}
    for inner in _graphs(graph):
        for tensor in inner.tensors().values():
            if isinstance(tensor, gs.Constant):
                found[id(tensor)] = tensor
    return list(found.values())


def _notes(graph: gs.Graph, proto: onnx.GraphProto) -> dict[int, onnx.NodeProto]:
    """The message each graphsurgeon node came from, by the node's identity."""
    notes = {}
    for inner, source in zip(_graphs(graph), _proto_graphs(proto), strict=True):
        notes.update({id(node): message for node, message in zip(inner.nodes, source.node, strict=True)})
    return notes


def _proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Graphs in the order of `_graphs`: graphsurgeon has no lists of graphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _proto_graphs(attribute.g)


def _restore(
    graph: gs.Graph, notes: dict[int, onnx.NodeProto], before: onnx.ModelProto, after: onnx.ModelProto
) -> None:
    for field in _KEPT_FIELDS:
        setattr(after, field, getattr(before, field))
    after.metadata_props.extend(before.metadata_props)
    for inner, target in zip(_graphs(graph), _proto_graphs(after.graph), strict=True):
        for node, message in zip(inner.nodes, target.node, strict=True):
            if (source := notes.get(id(node))) is not None:
                message.doc_string = source.doc_string
                message.metadata_props.extend(source.metadata_props)
    old_graphs = {g.name: g for g in _proto_graphs(before.graph)}
    for target in _proto_graphs(after.graph):
        if (old := old_graphs.get(target.name)) is not None:
            target.doc_string = old.doc_string
            target.metadata_props.extend(old.metadata_props)
            target.quantization_annotation.extend(old.quantization_annotation)
            _restore_values(old, target)


def _restore_values(old: onnx.GraphProto, new: onnx.GraphProto) -> None:
    """Documentation and denotations of values that kept their name, type and rank."""
    known = {info.name: info for info in (*old.input, *old.output, *old.value_info)}
    for info in (*new.input, *new.output, *new.value_info):
        source = known.get(info.name)
        if source is None:
            continue
        info.doc_string = source.doc_string
        info.metadata_props.extend(source.metadata_props)
        if _same_type(info.type, source.type):
            info.type.CopyFrom(source.type)


def _same_type(one: onnx.TypeProto, other: onnx.TypeProto) -> bool:
    if one.WhichOneof("value") is None:
        return True
    if not (one.HasField("tensor_type") and other.HasField("tensor_type")):
        return one.WhichOneof("value") == other.WhichOneof("value")
    a, b = one.tensor_type, other.tensor_type
    if a.elem_type != b.elem_type or len(a.shape.dim) != len(b.shape.dim):
        return False
    return all(
        x.dim_value == y.dim_value and x.dim_param == y.dim_param for x, y in zip(a.shape.dim, b.shape.dim, strict=True)
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """graphsurgeon warns on standard output, once a tensor."""
    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
    try:
        yield
    finally:
        G_LOGGER.severity = severity
