"""Which way round operators keep their weights: between the stored array and `[groups, out, in * taps]`."""

import math
from dataclasses import dataclass

from onnxopt.analysis.linear.steps import Array


@dataclass(frozen=True)
class Dense:
    """A matrix, or a batch of them: the weight of MatMul and Gemm. Each matrix of the batch is a group.

    Attributes:
        left: the weight is the operator's first operand.
        out_first: output features come before input features.
        batch: the axes before these two.
    """

    left: bool
    out_first: bool
    batch: tuple[int, ...] = ()

    def groups(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Groups, output features and input features of a group, taps, of a weight stored in that shape."""
        out, features = shape[-2:] if self.out_first else shape[:-3:-1]
        return math.prod(self.batch), out, features, 1

    def to_matrix(self, stored: Array) -> Array:
        """`[groups, out, in]` of a stored array; a view where that is possible."""
        matrices = stored.reshape(-1, *stored.shape[-2:])
        return matrices if self.out_first else matrices.swapaxes(1, 2)

    def to_stored(self, matrix: Array) -> Array:
        """The array to store for `[groups, out, in]`; a view where that is possible."""
        turned = matrix if self.out_first else matrix.swapaxes(1, 2)
        return turned.reshape(*self.batch, *turned.shape[1:])


@dataclass(frozen=True)
class Filters:
    """Filters of Conv, `[groups * out, in, taps...]`, and of ConvTranspose, `[groups * in, out, taps...]`.

    Attributes:
        group: how many groups.
        kernel: size of the kernel along each axis.
        in_first: input features come first: ConvTranspose.
    """

    group: int
    kernel: tuple[int, ...]
    in_first: bool = False

    def groups(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Groups, output features and input features of a group, taps, of a weight stored in that shape."""
        first, second = shape[0] // self.group, shape[1]
        out, features = (second, first) if self.in_first else (first, second)
        return self.group, out, features, math.prod(self.kernel)

    def to_matrix(self, stored: Array) -> Array:
        """`[groups, out, in * taps]` of a stored array; a view where that is possible."""
        taps = math.prod(self.kernel)
        if self.in_first:
            grouped = stored.reshape(self.group, -1, stored.shape[1], taps).swapaxes(1, 2)
            return grouped.reshape(*grouped.shape[:2], -1)
        return stored.reshape(self.group, -1, stored.shape[1] * taps)

    def to_stored(self, matrix: Array) -> Array:
        """The array to store for `[groups, out, in * taps]` with any number of groups and features."""
        groups, out, columns = matrix.shape
        features = columns // math.prod(self.kernel)
        if self.in_first:
            grouped = matrix.reshape(groups, out, features, -1).swapaxes(1, 2)
            return grouped.reshape(groups * features, out, *self.kernel)
        return matrix.reshape(groups * out, features, *self.kernel)


Layout = Dense | Filters


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its input, one entry an axis; pads: all beginnings, then all ends.

    Attributes:
        auto_pad: NOTSET, SAME_UPPER, SAME_LOWER or VALID; pads count only where it is NOTSET.
        output_padding: ConvTranspose alone.
        output_shape: ConvTranspose alone: spatial sizes from which pads are computed; None where not given.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    auto_pad: str
    output_padding: tuple[int, ...]
    output_shape: tuple[int, ...] | None
