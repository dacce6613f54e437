"""Which layers can have sparse weights, and what has to be known of their inputs for it."""

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np

from onnxopt.analysis.linear import Linear
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.nodes import label
from onnxopt.numerics.sparsity import Weights, kept_count
from onnxopt.passing import Findings
from onnxopt.pruning.inputs import taps_apart
from onnxopt.pruning.sparse import Wanted
from onnxopt.statistics import GramMatrix, MinMax, Range, Stat, gram


def names_of(layer: Linear) -> tuple[str, str]:
    """What options may call a layer: its weight and its node."""
    return layer.weight.root.name or "", layer.name


def is_depthwise(layer: Linear) -> bool:
    """Whether each output sees one channel."""
    return layer.geometry is not None and layer.groups > 1 and layer.in_features == 1


def unfit(layer: Linear, model: Model) -> str | None:
    """Why a layer cannot have other weights of its own; None where it can."""
    root, weight = layer.weight.root, layer.weight
    if root.dtype is None or not root.dtype.is_floating_point() or root.dtype.itemsize < 2:
        return f"its weight is quantized, stored as {root.dtype}: make it sparse before"
    if weight.is_shared:
        others = sorted({label(node) for node, _ in weight.sharers if node is not layer.node})
        return f"weight {root.name} is also read by {', '.join(others) or 'others'}, for which it would change as well"
    if weight.overridable and model.ir.ir_version >= 4:
        return f"weight {root.name} is the default of a graph input, for which callers may feed another"
    return None


def too_small(layer: Linear, wanted: Wanted) -> str | None:
    """Why none of its weights would go; None where some would."""
    if isinstance(wanted, tuple):
        n, m = wanted
        return f"its inputs, {layer.in_features}, are no more than {n}:{m} keeps" if layer.in_features <= n else None
    size = prod(layer.shape)
    return f"its share of {size} weights rounds to none" if kept_count(size, wanted) == size else None


def check_finite(layer: Linear, matrix: Weights) -> None:
    """Raise ModelError for NaN or infinity, with the weight's name and a place."""
    finite = np.isfinite(matrix)
    if finite.all():
        return
    where = [int(i) for i in np.unravel_index(int(finite.argmin()), finite.shape)]
    raise ModelError(
        f"weight {layer.weight.root.name} of layer {layer.name} is {matrix[tuple(where)]} at {where} of "
        "[group, output, input]: what matters least of such cannot be told; repair the model or exclude the layer"
    )


def decline_others(model: Model, layers: Iterable[Linear], rule: str, findings: Findings) -> None:
    """Say of every other matrix in floating point who reads it: embedding tables, recurrent and quantized layers."""
    known = {layer.weight.root for layer in layers}
    for value in model.weights():
        tensor = value.const_value
        if value in known or tensor is None or not tensor.dtype.is_floating_point():
            continue
        shape = tensor.shape.numpy()
        if tensor.size == max(shape, default=1):
            continue
        readers = sorted({node.op_type for node, _ in value.uses()})
        why = f"read by {', '.join(readers)}, no product with a matrix" if readers else "read by no node"
        findings.decline(value.name, rule, why)


def columns_of(layer: Linear) -> int:
    """Columns of the Gram matrix of its inputs."""
    return layer.shape[2] if taps_apart(layer) else layer.in_features


def inputs_of(layer: Linear) -> Stat[GramMatrix]:
    """The Gram matrix of its inputs, which too few rows do not keep from being looked at."""
    return gram(layer, taps=taps_apart(layer))


def rows_of(layer: Linear) -> Stat[Range]:
    """Something cheap of a value that has as many rows as `inputs_of` will be of."""
    if layer.kind == "conv" and taps_apart(layer):
        return Stat(layer.node.outputs[0].name or "", MinMax(axis=1))
    return Stat(layer.x.name or "", MinMax(axis=layer.x_axis))


def first_reasons(findings: Findings, layers: Sequence[Linear], most: int = 3) -> str:
    """Why nothing was done to layers, in a line."""
    names = {layer.name for layer in layers}
    told = dict.fromkeys(f"{each.node}: {each.why}" for each in findings.declined if each.node in names)
    more = f"; and {len(told) - most} more" if len(told) > most else ""
    return "; ".join(list(told)[:most]) + more if told else "no layer multiplies by a constant matrix"


__all__ = [
    "check_finite", "columns_of", "decline_others", "first_reasons", "inputs_of", "is_depthwise", "names_of", "rows_of",
    "too_small", "unfit",
]  # fmt: skip
