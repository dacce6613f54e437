"""What is run in the worker process: module-level functions whose arguments and results travel between processes."""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import onnxruntime as ort

from onnxopt.backends import machine, timing
from onnxopt.backends.sessions import SessionMode, open_session, run

StrPath = str | PathLike[str]

_SESSIONS_KEPT = 4
# Below this share of the memory no session is kept for later.
_MEMORY_SHARE = 0.25
# Larger files take longer to write than the file system's clock ticks: their times tell them apart.
_DIGEST_BYTES = 16 << 20


@dataclass(frozen=True)
class Port:
    """An input or output as ONNX Runtime describes it: type such as "tensor(float)"; sizes int, symbol or None."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class LoadReport:
    """A model that loaded.

    Attributes:
        inputs, outputs: its signature as ONNX Runtime sees it.
        seconds: how long loading took.
        resident_bytes: memory that the session holds (None: the system does not tell).
        peak_bytes: the most that loading took (None: the system does not tell).
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    seconds: float
    resident_bytes: int | None
    peak_bytes: int | None


class SessionCache:
    """The sessions used last: few, and none while memory is scarce. A file that was written again is opened again."""

    def __init__(self) -> None:
        self.threads: int | None = 1
        self._sessions: OrderedDict[tuple[object, ...], ort.InferenceSession] = OrderedDict()

    def get(self, path: StrPath, mode: SessionMode) -> ort.InferenceSession:
        """The session for `path`, opened unless it is there.

        Raises:
            ModelError, KernelError: see `open_session`.
        """
        key = self._key(path, mode)
        if key in self._sessions:
            self._sessions.move_to_end(key)
            return self._sessions[key]
        if machine.free_memory_bytes() < _MEMORY_SHARE * machine.total_memory_bytes():
            self.clear()
        while len(self._sessions) >= _SESSIONS_KEPT:
            self._sessions.popitem(last=False)
        session = open_session(path, mode, threads=self.threads)
        self._sessions[key] = session
        return session

    def clear(self) -> None:
        """Forget all sessions and with them their memory."""
        self._sessions.clear()

    def _key(self, path: StrPath, mode: SessionMode) -> tuple[object, ...]:
        return (Path(path).resolve(), _identity(Path(path)), mode, self.threads)


def _identity(path: Path) -> tuple[object, ...]:
    """What changes when the model is written again: its digest, and times and sizes of the files named after it.

    Time and size alone miss a small file that is written twice within one tick of the file system's clock, a digest
    alone misses external data.
    """
    try:
        files = sorted((each.name, each.stat()) for each in os.scandir(path.parent) if each.name.startswith(path.stem))
        content = path.read_bytes() if path.stat().st_size <= _DIGEST_BYTES else b""
    except OSError:
        return ()  # opening it will say what is wrong
    return (hashlib.blake2b(content).digest(), *((name, status.st_mtime_ns, status.st_size) for name, status in files))


sessions = SessionCache()


def run_batches(path: StrPath, mode: SessionMode, feeds: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All outputs for each set of inputs.

    Raises:
        ModelError, DataError: see `sessions.open_session` and `sessions.run`.
    """
    session = sessions.get(path, mode)
    return [run(session, values) for values in feeds]


def load_check(path: StrPath, mode: SessionMode) -> LoadReport:
    """Load the model and report what it took. No other session is kept meanwhile; this one is, for the next job.

    Raises:
        ModelError: the model does not load.
    """
    sessions.clear()
    before = machine.resident_bytes()
    fresh_peak = machine.reset_peak_memory()
    start = time.perf_counter()
    session = sessions.get(path, mode)
    seconds = time.perf_counter() - start
    after, peak = machine.resident_bytes(), machine.peak_memory_bytes()
    return LoadReport(
        inputs=_ports(session.get_inputs()),
        outputs=_ports(session.get_outputs()),
        seconds=seconds,
        resident_bytes=max(0, after - before) if after is not None and before is not None else None,
        peak_bytes=max(0, peak - before) if fresh_peak and peak is not None and before is not None else None,
    )


def _ports(arguments: Iterable[Any]) -> tuple[Port, ...]:
    return tuple(Port(each.name, each.type, tuple(each.shape)) for each in arguments)


def latency(
    paths: Sequence[StrPath],
    feeds: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    seconds: float = 2.0,
) -> list[timing.Latency]:
    """`timing.latency` of models as they are deployed, with this worker's threads and nothing else in memory."""
    sessions.clear()
    return timing.latency(paths, feeds, threads=sessions.threads, seconds=seconds)


def drop_sessions() -> None:
    """Forget all sessions that earlier jobs left open."""
    sessions.clear()
