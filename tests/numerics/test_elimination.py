"""Backward elimination against refitting every candidate at every step."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics import elimination
from onnxopt.numerics.elimination import Reader, eliminate, energy
from onnxopt.numerics.leastsquares import error_after, predictor
from onnxopt.numerics.units import Units, columns_of, consecutive

Seeds = st.integers(0, 10_000)


def rows_of(rng: np.random.Generator, count: int, columns: int) -> np.ndarray:
    mixed = rng.normal(size=(count, columns)) @ rng.normal(size=(columns, columns)) / np.sqrt(columns)
    rows: np.ndarray = np.maximum(mixed + 0.3 * rng.normal(size=(count, columns)) + 0.4, 0)
    return rows


def moments(rows: np.ndarray) -> np.ndarray:
    scatter: np.ndarray = (rows - rows.mean(0)).T @ (rows - rows.mean(0))
    return scatter


def damped_loss(reader: Reader, gone: list[int], ridge: float) -> float:
    """`min over W' of |(W - W') x|^2 + lam |W - W'|^2` where W' reads nothing of the units that are gone."""
    scatter, weight = np.asarray(reader.scatter), np.asarray(reader.weight).copy()
    weight[:, scatter.diagonal() <= 0] = 0
    alive = scatter.diagonal()[scatter.diagonal() > 0]
    full = scatter + (ridge * alive.mean() if alive.size else 0.0) * np.eye(len(scatter))
    out = columns_of(reader.units, gone)
    stay = np.setdiff1d(np.arange(len(scatter)), out)
    pinv = np.linalg.pinv(full[np.ix_(stay, stay)], rcond=1e-12, hermitian=True)
    schur = full[np.ix_(out, out)] - full[np.ix_(out, stay)] @ pinv @ full[np.ix_(stay, out)]
    return float(np.trace(weight[:, out] @ schur @ weight[:, out].T))


