"""Any matrix product with a constant as `MatMul(x, W[K, N])`, where W may come from anywhere."""

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxopt.analysis.linear.layouts import Dense
from onnxopt.analysis.linear.replacing import as_stored, put_stored
from onnxopt.edit import Edit
from onnxopt.errors import ModelError

if TYPE_CHECKING:
    from onnxopt.analysis.linear.layer import Linear


def refusal(layer: "Linear") -> str | None:
    """Why the layer cannot become a MatMul; None where it can."""
    if not isinstance(layer.layout, Dense):
        return "a convolution is no matrix product"
    if layer.layout.left and layer.x_rank is None:
        return f"the weight is on the left, and the rank of {layer.x.name}, which would be transposed, is not known"
    if layer.addend is not None and layer.beta != 1:
        return f"{layer.addend.name} is scaled by beta = {layer.beta:g} and is no constant bias over output features"
    return None


def record(edit: Edit, layer: "Linear", weight: ir.Value) -> None:
    """Record in an edit that the layer multiplies by the weight; see `Linear.rewired_to_matmul`."""
    layer.check_current()
    why = refusal(layer)
    if why is not None:
        raise ModelError(f"layer {layer.name} cannot become a MatMul: {why}")
    _check_weight(layer, weight)
    if layer.weight.index == 1 and layer.kind == "matmul":
        edit.set_input(layer.node, 1, weight)
    else:
        _rebuild(edit, layer, weight)
    edit.remove(*layer.weight.source.only_for((layer.weight.node, layer.weight.index)))


def _check_weight(layer: "Linear", weight: ir.Value) -> None:
    if weight.dtype is not None and weight.dtype != layer.dtype:
        raise ModelError(f"layer {layer.name} computes in {layer.dtype}; {weight.name} is {weight.dtype}")
    if weight.shape is not None and weight.shape != layer.matmul_shape:
        shape = list(layer.matmul_shape)
        raise ModelError(f"layer {layer.name} takes a weight of shape {shape}; {weight.name} is {weight.shape}")


def _rebuild(edit: Edit, layer: "Linear", weight: ir.Value) -> None:
    """Put MatMul, with what must be turned and added around it, in the node's place."""
    product = layer.node.outputs[0]
    x, nodes = layer.x, []
    if layer.x_axis == -2:
        nodes.append(_swapped(x, layer.x_rank))
        x = nodes[-1].outputs[0]
    matmul = ir.node("MatMul", [x, weight], name=layer.node.name, metadata_props=dict(layer.node.metadata_props))
    nodes.append(matmul)
    _like(matmul.outputs[0], product, turned=layer.y_axis == -2)
    if layer.y_axis == -2:
        nodes.append(_swapped(matmul.outputs[0], _product_rank(layer)))
    addend = _addend(edit, layer)
    if addend is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], addend], name=f"{layer.name}_bias_add"))
    y = nodes[-1].outputs[0]
    y.name = product.name
    _like(y, product)
    edit.insert(nodes, before=layer.node)
    edit.rewire(product, y)
    edit.remove(layer.node)


def _product_rank(layer: "Linear") -> int:
    assert layer.x_rank is not None
    return max(layer.x_rank, len(layer.weight.shape))


def _addend(edit: Edit, layer: "Linear") -> ir.Value | None:
    """What Gemm adds to the product; MatMul's Add stays as it is."""
    if layer.addend is not None or layer.bias is None or layer.kind == "matmul":
        return layer.addend
    if layer.beta == 1:
        return layer.bias.value
    edit.remove(*layer.bias.source.only_for((layer.node, layer.bias.index)))
    vector, shape = layer.bias_vector(), layer.vector_shape(layer.groups, layer.out_features)
    if not layer.beta or vector is None or shape is None:
        return None
    name = layer.bias.root.name or ""
    return put_stored(edit, layer.bias, as_stored(vector.reshape(shape), layer.dtype, None, name))


def _swapped(value: ir.Value, rank: int | None) -> ir.Node:
    """A Transpose that swaps the last two axes."""
    assert rank is not None
    order = [*range(rank - 2), rank - 1, rank - 2]
    node = ir.node("Transpose", [value], {"perm": order}, name=f"{value.name or 'product'}_swapped")
    _like(node.outputs[0], value, turned=True)
    return node


def _like(value: ir.Value, model: ir.Value, *, turned: bool = False) -> None:
    """Give a new value the type and shape of another, the last two axes swapped where it is turned."""
    value.type = model.type
    if model.shape is not None:
        dims = list(model.shape)
        value.shape = ir.Shape([*dims[:-2], dims[-1], dims[-2]] if turned else dims)
