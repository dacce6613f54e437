"""The worker: answers, deaths of every kind, and that nothing is left behind."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import onnxopt
from onnxopt.backends.worker import Worker, WorkerDied
from onnxopt.errors import ModelError, OnnxOptError

HERE = Path(__file__).parent
ROOT = str(Path(onnxopt.__file__).resolve().parents[1])
posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups of POSIX")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture(scope="module")
def shared_worker():
    """One worker for all tests that leave it alive, or that show that it comes back."""
    sys.path.insert(0, str(HERE))
    with Worker() as worker:
        yield worker
    sys.path.remove(str(HERE))


@pytest.fixture
def worker(shared_worker):
    return shared_worker


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# Answers


def test_values_go_there_and_back(worker):
    values = ("text", 1.5, None, {"a": [np.arange(6).reshape(2, 3).T, np.array("s")]}, Path("x"))
    back = worker.call("worker_functions:echo", *values)
    assert back[:3] == values[:3]
    assert back[4] == values[4]
    np.testing.assert_array_equal(back[3]["a"][0], values[3]["a"][0])
    assert back[3]["a"][1] == values[3]["a"][1]


def test_it_is_one_other_process(worker):
    first = worker.call("worker_functions:process_id")
    assert first == worker.call("worker_functions:process_id") == worker.pid
    assert first != os.getpid()


def test_functions_by_reference_and_options(worker):
    assert worker.call(sorted, [1, 3, 2], reverse=True) == [3, 2, 1]


def test_large_arrays_are_writable_there(worker):
    array = np.arange(1 << 20, dtype=np.float32)
    np.testing.assert_array_equal(worker.call("worker_functions:twice", array), 2 * array)
    assert array[1] == 1


def test_it_follows_the_working_folder_and_the_search_path(worker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert worker.call("worker_functions:working_folder") == tmp_path.resolve()
    (tmp_path / "late_module.py").write_text("def answer():\n    return 42\n")
    with pytest.raises(ModuleNotFoundError):
        worker.call("late_module:answer")
    monkeypatch.syspath_prepend(tmp_path)
    assert worker.call("late_module:answer") == 42


def test_standard_output_is_not_the_protocol(worker, caplog):
    with caplog.at_level(logging.DEBUG, "onnxopt.backends.worker"):
        assert worker.call("worker_functions:chatter") == ""
    logged = [record.message for record in caplog.records]
    for line in ("python's own", "file descriptor 1", "a child of the child"):
        assert f"worker: {line}" in logged
    assert worker.call("worker_functions:echo", 1) == (1,)


def test_threads_reach_the_libraries(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    with Worker(threads=3) as worker:
        assert worker.call("worker_functions:environment", "OMP_NUM_THREADS") == "3"


def test_calls_of_several_threads_take_turns(worker):
    answers = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.update({n: worker.call("worker_functions:echo", n)}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: (n,) for n in range(8)}


# Errors that come back


def test_errors_come_back_as_they_are(worker):
    with pytest.raises(ModelError) as caught:
        worker.call("worker_functions:refuse")
    assert str(caught.value) == "node 'X' is wrong"
    assert "in refuse" in caught.value.__notes__[0]


def test_errors_that_do_not_survive_the_way_come_back_as_text(worker):
    with pytest.raises(OnnxOptError) as caught:
        worker.call("worker_functions:raise_awkward")
    assert str(caught.value) == "AwkwardError: onetwo"
    assert "in raise_awkward" in caught.value.__notes__[0]


def test_results_that_cannot_be_sent_are_an_error(worker):
    pid = worker.pid
    with pytest.raises((AttributeError, TypeError, OnnxOptError), match="pickle"):
        worker.call("worker_functions:return_unpicklable")
    assert worker.pid == pid


def test_arguments_that_cannot_be_sent_leave_the_worker_alone(worker):
    worker.call("worker_functions:process_id")
    pid = worker.pid
    with pytest.raises((AttributeError, TypeError)):
        worker.call("worker_functions:echo", lambda: None)
    assert worker.call("worker_functions:process_id") == pid


@pytest.mark.parametrize("name", ["no_such_module:f", "worker_functions:no_such_function"])
def test_functions_that_do_not_exist(worker, name):
    with pytest.raises((ImportError, AttributeError), match="no_such"):
        worker.call(name)


def test_functions_that_another_process_cannot_find_are_refused(worker):
    with pytest.raises(ValueError, match="importable module"):
        worker.call(lambda: None)


@linux
def test_memory_limit_makes_an_error_of_it(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    with Worker(memory_limit=1 << 30) as worker:
        assert worker.call("worker_functions:allocate", 1 << 20) == 1 << 20
        with pytest.raises(OnnxOptError, match=r"no memory left in the worker: .*allocate"):
            worker.call("worker_functions:allocate", 1 << 31)
        assert worker.call("worker_functions:allocate", 10) == 10


def test_peak_memory_is_the_workers(worker):
    worker.call("worker_functions:echo")
    before = worker.peak_memory()
    if before is None:
        pytest.skip("the system does not tell")
    worker.call("worker_functions:allocate", before)
    assert worker.peak_memory() > 1.2 * before


def test_peak_memory_is_that_of_the_largest_process(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    with Worker() as worker:
        assert worker.peak_memory() is None
        worker.call("worker_functions:allocate", 300 << 20)
        peak, first = worker.peak_memory(), worker.pid
        if peak is None:
            pytest.skip("the system does not tell")
        with pytest.raises(WorkerDied):
            worker.call("worker_functions:leave", 1)
        with pytest.raises(ModuleNotFoundError):
            worker.call("nowhere:nothing")
        assert worker.pid != first
        assert worker.peak_memory() == peak > 300 << 20


# Deaths


DEATHS = {
    "abort": ("abort", (), "crashed (SIGABRT) while running abort()", -6),
    "segfault": ("segfault", (), "crashed (SIGSEGV) while running segfault()", -11),
    "no memory": ("kill_self", (), "was killed (SIGKILL; most likely too little memory) while running kill_self()", -9),
    "exit": ("leave", (7,), "ended with exit code 7 while running leave(7)", 7),
    "polite exit": ("leave_politely", (3,), "ended with exit code 3 while running leave_politely(3)", 3),
}


@posix
@pytest.mark.parametrize("case", DEATHS)
def test_a_death_is_an_answer_and_the_next_call_works(worker, case):
    function, args, expected, returncode = DEATHS[case]
    with pytest.raises(WorkerDied) as caught:
        worker.call(f"worker_functions:{function}", *args)
    assert str(caught.value) == f"the worker process {expected}"
    assert caught.value.returncode == returncode
    assert not caught.value.timed_out
    assert worker.call("worker_functions:echo", 1) == (1,)


@posix
def test_the_last_words_are_a_note(worker):
    with pytest.raises(WorkerDied) as caught:
        worker.call("worker_functions:abort")
    (note,) = caught.value.__notes__
    assert "about to abort" in note
    assert "worker_functions.py" in note


def test_arguments_in_messages_stay_short(worker):
    with pytest.raises(WorkerDied, match=r"while running _exit\(5\)") as caught:
        worker.call("os:_exit", 5)
    assert len(str(caught.value)) < 100


@posix
def test_time_limit(worker):
    start = time.monotonic()
    with pytest.raises(WorkerDied, match=r"took longer than allowed and was ended while running busy\(60\)") as caught:
        worker.call("worker_functions:busy", 60, timeout=0.3)
    assert caught.value.timed_out
    assert time.monotonic() - start < 10
    assert worker.call("worker_functions:echo", 1, timeout=60) == (1,)


@posix
def test_death_between_calls_is_no_error(worker):
    worker.call("worker_functions:echo")
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    # All its threads must have gone: until then the system does not call it dead.
    ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
    assert wait_until(lambda: os.waitid(os.P_PID, pid, ended) is not None, 5)
    assert worker.call("worker_functions:process_id") != pid


@linux
def test_close_ends_the_process_and_is_final():
    with Worker() as worker:
        pid = worker.pid
        assert alive(pid)
    assert not alive(pid)
    assert worker.pid is None
    worker.close()
    with pytest.raises(ValueError, match="closed"):
        worker.call("os:getpid")


@linux
def test_stop_gives_the_process_back_until_the_next_call(worker):
    pid = worker.call("worker_functions:process_id")
    worker.stop()
    assert not alive(pid)
    assert worker.call("worker_functions:process_id") != pid


@posix
def test_interrupts_are_the_callers(worker):
    pid = worker.call("worker_functions:process_id")
    assert worker.call("worker_functions:ignores_interrupts")
    assert worker.call("worker_functions:process_id") == pid


# Callers of every kind


def start(code: str, *, stdin: bool = False, file: Path | None = None, **options) -> subprocess.Popen[str]:
    """A Python process that runs `code`: with -c, from standard input, or as a script without a main guard."""
    code = f"import sys; sys.path[:0] = {[ROOT, str(HERE)]!r}\n" + textwrap.dedent(code)
    arguments = ["-"] if stdin else ["-c", code]
    if file is not None:
        file.write_text(code)
        arguments = [str(file)]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )
    if stdin:
        process.stdin.write(code)
        process.stdin.close()
    return process


CALLER = """
    print("main runs", flush=True)
    from onnxopt.backends.worker import Worker
    with Worker() as worker:
        print(worker.call("worker_functions:echo", 5), worker.pid, flush=True)
