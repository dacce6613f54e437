"""A node whose channels lost entries: what its axes are like now, and means to adapt it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.axes.axis import Axes, Axis, Digit, size_of
from onnxopt.analysis.axes.ids import Ids
from onnxopt.analysis.symbols import Call as Known
from onnxopt.analysis.symbols.arguments import reshape_target
from onnxopt.analysis.symbols.expressions import Polynomial, Scalar, product
from onnxopt.analysis.symbols.indexing import slice_bounds
from onnxopt.edit import Edit

Mask = npt.NDArray[np.bool_]


class Kept:
    """Which channels stay.

    Args:
        labels: the class of each channel id.
        gone: the classes that are removed.
    """

    def __init__(self, labels: Ids, gone: Sequence[int]) -> None:
        leaving = np.zeros(int(labels.max(initial=-1)) + 1, bool)
        leaving[list(gone)] = True
        self._stay = ~leaving[labels]

    def of(self, ids: Ids) -> Mask:
        """Whether each stays."""
        return self._stay[ids]

    def size(self, axis: Axis) -> Scalar:
        """Entries of an axis that stay."""
        return product(int(self._along(digit).sum()) if digit.live else digit.size for digit in axis)

    def mask(self, axis: Axis) -> Mask | None:
        """Whether each entry of an axis stays; None where all do."""
        if all(bool(self._along(digit).all()) for digit in axis if digit.live):
            return None
        parts = [
            self._along(digit) if digit.live else np.ones(int(digit.size), bool)  # type: ignore[arg-type]
            for digit in axis
        ]
        found = np.ones((), bool)
        for part in parts:
            found = np.logical_and.outer(found, part)
        return found.reshape(-1)

    def touches(self, axes: Axes | None) -> bool:
        """Whether an axis loses entries."""
        return any(self.size(axis) != product(digit.size for digit in axis) for axis in axes or ())

    def _along(self, digit: Digit) -> Mask:
        assert digit.block is not None
        return self._stay[digit.block.along(digit.at)]


@dataclass
class Patch:
    """A node that is adapted to the channels that stay. Everything follows from those, nothing from what was removed.

    Attributes:
        node: the node.
        known: what holds of the shapes and the small integers that it read.
        edit: where changes are recorded.
    """

    node: ir.Node
    known: Known
    edit: Edit
    kept_channels: Kept
    inputs: Sequence[Axes | None]
    outputs: Sequence[Axes | None]

    def axes(self, index: int) -> Axes:
        """Axes of an input, as they were; none where it is left out."""
        return (self.inputs[index] or ()) if index < len(self.inputs) else ()

    def axes_out(self, index: int = 0) -> Axes:
        """Axes of an output, as they were."""
        return self.outputs[index] or ()

    def size(self, index: int, place: int) -> int:
        """New length of an axis of an input."""
        return _number(self.kept_channels.size(self.axes(index)[place]))

    def size_out(self, index: int, place: int) -> int:
        """New length of an axis of an output."""
        return _number(self.kept_channels.size(self.axes_out(index)[place]))

    def shape(self, index: int) -> tuple[Scalar, ...]:
        """New shape of an input."""
        return tuple(self.kept_channels.size(axis) for axis in self.axes(index))

    def shape_out(self, index: int = 0) -> tuple[Scalar, ...]:
        """New shape of an output."""
        return tuple(self.kept_channels.size(axis) for axis in self.axes_out(index))

    def kept(self, index: int, place: int) -> Mask:
        """Whether each entry of an axis of an input stays."""
        return self._mask(self.axes(index)[place])

    def kept_out(self, index: int, place: int) -> Mask:
        """Whether each entry of an axis of an output stays."""
        return self._mask(self.axes_out(index)[place])

    def shrinks(self, index: int, place: int) -> bool:
        """Whether an axis of an input loses entries."""
        return self.kept_channels.touches((self.axes(index)[place],))

    def shrinks_out(self, index: int, place: int) -> bool:
        """Whether an axis of an output loses entries."""
        return self.kept_channels.touches((self.axes_out(index)[place],))

    def _mask(self, axis: Axis) -> Mask:
        mask = self.kept_channels.mask(axis)
        return np.ones(_number(product(digit.size for digit in axis)), bool) if mask is None else mask

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return self.node.attributes.get_int(name, default)

    def integers(self, index: int, name: str = "") -> list[int] | None:
        """Integers that an input or an attribute gives; None where they are computed."""
        return self.known.numbers(index, name)

    def set_attribute(self, name: str, value: Any) -> None:
        """Set an attribute; None takes it away. One that is as it should be is left alone."""
        old = self.node.attributes.get(name)
        if (None if old is None else old.value) != value:
            self.edit.set_attribute(self.node, name, value)

    def set_integers(self, index: int, values: Sequence[int], name: str = "") -> None:
        """Give integers by a constant of the node's own, or by the attribute in opsets that have it so."""
        if name and (name in self.node.attributes or not self._by_input(index)):
            self.edit.set_attribute(self.node, name, list(values))
            return
        dtype = self.known.fact(index).dtype or ir.DataType.INT64
        shape = self.known.fact(index).shape
        array = np.array(values, dtype.numpy())
        if shape == ():
            array = array.reshape(())
        self.edit.set_input(self.node, index, self.edit.add_weight(name or "sizes", array, self.graph))

    def change_integers(self, index: int, values: Mapping[int, int], name: str = "") -> None:
        """The same for some of the entries; the others may be computed."""
        if not values:
            return
        found = self.known.numbers(index, name)
        if found is not None:
            self.set_integers(index, [values.get(place, each) for place, each in enumerate(found)], name)
            return
        source = self.node.inputs[index]
        assert source is not None
        node = self._overwritten(source, values, self.known.fact(index).dtype or ir.DataType.INT64)
        self.edit.insert([node], before=self.node)
        self.edit.set_input(self.node, index, node.outputs[0])

    def reshape(self, index: int, name: str) -> None:
        """Give the target of a Reshape that makes the new shape of what it gave."""
        source, result = self.shape(0), self.shape_out()
        target = reshape_target(source, result)
        if target is not None:
            if target != self.known.numbers(index, name):
                self.set_integers(index, target, name)
                self.set_attribute("allowzero", None)
            return
        changed, told = self._changed(), self.known.integers(index, name) or []
        open_ = [place for place, size in changed.items() if not isinstance(size, int)]
        if -1 in told or len(open_) > 1:
            self._scale(index, [place for place in changed if place >= len(told) or told[place] not in (0, -1)])
        else:
            self.change_integers(index, {p: size if isinstance(size, int) else -1 for p, size in changed.items()}, name)

    def _scale(self, index: int, places: Sequence[int]) -> None:
        """Let computed sizes of axes of what the node gives shrink as these do."""
        lengths = [self._lengths(axis) if at in places else (1, 1) for at, axis in enumerate(self.axes_out())]
        old, new = (np.array(each, np.int64) for each in zip(*lengths, strict=True))
        source = self.node.inputs[index]
        if source is not None and places:
            shrunk = self._in_proportion(source, new, old)
            self.edit.insert(shrunk, before=self.node)
            self.edit.set_input(self.node, index, shrunk[-1].outputs[0])

    def become_reshape(self) -> None:
        """Let a Reshape do what the node did."""
        target = reshape_target(self.shape(0), self.shape_out())
        if target is None:
            raise TypeError("a shape that is open")
        sizes = self.edit.add_weight("shape", np.array(target, np.int64), self.graph)
        node = ir.node("Reshape", [self.node.inputs[0], sizes])
        if self.node.outputs[0].type is not None:
            node.outputs[0].type, node.outputs[0].shape = self.node.outputs[0].type, ir.Shape([None] * len(target))
        self.edit.insert([node], before=self.node)
        self.edit.rewire(self.node.outputs[0], node.outputs[0])
        self.edit.remove(self.node)

    def expand(self, index: int) -> None:
        """Give the shape that an Expand makes, where it lost entries; axes that it does not tell follow the data."""
        rank = self.known.fact(index).shape
        told = rank[0] if rank and isinstance(rank[0], int) else len(self.axes_out())
        first = len(self.axes_out()) - told
        changed = {place - first: _number(size) for place, size in self._changed().items()}
        self.change_integers(index, {place: size for place, size in changed.items() if place >= 0})

    def slice(self) -> None:
        """Let a Slice take what stays of what it took."""
        bounds = slice_bounds(self.known) or {}
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        steps: dict[int, int] = {}
        for at, (place, (start, end, step)) in enumerate(bounds.items()):
            axis = self.axes(0)[place]
            mask = self.kept_channels.mask(axis) if isinstance(size_of(axis), int) else None  # an open one is whole
            if mask is None:
                continue
            taken = np.arange(len(mask))[sliced(_number(start), _number(end), step, len(mask))]
            rank = np.cumsum(mask) - 1
            left = rank[taken[mask[taken]]]
            starts[at], ends[at] = (int(left[0]), int(left[-1]) + 1) if len(left) else (0, 0)
            if step != 1:
                self.pick(0, place, left)
                starts[at], ends[at], steps[at] = 0, len(left), 1
        self.change_integers(1, starts, "starts")
        self.change_integers(2, ends, "ends")
        self.change_integers(4, steps)

    def pick(self, index: int, place: int, entries: Ids) -> None:
        """Let the node read only these entries, in this order, of an axis of an input."""
        source = self.node.inputs[index]
        chosen = self.edit.add_weight("channels", np.asarray(entries, np.int64), self.graph)
        node = ir.node("Gather", [source, chosen], {"axis": place})
        node.outputs[0].type = None if source is None else source.type
        self.edit.insert([node], before=self.node)
        self.edit.set_input(self.node, index, node.outputs[0])

    def keep_answer(self) -> None:
        """Let a Shape go on giving the old sizes, for all that computes with them."""
        places = range(
            *slice(self.integer("start", 0), self.node.attributes.get_int("end", None)).indices(len(self.axes(0)))
        )
        lengths = [self._lengths(self.axes(0)[at]) for at in places]
        self._keep(np.array([old for old, _ in lengths], np.int64), np.array([new for _, new in lengths], np.int64))

    def keep_count(self) -> None:
        """Let a Size go on giving the old number of elements."""
        lengths = [self._lengths(axis) for axis in self.axes(0)]
        self._keep(np.prod([old for old, _ in lengths]), np.prod([new for _, new in lengths]))

    def _lengths(self, axis: Axis) -> tuple[int, int]:
        """How many entries the channels of an axis had, and have."""
        live = tuple(digit for digit in axis if digit.live)
        return _number(product(digit.size for digit in live)), _number(self.kept_channels.size(live))

    def _keep(self, old: Ids | np.int64, new: Ids | np.int64) -> None:
        """Let the sizes that a node gives be as if what was `old` were not `new`."""
        if not np.array_equal(old, new):
            told = self._in_proportion(self.node.outputs[0], old, new)
            self.edit.insert(told, after=self.node)
            self.edit.rewire(self.node.outputs[0], told[-1].outputs[0])

    def _in_proportion(self, sizes: ir.Value, times: Ids | np.int64, by: Ids | np.int64) -> list[ir.Node]:
        """Nodes that multiply sizes and divide them."""
        factors = [self.edit.add_weight("sizes", np.asarray(each, np.int64), self.graph) for each in (times, by)]
        grown = ir.node("Mul", [sizes, factors[0]])
        found = ir.node("Div", [grown.outputs[0], factors[1]])
        grown.outputs[0].type = found.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        return [grown, found]

    def _overwritten(self, source: ir.Value, values: Mapping[int, int], dtype: ir.DataType) -> ir.Node:
        """A node that gives a list of integers with some entries replaced."""
        places = self.edit.add_weight("places", np.array(list(values), np.int64), self.graph)
        new = self.edit.add_weight("sizes", np.array(list(values.values()), dtype.numpy()), self.graph)
        node = ir.node("ScatterElements" if self.known.opset >= 11 else "Scatter", [source, places, new], {"axis": 0})
        node.outputs[0].type = ir.TensorType(dtype)
        return node

    def _changed(self) -> dict[int, Scalar]:
        old = [product(digit.size for digit in axis) for axis in self.axes_out()]
        return {p: new for p, (new, was) in enumerate(zip(self.shape_out(), old, strict=True)) if new != was}

    def _by_input(self, index: int) -> bool:
        return self.known.has(index) or self.known.opset >= 13

    @property
    def graph(self) -> ir.Graph | None:
        """The graph that the node is in."""
        return self.node.graph if isinstance(self.node.graph, ir.Graph) else None


def sliced(start: int, end: int, step: int, size: int) -> slice:
    """Bounds of ONNX as Python has them: with a negative step the end may lie before the first entry."""
    return slice(start, None if step < 0 and end < -size else end, step)


def _number(size: Scalar) -> int:
    if isinstance(size, Polynomial):
        raise TypeError("a size that is open")
    return size
