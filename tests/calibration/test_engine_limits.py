"""Too little memory, a dead worker, no room on disk, interruptions: the same statistics, or one clear error."""

import gc
import logging
import os
import runpy
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.analysis.linear import linears
from onnxopt.backends import machine
from onnxopt.backends.worker import Worker, WorkerDied
from onnxopt.calibration.engine import Calibration
from onnxopt.context import RunContext
from onnxopt.data import Dataset, open_data
from onnxopt.errors import DataError, OnnxOptError
from onnxopt.model import Model, load
from onnxopt.statistics import Gram, MinMax, Moments, Stat, cross_gram, gram
from onnxopt.statistics.stat import regression

ORACLE = runpy.run_path(str(Path(__file__).with_name("oracle.py")))
COLLECTING = runpy.run_path(str(Path(__file__).with_name("test_collecting.py")))
parsed, values, rows, names_of = (ORACLE[name] for name in ("parsed", "values", "rows", "names_of"))
mlp, batches, scale, SIZES = (COLLECTING[name] for name in ("mlp", "batches", "scale", "SIZES"))
ALL = ["x", "h", "hb", "a", "g", "c", "y"]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_room", lambda needed: False)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 400 << 20)


@pytest.mark.usefixtures("no_room")
def test_a_model_without_room_for_its_session_goes_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    data = batches(model, SIZES)
    staged = RunContext(model, calibration=data)
    stats = [Stat(name, Moments(axis=-1)) for name in ALL] + [Stat("gone", MinMax()), Stat("a", Gram(), side="dense")]
    monkeypatch.setattr("onnxopt.calibration.engine._PER_STAGE", 1 << 30)  # of what is free: a layer a stage
    nodes = staged.calibration.statistics.runner.nodes
    found = staged.collect(stats[:2])
    assert nodes["current"] == 3  # no further than the first layer, with what follows up to the next
    found = staged.collect(stats)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "has_room", lambda needed: True)
        whole = RunContext(model, calibration=data).collect(stats)
    for stat in stats[:-2]:
        assert np.allclose(found[stat].mean, whole[stat].mean, rtol=1e-6)
        assert found.rows(stat) == whole.rows(stat) == sum(batch * tokens for batch, tokens in SIZES)
    assert np.allclose(found[stats[-1]].scatter, whole[stats[-1]].scatter, rtol=1e-5)
    assert "no node of the main graph makes 'gone'" in found.why(stats[-2])
    late = regression(linears(model)[0], "g")  # reads "x" and, two stages later, what it is compared with
    with monkeypatch.context() as patch:
        patch.setattr(machine, "has_room", lambda needed: True)
        expected = RunContext(model, calibration=data).collect([late])[late].products
    assert np.allclose(staged.collect([late])[late].products, expected, rtol=1e-5)
    ran = dict(nodes)
    assert np.array_equal(staged.collect(stats)[stats[0]].mean, found[stats[0]].mean)
    assert nodes == ran
    assert not [name for name in files(staged.calibration.statistics.runner.folder) if not name.endswith(".bin")]


def test_a_worker_that_is_killed_is_one_error_and_the_next_works(tmp_path: Path) -> None:
    model = mlp()
    data = batches(model, SIZES)
    stat = Stat("a", Gram())
    with Worker() as worker:
        calibration = Calibration(data, tmp_path / "here", worker, tell=lambda at, total, what: kill(worker, at))
        with pytest.raises(WorkerDied, match="was killed"):
            calibration.collect(model, [stat])
        assert not files(tmp_path / "here")
        calibration.statistics.runner.tell = None
        found = calibration.collect(model, [stat])
        assert np.allclose(found[stat].scatter, RunContext(model, calibration=data).collect([stat])[stat].scatter)


def kill(worker: Worker, at: int) -> None:
    if at == 2:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)


