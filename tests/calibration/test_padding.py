"""Masks placed on tensors of every layout: statistics are those of the valid entries alone, picked by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxopt.calibration.padding import placed
from onnxopt.statistics import Gram, Moments
from onnxopt.statistics.masks import spread

HEADS = 3

Layout = Callable[[Any], Any]
"""Makes a tensor of [batch, tokens, heads, channels]."""

LAYOUTS: dict[str, Layout] = {
    "batch, tokens, channels": lambda x: x[:, :, 0],
    "batch, tokens, heads, channels": lambda x: x,
    "batch, heads, tokens, channels": lambda x: x.transpose(0, 2, 1, 3),
    "batch, 1, heads, tokens, channels": lambda x: x.transpose(0, 2, 1, 3)[:, None],
    "batch * tokens, channels": lambda x: x[:, :, 0].reshape(-1, x.shape[-1]),
    "batch * tokens, heads, channels": lambda x: x.reshape(-1, *x.shape[2:]),
    "tokens, batch, channels": lambda x: x[:, :, 0].swapaxes(0, 1),
    "tokens, directions, batch, channels": lambda x: x.transpose(1, 2, 0, 3),
    "batch * heads, tokens, channels": lambda x: x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[-1]),
}


def masks(data: st.DataObject, batch: int, tokens: int) -> Any:
    """Padding at the end, at the start or anywhere; at least one token counts."""
    lengths = np.array(data.draw(st.lists(st.integers(0, tokens), min_size=batch, max_size=batch)))
    mask = np.arange(tokens) < lengths[:, None]
    match data.draw(st.sampled_from(["end", "start", "anywhere"])):
        case "start":
            mask = mask[:, ::-1]
        case "anywhere":
            mask = np.array(data.draw(st.permutations(mask.reshape(-1).tolist()))).reshape(batch, tokens)
    assume(mask.any())
    return mask


def check(tensor: Any, mask: Any, valid: Any) -> None:
    """Statistics of the tensor, with NaN where padding is, are those of rows [n, channels]."""
    moments = Moments(axis=-1).begin("x")
    moments.update(tensor, mask)
    gram = Gram(axis=-1).begin("x")
    gram.update(tensor, mask)
    np.testing.assert_allclose(moments.result().mean, valid.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments.result().variance, valid.var(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gram.result().gram()[0], valid.T @ valid, rtol=1e-10, atol=1e-10)
    assert gram.result().rows == len(valid)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_only_tokens_that_count(layout: str, data: st.DataObject) -> None:
    batch, tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 8))
    assume(tokens != HEADS and (batch == 1 or len({batch, tokens, HEADS, 1}) == 4))  # sizes tell axes apart
    mask = masks(data, batch, tokens)
    values = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(batch, tokens, HEADS, 2))
    padded = np.where(mask[:, :, None, None], values, np.nan)
    tensor = LAYOUTS[layout](padded)
    valid = values[mask] if tensor.size == values.size else values[mask][:, 0]
    check(tensor, placed(mask, tensor.shape, channels=-1), valid.reshape(-1, 2))


@pytest.mark.parametrize("length", [None, 3])
@given(data=st.data())
def test_without_tokens_samples_count_that_have_one(length: int | None, data: st.DataObject) -> None:
    """After pooling, or with tokens merged to fewer."""
    batch, tokens = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([4, 5]))
    assume(batch < 4)
    mask = masks(data, batch, tokens)
    values = np.random.default_rng(0).normal(size=(batch, 2) if length is None else (batch, length, 2))
    values[~mask.any(1)] = np.nan
    check(values, placed(mask, values.shape, channels=-1), values[mask.any(1)].reshape(-1, 2))


def test_a_mask_of_samples() -> None:
    mask = np.array([True, False, True])
    values = np.arange(24.0).reshape(3, 4, 2)
    check(values, placed(mask, values.shape), values[[0, 2]].reshape(-1, 2))
    state = values[None]  # as recurrent layers give it, one direction
    check(state, placed(mask, state.shape), values[[0, 2]].reshape(-1, 2))
    assert placed(mask, (4, 3, 2)) is None


MASK = np.array([[True, True, False], [True, False, False]])


@pytest.mark.parametrize("shape", [(), (5,), (5, 3, 4), (7, 3), (4, 5), (3, 4), (2,), (1, 5, 2), (0, 3)])
def test_where_nothing_fits(shape: tuple[int, ...]) -> None:
    found = placed(MASK, shape)
    if shape == (2,):
        assert found is not None
        assert found.tolist() == [True, True]
    else:
        assert found is None


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((2, 3, 3), None, (2, 3)),  # the first axis that may be tokens
        ((2, 3, 3, 8), None, (2, 3)),
        ((2, 4, 3, 3), None, (2, 1, 3)),  # attention scores: rows
        ((2, 4, 3, 3), 3, (2, 1, 3)),
        ((2, 3), None, (2, 3)),
        ((2, 3), 1, (2,)),  # as many channels as tokens, after pooling
        ((2, 3), -1, (2,)),
        ((2, 3, 8, 8), 1, (2,)),  # an image with as many channels as tokens
        ((2, 3, 3), 1, (2, 1, 3)),  # channels first
        ((6, 4, 3), None, (6,)),  # flattened before folded
        ((3, 2, 3), None, (3, 2)),  # time first
        ((3, 2), 1, None),
        ((4, 3, 8), None, (4, 3)),
        ((4, 8, 3), -2, (4, 1, 3)),
        ((1, 2, 8), None, (1, 2)),
        ((1, 2), 1, None),
    ],
)
def test_where_several_fit(shape: tuple[int, ...], channels: int | None, expected: tuple[int, ...] | None) -> None:
    found = placed(MASK, shape, channels=channels)
    assert (None if found is None else found.shape) == expected


def test_time_first_comes_before_folded_heads() -> None:
    mask = np.array([[True, True, True, False], [True, False, False, False]])
    found = placed(mask, (4, 2, 4))
    assert found is not None
    assert found.tolist() == mask.T.tolist()


def test_one_token_at_a_time() -> None:
    """Decoding: [batch, 1, channels] with a mask of one token a sample."""
    mask = np.array([[True], [False], [True]])
    for shape in ((3, 1, 8), (3, 8), (3, 4, 1, 8), (1, 3, 8)):
        found = placed(mask, shape, channels=-1)
        assert found is not None
        assert spread(found, shape, "x").mean() == 2 / 3


def test_batches_of_nothing() -> None:
    for shape in ((0, 3, 8), (0, 8), (3, 0, 8)):
        found = placed(np.zeros((0, 3), np.bool_), shape)
        assert found is not None
        assert found.size == 0
    assert placed(np.zeros((0, 3), np.bool_), (4, 3)) is None
