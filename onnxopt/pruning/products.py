"""The axes that a node's multiply-accumulates are in proportion to, by operator: what they fall with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TypeAlias, TypeVar

import onnx_ir as ir

from onnxopt.analysis.axes.axis import Axes, Axis, size_of
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.rules import Key, key
from onnxopt.analysis.axes.rules_einsum import parsed
from onnxopt.analysis.macs import MICROSOFT
from onnxopt.analysis.skeleton import Dims
from onnxopt.analysis.symbols import Symbols, symbols
from onnxopt.model import Model


@dataclass(frozen=True)
class Product:
    """A part of a node's multiply-accumulates.

    Attributes:
        axes: their number is in proportion to the length of each; one may be there twice.
        share: how large the part is, beside the node's others.
    """

    axes: Axes
    share: int = 1


Rule: TypeAlias = Callable[["Operands"], Sequence[Product]]
R = TypeVar("R", bound=Rule)

_RULES: dict[Key, Rule] = {}


class UnknownAxesError(Exception):
    """An axis or a size that a rule needs is not known; `products` then finds none."""


class Sizes:
    """Lengths of axes at certain sizes of the inputs, followed through the model when somebody asks.

    Args:
        model: the model.
        inputs: name -> shape; what is no number stays open.
    """

    def __init__(self, model: Model, inputs: Mapping[str, Dims | None]) -> None:
        self._model = model
        self._inputs = inputs

    def of(self, value: ir.Value | None) -> tuple[int, ...]:
        """The shape of a value; raises UnknownAxesError where it is open."""
        found = self._known.of(value).static
        if found is None:
            raise UnknownAxesError
        return found

    @cached_property
    def _known(self) -> Symbols:
        given: dict[str, tuple[int, ...]] = {}
        for name, dims in self._inputs.items():
            numbers = [dim for dim in dims or () if isinstance(dim, int)]
            if dims is not None and len(numbers) == len(dims):
                given[name] = tuple(numbers)
        return symbols(self._model, dict(given))


@dataclass(frozen=True)
class Operands:
    """A node's operands as rules read them."""

    node: ir.Node
    channels: Channels
    sizes: Sizes

    def axes(self, index: int) -> Axes:
        """Axes of an input; raises UnknownAxesError where it is absent or of unknown rank."""
        found = self.channels.of_input(self.node, index) if self.has(index) else None
        if found is None:
            raise UnknownAxesError
        return found

    def out(self) -> Axes:
        """Axes of the first output."""
        found = self.channels.of(self.node.outputs[0])
        if found is None:
            raise UnknownAxesError
        return found

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an input at certain sizes of the model's inputs."""
        return self.sizes.of(self.node.inputs[index])

    def flag(self, name: str) -> bool:
        """An attribute that is 0 or 1, 0 where it is left out."""
        return bool(self.node.attributes.get_int(name, 0))


def proportional(*operators: str, domain: str = "") -> Callable[[R], R]:
    """Register the rule that tells the axes of some operators of a domain."""

    def register(rule: R) -> R:
        _RULES.update({(domain, operator): rule for operator in operators})
        return rule

    return register


def has_products(operator: Key) -> bool:
    """Whether it is known which axes an operator's multiply-accumulates are in proportion to."""
    return operator in _RULES


def products(node: ir.Node, channels: Channels, sizes: Sizes) -> Sequence[Product]:
    """What makes up a node's multiply-accumulates; nothing where they do not change, for all that is known."""
    rule = _RULES.get(key(node))
    if rule is None:
        return ()
    try:
        return rule(Operands(node, channels, sizes))
    except (UnknownAxesError, IndexError, KeyError, TypeError, ValueError):
        return ()  # besides what is unknown: operands that the operator would refuse, in a model that is not valid


@proportional("MatMul", "MatMulInteger", "QLinearMatMul")
@proportional("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", domain=MICROSOFT)
def _matmul(op: Operands) -> Sequence[Product]:
    return _summed(op, -1)


@proportional("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", domain=MICROSOFT)
def _fused_matmul(op: Operands) -> Sequence[Product]:
    """Turned, the first operand is summed over along its last axis but one, or the first if that was moved there."""
    turned, moved = op.flag("transA") and len(op.axes(0)) > 1, op.flag("transBatchA")
    return _summed(op, (0 if moved else -2) if turned else -1)


@proportional("Gemm")
@proportional("FusedGemm", "QGemm", domain=MICROSOFT)
def _gemm(op: Operands) -> Sequence[Product]:
    return _summed(op, 0 if op.flag("transA") else 1)


def _summed(op: Operands, place: int) -> Sequence[Product]:
    """All that comes out, times what is summed over: an axis of the first operand."""
    return [Product((*op.out(), op.axes(0)[place]))]


@proportional("Conv", "ConvInteger", "DeformConv")
@proportional("FusedConv", domain=MICROSOFT)
def _conv(op: Operands, filters: int = 1) -> Sequence[Product]:
    return [Product((op.axes(0)[0], *op.axes(filters)))]


@proportional("QLinearConv")
@proportional("QLinearConv", domain=MICROSOFT)
def _qlinear_conv(op: Operands) -> Sequence[Product]:
    return _conv(op, filters=3)


@proportional("ConvTranspose")
def _conv_transpose(op: Operands) -> Sequence[Product]:
    return [Product((*op.axes(0), *op.axes(1)[1:]))]


@proportional("GRU", "LSTM", "RNN")
def _recurrent(op: Operands) -> Sequence[Product]:
    weights = op.axes(1), op.axes(2)
    return [Product((*op.axes(0)[:2], *axes), prod(map(_number, axes))) for axes in weights]


@proportional("Einsum")
def _einsum(op: Operands) -> Sequence[Product]:
    """Each letter once."""
    operands = [op.axes(index) for index in range(len(op.node.inputs))]
    terms, _ = parsed(op.node.attributes["equation"].as_string(), [len(axes) for axes in operands])
    letters: dict[str, Axis] = {}
    for term, axes in zip(terms, operands, strict=True):
        for letter, axis in zip(term, axes, strict=True):
            letters[letter] = letters.get(letter) or axis  # axes of size 1 are broadcast
    return [Product(tuple(letters.values()))]


def _number(axis: Axis) -> int:
    size = size_of(axis)
    if not isinstance(size, int):
        raise UnknownAxesError
    return size


@proportional("Attention")
@proportional("GroupQueryAttention", "MultiHeadAttention", domain=MICROSOFT)
def _attention(op: Operands) -> Sequence[Product]:
    """Queries meet keys, and scores values, in each head, and heads leave with all that is theirs."""
    return [Product(op.out())]


@proportional("Attention", domain=MICROSOFT)
def _projected(op: Operands, past: int = 4) -> Sequence[Product]:
    """The projection by one weight; queries with keys, and scores with values, along the heads that come out."""
    (_, length, size), columns = op.shape(0), op.shape(1)[1]
    queries, _, values = op.node.attributes.get_ints("qkv_hidden_sizes", []) or [columns // 3] * 3
    reach = length + (op.shape(past)[3] if op.has(past) else 0)
    projection = Product((*op.axes(0)[:2], *op.axes(1)), size * columns)
    return [projection, Product(op.out(), reach * (queries + values))]


@proportional("QAttention", domain=MICROSOFT)
def _quantized(op: Operands) -> Sequence[Product]:
    return _projected(op, past=8)
