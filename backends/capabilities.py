"""What this machine and its ONNX Runtime can do: probed with models of one or two nodes, not assumed from versions."""

import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxopt.backends import machine
from onnxopt.backends.machine import free_memory_bytes
from onnxopt.backends.sessions import SessionMode, create, open_session, session_options
from onnxopt.errors import ModelError
from onnxopt.kernels import library

__all__ = ["Capabilities", "capabilities", "features", "free_memory_bytes", "max_ir", "max_opset", "runtime_version"]

_DEPENDENCIES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnx-graphsurgeon",
    "networkx",
    "scipy",
    "pydantic",
    "pyyaml",
    "typer",
    "rich",
    "jinja2",
)

# The oldest pair that every supported runtime loads; the probes look upwards from here.
_BASE_OPSET = 13
_BASE_IR = 8


@dataclass(frozen=True)
class Capabilities:
    """This machine and its runtime. Every field is plain: `dataclasses.asdict` of it is JSON.

    Attributes:
        python, system: versions of Python and of the operating system.
        versions: installed version of each dependency; None where one is missing.
        providers: ONNX Runtime's execution providers.
        cpu: the processor's name.
        isa: its instruction sets that kernels here make use of, best first.
        cores: cores that this process may use.
        memory_total, memory_free: bytes; limits of a container count.
        temp_free: free bytes of the disk with the temporary folder.
        kernels: path of our kernel library, or None.
        kernels_missing: why there is none, or None.
        max_opset, max_ir: newest opset of ai.onnx and newest IR version that ONNX Runtime loads.
        features: what ONNX Runtime does with new types and patterns (see `features`).
    """

    python: str
    system: str
    versions: dict[str, str | None]
    providers: list[str]
    cpu: str
    isa: list[str]
    cores: int
    memory_total: int
    memory_free: int
    temp_free: int
    kernels: str | None
    kernels_missing: str | None
    max_opset: int
    max_ir: int
    features: dict[str, bool]


def capabilities() -> Capabilities:
    """Probe this machine; takes about a second."""
    path = library.path()
    return Capabilities(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={name: _version(name) for name in _DEPENDENCIES},
        providers=list(ort.get_available_providers()),
        cpu=machine.cpu_name(),
        isa=list(machine.isa_of(machine.cpu_flags())),
        cores=machine.cores(),
        memory_total=machine.total_memory_bytes(),
        memory_free=free_memory_bytes(),
        temp_free=shutil.disk_usage(tempfile.gettempdir()).free,
        kernels=None if path is None else str(path),
        kernels_missing=library.why_unavailable(),
        max_opset=max_opset(),
        max_ir=max_ir(),
        features=dict(features()),
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def runtime_version() -> str:
    """The installed ONNX Runtime's version, three numbers."""
    return ".".join(ort.__version__.split("+")[0].split(".")[:3])


def _loads(model: onnx.ModelProto) -> bool:
    try:
        open_session(model.SerializeToString(), SessionMode.NOISE_NONE)
    except ModelError:
        return False
    return True


def _identity(opset: int, ir: int) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def _newest(loads: Callable[[int], bool], start: int) -> int:
    """The last of start, start + 1, ... before the first that does not load."""
    version = start
    while loads(version + 1):
        version += 1
    return version


@cache
def max_opset() -> int:
    """The newest opset of ai.onnx that the installed ONNX Runtime loads."""
    return _newest(lambda opset: _loads(_identity(opset, _BASE_IR)), _BASE_OPSET)


@cache
def max_ir() -> int:
    """The newest IR version that the installed ONNX Runtime loads."""
    return _newest(lambda ir: _loads(_identity(_BASE_OPSET, ir)), _BASE_IR)


def _dequantize_matmul(dtype: type, opset: int) -> onnx.ModelProto:
    """x [1,32] times a [32,32] weight of `dtype`, dequantized in blocks of 32 along its rows."""
    weight = numpy_helper.from_array(np.ones((32, 32), dtype), "w")
    scale = numpy_helper.from_array(np.ones((1, 32), np.float32), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["dense"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "dense"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32]) for name in "xy")
    graph = helper.make_graph(nodes, "probe", [x], [y], [weight, scale])
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=min(max_ir(), onnx.IR_VERSION))


def _computes(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime runs `_dequantize_matmul`'s model and is right: ones times ones are 32."""
    try:
        session = open_session(model.SerializeToString(), SessionMode.REFERENCE)
        (y,) = session.run(None, {"x": np.ones((1, 32), np.float32)})
    except Exception:  # whatever it is, the answer is no
        return False
    return bool(np.all(y == 32))


def _fuses(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime turns `_dequantize_matmul`'s model into one MatMulNBits."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = session_options(SessionMode.DEPLOYED)
        options.optimized_model_filepath = str(optimized)
        try:
            create(model.SerializeToString(), options, ["CPUExecutionProvider"])
        except ModelError:
            return False
        return any(node.op_type == "MatMulNBits" for node in onnx.load(optimized).graph.node)


@cache
def features() -> dict[str, bool]:
    """What ONNX Runtime can do with low-bit weights in standard ONNX.

    `TYPE`: DequantizeLinear takes a weight of that type. `TYPE-matmulnbits`: DequantizeLinear and MatMul become one
    MatMulNBits, which never holds the dense weight.
    """
    types = {
        "int8": (np.int8, 21),
        "int4": (ml_dtypes.int4, 21),
        "int2": (ml_dtypes.int2, 25),
        "float8e4m3fn": (ml_dtypes.float8_e4m3fn, 21),
        "float8e5m2": (ml_dtypes.float8_e5m2, 21),
        "float4e2m1": (ml_dtypes.float4_e2m1fn, 23),
    }
    known = min(max_opset(), onnx.defs.onnx_opset_version())
    models = {name: _dequantize_matmul(dtype, opset) for name, (dtype, opset) in types.items() if opset <= known}
    answers = {name: name in models and _computes(models[name]) for name in types}
    for name in ("int8", "int4", "int2"):
        answers[f"{name}-matmulnbits"] = answers[name] and _fuses(models[name])
    return answers
