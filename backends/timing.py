"""Latency of models side by side: alternating runs in one process, so that a busy machine slows all of them alike."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxopt.backends.sessions import CPU, SessionMode, bind, create, session_options

Clock = Callable[[], float]
_Times = np.ndarray[Any, np.dtype[np.float64]]

# The share of the time budget that warming up may take.
_WARM_UP_SHARE = 0.2

# Seconds; what takes less is below every clock and counts as this much.
_SHORTEST = 1e-9


@dataclass(frozen=True)
class Ratio:
    """Time relative to the first candidate's in the same round: median and quartiles over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True)
class Latency:
    """Seconds per run of one candidate, `count` runs, and how it compares with the first candidate."""

    p50: float
    p95: float
    p99: float
    mean: float
    count: int
    ratio: Ratio


def interleaved(
    candidates: Sequence[Callable[[], object]],
    *,
    seconds: float = 2.0,
    min_rounds: int = 5,
    max_rounds: int = 10_000,
    warm_up: int = 3,
    clock: Clock = time.perf_counter,
) -> list[Latency]:
    """Time callables against each other.

    Every round runs each candidate once, in an order that is reversed from round to round, so that neither a
    drifting clock frequency nor what the predecessor left in the caches favours one of them.

    Args:
        candidates: what to time; the first is what the ratios refer to.
        seconds: budget of the whole measurement; it ends with the first round that finds it used up.
        min_rounds: rounds that are run whatever the budget says; at least one.
        max_rounds: rounds after which it ends early.
        warm_up: untimed rounds before; at least one is run, the rest only within a fifth of the budget.
        clock: seconds, monotonic.

    Returns:
        One Latency per candidate, in order.
    """
    if not candidates:
        return []
    begin = clock()
    for _ in range(max(1, warm_up)):
        for call in candidates:
            call()
        if clock() - begin >= _WARM_UP_SHARE * seconds:
            break
    times = _rounds(candidates, begin + seconds, min_rounds, max_rounds, clock)
    return [_summary(times[:, column], times[:, 0]) for column in range(len(candidates))]


def _rounds(
    candidates: Sequence[Callable[[], object]], end: float, min_rounds: int, max_rounds: int, clock: Clock
) -> _Times:
    """Seconds per round and candidate."""
    times: list[list[float]] = []
    order = list(range(len(candidates)))
    with _no_garbage_collection():
        while len(times) < max_rounds and (len(times) < max(1, min_rounds) or clock() < end):
            row = [0.0] * len(candidates)
            for index in order:
                start = clock()
                candidates[index]()
                row[index] = clock() - start
            times.append(row)
            order.reverse()
    return np.array(times, np.float64).reshape(-1, len(candidates))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _summary(own: _Times, first: _Times) -> Latency:
    p50, p95, p99 = (float(value) for value in np.quantile(own, (0.5, 0.95, 0.99)))
    ratios = np.maximum(own, _SHORTEST) / np.maximum(first, _SHORTEST)
    low, median, high = (float(value) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return Latency(p50, p95, p99, float(np.mean(own)), len(own), Ratio(median, low, high))


def latency(
    models: Sequence[str | PathLike[str] | ort.InferenceSession],
    feeds: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    threads: int | None = 1,
    seconds: float = 2.0,
    min_rounds: int = 5,
    warm_up: int = 3,
) -> list[Latency]:
    """`interleaved` over models: each run feeds arrays and fetches all outputs.

    Args:
        models: paths, opened as they are deployed, or open sessions.
        feeds: one set of inputs for all models, or one for each.
        threads: threads of the sessions opened here; None leaves the number to ONNX Runtime.
        seconds, min_rounds, warm_up: as for `interleaved`.

    Raises:
        ModelError: a model does not load.
        DataError: the feeds do not fit.
    """
    sessions = [_session(model, threads) for model in models]
    each = [feeds] * len(sessions) if isinstance(feeds, Mapping) else feeds
    calls = [bind(session, values) for session, values in zip(sessions, each, strict=True)]
    return interleaved(calls, seconds=seconds, min_rounds=min_rounds, warm_up=warm_up)


def _session(model: str | PathLike[str] | ort.InferenceSession, threads: int | None) -> ort.InferenceSession:
    if isinstance(model, ort.InferenceSession):
        return model
    options = session_options(SessionMode.DEPLOYED, threads=threads)
    # Idle threads of one session would otherwise keep spinning into the turn of the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return create(model, options, CPU)