def test_a_worker_that_is_killed_between_stages(tmp_path: Path) -> None:
    model = mlp()
    data = batches(model, SIZES)
    stat, again = Stat("g", Gram()), []
    with Worker() as worker:
        calibration = Calibration(data, tmp_path / "here", worker)
        for stage in calibration.stages(model, ["a", "c"]):
            if stage.index == 1:
                calibration.statistics.runner.tell = lambda at, total, what: kill(worker, at)
                before = files(tmp_path / "here")
                with pytest.raises(WorkerDied):
                    stage.collect([stat])
                assert files(tmp_path / "here") == before
                calibration.statistics.runner.tell = None
                again = stage.collect([stat])[stat].scatter
    assert np.allclose(again, RunContext(model, calibration=data).collect([stat])[stat].scatter)
    assert not [name for name in files(tmp_path / "here") if "frontier" in name or "onnx" in name]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("staged", [False, True])
def test_an_interruption_leaves_no_files(tmp_path: Path, kind: type[BaseException], staged: bool) -> None:
    model = mlp()

    def tell(at: int, total: int, what: str) -> None:
        if at == 2:
            raise kind

    calibration = Calibration(batches(model, SIZES), tmp_path / "here", tell=tell)

    def go() -> None:
        if staged:
            for stage in calibration.stages(model, ["a"]):
                stage.collect([Stat("a", Gram())])
        else:
            calibration.collect(model, [Stat("a", Gram())])

    with pytest.raises(kind):
        go()
    assert not files(tmp_path / "here")
    calibration.statistics.runner.tell = None
    go()


def test_a_disk_that_is_full_is_one_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    calibration = Calibration(batches(model, SIZES), tmp_path / "here")

    def full(path: Path, array: Any) -> None:
        raise OnnxOptError(
            f"cannot write {path}: No space left on device; make room there, or name another work folder"
        )

    monkeypatch.setattr("onnxopt.calibration.jobs.write", full)

    def go() -> None:
        for stage in calibration.stages(model, ["a"]):
            stage.collect([Stat("a", Gram())])

    with pytest.raises(OnnxOptError, match="No space left"):
        go()
    assert not files(tmp_path / "here")


def test_a_budget_that_is_too_small_tells_what_it_takes() -> None:
    model = mlp()
    data = batches(model, SIZES)
    with pytest.raises(
        DataError, match=r"tensor 'a': Gram needs \d+\.\d MiB .* more than the 0.1 MiB that are allowed"
    ):
        RunContext(model, calibration=data, memory=100_000).collect([Stat("a", Gram())])


def test_smaller_batches_in_stages_where_memory_is_short() -> None:
    model = mlp()
    x = np.random.default_rng(0).standard_normal((64, 900, 6)).astype(np.float32)
    data = open_data({"x": x}, model.signature, batch_size=64)
    ample, short = (RunContext(model, calibration=data, memory=memory) for memory in (1 << 30, 8 << 20))
    told: list[int] = []
    short._progress = lambda done, total, what: told.append(total)
    stat = Stat("c", MinMax())

    def collect(context: RunContext) -> tuple[float, float]:
        (found,) = (stage.collect([stat])[stat] for stage in context.stages(["a", "c"]) if stage.index == 1)
        return float(found.low), float(found.high)

    assert collect(short) == pytest.approx(collect(ample))
    assert max(told) > 1


def test_passes_over_a_stage_and_one_for_what_leaves_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = mlp()
    data = batches(model, SIZES)
    stats = [Stat(name, Moments(axis=-1)) for name in ("h", "a", "g", "c", "y")]
    need = max(stat.request.footprint((3, 9, 8)).work for stat in stats)
    ample, short = (RunContext(model, calibration=data, memory=memory) for memory in (1 << 30, need + 3000))
    found = [next(stage.collect(stats) for stage in each.stages(["c"]) if stage.index) for each in (ample, short)]
    for stat in stats:
        assert np.array_equal(found[0][stat].mean, found[1][stat].mean)
    assert short.calibration.notes() == [
        "statistics of a stage took several passes over its data, as 7 MiB are allowed"
    ]
    assert not ample.calibration.notes()
    assert any("stage 2 of 2: 5 statistics of 10 samples: " in record.message for record in caplog.records)


