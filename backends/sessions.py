"""ONNX Runtime sessions: the four ways in which a model is run here, and one-line errors for all that can go wrong."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import onnxruntime as ort

from onnxopt.backends import diagnosis, feeds
from onnxopt.errors import KernelError
from onnxopt.kernels import library

Providers = Sequence[str | tuple[str, dict[str, Any]]]

CPU: Providers = ("CPUExecutionProvider",)
_QUIET = 4  # only fatal: what goes wrong is raised, and telling it twice helps nobody
_LEVELS = ort.GraphOptimizationLevel


class SessionMode(StrEnum):
    """How a session treats the model.

    REFERENCE: what Exact means: basic graph optimisation only, QDQ patterns computed as written, no kernels of ours,
        deterministic.
    DEPLOYED: what users get: ONNX Runtime's defaults with our kernel library where there is one.
    NOISE_ALL, NOISE_NONE: all of ONNX Runtime's own optimisations that keep QDQ as written, and none; how far these
        two are apart is the model's own numerical noise.
    """

    REFERENCE = "reference"
    DEPLOYED = "deployed"
    NOISE_ALL = "noise-all"
    NOISE_NONE = "noise-none"


_MODE_LEVELS = {
    SessionMode.REFERENCE: _LEVELS.ORT_ENABLE_BASIC,
    SessionMode.DEPLOYED: _LEVELS.ORT_ENABLE_ALL,
    SessionMode.NOISE_ALL: _LEVELS.ORT_ENABLE_ALL,
    SessionMode.NOISE_NONE: _LEVELS.ORT_DISABLE_ALL,
}


def session_options(mode: SessionMode, *, threads: int | None = 1) -> ort.SessionOptions:
    """The options of `mode`.

    Args:
        threads: threads inside an operator; None leaves the number to ONNX Runtime (one per core).

    Raises:
        KernelError: our kernel library is there but does not load (DEPLOYED only).
    """
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.graph_optimization_level = _MODE_LEVELS[mode]
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if mode == SessionMode.DEPLOYED:
        register_library(options)
        return options
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def register_library(options: ort.SessionOptions) -> bool:
    """Register our kernel library in `options`; False where there is none.

    Raises:
        KernelError: the library is there but ONNX Runtime cannot load it.
    """
    path = library.path()
    if path is None:
        return False
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        raise KernelError(f"{path}: {diagnosis.RUNTIME} cannot load this kernel library; reinstall onnxopt") from error
    return True


def open_session(
    source: str | PathLike[str] | bytes,
    mode: SessionMode,
    *,
    threads: int | None = 1,
    providers: Providers | None = None,
) -> ort.InferenceSession:
    """A session of the model in `source` (a path, or a serialized ModelProto without external data).

    Args:
        threads: see `session_options`.
        providers: ONNX Runtime's execution providers, best first; None means the processor alone.

    Raises:
        ModelError: ONNX Runtime cannot load the model: no kernel, missing library, too new, invalid, no memory.
        KernelError: see `session_options`.
    """
    return create(source, session_options(mode, threads=threads), CPU if providers is None else providers)


def session(
    source: str | PathLike[str] | bytes,
    session_options: ort.SessionOptions | None = None,
    providers: Providers | None = None,
) -> ort.InferenceSession:
    """A session for deployment: ONNX Runtime's defaults, with onnxopt's kernels where they are installed.

    Args:
        source: path of a model, or its bytes.
        session_options: your own options; onnxopt's kernel library is registered in them.
        providers: as for `onnxruntime.InferenceSession`.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        KernelError: the kernel library is there but does not load.
    """
    options = ort.SessionOptions() if session_options is None else session_options
    register_library(options)
    return create(source, options, providers)


def create(
    source: str | PathLike[str] | bytes, options: ort.SessionOptions, providers: Providers | None
) -> ort.InferenceSession:
    """`onnxruntime.InferenceSession` with its errors as ModelError and without its fallback to other providers."""
    model = source if isinstance(source, bytes) else Path(fspath(source))
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=None if providers is None else list(providers),
            enable_fallback=0,
        )
    except Exception as error:
        raise diagnosis.load_error(error, model) from error


def bind(session: ort.InferenceSession, values: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    """`run` with its checks done beforehand: each call of the result runs `session` on `values`.

    Raises:
        DataError: `values` do not fit the model's inputs.
    """
    prepared = feeds.prepare(session, values)
    outputs = session.get_outputs()
    names = [output.name for output in outputs]
    quiet = ort.RunOptions()
    quiet.log_severity_level = _QUIET
    raw = any(feeds.is_raw(output.type) for output in outputs)
    wrapped = {name: feeds.to_ort(value) for name, value in prepared.items()} if raw else {}

    def call() -> dict[str, Any]:
        try:
            if raw:
                results = [feeds.to_numpy(each) for each in session.run_with_ort_values(names, wrapped, quiet)]
            else:
                results = session.run(names, prepared, quiet)
        except Exception as error:
            raise diagnosis.run_error(error) from error
        return dict(zip(names, results, strict=True))

    return call


def run(session: ort.InferenceSession, values: Mapping[str, Any]) -> dict[str, Any]:
    """All outputs of `session` by name: arrays (ml_dtypes for bfloat16 and float8), lists, dicts, None.

    Args:
        values: by input name; arrays must have the input's dtype and its fixed sizes.

    Raises:
        DataError: `values` do not fit the model, or an operator refuses them (out of range, shapes that do not match).
        ModelError: ONNX Runtime found no memory.
    """
    return bind(session, values)()


def run_raw(session: ort.InferenceSession, values: Mapping[str, Any], names: Sequence[str]) -> dict[str, ort.OrtValue]:
    """Some outputs of `session` as the runtime holds them, to be looked at one after the other (`feeds.viewed`).

    Raises:
        DataError, ModelError: see `run`.
    """
    prepared = {name: feeds.to_ort(value) for name, value in feeds.prepare(session, values).items()}
    quiet = ort.RunOptions()
    quiet.log_severity_level = _QUIET
    try:
        results = session.run_with_ort_values(list(names), prepared, quiet)
    except Exception as error:
        raise diagnosis.run_error(error) from error
    return dict(zip(names, results, strict=True))
