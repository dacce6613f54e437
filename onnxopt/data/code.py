"""Functions of the user's own, named `module:function`."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxopt.errors import DataError, RecipeError

_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function(spec: str) -> bool:
    """Whether a text has the form `module:function`."""
    return _SPEC.fullmatch(spec) is not None


def load_function(spec: str, *, allow_code: bool, base: Path | None = None) -> Callable[..., Any]:
    """The function that `module:function` names; its module may lie in `base` or the current folder.

    Raises:
        RecipeError: code is not allowed.
        DataError: no such module or function, or the module fails when it is imported.
    """
    if not allow_code:
        raise RecipeError(f"{spec!r} would run code of your own; allow it with --allow-code (allow_code=True)")
    module, _, name = spec.partition(":")
    with _search(base or Path.cwd()):
        try:
            found = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            place = base or "the current folder"
            raise DataError(f"{spec!r}: no module {error.name!r} installed or in {place}") from error
        except AttributeError as error:
            raise DataError(f"{spec!r}: module {module!r} has no {name!r}") from error
        except Exception as error:
            raise DataError(f"{spec!r}: importing {module!r} failed: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise DataError(f"{spec!r} is no function but {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


@contextmanager
def _search(folder: Path) -> Iterator[None]:
    """Let imports find modules of a folder, after everything that is installed."""
    entry = str(folder.resolve())
    sys.path.append(entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)
