"""Which outputs are declared in a shape that they do not come in."""

import numpy as np
import onnx.parser
import pytest

from onnxopt.analysis.declarations import belied, disproved
from onnxopt.model import Model, load


def model(outputs: str) -> Model:
    return load(onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => ({outputs}) '
        "{ y = Neg (x)  z = Abs (x)  s = Shape (x)  r = Reshape (z, s) }"
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("declared", "false"),
    [
        ("float[N, 2] y, float[N, 2] r", []),
        ("float[A, B] y, float[A, B] r", []),
        ("float[] y, float[] r", []),
        ("float y", ["y"]),
        ("float[3, 2] y, float[3, 2] r", []),
        ("float[N] y, float[N, 2, 1] r", ["y", "r"]),
        ("float[N, 3] y, float[N, 4] r", ["y", "r"]),
        ("float[N, 2] y, float[N, 4] r", ["r"]),
    ],
)
def test_false_declarations(declared: str, false: list[str]) -> None:
    given = model(declared)
    array = np.zeros((3, 2), np.float32)
    assert belied(given, [{"y": array, "r": array}]) == false
    assert disproved(given) == false


def test_one_run_of_several_is_enough_to_belie() -> None:
    given = model("float[3, 2] y")
    assert belied(given, [{"y": np.zeros((3, 2))}, {"y": np.zeros((4, 2))}]) == ["y"]
    assert belied(given, [{"y": None}, {"y": [np.zeros(1)]}, {}]) == []
