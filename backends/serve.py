"""The worker process's own side: reads requests, runs them, answers, and ends when its caller does."""

import contextlib
import faulthandler
import importlib
import json
import operator
import os
import queue
import signal
import sys
import threading
import traceback
from typing import IO, Any

from onnxopt.backends import frames, machine
from onnxopt.errors import OnnxOptError

# Printed once the pipes are the protocol's alone: whatever start-up files print comes before and is skipped.
READY = b"--- onnxopt worker ready ---\n"


def serve(settings: str) -> None:
    """Answer requests until the caller closes its end of the pipe. Never returns.

    Args:
        settings: JSON with `threads` (of sessions; null: the runtime's choice) and `memory_limit` (bytes or null).
    """
    options = json.loads(settings)
    requests, replies = _take_pipes()
    _prepare_process(options["memory_limit"])
    replies.write(READY)
    replies.flush()
    waiting: queue.SimpleQueue[frames.Frame] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, waiting), daemon=True).start()

    from onnxopt.backends import jobs  # imports ONNX Runtime: while the caller still prepares its first request

    jobs.sessions.threads = options["threads"]
    with contextlib.suppress(OSError):  # the caller is gone
        while True:
            frames.write(replies, _answer(waiting.get()))
    os._exit(0)


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The protocol's streams, out of reach of all others: fd 0 becomes empty, fd 1 goes where fd 2 goes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return requests, replies


def _prepare_process(memory_limit: int | None) -> None:
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle; it ends us by closing the pipe
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit is not None:
        # Private writable memory: unlike the address space it leaves out reserved and memory-mapped ranges.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, hard))


def _receive(requests: IO[bytes], waiting: "queue.SimpleQueue[frames.Frame]") -> None:
    """Collect requests beside the running one; the pipe's end ends the process even in the middle of a job."""
    try:
        while True:
            waiting.put(frames.read(requests))
    except (EOFError, OSError, MemoryError):
        os._exit(0)


def _answer(frame: frames.Frame) -> frames.Frame:
    """The reply to a request: (True, result, peak) or (False, exception, peak); the peak is the process's memory."""
    try:
        name, args, options, folder, search_path = frames.decode(frame)
        sys.path[:] = search_path
        if folder is not None:
            os.chdir(folder)
        return _encoded(True, _function(name)(*args, **options))
    except MemoryError as error:
        return _encoded(False, OnnxOptError(f"no memory left in the worker: {error or type(error).__name__}"))
    except Exception as error:
        error.add_note("in the worker:\n" + "".join(traceback.format_exception(error)))
        return _encode_error(error)
    finally:
        sys.stdout.flush()


def _function(name: str) -> Any:
    module, _, path = name.partition(":")
    return operator.attrgetter(path)(importlib.import_module(module))


def _encode_error(error: Exception) -> frames.Frame:
    """`error` as it is, or its text where it does not survive the way."""
    with contextlib.suppress(Exception):
        frame = _encoded(False, error)
        frames.decode(frame)
        return frame
    plain = OnnxOptError(f"{type(error).__name__}: {error}")
    plain.__notes__ = [str(note) for note in error.__notes__]
    return _encoded(False, plain)


def _encoded(succeeded: bool, value: object) -> frames.Frame:
    return frames.encode((succeeded, value, machine.peak_memory_bytes()))
