"""What windows of a convolution or of pooling see, in numpy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Places: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """Where windows of a node lie, one entry a spatial axis; pads: all beginnings, then all ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str

    @classmethod
    def of(cls, node: ir.Node, kernel: Sequence[int]) -> "Windows":
        """Of a Conv, ConvTranspose or pooling node."""
        rank, attributes = len(kernel), node.attributes
        return cls(
            tuple(kernel),
            tuple(attributes.get_ints("strides", [1] * rank)),
            tuple(attributes.get_ints("dilations", [1] * rank)),
            tuple(attributes.get_ints("pads", [0] * (2 * rank))),
            attributes.get_string("auto_pad", "NOTSET"),
        )

    @property
    def padded(self) -> bool:
        """Whether windows reach beyond the border."""
        return any(self.pads) if self.auto_pad == "NOTSET" else self.auto_pad != "VALID"

    def reach(self, axis: int) -> int:
        """How many entries a window spans."""
        return self.dilations[axis] * (self.kernel[axis] - 1) + 1

    def ends(self, axis: int, size: int) -> tuple[int, int]:
        """Zeros before and behind an axis of so many entries."""
        if self.auto_pad == "NOTSET":
            return self.pads[axis], self.pads[axis + len(self.kernel)]
        if self.auto_pad == "VALID":
            return 0, 0
        count = -(-size // self.strides[axis])
        total = max((count - 1) * self.strides[axis] + self.reach(axis) - size, 0)
        small, large = total // 2, total - total // 2
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)

    def views(self, image: npt.NDArray[Any], sizes: Sequence[int]) -> Iterator[tuple[Places, npt.NDArray[Any]]]:
        """For each place in the window, what all windows see there: `[..., *image] -> [..., *windows]`.

        Args:
            image: the numbers; its last axes are the spatial ones.
            sizes: their lengths.
        """
        ends = [self.ends(axis, size) for axis, size in enumerate(sizes)]
        wide = np.pad(image, [(0, 0)] * (image.ndim - len(sizes)) + ends)
        starts = [
            range(0, size + sum(end) - self.reach(axis) + 1, self.strides[axis])
            for axis, (size, end) in enumerate(zip(sizes, ends, strict=True))
        ]
        for offset in product(*map(range, self.kernel)):
            at = [np.array(first) + step * by for first, step, by in zip(starts, offset, self.dilations, strict=True)]
            yield offset, wide[_index(*np.ix_(*at))]

    def placed(
        self, parts: Iterator[tuple[Places, npt.NDArray[Any]]], sizes: Sequence[int], result: Sequence[int]
    ) -> npt.NDArray[Any]:
        """What a transposed convolution makes of what each place in the window gives: `[..., *result]`.

        Args:
            parts: place in the window, `[..., *sizes]`.
            sizes: spatial sizes of the image.
            result: those of the result.
        """
        full = [
            max((size - 1) * self.strides[axis] + self.reach(axis), result[axis] + self.pads[axis])
            for axis, size in enumerate(sizes)
        ]
        total: npt.NDArray[Any] | None = None
        for offset, part in parts:
            total = np.zeros((*part.shape[: -len(sizes)], *full)) if total is None else total
            at = [
                np.arange(size) * self.strides[axis] + offset[axis] * self.dilations[axis]
                for axis, size in enumerate(sizes)
            ]
            total[_index(*np.ix_(*at))] += part
        assert total is not None
        found: npt.NDArray[Any] = total[
            _index(*(slice(self.pads[axis], self.pads[axis] + result[axis]) for axis in range(len(sizes))))
        ]
        return found


def _index(*places: Any) -> tuple[Any, ...]:
    """An index of the last axes."""
    return (..., *places)
