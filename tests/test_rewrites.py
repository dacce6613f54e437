"""Level `structure`: each rewrite's old and new nodes are run on random inputs, without a session of the whole."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import onnxopt.pipeline
from onnxopt import models
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.edit import Edit
from onnxopt.errors import ContractViolation
from onnxopt.model import Model, load
from onnxopt.passing import Pass, make
from onnxopt.pipeline import Settings
from onnxopt.recipe import build
from onnxopt.rewrites import Rewrites

HELPERS = Path(__file__).parent / "helpers"


@pytest.fixture(scope="module", autouse=True)
def worker() -> Iterator[Worker]:
    sys.path.insert(0, str(HELPERS))
    with Worker() as shared:
        yield shared
    sys.path.remove(str(HELPERS))


def watched(model: Model, pass_: Pass, tolerance: float | None = 1e-4, **options: Any) -> Rewrites:
    context = RunContext(model, sizes={v.name: (2, 1, 8, 8) for v in model.signature.inputs})
    watch = Rewrites(model, context.shapes, context.evaluate, np.random.default_rng(0), tolerance, **options)
    model.watcher = watch
    pass_.run(model, context)
    return watch


def test_a_right_rewrite_passes() -> None:
    watch = watched(load(models.path("digits-cnn")), make("fold-batchnorm"))
    assert watch.broken == []
    assert watch.checked == 8
    assert watch.unchecked == 0
    assert watch.drift < 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [("wrong-rewrite", {}), ("wrong-rewrite", {"op": "Sigmoid"}), ("wrong-weight", {"node": "blocks.1.conv2/Conv"})],
)
def test_a_wrong_rewrite_is_caught(name: str, options: dict[str, Any]) -> None:
    watch = watched(load(models.path("digits-cnn")), make(name, options))
    assert watch.checked > 0
    assert "relative L2" in watch.broken[0]


def test_a_rewrite_of_a_lossy_pass_is_measured() -> None:
    watch = watched(load(models.path("digits-cnn")), make("lossy-scale", {"node": "head/Gemm", "factor": 0.9}), None)
    assert watch.broken == []
    assert watch.drift == pytest.approx(0.1, rel=0.5)


def test_the_number_of_rewrites_run_is_bounded() -> None:
    watch = watched(load(models.path("digits-cnn")), make("wrong-rewrite", {"op": "Relu"}), limit=3)
    assert (watch.checked, watch.unchecked) == (3, 4)


def test_what_cannot_be_run_is_counted() -> None:
    model = load(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.nobody": 1]> g (float[2] x) => (float[2] y) '
        "{ z = com.nobody.Mystery (x)  y = Relu (z) }"
    ))  # fmt: skip
    watch = watched(model, make("wrong-rewrite"))
    assert (watch.checked, watch.unchecked) == (0, 1)


def test_a_rewrite_that_puts_an_output_s_name_elsewhere() -> None:
    """The heir of a graph output takes its name over while the edit is applied."""
    model = load(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { a = Neg (x)  y = Identity (a) }'
    ))  # fmt: skip
    first, last = list(model.graph)
    watch = Rewrites(model, RunContext(model).shapes, RunContext(model).evaluate, np.random.default_rng(0), 1e-4)
    model.watcher = watch
    edit = Edit("through")
    edit.rewire(last.outputs[0], first.outputs[0])
    edit.remove(last)
    model.apply(edit)
    assert (watch.checked + watch.unchecked, watch.broken) == (1, [])
    node = ir.node("Abs", [model.graph.inputs[0]])
    edit = Edit("wrong")
    edit.insert([node], after=first)
    edit.rewire(first.outputs[0], node.outputs[0])
    edit.remove(first)
    model.apply(edit)
    assert watch.checked >= 1
    assert watch.broken


def test_a_whole_run_at_level_structure(tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxopt.pipeline, "Worker", lambda threads: nullcontext(worker))

    def run(*passes: Any) -> Any:
        recipe = build({"passes": list(passes), "verify": "structure"})
        return onnxopt.pipeline.run(models.path("digits-cnn"), recipe, tmp_path / "out.onnx", settings=Settings())

    report = run("clean").report
    assert report.status.startswith("UNVERIFIED END TO END")
    assert not report.verified
    notes = [note for step in report.steps for note in step.notes if "rewrites run" in note]
    assert [note for note in notes if note.startswith("fold-batchnorm: 8 rewrites run")], notes
    before = (tmp_path / "out.onnx").read_bytes()
    with pytest.raises(ContractViolation, match="rewrite"):
        run("wrong-rewrite")
    assert (tmp_path / "out.onnx").read_bytes() == before
