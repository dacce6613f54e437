"""Finding the linear layers of a model, and saying of every other product why it is none."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import onnx_ir as ir

from onnxopt.analysis.linear.layer import Kind, Linear, Parameter, is_vector
from onnxopt.analysis.linear.layouts import Dense, Filters, Geometry
from onnxopt.analysis.linear.sources import Source, Sources
from onnxopt.analysis.linear.steps import FLOATS
from onnxopt.analysis.symbols import Symbols, symbols
from onnxopt.errors import Declined
from onnxopt.model import Model
from onnxopt.nodes import bodies, label

RULE = "linear"
"""The rule that declines, in `Declined`."""


def linears(model: Model) -> list[Linear]:
    """Every linear layer of the main graph and its subgraphs, in order; bodies of functions are not looked into."""
    return find_linears(model)[0]


def find_linears(model: Model) -> tuple[list[Linear], list[Declined]]:
    """The linear layers, and every MatMul, Gemm, Conv and ConvTranspose that is none, with the reason.

    Takes time linear in nodes and reads no weight (but for the shapes of Reshape).
    """
    finder = _Finder(model)
    found: list[Linear] = []
    declined: list[Declined] = []
    for node in model.nodes():
        recognise = _RECOGNISERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if recognise is None:
            continue
        result = recognise(node, finder)
        if isinstance(result, Linear):
            found.append(result)
        else:
            declined.append(Declined(label(node), RULE, result))
    return found, declined


class _Finder:
    """What all layers of a model ask about it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._sources = Sources()

    def source(self, value: ir.Value | None) -> Source | str:
        """Where a constant comes from, or why the value is none."""
        return "is left out" if value is None else self._sources.find(value)

    @cached_property
    def _varying(self) -> set[ir.Value]:
        """Values that depend on inputs or on chance."""
        found = {v for graph in self._model.graphs() for v in graph.inputs if not v.is_initializer()}
        for node in self._model.nodes():
            given = [value for value in node.inputs if value is not None]
            unfed = not given and node.op_type != "Constant"
            if unfed or any(value in found for value in given) or next(bodies(node), None) is not None:
                found.update(node.outputs)
        return found

    @cached_property
    def _symbols(self) -> Symbols:
        return symbols(self._model)

    def rank(self, value: ir.Value) -> int | None:
        """The number of axes where it is certain: what the file declares of inner values proves nothing."""
        return self._symbols.of(value).rank

    def side(self, node: ir.Node) -> int | str:
        """Which of a product's two operands is the constant one, or why not exactly one is."""
        first, second = node.inputs[:2]
        reasons = [self.source(first), self.source(second)]
        constant = [index for index, reason in enumerate(reasons) if isinstance(reason, Source)]
        if len(constant) == 2:
            return "both operands are constants; folding computes it"
        if constant:
            return constant[0]
        for value, reason in ((second, reasons[1]), (first, reasons[0])):
            if value is not None and value not in self._varying:
                return f"weight {value.name} {reason}"
        return "both operands are activations"


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _weight(node: ir.Node, index: int, finder: _Finder, ranks: range) -> Parameter | str:
    """The constant operand, where a layer can compute with it."""
    value = _operand(node, index)
    source = finder.source(value)
    assert isinstance(source, Source)
    if source.form.dtype not in FLOATS:
        return f"weight {value.name} is {source.form.dtype}, no floating-point type that layers compute in"
    if len(source.form.shape) not in ranks:
        return f"weight {value.name} has {len(source.form.shape)} axes, {ranks.start} is the least"
    if 0 in source.form.shape:
        return f"weight {value.name} is empty"
    return Parameter(source, node, index)


_MATMUL_RANKS, _GEMM_RANKS, _CONV_RANKS = range(2, 65), range(2, 3), range(3, 65)


def _matmul(node: ir.Node, finder: _Finder) -> Linear | str:
    side = finder.side(node)
    if isinstance(side, str):
        return side
    weight = _weight(node, side, finder, _MATMUL_RANKS)
    if isinstance(weight, str):
        return weight
    x, left = _operand(node, 1 - side), side == 0
    x_rank = finder.rank(x) if left or len(weight.shape) > 2 else None
    axis = -2 if left and x_rank != 1 else -1
    layer = Linear(
        node, "matmul", weight, None, None, x, node.outputs[0], Dense(left, left, weight.shape[:-2]), None,
        x_rank, axis, axis,
    )  # fmt: skip
    return _with_added_bias(layer, finder)


