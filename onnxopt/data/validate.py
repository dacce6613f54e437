"""Whether arrays are what a model takes, and the few conversions that lose nothing one would miss."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data.archive import Array
from onnxopt.errors import DataError
from onnxopt.model import Signature, ValueInfo

LABEL = "label/"
"""Prefix of arrays that are no inputs but what outputs are judged by."""

MASK = "mask/"
"""Prefix of arrays that are no inputs but tell which samples, or tokens of samples, are no padding."""

ASIDE = (LABEL, MASK)
"""Prefixes of arrays that are not fed."""


def conform(signature: Signature, arrays: Mapping[str, Any], where: str) -> dict[str, Array]:
    """The feeds of one batch as the model takes them, in the order of its inputs.

    Exact dtypes pass; floats of another width are rounded and integers of another width kept where every value
    fits; void bytes, as numpy saves bfloat16 and float8, are read as the model's type of that size.
    Inputs that are not tensors (optionals) may be missing and are passed on unchecked.

    Args:
        signature: the model's.
        arrays: input name -> array.
        where: what messages call this batch.

    Raises:
        DataError: a name, dtype, rank, fixed size or symbolic size does not fit, or a value is NaN or infinite.
    """
    check_names(signature, arrays, where)
    feeds = {info.name: _tensor(info, arrays[info.name], where) for info in signature.inputs if info.name in arrays}
    _check_symbols(signature, feeds, where)
    if feeds and not any(array.size for array in feeds.values()):
        raise DataError(f"{where}: empty, no input holds a single element")
    return feeds


def check_names(signature: Signature, names: Collection[str], where: str) -> None:
    """Raise DataError for a name that is no input, or an input without data."""
    inputs = [info.name for info in signature.inputs]
    for name in names:
        if name not in inputs:
            raise DataError(f"{where}: array {name!r} is no input of the model{nearest(name, inputs)}")
    missing = [info.name for info in signature.inputs if info.dtype is not None and info.name not in names]
    if missing:
        raise DataError(f"{where}: nothing for input {missing[0]!r}; there is {listed(names)}")


def nearest(name: str, known: Collection[str]) -> str:
    """The tail of a message about an unknown name: what is known, and which of it is spelled most alike."""
    return f", which has {listed(known)}{spelled_like(name, known)}"


def spelled_like(name: str, known: Collection[str]) -> str:
    """The end of that: a question, where one of the known names is spelled much like the unknown one."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Collection[str]) -> str:
    """Some names for a message."""
    shown = [repr(name) for name in list(names)[:12]]
    return ", ".join([*shown, "..."] if len(names) > 12 else shown) or "nothing"


def describe(info: ValueInfo) -> str:
    """An input's type and shape for a message, e.g. `float32 [batch, 3, 8, 8]`."""
    dtype = "no tensor" if info.dtype is None else _name(info.dtype)
    if info.shape is None:
        return f"{dtype} of any shape"
    return f"{dtype} [{', '.join('?' if dim is None else str(dim) for dim in info.shape)}]"


def fits(info: ValueInfo, shape: Sequence[int]) -> bool:
    """Whether an array of a shape can be fed: its rank and the sizes that the model fixes."""
    if info.shape is None:
        return True
    return len(info.shape) == len(shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(info.shape, shape, strict=True)
    )


def _tensor(info: ValueInfo, value: Any, where: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where}: input {info.name!r} is no array: {error}") from error
    if info.dtype is not None:
        array = _cast(array, info, where)
        _check_shape(info, array, where)
    _check_finite(info.name, array, where)
    return array


def _cast(array: Array, info: ValueInfo, where: str) -> Array:
    assert info.dtype is not None
    if info.dtype == ir.DataType.STRING:
        return _strings(array, info, where)
    want, have = info.dtype.numpy(), array.dtype
    if have == want:
        return array
    if have.kind == "V" and have.names is None and have.itemsize == want.itemsize and not _is_number(have):
        return array.view(want)
    if _is_number(have) and _kind(have) == _kind(want):
        return _resized(array, want, info, where) if _kind(want) == "integer" else _rounded(array, want, info, where)
    raise DataError(f"{where}: input {info.name!r} takes {describe(info)}, the data are {have} {list(array.shape)}")


def _unlike(info: ValueInfo, actual: str, where: str) -> DataError:
    return DataError(f"{where}: input {info.name!r} takes {describe(info)}, {actual}")


def _strings(array: Array, info: ValueInfo, where: str) -> Array:
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat):
        return array
    raise _unlike(info, f"the data are {array.dtype} {list(array.shape)}", where)


def _rounded(array: Array, want: np.dtype[Any], info: ValueInfo, where: str) -> Array:
    with np.errstate(over="ignore"):
        cast = array.astype(want)
    if np.isfinite(array).all() and not np.isfinite(cast).all():
        worst = float(np.abs(array).max())
        raise _unlike(info, f"{worst:g} in the data is too large for it", where)
    return cast


def _resized(array: Array, want: np.dtype[Any], info: ValueInfo, where: str) -> Array:
    assert info.dtype is not None
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < info.dtype.min or high > info.dtype.max:
            worst = low if low < info.dtype.min else high
            raise _unlike(info, f"{worst} in the data does not fit", where)
    return array.astype(want)


def _kind(dtype: np.dtype[Any]) -> str:
    """Types of one kind convert; booleans are a kind of their own."""
    number = ir.DataType.from_numpy(dtype.newbyteorder("="))
    kinds = (("float", number.is_floating_point()), ("integer", number.is_integer()))
    if dtype.kind == "c":
        return "complex"
    return next((kind for kind, matches in kinds if matches), "")


def _is_number(dtype: np.dtype[Any]) -> bool:
    try:
        return not ir.DataType.from_numpy(dtype.newbyteorder("=")).is_string()
    except TypeError:
        return False


def _check_shape(info: ValueInfo, array: Array, where: str) -> None:
    if not fits(info, array.shape):
        raise _unlike(info, f"the data are {list(array.shape)}", where)


def _check_symbols(signature: Signature, feeds: Mapping[str, Array], where: str) -> None:
    bound: dict[str, tuple[str, int]] = {}
    for info in signature.inputs:
        sizes = feeds[info.name].shape if info.name in feeds and info.shape is not None else ()
        for dim, size in zip(info.shape or (), sizes, strict=False):
            if isinstance(dim, str):
                first, known = bound.setdefault(dim, (info.name, size))
                if size != known:
                    raise DataError(
                        f"{where}: dimension {dim!r} is {known} in input {first!r} and {size} in input {info.name!r}"
                    )


def _check_finite(name: str, array: Array, where: str) -> None:
    if array.dtype.kind not in "fcV" or _is_integer(array.dtype):
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    at = np.unravel_index(int(np.argmin(finite)), array.shape)
    what = "NaN" if np.isnan(array[at]) else "an infinite value"
    raise DataError(f"{where}: input {name!r} holds {what} at {[int(i) for i in at]} of the batch; clean the data")


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return ir.DataType.from_numpy(dtype).is_integer()


def _name(dtype: ir.DataType) -> str:
    return "string" if dtype == ir.DataType.STRING else dtype.numpy().name
