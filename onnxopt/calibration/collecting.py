"""Statistics of parts of a model on calibration data: planned, run, and remembered by what computes the values."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from onnxopt.backends import machine
from onnxopt.calibration.jobs import Kept, Outcome
from onnxopt.calibration.planning import Want, Watched, peak, plan, rows_that_fit
from onnxopt.calibration.remembered import Remembered
from onnxopt.calibration.running import Fed, Feeds, Part, Paths, Runner
from onnxopt.errors import DataError
from onnxopt.statistics import Accumulator, Collected, Found, Side, Stat

logger = logging.getLogger(__name__)

_SHARE = 0.25
"""Of the memory that is free, what statistics may take where nobody says."""

_LEAST = 64 << 20
"""Bytes that they may take in any case."""

_WORTH_TELLING = 1 << 30
"""Bytes on disk from which on the report tells of them."""

Shape = tuple[int, ...]
Key = tuple[tuple[str, ...], Accumulator[Any, Any], str]
"""Digests of what computes the value, a side each; what is computed of it; of which share of the data."""


def default_budget() -> int:
    """Bytes for statistics where nobody says."""
    return max(_LEAST, int(_SHARE * machine.free_memory_bytes()))


@dataclass(frozen=True, eq=False)
class Work:
    """What statistics are collected of.

    Attributes:
        parts: what is run; one side alone stands for both.
        feeds: all batches.
        batches: how many.
        samples: how many samples.
        kept: bytes that a batch of what is kept takes.
        what: told with the progress.
    """

    parts: Mapping[Side, Part]
    feeds: Feeds
    batches: int
    samples: int
    kept: int = 0
    what: str = ""

    def part(self, side: Side) -> Part:
        """What is run of a side, or in place of it."""
        return self.parts[side] if side in self.parts else next(iter(self.parts.values()))

    def key(self, stat: Stat[Any]) -> Key:
        """What makes two statistics the same."""
        return tuple(self.part(side).digest(name) for side, name in stat.looks), stat.request, stat.share

    def absent(self, stat: Stat[Any]) -> str:
        """Why a value cannot be looked at; empty where it can."""
        for side, name in stat.looks:
            part = self.part(side)
            value = part.values.get(name)
            if value is None:
                return f"no node of the main graph makes {name!r}; bodies of If, Loop and Scan are run whole"
            if part.is_tensor(value) is False:
                return f"{name!r} is no tensor"
            dtype = part.dtype(value)
            if dtype is not None and not np.can_cast(dtype.numpy(), np.float64):
                return f"tensor {name!r}: statistics need real numbers, not {dtype.name}"
        return ""


@dataclass
class Statistics:
    """Collects statistics and remembers them as long as what computes the values stays the same.

    Attributes:
        runner: runs models.
        budget: bytes that values, sums and temporaries of one pass over the data may take; None: a quarter of what is
            free when they are first needed. A session's own memory comes on top.
        notes: what a reader of the report should know.
    """

    runner: Runner
    budget: int | None = None
    notes: list[str] = field(default_factory=list)

    def collect(
        self, work: Work, stats: Sequence[Stat[Any]], keep: Paths | None = None,
        kept: Callable[[Kept], None] | None = None,
    ) -> Collected:  # fmt: skip
        """The statistics, of which those that are known already are not collected again.

        Args:
            work: what they are collected of.
            stats: what is asked for.
            keep, kept: see `Runner.run`; where something is to be kept there is at least one pass.

        Raises:
            DataError: NaN or infinity, or no room for a statistic even by itself.
        """
        found = {stat: Found(None, why) for stat in stats if (why := work.absent(stat))}
        keys = {stat: work.key(stat) for stat in stats if stat not in found}
        held = {key: known for key in keys.values() if (known := self._known.get(key)) is not None}
        missing = {keys[stat]: stat for stat in reversed(keys) if keys[stat] not in held}
        wants, sizes, unsized = self._wants(work, list(reversed(missing.values())))
        held |= {keys[stat]: Found(None, why) for stat, why in unsized.items()}
        passes = self._passes(work, wants, sizes, bool(keep))
        for at, each in enumerate(passes):
            what = _told(work, each, at, len(passes))
            these, first = [want.stat for want in each], at == 0
            outcomes = self.runner.run(
                work.parts, these, work.feeds, work.batches, keep if first else None, kept if first else None, what
            )
            self._note_padding(outcomes)
            held |= {keys[stat]: self._known.add(keys[stat], outcome) for stat, outcome in outcomes.items()}
        return Collected(found | {stat: held[key] for stat, key in keys.items()})

    def missing(self, work: Work, stats: Sequence[Stat[Any]]) -> list[Stat[Any]]:
        """Those that would have to be collected."""
        return [stat for stat in stats if not work.absent(stat) and self._known.get(work.key(stat)) is None]

    def rows_at_once(self, work: Work, stats: Sequence[Stat[Any]], rows: int) -> int:
        """How many samples of a batch of `rows` can be fed at once so that all statistics fit."""
        wants, sizes, _ = self._wants(work, stats)
        return rows_that_fit(wants, sizes, rows, self.bytes_allowed) if wants else rows

    @cached_property
    def bytes_allowed(self) -> int:
        """The budget."""
        return default_budget() if self.budget is None else self.budget

    def note(self, note: str) -> None:
        """Tell something, now and in the report."""
        if note not in self.notes:
            logger.info(note)
            self.notes.append(note)

    @cached_property
    def _known(self) -> Remembered:
        return Remembered(self.runner.folder)

    def _passes(
        self, work: Work, wants: Sequence[Want], sizes: Mapping[Watched, int], keep: bool
    ) -> list[tuple[Want, ...]]:
        """Passes over the data, told before the first; what is kept has one by itself where it does not fit in."""
        passes, allowed = plan(wants, sizes, self.bytes_allowed), self.bytes_allowed
        if keep and (not passes or (work.kept and peak(passes[0], sizes) + work.kept > allowed)):
            passes.insert(0, ())
        if not wants:
            return passes
        memory = max(peak(each, sizes) for each in passes)
        disk = sum(want.footprint.state for want in wants)
        what = f"{work.what}{work.what and ': '}{len(wants)} statistics of {work.samples} samples"
        estimate = f"{_mib(memory)} of memory besides the session's, {_mib(disk)} on disk"
        times = f"{len(passes)} passes" if len(passes) > 1 else "one pass"
        logger.info("%s: %s over the data, %s", what, times, estimate)
        if len(passes) > 1:
            needed = peak(wants, sizes) + work.kept
            why = f"statistics took {times} over the data: all at once need {_mib(needed)}, {_mib(allowed)} are allowed"
            staged = f"statistics of a stage took several passes over its data, as {_mib(allowed)} are allowed"
            self.note(staged if work.what else why)
        if disk > _WORTH_TELLING:
            self.note(f"{what}: {estimate}")
        return passes

    def _wants(
        self, work: Work, stats: Sequence[Stat[Any]]
    ) -> tuple[list[Want], dict[Watched, int], dict[Stat[Any], str]]:
        """What is asked for with its footprint, bytes of the values of a batch, and what no size is known of."""
        shapes = self._shapes(work, stats)
        wants, sizes, unsized = list[Want](), dict[Watched, int](), dict[Stat[Any], str]()
        for stat in stats:
            parts = [work.part(side) for side, _ in stat.looks]
            known = [shapes[part, name] for part, (_, name) in zip(parts, stat.looks, strict=True)]
            fitting = [shape for shape in known if shape is not None]
            if len(fitting) < len(known):
                unsized[stat] = f"tensor {stat.tensor!r}: the largest batch gives none"
                continue
            wants.append(Want(stat, _footprint(stat, fitting, parts[0])))
            for (side, name), part, shape in zip(stat.looks, parts, fitting, strict=True):
                sizes[Watched(name, side)] = prod(shape) * part.entry(name)
        return wants, sizes, unsized

    def _shapes(self, work: Work, stats: Sequence[Stat[Any]]) -> dict[tuple[Part, str], Shape | None]:
        """Shapes of all values that are looked at: inferred, else those in a run of the largest batch."""
        asked = dict.fromkeys((work.part(side), name) for stat in stats for side, name in stat.looks)
        known = {(part, name): part.shape(name) for part, name in asked}
        for side, part in work.parts.items():
            unknown = [name for (each, name), shape in known.items() if each is part and shape is None]
            if unknown:
                _, given, _ = part.cut(unknown)
                fed = max(work.feeds({side: given}), key=_fed_bytes)
                ran = self.runner.shapes(part, unknown, fed.values[side])
                known |= {(part, name): shape for name, shape in ran.items()}
        return known

    def _note_padding(self, outcomes: Mapping[Stat[Any], Outcome]) -> None:
        names = list(dict.fromkeys(repr(stat.tensor) for stat, outcome in outcomes.items() if outcome.unmasked))
        if names:
            shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
            self.note(f"the padding mask does not fit {len(names)} tensors, of which padding counts as well: {shown}")


def _told(work: Work, wants: Sequence[Want], at: int, passes: int) -> str:
    tensors = len({want.stat.tensor for want in wants})
    counted = f"statistics of {tensors} tensor{'s'[: tensors != 1]}" if wants else "values for the next stage"
    which = f"pass {at + 1} of {passes}" if passes > 1 else ""
    return ", ".join(filter(None, (work.what, counted, which)))


def _mib(count: int) -> str:
    return f"{-(-count // 2**20)} MiB"


def _fed_bytes(fed: Fed) -> int:
    return sum(value.nbytes for values in fed.values.values() for value in values.values())


def _footprint(stat: Stat[Any], shapes: Sequence[Shape], part: Part) -> Any:
    dtype = part.dtype(part.values[stat.looks[0][1]])
    try:
        return stat.request.footprint(*shapes, dtype=np.float64 if dtype is None else dtype.numpy())
    except IndexError as error:
        shown = " and ".join(str(list(shape)) for shape in shapes)
        raise DataError(f"tensor {stat.tensor!r} of shape {shown} has no axis that {stat.request} looks at") from error
