"""Data that do not fit: each with what is wrong, in which input, and what the model takes."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxopt.data import open_data
from onnxopt.data.validate import conform
from onnxopt.errors import DataError
from onnxopt.model import Signature, ValueInfo

X = np.zeros((4, 3), np.float32)
NAN, INF = X.copy(), X.astype(np.float16)
NAN[2, 1] = np.nan
INF[0, 2] = -np.inf


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"imgae": X, "mask": X},
            "array 'imgae' is no input of the model, which has 'image', 'mask'; did you mean 'image'?",
        ),
        ({"image": X}, "nothing for input 'mask'; there is 'image'"),
        ({}, "empty, no arrays for the inputs 'image', 'mask'"),
        ({"label/y": np.arange(4)}, "empty, no arrays for the inputs 'image', 'mask'"),
        (
            {"image": X.astype(int), "mask": X},
            "samples 0 to 3: input 'image' takes float32 [N, 3], the data are int64 [4, 3]",
        ),
        ({"image": X > 0, "mask": X}, "input 'image' takes float32 [N, 3], the data are bool [4, 3]"),
        ({"image": X.astype(str), "mask": X}, "input 'image' takes float32 [N, 3], the data are <U32 [4, 3]"),
        ({"image": X[:, :2], "mask": X}, "input 'image' takes float32 [N, 3], the data are [4, 2]"),
        ({"image": X[0], "mask": X}, "input 'image' takes float32 [N, 3], the data are [3]; give samples along"),
        ({"image": X, "mask": X[:3]}, "arrays have different numbers of samples: 'image' 4, 'mask' 3"),
        ({"image": X, "mask": X, "label/y": X[:2]}, "different numbers of samples: 'image' 4, 'mask' 4, 'label/y' 2"),
        ({"image": X[:0], "mask": X[:0]}, "empty, no samples in 'image', 'mask'"),
        ({"image": NAN, "mask": X}, "samples 0 to 3: input 'image' holds NaN at [2, 1] of the batch"),
        ({"image": X, "mask": INF}, "input 'mask' holds an infinite value at [0, 2] of the batch"),
        (
            {"image": X, "mask": X.astype(float) + 1e300},
            "'mask' takes float32 [N, 3], 1e+300 in the data is too large for it",
        ),
        ({"image": [[1], [2, 3]], "mask": X}, "data: 'image' is no array"),
        ({"feed0000/image": X}, "feed0000: nothing for input 'mask'; there is 'image'"),
        ({"feed0000/image": X, "mask": X}, "array 'mask' beside 'feed0000/image'; name all feedNNNN/INPUT or none"),
        (
            {"feed0000/image": X, "feed0000/mask": X[:2]},
            "feed0000: dimension 'N' is 4 in input 'image' and 2 in input 'mask'",
        ),
        ({"feed0001/image": X[:0], "feed0001/mask": X[:0]}, "feed0001: empty, no input holds a single element"),
        (
            {"feed0001/image": X[None], "feed0001/mask": X},
            "feed0001: input 'image' takes float32 [N, 3], the data are [1, 4,",
        ),
    ],
)
def test_data_that_do_not_fit(sign: Any, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data(arrays, sign(image=("FLOAT", ["N", 3]), mask=("FLOAT", ["N", 3])))
    assert message in str(caught.value)
    assert str(caught.value).startswith("data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batches", [[], iter(()), lambda: []])
def test_no_batches(sign: Any, batches: Any) -> None:
    with pytest.raises(DataError, match="empty, it gives no batches"):
        open_data(batches, sign(x=("FLOAT", ["N", 3])))


def one(dtype: str, *dims: Any) -> Signature:
    return Signature((ValueInfo("x", ir.DataType[dtype], dims),), ())


@pytest.mark.parametrize(
    ("dtype", "array", "message"),
    [
        ("INT8", np.array([300]), "takes int8 [n], 300 in the data does not fit"),
        ("UINT64", np.array([-1]), "takes uint64 [n], -1 in the data does not fit"),
        ("INT64", np.array([2**64 - 1], np.uint64), "18446744073709551615 in the data does not fit"),
        ("INT4", np.array([8]), "takes int4 [n], 8 in the data does not fit"),
        ("FLOAT16", np.array([1e5]), "takes float16 [n], 100000 in the data is too large for it"),
        ("BOOL", np.array([1]), "takes bool [n], the data are int64 [1]"),
        ("FLOAT", np.array([1j]), "takes float32 [n], the data are complex128 [1]"),
        ("INT64", np.array([1.0]), "takes int64 [n], the data are float64 [1]"),
        ("STRING", np.array([1]), "takes string [n], the data are int64 [1]"),
        ("STRING", np.array([b"a"]), "takes string [n], the data are |S1 [1]"),
        ("STRING", np.array(["a", 3], dtype=object), "takes string [n], the data are object [2]"),
        ("FLOAT", np.array([None]), "takes float32 [n], the data are object [1]"),
        ("FLOAT", np.zeros(2, "M8[s]"), "takes float32 [n], the data are datetime64[s] [2]"),
        ("BFLOAT16", np.array([np.inf], ml_dtypes.bfloat16), "holds an infinite value at [0]"),
    ],
)
def test_dtypes_that_do_not_convert(dtype: str, array: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        conform(one(dtype, "n"), {"x": array}, "here")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("FLOAT", np.array([0.1, -3e38])),
        ("FLOAT", np.array([0.5], np.float16)),
        ("BFLOAT16", np.array([0.1], np.float32)),
        ("DOUBLE", np.array([0.1], np.float32)),
        ("INT64", np.array([-5, 7], np.int32)),
        ("INT32", np.array([-(2**31), 2**31 - 1])),
        ("UINT8", np.array([0, 255])),
        ("INT4", np.array([-8, 7], np.int8)),
        ("COMPLEX64", np.array([1j])),
        ("INT64", np.zeros(0, np.int32)),
        ("FLOAT", np.array([1.5], ">f4")),
    ],
)
def test_widths_convert(dtype: str, array: Any) -> None:
    want = ir.DataType[dtype].numpy()
    got = conform(
        Signature((*one(dtype, "n").inputs, ValueInfo("z", ir.DataType.BOOL, ())), ()), {"x": array, "z": True}, ""
    )
    assert got["x"].dtype == want
    np.testing.assert_array_equal(got["x"], array.astype(want))


def test_conversions_are_noted_once(sign: Any) -> None:
    data = open_data(
        {"x": np.zeros((20, 3)), "n": np.zeros(20, np.int32)}, sign(x=("FLOAT", ["N", 3]), n=("INT64", ["N"]))
    )
    assert data.notes == (
        "input 'x': float64 in the data was converted to float32",
        "input 'n': int32 in the data was converted to int64",
    )


@pytest.mark.parametrize("dtype", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"])
def test_types_that_numpy_saves_as_bytes(dtype: str, tmp_path: Any) -> None:
    array = np.array([[1, 2], [3, 4]]).astype(ir.DataType[dtype].numpy())
    np.savez(tmp_path / "a.npz", x=array.view(f"V{array.itemsize}"))
    data = open_data(tmp_path / "a.npz", one(dtype, "n", 2))
    data.save(tmp_path / "saved")
    assert open_data(tmp_path / "saved", data.signature).digest() == data.digest()
    got = data.first().feeds["x"]
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got.astype(np.float32), array.astype(np.float32))


def test_strings_come_as_objects(tmp_path: Any) -> None:
    np.savez(tmp_path / "a.npz", x=np.array(["a", "\u00fc"]))
    for spec in (tmp_path / "a.npz", {"x": np.array(["a", "\u00fc"], dtype=object)}):
        got = open_data(spec, one("STRING", "n")).first().feeds["x"]
        assert got.dtype == object
        assert got.tolist() == ["a", "\u00fc"]


def test_inputs_that_are_no_tensors_are_optional(sign: Any) -> None:
    signature = Signature((*sign(x=("FLOAT", ["N", 3])).inputs, ValueInfo("state", None, None)), ())
    assert list(open_data([{"x": X}], signature).first().feeds) == ["x"]
    assert list(open_data([{"x": X, "state": X}], signature).first().feeds) == ["x", "state"]


def test_unknown_shapes_take_anything(sign: Any) -> None:
    signature = sign(x=("FLOAT", None), y=("FLOAT", [None, "T"]), z=("FLOAT", ["T", None]))
    batch = {"x": X[0, 0], "y": X, "z": X[:3]}
    assert open_data([batch], signature).first().feeds["x"].shape == ()


@given(
    array=hnp.arrays(np.int64, 3, elements=st.integers(-(2**40), 2**40)),
    dtype=st.sampled_from(["INT8", "UINT8", "INT32", "UINT64"]),
)
def test_integers_keep_their_value_or_are_refused(array: Any, dtype: str) -> None:
    try:
        got = conform(one(dtype, 3), {"x": array}, "")["x"]
    except DataError:
        info = np.iinfo(ir.DataType[dtype].numpy())
        assert array.min() < info.min or array.max() > info.max
    else:
        assert got.tolist() == array.tolist()
