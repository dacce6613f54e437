"""What `compare` and `bench` feed to models: data that were given, or random inputs of sizes that the model takes."""

from pathlib import Path

import numpy as np

from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.backends.jobs import run_batches
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker
from onnxopt.data import Dataset, fitting, open_data, synthetic
from onnxopt.errors import DataError
from onnxopt.inputs import takes
from onnxopt.model import Model

_SECONDS = 60.0
"""For finding sizes that the model takes."""


def opened(
    model: Model, path: Path, worker: Worker, data: str, samples: int, shapes: dict[str, tuple[int, ...]] | None
) -> Dataset:
    """The data that `--data` names, checked against the model.

    Args:
        model: that they are for, with its path.
        worker: where the model is tried on random inputs.
        data: SPEC; `synthetic` for random inputs.
        samples: random ones at least.
        shapes: input name -> shape of random inputs.

    Raises:
        DataError: data or shapes that do not fit the model.
    """
    if data != "synthetic":
        return open_data(data, model.signature, allow_code=True)
    bounds = index_bounds(model)

    def drawn(shapes: dict[str, tuple[int, ...]] | None) -> Dataset:
        return synthetic(model.signature, shapes, bounds, samples, np.random.default_rng(0))

    dataset = drawn(shapes)
    try:
        worker.call(run_batches, str(path), SessionMode.DEPLOYED, [dict(dataset.first().feeds)])
    except DataError:
        other = fitting(model.signature, shapes, bounds, takes(worker, path, _SECONDS))
        if other is None:
            raise
        return drawn(other)
    return dataset
