"""Multiplications and additions of constants, into the layer or normalization beside them."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.affine import Chain, Shape, Step, Vector, known_pattern, step_at
from onnxopt.analysis.linear import KEEP, Linear
from onnxopt.analysis.linear.layer import is_vector
from onnxopt.analysis.linear.sources import Source, Sources
from onnxopt.analysis.linear.steps import FLOATS
from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.passes.clean import is_constant
from onnxopt.passes.known import Known
from onnxopt.passing import Context, Findings, Pass

_LAYOUT = frozenset({
    "DepthToSpace", "Flatten", "Identity", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that move elements of their first input about: a factor of all of them may come before or after."""

_NORMS = {
    "BatchNormalization": 2, "GroupNormalization": 2, "InstanceNormalization": 2, "LayerNormalization": 2,
    "RMSNormalization": 1,
}  # fmt: skip
"""Normalizations, and the last of the inputs from the first on that hold their scale (1) and shift (2)."""

_LARGEST_SHIFT = 16.0
"""What is added before a layer, in units of its input, that its bias may take over: the layer computes the sum's
parts apart, and where they cancel the rounding of the larger part stays."""
_HALF_ROUNDING, _FULL_ROUNDING = 1e-3, 1e-6
"""By how much storing may change a row of a weight (relative L2), in layers of 16 bits and of more."""


