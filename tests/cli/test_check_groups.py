"""`onnxopt check-groups`: what can be removed is removed and compared; what cannot is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxopt.analysis.axes.axis import channels, vector
from onnxopt.analysis.axes.rules import RULES, Call
from onnxopt.models.builders import Sketch

Cli = Callable[..., Any]


def layers(path: str, between: str = "Tanh", sizes: tuple[int | str, int | str] = ("n", 4)) -> None:
    sketch = Sketch()
    x = sketch.node("Relu", sketch.node("MatMul", sketch.input("x", sizes), sketch.random("first", 4, 8)))
    x = sketch.node(between, sketch.node("MatMul", x, sketch.random("second", 8, 6)))
    x = sketch.node("Relu", sketch.node("MatMul", x, sketch.random("third", 6, 6)))
    sketch.output(sketch.node("MatMul", x, sketch.random("last", 6, 2)), [sizes[0], 2])
    onnx.save(sketch.model(), path)


def _turned(call: Call) -> None:
    """The wrong channels: counted from the end."""
    axes = call.axes(0)
    assert axes is not None
    ids = vector(axes[1])
    assert ids is not None
    call.give((axes[0], channels(call._engine.ledger, ids[::-1])))


@pytest.fixture
def broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file in which one of three groups goes through an operator whose rule is wrong."""
    monkeypatch.setitem(RULES, ("", "Tanh"), _turned)
    layers("three.onnx")
    return "three.onnx"


def test_a_model_that_holds(cli: Cli, digits: Path) -> None:
    ran = cli("check-groups", "cnn.onnx", "--json", "--draws", 3)
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out, parse_constant=pytest.fail)
    assert found["holds"] is True
    assert found["failures"] == []
    assert found["groups"] == len(json.loads(cli("inspect", "cnn.onnx", "--groups", "--json").out)["groups"])
    assert [draw["draw"] for draw in found["draws"]] == [0, 1, 2]
    assert all(draw["drift"] <= 1e-5 and draw["units"] > 0 for draw in found["draws"])
    assert len({draw["units"] for draw in found["draws"]}) > 1
    assert found["effect"] > 0.01
    assert found["sizes"] == {"images": [2, 1, 8, 8]}
    assert {path.name for path in digits.iterdir()} == {"cnn.onnx", "tiny.onnx", "x.npz", "calib.npz", "eval.npz"}


def test_text(cli: Cli, digits: Path) -> None:
    ran = cli("check-groups", "cnn.onnx", "--draws", 2)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert re.fullmatch(r"\d+ exact groups, on images \[2, 1, 8, 8\]", lines[0])
    assert re.fullmatch(r"draw +groups +units +drift", lines[2])
    assert re.match(r"holds: .*worst drift < 1e-6", lines[-1])


def test_seed_and_share(cli: Cli, folder: Path) -> None:
    layers("three.onnx")
    runs = [
        json.loads(cli("check-groups", "three.onnx", "--json", *options).out)["draws"]
        for options in ((), (), ("--seed", 1), ("--share", 0.01), ("--share", 1))
    ]
    units = [[draw["units"] for draw in run] for run in runs]
    assert len(units[0]) == 10
    assert units[0] == units[1] != units[2]
    assert units[3] == [3] * 10, "one of each group"
    assert max(units[4]) > 4 + 3 + 3
    assert max(units[4]) <= 7 + 5 + 5


@pytest.mark.parametrize("as_json", [False, True])
def test_a_wrong_rule_is_named(as_json: bool, cli: Cli, broken: str) -> None:
    ran = cli("check-groups", broken, *["--json"] * as_json)
    assert ran.code == 4
    (line,) = ran.err.splitlines()
    assert line.startswith("error: three.onnx: removing units is not the same as ignoring them in second (6 neurons")
    assert "first" not in line
    assert "third" not in line
    if not as_json:
        assert "fails: " in ran.out
        assert re.search(r"^  second: 6 neurons, joins at \w+ ", ran.out, re.MULTILINE)
        assert "Tanh Tanh_node" in ran.out
        assert "holds" not in ran.out
        return
    found = json.loads(ran.out, parse_constant=pytest.fail)
    assert found["holds"] is False
    (failure,) = found["failures"]
    (group,) = failure["groups"]
    assert (group["name"], group["kind"], group["units"]) == ("second", "neurons", 6)
    assert "Tanh Tanh_node" in group["goes_through"]
    assert failure["drift"] > 1e-4
    assert [draw["groups"] for draw in found["draws"]] == [3] + [2] * 9, "it is left out of later draws"
    assert found["draws"][0]["drift"] > 1e-4 > max(draw["drift"] for draw in found["draws"][1:])


