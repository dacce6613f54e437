"""What the pipeline hands to a pass: analyses of the model as it is now, storage, a session, random numbers."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxopt.analysis.cost import Cost, cost
from onnxopt.analysis.linear import Linear, linears
from onnxopt.analysis.shapes import Shapes, infer
from onnxopt.analysis.skeleton import Dims
from onnxopt.backends.jobs import evaluate_bytes
from onnxopt.backends.target import Target
from onnxopt.backends.worker import Worker
from onnxopt.calibration.engine import Calibration
from onnxopt.calibration.probing import Probe
from onnxopt.calibration.staging import Stages
from onnxopt.data import Dataset
from onnxopt.edit import as_tensor
from onnxopt.model import Model
from onnxopt.overrides import Override, merged
from onnxopt.serialization import to_proto
from onnxopt.statistics import Collected, Side, Stat
from onnxopt.variants import Feed, Variants
from onnxopt.workdir import WorkDir

T = TypeVar("T")
Progress = Callable[[int, int, str], None]


class RunContext:
    """The context of one run.

    Without a worker, sessions run in this process; without a work folder, stored arrays stay in memory:
    enough for passes on small models and for tests.

    Args:
        model: the model that passes work on; replaced by `use` when it is read again from disk.
        sizes: input name -> shape of the first sample: what dynamic axes are for shapes and cost.
        observed: value name -> shape in a real run, where inference does not reach.
        sample: gives the input that variants are compared on; None, or where it gives None: a small random one.
        timed: gives the input that variants are timed with; None: a random one of those sizes.
        calibration: what statistics are collected on; None: no pass may ask for any.
        memory: bytes for statistics; None: a quarter of what is free.
    """

    def __init__(
        self,
        model: Model,
        *,
        worker: Worker | None = None,
        workdir: WorkDir | None = None,
        target: Target | None = None,
        overrides: Sequence[Override] = (),
        sizes: Mapping[str, tuple[int, ...]] | None = None,
        observed: Mapping[str, tuple[int, ...]] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        sample: Callable[[], Feed | None] | None = None,
        timed: Callable[[], Feed] | None = None,
        calibration: Dataset | None = None,
        memory: int | None = None,
    ) -> None:
        self._model = model
        self._worker = worker
        self._workdir = workdir
        self._overrides = tuple(overrides)
        self._sizes = dict(sizes or {})
        self._observed = dict(observed or {})
        self._progress = progress
        self._cache: dict[str, tuple[Model, int, Any]] = {}
        folder = None if workdir is None else workdir.folder
        self._variants = Variants(folder, worker, sample=sample, known=self._sizes, timed=timed)
        scratch = None if workdir is None else workdir.scratch
        self.calibration = Calibration(calibration, scratch, worker, memory, self.progress)
        self.target = target or Target(name="cpu")
        self.rng = np.random.default_rng(seed)

    def use(self, model: Model, seed: int) -> None:
        """Go on with another model object, and with random numbers that depend on the step alone."""
        self._model = model
        self.rng = np.random.default_rng(seed)

    def see(self, observed: Mapping[str, tuple[int, ...]]) -> None:
        """Take other observed shapes: those of a model that computes something else are worth nothing."""
        self._observed = dict(observed)
        self._cache.clear()

    @property
    def linears(self) -> list[Linear]:
        """All linear layers of the model as it is now."""
        return self._cached("linears", lambda: linears(self._model))

    @property
    def shapes(self) -> Shapes:
        """Shapes with the sizes of the first sample."""
        return self._cached("shapes", lambda: self.shapes_of(self._model))

    def shapes_of(self, model: Model) -> Shapes:
        """The same of another state of the model."""
        return self._inferred(model)

    @property
    def cost(self) -> Cost:
        """MACs, parameters and bytes at those sizes, followed by symbols where inference does not tell them."""
        return self._cached("cost", lambda: cost(self._model, self._inferred(self._model, thorough=True)))

    def _inferred(self, model: Model, *, thorough: bool = False) -> Shapes:
        """What inference reaches; what it leaves open as a real run showed it, which edits since may have changed."""
        found = infer(model, self._sizes, thorough=thorough)
        filled = {
            name: shape for name, seen in self._observed.items()
            if found.concrete(name) is None and (shape := _filled(found.of(name), seen)) is not None
        }  # fmt: skip
        return infer(model, self._sizes, filled, thorough=thorough) if filled else found

    def store(self, array: npt.NDArray[Any], dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """See `passing.Context.store`."""
        if self._workdir is not None:
            return self._workdir.store(array, dtype)
        if dtype is None:
            return as_tensor(array, None)
        return ir.Tensor(array.astype(dtype.numpy()), dtype=dtype)

    def evaluate(self, model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See `passing.Context.evaluate`."""
        content = _changed(model, _placed).SerializeToString()
        if self._worker is not None:
            outputs: dict[str, npt.NDArray[Any]] = self._worker.call(evaluate_bytes, content, dict(feeds))
            return outputs
        return evaluate_bytes(content, feeds)

    def drift(self, before: Model, after: Model) -> float | None:
        """See `passing.Context.drift`."""
        return self._variants.drift(before, after)

    @property
    def samples(self) -> int:
        """See `passing.Context.samples`."""
        return self.calibration.samples

    def collect(self, stats: Iterable[Stat[Any]]) -> Collected:
        """See `passing.Context.collect`."""
        return self.calibration.collect(self._model, stats)

    def stages(
        self, cuts: Sequence[str] | None = None, *, most_bytes: int | None = None,
        sides: Sequence[Side] = ("dense", "current"),
    ) -> Stages:  # fmt: skip
        """See `passing.Context.stages`."""
        return self.calibration.stages(self._model, cuts, most_bytes, sides)

    def probe(self, samples: int) -> Probe:
        """See `passing.Context.probe`."""
        return self.calibration.probe(self._model, samples)

    def times(self, models: Sequence[Model]) -> list[float] | None:
        """See `passing.Context.times`."""
        return self._variants.times(models)

    def overrides(self, name: str) -> Mapping[str, Any]:
        """See `passing.Context.overrides`."""
        return {key: value for key, value in merged(self._overrides, name).items() if key != "skip"}

    def skips(self, name: str) -> bool:
        """See `passing.Context.skips`."""
        return bool(merged(self._overrides, name).get("skip"))

    def progress(self, done: int, total: int, what: str = "") -> None:
        """See `passing.Context.progress`."""
        if self._progress is not None:
            self._progress(done, total, what)

    def _cached(self, key: str, make: Callable[[], T]) -> T:
        kept = self._cache.get(key)
        if kept is not None and kept[0] is self._model and kept[1] == self._model.revision:
            known: T = kept[2]
            return known
        value = make()
        self._cache[key] = (self._model, self._model.revision, value)
        return value


