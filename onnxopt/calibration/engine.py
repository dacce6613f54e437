"""What a context's `collect` and `stages` do: one object for a run, which remembers what it has collected."""

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxopt.analysis.cones import Cones
from onnxopt.analysis.cuts import Segment, stages
from onnxopt.analysis.parameters import stored_bytes
from onnxopt.analysis.shapes import Shapes, infer
from onnxopt.backends import machine
from onnxopt.backends.worker import Worker
from onnxopt.calibration.collecting import Statistics, Work
from onnxopt.calibration.probing import Probe
from onnxopt.calibration.running import Part, Runner, Tell, from_data
from onnxopt.calibration.staging import Stages
from onnxopt.data import Dataset
from onnxopt.errors import DataError
from onnxopt.model import Model
from onnxopt.statistics import Collected, Side, Stat
from onnxopt.statistics.stat import FOLD

_PER_STAGE = 8
"""Of what is free, the weights of a part of a model whose session does not fit take one of so many parts, at most."""

_PARTS = 8
"""A value of the model that is run by stages takes one of so many parts of the memory allowed, at most."""


class Calibration:
    """Statistics of a run's models on its calibration data.

    Args:
        data: calibration data; None: none were given.
        folder: for models, results and values between stages; None: a temporary one.
        worker: where sessions run; None: in this process.
        budget: bytes that values, sums and temporaries of one pass over the data may take; None: see `Statistics`.
        tell: progress.
    """

    def __init__(
        self, data: Dataset | None, folder: Path | None = None, worker: Worker | None = None,
        budget: int | None = None, tell: Tell | None = None,
    ) -> None:  # fmt: skip
        self._data, self._folder, self._worker, self._budget, self._tell = data, folder, worker, budget, tell

    @cached_property
    def statistics(self) -> Statistics:
        """What runs models and remembers; its folder is made when it is first asked for."""
        folder = self._folder
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="onnxopt-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Statistics(Runner(folder, self._worker, self._tell), self._budget)

    @property
    def samples(self) -> int:
        """How many real ones there are."""
        return 0 if self._data is None or self._data.is_synthetic else self._data.samples

    def notes(self) -> list[str]:
        """What a reader of the report should know, said once."""
        notes = list(self.statistics.notes) if "statistics" in self.__dict__ else []
        if notes:
            self.statistics.notes.clear()
        return notes

    def collect(self, model: Model, stats: Iterable[Stat[Any]]) -> Collected:
        """See `passing.Context.collect`."""
        # Without stages the model has one side, whatever it is called.
        asked = {stat: _of_one_side(stat) for stat in stats}
        if any(stat.two_sided for stat in asked):
            raise ValueError("statistics of the dense and the current model are collected stage by stage")
        data = self._checked()
        if data.batch_count < FOLD and any(stat.share != "all" for stat in asked):
            data = data.rebatched(data.samples // FOLD)
        return self._collected(model, data, list(dict.fromkeys(asked.values()))).under(asked)

    def _collected(self, model: Model, data: Dataset, stats: Sequence[Stat[Any]]) -> Collected:
        work = self._work(model, data)
        missing = self.statistics.missing(work, stats)
        if missing and data.divisible and data.largest_batch > 1:
            fitting = self.statistics.rows_at_once(work, missing, data.largest_batch)
            if fitting < data.largest_batch:
                data = data.rebatched(fitting)
                work = self._work(model, data)
        if not missing or machine.has_room(machine.session_bytes(stored_bytes(model))):
            return self.statistics.collect(work, stats)
        # What is known must not be collected anew.
        known = self.statistics.collect(work, [stat for stat in stats if stat not in missing])
        return known | self._by_stages(model, data, missing)

    def stages(
        self, model: Model, cuts: Sequence[str] | None = None, most_bytes: int | None = None,
        sides: Sequence[Side] = ("dense", "current"),
    ) -> Stages:  # fmt: skip
        """See `passing.Context.stages`."""
        data = self._divided(model, self._checked())
        return self._staged(model, data, stages(model, cuts=cuts, most_bytes=most_bytes), sides)

    def probe(self, model: Model, samples: int) -> Probe:
        """See `passing.Context.probe`."""
        folder = self.statistics.runner.folder / "probe"
        return Probe(model, self._checked(), samples, folder, self._worker)

    def _divided(self, model: Model, data: Dataset) -> Dataset:
        """The data in batches of which the largest value of the model takes but a part of the memory allowed.

        What will be asked for is not known beforehand.
        """
        part = self._work(model, data).part("current")
        largest = max((size for name in part.values if (size := part.nbytes(name)) is not None), default=0)
        fitting = self.statistics.bytes_allowed * data.largest_batch // max(1, _PARTS * largest)
        if data.batch_count == 1:  # so that fits can be checked on batches of their own, see `Stat.share`
            fitting = min(fitting, data.samples // FOLD)
        return data.rebatched(max(1, fitting)) if fitting < data.largest_batch and data.divisible else data

    def _staged(self, model: Model, data: Dataset, segments: Sequence[Segment], sides: Sequence[Side]) -> Stages:
        return Stages(model, self.statistics, data, lambda each: _shapes(each, data), segments, sides)

    def _by_stages(self, model: Model, data: Dataset, stats: Sequence[Stat[Any]]) -> Collected:
        """Of a model whose session does not fit: part by part, as far as it takes."""
        segments = stages(model, most_bytes=machine.free_memory_bytes() // _PER_STAGE)
        found, left = Collected({}), list(stats)
        with self._staged(model, data, segments, ("current",)).running() as run:
            while left:
                stage = next(run)
                here = [stat for stat in left if all(stage.sees(name) for _, name in stat.looks)]
                found |= stage.collect(here)
                left = [stat for stat in left if stat not in here]
        return found

    def _work(self, model: Model, data: Dataset) -> Work:
        inputs = frozenset(value for value in model.graph.inputs if not value.is_initializer())
        part = Part(model, inputs, _shapes(model, data), Cones(model))
        return Work({"current": part}, from_data(data), data.batch_count, data.samples)

    def _checked(self) -> Dataset:
        if self._data is None or not self._data.samples:
            raise DataError("this needs calibration data: give data.calibration (--data)")
        return self._data


def _of_one_side(stat: Stat[Any]) -> Stat[Any]:
    return replace(stat, side="current", others=tuple(("current", name) for _, name in stat.others))


def _shapes(model: Model, data: Dataset) -> Shapes:
    """Shapes at the sizes of the largest batch."""
    return infer(model, data.largest_shapes(), thorough=True)
