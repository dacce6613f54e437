"""The metrics by name: which way is better, what they need, what counts as a drop."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.data import Batch, is_function, load_function
from onnxopt.errors import DataError, ModelError
from onnxopt.evaluate import tallies
from onnxopt.evaluate.tallies import Tally

Array: TypeAlias = npt.NDArray[Any]
Outputs: TypeAlias = Mapping[str, Any]
Better: TypeAlias = Literal["higher", "lower"]


class Point(NamedTuple):
    """A metric's value at some ratio of sums, and its derivative there."""

    value: float
    slope: float


@dataclass(frozen=True)
class Metric:
    """A metric tied to a model's output and to labels of the data; picklable.

    Attributes:
        name: its kind, e.g. `top1`, `topk` or `module:function`.
        output: output that is judged; None for a function, which gets all.
        label: label, or integer input, that it is judged by; None where none is needed.
        k: of `topk`.
        shift: predictions at position t are of the target at t + shift.
        axis: of the classes in the output.
        better: whether `higher` or `lower` is better.
        state: input -> output that feeds it at the next batch.
        base: folder in which a function's module may lie.
    """

    name: str
    output: str | None
    label: str | None
    k: int
    shift: int
    axis: int
    better: Better
    state: Mapping[str, str]
    base: Path | None = None

    @property
    def kind(self) -> "Kind":
        """The registry's entry."""
        return kind_of(self.name)

    @property
    def compares(self) -> bool:
        """Whether it needs the original's outputs."""
        return self.kind.needs == "original"

    def drop(self, before: float, after: float) -> float:
        """How much worse the metric got; negative where it got better, infinite where `after` is NaN.

        Absolute for scores, relative for losses; for comparisons with the original, which do not look at
        `before`, the distance from it: relative L2, or 1 - cosine.

        Raises:
            DataError: the metric of the original is NaN or infinite.
        """
        if self.kind.distance is not None:
            return math.inf if math.isnan(after) else self.kind.distance(after)
        if not math.isfinite(before):
            raise DataError(
                f"metric {self.name} of the original is {before}: its drop is undefined; check labels and data"
            )
        if math.isnan(after):
            return math.inf
        if self.better == "higher":
            return before - after
        return (after - before) / abs(before) if before else math.copysign(math.inf, after) if after else 0.0

    def tally(self, outputs: Outputs, batch: Batch, original: Outputs | None) -> Tally:
        """What the samples of a batch add to the metric.

        Raises:
            DataError: labels do not fit the output, or a function of the user's own fails.
            ModelError: the output is missing or has another shape than the original's.
        """
        return self.kind.tally(self, outputs, batch, original)


@dataclass(frozen=True)
class Kind:
    """A metric that is not tied to a model yet.

    Attributes:
        name: what recipes call it.
        summary: one line.
        better: the way that is better.
        needs: a `label`, the `original`'s outputs, or `nothing` but the outputs.
        options: those of k, shift, axis, better that it has.
        tally: what a batch adds.
        finish: from the ratio of sums to the value.
        distance: for comparisons: the value's distance from that of an exact copy.
    """

    name: str
    summary: str
    better: Better
    needs: Literal["label", "original", "nothing"]
    options: frozenset[str]
    tally: Callable[[Metric, Outputs, Batch, Outputs | None], Tally]
    finish: Callable[[float], Point]
    distance: Callable[[float], float] | None = None


def kind_of(name: str) -> Kind:
    """The entry of a metric's name; names `module:function` share one."""
    return FUNCTION if is_function(name) else KINDS[name]


def _mean(ratio: float) -> Point:
    return Point(ratio, 1.0)


def _exponential(ratio: float) -> Point:
    value = math.exp(ratio) if ratio < 709 else math.inf
    return Point(value, value)


def _root(ratio: float) -> Point:
    value = math.sqrt(ratio)
    return Point(value, 0.5 / value if value else math.inf)


def _decibel(ratio: float) -> Point:
    """Signal to noise in dB from noise to signal; infinite without noise."""
    if ratio in (0, math.inf):
        return Point(math.inf if ratio == 0 else -math.inf, math.inf)
    return Point(-10 * math.log10(ratio), -10 / (math.log(10) * ratio))


def _hits(metric: Metric, outputs: Outputs, batch: Batch, original: Outputs | None) -> Tally:
    return tallies.hits(*_logits_and_targets(metric, outputs, batch), metric.k)


def _nats(metric: Metric, outputs: Outputs, batch: Batch, original: Outputs | None) -> Tally:
    return tallies.negative_log_likelihood(*_logits_and_targets(metric, outputs, batch))


def _error(metric: Metric, outputs: Outputs, batch: Batch, original: Outputs | None) -> Tally:
    return tallies.squared_error(*_pair(metric, outputs, original))


