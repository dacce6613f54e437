"""`context.collect`: the right statistics, in as many passes as memory asks for, and never twice."""

import gc
import logging
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.analysis.linear import linears
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.backends.worker import Worker
from onnxopt.calibration.engine import Calibration
from onnxopt.context import RunContext
from onnxopt.data import Dataset, open_data
from onnxopt.edit import Edit
from onnxopt.errors import DataError
from onnxopt.model import Model, load
from onnxopt.statistics import Gram, Histogram, Magnitude, MinMax, Moments, Stat, gram

MLP = """
<ir_version: 8, opset_import: ["": 18]>
mlp (float[N,T,6] x) => (float[N,T,3] y) <float[6,8] w1, float[8] b1, float[8,8] w2, float[8,3] w3>
{
    h = MatMul (x, w1)
    hb = Add (h, b1)
    a = Relu (hb)
    g = MatMul (a, w2)
    c = Tanh (g)
    y = MatMul (c, w3)
}
"""


def mlp(seed: int = 0) -> Model:
    proto = onnx.parser.parse_model(MLP)
    rng = np.random.default_rng(seed)
    for info in list(proto.graph.value_info):
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return load(proto)


def batches(model: Model, sizes: list[tuple[int, int]], seed: int = 1) -> Dataset:
    rng = np.random.default_rng(seed)
    return open_data(
        [{"x": rng.standard_normal((n, t, 6)).astype(np.float32)} for n, t in sizes], model.signature, allow_code=False
    )


def all_values(model: Model, data: Dataset, name: str) -> np.ndarray:
    """Rows of a value over all batches, from a session of a model that gives it out."""
    proto = onnx.ModelProto.FromString(model.proto().SerializeToString())
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    proto.graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    session = open_session(proto.SerializeToString(), SessionMode.REFERENCE)
    found = [run(session, batch.feeds)[name] for batch in data.batches()]
    return np.concatenate([each.reshape(-1, each.shape[-1]) for each in found]).astype(np.float64)


SIZES = [(4, 5), (2, 9), (1, 1), (3, 5)]


def test_equal_to_numpy_on_batches_of_differing_shapes() -> None:
    model = mlp()
    data = batches(model, SIZES)
    context = RunContext(model, calibration=data)
    stats = [Stat("a", Gram()), Stat("c", Moments(axis=-1)), Stat("x", MinMax()), Stat("g", Magnitude(axis=-1))]
    found = context.collect(stats)
    rows = all_values(model, data, "a")
    assert np.allclose(found[stats[0]].gram(), [rows.T @ rows], rtol=1e-5)
    assert found[stats[0]].rows == len(rows) == found.rows(stats[0])
    assert np.allclose(found[stats[1]].mean, all_values(model, data, "c").mean(0), atol=1e-7)
    x = np.concatenate([batch.feeds["x"].reshape(-1, 6) for batch in data.batches()])
    assert (found[stats[2]].low, found[stats[2]].high) == (x.min(), x.max())
    assert np.allclose(found[stats[3]].absmax, np.abs(all_values(model, data, "g")).max(0))


def test_equal_requests_run_once_and_downstream_edits_invalidate_nothing() -> None:
    model = mlp()
    context = RunContext(model, calibration=batches(model, SIZES))
    counts = context.calibration.statistics.runner.counts
    upstream, downstream = Stat("a", Gram()), Stat("c", Gram())
    first = context.collect([upstream, downstream, Stat("a", Gram())])
    again = context.collect([upstream, downstream])
    assert counts == {upstream: 1, downstream: 1}
    assert np.array_equal(first[downstream].scatter, again[downstream].scatter)

    scale(model, "w3")  # behind both
    context.collect([upstream, downstream])
    assert counts == {upstream: 1, downstream: 1}
    scale(model, "w2")  # between the two
    later = context.collect([upstream, downstream])
    assert counts == {upstream: 1, downstream: 2}
    assert not np.allclose(later[downstream].scatter, first[downstream].scatter)
    scale(model, "w1")
    context.collect([upstream, downstream])
    assert counts == {upstream: 2, downstream: 3}


