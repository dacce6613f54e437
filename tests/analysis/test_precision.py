"""Which outputs half precision reaches, and what the exact contract allows them."""

import onnx.parser
import pytest

from onnxopt.analysis.precision import default_tolerance
from onnxopt.model import Model, load

FULL, HALF = 1e-4, 5e-3


def model(body: str, io: str = "float[2] x", out: str = "float[2] y", opset: int = 21, functions: str = "") -> Model:
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "local" : 1]>'
    return load(onnx.parser.parse_model(f"{head} g ({io}) => ({out}) {body} {functions}"))


@pytest.mark.parametrize(
    ("body", "tolerance"),
    [
        ("{ y = Neg (x) }", FULL),
        ("{ h = Cast <to = 10> (x)  n = Neg (h)  y = Cast <to = 1> (n) }", HALF),
        ("{ h = Cast <to = 16> (x)  n = Cast <to = 1> (h)  m = Neg (n)  y = Abs (m) }", HALF),
        ("<float16[2] w = {1, 2}> { v = Cast <to = 1> (w)  y = Mul (x, v) }", FULL),
        ("<float16[2] w = {1, 2}> { u = Sqrt (w)  v = Cast <to = 1> (u)  y = Mul (x, v) }", FULL),
        (
            "<int8[2] w = {1, 2}, float16 s = {2}>"
            "{ d = DequantizeLinear (w, s)  v = Cast <to = 1> (d)  y = Mul (x, v) }",
            FULL,
        ),
        ("<float16[2] w = {1, 2}> { h = CastLike (x, w)  n = Mul (h, w)  y = CastLike (n, x) }", HALF),
        (
            "{ c = Constant <value_float = 1.0> ()  h = Cast <to = 10> (c)  k = Cast <to = 1> (h)  y = Mul (x, k) }",
            FULL,
        ),
        ("{ r = RandomNormal <dtype = 10, shape = [2]> ()  k = Cast <to = 1> (r)  y = Add (x, k) }", HALF),
    ],
)
def test_what_computes_in_half_precision(body: str, tolerance: float) -> None:
    assert default_tolerance(model(body))["y"] == tolerance


def test_each_output_for_itself() -> None:
    """One output by way of half precision and one without; types inside have to be inferred."""
    two = model(
        "<float16[2] w = {1, 2}> { h = Cast <to = 10> (x)  m = Mul (h, w)  y = Cast <to = 1> (m)  z = Neg (x) }",
        out="float[2] y, float[2] z",
    )
    found = default_tolerance(two)
    assert (found["y"], found["z"]) == (HALF, FULL)
    assert (found["x"], found["h"]) == (FULL, HALF)


def test_half_precision_at_the_border() -> None:
    assert default_tolerance(model("{ y = Neg (x) }", "float16[2] x", "float16[2] y"))["y"] == HALF
    assert default_tolerance(model("{ y = Cast <to = 1> (x) }", "float16[2] x"))["y"] == FULL
    assert default_tolerance(model("<float16[2] w = {1, 2}> { y = Identity (w) }", out="float16[2] y"))["y"] == HALF
    assert default_tolerance(model("{ y = Identity (x) }", "bfloat16[2] x", "bfloat16[2] y"))["y"] == HALF


def test_inside_control_flow() -> None:
    branch = "g () => (float[2] %s) { h = Cast <to = %d> (x)  %s = Cast <to = 1> (h) }"

    def tolerance(to: int) -> float:
        branches = f"then_branch = {branch % ('a', to, 'a')}, else_branch = {branch % ('b', 11, 'b')}"
        return default_tolerance(model(f"{{ z = If <{branches}> (c)  y = Neg (z) }}", "float[2] x, bool c"))["y"]

    assert (tolerance(10), tolerance(11)) == (HALF, FULL)


def test_inside_a_function() -> None:
    function = (
        '<domain: "local", opset_import: ["" : 21]> f (a) => (b) { h = Cast <to = %d> (a)  b = Cast <to = 1> (h) }'
    )
    found = [default_tolerance(model("{ y = local.f (x) }", functions=function % to))["y"] for to in (10, 11)]
    assert found == [HALF, FULL]


def test_long_chains() -> None:
    chain = "".join(f"v{i + 1} = Neg (v{i}) " for i in range(5000))
    found = default_tolerance(model(f"{{ v0 = Cast <to = 10> (x) {chain} y = Cast <to = 1> (v5000) }}"))
    assert found["y"] == HALF
