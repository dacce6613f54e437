"""Registries of parts: found by name, and helpful when not."""

import pytest

from onnxopt.numerics.registry import Registry


@pytest.fixture
def fruit() -> Registry[int]:
    registry: Registry[int] = Registry("fruit")
    registry.register("apple")(1)
    registry.register("pear")(2)
    return registry


def test_finds_what_was_registered(fruit: Registry[int]) -> None:
    assert [fruit.find(name) for name in fruit] == [1, 2]


def test_unknown_name_lists_the_allowed_and_the_nearest(fruit: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"^unknown fruit 'aple'; allowed: apple, pear; did you mean 'apple'\?$"):
        fruit.find("aple")


def test_no_hint_when_nothing_is_near(fruit: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"^unknown fruit 'zzz'; allowed: apple, none, pear$"):
        fruit.check("zzz", "none")


def test_check_accepts_further_names(fruit: Registry[int]) -> None:
    fruit.check("none", "none")


def test_a_taken_name_is_refused(fruit: Registry[int]) -> None:
    with pytest.raises(ValueError, match="fruit 'pear' is already registered"):
        fruit.register("pear")(3)
    assert fruit.find("pear") == 2