def scale(model: Model, weight: str) -> None:
    value = model.graph.initializers[weight]
    edit = Edit("test")
    assert value.const_value is not None
    edit.replace_weight(value, value.const_value.numpy() * np.float32(1.5))
    model.apply(edit)


def test_a_model_read_again_from_disk_is_the_same_model(tmp_path: Path) -> None:
    model = mlp()
    context = RunContext(model, calibration=batches(model, SIZES))
    stat = Stat("a", Gram())
    context.collect([stat])
    model.save(tmp_path / "again.onnx")
    context.use(load(tmp_path / "again.onnx"), 0)
    context.collect([stat])
    assert context.calibration.statistics.runner.counts == {stat: 1}


@settings(max_examples=8)
@given(st.integers(15_000_000, 30_000_000))
def test_several_passes_where_memory_is_short(memory: int) -> None:
    model = mlp()
    data = batches(model, SIZES)
    short, ample = RunContext(model, calibration=data, memory=memory), RunContext(model, calibration=data)
    stats = [Stat(name, Moments(axis=-1)) for name in ("h", "a", "g", "c", "y")]
    few, all_ = short.collect(stats), ample.collect(stats)
    for stat in stats:
        assert np.array_equal(few[stat].mean, all_[stat].mean)
    notes = short.calibration.notes()
    runs = sum(short.calibration.statistics.runner.nodes.values())
    assert (len(notes) == 1) == (runs > sum(ample.calibration.statistics.runner.nodes.values()))


def test_smaller_batches_where_one_does_not_fit() -> None:
    model = mlp()
    rng = np.random.default_rng(0)
    data = open_data({"x": rng.standard_normal((64, 900, 6)).astype(np.float32)}, model.signature, batch_size=64)
    stat = Stat("h", MinMax())
    need = stat.request.footprint((1, 900, 8))
    context = RunContext(model, calibration=data, memory=need.state + need.work + 5 * 900 * 8 * 4)
    largest: list[int] = []
    context._progress = lambda done, total, what: largest.append(total)
    assert context.collect([stat])[stat].low == all_values(model, data, "h").min().astype(np.float32)
    assert max(largest) == 13  # of 5 samples each
    with pytest.raises(DataError, match=r"'h': MinMax needs .* more than the .* allowed"):
        RunContext(model, calibration=data, memory=need.work).collect([stat])


def test_what_cannot_be_had_says_why() -> None:
    model = mlp()
    context = RunContext(model, calibration=batches(model, SIZES))
    gone, few = Stat("nothing", Gram()), Stat("a", Gram(), least_rows=1000)
    found = context.collect([gone, few])
    assert "no node of the main graph makes" in found.why(gone)
    with pytest.raises(DataError, match=r"'a': 54 rows of calibration data, and 1000 are needed; .* 19 times"):
        found[few]
    with pytest.raises(DataError, match="needs calibration data"):
        RunContext(model).collect([few])


def test_nan_names_tensor_and_sample() -> None:
    model = mlp()
    x = np.ones((20, 2, 6), np.float32)
    x[13, 1] = 3e38  # what no layer's sums hold
    context = RunContext(model, calibration=open_data({"x": x}, model.signature))
    with pytest.raises(DataError, match=r"'h' holds an infinity in sample 13, at \[5, 1, \d\]"):
        context.collect([Stat("h", Gram())])


def test_padding_does_not_count() -> None:
    model = mlp()
    rng = np.random.default_rng(3)
    x = rng.standard_normal((12, 7, 6)).astype(np.float32)
    mask = rng.random((12, 7)) < 0.6
    data = open_data({"x": x, "mask/pad": mask}, model.signature, mask="pad")
    stat = Stat("a", Gram())
    found = RunContext(model, calibration=data).collect([stat])
    rows = all_values(model, data, "a")[mask.reshape(-1)]
    assert found.rows(stat) == len(rows)
    assert np.allclose(found[stat].gram(), [rows.T @ rows], rtol=1e-5)


