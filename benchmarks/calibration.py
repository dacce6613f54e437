"""Calibration: what statistics cost beside the run that they are taken from, and what stages take.

    python benchmarks/calibration.py [--zoo FOLDER] [--table benchmarks/calibration.md] [--rounds 5] [--samples 64]

In the worker with one thread, in turn, medians: collecting the Gram matrices of all linear layers, at once and stage by
stage, against a plain run of the same data in a session of the same mode and the products x^T x of as many rows by
BLAS in float32 (rows of a convolution are patches, which BLAS here is given for nothing); and, for two statistics, the
alternative of computing them inside the graph.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from onnxopt.analysis.linear import linears
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.backends.worker import Worker
from onnxopt.calibration.engine import Calibration
from onnxopt.calibration.staging import Stages
from onnxopt.data import Dataset, open_data
from onnxopt.model import Model, load
from onnxopt.statistics import MinMax, Stat, gram

BLOCK = 2048
"""Rows of a product."""

NAMES = ("resnet20_cifar_dynamo", "digits_transformer_legacy", "fashion_se_net_legacy")

HEAD = (
    "Gram matrices of all linear layers; seconds are medians of {rounds}, one thread: a plain run of the data in the "
    "same session mode, the products alone by BLAS in float32, collecting at once, and stage by stage. Ratio: at once "
    "to run + BLAS. Files between stages, at most; peak memory of the worker, at once and stage by stage (130 MiB of "
    "it are the libraries'). A model that runs in milliseconds pays a tenth of a second for its part being written and "
    "opened.",
    "",
    "| model | samples | layers | stages | run s | BLAS s | at once s | ratio | staged s | on disk MiB | at once MiB "
    "| staged MiB |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
)
INSIDE = (
    "",
    "The same statistics of the first model, collected here, and computed by nodes put into the graph (run included). "
    "Nodes tell nothing of where a NaN was and keep no mask; their products are sums of float32 about zero.",
    "",
    "| statistic | here s | in the graph s |",
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


def blas(shapes: Sequence[tuple[int, float]]) -> float:
    """Seconds of x^T x in float32 for (columns, blocks of rows); called in the worker."""
    total = 0.0
    for columns, blocks in shapes:
        block = np.random.default_rng(0).standard_normal((BLOCK, columns), np.float32)
        times = max(1, round(blocks))
        started = time.perf_counter()
        for _ in range(times):
            block.T @ block
        total += (time.perf_counter() - started) * blocks / times
    return total


@dataclass
class Case:
    """A model, its data and what is asked for."""

    name: str
    model: Model
    data: Dataset

    def __post_init__(self) -> None:
        self.stats: list[Stat[Any]] = list(dict.fromkeys(map(gram, linears(self.model))))

    def at_once(self, calibration: Calibration) -> None:
        calibration.collect(self.model, self.stats)

    def staged(self, calibration: Calibration) -> Stages:
        stages, left = calibration.stages(self.model), list(self.stats)
        for stage in stages:
            here = [stat for stat in left if stage.sees(stat.tensor)]
            stage.collect(here)
            left = [stat for stat in left if stat not in here]
        return stages

    def products(self, calibration: Calibration) -> list[tuple[int, float]]:
        found = calibration.collect(self.model, self.stats)
        shapes = [(found[stat].scatter.shape, found.rows(stat)) for stat in self.stats]
        return [(columns, groups * rows / BLOCK) for (groups, columns, _), rows in shapes]

    def peak(self, collect: Callable[[Calibration], object]) -> int:
        """Peak memory of a worker that does nothing else, in MiB."""
        with TemporaryDirectory() as folder, Worker(threads=1) as worker:
            collect(Calibration(self.data, Path(folder), worker))
            return (worker.peak_memory() or 0) >> 20


def cases(zoo: Path, samples: int) -> Iterator[Case]:
    model = load("models/byte_gpt.onnx")
    tokens = np.random.default_rng(0).integers(0, 256, (samples, 256))
    yield Case("byte_gpt, 256 tokens", model, open_data({model.signature.inputs[0].name: tokens}, model.signature))
    for path in (zoo / f"{name}.onnx" for name in NAMES):
        if path.is_file():
            model = load(path)
            data = open_data(str(path.with_suffix(".calib.npz")), model.signature)
            yield Case(path.stem, model, data.take(4 * samples))


def row(case: Case, rounds: int) -> str:
    batches = [dict(batch.feeds) for batch in case.data.batches()]
    seconds: dict[str, list[float]] = {"run": [], "blas": [], "at once": [], "staged": []}
    with TemporaryDirectory() as folder, Worker(threads=1) as worker:
        path = str(Path(folder) / "model.onnx")
        case.model.save(path)

        def fresh() -> Calibration:
            return Calibration(case.data, Path(folder) / "scratch", worker)

        shapes, stages = case.products(fresh()), case.staged(fresh())
        for _ in range(rounds):
            seconds["run"].append(worker.call("calibration:plain", path, batches))
            seconds["blas"].append(worker.call("calibration:blas", shapes))
            seconds["at once"].append(timed(lambda: case.at_once(fresh())))
            seconds["staged"].append(timed(lambda: case.staged(fresh())))
    run_, blas_, once, staged = (median(each) for each in seconds.values())
    cells = (
        case.name, case.data.samples, len(case.stats), len(stages), f"{run_:.2f}", f"{blas_:.2f}", f"{once:.2f}",
        f"{once / (run_ + blas_):.2f}", f"{staged:.2f}", f"{stages.peak_bytes / 2**20:.1f}", case.peak(case.at_once),
        case.peak(case.staged),
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def with_nodes(model: Model, names: Sequence[str], kind: str) -> onnx.ModelProto:
    """The model with nodes that compute a statistic of some values, as its only outputs."""
    proto = onnx.ModelProto.FromString(model.proto().SerializeToString())
    del proto.graph.output[:]
    node = onnx.helper.make_node
    for at, name in enumerate(names):
        if kind == "ranges":
            nodes = [node(op, [name], [f"{op}{at}"], keepdims=0) for op in ("ReduceMin", "ReduceMax")]
        else:
            flat = node("Flatten", [name], [f"flat{at}"], axis=-1)
            turned = node("Transpose", [f"flat{at}"], [f"turned{at}"], perm=[1, 0])
            proto.graph.node.extend([flat, turned])
            nodes = [node("MatMul", [f"turned{at}", f"flat{at}"], [f"product{at}"])]
        proto.graph.node.extend(nodes)
        for each in nodes:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(each.output[0], onnx.TensorProto.FLOAT, None))
    return proto


def inside(case: Case, rounds: int) -> Iterator[str]:
    names = list(dict.fromkeys(stat.tensor for stat in case.stats))
    asked = {"ranges": [Stat(name, MinMax()) for name in names], "Gram matrices": case.stats}
    batches = [dict(batch.feeds) for batch in case.data.batches()]
    with TemporaryDirectory() as folder, Worker(threads=1) as worker:
        for kind, stats in asked.items():
            path = Path(folder) / f"{kind}.onnx"
            onnx.save(with_nodes(case.model, names, kind), path)
            here, within = [], []
            for _ in range(rounds):
                fresh = Calibration(case.data, Path(folder), worker)
                here.append(timed(lambda fresh=fresh, stats=stats: fresh.collect(case.model, stats)))
                within.append(worker.call("calibration:plain", str(path), batches))
            yield f"| {kind} of {len(names)} values | {median(here):.2f} | {median(within):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64)
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    every = list(cases(given.zoo, given.samples))
    lines = [HEAD[0].format(rounds=given.rounds), *HEAD[1:]]
    for case in every:
        lines.append(row(case, given.rounds))
        print(lines[-1], flush=True)
    lines += [*INSIDE, *inside(every[0], given.rounds)]
    print("\n".join(lines))
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