def _with_added_bias(layer: Linear, finder: _Finder) -> Linear:
    """The layer with the Add behind it, where that adds a constant vector and nobody else reads the product."""
    product = layer.y
    uses = tuple(product.uses())
    over = layer.vector_shape(layer.groups, layer.out_features)
    if len(uses) != 1 or product.is_graph_output() or over is None:
        return layer
    add, index = uses[0]
    if (add.op_type, add.domain in ("", "ai.onnx"), add.graph) != ("Add", True, layer.node.graph):
        return layer
    bias = finder.source(add.inputs[1 - index])
    if not isinstance(bias, Source):
        return layer
    if len(bias.form.shape) > 1:
        layer = replace(layer, x_rank=finder.rank(layer.x))
    if not is_vector(bias.form.shape, over, _least_rank(layer)):
        return layer
    return replace(layer, bias=Parameter(bias, add, 1 - index), y=add.outputs[0])


def _least_rank(layer: Linear) -> int:
    """The rank of a MatMul's result, or the least that it can be."""
    weight_rank = len(layer.weight.shape)
    return weight_rank - 1 if layer.x_rank in (None, 1) else max(layer.x_rank or 0, weight_rank)


def _gemm(node: ir.Node, finder: _Finder) -> Linear | str:
    side = finder.side(node)
    if isinstance(side, str):
        return side
    weight = _weight(node, side, finder, _GEMM_RANKS)
    if isinstance(weight, str):
        return weight
    turned = [bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")]
    left = side == 0
    x_axis = -1 if turned[1 - side] == left else -2
    layout = Dense(left, turned[side] != left)
    over = (layout.groups(weight.shape)[1], 1) if left else (layout.groups(weight.shape)[1],)
    bias, addend = _third_input(node, finder, lambda shape: is_vector(shape, over, 2))
    return Linear(
        node, "gemm", weight, bias, addend, _operand(node, 1 - side), node.outputs[0], layout, None,
        2, x_axis, -2 if left else -1,
    )  # fmt: skip


def _third_input(
    node: ir.Node, finder: _Finder, fits: Callable[[tuple[int, ...]], bool]
) -> tuple[Parameter | None, ir.Value | None]:
    """Gemm's C or Conv's B: as bias where it is a constant vector over output features, else as addend."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    source = finder.source(value)
    if isinstance(source, Source) and source.form.dtype in FLOATS and fits(source.form.shape):
        return Parameter(source, node, 2), None
    return None, value


def _conv(node: ir.Node, finder: _Finder) -> Linear | str:
    value = node.inputs[1]
    source = finder.source(value)
    if isinstance(source, str):
        return f"weight {value.name if value is not None else ''} {source}"
    if isinstance(finder.source(node.inputs[0]), Source):
        return "both operands are constants; folding computes it"
    weight = _weight(node, 1, finder, _CONV_RANKS)
    if isinstance(weight, str):
        return weight
    group, transposed = node.attributes.get_int("group", 1), node.op_type == "ConvTranspose"
    if group < 1 or weight.shape[0] % group:
        return f"weight {weight.value.name} of shape {list(weight.shape)} cannot be cut into {group} groups"
    layout = Filters(group, weight.shape[2:], transposed)
    count = weight.shape[1] * group if transposed else weight.shape[0]
    bias, addend = _third_input(node, finder, lambda shape: shape == (count,))
    kind: Kind = "conv_transpose" if transposed else "conv"
    x = _operand(node, 0)
    return Linear(
        node, kind, weight, bias, addend, x, node.outputs[0], layout, _geometry(node, weight.shape[2:]),
        len(weight.shape), 1, 1,
    )  # fmt: skip


def _geometry(node: ir.Node, kernel: tuple[int, ...]) -> Geometry:
    def sizes(name: str, default: int, count: int = len(kernel)) -> tuple[int, ...]:
        return tuple(node.attributes.get_ints(name, [default] * count))

    return Geometry(
        kernel=kernel,
        strides=sizes("strides", 1),
        pads=sizes("pads", 0, 2 * len(kernel)),
        dilations=sizes("dilations", 1),
        auto_pad=node.attributes.get_string("auto_pad", "NOTSET"),
        output_padding=sizes("output_padding", 0),
        output_shape=sizes("output_shape", 0) if "output_shape" in node.attributes else None,
    )


_RECOGNISERS: dict[str, Callable[[ir.Node, _Finder], Linear | str]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv,
}
