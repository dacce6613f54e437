"""What is run in the worker process: module-level functions whose arguments and results travel between processes."""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxopt.backends import machine, timing
from onnxopt.backends.sessions import SessionMode, open_session, run

StrPath = str | PathLike[str]

_SESSIONS_KEPT = 4
# Larger files take longer to write than the file system's clock ticks: their times tell them apart.
_DIGEST_BYTES = 16 << 20
_SMALLEST = '<ir_version: 8, opset_import: ["": 13]> smallest (float[1] x) => (float[1] y) {y = Identity (x)}'


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


# Of a session: the file, what changes when it is written again, the mode, the threads.
_Key = tuple[Path, tuple[object, ...], SessionMode, int | None]


class SessionCache:
    """The sessions used last: as many as leave room for the next one, and few.

    A file that was written again is opened again; sessions of files that are gone or replaced are closed.
    """

    def __init__(self) -> None:
        self.threads: int | None = 1
        self._sessions: OrderedDict[_Key, ort.InferenceSession] = OrderedDict()

    def get(self, path: StrPath, mode: SessionMode) -> ort.InferenceSession:
        """The session for `path`, opened unless it is there.

        Raises:
            ModelError, KernelError: see `open_session`.
        """
        key = self._key(path, mode)
        if key in self._sessions:
            self._sessions.move_to_end(key)
            return self._sessions[key]
        self._close_stale(key)
        needed = machine.session_bytes(_file_bytes(Path(path)))
        while self._sessions and (len(self._sessions) >= _SESSIONS_KEPT or not machine.has_room(needed)):
            self._sessions.popitem(last=False)
        session = open_session(path, mode, threads=self.threads)
        self._sessions[key] = session
        return session

    def _close_stale(self, fresh: _Key) -> None:
        path, identity, *_ = fresh
        for key in list(self._sessions):
            if not key[0].exists() or (key[0] == path and key[1] != identity):
                del self._sessions[key]

    def clear(self) -> None:
        """Forget all sessions and with them their memory."""
        self._sessions.clear()

    def _key(self, path: StrPath, mode: SessionMode) -> _Key:
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


def _file_bytes(path: Path) -> int:
    """Size of a model file with its external data, which is about that of its weights."""
    from onnxopt.errors import ModelError
    from onnxopt.reading import external_files  # slow to import, and needed only where a file is opened

    try:
        files = [path, *external_files(path)]
    except ModelError:  # opening it will say what is wrong
        return 0
    return sum(file.stat().st_size for file in files)


sessions = SessionCache()


def run_batches(path: StrPath, mode: SessionMode, feeds: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All outputs for each set of inputs.

    Raises:
        ModelError, DataError: see `sessions.open_session` and `sessions.run`.
    """
    session = sessions.get(path, mode)
    return [run(session, values) for values in feeds]


def run_afresh(path: StrPath, mode: SessionMode, feeds: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same, each from a session of its own: a session's random numbers go on from run to run."""
    return [run(open_session(path, mode), values) for values in feeds]


def evaluate_bytes(content: bytes, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """All outputs of a serialized model, run once in the reference session.

    Args:
        content: where weights lie in other files, it names these by their absolute paths: they need not travel here.
        feeds: the inputs.
    """
    return dict(run(open_session(_with_weights(content), SessionMode.REFERENCE), feeds))


def _with_weights(content: bytes) -> bytes:
    import onnx

    from onnxopt.external import proto_tensors

    model = onnx.ModelProto.FromString(content)
    external = [tensor for tensor in proto_tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in external:
        place = {entry.key: entry.value for entry in tensor.external_data}
        with Path(place["location"]).open("rb") as file:
            file.seek(int(place["offset"]))
            tensor.raw_data = file.read(int(place["length"]))
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    return model.SerializeToString() if external else content


def check_file(path: StrPath, *, full: bool) -> str | None:
    """The ONNX checker's first complaint about a file, None when it has none."""
    import onnx

    try:
        onnx.checker.check_model(path, full_check=full)
    except Exception as error:  # the checker raises several kinds, all of them complaints
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return " ".join(lines[:3]) if lines else type(error).__name__
    return None


def load_check(path: StrPath, mode: SessionMode) -> LoadReport:
    """Load the model and report what it took. No other session is kept meanwhile; this one is, for the next job.

    What a process needs for its first session, whatever the model, is not counted.

    Raises:
        ModelError: the model does not load.
    """
    sessions.clear()
    _prepare(path)
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


def _prepare(path: StrPath) -> None:
    """Import and set up what sessions need, so that not the first model is charged for it."""
    import onnx

    _file_bytes(Path(path))
    smallest = open_session(onnx.parser.parse_model(_SMALLEST).SerializeToString(), SessionMode.DEPLOYED)
    run(smallest, {"x": np.zeros(1, np.float32)})


def footprint(path: StrPath, feeds: Mapping[str, Any]) -> LoadReport:
    """`load_check` of a model as it is deployed, where the peak covers a run as well.

    Raises:
        ModelError: the model does not load.
        DataError: the feeds do not fit.
    """
    sessions.clear()
    _prepare(path)
    before = machine.resident_bytes()
    loaded = load_check(path, SessionMode.DEPLOYED)
    run(sessions.get(path, SessionMode.DEPLOYED), feeds)
    peak = machine.peak_memory_bytes()
    if loaded.peak_bytes is None or peak is None or before is None:
        return replace(loaded, peak_bytes=None)
    return replace(loaded, peak_bytes=max(0, peak - before))


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
