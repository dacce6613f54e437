"""Runs parts of a model over all batches and hands what comes out to statistics, in the worker."""

import logging
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxopt.analysis.cones import Cones
from onnxopt.analysis.extraction import extracted, upstream
from onnxopt.analysis.shapes import Shapes
from onnxopt.analysis.structure import topological
from onnxopt.backends.worker import Worker
from onnxopt.calibration import jobs
from onnxopt.calibration.jobs import Kept, Outcome, Task
from onnxopt.data import Dataset
from onnxopt.model import Model
from onnxopt.statistics import Side, Stat
from onnxopt.statistics.masks import Mask

logger = logging.getLogger(__name__)

_UNKNOWN = 16
"""Bytes of an entry whose type does not tell."""

Tell = Callable[[int, int, str], None]
Names = Mapping[Side, Sequence[str]]
Paths = Mapping[Side, Mapping[str, str]]


@dataclass(frozen=True)
class Fed:
    """What one batch feeds.

    Attributes:
        values: side -> value name -> array, or where it lies (`frontier`). One side alone stands for both.
        mask: which samples or tokens count; None: all.
    """

    values: Mapping[Side, Mapping[str, Any]]
    mask: Mask | None = None


Feeds = Callable[[Names], Iterator[Fed]]
"""All batches, with the values of these names."""


def from_data(data: Dataset) -> Feeds:
    """The batches of a dataset, as one side's graph inputs."""

    def feeds(names: Names) -> Iterator[Fed]:
        ((side, wanted),) = names.items()
        for batch in data.batches():
            yield Fed({side: {name: batch.feeds[name] for name in wanted if name in batch.feeds}}, batch.mask)

    return feeds


