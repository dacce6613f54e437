"""Other weights for a layer: where they are stored, and what becomes superfluous."""

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.linear.layouts import Dense, Filters
from onnxopt.analysis.linear.steps import FLOATS, Array
from onnxopt.edit import Edit
from onnxopt.errors import ModelError

if TYPE_CHECKING:
    from onnxopt.analysis.linear.layer import Keep, Linear, Parameter, Store


def record(
    edit: Edit,
    layer: "Linear",
    matrix: Array,
    bias: "Array | Keep | None",
    dtype: ir.DataType | None,
    store: "Store | None",
) -> None:
    """Record in an edit that the layer computes with another matrix and bias; see `Linear.replaced`."""
    layer.check_current()
    groups, out, _ = _check_matrix(layer, matrix)
    if isinstance(bias, np.ndarray):
        _check_bias(layer, bias, groups * out)
        _put_bias(edit, layer, bias, groups, out)
    elif bias is None:
        _drop_bias(edit, layer)
    elif (
        layer.bias is not None
        and math.prod(layer.bias.shape) != 1
        and groups * out != layer.groups * layer.out_features
    ):
        raise ModelError(f"layer {layer.name} gets {groups} x {out} outputs; give a bias of that size too")
    _put_matrix(edit, layer, matrix, dtype, store)


def record_bias(edit: Edit, layer: "Linear", bias: Array | None) -> None:
    """Record in an edit that the layer has another bias, or none; see `Linear.rebiased`."""
    layer.check_current()
    if bias is None:
        _drop_bias(edit, layer)
        return
    _check_bias(layer, bias, layer.groups * layer.out_features)
    _put_bias(edit, layer, bias, layer.groups, layer.out_features)


def _check_matrix(layer: "Linear", matrix: Array) -> tuple[int, int, int]:
    if matrix.ndim != 3:
        raise ModelError(f"layer {layer.name} takes a matrix [groups, out, in * taps], not {list(matrix.shape)}")
    groups, out, columns = matrix.shape
    if columns % layer.taps:
        raise ModelError(f"layer {layer.name} has {layer.taps} taps; {columns} columns are no multiple of that")
    if isinstance(layer.layout, Dense) and groups != layer.groups:
        raise ModelError(f"layer {layer.name} has a batch of {layer.groups} matrices, not {groups}")
    return groups, out, columns


def _check_bias(layer: "Linear", bias: Array, count: int) -> None:
    if bias.shape != (count,):
        raise ModelError(f"layer {layer.name} takes a bias [{count}], not {list(bias.shape)}")


def _put_matrix(edit: Edit, layer: "Linear", matrix: Array, dtype: ir.DataType | None, store: "Store | None") -> None:
    if layer.alpha != 1:
        # Dividing by alpha would not give the same bits again.
        if dtype is None and np.array_equal(matrix, layer.matrix()):
            return
        edit.set_attribute(layer.node, "alpha", 1.0)
    put(edit, layer.weight, layer.layout.to_stored(matrix), dtype, store)
    if isinstance(layer.layout, Filters) and matrix.shape[0] != layer.layout.group:
        edit.set_attribute(layer.node, "group", matrix.shape[0])


def _put_bias(edit: Edit, layer: "Linear", bias: Array, groups: int, out: int) -> None:
    shape = layer.vector_shape(groups, out)
    if shape is None:
        raise ModelError(f"layer {layer.name} cannot get a bias: the rank of its input {layer.x.name} is not known")
    if layer.bias is not None:
        if layer.beta != 1:
            present = layer.bias_vector()
            if present is not None and np.array_equal(bias, present):
                return
            edit.set_attribute(layer.node, "beta", 1.0)
        axes = (1,) * (len(layer.bias.shape) - len(shape))
        put(edit, layer.bias, bias.reshape(*axes, *shape), None, None)
        return
    if layer.kind == "matmul" or layer.addend is not None:
        _append_add(edit, layer, bias.reshape(shape))
        return
    if layer.beta != 1:
        edit.set_attribute(layer.node, "beta", 1.0)
    edit.set_input(layer.node, 2, _new_weight(edit, layer, "bias", bias.reshape(shape)))


