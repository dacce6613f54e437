"""An axis of a tensor as a product of digits, so that Reshape only regroups them.

A digit is a run of positions that counts through one thing: something that nobody may shorten (batch, space, the size
of a head), or channels. The channels of one axis that a Reshape took apart are a *block* of several factors: [1536]
seen as [3, 8, 64] has three. Channels may go as long as what is left is again such a product, so at most one
factor of a block can lose entries; which one is decided as late as possible, by whoever asks for it first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from onnxopt.analysis.axes.ids import Freeze, Ids, Ledger
from onnxopt.analysis.symbols.expressions import Scalar, product

_ONLY = Freeze("semantics", "one that must not be without entries has no other")
INSIDE = Freeze("semantics", "the size of what is removed whole (a head, a group)")


class Block:
    """Channel ids of one axis, or of one that was taken apart into factors.

    Attributes:
        ids: one axis a factor.
        held: a factor -> why it keeps its length; None while it may lose entries.
        mixed: a factor -> whether it is part of an axis together with something else.
        free: whether the factors come together again untouched, so that any channels may go.
    """

    def __init__(
        self, ledger: Ledger, ids: Ids, held: Sequence[Freeze | None] = (), mixed: Sequence[bool] = ()
    ) -> None:
        self._ledger = ledger
        self.ids = ids
        self.held = list(held) or [None] * ids.ndim
        self.mixed = list(mixed) or [False] * ids.ndim
        self.free = False

    @property
    def live(self) -> list[int]:
        """The factors that may lose entries."""
        return [at for at, why in enumerate(self.held) if why is None]

    def hold(self, at: int, why: Freeze) -> None:
        """A factor keeps its length: what is removed is removed along all of it."""
        if self.held[at] is not None:
            return
        if self.live == [at]:
            self._ledger.freeze(self.along(at), why)
        else:
            self._ledger.bind(np.moveaxis(self.ids, at, -1))
        self.held[at] = why

    def vector(self, at: int) -> Ids | None:
        """The channels along a factor; None where it keeps its length.

        Where several factors might lose entries the outermost one may from now on, or the one asked for if the
        outermost are parts of larger axes: [heads, size] goes head by head, [2, 2, channels] of a depth-to-space
        channel by channel.
        """
        live = self.live
        if at not in live:
            return None
        chosen = live[0] if at == live[0] else next((each for each in live if not self.mixed[each]), live[0])
        for each in live:
            if each != chosen:
                self.hold(each, INSIDE)
        return self.along(at) if chosen == at else None

    def settle(self) -> None:
        """Decide for a factor, if nobody asked."""
        if len(self.live) > 1 and not self.free:
            self.vector(self.live[0])

    def taken_apart(self, at: int, outer: int, inner: int) -> "Block":
        """The block with one factor as two."""
        shape = self.ids.shape
        ids = self.ids.reshape(*shape[:at], outer, inner, *shape[at + 1 :])
        twice = [*range(at + 1), *range(at, len(shape))]
        return self._like(ids, twice)

    def taken(self, at: int, index: Ids | slice | int) -> "Block":
        """The block with some entries of a factor; without the factor where the index is a number."""
        ids = self.ids[(slice(None),) * at + (index,)]
        return self._like(ids, [each for each in range(self.ids.ndim) if each != at or not isinstance(index, int)])

    def _like(self, ids: Ids, factors: Iterable[int]) -> "Block":
        factors = list(factors)
        return Block(self._ledger, ids, [self.held[at] for at in factors], [self.mixed[at] for at in factors])

    def along(self, at: int) -> Ids:
        """The channels at the first entry of all other factors."""
        return self.ids[tuple(slice(None) if each == at else 0 for each in range(self.ids.ndim))]


@dataclass(frozen=True, slots=True, eq=False)
class Digit:
    """One factor of an axis.

    Attributes:
        size: how many entries.
        block: whose factor it is; None where nobody may shorten it.
        at: which factor.
        why: why it stays as it is, without a block.
    """

    size: Scalar
    block: Block | None = None
    at: int = 0
    why: Freeze = INSIDE

    @property
    def live(self) -> bool:
        """Whether entries may go."""
        return self.block is not None and self.block.held[self.at] is None

    @property
    def fixed(self) -> Freeze:
        """Why it stays as it is, if it does."""
        held = None if self.block is None else self.block.held[self.at]
        return self.why if held is None else held

    def same(self, other: "Digit") -> bool:
        """Whether the two stand for the same positions."""
        return self is other or (self.block is not None and self.block is other.block and self.at == other.at)

    def vector(self) -> Ids | None:
        """The channels; None where entries may not go."""
        return None if self.block is None else self.block.vector(self.at)

    def hold(self, why: Freeze) -> None:
        """No entry may go."""
        if self.block is not None:
            self.block.hold(self.at, why)


Axis: TypeAlias = tuple[Digit, ...]
"""Digits, outermost first; none for an axis of size 1."""

Axes: TypeAlias = tuple[Axis, ...]


def fixed(size: Scalar, why: Freeze) -> Axis:
    """An axis that keeps its length."""
    return () if size == 1 else (Digit(size, why=why),)


def channels(ledger: Ledger, ids: Ids) -> Axis:
    """An axis of channels; a single one stays."""
    if not len(ids):
        return fixed(0, _ONLY)
    if len(ids) == 1:
        ledger.freeze(ids, _ONLY)
        return ()
    return (Digit(len(ids), Block(ledger, ids)),)


def size_of(axis: Axis) -> Scalar:
    """The length of an axis."""
    return product(digit.size for digit in axis)


def hold(axis: Axis, why: Freeze) -> None:
    """No entry of an axis may go."""
    for digit in axis:
        digit.hold(why)


def reason(axis: Axis) -> Freeze:
    """Why an axis keeps its length."""
    return next((digit.fixed for digit in axis if not digit.live), INSIDE)


def met(axis: Axis, node: str) -> Freeze:
    """Why what is combined with an axis that keeps its length keeps its own."""
    why = reason(axis)
    return Freeze(why.reason, why.why, why.node or node)


def vector(axis: Axis) -> Ids | None:
    """The channel of each position of an axis; None where no entry may go.

    Of several digits that might lose entries the outermost may from now on.
    """
    found = _chosen(axis)
    if found is None:
        return None
    place, ids = found
    sizes = [digit.size for digit in axis if isinstance(digit.size, int)]
    if len(sizes) < len(axis):
        axis[place].hold(Freeze("needs-rule", "one axis with another whose size is open"))
        return None
    shape = [1] * len(axis)
    shape[place] = len(ids)
    return np.broadcast_to(ids.reshape(shape), sizes).reshape(-1)


def entries(axis: Axis) -> Ids | None:
    """The channels of an axis, in their order but not as often as they occur; None where no entry may go.

    Unlike `vector` also where the axis has other digits whose sizes are open.
    """
    found = _chosen(axis)
    return None if found is None else found[1]


def _chosen(axis: Axis) -> tuple[int, Ids] | None:
    """The place of the digit of an axis that may from now on lose entries, the outermost one, and its channels."""
    found: tuple[int, Ids] | None = None
    for place, digit in enumerate(axis):
        ids = digit.vector() if found is None else None
        if ids is not None:
            found = (place, ids)
        elif digit.live:
            digit.hold(INSIDE)
    return found


def united(ledger: Ledger, a: Axis, b: Axis, *, added: bool = False, node: str = "") -> None:
    """Position by position, two axes are of the same channels; `added`: see `Ledger.unite`."""
    if len(a) == len(b) and all(x.same(y) for x, y in zip(a, b, strict=True)):
        return
    for left, right in matched(a, b):
        first, second = vector(left), vector(right)
        if first is None and second is not None:
            hold(right, met(left, node))
        elif first is not None and second is None:
            hold(left, met(right, node))
        elif first is not None and second is not None and len(first) == len(second):
            ledger.unite(first, second, added=added)
        elif first is not None:
            why = Freeze("needs-rule", "combined with an axis of another length", node)
            hold(left, why)
            hold(right, why)


def matched(a: Axis, b: Axis) -> list[tuple[Axis, Axis]]:
    """Shortest runs of digits of two axes of one length that are as long as one another, in order."""
    return [(a[i:j], b[k:m]) for (i, j), (k, m) in runs([d.size for d in a], [d.size for d in b])]


Run: TypeAlias = tuple[int, int]


def runs(a: Sequence[Scalar], b: Sequence[Scalar]) -> list[tuple[Run, Run]]:
    """Shortest runs of two lists of sizes whose products are certainly equal, from the front, then from the back.

    What is left between is one run, if anything is; its products may differ.
    """
    front = _cuts(a, b)
    i, j = front[-1]
    back = _cuts(list(reversed(a[i:])), list(reversed(b[j:])))
    ends = [(len(a) - x, len(b) - y) for x, y in reversed(back)]
    cuts = list(dict.fromkeys((*front, *ends)))
    return [((p, q), (r, s)) for (p, r), (q, s) in pairwise(cuts)]


def _cuts(a: Sequence[Scalar], b: Sequence[Scalar]) -> list[tuple[int, int]]:
    """Pairs of lengths of beginnings with equal products, increasing in both; the first is (0, 0)."""
    places: dict[Scalar, int] = {}
    total: Scalar = 1
    for index, size in enumerate(a):
        total = total * size
        places[total] = index + 1
    found = [(0, 0)]
    total = 1
    for index, size in enumerate(b):
        total = total * size
        if places.get(total, 0) > found[-1][0]:
            found.append((places[total], index + 1))
    return found


def replaced(axes: Axes, old: Block, new: Block, factors: dict[int, int]) -> Axes:
    """Axes with the digits of a block as those of another; old factor -> new one."""
    return tuple(
        tuple(
            replace(digit, block=new, at=factors[digit.at]) if digit.block is old and digit.at in factors else digit
            for digit in axis
        )
        for axis in axes
    )


def taken(ledger: Ledger, axes: Axes, place: int, index: Ids, why: Freeze) -> Axes:
    """The axes of a tensor of which some entries of one axis are taken, in this order, maybe repeatedly.

    A factor of an axis that was taken apart is from then on held: it is looked at entry by entry.
    """
    axis = axes[place]
    if not len(index):
        return (*axes[:place], fixed(0, why), *axes[place + 1 :])
    block = axis[0].block if len(axis) == 1 else None
    if block is not None and axis[0].live and len(block.live) > 1:
        at = axis[0].at
        block.hold(at, why)
        part = block.taken(at, index)
        rest = replaced(axes, block, part, {each: each for each in range(block.ids.ndim)})
        return (*rest[:place], fixed(len(index), why), *rest[place + 1 :])
    ids = vector(axis)
    chosen = fixed(len(index), reason(axis)) if ids is None else channels(ledger, ids[index])
    return (*axes[:place], chosen, *axes[place + 1 :])
