"""A model in memory: the onnx-ir graph, its signature, its history, and the way in and out of files."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
import onnx_ir

from onnxopt import reading, serialization
from onnxopt.errors import ModelError
from onnxopt.external import refuse_external

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxopt.edit import Edit

logger = logging.getLogger(__name__)

Source: TypeAlias = "str | Path | bytes | onnx.ModelProto | onnx_ir.Model | gs.Graph | Model"


HISTORY_KEY = "onnxopt.history"


@dataclass(frozen=True)
class ValueInfo:
    """A graph input or output as callers see it.

    Attributes:
        name: the tensor's name.
        dtype: element type; None where it is not a tensor (sequence, optional, map) or not stated.
        shape: one entry per axis: a size, a symbol's name, or None where unknown; None for an unknown rank.
    """

    name: str
    dtype: onnx_ir.DataType | None
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """What callers of the model rely on, in order.

    Attributes:
        inputs: those that must be fed.
        outputs: what the model gives.
        defaults: inputs that may be fed: initializers are their defaults. Before IR 4 there are none, for a file
            has to list every initializer as an input, and runtimes refuse to be fed one.
    """

    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    defaults: tuple[ValueInfo, ...] = ()


class Model:
    """An ONNX model that passes work on.

    Wraps one `onnx_ir.Model`. Graphs change only through `apply(edit)`, which bumps `revision`, so that
    whoever keeps an analysis can tell whether it still holds. Weights stay lazy: reading a model costs
    about 60 us and 5 kB a node, nothing a weight that lies in external data.
    """

    def __init__(self, model: onnx_ir.Model, path: Path | None = None) -> None:
        self._ir = model
        self.path = path
        self.revision = 0
        self._names: set[str] | None = None
        self._counts: dict[str, int] = {}
        self._contents: list[tuple[onnx_ir.Value, ...] | None] = []

    @property
    def ir(self) -> onnx_ir.Model:
        """The wrapped onnx-ir model; change it only through an `Edit`."""
        return self._ir

    @property
    def graph(self) -> onnx_ir.Graph:
        """The main graph."""
        return self._ir.graph

    @property
    def opset(self) -> int:
        """Version of the default operator set; 0 when the model imports none."""
        imports = self._ir.opset_imports
        return imports.get("", imports.get("ai.onnx", 0))

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as callers see them."""
        weights = self.graph.initializers
        inputs = [value for value in self.graph.inputs if value.name not in weights]
        optional = [value for value in self.graph.inputs if value.name in weights and self._ir.ir_version >= 4]
        return Signature(*(tuple(map(_value_info, values)) for values in (inputs, self.graph.outputs, optional)))

    @property
    def history(self) -> list[dict[str, Any]]:
        """What onnxopt did to this file before: one entry a pass, oldest first."""
        text = self._ir.metadata_props.get(HISTORY_KEY)
        try:
            entries = json.loads(text) if text else []
        except json.JSONDecodeError:
            logger.warning("metadata %s is not JSON; it is ignored", HISTORY_KEY)
            return []
        return entries if isinstance(entries, list) else []

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append an entry to the history that the file carries."""
        self._ir.metadata_props[HISTORY_KEY] = json.dumps([*self.history, entry], sort_keys=True)

    def graphs(self) -> Iterator[onnx_ir.Graph]:
        """The main graph and every subgraph of control flow, outermost first."""
        yield self.graph
        yield from self.graph.subgraphs()

    def nodes(self) -> Iterator[onnx_ir.Node]:
        """All nodes of the main graph and of subgraphs; functions' bodies not included."""
        yield from self.graph.all_nodes()

    def weights(self) -> Iterator[onnx_ir.Value]:
        """Every initializer of every graph that has a value."""
        for graph in self.graphs():
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield value

    def fresh_name(self, stem: str) -> str:
        """A name for a new value or node that nothing in the model has, remembered as taken."""
        if self._names is None:
            self._names = set(_names(self._ir))
        name, count = stem, self._counts.get(stem, 0)
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._counts[stem] = count
        self._names.add(name)
        return name

    def apply(self, edit: "Edit") -> None:
        """Carry out an edit; the only way in which a graph changes.

        Raises:
            ModelError: the edit does not fit the graph; the graph is then as before.
        """
        contents = edit.contents
        edit.apply_to(self)
        self._revise(contents)

    def contents_since(self, revision: int) -> set[onnx_ir.Value] | None:
        """The initializers whose content has changed since a revision; None where anything else has as well."""
        found = set[onnx_ir.Value]()
        for contents in self._contents[revision:]:
            if contents is None:
                return None
            found.update(contents)
        return found

    def _revise(self, contents: "tuple[onnx_ir.Value, ...] | None" = None) -> None:
        self.revision += 1
        self._contents.append(contents)

    def replace(self, model: onnx_ir.Model) -> None:
        """Put another graph in place of this one (what whole-graph libraries give back)."""
        self._ir = model
        self._names = None
        self._counts.clear()
        self._revise()

    def surgeon(self) -> "AbstractContextManager[gs.Graph]":
        """The model as an onnx-graphsurgeon graph; changes come back when the block ends.

            with model.surgeon() as graph:
                graph.nodes[0].op = "Relu"

        Weights are lazy there too. What graphsurgeon cannot carry (metadata, doc strings) is restored.
        """
        from onnxopt.surgeon import surgeon

        return surgeon(self)

    def proto(self) -> onnx.ModelProto:
        """The whole model as a protobuf message, weights included: for small models only."""
        return serialization.to_proto(self._ir)

    def save(
        self, path: str | Path, *, external_data: bool | None = None, ready: "serialization.Ready | None" = None
    ) -> None:
        """Write the model, whole or not at all.

        Args:
            path: the file; external data go beside it, as `NAME.data`.
            external_data: whether weights go to a file of their own. None: as the model came, and
                always when the file would pass protobuf's 2 GB.
            ready: called with the finished files before they take the place of those that are there.

        Raises:
            ModelError: the file cannot be written; what was there before is intact.
        """
        serialization.write(self._ir, Path(path), external_data=external_data, ready=ready)