@dataclass(frozen=True, eq=False)
class Part:
    """What can be run of one side's model: nodes between values that are available and those that are wanted.

    Attributes:
        model: the model.
        available: its values that are fed.
        shapes: of its values, at the sizes of the largest batch.
        cones: digests of what computes its values.
        types: of available values, as they turned out to be.
        order: the model's nodes in an order in which they run; None: found here.
        named: see `observable`; None: found here.
    """

    model: Model
    available: frozenset[ir.Value]
    shapes: Shapes
    cones: Cones
    types: Mapping[ir.Value, ir.DataType] = field(default_factory=dict)
    order: Sequence[ir.Node] | None = None
    named: Mapping[str, ir.Value] | None = None

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Element type of a value; None where unknown."""
        return self.types.get(value) or self.shapes.dtype(value) or value.dtype

    def is_tensor(self, value: ir.Value) -> bool | None:
        """Whether a value is a tensor; None where unknown."""
        return True if value in self.types else self.shapes.is_tensor(value)

    def entry(self, name: str) -> int:
        """Bytes of an entry of a value; of texts and of what is of unknown type, a guess."""
        dtype = self.dtype(self.values[name])
        return _UNKNOWN if dtype is None or dtype == ir.DataType.STRING else math.ceil(dtype.itemsize)

    def nbytes(self, name: str) -> int | None:
        """Bytes of the largest batch of a value; None where unknown."""
        shape = self.shape(name)
        return None if shape is None else math.prod(shape) * self.entry(name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a value in the largest batch; None where unknown."""
        return self.shapes.concrete(self.values[name])

    def digest(self, name: str) -> str:
        """Digest of what computes a value."""
        return self.cones.digest(self.values[name])

    @cached_property
    def values(self) -> Mapping[str, ir.Value]:
        """The values of the main graph that can be looked at, by name."""
        return observable(self.model) if self.named is None else self.named

    def made(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of some values that have to be computed."""
        return tuple(name for name in names if self.values[name] not in self.available)

    def cut(self, names: Iterable[str]) -> tuple[Model | None, list[str], int]:
        """What computes some values; the names that it reads or that need no computing; how many nodes it has."""
        wanted = [self.values[name] for name in dict.fromkeys(names)]
        made = [value for value in wanted if value not in self.available]
        needed = upstream(made, self.available)
        nodes = [node for node in self.order or topological(self.model.graph) if node in needed]
        given = [value.name or "" for value in wanted if value in self.available]
        if not nodes:
            return None, given, 0
        model = extracted(self.model, nodes, self.available, made, self.dtype)
        return model, list(dict.fromkeys([*given, *(info.name for info in model.signature.inputs)])), len(nodes)


def observable(model: Model) -> dict[str, ir.Value]:
    """The values of the main graph that can be looked at, by name: inputs and what nodes make."""
    graph = model.graph
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return {value.name: value for value in values if value.name and not value.is_initializer()}


@dataclass
class Runner:
    """Runs parts of models, in the worker where there is one.

    Attributes:
        folder: for models and results.
        worker: where sessions run; None: in this process.
        tell: progress.
        counts: statistic -> how often it was added up over all data.
        nodes: side -> how many nodes were run over all data.
    """

    folder: Path
    worker: Worker | None = None
    tell: Tell | None = None
    counts: Counter[Stat[Any]] = field(default_factory=Counter)
    nodes: Counter[Side] = field(default_factory=Counter)
    _files: int = 0
    _token: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        """Results are read later, whatever the current folder is then."""
        self.folder = self.folder.absolute()

    def run(
        self, parts: Mapping[Side, Part], stats: Sequence[Stat[Any]], feeds: Feeds, batches: int,
        keep: Paths | None = None, kept: Callable[[Kept], None] | None = None, what: str = "",
    ) -> dict[Stat[Any], Outcome]:  # fmt: skip
        """One pass over the data.

        Args:
            parts: what is run; one side alone stands for both.
            stats: what is added up.
            feeds: the batches.
            batches: how many there are.
            keep: side -> value that is wanted whole -> file that its batches are appended to.
            kept: called after each batch with where they are.
            what: told with the progress.

        Raises:
            DataError: NaN or infinity in what counts, or feeds that do not fit.
            ModelError: a part does not load or run.
            WorkerDied: the worker ended, most likely for lack of memory.
        """
        wanted = {side: _wanted(side, parts, stats, list((keep or {}).get(side, ()))) for side in parts}
        models, given = dict[Side, str](), dict[Side, list[str]]()
        try:
            for side, part in parts.items():
                model, given[side], count = part.cut(wanted[side])
                if model is not None:
                    models[side] = self._written(model)
                    self.nodes[side] += count
            outputs = {side: parts[side].made(wanted[side]) for side in models}
            task = Task(models, outputs, tuple(stats), dict(keep or {}), str(self.folder), batches)
            self._call(jobs.begin, task, self.fresh())
            for at, fed in enumerate(feeds(given)):
                self._tell(at, batches, what)
                found = self._call(jobs.step, fed.values, fed.mask)
                if kept is not None:
                    kept(found)
            outcomes: list[Outcome] = self._call(jobs.finish)
            self._tell(batches, batches, what)
        finally:
            self._drop(models.values())
        self.counts.update(stats)
        return dict(zip(stats, outcomes, strict=True))

    def shapes(self, part: Part, names: Sequence[str], values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes of values in one run; those that are no tensors are left out."""
        model, _, _ = part.cut(names)
        shapes = {name: values[name].shape for name in names if name in values}
        if model is None:
            return shapes
        path = self._written(model)
        try:
            ran: dict[str, tuple[int, ...]] = self._call(jobs.shapes, path, dict(values), part.made(names))
            return shapes | ran
        finally:
            self._drop([path])

    def _written(self, model: Model) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.fresh()}.onnx"
        model.save(path)
        return str(path)

    def _tell(self, done: int, total: int, what: str) -> None:
        if self.tell is not None:
            self.tell(done, total, what)

    def fresh(self, kind: str = "calibration") -> str:
        """A name for a new file or folder."""
        # Results of an earlier run in the same folder may only be deleted later, when they are collected as garbage.
        self._files += 1
        return f"{kind}-{self._token}-{self._files:05d}"

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments) if self.worker is None else self.worker.call(function, *arguments)

    def _drop(self, models: Iterable[str]) -> None:
        """Close what is open and delete its files."""
        if self.worker is None or self.worker.pid is not None:
            self._call(jobs.drop)
        for path in map(Path, models):
            for file in (path, *path.parent.glob(f"{path.name}*.data")):
                file.unlink(missing_ok=True)


def _wanted(side: Side, parts: Mapping[Side, Part], stats: Sequence[Stat[Any]], keep: Sequence[str]) -> list[str]:
    """Names of the values of a side that are looked at."""
    of_side = [name for stat in stats for each, name in stat.looks if each == side or len(parts) == 1]
    return list(dict.fromkeys([*of_side, *keep]))
