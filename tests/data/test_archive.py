"""Reading .npz files: rows without the rest, and every kind of broken file."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxopt.data import open_data
from onnxopt.data.archive import NpzArchive
from onnxopt.errors import DataError

ARRAYS = hnp.arrays(
    st.sampled_from(["<f4", ">f8", "<i8", "?", "<f2", "<c8", "<U3", "u1"]),
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
)


@given(array=ARRAYS, compressed=st.booleans(), fortran=st.booleans(), data=st.data())
def test_rows_are_those_of_numpy(
    tmp_path_factory: pytest.TempPathFactory, array: Any, compressed: bool, fortran: bool, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, a=np.asfortranarray(array) if fortran else array)
    archive = NpzArchive(path)
    assert archive.headers["a"].shape == array.shape
    spans = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4))
    with archive.open() as reader:
        np.testing.assert_array_equal(reader.array("a"), array)
        for start, stop in spans:
            np.testing.assert_array_equal(reader.rows("a", start, stop), array[start:stop])


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


LONG = npy(np.zeros((4, 3), np.float32))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.npy": npy(np.array([{}, 1], dtype=object))}, "array 'x' cannot be read: it holds pickled Python objects"),
        ({"x.npy": LONG[:-5]}, r"array 'x' cannot be read: \[4, 3\] float32 takes 48 bytes, the file has 43"),
        ({"x.npy": LONG.replace(b"(4, 3)", b"(-4,3)")}, "its shape .* is impossible"),
        ({"x.npy": LONG.replace(b"(4, 3), }       ", b"(9999999999,), }")}, "takes 39999999996 bytes, the file has"),
        ({"x.npy": b"no array"}, "array 'x' cannot be read"),
        ({"x.npy": b""}, "array 'x' cannot be read"),
        ({"notes.txt": b"hello, this is text"}, "array 'notes.txt' cannot be read"),
        ({"x.npy": npy(np.zeros(3, [("a", "f4")]))}, "array 'x' is no input|input 'x' takes float32"),
        ({}, "empty, no arrays for the inputs 'x'"),
    ],
)
def test_broken_members(tmp_path: Path, sign: Any, members: dict[str, bytes], message: str) -> None:
    path = write(tmp_path / "bad.npz", members)
    with pytest.raises(DataError, match=message) as caught:
        open_data(path, sign(x=("FLOAT", ["N", 3])))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(tmp_path: Path, sign: Any) -> None:
    signature = sign(x=("FLOAT", ["N", 3]))
    with pytest.raises(DataError, match=r"absent\.npz: no such file"):
        open_data(tmp_path / "absent.npz", signature)
    (tmp_path / "text.npz").write_text("a,b,c")
    with pytest.raises(DataError, match=r"text\.npz: not a readable \.npz file"):
        open_data(str(tmp_path / "text.npz"), signature)
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match=r"x\.npy: not a readable \.npz file .*numpy\.savez"):
        open_data(tmp_path / "x.npy", signature)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: empty, no \.npz file in this folder"):
        open_data(tmp_path / "empty", signature)


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_and_damaged_files(tmp_path: Path, sign: Any, compressed: bool) -> None:
    path = tmp_path / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=np.random.default_rng(0).random((64, 3), np.float32))
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file"):
        open_data(path, sign(x=("FLOAT", ["N", 3])))
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"array 'x' cannot be read|NaN|infinite"):
        open_data(path, sign(x=("FLOAT", ["N", 3])))


def test_one_batch_at_a_time_is_in_memory(tmp_path: Path, sign: Any) -> None:
    import tracemalloc

    path = tmp_path / "large.npz"
    np.savez_compressed(path, x=np.zeros((400, 25_000), np.float32))
    tracemalloc.start()
    data = open_data(path, sign(x=("FLOAT", ["N", 25_000])))
    for _ in data.batches():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.samples == 400
    assert peak < 8_000_000  # the array takes 40 MB, a batch 0.8 MB
