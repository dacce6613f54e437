"""Small trained models that ship with onnxopt, the scripts that made them, and builders of test graphs."""

from pathlib import Path

from onnxopt.errors import ModelError

_FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """The models that ship, e.g. `byte-gpt`, sorted."""
    return sorted(file.stem.replace("_", "-") for file in _FOLDER.glob("*.onnx"))


def path(name: str) -> Path:
    """The file of the model `name`.

    Raises:
        ModelError: there is no such model; the message lists those there are.
    """
    if name not in (known := names()):
        raise ModelError(f"no model called {name!r} ships with onnxopt: choose one of {', '.join(known) or '(none)'}")
    return _FOLDER / f"{name.replace('-', '_')}.onnx"