class FoldScale(Pass):
    """Fold Mul, Div, Add, Sub and Neg with constants into the layer or normalization before or behind them.

    Layers are Conv, ConvTranspose, Gemm and MatMul; a factor of a whole tensor may be beyond Reshape, Transpose and
    the like. New weights are computed in float64 and stored in the weight's type.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        while True:
            work = _Work(model, context, self.name)
            for layer in context.linears:
                work.fold_layer(layer)
            for node in list(model.nodes()):
                if node.op_type in _NORMS and not node.domain:
                    work.fold_norm(node)
            for step, into in work.folded.values():
                findings.change(step.name, self.name, f"{step.node.op_type} folded into {into}")
            if not work.again:
                break
        for node, why in work.left.items():
            if node not in work.folded:
                findings.decline(node, self.name, why)
        return findings


@dataclass
class _Work:
    """One run of the pass.

    Attributes:
        folded: the nodes that are gone, and where they went.
        left: the nodes that were looked at and stay, with the reason.
        again: whether layers may have found a bias, or the rank of their input, behind what was folded.
    """

    model: Model
    context: Context
    rule: str
    folded: dict[ir.Node, tuple[Step, str]] = field(default_factory=dict)
    left: dict[ir.Node, str] = field(default_factory=dict)
    sources: Sources = field(default_factory=Sources)
    again: bool = False

    @cached_property
    def _known(self) -> Known:
        """What holds at all sizes of dynamic axes, whatever the file declares of inner values."""
        return Known(self.model)

    @cached_property
    def _biases(self) -> set[ir.Node]:
        """The Adds that are layers' biases."""
        return {layer.bias.node for layer in self.context.linears if layer.bias is not None}

    def fold_layer(self, layer: Linear) -> None:
        """Fold what stands before and behind a layer."""
        layer = self._ranked(layer)
        biased = layer.kind != "matmul" or layer.bias is not None
        behind = self._behind(layer.y, *_outputs(layer), None if biased else "it would only become an Add")
        before = self._before(layer, biased)
        steps = [*before.steps, *behind.steps]
        if not steps:
            return
        edit = _refusal(self.model, layer) or self._layer_edit(layer, before, behind)
        self._apply(edit, steps, layer.name, anew=bool(before.steps) or not biased)

    def _ranked(self, layer: Linear) -> Linear:
        """The layer, with a rank of its input that the graph does not state but that follows."""
        dims = self._known.dims(layer.x) if layer.x_rank is None and self._beside(layer) else None
        if not dims:
            return layer
        axis = -2 if layer.x_axis == -2 and len(dims) > 1 else -1
        return replace(layer, x_rank=len(dims), x_axis=axis, y_axis=axis)

    def _beside(self, layer: Linear) -> bool:
        """Whether anything to fold may stand beside the layer: shapes are not inferred for nothing."""
        x = _input(layer)
        beside = (None if x is None else x.producer(), _only_reader(layer.y))
        return any(node is not None and (node.op_type in _LAYOUT or self._step(node) is not None) for node in beside)

    def fold_norm(self, node: ir.Node) -> None:
        """Fold what stands behind a normalization into its scale and shift."""
        parameters = self._parameters(node)
        if isinstance(parameters, str):
            return
        scale, shift = parameters
        rank = len(scale.form.shape)
        over = scale.form.shape
        if node.op_type not in ("LayerNormalization", "RMSNormalization"):
            dims = self._known.dims(node.outputs[0]) or self._known.dims(node.inputs[0])
            rank = 0 if dims is None else len(dims)
            over = (*over, *(1,) * (rank - 2)) if rank else ()
        why = None if _NORMS[node.op_type] == 2 else f"{node.op_type} has no shift to take it"
        chain = self._behind(node.outputs[0], over, rank, why)
        if chain.steps:
            self._apply(self._norm_edit(node, scale, shift, chain), chain.steps, f"{node.op_type} {node.name or ''}")

    def _apply(self, edit: Edit | str, steps: list[Step], into: str, *, anew: bool = False) -> None:
        try:
            if isinstance(edit, str):
                raise ModelError(edit)
            kept: dict[ir.Value, ir.Value] = {}
            for step in steps:
                kept[step.node.outputs[0]] = kept.get(step.x, step.x)
                edit.rewire(step.node.outputs[0], kept[step.node.outputs[0]])
                edit.remove(step.node)
            self.model.apply(edit)
        except ModelError as error:
            self.left |= {step.node: str(error) for step in steps}
        else:
            self.folded |= {step.node: (step, into) for step in steps}
            self.again |= anew

    def _step(self, node: ir.Node) -> Step | None:
        return None if node in self._biases else step_at(node, self._constant)

    def _constant(self, value: ir.Value | None) -> Source | None:
        source = "" if value is None else self.sources.find(value)
        if isinstance(source, str) or source.form.dtype not in FLOATS:
            return None
        root = source.root.value
        return None if root.is_initializer() and not is_constant(self.model, root) else source

    def _behind(self, y: ir.Value, over: Shape, rank: int, unshiftable: str | None) -> Chain:
        """The steps behind a value that change each of its features, or all elements, alike.

        Args:
            y: the value.
            over: shape in which its features broadcast against it.
            rank: the value's rank, or the least that it can be.
            unshiftable: why nothing may be added; None: it may.
        """
        chain, value, direct = Chain(), y, True
        while (reader := _only_reader(value)) is not None and reader.graph is y.graph:
            if reader.op_type in _LAYOUT and not reader.domain and reader.inputs[0] is value:
                value, direct = reader.outputs[0], False
                continue
            step = self._step(reader)
            if step is None:
                break
            if step.shifts and not direct:
                why: Chain | str = "it adds behind operators that move elements"
            elif step.shifts and unshiftable:
                why = unshiftable
            elif direct and not is_vector(step.shape, over, rank):
                why = f"its constant of shape {list(step.shape)} is none for each feature"
            elif not direct and not self._is_scalar(step):
                why = f"its constant of shape {list(step.shape)} is no factor of the whole tensor"
            else:
                why = chain.extended(step, over if direct else (), before=False)
            if isinstance(why, str):
                self.left.setdefault(reader, why)
                break
            chain, value = why, reader.outputs[0]
        return chain

    def _is_scalar(self, step: Step) -> bool:
        """Whether the constant is one number, and gives the result no more axes than x has."""
        dims = self._known.dims(step.x)
        return all(size == 1 for size in step.shape) and len(step.shape) <= (0 if dims is None else len(dims))

    def _before(self, layer: Linear, biased: bool) -> Chain:
        """The steps before a layer, for which its columns can stand."""
        chain, value = Chain(), _input(layer)
        while value is not None:
            node = value.producer()
            step = None if node is None or node.graph is not layer.node.graph else self._step(node)
            if step is None or _only_reader(value) is None:
                break
            longer: Chain | str | None = self._unfit(layer, step, biased)
            if longer is None:
                longer = chain.extended(step, _inputs(layer), before=True)
            if not isinstance(longer, str) and abs(longer.shift).max() > _LARGEST_SHIFT:
                longer = f"it adds up to {abs(longer.shift).max():.3g}, too much to be part of a bias exactly"
            if isinstance(longer, str):
                self.left.setdefault(step.node, longer)
                break
            chain, value = longer, step.x
        return chain

    def _unfit(self, layer: Linear, step: Step, biased: bool) -> str | None:
        """Why a step before a layer has to stay."""
        over, dims = _inputs(layer), self._known.dims(step.x) or ()
        if step.shifts and not biased:
            return "it would only become an Add"
        if step.shifts and layer.geometry is not None and (layer.kind == "conv_transpose" or _pads(layer)):
            return f"what {layer.name} sees at its borders has nothing added to it"
        if not is_vector(step.shape, over, len(dims)):
            return f"its constant of shape {list(step.shape)} is none for each input feature of {layer.name}"
        if any(size != 1 for size in step.shape) and dims[layer.x_axis] != layer.in_features * _own_groups(layer):
            return f"{step.x.name} may have fewer features than its constant"
        return known_pattern(step)

    def _layer_edit(self, layer: Linear, before: Chain, behind: Chain) -> Edit | str:
        matrix = layer.matrix()
        groups, out, _ = layer.shape
        bias, shift = layer.bias_vector(), before.shift
        total = np.zeros((groups, out)) if bias is None else bias.astype(np.float64).reshape(groups, out)
        if shift.any():
            columns = _columns(layer, shift)
            total = total + np.stack([_product(*pair) for pair in zip(matrix, columns, strict=True)])
        rows, moved = (_spread(vector, groups, out) for vector in (behind.scale, behind.shift))
        total = total * rows + moved
        for factors in (_columns(layer, before.scale)[:, None, :], rows[:, :, None]):
            if (factors != 1).any():
                np.multiply(matrix, factors, out=matrix, dtype=np.float64, casting="same_kind")
        if why := _rounding(layer, matrix):
            return why
        keeps = bias is None and not total.any()
        return layer.replaced(matrix, KEEP if keeps else total.ravel(), store=self.context.store, rule=self.rule)

    def _parameters(self, node: ir.Node) -> tuple[Source, Source | None] | str:
        """Scale and shift of a normalization, or why they cannot be changed."""
        trains = node.attributes.get_int("training_mode", False) or any(value.name for value in node.outputs[1:])
        if node.op_type == "BatchNormalization" and (self.model.opset < 9 or trains):
            return "it may train"
        values = [*node.inputs[1 : 1 + _NORMS[node.op_type]], None][:2]
        scale, shift = (self._constant(value) for value in values)
        if scale is None or (values[1] is not None and shift is None):
            return "its parameters are no constants"
        return scale, shift

    def _norm_edit(self, node: ir.Node, scale: Source, shift: Source | None, chain: Chain) -> Edit:
        edit, shape = Edit(self.rule), scale.form.shape
        factors = np.broadcast_to(chain.scale, (int(np.prod(shape)),)).reshape(shape)
        moved = np.broadcast_to(chain.shift, (int(np.prod(shape)),)).reshape(shape)
        if (factors != 1).any():
            self._put(edit, node, 1, scale, factors * np.array(scale.array(), np.float64))
        if shift is not None:
            moved = factors * np.array(shift.array(), np.float64) + moved
        if shift is not None or moved.any():
            self._put(edit, node, 2, shift or scale, moved, new=shift is None)
        return edit

    def _put(self, edit: Edit, node: ir.Node, index: int, old: Source, array: Vector, *, new: bool = False) -> None:
        """Let a node read another vector, in the old one's type."""
        with np.errstate(over="ignore"):
            tensor = ir.Tensor(np.array(array, old.form.dtype.numpy(), order="C"), dtype=old.form.dtype)
        if not np.isfinite(tensor.numpy().astype(np.float64)).all():
            raise ModelError(f"a parameter of {node.op_type} {node.name} would be too large for {old.form.dtype}")
        if not new and not old.steps and old.value.is_initializer() and old.is_private((node, index)):
            edit.replace_weight(old.value, tensor)
            return
        assert isinstance(node.graph, ir.Graph)
        edit.set_input(node, index, edit.add_weight(f"{node.name or node.op_type}_folded", tensor, node.graph))


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return next(iter(uses))[0] if len(uses) == 1 and not value.is_graph_output() else None


