"""Where a run begins: the input model as a file, and digests of all that goes in, by which a run is known again."""

import hashlib
import json
from pathlib import Path

from onnxopt.inputs import Inputs
from onnxopt.model import Model
from onnxopt.reading import digest
from onnxopt.recipe import Recipe
from onnxopt.report import versions


def digests(original: Model, recipe: Recipe, inputs: Inputs) -> dict[str, str]:
    """SHA-256 of model, recipe, data and versions: two runs in which they are equal are the same run."""
    written = json.dumps(recipe.resolved(), sort_keys=True, default=str)
    path = _file(original)
    content = b"" if path else original.proto().SerializeToString(deterministic=True)
    return {
        "model": digest(path) if path else hashlib.sha256(content).hexdigest(),
        "recipe": hashlib.sha256(written.encode()).hexdigest(),
        "data": inputs.digest(),
        "versions": hashlib.sha256(json.dumps(versions()).encode()).hexdigest(),
    }


def as_file(original: Model, folder: Path) -> Path:
    """The input model's file, written into a folder where it has none."""
    path = _file(original)
    if path is None:
        path = folder / "input.onnx"
        original.save(path)
    return path.absolute()


def _file(original: Model) -> Path | None:
    """The file that the input was read from; None for a model object that was changed since, or never read from one."""
    return original.path if original.revision == 0 else None
