"""Comparing what two models compute: drift, the exact contract's tolerance, and the collapse guard. Pure numpy."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Outputs = Mapping[str, Any]
"""What a session gives for one feed: output name -> array, list, dict or None."""

ABSOLUTE_FLOOR = 1e-6
"""Differences below this, per element, are rounding whatever the output's size."""

SMALL_FLOOR = 1e-2
"""Share of its size that takes the floor's place where all of an output is smaller than that.

Rounding is relative to what an output was computed from: one that lost 16 of float32's 24 bits to cancellation
differs by 2^-8. What lost more differs in the original's own noise, which widens the tolerance.
"""

TIGHT, HALF = 1e-4, 5e-3
"""Tolerances of the exact contract: single precision's, and half precision's."""

Tolerance = float | Mapping[str, float]
"""Relative L2 allowed; by output name, else by the type of what is compared."""

WAVERING = 0.05
"""Where the original differs from itself by more than this, numbers say nothing; their mean and spread do."""

_ALIKE = 0.9
"""Centred cosine from which on outputs say the same, wherever their largest entries are."""

_DECISIONS = 16
"""Samples from which on it is no chance that the largest entry of all is at one place."""

_FLOATS = "fcV"
"""numpy's kinds of floating point; V are the types numpy borrows (bfloat16, float8)."""


@dataclass
class Comparison:
    """How far the outputs of one model are from those of another.

    Attributes:
        drift: worst relative L2 over outputs and samples; inf where shapes, NaNs or integers differ.
        broken: what is outside the tolerance, one line each.
        undecidable: output and sample pairs in which the original does not agree with itself.
    """

    drift: float = 0.0
    broken: list[str] = field(default_factory=list)
    undecidable: int = 0


@dataclass(frozen=True)
class Noise:
    """What the runtime's own optimizations do to the original.

    Attributes:
        relative: worst relative L2 by output.
        unstable: (output, feed) pairs whose integers, shapes or NaNs change; nothing can be decided there.
    """

    relative: Mapping[str, float]
    unstable: frozenset[tuple[str, int]]


def noise(one: Sequence[Outputs], other: Sequence[Outputs]) -> Noise:
    """The noise between two runs of the same model on the same feeds."""
    relative: dict[str, float] = {}
    unstable = set()
    floors = _floors(one)
    for feed, (a, b) in enumerate(zip(one, other, strict=True)):
        for name, x, y in _pairs(a, b):
            if x is None or y is None or _mismatch(x, y):
                unstable.add((name, feed))
            elif x.dtype.kind in _FLOATS:
                relative[name] = max(relative.get(name, 0.0), _drift(x, y, floors.get(name, ABSOLUTE_FLOOR)))
    return Noise(relative, frozenset(unstable))


def compare(
    reference: Sequence[Outputs],
    candidate: Sequence[Outputs],
    tolerance: Tolerance,
    own: Noise,
    chance: Collection[str] = (),
) -> Comparison:
    """Hold the candidate to the reference: `||a - b|| <= tol ||a|| + floor sqrt(n)`, all else equal.

    The floor is 1e-6, or a hundredth of the output's largest root mean square over samples where that is less.

    Args:
        reference: the outputs to hold to, one entry a feed.
        candidate: the outputs to judge.
        tolerance: relative L2 allowed per output and sample, raised to 8 times the original's own noise.
        own: the original's noise.
        chance: outputs that depend on random numbers which the two drew differently: statistics are compared.
    """
    result = Comparison()
    floors = _floors(reference)
    for feed, name, x, y in _decidable(reference, candidate, own, result):
        where = f"output {name}, feed {feed}"
        if x is not None and y is not None and _known(name, chance) is not None:
            _compare_chance(result, where, x, y)
            continue
        why = "is missing" if x is None or y is None else _mismatch(x, y)
        if why or x is None or y is None:
            result.drift = np.inf
            result.broken.append(f"{where}: {why}")
        elif x.dtype.kind in _FLOATS:
            noise_here = own.relative.get(name, 0.0)
            if noise_here > WAVERING:
                _compare_statistics(result, where, x, y)
            else:
                limit = max(_allowed(tolerance, name, x), 8 * noise_here)
                _compare_floats(result, where, x, y, limit, floors.get(name, ABSOLUTE_FLOOR))
    return result


