"""The comparison that every contract stands on: it must accept rounding and catch everything else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.comparing import Noise, collapsed, compare, first_nan, judgeable, measure, noise, shown

QUIET = Noise({}, frozenset())
RNG = np.random.default_rng(0)
Y = RNG.standard_normal((4, 10)).astype(np.float32)


def test_equal_outputs_pass() -> None:
    found = compare([{"y": Y}], [{"y": Y.copy()}], 1e-4, QUIET)
    assert found.broken == []
    assert found.drift == 0


@given(st.floats(1e-6, 1.0), st.integers(0, 3))
def test_drift_is_the_worst_row_s_relative_l2(scale: float, row: int) -> None:
    other = Y.astype(np.float64)
    other[row] *= 1 + scale
    found = compare([{"y": Y.astype(np.float64)}], [{"y": other}], 1.5, QUIET)
    norm = np.linalg.norm(Y[row].astype(np.float64))
    floor = 1e-6 * np.sqrt(10)
    assert found.drift == pytest.approx(scale if scale * norm > floor else 0.0, rel=1e-6)


def test_one_bad_row_breaks_where_the_whole_would_pass() -> None:
    large = np.vstack([np.full((1, 10), 1e4), np.full((1, 10), 1e-2)])
    other = large.copy()
    other[1] *= 1.5
    assert np.linalg.norm(other - large) / np.linalg.norm(large) < 1e-4
    assert compare([{"y": large}], [{"y": other}], 1e-4, QUIET).broken


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (Y[:, :9], "shape"),
        (Y.astype(np.float64), "type"),
        (np.where(Y[0, 0] == Y, np.nan, Y).astype(np.float32), "NaN"),
        (np.where(Y[0, 0] == Y, np.inf, Y).astype(np.float32), "infinities"),
        (None, "missing"),
    ],
)
def test_form_differences_break(other: np.ndarray | None, why: str) -> None:
    found = compare([{"y": Y}], [{"y": other}], 1e9, QUIET)
    assert why in found.broken[0]
    assert found.drift == np.inf


def test_integers_must_be_equal_unless_the_original_wavers() -> None:
    a, b = [{"i": np.array([1, 2, 3])}], [{"i": np.array([1, 2, 4])}]
    assert compare(a, b, 1e-4, QUIET).broken == ["output i, feed 0: 1 of 3 values differ"]
    own = noise(a, b)
    found = compare(a, b, 1e-4, own)
    assert found.broken == []
    assert found.undecidable == 1


def test_own_noise_widens_the_tolerance_eightfold() -> None:
    own = noise([{"y": Y}], [{"y": Y * np.float32(1.001)}])
    assert own.relative["y"] == pytest.approx(1e-3, rel=1e-3)
    assert not compare([{"y": Y}], [{"y": Y * np.float32(1.007)}], 1e-4, own).broken
    assert compare([{"y": Y}], [{"y": Y * np.float32(1.009)}], 1e-4, own).broken


def test_nans_at_the_same_places_are_equal() -> None:
    x = np.float32([np.nan, 1, np.inf])
    assert not compare([{"y": x}], [{"y": x.copy()}], 1e-4, QUIET).broken


def test_sequences_and_maps_are_opened() -> None:
    a = [{"s": [Y, {"k": Y[0]}], "none": None}]
    b = [{"s": [Y, {"k": Y[0] + 1}], "none": None}]
    assert not compare(a, a, 1e-4, QUIET).broken
    assert compare(a, b, 1e-4, QUIET).broken[0].startswith("output s[1][k], feed 0")


def test_lossy_measures_and_breaks_on_new_nans_only() -> None:
    found = measure([{"y": Y, "i": np.array([1])}], [{"y": 3 * Y, "i": np.array([2])}], QUIET)
    assert found.broken == []
    assert found.drift == pytest.approx(2)
    with_nan = Y.copy()
    with_nan[0, 0] = np.nan
    assert measure([{"y": Y}], [{"y": with_nan}], QUIET).broken
    assert not measure([{"y": with_nan}], [{"y": with_nan}], QUIET).broken


def test_data_dependent_sizes_are_undecidable_when_lossy_and_far_from_equal() -> None:
    found = measure([{"boxes": Y}], [{"boxes": Y[:2]}], QUIET)
    assert found.broken == []
    assert found.undecidable == 1
    assert found.drift == np.inf


def test_integers_drift_by_the_share_that_differs() -> None:
    assert measure([{"i": np.arange(8)}], [{"i": np.arange(8) // 2 * 2}], QUIET).drift == 0.5


def test_an_infinity_of_the_original_is_no_leave_for_nans() -> None:
    masked = np.float32([1, 2, -np.inf])
    assert not measure([{"y": masked}], [{"y": masked + 1}], QUIET).broken
    assert measure([{"y": masked}], [{"y": np.full(3, np.nan, np.float32)}], QUIET).broken


def test_collapse_of_integer_outputs() -> None:
    labels = np.arange(12).reshape(6, 2)
    assert "same for all" in collapsed([{"i": labels}], [{"i": np.zeros_like(labels)}])[0]
    assert collapsed([{"i": labels}], [{"i": labels}]) == []


def test_what_the_guard_can_judge() -> None:
    assert judgeable([{"y": Y}])
    assert not judgeable([{"y": Y[:2]}])
    assert not judgeable([{"y": np.ones((5, 3))}])


def test_first_nan_names_output_and_feed() -> None:
    assert first_nan([{"y": Y}, {"y": np.float32([np.nan])}]) == ("y", 1)
    assert first_nan([{"y": np.float32([np.inf])}]) is None


def test_collapse_constant_output() -> None:
    assert "same for all" in collapsed([{"y": Y}], [{"y": np.repeat(Y[:1], 4, axis=0)}])[0]


def test_collapse_wrong_samples() -> None:
    reasons = collapsed([{"y": Y}], [{"y": np.roll(Y, 1, axis=0)}])
    assert reasons
    assert "cosine" in reasons[0] or "fits other samples" in reasons[0]


def test_collapse_accepts_a_moderate_loss() -> None:
    noisy = Y + 0.5 * RNG.standard_normal(Y.shape).astype(np.float32)
    assert collapsed([{"y": Y}], [{"y": noisy}]) == []


def test_collapse_says_nothing_where_the_original_is_constant() -> None:
    constant = np.ones((4, 3), np.float32)
    assert collapsed([{"y": constant}], [{"y": 2 * constant}]) == []


@pytest.mark.parametrize("shift", [0.0, 9.0])
@pytest.mark.parametrize("samples", [15, 64])
def test_one_decision_for_all_is_a_collapse(shift: float, samples: int) -> None:
    """Scores that still vary with the original's, in part, but of which one is always the largest."""
    scores, noise = np.random.default_rng(0).standard_normal((2, samples, 10))
    biased = scores + noise + shift * np.eye(10)[3]
    reasons = collapsed([{"y": scores}], [{"y": biased}])
    assert reasons == (
        [f"the largest entry of output y is one and the same for all {samples} samples"]
        if shift and samples > 15
        else []
    )
    assert not collapsed([{"y": biased}], [{"y": biased + 0.1 * scores}])
    assert not collapsed([{"y": scores}], [{"y": scores + shift * np.eye(10)[3]}]), "an offset, of a map or a box"


