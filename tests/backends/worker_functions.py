"""Functions that the worker's tests call by name; the worker imports this file, not the tests."""

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import ModelError


class AwkwardError(Exception):
    """Pickles, but does not come back: the constructor wants two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def echo(*values: Any) -> Any:
    return values


def process_id() -> int:
    return os.getpid()


def abort() -> None:
    print("about to abort", flush=True)
    os.abort()


def segfault() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    os._exit(code)


def leave_politely(code: int) -> None:
    sys.exit(code)


def kill_self() -> None:
    os.kill(os.getpid(), 9)


def chatter() -> str:
    """Writes on every way to standard output, and reads standard input."""
    print("python's own")
    os.write(1, b"\n--- onnxopt worker ready ---\nfile descriptor 1\n")
    os.system("echo a child of the child")
    sys.stdout.flush()
    return sys.stdin.read()


def busy(seconds: float) -> None:
    """Holds the interpreter as a numerical loop in Python does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def refuse() -> None:
    raise ModelError("node 'X' is wrong")


def raise_awkward() -> None:
    raise AwkwardError("one", "two")


def return_unpicklable() -> Any:
    return lambda: None


def allocate(size: int) -> int:
    return int(np.ones(size, np.uint8).sum())


def working_folder() -> Path:
    return Path.cwd()


def environment(name: str) -> str | None:
    return os.environ.get(name)


def ignores_interrupts() -> bool:
    os.kill(os.getpid(), 2)
    return True


def twice(array: np.ndarray) -> np.ndarray:
    array *= 2  # received arrays are ours to write
    return array
