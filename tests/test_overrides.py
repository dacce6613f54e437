"""Overrides: which keys and values a recipe may give, what the passes then see, and names that match nothing."""

from typing import Any, ClassVar

import pytest

from onnxopt import recipe
from onnxopt.context import RunContext
from onnxopt.errors import RecipeError
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.overrides import Idle, Override
from onnxopt.passing import Pass, make


class Rank(Pass):
    """A pass of another package, with an option of its own for single layers."""

    rank: int = 4
    exclude: tuple[str, ...] = ()
    overridable: ClassVar[tuple[str, ...]] = ("rank",)


class Both(Pass):
    """A composite."""

    def expand(self) -> list[Pass]:
        return [Rank(rank=2), make("quantize-weights")]


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [("*/lm_head*", "model/lm_head/w", True), ("*/lm_head*", "lm_head", False), ("re:norm", "a.norm.w", True),
     ("re:^norm", "a.norm.w", False), ("conv[0]", "conv0", True)],
)  # fmt: skip
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    assert Override(match=pattern).matches(name) is matches


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ({"bit": 8}, ("unknown key overrides.1.bit; did you mean bits?", "known keys: bits, block_size, match, ")),
        ({"skipp": True}, ("unknown key overrides.1.skipp; did you mean skip?",)),
        ({"include": ["a"]}, ("unknown key overrides.1.include;",)),
        ({"limits": {"drift": 1}}, ("unknown key overrides.1.limits;",)),
        ({"rank": 3}, ("unknown key overrides.1.rank;",)),
        ({"bits": "eight"}, ("overrides.1.bits: ", "2, 3, 4, 5, 6, 7 or 8, not 'eight'")),
        ({"bits": 9}, ("overrides.1.bits: ", "not 9")),
        ({"symmetric": "perhaps"}, ("overrides.1.symmetric: must be true or false",)),
        ({"skip": "perhaps"}, ("overrides.1.skip: must be true or false",)),
        ({"match": "re:("}, ("overrides.1.match", "no regular expression")),
    ],
)
def test_what_no_pass_takes_is_an_error(override: dict[str, Any], parts: tuple[str, ...]) -> None:
    overrides = [{"match": "b", "bits": 8}, {"match": "a", **override}]
    with pytest.raises(RecipeError) as error:
        recipe.build({"passes": ["clean", "quantize-weights"], "overrides": overrides})
    for part in parts:
        assert part in str(error.value)


def test_without_a_pass_that_takes_it_a_key_is_unknown() -> None:
    with pytest.raises(RecipeError, match=r"unknown key overrides\.0\.bits; known keys: match, skip$"):
        recipe.build({"passes": ["clean"], "overrides": [{"match": "a", "bits": 8}]})


def test_composites_are_opened_up_and_each_pass_checks_its_own() -> None:
    recipe.build({"passes": [Both()], "overrides": [{"match": "a", "bits": 8, "rank": 3}]})
    with pytest.raises(RecipeError, match=r"overrides\.0\.rank: must be a whole number, not 'low'"):
        recipe.build({"passes": [Both()], "overrides": [{"match": "a", "bits": 8, "rank": "low"}]})


def test_a_pass_takes_what_is_its_own() -> None:
    given = Rank(rank=2, exclude=("x",))
    assert given.overridden({"rank": 3, "bits": 8, "exclude": ("y",)}) == Rank(rank=3, exclude=("x",))
    assert given.overridden({"bits": 8}) is given


def test_later_overrides_win() -> None:
    rules = [Override.model_validate(rule) for rule in (
        {"match": "*", "bits": 8, "skip": True}, {"match": "head*", "bits": 3, "skip": False}, {"match": "h*", "a": 1},
    )]  # fmt: skip
    context = RunContext(load(_model()), overrides=rules)
    assert context.overrides("head.w") == {"bits": 3, "a": 1}
    assert context.overrides("other") == {"bits": 8}
    assert (context.skips("head.w"), context.skips("other")) == (False, True)
    assert not RunContext(load(_model())).skips("other")


def _model() -> Any:
    sketch = Sketch()
    sketch.output(sketch.node("MatMul", sketch.input("x", ["n", 8]), sketch.random("w", 8, 8)), ["n", 8])
    return sketch.model()


def test_names_that_match_nothing_are_told() -> None:
    patterns = ("MatMul_nod?", "w", "re:^weight", "x", "w*t")
    idle = Idle([Override(match=pattern) for pattern in patterns])
    idle.see(load(_model()))
    told = ("re:^weight", "x", "w*t")
    assert idle.notes() == [
        f"overrides.{patterns.index(pattern)}: {pattern!r} matches no node and no weight" for pattern in told
    ]
    idle.see(load(onnx_with_other_names()))
    assert [note.partition(":")[0] for note in idle.notes()] == ["overrides.3", "overrides.4"]


def onnx_with_other_names() -> Any:
    model = _model()
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "weights"
    return model
