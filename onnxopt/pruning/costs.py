"""What a model costs as a function of the widths of its channel groups.

Everything that counts is in proportion to extents: the elements of a weight to those of its axes, the
multiply-accumulates of a node to those that it multiplies along. Each extent is a sum: what stays, and of each group
some entries for each of its units. Their products, multiplied out, are what `numerics.allocation` takes.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.axes.axis import Axes, Block
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.groups import ChannelGroup
from onnxopt.analysis.axes.ids import Freeze, Ids
from onnxopt.analysis.axes.weights import Weight
from onnxopt.analysis.cost import Cost as ModelCost
from onnxopt.analysis.parameters import stored
from onnxopt.analysis.structure import topological
from onnxopt.numerics.allocation import Cost, Term
from onnxopt.pruning.products import Sizes, products

Of = Literal["macs", "params", "bytes"]
"""What is counted: multiply-accumulates of one run, parameters, or bytes of the file."""

Number: TypeAlias = int | Fraction
Polynomial: TypeAlias = dict[tuple[int, ...], Number]
"""Groups, sorted, the same one as often as its width is a factor -> coefficient."""

Form: TypeAlias = dict[int, Number]
"""An extent: group -> entries for each of its units; -1 -> entries that stay."""


@dataclass(frozen=True, eq=False)
class Counted:
    """Something that costs in proportion to extents.

    Attributes:
        amount: what it costs as the model is.
        rows: the class of each entry along each axis that its cost is in proportion to.
        held: why other axes keep their length, along which there are channels.
    """

    amount: Number
    rows: tuple[Ids, ...]
    held: tuple[Freeze, ...] = ()


def cost_model(channels: Channels, groups: Sequence[ChannelGroup], cost: ModelCost, of: Of) -> Cost:
    """What the model costs after `removal` of any units, by how many each group keeps.

    Whole numbers are exact, with these exceptions: MACs that `cost` does not know count none. Where some units of a
    group have more entries along an axis than others, as the last block of a packed weight, all have as many as on
    average. A constant that layers of different channels happen to share counts for each of them, for they part once
    it is cut; so the total at full widths may be more than the model costs as it is. Constants that nobody reads any
    more once it is cut, such as initial states of zeros, go on counting. Bytes are those of the constants, and of what
    else is in the file now: the few indices, sizes and nodes that a removal brings are left out.

    Time is linear in nodes, in the sum of the axes' lengths and in the terms: as many as pairs of groups meet in a
    weight.

    Args:
        channels: of the model as it is.
        groups: those that may lose units; all others keep theirs.
        cost: of the same model.
        of: what is counted.

    Raises:
        ValueError: the cost, or the channels, are those of another model, or of the same before it was edited.
    """
    found = list(counted(channels, cost, of, leaving(channels, groups)))
    total = polynomial(found, [group.units for group in groups], channels.classes.count)
    if of == "bytes":
        total[()] = total.get((), 0) + cost.file_bytes - cost.weight_bytes
    constant = total.pop((), 0)
    return Cost(float(constant), tuple(Term(float(value), names) for names, value in total.items()))


def full(cost: ModelCost, of: Of) -> int:
    """What a model costs as it is."""
    return {"macs": cost.macs, "params": cost.params, "bytes": cost.file_bytes}[of]


def leaving(channels: Channels, groups: Sequence[ChannelGroup]) -> npt.NDArray[np.bool_]:
    """Whether each class of channel ids is a unit of one of the groups."""
    going = np.zeros(channels.classes.count, bool)
    going[[unit for group in groups for unit in group.units]] = True
    return going


def counted(channels: Channels, cost: ModelCost, of: Of, going: npt.NDArray[np.bool_]) -> Iterator[Counted]:
    """All that a model's multiply-accumulates, or its parameters or the bytes of its constants, are made of.

    Args:
        channels: of the model as it is.
        cost: of the same model.
        of: what is counted.
        going: whether each class may go.

    Raises:
        ValueError: as `cost_model`.
    """
    if channels.revision != channels.model.revision:
        raise ValueError("the channels are those of the model before it was edited")
    yield from _multiplied(channels, cost) if of == "macs" else _kept(channels, cost, of, going)


def polynomial(found: Sequence[Counted], units: Sequence[Sequence[int]], classes: int) -> Polynomial:
    """The sum of what is counted, as a function of how many of each sequence of units there are.

    Args:
        found: what is counted.
        units: classes that are interchangeable, for each group.
        classes: how many there are in all.
    """
    forms = _forms([row for each in found for row in each.rows], units, classes)
    total: Polynomial = defaultdict(int)
    for each in found:
        product: Polynomial = {(): each.amount}
        for row in each.rows:
            form = forms.get(id(row))
            if form is not None:
                product = _times(product, form, len(row))
        for names, value in product.items():
            total[names] += value
    return dict(total)


def _times(product: Polynomial, form: Form, length: int) -> Polynomial:
    """A polynomial in proportion to one more extent, which is `length` now."""
    found: Polynomial = defaultdict(int)
    for names, value in product.items():
        for group, count in form.items():
            grown = names if group < 0 else tuple(sorted((*names, group)))
            found[grown] += _ratio(value * count, length)
    return found


def _ratio(value: Number, by: int) -> Number:
    """A quotient, as a whole number where it is one: they are faster."""
    return value // by if isinstance(value, int) and value % by == 0 else Fraction(value, by)


def _forms(rows: Sequence[Ids], units: Sequence[Sequence[int]], classes: int) -> dict[int, Form]:
    """The extents of axes, by identity of the row; those that stay as they are have none."""
    owner = np.full(classes, -1, np.int64)
    for group, each in enumerate(units):
        owner[list(each)] = group
    unique = list({id(row): row for row in rows}.values())
    owners = owner[np.concatenate([np.zeros(0, np.int64), *unique])]
    place = np.repeat(np.arange(len(unique)), [len(row) for row in unique])[owners >= 0]
    pairs, counts = np.unique(place * max(len(units), 1) + owners[owners >= 0], return_counts=True)
    found: dict[int, Form] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        at, group = divmod(pair, len(units))
        form = found.setdefault(id(unique[at]), {-1: len(unique[at])})
        form[-1] -= count
        form[group] = _ratio(count, len(units[group]))
    return {at: {group: count for group, count in form.items() if count} for at, form in found.items()}


def _multiplied(channels: Channels, cost: ModelCost) -> Iterator[Counted]:
    """The multiply-accumulates of each node, as far as they are known."""
    sizes, rows = Sizes(channels.model, cost.sizes), _Rows(channels)
    nodes = topological(channels.model.graph)
    if [node.op_type for node in nodes] != [each.op_type for each in cost.nodes]:
        raise ValueError("the cost is that of another model")
    for node, each in zip(nodes, cost.nodes, strict=True):
        if not each.macs:
            continue
        parts = products(node, channels, sizes)
        whole = sum(part.share for part in parts)
        if not whole:
            yield Counted(each.macs, ())
        for part in parts:
            held = (digit.fixed for axis in part.axes for digit in axis if digit.block is not None and not digit.live)
            yield Counted(_ratio(each.macs * part.share, whole), rows.of(part.axes), tuple(held))


class _Rows:
    """The classes along axes; the same objects for the same axes."""

    def __init__(self, channels: Channels) -> None:
        self._labels = channels.classes.labels
        self._found: dict[tuple[Block, int], Ids] = {}

    def of(self, axes: Axes) -> tuple[Ids, ...]:
        """A row for each digit that may lose entries; all others cost the same whatever goes."""
        return tuple(
            self._along(digit.block, digit.at)
            for axis in axes
            for digit in axis
            if digit.block is not None and digit.live
        )

    def _along(self, block: Block, at: int) -> Ids:
        if (block, at) not in self._found:
            self._found[block, at] = self._labels[block.along(at)]
        return self._found[block, at]


def _kept(channels: Channels, cost: ModelCost, of: Of, going: npt.NDArray[np.bool_]) -> Iterator[Counted]:
    """The parameters or bytes of each constant, as often as removal makes one of it."""
    views: dict[ir.Value, list[tuple[Weight, tuple[Ids, ...]]]] = defaultdict(list)
    for weight in channels.weights:
        views[weight.root].append((weight, tuple(channels.classes.labels[ids] for ids in weight.ids)))
    total = 0
    for each in stored(channels.model):
        amount = each.params if of == "params" else each.nbytes
        total += amount
        seen = views.get(each.value, [])
        cut = [rows for _, rows in seen if any(going[row].any() for row in rows)]
        if not cut or _is_one(each.value, seen):
            yield Counted(amount, seen[0][1] if seen else ())
            continue
        yield from (Counted(amount, rows) for rows in cut)
        if len(cut) < len(seen) or _has_others(each.value, seen):
            yield Counted(amount, ())
    if total != (cost.params if of == "params" else cost.weight_bytes):
        raise ValueError("the cost is that of another model")


def _is_one(root: ir.Value, seen: Sequence[tuple[Weight, tuple[Ids, ...]]]) -> bool:
    """Whether all who read a constant lose the same entries of it, so that it stays one."""
    first = seen[0][1]
    alike = all(np.array_equal(a, b) for _, rows in seen for a, b in zip(rows, first, strict=True))
    return alike and all(weight.reader is None for weight, _ in seen) and not _has_others(root, seen)


def _has_others(root: ir.Value, seen: Sequence[tuple[Weight, tuple[Ids, ...]]]) -> bool:
    """Whether anybody reads a constant who does not see its channels."""
    known = {use for weight, _ in seen for use in weight.uses}
    stack = [root]
    for value in stack:  # which grows
        for use in value.uses():
            if use[0].op_type == "Identity" and use not in known:
                stack.append(use[0].outputs[0])
            elif use not in known:
                return True
    return False
