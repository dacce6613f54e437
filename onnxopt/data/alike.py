"""Whether data hold more than one sample."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.data.archive import Array

if TYPE_CHECKING:
    from onnxopt.data.dataset import Batch, Dataset


def all_alike(dataset: "Dataset") -> bool:
    """Whether there are several samples and all are the same; reads no further than to the first that differs."""
    if dataset.samples < 2:
        return False
    samples = (sample for batch in dataset.batches() for sample in _samples(batch))
    return all(_same(one, other) for one, other in pairwise(samples))


def _samples(batch: "Batch") -> Iterator[dict[str, Array]]:
    """Each sample's inputs; those that are not of single samples go with every one of them."""
    for row in range(batch.samples):
        yield {
            name: array[row] if array.ndim and array.shape[0] == batch.samples else array
            for name, array in batch.feeds.items()
        }


def _same(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())
