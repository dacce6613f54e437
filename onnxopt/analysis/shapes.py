"""Shapes of all values of a model: onnx's inference, the sizes of one feed, and what a real run showed."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxopt.analysis.extraction import cloned, is_loose
from onnxopt.analysis.skeleton import Dim, Dims, Facts, declared, skeleton
from onnxopt.analysis.structure import ancestors, constant_tensor, reads, topological
from onnxopt.analysis.symbols import symbols as follow
from onnxopt.errors import ModelError
from onnxopt.model import Model

logger = logging.getLogger(__name__)

Sizes: TypeAlias = Mapping[str, tuple[int, ...]]

OBSERVED = "onnxopt.shape:"
"""What the outputs of an observation are called: this and the name of the value."""


class Contradiction(NamedTuple):
    """A shape that the model or the caller states and that cannot be.

    Attributes:
        name: the value's name.
        declared: the shape as stated; None where a size was given for something that is no input.
        inferred: the shape that is taken to be true.
        where: `output` (declared for a graph output), `input` (declared for an input, against the size given for
            it) or `observed` (inferred from the graph, against what a run showed).
    """

    name: str
    declared: Dims | None
    inferred: Dims
    where: str


class _Fact(NamedTuple):
    tensor: bool | None
    """None: not even the type is known."""
    dtype: ir.DataType | None
    dims: Dims | None


_NOTHING = _Fact(None, None, None)


@dataclass(frozen=True)
class Shapes:
    """What is known of the shapes of a model's values, subgraphs' included.

    Attributes:
        symbols: the symbolic dimensions of the inputs, each with the size that it stands for; None where open.
        contradictions: shapes that were stated and cannot be.
        failure: why onnx's inference gave up, when it did; shapes are then as the model declares them.
    """

    symbols: Mapping[str, int | None]
    contradictions: tuple[Contradiction, ...]
    failure: str | None
    _facts: Mapping[ir.Value, _Fact] = field(repr=False)
    _values: Mapping[str, ir.Value] = field(repr=False)
    _main: tuple[ir.Value, ...] = field(repr=False)

    def of(self, value: ir.Value | str) -> Dims | None:
        """One entry an axis: a size, the name of an open symbol, None where unknown; None for an unknown rank."""
        return self._fact(value).dims

    def concrete(self, value: ir.Value | str) -> tuple[int, ...] | None:
        """The shape where every size is known, else None."""
        dims = self.of(value)
        sizes = tuple(dim for dim in dims or () if isinstance(dim, int))
        return sizes if dims is not None and len(sizes) == len(dims) else None

    def dtype(self, value: ir.Value | str) -> ir.DataType | None:
        """The element type; None where it is unknown or the value is no tensor."""
        return self._fact(value).dtype

    def is_tensor(self, value: ir.Value | str) -> bool | None:
        """Whether the value is a dense tensor (no sequence, optional, map, sparse tensor); None where unknown."""
        return self._fact(value).tensor

    def unknown(self) -> list[str]:
        """Names of the main graph's inputs and of its nodes' outputs that have no concrete shape but may have one."""
        open_ = (value for value in self._main if self.concrete(value) is None and self.is_tensor(value) is not False)
        return [value.name for value in open_ if value.name]

    def _fact(self, value: ir.Value | str) -> _Fact:
        found = self._values.get(value) if isinstance(value, str) else value
        return self._facts.get(found, _NOTHING) if found is not None else _NOTHING


def infer(model: Model, sizes: Sizes | None = None, observed: Sizes | None = None, *, thorough: bool = False) -> Shapes:
    """Find the shapes of a model's values. The model is not changed and no large weight is read.

    What holds, strongest first: a constant's own shape, what was observed, what onnx infers from the inputs (with
    data propagation), what `symbols` finds if that is asked for, what the model declares. Declared shapes of
    inner values and outputs count only where neither gives anything, for passes leave them stale; so outputs of
    operators that nobody knows are as declared, or unknown.

    Args:
        model: the model, valid or not; this function does not fail on its account.
        sizes: input name -> shape. A symbol of an input stands for the same size wherever it occurs; where two
            inputs disagree, each has its own size and the first one's goes elsewhere.
        observed: value name of the main graph -> shape in a real run, at the same sizes.
        thorough: whether sizes that onnx's inference does not find are followed by `symbols`: what costs are
            counted with.
    """
    observed = observed or {}
    main = tuple(_main_values(model))
    values = list(dict.fromkeys((*main, *_all_values(model))))
    seen = {value: tuple(observed[name]) for value in main if (name := value.name or "") in observed}
    given = {value.name or "": seen[value] for value in model.graph.inputs if value in seen}
    symbols, inputs, contradictions = _bind(model, {**given, **(sizes or {})})
    inferred, failure = _inference(model, values, inputs, seen, symbols)
    if thorough:
        inferred = _followed(model, inputs, main, inferred)
    facts = {value: _settle(value, inferred.get(value, _NOTHING), seen.get(value), symbols) for value in values}
    for value, dims in inputs.items():
        tensor = isinstance(value.type, ir.TensorType)  # an input without a type: onnx-ir holds no map types
        facts[value] = _Fact(tensor, value.dtype if tensor else None, seen.get(value, dims) if tensor else None)
    contradictions += _contradicted("observed", ((v, inferred.get(v, _NOTHING).dims, seen[v]) for v in seen))
    outputs = ((value, _bound(declared(value), symbols), facts[value].dims) for value in model.graph.outputs)
    contradictions += _contradicted("output", outputs)
    names = {value.name: value for value in reversed(values) if value.name}
    return Shapes(symbols, tuple(contradictions), failure, facts, names, main)


def _followed(
    model: Model, inputs: Mapping[ir.Value, Dims | None], main: Iterable[ir.Value], inferred: dict[ir.Value, _Fact]
) -> dict[ir.Value, _Fact]:
    """What onnx infers, and where that is no size what our own walk finds; both where all inputs have sizes."""
    if not all(_is_concrete(dims) for dims in inputs.values()):
        return inferred
    if all(_is_concrete(inferred.get(value, _NOTHING).dims) for value in main if value not in inputs):
        return inferred
    known = follow(model, {value.name or "": tuple(map(_number, dims or ())) for value, dims in inputs.items()})
    found = ((value, known.of(value)) for value in main if not _is_concrete(inferred.get(value, _NOTHING).dims))
    return inferred | {v: _Fact(True, fact.dtype, fact.static) for v, fact in found if fact.static is not None}


def _number(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim


def _main_values(model: Model) -> Iterator[ir.Value]:
    """Inputs, initializers left out, and the outputs of nodes."""
    yield from (value for value in model.graph.inputs if not value.is_initializer())
    for node in model.graph:
        yield from (value for value in node.outputs if value.name != "")


def _all_values(model: Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        yield from graph.outputs
        for node in graph:
            yield from (value for value in node.outputs if value.name != "")


def _bind(model: Model, sizes: Sizes) -> tuple[dict[str, int | None], dict[ir.Value, Dims | None], list[Contradiction]]:
    """What each symbol stands for, the shape of each input, and which given sizes do not fit."""
    inputs = {value.name or "": value for value in model.graph.inputs if not value.is_initializer()}
    symbols: dict[str, int | None] = {}
    contradictions = [Contradiction(name, None, tuple(sizes[name]), "input") for name in sizes if name not in inputs]
    for name, value in inputs.items():
        dims = declared(value) or ()
        symbols |= {dim: None for dim in dims if isinstance(dim, str) and dim not in symbols}
        given = sizes.get(name)
        if given is not None and len(given) == len(dims):
            symbols |= {d: g for d, g in zip(dims, given, strict=True) if isinstance(d, str) and symbols[d] is None}
    shapes: dict[ir.Value, Dims | None] = {}
    for name, value in inputs.items():
        shapes[value] = _bound(declared(value), symbols)
        if name in sizes:
            contradictions += _contradicted("input", [(value, shapes[value], tuple(sizes[name]))])
            shapes[value] = tuple(sizes[name])
    return symbols, shapes, contradictions


def _bound(dims: Dims | None, symbols: Mapping[str, int | None]) -> Dims | None:
    """The shape with the sizes that its symbols stand for."""
    if dims is None:
        return None
    return tuple(dim if not isinstance(dim, str) or symbols.get(dim) is None else symbols[dim] for dim in dims)


def _contradicted(where: str, pairs: Iterable[tuple[ir.Value, Dims | None, Dims | None]]) -> Iterator[Contradiction]:
    for value, stated, found in pairs:
        if stated is not None and found is not None and _differ(stated, found):
            yield Contradiction(value.name or "", stated, found, where)


def _differ(a: Dims, b: Dims) -> bool:
    """Whether two shapes cannot both be right."""
    if len(a) != len(b):
        return True
    return any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in zip(a, b, strict=True))


def _inference(
    model: Model,
    values: Sequence[ir.Value],
    inputs: Mapping[ir.Value, Dims | None],
    seen: Mapping[ir.Value, tuple[int, ...]],
    symbols: Mapping[str, int | None],
) -> tuple[dict[ir.Value, _Fact], str | None]:
    """What onnx infers, and why it gave up if it did.

    It runs again when it did not reach what was observed, so that the observed sizes help those behind.
    """
    stated = {dim for value in values for dim in declared(value) or () if isinstance(dim, str)}
    facts = dict(_foreign(model, symbols, seen))
    found, failure = _run(model, inputs, facts, stated)
    for value, shape in seen.items():
        fact = found.get(value, _NOTHING)
        dtype = fact.dtype or value.dtype
        if value not in inputs and dtype is not None and not _is_concrete(fact.dims):
            facts.setdefault(value, (dtype, shape))
    if failure is None and any(value not in found or not _is_concrete(found[value].dims) for value in facts):
        again, failed = _run(model, inputs, facts, stated)
        found = found if failed else again
    return found, failure


def _foreign(
    model: Model, symbols: Mapping[str, int | None], seen: Mapping[ir.Value, tuple[int, ...]]
) -> Iterator[tuple[ir.Value, tuple[ir.DataType, Dims]]]:
    """Shapes of what operators unknown to onnx give: as observed or declared, for nothing can be inferred."""
    functions = {(function.domain, function.name) for function in model.ir.functions.values()}
    for node in model.nodes():
        if (node.domain, node.op_type) in functions or onnx.defs.has(node.op_type, _domain(node)):
            continue
        for value in node.outputs:
            dims = seen[value] if value in seen else _bound(declared(value), symbols)
            if dims is not None and isinstance(value.type, ir.TensorType):
                yield value, (value.type.dtype, dims)


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _run(
    model: Model, inputs: Mapping[ir.Value, Dims | None], facts: Facts, stated: set[str]
) -> tuple[dict[ir.Value, _Fact], str | None]:
    """One run of onnx's inference; symbols that it makes up are dropped."""
    try:
        bare = skeleton(model, inputs, facts)
        result = onnx.shape_inference.infer_shapes(bare.proto, data_prop=True)
    except Exception as error:  # onnx raises many types for what it does not expect
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.info("shape inference gave up, declared shapes are used: %s", why)
        return {}, why
    found = dict(_read(result.graph, stated))
    return {value: found[name] for value, name in bare.names.items() if name in found}, None


