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
import onnxopt.serialization
import onnxopt.verify
from onnxopt import models
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.edit import Edit
from onnxopt.errors import ContractViolation, DataError, ModelError, RecipeError
from onnxopt.measuring import Measuring
from onnxopt.model import Model, load
from onnxopt.passing import Context, Exact, Findings, Limits, Lossy, Pass, make, separated
from onnxopt.pipeline import Result, Settings
from onnxopt.recipe import build
from onnxopt.workdir import WorkDir, WorkDirError

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


@pytest.mark.parametrize("few", [None, 6])
def test_without_calibration_samples_the_guard_takes_inputs_of_evaluation_data(run: Run, few: int | None) -> None:
    data = few and {"images": np.load(CALIBRATION)["images"][:few]}
    with pytest.raises(ContractViolation, match="the same for all 64 samples"):
        run(
            [{"lossy-scale": {"node": "head/Gemm", "factor": 0.0}}], data=data, evaluation=EVALUATION,
            metric="top1", verify={"samples": 2},
        )  # fmt: skip


def test_the_report_tells_what_a_pass_chose(run: Run) -> None:
    class Choosing(Narrow):
        """Clip, and tell where."""

        def run(self, model: Model, context: Context) -> Findings:
            findings = super().run(model, context)
            findings.chosen["high"] = "8"
            return findings

    assert run([Choosing()], text(CLIPPED), data=None).report.steps[-1].chosen == {"high": "8"}


def test_the_guard_is_missed_only_where_it_is_asked_for(run: Run) -> None:
    def notes(pass_: Any, **recipe: Any) -> list[str]:
        data = {"x": np.ones((2, 4), np.float32)}
        found = run([pass_], text(CLIPPED), data=data, evaluation=None, **recipe).report.notes
        return [note for note in found if "collapse guard" in note]

    assert len(notes(Narrow())) == 1
    assert notes("clean") == []
    assert notes(Narrow(), limits={"drift": 0.5}) == []


def test_drift_is_told_of_what_no_pass_saw(run: Run) -> None:
    small = np.random.default_rng(0).random((20, 4), np.float32)

    def found(**data: Any) -> tuple[float | None, str | None, str]:
        report = run([Narrow()], text(CLIPPED), settings={"accept_loss": True}, **data).report
        return report.drift, report.drift_on, report.status

    drift, on, status = found(data={"x": small}, evaluation={"x": 100 * small})
    assert drift is not None
    assert drift > 0.05
    assert (on, status) == ("8 samples of evaluation data", "verified end to end on 8 samples of evaluation data")
    drift, on, status = found(data={"x": small})
    assert drift is not None
    assert drift < 1e-6
    assert (on, status) == ("4 held-back calibration samples", "verified end to end on 8 samples of calibration data")
    assert found(data={"x": small[:1]})[1] == "1 calibration sample that passes saw"
    drift, on, status = found(data={"x": 100 * small[:1]}, evaluation={"x": small[:4]})
    assert drift is not None
    assert drift < 1e-6
    assert (on, status.partition(" on ")[2]) == (
        "4 samples of evaluation data", "4 samples of evaluation data and 1 sample of calibration data",
    )  # fmt: skip
    assert found(data=None)[1] == "synthetic data"


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


