"""Arrays come back from files bit for bit, whatever they are, and cost no memory there."""

import os
import pickle
import resource
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.calibration.places import ALIGNMENT, read, write
from onnxopt.errors import DataError, OnnxOptError

# Every element type that ONNX has; of the last ones numpy needs ml_dtypes for.
DTYPES = [
    *("float16", "float32", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("int4", "uint4", "int2", "uint2", "float4_e2m1fn"),
]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Of any type and shape: 0-d, empty, transposed, sliced, reversed; strings with any characters."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    kind = draw(st.sampled_from([*DTYPES, "text", "fixed"]))
    count = int(np.prod(shape))
    if kind in ("text", "fixed"):
        texts = draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
        array = np.array(texts, np.object_ if kind == "text" else "<U5").reshape(shape)
    else:
        dtype = dtype_of(kind)
        content = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
        raw = np.frombuffer(content, np.uint8)
        narrow = {"bool": 1, "int4": 15, "uint4": 15, "float4_e2m1fn": 15, "int2": 3, "uint2": 3}
        array = (raw & narrow.get(kind, 255)).view(dtype).reshape(shape)
    if array.ndim and draw(st.booleans()):
        array = array.T[:: draw(st.sampled_from([1, 2, -1]))]
    return array


def assert_same(found: Any, array: Any) -> None:
    """To the bit: NaNs with their payload, signs of zeros."""
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    if array.dtype.hasobject:
        assert found.tolist() == array.tolist()
    else:
        assert found.tobytes() == array.tobytes()


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file may grow beyond a size: writing fails as on a full disk, in the middle of an array."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)


@given(st.lists(arrays(), max_size=5))
def test_bit_for_bit(written: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "made" / "values.bin"
        places = [pickle.loads(pickle.dumps(write(path, array))) for array in written]
        for array, place in zip(written, places, strict=True):
            assert_same(read(place), array)
            assert place.offset % ALIGNMENT == 0
            assert len(pickle.dumps(place)) < 1000
        assert not written or path.stat().st_size == max(place.end for place in places)


@pytest.mark.parametrize("name", DTYPES)
def test_every_type(name: str, tmp_path: Path) -> None:
    values = np.arange(24).reshape(2, 3, 4) % 2
    array = values.astype(dtype_of(name))
    write(tmp_path / "x", np.ones(3, np.int8))
    found = read(write(tmp_path / "x", array))
    assert_same(found, array)
    assert not found.flags.writeable
    assert not found.flags.owndata


def test_views_outlive_the_file(tmp_path: Path) -> None:
    found = read(write(tmp_path / "x", np.arange(1000)))
    write(tmp_path / "x", np.arange(10**6))
    (tmp_path / "x").unlink()
    assert found.sum() == 499500


def test_what_was_begun_and_not_finished_is_passed_over(tmp_path: Path) -> None:
    """A process that was killed while it wrote leaves bytes behind."""
    first = write(tmp_path / "x", np.arange(5))
    with (tmp_path / "x").open("ab") as file:
        file.write(b"half an array")
    second = write(tmp_path / "x", np.arange(7))
    assert read(first).tolist() == [*range(5)]
    assert read(second).tolist() == [*range(7)]


@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_nothing_large_is_copied(order: str, tmp_path: Path) -> None:
    array = np.ones((2000, 5000), np.float32, order="F" if order == "F" else "C")  # 40 MB
    array = array[:, ::2] if order == "strided" else array
    tracemalloc.start()
    found = read(write(tmp_path / "x", array))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found == array).all()
    assert peak < 2 << 20


def test_a_full_disk(tmp_path: Path) -> None:
    """One line that names the file, which is left as it was."""
    path = tmp_path / "x"
    first = write(path, np.arange(3))
    for array in (np.ones(10**5), np.ones((400, 500)).T):
        with full_after(10**5), pytest.raises(OnnxOptError, match=rf"^cannot write {path}: .*; make room there, or .*"):
            write(path, array)
        assert path.stat().st_size == first.end
    assert read(first).tolist() == [0, 1, 2]


def test_files_that_others_changed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    place = write(path, np.ones(10**5))
    os.truncate(path, place.end - 1)
    with pytest.raises(OnnxOptError, match=rf"^{path} has 799999 bytes where 800000 were written; leave .*"):
        read(place)
    os.truncate(path, 0)
    with pytest.raises(OnnxOptError, match="has 0 bytes"):
        read(place)
    path.unlink()
    with pytest.raises(OnnxOptError, match=rf"^cannot read {path}: No such file or directory; leave .*"):
        read(place)


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OnnxOptError, match=r"^cannot write .*file/x: "):
        write(tmp_path / "file" / "x", np.ones(3))


def test_half_characters(tmp_path: Path) -> None:
    """What Python makes of bytes that are no UTF-8."""
    texts = ["\ud800", "a\udcff", "\0"]
    assert read(write(tmp_path / "x", np.array(texts, np.object_))).tolist() == texts


@pytest.mark.parametrize("odd", [None, 3, b"bytes", [1, 2]])
def test_objects_that_are_no_strings(odd: object, tmp_path: Path) -> None:
    array = np.array(["a", None, "b"], np.object_)
    array[1] = odd
    with pytest.raises(DataError, match=f"objects of type {type(odd).__name__} "):
        write(tmp_path / "x", array)
    assert not (tmp_path / "x").exists()
