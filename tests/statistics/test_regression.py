"""Moments of inputs against targets: the same as numpy on explicit rows, for any split."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.analysis.axes.windows import Windows
from onnxopt.errors import DataError
from onnxopt.statistics import ConvRegression, Patches, Regression


def moments(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)).T @ (t - t.mean(0))


@given(
    st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans(), st.sampled_from([1, 2])
)
@settings(max_examples=40)
def test_rows(seed: int, sizes: list[int], less: bool, groups: int) -> None:
    rng = np.random.default_rng(seed)
    state, again = (Regression(axis=1, target_axis=-1, groups=groups).begin("x") for _ in range(2))
    rows, targets = [], []
    for at, size in enumerate(sizes):
        x, t, s = (
            rng.standard_normal((size, 6, 3)),
            rng.standard_normal((size, 3, 4)),
            rng.standard_normal((size, 3, 4)),
        )
        (state if at % 2 else again).update((x, t, s) if less else (x, t))
        rows.append(x.transpose(0, 2, 1).reshape(-1, 6))
        targets.append((t - s if less else t).reshape(-1, 4))
    again.merge(state)
    found = again.result()
    x, t = np.concatenate(rows), np.concatenate(targets)
    for group in range(groups):
        own, out = (
            slice(group * 6 // groups, (group + 1) * 6 // groups),
            slice(group * 4 // groups, (group + 1) * 4 // groups),
        )
        assert np.allclose(found.products[group], moments(x[:, own], t[:, out]), rtol=1e-10, atol=1e-10)
        assert np.allclose(found.mean_inputs[group], x[:, own].mean(0))
        assert np.allclose(found.mean_targets[group], t[:, out].mean(0))
    assert found.count == len(x)


def patches(images: np.ndarray, windows: Windows) -> np.ndarray:
    """[positions of all images, features * taps], the slow way."""
    found = []
    for image in images:
        padded = np.pad(image, ((0, 0), (windows.pads[0], windows.pads[2]), (windows.pads[1], windows.pads[3])))
        high, wide = (
            (size - kernel) // stride + 1
            for size, kernel, stride in zip(padded.shape[1:], windows.kernel, windows.strides, strict=True)
        )
        for y in range(high):
            for x in range(wide):
                at_y, at_x = y * windows.strides[0], x * windows.strides[1]
                found.append(padded[:, at_y : at_y + windows.kernel[0], at_x : at_x + windows.kernel[1]].reshape(-1))
    return np.array(found)


@given(
    st.integers(0, 10_000), st.sampled_from([(1, 1), (3, 3), (2, 3)]), st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 1)]), st.booleans(),
)  # fmt: skip
@settings(max_examples=40)
def test_patches(
    seed: int, kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], less: bool
) -> None:
    rng = np.random.default_rng(seed)
    windows = Windows(kernel, strides, (1, 1), pads, "NOTSET")
    images = rng.standard_normal((5, 4, 7, 6))
    rows = patches(images, windows)
    high, wide = Patches(windows).sizes((7, 6))
    targets, skips = (rng.standard_normal((5, 2, high, wide)) for _ in range(2))
    state = ConvRegression(Patches(windows)).begin("x")
    for part in (slice(0, 2), slice(2, 5)):
        state.update((images[part], targets[part], skips[part]) if less else (images[part], targets[part]))
    found = state.result()
    wanted = (targets - skips if less else targets).transpose(0, 2, 3, 1).reshape(-1, 2)
    assert np.allclose(found.products[0], moments(rows, wanted), rtol=1e-10, atol=1e-9)
    assert np.allclose(found.mean_targets[0], wanted.mean(0))
    assert found.rows == len(rows)


def test_positions_are_those_of_the_inputs() -> None:
    """Where the targets are the inputs at the middle of each window, their products are part of the Gram matrix."""
    rng = np.random.default_rng(0)
    windows = Windows((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), "NOTSET")
    images = rng.standard_normal((3, 2, 8, 8))
    state = ConvRegression(Patches(windows, positions=20)).begin("x")
    state.update((images, images))
    found = state.result()
    assert (found.rows, found.count) == (60, 192)
    middle = found.products[0].reshape(2, 9, 2)[:, 4]
    assert np.allclose(middle, middle.T)


def test_what_does_not_fit() -> None:
    x = np.ones((2, 3, 4))
    with pytest.raises(DataError, match="do not have the same rows"):
        Regression(axis=-1).begin("x").update((x, np.ones((2, 2, 4))))
    with pytest.raises(DataError, match="cannot be told apart"):
        Regression(axis=-1).begin("x").update((x, x, np.ones((2, 3, 1))))
    windows = Windows((3, 3), (1, 1), (1, 1), (0, 0, 0, 0), "NOTSET")
    with pytest.raises(DataError, match="does not fit its convolution"):
        ConvRegression(Patches(windows)).begin("x").update((np.ones((1, 1, 5, 5)), np.ones((1, 1, 4, 3))))
    assert replace(Regression(), groups=2) != Regression()