def measure(
    reference: Sequence[Outputs], candidate: Sequence[Outputs], own: Noise, chance: Collection[str] = ()
) -> Comparison:
    """How far the candidate went, when it may go far: only lost outputs, other types and new NaNs break it.

    The drift of floats is their relative L2, that of integers and texts the share that differs, and infinite where
    sizes differ (which data-dependent sizes may). Where chance differs, nothing tells how far it went.
    """
    result = Comparison()
    floors = _floors(reference)
    for feed, name, x, y in _decidable(reference, candidate, own, result):
        where = f"output {name}, feed {feed}"
        if x is None or y is None or x.dtype != y.dtype or x.ndim != y.ndim:
            form = "nothing" if y is None else f"{y.dtype} of rank {y.ndim}"
            result.broken.append(f"{where}: became {form}")
        elif _known(name, chance) is not None or own.relative.get(name, 0.0) > WAVERING:
            result.undecidable += 1
        elif x.shape != y.shape:
            result.drift = np.inf
            result.undecidable += 1
        elif x.dtype.kind not in _FLOATS:
            result.drift = max(result.drift, float(np.mean(x != y)) if x.size else 0.0)
        elif _loses_numbers(x, y):
            result.drift = np.inf
            result.broken.append(f"{where}: holds NaN or infinities that the original does not give")
        else:
            result.drift = max(result.drift, _drift(x, y, floors.get(name, ABSOLUTE_FLOOR)))
    return result


def shown(drift: float | None) -> str:
    """A drift as people read it: below the floor it is not known more exactly."""
    if drift is None:
        return "not measured"
    return "< 1e-6" if drift < ABSOLUTE_FLOOR else f"{drift:.1e}"


def _loses_numbers(x: Array, y: Array) -> bool:
    """Whether y has NaN where x has none, or an infinity where x is finite."""
    a, b = _wide(x), _wide(y)
    return bool(np.any((np.isnan(b) & ~np.isnan(a)) | (np.isinf(b) & np.isfinite(a))))


def _decidable(
    reference: Sequence[Outputs], candidate: Sequence[Outputs], own: Noise, result: Comparison
) -> Iterator[tuple[int, str, Array | None, Array | None]]:
    for feed, (a, b) in enumerate(zip(reference, candidate, strict=True)):
        for name, x, y in _pairs(a, b):
            if (name, feed) in own.unstable:
                result.undecidable += 1
            else:
                yield feed, name, x, y


def first_nan(outputs: Sequence[Outputs]) -> tuple[str, int] | None:
    """The first output that holds a NaN, and the feed it came from."""
    for feed, values in enumerate(outputs):
        for name, x in _leaves(values):
            if x.dtype.kind in "fc" and np.isnan(x).any():
                return name, feed
    return None


def judgeable(reference: Sequence[Outputs]) -> bool:
    """Whether the collapse guard has anything to judge: an output that differs among at least three samples."""
    return any(_varies(x) for _, x, _ in _stacked(reference, reference))


def collapsed(reference: Sequence[Outputs], candidate: Sequence[Outputs], *, paired: bool = True) -> list[str]:
    """Why the candidate no longer says what the reference says; empty where it does.

    An output has collapsed when it is the same for every sample where the reference's is not, when its
    centred cosine with the reference's is 0.3 or less, or when some other pairing of the samples fits as well.
    So it has when its largest entry, what a classifier decides for, is one and the same for all of sixteen samples or
    more and the reference's is not even for half of them, with a centred cosine under 0.9.
    Integers count as numbers. Fewer than three samples decide nothing.

    Args:
        paired: whether the cosine is looked at too; on random inputs only constancy tells anything.
    """
    reasons = []
    for name, x, y in _stacked(reference, candidate):
        if not _varies(x):
            continue
        if not _varies(y):
            reasons.append(f"output {name} is the same for all {len(y)} samples; the original's is not")
            continue
        if not paired:
            continue
        cosines = _unit(_centred(x)) @ _unit(_centred(y)).T
        own = float(np.mean(np.diag(cosines)))
        shuffled = max(float(np.mean(np.diag(np.roll(cosines, k, axis=1)))) for k in range(1, len(x)))
        if own <= 0.3:
            reasons.append(f"output {name}: centred cosine with the original's is {own:.2f}, must be above 0.3")
        elif own <= shuffled:
            reasons.append(f"output {name} fits other samples as well as its own ({shuffled:.2f} against {own:.2f})")
        elif own < _ALIKE and len(x) >= _DECISIONS and 2 * _most_frequent(x) <= len(x) == _most_frequent(y):
            reasons.append(f"the largest entry of output {name} is one and the same for all {len(y)} samples")
    return reasons