CLIPPED = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y)
<float low = {-100}, float high = {100}> { y = Clip (x, low, high) }"""


class Narrow(Pass):
    """Clip at 8 instead: nothing happens to small inputs."""

    contract = Lossy()

    def run(self, model: Model, context: Context) -> Findings:
        findings, edit = Findings(), Edit(self.name)
        edit.replace_weight(model.graph.initializers["high"], np.float32(8))
        model.apply(edit)
        findings.change("y", self.name, "clips at 8")
        return findings


class DropDefault(Pass):
    """Take a weight off the inputs."""

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        del model.graph.inputs[1]
        findings.change("w", self.name, "callers can no longer feed it")
        return findings


def test_inputs_with_defaults_are_kept(run: Run) -> None:
    source = """<ir_version: 8, opset_import: ["" : 8]>
    g (float[N, 4] x, float w = {2}) => (float[N, 4] y) { y = Mul (x, w) }"""
    with pytest.raises(ContractViolation, match="inputs or outputs"):
        run([DropDefault()], text(source), data="synthetic")


@pytest.mark.parametrize("level", ["full", "sample"])
def test_limits_drift_is_looked_at_on_data_that_passes_do_not_see(run: Run, level: str) -> None:
    small = np.random.default_rng(0).random((20, 4), np.float32)

    def notes(**data: Any) -> list[str]:
        result = run([Narrow()], text(CLIPPED), limits={"drift": 0.05}, verify=level, **data)
        return [note for note in result.report.notes if note.startswith("limits.drift")]

    with pytest.raises(ContractViolation, match=r"limits\.drift: 0\.\d+ on evaluation data, allowed 0\.05"):
        notes(data={"x": small}, evaluation={"x": 100 * small})
    found = notes(data={"x": small}, evaluation={"x": small}), notes(data={"x": small}), notes(data="synthetic")
    one, held_back, drawn = (each[0] for each in found)
    assert one == "limits.drift was looked at on 1 batch of evaluation data: < 1e-6, allowed 0.05"
    assert "held-back calibration samples" in held_back
    assert "synthetic data" in drawn


def test_limits_hold_for_exact_passes_too(run: Run, tmp_path: Path) -> None:
    """An exact pass may have a tolerance of its own, and deployed drift adds up."""
    step = {"loose-weight": {"node": "head/Gemm", "factor": 0.9}}
    assert run([step]).report.drift == pytest.approx(0.1, rel=0.3)
    (tmp_path / "out" / "out.onnx").write_bytes(OLD)
    with pytest.raises(ContractViolation, match=r"pass loose-weight goes past limits\.drift"):
        run([step], limits={"drift": 0.05})
    assert run([step], limits={"drift": 0.05}, on_violation="skip").report.steps[-1].outcome == "rolled back"


def test_what_is_written_is_held_to_the_run_s_limits(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    drop = Measuring.metric_drop
    monkeypatch.setattr(Measuring, "metric_drop", lambda self, path: looked_at.append(path.name) or drop(self, path))
    loose = {"loose-weight": {"node": "head/Gemm", "factor": 0.5}}
    lossy = {"lossy-scale": {"node": "blocks.1.conv1/Conv", "factor": 0.99}}
    limits = {"limits": {"metric_drop": 0.5}, "evaluation": EVALUATION, "metric": "top1"}
    run([{"loose-weight": {"node": "head/Gemm", "factor": 0.999}}], **limits)
    assert len(looked_at) == 1
    run([{"loose-weight": {"node": "head/Gemm", "factor": 0.999}}, lossy], **limits)
    assert len(looked_at) == 2
    (tmp_path / "out" / "out.onnx").write_bytes(OLD)
    monkeypatch.setattr(Measuring, "metric_drop", lambda self, path: 0.6)
    with pytest.raises(ContractViolation, match=r"the run goes past limits\.metric_drop"):
        run([loose], **limits)
    assert (tmp_path / "out" / "out.onnx").read_bytes() == OLD


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


@pytest.mark.parametrize("match", ["head/Gemm", "head.weight", "re:^head[./]", "*"])
def test_no_lossy_pass_touches_what_is_skipped(run: Run, tmp_path: Path, match: str) -> None:
    name = next(node for node in load(models.path("digits-cnn")).graph if node.name == "head/Gemm").inputs[1]
    assert name is not None
    match = str(name.name) if match == "head.weight" else match
    skip = [{"match": match, "skip": True}]
    wrong = {"lossy-scale": {"node": "head/Gemm", "factor": 0.99}}
    with pytest.raises(ContractViolation, match=r"pass lossy-scale touched .*; an override skips it"):
        run([wrong], overrides=skip)
    assert untouched(tmp_path)
    other = {"lossy-scale": {"node": DEEP, "factor": 0.99}}
    if match == "*":
        other = {"quantize-weights": {"bits": 8}}
    report = run(["clean", wrong, other], overrides=skip, on_violation="skip").report
    outcomes = {step.name: step.outcome for step in report.steps[2:]}
    assert (report.steps[2].outcome, report.steps[3].outcome) == ("changed", "rolled back")
    assert outcomes[next(iter(other))] == ("unchanged" if match == "*" else "changed")


def test_exact_passes_may_touch_what_is_skipped(run: Run) -> None:
    report = run(["fold-batchnorm"], overrides=[{"match": "*", "skip": True}]).report
    assert report.steps[-1].outcome == "changed"


def test_overrides_that_match_nothing_are_told(run: Run) -> None:
    def told(*matches: str) -> list[str]:
        overrides = [{"match": match, "skip": True} for match in matches]
        report = run(["clean", {"quantize-weights": {"bits": 8}}], overrides=overrides).report
        return [note for note in report.notes if "matches no node" in note]

    assert told("head/Gem", "head/Gemm", "*BatchNorm*") == ["overrides.0: 'head/Gem' matches no node and no weight"]


def test_an_output_that_the_target_does_not_load_is_told(run: Run) -> None:
    def notes(newest: int) -> list[str]:
        report = run(["clean"], target={"name": "cpu", "max_opset": newest}).report
        return [note for note in report.notes if "max_opset" in note]

    opset = load(models.path("digits-cnn")).opset
    assert notes(opset) == []
    assert notes(opset - 1) == [f"the output has opset {opset}, more than target.max_opset, {opset - 1}"]


def broken_disk(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """The disk is full once a file of that name is written."""
    real = onnxopt.serialization.write

    def write(model: Any, path: Path, **options: Any) -> None:
        if path.name == at:
            raise ModelError(f"cannot write {path.name}: the disk is full")
        real(model, path, **options)

    monkeypatch.setattr(onnxopt.serialization, "write", write)


PASSES: list[Any] = ["clean", {"lossy-scale": {"node": "head/Gemm", "factor": 0.99}}]


@pytest.mark.parametrize(("at", "where"), [("003.onnx", "from step 4 of 4"), ("out.onnx", "after the last step")])
def test_what_could_not_be_written_can_be_resumed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, where: str
) -> None:
    with monkeypatch.context() as patch:
        broken_disk(patch, at)
        with pytest.raises(ModelError, match=f"^cannot write {at}: the disk is full; --resume goes on {where}$"):
            run(PASSES)
    assert (tmp_path / "out" / "out.onnx").read_bytes() == OLD
    assert [file.name for file in (tmp_path / "out").iterdir() if file.suffix == ".json"] == []
    steps: list[str] = []
    run(PASSES, settings={"resume": True, "progress": lambda progress: steps.append(progress.name)})
    assert "clean" not in steps
    assert not (tmp_path / "out" / "out.onnx.work").exists()
    resumed = (tmp_path / "out" / "out.onnx").read_bytes()
    run(PASSES)
    assert (tmp_path / "out" / "out.onnx").read_bytes() == resumed


def test_a_full_work_folder_is_no_broken_contract(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise WorkDirError("cannot write to the work folder: No space left on device")

    given: dict[str, Any] = {"passes": [{"stored": {"node": DEEP}}], "on_violation": "skip"}
    with monkeypatch.context() as patch:
        patch.setattr(WorkDir, "store", full)
        with pytest.raises(WorkDirError, match=r"^cannot write .*; --resume goes on from step 3 of 3$"):
            run(**given)
    assert run(**given, settings={"resume": True}).report.steps[-1].outcome == "changed"


def test_nothing_is_kept_where_no_run_could_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an output and a work folder nobody could name it; before the first step there is nothing in it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken_disk(monkeypatch, "002.onnx")
    with pytest.raises(ModelError, match=r"the disk is full$"):
        onnxopt.pipeline.run(models.path("digits-cnn"), build({"passes": PASSES}))
    assert list(tmp_path.iterdir()) == []
    broken_disk(monkeypatch, "input.onnx")
    with pytest.raises(ModelError, match=r"the disk is full$"):
        onnxopt.pipeline.run(load(models.path("digits-cnn")).proto(), build({"passes": PASSES}), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_in_the_same_work_folder_is_refused(run: Run, tmp_path: Path) -> None:
    refused: list[str] = []

    def meanwhile(progress: Any) -> None:
        if progress.name == "clean" and not refused:
            with pytest.raises(RecipeError, match=r"another run \(pid \d+\) uses the work folder") as second:
                run(["clean"])
            refused.append(str(second.value))

    run(["clean"], settings={"progress": meanwhile})
    assert "out.onnx.work" in refused[0]
    assert load(tmp_path / "out" / "out.onnx").history


def test_a_file_is_read_once_for_each_step_that_changes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input, what each step left, and the output; steps that leave the model alone go on with it."""
    from onnxopt import reading

    read, original = [], reading.read
    monkeypatch.setattr(reading, "read", lambda path: read.append(path) or original(path))
    steps = run(["clean", "upgrade-opset", {"quantize-weights": {"bits": 8}}]).report.steps
    changed = sum(step.outcome == "changed" for step in steps)
    assert changed < len(steps)
    assert len(read) == 2 + changed


def test_only_passes_of_ours_are_trusted_to_change_by_edits_alone(run: Run) -> None:
    assert onnxopt.pipeline._edits_only(make("clean"))
    assert not onnxopt.pipeline._edits_only(make("boastful"))


def test_constants_of_functions_become_weights(run: Run) -> None:
    source = text("""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N] x) => (float[N] y) { y = f.add (x) }
        <opset_import: ["" : 17], domain: "f"> add (a) => (b) {
            c = Constant <value_float = 2.0> ()  b = Add (a, c) }""")
    model = run([], source, data=None).model
    assert [node.op_type for node in model.nodes()] == ["Add"]
    assert [float(value.const_value.numpy()) for value in model.weights() if value.const_value is not None] == [2.0]
