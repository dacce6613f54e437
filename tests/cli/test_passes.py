"""`onnxopt passes` and `onnxopt explain PASS`."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from onnxopt.passing import PHASES, pass_class, pass_names

Cli = Callable[..., Any]


def test_every_pass_is_listed(cli: Cli) -> None:
    rows = json.loads(cli("passes", "--json").out)
    assert {row["name"] for row in rows} == set(pass_names())
    for row in rows:
        assert row["phase"] in PHASES
        assert row["contract"] in {"exact", "lossy"}
        assert row["summary"]
        assert row["name"] in cli("passes").out


@pytest.mark.parametrize("name", sorted(pass_names()))
def test_every_pass_is_explained(cli: Cli, name: str) -> None:
    ran = cli("explain", name)
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(cli("explain", name, "--json").out)
    assert found["name"] == name
    assert [option["name"] for option in found["options"]] == list(pass_class(name).model_fields)
    for option in found["options"]:
        assert option["name"] in ran.out
        assert option["description"], f"{name}.{option['name']} is not described"


def test_what_overrides_may_say_is_explained(cli: Cli) -> None:
    for name, words in {"quantize-weights": True, "upgrade-opset": False}.items():
        told = cli("explain", name).out
        assert ("overrides may set, for single nodes or weights: preset, bits, " in told) is words
        assert ("overrides may skip: no lossy pass may touch what matches" in told) is words


def test_unknown_pass(cli: Cli) -> None:
    line = cli("explain", "quantise-weights").refusal(2)
    assert line.startswith("error: no pass named 'quantise-weights'; did you mean quantize-weights")
