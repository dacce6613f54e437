"""Gram matrices of patches against an im2col written out, for any geometry, split and mask."""

import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import onnx.reference
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxopt.analysis.axes.windows import Windows
from onnxopt.errors import DataError
from onnxopt.statistics import ConvCrossGram, ConvGram, Patches, Sides


def _windows(kernel: tuple[int, ...], pads: int = 0, stride: int = 1, auto_pad: str = "NOTSET") -> Windows:
    rank = len(kernel)
    return Windows(kernel, (stride,) * rank, (1,) * rank, (pads,) * 2 * rank, auto_pad)


def _im2col(batch: Any, patches: Patches) -> Any:
    """[groups, samples * positions, features * taps], patch by patch."""
    windows, spatial = patches.windows, batch.shape[2:]
    ends = [windows.ends(axis, size) for axis, size in enumerate(spatial)]
    padded = np.pad(batch, [(0, 0), (0, 0), *ends])
    steps = [
        range(0, size - windows.reach(axis) + 1, windows.strides[axis]) for axis, size in enumerate(padded.shape[2:])
    ]
    rows = []
    for image in padded:
        for start in product(*steps):
            cut = [slice(a, a + windows.reach(i), windows.dilations[i]) for i, a in enumerate(start)]
            rows.append(image[(slice(None), *cut)].reshape(patches.groups, -1))
    return np.array(rows).reshape(len(rows), patches.groups, -1).swapaxes(0, 1)


def _check(result: Any, left: Any, right: Any) -> None:
    gram = left.swapaxes(1, 2) @ right
    centred = (left - left.mean(1, keepdims=True)).swapaxes(1, 2) @ (right - right.mean(1, keepdims=True))
    for found, exact in [(result.gram(), gram), (result.scatter, centred)]:
        assert found.shape == exact.shape
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-10 * np.abs(gram).max())
    assert result.count == result.rows == left.shape[1]


@st.composite
def _geometries(draw: st.DrawFn) -> tuple[Patches, list[tuple[int, ...]]]:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    windows = Windows(each(1, 3), each(1, 3), each(1, 2), each(0, 3, 2 * rank), auto_pad)
    batches = [(draw(st.integers(1, 3)), *each(3, 7)) for _ in range(draw(st.integers(1, 3)))]
    for _, *spatial in batches:
        for axis, size in enumerate(spatial):
            assume(size + sum(windows.ends(axis, size)) >= windows.reach(axis))
    return Patches(windows, draw(st.integers(1, 2))), batches


@settings(max_examples=40)
@given(geometry=_geometries(), seed=st.integers(0, 99))
def test_any_geometry_equals_im2col(geometry: tuple[Patches, list[tuple[int, ...]]], seed: int) -> None:
    patches, shapes = geometry
    rng = np.random.default_rng(seed)
    dense = [rng.normal(1, 1, (samples, 2 * patches.groups, *spatial)) for samples, *spatial in shapes]
    current = [rng.normal(1, 1, (samples, patches.groups, *spatial)) for samples, *spatial in shapes]
    gram, cross = ConvGram(patches).begin("x"), ConvCrossGram(patches).begin("x")
    for left, right in zip(dense, current, strict=True):
        part = ConvGram(patches).begin("x")
        part.update(left)
        gram.merge(part)
        cross.update(Sides(left, right))
    left, right = (np.concatenate([_im2col(batch, patches) for batch in side], axis=1) for side in (dense, current))
    _check(gram.result(), left, left)
    _check(cross.result(), left, right)


def test_columns_are_ordered_as_the_weight_of_onnx_conv() -> None:
    rng = np.random.default_rng(0)
    image, weight = rng.normal(size=(2, 4, 6, 5)), rng.normal(size=(6, 2, 3, 2))
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 0, 1, 1], strides=[2, 1])
    output = onnx.reference.ReferenceEvaluator(node).run(None, {"x": image, "w": weight})[0]
    patches = Patches(Windows((3, 2), (2, 1), (1, 1), (1, 0, 1, 1), "NOTSET"), 2)
    state = ConvGram(patches).begin("x")
    state.update(image)
    matrix = weight.reshape(2, 3, -1)
    energy = np.einsum("gok,gkl,gol->go", matrix, state.result().gram(), matrix).reshape(-1)
    np.testing.assert_allclose(energy, (output**2).sum((0, 2, 3)), rtol=1e-10)


