"""Which columns of which layers read the units that can be removed."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.axes.axis import Axis, vector
from onnxopt.analysis.axes.engine import Channels
from onnxopt.analysis.axes.groups import ChannelGroup
from onnxopt.analysis.linear.recurrent import Layer, Recurrent
from onnxopt.analysis.linear.sources import Use
from onnxopt.statistics import why_no_gram

Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over what may be removed.

    Attributes:
        linear: the layer.
        classes: of each feature that comes in, `[groups of the layer, in_features]`: units of channel groups, and
            classes that stay.
    """

    linear: Layer
    classes: Ids

    def columns(self, group: int, units: Sequence[int], taps: bool = True) -> list[Ids]:
        """The columns of one of the layer's matrices that read each unit; empty where none do.

        Args:
            group: which matrix.
            units: classes.
            taps: whether columns are features times taps, as in `Linear.matrix()`; else they are features.
        """
        step = self.linear.taps if taps else 1
        places: dict[int, list[int]] = {}
        for place, label in enumerate(self.classes[group].tolist()):
            places.setdefault(label, []).append(place)
        return [
            (np.asarray(places.get(unit, ()), np.int64)[:, None] * step + np.arange(step)).reshape(-1) for unit in units
        ]


def readers(channels: Channels, linears: Iterable[Layer]) -> list[Reader]:
    """The layers whose inputs can lose features, in the order of the layers.

    Layers that see one feature at a time (depthwise convolutions) sum over none, nor do those of which whole groups go;
    batches of matrices are left out.
    """
    found = []
    for linear in linears:
        if (linear.in_features == 1 and linear.groups > 1) or why_no_gram(linear):
            continue
        classes = read(channels, linear)
        if classes is not None and not _goes_whole(channels, linear, classes):
            found.append(Reader(linear, classes.reshape(linear.groups, -1)))
    return found


def _goes_whole(channels: Channels, linear: Layer, classes: Ids) -> bool:
    """Whether what reads a unit goes with it: of a layer whose groups are units."""
    made = given(channels, linear) if linear.groups > 1 else None
    if made is None:
        return False
    both = np.concatenate([classes.reshape(linear.groups, -1), made.reshape(linear.groups, -1)], 1)
    return bool((both == both[:, :1]).all())


def read(channels: Channels, layer: Layer) -> Ids | None:
    """The classes of the features that come in, over all groups; None where they are not told."""
    if isinstance(layer, Recurrent):
        axis, times = _stored(channels, layer, 2), layer.groups
    else:
        axes = channels.of(layer.x)
        axis, times = None if axes is None else axes[layer.x_axis], 1
    return _classes(channels, axis, times, layer.groups * layer.in_features)


def given(channels: Channels, layer: Layer) -> Ids | None:
    """The same of those that come out: of gates, where the layer is recurrent."""
    if isinstance(layer, Recurrent):
        axis, times = _stored(channels, layer, 1), layer.directions
    else:
        axes = channels.of(layer.y)
        axis, times = None if axes is None else axes[layer.y_axis], 1
    return _classes(channels, axis, times, layer.groups * layer.out_features)


def _stored(channels: Channels, layer: Recurrent, place: int) -> Axis | None:
    """An axis of a recurrent layer's matrix as it is stored, which its directions share."""
    axes = channels.of_input(layer.node, layer.weight.index)
    return None if axes is None else axes[place]


def _classes(channels: Channels, axis: Axis | None, times: int, count: int) -> Ids | None:
    ids = None if axis is None else vector(axis)
    if ids is None or times * len(ids) != count:
        return None
    return np.tile(channels.classes.labels[ids], times)


def by_group(groups: Sequence[ChannelGroup], found: Sequence[Reader]) -> list[list[Reader]]:
    """For each channel group the layers that read any of its units, in their order."""
    owner = {unit: at for at, group in enumerate(groups) for unit in group.units}
    result: list[list[Reader]] = [[] for _ in groups]
    for reader in found:
        here = {owner[label] for label in np.unique(reader.classes).tolist() if label in owner}
        for at in sorted(here):
            result[at].append(reader)
    return result


def others(channels: Channels, known: Collection[Use], removed: Iterable[int]) -> list[ir.Node]:
    """Who else weighs units that will go and sums over them: what is quantized or shared, batches, Einsum, ..."""
    going, found = np.zeros(channels.classes.count, bool), dict[ir.Node, None]()
    going[list(removed)] = True
    for each in channels.consumed:
        weight = each.node.inputs[each.index]
        if weight is None or not channels.is_constant(weight) or (each.node, each.index) in known:
            continue
        ids = vector(each.axis)
        if ids is not None and going[channels.classes.labels[ids]].any():
            found[each.node] = None
    return list(found)
