"""Measuring what users get: the metric, its loss, and latency, original against candidate."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxopt.analysis.parameters import stored_bytes
from onnxopt.analysis.shapes import infer, observation, observed_from
from onnxopt.backends import machine
from onnxopt.backends.jobs import latency, run_batches
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker
from onnxopt.errors import DataError, OnnxOptError
from onnxopt.evaluate import Metric, MetricConfig, Score, evaluate, paired_difference
from onnxopt.inputs import Inputs
from onnxopt.model import Model

_OBSERVABLE_BYTES = 2**30
"""Above so many bytes of weights no copy of the model is written just to look at shapes."""


class Measuring:
    """Scores and times candidates against the original, as deployed; the original is measured once.

    Args:
        worker: where sessions run.
        original: the input model's file.
        inputs: the run's data.
        metric: what is measured on the evaluation data; None: nothing.
        unverified: why no session may be opened; None where one may.
        allow_code: whether the metric may be `module:function`.

    Raises:
        DataError: a metric without evaluation data.
        RecipeError: a metric whose output or label is unknown or ambiguous.
    """

    def __init__(
        self,
        worker: Worker,
        original: Path,
        inputs: Inputs,
        metric: MetricConfig | None,
        unverified: str | None,
        allow_code: bool = False,
    ) -> None:
        self._worker = worker
        self._original = original
        self._inputs = inputs
        self._unverified = unverified
        self._scores: dict[Path, Score] = {}
        self._metric: Metric | None = None
        if metric is not None:
            self._metric = bind(metric, inputs, allow_code)

    def observe(self, model: Model, folder: Path) -> dict[str, tuple[int, ...]]:
        """Shapes that inference does not reach, from one run; empty where none is needed or possible."""
        unknown = infer(model, self._inputs.sizes).unknown()
        if not unknown or self._unverified is not None or stored_bytes(model) > _OBSERVABLE_BYTES:
            return {}
        probe = folder / "shapes.onnx"
        Model(observation(model, unknown)).save(probe)
        try:
            outputs = self._worker.call(run_batches, str(probe), SessionMode.REFERENCE, [dict(self._inputs.first)])
        except OnnxOptError:
            return {}
        return dict(observed_from(outputs[0]))

    def metric_drop(self, candidate: Path) -> float:
        """How much worse the metric is: absolute for scores in 0..1, relative for losses."""
        if self._metric is None:
            raise DataError(
                "limits.metric_drop needs evaluation data and a metric: give data.evaluation and data.metric"
            )
        if self._unverified is not None:
            raise DataError(f"limits.metric_drop cannot be measured: {self._unverified}")
        return self._metric.drop(self._score(self._original).value, self._score(candidate).value)

    def metric(self, candidate: Path) -> dict[str, Any] | None:
        """Metric before and after with the paired standard error; None where nothing is measured."""
        if self._metric is None or self._unverified is not None:
            return None
        before, after = self._score(self._original), self._score(candidate)
        found = {
            "name": self._metric.name, "before": before.value, "after": after.value, "samples": after.samples,
            "stderr": after.stderr, "drop": self._metric.drop(before.value, after.value),
        }  # fmt: skip
        if before.per_sample is not None and after.per_sample is not None:
            difference, error = paired_difference(before, after)
            found |= {"difference": difference, "difference_stderr": error}
        return found

    def latency(self, candidate: Path) -> dict[str, Any] | None:
        """Median milliseconds before and after at the first batch, and the median of paired ratios."""
        if self._unverified is not None:
            return None
        before, after = self._worker.call(latency, [str(self._original), str(candidate)], dict(self._inputs.first))
        return {
            "before_ms": before.p50 * 1e3, "after_ms": after.p50 * 1e3, "ratio": after.ratio.median,
            "ratio_quartiles": [after.ratio.lower_quartile, after.ratio.upper_quartile], "runs": after.count,
        }  # fmt: skip

    def memory(self) -> dict[str, int | None]:
        """Peaks of resident memory in bytes: of this process since it began, and of the largest worker process.

        Pages of mapped files count as long as they are resident, though they can be dropped at any time: with large
        models most of the first are weights. None where the system does not tell.
        """
        return {"own_peak_bytes": machine.peak_memory_bytes(), "worker_peak_bytes": self._worker.peak_memory()}

    def _score(self, path: Path) -> Score:
        if path not in self._scores:
            assert self._metric is not None and self._inputs.evaluation is not None
            reference = self._runner(self._original) if self._metric.compares else None
            self._scores[path] = evaluate(self._runner(path), self._inputs.evaluation, self._metric, reference)
        return self._scores[path]

    def _runner(self, path: Path) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        return lambda feeds: self._worker.call(run_batches, str(path), SessionMode.DEPLOYED, [dict(feeds)])[0]


def bind(metric: MetricConfig, inputs: Inputs, allow_code: bool) -> Metric:
    """The metric with the output and the label that are meant.

    Raises:
        DataError: no evaluation data.
        RecipeError: an output or label that is unknown or ambiguous, or code that is not allowed.
    """
    if inputs.evaluation is None:
        raise DataError("a metric was asked for, but no evaluation data: give data.evaluation (or --eval-data)")
    return metric.bind(inputs.evaluation, allow_code=allow_code, base=Path.cwd())
