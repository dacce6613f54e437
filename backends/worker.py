"""The worker: one process, kept for a whole run, in which models are run.

A crash of the runtime, or an end for lack of memory, is then an answer (`WorkerDied`) and not our own end. The process
is an interpreter of its own that imports nothing of the caller's main module, so a Worker can be used from scripts
without a main guard, from `python -c` and from notebooks. Requests and replies are pickles on the process's own pipes;
what the libraries in it print goes to a file and becomes log lines.
"""

import contextlib
import json
import logging
import numbers
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from onnxopt.backends import frames
from onnxopt.backends.serve import READY
from onnxopt.errors import OnnxOptError

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

_START = (
    "import sys; sys.path[:] = sys.argv[1].splitlines(); from onnxopt.backends.serve import serve; serve(sys.argv[2])"
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SECONDS_TO_END = 2.0
_CHARACTERS_OF_OUTPUT = 2000


class WorkerDied(OnnxOptError):
    """The worker process ended in the middle of a call: a crash, no memory, or a time limit.

    Attributes:
        returncode: the process's exit status; negative is the signal that ended it.
        timed_out: whether it was ended because the call took too long.
    """

    def __init__(self, message: str, returncode: int | None = None, timed_out: bool = False) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.timed_out = timed_out


class Worker:
    """Calls functions in one other process that is started when needed and started anew after it died.

    Calls from several threads take turns. Use it in a `with` block; the process also ends when this one does.
    """

    def __init__(self, *, threads: int | None = 1, memory_limit: int | None = None) -> None:
        """
        Args:
            threads: threads of the sessions (and of numpy) there; None leaves the number to the libraries.
            memory_limit: bytes of private memory that the process may hold, enforced on Linux; what asks for more
                fails with an error instead of driving the machine out of memory.
        """
        self._threads = threads
        self._memory_limit = memory_limit
        self._process: _Process | None = None
        self._closed = False
        self._peak: int | None = None
        self._turn = threading.RLock()

    def __enter__(self) -> Self:
        # Started here so that its imports run beside what the caller does before the first call.
        self._running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Identifier of the running process; None while there is none."""
        return None if self._process is None else self._process.pid

    def call(
        self, function: Callable[..., Result] | str, *args: Any, timeout: float | None = None, **options: Any
    ) -> Result:
        """`function(*args, **options)`, computed in the worker.

        Args:
            function: a function of a module that can be imported, or "module:name". The worker sees this process's
                module search path and working folder as they are now.
            timeout: seconds after which the process is ended; None waits.

        Raises:
            WorkerDied: the process ended instead of answering. The next call starts a new one.
            OnnxOptError: the worker ran out of memory.
            Exception: whatever the function raised, as it was; a note holds the worker's traceback.
        """
        name = function if isinstance(function, str) else _name_of(function)
        request = frames.encode((name, args, options, _working_folder(), _search_path()))
        with self._turn:
            process = self._running()
            try:
                reply = process.ask(request, timeout)
            except (EOFError, OSError) as error:
                self._process = None
                raise process.obituary(_described(name, args)) from error
            except BaseException:  # interrupted half way: its next answer would belong to this call
                self._process = None
                process.kill()
                raise
        succeeded, value, peak = frames.decode(reply)
        self._peak = max(filter(None, (self._peak, peak)), default=None)
        if not succeeded:
            raise value
        result: Result = value
        return result

    def peak_memory(self) -> int | None:
        """The most resident memory in bytes that one process of this worker has had, as of its last answer.

        Of a process that died during a call what it had before counts. None: there was no answer yet, or the system
        does not tell.
        """
        return self._peak

    def stop(self) -> None:
        """End the process, and so give back all its memory; the next call starts a new one."""
        with self._turn:
            process, self._process = self._process, None
            if process is not None:
                process.end()

    def close(self) -> None:
        """End the process for good."""
        self._closed = True
        self.stop()

    def _running(self) -> "_Process":
        if self._closed:
            raise ValueError("the worker is closed")
        if self._process is not None and not self._process.alive():
            self.stop()
        if self._process is None:
            self._process = _Process(self._threads, self._memory_limit)
        return self._process


class _Process:
    """The caller's side of one worker process."""

    def __init__(self, threads: int | None, memory_limit: int | None) -> None:
        self._output = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed when the process has ended)
        self._told = 0
        self._ready = False
        self._timed_out = False
        settings = json.dumps({"threads": threads, "memory_limit": memory_limit})
        variables = {} if threads is None else dict.fromkeys(_THREAD_VARIABLES, str(threads))
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, "\n".join(_search_path()), settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env=os.environ | variables,
        )
        self.pid = self._popen.pid

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._popen.stdin is not None and self._popen.stdout is not None
        return self._popen.stdin, self._popen.stdout

    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, request: frames.Frame, timeout: float | None) -> frames.Frame:
        """Send `request` and wait for the reply; EOFError or OSError when the process is gone."""
        requests, replies = self._pipes
        with self._time_limit(timeout):
            if not self._ready:
                frames.skip_to(replies, READY)
                self._ready = True
            frames.write(requests, request)
            reply = frames.read(replies)
        if self._timed_out:  # the limit struck while the reply was on its way
            raise EOFError
        for line in self._new_output().splitlines():
            _log.debug("worker: %s", line)
        return reply

    @contextlib.contextmanager
    def _time_limit(self, seconds: float | None) -> Iterator[None]:
        if seconds is None:
            yield
            return

        def end() -> None:
            self._timed_out = True
            self._popen.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _new_output(self) -> str:
        """What the process printed since the last time."""
        self._output.seek(self._told)
        text = self._output.read()
        self._told += len(text)
        return text.decode(errors="replace")

    def obituary(self, what: str) -> WorkerDied:
        """Why the process is gone, as an error that tells what it was doing; its last output is a note."""
        self._close_pipes()
        try:
            code = self._popen.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            code = self._popen.wait()
        output = self._new_output()[-_CHARACTERS_OF_OUTPUT:]
        self._output.close()
        error = WorkerDied(f"the worker process {self._cause(code)} while running {what}", code, self._timed_out)
        if output:
            error.add_note(f"it printed:\n{output}")
        return error

    def _cause(self, code: int) -> str:
        if self._timed_out:
            return "took longer than allowed and was ended"
        if code >= 0:
            return f"ended with exit code {code}"
        if -code not in set(signal.Signals):
            return f"crashed (signal {-code})"
        name = signal.Signals(-code).name
        return f"was killed ({name}; most likely too little memory)" if name == "SIGKILL" else f"crashed ({name})"

    def end(self) -> None:
        """End it by closing its pipe, which it heeds at once even when busy; by force if that does not help."""
        self._close_pipes()
        try:
            self._popen.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.kill()
        self._output.close()

    def kill(self) -> None:
        """End it by force."""
        self._popen.kill()
        self._popen.wait()
        self._close_pipes()
        self._output.close()

    def _close_pipes(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # what was not yet written has no reader
                pipe.close()


def _name_of(function: Callable[..., object]) -> str:
    """ "module:name" of a function that another process can import."""
    module, name = function.__module__, function.__qualname__
    if module == "__main__" or "<" in name:
        raise ValueError(f"{module}.{name} cannot be called in the worker: move it to the top of an importable module")
    return f"{module}:{name}"


def _search_path() -> list[str]:
    """This process's module search path, with the working folder where it says so by an empty entry."""
    return [entry or _working_folder() or "." for entry in sys.path]


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _described(name: str, args: tuple[object, ...]) -> str:
    """The call as text: paths and numbers as they are, what may be large as dots."""
    shown = (
        repr(os.fspath(arg))
        if isinstance(arg, str | os.PathLike)
        else str(arg)
        if isinstance(arg, numbers.Number)
        else "..."
        for arg in args
    )
    return f"{name.partition(':')[2]}({', '.join(shown)})"
