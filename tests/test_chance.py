"""Seeds: independent noises stay independent, and the same node draws the same in every file."""

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.chance import seeded
from onnxopt.model import load

HEAD = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
X = {"x": np.zeros((4, 256), np.float32)}


def written(path: Path, body: str, out: str = "float[4, 256] y", functions: str = "") -> Path:
    source = f"{HEAD} g (float[4, 256] x) => ({out}) {body} {functions}"
    path.write_bytes(onnx.parser.parse_model(source).SerializeToString())
    return path


def outputs(folder: Path, body: str, **options: str) -> dict[str, np.ndarray]:
    found = seeded(written(folder / "m.onnx", body, **options), folder / "copy.onnx")
    return run(open_session(found.path, SessionMode.REFERENCE), X)


def test_two_noises_do_not_cancel(tmp_path: Path) -> None:
    two = "{ n = RandomNormalLike (x)  m = RandomNormalLike (x)  s = Sub (n, m)  y = Add (x, s) }"
    difference = outputs(tmp_path, two)["y"]
    assert difference.std() == pytest.approx(2**0.5, rel=0.1)


def test_a_node_draws_the_same_wherever_it_stands(tmp_path: Path) -> None:
    one = outputs(tmp_path, "{ n = RandomNormalLike (x)  m = RandomUniformLike (x)  y = Add (n, m) }")
    other = outputs(tmp_path, "{ z = Neg (x)  m = RandomUniformLike (z)  n = RandomNormalLike (x)  y = Add (n, m) }")
    assert np.array_equal(one["y"], other["y"])


def test_seeds_are_those_of_every_process(tmp_path: Path) -> None:
    """Python's own hash differs from process to process; a resumed run has to draw what the killed one drew."""
    found = seeded(written(tmp_path / "m.onnx", "{ y = RandomNormalLike (x) }"), tmp_path / "copy.onnx")
    assert [node.attributes["seed"].as_float() for node in load(found.path).nodes()] == [3911253.0]


def test_keys_and_reach(tmp_path: Path) -> None:
    body = "{ n = RandomNormalLike %s (x)  y = Add (x, n)  z = Neg (x) }"
    found = seeded(written(tmp_path / "a.onnx", body % "", "float[4, 256] y, float[4, 256] z"), tmp_path / "copy.onnx")
    assert (found.keys, found.outputs, found.draws) == ({"n 1"}, {"y"}, True)
    given = seeded(written(tmp_path / "b.onnx", body % "<seed = 1.0>"), tmp_path / "none.onnx")
    assert (given.path, given.keys, given.draws) == (tmp_path / "b.onnx", frozenset(), True)
    none = seeded(written(tmp_path / "c.onnx", "{ y = Neg (x) }"), tmp_path / "none.onnx")
    assert (none.path, none.draws) == (tmp_path / "c.onnx", False)
    assert not (tmp_path / "none.onnx").exists()


def test_training_dropout_has_whole_seeds(tmp_path: Path) -> None:
    body = "<float r = {0.5}, bool t = {1}> { o = Cos (x)  y = Dropout (o, r, t) }"
    one, other = outputs(tmp_path, body), outputs(tmp_path, body)
    assert np.array_equal(one["y"], other["y"])
    assert 0.4 < np.mean(one["y"] == 0) < 0.6


def test_inside_functions_and_branches(tmp_path: Path) -> None:
    function = '<domain: "local", opset_import: ["" : 17]> f (a) => (b) { n = RandomNormalLike (a)  b = Add (a, n) }'
    path = written(tmp_path / "f.onnx", "{ y = local.f (x) }", functions=function)
    found = seeded(path, tmp_path / "copy.onnx")
    assert found.outputs == {"y"}
    assert len(found.keys) == 1
    branch = "g () => (float[4, 256] %s) { %s = RandomNormalLike (x) }"
    branches = f"then_branch = {branch % ('a', 'a')}, else_branch = {branch % ('b', 'b')}"
    body = f"{{ c = Constant <value = bool {{1}}> ()  i = If <{branches}> (c)  y = Neg (i) }}"
    found = seeded(written(tmp_path / "i.onnx", body), tmp_path / "copy.onnx")
    assert (found.outputs, found.keys) == ({"y"}, {"a 1", "b 1"})
    assert all("seed" in node.attributes for node in load(found.path).nodes() if "Random" in node.op_type)
