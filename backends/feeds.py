"""Between numpy and ONNX Runtime: checks feeds against a session's inputs, and carries the types numpy lacks."""

import ctypes
import difflib
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from onnxopt.errors import DataError

# What a session's input or output says its element type is, and numpy's name for it.
DTYPES: dict[str, np.dtype[Any]] = {
    f"tensor({name})": np.dtype(dtype)
    for name, dtype in {
        "float": np.float32,
        "double": np.float64,
        "float16": np.float16,
        "int8": np.int8,
        "int16": np.int16,
        "int32": np.int32,
        "int64": np.int64,
        "uint8": np.uint8,
        "uint16": np.uint16,
        "uint32": np.uint32,
        "uint64": np.uint64,
        "bool": np.bool_,
        "string": np.object_,
    }.items()
}

# Types that onnxruntime's Python interface hands over only as raw values: onnx's number, and numpy's extension type.
_RAW: dict[str, tuple[int, np.dtype[Any]]] = {
    f"tensor({name})": (number, np.dtype(dtype))
    for name, number, dtype in (
        ("bfloat16", 16, ml_dtypes.bfloat16),
        ("float8e4m3fn", 17, ml_dtypes.float8_e4m3fn),
        ("float8e4m3fnuz", 18, ml_dtypes.float8_e4m3fnuz),
        ("float8e5m2", 19, ml_dtypes.float8_e5m2),
        ("float8e5m2fnuz", 20, ml_dtypes.float8_e5m2fnuz),
    )
}


def is_raw(type_name: str) -> bool:
    """Whether `onnxruntime` can return values of this type only as OrtValue (bfloat16, float8)."""
    return type_name in _RAW


def prepare(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """`feeds` as `session.run` takes them.

    Raises:
        DataError: a name is missing or unknown, or an array's dtype, rank or a fixed size does not fit.
    """
    inputs = {argument.name: argument for argument in session.get_inputs()}
    optional = {argument.name: argument for argument in session.get_overridable_initializers()}
    for name in feeds:
        if name not in inputs and name not in optional:
            raise DataError(_unknown(name, list(inputs)))
    for name, argument in inputs.items():
        if name not in feeds and not argument.type.startswith("optional("):
            raise DataError(f"input {name!r} ({_describe(argument)}) is missing; fed were: {_listed(feeds)}")
    known = inputs | optional
    return {name: _prepare_one(known[name], value) for name, value in feeds.items()}


def _unknown(name: str, inputs: list[str]) -> str:
    nearest = difflib.get_close_matches(name, inputs, n=1)
    hint = f"; nearest: {nearest[0]!r}" if nearest else ""
    return f"{name!r} is no input of the model, which takes {_listed(inputs)}{hint}"


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _describe(argument: Any) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in argument.shape)
    dtype = _numpy_dtype(argument.type)
    return f"{argument.type if dtype is None else dtype.name} [{sizes}]"


def _numpy_dtype(type_name: str) -> np.dtype[Any] | None:
    """numpy's type of a tensor; None for what is no tensor (sequences, maps, optionals) or has no such type."""
    if type_name in _RAW:
        return _RAW[type_name][1]
    return DTYPES.get(type_name)


def _prepare_one(argument: Any, value: Any) -> Any:
    wanted = _numpy_dtype(argument.type)
    if wanted is None:
        return value  # ONNX Runtime checks it itself
    array = np.asarray(value)
    if array.dtype != wanted and not (wanted.kind == "O" and array.dtype.kind == "U"):
        name = "strings" if wanted.kind == "O" else wanted.name
        raise DataError(f"input {argument.name!r} takes {name}, fed was {array.dtype.name}; convert the data")
    _check_shape(argument, array.shape)
    if not is_raw(argument.type):
        return array
    bits = np.asarray(array, order="C").view(f"u{wanted.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _RAW[argument.type][0])


def _check_shape(argument: Any, shape: tuple[int, ...]) -> None:
    # ONNX Runtime reports [] both for a scalar and for an unknown rank, so [] decides nothing.
    if not argument.shape:
        return
    fits = len(shape) == len(argument.shape) and all(
        not isinstance(wanted, int) or wanted == size for wanted, size in zip(argument.shape, shape, strict=True)
    )
    if not fits:
        raise DataError(f"input {argument.name!r} takes {_describe(argument)}, fed was shape {list(shape)}")


def to_ort(value: Any) -> ort.OrtValue:
    """A prepared tensor as OrtValue."""
    return value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)


def to_numpy(value: ort.OrtValue) -> Any:
    """A tensor's OrtValue as numpy (ml_dtypes' types for bfloat16 and float8); None for an empty optional."""
    if not value.has_value():
        return None
    return viewed(value).copy() if is_raw(value.data_type()) else value.numpy()


def viewed(value: ort.OrtValue) -> Any:
    """A tensor's numbers where the runtime holds them, without a copy: valid as long as the OrtValue is.

    Strings are copied. What is no tensor is given as `to_numpy` gives it.
    """
    if not value.has_value() or not value.is_tensor():
        return to_numpy(value)
    dtype = _numpy_dtype(value.data_type())
    if dtype is None or dtype.kind == "O":
        return value.numpy()
    shape = value.shape()
    if not math.prod(shape):
        return np.empty(shape, dtype)
    buffer = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(value.data_ptr())
    return np.frombuffer(buffer, np.uint8).view(dtype).reshape(shape)
