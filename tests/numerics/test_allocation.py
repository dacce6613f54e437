"""Widths under a budget: against all combinations, by properties, and in time."""

from collections.abc import Callable
from itertools import pairwise, product
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.allocation import (
    Cost,
    Curve,
    Term,
    Unreachable,
    Widths,
    allowed_widths,
    greedy,
    promote,
    rate_distortion,
    uniform,
)
from onnxopt.numerics.allocation_steps import Options, exchange, widen

Problem = tuple[list[Curve], Cost, float]
SEEDS = st.integers(0, 1 << 30)


def problem(rng: np.random.Generator, groups: int, levels: int) -> Problem:
    """A chain of groups with a few more pairs (or squares), some narrow, some wide; any target that can be met."""
    curves = []
    for _ in range(groups):
        full = int(rng.integers(8, 65))
        widths = np.append(np.sort(rng.choice(np.arange(1, full), levels - 1, replace=False)), full)
        rough = np.exp(rng.normal(0, 2)) * (1 - widths / full) ** rng.uniform(1, 4) * np.exp(rng.normal(0, 0.3, levels))
        curves.append(Curve(widths, np.maximum.accumulate(rough[::-1])[::-1]))
    pairs = [(first, first + 1) for first in range(groups - 1)]
    pairs += [(int(a), int(b)) for a, b in rng.integers(0, groups, (rng.integers(0, groups + 1), 2))]
    terms = [Term(float(rng.integers(1, 50)), (group,)) for group in range(groups)]
    terms += [Term(float(rng.integers(1, 20)), pair) for pair in pairs]
    cost = Cost(float(rng.integers(0, 100)), tuple(terms))
    floor, most = (cost.total([curve.widths[place] for curve in curves]) for place in (0, -1))
    return curves, cost, float(floor + rng.uniform(0.02, 0.98) * (most - floor))


def lost(curves: list[Curve], widths: Widths) -> float:
    return sum(
        float(curve.losses[curve.widths.tolist().index(width)])
        for curve, width in zip(curves, widths.tolist(), strict=True)
    )


def least_loss(curves: list[Curve], cost: Cost, target: float) -> float:
    widths = np.array(list(product(*(curve.widths for curve in curves))))
    losses = np.array(list(product(*(curve.losses for curve in curves)))).sum(1)
    return float(losses[cost.total(widths) <= target].min())


def test_rate_distortion_is_close_to_the_best_of_all_combinations() -> None:
    rng = np.random.default_rng(0)
    ratios, greedy_ratios = [], []
    for _ in range(200):
        curves, cost, target = problem(rng, int(rng.integers(2, 6)), int(rng.integers(2, 5)))
        best = least_loss(curves, cost, target)
        widths = rate_distortion(curves, cost, target)
        assert cost.total(widths) <= target
        ratios.append(lost(curves, widths) / max(best, 1e-12))
        greedy_ratios.append(lost(curves, greedy(curves, cost, target)) / max(best, 1e-12))
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(np.array(ratios) <= 1.02) >= 0.985
    assert np.mean(ratios) <= 1.005
    assert np.mean(np.array(greedy_ratios) <= 1.02) >= 0.75


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 8), st.integers(2, 7), st.sampled_from([0.0, 0.5, 1.0]))
def test_never_over_budget_and_nothing_more_fits(seed: int, groups: int, levels: int, beta: float) -> None:
    curves, cost, target = problem(np.random.default_rng(seed), groups, levels)
    for widths in (greedy(curves, cost, target, beta), rate_distortion(curves, cost, target)):
        assert widths.dtype == np.int64
        assert cost.total(widths) <= target
        for group, curve in enumerate(curves):
            for wider in curve.widths[curve.widths > widths[group]]:
                other = widths.copy()
                other[group] = wider
                assert cost.total(other) > target or lost(curves, other) >= lost(curves, widths)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 6))
