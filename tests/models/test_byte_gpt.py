"""The byte-level GPT that ships: it knows Python, on modules that it never saw."""

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from onnxopt.models import path
from onnxopt.models.stdlib_text import HELD_OUT, held_out_bytes, training_bytes, windows

CONTEXT = 512


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return ort.InferenceSession(path("byte-gpt"))


def bits_per_byte(session: ort.InferenceSession, rows: npt.NDArray[np.int64]) -> float:
    """Mean negative log2 likelihood of each next byte."""
    losses = []
    for row in rows:
        (logits,) = session.run(None, {"tokens": row[None, :-1]})
        shifted = logits[0] - logits[0].max(axis=-1, keepdims=True)
        log_sum = np.log(np.exp(shifted).sum(axis=-1))
        losses.append(np.mean(log_sum - shifted[np.arange(len(row) - 1), row[1:]]))
    return float(np.mean(losses) / np.log(2))


def test_held_out_modules_are_not_trained_on() -> None:
    trained = training_bytes().tobytes()
    for line in (b"class ArgumentParser(_AttributeHolder, _ActionsContainer)", b"class ConfigParser(RawConfigParser)"):
        assert line in held_out_bytes().tobytes()
        assert line not in trained
    assert len(HELD_OUT) == len(set(HELD_OUT))


def test_predicts_unseen_code(session: ort.InferenceSession) -> None:
    assert bits_per_byte(session, windows(held_out_bytes(), CONTEXT, 24)) < 1.45


def test_reads_backwards_badly(session: ort.InferenceSession) -> None:
    rows = windows(held_out_bytes(), CONTEXT, 4)[:, ::-1]
    assert bits_per_byte(session, np.ascontiguousarray(rows)) > 3


def test_batch_and_sequence_are_dynamic_and_causal(session: ort.InferenceSession) -> None:
    rows = windows(held_out_bytes(), 64, 3)[:, :-1]
    (together,) = session.run(None, {"tokens": rows})
    (alone,) = session.run(None, {"tokens": rows[1:2, :10]})
    assert together.shape == (3, 64, 256)
    np.testing.assert_allclose(together[1:2, :10], alone, rtol=1e-3, atol=1e-3)


def test_file_is_small() -> None:
    assert path("byte-gpt").stat().st_size <= 32 * 2**20


@pytest.mark.slow
def test_at_most_1_3_bits_on_all_held_out_modules(session: ort.InferenceSession) -> None:
    assert bits_per_byte(session, windows(held_out_bytes(), CONTEXT, 10**6)) <= 1.3