def _cosine(metric: Metric, outputs: Outputs, batch: Batch, original: Outputs | None) -> Tally:
    return tallies.cosine(*_pair(metric, outputs, original))


def _call(metric: Metric, outputs: Outputs, batch: Batch, original: Outputs | None) -> Tally:
    function = load_function(metric.name, allow_code=True, base=metric.base)
    try:
        found = np.asarray(function(outputs, batch.feeds, batch.labels), dtype=np.float64)
    except Exception as error:
        raise DataError(f"metric {metric.name}: your code failed: {type(error).__name__}: {error}") from error
    if found.ndim == 0:
        return Tally(found.reshape(1) * batch.samples, np.array([batch.samples], dtype=np.float64))
    if found.ndim > 1:
        raise DataError(f"metric {metric.name}: give a number, or one a sample; not shape {list(found.shape)}")
    return Tally(found, np.ones(len(found)))


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("top1", "share of right classes", "higher", "label", frozenset({"axis"}), _hits, _mean),
        Kind("topk", "share of targets among the k highest", "higher", "label", frozenset({"axis", "k"}), _hits, _mean),
        Kind(
            "perplexity", "exponential of the mean negative log likelihood of the targets", "lower", "label",
            frozenset({"axis", "shift"}), _nats, _exponential,
        ),
        Kind(
            "bits_per_byte", "mean negative log2 likelihood of a target: of a byte, where tokens are bytes", "lower",
            "label", frozenset({"axis", "shift"}), _nats, lambda ratio: Point(ratio / math.log(2), 1 / math.log(2)),
        ),
        Kind(
            "relative_l2", "L2 of the difference from the original's output, relative to it", "lower", "original",
            frozenset(), _error, _root, lambda value: value,
        ),
        Kind(
            "cosine", "mean cosine between a sample's output and the original's", "higher", "original",
            frozenset(), _cosine, _mean, lambda value: 1 - value,
        ),
        Kind(
            "sqnr", "signal to quantization noise against the original's output, in dB", "higher", "original",
            frozenset(), _error, _decibel, lambda value: 10 ** (-value / 20),
        ),
    )
}  # fmt: skip
"""The metrics that come with onnxopt."""

FUNCTION = Kind(
    "module:function", "function(outputs, feeds, labels) of your own: a number, or one a sample", "higher", "nothing",
    frozenset({"better"}), _call, _mean,
)  # fmt: skip
"""What all functions of the user's own have in common."""


def _pair(metric: Metric, outputs: Outputs, original: Outputs | None) -> tuple[Array, Array]:
    assert original is not None
    mine, theirs = _output(metric, outputs), _output(metric, original)
    if mine.shape != theirs.shape:
        raise ModelError(f"output {metric.output!r} has shape {list(mine.shape)}, the original's {list(theirs.shape)}")
    return mine, theirs


def _output(metric: Metric, outputs: Outputs) -> Array:
    assert metric.output is not None
    if metric.output not in outputs:
        raise ModelError(f"metric {metric.name}: the model gave no output {metric.output!r}")
    return np.asarray(outputs[metric.output])


def _logits_and_targets(metric: Metric, outputs: Outputs, batch: Batch) -> tuple[Array, Array]:
    """[samples, ..., classes] and [samples, ...], shifted."""
    output, label = _output(metric, outputs), metric.label or ""
    targets = batch.labels[label] if label in batch.labels else batch.feeds[label]
    what = f"metric {metric.name}: label {label!r} {targets.dtype} {list(targets.shape)}"
    logits = _classes_last(metric, output)
    if targets.dtype.kind not in "iu" or _squeezed(targets.shape) != _squeezed(logits.shape[:-1]):
        raise DataError(f"{what} does not fit output {metric.output!r} {list(output.shape)}: one class number a row")
    targets = targets.reshape(logits.shape[:-1]).astype(np.int64)
    if len(targets.shape) < (2 if metric.shift else 1):  # a single sample without a batch axis
        logits, targets = logits[None], targets[None]
    if metric.shift:
        if targets.shape[-1] <= metric.shift:
            raise DataError(f"{what} leaves nothing to predict after a shift of {metric.shift}")
        logits, targets = logits[..., : -metric.shift, :], targets[..., metric.shift :]
    if targets.size and targets.max() >= logits.shape[-1]:
        raise DataError(f"{what} holds class {targets.max()}, output {metric.output!r} has {logits.shape[-1]}")
    return logits, targets


def _classes_last(metric: Metric, output: Array) -> Array:
    if not -output.ndim <= metric.axis < output.ndim:
        raise DataError(
            f"metric {metric.name}: output {metric.output!r} {list(output.shape)} has no axis {metric.axis}"
        )
    logits = np.moveaxis(output, metric.axis, -1)
    if logits.shape[-1] < 2:
        raise DataError(f"metric {metric.name}: axis {metric.axis} of output {metric.output!r} has no 2 classes")
    return logits


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
