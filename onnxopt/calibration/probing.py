"""How far variants of a model are from it at its outputs, on some calibration samples: what choices are ranked by."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.backends.jobs import sessions
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.backends.worker import Worker
from onnxopt.calibration.places import Place, read, write
from onnxopt.data import Dataset
from onnxopt.errors import DataError
from onnxopt.model import Model

_FED = 64 << 20
"""Bytes of inputs at most, which travel for every variant."""

Feeds = Sequence[Mapping[str, Any]]


class Probe:
    """The outputs of a model on some samples, and how far variants are from them.

    Args:
        model: what variants are compared with, as it is now.
        data: calibration data.
        samples: how many of them; fewer where they are large.
        folder: for files.
        worker: where sessions run; None: in this process.

    Raises:
        DataError: the model gives no real numbers that vary.
    """

    def __init__(self, model: Model, data: Dataset, samples: int, folder: Path, worker: Worker | None = None) -> None:
        self._folder, self._worker = folder, worker
        self._feeds = list(_fitting(data.take(samples)))
        folder.mkdir(parents=True, exist_ok=True)
        self._outputs = folder / "outputs.bin"
        self._outputs.unlink(missing_ok=True)
        self._places: list[dict[str, Place]] = self._run(model, reference, str(self._outputs))
        if not any(self._places):
            raise DataError("the model has no output of real numbers to measure variants by")

    def distortion(self, variant: Model) -> float:
        """Squared error of the variant's outputs relative to what the model's own are about their mean.

        Over all samples, averaged over outputs of real numbers; infinite where the variant gives NaN.

        Raises:
            ModelError: the variant does not run.
        """
        return float(self._run(variant, deviation, self._places))

    def close(self) -> None:
        """Delete the files."""
        self._outputs.unlink(missing_ok=True)

    def _run(self, model: Model, function: Any, *arguments: Any) -> Any:
        path = self._folder / "variant.onnx"
        model.save(path)
        try:
            call = (str(path), self._feeds, *arguments)
            return function(*call) if self._worker is None else self._worker.call(function, *call)
        finally:
            for file in (path, *path.parent.glob(f"{path.name}*.data")):
                file.unlink(missing_ok=True)


def _fitting(data: Dataset) -> Iterable[Mapping[str, Any]]:
    """Batches until they are too many to be sent again and again."""
    total = 0
    for batch in data.batches():
        total += sum(np.asarray(array).nbytes for array in batch.feeds.values())
        if total > _FED and batch.index:
            return
        yield batch.feeds


def reference(path: str, feeds: Feeds, file: str) -> list[dict[str, Place]]:
    """The outputs of real numbers, each batch, written to a file."""
    sessions.clear()
    session = open_session(path, SessionMode.DEPLOYED, threads=sessions.threads)
    return [
        {name: write(Path(file), array) for name, array in run(session, values).items() if _is_real(array)}
        for values in feeds
    ]


def deviation(path: str, feeds: Feeds, places: Sequence[Mapping[str, Place]]) -> float:
    """See `Probe.distortion`."""
    sessions.clear()
    session = open_session(path, SessionMode.DEPLOYED, threads=sessions.threads)
    errors, sums, squares, counts = ({name: 0.0 for name in places[0]} for _ in range(4))
    for values, there in zip(feeds, places, strict=True):
        found = run(session, values)
        for name, place in there.items():
            known, array = read(place).astype(np.float64), np.asarray(found[name], np.float64)
            if known.shape != array.shape:
                return np.inf
            errors[name] += float(np.sum((array - known) ** 2))
            sums[name] += float(known.sum())
            squares[name] += float(np.sum(known**2))
            counts[name] += known.size
    spreads = {name: squares[name] - sums[name] ** 2 / max(counts[name], 1) for name in errors}
    shares = [errors[name] / spread if spread > 0 else 0.0 for name, spread in spreads.items()]
    total = float(np.mean(shares))
    return total if np.isfinite(total) else np.inf


def _is_real(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind not in "iub" and np.can_cast(array.dtype, np.float64)
