"""The range grows without losing a count, and does not depend on the order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.statistics import Histogram

floats = st.floats(-(2.0**100), 2.0**100, width=32)


@given(
    parts=st.lists(st.lists(floats, min_size=1, max_size=6), min_size=1, max_size=4), data=st.data(),
    bins=st.sampled_from([2, 4, 64]), magnitudes=st.booleans(),
)  # fmt: skip
def test_counts_do_not_depend_on_split_or_order(
    parts: list[list[float]], data: st.DataObject, bins: int, magnitudes: bool
) -> None:
    request = Histogram(bins, magnitudes)
    whole, merged = request.begin("x"), request.begin("x")
    whole.update(np.concatenate(parts).astype(np.float32))
    for part in data.draw(st.permutations(parts)):
        state = request.begin("x")
        state.update(np.array(part, np.float32))
        merged.merge(state)
    one, other = whole.result(), merged.result()
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.edges, other.edges)
    assert (one.low, one.high, one.count) == (other.low, other.high, other.count)
    assert one.counts.sum() == one.count == sum(map(len, parts))


@given(values=st.lists(floats, min_size=1, max_size=20), magnitudes=st.booleans())
def test_every_value_lies_within_its_bin(values: list[float], magnitudes: bool) -> None:
    state = Histogram(16, magnitudes).begin("x")
    for value in values:
        state.update(np.array(value, np.float32))
    result = state.result()
    seen = np.array(values, np.float32).astype(np.float64)
    counts = []
    for low, high in zip(result.edges[:-1], result.edges[1:], strict=True):
        if magnitudes:
            counts.append(np.sum((np.abs(seen) >= low) & (np.abs(seen) < high)))
        else:
            counts.append(
                np.sum((seen >= low) & (seen < high) if low >= 0 else (seen > low) & (seen <= high) & (seen != 0))
            )
    assert result.counts.tolist() == counts


def test_zeros_alone_and_then_more() -> None:
    state = Histogram(8).begin("x")
    state.update(np.zeros(5))
    assert state.result().counts.tolist() == [0, 0, 0, 0, 5, 0, 0, 0]
    state.update(np.array([3.0, -3.5]))
    assert state.result().counts.tolist() == [1, 0, 0, 0, 5, 0, 0, 1]
    assert state.result().edges.tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4]


def test_at_least_half_of_the_bins_are_in_reach() -> None:
    state = Histogram(1024, magnitudes=True).begin("x")
    state.update(np.random.default_rng(0).random(300_000) * 1.001)
    result = state.result()
    assert result.high >= result.edges[512]
    assert result.counts.sum() == 300_000


@pytest.mark.parametrize("bins", [0, 1, 3, 100])
def test_bins_are_a_power_of_two(bins: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Histogram(bins)
