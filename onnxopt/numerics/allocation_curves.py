"""What a group loses by getting narrower, at each width that it may have.

Curves are measured at a few widths and read in between. Distortion grows by orders of magnitude as a group gets
narrow, so it is interpolated in its logarithm, monotonically: Fritsch and Butland 1984, "A method for constructing
local monotone piecewise cubic interpolants".
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .allocation_cost import Floats, Widths

_USUAL_POWER = 2.0
"""How distortion grows with the share that is removed while little is: squared error of what a mask leaves out."""

_LARGEST = 600.0
"""Logarithms are cut here: far under the narrowest measurement losses are enormous, but their sums stay finite."""


def allowed_widths(width: int, round_to: int = 1, min_width: int = 1) -> Widths:
    """The widths that a group of `width` units may keep, ascending: the multiples of `round_to` under it, and its own.

    At least `min_width` of them; a group not wider than that, or than `round_to`, keeps its width, because without
    whole blocks nothing gets faster.
    """
    multiples = np.arange(round_to, width, round_to, dtype=np.int64)
    return np.append(multiples[multiples >= min_width], np.int64(width))


@dataclass(frozen=True, eq=False)
class Curve:
    """The widths that a group may keep and what each loses.

    Attributes:
        widths: `[levels]`, ascending; the last is the full width.
        losses: `[levels]`, float64, not increasing with the width; scores summed over the removed units, or the
            distortion at the output. Of one unit for all groups.

    Raises:
        ValueError: widths that do not ascend from 0 or more, losses that are not finite or increase with the width.
    """

    widths: Widths
    losses: Floats

    def __post_init__(self) -> None:
        if self.widths.ndim != 1 or self.widths.shape != self.losses.shape or not self.widths.size:
            raise ValueError(f"a curve needs as many losses as widths, not {self.losses.shape} and {self.widths.shape}")
        if self.widths[0] < 0 or (np.diff(self.widths) <= 0).any():
            raise ValueError(f"the widths of a curve must ascend, not {self.widths.tolist()}")
        if not np.isfinite(self.losses).all() or (np.diff(self.losses) > 0).any():
            raise ValueError("the losses of a curve must be finite and must not increase with the width")

    @classmethod
    def of_scores(cls, scores: Floats, widths: Widths) -> "Curve":
        """The curve of a group whose weakest units go first: each width loses the sum of the scores below it.

        Args:
            scores: `[units]`, not negative.
            widths: see `allowed_widths`.
        """
        lost = np.concatenate([[0.0], np.cumsum(np.sort(scores))])
        return cls(widths, lost[len(scores) - widths])

    @classmethod
    def of_measured(cls, measured: npt.ArrayLike, losses: npt.ArrayLike, full: int, widths: Widths) -> "Curve":
        """The curve through measured losses, read at `widths`.

        At the full width nothing is lost. Where a narrower width was measured to lose less than a wider one (noise),
        it is given the wider one's loss. Between measurements the logarithm is interpolated (monotone cubic); between
        the widest that loses anything and the narrowest that loses nothing the loss is a power, of at least 1, of what
        is removed, smooth at the measurement; under the narrowest it goes on with the last slope of the logarithm, but
        grows at least with the square of what is removed, so that what was not measured is never free.

        Args:
            measured: widths `[n]`, in any order, each once.
            losses: `[n]`, not negative.
            full: the group's width.
            widths: see `allowed_widths`.

        Raises:
            ValueError: nothing measured, losses negative or not finite, widths measured twice or over `full`.
        """
        order = np.argsort(np.asarray(measured))
        at = np.asarray(measured, np.float64)[order]
        lost = np.asarray(losses, np.float64)[order]
        if not at.size or (np.diff(at) <= 0).any() or at[-1] > full:
            raise ValueError(f"losses must be measured at different widths up to {full}, not {at.tolist()}")
        if not np.isfinite(lost).all() or (lost < 0).any():
            raise ValueError(f"measured losses must be finite and not negative, not {lost.tolist()}")
        lost = np.where(at < full, np.maximum.accumulate(lost[::-1])[::-1], 0.0)
        free = float(at[lost == 0].min(initial=full))
        return cls(widths, _read(at[lost > 0], lost[lost > 0], free, widths.astype(np.float64)))


def _read(at: Floats, lost: Floats, free: float, wanted: Floats) -> Floats:
    """Positive losses `lost` at the widths `at`, none from `free` on, read at the widths `wanted`."""
    if not at.size:
        return np.zeros_like(wanted)
    logs = np.log(lost)
    slopes = monotone_slopes(at, logs)
    inside = hermite(at, logs, slopes, np.clip(wanted, at[0], at[-1]))
    narrower = np.minimum(wanted, at[0])
    inside += np.maximum(slopes[0] * (narrower - at[0]), _USUAL_POWER * np.log((free - narrower) / (free - at[0])))
    power = max(1.0, -slopes[-1] * (free - at[-1])) if at.size > 1 else _USUAL_POWER
    over = np.clip((free - wanted) / (free - at[-1]), 0, 1) ** power
    read: Floats = np.minimum.accumulate(np.exp(np.minimum(inside, _LARGEST)) * over)
    return read


def monotone_slopes(x: Floats, y: Floats) -> Floats:
    """Slopes `[n]` at the points `(x, y)`, `x` ascending, for which `hermite` is monotone wherever the points are.

    Inside, the weighted harmonic mean of the neighbouring secants, or 0 at a turning point; at the ends the parabola
    through three points, cut so that it does not turn.
    """
    if len(x) < 3:
        return np.full(len(x), (y[-1] - y[0]) / (x[-1] - x[0]) if len(x) == 2 else 0.0)
    steps = np.diff(x)
    secants = np.diff(y) / steps
    left, right = secants[:-1], secants[1:]
    near, far = 2 * steps[1:] + steps[:-1], steps[1:] + 2 * steps[:-1]
    turns = left * right <= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.where(turns, 0.0, (near + far) / (near / left + far / right))
    first = _end_slope(steps[0], steps[1], secants[0], secants[1])
    last = _end_slope(steps[-1], steps[-2], secants[-1], secants[-2])
    return np.concatenate([[first], inner, [last]])


def _end_slope(step: float, following: float, secant: float, next_secant: float) -> float:
    slope = ((2 * step + following) * secant - step * next_secant) / (step + following)
    if slope * secant <= 0:
        return 0.0
    if secant * next_secant <= 0 and abs(slope) > 3 * abs(secant):
        return float(3 * secant)
    return float(slope)


def hermite(x: Floats, y: Floats, slopes: Floats, wanted: Floats) -> Floats:
    """The piecewise cubic through `(x, y)` with these slopes, at `wanted` inside of `[x[0], x[-1]]`."""
    if len(x) == 1:
        return np.full_like(wanted, y[0])
    piece = np.clip(np.searchsorted(x, wanted, side="right") - 1, 0, len(x) - 2)
    step = x[piece + 1] - x[piece]
    t = (wanted - x[piece]) / step
    value: Floats = (
        (1 + 2 * t) * (1 - t) ** 2 * y[piece]
        + t * (1 - t) ** 2 * step * slopes[piece]
        + t**2 * (3 - 2 * t) * y[piece + 1]
        - t**2 * (1 - t) * step * slopes[piece + 1]
    )
    return value


__all__ = ["Curve", "allowed_widths", "hermite", "monotone_slopes"]
