"""Costs of widths and curves of losses: against loops, definitions and scipy."""

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from onnxopt.numerics.allocation_cost import Cost, Term, padded
from onnxopt.numerics.allocation_curves import Curve, allowed_widths, hermite, monotone_slopes

GROUPS = 5
TERMS = st.builds(
    Term, st.integers(0, 50).map(float), st.lists(st.integers(0, GROUPS - 1), max_size=4).map(tuple)
)  # fmt: skip
COSTS = st.builds(Cost, st.integers(-9, 9).map(float), st.lists(TERMS, max_size=8).map(tuple))
WIDTHS = st.lists(st.integers(0, 40), min_size=GROUPS, max_size=GROUPS)


def total(cost: Cost, widths: list[int]) -> float:
    return cost.constant + sum(term.coefficient * prod(widths[group] for group in term.groups) for term in cost.terms)


@given(COSTS, WIDTHS, WIDTHS)
def test_total_is_the_sum_of_products(cost: Cost, widths: list[int], others: list[int]) -> None:
    assert cost.total(widths) == total(cost, widths)
    np.testing.assert_array_equal(cost.total([[widths], [others]]), [[total(cost, widths)], [total(cost, others)]])


@given(COSTS, WIDTHS, st.integers(0, 40))
def test_polynomials_tell_what_moving_one_group_costs(cost: Cost, widths: list[int], there: int) -> None:
    along = cost.polynomials(widths)
    powers = np.arange(along.shape[1])
    for group, here in enumerate(widths):
        moved = [*widths[:group], there, *widths[group + 1 :]]
        assert along[group] @ (float(there) ** powers - float(here) ** powers) == total(cost, moved) - total(
            cost, widths
        )
        np.testing.assert_array_equal(cost.polynomial(padded(widths), group), along[group])


@given(COSTS, WIDTHS)
def test_marginal_is_the_derivative(cost: Cost, widths: list[int]) -> None:
    step = 1e-3
    for group, slope in enumerate(cost.marginal(widths)):
        up, down = ([*widths[:group], widths[group] + each, *widths[group + 1 :]] for each in (step, -step))
        np.testing.assert_allclose(slope, (total(cost, up) - total(cost, down)) / (2 * step), rtol=1e-4, atol=1e-2)


def test_a_squared_group() -> None:
    assert Cost(1, (Term(3, (0, 0)), Term(2, (0, 1)))).marginal([5, 7]).tolist() == [2 * 3 * 5 + 2 * 7, 2 * 5]
    assert Cost(1, ()).total([3]) == 1
    assert Cost(1, ()).marginal([3]).tolist() == [0]


@pytest.mark.parametrize("term", [Term(-1, (0,)), Term(float("nan"), ()), Term(1, (0, -1))])
def test_costs_that_cannot_be(term: Term) -> None:
    with pytest.raises(ValueError, match=r"negative|finite"):
        Cost(0, (Term(1, (0,)), term))


def test_a_group_without_a_width() -> None:
    with pytest.raises(ValueError, match="2 groups or more, not 1"):
        Cost(0, (Term(1, (1,)),)).total([3])


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 60))
def test_allowed_widths(width: int, round_to: int, min_width: int) -> None:
    expected = [each for each in range(1, width) if each % round_to == 0 and each >= min_width]
    found = allowed_widths(width, round_to, min_width)
    assert found.tolist() == [*expected, width]
    assert found.dtype == np.int64


def test_a_curve_of_scores() -> None:
    curve = Curve.of_scores(np.array([3.0, 1.0, 4.0, 1.5]), np.array([1, 2, 4]))
    assert curve.losses.tolist() == [5.5, 2.5, 0]


@given(st.integers(1, 9), st.integers(0, 99))
def test_slopes_and_cubics_are_those_of_scipy(points: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.uniform(0.1, 3, points))
    y = np.round(rng.normal(size=points) * 2) if seed % 2 else np.cumsum(rng.uniform(0, 3, points))
    wanted = np.concatenate([x, rng.uniform(x[0], x[-1], 50)])
    found = hermite(x, y, monotone_slopes(x, y), wanted)
    expected = PchipInterpolator(x, y)(wanted) if points > 1 else np.full_like(wanted, y[0])
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(
    st.integers(20, 90),
    st.lists(st.floats(0, 1e6).map(lambda value: 0.0 if value < 1e-12 else value), min_size=1, max_size=7),
    st.integers(0, 9),
)
def test_measured_curves_are_monotone_through_the_measurements(full: int, losses: list[float], seed: int) -> None:
    measured = np.random.default_rng(seed).choice(np.arange(1, full), len(losses), replace=False)
    widths = allowed_widths(full)
    curve = Curve.of_measured(measured, losses, full, widths)
    assert (np.diff(curve.losses) <= 0).all()
    assert curve.losses[-1] == 0
    for width in measured:
        wider = max(loss for at, loss in zip(measured, losses, strict=True) if at >= width)
        np.testing.assert_allclose(curve.losses[width - 1], wider, rtol=1e-9)
    free = min([full, *(at for at in measured if curve.losses[at - 1] == 0)])
    assert (curve.losses[free - 1 :] == 0).all()


def test_between_measurements_losses_grow_by_factors() -> None:
    widths = np.arange(1, 65)
    curve = Curve.of_measured([16, 32, 48], [1.0, 1e-2, 1e-4], 64, widths)
    exponential = 10.0 ** (-(widths - 16) / 8)
    np.testing.assert_allclose(curve.losses[:48], exponential[:48], rtol=1e-9)
    tail = curve.losses[47:63]
    slopes = np.diff(np.log(tail)) / np.diff(np.log(64 - widths[47:63]))
    np.testing.assert_allclose(slopes, 16 / 8 * np.log(10), rtol=1e-9)


def test_nothing_that_was_not_measured_is_free() -> None:
    once = Curve.of_measured([32], [8.0], 64, np.array([16, 32, 48, 64]))
    np.testing.assert_allclose(once.losses, [18, 8, 2, 0], rtol=1e-9)
    flat = Curve.of_measured([32, 40, 48], [8.0, 8.0, 8.0], 64, np.array([16, 32, 64]))
    np.testing.assert_allclose(flat.losses, [18, 8, 0], rtol=1e-9)
    dead = Curve.of_measured([16, 32], [9.0, 0.0], 64, np.array([8, 16, 24, 32, 64]))
    np.testing.assert_allclose(dead.losses, [20.25, 9, 2.25, 0, 0], rtol=1e-9)


@pytest.mark.parametrize(
    ("measured", "losses"),
    [([], []), ([4, 4], [1, 1]), ([9], [1]), ([4], [-1]), ([4], [float("nan")])],
)
def test_measurements_that_cannot_be(measured: list[int], losses: list[float]) -> None:
    with pytest.raises(ValueError, match="measured"):
        Curve.of_measured(measured, losses, 8, allowed_widths(8))


@pytest.mark.parametrize(
    ("widths", "losses"), [([], []), ([1, 2], [0]), ([2, 1], [1, 0]), ([1, 2], [0, 1]), ([1, 2], [np.inf, 0])]
)
def test_curves_that_cannot_be(widths: list[int], losses: list[float]) -> None:
    with pytest.raises(ValueError, match="curve"):
        Curve(np.array(widths, np.int64), np.array(losses, np.float64))
