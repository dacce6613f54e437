"""Gradients that the user supplies, from training code of their own."""

from pathlib import Path

import numpy as np

from onnxopt.errors import DataError
from onnxopt.model import Model
from onnxopt.pruning.ranking import Gradients


def read(path: str, model: Model) -> Gradients:
    """Gradients of the loss by weight, averaged over samples.

    Args:
        path: an .npz whose arrays are named after weights, with their shapes.
        model: that the weights are of.

    Raises:
        DataError: it cannot be read, or an array fits no weight or holds NaN.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"gradients {path} cannot be read: {error}; write them with numpy.savez") from error
    shapes = {value.name: tuple(value.const_value.shape.numpy()) for value in model.weights() if value.const_value}
    for name, array in found.items():
        shape = shapes.get(name)
        if shape != array.shape:
            wanted = "no weight of the model has that name" if shape is None else f"the weight has {list(shape)}"
            raise DataError(f"gradients {path}: {name!r} of shape {list(array.shape)}: {wanted}")
        if not np.isfinite(array).all():
            raise DataError(f"gradients {path}: {name!r} holds NaN or infinity; clip or leave out such batches")
    if not found:
        raise DataError(f"gradients {path}: there is no array in it")
    return found
