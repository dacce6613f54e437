"""The recipes in `examples/` do what they say."""

from pathlib import Path

import pytest

from onnxopt import optimize, recipe
from onnxopt.models import path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_example_recipes_are_valid(file: Path) -> None:
    assert recipe.load(file).passes


def test_digits_example(tmp_path: Path) -> None:
    models = path("digits-transformer").parent
    found = optimize(
        path("digits-transformer"), recipe.load(EXAMPLES / "digits.yaml"), output=tmp_path / "out.onnx",
        data=models / "digits.calib.npz", evaluation=models / "digits.eval.npz",
    ).report  # fmt: skip
    assert found.verified
    assert found.metric is not None
    assert found.metric["drop"] <= 0.02
    assert found.after.file_bytes is not None
    assert found.before.file_bytes is not None
    assert found.after.file_bytes < 0.4 * found.before.file_bytes
