"""`context.stages`: stage after stage gives what the whole model gives, and each node runs once a side."""

import os
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.analysis.linear import Linear, linears
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.calibration.staging import Stages
from onnxopt.context import RunContext
from onnxopt.data import Dataset, open_data
from onnxopt.model import Model, load
from onnxopt.statistics import Gram, Stat, cross_gram, gram

COLLECTING = runpy.run_path(str(Path(__file__).with_name("test_collecting.py")))
batches, mlp, scale, SIZES = (COLLECTING[name] for name in ("batches", "mlp", "scale", "SIZES"))
SHARED = Path(__file__).parents[2].parent / "shared" / "zoo"


def real(name: str) -> tuple[Model, Dataset]:
    """A trained model with real inputs."""
    if name == "byte_gpt":
        model = load("models/byte_gpt.onnx")
        rng = np.random.default_rng(0)
        return model, open_data({model.signature.inputs[0].name: rng.integers(0, 256, (12, 64))}, model.signature)
    if not SHARED.is_dir():
        pytest.skip("needs the zoo")
    model = load(SHARED / f"{name}.onnx")
    return model, open_data(SHARED / f"{name}.calib.npz", model.signature).take(24).rebatched(6)


REAL = ["byte_gpt", "resnet20_cifar_dynamo", "digits_transformer_legacy", "fashion_se_net_legacy"]


@pytest.mark.parametrize("name", REAL)
def test_the_same_as_the_whole_model(name: str) -> None:
    model, data = real(name)
    whole, staged = RunContext(model, calibration=data), RunContext(model, calibration=data)
    stats = {linear.node: gram(linear) for linear in linears(model) if linear.x.producer() is not None}
    expected = whole.collect(stats.values())
    run_ = staged.stages()
    assert len(run_) > 3
    estimate = run_.frontier_bytes()
    seen = set()
    for stage in run_:
        here = [stats[node] for node in stage.nodes if node in stats]
        found = stage.collect(here)
        for stat in here:
            seen.add(stat)
            most = 1e-6 * top(expected[stat].gram())
            assert np.allclose(found[stat].gram(), expected[stat].gram(), rtol=1e-6, atol=most)
    assert seen == set(stats.values())
    runner = staged.calibration.statistics.runner
    assert runner.nodes["dense"] <= len(list(model.graph))
    assert runner.nodes["current"] == 0
    assert estimate is not None
    assert 0 < run_.peak_bytes <= estimate < 4 * run_.peak_bytes  # of two sides, which here are one
    assert not list(runner.folder.glob("frontier*"))
    assert not list(runner.folder.glob("*.onnx*"))


def top(array: np.ndarray) -> float:
    return float(np.abs(array).max())


def test_what_an_edit_leaves_is_what_later_stages_see() -> None:
    model = mlp()
    data = batches(model, SIZES)
    context = RunContext(model, calibration=data)
    dense = load(model.proto())
    layers = {linear.x.name: linear for linear in linears(model)}
    crossed: dict[str, np.ndarray] = {}
    for stage in context.stages(cuts=["a", "c"]):
        for name in ("a", "c"):
            if any(node in stage.nodes for node in [layers[name].node]):
                stat = cross_gram(layers[name])
                crossed[name] = stage.collect([stat])[stat].gram()[0]
        if stage.index == 0:
            scale(model, "w1")
        if stage.index == 1:
            scale(model, "w2")
    for name, found in crossed.items():
        before, after = rows_of(dense, data, name), rows_of(model, data, name)
        assert np.allclose(found, before.T @ after, rtol=1e-5)
        assert not np.allclose(found, before.T @ before, rtol=1e-2)


def rows_of(model: Model, data: Dataset, name: str) -> np.ndarray:
    proto = onnx.ModelProto.FromString(model.proto().SerializeToString())
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_session(proto.SerializeToString(), SessionMode.REFERENCE)
    found = [run(session, batch.feeds)[name] for batch in data.batches()]
    return np.concatenate([each.reshape(-1, each.shape[-1]) for each in found]).astype(np.float64)


def test_nodes_run_once_a_side_and_twice_where_edited() -> None:
    model = mlp()
    context = RunContext(model, calibration=batches(model, SIZES))
    nodes = context.calibration.statistics.runner.nodes
    run_ = iter(context.stages(cuts=["a", "c"]))
    first = next(run_)
    first.collect([Stat("hb", Gram())])
    assert nodes == Counter(dense=3)  # MatMul, Add, Relu: one run stands for both sides
    scale(model, "w1")
    second = next(run_)  # closes the first: its three nodes again, of the current side
    assert nodes == Counter(dense=3, current=3)
    second.collect([Stat("g", Gram(), side="dense"), Stat("g", Gram())])
    assert nodes == Counter(dense=5, current=5)
    third = next(run_)
    assert nodes == Counter(dense=5, current=5)
    third.collect([Stat("c", Gram())])
    assert nodes == Counter(dense=5, current=5)  # "c" lies on disk
    with pytest.raises(StopIteration):
        next(run_)


def test_files_go_at_last_use_and_when_it_breaks() -> None:
    model = mlp()
    context = RunContext(model, calibration=batches(model, SIZES))
    folder = context.calibration.statistics.runner.folder

    def files() -> list[str]:
        return [name for each in folder.glob("frontier*") for name in os.listdir(each)]

    counts = []
    for stage in context.stages(cuts=["h", "a", "g"]):
        counts.append(len(files()))
        if stage.index == 1:
            scale(model, "b1")
    assert counts == [0, 1, 2, 2]  # h of both; a apart, g apart
    assert not files()

    def broken() -> None:
        for stage in context.stages(cuts=["h", "a", "g"]):
            if stage.index == 2:
                assert files()
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not files()


def test_one_side_alone_and_wrong_uses() -> None:
    model = mlp()
    context = RunContext(model, calibration=batches(model, SIZES))
    layer: Linear = linears(model)[1]
    for stage in context.stages(sides=("current",)):
        with pytest.raises(ValueError, match="no dense side"):
            stage.collect([cross_gram(layer)])
        stage.close()
        with pytest.raises(ValueError, match="is closed"):
            stage.collect([gram(layer)])
    with pytest.raises(ValueError, match="stage by stage"):
        context.collect([cross_gram(layer)])


def test_disk_that_is_too_small_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    context = RunContext(model, calibration=batches(model, SIZES))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(Exception, match=r"values between stages need .* give fewer calibration samples"):
        list(context.stages())


def test_is_a_stages_protocol() -> None:
    assert isinstance(RunContext(mlp(), calibration=batches(mlp(), SIZES)).stages(), Stages)
