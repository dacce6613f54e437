"""What the worker does for calibration: it runs batch after batch and adds what comes out to the states.

Whole activations never leave the worker: they are reduced where they are made.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxopt.backends import feeds
from onnxopt.backends.jobs import sessions
from onnxopt.backends.sessions import SessionMode, open_session, run_raw
from onnxopt.calibration.padding import placed
from onnxopt.calibration.places import Place, read, write
from onnxopt.calibration.results import Stored, put
from onnxopt.errors import DataError
from onnxopt.statistics import ConvCrossGram, ConvGram, ConvRegression, Side, Sides, Stat, State
from onnxopt.statistics.masks import Array, Mask, samples_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is done with every batch.

    Attributes:
        models: side -> file of what is run there. Where a side is missing, it is the same as the other one.
        outputs: side -> names of the values that this model gives.
        stats: what is added up.
        keep: side -> name of a value that is wanted whole -> file that it is appended to.
        folder: for results.
        batches: how many there are.
    """

    models: Mapping[Side, str]
    outputs: Mapping[Side, tuple[str, ...]]
    stats: tuple[Stat[Any], ...]
    keep: Mapping[Side, Mapping[str, str]]
    folder: str
    batches: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of one statistic.

    Attributes:
        stored: its result; None where there is none.
        why: why not.
        rows: how many rows counted.
        unmasked: whether there was a mask that could not be placed, so that padding counted.
    """

    stored: Stored[Any] | None
    why: str
    rows: int
    unmasked: bool


Kept = Mapping[tuple[Side, str], Place]
"""(side, value name) -> where the batch lies."""


class _Side:
    """A session, and the feeds that it takes."""

    def __init__(self, path: str, outputs: Sequence[str]) -> None:
        self.session = open_session(path, SessionMode.REFERENCE, threads=sessions.threads)
        self.inputs = {argument.name for argument in self.session.get_inputs()}
        self.outputs = outputs

    def run(self, values: Mapping[str, Any]) -> dict[str, ort.OrtValue]:
        given = {name: value for name, value in values.items() if name in self.inputs}
        return run_raw(self.session, given, self.outputs)


class _Run:
    """A task under way."""

    def __init__(self, task: Task, stem: str) -> None:
        sessions.clear()
        self.task, self.stem = task, stem
        self.sides = {side: _Side(path, task.outputs[side]) for side, path in task.models.items()}
        self.states: list[State[Any, Any]] = [stat.request.begin(stat.tensor) for stat in task.stats]
        self.unmasked: set[int] = set()
        self.refused: dict[int, str] = {}
        self.batch = 0

    def step(self, fed: Mapping[Side, Mapping[str, Any]], mask: Mask | None) -> Kept:
        """Run a batch; what is kept lies in files then."""
        values = {side: {name: _loaded(value) for name, value in each.items()} for side, each in fed.items()}
        made = {side: each.run(values[side]) for side, each in self.sides.items()}

        def look(side: Side, name: str) -> Any:
            side = side if side in values else next(iter(values))
            found = made.get(side, {}).get(name)
            return values[side].get(name) if found is None else _seen(found)

        for at, stat in enumerate(self.task.stats):
            self._add(at, [look(side, name) for side, name in stat.looks], mask)
        self.batch += 1
        return {
            (side, name): write(Path(path), _whole(look(side, name), name))
            for side, paths in self.task.keep.items()
            for name, path in paths.items()
        }

    def _add(self, at: int, looked: Sequence[Any], mask: Mask | None) -> None:
        """Add a batch to a state; one without the value does not count, and what is no number has no result."""
        stat, state = self.task.stats[at], self.states[at]
        if at in self.refused or any(each is None for each in looked):
            return
        if why := next((why for each in looked if (why := _not_numbers(each))), ""):
            self.refused[at] = f"tensor {stat.tensor!r}: {why}"
        elif not stat.counts(self.batch, self.task.batches):
            state.first_sample += samples_in(looked[0])  # so that samples keep their numbers
        else:
            batch = Sides(*looked) if stat.two_sided else tuple(looked) if stat.others else looked[0]
            state.update(batch, self._mask(at, mask, looked[0]))

    def _mask(self, at: int, mask: Mask | None, batch: Array) -> Mask | None:
        """The mask as the statistic takes it."""
        if mask is None:
            return None
        request = self.task.stats[at].request
        # Patches overlap: whole images count, or do not.
        patches = isinstance(request, ConvGram | ConvCrossGram | ConvRegression)
        shape = batch.shape[:1] if patches else batch.shape
        found = placed(mask, shape, channels=None if patches else getattr(request, "axis", None))
        if found is None:
            self.unmasked.add(at)
        return found

    def results(self) -> list[Outcome]:
        """What was found; where there is nothing, why."""
        found = []
        for at, state in enumerate(self.states):
            stored, why = None, self.refused.get(at, "")
            try:
                if not why:
                    stored = put(state.result(), Path(self.task.folder) / f"{self.stem}-{at:05d}.bin")
            except DataError as error:
                why = str(error)
            found.append(Outcome(stored, why, state.rows, at in self.unmasked))
        return found


def _loaded(value: Any) -> Any:
    return read(value) if isinstance(value, Place) else value


def _seen(value: ort.OrtValue) -> Any:
    """An array without a copy; None for an optional value that is not there; what is no tensor as it is."""
    return value if value.has_value() and not value.is_tensor() else feeds.viewed(value)


def _not_numbers(value: Any) -> str:
    """Why there are no statistics of what a model gave; empty where there are."""
    if not isinstance(value, np.ndarray):
        return "it is no tensor"
    return "" if np.can_cast(value.dtype, np.float64) else f"statistics need real numbers, not {value.dtype}"


def _whole(value: Any, name: str) -> Array:
    if not isinstance(value, np.ndarray):
        raise DataError(f"{name!r}, between two stages, is no tensor and of unknown type: name other values to cut at")
    return value


_running: _Run | None = None


def begin(task: Task, stem: str) -> None:
    """Open the sessions of a task, in place of those of the last one.

    Args:
        task: what is to be done.
        stem: of the names of its results' files.
    """
    global _running
    _running = None
    _running = _Run(task, stem)


def step(values: Mapping[Side, Mapping[str, Any]], mask: Mask | None = None) -> Kept:
    """Run one batch."""
    assert _running is not None
    return _running.step(values, mask)


def finish() -> list[Outcome]:
    """The results of the task, in the order of its statistics; its sessions are closed."""
    global _running
    assert _running is not None
    running, _running = _running, None
    running.sides.clear()
    return running.results()


def drop() -> None:
    """Forget the task that is under way, if there is one."""
    global _running
    _running = None


def shapes(path: str, values: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of some of a model's outputs in one run; those that are no tensors are left out."""
    sessions.clear()
    found = _Side(path, names).run({name: _loaded(value) for name, value in values.items()})
    return {name: tuple(value.shape()) for name, value in found.items() if value.has_value() and value.is_tensor()}
