"""`onnxopt doctor`."""

import json
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest

Cli = Callable[..., Any]


def test_what_the_machine_can_do(cli: Cli) -> None:
    ran = cli("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert onnxruntime.__version__ in ran.out
    found = json.loads(cli("doctor", "--json").out, parse_constant=pytest.fail)
    assert found["target"]["name"] in {"cpu", "cuda"}
