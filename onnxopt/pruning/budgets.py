"""What may be kept, as people write it: a share of what there is, or an amount with its unit."""

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, WithJsonSchema

_COUNTS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_UNITS: Mapping[str, float] = _COUNTS | _BYTES | _TIMES

_MOST = 1e300
_PERCENT = 100

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_AMOUNT = re.compile(rf"\s*({_NUMBER})\s*([A-Za-z]+)\s*")


def target(value: float | str, full: float) -> float:
    """What a budget comes to.

    Args:
        value: the share that is kept of all there is, or an amount with its unit.
        full: all there is: in counts, bytes or seconds.

    Raises:
        ValueError: text that is no amount.
    """
    return value * full if isinstance(value, float | int) else _amount(value, _UNITS)


def _amount(text: str, units: Mapping[str, float]) -> float:
    found = _AMOUNT.fullmatch(text)
    amount = float(found[1]) * units[found[2]] if found and found[2] in units else 0.0
    if not (amount > 0 and math.isfinite(amount)):
        raise ValueError(f"must be {_allowed(units)}, not {reprlib.repr(text)}{_meant_by(text)}")
    return amount


def _checked(units: Mapping[str, float]) -> Callable[[Any], Any]:
    """A validator of shares, and of amounts in some units; None is let through."""

    def check(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, str):
            _amount(value, units)
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and isinstance(value, float) and 0 < value <= 1:
            return value
        meant = _meant(value, units) if number else ""
        raise ValueError(f"must be {_allowed(units)}, not {reprlib.repr(value)}{meant}")

    return check


def _allowed(units: Mapping[str, float]) -> str:
    known = "an amount with its unit" if units is _UNITS else f"an amount in {', '.join(units)} like {_example(units)}"
    return f"the share to keep, above 0 and at most 1.0, or {known}"


def _example(units: Mapping[str, float]) -> str:
    return "'12ms'" if units is _TIMES else "'40MB'" if units is _BYTES else "'300M'"


def _meant(value: float, units: Mapping[str, float]) -> str:
    """What to write instead of a bare number."""
    if value == 1:
        return "; to keep all write 1.0"
    if not 1 < value < _MOST:
        return ""
    if units is _TIMES:
        return f"; if milliseconds are meant, write '{value:g}ms'"
    if value < _PERCENT:
        return f"; {value:g} % is {value / _PERCENT:g}"
    unit, size = max(
        ((unit, size) for unit, size in units.items() if size <= value and "i" not in unit),
        key=lambda each: each[1],
        default=min(units.items(), key=lambda each: each[1]),
    )
    return f"; if an amount is meant, write '{value / size:.6g}{unit}'"


def _meant_by(text: str) -> str:
    """What to write instead of a share that is text."""
    found = re.fullmatch(rf"\s*({_NUMBER})\s*(%?)\s*", text)
    share = 0.0 if found is None else float(found[1]) / (_PERCENT if found[2] else 1)
    return f"; if a share is meant, write {share:g}" if 0 < share < 1 else ""


def _schema(units: Mapping[str, float]) -> WithJsonSchema:
    share = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    amount = {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*({'|'.join(units)})\s*$"}
    return WithJsonSchema({"anyOf": [share, amount, {"type": "null"}]})


KeepMacs: TypeAlias = Annotated[float | str | None, BeforeValidator(_checked(_COUNTS)), _schema(_COUNTS)]
"""Multiply-accumulates of one run: a share, or k, M, G, T."""

KeepParams: TypeAlias = Annotated[float | str | None, BeforeValidator(_checked(_COUNTS)), _schema(_COUNTS)]
"""Parameters: a share, or k, M, G, T."""

KeepBytes: TypeAlias = Annotated[float | str | None, BeforeValidator(_checked(_BYTES)), _schema(_BYTES)]
"""Bytes of the file: a share, or B, kB, MB, GB; KiB, MiB, GiB are powers of 1024."""

KeepLatency: TypeAlias = Annotated[float | str | None, BeforeValidator(_checked(_TIMES)), _schema(_TIMES)]
"""Time of one run: a share, or us, ms, s; `target` gives seconds."""
