"""onnxopt: a compiler for trained networks. An ONNX file in, a smaller and faster one out."""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

# A checkout keeps passes/, backends/, kernels/ and models/ at its top level; an installed package has them
# inside. Adding the root here makes `import onnxopt.passes` mean the same in both.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from onnxopt.api import optimize
    from onnxopt.backends.sessions import session
    from onnxopt.edit import Edit
    from onnxopt.errors import (
        ContractViolation,
        DataError,
        Declined,
        KernelError,
        ModelError,
        OnnxOptError,
        RecipeError,
    )
    from onnxopt.model import Model, load, save
    from onnxopt.passing import Context, Exact, Findings, Lossy, Pass
    from onnxopt.recipe import Recipe

_HOMES = {
    "onnxopt.api": ("optimize",),
    "onnxopt.backends.sessions": ("session",),
    "onnxopt.edit": ("Edit",),
    "onnxopt.errors": (
        "ContractViolation", "DataError", "Declined", "KernelError", "ModelError", "OnnxOptError", "RecipeError",
    ),
    "onnxopt.model": ("Model", "load", "save"),
    "onnxopt.passing": ("Context", "Exact", "Findings", "Lossy", "Pass"),
    "onnxopt.recipe": ("Recipe",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Context", "ContractViolation", "DataError", "Declined", "Edit", "Exact", "Findings", "KernelError", "Lossy",
    "Model", "ModelError", "OnnxOptError", "Pass", "Recipe", "RecipeError", "load", "optimize", "save", "session",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for and nothing else: `import onnxopt` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
