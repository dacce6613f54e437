"""Repair without training: layers that lost inputs get the weights that make the best of what they still read.

Stage by stage, so that each layer is fitted to inputs as the repaired layers before it make them, with what it gave in
the dense model as the target (see `numerics.leastsquares`). What does not do better than a corrected bias on batches
that the fit has not seen is not used.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.axes.axis import vector
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.linear import Linear, linears
from onnxopt.analysis.linear.layer import Store
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.numerics.leastsquares import HeldOut, bias_change, predictor, predictor_cross
from onnxopt.numerics.units import Array, Indices
from onnxopt.passing import Context, Findings, Stage, Stages
from onnxopt.pruning.inputs import taps_apart, weights
from onnxopt.pruning.readers import Reader
from onnxopt.statistics import Collected, CrossGramMatrix, GramMatrix, Share, Stat, cross_gram, gram

Method = Literal["bias", "least-squares"]

_FEW = 10
"""Rows a column under which a refit is drawn more strongly towards the weights that were there."""

_RIDGES = (1e-3, 1e-2)
"""With enough rows, and with few."""


@dataclass(frozen=True, eq=False)
class Damaged:
    """A layer that will lose inputs, as it is before.

    Attributes:
        node: of the model that is pruned.
        dense: the layer in a copy of the model as it is before.
        kept: for each matrix the features that stay, and
        ignored: those that leave but were constant, which something else makes up for.
        rows: the output features that stay, over all matrices.
    """

    node: ir.Node
    dense: Linear
    kept: Sequence[Indices]
    ignored: Sequence[Indices]
    rows: Indices


def copied(model: Model) -> dict[ir.Node, Linear]:
    """The layers of a copy of a model, by the nodes of the model, which may be edited then."""
    copy = Model(model.ir.clone())
    nodes = dict(zip(copy.graph, model.graph, strict=True))
    return {nodes[linear.node]: linear for linear in linears(copy) if linear.node in nodes}


def damaged(
    channels: Channels, readers: Iterable[Reader], removed: Collection[int], free: Collection[int],
    before: Mapping[ir.Node, Linear],
) -> list[Damaged]:  # fmt: skip
    """The layers that lose inputs and can be refitted; to be asked before the removal.

    Layers whose weights are quantized or shared are left out.

    Args:
        channels: of the model as it is.
        readers: all layers that read units.
        removed: the units that will go.
        free: constant ones among them.
        before: the layers of a model that stays as it is, by the nodes of the one that is pruned.
    """
    going, constant = np.asarray(sorted(removed)), np.asarray(sorted(free))
    found = []
    for reader in readers:
        linear = reader.linear
        leaves = np.isin(reader.classes, going)
        if not leaves.any() or linear.weight.is_shared or not _is_float(linear) or linear.node not in before:
            continue
        axes = channels.of(linear.y)
        out = None if axes is None else vector(axes[linear.y_axis])
        total = linear.groups * linear.out_features
        rows = np.arange(total)
        if out is not None and len(out) == total:
            rows = rows[~np.isin(channels.classes.labels[out], going)]
        kept = [np.flatnonzero(~each) for each in leaves]
        ignored = [np.flatnonzero(each) for each in np.isin(reader.classes, constant) & leaves]
        found.append(Damaged(linear.node, before[linear.node], kept, ignored, rows))
    return found


def _is_float(linear: Linear) -> bool:
    dtype = linear.weight.root.dtype
    return dtype is not None and dtype.is_floating_point()


def repair(
    model: Model, context: Context, stages: Stages, layers: Sequence[Damaged], method: Method, findings: Findings,
    rule: str,
) -> None:  # fmt: skip
    """Refit layers, stage by stage.

    Args:
        model: after the removal.
        context: for storing weights and progress.
        stages: begun before it.
        layers: what lost inputs.
        method: least squares, or the bias alone.
        findings: gets what was declined, and figures.
        rule: what edits and refusals are called.
    """
    todo = {layer.node: layer for layer in layers}
    tally = {"refitted": 0, "bias_only": 0}
    for stage in stages:
        here = [todo[node] for node in stage.nodes if node in todo]
        if here:
            current = {linear.node: linear for linear in linears(model)}
            for layer in here:
                _mend(model, context, stage, layer, current.get(layer.node), method, findings, tally, rule)
        stage.close()
    findings.measures |= {f"layers_{name}": count for name, count in tally.items()}


@dataclass(frozen=True, eq=False)
class _Sums:
    """What a layer read in the dense model and reads now, over some batches."""

    dense: Stat[GramMatrix]
    cross: Stat[CrossGramMatrix]
    current: Stat[GramMatrix]

    @classmethod
    def of(cls, before: Linear, now: Linear, share: Share) -> "_Sums":
        taps = taps_apart(before)
        return cls(
            gram(before, taps=taps, side="dense", share=share),
            cross_gram(now, taps=taps, share=share),
            gram(now, taps=taps, share=share),
        )

    def all(self) -> tuple[Stat[GramMatrix], Stat[CrossGramMatrix], Stat[GramMatrix]]:
        return self.dense, self.cross, self.current


@dataclass(frozen=True, eq=False)
class _Fit:
    """Weights and a bias for one matrix of a layer, from one share of the batches."""

    weight: Array
    change: Array


def _mend(
    model: Model, context: Context, stage: Stage, layer: Damaged, now: Linear | None, method: Method,
    findings: Findings, tally: dict[str, int], rule: str,
) -> None:  # fmt: skip
    """Give one layer its weights."""
    if now is None or now.groups != layer.dense.groups or now.x.name != layer.dense.x.name:
        findings.decline(layer.node, rule, "not refitted: its inputs are no longer those of the dense model in part")
        return
    shares: tuple[Share, ...] = ("all", "fit", "check")
    every, fit, check = (_Sums.of(layer.dense, now, share) for share in shares)
    found = stage.collect([*every.all(), *fit.all(), *check.all()])
    if why := next((found.why(stat) for stat in every.all() if found.why(stat)), ""):
        findings.decline(layer.node, rule, f"not refitted: {why}")
        return
    checked = taps_apart(layer.dense) and not any(found.why(stat) for stat in (*fit.all(), *check.all()))
    matrices, biases, refitted = list[Array](), list[Array](), False
    for group, weight in enumerate(weights(layer.dense)):
        kept = _columns(layer.kept[group], layer.dense)
        weight[:, _columns(layer.ignored[group], layer.dense)] = 0
        chosen = _plain(weight, kept, found, every, group)
        if method == "least-squares":
            tried = _fitted(weight, kept, found, fit, group) if checked else None
            plain = _plain(weight, kept, found, fit, group) if checked else None
            if tried is None or plain is None or _improves(weight, tried, plain, found, check, group):
                chosen, refitted = _fitted(weight, kept, found, every, group), True
        matrices.append(chosen.weight.reshape(len(chosen.weight), -1))
        biases.append(chosen.change)
    _replace(model, layer, now, np.stack(matrices), np.concatenate(biases), rule, context.store)
    tally["refitted" if refitted else "bias_only"] += 1


def _columns(features: Indices, linear: Linear) -> Indices:
    """Columns of the matrices as `weights` gives them."""
    step = linear.taps if taps_apart(linear) else 1
    columns: Indices = (features[:, None] * step + np.arange(step)).reshape(-1)
    return columns


def _plain(weight: Array, kept: Indices, found: Collected, sums: _Sums, group: int) -> _Fit:
    """The weights that are left, with the bias that keeps the mean."""
    cross, left = found[sums.cross], weight[:, kept]
    return _Fit(left, bias_change(weight, left, cross.mean_dense[group], cross.mean_current[group]))


def _fitted(weight: Array, kept: Indices, found: Collected, sums: _Sums, group: int) -> _Fit:
    cross, current = found[sums.cross], found[sums.current]
    ridge = _RIDGES[current.count < _FEW * len(kept)]
    best = predictor_cross(cross.scatter[group], current.scatter[group], kept, ridge)
    return _Fit(best.apply(weight), best.bias(weight, cross.mean_dense[group], cross.mean_current[group]))


def _improves(weight: Array, new: _Fit, plain: _Fit, found: Collected, sums: _Sums, group: int) -> bool:
    """Whether new weights do better than others on rows that neither was made from."""
    dense, cross, current = found[sums.dense], found[sums.cross], found[sums.current]
    held = HeldOut(
        dense.count, dense.scatter[group], dense.mean[group], cross.scatter[group], current.scatter[group],
        current.mean[group],
    )  # fmt: skip
    errors = [float(held.error(weight, each.weight, each.change).sum()) for each in (new, plain)]
    return errors[0] < errors[1]


def refit_alike(model: Model, layers: Sequence[Damaged], found: Mapping[ir.Node, GramMatrix]) -> None:
    """Refit layers of a pruned copy to the dense model's inputs: what a choice is judged by, before it is made.

    Args:
        model: the copy, whose nodes the layers have.
        layers: what lost inputs.
        found: Gram matrices by node of the dense model.
    """
    current = {linear.node: linear for linear in linears(model)}
    for layer in layers:
        now, sums = current.get(layer.node), found[layer.dense.node]
        if now is None or now.groups != layer.dense.groups:
            continue
        matrices, biases = list[Array](), list[Array]()
        for group, weight in enumerate(weights(layer.dense)):
            kept = _columns(layer.kept[group], layer.dense)
            fitted = predictor(sums.scatter[group], kept, _RIDGES[sums.count < _FEW * len(kept)])
            matrices.append(fitted.apply(weight).reshape(len(weight), -1))
            biases.append(fitted.bias(weight, sums.mean[group]))
        _replace(model, layer, now, np.stack(matrices), np.concatenate(biases), "try")


def _replace(
    model: Model, layer: Damaged, now: Linear, matrix: Array, change: Array, rule: str, store: Store | None = None
) -> None:
    """Put weights in the place of those of the layer, with the output features that it still has."""
    groups, out, _ = matrix.shape
    rows = layer.rows.reshape(groups, -1) - np.arange(groups)[:, None] * out
    chosen = np.stack([each[own] for each, own in zip(matrix, rows, strict=True)])
    bias = now.bias_vector()
    total = change[layer.rows] if bias is None else bias.astype(np.float64) + change[layer.rows]
    wide = now.matrix().dtype
    edit: Edit = now.replaced(chosen.astype(wide), total.astype(wide), store=store, rule=rule)
    model.apply(edit)