def load(source: Source) -> Model:
    """Read a model from a file, bytes, a protobuf message, an onnx-ir model or a graphsurgeon graph.

    Weights are memory-mapped, in large model files as in external data: while the model is used the files may be
    replaced (by renaming, as `save` does), but not overwritten in place.

    Raises:
        ModelError: missing, unreadable or truncated file; external data missing, too short or outside
            the model's folder; an onnx feature that cannot be carried.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx_ir.Model):
        return Model(source)
    if isinstance(source, str | Path):
        path = Path(source)
        return Model(reading.read(path), path)
    if isinstance(source, bytes):
        return _whole(reading.from_bytes(source, "the given bytes"), "the given bytes")
    if isinstance(source, onnx.ModelProto):
        return _whole(reading.from_proto(source, "the given message"), "the given message")
    if type(source).__module__.startswith("onnx_graphsurgeon"):
        import onnx_graphsurgeon as gs

        return _whole(reading.from_proto(gs.export_onnx(source), "the given graph"), "the given graph")
    raise ModelError(
        f"cannot load a model from {type(source).__name__}; give a path, bytes, ModelProto or onnx_ir.Model"
    )


def _whole(model: onnx_ir.Model, what: str) -> Model:
    refuse_external(model, what)
    return Model(model)


def save(model: Model, path: str | Path, *, external_data: bool | None = None) -> None:
    """Write a model; see `Model.save`."""
    model.save(path, external_data=external_data)


def _value_info(value: onnx_ir.Value) -> ValueInfo:
    is_tensor = isinstance(value.type, onnx_ir.TensorType)
    shape = None if value.shape is None or not is_tensor else tuple(map(_dim, value.shape))
    return ValueInfo(value.name or "", value.dtype if is_tensor else None, shape)


def _dim(dim: int | onnx_ir.SymbolicDim) -> int | str | None:
    """A size, a symbol, or None; Paddle writes -1 and `?` for what is dynamic."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return None if dim.value == "?" else dim.value


def _names(model: onnx_ir.Model) -> Iterator[str]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from (value.name for value in graph.inputs if value.name)
        yield from graph.initializers
    for node in model.graph.all_nodes():
        if node.name:
            yield node.name
        yield from (value.name for value in node.inputs if value is not None and value.name)
        yield from (value.name for value in node.outputs if value.name)
