"""N:M as people write it."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_PATTERN = re.compile(r"([1-9][0-9]*):([1-9][0-9]*)")


def parsed(text: str) -> tuple[int, int]:
    """N and M: of every M weights N are kept.

    Raises:
        ValueError: it is no pattern, or keeps all.
    """
    found = _PATTERN.fullmatch(text)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"{text!r} is no pattern N:M like 2:4, with N of every M weights kept and N smaller than M")
    return int(found[1]), int(found[2])


def _checked(text: str | None) -> str | None:
    if text is not None:
        parsed(text)
    return text


def _written(value: Any) -> Any:
    """What was written as N:M: YAML reads 2:4 as a number of base 60."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and value > 60
    return ":".join(map(str, divmod(value, 60))) if is_number else value


Pattern = Annotated[str | None, AfterValidator(_checked), BeforeValidator(_written)]
"""The type of an option."""

__all__ = ["Pattern", "parsed"]
