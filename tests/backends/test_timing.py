"""Timing: exact on a clock that the candidates themselves move, and sane on real sessions."""

import gc

import numpy as np
import pytest

from onnxopt.backends.sessions import SessionMode, open_session
from onnxopt.backends.timing import interleaved, latency
from onnxopt.errors import DataError, ModelError


class FakeClock:
    """Time that passes only when a candidate runs."""

    def __init__(self):
        self.now = 0.0
        self.ran = []

    def __call__(self):
        return self.now

    def candidate(self, name, durations):
        """A callable whose runs take `durations` in turn, the last one for ever."""
        left = list(durations)

        def run():
            self.ran.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock():
    return FakeClock()


def test_statistics(clock):
    """Eleven rounds after one warm-up: quantiles by numpy's linear rule, ratios per round."""
    first = clock.candidate("a", [9, *range(1, 12)])
    second = clock.candidate("b", [9, *(2 * time for time in range(1, 12))])
    a, b = interleaved([first, second], seconds=0, min_rounds=11, warm_up=1, clock=clock)
    assert (a.p50, a.mean, a.count) == (6, 6, 11)
    assert a.p95 == pytest.approx(np.quantile(range(1, 12), 0.95))
    assert a.p99 == pytest.approx(np.quantile(range(1, 12), 0.99))
    assert (b.p50, b.count) == (12, 11)
    assert (b.ratio.lower_quartile, b.ratio.median, b.ratio.upper_quartile) == (2, 2, 2)
    assert (a.ratio.lower_quartile, a.ratio.median, a.ratio.upper_quartile) == (1, 1, 1)


def test_ratios_are_paired(clock):
    """Both slow down tenfold half way: the medians move, the ratio of each round does not."""
    slow = [1] * 4 + [10] * 3
    first, second = clock.candidate("a", slow), clock.candidate("b", [time / 2 for time in slow])
    _, b = interleaved([first, second], seconds=0, min_rounds=6, warm_up=1, clock=clock)
    assert (b.ratio.lower_quartile, b.ratio.median, b.ratio.upper_quartile) == (0.5, 0.5, 0.5)


def test_quartiles_of_the_ratio(clock):
    ratios = [1, 2, 3, 4, 5]
    first, second = clock.candidate("a", [1]), clock.candidate("b", [1, *ratios])
    _, b = interleaved([first, second], seconds=0, min_rounds=5, warm_up=1, clock=clock)
    assert (b.ratio.lower_quartile, b.ratio.median, b.ratio.upper_quartile) == (2, 3, 4)


def test_order_is_reversed_from_round_to_round(clock):
    candidates = [clock.candidate(name, [1]) for name in "abc"]
    interleaved(candidates, seconds=0, min_rounds=4, warm_up=2, clock=clock)
    assert "".join(clock.ran) == "abc" + "abccbaabccba"


@pytest.mark.parametrize(
    ("duration", "rounds"),
    [(1.0, 8), (10.0, 3), (0.001, 40)],
    ids=["the budget ends it", "at least min_rounds", "at most max_rounds"],
)
def test_number_of_rounds(clock, duration, rounds):
    """Ten seconds: two go to warm-up, the rest is measured."""
    (result,) = interleaved(
        [clock.candidate("a", [duration])], seconds=10, min_rounds=3, max_rounds=40, warm_up=2, clock=clock
    )
    assert result.count == rounds


def test_warm_up_stays_within_its_share(clock):
    interleaved([clock.candidate("a", [3])], seconds=10, min_rounds=1, max_rounds=1, warm_up=50, clock=clock)
    assert len(clock.ran) == 2


def test_warm_up_runs_are_not_counted(clock):
    (result,) = interleaved([clock.candidate("a", [100, 100, 1])], seconds=0, min_rounds=5, warm_up=1, clock=clock)
    assert result.p99 > 1
    clock = FakeClock()
    candidate = clock.candidate("a", [100, 100, 1])
    (result,) = interleaved([candidate], seconds=10_000, max_rounds=5, warm_up=2, clock=clock)
    assert result.p99 == 1


def test_what_is_too_short_to_measure_is_equal(clock):
    candidates = [clock.candidate(name, [0]) for name in "ab"]
    _, b = interleaved(candidates, seconds=0, min_rounds=3, clock=clock)
    assert b.ratio.median == 1


def test_nothing_to_time():
    assert interleaved([]) == []


def test_garbage_collection_pauses_and_resumes(clock):
    seen = []
    interleaved([lambda: seen.append(gc.isenabled())], seconds=0, min_rounds=1, warm_up=1, clock=clock)
    assert seen == [True, False]
    assert gc.isenabled()

    def fail():
        if not gc.isenabled():
            raise ModelError("no")

    with pytest.raises(ModelError):
        interleaved([fail], clock=clock)
    assert gc.isenabled()


# With ONNX Runtime


def test_the_larger_model_is_slower(matmul):
    small, large = matmul("small.onnx", size=8), matmul("large.onnx", size=512)
    feeds = [{"x": np.ones((64, size), np.float32)} for size in (8, 512)]
    first, second = latency([small, large], feeds, seconds=0.2)
    assert second.p50 > 2 * first.p50
    assert second.ratio.median > 2
    assert 0 < first.p50 <= first.p95 <= first.p99


def test_open_sessions_and_paths(matmul):
    session = open_session(matmul(), SessionMode.REFERENCE)
    results = latency([session, str(matmul())], {"x": np.ones((2, 3), np.float32)}, seconds=0, min_rounds=2, threads=2)
    assert [result.count for result in results] == [2, 2]


def test_wrong_feeds_and_models(matmul, tmp_path):
    with pytest.raises(DataError, match="'x'"):
        latency([matmul()], {"x": np.ones((2, 4), np.float32)})
    with pytest.raises(ModelError, match="no such file"):
        latency([tmp_path / "nowhere.onnx"], {})
