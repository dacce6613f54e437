"""Cleaning real models: onnxopt against onnxsim and onnxslim.

    python benchmarks/clean.py FOLDER... [--out FOLDER] [--table benchmarks/clean.md]

Every .onnx in the folders goes through `onnxopt run -p clean`, `onnxsim` and `onnxslim` as commands of their own, and
is then judged alike: nodes (subgraphs included, Constant nodes not), size with external data, seconds of the whole
command, whether the file loads, keeps its inputs and outputs and computes the same at two sizes of its dynamic axes
(worst relative L2 in a session without optimizations), and latency, all files alternating in one process. A rival that
is not installed, fails or breaks a file is marked so. `exports.py` makes models to try it on.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import onnxopt
from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.backends import timing
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.comparing import Noise, measure
from onnxopt.data import synthetic
from onnxopt.errors import OnnxOptError
from onnxopt.report import total_bytes

TOOLS = {
    "onnxopt": ["onnxopt", "run", "{inp}", "-o", "{out}", "-p", "clean", "--quiet", "--set", "verify.level=structure"],
    "onnxsim": ["onnxsim", "{inp}", "{out}"],
    "onnxslim": ["onnxslim", "{inp}", "{out}"],
}
SIZES = ({0: 2, 1: 16}, {0: 3, 1: 24})
"""Sizes of symbolic axes, twice: of a first axis, and of any other."""

MOST_DRIFT = 1e-4


@dataclass(frozen=True)
class Outcome:
    """What a tool made of a model.

    Attributes:
        fault: why it does not count; None where it does.
        ratio: latency after / before, median of pairs.
    """

    nodes: int = 0
    bytes: int = 0
    seconds: float = 0.0
    drift: float = 0.0
    ratio: float | None = None
    fault: str | None = None


def count(path: Path) -> int:
    """Nodes of the standard domains and any other, subgraphs included, without Constant nodes."""
    return sum(1 for node in onnxopt.load(path).nodes() if node.op_type != "Constant")


def feeds(path: Path, sizes: Mapping[int, int]) -> dict[str, Any]:
    """Random inputs of a model at given sizes of its symbolic axes, equal symbols equal."""
    model = onnxopt.load(path)
    symbols: dict[str, int] = {}
    shapes = {}
    for info in model.signature.inputs:
        if info.shape is None or all(isinstance(dim, int) for dim in info.shape):
            continue
        for axis, dim in enumerate(info.shape):
            if isinstance(dim, str):
                symbols.setdefault(dim, sizes[min(axis, 1)])
        shapes[info.name] = tuple(
            dim if isinstance(dim, int) else symbols[dim] if dim else sizes[min(axis, 1)]
            for axis, dim in enumerate(info.shape)
        )
    drawn = synthetic(model.signature, shapes, index_bounds(model), 1, np.random.default_rng(0))
    return dict(next(iter(drawn.batches())).feeds)


def make(tool: str, path: Path, out: Path) -> Outcome:
    """Run a tool on a model."""
    command = [part.format(inp=path, out=out) for part in TOOLS[tool]]
    if shutil.which(command[0]) is None:
        return Outcome(fault="not installed")
    for old in out.parent.glob(f"{out.name}*"):
        old.unlink()
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode or not out.exists():
        return Outcome(seconds=seconds, fault=f"exit {done.returncode}")
    return Outcome(count(out), total_bytes(out), seconds)


def judge(outcome: Outcome, path: Path, out: Path, inputs: Sequence[Mapping[str, Any]]) -> Outcome:
    """Hold a tool's file to the original."""
    found = dict(vars(outcome))
    if onnxopt.load(path).signature != onnxopt.load(out).signature:
        return Outcome(**found | {"fault": "other inputs or outputs"})
    try:
        before, after = (
            [run(open_session(each, SessionMode.NOISE_NONE), feed) for feed in inputs] for each in (path, out)
        )
    except OnnxOptError as error:
        return Outcome(**found | {"fault": str(error).splitlines()[0][:60]})
    drift = measure(before, after, Noise({}, frozenset())).drift
    fault = f"drift {drift:.1e}" if drift > MOST_DRIFT else None
    return Outcome(**found | {"drift": drift, "fault": fault})


def compare(path: Path, folder: Path, seconds: float) -> tuple[int, int, dict[str, Outcome]]:
    """Nodes and bytes of a model, and what each tool made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    outs = {tool: folder / f"{path.stem}.{tool}.onnx" for tool in TOOLS}
    inputs = [feeds(path, sizes) for sizes in SIZES]
    found = {}
    for tool, out in outs.items():
        made = make(tool, path, out)
        found[tool] = made if made.fault else judge(made, path, out, inputs)
    timed = [tool for tool in TOOLS if not found[tool].fault]
    times = timing.latency([path, *(outs[tool] for tool in timed)], inputs[0], threads=1, seconds=seconds)
    for tool, latency in zip(timed, times[1:], strict=True):
        found[tool] = Outcome(**vars(found[tool]) | {"ratio": latency.ratio.median})
    return count(path), total_bytes(path), found


def row(name: str, nodes: int, size: int, found: Mapping[str, Outcome]) -> str:
    """A line of the table."""
    cells = [name, str(nodes)]
    for outcome in found.values():
        if outcome.fault:
            cells.append(f"{outcome.fault}" + (f" ({outcome.nodes})" if outcome.nodes else ""))
            continue
        ratio = "-" if outcome.ratio is None else f"{outcome.ratio:.2f}"
        cells.append(
            f"**{outcome.nodes}**, KB x{outcome.bytes / size:.3f}, {outcome.seconds:.1f} s, "
            f"{outcome.drift:.0e}, lat x{ratio}"
        )
    return f"| {' | '.join(cells)} |"


def misses(nodes: int, size: int, found: Mapping[str, Outcome]) -> list[str]:
    """Where onnxopt falls short of what it promises."""
    ours, rivals = found["onnxopt"], [each for tool, each in found.items() if tool != "onnxopt" and not each.fault]
    if ours.fault:
        return [ours.fault]
    short = []
    best = min((each.nodes for each in rivals), default=nodes)
    if ours.nodes > best:
        short.append(f"{ours.nodes} nodes against {best}")
    if ours.bytes > 1.01 * size:
        short.append(f"x{ours.bytes / size:.3f} of the bytes")
    if ours.ratio is not None and ours.ratio > 1.03:
        short.append(f"latency x{ours.ratio:.2f}")
    fastest = min((each.seconds for each in rivals), default=None)
    if fastest is not None and ours.seconds > 2 * fastest + 1:
        short.append(f"{ours.seconds:.1f} s against {fastest:.1f} s")
    return short


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (version unknown)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help=".onnx files, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("build/clean"), help="where the cleaned files go")
    parser.add_argument("--table", type=Path, help="write the table here as well")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for latency, per model")
    given = parser.parse_args()
    lines = [
        f"{', '.join(map(_version, (*TOOLS, 'onnxruntime')))}; 1 thread. "
        "Nodes, bytes after / before, seconds of the command, worst drift, latency after / before",
        "",
        "| model | nodes | " + " | ".join(TOOLS) + " | falls short |",
        "|" + "---|" * (len(TOOLS) + 3),
    ]
    print("\n".join(lines))
    failed = False
    for path in [file for each in given.models for file in (sorted(each.glob("*.onnx")) if each.is_dir() else [each])]:
        nodes, size, found = compare(path, given.out, given.seconds)
        short = misses(nodes, size, found)
        failed |= bool(short)
        lines.append(f"{row(path.stem, nodes, size, found)} {'; '.join(short) or 'no'} |")
        print(lines[-1], flush=True)
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
