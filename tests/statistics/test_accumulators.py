"""Every dense accumulator against numpy on all data at once, for any split, any merge order and any mask."""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.errors import DataError
from onnxopt.statistics import (
    Accumulator,
    CoActivation,
    CrossGram,
    Gram,
    Histogram,
    Magnitude,
    MinMax,
    Moments,
    Sides,
)

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A request, and what numpy makes of rows [n, channels], of one side or two."""

    request: Accumulator[Any, Any]
    oracle: Callable[..., Numbers]
    sides: int = 1

    def __str__(self) -> str:
        return str(self.request)


def _moments(rows: Any) -> Numbers:
    return {"mean": rows.mean(0), "variance": rows.var(0), "second_moment": (rows**2).mean(0), "count": len(rows)}


def _scatter(left: Any, right: Any, groups: int) -> tuple[Any, Any]:
    def parts(rows: Any) -> Any:
        return rows.reshape(len(rows), groups, -1).transpose(1, 0, 2)

    def product(left: Any, right: Any) -> Any:
        return parts(left).swapaxes(1, 2) @ parts(right)

    return product(left - left.mean(0), right - right.mean(0)), product(left, right)


def _gram(groups: int) -> Callable[[Any], Numbers]:
    def oracle(rows: Any) -> Numbers:
        scatter, gram = _scatter(rows, rows, groups)
        mean = rows.mean(0).reshape(groups, -1)
        return {"scatter": scatter, "gram": gram, "mean": mean, "count": len(rows), "rows": len(rows)}

    return oracle


def _cross(dense: Any, current: Any) -> Numbers:
    scatter, gram = _scatter(dense, current, 1)
    means = {"mean_dense": dense.mean(0)[None], "mean_current": current.mean(0)[None]}
    return {"scatter": scatter, "gram": gram, "count": len(dense), **means}


def _firing(signed: bool) -> Callable[[Any], Numbers]:
    def oracle(rows: Any) -> Numbers:
        on = (rows if signed else np.abs(rows)) > 0.5
        both = (on[:, :, None] & on[:, None, :]).sum(0)
        either = (on[:, :, None] | on[:, None, :]).sum(0)
        same = (on[:, :, None] == on[:, None, :]).mean(0)
        return {"both": both, "jaccard": both / np.maximum(either, 1), "agreement": same, "count": len(rows)}

    return oracle


def _histogram(bins: int, magnitudes: bool) -> Callable[[Any], Numbers]:
    def oracle(rows: Any) -> Numbers:
        values = rows.reshape(-1)
        reach = 2.0 ** np.frexp(np.abs(values).max())[1] if values.any() else 1.0
        if magnitudes:
            counts, edges = np.histogram(np.abs(values), bins, (0, reach))
        else:  # bins are mirrored: each holds its edge on the side of zero
            above, edges = np.histogram(values[values >= 0], bins // 2, (0, reach))
            below, _ = np.histogram(-values[values < 0], bins // 2, (0, reach))
            counts, edges = np.concatenate([below[::-1], above]), np.concatenate([-edges[:0:-1], edges])
        return {"counts": counts, "edges": edges, "low": values.min(), "high": values.max(), "count": len(values)}

    return oracle


def _ranges(rows: Any) -> Numbers:
    return {"low": rows.min(0), "high": rows.max(0), "count": len(rows)}


def _magnitudes(rows: Any) -> Numbers:
    return {"absmax": np.abs(rows).max(0), "mean": np.abs(rows).mean(0), "count": len(rows)}


AXIS = 1
CASES = [
    Case(MinMax(AXIS), _ranges),
    Case(MinMax(), lambda rows: {k: v if k != "count" else rows.size for k, v in _ranges(rows.reshape(-1)).items()}),
    Case(Magnitude(AXIS), _magnitudes),
    Case(Moments(AXIS), _moments),
    Case(Moments(None), lambda rows: _moments(rows.reshape(-1))),
    Case(Histogram(16), _histogram(16, False)),
    Case(Histogram(8, magnitudes=True), _histogram(8, True)),
    Case(Gram(AXIS), _gram(1)),
    Case(Gram(AXIS, groups=2), _gram(2)),
    Case(CrossGram(AXIS), _cross, sides=2),
    Case(CoActivation(AXIS, 0.5), _firing(False)),
    Case(CoActivation(AXIS, 0.5, signed=True), _firing(True)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def _rows(batch: Any) -> Any:
    """[n, channels, width] as rows of channels."""
    return np.moveaxis(batch, AXIS, -1).reshape(-1, batch.shape[AXIS])


def _as_batch(arrays: list[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else Sides(*arrays)


def _agree(result: Any, expected: Numbers, tolerance: float = 1e-10, slack: float = 1e-13) -> None:
    for name, value in expected.items():
        found = getattr(result, name)
        found = found() if callable(found) else found
        assert np.shape(found) == np.shape(value), name
        # Sums of deviations are as exact as their terms: where all rows are alike, numpy's are not 0 either.
        scale = np.abs(expected.get({"variance": "second_moment", "scatter": "gram"}.get(name, name), value)).max()
        np.testing.assert_allclose(found, value, rtol=tolerance, atol=slack * scale, err_msg=name)


@st.composite
def _streams(draw: st.DrawFn) -> list[list[Any]]:
    """Batches of one to four samples and some width, as a list a side; few distinct values, or far from 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    loc, scale = draw(st.sampled_from([(0, 1), (100, 1), (0, 1e-3), (-3, 1e4)]))
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=5))
    # Steps of a half give ties; the small offset keeps them off the edges of bins, where numpy counts otherwise.
    step = draw(st.sampled_from([None, 0.5]))

    def side(channels: int, shape: tuple[int, int]) -> Any:
        values = rng.normal(loc, scale, (shape[0], channels, shape[1])) * 10.0 ** rng.integers(-2, 2)
        return values if step is None else np.round(values / step) * step + 0.01

    return [[side(4, shape), side(3, shape)] for shape in shapes]


