"""Frames: what is written is what is read, with arrays beside the pickle."""

import io
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from onnxopt.backends import frames

ARRAYS = numpy_st.arrays(
    st.sampled_from([np.float32, np.int8, np.bool_, np.complex128, "U3"]),
    numpy_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


def passed_on(value):
    stream = io.BytesIO()
    frames.write(stream, frames.encode(value))
    return frames.decode(frames.read(io.BytesIO(stream.getvalue())))


@settings(max_examples=40)
@given(st.lists(ARRAYS, max_size=3), st.text())
def test_round_trip(arrays, text):
    back, back_text = passed_on((arrays, text))
    assert back_text == text
    for before, after in zip(arrays, back, strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_arrays_are_neither_copied_nor_pickled():
    array = np.arange(100_000, dtype=np.float32)
    pickled, block = frames.encode({"x": array})
    assert len(pickled) < 1000
    assert np.shares_memory(np.frombuffer(block, np.float32), array)
    assert passed_on(array).flags.writeable


def test_an_array_larger_than_the_pipe():
    reader, writer = os.pipe()
    array = np.arange(1 << 20)
    with open(reader, "rb") as source, open(writer, "wb") as sink:
        thread = threading.Thread(target=frames.write, args=(sink, frames.encode(array)))
        thread.start()
        np.testing.assert_array_equal(frames.decode(frames.read(source)), array)
        thread.join()


@pytest.mark.parametrize("length", [0, 3, 10, -1])
def test_a_frame_that_breaks_off(length):
    stream = io.BytesIO()
    frames.write(stream, frames.encode(np.arange(10)))
    with pytest.raises(EOFError):
        frames.read(io.BytesIO(stream.getvalue()[:length]))


def test_skip_to_finds_the_mark_after_noise():
    stream = io.BytesIO(b"noise\nhalf a lineMARK\nrest")
    frames.skip_to(stream, b"MARK\n")
    assert stream.read() == b"rest"
    with pytest.raises(EOFError):
        frames.skip_to(io.BytesIO(b"noise\nMAR"), b"MARK\n")
