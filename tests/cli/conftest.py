"""The command line called in this process, and a folder with small models to call it on."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt import models
from onnxopt.backends import worker
from onnxopt.backends.jobs import latency
from onnxopt.cli import main
from onnxopt.models.builders import Sketch


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    def refusal(self, code: int) -> str:
        """The one line that says why the command was refused; progress may stand before it, nothing after it."""
        assert self.out == ""
        told = [line for line in self.err.splitlines() if not line.startswith("[")]
        assert len(told) == 1, self.err
        assert told[0] == self.err.splitlines()[-1]
        assert told[0].startswith("error: "), told[0]
        assert self.code == code, told[0]
        return told[0]


Cli = Callable[..., Ran]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """`cli("run", "m.onnx", ...)`: exit code and what was printed."""
    level = logging.getLogger("onnxopt").level

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["onnxopt", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    yield call
    logging.getLogger("onnxopt").setLevel(level)


@pytest.fixture
def spawn() -> Cli:
    """`spawn("run", ..., first="code")`: the same in a process of its own, after some lines of code."""

    def call(*arguments: object, first: str = "") -> Ran:
        code = f"{first}\nfrom onnxopt.cli import main\nmain()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return call


@pytest.fixture(scope="package", autouse=True)
def warm_workers() -> Iterator[None]:
    """Commands called in this process share worker processes, and time models briefly: most of a small run's seconds.

    What starts and ends with a run of its own is tested with `spawn`, and in `tests/backends`.
    """

    class Kept(worker._Process):
        def __init__(self, threads: int | None, memory_limit: int | None) -> None:
            super().__init__(threads, memory_limit)
            self.settings = threads, memory_limit

        def end(self) -> None:
            idle.setdefault(self.settings, []).append(self)

    idle: dict[tuple[int | None, int | None], list[Kept]] = {}

    def started(threads: int | None, memory_limit: int | None) -> Kept:
        waiting = [process for process in idle.pop((threads, memory_limit), []) if process.alive()]
        found = waiting.pop() if waiting else Kept(threads, memory_limit)
        idle[threads, memory_limit] = waiting
        return found

    def called(self: worker.Worker, function: Any, *arguments: Any, **options: Any) -> Any:
        if function is latency:
            options["seconds"] = min(0.2, options.get("seconds", 0.2))
        return call(self, function, *arguments, **options)

    call = worker.Worker.call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_Process", started)
        patch.setattr(worker.Worker, "call", called)
        yield
    for process in (process for waiting in idle.values() for process in waiting):
        super(Kept, process).end()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., onnx.ModelProto]:
    """`tiny(width)`: a model of one weight, and of one node that `clean` takes away."""
    return _tiny


def _tiny(width: int = 8) -> onnx.ModelProto:
    sketch = Sketch()
    x = sketch.input("x", ["n", 8])
    y = sketch.node("MatMul", x, sketch.random("w", 8, width), outputs=["hidden"])
    z = sketch.node("Relu", sketch.node("Identity", y), outputs=["y"])
    sketch.output(z, ["n", width])
    return sketch.model()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test: `tiny.onnx` and data for it, `x.npz`."""
    monkeypatch.chdir(tmp_path)
    onnx.save(_tiny(), "tiny.onnx")
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32))
    return tmp_path


@pytest.fixture
def digits(folder: Path) -> Path:
    """The same with a model that ships, `cnn.onnx`, and its data, `calib.npz` and `eval.npz`."""
    source = models.path("digits-cnn")
    shutil.copy(source, "cnn.onnx")
    for part in ("calib", "eval"):
        shutil.copy(source.with_name(f"digits.{part}.npz"), f"{part}.npz")
    return folder
