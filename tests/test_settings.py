"""Amounts of memory as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.errors import RecipeError
from onnxopt.settings import DEFAULT, Settings, parse_bytes


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (1, 1), ("1", 1), ("512 B", 512), ("3K", 3 * 1024), ("512M", 2**29), ("2G", 2**31), ("1T", 2**40),
        (" 2G ", 2**31), ("2g", 2**31),
        ("1.5GiB", 3 * 2**29), ("4 MiB", 2**22), ("2KiB", 2048), ("0.25K", 256), (2**50, 2**50),
    ],
)  # fmt: skip
def test_amounts(given: int | str, count: int) -> None:
    assert parse_bytes(given, "memory") == count


@given(count=st.integers(1, 10**6), unit=st.integers(0, 4))
def test_units_are_powers_of_1024(count: int, unit: int) -> None:
    found = {
        parse_bytes(f"{count}{suffix}", "") for suffix in ("KMGT"[:unit][-1:], ("", "KiB", "MiB", "GiB", "TiB")[unit])
    }
    assert found == {count * 1024**unit}


@pytest.mark.parametrize(
    "given",
    ["", "G", "2X", "2GB", "-1", "-1G", "0", "0M", "0.0001K", "1e9", "nan", "inf", "2G\n3", "9" * 400, "1..5G",
     "\u0663G", 0, -5, True, 2.0, None, [1]],
)  # fmt: skip
def test_what_is_no_amount(given: object) -> None:
    with pytest.raises(
        RecipeError, match=r"^--memory: must be bytes, or a number with K, M, G or T .*, not "
    ) as caught:
        parse_bytes(given, "--memory")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_what_has_a_part_in_the_result() -> None:
    assert DEFAULT.flags() == []
    made = Settings(shapes={"x": (1, 8), "a b": ()}, threads=2, memory=2**20, accept_loss=True, resume=True)
    assert made.flags() == ["--shape x:1,8", "--shape 'a b:'", "--accept-loss", "--threads 2", "--memory 1048576"]


def test_by_default_the_run_decides() -> None:
    assert DEFAULT.memory is None