def count_factoring(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The columns that were left, each time that an inverse is computed from the matrices."""
    factored: list[int] = []
    plain = elimination._Side._factor

    def counting(side: elimination._Side) -> None:
        factored.append(len(side.left))
        plain(side)

    monkeypatch.setattr(elimination._Side, "_factor", counting)
    return factored


def check_by_brute_force(readers: list[Reader], ridge: float, rel: float = 1e-7) -> None:
    """Every step takes a unit that no other beats, and costs what refitting says."""
    units = len(readers[0].units)
    found = eliminate(readers, ridge=ridge)
    assert sorted(found.order.tolist()) == list(range(units))
    assert (found.losses >= 0).all()
    slack = 1e-10 * found.energy
    gone: list[int] = []
    for unit, total in zip(found.order.tolist(), found.cumulative, strict=True):
        costs = {
            each: sum(damped_loss(reader, [*gone, each], ridge) for reader in readers)
            for each in range(units)
            if each not in gone
        }
        assert costs[unit] <= min(costs.values()) * (1 + rel) + slack
        gone.append(unit)
        assert total == pytest.approx(costs[unit], rel=rel, abs=slack)


def ragged(rng: np.random.Generator, units: int, columns: int) -> Units:
    """Units of different widths, scattered, some of them empty; some columns are of no unit."""
    owner = rng.integers(-1, units, columns)
    return [rng.permutation(np.flatnonzero(owner == unit)) for unit in range(units)]


@settings(deadline=None, max_examples=25)
@given(Seeds, st.integers(1, 5), st.integers(1, 3), st.integers(1, 20), st.sampled_from([0.0, 1e-3, 0.1]))
def test_each_step_is_the_best_refit(seed: int, units: int, width: int, out: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    columns = units * width
    check_by_brute_force(
        [Reader(rng.normal(size=(out, columns)), moments(rows_of(rng, 90, columns)), consecutive(units, width))], ridge
    )


@settings(deadline=None, max_examples=25)
@given(Seeds, st.integers(1, 5), st.sampled_from([1, 2, 1000]))
def test_losses_of_several_readers_add_up(seed: int, units: int, pending: int) -> None:
    rng = np.random.default_rng(seed)
    readers = []
    for columns in (units, 7, 10):
        scatter = moments(rows_of(rng, 90, columns)) * 10.0 ** rng.integers(-3, 3)
        readers.append(Reader(rng.normal(size=(4, columns)), scatter, ragged(rng, units, columns)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elimination, "_PENDING", pending)
        check_by_brute_force(readers, 1e-3)


def test_a_reader_of_none_of_the_units_does_not_count() -> None:
    rng = np.random.default_rng(0)
    scatter, weight = moments(rows_of(rng, 90, 6)), rng.normal(size=(4, 6))
    alone = eliminate([Reader(weight, scatter, consecutive(3, 2))])
    nothing = [np.zeros(0, np.int64)] * 3
    both = eliminate([Reader(weight, scatter, nothing), Reader(weight, scatter, consecutive(3, 2))])
    assert alone.order.tolist() == both.order.tolist()
    np.testing.assert_allclose(alone.losses, both.losses)
    assert eliminate([Reader(weight, scatter, nothing)]).losses.tolist() == [0, 0, 0]


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-3])
def test_of_duplicates_one_stays(ridge: float) -> None:
    rng = np.random.default_rng(1)
    rows = rows_of(rng, 300, 12)
    rows = np.hstack([rows, rows[:, :6]])
    weight = rng.normal(size=(8, 18))
    units = consecutive(9, 2)
    found = eliminate([Reader(weight, moments(rows), units)], ridge=ridge)
    pairs = [{0, 6}, {1, 7}, {2, 8}]
    assert all(len(pair & set(found.order[:3].tolist())) == 1 for pair in pairs)
    assert found.cumulative[2] <= max(2 * ridge, 1e-10) * found.energy
    assert found.losses[3] > 1e-3 * found.energy
    if ridge:
        check_by_brute_force([Reader(weight, moments(rows), units)], ridge, rel=1e-5)


def test_duplicates_with_weights_that_cancel_cost_nothing_together_and_go_one_by_one() -> None:
    rng = np.random.default_rng(2)
    rows = rows_of(rng, 200, 5)
    rows = np.hstack([rows, rows[:, :1]])
    weight = rng.normal(size=(4, 6))
    weight[:, 5] = -weight[:, 0]
    found = eliminate([Reader(weight, moments(rows), consecutive(6, 1))], ridge=1e-9)
    assert set(found.order[:2].tolist()) == {0, 5}
    assert found.cumulative[1] <= 1e-7 * found.energy


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_dead_units_go_first_and_cost_nothing(ridge: float) -> None:
    rng = np.random.default_rng(3)
    scatter = np.zeros((10, 10))
    alive = np.array([0, 1, 4, 5, 7])
    scatter[np.ix_(alive, alive)] = moments(rows_of(rng, 90, 5))
    reader = Reader(rng.normal(size=(3, 10)), scatter, consecutive(5, 2))
    found = eliminate([reader], ridge=ridge)
    assert found.order[:2].tolist() == [1, 4]
    assert found.losses[:2].tolist() == [0, 0]
    assert found.losses[2] > 0
    check_by_brute_force([reader], ridge)


def test_all_dead() -> None:
    found = eliminate([Reader(np.ones((2, 4)), np.zeros((4, 4)), consecutive(4, 1))])
    assert found.order.tolist() == [0, 1, 2, 3]
    assert found.losses.tolist() == [0] * 4
    assert found.energy == 0


@pytest.mark.parametrize("out", [5, 200])
def test_the_sum_of_losses_is_that_of_the_set(out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over several updates of the whole inverse, and with more rows than columns."""
    rng = np.random.default_rng(4)
    rows = rows_of(rng, 600, 160)
    weight, units = rng.normal(size=(out, 160)), consecutive(80, 2)
    reader = Reader(weight, moments(rows), units)
    factored = count_factoring(monkeypatch)
    found = eliminate([reader], 78, ridge=0.0)
    assert factored == [160]
    for count in (1, 40, 70, 78):
        kept = columns_of(units, np.setdiff1d(np.arange(80), found.removed(count)))
        assert found.cumulative[count - 1] == pytest.approx(error_after(weight, reader.scatter, kept).error, rel=1e-9)
    assert found.removed(3).tolist() == sorted(found.order[:3].tolist())


def test_ties_go_in_order_however_they_are_rounded() -> None:
    """Units that are equal in exact arithmetic: `|W_j|^2 S_jj = 1`."""
    sizes, angles = 1 + np.arange(40) / 7, np.arange(40.0)
    weight = sizes * [np.cos(angles), np.sin(angles)]
    found = eliminate([Reader(weight, np.diag(sizes**-2), consecutive(40, 1))], ridge=0.0)
    assert len(set(found.losses.tolist())) > 1
    assert found.order.tolist() == list(range(40))


def test_a_shorter_run_is_the_start_of_a_longer_one() -> None:
    rng = np.random.default_rng(5)
    reader = Reader(rng.normal(size=(4, 12)), moments(rows_of(rng, 90, 12)), consecutive(6, 2))
    long, short = eliminate([reader]), eliminate([reader], 3)
    assert long.order[:3].tolist() == short.order.tolist()
    assert eliminate([reader], 0).order.tolist() == []


def test_refitting_drifting_inverses_anew_keeps_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that depend on each other to 1e-10: the inverse loses most of its digits where one of them goes."""
    rng = np.random.default_rng(6)
    rows = rows_of(rng, 400, 30)
    rows = np.hstack([rows, rows + 1e-5 * rng.normal(size=rows.shape)])
    reader = Reader(rng.normal(size=(6, 60)), moments(rows), consecutive(60, 1))
    factored = count_factoring(monkeypatch)
    monkeypatch.setattr(elimination, "_PENDING", 8)
    found = eliminate([reader], 50, ridge=1e-11)
    assert all(len({pair, pair + 30} & set(found.order[:30].tolist())) == 1 for pair in range(30))
    for count in (30, 40, 50):
        loss = damped_loss(reader, found.order[:count].tolist(), 1e-11)
        assert found.cumulative[count - 1] == pytest.approx(loss, rel=1e-5, abs=1e-9 * found.energy)
    assert len(factored) > 1


def test_a_drifted_inverse_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    reader = Reader(rng.normal(size=(4, 20)), moments(rows_of(rng, 90, 20)), consecutive(20, 1))
    expected = eliminate([reader])
    plain = elimination._Side._begin

    def spoil(side: Any) -> None:
        side.inverse = side.inverse * (1 + 1e-3 * (len(side.left) < 20))
        plain(side)

    monkeypatch.setattr(elimination, "_PENDING", 4)
    monkeypatch.setattr(elimination._Side, "_drift", lambda self: 1.0)
    np.testing.assert_allclose(eliminate([reader]).losses, expected.losses, rtol=1e-8)
    monkeypatch.setattr(elimination._Side, "_begin", spoil)
    assert not np.allclose(eliminate([reader]).losses, expected.losses, rtol=1e-6)


def test_blocks_that_rounding_left_without_full_rank() -> None:
    block = np.array([[1.0, 1.0], [1.0, 1.0]])
    whitener = elimination._whitener(block)
    assert np.isfinite(whitener).all()
    np.testing.assert_allclose(block @ whitener.T @ whitener @ block, block, atol=1e-6)
    side = elimination._Side(Reader(np.ones((1, 2)), np.eye(2), consecutive(2, 1)), 0.0)
    side.energies -= 2
    assert side.costs().tolist() == [0, 0]


def test_scales_of_channels_and_layers_do_not_matter() -> None:
    rng = np.random.default_rng(8)
    rows, weight = rows_of(rng, 200, 12), rng.normal(size=(5, 12))
    sizes = 10.0 ** rng.integers(-6, 7, 12)
    plain = eliminate([Reader(weight, moments(rows), consecutive(12, 1))], ridge=0.0)
    scaled = eliminate([Reader(weight / sizes, moments(rows * sizes), consecutive(12, 1))], ridge=0.0)
    assert plain.order.tolist() == scaled.order.tolist()
    np.testing.assert_allclose(plain.losses, scaled.losses, rtol=1e-7)


def test_the_refit_of_the_survivors_is_better_than_that_of_others() -> None:
    """Greedy is no optimum, but a random choice of half the units loses a good deal more."""
    rng = np.random.default_rng(9)
    rows, weight, units = rows_of(rng, 500, 48), rng.normal(size=(10, 48)), consecutive(16, 3)
    found = eliminate([Reader(weight, moments(rows), units)], 8)
    draws = [
        error_after(weight, moments(rows), columns_of(units, rng.permutation(16)[:8]), 1e-3).error for _ in range(30)
    ]
    assert found.cumulative[-1] < min(draws)


@settings(deadline=None, max_examples=25)
@given(Seeds)
def test_energy_is_what_is_lost_without_a_refit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, weight, units = rows_of(rng, 50, 9), rng.normal(size=(4, 9)), ragged(rng, 4, 9)
    centred = rows - rows.mean(0)
    oracle = [np.sum((centred[:, own] @ weight[:, own].T) ** 2) for own in units]
    np.testing.assert_allclose(energy(weight, moments(rows), units), oracle, rtol=1e-9)


def test_a_refit_never_loses_more_than_the_energy() -> None:
    rng = np.random.default_rng(10)
    rows, weight, units = rows_of(rng, 90, 12), rng.normal(size=(5, 12)), consecutive(6, 2)
    first = eliminate([Reader(weight, moments(rows), units)], 1, ridge=0.0)
    assert first.losses[0] <= energy(weight, moments(rows), units).min()
    assert predictor(moments(rows), columns_of(units, [0])).coefficients.shape == (10, 2)


def test_what_does_not_fit_is_refused() -> None:
    eye, one = np.eye(4), consecutive(4, 1)
    weight = np.ones((2, 4))
    cases: list[tuple[list[Reader], dict[str, Any], str]] = [
        ([], {}, "no reader"),
        ([Reader(weight, eye, one), Reader(weight, eye, one[:3])], {}, "4, 3 units"),
        ([Reader(weight, eye, one)], {"count": 5}, "5 of 4"),
        ([Reader(weight, eye, [*one[:3], np.array([0])])], {}, "more than one"),
        ([Reader(weight, eye, [np.array([4])])], {}, "4 to 4"),
        ([Reader(weight[:, :3], eye, one)], {}, "columns"),
        ([Reader(weight * np.nan, eye, one)], {}, "finite"),
        ([Reader(weight, np.full((4, 4), np.inf), one)], {}, "finite"),
        ([Reader(weight, eye, one)], {"ridge": -1.0}, "ridge"),
    ]
    for readers, options, says in cases:
        with pytest.raises(ValueError, match=says):
            eliminate(readers, **options)