@every_case
@settings(max_examples=12)
@given(stream=_streams(), data=st.data())
def test_any_split_and_merge_order_equals_all_at_once(case: Case, stream: list[list[Any]], data: st.DataObject) -> None:
    shards = data.draw(st.integers(1, 3))
    states = [case.request.begin("x") for _ in range(shards)]
    for batch in stream:
        arrays = batch[: case.sides]
        states[data.draw(st.integers(0, shards - 1))].update(_as_batch(arrays))
    states = data.draw(st.permutations(states))
    while len(states) > 1:
        last = states.pop()
        states[data.draw(st.integers(0, len(states) - 1))].merge(last)
    rows = [np.concatenate([_rows(batch[side]) for batch in stream]) for side in range(case.sides)]
    _agree(states[0].result(), case.oracle(*rows))
    assert states[0].samples == sum(len(batch[0]) for batch in stream)


@every_case
@settings(max_examples=8)
@given(stream=_streams(), data=st.data())
def test_a_mask_equals_dropping_the_rows(case: Case, stream: list[list[Any]], data: st.DataObject) -> None:
    state, kept = case.request.begin("x"), []
    for batch in stream:
        arrays = [array.copy() for array in batch[: case.sides]]
        samples, _, width = arrays[0].shape
        shape = data.draw(st.sampled_from([(samples,), (samples, 1), (samples, 1, width), (1, 1, width)]))
        mask = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) < 0.6
        whole = np.broadcast_to(mask.reshape(*shape, *[1] * (3 - len(shape))), (samples, 1, width))[:, 0]
        kept.append([_rows(array)[whole.reshape(-1)] for array in arrays])
        for array in arrays:
            np.moveaxis(array, AXIS, -1)[~whole] = np.nan
        state.update(_as_batch(arrays), mask)
    rows = [np.concatenate([batch[side] for batch in kept]) for side in range(case.sides)]
    if len(rows[0]):
        _agree(state.result(), case.oracle(*rows))
    else:
        with pytest.raises(DataError, match="'x': no data reached it"):
            state.result()


