"""`load(save(m))` loses nothing, for onnx's own node tests and for every rare feature."""

import logging
import runpy
import shutil
import warnings
from functools import cache
from pathlib import Path

import onnx
import pytest

from onnxopt.model import load
from onnxopt.models.builders import ON_DISK, RARE

differences = runpy.run_path(str(Path(__file__).with_name("semantic.py")))["differences"]


@cache
def node_tests() -> list[onnx.ModelProto]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case.model for case in collect_testcases(None) if case.model is not None]


def round_trip(source: onnx.ModelProto | Path, whole: onnx.ModelProto, folder: Path, external: bool) -> None:
    """Save what was loaded, compare, and do it again: the second file has the same bytes."""
    again = folder / "again"
    again.mkdir(exist_ok=True)
    load(source).save(folder / "m.onnx", external_data=external)
    assert differences(whole, onnx.load(folder / "m.onnx")) == []
    load(folder / "m.onnx").save(again / "m.onnx", external_data=external)
    for file in folder.glob("m.onnx*"):
        assert (again / file.name).read_bytes() == file.read_bytes()
    for file in (*folder.glob("m.onnx*"), *again.iterdir()):
        file.unlink()


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", RARE)
def test_rare_features(name: str, external: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = RARE[name]()
    before = onnx.ModelProto.FromString(model.SerializeToString())
    with caplog.at_level(logging.INFO):
        round_trip(model, model, tmp_path, external)
    assert caplog.text == ""
    assert differences(before, model) == [], "loading changed the message it was given"


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", ON_DISK)
def test_data_files(name: str, external: bool, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    onnx.save(ON_DISK[name](source), source / "m.onnx")
    round_trip(source / "m.onnx", onnx.load(source / "m.onnx"), out, external)
    shutil.rmtree(source)


def test_some_node_tests(tmp_path: Path) -> None:
    for model in node_tests()[::13]:
        round_trip(model, model, tmp_path, external=False)


@pytest.mark.slow
@pytest.mark.parametrize("external", [False, True])
def test_all_node_tests(external: bool, tmp_path: Path) -> None:
    assert len(node_tests()) > 1500
    for model in node_tests():
        round_trip(model, model, tmp_path, external)


def test_a_loss_shows() -> None:
    model = RARE["metadata-everywhere"]()
    for change in ("metadata_props", "opset_import", "functions", "producer_name"):
        less = onnx.ModelProto.FromString(model.SerializeToString())
        less.ClearField(change)
        assert differences(model, less), change
    less = onnx.ModelProto.FromString(model.SerializeToString())
    less.graph.initializer[0].raw_data = bytes(len(less.graph.initializer[0].raw_data))
    assert differences(model, less)
    less = onnx.ModelProto.FromString(model.SerializeToString())
    less.graph.node[0].ClearField("metadata_props")
    assert differences(model, less)