def embedded(model: ir.Model) -> onnx.ModelProto:
    """The model as one message that needs no other file: weights on disk are read in."""
    return _changed(model, lambda tensor: ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name))


def _placed(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """The same weight for another process, which reads it itself: its file's absolute path is its location."""
    return ir.ExternalTensor(
        os.path.abspath(tensor.path), tensor.offset, tensor.nbytes, tensor.dtype, shape=tensor.shape,
        name=tensor.name or "", base_dir="",
    )  # fmt: skip


def _filled(dims: Dims | None, seen: tuple[int, ...]) -> tuple[int, ...] | None:
    """A shape that was seen, but for the sizes that are known; None where it is of another rank."""
    if dims is None:
        return seen
    if len(dims) != len(seen):
        return None
    return tuple(known if isinstance(known, int) else size for known, size in zip(dims, seen, strict=True))


def _changed(model: ir.Model, change: Callable[[ir.ExternalTensor], ir.TensorProtocol]) -> onnx.ModelProto:
    """The model as a message with other tensors in place of those on disk."""
    graphs = (model.graph, *model.graph.subgraphs())
    values = [value for graph in graphs for value in graph.initializers.values()]
    held = [(value, value.const_value) for value in values if isinstance(value.const_value, ir.ExternalTensor)]
    try:
        for value, tensor in held:
            value.const_value = change(tensor)
        return to_proto(model)
    finally:
        for value, tensor in held:
            value.const_value = tensor
