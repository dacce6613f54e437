"""BatchNormalization after a removal: its mean and variance follow what it reads by now.

A channel that lost some of what it was made of has another mean and, mostly, varies less; normalized by what it was in
training it no longer is what its readers expect. With m and s the mean and the deviation of a channel in the dense
model, m' and s' the same by now, on the same data,

    mean <- m' + (mean - m) s' / s        variance <- variance (s' / s)^2

so that what comes out has the mean and the deviation that it had. Where the data are those of training, m = mean, and
this is re-estimation as in Li et al. 2020, "EagleEye". Elsewhere what was learned stays, and chance that is in the data
cancels, for both sides are of the same samples: a few dozen rows do.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.linear.layer import Parameter
from onnxopt.analysis.linear.replacing import put
from onnxopt.analysis.linear.sources import Source, Sources
from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.nodes import label
from onnxopt.numerics.units import Array, Indices
from onnxopt.passing import Context, Findings, Stage
from onnxopt.statistics import MeanAndVariance, Moments, Stat

_MEAN, _VARIANCE = 3, 4
"""Inputs of the node."""

_OVERRIDABLE = 4
"""Before this IR version a file lists all weights as inputs; from it on only those that callers may feed."""

_WITHOUT_SPATIAL, _WITH_MODE, _PLAIN = 9, 14, 7
"""Opsets of BatchNormalization: the attribute `spatial` is gone, `training_mode` is there, `is_test` is gone."""

_FEWEST = 16
"""Rows a channel under which chance says more than the change that is measured."""

_SAME = 1e-4
"""Less of a change than this, in deviations, is rounding."""

_DEAD = 1e-5
"""Less of a deviation, for the mean, is rounding, and nothing to scale by."""

_COARSE = 1e-2
"""More of an error than this, for what is divided by, is too much for a type to store a variance in."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """A BatchNormalization as it is before a removal.

    Attributes:
        node: of the model that is pruned.
        x: name of what it reads.
        kept: the channels that stay.
    """

    node: ir.Node
    x: str
    kept: Indices


def normalizations(channels: Channels, removed: Collection[int]) -> dict[ir.Node, Normalization]:
    """All that normalize batches and read more than a vector; to be asked before the removal.

    Args:
        channels: of the model as it is.
        removed: the units that will go.
    """
    found, going = {}, np.asarray(sorted(removed))
    for node in channels.model.graph:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx") or len(node.inputs) <= _VARIANCE:
            continue
        x, axes = node.inputs[0], channels.of_input(node, _MEAN)
        if x is None or axes is None or len(axes) != 1 or (x.shape is not None and len(x.shape) < 2):
            continue
        ids, size = vector(axes[0]), _size(node)
        if size is not None:
            kept = np.arange(size) if ids is None else np.flatnonzero(~np.isin(channels.classes.labels[ids], going))
            found[node] = Normalization(node, x.name or "", kept)
    return found


def _size(node: ir.Node) -> int | None:
    mean = node.inputs[_MEAN]
    shape = None if mean is None else mean.shape
    return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None


def reestimate(
    model: Model, context: Context, stage: Stage, norm: Normalization, findings: Findings, rule: str
) -> bool:  # fmt: skip
    """Let the statistics of a node follow what it reads by now; those of one that reads what it read stay.

    Args:
        model: after the removal.
        context: tells what is not to be touched.
        stage: that of the node, open; what comes before the node is as it will be.
        norm: the node as it was.
        findings: gets why a node that reads something else was left alone.
        rule: what edits and refusals are called.

    Returns:
        Whether it has new statistics.
    """
    x = norm.node.inputs[0]
    if x is None or norm.node.graph is not model.graph:
        return False
    sides = Stat(norm.x, Moments(axis=1), side="dense"), Stat(x.name or "", Moments(axis=1))
    found = stage.collect(sides)
    why = found.why(sides[0]) or found.why(sides[1])
    if not why:
        dense, now = found[sides[0]], found[sides[1]]
        dense = MeanAndVariance(dense.mean[norm.kept], dense.variance[norm.kept], dense.count)
        if dense.mean.shape == now.mean.shape and _alike(dense, now):
            return False
        why = _refusal(model, context, norm.node, dense, now) or _write(model, context, norm.node, dense, now, rule)
    if why:
        findings.decline(norm.node, rule, f"statistics not estimated anew: {why}")
    return not why


def _alike(dense: MeanAndVariance, now: MeanAndVariance) -> bool:
    deviation = np.sqrt(dense.variance)
    moved = np.abs(now.mean - dense.mean) > _SAME * deviation + _DEAD * np.abs(dense.mean)
    stretched = np.abs(np.sqrt(now.variance) - deviation) > _SAME * deviation + _DEAD * np.abs(dense.mean)
    return not (moved | stretched).any()


def _refusal(model: Model, context: Context, node: ir.Node, dense: MeanAndVariance, now: MeanAndVariance) -> str:
    """Why a node keeps its statistics, whatever they are; empty where it may get others."""
    if why := _trains(model, node):
        return why
    if dense.mean.shape != now.mean.shape:
        return "it has other channels than those that were left"
    if now.count < _FEWEST:
        return f"{now.count} rows of calibration data, and {_FEWEST} are needed"
    if context.skips(label(node)):
        return "an override skips it"
    return ""


def _trains(model: Model, node: ir.Node) -> str:
    """Why a node computes other statistics than those it is given; empty where it does not."""
    if model.opset < _PLAIN:
        return f"opset {model.opset} is too old to tell how it normalizes"
    if any(value.name for value in node.outputs[1:]):
        return "it gives running statistics, so it trains"
    if model.opset >= _WITH_MODE and node.attributes.get_int("training_mode", False):
        return "it is in training mode"
    if model.opset < _WITHOUT_SPATIAL and not node.attributes.get_int("spatial", True):
        return "its statistics are those of every element (spatial = 0)"
    return ""


def _write(
    model: Model, context: Context, node: ir.Node, dense: MeanAndVariance, now: MeanAndVariance, rule: str
) -> str:  # fmt: skip
    """Give a node statistics that follow; why not, or empty."""
    sources, parameters = Sources(), list[Parameter]()
    for index in (_MEAN, _VARIANCE):
        parameter = _parameter(model, context, node, index, sources)
        if isinstance(parameter, str):
            return parameter
        parameters.append(parameter)
    mean, variance = (each.array().astype(np.float64) for each in parameters)
    stretch = _stretch(dense, now)
    mean, variance = now.mean + (mean - dense.mean) * stretch, variance * stretch**2
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if _error(variance, epsilon, parameters[1]) > _COARSE:
        return f"{parameters[1].root.dtype} is too coarse for a variance"
    edit = Edit(rule)
    try:
        for parameter, array in zip(parameters, (mean, variance), strict=True):
            put(edit, parameter, array, None, None)
    except ModelError as error:  # the type that it is stored in may not reach so far
        return str(error)
    model.apply(edit)
    return ""


def _parameter(model: Model, context: Context, node: ir.Node, index: int, sources: Sources) -> Parameter | str:
    """A constant that may be written, or why it may not."""
    value = node.inputs[index]
    source = "is left out" if value is None else sources.find(value)
    if not isinstance(source, Source):
        return f"its parameter {value.name if value is not None else index} {source}"
    parameter, root = Parameter(source, node, index), source.root.value
    if parameter.overridable and model.ir.ir_version >= _OVERRIDABLE:
        return f"its parameter {root.name} can be fed by callers"
    touched = next((name for name in (root.name or "", *map(label, parameter.steps)) if context.skips(name)), None)
    return parameter if touched is None else f"an override skips {touched}"


def _stretch(dense: MeanAndVariance, now: MeanAndVariance) -> Array:
    """By what each channel's deviation has changed; 1 where it does not vary, or did not."""
    alive = np.ones(len(dense.mean), bool)
    for side in (dense, now):
        alive &= np.sqrt(side.variance) > _DEAD * np.abs(side.mean)
    stretch: Array = np.sqrt(np.divide(now.variance, dense.variance, out=np.ones(len(alive)), where=alive))
    return stretch


def _error(variance: Array, epsilon: float, parameter: Parameter) -> float:
    """How far what is divided by is off when a variance is stored, at most; infinite where it cannot be."""
    with np.errstate(over="ignore"):
        stored = variance.astype(_narrowest(parameter).numpy()).astype(np.float64)
    wanted = variance + epsilon
    if not (np.isfinite(stored) & (wanted > 0)).all():
        return np.inf
    return float(np.max(np.abs(stored - variance) / wanted, initial=0.0))


def _narrowest(parameter: Parameter) -> ir.DataType:
    """The type that numbers pass through on the way from the file to the node."""
    stored, read = parameter.root.dtype, parameter.dtype
    narrower = stored is not None and stored.is_floating_point() and stored.bitwidth < read.bitwidth
    return stored if stored is not None and narrower else read
