"""Padding masks: which samples, or tokens of samples, are real. Statistics of calibration data count only those."""

from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.data.archive import Array
from onnxopt.data.validate import MASK
from onnxopt.errors import DataError
from onnxopt.model import Signature

if TYPE_CHECKING:
    from onnxopt.data.dataset import Dataset

Mask: TypeAlias = npt.NDArray[np.bool_]

_LOOK = 4
"""Batches that are looked at for inputs that may mark padding."""


def is_fed(name: str, signature: Signature) -> bool:
    """Whether a mask is an input of the model; else it is an array `mask/NAME`, which is not fed."""
    return any(info.name == name for info in signature.inputs)


def as_mask(array: Any, name: str, fed: bool, sizes: Collection[int], where: str) -> Mask:
    """A batch's mask as booleans: True counts, False is padding.

    Args:
        array: [samples] or [samples, tokens] of any real type.
        name: of the mask.
        fed: whether it is an input.
        sizes: that its first axis may have.
        where: what messages call the batch.

    Raises:
        DataError: another rank, first axis or type, or anything but 0 and 1.
    """
    what = f"{where}: the padding mask, {f'input {name!r}' if fed else f'array {MASK + name!r}'},"
    instead = f"; else name an array {MASK}NAME beside the inputs, which is not fed" if fed else ""
    array = np.asarray(array)
    if array.ndim not in (1, 2) or array.shape[0] not in sizes:
        rows = " or ".join(map(str, sorted(set(sizes))))
        raise DataError(
            f"{what} is {list(array.shape)}: it must be [samples] or [samples, tokens], "
            f"with {rows} samples here{instead}"
        )
    rule = f"1 marks what counts, 0 what is padding{instead}"
    if array.dtype == np.bool_:
        return np.asarray(array, np.bool_)
    if not _is_real(array.dtype):
        raise DataError(f"{what} is {array.dtype}, not bool, integer or float: {rule}")
    mask: Mask = array == 1
    odd = ~mask & (array != 0)
    if odd.any():
        at = np.argwhere(odd)[0].tolist()
        raise DataError(f"{what} holds {array[tuple(at)]} at {at} of the batch: {rule}")
    return mask


def _is_real(dtype: np.dtype[Any]) -> bool:
    try:
        found = ir.DataType.from_numpy(dtype.newbyteorder("="))
    except TypeError:
        return False
    return found.is_integer() or (found.is_floating_point() and dtype.kind != "c")


def likely_masks(dataset: "Dataset") -> list[str]:
    """Inputs that may mark padding, by the first few batches.

    Integers or booleans, of exactly the shape of another integer input, in which there are 0 and 1 and nothing else.
    """
    types = {info.name: info.dtype for info in dataset.signature.inputs if info.dtype is not None}
    integers = {name for name, dtype in types.items() if dtype.is_integer()}
    found: dict[str, set[int]] = {
        name: set() for name, dtype in types.items() if dtype.is_integer() or dtype == ir.DataType.BOOL
    }
    for batch in islice(dataset.batches(), _LOOK if integers else 0):
        for name in list(found):
            array: Array = batch.feeds[name]
            alike = any(batch.feeds[other].shape == array.shape for other in integers - {name})
            if alike and array.ndim in (1, 2) and np.isin(array, (0, 1)).all():
                found[name].update(map(int, np.unique(array)))
            else:
                del found[name]
    return [name for name, values in found.items() if values == {0, 1}]
