"""Whole runs: a pass that breaks its promise never reaches the output file, whatever the way in which it breaks it."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

import onnxopt.pipeline
import onnxopt.verify
from onnxopt import models
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.errors import ContractViolation, DataError, RecipeError
from onnxopt.measuring import Measuring
from onnxopt.model import Model, load
from onnxopt.passing import Context, Exact, Findings, Limits, Lossy, Pass, make, separated
from onnxopt.pipeline import Result, Settings
from onnxopt.recipe import build

HELPERS = Path(__file__).parent / "helpers"
FOLDER = Path(models.__file__).parent
CALIBRATION, EVALUATION = str(FOLDER / "digits.calib.npz"), str(FOLDER / "digits.eval.npz")
OLD = b"what was there before"
DEEP = "blocks.1.conv2/Conv"

TWO_INPUTS = """<ir_version: 8, opset_import: ["" : 17]>
two (float[N, 3] x, float[2, 3] other) => (float[N, 3] y)
<float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 10}>
{ scaled = Mul (x, x)  product = MatMul (scaled, w)  sum = ReduceSum <keepdims = 0> (other)  y = Add (product, sum) }"""

INTEGERS = """<ir_version: 8, opset_import: ["" : 17]>
classes (float[N, 3] x) => (int64[N] y) { z = Relu (x)  y = ArgMax <axis = 1, keepdims = 0> (z) }"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    sys.path.insert(0, str(HELPERS))
    with Worker() as shared:
        yield shared
    sys.path.remove(str(HELPERS))


