"""The weights that a layer gets when it has lost inputs: to give what it gave, or what its stream should be.

By targets, where a layer's outputs are looked at: those of the dense model; where they are added to a stream, what the
stream was, less what it is now without the layer, so that the layer makes up for what was lost before it as well
(He et al. 2017, "Channel Pruning", 3.2). By inputs, where taps share a predictor or constants are made up for
elsewhere: dense inputs are predicted from current ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.linear import Linear
from onnxopt.analysis.linear.recurrent import Layer, Recurrent
from onnxopt.analysis.linear.sources import Use
from onnxopt.analysis.shapes import Shapes
from onnxopt.numerics.leastsquares import HeldOut, bias_change, predictor, predictor_cross, refit_to_targets
from onnxopt.numerics.units import Array, Indices
from onnxopt.pruning.inputs import taps_apart, weights
from onnxopt.statistics import (
    Collected,
    CrossGramMatrix,
    GramMatrix,
    Regressed,
    Share,
    Stat,
    cross_gram,
    gram,
    regression,
)

Method = Literal["batch-norm", "bias", "least-squares"]

_FEW = 10
"""Rows a column under which a refit is drawn more strongly towards the weights that were there."""

_RIDGES = (1e-3, 1e-2)
"""With enough rows, and with few."""

_SHARES: tuple[Share, ...] = ("all", "fit", "check")


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
    dense: Layer
    kept: Sequence[Indices]
    ignored: Sequence[Indices]
    rows: Indices

    @property
    def use(self) -> Use:
        """What tells the layers of the model that is pruned apart."""
        return self.node, self.dense.weight.index

    @property
    def makes_up(self) -> bool:
        """Whether something else makes up for a part of what it loses."""
        return any(len(each) for each in self.ignored)

    def columns(self, features: Indices) -> Indices:
        """Columns of the matrices as `inputs.weights` gives them."""
        step = self.dense.taps if taps_apart(self.dense) else 1
        columns: Indices = (features[:, None] * step + np.arange(step)).reshape(-1)
        return columns

    def own_rows(self, group: int) -> Indices:
        """The output features of a matrix that stay, within it."""
        out = self.dense.out_features
        return self.rows[(self.rows >= group * out) & (self.rows < (group + 1) * out)] - group * out


@dataclass(frozen=True, eq=False)
class Fit:
    """What one matrix of a layer becomes.

    Attributes:
        weight: `[out, columns]`.
        bias: `[out]`, the whole of it.
        refitted: whether the weights were; else the bias alone.
    """

    weight: Array
    bias: Array
    refitted: bool


class Way(Protocol):
    """A way to refit a layer."""

    def stats(self) -> Sequence[Stat[Any]]:
        """What it needs to know."""
        ...

    def why(self, found: Collected) -> str:
        """Why it cannot be gone; empty where it can."""
        ...

    def fits(self, found: Collected, method: Method) -> list[Fit]:
        """The matrices of the layer."""
        ...


def _plenty(count: float, columns: int) -> bool:
    """Whether a fit to so many rows needs no check on others."""
    return count >= _FEW * columns


def _ridge(count: float, columns: int) -> float:
    return _RIDGES[not _plenty(count, columns)]


@dataclass(frozen=True, eq=False)
class _ByTargets:
    """Moments of current inputs and of targets, of each share of the batches."""

    layer: Damaged
    products: Sequence[Stat[Regressed]]
    inputs: Sequence[Stat[GramMatrix]]

    def stats(self) -> Sequence[Stat[Any]]:
        return [*self.products, *self.inputs]

    def why(self, found: Collected) -> str:
        return found.why(self.products[0]) or found.why(self.inputs[0])

    def fits(self, found: Collected, method: Method) -> list[Fit]:
        checked = not any(found.why(stat) for stat in self.stats())
        layer, result = self.layer, list[Fit]()
        for group, dense in enumerate(weights(layer.dense)):
            left = dense[layer.own_rows(group)][:, layer.columns(layer.kept[group])]
            plain, refitted = self._fit(found, 0, group, left, False), self._fit(found, 0, group, left, True)
            better = method == "least-squares" and (checked or _plenty(found[self.inputs[0]].count, left.shape[1]))
            if better and checked:
                tried = [self._mistake(found, group, self._fit(found, 1, group, left, each)) for each in (False, True)]
                better = tried[1] < tried[0]
            result.append(refitted if better else plain)
        return result

    def _fit(self, found: Collected, share: int, group: int, left: Array, refit: bool) -> Fit:
        seen, inputs, own = found[self.products[share]], found[self.inputs[share]], self.layer.own_rows(group)
        weight = left
        if refit:
            ridge = _ridge(inputs.count, left.shape[1])
            weight = refit_to_targets(left, seen.products[group][:, own], inputs.scatter[group], ridge)
        return Fit(weight, seen.mean_targets[group][own] - weight @ seen.mean_inputs[group], refit)

    def _mistake(self, found: Collected, group: int, fit: Fit) -> float:
        """Squared error on rows that were not fitted to, but for what is the same for all fits."""
        seen, inputs, own = found[self.products[2]], found[self.inputs[2]], self.layer.own_rows(group)
        spread = np.sum((fit.weight @ inputs.scatter[group]) * fit.weight)
        spread -= 2 * np.sum(fit.weight * seen.products[group][:, own].T)
        offset = seen.mean_targets[group][own] - fit.weight @ seen.mean_inputs[group] - fit.bias
        return float(spread + seen.count * np.sum(offset**2))


def by_targets(layer: Damaged, now: Layer, shapes: Shapes) -> list[Way]:
    """The ways to fit a layer to what it gave: first as a part of the stream that it is added to."""
    dense = layer.dense
    if not isinstance(now, Linear) or not isinstance(dense, Linear) or now.kind == "conv_transpose":
        return []
    if dense.addend is not None or now.addend is not None:  # what it gives holds what no bias can stand for
        return []
    found, stream = list[Way](), _stream(dense, now, layer.rows, shapes)
    for target, less in ([stream] if stream else []) + [(dense.y.name or "", None)]:
        products = [regression(now, target, less, share=share) for share in _SHARES]
        found.append(_ByTargets(layer, products, [gram(now, share=share) for share in _SHARES]))
    return found


def _stream(dense: Linear, now: Linear, rows: Indices, shapes: Shapes) -> tuple[str, str | None] | None:
    """The sum that a layer's outputs go into in the dense model, and the other summand in the current one."""
    sums = [_added(linear.y) for linear in (dense, now)]
    if sums[0] is None or sums[1] is None or len(rows) < dense.groups * dense.out_features:
        return None
    total, other = sums[0][0], sums[1][1]
    if shapes.of(other) is None or shapes.of(other) != shapes.of(now.y):
        return None
    return total.name or "", other.name