def _most_frequent(x: Array) -> int:
    """Of how many rows the largest entry is at the place where it is most often."""
    return int(np.bincount(np.argmax(x, axis=1)).max()) if x.shape[1] > 1 else 0


def _varies(x: Array) -> bool:
    """Whether the rows differ by more than rounding."""
    return bool(np.linalg.norm(_centred(x)) > 1e-5 * np.linalg.norm(x) + 1e-30)


def _compare_floats(result: Comparison, where: str, x: Array, y: Array, limit: float, floor: float) -> None:
    for row, (a, b) in enumerate(zip(*_rows(x, y), strict=True)):
        relative = _relative(a, b, floor)
        result.drift = max(result.drift, relative)
        if _distance(a, b) > limit * _norm(a) + floor * np.sqrt(a.size):
            result.broken.append(f"{where}, row {row}: relative L2 {relative:.1e}, allowed {limit:.1e}")


def _compare_chance(result: Comparison, where: str, x: Array, y: Array) -> None:
    """Form, and of numbers the statistics; sizes may depend on chance as well."""
    if x.dtype != y.dtype or x.ndim != y.ndim:
        result.broken.append(f"{where}: {x.dtype} of rank {x.ndim} became {y.dtype} of rank {y.ndim}")
    elif x.dtype.kind in _FLOATS + "iub":
        _compare_statistics(result, where, x, y)
    else:
        result.undecidable += 1


def _compare_statistics(result: Comparison, where: str, x: Array, y: Array) -> None:
    """Mean within five standard errors and spread within a factor of two, for outputs of chance."""
    a, b = _finite(_wide(x)), _finite(_wide(y))
    result.undecidable += 1
    if not a.size or not b.size:
        return
    spread, error = float(np.std(a)), float(np.hypot(np.std(a) / a.size**0.5, np.std(b) / b.size**0.5))
    if abs(a.mean() - b.mean()) > 5 * error + ABSOLUTE_FLOOR:
        result.broken.append(f"{where}: the mean went from {a.mean():.3g} to {b.mean():.3g}")
    elif min(a.size, b.size) >= 32 and not spread / 2 <= float(np.std(b)) <= 2 * spread + ABSOLUTE_FLOOR:
        result.broken.append(f"{where}: the standard deviation went from {spread:.3g} to {float(np.std(b)):.3g}")


def _leaves(outputs: Outputs) -> Iterator[tuple[str, Array]]:
    """Arrays inside outputs; sequences and maps are opened up (`name[3]`)."""
    stack = list(reversed(list(outputs.items())))
    while stack:
        name, value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend((f"{name}[{key}]", value[key]) for key in reversed(list(value)))
        elif isinstance(value, list | tuple):
            stack.extend((f"{name}[{i}]", v) for i, v in reversed(list(enumerate(value))))
        elif value is not None:
            yield name, np.asarray(value)


def _pairs(a: Outputs, b: Outputs) -> Iterator[tuple[str, Array | None, Array | None]]:
    left, right = dict(_leaves(a)), dict(_leaves(b))
    for name in (*left, *(n for n in right if n not in left)):
        yield name, left.get(name), right.get(name)


