"""Which statistics are collected in which pass over the data, so that each pass stays within a budget of memory.

A pass holds one batch of every value that it exports, the states of all its statistics, and the largest of what they
need while they take turns. Passes are packed by first fit in decreasing order; that several statistics share an
exported value is what makes this more than bin packing.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from onnxopt.errors import DataError
from onnxopt.statistics import Side, Stat
from onnxopt.statistics.accumulators import Footprint


class Watched(NamedTuple):
    """A value of one side, as it leaves the model; once, however many statistics want it."""

    tensor: str
    side: Side


@dataclass(frozen=True)
class Want:
    """A statistic that is asked for, and what it needs besides the values that it looks at."""

    stat: Stat[Any]
    footprint: Footprint

    @property
    def watched(self) -> tuple[Watched, ...]:
        """The values that have to be there at once."""
        return tuple(Watched(name, side) for side, name in self.stat.looks)


Sizes = Mapping[Watched, int]
"""Bytes of one batch of each value; of the largest batch, where they differ."""


def peak(wants: Iterable[Want], sizes: Sizes) -> int:
    """Bytes that a pass with these statistics needs at most.

    Args:
        wants: what it collects.
        sizes: see `Sizes`; 0 for what is in memory anyway, as inputs may be.
    """
    return _Load.of(wants).peak(sizes)


def plan(wanted: Sequence[Want], sizes: Sizes, budget: int) -> list[tuple[Want, ...]]:
    """Divide statistics among as few passes over the data as a greedy choice finds.

    Statistics of one tensor stay together where that costs no pass more. The same arguments give the same plan.

    Args:
        wanted: each is in exactly one pass; passes, and what is in them, are in this order.
        sizes: bytes of one batch of every value that they look at.
        budget: bytes that no pass exceeds, see `peak`.

    Raises:
        DataError: a statistic does not fit even alone.
    """
    for want in wanted:
        if peak((want,), sizes) > budget:
            raise _too_large(want, sizes, budget, "a batch", "feed smaller batches, ")
    packings = [_packed(bundles, wanted, sizes, budget) for bundles in _bundlings(wanted, sizes, budget)]
    fewest = min(packings, key=len)
    return [tuple(wanted[at] for at in each) for each in sorted(map(sorted, fewest))]


def rows_that_fit(wanted: Iterable[Want], sizes: Sizes, rows: int, budget: int) -> int:
    """The most rows (samples) of a batch that can be fed at once so that every statistic fits at least alone.

    Args:
        wanted: what will be collected, in as many passes as it takes.
        sizes: bytes of `rows` rows of each value; of fewer rows they are in proportion, see `scaled`.
        rows: of a whole batch, at least 1.
        budget: bytes.

    Returns:
        A number from 1 to `rows`; `plan` takes the sizes scaled to it.

    Raises:
        DataError: a statistic does not fit even with a single row.
    """
    fitting = rows
    for want in wanted:
        load = _Load.of((want,))
        own = {each: sizes[each] for each in load.watched}
        needs = partial(_peak_of_rows, load, own, rows)
        fitting = bisect_right(range(1, fitting + 1), budget, key=needs)
        if not fitting:
            raise _too_large(want, scaled(own, 1, rows), budget, "a single sample", "")
    return fitting


def scaled(sizes: Sizes, count: int, rows: int) -> dict[Watched, int]:
    """Bytes of `count` rows where `sizes` are of `rows` rows; rounded up."""
    return {each: -(-size * count // rows) for each, size in sizes.items()}


@dataclass(frozen=True)
class _Load:
    """What some statistics need when they are in one pass."""

    watched: frozenset[Watched]
    state: int
    work: int

    @classmethod
    def of(cls, wants: Iterable[Want]) -> "_Load":
        several = tuple(wants)
        watched = frozenset(each for want in several for each in want.watched)
        works = (want.footprint.work for want in several)
        return cls(watched, sum(want.footprint.state for want in several), max(works, default=0))

    def peak(self, sizes: Sizes) -> int:
        return sum(sizes[each] for each in self.watched) + self.state + self.work


def _peak_of_rows(load: _Load, sizes: Sizes, rows: int, count: int) -> int:
    return load.peak(scaled(sizes, count, rows))


class _Pass:
    """A pass that is being filled."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.watched: set[Watched] = set()
        self.held = 0
        self.work = 0

    def takes(self, load: _Load, sizes: Sizes, budget: int) -> bool:
        """Whether there is room."""
        room = budget - self.held - max(self.work, load.work)
        return load.state <= room and self._growth(load, sizes) <= room  # the first is cheap, and most are full

    def add(self, bundle: Sequence[int], load: _Load, sizes: Sizes) -> None:
        self.held += self._growth(load, sizes)
        self.work = max(self.work, load.work)
        self.watched |= load.watched
        self.places += bundle

    def _growth(self, load: _Load, sizes: Sizes) -> int:
        return load.state + sum(sizes[each] for each in load.watched if each not in self.watched)


Bundle = tuple[int, ...]
"""Places of statistics that go into one pass together."""


def _bundlings(wanted: Sequence[Want], sizes: Sizes, budget: int) -> Iterator[list[Bundle]]:
    """Ways to bundle all statistics, best first: all of a tensor, all of the same values, one by one."""

    def split(bundle: Bundle, keys: Sequence[Callable[[int], Hashable]]) -> Iterator[Bundle]:
        parts = dict[Hashable, list[int]]()
        for at in bundle:
            parts.setdefault(keys[0](at), []).append(at)
        for part in map(tuple, parts.values()):
            if len(keys) == 1 or _Load.of(wanted[at] for at in part).peak(sizes) <= budget:
                yield part
            else:
                yield from split(part, keys[1:])

    keys: list[Callable[[int], Hashable]]
    keys = [lambda at: wanted[at].stat.tensor, lambda at: wanted[at].watched, lambda at: at]
    whole = tuple(range(len(wanted)))
    for first in range(3):
        yield list(split(whole, keys[first:]))


def _packed(bundles: Sequence[Bundle], wanted: Sequence[Want], sizes: Sizes, budget: int) -> list[list[int]]:
    """Put each bundle, the largest first, into the first pass that can take it, or a new one."""
    loads = {bundle: _Load.of(wanted[at] for at in bundle) for bundle in bundles}
    passes: list[_Pass] = []
    for bundle in sorted(bundles, key=lambda each: -loads[each].peak(sizes)):
        load = loads[bundle]
        target = next((each for each in passes if each.takes(load, sizes, budget)), None)
        if target is None:
            passes.append(target := _Pass())
        target.add(bundle, load, sizes)
    return [each.places for each in passes]


def _too_large(want: Want, sizes: Sizes, budget: int, fed: str, cure: str) -> DataError:
    values, footprint = sum(sizes[each] for each in want.watched), want.footprint
    return DataError(
        f"tensor {want.stat.tensor!r}: {type(want.stat.request).__name__} needs "
        f"{_mib(values + footprint.state + footprint.work)} ({_mib(values)} for the values of {fed}, "
        f"{_mib(footprint.state)} for its sums and {_mib(footprint.work)} while they are added), "
        f"more than the {_mib(budget)} that are allowed: {cure}allow more memory "
        f"(--memory {_enough(values + footprint.state + footprint.work)}), or look at fewer positions or at more "
        "groups of channels"
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 / 20 or not count else f"{max(count >> 10, 1)} KiB"


def _enough(count: int) -> str:
    """That many bytes or a few more, as the command line takes them."""
    return f"{-(-count // 2**20)}M"
