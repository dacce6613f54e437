"""Running a metric over a dataset, with its standard error."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.data import Dataset
from onnxopt.errors import DataError, ModelError
from onnxopt.evaluate.metrics import Metric

Outputs: TypeAlias = Mapping[str, Any]
Run: TypeAlias = Callable[[dict[str, Any]], Outputs]
"""Feeds of one batch -> all outputs by name."""


@dataclass(frozen=True, eq=False)
class Score:
    """A metric's value on a dataset.

    Attributes:
        value: the metric.
        samples: how many samples it is of (those without valid targets left out).
        stderr: standard error of the value over samples; None where it cannot be told.
        per_sample: float64 [samples], the metric's jackknife pseudo-values: their mean is the value, and their
            standard error its standard error. Plain per-sample values for means such as top1.
    """

    value: float
    samples: int
    stderr: float | None
    per_sample: npt.NDArray[np.float64] | None = field(repr=False)


def evaluate(run: Run, dataset: Dataset, metric: Metric, reference: Run | None = None) -> Score:
    """Measure a metric; the outputs of one batch at a time are in memory.

    A stateful metric feeds outputs of a batch to inputs of the next; the first batch takes the data's own.

    Args:
        run: the model.
        dataset: batches, in order.
        metric: what to measure.
        reference: the original, for metrics that compare with it; else unused.

    Raises:
        DataError: no original to compare with, labels that do not fit, no valid target.
        ModelError: an output is missing or has another shape than the original's.
    """
    if metric.compares and reference is None:
        raise DataError(f"metric {metric.name} compares with the original model, and none was given")
    values, weights = [], []
    mine, theirs = _Stateful(run, metric), _Stateful(reference or run, metric)
    for batch in dataset.batches():
        outputs = mine(batch.feeds)
        original = theirs(batch.feeds) if metric.compares else None
        tally = metric.tally(outputs, batch, original)
        values.append(tally.values)
        weights.append(tally.weights)
    if not values:
        raise DataError(f"metric {metric.name}: {dataset.name} has no batches")
    return _score(np.concatenate(values), np.concatenate(weights), metric)


def paired_difference(before: Score, after: Score) -> tuple[float, float | None]:
    """How much a metric changed on the same samples: `after` less `before`, and the standard error of that.

    Much smaller than the two errors together, for most samples change little. The error is None for a single
    sample or where one of the scores has no values per sample.

    Raises:
        DataError: the scores are of different samples.
    """
    if before.samples != after.samples:
        raise DataError(f"scores of {before.samples} and {after.samples} samples cannot be paired")
    if before.per_sample is None or after.per_sample is None:
        return after.value - before.value, None
    return after.value - before.value, _standard_error(after.per_sample - before.per_sample)


class _Stateful:
    """A model that remembers what its next batch gets."""

    def __init__(self, run: Run, metric: Metric) -> None:
        self._run = run
        self._metric = metric
        self._kept: dict[str, Any] = {}

    def __call__(self, feeds: Mapping[str, Any]) -> Outputs:
        outputs = self._run({**feeds, **self._kept})
        for source, target in self._metric.state.items():
            if target not in outputs:
                raise ModelError(
                    f"metric {self._metric.name}: the model gave no output {target!r} for input {source!r}"
                )
            self._kept[source] = outputs[target]
        return outputs


def _score(values: npt.NDArray[Any], weights: npt.NDArray[Any], metric: Metric) -> Score:
    """The value at the ratio of sums, and the delta method's influence of each sample on it.

    With R = sum v / sum w and a value f(R), sample i moves it by f'(R) (v_i - R w_i) / sum w (the infinitesimal
    jackknife, Jaeckel 1972).
    """
    counted = weights > 0
    if metric.compares:
        counted[:] = True
    values, weights = values[counted], weights[counted]
    total = float(weights.sum())
    if not len(values) or (total == 0 and not metric.compares):
        raise DataError(
            f"metric {metric.name}: label {metric.label!r} holds no valid target (negative ones do not count)"
        )
    noise = float(values.sum())
    ratio = noise / total if total else (0.0 if noise == 0 else math.inf)
    value, slope = metric.kind.finish(ratio)
    if not math.isfinite(value):
        return Score(value, len(values), None, None)
    if not math.isfinite(slope):  # at a root's zero, where nothing differs
        return Score(value, len(values), 0.0, np.full(len(values), value))
    influence = slope * (values - ratio * weights) / total if total else np.zeros(len(values))
    per_sample = value + len(values) * influence
    return Score(value, len(values), _standard_error(per_sample), per_sample)


def _standard_error(per_sample: npt.NDArray[np.float64]) -> float | None:
    count = len(per_sample)
    return float(per_sample.std(ddof=1) / math.sqrt(count)) if count > 1 else None