"""


@pytest.mark.parametrize("way", ["-c", "stdin", "script"])
def test_the_callers_main_is_not_run_again(tmp_path, way):
    process = start(CALLER, stdin=way == "stdin", file=tmp_path / "script.py" if way == "script" else None)
    output = process.stdout.read()
    process.stdout.close()
    if not process.stdin.closed:
        process.stdin.close()
    assert process.wait(30) == 0
    lines = output.splitlines()
    assert lines[0] == "main runs"
    assert lines[1].startswith("(5,) ")
    assert len(lines) == 2
    assert not alive(int(lines[1].split()[1]))


def test_functions_of_a_main_module_are_refused():
    process = start(
        """
        from onnxopt.backends.worker import Worker
        def own(): pass
        try:
            Worker().call(own)
        except ValueError as error:
            print(error)
        """
    )
    output, _ = process.communicate(timeout=30)
    assert "__main__.own cannot be called in the worker: move it to the top of an importable module" in output


ORPHANING = {
    "idle": "worker.call('worker_functions:echo')",
    "busy": "threading.Thread(target=worker.call, args=('worker_functions:busy', 60), daemon=True).start()",
}


@linux
@pytest.mark.parametrize("state", ORPHANING)
def test_no_child_survives_a_killed_caller(state):
    process = start(
        f"""
        import threading, time
        from onnxopt.backends.worker import Worker
        worker = Worker()
        worker.call("worker_functions:echo")
        {ORPHANING[state]}
        time.sleep(0.1)
        print(worker.pid, flush=True)
        time.sleep(60)
        """
    )
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.kill()
    process.communicate()
    assert wait_until(lambda: not alive(pid), 2)


@linux
def test_ctrl_c_ends_both_and_leaves_no_zombie():
    process = start(
        """
        import os, signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
        from onnxopt.backends.worker import Worker
        worker = Worker()
        worker.call("worker_functions:echo")
        pid = worker.pid
        print(pid, flush=True)
        try:
            worker.call("worker_functions:busy", 60)
        except KeyboardInterrupt:
            print("interrupted", os.path.exists(f"/proc/{pid}"), worker.pid, flush=True)
        print(worker.call("worker_functions:echo", "again"), flush=True)
        """,
        start_new_session=True,
    )
    pid = int(process.stdout.readline())
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output.splitlines() == ["interrupted False None", "('again',)"]
    assert not alive(pid)


def test_start_up_output_is_skipped(monkeypatch, tmp_path):
    """A customised interpreter may print before the worker has its pipes."""
    noise = "print('welcome to this interpreter')\nimport os\nos.write(1, b'no newline at the end')\n"
    (tmp_path / "sitecustomize.py").write_text(noise)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(HERE)
    with Worker() as worker:
        assert worker.call("worker_functions:echo", 1) == (1,)


def test_a_worker_that_cannot_start_says_why(monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no runtime here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Worker() as worker, pytest.raises(WorkerDied, match="exit code 1") as caught:
        worker.call("worker_functions:echo")
    assert "no runtime here" in caught.value.__notes__[0]


def test_it_is_light_to_import():
    """The caller of a worker pays for neither numpy nor ONNX Runtime."""
    process = start("import onnxopt.backends.worker; print(sorted({'numpy', 'onnxruntime'} & set(sys.modules)))")
    assert process.communicate(timeout=30)[0].strip() == "[]"
