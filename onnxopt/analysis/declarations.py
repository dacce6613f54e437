"""Shapes that a model declares for its outputs, against those in which they come."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt.analysis.shapes import infer
from onnxopt.analysis.skeleton import Dims, declared
from onnxopt.analysis.symbols import symbols
from onnxopt.model import Model


def belied(model: Model, outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Outputs that come in another shape than the model says; no check of declared shapes can hold a file to that.

    Args:
        model: the model.
        outputs: what it gave, by output name, one entry a run.
    """
    found = dict[str, None]()
    for info, values in ((info, values) for info in model.signature.outputs for values in outputs):
        array = values.get(info.name)
        if info.shape is not None and isinstance(array, np.ndarray) and _differ(info.shape, array.shape):
            found[info.name] = None
    return list(found)


def disproved(model: Model) -> list[str]:
    """Outputs whose declared shape cannot be right at any size of the inputs, as far as the graph alone tells."""
    found = {each.name: None for each in infer(model).contradictions if each.where == "output"}
    facts = symbols(model)
    for value in model.graph.outputs:
        stated, proven = declared(value), facts.of(value).shape
        if stated is not None and proven is not None and _differ(stated, proven):
            found[value.name or ""] = None
    return list(found)


def _differ(stated: Dims, found: Sequence[object]) -> bool:
    """Whether a shape is of another rank than stated, or of another size where both are numbers."""
    sizes = zip(stated, found, strict=False)
    return len(stated) != len(found) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
