"""Repair without training: layers that lost inputs get the weights that make the best of what they still read.

Stage by stage, so that each layer is fitted to inputs as the repaired layers before it make them, with what it gave in
the dense model as the target (see `numerics.leastsquares`). What does not do better than a corrected bias on batches
that the fit has not seen is not used.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.extraction import copied
from onnxopt.analysis.linear.layer import Linear, Store
from onnxopt.analysis.linear.recurrent import Layer, layers_of
from onnxopt.analysis.linear.sources import Use
from onnxopt.analysis.shapes import Shapes
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.numerics.units import Array
from onnxopt.passing import Context, Findings, Stage, Stages
from onnxopt.pruning.batchnorm import Normalization, reestimate
from onnxopt.pruning.fitting import Damaged, Method, alike, by_inputs, by_targets
from onnxopt.pruning.inputs import taps_apart
from onnxopt.pruning.readers import Reader, given
from onnxopt.statistics import GramMatrix


def layers_of_copy(model: Model) -> dict[Use, Layer]:
    """The layers of a copy of a model, by where the model, which may be edited then, has them."""
    copy, copies = copied(model)
    nodes = {own: node for node, own in copies.items()}
    return {
        (nodes[layer.node], layer.weight.index): layer
        for layer in layers_of(copy) if layer.node in nodes
    }  # fmt: skip


def damaged(
    channels: Channels, readers: Iterable[Reader], removed: Collection[int], free: Collection[int],
    before: Mapping[Use, Layer],
) -> list[Damaged]:  # fmt: skip
    """The layers that lose inputs and can be refitted; to be asked before the removal.

    Layers whose weights are quantized or shared are left out.

    Args:
        channels: of the model as it is.
        readers: all layers that read units.
        removed: the units that will go.
        free: constant ones among them.
        before: the layers of a model that stays as it is, by where the one that is pruned has them.
    """
    going, constant = np.asarray(sorted(removed)), np.asarray(sorted(free))
    found = []
    for reader in readers:
        linear = reader.linear
        leaves = np.isin(reader.classes, going)
        if not leaves.any() or linear.weight.is_shared or not _is_float(linear) or linear.weight.use not in before:
            continue
        rows, out = np.arange(linear.groups * linear.out_features), given(channels, linear)
        if out is not None:
            rows = rows[~np.isin(out, going)]
        kept = [np.flatnonzero(~each) for each in leaves]
        ignored = [np.flatnonzero(each) for each in np.isin(reader.classes, constant) & leaves]
        found.append(Damaged(linear.node, before[linear.weight.use], kept, ignored, rows))
    return found


def _is_float(linear: Layer) -> bool:
    dtype = linear.weight.root.dtype
    return dtype is not None and dtype.is_floating_point()


def repair(
    model: Model, context: Context, stages: Stages, layers: Sequence[Damaged], norms: Mapping[ir.Node, Normalization],
    method: Method, findings: Findings, rule: str,
) -> None:  # fmt: skip
    """Refit layers, and let statistics of normalizations follow, node after node, stage by stage.

    Args:
        model: after the removal.
        context: for storing weights and progress.
        stages: begun before it.
        layers: what lost inputs and is to be refitted.
        norms: what normalizes batches.
        method: of refitting: least squares, or the bias alone.
        findings: gets what was declined, and figures.
        rule: what edits and refusals are called.
    """
    todo: dict[ir.Node, list[Damaged]] = {}
    for layer in layers:
        todo.setdefault(layer.node, []).append(layer)
    bare = _with_biases(model, layers, rule)
    # From here on contents of weights change, and nothing that layers or shapes are found by.
    tally, shapes, followed = {"refitted": 0, "bias_only": 0}, context.shapes, 0
    current = {each.weight.use: each for each in layers_of(model)}
    for stage in stages:
        for node in stage.nodes:
            for layer in todo.get(node, ()):
                now = current.get(layer.use)
                if _mend(model, context, shapes, stage, layer, now, method, findings, tally, rule):
                    bare.discard(layer.use)
            if node in norms:
                followed += reestimate(model, context, stage, norms[node], findings, rule)
        stage.close()
    for use in bare:
        left = current[use]
        assert isinstance(left, Linear)
        model.apply(left.rebiased(None, rule))
    findings.measures |= {f"layers_{name}": count for name, count in tally.items()}
    if norms:
        findings.measures["norms_reestimated"] = followed


def _with_biases(model: Model, layers: Sequence[Damaged], rule: str) -> set[Use]:
    """Give zeros to those layers that have no bias, all at once; who they are."""
    current, bare = {each.weight.use: each for each in layers_of(model)}, set[Use]()
    for layer in layers:
        now = current.get(layer.use)
        if not isinstance(now, Linear) or now.bias is not None or now.addend is not None:
            continue
        if now.vector_shape(now.groups, now.out_features) is not None:  # else the refit says why it gets none
            model.apply(now.rebiased(np.zeros(now.groups * now.out_features, np.float32), rule))
            bare.add(layer.use)
    return bare


def _mend(
    model: Model, context: Context, shapes: Shapes, stage: Stage, layer: Damaged, now: Layer | None, method: Method,
    findings: Findings, tally: dict[str, int], rule: str,
) -> bool:  # fmt: skip
    """Give one layer its weights; whether it got any."""
    if now is None or now.groups != layer.dense.groups:
        findings.decline(layer.node, rule, "not refitted: it has other groups than in the dense model")
        return False
    ways = by_targets(layer, now, shapes) if taps_apart(layer.dense) and not layer.makes_up else []
    ways += [by_inputs(layer, now)] if _comes_from(now.x, layer.dense.x.name) else []
    why = "its inputs are no longer those of the dense model in part"
    for way in ways:
        found = stage.collect(way.stats())
        why = way.why(found)
        for how in () if why else dict.fromkeys((method, "bias")):
            fits = way.fits(found, how)
            matrix, bias = np.stack([fit.weight for fit in fits]), np.concatenate([fit.bias for fit in fits])
            try:
                _replace(model, now, matrix, bias, rule, context.store)
            except ModelError as error:  # the type that it is stored in may not reach so far
                why = str(error)
                continue
            tally["refitted" if any(fit.refitted for fit in fits) else "bias_only"] += 1
            return True
    findings.decline(layer.node, rule, f"not refitted: {why}")
    return False


def _comes_from(value: ir.Value | None, name: str | None) -> bool:
    """Whether a value is the one of that name, or that with constants added: biases that layers before it got."""
    while value is not None and value.name != name:
        maker = value.producer()
        if maker is None or maker.op_type != "Add" or maker.domain not in ("", "ai.onnx"):
            return False
        inputs = [each for each in maker.inputs if each is not None and not each.is_initializer()]
        value = inputs[0] if len(inputs) == 1 else None
    return value is not None


def refit_alike(model: Model, layers: Sequence[Damaged], found: Mapping[Use, GramMatrix]) -> None:
    """Refit layers of a pruned copy to the dense model's inputs: what a choice is judged by, before it is made.

    Args:
        model: the copy, whose nodes the layers have.
        layers: what lost inputs.
        found: Gram matrices by where the dense model has the layer.
    """
    current = {each.weight.use: each for each in layers_of(model)}
    for layer in layers:
        now, sums = current.get(layer.use), found[layer.dense.weight.use]
        if now is None or now.groups != layer.dense.groups:
            continue
        fits = [alike(layer, now, group, sums) for group in range(now.groups)]
        matrix, bias = np.stack([fit.weight for fit in fits]), np.concatenate([fit.bias for fit in fits])
        _replace(model, now, matrix, bias, "try")


def _replace(model: Model, now: Layer, matrix: Array, bias: Array, rule: str, store: Store | None = None) -> None:
    """Give a layer `[groups, out, columns]` and a bias `[groups * out]`."""
    wide = np.float64 if now.dtype == ir.DataType.DOUBLE else np.float32
    model.apply(now.replaced(matrix.astype(wide), bias.astype(wide), store=store, rule=rule))
