"""How far two variants of a model are apart in the reference session, on one small input."""

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt import comparing
from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.analysis.parameters import stored_bytes
from onnxopt.backends import machine
from onnxopt.backends.jobs import drop_sessions, latency, run_afresh, run_batches
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker
from onnxopt.chance import Seeded, seeded
from onnxopt.comparing import TIGHT, Noise, Outputs
from onnxopt.data import fitting, synthetic
from onnxopt.data.synthetic import LEAST
from onnxopt.errors import ModelError, OnnxOptError
from onnxopt.model import Model

logger = logging.getLogger(__name__)

Feed = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_QUIET = Noise({}, frozenset())

_PATIENCE = 120.0
"""Seconds after which one run is ended."""

_SEARCH = 60.0
"""Seconds for finding an input."""

_SEEDS = range(4)
"""Of random inputs of one size: outputs must not be the same for all of them."""

_OTHERS = (101, 102)
"""Seeds of other random inputs."""

_NOISE = (SessionMode.NOISE_ALL, SessionMode.NOISE_NONE)

_DULL = 6
"""After so many sizes at which outputs are the same for all inputs, no others are tried."""


class Variants:
    """Runs variants of one model, which differ in their weights and nodes but not in their inputs.

    Both are written to files, weights streamed, and opened from there, so they may be of any size.

    Args:
        folder: where files go while they are compared; None: a temporary folder.
        worker: where sessions run; None: in this process.
        sample: gives the input to run on; None, or where it gives None: random inputs, the smallest at which the model
            runs and its outputs depend on them.
        given: input name -> shape of random inputs that is not up for change.
        known: the same where the model is known to run, in case it does not on smaller ones.
        timed: gives the input that is timed; None: a random one of the known sizes.
    """

    def __init__(
        self, folder: Path | None = None, worker: Worker | None = None, *,
        sample: Callable[[], Feed | None] | None = None, given: Shapes | None = None, known: Shapes | None = None,
        timed: Callable[[], Feed] | None = None,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._worker = worker
        self._sample = sample
        self._given = dict(given or {})
        self._known = dict(known or {})
        self._timed = timed
        self._deadline: float | None = None
        self._feed: Feed | None = None
        self.why = ""
        """Why nothing was measured, or the drift is infinite."""

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the input that variants are run on, once there is one."""
        return {name: np.shape(array) for name, array in (self._feed or {}).items()}

    def drift(self, before: Model, after: Model) -> float | None:
        """Worst relative L2 over outputs and samples; of integers, texts and booleans the share that differs.

        Infinite where the second does not run, or its outputs have other types or sizes. Where it is more than
        rounding, what the runtime's own optimizations do to the first is left out (8 times), and it is the least over
        a few random inputs.

        Args:
            before: the variant that is held to be right.
            after: the other; it may be the same object.

        Returns:
            The drift. None where the first runs on no input that was tried, gives NaN, or the same whatever the input;
            or where there is no memory for its session.
        """
        self.why = ""
        with self._place() as folder:
            try:
                first = self._written(before, folder / "drift-before.onnx")
                outputs = self._outputs(first, self._input(before, first))
                if comparing.first_nan([outputs]) is not None:
                    raise ModelError("it gives NaN")
            except Exception as error:  # rules and passes are what is tried here: they may fail in any way
                self.why = _told(error, folder)
                logger.info("two variants were not compared: %s", self.why)
                return None
            try:
                second = first if after is before else self._written(after, folder / "drift-after.onnx")
                return self._apart(before, first, second, outputs)
            except Exception as error:
                self.why = _told(error, folder)
                logger.info("a variant does not run: %s", self.why)
                return inf

    def times(self, models: Sequence[Model], seconds: float = 2.0) -> list[float] | None:
        """Median seconds of one run of each variant as deployed, in turn: the first's, times the median of ratios.

        None where there is no worker, no room, no input on which the first runs, or where one does not run.
        """
        if self._worker is None:
            return None
        with self._place() as folder:
            try:
                paths = [folder / f"drift-{at}.onnx" for at in range(len(models))]
                for path, model in zip(paths, models, strict=True):
                    if not machine.has_room(len(models) * machine.session_bytes(stored_bytes(model))):
                        return None
                    model.save(path)
                feed = self._timed() if self._timed is not None else None
                if feed is None:
                    rng = np.random.default_rng(0)
                    signature = models[0].signature
                    feed = synthetic(signature, self._known, index_bounds(models[0]), 1, rng).first().feeds
                found = self._worker.call(latency, [str(path) for path in paths], dict(feed), seconds)
            except OnnxOptError as error:
                self.why = _told(error, folder)
                return None
            return [found[0].p50 * (1.0 if each is found[0] else each.ratio.median) for each in found]

    def _apart(self, before: Model, first: Seeded, second: Seeded, outputs: Outputs) -> float | None:
        """The drift on the input; where it is large, what is left of it beside noise, and on other inputs.

        A wrong removal shows on every input; a value that falls on the other side of a rounding step on some.
        """
        feed = self._feed or {}
        least = self._measured(outputs, self._outputs(second, feed), _QUIET)
        if least <= TIGHT or second is first:
            return least
        own = comparing.noise(*([self._outputs(first, feed, mode=mode)] for mode in _NOISE))
        if all(own.relative.get(name, 0.0) > comparing.WAVERING for name in outputs):
            self.why = "the runtime's own optimizations change all that it gives"
            return None
        least = self._beside(outputs, self._outputs(second, feed), own)
        for seed in _OTHERS if self._sample is None and TIGHT < least < inf else ():
            sizes = {name: np.shape(array) for name, array in feed.items()}
            other = (
                synthetic(before.signature, sizes, index_bounds(before), 1, np.random.default_rng(seed)).first().feeds
            )
            least = min(least, self._beside(self._outputs(first, other), self._outputs(second, other), own))
        return least

    def _beside(self, one: Outputs, other: Outputs, own: Noise) -> float:
        """The drift beyond 8 times what the runtime's own optimizations do."""
        return max(0.0, self._measured(one, other, own) - 8 * max(own.relative.values(), default=0.0))

    def _measured(self, one: Outputs, other: Outputs, own: Noise) -> float:
        found = comparing.measure([one], [other], own)
        self.why = found.broken[0] if found.broken else "" if found.drift < inf else "outputs of other sizes"
        return inf if found.broken else float(found.drift)

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """The folder for files, which are gone in the end."""
        if self._folder is None:
            with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
                try:
                    yield Path(folder)
                finally:
                    drop_sessions()
            return
        try:
            yield self._folder
        finally:
            for path in self._folder.glob("drift-*.onnx*"):
                path.unlink()

    def _written(self, model: Model, path: Path) -> Seeded:
        """The variant as a file in which nothing is left to chance."""
        needed = machine.session_bytes(stored_bytes(model))
        if not machine.has_room(needed):
            raise ModelError(f"its session needs about {needed / 2**30:.1f} GiB, which are not free")
        model.save(path)
        return seeded(path, path.with_name(f"{path.stem}-seeded.onnx"))

    def _outputs(
        self, variant: Seeded, feed: Feed, seconds: float = _PATIENCE, mode: SessionMode = SessionMode.REFERENCE
    ) -> Outputs:
        job = run_afresh if variant.draws else run_batches
        arguments = (str(variant.path), mode, [dict(feed)])
        if self._worker is None:
            return job(*arguments)[0]
        found: list[Outputs] = self._worker.call(job, *arguments, timeout=seconds)
        return found[0]

    def _input(self, model: Model, variant: Seeded) -> Feed:
        """The input that all variants are run on; found with the first one that runs.

        Raises:
            ModelError: there is none.
        """
        if self._feed is None and self._sample is not None:
            self._feed = self._sample()
        if self._feed is None:
            self._feed = self._found(model, variant)
        return self._feed

    def _found(self, model: Model, variant: Seeded) -> Feed:
        """The smallest random input on which the model runs and says something."""
        self._deadline = self._deadline or time.monotonic() + _SEARCH
        search = _Search(model, lambda feed: self._in_time(variant, feed))
        open_ranks = {info.name for info in model.signature.inputs if info.shape is None} - self._given.keys()
        given = {**{name: shape for name, shape in self._known.items() if name in open_ranks}, **self._given}
        bounds = index_bounds(model)
        if fitting(model.signature, given, bounds, search.tells, LEAST) is None:
            usual = synthetic(model.signature, {**self._known, **self._given}, bounds, 1, np.random.default_rng(0))
            if not search.tells(usual.first().feeds):
                fitting(model.signature, given, bounds, search.tells)
        if search.found is None:
            raise ModelError(search.why)
        return search.found

    def _in_time(self, variant: Seeded, feed: Feed) -> Outputs:
        left = (self._deadline or 0.0) - time.monotonic()
        if left <= 0:
            raise ModelError(f"no input was found in {_SEARCH:.0f} s")
        return self._outputs(variant, feed, left)


class _Search:
    """Looks for an input on which a model runs, and on which its outputs depend."""

    def __init__(self, model: Model, run: Callable[[Feed], Outputs]) -> None:
        self._signature = model.signature
        self._bounds = index_bounds(model)
        self._run = run
        self._dull = 0
        self.found: Feed | None = None
        self.why = ""

    def tells(self, feed: Feed) -> bool:
        """Whether an input of these sizes is found."""
        if self._dull >= _DULL:
            return False
        sizes = {name: np.shape(array) for name, array in feed.items()}
        ran: list[tuple[Feed, Outputs]] = []
        for seed in _SEEDS:
            drawn = synthetic(self._signature, sizes, self._bounds, 1, np.random.default_rng(seed)).first().feeds
            try:
                outputs = self._run(drawn)
            except OnnxOptError as error:
                self.why = self.why or str(error)
                return False
            if comparing.first_nan([outputs]) is None:
                ran.append((drawn, outputs))
            if len(ran) > 1 and comparing.measure([ran[0][1]], [outputs], _QUIET).drift > 0:
                self.found = ran[0][0]
                return True
        self._dull += 1
        self.why = "its outputs are the same for all random inputs" if ran else "it gives NaN on random inputs"
        return False


def _told(error: Exception, folder: Path) -> str:
    """What went wrong, without the names of files that are gone when it is read."""
    text = str(error) if isinstance(error, OnnxOptError) else f"{type(error).__name__}: {error}"
    return re.sub(re.escape(str(folder)) + r"\S*: ", "", text)