def _mismatch(x: Array, y: Array) -> str:
    """Why two outputs differ beyond numbers; empty where only numbers can differ."""
    if x.shape != y.shape:
        return f"shape {list(x.shape)} became {list(y.shape)}"
    if x.dtype != y.dtype:
        return f"type {x.dtype} became {y.dtype}"
    if x.dtype.kind not in _FLOATS:
        return "" if np.array_equal(x, y) else f"{int(np.sum(x != y))} of {x.size} values differ"
    a, b = _wide(x), _wide(y)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return "NaNs at other places"
    infinite = np.isinf(a) | np.isinf(b)
    return "" if np.array_equal(a[infinite], b[infinite]) else "infinities at other places"


def _wide(x: Array) -> Array:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _rows(x: Array, y: Array) -> tuple[list[Array], list[Array]]:
    """Samples of a batch: the first axis is taken for it (a sum over it could hide one bad sample)."""
    if x.ndim < 2 or len(x) == 0:
        return [x], [y]
    return list(x), list(y)


def _finite(a: Array) -> Array:
    return np.where(np.isfinite(a), a, 0)


def _distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm((_finite(_wide(a)) - _finite(_wide(b))).ravel()))


def _norm(a: Array) -> float:
    return float(np.linalg.norm(_finite(_wide(a)).ravel()))


def _relative(a: Array, b: Array, floor: float) -> float:
    """Relative L2; where both are nothing but rounding, 0."""
    distance, rounding = _distance(a, b), floor * float(np.sqrt(a.size))
    return 0.0 if distance <= rounding else distance / max(_norm(a), rounding)


def _drift(x: Array, y: Array, floor: float) -> float:
    """The worst row's relative L2."""
    return max((_relative(a, b, floor) for a, b in zip(*_rows(x, y), strict=True)), default=0.0)


def _floors(reference: Sequence[Outputs]) -> dict[str, float]:
    """By output name: the difference per element that is rounding, from the largest row of all feeds."""
    largest: dict[str, float] = {}
    for outputs in reference:
        for name, x in _leaves(outputs):
            if x.size and x.dtype.kind in _FLOATS:
                sizes = (_norm(row) / float(np.sqrt(row.size)) for row in _rows(x, x)[0] if row.size)
                largest[name] = max(largest.get(name, 0.0), *sizes, 0.0)
    return {name: min(ABSOLUTE_FLOOR, SMALL_FLOOR * size) for name, size in largest.items() if size}


def _known(name: str, names: Collection[str]) -> str | None:
    """The one among the names that holds this value: itself, or what was opened up to it (`name[3][key]`)."""
    while name not in names and "[" in name:
        name = name[: name.rindex("[")]
    return name if name in names else None


def _allowed(tolerance: Tolerance, name: str, x: Array) -> float:
    if not isinstance(tolerance, Mapping):
        return tolerance
    known = _known(name, tolerance)
    if known is None:
        return HALF if x.dtype.name in ("float16", "bfloat16") else TIGHT
    return tolerance[known]


def _stacked(reference: Sequence[Outputs], candidate: Sequence[Outputs]) -> Iterator[tuple[str, Array, Array]]:
    """Numeric outputs of all samples as matrices `[samples, values]`, where samples agree in size."""
    samples: dict[str, list[tuple[Array, Array]]] = {}
    for a, b in zip(reference, candidate, strict=True):
        for name, x, y in _pairs(a, b):
            if x is not None and y is not None and x.shape == y.shape and x.dtype.kind in _FLOATS + "iub":
                samples.setdefault(name, []).extend(
                    (_finite(_wide(u)).ravel(), _finite(_wide(v)).ravel()) for u, v in zip(*_rows(x, y), strict=True)
                )
    for name, pairs in samples.items():
        usable = [pair for pair in pairs if pair[0].size == pairs[0][0].size]
        if len(usable) >= 3 and usable[0][0].size:
            yield name, np.stack([u for u, _ in usable]), np.stack([v for _, v in usable])


def _centred(x: Array) -> Array:
    return np.asarray(x - x.mean(axis=0, keepdims=True))


def _unit(x: Array) -> Array:
    return np.asarray(x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-30))