def _added(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The sum that a value goes into and nowhere else, and what is added to it; None where it is not so."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0][0].op_type != "Add" or uses[0][0].domain:
        return None
    other = uses[0][0].inputs[1 - uses[0][1]]
    if other is None or other.is_initializer() or other is value:
        return None
    return uses[0][0].outputs[0], other


@dataclass(frozen=True, eq=False)
class _ByInputs:
    """Moments of dense and current inputs, of each share of the batches."""

    layer: Damaged
    now: Layer
    dense: Sequence[Stat[GramMatrix]]
    cross: Sequence[Stat[CrossGramMatrix]]
    current: Sequence[Stat[GramMatrix]]

    def stats(self) -> Sequence[Stat[Any]]:
        return [*self.dense, *self.cross, *self.current]

    def why(self, found: Collected) -> str:
        return next((why for each in (self.dense, self.cross, self.current) if (why := found.why(each[0]))), "")

    def fits(self, found: Collected, method: Method) -> list[Fit]:
        layer, result, bias = self.layer, list[Fit](), _bias(self.now)
        checked = taps_apart(layer.dense) and not any(found.why(stat) for stat in self.stats())
        for group, weight in enumerate(weights(layer.dense)):
            weight[:, layer.columns(layer.ignored[group])] = 0
            columns = len(layer.columns(layer.kept[group]))
            better = method == "least-squares" and (checked or _plenty(found[self.current[0]].count, columns))
            if better and checked:
                tried = [
                    self._mistake(found, group, weight, self._fit(found, 1, group, weight, r)) for r in (False, True)
                ]
                better = tried[1] < tried[0]
            new, change = self._fit(found, 0, group, weight, better)
            own = layer.own_rows(group)
            rows = slice(group * len(own), (group + 1) * len(own))
            result.append(Fit(new[own].reshape(len(own), -1), bias[rows] + change[own], better))
        return result

    def _fit(self, found: Collected, share: int, group: int, weight: Array, refit: bool) -> tuple[Array, Array]:
        """New weights of all rows, and what their bias changes by."""
        cross, kept = found[self.cross[share]], self.layer.columns(self.layer.kept[group])
        means = cross.mean_dense[group], cross.mean_current[group]
        reached = _reached(self.layer.dense)
        if not refit:
            return weight[:, kept], reached * bias_change(weight, weight[:, kept], *means)
        current = found[self.current[share]]
        both = _moments(self.layer.dense, cross.scatter[group], cross.count, *means)
        own = _moments(self.layer.dense, current.scatter[group], current.count, *[current.mean[group]] * 2)
        best = predictor_cross(both, own, kept, _ridge(current.count, len(kept)))
        return best.apply(weight), reached * best.bias(weight, *means)

    def _mistake(self, found: Collected, group: int, weight: Array, fit: tuple[Array, Array]) -> float:
        """Squared error on rows that were not fitted to."""
        dense, cross, current = found[self.dense[2]], found[self.cross[2]], found[self.current[2]]
        held = HeldOut(
            dense.count, dense.scatter[group], dense.mean[group], cross.scatter[group], current.scatter[group],
            current.mean[group],
        )  # fmt: skip
        return float(held.error(weight, *fit).sum())


def by_inputs(layer: Damaged, now: Layer) -> Way:
    """Fit a layer to predict what it read."""
    if isinstance(now, Recurrent) and now.reads_states:
        return _ByStates(layer, now, [gram(layer.dense, side="dense", share=share) for share in _SHARES])
    taps = taps_apart(layer.dense)
    return _ByInputs(
        layer, now,
        [gram(layer.dense, taps=taps, side="dense", share=share) for share in _SHARES],
        [cross_gram(now, taps=taps, share=share, dense=layer.dense.x.name) for share in _SHARES],
        [gram(now, taps=taps, share=share) for share in _SHARES],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _ByStates:
    """Moments of the dense model's states, of each share of the batches.

    What a recurrence reads in the current model depends on its own weights, so those are fitted to what it should read.
    """

    layer: Damaged
    now: Recurrent
    dense: Sequence[Stat[GramMatrix]]

    def stats(self) -> Sequence[Stat[Any]]:
        return self.dense

    def why(self, found: Collected) -> str:
        return found.why(self.dense[0])

    def fits(self, found: Collected, method: Method) -> list[Fit]:
        layer, checked = self.layer, not any(found.why(stat) for stat in self.dense)
        result = []
        for group, weight in enumerate(weights(layer.dense)):
            better = method == "least-squares"
            if better and checked:
                held = found[self.dense[2]]
                own = HeldOut.of_one_side(held.count, held.scatter[group], held.mean[group], layer.kept[group])
                tried = [
                    float(own.error(weight, *_to_dense(layer, weight, group, found[self.dense[1]], refit)).sum())
                    for refit in (False, True)
                ]
                better = tried[1] < tried[0]
            result.append(alike(layer, self.now, group, found[self.dense[0]], better))
        return result


def alike(layer: Damaged, now: Layer, group: int, sums: GramMatrix, refit: bool = True) -> Fit:
    """A matrix of a layer whose kept inputs are still those of the dense model.

    Args:
        layer: what lost inputs.
        now: the layer as it is.
        group: which matrix.
        sums: of its inputs in the dense model.
        refit: else its bias alone.
    """
    own = layer.own_rows(group)
    new, change = _to_dense(layer, weights(layer.dense)[group], group, sums, refit)
    rows = slice(group * len(own), (group + 1) * len(own))
    return Fit(new[own].reshape(len(own), -1), _bias(now)[rows] + change[own], refit)


def _to_dense(layer: Damaged, weight: Array, group: int, sums: GramMatrix, refit: bool) -> tuple[Array, Array]:
    """New weights of all rows, and what their bias changes by, where kept inputs are those of the dense model."""
    kept, mean, reached = layer.columns(layer.kept[group]), sums.mean[group], _reached(layer.dense)
    if not refit:
        return weight[:, kept], reached * bias_change(weight, weight[:, kept], mean, mean[kept])
    scatter = _moments(layer.dense, sums.scatter[group], sums.count, mean, mean)
    best = predictor(scatter, kept, _ridge(sums.count, len(kept)))
    return best.apply(weight), reached * best.bias(weight, mean)


def _reached(layer: Layer) -> float:
    """The share of its taps that a layer sums over for one output: transposed convolutions with strides spread them."""
    if isinstance(layer, Recurrent) or layer.kind != "conv_transpose" or layer.geometry is None:
        return 1.0
    return 1 / prod(layer.geometry.strides)


def _moments(layer: Layer, scatter: Array, count: float, left: Array, right: Array) -> Array:
    """What inputs are predicted from: sums about the mean; about 0 where a bias cannot stand for a constant.

    Which taps of a transposed convolution an output is summed over depends on where it is.
    """
    spread = layer.kind == "conv_transpose" and (layer.taps > 1 or _reached(layer) < 1)
    return scatter + count * np.outer(left, right) if spread else scatter


def _bias(now: Layer) -> Array:
    """The bias that a layer has, float64."""
    found = now.bias_vector()
    return np.zeros(now.groups * now.out_features) if found is None else found.astype(np.float64)