@pytest.fixture(autouse=True)
def one_worker(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs of this file share a process: starting one takes longer than a run. Timing is left out too."""
    monkeypatch.setattr(onnxopt.pipeline, "Worker", lambda threads: nullcontext(worker))
    monkeypatch.setattr(Measuring, "latency", lambda self, candidate: None)


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(passes, source=digits-cnn, settings={}, **recipe) writes `tmp_path/out/out.onnx` over an old file."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.onnx").write_bytes(OLD)

    def go(
        passes: list[Any], source: Any = None, *, data: Any = CALIBRATION, settings: dict[str, Any] | None = None,
        evaluation: Any = None, metric: str | None = None, **recipe: Any,
    ) -> Result:  # fmt: skip
        if metric is not None:
            recipe["data"] = {"metric": {"kind": metric}}
        return onnxopt.pipeline.run(
            models.path("digits-cnn") if source is None else source, build({"passes": passes, **recipe}),
            folder / "out.onnx", data=data, evaluation=evaluation, settings=Settings(**(settings or {})),
        )  # fmt: skip

    return go


def untouched(folder: Path) -> bool:
    """Whether the old file is intact and nothing lies beside it."""
    out = folder / "out"
    return (out / "out.onnx").read_bytes() == OLD and sorted(out.iterdir()) == [out / "out.onnx"]


def outputs(model: Any, feeds: dict[str, Any]) -> list[Any]:
    session = ort.InferenceSession(str(model) if isinstance(model, Path) else model, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def both(folder: Path) -> tuple[list[Any], list[Any]]:
    """Outputs of what a run left, and of the original."""
    feeds = {"images": np.load(EVALUATION)["images"][:2]}
    return outputs(folder / "out" / "out.onnx", feeds), outputs(models.path("digits-cnn"), feeds)


def text(source: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(source)


BROKEN: list[tuple[Any, Any, str]] = [
    ({"wrong-weight": {"node": DEEP}}, None, "relative L2"),
    ({"transpose": {"node": "blocks.1.query/MatMul"}}, "digits-transformer", "relative L2"),
    ({"nan-weight": {"node": DEEP}}, None, "NaN"),
    ("rename-output", None, "inputs or outputs"),
    ("fix-dim", None, "inputs or outputs"),
    ("drop-input", TWO_INPUTS, "inputs or outputs"),
    ({"lossy-scale": {"node": "head/Gemm", "factor": 0.0}}, None, "the same for all"),
    ({"lossy-scale": {"node": "head/Gemm", "factor": -1.0}}, None, "cosine"),
    ({"crash": {"node": DEEP}}, None, "crashed: ZeroDivisionError"),
    ("bad-edit", None, "crashed: edit bad-edit"),
    ("invalid-graph", None, "not valid ONNX"),
    ("refused-graph", None, "does not run"),
    ("extra-noise", None, "relative L2"),
    ("off-by-one", INTEGERS, "values differ"),
    ({"silent": {"node": DEEP}}, None, "relative L2"),
    ({"half-wrong": {"node": "head/Gemm"}}, None, "relative L2"),
]


def _source(kind: str | None) -> Any:
    if kind is None:
        return None
    return models.path(kind) if kind.startswith("digits") else text(kind)


def _data(kind: str | None) -> Any:
    return CALIBRATION if kind is None or kind.startswith("digits") else "synthetic"


@pytest.mark.parametrize(("broken", "source", "why"), BROKEN)
def test_stop(run: Run, tmp_path: Path, broken: Any, source: str | None, why: str) -> None:
    with pytest.raises(ContractViolation, match=why) as caught:
        run([broken], _source(source), data=_data(source))
    assert "\n" not in str(caught.value)
    assert (broken if isinstance(broken, str) else next(iter(broken))) in str(caught.value)
    assert untouched(tmp_path)


@pytest.mark.parametrize(("broken", "source", "why"), BROKEN)
def test_skip(run: Run, tmp_path: Path, broken: Any, source: str | None, why: str) -> None:
    good = "eliminate-identity" if source is None else "clean"
    last = {"lossy-scale": {"factor": 0.999}} if source is None else "silent-but-right"
    if source == INTEGERS:
        last = "eliminate-dead"
    result = run([good, broken, last], _source(source), data=_data(source), on_violation="skip", seed=3)
    *_, before, failed, after = result.report.steps
    assert (before.name, failed.outcome) == (good, "rolled back")
    assert failed.why is not None
    assert why in failed.why
    assert after.outcome == ("unchanged" if source == INTEGERS else "changed")
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [step["outcome"] for step in written["steps"]][-2] == "rolled back"
    # What comes out is what comes out without the broken pass.
    here = tmp_path / "without.onnx"
    onnxopt.pipeline.run(
        models.path("digits-cnn") if source is None else _source(source),
        build({"passes": [good, last], "seed": 3}), here, data=_data(source),
    )  # fmt: skip
    ours, expected = load(tmp_path / "out" / "out.onnx"), load(here)
    for model in (ours, expected):
        model.ir.metadata_props.clear()
    assert ours.proto() == expected.proto()


def test_a_dead_process_is_an_answer(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxopt.verify, "run_batches", "broken_passes:die_on_numbered")
    with pytest.raises(ContractViolation, match="does not run: the worker process crashed"):
        run([{"lossy-scale": {"factor": 0.99}}])
    assert untouched(tmp_path)
    result = run([{"lossy-scale": {"factor": 0.99}}], on_violation="skip")
    assert result.report.steps[-1].outcome == "rolled back"


def test_accept_loss_lets_a_collapse_through(run: Run, tmp_path: Path) -> None:
    result = run([{"lossy-scale": {"node": "head/Gemm", "factor": 0.0}}], settings={"accept_loss": True})
    assert result.report.steps[-1].outcome == "changed"
    images = np.load(EVALUATION)["images"][:5]
    (logits,) = outputs(tmp_path / "out" / "out.onnx", {"images": images})
    assert np.ptp(logits, axis=0).max() == 0


def test_accept_loss_lets_no_nan_through(run: Run) -> None:
    with pytest.raises(ContractViolation, match="NaN"):
        run(["nan-weight"], settings={"accept_loss": True})


def test_random_inputs_show_constancy_alone(run: Run) -> None:
    with pytest.raises(ContractViolation, match="the same for all"):
        run([{"lossy-scale": {"node": "head/Gemm", "factor": 0.0}}], data=None)
    result = run([{"lossy-scale": {"node": "head/Gemm", "factor": -1.0}}], data=None)
    assert result.report.steps[-1].outcome == "changed"
    assert any("random inputs" in note for note in result.report.notes)


def test_the_guard_works_with_few_samples(run: Run) -> None:
    images = np.load(CALIBRATION)["images"][:6]
    with pytest.raises(ContractViolation, match="the same for all"):
        run([{"lossy-scale": {"node": "head/Gemm", "factor": 0.0}}], data={"images": images})


def test_a_change_behind_the_model_s_back_ends_with_the_pass(run: Run) -> None:
    class Backdoor(Pass):
        """Zero a weight without an edit, and say nothing."""

        def run(self, model: Model, context: Context) -> Findings:
            for value in model.weights():
                if value.const_value is not None and value.const_value.size > 100:
                    value.const_value = ir.Tensor(np.zeros_like(value.const_value.numpy()), name=value.name)
            return Findings()

    result = run([Backdoor()])
    assert result.report.drift in (None, 0.0) or result.report.drift < 1e-4
    assert any(np.any(w.const_value.numpy()) for w in result.model.weights() if w.const_value is not None)


def test_exact_parts_of_lossy_composites_are_held_to_exactness() -> None:
    class Both(Pass):
        """What it needs first, as quantize-weights does."""

        contract = Lossy()

        def expand(self) -> list[Pass]:
            return [make("upgrade-opset"), self]

    assert [(step.name, isinstance(step.contract, Exact)) for step in separated(Both())] == [
        ("upgrade-opset", True),
        ("both", False),
    ]
    assert separated(make("clean")) == [make("clean")]


@pytest.mark.parametrize(
    ("own", "both"), [(None, (0.1, 0.2)), (Limits(drift=0.3), (0.1, 0.2)), (Limits(metric_drop=0.01), (0.01, 0.2))]
)
def test_the_stricter_limit_holds(own: Limits | None, both: tuple[float, float]) -> None:
    merged = Limits(metric_drop=0.1, drift=0.2).with_(own)
    assert (merged.metric_drop, merged.drift) == both


@pytest.mark.parametrize("where", ["run", "pass"])
def test_limits_drift(run: Run, tmp_path: Path, where: str) -> None:
    def passes(limit: float) -> dict[str, Any]:
        options: dict[str, Any] = {"node": "head/Gemm", "factor": 0.9}
        if where == "pass":
            return {"passes": [{"lossy-scale": options | {"limits": {"drift": limit}}}]}
        return {"passes": [{"lossy-scale": options}], "limits": {"drift": limit}}

    with pytest.raises(ContractViolation, match=r"limits\.drift: 0\.1.*allowed 0\.05"):
        run(**passes(0.05))
    assert untouched(tmp_path)
    assert run(**passes(0.2)).report.deployed_drift == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("where", ["run", "pass"])
def test_limits_metric_drop(run: Run, tmp_path: Path, where: str) -> None:
    def passes(limit: float) -> dict[str, Any]:
        options: dict[str, Any] = {"node": "blocks.1.conv1/Conv", "factor": -1.0}
        if where == "pass":
            return {"passes": [{"lossy-scale": options | {"limits": {"metric_drop": limit}}}]}
        return {"passes": [{"lossy-scale": options}], "limits": {"metric_drop": limit}}

    with pytest.raises(ContractViolation, match=r"limits\.metric_drop"):
        run(**passes(0.001), evaluation=EVALUATION, metric="top1")
    assert untouched(tmp_path)
    result = run(**passes(0.999), evaluation=EVALUATION, metric="top1")
    assert result.report.metric is not None
    assert 0.001 < result.report.metric["drop"] < 0.999


def test_a_run_s_limit_holds_for_the_sum_of_passes(run: Run) -> None:
    step = {"lossy-scale": {"node": "head/Gemm", "factor": 0.9}}
    assert run([step], limits={"drift": 0.15}).report.steps[-1].outcome == "changed"
    with pytest.raises(ContractViolation, match=r"limits\.drift"):
        run([step, step], limits={"drift": 0.15})


def test_limits_that_cannot_be_measured_are_refused(run: Run, tmp_path: Path) -> None:
    step = {"lossy-scale": {"node": "head/Gemm", "factor": 0.9}}
    with pytest.raises(DataError, match=r"limits\.drift cannot be measured"):
        run([step], limits={"drift": 0.15}, verify="structure")
    with pytest.raises(DataError, match="metric"):
        run([step], limits={"metric_drop": 0.15})
    assert untouched(tmp_path)


def test_a_change_that_is_not_reported_is_verified_all_the_same(run: Run) -> None:
    step = run(["silent-but-right"]).report.steps[-1]
    assert step.outcome == "changed"
    assert step.verdict is not None
    assert "without saying" in step.changes[0]["what"]


def test_a_report_without_a_change_does_no_harm(run: Run, tmp_path: Path) -> None:
    assert run(["boastful"]).report.steps[-1].outcome == "changed"
    ours, original = both(tmp_path)
    np.testing.assert_array_equal(ours[0], original[0])


def test_a_pass_s_own_tolerance_counts(run: Run) -> None:
    assert run([{"loose-weight": {"node": "head/Gemm"}}]).report.steps[-1].outcome == "changed"


def test_a_composite_is_as_exact_as_its_weakest_part(worker: Worker) -> None:
    from onnxopt.passing import Exact, Lossy, Pass, contract_of

    class Both(Pass):
        loose: str = "loose-weight"

        def expand(self) -> list[Pass]:
            return [make("clean"), make(self.loose)]

    assert contract_of(Both()) == Exact(tolerance=0.9)
    assert contract_of(Both(loose="lossy-scale")) == Lossy()


def test_embedded_weights_stay_embedded(run: Run, tmp_path: Path) -> None:
    run([{"stored": {"node": DEEP}}])
    assert not list((tmp_path / "out").glob("*.data"))
    ours, original = both(tmp_path)
    np.testing.assert_array_equal(ours[0], original[0])


def test_external_weights_stay_external(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "external.onnx"
    load(models.path("digits-cnn")).save(source, external_data=True)
    run([{"stored": {"node": DEEP}}], source)
    assert (tmp_path / "out" / "out.onnx.data").stat().st_size > 100_000
    assert not (tmp_path / "out" / "out.onnx.work").exists()


def test_external_weights_come_along_where_no_output_is_written(tmp_path: Path) -> None:
    source = tmp_path / "external.onnx"
    load(models.path("digits-cnn")).save(source, external_data=True)
    model = onnxopt.pipeline.run(source, build({"passes": [{"stored": {"node": DEEP}}]})).model
    for file in tmp_path.iterdir():
        file.unlink()
    feeds = {"images": np.load(EVALUATION)["images"][:2]}
    ours, original = outputs(model.proto().SerializeToString(), feeds), outputs(models.path("digits-cnn"), feeds)
    np.testing.assert_allclose(ours[0], original[0], rtol=1e-5)


def test_a_changed_model_object_is_not_read_from_its_file(run: Run, tmp_path: Path) -> None:
    model = load(models.path("digits-cnn"))
    make("scale", {"node": "head/Gemm", "factor": 2.0}).run(model, RunContext(model))
    run(["eliminate-dead"], model)
    ours, original = both(tmp_path)
    assert not np.allclose(ours[0], original[0])


def test_without_an_output_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = onnxopt.pipeline.run(models.path("digits-cnn"), build({"passes": [{"stored": {"node": DEEP}}]}))
    assert list(tmp_path.iterdir()) == []
    images = np.load(EVALUATION)["images"][:2]
    outputs(result.model.proto().SerializeToString(), {"images": images})
    with pytest.raises(ContractViolation):
        onnxopt.pipeline.run(models.path("digits-cnn"), build({"passes": ["wrong-weight"]}))
    assert list(tmp_path.iterdir()) == []


def test_the_work_folder_stays_where_it_was_named(run: Run, tmp_path: Path) -> None:
    run(["clean"], settings={"work": tmp_path / "work"})
    assert (tmp_path / "work" / "state.json").is_file()
    with pytest.raises(RecipeError, match="holds files of others"):
        run(["clean"], settings={"work": tmp_path / "out"})


def test_observed_shapes_go_with_the_model_that_showed_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    observe = Measuring.observe

    def watched(self: Any, model: Any, folder: Path) -> Any:
        seen.append(model.path.name)
        return observe(self, model, folder)

    monkeypatch.setattr(Measuring, "observe", watched)
    run(["clean", {"rescale": {"factor": 0.99}}, {"lossy-scale": {"factor": 0.99}}])
    assert seen == ["digits_cnn.onnx", "003.onnx"]


def test_the_history_tells_what_was_done(run: Run, tmp_path: Path) -> None:
    run(["clean", "eliminate-dead", {"lossy-scale": {"node": "head/Gemm", "factor": 0.9}}])
    history = load(tmp_path / "out" / "out.onnx").history
    assert [entry["pass"] for entry in history] == ["clean", "lossy-scale"]
    assert history[1]["options"] == {"node": "head/Gemm", "factor": 0.9}
    assert history[1]["drift"] == float(f"{history[1]['drift']:.1e}")
