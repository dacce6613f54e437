"""Jobs: what the worker computes equals what is computed here, and its sessions are never stale."""

import os
import sys
import weakref

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxopt.backends import jobs, machine
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.backends.worker import Worker
from onnxopt.errors import DataError, ModelError

X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
REFERENCE = SessionMode.REFERENCE


@pytest.fixture(autouse=True)
def _no_sessions():
    """Each test begins and ends with an empty cache in this process."""
    jobs.sessions.clear()
    yield
    jobs.sessions.clear()


@pytest.fixture(scope="module")
def worker():
    with Worker() as worker:
        yield worker


def test_run_batches_in_the_worker(worker, matmul):
    path = matmul(factor=3)
    expected = run(open_session(path, REFERENCE), X)
    results = worker.call(jobs.run_batches, path, REFERENCE, [X, X])
    assert len(results) == 2
    for result in results:
        np.testing.assert_array_equal(result["y"], expected["y"])


def test_errors_of_the_runtime_cross_the_border(worker, matmul, build, tmp_path):
    with pytest.raises(DataError, match="input 'x' takes float32"):
        worker.call(jobs.run_batches, matmul(), REFERENCE, [{"x": np.ones((2, 4), np.float32)}])
    unknown = build([helper.make_node("F", ["x"], ["y"], name="X", domain="com.acme")], domains={"com.acme": 1})
    (tmp_path / "unknown.onnx").write_bytes(unknown.SerializeToString())
    with pytest.raises(ModelError, match=r"node 'X' \(op F, domain com.acme\) has no kernel"):
        worker.call(jobs.load_check, tmp_path / "unknown.onnx", REFERENCE)


def test_load_check(worker, matmul):
    report = worker.call(jobs.load_check, matmul(size=3), REFERENCE)
    assert report.inputs == (jobs.Port("x", "tensor(float)", ("N", 3)),)
    assert report.outputs == (jobs.Port("y", "tensor(float)", ("N", 3)),)
    assert 0 < report.seconds < 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets the peak")
def test_load_check_measures_memory(worker, matmul):
    size = 4 * 1500**2
    report = worker.call(jobs.load_check, matmul(size=1500), REFERENCE)
    assert report.resident_bytes > 0.8 * size
    assert report.peak_bytes > 0.8 * size
    small = worker.call(jobs.load_check, matmul("small.onnx"), REFERENCE)
    assert small.peak_bytes < 0.5 * size


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets the peak")
def test_the_first_model_of_a_process_is_not_charged_for_imports(matmul):
    with Worker() as fresh:
        report = fresh.call(jobs.load_check, matmul(), REFERENCE)
    assert report.peak_bytes < 10e6
    assert report.seconds < 0.3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets the peak")
def test_footprint_holds_a_run(matmul):
    rows = np.ones((2_000_000, 3), np.float32)
    with Worker() as fresh:
        loaded = fresh.call(jobs.footprint, matmul(), X)
        ran = fresh.call(jobs.footprint, matmul(), {"x": rows})
    assert loaded.peak_bytes < 10e6
    assert ran.peak_bytes > 0.9 * rows.nbytes
    assert ran.inputs == loaded.inputs


def test_latency_in_the_worker(worker, matmul):
    first, second = worker.call(jobs.latency, [matmul("a.onnx"), matmul("b.onnx")], X, seconds=0.05)
    assert first.count == second.count >= 5
    assert first.ratio.median == 1


def test_threads_of_the_worker_are_those_of_its_sessions(matmul):
    with Worker(threads=2) as worker:
        assert worker.call("onnxopt.backends.jobs:sessions.threads.__int__") == 2


def test_sessions_are_kept(matmul):
    path = matmul()
    session = jobs.sessions.get(path, REFERENCE)
    assert jobs.sessions.get(str(path), REFERENCE) is session
    assert jobs.sessions.get(path, SessionMode.NOISE_ALL) is not session
    jobs.drop_sessions()
    assert jobs.sessions.get(path, REFERENCE) is not session


def test_a_rewritten_model_is_opened_again(matmul):
    """Same path, same size, same time: a clock that ticks slowly must not hide the change."""
    for factor in (1, 2, 3):
        path = matmul(factor=factor)
        os.utime(path, ns=(0, 0))
        (result,) = jobs.run_batches(path, REFERENCE, [X])
        np.testing.assert_array_equal(result["y"], factor * X["x"])


