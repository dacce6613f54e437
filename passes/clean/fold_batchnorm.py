"""BatchNormalization into the layer before it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.linear import Linear
from onnxopt.analysis.linear.sources import Source, Sources
from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.nodes import label
from onnxopt.passes.clean import is_constant
from onnxopt.passes.known import Known
from onnxopt.passing import Context, Findings, Pass

_FIRST_WITHOUT_SPATIAL, _FIRST_WITH_MODE, _FIRST_PLAIN = 9, 14, 7
"""Opsets of BatchNormalization: the attribute `spatial` is gone, `training_mode` is there, `is_test` is gone."""


class FoldBatchnorm(Pass):
    """Fold BatchNormalization into the weights of the Conv, ConvTranspose, Gemm or MatMul before it.

    y = scale (W x + b - mean) / sqrt(var + epsilon) + B is computed in float64 and stored in the weight's type.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        sources = Sources()
        while True:
            declined, before, known = Findings(), len(findings.changes), Known(model)
            layers = {layer.y: layer for layer in context.linears}
            for node in list(model.nodes()):
                if node.op_type != "BatchNormalization" or node.domain:
                    continue
                x = node.inputs[0]
                layer = None if x is None else layers.pop(x, None)
                edit = self._edit(known, context, node, layer, sources)
                if isinstance(edit, str):
                    declined.decline(node, self.name, edit)
                    continue
                assert layer is not None
                findings.change(node, self.name, f"folded into {layer.name}")
                model.apply(edit)
            if len(findings.changes) == before:
                findings.add(declined)
                return findings

    def _edit(
        self, known: Known, context: Context, node: ir.Node, layer: Linear | None, sources: Sources
    ) -> Edit | str:
        """The edit that folds a node into the layer before it, or why there is none."""
        if why := _not_inference(known.model, node):
            return why
        if layer is None:
            return _no_layer(node)
        if why := _not_foldable(known, node, layer):
            return why
        norm = _parameters(known.model, node, sources)
        if isinstance(norm, str):
            return norm
        groups, out, _ = layer.shape
        if norm.scale.size not in (out, groups * out):
            return f"it has {norm.scale.size} channels, {layer.name} {groups * out}"
        own = norm.scale.size == groups * out  # else a batch of matrices, all normalized alike
        scale, shift = (v.reshape(groups, out) if own else np.tile(v, (groups, 1)) for v in (norm.scale, norm.shift))
        bias = layer.bias_vector()
        shift = shift if bias is None else shift + scale * bias.reshape(groups, out)
        try:
            edit = layer.replaced(
                layer.matrix() * scale[:, :, None], shift.ravel(), store=context.store, rule=self.name
            )
        except ModelError as error:
            return str(error)
        edit.rewire(node.outputs[0], dict(edit.rewired).get(layer.y, layer.y))
        edit.remove(node)
        return edit


@dataclass(frozen=True)
class _Norm:
    """What a BatchNormalization computes of each channel: scale * x + shift, float64."""

    scale: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]


def _not_inference(model: Model, node: ir.Node) -> str | None:
    if model.opset < _FIRST_PLAIN:
        return f"opset {model.opset} is too old to tell how it normalizes; upgrade-opset comes first"
    if any(value.name for value in node.outputs[1:]):
        return "it gives running statistics, so it trains"
    if model.opset >= _FIRST_WITH_MODE and node.attributes.get_int("training_mode", False):
        return "it is in training mode"
    if model.opset < _FIRST_WITHOUT_SPATIAL and not node.attributes.get_int("spatial", True):
        return "its statistics are those of every element (spatial = 0)"
    return None


def _no_layer(node: ir.Node) -> str:
    x = node.inputs[0]
    producer = None if x is None else x.producer()
    if producer is None:
        return "what it normalizes is no output of a node"
    what = f"{producer.op_type} {label(producer)}"
    return f"it normalizes the output of {what}, no layer with constant weights of its own"


def _not_foldable(known: Known, node: ir.Node, layer: Linear) -> str | None:
    """Why a layer cannot take the node in; None where it can."""
    weight = layer.weight
    if layer.y.is_graph_output() or len(layer.y.uses()) != 1:
        return f"the output of {layer.name} has other readers"
    if layer.node.graph is not node.graph:
        return f"{layer.name} lies in another graph"
    if layer.addend is not None:
        return f"{layer.name} adds {layer.addend.name}, which is no constant bias"
    if _channel_axis(layer, known) != 1:
        return f"the output features of {layer.name} are not, or not known to be, the channels that it normalizes"
    if weight.is_shared:
        return f"weight {weight.root.name} of {layer.name} has other readers"
    if weight.root.is_initializer() and not is_constant(known.model, weight.root):
        return f"weight {weight.root.name} of {layer.name} can be fed by callers"
    if any(step.op_type == "DequantizeLinear" for step in weight.steps):
        return f"weight {weight.root.name} of {layer.name} is stored quantized"
    if (stored := weight.source.root.tensor.dtype).bitwidth < layer.dtype.bitwidth:
        return f"weight {weight.root.name} of {layer.name} is stored as {stored}, too coarse to be scaled exactly"
    return None


def _channel_axis(layer: Linear, known: Known) -> int | None:
    """Axis of the output features, counted from the front."""
    if layer.y_axis >= 0:
        return layer.y_axis
    if (rank := known.rank(layer.y)) is not None:
        return layer.y_axis + rank
    return None if layer.x_rank is None else layer.y_axis + max(layer.x_rank, len(layer.weight.shape))


def _parameters(model: Model, node: ir.Node, sources: Sources) -> _Norm | str:
    arrays = []
    for value in node.inputs[1:5]:
        source = "is left out" if value is None else sources.find(value)
        if not isinstance(source, Source):
            return f"its parameter {value.name if value is not None else ''} {source}"
        if source.root.value.is_initializer() and not is_constant(model, source.root.value):
            return f"its parameter {source.root.value.name} can be fed by callers"
        arrays.append(np.array(source.array(), np.float64))
        source.release()
    gamma, beta, mean, variance = arrays
    spread = variance + node.attributes.get_float("epsilon", 1e-5)
    if not (spread > 0).all():
        return "a variance is not positive"
    scale = gamma / np.sqrt(spread)
    return _Norm(scale, beta - mean * scale)
