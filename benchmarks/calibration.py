"""Calibration: what statistics cost beside the run that they are taken from, and what stages take.

    python benchmarks/calibration.py [--zoo FOLDER] [--table benchmarks/calibration.md] [--rounds 7] [--samples 64]

In the worker with one thread, in turn, medians: collecting the Gram matrices of all linear layers against a plain run
of the same data in a session of the same mode and, beside it, the float32 products x^T x of the same rows by BLAS
(of patches for convolutions, which are gathered before the clock runs); the same stage by stage, with what lies on disk
at most; and, for two statistics, the alternative of computing them inside the graph.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.analysis.linear import Linear, linears
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.backends.worker import Worker
from onnxopt.calibration.engine import Calibration
from onnxopt.data import Dataset, open_data
from onnxopt.model import Model, load
from onnxopt.statistics import MinMax, Stat, gram

HEAD = (
    "Seconds (medians of {rounds}, one thread) for the Gram matrices of all linear layers: a plain run of the data in "
    "the same session mode; BLAS for the products alone, in float32; collecting them, at once and stage by stage; the "
    "ratio of collecting at once to run + BLAS; of stages to at once; the most that lies on disk between stages, of all "
    "values that cross them; the worker's peak memory, at once and stage by stage.",
    "",
    "| model | samples | layers | stages | run s | BLAS s | at once s | staged s | ratio | stages cost | disk MiB | MiB "
    "| staged MiB |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)
INSIDE = (
    "",
    "The same values, once by what is collected here and once by nodes put into the graph (seconds, run included):",
    "",
    "| statistic | outside s | inside s |",
    "|---|---|---|",
)


def plain(path: str, batches: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of a plain run; called in the worker."""
    session = open_session(path, SessionMode.REFERENCE, threads=1)
    run(session, batches[0])
    started = time.perf_counter()
    for feeds in batches:
        run(session, feeds)
    return time.perf_counter() - started


def blas(shapes: Sequence[tuple[int, int, int]]) -> float:
    """Seconds of x^T x in float32, for (rows, columns, how often); called in the worker."""
    total = 0.0
    for rows, columns, times in shapes:
        block = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
        block.T @ block
        started = time.perf_counter()
        for _ in range(times):
            block.T @ block
        total += time.perf_counter() - started
    return total


