"""Channel ids: numbers for the positions of axes, and what is known of them. Same class: removed together."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

T = TypeVar("T")

Ids: TypeAlias = npt.NDArray[np.int64]
"""One channel id a position of an axis."""

Reason = Literal["needs-rule", "semantics", "user"]
"""Why channels cannot be removed: no rule describes what happens to them; removing them would change what the model
means; or somebody said so."""

Kind = Literal["heads", "kv-groups", "recurrent"]
"""What rules say that units are; the rest is told by the layers that make them."""


@dataclass(frozen=True)
class Freeze:
    """Why channels stay.

    Attributes:
        reason: the class of the reason.
        why: in words.
        node: name of the node that says so; empty for the model's own inputs and outputs.
    """

    reason: Reason
    why: str
    node: str = ""


WINDOW = "the size of a window or an image"
"""Why axes stay along which there are no channels: such an axis by itself loses nobody anything."""


class Ledger:
    """What rules say of channel ids, in any order; `solved` draws the conclusions at once.

    Cost: linear in ids and statements.
    """

    def __init__(self) -> None:
        self._count = 0
        self._pairs: list[tuple[Ids, Ids]] = []
        self._sums: list[tuple[Ids, Ids]] = []
        self._frozen: list[tuple[Ids, Freeze]] = []
        self._inexact: list[tuple[Ids, str]] = []
        self._kinds: list[tuple[Ids, Kind]] = []

    def fresh(self, count: int) -> Ids:
        """Ids that occur nowhere else."""
        first, self._count = self._count, self._count + count
        return np.arange(first, self._count, dtype=np.int64)

    def unite(self, a: Ids, b: Ids, *, added: bool = False) -> None:
        """Element by element, the two are one channel.

        Args:
            a: ids.
            b: as many.
            added: whether it is so because two computed tensors are added: what makes a residual stream.
        """
        if a is not b:
            (self._sums if added else self._pairs).append((a, b))

    def bind(self, ids: Ids) -> None:
        """All ids of each row (along the last axis) are one channel."""
        rows = ids.reshape(-1, ids.shape[-1])
        self.unite(rows[:, :-1].ravel(), rows[:, 1:].ravel())

    def freeze(self, ids: Ids, freeze: Freeze) -> None:
        """None of these channels can be removed."""
        self._frozen.append((ids, freeze))

    def inexact(self, ids: Ids, why: str) -> None:
        """Removing these channels changes what the others are, beyond losing their own part."""
        self._inexact.append((ids, why))

    def tag(self, ids: Ids, kind: Kind) -> None:
        """Say what the channels are units of."""
        self._kinds.append((ids, kind))

    def solved(self) -> "Classes":
        """The classes of ids, and what holds of each."""
        without = _components(self._count, self._pairs, np.arange(self._count, dtype=np.int64))
        labels = _components(int(without.max(initial=-1)) + 1, [(without[a], without[b]) for a, b in self._sums])[
            without
        ]
        classes = int(labels.max(initial=-1)) + 1
        joined = np.zeros(classes, bool)
        for a, b in self._sums:
            joined[labels[a[without[a] != without[b]]]] = True
        frozen: dict[int, list[Freeze]] = {}
        for ids, freeze in self._frozen:
            for label in np.unique(labels[ids]).tolist():
                frozen.setdefault(label, []).append(freeze)
        kinds = _first(labels, sorted(self._kinds, key=lambda said: said[1] != "kv-groups"))
        return Classes(labels, joined, frozen, _first(labels, self._inexact), kinds)


@dataclass(frozen=True)
class Classes:
    """Which ids are one channel.

    Attributes:
        labels: the class of each id.
        added: a class -> whether computed tensors of different origin are added in it: a residual stream.
        frozen: class -> every reason why it stays.
        inexact: class -> the first reason why removing it is not exact.
        kinds: class -> what rules say that it is.
    """

    labels: Ids
    added: npt.NDArray[np.bool_]
    frozen: dict[int, list[Freeze]]
    inexact: dict[int, str]
    kinds: dict[int, Kind]

    @cached_property
    def count(self) -> int:
        """Number of classes."""
        return len(self.added)


def _components(count: int, pairs: Iterable[tuple[Ids, Ids]], alone: Ids | None = None) -> Ids:
    pairs = list(pairs)
    empty = np.zeros(0, np.int64)
    left = np.concatenate([empty, *(a.ravel() for a, _ in pairs)])
    right = np.concatenate([empty, *(b.ravel() for _, b in pairs)])
    if not left.size:
        return np.arange(count, dtype=np.int64) if alone is None else alone
    graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)  # type: ignore[no-any-return]


def _first(labels: Ids, said: list[tuple[Ids, T]]) -> dict[int, T]:
    found: dict[int, T] = {}
    for ids, what in said:
        for label in np.unique(labels[ids]).tolist():
            found.setdefault(label, what)
    return found