def test_the_order_of_the_groups_does_not_matter(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    curves, cost, target = problem(rng, groups, 4)
    order = rng.permutation(groups)
    place = np.argsort(order)
    moved = Cost(cost.constant, tuple(Term(t.coefficient, tuple(int(place[g]) for g in t.groups)) for t in cost.terms))
    shuffled = [curves[group] for group in order]
    for policy in (greedy, rate_distortion):
        np.testing.assert_array_equal(policy(curves, cost, target)[order], policy(shuffled, moved, target))
    full, allowed = [int(curve.widths[-1]) for curve in curves], [curve.widths for curve in curves]
    alike = uniform([full[group] for group in order], moved, target, [allowed[group] for group in order])
    np.testing.assert_array_equal(uniform(full, cost, target, allowed)[order], alike)


def test_more_budget_loses_less() -> None:
    curves, cost, _ = problem(np.random.default_rng(3), 20, 6)
    floor, most = (cost.total([curve.widths[place] for curve in curves]) for place in (0, -1))
    for policy in (greedy, rate_distortion):
        losses = [lost(curves, policy(curves, cost, target)) for target in np.linspace(floor, most, 10)]
        assert losses[-1] == 0
        assert all(more <= 1.01 * less for less, more in pairwise(losses))


@given(SEEDS, st.integers(1, 5), st.sampled_from([1, 4, 8]))
def test_uniform_is_the_largest_share_that_fits(seed: int, groups: int, round_to: int) -> None:
    rng = np.random.default_rng(seed)
    _, cost, _ = problem(rng, groups, 2)
    full = [int(each) for each in rng.integers(4, 30, groups)]
    allowed = [allowed_widths(width, round_to) for width in full]

    def at(share: float) -> list[int]:
        return [
            int(min(each, key=lambda kept: (abs(2 * kept - 2 * share * width), -kept)))
            for each, width in zip(allowed, full, strict=True)
        ]

    edges = {float(a + b) / (2 * width) for each, width in zip(allowed, full, strict=True) for a in each for b in each}
    inner = sorted(edges)
    every = [at((low + high) / 2) for low, high in zip([0.0, *inner], [*inner, 1.0], strict=True) if low < high]
    costs = [cost.total(widths) for widths in every]
    target = float(rng.uniform(costs[0], costs[-1] * 1.1))
    expected = [widths for widths, each in zip(every, costs, strict=True) if each <= target][-1]
    assert uniform(full, cost, target, allowed).tolist() == expected
    narrower = uniform(full, cost, costs[0] + 0.7 * (target - costs[0]), allowed)
    assert (narrower <= expected).all()


def test_what_fits_is_left_as_it_is() -> None:
    curves, cost, _ = problem(np.random.default_rng(1), 4, 3)
    full = [int(curve.widths[-1]) for curve in curves]
    for target in (float(cost.total(full)), np.inf):
        assert greedy(curves, cost, target).tolist() == full
        assert rate_distortion(curves, cost, target).tolist() == full
        assert promote(full, curves, cost, target).tolist() == full
        assert uniform(full, cost, target, [curve.widths for curve in curves]).tolist() == full


def test_no_groups() -> None:
    cost = Cost(3, ())
    for found in (
        greedy([], cost, 3),
        rate_distortion([], cost, 3),
        promote([], [], cost, 3),
        uniform([], cost, 3, []),
    ):
        assert found.tolist() == []


def test_the_floor_is_reached_and_named() -> None:
    curves, cost, _ = problem(np.random.default_rng(2), 4, 3)
    least, full = ([int(curve.widths[place]) for curve in curves] for place in (0, -1))
    floor = float(cost.total(least))
    allowed = [curve.widths for curve in curves]
    policies = {
        "uniform": lambda target: uniform(full, cost, target, allowed),
        "greedy": lambda target: greedy(curves, cost, target),
        "promote": lambda target: promote(full, curves, cost, target),
        "rate_distortion": lambda target: rate_distortion(curves, cost, target),
    }
    for name, policy in policies.items():
        assert policy(floor).tolist() == least, name
        for target in (floor - 1, float("nan")):
            with pytest.raises(Unreachable, match="below the floor") as caught:
                policy(target)
            assert caught.value.floor == floor


def test_a_unit_that_loses_nothing_goes_first() -> None:
    dead = Curve(np.array([2, 4, 8]), np.array([5.0, 0.0, 0.0]))
    live = Curve(np.array([2, 4, 8]), np.array([1e-6, 1e-7, 0.0]))
    cost = Cost(0, (Term(1, (0,)), Term(100, (1,))))
    assert greedy([dead, live], cost, 804).tolist() == [4, 8]
    assert greedy([dead, live], cost, 805).tolist() == [4, 8]


def test_neighbours_count_as_they_are_by_then() -> None:
    """Group 0 is dear only while group 1 is wide: once that went for nothing, group 2 is the better one to cut."""
    curves = [
        Curve(np.array([5, 10]), np.array([4.0, 0.0])),
        Curve(np.array([1, 100]), np.array([0.0, 0.0])),
        Curve(np.array([5, 10]), np.array([3.0, 0.0])),
    ]
    cost = Cost(0, (Term(1, (0, 1)), Term(3, (2,))))
    assert cost.marginal([10, 100, 10]).tolist() == [100, 10, 3]
    assert greedy(curves, cost, 35).tolist() == [10, 1, 5]


def test_what_was_cut_too_much_is_given_back() -> None:
    curves = [
        Curve(np.array([1, 10]), np.array([1.0, 0.0])),
        Curve(np.array([1, 100]), np.array([20.0, 0.0])),
    ]
    cost = Cost(0, (Term(1, (0,)), Term(1, (1,))))
    assert greedy(curves, cost, 100).tolist() == [10, 1]


def test_exchange_trades_one_group_for_others() -> None:
    curves = [Curve(np.array([1, 3]), np.array([each, 0.0])) for each in (5.0, 4.0, 4.0)]
    options = Options(curves, Cost(0, (Term(2, (0,)), Term(1, (1,)), Term(1, (2,)))))
    only_first = np.array([1, 0, 0])
    assert widen(options, only_first, 8).tolist() == only_first.tolist()
    assert exchange(options, only_first, 8, tries=0).tolist() == only_first.tolist()
    for target, expected in ((8, [0, 1, 1]), (7, [0, 1, 0]), (9, [0, 1, 1])):
        start = only_first if target >= 8 else np.array([0, 0, 1])
        found = exchange(options, start, target, tries=20)
        assert options.loss(found) == options.loss(np.array(expected))
        assert options.total(found) <= target


def test_beta_weighs_the_cost() -> None:
    curves = [Curve(np.array([1, 2]), np.array([1.0, 0.0])), Curve(np.array([1, 2]), np.array([2.0, 0.0]))]
    cost = Cost(0, (Term(1, (0,)), Term(100, (1,))))
    assert greedy(curves, cost, 201, beta=0.0).tolist() == [1, 2]
    assert greedy(curves, cost, 201, beta=1.0).tolist() == [2, 1]


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 6))
def test_promotion_rounds_to_neighbours(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    curves, cost, target = problem(rng, groups, 5)
    wanted = [float(rng.uniform(1, curve.widths[-1])) for curve in curves]
    widths = promote(wanted, curves, cost, target)
    assert cost.total(widths) <= target
    below = [max([curve.widths[0], *curve.widths[curve.widths <= w]]) for curve, w in zip(curves, wanted, strict=True)]
    above = [min(curve.widths[curve.widths >= w]) for curve, w in zip(curves, wanted, strict=True)]
    assert (widths <= above).all()
    if cost.total(below) <= target:
        assert all(width in pair for width, *pair in zip(widths, below, above, strict=True))
        for group in np.flatnonzero(widths < above):
            other = widths.copy()
            other[group] = above[group]
            assert cost.total(other) > target or lost(curves, other) == lost(curves, widths)


def test_promotion_prefers_the_best_gain_for_its_cost() -> None:
    def curve(gain: float) -> Curve:
        return Curve(np.array([8, 16, 24]), np.array([gain + 1, 1.0, 0.0]))

    cost = Cost(0, (Term(1, (0,)), Term(1, (1,)), Term(4, (2,))))
    wanted = [9.0, 15.5, 12.0]
    curves = [curve(1.0), curve(2.0), curve(3.0)]
    assert promote(wanted, curves, cost, 48).tolist() == [8, 8, 8]
    assert promote(wanted, curves, cost, 56).tolist() == [8, 16, 8]
    assert promote(wanted, curves, cost, 94).tolist() == [16, 16, 8]
    assert promote(wanted, curves, cost, 96).tolist() == [16, 16, 16]


def seconds(call: Callable[[], object]) -> float:
    """Of the faster of two runs, in processor time: others may be busy, too."""
    taken = []
    for _ in range(2):
        start = process_time()
        call()
        taken.append(process_time() - start)
    return min(taken)


def test_speed() -> None:
    curves, cost, target = problem(np.random.default_rng(5), 100, 8)
    full, allowed = [int(curve.widths[-1]) for curve in curves], [curve.widths for curve in curves]
    assert seconds(lambda: greedy(curves, cost, target)) < 0.2
    assert seconds(lambda: uniform(full, cost, target, allowed)) < 0.2
    assert seconds(lambda: rate_distortion(curves, cost, target)) < 1


def test_speed_of_costs() -> None:
    rng = np.random.default_rng(0)
    terms = tuple(Term(float(rng.integers(1, 9)), tuple(rng.integers(0, 1000, 2).tolist())) for _ in range(10_000))
    cost, widths = Cost(0, terms), rng.integers(1, 500, 1000)
    assert seconds(lambda: (cost.total(widths), cost.marginal(widths))) < 0.02
