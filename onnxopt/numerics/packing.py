"""Packing of 2- and 4-bit codes into bytes, as in the raw data of ONNX INT2, UINT2, INT4 and UINT4 tensors.

Elements go in flattened (C) order from the low bits of a byte upwards: two a byte at 4 bits, four at 2 bits; the
last byte is filled up with zeros. Signed codes are in two's complement. 8-bit codes are their own bytes.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .grids import Codes

# Codes that are worked on at a time, a multiple of those in a byte.
_CHUNK = 1 << 20

# A word holds the codes of one byte, one code a byte, the first in its low byte whatever the machine's byte order.
_WORDS: dict[int, np.dtype[np.unsignedinteger[Any]]] = {2: np.dtype("<u4"), 4: np.dtype("<u2"), 8: np.dtype("u1")}


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that `count` codes of 2, 4 or 8 bits take; other bits raise ValueError."""
    return -(-count // _word(bits).itemsize)


def pack(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Pack int8 or uint8 codes of any shape and memory layout into a flat array of bytes.

    Raises:
        ValueError: bits other than 2, 4, 8; codes of another type, or that do not fit the bits.
    """
    if codes.dtype not in (np.int8, np.uint8):
        raise ValueError(f"codes to pack must be int8 or uint8, not {codes.dtype}")
    per_byte = _word(bits).itemsize
    packed = np.empty(packed_size(codes.size, bits), np.uint8)
    done = 0
    rest = np.empty(0, codes.dtype)
    for run in _flat_runs(codes):
        _require_range(run, bits)
        run = np.concatenate([rest, run]) if rest.size else run
        whole = run.size // per_byte
        packed[done : done + whole] = _join(run[: whole * per_byte], bits)
        done += whole
        rest = run[whole * per_byte :]
    if rest.size:
        packed[done:] = _join(np.pad(rest, (0, per_byte - rest.size)), bits)
    return packed


def unpack(packed: npt.NDArray[np.uint8], bits: int, shape: tuple[int, ...], *, signed: bool) -> Codes:
    """Return the codes of that shape, int8 when signed and else uint8, that `pack` put into flat bytes.

    Raises:
        ValueError: bits other than 2, 4, 8; a number of bytes that does not fit the shape.
    """
    count, per_byte = prod(shape), _word(bits).itemsize
    if packed.shape != (packed_size(count, bits),):
        raise ValueError(
            f"{packed.shape} bytes cannot hold {bits}-bit codes of shape {shape}: {packed_size(count, bits)} can"
        )
    codes = np.empty(count, np.int8 if signed else np.uint8)
    for start in range(0, count, _CHUNK):
        run = _split(packed[start // per_byte : (start + _CHUNK) // per_byte], bits)
        codes[start : start + _CHUNK] = _sign_extended(run, bits)[: count - start] if signed else run[: count - start]
    return codes.reshape(shape)


def _word(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    if bits not in _WORDS:
        raise ValueError(f"codes of {bits} bits cannot be packed: only 2, 4 and 8 divide a byte into storable types")
    return _WORDS[bits]


def _flat_runs(codes: Codes) -> Iterator[Codes]:
    """Yield the codes in C order as contiguous flat pieces; a transposed array is copied piece by piece only."""
    if codes.flags.c_contiguous:
        flat = codes.reshape(-1)
        yield from (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))
    elif codes.size <= _CHUNK:
        yield codes.ravel()
    else:
        step = max(1, _CHUNK * len(codes) // codes.size)
        for start in range(0, len(codes), step):
            part = codes[start : start + step]
            yield from _flat_runs(part[0] if step == 1 and part.ndim > 1 else part)


def _require_range(codes: Codes, bits: int) -> None:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if codes.dtype == np.int8 else (0, (1 << bits) - 1)
    least, most = int(codes.min()), int(codes.max())
    if least < low or most > high:
        raise ValueError(f"codes from {least} to {most} do not fit {bits} bits, which hold {low} to {high}")


def _join(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Pack flat contiguous codes that fill whole bytes: the word `0d 0c 0b 0a` becomes the byte `dcba`."""
    word, mask = _word(bits), (1 << bits) - 1
    words = codes.view(np.uint8).view(word)
    joined = words & mask
    for place in range(1, word.itemsize):
        joined |= (words >> (8 - bits) * place) & (mask << bits * place)
    return joined.astype(np.uint8)


def _split(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return the unsigned codes in flat bytes: the inverse of `_join`."""
    word, mask = _word(bits), (1 << bits) - 1
    words = packed.astype(word)
    split = words & mask
    for place in range(1, word.itemsize):
        split |= (words & (mask << bits * place)) << (8 - bits) * place
    return split.view(np.uint8)


def _sign_extended(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int8]:
    sign = 1 << bits - 1
    return ((codes ^ sign) - sign).view(np.int8)
