"""Tiny deterministic models, one for each rare thing that an ONNX file may hold.

`RARE` and `ON_DISK` list them by name, `RUNNABLE` says which of them onnxruntime has kernels for, `feeds` draws
inputs for any of them; `linear` composes form, storage and sharing of a linear operator.
"""

from onnxopt.models.builders import (
    annotations,
    chains,
    control_flow,
    functions,
    linears,
    redundant,
    signatures,
    tensors,
)
from onnxopt.models.builders.linears import FORMS, STORAGES, linear
from onnxopt.models.builders.registry import ON_DISK, RARE, RUNNABLE
from onnxopt.models.builders.sketch import Sketch, feeds
from onnxopt.models.builders.tensors import ELEMENT_TYPES, externalized, of_type

__all__ = [
    "ELEMENT_TYPES", "FORMS", "ON_DISK", "RARE", "RUNNABLE", "STORAGES", "Sketch",
    "annotations", "chains", "control_flow", "externalized", "feeds", "functions", "linear", "linears", "of_type",
    "redundant",
    "signatures", "tensors",
]  # fmt: skip
