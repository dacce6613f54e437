"""The separable problem: against all combinations."""

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.numerics.allocation_separable import along_hulls, by_bins

SEEDS = st.integers(0, 1 << 30)


def problem(seed: int, groups: int, levels: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Losses and whole prices, some of which are equal, and a budget."""
    rng = np.random.default_rng(seed)
    losses = -np.sort(-rng.integers(0, 12, (groups, levels)).astype(np.float64), axis=1)
    prices = np.sort(rng.integers(-20, 20, (groups, levels)).astype(np.float64), axis=1)
    return losses, prices, float(rng.integers(prices[:, 0].sum(), prices[:, -1].sum() + 5))


def of(table: np.ndarray, levels: np.ndarray) -> float:
    return float(table[np.arange(len(table)), levels].sum())


def least_loss(losses: np.ndarray, prices: np.ndarray, budget: float) -> float:
    every = (np.array(each) for each in product(range(losses.shape[1]), repeat=len(losses)))
    return min(of(losses, each) for each in every if of(prices, each) <= budget)


@given(SEEDS, st.integers(1, 4), st.integers(1, 5))
def test_bins_of_the_unit_are_exact(seed: int, groups: int, levels: int) -> None:
    losses, prices, budget = problem(seed, groups, levels)
    found = by_bins(losses, prices, budget, max(1, round(budget - prices[:, 0].sum())))
    assert of(prices, found) <= budget
    assert of(losses, found) == least_loss(losses, prices, budget)


@given(SEEDS, st.integers(1, 4), st.integers(1, 5))
def test_hulls_are_best_for_what_they_spend_and_spend_what_they_can(seed: int, groups: int, levels: int) -> None:
    losses, prices, budget = problem(seed, groups, levels)
    found = along_hulls(losses, prices, budget)
    spent = of(prices, found)
    assert spent <= budget
    assert of(losses, found) == least_loss(losses, prices, spent)
    dearest = float((prices[:, -1] - prices[:, 0]).max())
    assert of(losses, found) == least_loss(losses, prices, budget) or spent + dearest > budget


@given(SEEDS, st.integers(1, 4))
def test_too_little_gives_the_cheapest(seed: int, groups: int) -> None:
    losses, prices, _ = problem(seed, groups, 4)
    for solve in (along_hulls, by_bins):
        found = solve(losses, prices, float(prices[:, 0].sum()) - 1)
        assert of(prices, found) == prices[:, 0].sum()
