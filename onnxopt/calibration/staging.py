"""Sequential calibration: a model run stage by stage, as it was and as it is by now, side by side.

What a pass does to a stage is what the next stages' inputs are made with. Values that cross the border between stages
lie on disk and go when nobody reads them any more. Each stage is run once on the dense side; on the current side once
where nothing was edited in between, else once for statistics and once to go on. As long as both sides are the same,
one run and one file stand for both.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxopt.analysis.cuts import Segment, frontier, stages
from onnxopt.analysis.extraction import copied
from onnxopt.analysis.shapes import Shapes
from onnxopt.calibration.collecting import Statistics, Work
from onnxopt.calibration.frontier import Frontier
from onnxopt.calibration.jobs import Kept
from onnxopt.calibration.lines import Line, Sight
from onnxopt.calibration.places import free_bytes
from onnxopt.calibration.running import Fed, Names, Part
from onnxopt.data import Dataset
from onnxopt.errors import DataError
from onnxopt.model import Model
from onnxopt.statistics import Collected, Side, Stat

logger = logging.getLogger(__name__)

_SPARE = 1.1
"""How much more room on disk is asked for than is needed."""

_WORTH_TELLING = 1 << 30
"""Bytes on disk from which on the report tells of them."""

ShapesOf = Callable[[Model], Shapes]


class Stage:
    """One stage: collect, edit its nodes, close. Made by `Stages`.

    Attributes:
        index: place among the stages, from 0.
        nodes: the nodes that the model had here when the run began.
    """

    def __init__(self, run: "Stages", index: int, nodes: Sequence[ir.Node]) -> None:
        self._run = run
        self.index = index
        self.nodes = tuple(nodes)

    def collect(self, stats: Iterable[Stat[Any]]) -> Collected:
        """Statistics of values that this stage makes or is fed with, of the model as it is now.

        Those of the dense side and of both are possible where the run has both.

        Raises:
            DataError: as `Context.collect`.
            ValueError: the stage is closed, or there is no dense side.
        """
        if self._run.stage is not self:
            raise ValueError(f"stage {self.index} is closed")
        return self._run.collect(list(dict.fromkeys(stats)))

    def sees(self, value: str) -> bool:
        """Whether a value of the current model can be looked at here: it is fed, or no later stage makes it."""
        return self._run.sees(value)

    def close(self) -> None:
        """Make what later stages read, with the stage as it is now.

        Where later edits change what left it, that is computed again from what they leave as it is.
        """
        if self._run.stage is self:
            self._run.stage = None
            self._run.finish()


class Stages:
    """Runs a model stage by stage, once: iterate over it.

    Each stage sees the model as it is then: on the dense side as it was when the run began, on the current side with
    all edits. Values that are no tensors are not handed on: their nodes run again where they are read.

    Costs: nodes * (a copy of the dense graph, 10 us each); on disk what `frontier_bytes` says.

    Args:
        model: the model, which passes edit meanwhile.
        statistics: collects and remembers.
        data: what is fed.
        shapes_of: infers a model's shapes at the sizes of the largest batch.
        segments: the stages; None: natural ones, see `analysis.cuts`.
        sides: current alone, or both.

    Attributes:
        stage: the one that is open.
    """

    def __init__(
        self, model: Model, statistics: Statistics, data: Dataset, shapes_of: ShapesOf,
        segments: Sequence[Segment] | None = None, sides: Sequence[Side] = ("dense", "current"),
    ) -> None:  # fmt: skip
        self._statistics, self._data = statistics, data
        self._segments = list(stages(model) if segments is None else segments)
        self._frontier = Frontier(statistics.runner.folder / statistics.runner.fresh("frontier"))
        self._lines: dict[Side, Line] = {}
        self._nodes: dict[Side, list[set[ir.Node]]] = {}
        self.stage: Stage | None = None
        self._begun = False
        self._index = 0
        for side in sides:
            own, copies = (model, None) if side == "current" else copied(model)
            parts = [{copies[node] if copies else node for node in segment.nodes} for segment in self._segments]
            self._nodes[side] = parts
            self._lines[side] = Line(side, own, set().union(*parts), shapes_of, self._frontier)

    def __len__(self) -> int:
        return len(self._segments)

    @contextlib.contextmanager
    def running(self) -> Iterator[Iterator[Stage]]:
        """The stages in order, for whoever may not want them all: at the end of the block nothing is left on disk."""
        run = iter(self)
        try:
            yield run
        finally:
            self._end()

    def __iter__(self) -> Iterator[Stage]:
        """The stages in order; one that is left open is closed when the next is asked for."""
        if self._begun:
            raise ValueError("these stages have been run; ask the context for new ones")
        self._begun = True
        try:
            self._check_disk()
            for index, segment in enumerate(self._segments):
                for side, line in self._lines.items():
                    line.begin(self._nodes[side][index])
                stage = self.stage = Stage(self, index, segment.nodes)
                self._index = index
                yield stage
                stage.close()
        finally:
            self._end()

    def _end(self) -> None:
        self.stage = None
        self._frontier.close()

    @property
    def peak_bytes(self) -> int:
        """The most bytes that were on disk between stages."""
        return self._frontier.peak_bytes

    def collect(self, stats: Sequence[Stat[Any]]) -> Collected:
        """See `Stage.collect`."""
        asked = {side for stat in stats for side, _ in stat.looks}
        if missing := asked - self._lines.keys():
            raise ValueError(f"these stages have no {missing.pop()} side")
        # What has not left the stage has to run anyway, and both sides may be the same.
        return self._go([line for side, line in self._lines.items() if side in asked or not line.is_done()], stats)

    def sees(self, value: str) -> bool:
        """See `Stage.sees`."""
        return self._lines["current"].sees(value)

    def finish(self) -> None:
        """Let every side leave the stage."""
        self._go([line for line in self._lines.values() if not line.is_done()], [])
        for line in self._lines.values():
            line.leave()

    def _go(self, lines: Sequence[Line], stats: Sequence[Stat[Any]]) -> Collected:
        """Run a stage for statistics, and write what leaves it on those sides where that is still to be done."""
        if not lines:
            return Collected({})
        sights = {line.side: line.look() for line in lines}
        twins = len(lines) == 2 and _same(sights, stats)
        unwritten = [line for line in lines if not line.is_done()]
        writers = [line for line in unwritten if line.side == "dense" or not twins]
        try:
            places = {line.side: files for line in writers if (files := line.open())}
            found = self._statistics.collect(self._work(sights, places, twins), stats, places, self._admit)
        except BaseException:
            for line in writers:
                line.abandon()
            raise
        for line in writers:
            line.close()
        for line in unwritten:
            if line not in writers:
                line.share(self._lines["dense"])
        return found

    def _work(self, sights: Mapping[Side, Sight], places: Mapping[Side, Mapping[str, str]], twins: bool) -> Work:
        parts: dict[Side, Part] = {side: sight.part for side, sight in sights.items()}
        kept = sum(parts[side].nbytes(name) or 0 for side, files in places.items() for name in files)
        return Work(
            {"dense": parts["dense"]} if twins else parts, self._feeds, self._data.batch_count, self._data.samples,
            kept=kept, what=f"stage {self._index + 1} of {len(self)}",
        )  # fmt: skip

    def _feeds(self, names: Names) -> Iterator[Fed]:
        """All batches: graph inputs from the data, all other values from where they lie."""
        inputs = {info.name for info in self._data.signature.inputs}
        if self._data.mask is None and inputs.isdisjoint(name for wanted in names.values() for name in wanted):
            for at in range(self._data.batch_count):
                yield Fed({side: {name: self._lines[side].place(name, at) for name in names[side]} for side in names})
            return
        for batch in self._data.batches():
            yield Fed(
                {
                    side: {
                        name: batch.feeds[name] if name in inputs else self._lines[side].place(name, batch.index)
                        for name in wanted if name not in inputs or name in batch.feeds
                    }
                    for side, wanted in names.items()
                },
                batch.mask,
            )  # fmt: skip

    def _admit(self, kept: Kept) -> None:
        for (side, name), place in kept.items():
            self._lines[side].admit(name, place)

    def frontier_bytes(self) -> int | None:
        """Bytes on disk at most, for all samples and sides, as far as sizes are known; None where they are not.

        When a stage has run, what it was fed with and what leaves it are there at once.
        """
        part = next(iter(self._lines.values())).look().part
        made = [[value for value in border if value.producer() is not None] for border in frontier(self._segments)]
        borders = [set[str](), *({value.name or "" for value in border} for border in made)]
        sizes: dict[str, int] = {}
        for name in set().union(*borders):
            size = part.nbytes(name)
            if size is None and part.is_tensor(part.values[name]) is not False:
                return None
            sizes[name] = size or 0
        most, shapes = 0, part.shapes
        for before, after in zip(borders, [*borders[1:], set[str]()], strict=True):
            most = max(most, sum(self._of_all(sizes[name], shapes.concrete(name) or ()) for name in before | after))
        return most * len(self._lines)

    def _of_all(self, size: int, shape: tuple[int, ...]) -> int:
        """Bytes of all batches where the largest takes so many: in proportion, if the first axis counts samples."""
        data = self._data
        if shape and shape[0] == data.largest_batch:
            return -(-size * data.samples // data.largest_batch)
        return size * data.batch_count

    def _check_disk(self) -> None:
        """Tell what it will take, and refuse what there is no room for."""
        needed, folder = self.frontier_bytes(), self._statistics.runner.folder
        if needed is None:
            logger.info("%d stages: the sizes of values between them are unknown", len(self))
            return
        free = free_bytes(folder)
        what = f"{self._data.samples} samples in {len(self)} stages: up to {needed >> 20} MiB on disk between them"
        if needed > _WORTH_TELLING:
            self._statistics.note(what)
        else:
            logger.info(what)
        if needed * _SPARE > free:
            raise DataError(
                f"values between stages need {needed >> 20} MiB in {folder}, where {free >> 20} MiB are free: "
                "give fewer calibration samples, or name another work folder"
            )


def _same(sights: Mapping[Side, Sight], stats: Sequence[Stat[Any]]) -> bool:
    """Whether all that is looked at or leaves is the same on both sides."""
    dense, current = sights["dense"], sights["current"]
    leaving = [{value.name: digest for value, digest in sight.leaving.items()} for sight in (dense, current)]
    return leaving[0] == leaving[1] and all(
        name in dense.part.values and name in current.part.values
        and dense.part.digest(name) == current.part.digest(name)
        for stat in stats for _, name in stat.looks
    )  # fmt: skip
