"""`--reproduce`: the model it leaves is small, runs, and still breaks under the pass that is to blame."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest

from onnxopt import models
from onnxopt.backends.worker import Worker
from onnxopt.cli import main
from onnxopt.context import RunContext
from onnxopt.model import load
from onnxopt.passing import Pass, make, parts
from onnxopt.reproduce import reproduce

HELPERS = Path(__file__).parent / "helpers"
FOLDER = Path(models.__file__).parent


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    sys.path.insert(0, str(HELPERS))
    with Worker() as shared:
        yield shared
    sys.path.remove(str(HELPERS))


def find(pass_: Pass, name: str, folder: Path, worker: Worker, **options: Any) -> str:
    images = np.load(FOLDER / "digits.calib.npz")["images"]
    feeds = [{"images": images[:4]}, {"images": images[4:8]}]
    source = models.path(name)
    return reproduce(
        parts(pass_), source, feeds, worker, folder, lambda model: RunContext(model, worker=worker), **options
    )


def outputs(path: Path, inputs: dict[str, Any]) -> list[Any]:
    return list(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs))


def broken_by(pass_: Pass, folder: Path) -> float:
    """How far a pass moves the outputs of what `reproduce` left (inf: it does not even run)."""
    with np.load(folder / "reproduce.npz") as file:
        inputs = dict(file)
    before = outputs(folder / "reproduce.onnx", inputs)
    model = load(folder / "reproduce.onnx")
    try:
        pass_.run(model, RunContext(model))
        model.save(folder / "after.onnx")
        after = outputs(folder / "after.onnx", inputs)
    except Exception:
        return np.inf
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(a)) if np.isfinite(b).all() else np.inf
        for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "options", "model", "node"),
    [
        ("wrong-weight", {}, "digits-cnn", "blocks.1.conv2/Conv"),
        ("wrong-weight", {}, "digits-transformer", "blocks.1.up/MatMul"),
        ("transpose", {}, "digits-transformer", "blocks.0.key/MatMul"),
        ("silent", {}, "digits-cnn", "blocks.2.conv1/Conv"),
        ("lossy-scale", {"factor": 0.0}, "digits-cnn", "head/Gemm"),
        ("lossy-scale", {"factor": 0.0}, "digits-transformer", "blocks.1.value/MatMul"),
        ("nan-weight", {}, "digits-cnn", "blocks.1.conv1/Conv"),
    ],
)
def test_few_nodes_that_show_it(
    tmp_path: Path, worker: Worker, name: str, options: dict[str, Any], model: str, node: str
) -> None:
    pass_ = make(name, {"node": node, **options})
    line = find(pass_, model, tmp_path, worker)
    assert f"pass {name}" in line
    assert node in line
    small = load(tmp_path / "reproduce.onnx")
    assert len(list(small.graph)) < 10
    assert node in {each.name for each in small.graph}
    assert broken_by(pass_, tmp_path) > 1e-4
    (tmp_path / "after.onnx").unlink(missing_ok=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["reproduce.npz", "reproduce.onnx"]


def test_weights_in_external_data_come_along(tmp_path: Path, worker: Worker) -> None:
    source, folder = tmp_path / "source.onnx", tmp_path / "found"
    load(models.path("digits-cnn")).save(source, external_data=True)
    pass_ = make("wrong-weight", {"node": "blocks.1.conv2/Conv"})
    feeds = [{"images": np.load(FOLDER / "digits.calib.npz")["images"][:4]}]
    reproduce([pass_], source, feeds, worker, folder, lambda model: RunContext(model, worker=worker))
    assert sorted(file.name for file in folder.iterdir()) == ["reproduce.npz", "reproduce.onnx"]
    assert len(list(load(folder / "reproduce.onnx").graph)) < 10
    assert broken_by(pass_, folder) > 1e-4


def test_a_composite_is_bisected_to_its_part(tmp_path: Path, worker: Worker) -> None:
    line = find(make("half-wrong", {"node": "head/Gemm"}), "digits-cnn", tmp_path, worker)
    assert "pass wrong-weight" in line
    assert len(list(load(tmp_path / "reproduce.onnx").graph)) < 10


def test_a_rule_that_hits_many_nodes(tmp_path: Path, worker: Worker) -> None:
    pass_ = make("wrong-rewrite", {"op": "Sigmoid"})
    line = find(pass_, "digits-cnn", tmp_path, worker)
    assert "rule relu" in line
    assert len(list(load(tmp_path / "reproduce.onnx").graph)) == 1
    assert broken_by(pass_, tmp_path) > 1e-4


def test_a_feed_that_shows_it_is_found(tmp_path: Path, worker: Worker) -> None:
    source = tmp_path / "source.onnx"
    load(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y) '
        "{ a = Abs (x)  b = Neg (a)  c = Relu (x)  y = Sub (c, b) }"
    )).save(source)  # fmt: skip
    feeds = [{"x": np.array([[1, 2]], np.float32)}, {"x": np.array([[1, -200]], np.float32)}]
    folder = tmp_path / "found"
    line = reproduce(
        [make("wrong-rewrite")], source, feeds, worker, folder, lambda model: RunContext(model, worker=worker)
    )
    assert "nodes show it" in line
    assert len(list(load(folder / "reproduce.onnx").graph)) <= 2
    with np.load(folder / "reproduce.npz") as file:
        assert file["x"].min() == -200


def test_a_pass_that_fails_on_anything_is_shown_on_one_node(tmp_path: Path, worker: Worker) -> None:
    line = find(make("crash"), "digits-cnn", tmp_path, worker)
    assert "ZeroDivisionError" in line
    assert len(list(load(tmp_path / "reproduce.onnx").graph)) == 1


def test_what_lies_in_the_folder_stays(tmp_path: Path, worker: Worker) -> None:
    mine = {tmp_path / name for name in ("scratch.onnx", "scratch-notes.txt", ".scratch-mine", "model.onnx")}
    for file in mine:
        file.write_text("precious")
    find(make("wrong-weight", {"node": "head/Gemm"}), "digits-cnn", tmp_path, worker)
    assert {file.read_text() for file in mine} == {"precious"}
    assert set(tmp_path.iterdir()) == mine | {tmp_path / "reproduce.npz", tmp_path / "reproduce.onnx"}


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, worker: Worker) -> None:
    (tmp_path / "file").touch()
    line = find(make("wrong-weight", {"node": "head/Gemm"}), "digits-cnn", tmp_path / "file", worker)
    assert line.startswith("looking for a small model that shows it failed: ")


def test_nothing_to_show(tmp_path: Path, worker: Worker) -> None:
    assert "does not show again" in find(make("clean"), "digits-cnn", tmp_path, worker)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_decides_for_lossy_passes(tmp_path: Path, worker: Worker) -> None:
    pass_ = make("lossy-scale", {"node": "head/Gemm", "factor": 0.9})
    assert "does not show again" in find(pass_, "digits-cnn", tmp_path, worker)
    assert "head/Gemm" in find(pass_, "digits-cnn", tmp_path, worker, lossy_limit=0.01)


def test_it_ends_in_time(tmp_path: Path, worker: Worker) -> None:
    started = time.monotonic()
    pass_ = make("wrong-weight", {"node": "blocks.1.conv2/Conv"})
    line = find(pass_, "digits-cnn", tmp_path, worker, seconds=0)
    assert time.monotonic() - started < 10
    assert "28 nodes show it" in line


def test_the_command_line_says_where(
    tmp_path: Path, worker: Worker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = models.path("digits-cnn"), tmp_path / "out.onnx"
    out.write_bytes(b"old")
    arguments = ["onnxopt", "run", str(source), "-o", str(out), "-p", "wrong-weight:node=head/Gemm", "--reproduce"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    error = capsys.readouterr().err.strip().splitlines()[-1]
    folder = tmp_path / "out.onnx.reproduce"
    assert error.startswith("error: pass wrong-weight broke its contract")
    assert str(folder / "reproduce.onnx") in error
    assert out.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [out, folder]
    assert broken_by(make("wrong-weight", {"node": "head/Gemm"}), folder) > 1e-4
