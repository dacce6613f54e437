"""Patterns that name things: globs, or `re:` and a regular expression."""

import fnmatch
import re
from collections.abc import Iterable

_REGULAR = "re:"
_WILD = re.compile(r"[*?\[]")


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a glob covers one of the names, or a regular expression is found in one."""
    if pattern.startswith(_REGULAR):
        found = re.compile(pattern.removeprefix(_REGULAR)).search
        return any(found(name) for name in names)
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def check(pattern: str) -> None:
    """Look at a pattern before it is used.

    Raises:
        ValueError: it is no regular expression.
    """
    if pattern.startswith(_REGULAR):
        try:
            re.compile(pattern.removeprefix(_REGULAR))
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def is_name(pattern: str) -> bool:
    """Whether a pattern is one name, so that whoever wrote it means that very thing."""
    return not pattern.startswith(_REGULAR) and _WILD.search(pattern) is None


__all__ = ["check", "is_name", "matches"]
