"""`onnxopt bench MODEL...`: time and memory of models on the same inputs. Ratios are to the first file."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import typer

from onnxopt.backends.jobs import LoadReport, footprint, latency, load_check
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.timing import Latency
from onnxopt.backends.timing_table import Timing, TimingTable
from onnxopt.backends.worker import Worker
from onnxopt.cli import feeding, output
from onnxopt.data import Batch
from onnxopt.data.validate import describe, fits
from onnxopt.errors import DataError, ModelError, RecipeError
from onnxopt.model import Model, Signature, load
from onnxopt.publish import check_output
from onnxopt.reading import digest
from onnxopt.report import total_bytes

_LOADS = 3
"""Times that each file is loaded; the median counts."""

_SAMPLES = 8


@dataclass(frozen=True)
class _Measured:
    """One file."""

    path: Path
    load_seconds: float
    memory: LoadReport
    time: Latency


def bench(
    paths: list[Path],
    data: str,
    shapes: list[str],
    threads: int | None,
    seconds: float,
    table: Path | None,
    as_json: bool,
) -> None:
    """Measure all files on one batch, in turn, and print latency, throughput, memory and load time of each."""
    if shapes and data != "synthetic":
        raise RecipeError("--shape is for random inputs, and --data names others: leave one of them out")
    models = [load(path) for path in paths]
    for path, model in zip(paths[1:], models[1:], strict=True):
        _check_names(paths[0], models[0].signature, path, model.signature)
    known = None if table is None else _table(table, threads)
    with Worker(threads=threads) as worker:
        batch = feeding.opened(models[0], paths[0], worker, data, _SAMPLES, output.parse_shapes(shapes)).first()
        sizes = {name: np.shape(value) for name, value in batch.feeds.items()}
        for path, model in zip(paths, models, strict=True):
            _check_sizes(path, model, sizes)
        measured = _measure(worker, paths, batch, seconds)
    if table is not None and known is not None:
        timings = [Timing.of(digest(each.path), sizes, each.time.p50, each.time.count) for each in measured]
        known.with_timings(timings).write(table)
    found = {
        "files": [_facts(each, batch.samples) for each in measured],
        "samples": batch.samples, "sizes": sizes, "threads": threads, "data": data,
    }  # fmt: skip
    if as_json:
        output.show_json(found)
    else:
        _show(found)


def _check_names(first: Path, wanted: Signature, path: Path, given: Signature) -> None:
    """Say before anything runs that files do not take the same inputs."""
    ours, theirs = ({value.name: value for value in signature.inputs} for signature in (wanted, given))
    if ours.keys() != theirs.keys():
        raise ModelError(f"{first} and {path} have different inputs: {sorted(ours)} and {sorted(theirs)}")
    for name, info in ours.items():
        if info.dtype != theirs[name].dtype:
            types = f"{describe(info)} and {describe(theirs[name])}"
            raise ModelError(f"{first} and {path} have different inputs: {name!r} is {types}")


def _check_sizes(path: Path, model: Model, sizes: dict[str, tuple[int, ...]]) -> None:
    for info in model.signature.inputs:
        if info.name in sizes and not fits(info, sizes[info.name]):
            raise DataError(
                f"{path}: input {info.name!r} takes {describe(info)}, the others run on {list(sizes[info.name])}; "
                "--shape names sizes that all files take"
            )


def _table(path: Path, threads: int | None) -> TimingTable:
    """The table that timings go into: the file's where it is of this target."""
    check_output(path)
    here = TimingTable.host(threads)
    if not path.exists():
        return here
    known = TimingTable.read(path)
    if not known.same_target(here):
        raise DataError(f"{path} is of another target ({_named(known)}; here {_named(here)}): name a new file")
    return known


def _named(table: TimingTable) -> str:
    facts = table.target.model_dump(include={"isa", "threads", "onnxruntime"}) | {"cores": table.cores}
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _measure(worker: Worker, paths: list[Path], batch: Batch, seconds: float) -> list[_Measured]:
    """Memory in a fresh process for each file; load time and latency in turns."""
    feeds, names = dict(batch.feeds), [str(path) for path in paths]
    memory = []
    for name in names:
        worker.stop()
        memory.append(worker.call(footprint, name, feeds))
    loads = [[worker.call(load_check, name, SessionMode.DEPLOYED).seconds for name in names] for _ in range(_LOADS)]
    times = worker.call(latency, names, feeds, seconds=seconds * len(names))
    rows = zip(paths, zip(*loads, strict=True), memory, times, strict=True)
    return [_Measured(path, median(took), report, time) for path, took, report, time in rows]


def _facts(measured: _Measured, samples: int) -> dict[str, Any]:
    time = measured.time
    return {
        "file": str(measured.path), "file_bytes": total_bytes(measured.path), "digest": digest(measured.path),
        "p50_ms": time.p50 * 1e3, "p95_ms": time.p95 * 1e3, "p99_ms": time.p99 * 1e3, "runs": time.count,
        "samples_per_second": samples / time.mean,
        "load_seconds": measured.load_seconds, "peak_bytes": measured.memory.peak_bytes,
        "resident_bytes": measured.memory.resident_bytes,
        "ratio": time.ratio.median, "ratio_quartiles": [time.ratio.lower_quartile, time.ratio.upper_quartile],
    }  # fmt: skip


def _show(found: dict[str, Any]) -> None:
    sizes = ", ".join(f"{name} {list(shape)}" for name, shape in found["sizes"].items())
    kind = "random inputs" if found["data"] == "synthetic" else found["data"]
    threads = "" if found["threads"] is None else f", {found['threads']} thread{'s'[: found['threads'] != 1]}"
    typer.echo(f"{kind}: {sizes}, {found['samples']} sample{'s'[: found['samples'] != 1]} a run{threads}\n")
    output.table([_cells(each) for each in found["files"]], _HEADER)


_HEADER = ("", "file", "load (ms)", "peak", "p50 (ms)", "p95", "p99", "samples/s", "runs", "to first", "quartiles")


def _cells(each: dict[str, Any]) -> list[object]:
    low, high = each["ratio_quartiles"]
    return [
        each["file"], output.size(each["file_bytes"]), f"{each['load_seconds'] * 1e3:.3g}",
        output.size(each["peak_bytes"]), *(f"{each[key]:.3g}" for key in ("p50_ms", "p95_ms", "p99_ms")),
        output.amount(each["samples_per_second"]), each["runs"], f"x{each['ratio']:.3f}", f"x{low:.3f} .. x{high:.3f}",
    ]  # fmt: skip
