"""The arithmetic of metrics: numpy in, numpy out, one batch at a time.

Every metric is a ratio of sums over samples: each function gives, for each sample (a row of the output), what it
adds to the numerator and to the denominator.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


class Tally(NamedTuple):
    """What samples add to a metric.

    Attributes:
        values: float64 [samples], added to the numerator.
        weights: float64 [samples], added to the denominator.
    """

    values: Array
    weights: Array


def hits(logits: Array, targets: Array, k: int) -> Tally:
    """Targets among the k highest logits; of equal ones the lower index goes first, and NaN hits nothing.

    Args:
        logits: [samples, ..., classes].
        targets: integers [samples, ...]; negative ones do not count.
        k: 1 for accuracy.
    """
    classes = np.arange(logits.shape[-1])
    true = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], axis=-1)
    ahead = (logits > true) | ((logits == true) & (classes < targets[..., None]))
    hit = (ahead.sum(axis=-1) < k) & ~np.isnan(logits).any(axis=-1)
    counts = targets >= 0
    return Tally(_per_sample(hit & counts), _per_sample(counts))


def negative_log_likelihood(logits: Array, targets: Array) -> Tally:
    """Nats: minus the logarithm of the softmax at the targets; arguments as in `hits`."""
    nats = [_nats(row, target) for row, target in zip(logits, targets, strict=True)]  # in float64 one by one
    return Tally(np.array(nats), _per_sample(targets >= 0))


@np.errstate(invalid="ignore")  # broken models give infinite logits; their NaN shall come out
def _nats(logits: Array, targets: Array) -> float:
    wide = logits.astype(np.float64)
    true = np.take_along_axis(wide, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    top = wide.max(axis=-1)
    nats = top + np.log(np.exp(wide - top[..., None]).sum(axis=-1)) - true
    return float(np.where(targets >= 0, nats, 0).sum())


@np.errstate(invalid="ignore")
def squared_error(output: Array, original: Array) -> Tally:
    """Squared differences against the original's squares; equal infinities do not differ."""
    output, original = _rows(output), _rows(original)
    difference = np.where(output == original, 0, output - original)
    power = np.where(np.isfinite(original), original, 0) ** 2
    return Tally((difference**2).sum(axis=1), power.sum(axis=1))


@np.errstate(invalid="ignore")
def cosine(output: Array, original: Array) -> Tally:
    """Cosine of the angle between each sample's output and the original's; of two zero vectors 1, of one 0."""
    output, original = _rows(output), _rows(original)
    norms = np.linalg.norm(output, axis=1) * np.linalg.norm(original, axis=1)
    equal = (output == original).all(axis=1)
    products = (output * original).sum(axis=1)
    found = np.divide(products, norms, out=np.zeros(len(norms)), where=norms != 0)
    return Tally(np.where(equal, 1.0, found), np.ones(len(norms)))


def _rows(array: Array) -> Array:
    wide = np.atleast_1d(array).astype(np.float64)
    return wide.reshape(len(wide), -1)


def _per_sample(values: Array) -> Array:
    sums: Array = values.reshape(len(values), -1).sum(axis=1, dtype=np.float64)
    return sums
