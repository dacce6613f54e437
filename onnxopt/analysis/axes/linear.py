"""Layers with a constant weight, Conv, ConvTranspose, Gemm and MatMul, and what they make of constant channels."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.analysis.axes.patterns import MOST, Given, Open, Pattern, effect, numbers
from onnxopt.analysis.axes.rules import key
from onnxopt.analysis.axes.windows import Windows
from onnxopt.analysis.structure import constant_array, constant_tensor
from onnxopt.numerics.importance import slice_sums

Array: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = npt.NDArray[np.bool_]

_KINDS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Layer:
    """A layer whose weight is constant.

    Attributes:
        given: the node and what is known of it.
        weight: `[groups, outputs, inputs, *kernel]`, of a group; no axis is copied.
    """

    given: Given
    weight: Array

    @classmethod
    def of(cls, given: Given) -> "Layer | None":
        """None where a node is no such layer."""
        node = given.node
        if key(node)[0] or node.op_type not in _KINDS or not given.channels.is_constant(node.inputs[1]):
            return None
        tensor = constant_tensor(node.inputs[1])
        spatial = "Conv" in node.op_type
        if tensor is None or (len(tensor.shape) < 3 if spatial else len(tensor.shape) != 2):
            return None
        array: Array = np.asarray(tensor.numpy())
        if node.op_type == "Gemm":
            if node.attributes.get_int("transA", 0):
                return None
            array = array if node.attributes.get_int("transB", 0) else array.T
        if node.op_type == "MatMul":
            array = array.T
        groups = node.attributes.get_int("group", 1) if spatial else 1
        array = array.reshape(groups, -1, *array.shape[1:]) if spatial else array[None]
        return cls(given, array.swapaxes(1, 2) if node.op_type == "ConvTranspose" else array)

    @property
    def spatial(self) -> bool:
        """Whether it is a convolution."""
        return self.weight.ndim > 3

    @property
    def place(self) -> int:
        """Of the channels, of what it reads and of what it gives."""
        return 1 if self.spatial else -1

    @property
    def outputs(self) -> int:
        """How many channels it gives."""
        return int(self.weight.shape[0] * self.weight.shape[1])

    @property
    def inputs(self) -> int:
        """How many channels it reads."""
        return int(self.weight.shape[0] * self.weight.shape[2])

    def bias(self) -> Pattern | None:
        """What it adds, `[outputs]`; None where that is no constant vector."""
        node = self.given.node
        if node.op_type == "MatMul" or len(node.inputs) < 3 or node.inputs[2] is None:
            return np.zeros(self.outputs)
        array = constant_array(node.inputs[2]) if self.given.channels.is_constant(node.inputs[2]) else None
        if array is None or array.size not in (1, self.outputs) or array.size != (array.shape or (1,))[-1]:
            return None
        return np.broadcast_to(array.reshape(-1).astype(np.float64) * self.beta, (self.outputs,))

    @property
    def beta(self) -> float:
        """What the bias is multiplied with."""
        return self.given.node.attributes.get_float("beta", 1.0) if self.given.node.op_type == "Gemm" else 1.0

    @property
    def blurs(self) -> bool:
        """Whether what it makes of numbers that are the same everywhere differs from place to place."""
        if not self.spatial:
            return False
        windows = self._windows()
        if self.given.node.op_type == "Conv":
            return windows.padded
        attributes = self.given.node.attributes
        more = any(attributes.get_ints("output_padding", ())) or "output_shape" in attributes
        return windows.padded or more or any(each != 1 for each in (*windows.kernel, *windows.strides))

    def touched(self, inputs: Mask) -> Mask:
        """Which outputs some inputs take part in: `[outputs]`, of `[inputs]`."""
        groups, _, size = self.weight.shape[:3]
        if not inputs.any():
            return np.zeros(self.outputs, bool)
        if groups > 1:
            reads = (self.weight != 0).any(tuple(range(3, self.weight.ndim)))
            found: Mask = (reads & inputs.reshape(groups, 1, size)).any(2).reshape(-1)
            return found
        weight = self.weight[0] if inputs.all() else self.weight[0][:, inputs]
        turned = weight.ndim == 2 and not weight.flags.c_contiguous  # read in the order in which it is stored
        (sums,) = slice_sums(weight.T, (1,), 1) if turned else slice_sums(weight, (0,), 1)
        return np.asarray(sums != 0)

    def gain(self, x: Pattern) -> Pattern:
        """What it makes, without its bias, of numbers along the axes of its input.

        Raises:
            Open: a size is open, or there are too many.
        """
        shape = list(x.shape)
        shape[self.place] = self.inputs
        x = np.broadcast_to(x, shape)
        if not self.spatial:
            at = np.flatnonzero(x.any(tuple(range(x.ndim - 1))))
            if prod(x.shape[:-1]) > 1 and prod(x.shape[:-1]) * self.outputs > MOST:
                raise Open("too many numbers")
            scale = self.given.node.attributes.get_float("alpha", 1.0) if self.given.node.op_type == "Gemm" else 1.0
            product: Pattern = scale * (x[..., at] @ self.weight[0][:, at].T.astype(np.float64))
            return product
        if x.shape[0] != 1:
            raise Open("differs from sample to sample")
        groups, _, size = self.weight.shape[:3]
        image = x[0].reshape(groups, size, *x.shape[2:])
        at = np.flatnonzero(image.any((0, *range(2, image.ndim))))
        image, weight = image[:, at], self.weight[:, :, at].astype(np.float64)
        if prod(x.shape[2:]) == 1:
            summed = np.einsum("gmi...,gi->gm...", weight, image.reshape(groups, len(at)))
            if not self.blurs:
                found: Pattern = summed.reshape(*summed.shape[:2], -1).sum(2).reshape(1, -1, *x.shape[2:])
                return found
            image, weight = np.ones((groups, 1, *x.shape[2:])), summed[:, :, None]
        return self._convolved(image, weight)[None]

    def _convolved(self, image: Pattern, weight: Pattern) -> Pattern:
        """`[groups * outputs, *spatial]` of `[groups, inputs, *spatial]`."""
        given = self.given
        sizes, result = numbers(given.shape(0)[2:]), numbers(given.shape_out()[2:])
        if self.outputs * prod(result) > MOST or image.shape[0] * image.shape[1] * prod(sizes) > MOST:
            raise Open("too many numbers")
        image = np.broadcast_to(image, (*image.shape[:2], *sizes))
        windows = self._windows()

        def mixed(index: int, view: Pattern) -> Pattern:
            part = weight.reshape(*weight.shape[:3], -1)[..., index] @ view.reshape(*view.shape[:2], -1)
            return part.reshape(-1, *view.shape[2:])

        if given.node.op_type == "Conv":
            total = np.zeros(())
            for index, (_, view) in enumerate(windows.views(image, sizes)):
                total = total + mixed(index, view)
            return total
        if windows.auto_pad not in ("NOTSET", "VALID") or "output_shape" in given.node.attributes:
            raise Open("padding that is computed")

        def parts() -> Iterator[tuple[tuple[int, ...], Pattern]]:
            for index, offset in enumerate(np.ndindex(*windows.kernel)):
                yield offset, mixed(index, image)

        return windows.placed(parts(), sizes, result)

    def _windows(self) -> Windows:
        return Windows.of(self.given.node, self.weight.shape[3:])


@effect("Conv", "ConvTranspose", "Gemm", "MatMul", starts=True)
def _made(given: Given) -> Pattern:
    """A row of zeros gives its bias; one that reads nothing but constants gives a constant on top of that."""
    layer = Layer.of(given)
    bias = None if layer is None else layer.bias()
    if layer is None or bias is None:
        raise Open("a weight or a bias that is computed")
    x = given.pattern(0)
    if x.shape[layer.place] != layer.inputs:
        x = given.stretched(x, 0, [layer.place % x.ndim])
    others = tuple(place for place in range(x.ndim) if place != layer.place % x.ndim)
    open_ = layer.touched(np.asarray(np.isnan(x).any(others)))
    if open_.all():
        raise Open("nothing is constant")
    shape = [1] * len(given.shape_out())
    shape[layer.place] = layer.outputs
    x = np.nan_to_num(x)
    try:
        gain = layer.gain(x) if x.any() else np.zeros(shape)
    except Open:
        gain, open_ = np.zeros(shape), open_ | layer.touched(np.asarray(x.any(others)))
    return np.where(open_.reshape(shape), np.nan, gain + bias.reshape(shape))
