"""`onnxopt inspect`: facts about any model that can be read."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt import models
from onnxopt.cli import inspect
from onnxopt.models import builders
from onnxopt.models.builders import Sketch

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


def test_macs_of_open_sizes(cli: Cli, digits: Path) -> None:
    def found(*shapes: str, model: str | Path = "cnn.onnx") -> dict[str, Any]:
        given = [part for shape in shapes for part in ("--shape", shape)]
        content: dict[str, Any] = json.loads(cli("inspect", model, *given, "--json").out)
        return content

    one = found()
    assert one["macs"] == found("images:1,1,8,8")["macs"] > 0
    assert (one["macs_assume_batch_of_1"], one["macs_at"]) == (True, {"images": [1, 1, 8, 8]})
    assert found("images:2,1,8,8")["macs_assume_batch_of_1"] is False
    assert re.search(r"^MACs +\S+ M for a batch of 1 \(--shape says otherwise\)$", cli("inspect", "cnn.onnx").out, re.M)
    gpt = found(model=models.path("byte-gpt"))
    assert (gpt["macs"], gpt["macs_need_shape"]) == (None, "tokens:1,SEQUENCE")
    assert found("tokens:1,64", model=models.path("byte-gpt"))["macs"] > 64 * gpt["parameters"] / 2
    assert re.search(
        r"^MACs +unknown: give --shape tokens:1,SEQUENCE$", cli("inspect", models.path("byte-gpt")).out, re.M
    )


def test_macs_of_what_is_known(cli: Cli, folder: Path) -> None:
    """The size of one of two branches is open and has no name, then its rank as well."""
    sketch = Sketch()
    for name, rows in (("x", None), ("z", 5)):
        value = sketch.input(name, [1, rows, 4])
        sketch.output(sketch.node("MatMul", value, sketch.random(f"w{name}", 4, 3)), [1, rows, 3])
    onnx.save(sketch.model(), "two.onnx")
    out = cli("inspect", "two.onnx").out
    assert re.search(r"^MACs +60, and 1 node of unknown size: give --shape x:1,SIZE,4$", out, re.M)
    assert re.search(r"^MACs +144$", cli("inspect", "two.onnx", "--shape", "x:1,7,4").out, re.M)
    proto = onnx.load("two.onnx")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, "rank.onnx")
    assert "give --shape INPUT:SIZE,SIZE,..." in cli("inspect", "rank.onnx").out
    wrong = cli("inspect", "two.onnx", "--shape", "x:1,7,5")
    assert (wrong.code, wrong.err) == (3, "error: input 'x' takes float32 [1, ?, 4], the shape given is [1, 7, 5]\n")


def test_text(cli: Cli, digits: Path) -> None:
    ran = cli("inspect", "cnn.onnx")
    assert (ran.code, ran.err) == (0, "")
    for part in ("inputs", "outputs", "operators", "largest weights", "dynamic dimensions", "images", "Conv"):
        assert part in ran.out


def constant(name: str, *shape: int) -> onnx.NodeProto:
    """A Constant node of ones."""
    tensor = onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
    return onnx.helper.make_node("Constant", [], [name], value=tensor)


def test_weights_in_constants_of_graphs_subgraphs_and_functions(cli: Cli, folder: Path) -> None:
    helper, float_ = onnx.helper, onnx.TensorProto.FLOAT
    node, info = helper.make_node, helper.make_tensor_value_info
    branches = {
        f"{branch}_branch": helper.make_graph(
            [constant(f"{branch}_w", 3, size), node("MatMul", ["h", f"{branch}_w"], [f"{branch}_y"])],
            branch, [], [info(f"{branch}_y", float_, None)],
        )
        for branch, size in (("then", 5), ("else", 6))
    }  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    scaled = helper.make_function(
        "mine", "Scaled", ["a"], ["b"], [constant("f_w", 7, 3), node("MatMul", ["a", "f_w"], ["b"])], opsets[:1]
    )
    graph = helper.make_graph(
        [
            constant("main_w", 4, 7), node("MatMul", ["x", "main_w"], ["g"]),
            node("Scaled", ["g"], ["h"], domain="mine"), node("If", ["c"], ["y"], **branches),
        ],
        "g", [info("x", float_, [None, 4]), info("c", onnx.TensorProto.BOOL, [])], [info("y", float_, None)],
    )  # fmt: skip
    model = helper.make_model(graph, functions=[scaled], opset_imports=opsets, ir_version=8)
    onnx.save(model, "constants.onnx")
    found = json.loads(cli("inspect", "constants.onnx", "--json").out)
    sizes = {"main_w": 28, "f_w": 21, "else_w": 18, "then_w": 15}
    assert {weight["name"]: weight["bytes"] for weight in found["largest_weights"]} == {
        name: 4 * size for name, size in sizes.items()
    }
    assert (found["parameters"], found["weight_bytes"]) == (sum(sizes.values()), 4 * sum(sizes.values()))
    assert found["loads"] is True
    assert "main_w  FLOAT  [4, 7]  112 B" in cli("inspect", "constants.onnx").out


def test_dynamic_dimensions_without_a_name(cli: Cli, folder: Path) -> None:
    sketch = Sketch()
    x, state = sketch.input("x", [None, None, "t"]), sketch.input("state", [2, None])
    sketch.output(sketch.node("Relu", x), [None, None, "t"])
    sketch.output(sketch.node("Relu", state), [2, None])
    onnx.save(sketch.model(), "open.onnx")
    found = json.loads(cli("inspect", "open.onnx", "--json").out)
    assert found["dynamic_dimensions"] == ["t", "x[0]", "x[1]", "state[1]"]
    assert re.search(r"^dynamic dimensions +t, x\[0\], x\[1\], state\[1\]$", cli("inspect", "open.onnx").out, re.M)


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


def test_groups(cli: Cli, digits: Path) -> None:
    ran = cli("inspect", "cnn.onnx", "--groups", "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out, parse_constant=pytest.fail)
    assert found["parameters"] == json.loads(cli("inspect", "cnn.onnx", "--json").out)["parameters"]
    assert found["groups"]
    for group in found["groups"]:
        makes = [member["entries_per_unit"] for member in group["members"] if not member["reads"]]
        assert group["channels_per_unit"] == max(makes) >= 1
        assert group["units"] > 1
        assert group["exact"] is (group["reason"] is None)
        assert 0 < group["parameters_per_unit"] * group["units"] <= found["parameters"]
    weights = {weight.name: weight for weight in onnx.load("cnn.onnx").graph.initializer}
    for member in (member for group in found["groups"] for member in group["members"]):
        assert member["entries_per_unit"] <= weights[member["weight"]].dims[member["axis"]]
    assert sum(kind["units"] for kind in found["kinds"]) == sum(group["units"] for group in found["groups"])
    assert sum(kind["groups"] for kind in found["kinds"]) == len(found["groups"])
    assert 0 < found["prunable_share"] <= found["prunable_share_with_inexact"] <= 1
    assert all(0 < kind["parameter_share"] <= found["prunable_share_with_inexact"] for kind in found["kinds"])
    assert {key for reason in found["frozen"] for key in reason} == {"class", "why", "node", "parameters"}
    assert any(reason["why"] == "output logits of the model" for reason in found["frozen"])
    lost = [reason["parameters"] for reason in found["frozen"]]
    assert lost == sorted(lost, reverse=True)
    assert sum(lost) >= round(found["parameters"] * (1 - found["prunable_share_with_inexact"]))


def test_groups_as_text(cli: Cli, digits: Path) -> None:
    ran = cli("inspect", "cnn.onnx", "--groups")
    assert (ran.code, ran.err) == (0, "")
    for part in ("groups", "kinds", "residual", "conv", "what stays, by parameters", "output logits of the model"):
        assert part in ran.out
    assert re.search(r"^made by +kind +units +channels +parameters +exact$", ran.out, re.MULTILINE)
    assert re.search(r"^stem.weight +residual +24 +1 +\d+ +yes$", ran.out, re.MULTILINE)
    shown = cli("inspect", "tiny.onnx", "--groups").out
    assert "\ngroups\n" not in shown
    assert "input x of the model" in shown


def test_inexact_groups_are_told_with_the_reason(cli: Cli, folder: Path) -> None:
    sketch = Sketch()
    x = sketch.node("MatMul", sketch.input("x", ["n", 4]), sketch.random("w", 4, 8))
    x = sketch.node("Sub", x, sketch.node("ReduceMean", x, sketch.weight("last", np.array([-1])), keepdims=1))
    sketch.output(sketch.node("MatMul", x, sketch.random("v", 8, 2)), ["n", 2])
    onnx.save(sketch.model(), "mean.onnx")
    found = json.loads(cli("inspect", "mean.onnx", "--groups", "--json").out)
    assert (found["prunable_share"], found["prunable_share_with_inexact"]) == (0, 1)
    (group,) = found["groups"]
    assert group["exact"] is False
    assert group["reason"] in cli("inspect", "mean.onnx", "--groups").out
    assert found["kinds"] == [
        {"kind": "neurons", "groups": 1, "units": 8, "exact_units": 0, "parameter_share": 1.0}
    ]  # fmt: skip


def test_groups_have_no_sizes(cli: Cli, folder: Path) -> None:
    assert "--shape" in cli("inspect", "tiny.onnx", "--groups", "--shape", "x:1,8").refusal(2)
    assert "missing.onnx" in cli("inspect", "missing.onnx", "--groups").refusal(3)
