"""Patterns that name things."""

import pytest

from onnxopt import globs


@pytest.mark.parametrize(
    ("pattern", "names", "covered"),
    [
        ("conv?", ["conv1"], True), ("conv?", ["conv12", "Conv1"], False), ("*", [""], True), ("*", [], False),
        ("re:v1", ["conv12"], True), ("re:^v1", ["conv12"], False), ("conv[12]", ["dense", "conv2"], True),
    ],
)  # fmt: skip
def test_what_they_cover(pattern: str, names: list[str], covered: bool) -> None:
    assert globs.matches(pattern, names) is covered


def test_names() -> None:
    assert globs.is_name("conv.1/weight")
    assert not any(map(globs.is_name, ("conv*", "conv?", "conv[1]", "re:conv")))


def test_what_is_no_regular_expression() -> None:
    for good in ("(", "re:(a)"):
        globs.check(good)
    with pytest.raises(ValueError, match=r"'re:\(' is no regular expression: .*unterminated"):
        globs.check("re:(")
