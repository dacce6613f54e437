"""`onnxopt.optimize`: every form of model, passes and data; results in memory and on disk; errors by class."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxopt
from onnxopt import ContractViolation, DataError, ModelError, RecipeError, pipeline
from onnxopt.models.builders import Sketch
from onnxopt.passing import make
from onnxopt.settings import Settings

ROWS = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
QUANTIZE = {"quantize-weights": {"bits": 4, "min_elements": 1}}


def tiny() -> onnx.ModelProto:
    sketch = Sketch()
    y = sketch.node("MatMul", sketch.input("x", ["n", 8]), sketch.random("w", 8, 8))
    sketch.output(sketch.node("Relu", sketch.node("Identity", y), outputs=["y"]), ["n", 8])
    return sketch.model()


def operators(model: Any) -> list[str]:
    return [node.op_type for node in onnxopt.load(model).graph]


def feeds() -> Iterator[dict[str, Any]]:
    for start in range(0, 40, 4):
        yield {"x": ROWS[start : start + 4]}


def test_public_names() -> None:
    for name in onnxopt.__all__:
        assert getattr(onnxopt, name) is not None
    assert set(onnxopt.__all__) <= set(dir(onnxopt))
    with pytest.raises(AttributeError, match="optimise"):
        _ = onnxopt.optimise


@pytest.mark.parametrize("form", ["path", "text", "proto", "bytes", "model", "ir"])
def test_every_form_of_model(tmp_path: Path, form: str) -> None:
    onnx.save(tiny(), tmp_path / "m.onnx")
    model: Any = {
        "path": lambda: tmp_path / "m.onnx",
        "text": lambda: str(tmp_path / "m.onnx"),
        "proto": tiny,
        "bytes": tiny().SerializeToString,
        "model": lambda: onnxopt.load(tiny()),
        "ir": lambda: onnxopt.load(tiny()).ir,
    }[form]()
    result = onnxopt.optimize(model, ["clean"], verify="structure")
    assert operators(result.model) == ["MatMul", "Relu"]
    assert result.report.output is None
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_to_a_file(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    result = onnxopt.optimize(tiny(), ["clean", make("quantize-weights", QUANTIZE["quantize-weights"])],
                              output=output, data={"x": ROWS}, limits={"drift": 0.5}, target="portable")  # fmt: skip
    assert result.report.verified
    assert result.report.recipe["limits"] == {"drift": 0.5}
    assert {path.name for path in tmp_path.iterdir()} == {"out.onnx", "report.json", "report.recipe.yaml"}
    assert [entry["pass"] for entry in onnxopt.load(output).history] == ["clean", "upgrade-opset", "quantize-weights"]
    before, after = (onnxopt.session(model).run(None, {"x": ROWS})[0] for model in (_saved(tmp_path), output))
    assert 0 < np.linalg.norm(before - after) < 0.5 * np.linalg.norm(before)


def _saved(folder: Path) -> Path:
    onnx.save(tiny(), folder / "original.onnx")
    return folder / "original.onnx"


@pytest.mark.parametrize("form", ["arrays", "batches", "generator", "function", "path"])
def test_every_form_of_data(tmp_path: Path, form: str) -> None:
    np.savez(tmp_path / "x.npz", x=ROWS)
    data: Any = {"arrays": {"x": ROWS}, "batches": list(feeds()), "generator": feeds(), "function": feeds,
                 "path": tmp_path / "x.npz"}[form]  # fmt: skip
    result = onnxopt.optimize(tiny(), ["clean"], data=data, verify="structure")
    assert result.report.data["calibration"]["samples"] == 32


@pytest.mark.parametrize("form", ["list", "mapping", "recipe", "path"])
def test_every_form_of_passes(tmp_path: Path, form: str) -> None:
    (tmp_path / "r.yaml").write_text("passes: [clean]\nseed: 3\n")
    content = {"passes": ["clean"], "seed": 3}
    passes: Any = {"list": ["clean"], "mapping": content, "recipe": onnxopt.Recipe(**{"seed": 3}).model_copy(
        update={"passes": (make("clean"),)}), "path": str(tmp_path / "r.yaml")}[form]  # fmt: skip
    result = onnxopt.optimize(tiny(), passes, verify="structure")
    assert result.report.recipe["passes"] == ["clean"]
    assert result.report.recipe.get("seed", 3) == 3
    assert result.report.recipe["verify"] == {"level": "structure"}


def test_progress() -> None:
    seen: list[str] = []
    onnxopt.optimize(tiny(), ["clean"], verify="structure", progress=lambda progress: seen.append(progress.name))
    assert seen[-2:] == ["clean", "measuring and writing"]


def test_mask_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = pipeline.run

    def recorded(*given: Any, settings: Settings, **options: Any) -> Any:
        seen.append(settings.memory)
        return run(*given, settings=settings, **options)

    monkeypatch.setattr(pipeline, "run", recorded)
    data = {"x": ROWS, "mask/real": np.arange(40) % 2}
    for passes, memory in ((["clean"], "2G"), ({"passes": ["clean"], "data": "none.npz"}, 2**20)):
        result = onnxopt.optimize(tiny(), passes, data=data, mask="real", memory=memory, verify="structure")
        assert result.report.recipe["data"]["mask"] == "real"
    assert seen == [2**31, 2**20]
    with pytest.raises(RecipeError, match="memory: must be bytes"):
        onnxopt.optimize(tiny(), ["clean"], memory="lots")
    with pytest.raises(DataError, match="did you mean 'real'"):
        onnxopt.optimize(tiny(), ["clean"], data=data, mask="rael")


def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise ModelError("cannot write out.onnx: the disk is full")

    given: dict[str, Any] = {"output": tmp_path / "out.onnx", "work": tmp_path / "work", "verify": "structure"}
    with monkeypatch.context() as patch:
        patch.setattr("onnxopt.pipeline.publish", full)
        with pytest.raises(ModelError, match="the disk is full; --resume goes on after the last step"):
            onnxopt.optimize(tiny(), ["clean"], **given)
    seen: list[str] = []
    onnxopt.optimize(tiny(), ["clean"], **given, resume=True, progress=lambda progress: seen.append(progress.name))
    assert "clean" not in seen
    assert operators(tmp_path / "out.onnx") == ["MatMul", "Relu"]
    seen.clear()
    onnxopt.optimize(tiny(), ["clean"], **given, progress=lambda progress: seen.append(progress.name))
    assert "clean" in seen


NANS = np.full((4, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("error", "passes", "options"),
    [
        (RecipeError, ["claen"], {}),
        (RecipeError, [QUANTIZE, "clean"], {}),
        (RecipeError, {"passes": ["clean"], "verfy": "full"}, {}),
        (RecipeError, "no.yaml", {}),
        (RecipeError, ["clean"], {"verify": "ful"}),
        (RecipeError, ["clean"], {"target": "tpu"}),
        (RecipeError, ["clean"], {"metric": "top2"}),
        (DataError, ["clean"], {"metric": "top1"}),
        (DataError, ["clean"], {"data": {"z": ROWS}}),
        (DataError, ["clean"], {"data": {"x": NANS}}),
        (DataError, ["clean"], {"data": "no.npz"}),
        (DataError, ["clean"], {"data": 3}),
        (ModelError, ["clean"], {"output": "no/such/folder/out.onnx"}),
        (ContractViolation, [QUANTIZE], {"data": {"x": ROWS}, "limits": {"drift": 1e-6}}),
    ],
)
def test_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], passes: Any, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as raised:
        onnxopt.optimize(tiny(), passes, **({"output": "out.onnx"} | options))
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["no.onnx", b"", b"junk", 3, None])
def test_no_models(model: Any) -> None:
    with pytest.raises(ModelError):
        onnxopt.optimize(model, ["clean"])
