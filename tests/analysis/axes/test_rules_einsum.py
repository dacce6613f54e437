"""Einsum: one letter, one axis."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxopt.analysis.axes import Channels, groups
from onnxopt.analysis.axes.rules_einsum import parsed
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]
Sandwich = Callable[..., tuple[Any, Any]]

SIZE = 8


@pytest.mark.parametrize(
    ("equation", "ranks", "terms", "result"),
    [
        ("ij,jk->ik", [2, 2], ["i j", "j k"], "i k"),
        ("i j , j k", [2, 2], ["i j", "j k"], "i k"),
        ("ba,ac", [2, 2], ["b a", "a c"], "b c"),
        ("...ij,...jk->...ik", [4, 3], ["..1 ..0 i j", "..0 j k"], "..1 ..0 i k"),
        ("...ij,jk", [3, 2], ["..0 i j", "j k"], "..0 i k"),
        ("ii->i", [2], ["i i"], "i"),
        ("ij->", [2], ["i j"], ""),
    ],
)
def test_letters(equation: str, ranks: list[int], terms: list[str], result: str) -> None:
    found, given = parsed(equation, ranks)
    assert [" ".join(term) for term in found] == terms
    assert " ".join(given) == result


def test_letters_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="does not name 3 axes"):
        parsed("ij->i", [3])


@pytest.mark.parametrize(
    ("equation", "shape", "units"),
    [
        ("bnc,cd->bnd", (SIZE, 6), [SIZE, 6]),
        ("bnc,dc->bnd", (6, SIZE), [SIZE, 6]),
        ("...c,cd", (SIZE, 6), [SIZE, 6]),
        ("bnc,c->bnc", (SIZE,), [SIZE]),
        ("bnc,cc->bnc", (SIZE, SIZE), [SIZE]),
    ],
)
def test_products_with_weights(
    equation: str, shape: tuple[int, ...], units: list[int], sandwich: Sandwich, assert_exact: Check
) -> None:
    def middle(sketch: Sketch, x: str) -> str:
        return sketch.node("Einsum", x, sketch.random("middle.weight", *shape), equation=equation)

    model, feeds = sandwich(middle, rows=units[-1], tokens=True)
    found = groups(assert_exact(model, feeds))
    assert [(len(group.units), group.exact) for group in found] == [(each, True) for each in units]


def test_a_letter_that_is_summed_in_one_operand(sandwich: Sandwich, assert_exact: Check) -> None:
    model, feeds = sandwich(lambda s, x: s.node("Einsum", x, equation="bnc->bn"), tokens=True, rows=0, rank=2)
    assert [(len(g.units), g.exact) for g in groups(assert_exact(model, feeds))] == [(SIZE, True)]


def test_heads(sandwich: Sandwich, assert_exact: Check) -> None:
    """Attention with a weight of [width, heads, size] each."""

    def middle(sketch: Sketch, x: str) -> str:
        q, k, v = (
            sketch.node("Einsum", x, sketch.random(f"{name}.weight", SIZE, 4, 2), equation="bnc,chs->bnhs")
            for name in "qkv"
        )
        scores = sketch.node("Softmax", sketch.node("Einsum", q, k, equation="bihs,bjhs->bhij"), axis=-1)
        context = sketch.node("Einsum", scores, v, equation="bhij,bjhs->bihs")
        return sketch.node("Reshape", context, sketch.weight("flat", np.array([0, 0, -1])))

    model, feeds = sandwich(middle, tokens=True)
    found = [(len(group.units), group.kind) for group in groups(assert_exact(model, feeds))]
    assert (4, "heads") in found
    assert (SIZE, "neurons") in found