def test_what_leaves_a_stage_counts_against_the_budget() -> None:
    """Where it does not fit beside the statistics, it is written in a run of its own."""
    model = mlp()
    data = batches(model, [(4, 2000)] * 5)
    stat = Stat("x", Moments(axis=-1))
    told: list[str] = []
    memory = stat.request.footprint((4, 2000, 6)).work + 4 * 2000 * 6 * 4 + 10_000
    context = RunContext(model, calibration=data, memory=memory, progress=lambda done, total, what: told.append(what))
    for stage in context.stages(["a"]):
        if stage.index == 0:
            stage.collect([stat])
    assert list(dict.fromkeys(told)) == [
        "stage 1 of 2, values for the next stage, pass 1 of 2", "stage 1 of 2, statistics of 1 tensor, pass 2 of 2",
    ]  # fmt: skip


def test_results_that_nobody_holds_go_when_the_disk_gets_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    context = RunContext(model, calibration=batches(model, SIZES))
    free = [1 << 40]
    monkeypatch.setattr("onnxopt.calibration.remembered.free_bytes", lambda folder: free[0])
    wide = Stat("a", Moments(axis=1)), Stat("a", Gram(axis=-1)), Stat("g", Gram())
    runner = context.calibration.statistics.runner
    monkeypatch.setattr("onnxopt.calibration.results.LARGE", 100)  # so that all of it lies in files
    held = context.collect(wide[1:2])
    context.collect(wide[2:])
    gc.collect()
    assert len(list(runner.folder.glob("*.bin"))) == 2
    free[0] = 0
    stat = Stat("c", Gram())
    context.collect([stat])
    gc.collect()
    assert len(list(runner.folder.glob("*.bin"))) == 2  # of "c", and of "a", which is held
    assert held[wide[1]].scatter.shape == (1, 8, 8)
    del held
    gc.collect()
    assert len(list(runner.folder.glob("*.bin"))) == 1
    context.collect(wide[1:])
    assert runner.counts == {wide[1]: 2, wide[2]: 2, stat: 1}


def test_two_runs_by_stages_at_once() -> None:
    """A pass that goes through stages may ask for statistics that take stages themselves."""
    model = mlp()
    data = batches(model, SIZES)
    context = RunContext(model, calibration=data)
    stat = Stat("y", MinMax())
    expected = RunContext(model, calibration=data).collect([stat])[stat].low
    lows = []
    for stage in context.stages(["a", "c"]):
        lows += [inner.collect([stat])[stat].low for inner in context.stages(["h", "g"]) if inner.sees("y")]
        if stage.sees("y"):
            lows.append(stage.collect([stat])[stat].low)
    assert lows == [expected] * 4


def test_stages_run_once() -> None:
    model = mlp()
    stages = RunContext(model, calibration=batches(model, SIZES)).stages(["a"])
    (first, _) = stages
    with pytest.raises(ValueError, match="have been run"):
        list(stages)
    with pytest.raises(ValueError, match="stage 0 is closed"):
        first.collect([])


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, stat = mlp(), Stat("a", Gram(groups=1))
    monkeypatch.setattr("onnxopt.calibration.results.LARGE", 0)
    found = Calibration(batches(model, SIZES), Path("here")).collect(model, [stat])
    monkeypatch.chdir("/")
    assert found[stat].scatter.shape == (1, 8, 8)


FRAMES = """<ir_version: 8, opset_import: ["": 18]>
g (float[N,T,3,6,6] x) => (float[F,4,4,4] y, float[F,5] z) <float[4,3,3,3] w, float[4,3,3,3] v, float[108,5] m> {
  s = Constant <value = int64[4] {-1, 3, 6, 6}> ()  r = Reshape (x, s)  y = Conv (r, w)
  d = Constant <value = int64[4] {0, 3, 6, 6}> ()
  flat = Constant <value = int64[2] {-1, 108}> ()  p = Reshape (r, flat)  z = MatMul (p, m)
}"""


