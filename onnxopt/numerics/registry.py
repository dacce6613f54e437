"""Parts of the quantizer by name: a dictionary whose misses say what exists."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """Maps the names that people write to parts of one kind."""

    def __init__(self, kind: str) -> None:
        """Make an empty registry; `kind` is what its members are called in errors, e.g. "scale rule"."""
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters a part under `name`; a taken name raises ValueError."""

        def enter(part: T) -> T:
            if name in self:
                raise ValueError(f"{self.kind} {name!r} is already registered")
            self[name] = part
            return part

        return enter

    def check(self, name: str, *also: str) -> None:
        """Raise ValueError with the allowed and the nearest name unless `name` is registered or one of `also`."""
        allowed = sorted({*self, *also})
        if name not in allowed:
            near = get_close_matches(name, allowed, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown {self.kind} {name!r}; allowed: {', '.join(allowed)}{hint}")

    def find(self, name: str) -> T:
        """Return the part of that name; ValueError as from `check` when there is none."""
        self.check(name)
        return self[name]
