"""Statistics in whole runs: passes of a recipe share them, and the report tells what they took."""

import runpy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import onnxopt.pipeline
from onnxopt import models
from onnxopt.analysis.linear import linears
from onnxopt.backends.worker import Worker
from onnxopt.calibration.running import Runner
from onnxopt.context import RunContext
from onnxopt.data import open_data
from onnxopt.measuring import Measuring
from onnxopt.model import Model, load
from onnxopt.passing import Context, Findings, Lossy, Pass
from onnxopt.recipe import build
from onnxopt.settings import Progress, Settings
from onnxopt.statistics import Stat, cross_gram, gram

CALIBRATION = str(Path(models.__file__).parent / "digits.calib.npz")
ORACLE = runpy.run_path(str(Path(__file__).with_name("oracle.py")))


class Looking(Pass):
    """Asks for the Gram matrices of all layers, then scales the weight of one."""

    phase = "structure"
    contract = Lossy()
    scaled: str | None = None
    found: ClassVar[list[dict[str, np.ndarray]]] = []
    rows: ClassVar[list[int]] = []

    def run(self, model: Model, context: Context) -> Findings:
        stats = {linear.x.name or "": gram(linear) for linear in linears(model)}
        found = context.collect(stats.values())
        self.found.append({name: found[stat].gram() for name, stat in stats.items()})
        self.rows.append(context.samples)
        findings = Findings()
        for linear in linears(model):
            if self.scaled is not None and linear.name == self.scaled:
                model.apply(linear.replaced(linear.matrix() * np.float32(0.999)))
                findings.change(linear.node, self.name, "scaled")
        return findings


class Staged(Pass):
    """Scales layer after layer, each by what the layers before it have left."""

    phase = "structure"
    contract = Lossy()
    ratios: ClassVar[dict[str, float]] = {}

    def run(self, model: Model, context: Context) -> Findings:
        findings, done = Findings(), set[Any]()
        for stage in context.stages():
            for linear in [each for each in linears(model) if each.node in stage.nodes and each.node not in done]:
                found = stage.collect(
                    [cross := cross_gram(linear), own := gram(linear), dense := gram(linear, side="dense")]
                )
                energy = np.einsum("gii->", found[dense].gram())
                self.ratios[linear.x.name or ""] = float(np.einsum("gii->", found[cross].gram()) / energy)
                assert found[own].rows == found[cross].rows
                model.apply(linear.replaced(linear.matrix() * np.float32(0.99)))
                done.add(linear.node)
                findings.change(linear.node, self.name, "scaled")
        return findings


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared


@pytest.fixture(autouse=True)
def fresh(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs of this file share a process, and timing is left out."""
    monkeypatch.setattr(onnxopt.pipeline, "Worker", lambda threads: nullcontext(worker))
    monkeypatch.setattr(Measuring, "latency", lambda self, candidate: None)
    Looking.found.clear()
    Looking.rows.clear()


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> list[Runner]:
    """The runners that are made."""
    made: list[Runner] = []
    original = Runner.__post_init__

    def remember(self: Runner) -> None:
        original(self)
        made.append(self)

    monkeypatch.setattr(Runner, "__post_init__", remember)
    return made


def go(passes: list[Any], tmp_path: Path, **settings: Any) -> onnxopt.pipeline.Result:
    return onnxopt.pipeline.run(
        models.path("digits-cnn"), build({"passes": passes}), tmp_path / "out.onnx", data=CALIBRATION,
        settings=Settings(**settings),
    )  # fmt: skip


def test_three_passes_share_what_is_upstream_of_their_edits(tmp_path: Path, runner: list[Runner]) -> None:
    layers = [linear.name for linear in linears(load(models.path("digits-cnn")))]
    middle = layers[len(layers) // 2]
    go([Looking(scaled=layers[-1]), Looking(scaled=middle), Looking()], tmp_path)
    (only,) = runner
    first, second, third = Looking.found
    same = [name for name in first if np.array_equal(first[name], third[name])]
    assert all(np.array_equal(first[name], second[name]) for name in first)  # the last layer's weight is behind all
    counts = {stat.tensor: count for stat, count in only.counts.items()}
    assert counts == {name: 1 if name in same else 2 for name in first}
    assert 0 < len(same) < len(first)
    assert len(set(Looking.rows)) == 1
    assert 0 < Looking.rows[0] < len(np.load(CALIBRATION)["images"])  # some are held back


def test_stages_in_a_run(tmp_path: Path) -> None:
    work = tmp_path / "work"
    result = go([Staged()], tmp_path, work=work)
    assert result.report.steps[-1].outcome == "changed"
    ratios = list(Staged.ratios.values())
    assert ratios[0] == pytest.approx(1)
    assert max(ratios[1:]) < 0.999  # what the layers before have left
    assert not (work / "scratch").exists()


def test_the_report_tells_of_several_passes(tmp_path: Path) -> None:
    told: list[Progress] = []
    result = go([Looking()], tmp_path, memory=12 << 20, progress=told.append)
    (note,) = (note for note in result.report.steps[-1].notes if "passes" in note)
    assert note.startswith("statistics took ")
    assert "12 MiB are allowed" in note
    whats = dict.fromkeys(at.what for at in told if at.name == "looking" and at.what)
    assert len(whats) > 1
    assert all("pass" in what for what in whats)
    calls = [at for at in told if at.what == next(iter(whats))]
    assert [at.done for at in calls] == list(range(calls[0].total + 1))


def test_without_data_it_is_one_clear_error(tmp_path: Path) -> None:
    context = RunContext(load(models.path("digits-cnn")))
    with pytest.raises(Exception, match="needs calibration data"):
        context.stages()


def test_scratch_is_in_the_work_folder(tmp_path: Path, runner: list[Runner]) -> None:
    go([Looking()], tmp_path, work=tmp_path / "work")
    assert runner[0].folder == tmp_path / "work" / "scratch"
    assert not runner[0].folder.exists()


def test_the_same_through_a_context_of_ones_own() -> None:
    model = load(models.path("digits-cnn"))
    images = np.load(CALIBRATION)["images"][:16]
    data = open_data({model.signature.inputs[0].name: images}, model.signature)
    stat: Stat[Any] = gram(linears(model)[-1])
    found = RunContext(model, calibration=data).collect([stat])[stat].gram()[0]
    rows = ORACLE["rows"](ORACLE["values"](model, data, [stat.tensor])[stat.tensor])
    assert np.allclose(found, rows.T @ rows, rtol=1e-5, atol=1e-4)