@pytest.mark.parametrize("size", [9, 50])
def test_images_of_many_blocks_and_blocks_of_many_images(size: int) -> None:
    patches = Patches(_windows((2, 2)))
    batch = np.random.default_rng(0).normal(1, 1, (4000 // size**2 + 3, 2, size, size))
    state = ConvGram(patches).begin("x")
    state.update(batch)
    rows = _im2col(batch, patches)
    _check(state.result(), rows, rows)


def test_masked_samples_do_not_count() -> None:
    patches = Patches(_windows((3, 3), pads=1))
    batch = np.random.default_rng(0).normal(size=(5, 2, 4, 4))
    mask = np.array([True, False, True, True, False])
    rows = _im2col(batch[mask], patches)
    batch[~mask] = np.nan
    state = ConvGram(patches).begin("x")
    state.update(batch, mask)
    _check(state.result(), rows, rows)
    assert state.samples == 5


@pytest.mark.parametrize("split", [[6], [1, 2, 3], [3, 3]])
def test_sampled_positions_depend_on_the_sample_alone(split: list[int]) -> None:
    request = ConvGram(Patches(_windows((3, 3), pads=1), positions=7, seed=5))
    batch = np.random.default_rng(0).normal(size=(6, 2, 8, 8))
    whole, parts = request.begin("x", first_sample=20), request.begin("x", first_sample=20)
    whole.update(batch)
    start = 0
    for length in split:
        part = request.begin("x", first_sample=20 + start)
        part.update(batch[start : start + length])
        parts.merge(part)
        start += length
    one_by_one = request.begin("x", first_sample=20)
    for image in batch:
        one_by_one.update(image[None])
    for state in (parts, one_by_one):
        np.testing.assert_allclose(state.result().gram(), whole.result().gram(), rtol=1e-12, atol=1e-10)
    assert len({tuple(request.patches.drawn(64, sample)) for sample in range(20)}) == 20
    assert (whole.result().rows, whole.result().count) == (42, 6 * 64)


def test_sampled_sums_are_unbiased_over_images_of_any_size() -> None:
    """The mean over many seeds meets the full sums within five standard errors; and seeds differ."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(1, 1, (1, 1, 3, 3)), rng.normal(-2, 3, (1, 1, 6, 6))]

    def gram(patches: Patches) -> Any:
        state = ConvGram(patches).begin("x")
        for batch in batches:
            state.update(batch)
        return state.result().gram().reshape(-1)

    windows = _windows((2, 1))
    draws = np.array([gram(Patches(windows, positions=3, seed=seed)) for seed in range(300)])
    error = np.abs(draws.mean(0) - gram(Patches(windows)))
    assert (draws.std(0) > 0).all()
    assert (error < 5 * draws.std(0) / np.sqrt(len(draws))).all()


def test_as_many_positions_as_there_are_is_all_of_them() -> None:
    batch = np.random.default_rng(0).normal(size=(2, 1, 4, 4))
    some, every = (ConvGram(Patches(_windows((3, 3)), positions=count)).begin("x") for count in (4, None))
    some.update(batch)
    every.update(batch)
    np.testing.assert_array_equal(some.result().gram(), every.result().gram())


@pytest.mark.parametrize("shape", [(3, 4, 70, 70), (70, 12, 6, 6), (2, 64, 12, 12)])
@pytest.mark.parametrize("positions", [None, 20])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_memory_stays_within_the_footprint(shape: tuple[int, ...], positions: int | None, dtype: Any) -> None:
    batch = np.random.default_rng(0).normal(size=shape).astype(dtype)
    for groups in (1, 4):
        patches = Patches(_windows((3, 3), pads=1), groups, positions)
        for request, given_ in ((ConvGram(patches), batch), (ConvCrossGram(patches), Sides(batch, batch))):
            bound = request.footprint(*[shape] * (1 if given_ is batch else 2), dtype=dtype)
            state: Any = request.begin("x")
            tracemalloc.start()
            state.update(given_)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert state.nbytes <= bound.state
            assert peak <= bound.state + bound.work


def test_refusals() -> None:
    state = ConvGram(Patches(_windows((3, 3)), groups=2)).begin("x", first_sample=7)
    bad = np.ones((2, 2, 5, 5))
    bad[1, 0, 2, 3] = np.nan
    with pytest.raises(DataError, match=r"'x' holds NaN in sample 8, at \[1, 0, 2, 3\]"):
        state.update(bad)
    with pytest.raises(DataError, match="does not fit its convolution"):
        state.update(np.ones((2, 2, 5)))
    with pytest.raises(DataError, match="only whole samples"):
        state.update(np.ones((2, 2, 5, 5)), np.ones((2, 1, 5), bool))
    with pytest.raises(DataError, match="3 channels do not divide into 2 groups"):
        state.update(np.ones((2, 3, 5, 5)))
    state.update(np.ones((2, 2, 5, 5)))
    with pytest.raises(DataError, match="has 4 channels, and had 2"):
        state.update(np.ones((2, 4, 5, 5)))
    with pytest.raises(DataError, match="the same on all sides"):
        ConvCrossGram(Patches(_windows((3, 3)))).begin("x").update(Sides(np.ones((2, 1, 5, 5)), np.ones((2, 1, 5, 6))))
    with pytest.raises(ValueError, match="at least 1"):
        Patches(_windows((3, 3)), positions=0)


def test_kernels_larger_than_the_image_see_nothing() -> None:
    state = ConvGram(Patches(_windows((3, 3)))).begin("x")
    state.update(np.ones((2, 1, 2, 2)))
    with pytest.raises(DataError, match="no data reached it"):
        state.result()