def _input(layer: Linear) -> ir.Value | None:
    """What the layer's node reads now."""
    return layer.node.inputs[0 if layer.geometry is not None else 1 - layer.weight.index]


def _own_groups(layer: Linear) -> int:
    """How many groups of input features there are; the matrices of a batch share theirs, or are fed alike."""
    return 1 if layer.geometry is None else layer.groups


def _outputs(layer: Linear) -> tuple[Shape, int]:
    """Shape in which output features broadcast against y, and the rank of y or the least that it can be."""
    shape = layer.vector_shape(layer.groups, layer.out_features)
    if layer.geometry is not None:
        assert shape is not None
        return (*shape, *(1 for _ in layer.geometry.kernel)), len(layer.weight.shape)
    if layer.kind == "gemm":
        return shape or (), 2
    weight_rank = len(layer.weight.shape)
    least = weight_rank - 1 if layer.x_rank in (None, 1) else max(layer.x_rank or 0, weight_rank)
    return ((), 0) if shape is None else (shape, least)


def _inputs(layer: Linear) -> Shape:
    """Shape in which input features broadcast against x."""
    if layer.geometry is not None:
        return (layer.groups * layer.in_features, *(1 for _ in layer.geometry.kernel))
    return (layer.in_features,) if layer.x_axis == -1 else (layer.in_features, 1)


