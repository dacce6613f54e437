"""Model and report come together or not at all, whichever of them cannot be written."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxopt import models
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.publish import check_output, check_report, present_digest, publish, report_name
from onnxopt.reading import digest
from onnxopt.report import Facts, Report, total_bytes


def report(file_bytes: int | None, digest: str | None) -> Report:
    facts = Facts(1, 17, 1, 4, None, file_bytes, digest)
    return Report(
        verified=True, status="fine", before=facts, after=facts, recipe={"passes": ["clean"]}, output="out.onnx"
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def model() -> Model:
    return load(models.path("digits-cnn"))


@pytest.mark.parametrize("external", [False, True])
def test_the_report_speaks_of_what_is_written(tmp_path: Path, model: Model, external: bool) -> None:
    made = publish(model, tmp_path / "out.onnx", tmp_path, report, external=external, write=True)
    names = {"out.onnx", "report.json", "report.recipe.yaml"} | ({"out.onnx.data"} if external else set())
    assert content(tmp_path).keys() == names
    assert (made.after.digest, made.after.file_bytes) == (
        digest(tmp_path / "out.onnx"),
        total_bytes(tmp_path / "out.onnx"),
    )
    before = content(tmp_path)
    again = publish(model, tmp_path / "out.onnx", tmp_path, report, external=external, write=False)
    assert again == made
    assert content(tmp_path) == before


def test_without_an_output_or_without_a_report(tmp_path: Path, model: Model) -> None:
    assert publish(model, None, tmp_path / "r", report, external=False, write=False).after.digest is None
    assert content(tmp_path).keys() == {"r/report.json", "r/report.recipe.yaml"}
    publish(model, tmp_path / "out.onnx", None, report, external=False, write=True)
    assert "out.onnx" in content(tmp_path)
    assert "report.json" not in content(tmp_path)


def test_a_report_is_never_put_in_the_place_of_another(tmp_path: Path, model: Model) -> None:
    assert report_name(tmp_path, tmp_path / "a.onnx") == "report"
    for name, expected in (("a", "report"), ("b", "b.report"), ("a", "report"), ("b", "b.report")):
        output = tmp_path / f"{name}.onnx"
        assert report_name(tmp_path, output) == expected

        def of_it(file_bytes: int | None, digest: str | None, output: Path = output) -> Report:
            return replace(report(file_bytes, digest), output=output.name)

        publish(model, output, tmp_path, of_it, external=False, write=True)
        assert json.loads((tmp_path / f"{expected}.json").read_text())["output"] == output.name
    (tmp_path / "report.json").unlink()
    assert report_name(tmp_path, tmp_path / "b.onnx") == "b.report", "where it is already"
    assert report_name(tmp_path, tmp_path / "c.onnx") == "report"
    assert report_name(tmp_path, None) == "report"


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", full)


def no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_text
    monkeypatch.setattr(
        Path, "write_text", lambda self, *a, **k: full() if "recipe" in self.name else real(self, *a, **k)
    )


def report_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.recipe.yaml").unlink()
    (tmp_path / "report.recipe.yaml").mkdir()


def no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("fault", [no_report, no_recipe, report_is_a_folder, no_model])
def test_a_fault_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model, fault: Callable[..., None], external: bool
) -> None:
    for name in ("out.onnx", "report.json", "report.recipe.yaml"):
        (tmp_path / name).write_bytes(b'{"output": "out.onnx"}')
    fault(tmp_path, monkeypatch)
    before = content(tmp_path)
    with pytest.raises(ModelError, match="cannot write"):
        publish(model, tmp_path / "out.onnx", tmp_path, report, external=external, write=True)
    assert content(tmp_path) == before


def test_what_is_there(tmp_path: Path, model: Model) -> None:
    assert present_digest(tmp_path / "out.onnx") == ""
    (tmp_path / "out.onnx").write_bytes(b"junk")
    assert present_digest(tmp_path / "out.onnx") == "damaged"
    model.save(tmp_path / "out.onnx")
    assert present_digest(tmp_path / "out.onnx") == digest(tmp_path / "out.onnx")


def test_what_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_output(tmp_path / "out.onnx")
    check_report(tmp_path / "new" / "folder")
    with pytest.raises(ModelError, match="it is a folder"):
        check_output(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        check_output(tmp_path / "no" / "out.onnx")
    with pytest.raises(ModelError, match="is not a folder that can be written"):
        check_report(tmp_path / "file" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