def test_rewritten_external_data_are_seen(build, tmp_path):
    """The model's file stays as it is; the file named after it changes."""
    model = build([helper.make_node("Mul", ["x", "w"], ["y"])], weights={"w": np.ones(3, np.float32)})
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="model.onnx.data")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    data = tmp_path / "model.onnx.data"
    for factor in (2, 3):
        data.unlink(missing_ok=True)
        data.write_bytes(np.full(3 + factor, factor, np.float32).tobytes())
        (result,) = jobs.run_batches(tmp_path / "model.onnx", REFERENCE, [X])
        np.testing.assert_array_equal(result["y"], factor * X["x"])


def test_only_the_sessions_used_last_are_kept(matmul):
    paths = [matmul(f"{index}.onnx") for index in range(5)]
    first = jobs.sessions.get(paths[0], REFERENCE)
    second = jobs.sessions.get(paths[1], REFERENCE)
    jobs.sessions.get(paths[2], REFERENCE)
    jobs.sessions.get(paths[3], REFERENCE)
    assert jobs.sessions.get(paths[0], REFERENCE) is first
    jobs.sessions.get(paths[4], REFERENCE)
    assert jobs.sessions.get(paths[0], REFERENCE) is first
    assert jobs.sessions.get(paths[1], REFERENCE) is not second


def test_no_session_is_kept_while_memory_is_scarce(matmul, monkeypatch):
    path, other = matmul("a.onnx"), matmul("b.onnx")
    first = jobs.sessions.get(path, REFERENCE)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 0)
    assert jobs.sessions.get(path, REFERENCE) is first
    jobs.sessions.get(other, REFERENCE)
    monkeypatch.undo()
    assert jobs.sessions.get(path, REFERENCE) is not first


def test_sessions_are_kept_as_long_as_they_leave_room(matmul, monkeypatch):
    """Three models of one size: with room for one session beside those that are open, the oldest makes way."""
    paths = [matmul(f"{index}.onnx", size=64) for index in range(3)]
    needed = machine.session_bytes(paths[0].stat().st_size)
    first, second = (jobs.sessions.get(path, REFERENCE) for path in paths[:2])
    room = iter([False, True])
    monkeypatch.setattr(machine, "has_room", lambda asked: asked == needed and next(room))
    jobs.sessions.get(paths[2], REFERENCE)
    monkeypatch.undo()
    assert jobs.sessions.get(paths[1], REFERENCE) is second
    assert jobs.sessions.get(paths[0], REFERENCE) is not first


def test_external_data_count_as_the_session_s_memory(build, tmp_path, monkeypatch):
    model = build([helper.make_node("Mul", ["x", "w"], ["y"])], weights={"w": np.ones(3, np.float32)})
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    weight.external_data.add(key="length", value="12")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "weights.bin").write_bytes(bytes(10**6))
    asked = []
    monkeypatch.setattr(machine, "has_room", lambda needed: asked.append(needed) or True)
    jobs.sessions.get(path, REFERENCE)
    jobs.sessions.get(path, SessionMode.NOISE_ALL)
    assert asked == [machine.session_bytes(10**6 + path.stat().st_size)]


def test_sessions_of_files_that_are_gone_or_replaced_are_closed(matmul):
    kept, gone, replaced = (matmul(name) for name in ("kept.onnx", "gone.onnx", "replaced.onnx"))
    session = jobs.sessions.get(kept, REFERENCE)
    ended = [weakref.ref(jobs.sessions.get(path, REFERENCE)) for path in (gone, replaced)]
    gone.unlink()
    matmul("replaced.onnx", factor=3)
    jobs.sessions.get(replaced, SessionMode.NOISE_ALL)
    assert [each() for each in ended] == [None, None]
    assert jobs.sessions.get(kept, REFERENCE) is session


def test_load_check_is_alone_in_memory_and_keeps_its_session(matmul):
    path, other = matmul("a.onnx"), matmul("b.onnx")
    first = jobs.sessions.get(path, REFERENCE)
    jobs.load_check(other, REFERENCE)
    kept = jobs.sessions.get(other, REFERENCE)
    assert jobs.sessions.get(path, REFERENCE) is not first
    assert jobs.sessions.get(other, REFERENCE) is kept
