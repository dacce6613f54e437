"""Digests of tensors: the same for the same content in any storage, another for any other."""

import gc
import hashlib
import mmap
import resource
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxopt.analysis import contents
from onnxopt.analysis.contents import digest, joined

ARRAY = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.float16, np.complex64]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    elements={"allow_nan": False},
)


def external(folder: Path, array: npt.NDArray[Any], offset: int = 0) -> ir.ExternalTensor:
    (folder / "w.bin").write_bytes(bytes(offset) + array.tobytes())
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.ExternalTensor(
        "w.bin", offset, array.nbytes, dtype, shape=ir.Shape(array.shape), name="w", base_dir=folder
    )


@given(ARRAY, st.data())
def test_layout_in_memory_does_not_matter(array: npt.NDArray[Any], data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(array.ndim)))
    strided = np.array(array.transpose(axes), order="C").transpose(np.argsort(axes).astype(int))
    doubled = np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    lazy = ir.LazyTensor(lambda: ir.Tensor(array), ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape))
    whole = digest(ir.Tensor(array))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "_PIECE", data.draw(st.integers(1, 300)))
        assert digest(ir.Tensor(strided)) == digest(ir.Tensor(doubled)) == digest(ir.Tensor(array)) == whole
    assert digest(lazy) == whole


@given(ARRAY, st.data())
def test_one_other_element_type_or_shape_shows(array: npt.NDArray[Any], data: st.DataObject) -> None:
    found = digest(ir.Tensor(array))
    assert digest(ir.Tensor(array[None])) != found
    if array.dtype == np.uint8:
        assert digest(ir.Tensor(array.view(np.int8))) != found
    if array.size:
        at = data.draw(st.integers(0, array.size - 1))
        other = array.copy().reshape(-1)
        other[at] = not other[at] if array.dtype == np.bool_ else other[at] + np.asarray(1, array.dtype)
        if other[at] != array.reshape(-1)[at]:
            assert digest(ir.Tensor(other.reshape(array.shape))) != found


def test_all_storages_of_a_weight_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_PIECE", 64)
    array = np.random.default_rng(0).standard_normal((9, 7), np.float32)
    mapped = external(tmp_path, array, 13)
    mapped.numpy()
    raw, typed = onnx.numpy_helper.from_array(array), onnx.helper.make_tensor("w", 1, [9, 7], array.reshape(-1))
    found = {
        digest(tensor)
        for tensor in (
            ir.Tensor(array), ir.Tensor(np.asfortranarray(array)), external(tmp_path, array, 13), mapped,
            ir.from_proto(raw), ir.from_proto(typed),
        )
    }  # fmt: skip
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [ir.DataType.INT4, ir.DataType.UINT2])
def test_types_below_a_byte(dtype: ir.DataType, tmp_path: Path) -> None:
    array = np.array([[1, 0, 1], [1, 1, 0]]).astype(dtype.numpy())
    whole = ir.Tensor(array, dtype=dtype)
    packed = ir.PackedTensor(np.frombuffer(whole.tobytes(), np.uint8), dtype, shape=(2, 3))
    (tmp_path / "w.bin").write_bytes(whole.tobytes())
    stored = ir.ExternalTensor("w.bin", 0, None, dtype, shape=ir.Shape([2, 3]), name="w", base_dir=tmp_path)
    assert digest(whole) == digest(packed) == digest(stored)
    assert digest(whole) != digest(ir.Tensor(array[::-1], dtype=dtype))


def test_types_that_numpy_lacks_and_texts() -> None:
    array = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    tensor = ir.Tensor(array, dtype=ir.DataType.BFLOAT16)
    assert digest(tensor) == digest(ir.Tensor(np.asfortranarray(array), dtype=ir.DataType.BFLOAT16))
    assert digest(tensor) != digest(ir.Tensor(array.view(np.uint16)))
    texts = [
        digest(ir.StringTensor([b"a", b"bc"], shape=ir.Shape([2]))),
        digest(ir.StringTensor([b"ab", b"c"], shape=ir.Shape([2]))),
    ]
    from_proto = digest(ir.from_proto(onnx.helper.make_tensor("t", onnx.TensorProto.STRING, [2], [b"a", b"bc"])))
    assert texts[0] == from_proto != texts[1]


def test_the_name_does_not_matter() -> None:
    assert digest(ir.Tensor(np.ones(3), name="a")) == digest(ir.Tensor(np.ones(3), name="b"))


def test_a_tensor_is_read_once_and_can_go() -> None:
    gc.collect()
    known, reads = len(contents._known), 0

    def content() -> ir.TensorProtocol:
        nonlocal reads
        reads += 1
        return ir.Tensor(np.ones(3, np.float32))

    tensor = ir.LazyTensor(content, ir.DataType.FLOAT, ir.Shape([3]))
    assert digest(tensor) == digest(tensor)
    assert reads == 1
    assert len(contents._known) == known + 1
    del tensor
    gc.collect()
    assert len(contents._known) == known


@given(st.lists(st.binary(max_size=4)), st.lists(st.binary(max_size=4)))
def test_joined_parts_are_told_apart(a: list[bytes], b: list[bytes]) -> None:
    assert (joined(a) == joined(b)) == (a == b)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_weights_do_not_stay_in_memory(tmp_path: Path) -> None:
    size = 64 * 2**20
    (tmp_path / "w.bin").write_bytes(np.random.default_rng(0).bytes(size))
    with (tmp_path / "w.bin").open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array = np.frombuffer(memoryview(mapping), np.float32).reshape(4096, -1)
    before, most = _resident(), 0

    def update(piece: bytes | memoryview) -> None:
        nonlocal most
        hashlib.sha256(piece)  # looks at it, as whoever takes it does
        most = max(most, _resident() - before)

    contents._feed(ir.Tensor(array), update)
    assert most < 16 * 2**20


def test_what_may_be_written_to_is_left_mapped(tmp_path: Path) -> None:
    """Pages of a private mapping that are given back lose what was written to them."""
    (tmp_path / "w.bin").write_bytes(bytes(2 * contents._PIECE))
    array = np.memmap(tmp_path / "w.bin", np.uint8, "c")
    array[:] = 7
    found = digest(ir.Tensor(array))
    assert array.min() == 7
    assert found == digest(ir.Tensor(np.full(2 * contents._PIECE, 7, np.uint8)))


def test_files_are_not_mapped_for_it(tmp_path: Path) -> None:
    tensor = external(tmp_path, np.ones((4, 4), np.float32))
    digest(tensor)
    assert tensor.raw is None


def test_speed() -> None:
    tensor = ir.Tensor(np.random.default_rng(0).standard_normal((5000, 5000), np.float32))
    start = time.process_time()
    digest(tensor)
    assert time.process_time() - start < 1
