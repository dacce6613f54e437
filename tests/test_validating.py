"""What is said of a wrong value: one line with the key's path, all that is allowed, and what was given."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from onnxopt.errors import RecipeError
from onnxopt.passing import Pass
from onnxopt.validating import validated


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"must be even, not {value}")
    return value


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    level: Literal["low", "high"] = "low"


class Opaque:
    """A type that no schema is known of."""


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    multiple: PositiveInt | Literal["auto"] = "auto"
    share: float | None = Field(None, gt=0, le=1)
    count: NonNegativeInt | None = None
    bits: Literal[2, 4, 8] = 4
    kinds: tuple[Literal["heads", "conv"], ...] = ()
    sizes: dict[str, PositiveInt] = {}
    name: str = Field("x", min_length=1)
    form: str = Field("1.2", pattern=r"^\d+\.\d+$")
    inner: Inner | None = None
    either: Inner | PositiveInt = 1
    even: Annotated[int, AfterValidator(_even)] | Literal["none"] = 2
    even_last: Literal["none"] | Annotated[int, AfterValidator(_even)] = 2
    flag: bool = False
    few: list[int] = Field([], max_length=1)


CASES: dict[str, tuple[Any, str]] = {
    "multiple": ("foo", "must be a whole number above 0 or 'auto', not 'foo'"),
    "multiple ": (0, "must be a whole number above 0 or 'auto', not 0"),
    "multiple  ": ("auot", "must be a whole number above 0 or 'auto', not 'auot'; did you mean auto?"),
    "share": (2, "must be a number above 0 and at most 1, not 2"),
    "share ": ("much", "must be a number above 0 and at most 1, not 'much'"),
    "count": (-1, "must be a whole number of at least 0, not -1"),
    "bits": (3, "must be 2, 4 or 8, not 3"),
    "kinds": (3, "must be a list, not 3"),
    "name": ("", "must be text that is not empty, not ''"),
    "form": ("one", r"must be text of the form ^\d+\.\d+$, not 'one'"),
    "inner": (3, "must be a mapping, not 3"),
    "either": ("a", "must be a mapping or a whole number above 0, not 'a'"),
    "even": (3, "must be even, not 3"),
    "even_last": (3, "must be even, not 3"),
    "flag": ("perhaps", "must be true or false, not 'perhaps'"),
}


@pytest.mark.parametrize("key", CASES)
def test_one_line_says_what_is_allowed(key: str) -> None:
    value, line = CASES[key]
    assert refusal(**{key.strip(): value}) == f"p.{key.strip()}: {line}"


def refusal(cls: type[BaseModel] = Options, **given: Any) -> str:
    with pytest.raises(RecipeError) as error:
        validated(cls, given, "p.")
    return str(error.value)


def test_paths_lead_into_lists_mappings_and_alternatives() -> None:
    assert refusal(kinds=["heads", "con"]) == "p.kinds.1: must be 'heads' or 'conv', not 'con'; did you mean conv?"
    assert refusal(sizes={"a": 0}) == "p.sizes.a: must be a whole number above 0, not 0"
    assert refusal(inner={"level": "hgh"}) == "p.inner.level: must be 'low' or 'high', not 'hgh'; did you mean high?"
    assert refusal(either={"level": 3}) == "p.either.level: must be 'low' or 'high', not 3"
    assert refusal(inner={"levle": 3}) == "unknown key p.inner.levle; did you mean level? known keys: level"
    assert refusal(either={"levle": 3}).startswith("unknown key p.either.levle; did you mean level?")


def test_what_a_schema_does_not_say_all_about() -> None:
    assert refusal(few=[1, 2]) == "p.few: list should have at most 1 item after validation, not 2, not [1, 2]"

    class Strange(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        thing: Opaque

    assert refusal(Strange, thing=3).startswith("p.thing: input should be an instance of Opaque")
    assert refusal(Strange) == "p.thing: is missing"


class Listing(Pass):
    """Options that take lists, and those that do not."""

    names: tuple[str, ...] = ()
    counts: list[int] | None = None
    either: tuple[int, ...] | int = 1


def test_a_single_value_is_a_list_of_one() -> None:
    made = validated(Listing, {"names": "a*", "counts": 3, "either": 3}, "p.")
    assert (made.names, made.counts, made.either) == (("a*",), [3], 3)
    assert validated(Listing, {"names": ["a", "b"], "counts": None}, "p.").names == ("a", "b")
    assert Listing(names="a") == Listing(names=("a",))  # type: ignore[arg-type]
    assert refusal(Listing, names={"a": 1}) == "p.names: must be a list, not {'a': 1}"
    assert refusal(Listing, names=3) == "p.names.0: must be text, not 3"
