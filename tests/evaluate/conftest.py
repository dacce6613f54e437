"""Data and models (plain functions) to evaluate."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import Dataset, open_data
from onnxopt.model import Signature, ValueInfo


@pytest.fixture(scope="session")
def dataset() -> Callable[..., Dataset]:
    """`dataset(batches, outputs=["y"])`: opened for inputs of the names and dtypes that the first batch has."""

    def make(batches: list[dict[str, Any]], outputs: tuple[str, ...] = ("y",)) -> Dataset:
        inputs = {name: np.asarray(array) for name, array in batches[0].items() if not name.startswith("label/")}
        infos = [
            ValueInfo(name, ir.DataType.from_numpy(array.dtype), ("N", *array.shape[1:]) if array.ndim else ())
            for name, array in inputs.items()
        ]
        found = [ValueInfo(name, ir.DataType.FLOAT, None) for name in outputs]
        return open_data(batches, Signature(tuple(infos), tuple(found)))

    return make