def _append_add(edit: Edit, layer: "Linear", bias: Array) -> None:
    if layer.geometry is not None:
        bias = bias.reshape(-1, *(1 for _ in layer.geometry.kernel))
    weight = _new_weight(edit, layer, "bias", bias)
    add = ir.node("Add", [layer.y, weight], name=f"{layer.name}_bias_add")
    add.outputs[0].type, add.outputs[0].shape = layer.y.type, layer.y.shape
    edit.insert([add], after=layer.node)
    edit.rewire(layer.y, add.outputs[0])


def _drop_bias(edit: Edit, layer: "Linear") -> None:
    bias = layer.bias
    if bias is None:
        return
    if bias.node is layer.node:
        edit.set_input(bias.node, bias.index, None)
    else:
        edit.rewire(layer.y, layer.node.outputs[0])
        edit.remove(bias.node)
    edit.remove(*bias.source.only_for((bias.node, bias.index)))


def _new_weight(edit: Edit, layer: "Linear", stem: str, array: Array) -> ir.Value:
    """A new initializer beside the layer, in the type that it computes in."""
    graph = layer.node.graph
    assert isinstance(graph, ir.Graph)
    return edit.add_weight(f"{layer.name}_{stem}", as_stored(array, layer.dtype, None, layer.name), graph)


def put(edit: Edit, parameter: "Parameter", array: Array, dtype: ir.DataType | None, store: "Store | None") -> None:
    """Store an array for one reader, and let it be read without the steps that led to the old one."""
    reader, root = (parameter.node, parameter.index), parameter.root
    storage = _storage(parameter) if dtype is None else dtype
    tensor = as_stored(array, storage, store, root.name or "")
    value = put_stored(edit, parameter, tensor)
    if value is root and storage == root.dtype and [step.op_type for step in parameter.steps] == ["Cast"]:
        return
    if storage != parameter.dtype:
        cast = ir.node("Cast", [value], {"to": parameter.dtype}, name=f"{root.name}_cast")
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(parameter.dtype), ir.Shape(array.shape)
        edit.insert([cast], before=parameter.node)
        value = cast.outputs[0]
    if value is not parameter.value:
        edit.set_input(*reader, value)
        edit.remove(*parameter.source.only_for(reader))


def put_stored(edit: Edit, parameter: "Parameter", tensor: ir.TensorProtocol) -> ir.Value:
    """The root with another tensor where it has this one reader, else a new initializer beside it."""
    root = parameter.root
    if root.is_initializer() and not parameter.is_shared:
        edit.replace_weight(root, tensor)
        return root
    assert isinstance(root.graph, ir.Graph)
    return edit.add_weight(root.name or "weight", tensor, root.graph)


def _storage(parameter: "Parameter") -> ir.DataType:
    """The type to store in: what the node reads, unless floats are stored narrower already."""
    stored, read = parameter.source.chain()[0].form.dtype, parameter.dtype
    return stored if stored in FLOATS and stored.bitwidth < read.bitwidth else read


def as_stored(array: Array, dtype: ir.DataType, store: "Store | None", name: str) -> ir.TensorProtocol:
    """An array in the type to store it in, whose range it must not leave."""
    if dtype not in FLOATS:
        raise ModelError(
            f"weight {name} cannot be stored as {dtype}, only as one of {', '.join(sorted(map(str, FLOATS)))}"
        )
    with np.errstate(over="ignore"):
        # In memory it must be the model's own; a store makes its copy anyway.
        stored = np.array(array, dtype.numpy(), order="C", copy=True if store is None else None)
    if stored.dtype != array.dtype and np.isinf(stored).any() and not np.isinf(array).any():
        raise ModelError(f"weight {name} has values up to {np.abs(array).max():.3g}, too large for {dtype}")
    return ir.Tensor(stored, dtype=dtype) if store is None else store(stored, dtype)
