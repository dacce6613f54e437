"""Constants as those who read them see them: one constant may be several weights that only happen to be equal."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes.axis import Axes, channels, fixed
from onnxopt.analysis.axes.ids import Freeze, Ids, Ledger
from onnxopt.analysis.axes.rules import key
from onnxopt.analysis.axes.rules_elementwise import ELEMENTWISE
from onnxopt.analysis.structure import constant_tensor
from onnxopt.analysis.symbols import Symbols
from onnxopt.model import Model

Use = tuple[ir.Node, int]
"""A node and the index of its input."""

_INTEGERS = Freeze("semantics", "a constant of integers")
_UNTOLD = Freeze("semantics", "a constant of which only the sizes are read")
REMADE = Freeze("semantics", "a constant as others see it")
_REMAKERS = frozenset(("Cast", "DequantizeLinear"))
"""Operators that vectors of constants come through to their readers."""

_FALSE_SHARING = 1 << 22
"""Shared constants of several axes are looked at, for being all one number, up to so many elements."""


@dataclass(eq=False)
class Weight:
    """A constant as its readers see it. Small constants that only happen to be equal are seen apart.

    Attributes:
        root: the initializer, or the output of the Constant node, that holds it.
        uses: who reads it so: directly, or behind Identity nodes.
        ids: one list of channel ids an axis.
        axes: the same as axes.
        reader: who reads so what the node in `uses` makes of the constant; None for all who do.
    """

    root: ir.Value
    uses: list[Use]
    ids: tuple[Ids, ...]
    axes: Axes
    reader: Use | None = None


class Weights:
    """All constants of a model's main graph that have channels.

    Args:
        model: the model.
        known: what holds of its shapes.
        ledger: where channel ids come from.
    """

    def __init__(self, model: Model, known: Symbols, ledger: Ledger) -> None:
        self._model = model
        self._symbols = known
        self._ledger = ledger
        self._seen: dict[ir.Value | tuple[ir.Value, Use], Weight] = {}
        self._uses: set[Use] = set()
        self._apart: dict[ir.Value, bool] = {}
        self._roots: dict[ir.Value, ir.Value] = {}
        self._makers: dict[ir.Value, ir.Node] = {}
        self._views: list[Weight] = []

    def all(self) -> tuple[Weight, ...]:
        """The weights, in the order in which they are read."""
        return (*self._seen.values(), *self._views)

    def shared(self, value: ir.Value) -> Weight | None:
        """The weight that all readers of a constant see alike; None where they see it apart, or nobody did yet."""
        return self._seen.get(self.root(value))

    def axes(self, root: ir.Value, use: Use, *, parameter: bool, new: bool) -> Axes:
        """Axes of a constant as a reader sees it.

        Args:
            root: what holds the constant.
            use: the reader.
            parameter: whether it takes constants of any type for weights, not only floating-point ones.
            new: whether this is told to count as one of its readers.
        """
        place = (root, use) if self._is_seen_apart(root) else root
        weight = self._seen.get(place)
        tensor = constant_tensor(root)
        assert tensor is not None
        if weight is None and new and (parameter or tensor.dtype.is_floating_point()):
            weight = self._seen[place] = self._weight(root, tuple(tensor.shape.numpy()))
        if weight is None or not (new or use in self._uses):
            why = _INTEGERS if weight is None else _UNTOLD
            return tuple(fixed(size, why) for size in tensor.shape.numpy())
        if use not in self._uses:
            self._uses.add(use)
            weight.uses.append(use)
        return weight.axes

    def is_weight(self, value: ir.Value) -> bool:
        """Whether a value is a constant of the main graph, which nobody may feed."""
        if constant_tensor(value) is None:
            return False
        fed = value.is_graph_input() and (self._model.ir.ir_version >= 4)
        return not fed

    def root(self, value: ir.Value) -> ir.Value:
        """The value behind Identity nodes, if that is a constant."""
        return self._roots.get(value, value)

    def hands_on(self, node: ir.Node) -> bool:
        """Whether a node gives a constant, or what is made of one for each reader apart, as it is.

        To be asked of all nodes, in topological order.
        """
        value = node.inputs[0] if key(node) == ("", "Identity") else None
        if value is None:
            return False
        if self.is_weight(self.root(value)):
            self._roots[node.outputs[0]] = self.root(value)
        elif value in self._makers:
            self._makers[node.outputs[0]] = self._makers[value]
        else:
            return False
        return True

    def remakes(self, node: ir.Node) -> bool:
        """Whether a node dequantizes or casts a constant vector for several readers."""
        if node.op_type not in _REMAKERS or len(node.outputs) != 1 or node.inputs[0] is None:
            return False
        roots = [self.root(value) for value in node.inputs if value is not None]
        if not all(self.is_weight(root) for root in roots) or len(self._readers(node.outputs[0])) < 2:
            return False
        shapes = [self._symbols.of(root).shape or () for root in roots]
        found = all(sum(size != 1 for size in shape) <= 1 for shape in shapes) and "block_size" not in node.attributes
        if found:
            self._makers[node.outputs[0]] = node
        return found

    def remade(self, value: ir.Value) -> ir.Node | None:
        """The node that makes such a vector, itself or behind Identity nodes."""
        return self._makers.get(value)

    def seen_remade(self, maker: ir.Node, use: Use) -> Axes:
        """The axes of such a vector as one reader sees it: each of the constants that it is made of, for itself."""
        found: list[Weight] = []
        for place, value in enumerate(maker.inputs):
            if value is not None:
                root = self.root(value)
                weight = self._weight(root, self._symbols.of(root).static or ())
                weight.uses.append((maker, place))
                weight.reader = use
                found.append(weight)
        for weight in found[1:]:
            for ids, other in product(found[0].ids, weight.ids):
                if len(ids) == len(other) > 1:
                    self._ledger.unite(ids, other)
        self._views += found
        return found[0].axes

    def _weight(self, root: ir.Value, shape: tuple[int, ...]) -> Weight:
        ids = tuple(self._ledger.fresh(size) for size in shape)
        return Weight(root, [], ids, tuple(channels(self._ledger, each) for each in ids))

    def _is_seen_apart(self, root: ir.Value) -> bool:
        """Whether the readers of a constant share it for no other reason than that its content is the same."""
        if root not in self._apart:
            readers = self._readers(root)
            self._apart[root] = len(readers) > 1 and (self._is_plain(root) or not any(map(_ties, readers)))
        return self._apart[root]

    def _readers(self, root: ir.Value) -> list[Use]:
        found, stack = [], [root]
        while stack:
            for node, index in stack.pop().uses():
                if node.op_type == "Identity" and key(node)[0] == "":
                    stack.append(node.outputs[0])
                else:
                    found.append((node, index))
        return found

    def _is_plain(self, root: ir.Value) -> bool:
        """Whether a constant is a vector, or all one number."""
        tensor = constant_tensor(root)
        assert tensor is not None
        shape = tuple(tensor.shape.numpy())
        if sum(size != 1 for size in shape) <= 1:
            return True
        if tensor.size > _FALSE_SHARING:
            return False
        array = np.asarray(tensor.numpy()).reshape(-1)
        return bool(array.size) and bool((array == array[0]).all())


def _ties(use: Use) -> bool:
    """Whether a reader makes a matrix of what it shares with others: layers whose weights are tied, an embedding."""
    return key(use[0]) not in ELEMENTWISE