def _read(graph: onnx.GraphProto, stated: set[str]) -> Iterator[tuple[str, _Fact]]:
    for info in (*graph.input, *graph.output, *graph.value_info):
        kind = info.type.WhichOneof("value")
        if kind == "tensor_type":
            tensor = info.type.tensor_type
            dims = tuple(_dim(dim, stated) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
            yield info.name, _Fact(True, ir.DataType(tensor.elem_type) if tensor.elem_type else None, dims)
        elif kind is not None:
            yield info.name, _Fact(False, None, None)
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _read(body, stated)


def _dim(dim: onnx.TensorShapeProto.Dimension, stated: set[str]) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param if dim.dim_param in stated else None


def _is_concrete(dims: Dims | None) -> bool:
    return dims is not None and all(isinstance(dim, int) for dim in dims)


def _settle(value: ir.Value, inferred: _Fact, seen: tuple[int, ...] | None, symbols: Mapping[str, int | None]) -> _Fact:
    """What to believe of a value that is no input of the main graph."""
    tensor = constant_tensor(value)
    if tensor is not None:
        return _Fact(True, tensor.dtype, tuple(tensor.shape.numpy()))
    if inferred.tensor is None and value.type is not None:
        dense = isinstance(value.type, ir.TensorType)
        inferred = _Fact(dense, value.dtype if dense else None, None)
    if inferred.tensor is False:
        return inferred
    dims = inferred.dims if inferred.dims is not None else declared(value)
    dims = _bound(dims, symbols) if seen is None else seen
    return _Fact(True if dims is not None else inferred.tensor, inferred.dtype or value.dtype, dims)


def observation(model: Model, names: Sequence[str]) -> ir.Model:
    """A variant of the model that gives the shapes of values instead of its outputs.

    It has the same inputs and shares the weights. Each output is a small int64 tensor; pass what a session gives
    for them to `observed_from`. Values that are no tensors, or of a type that Shape does not take at the model's
    opset, are left out, and so are nodes that only they and the former outputs needed.

    Args:
        model: the model, which is not changed.
        names: names of the main graph's inputs or of its nodes' outputs.

    Raises:
        ModelError: the main graph has no such value, or nodes of a subgraph are not sorted.
    """
    shapes = infer(model)
    known = {value.name: value for value in _main_values(model)}
    missing = [name for name in names if name not in known]
    if missing:
        raise ModelError(f"the main graph has no value {missing[0]!r} to observe; initializers have their own shape")
    chosen = [known[name] for name in dict.fromkeys(names) if _takes_shape(model, known[name], shapes)]
    graph, copies = _copy(model, chosen)
    for value, copy in zip(chosen, copies, strict=True):
        output = ir.Value(name=f"{OBSERVED}{value.name}", type=ir.TensorType(ir.DataType.INT64))
        graph.append(ir.Node("", "Shape", [copy], outputs=[output]))
        graph.outputs.append(output)
    return ir.Model(graph, ir_version=model.ir.ir_version, functions=list(model.ir.functions.values()))


def observed_from(outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Value name -> shape, from what a session gave for an observation's outputs."""
    return {
        name.removeprefix(OBSERVED): tuple(int(size) for size in array)
        for name, array in outputs.items()
        if name.startswith(OBSERVED)
    }


def _copy(model: Model, wanted: Sequence[ir.Value]) -> tuple[ir.Graph, list[ir.Value]]:
    """The part of the main graph that computes some values, copied, and the copies of those values."""
    needed = ancestors(wanted)
    nodes = [node for node in topological(model.graph) if node in needed]
    loose = dict.fromkeys(value for node in nodes for value in reads(node) if is_loose(value))
    weights = list(model.graph.initializers.values())
    graph = cloned(model, nodes, list(model.graph.inputs), wanted, weights, list(loose))
    copies = list(graph.outputs)
    graph.outputs.clear()
    return graph, copies


def _takes_shape(model: Model, value: ir.Value, shapes: Shapes) -> bool:
    """Whether Shape may read the value. Where its type is unknown, its operator must give nothing but tensors."""
    dtype = shapes.dtype(value)
    if dtype is not None:
        allowed = onnx.defs.get_schema("Shape", max(model.opset, 1)).inputs[0].types
        return f"tensor({dtype.name.lower()})" in allowed
    node = value.producer()
    if shapes.is_tensor(value) is False or node is None:
        return False
    if not onnx.defs.has(node.op_type, _domain(node)):
        return True
    formal = onnx.defs.get_schema(node.op_type, domain=_domain(node)).outputs
    return all(type_.startswith("tensor(") for type_ in formal[min(value.index() or 0, len(formal) - 1)].types)
