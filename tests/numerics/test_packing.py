"""Packing: against a loop over codes, onnx's own packing and ml_dtypes; and its inverse."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxopt.numerics import pack, packed_size, packing, unpack

TYPES = [  # bits, numpy type of the codes, ml_dtypes name, ONNX type
    (2, np.int8, "int2", onnx.TensorProto.INT2),
    (2, np.uint8, "uint2", onnx.TensorProto.UINT2),
    (4, np.int8, "int4", onnx.TensorProto.INT4),
    (4, np.uint8, "uint4", onnx.TensorProto.UINT4),
]


def codes_of(shape: tuple[int, ...], bits: int, dtype: Any, seed: int = 0) -> np.ndarray:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype is np.int8 else (0, 2**bits)
    return np.random.default_rng(seed).integers(low, high, shape, dtype=dtype)


def packed_by_loop(codes: np.ndarray, bits: int) -> list[int]:
    per_byte = 8 // bits
    flat = [int(code) & (2**bits - 1) for code in codes.flatten()]
    flat += [0] * (-len(flat) % per_byte)
    return [
        sum(code << bits * place for place, code in enumerate(flat[start : start + per_byte]))
        for start in range(0, len(flat), per_byte)
    ]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@given(shape=st.lists(st.integers(0, 7), max_size=3).map(tuple), seed=st.integers(0, 99))
def test_pack_equals_a_loop_and_unpack_inverts_it(bits: int, dtype: Any, shape: tuple[int, ...], seed: int) -> None:
    codes = codes_of(shape, bits, dtype, seed)
    packed = pack(codes, bits)
    assert packed.tolist() == packed_by_loop(codes, bits)
    again = unpack(packed, bits, shape, signed=dtype is np.int8)
    assert again.dtype == codes.dtype
    np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize(("bits", "dtype", "name", "onnx_type"), TYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 21])
def test_pack_equals_onnx_and_ml_dtypes(bits: int, dtype: Any, name: str, onnx_type: int, count: int) -> None:
    codes = codes_of((count,), bits, dtype)
    by_onnx = helper.make_tensor("codes", onnx_type, codes.shape, codes.tolist())
    assert pack(codes, bits).tolist() == [byte & 0xFF for byte in by_onnx.int32_data]
    by_ml_dtypes = numpy_helper.from_array(codes.astype(getattr(ml_dtypes, name)))
    assert pack(codes, bits).tobytes() == by_ml_dtypes.raw_data
    assert by_ml_dtypes.data_type == onnx_type


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", ["flat", "transposed", "strided", "batched", "long rows"])
def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch, bits: int, layout: str) -> None:
    codes = {
        "flat": codes_of((1001,), bits, np.int8),
        "transposed": codes_of((37, 53), bits, np.int8).T,
        "strided": codes_of((2002,), bits, np.int8)[::2],
        "batched": codes_of((5, 7, 9), bits, np.int8).transpose(0, 2, 1),
        "long rows": codes_of((301, 3), bits, np.int8).T,
    }[layout]
    whole = pack(codes, bits)
    monkeypatch.setattr(packing, "_CHUNK", 64)
    np.testing.assert_array_equal(pack(codes, bits), whole)
    np.testing.assert_array_equal(unpack(whole, bits, codes.shape, signed=True), codes)
    assert whole.tolist() == packed_by_loop(codes, bits)


def test_packed_size() -> None:
    assert [packed_size(5, bits) for bits in (2, 4, 8)] == [2, 3, 5]


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (np.zeros(4, np.int8), 3, "codes of 3 bits cannot be packed"),
        (np.zeros(4, np.int32), 4, "int8 or uint8, not int32"),
        (np.array([8], np.int8), 4, "from 8 to 8 do not fit 4 bits, which hold -8 to 7"),
        (np.array([-3, 1], np.int8), 2, "from -3 to 1 do not fit 2 bits, which hold -2 to 1"),
        (np.array([0, 16], np.uint8), 4, "from 0 to 16 do not fit 4 bits, which hold 0 to 15"),
    ],
)
def test_pack_refuses(codes: np.ndarray, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(codes, bits)


def test_unpack_refuses_a_wrong_number_of_bytes() -> None:
    with pytest.raises(ValueError, match=r"cannot hold 4-bit codes of shape \(3, 3\): 5 can"):
        unpack(np.zeros(4, np.uint8), 4, (3, 3), signed=True)