def products(model: Model, stats: Sequence[Stat[Any]], found: Any) -> Iterator[tuple[int, int, int]]:
    """The products that Grams take: rows in blocks of 2048, as BLAS likes them."""
    for stat in stats:
        groups, columns, _ = found[stat].scatter.shape
        yield 2048, columns, groups * -(-found[stat].rows // 2048)


def cases(zoo: Path, samples: int) -> Iterator[tuple[str, Model, Dataset]]:
    model = load("models/byte_gpt.onnx")
    tokens = np.random.default_rng(0).integers(0, 256, (samples, 256))
    yield f"byte_gpt, {samples} x 256", model, open_data({model.signature.inputs[0].name: tokens}, model.signature)
    for name in ("resnet20_cifar_dynamo", "digits_transformer_legacy", "fashion_se_net_legacy"):
        path = zoo / f"{name}.onnx"
        if path.is_file():
            model = load(path)
            yield name, model, open_data(str(zoo / f"{name}.calib.npz"), model.signature).take(4 * samples)


def row(name: str, model: Model, data: Dataset, rounds: int) -> str:
    layers = [each for each in linears(model)]
    stats = list(dict.fromkeys(map(gram, layers)))
    batches = [dict(batch.feeds) for batch in data.batches()]
    seconds: dict[str, list[float]] = {"run": [], "blas": [], "whole": [], "staged": []}
    peaks = dict[str, int]()
    with TemporaryDirectory() as folder, Worker(threads=1) as worker:
        path = str(Path(folder) / "model.onnx")
        model.save(path)
        fresh = lambda: Calibration(data, Path(folder) / "scratch", worker)  # noqa: E731
        shapes = list(products(model, stats, fresh().collect(model, stats)))
        disk = count = 0
        for _ in range(rounds):
            seconds["run"].append(worker.call("calibration:plain", path, batches))
            seconds["blas"].append(worker.call("calibration:blas", shapes))
            seconds["whole"].append(timed(lambda: fresh().collect(model, stats)))
            calibration = fresh()
            started = time.perf_counter()
            stages = calibration.stages(model)
            left = list(stats)
            for stage in stages:
                here = [stat for stat in left if stage.sees(stat.tensor)]
                stage.collect(here)
                left = [stat for stat in left if stat not in here]
            seconds["staged"].append(time.perf_counter() - started)
            disk, count = stages.peak_bytes, len(stages)
    for kind in ("whole", "staged"):
        peaks[kind] = peak(model, data, stats, kind)
    found = {kind: median(each) for kind, each in seconds.items()}
    return (
        f"| {name} | {data.samples} | {len(stats)} | {count} | {found['run']:.2f} | {found['blas']:.2f} "
        f"| {found['whole']:.2f} | {found['staged']:.2f} | {found['whole'] / (found['run'] + found['blas']):.2f} "
        f"| {found['staged'] / found['whole']:.2f} | {disk / 2**20:.1f} | {peaks['whole'] >> 20} | {peaks['staged'] >> 20} |"
    )


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak(model: Model, data: Dataset, stats: Sequence[Stat[Any]], kind: str) -> int:
    """Peak memory of a worker that does nothing else."""
    with TemporaryDirectory() as folder, Worker(threads=1) as worker:
        calibration = Calibration(data, Path(folder), worker)
        if kind == "whole":
            calibration.collect(model, stats)
        else:
            left = list(stats)
            for stage in calibration.stages(model):
                here = [stat for stat in left if stage.sees(stat.tensor)]
                stage.collect(here)
                left = [stat for stat in left if stat not in here]
        return worker.peak_memory() or 0


def with_nodes(model: Model, names: Sequence[str], kind: str) -> onnx.ModelProto:
    """The model with nodes that compute a statistic of some values, as its only outputs."""
    proto = onnx.ModelProto.FromString(model.proto().SerializeToString())
    del proto.graph.output[:]
    for at, name in enumerate(names):
        made = [f"{kind}{at}.{each}" for each in range(2 if kind == "range" else 1)]
        if kind == "range":
            for op, output in zip(("ReduceMin", "ReduceMax"), made, strict=True):
                proto.graph.node.append(onnx.helper.make_node(op, [name], [output], keepdims=0))
        else:
            flat, turned = f"flat{at}", f"turned{at}"
            proto.graph.node.append(onnx.helper.make_node("Flatten", [name], [flat], axis=-1))
            proto.graph.node.append(onnx.helper.make_node("Transpose", [flat], [turned], perm=[1, 0]))
            proto.graph.node.append(onnx.helper.make_node("MatMul", [turned, flat], made))
        for output in made:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return proto


def inside(model: Model, data: Dataset, rounds: int) -> Iterator[str]:
    names = list(dict.fromkeys(layer.x.name or "" for layer in linears(model)))
    stats = {"range": [Stat(name, MinMax()) for name in names], "gram": list(dict.fromkeys(map(gram, linears(model))))}
    batches = [dict(batch.feeds) for batch in data.batches()]
    with TemporaryDirectory() as folder, Worker(threads=1) as worker:
        for kind, asked in stats.items():
            path = Path(folder) / f"{kind}.onnx"
            onnx.save(with_nodes(model, names, kind), path)
            outside, within = [], []
            for _ in range(rounds):
                outside.append(timed(lambda asked=asked: Calibration(data, Path(folder), worker).collect(model, asked)))
                within.append(worker.call("calibration:plain", str(path), batches))
            yield f"| {kind} of {len(names)} values | {median(outside):.2f} | {median(within):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=64)
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    lines = [HEAD[0].format(rounds=given.rounds), *HEAD[1:]]
    first: tuple[Model, Dataset] | None = None
    for name, model, data in cases(given.zoo, given.samples):
        first = first or (model, data)
        lines.append(row(name, model, data, given.rounds))
        print(lines[-1], flush=True)
    if first is not None:
        lines += [*INSIDE, *inside(*first, given.rounds)]
    print("\n".join(lines))
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