@pytest.mark.parametrize("staged", [False, True])
def test_masks_of_frames_that_a_convolution_sees_one_by_one(staged: bool) -> None:
    model = parsed(FRAMES)
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((4, 5, 3, 6, 6)).astype(np.float32), rng.random((4, 5)) < 0.5
    data = open_data({"x": x, "mask/frames": mask}, model.signature, mask="frames", batch_size=2)
    context = RunContext(model, calibration=data)
    stats = [gram(linear) for linear in linears(model)]
    if staged:
        *_, found = (stage.collect(stats) for stage in context.stages(["r"]))
    else:
        found = context.collect(stats)
    assert [found.rows(stat) for stat in stats] == [mask.sum() * 16, mask.sum()]
    kept = x.reshape(20, -1)[mask.reshape(-1)].astype(np.float64)
    assert np.allclose(found[stats[1]].gram()[0], kept.T @ kept, rtol=1e-5, atol=1e-5)
    assert not context.calibration.notes()


def test_masks_of_tokens_where_a_convolution_runs_over_them() -> None:
    """Patches overlap, so a sample counts whole, or not where all of it is padding."""
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[N,3,T] x) => (float[N,2,T] y) <float[2,3,3] w>'
    model = parsed(text + "{ y = Conv <pads = [1, 1]> (x, w) }")
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((6, 3, 5)).astype(np.float32), rng.random((6, 5)) < 0.5
    mask[2] = False
    data = open_data({"x": x, "mask/pad": mask}, model.signature, mask="pad")
    stat = gram(linears(model)[0])
    found = RunContext(model, calibration=data).collect([stat])
    alone = open_data({"x": x[[0, 1, 3, 4, 5]]}, model.signature)
    assert found.rows(stat) == 5 * 5
    expected = RunContext(model, calibration=alone).collect([stat])
    assert np.allclose(found[stat].gram(), expected[stat].gram())


def test_a_mask_that_fits_no_axis_is_told() -> None:
    model = parsed(FRAMES)
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((4, 5, 3, 6, 6)).astype(np.float32), rng.random((4, 2)) < 0.5
    data = open_data({"x": x, "mask/odd": mask}, model.signature, mask="odd", batch_size=2)
    context = RunContext(model, calibration=data)
    stats = [gram(linear) for linear in linears(model)]
    assert [context.collect(stats).rows(stat) for stat in stats] == [20 * 16, 20]
    assert context.calibration.notes() == [
        "the padding mask does not fit 2 tensors, of which padding counts as well: 'r', 'p'"
    ]


def test_shares_of_the_data(tmp_path: Path) -> None:
    """One batch is cut for them, and every sample is in one of the two."""
    model = mlp()
    x = np.random.default_rng(0).standard_normal((20, 3, 6)).astype(np.float32)
    data: Dataset = open_data({"x": x}, model.signature, batch_size=20)
    context = RunContext(model, calibration=data)
    fit, check, all_ = (Stat("x", Gram(), share=share) for share in ("fit", "check", "all"))
    found = context.collect([fit, check, all_])
    assert [found.rows(stat) for stat in (fit, check, all_)] == [48, 12, 60]
    assert np.allclose(found[fit].gram() + found[check].gram(), found[all_].gram())


def test_cross_grams_of_a_real_model_with_an_edit(tmp_path: Path) -> None:
    model = load("models/digits_cnn.onnx")
    dense: Model = load(model.proto())
    images = np.load("models/digits.calib.npz")["images"][:24]
    data = open_data({model.signature.inputs[0].name: images}, model.signature)
    layers = [linear for linear in linears(model) if linear.kind != "conv" and linear.x.producer() is not None]
    (first, last) = linears(model)[0], layers[-1]
    for stage in RunContext(model, calibration=data).stages():
        if stage.index == 0:
            model.apply(first.replaced(first.matrix() * np.float32(1.5)))
        if stage.sees(last.x.name or ""):
            stat = cross_gram(last)
            found = stage.collect([stat])[stat].gram()[0]
    before, after = (rows(values(each, data, [last.x.name])[last.x.name]) for each in (dense, model))
    assert np.allclose(found, before.T @ after, rtol=1e-4, atol=1e-4 * np.abs(found).max())
    assert not np.allclose(found, before.T @ before, rtol=1e-2)