@every_case
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64, np.bool_])
def test_narrow_types_are_as_good_as_float32(case: Case, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    arrays = [(rng.normal(5, 2, (3000, channels, 2))).astype(dtype) for channels in (4, 3)[: case.sides]]
    state = case.request.begin("x")
    state.update(_as_batch(arrays))
    _agree(state.result(), case.oracle(*(_rows(array).astype(np.float64) for array in arrays)), 2e-6, 2e-6)


@every_case
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_data_are_refused_by_name_and_leave_no_trace(case: Case, bad: float) -> None:
    rng = np.random.default_rng(0)
    good = [rng.normal(size=(5, channels, 2)) for channels in (4, 3)[: case.sides]]
    state = case.request.begin("attention/probs", first_sample=100)
    state.update(_as_batch(good))
    before = state.result()
    broken = [array.copy() for array in good]
    broken[-1][3, 1, 1] = bad
    with pytest.raises(DataError, match=r"'attention/probs' holds (NaN|an infinity) in sample 108, at \[3, 1, 1\]"):
        state.update(_as_batch(broken))
    _agree(state.result(), {name: getattr(before, name) for name in vars(before)}, 0, 0)
    assert state.samples == 5


def test_the_sample_that_counts_is_named_not_a_masked_one() -> None:
    batch = np.ones((4, 3))
    batch[0], batch[2, 1] = np.nan, np.inf
    with pytest.raises(DataError, match=r"'x' holds an infinity in sample 2, at \[2, 1\]"):
        Moments().begin("x").update(batch, np.array([False, True, True, True]))


@every_case
def test_memory_stays_within_the_footprint(case: Case) -> None:
    for shape in [(40, 4, 3000), (2, 320, 2100), (300, 160, 1)]:
        for dtype in (np.float16, np.float32, np.float64):
            arrays = [np.ones((shape[0], shape[1] // side, shape[2]), dtype) for side in range(1, case.sides + 1)]
            arrays = [np.cumsum(array, axis=0) for array in arrays]
            mask = np.arange(shape[0])[:, None, None] % 5 > 0
            bound = case.request.footprint(*(array.shape for array in arrays), dtype=dtype)
            state = case.request.begin("x")
            tracemalloc.start()
            state.update(_as_batch(arrays), mask)
            state.update(_as_batch(arrays))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert state.nbytes <= bound.state
            assert peak <= bound.state + bound.work, (shape, dtype)


@every_case
def test_results_stay_what_they_were(case: Case) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(5, channels, 2)) for channels in (4, 3)[: case.sides]]
    state = case.request.begin("x")
    state.update(_as_batch(arrays))
    first = state.result()
    state.update(_as_batch([9 * array for array in arrays]))
    _agree(first, case.oracle(*map(_rows, arrays)))


@every_case
def test_other_channels_are_refused(case: Case) -> None:
    state = case.request.begin("x")
    state.update(_as_batch([np.ones((2, 4, 3))] * case.sides))
    if getattr(case.request, "axis", None) is None:
        return
    with pytest.raises(DataError, match="'x' has 6 channels, and had 4"):
        state.update(_as_batch([np.ones((2, 6, 3))] * case.sides))
    other = case.request.begin("x")
    other.update(_as_batch([np.ones((2, 6, 3))] * case.sides))
    with pytest.raises(DataError, match="'x' has 6 channels, and had 4"):
        state.merge(other)


@every_case
def test_empty_batches_and_no_channels_count_for_nothing(case: Case) -> None:
    state = case.request.begin("x")
    for shape in [(0, 4, 2), (2, 4, 0)]:
        state.update(_as_batch([np.ones(shape)] * case.sides))
    assert (state.samples, state.rows) == (2, 0)
    with pytest.raises(DataError, match="'x': no data reached it"):
        state.result()
    hollow = case.request.begin("x")
    hollow.update(_as_batch([np.ones((3, 0, 2))] * case.sides))
    assert (hollow.samples, hollow.rows) == (3, 0)


def test_only_states_of_one_request_and_tensor_merge() -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        MinMax(0).begin("x").merge(MinMax(1).begin("x"))
    with pytest.raises(ValueError, match="cannot be merged"):
        MinMax(0).begin("x").merge(MinMax(0).begin("y"))
    assert len({MinMax(0), MinMax(0), Gram(1)}) == 2


def test_sides_must_have_the_same_rows() -> None:
    with pytest.raises(DataError, match=r"\[2, 3\] and \[3, 3\] do not have the same rows"):
        CrossGram().begin("x").update(Sides(np.ones((2, 3)), np.ones((3, 3))))


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(DataError, match="5 channels do not divide into 2 groups"):
        Gram(groups=2).begin("x").update(np.ones((2, 5)))
