"""Budgets as people write them: shares, amounts with units, and what is said to those who leave the unit out."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from onnxopt.errors import RecipeError
from onnxopt.pruning.budgets import KeepBytes, KeepLatency, KeepMacs, KeepParams, target
from onnxopt.validating import validated


class Options(BaseModel):
    keep_macs: KeepMacs = Field(None, description="share or amount")
    keep_params: KeepParams = Field(None, description="share or amount")
    keep_bytes: KeepBytes = Field(None, description="share or amount")
    keep_latency: KeepLatency = Field(None, description="share or amount")


def refusal(**given: Any) -> str:
    with pytest.raises(RecipeError) as error:
        validated(Options, given, "prune.")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("option", "value", "amount"),
    [
        ("keep_macs", "300M", 300e6), ("keep_macs", "1.2G", 1.2e9), ("keep_macs", " 7 k ", 7e3),
        ("keep_macs", ".5T", 5e11), ("keep_params", "25.6M", 25.6e6), ("keep_params", "1.5e2k", 150e3),
        ("keep_bytes", "40MB", 40e6), ("keep_bytes", "40MiB", 40 * 2**20), ("keep_bytes", "512B", 512),
        ("keep_latency", "12ms", 0.012), ("keep_latency", "800us", 800e-6), ("keep_latency", "1.5s", 1.5),
    ],
)  # fmt: skip
def test_amounts(option: str, value: str, amount: float) -> None:
    """Whatever there is, and written down as it was given."""
    found = validated(Options, {option: value}, "")
    assert getattr(found, option) == value
    assert found.model_dump(mode="json", exclude_defaults=True) == {option: value}
    assert target(value, 5.0) == pytest.approx(amount, rel=1e-12)


@given(st.floats(0, 1, exclude_min=True), st.floats(0, 1e12))
def test_shares(share: float, full: float) -> None:
    assert Options(keep_macs=share, keep_latency=share).keep_macs == share
    assert target(share, full) == share * full


@pytest.mark.parametrize("option", Options.model_fields)
@pytest.mark.parametrize(
    "value", [0.0, -0.5, math.nan, math.inf, 1.5, 0, 1, 7, 10**400, True, [0.5], {"share": 1}, "0M", "-1M"]
)
def test_what_is_neither(option: str, value: Any) -> None:
    assert refusal(**{option: value}).startswith(f"prune.{option}: ")


def test_a_bare_number_is_told_what_to_write() -> None:
    share = "must be the share to keep, above 0 and at most 1.0, or an amount in k, M, G, T like '300M'"
    assert refusal(keep_macs=300_000_000) == (
        f"prune.keep_macs: {share}, not 300000000; if an amount is meant, write '300M'"
    )
    assert refusal(keep_params=1) == f"prune.keep_params: {share}, not 1; to keep all write 1.0"
    assert refusal(keep_params=5) == f"prune.keep_params: {share}, not 5; 5 % is 0.05"
    assert refusal(keep_macs="50%") == f"prune.keep_macs: {share}, not '50%'; if a share is meant, write 0.5"
    assert refusal(keep_macs="0.5") == f"prune.keep_macs: {share}, not '0.5'; if a share is meant, write 0.5"
    assert refusal(keep_macs=-1) == f"prune.keep_macs: {share}, not -1"
    assert refusal(keep_macs="-5M") == f"prune.keep_macs: {share}, not '-5M'"
    assert refusal(keep_bytes=40_500_000.0).endswith("if an amount is meant, write '40.5MB'")
    assert refusal(keep_bytes=200).endswith("if an amount is meant, write '200B'")
    assert refusal(keep_macs=200).endswith("if an amount is meant, write '0.2k'")
    assert refusal(keep_latency=12).endswith("if milliseconds are meant, write '12ms'")
    assert refusal(keep_macs=0.0) == f"prune.keep_macs: {share}, not 0.0"


@pytest.mark.parametrize("value", ["0.5", "300", "300MB", "12ms", "M", "", "1,5M", "1M2", "nanM", "1e400M"])
def test_text_that_is_no_count(value: str) -> None:
    assert refusal(keep_macs=value).startswith("prune.keep_macs: ")


def test_the_units_that_there_are_are_told() -> None:
    assert refusal(keep_macs="40MB").endswith("or an amount in k, M, G, T like '300M', not '40MB'")
    assert "B, kB, KB, MB, GB, KiB, MiB, GiB like '40MB'" in refusal(keep_bytes="40M")
    assert "us, ms, s like '12ms'" in refusal(keep_latency="12")
    with pytest.raises(ValueError, match="an amount with its unit, not '12 parsecs'"):
        target("12 parsecs", 1.0)


def test_the_schema_says_what_is_allowed() -> None:
    share, amount, none = Options.model_json_schema()["properties"]["keep_bytes"]["anyOf"]
    assert share == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert amount["type"] == "string"
    assert none == {"type": "null"}