def _pads(layer: Linear) -> bool:
    geometry = layer.geometry
    return geometry is not None and (geometry.auto_pad not in ("NOTSET", "VALID") or any(geometry.pads))


def _columns(layer: Linear, vector: Vector) -> Vector:
    """A number, or one for each input feature, as `[groups, in * taps]`."""
    features = _spread(vector, _own_groups(layer), layer.in_features)
    return np.broadcast_to(np.repeat(features, layer.taps, axis=1), (layer.groups, layer.in_features * layer.taps))


def _spread(vector: Vector, groups: int, count: int) -> Vector:
    return np.broadcast_to(vector.reshape((1, 1) if vector.size == 1 else (groups, count)), (groups, count))


def _product(matrix: npt.NDArray[np.floating], vector: Vector) -> Vector:
    """matrix @ vector in float64, some rows at a time."""
    step = max(1, 2**20 // max(vector.size, 1))
    parts = [matrix[i : i + step].astype(np.float64) @ vector for i in range(0, len(matrix), step)]
    return np.concatenate(parts)


def _refusal(model: Model, layer: Linear) -> str | None:
    """Why a layer's weight or bias may not be changed."""
    weight, root = layer.weight, layer.weight.root
    if layer.addend is not None:
        return f"{layer.name} adds {layer.addend.name}, which is no constant bias"
    if len(weight.sharers) > 1 or weight.is_shared:  # the former is kept for all who share
        return f"weight {root.name} of {layer.name} has other readers"
    for parameter in (weight, layer.bias):
        if parameter is not None and parameter.root.is_initializer() and not is_constant(model, parameter.root):
            return f"{parameter.root.name} of {layer.name} can be fed by callers"
        if parameter is not None and any(step.op_type == "DequantizeLinear" for step in parameter.steps):
            return f"{parameter.root.name} of {layer.name} is stored quantized"
    return None


def _rounding(layer: Linear, matrix: npt.NDArray[np.floating]) -> str | None:
    """Why the type in which the layer keeps its weight cannot hold the new one."""
    name, stored = layer.weight.root.name, layer.weight.source.root.tensor.dtype
    storage = stored if stored in FLOATS and stored.bitwidth < layer.dtype.bitwidth else layer.dtype
    if not (np.isfinite(matrix.min()) and np.isfinite(matrix.max())):
        return f"weight {name} of {layer.name} is not finite, or would not be"
    if storage.bitwidth >= 32:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.linalg.norm(matrix - matrix.astype(storage.numpy()).astype(matrix.dtype), axis=-1)
    worst = (errors / np.maximum(np.linalg.norm(matrix, axis=-1), np.finfo(np.float32).tiny)).max()
    allowed = _HALF_ROUNDING if layer.dtype.bitwidth < 32 else _FULL_ROUNDING
    if worst <= allowed:
        return None
    return f"weight {name} of {layer.name} is stored as {storage}, which would round it by {worst:.1e}"