def test_what_does_not_run_is_told(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(call: Call) -> None:
        axes = call.axes(0)
        assert axes is not None
        call.give((axes[0], call.channels(call.fresh(6))))

    monkeypatch.setitem(RULES, ("", "Tanh"), apart)
    layers("three.onnx")
    ran = cli("check-groups", "three.onnx", "--json")
    assert ran.code == 4
    found = json.loads(ran.out, parse_constant=pytest.fail)
    (failure,) = found["failures"]
    assert [group["name"] for group in failure["groups"]] == ["second"]
    assert failure["drift"] == found["draws"][0]["drift"] == "inf"
    assert failure["groups"][0]["joins_at"] == "Tanh Tanh_node"
    assert "Incompatible dimensions" in failure["why"]
    assert "fails: " + failure["why"] in cli("check-groups", "three.onnx").out


def test_nothing_to_check(cli: Cli, folder: Path) -> None:
    ran = cli("check-groups", "tiny.onnx")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("nothing to check")
    found = json.loads(cli("check-groups", "tiny.onnx", "--json").out)
    assert (found["groups"], found["draws"], found["holds"]) == (0, [], True)


def test_a_check_that_shows_little(cli: Cli, folder: Path) -> None:
    layers("three.onnx")
    proto = onnx.load("three.onnx")
    second = next(weight for weight in proto.graph.initializer if weight.name == "last")
    skip = onnx.helper.make_node("MatMul", ["x", "past"], ["around"])
    past = onnx.numpy_helper.from_array(np.ones((4, 2), np.float32), "past")
    second.CopyFrom(onnx.numpy_helper.from_array(np.full((6, 2), 1e-9, np.float32), "last"))
    proto.graph.initializer.append(past)
    proto.graph.node[-1].output[0] = "through"
    end = onnx.helper.make_node("Add", ["through", "around"], [proto.graph.output[0].name])
    proto.graph.node.extend([skip, end])
    onnx.save(proto, "little.onnx")
    assert "WARNING" in cli("check-groups", "little.onnx").out
    assert "WARNING" not in cli("check-groups", "three.onnx").out


def test_functions_are_looked_into(cli: Cli, folder: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 18, "mine" : 1]>
        g (float[n, 4] x) => (float[n, 2] y) {
            h = mine.layer(x, w)
            y = MatMul(h, v) }
        <domain: "mine", opset_import: ["" : 18]> layer (a, b) => (c) { m = MatMul(a, b) c = Relu(m) }""")
    for name, shape in (("w", (4, 8)), ("v", (8, 2))):
        array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, "functions.onnx")
    assert json.loads(cli("check-groups", "functions.onnx", "--json").out)["groups"] == 1
    (group,) = json.loads(cli("inspect", "functions.onnx", "--groups", "--json").out)["groups"]
    assert (group["name"], group["units"]) == ("w", 8)


def test_data_and_shapes(cli: Cli, folder: Path) -> None:
    layers("three.onnx", sizes=("n", 4))
    np.savez("four.npz", x=np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32))
    for options, sizes in (("--data=four.npz", [1, 4]), ("--shape=x:7,4", [7, 4]), ("--draws=1", [2, 4])):
        assert json.loads(cli("check-groups", "three.onnx", options, "--json").out)["sizes"] == {"x": sizes}


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (2, ("--share", "0"), "--share 0: must be above 0 and at most 1"),
        (2, ("--share", "1.5"), "at most 1"),
        (2, ("--share", "nan"), "at most 1"),
        (2, ("--draws", "0"), "--draws"),
        (2, ("--seed", "-1"), "--seed"),
        (2, ("--shape", "x:2,4", "--data", "x.npz"), "leave one of them out"),
        (2, ("--shape", "x"), "INPUT:SIZE"),
        (3, ("--shape", "z:2,4"), "'z'"),
        (3, ("--shape", "x:2,5"), "'x'"),
        (3, ("--data", "x.npz"), "x.npz"),
        (3, ("--data", "missing.npz"), "missing.npz"),
    ],
)
def test_bad_input(code: int, options: tuple[str, ...], words: str, cli: Cli, folder: Path) -> None:
    layers("three.onnx")
    assert words in cli("check-groups", "three.onnx", *options).refusal(code)


def test_models_that_cannot_be_checked(cli: Cli, folder: Path) -> None:
    assert "missing.onnx" in cli("check-groups", "missing.onnx").refusal(3)
    layers("wrong.onnx", sizes=("n", "m"))
    proto = onnx.load("wrong.onnx")
    wrong = onnx.numpy_helper.from_array(np.ones(5, np.float32), "five")
    proto.graph.initializer.append(wrong)
    node = onnx.helper.make_node("Add", ["x", "five"], ["shifted"])
    proto.graph.node.insert(0, node)
    proto.graph.node[1].input[0] = "shifted"
    onnx.save(proto, "wrong.onnx")
    line = cli("check-groups", "wrong.onnx").refusal(3)
    assert line.startswith("error: wrong.onnx cannot be checked: ")
    assert "--shape" in line
