"""Surgery: a model without some of its channels."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.axes.axis import size_of
from onnxopt.analysis.axes.engine import Channels, Shuffle
from onnxopt.analysis.axes.patch import Kept, Patch
from onnxopt.analysis.axes.rules import REWRITES, key
from onnxopt.analysis.axes.weights import Use, Weight
from onnxopt.analysis.structure import constant_tensor
from onnxopt.edit import Edit

Mask = npt.NDArray[np.bool_]


def removal(channels: Channels, units: Iterable[int], rule: str = "remove") -> Edit:
    """An edit that takes units out of a model.

    Weights lose the entries, attributes and constants are computed anew from what stays. Weights are cut lazily:
    content is read when the model is saved.

    Args:
        channels: of the model as it is.
        units: classes of channel ids, none of them frozen, the least important one first; see `Channels.spared`.
        rule: what the edit is called in reports.
    """
    kept = Kept(channels.classes.labels, channels.spared(units))
    edit = Edit(rule)
    _cut_weights(channels, kept, edit)
    _remake_weights(channels, kept, edit)
    _take_parts(channels, kept, edit)
    chained = {node for shuffle in channels.shuffles.values() for node in shuffle.chain}
    for node in channels.model.graph:
        patch = _patch(channels, kept, edit, node)
        if patch is None:
            continue
        _declare(patch)
        shuffle = channels.shuffles.get(node)
        if shuffle is not None:
            _gather(patch, shuffle)
        elif node not in chained and key(node) in REWRITES:
            REWRITES[key(node)](patch)
    _follow(edit)
    return edit


def _follow(edit: Edit) -> None:
    """Let nodes that the edit brings in read what takes the place of nodes that it takes out."""
    removed = set(edit.removed)
    instead = {old: new for old, new in edit.rewired if old.producer() in removed}
    for node in edit.inserted:
        for index, value in enumerate(node.inputs):
            while value in instead:
                value = instead[value]
                node.replace_input_with(index, value)


def _take_parts(channels: Channels, kept: Kept, edit: Edit) -> None:
    """Let readers of what others read as well pick the entries that stay with them."""
    picked: dict[Use, ir.Value] = {}
    for part in channels.parts:
        use, stay = (part.node, part.index), kept.mask(part.axis)
        source = picked.get(use, part.node.inputs[part.index])
        if stay is None or source is None:
            continue
        chosen = edit.add_weight("channels", np.flatnonzero(stay))
        node = ir.node("Gather", [source, chosen], {"axis": part.place})
        node.outputs[0].type = source.type
        edit.insert([node], before=part.node)
        picked[use] = node.outputs[0]
    for (node, index), value in picked.items():
        edit.set_input(node, index, value)


def _patch(channels: Channels, kept: Kept, edit: Edit, node: ir.Node) -> Patch | None:
    """The node as it is adapted; None where nothing that it reads or gives loses entries."""
    inputs = [channels.of_input(node, index) for index in range(len(node.inputs))]
    outputs = [channels.of(value) for value in node.outputs]
    if not any(kept.touches(axes) for axes in (*inputs, *outputs)):
        return None
    return Patch(node, channels.symbols.call(node), edit, kept, inputs, outputs)


def _declare(patch: Patch) -> None:
    """State the new shape of what the node gives, where a shape was stated."""
    for value, axes in zip(patch.node.outputs, patch.outputs, strict=True):
        if value.shape is None or axes is None or not patch.kept_channels.touches(axes):
            continue
        sizes = [patch.kept_channels.size(axis) for axis in axes]
        if len(sizes) != len(value.shape):
            patch.edit.declare_shape(value, None)
            continue
        pairs = zip(value.shape, axes, sizes, strict=True)
        dims = [old if size_of(axis) == size else size if isinstance(size, int) else None for old, axis, size in pairs]
        patch.edit.declare_shape(value, ir.Shape(dims))


def _gather(patch: Patch, shuffle: Shuffle) -> None:
    """One Gather in place of a chain that permutes channels, for what stays need not be a product any more."""
    stay = patch.kept_channels.mask(patch.axes_out()[shuffle.place])
    if stay is None:
        return
    source = np.ones(len(stay), bool)
    source[shuffle.order] = stay
    entries = (np.cumsum(source) - 1)[shuffle.order[stay]]
    chosen = patch.edit.add_weight("channels", entries.astype(np.int64), patch.graph)
    node = ir.node("Gather", [shuffle.source, chosen], {"axis": shuffle.place})
    output = patch.node.outputs[0]
    if output.type is not None:
        node.outputs[0].type, node.outputs[0].shape = output.type, ir.Shape([None] * len(patch.axes_out()))
    patch.edit.insert([node], before=patch.node)
    patch.edit.rewire(output, node.outputs[0])
    patch.edit.remove(patch.node, *shuffle.chain)


def _cut_weights(channels: Channels, kept: Kept, edit: Edit) -> None:
    seen: dict[ir.Value, list[Weight]] = {}
    for weight in channels.weights:
        if weight.reader is None:
            seen.setdefault(weight.root, []).append(weight)
    for root, views in seen.items():
        masks = [tuple(kept.of(ids) for ids in view.ids) for view in views]
        if all(_whole(each) for each in masks):
            continue
        alike = all(np.array_equal(a, b) for each in masks for a, b in zip(each, masks[0], strict=True))
        if alike and root.is_initializer() and _read_only_by(root, views):
            edit.replace_weight(root, _cut(root, masks[0]))
            continue
        for view, each in zip(views, masks, strict=True):
            if _whole(each):
                continue
            new = edit.add_weight(root.name or "weight", _cut(root, each))
            for node, index in view.uses:
                edit.set_input(node, index, new)
        redirected = {use for view, each in zip(views, masks, strict=True) if not _whole(each) for use in view.uses}
        edit.remove(*_unread(root, redirected))


def _remake_weights(channels: Channels, kept: Kept, edit: Edit) -> None:
    """Let readers of what is made of constants, for others too, each have their own part of it."""
    remade: dict[Use, list[Weight]] = {}
    for weight in channels.weights:
        if weight.reader is not None:
            remade.setdefault(weight.reader, []).append(weight)
    redirected: dict[ir.Node, set[Use]] = {}
    for use, weights in remade.items():
        masks = [tuple(kept.of(ids) for ids in weight.ids) for weight in weights]
        if all(_whole(each) for each in masks):
            continue
        maker = weights[0].uses[0][0]
        inputs = list(maker.inputs)
        for weight, each in zip(weights, masks, strict=True):
            if not _whole(each):
                inputs[weight.uses[0][1]] = edit.add_weight(weight.root.name or "weight", _cut(weight.root, each))
        node = ir.Node(maker.domain, maker.op_type, inputs, list(maker.attributes.values()))
        node.outputs[0].type = maker.outputs[0].type
        edit.insert([node], before=use[0])
        edit.set_input(*use, node.outputs[0])
        redirected.setdefault(maker, set()).add(use)
    for maker, uses in redirected.items():
        edit.remove(*_unread(maker.outputs[0], uses))


def _read_only_by(root: ir.Value, views: Sequence[Weight]) -> bool:
    """Whether nobody else reads a constant, through Identity nodes or not."""
    uses = {use for view in views for use in view.uses}
    stack = [root]
    while stack:
        value = stack.pop()
        if value.is_graph_output():
            return False
        for node, index in value.uses():
            if node.op_type == "Identity" and (node, index) not in uses:
                stack.append(node.outputs[0])
            elif (node, index) not in uses:
                return False
    return True


def _whole(masks: Sequence[Mask]) -> bool:
    return all(bool(mask.all()) for mask in masks)


def _unread(root: ir.Value, redirected: set[Use]) -> list[ir.Node]:
    """The node that holds a constant and the Identity nodes behind it that lose all their readers."""
    values = [root]
    for value in values:  # which grows
        values += [node.outputs[0] for node, _ in value.uses() if node.op_type == "Identity"]
    found: list[ir.Node] = []
    lost: set[ir.Value] = set()
    for value in reversed(values):
        read = any(use not in redirected and use[0].outputs[0] not in lost for use in value.uses())
        if read or value.is_graph_output():
            continue
        lost.add(value)
        maker = value.producer()
        if maker is not None:
            found.append(maker)
    return found


def _cut(root: ir.Value, masks: Sequence[Mask]) -> ir.TensorProtocol:
    """The entries of a constant that stay, read when they are needed."""
    tensor = constant_tensor(root)
    assert tensor is not None
    index = [(axis, np.flatnonzero(mask)) for axis, mask in enumerate(masks) if not mask.all()]

    def read() -> ir.TensorProtocol:
        array: npt.NDArray[Any] = np.asarray(tensor.numpy())
        for axis, entries in sorted(index, key=lambda each: len(each[1]) / array.shape[each[0]]):
            array = np.take(array, entries, axis)
        return ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=root.name)

    shape = ir.Shape([int(mask.sum()) for mask in masks])
    return ir.LazyTensor(read, tensor.dtype, shape, name=root.name)