def test_in_the_worker_the_same(tmp_path: Path) -> None:
    model = mlp()
    data = batches(model, SIZES)
    stats = [Stat("a", Gram()), Stat("x", MinMax())]
    with Worker() as worker:
        there = RunContext(model, calibration=data, worker=worker).collect(stats)
        here = RunContext(model, calibration=data).collect(stats)
        assert np.array_equal(there[stats[0]].scatter, here[stats[0]].scatter)
        assert (there[stats[1]].low, there[stats[1]].high) == (here[stats[1]].low, here[stats[1]].high)


def test_linear_layers_of_the_byte_gpt() -> None:
    model = load("models/byte_gpt.onnx")
    rng = np.random.default_rng(0)
    name = model.signature.inputs[0].name
    data = open_data({name: rng.integers(0, 256, (6, 40))}, model.signature)
    context = RunContext(model, calibration=data)
    stats = [gram(linear) for linear in linears(model)]
    found = context.collect(stats)
    for stat in dict.fromkeys(stats):
        rows = all_values(model, data, stat.tensor)
        assert np.allclose(found[stat].gram()[0], rows.T @ rows, rtol=1e-4, atol=1e-3 * np.abs(rows.T @ rows).max())
    assert max(context.calibration.statistics.runner.counts.values()) == 1


CONTROL = """
<ir_version: 8, opset_import: ["": 18]>
branch (float[N,4] x, bool flag) => (float[N,4] y)
{
    r = Relu (x)
    i = If (flag) <
        then_branch = t () => (float[N,4] ty) { inner = Exp (r)  ty = Neg (inner) },
        else_branch = e () => (float[N,4] ey) { ey = Identity (r) }
    >
    kept = Compress <axis = 0> (i, none)
    y = Add (i, r)
}
"""


def test_bodies_are_opaque_and_what_nothing_reaches_says_so() -> None:
    proto = onnx.parser.parse_model(CONTROL)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, bool), "none"))
    model = load(proto)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((3, 4)).astype(np.float32), "flag": np.array(k % 2 == 0)} for k in range(4)]
    context = RunContext(model, calibration=open_data(feeds, model.signature))
    inside, outside, never = Stat("inner", MinMax()), Stat("i", MinMax()), Stat("kept", Moments(axis=-1))
    found = context.collect([inside, outside, never])
    assert "bodies of If, Loop and Scan" in found.why(inside)
    assert "no data reached it" in found.why(never)
    expected = [np.maximum(f["x"], 0) for f in feeds]
    expected = [-np.exp(r) if f["flag"] else r for r, f in zip(expected, feeds, strict=True)]
    assert found[outside].low == np.concatenate(expected).min()


def test_progress_counts_batches(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, int, str]] = []
    model = mlp()
    caplog.set_level(logging.INFO)
    context = RunContext(model, calibration=batches(model, SIZES), progress=lambda *at: told.append(at))
    context.collect([Stat("a", Gram())])
    assert [at[:2] for at in told] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert {at[2] for at in told} == {"statistics of 1 tensor"}
    (estimate,) = (record.message for record in caplog.records if "samples" in record.message)
    assert re.fullmatch(
        r"1 statistics of 10 samples: one pass over the data, \d+ MiB of memory besides the session's, 1 MiB on disk",
        estimate,
    )


def test_a_run_outlives_the_garbage_of_an_earlier_one_in_its_folder(tmp_path: Path) -> None:
    model, stat = mlp(), Stat("x", Gram())
    wide = open_data({"x": np.random.default_rng(0).standard_normal((40, 3, 6)).astype(np.float32)}, model.signature)
    first, second = (Calibration(wide, tmp_path) for _ in range(2))
    stats = [Stat("a", Gram()), stat, Stat("a", Histogram())]
    first.collect(model, stats)
    found = second.collect(model, stats)
    del first
    gc.collect()
    assert all(found[each] is not None for each in stats)
