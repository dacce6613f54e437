"""`onnxopt inspect`: facts about any model that can be read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxopt import models
from onnxopt.cli import inspect
from onnxopt.models import builders

Cli = Callable[..., Any]


def test_facts(cli: Cli, digits: Path) -> None:
    found = json.loads(cli("inspect", "cnn.onnx", "--shape", "images:2,1,8,8", "--json").out)
    proto = onnx.load("cnn.onnx")
    assert found["file_bytes"] == (digits / "cnn.onnx").stat().st_size
    assert [value["name"] for value in found["inputs"]] == [value.name for value in proto.graph.input]
    assert found["opsets"] == {"ai.onnx": proto.opset_import[0].version}
    assert sum(found["operators"].values()) == len(proto.graph.node)
    assert found["operators"]["Conv"] == sum(node.op_type == "Conv" for node in proto.graph.node)
    assert found["loads"] is True
    assert found["dynamic_dimensions"]
    one = json.loads(cli("inspect", "cnn.onnx", "--shape", "images:1,1,8,8", "--json").out)
    assert found["macs"] == 2 * one["macs"] > 0
    sizes = [weight["bytes"] for weight in found["largest_weights"]]
    assert sizes == sorted(sizes, reverse=True)


def test_text(cli: Cli, digits: Path) -> None:
    ran = cli("inspect", "cnn.onnx")
    assert (ran.code, ran.err) == (0, "")
    for part in ("inputs", "outputs", "operators", "largest weights", "dynamic dimensions", "images", "Conv"):
        assert part in ran.out


def test_history_of_an_optimized_file(cli: Cli, folder: Path) -> None:
    assert cli("run", "tiny.onnx", "-o", "out.onnx", "-p", "clean").code == 0
    assert [entry["pass"] for entry in json.loads(cli("inspect", "out.onnx", "--json").out)["history"]] == ["clean"]
    assert ": clean" in cli("inspect", "out.onnx").out


RARE = sorted(builders.RARE) + sorted(builders.ON_DISK)


@pytest.mark.parametrize("name", RARE)
def test_rare_models(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(inspect, "_session", lambda path: {
        "loads": False, "why_not": "not asked", "resident_bytes": None, "load_seconds": None,
    })  # fmt: skip
    model = builders.RARE[name]() if name in builders.RARE else builders.ON_DISK[name](folder)
    onnx.save(model, "rare.onnx")
    ran = cli("inspect", "rare.onnx", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out, parse_constant=pytest.fail)
    assert sum(found["operators"].values()) >= len(model.graph.node)
    inspect._show(found)
    assert "rare.onnx" in capsys.readouterr().out


@pytest.mark.parametrize("name", models.names())
def test_models_that_ship(cli: Cli, name: str) -> None:
    ran = cli("inspect", models.path(name))
    assert ran.code == 0, ran.err
    assert "ONNX Runtime loads it" in ran.out


@pytest.mark.slow
def test_zoo(cli: Cli, zoo: Path) -> None:
    for path in sorted(zoo.glob("*.onnx")):
        ran = cli("inspect", path, "--json")
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["loads"] is True