def test_each_output_has_its_own_tolerance() -> None:
    a = [{"y": Y, "s": [Y], "other": Y, "half": Y.astype(np.float16)}]
    b = [{"y": Y * np.float32(1.001), "s": [Y * np.float32(1.001)], "other": Y, "half": Y.astype(np.float16)}]
    assert compare(a, b, {"y": 5e-3, "s": 5e-3}, QUIET).broken == []
    found = compare(a, b, {"y": 1e-4, "s": 1e-4}, QUIET).broken
    assert {line.split(",")[0] for line in found} == {"output y", "output s[0]"}


def test_a_value_without_a_tolerance_is_judged_by_its_type() -> None:
    def broken(dtype: str) -> list[str]:
        return compare([{"v": Y.astype(dtype)}], [{"v": (Y * 1.002).astype(dtype)}], {"y": 1.0}, QUIET).broken

    assert broken("float32")
    assert broken("float16") == []


@given(st.floats(1e-30, 1e-6))
def test_an_output_that_is_small_throughout_is_not_free_to_be_anything(size: float) -> None:
    small = Y.astype(np.float64) / np.abs(Y).max() * size
    found = compare([{"y": small}], [{"y": np.zeros_like(small)}], 1e-4, QUIET)
    assert found.broken
    assert found.drift == pytest.approx(1)
    assert measure([{"y": small}], [{"y": np.zeros_like(small)}], QUIET).drift == pytest.approx(1)
    assert compare([{"y": small}], [{"y": small * (1 + 2.0**-9)}], 1e-4, QUIET).broken == []


def test_rounding_in_one_small_row_is_not_held_against_the_candidate() -> None:
    """A padding row that a normalization leaves at 1e-8: other rows show how large the output is."""
    padded = Y.copy()
    padded[0] = 1e-8
    other = padded.copy()
    other[0] = -1e-7
    found = compare([{"y": padded}], [{"y": other}], 1e-4, QUIET)
    assert (found.broken, found.drift) == ([], 0)
    zeros = np.zeros_like(Y)
    assert compare([{"y": zeros}], [{"y": zeros + np.float32(1e-8)}], 1e-4, QUIET).broken == []


def test_rounding_that_the_original_shows_widens_the_tolerance_of_small_outputs() -> None:
    small = Y * np.float32(1e-8)
    own = noise([{"y": small}], [{"y": small * np.float32(1.02)}])
    assert own.relative["y"] == pytest.approx(0.02, rel=1e-2)
    assert compare([{"y": small}], [{"y": small * np.float32(1.1)}], 1e-4, own).broken == []
    assert compare([{"y": small}], [{"y": 0 * small}], 1e-4, own).broken


def test_a_drift_below_the_floor_is_shown_as_such() -> None:
    assert [shown(drift) for drift in (0.0, 9e-7, 0.0123, np.inf)] == ["< 1e-6", "< 1e-6", "1.2e-02", "inf"]
    assert shown(None) == "not measured"


def test_other_random_numbers_are_compared_by_their_statistics() -> None:
    one, other = (np.random.default_rng(seed).standard_normal((8, 64)) for seed in (1, 2))
    ints = {"i": np.arange(512), "s": np.array(["a", "b"])}
    shuffled = {"i": np.arange(512)[::-1], "s": np.array(["b", "b"])}
    found = compare([{"y": one, **ints}], [{"y": other, **shuffled}], 1e-4, QUIET, {"y", "i", "s"})
    assert (found.broken, found.drift, found.undecidable) == ([], 0, 3)
    assert measure([{"y": one}], [{"y": other}], QUIET, {"y"}).drift == 0
    assert compare([{"y": one}], [{"y": other[:4]}], 1e-4, QUIET, {"y"}).broken == []
    for wrong, why in ((other + 1, "mean"), (3 * other, "deviation"), (other[0], "rank 1"), (None, "missing")):
        assert why in compare([{"y": one}], [{"y": wrong}], 1e-4, QUIET, {"y"}).broken[0]
