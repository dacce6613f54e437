"""Sparse weights on the GPT that ships: bits per byte, layer errors and sizes by method.

    python benchmarks/sparsify.py [--table benchmarks/sparsify.md] [--rows 64] [--windows 128] [--only NAME...]

Every variant is made with the same calibration text (the standard library, tests and held-out modules left out) and
judged on windows of held-out modules: bits per byte, the change against the dense model with the standard error of
the paired difference, and the relative error of the layers' outputs under the dense model's own inputs on that text,
the mean of all layers.
"""

import argparse
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.analysis.linear import linears
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.context import RunContext
from onnxopt.data import Dataset, open_data
from onnxopt.evaluate import MetricConfig, Score, evaluate, paired_difference
from onnxopt.model import Model, load
from onnxopt.models import path
from onnxopt.models.stdlib_text import held_out_bytes, training_bytes, windows
from onnxopt.passing import make
from onnxopt.pruning.sparse import output_error
from onnxopt.pruning.sparse_layers import inputs_of
from onnxopt.statistics import Collected

LENGTH = 512

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    f"{name} {method}": {**options, "method": method}
    for name, options in {"50 %": {"ratio": 0.5}, "2:4": {"pattern": "2:4"}}.items()
    for method in ("magnitude", "wanda", "sparsegpt")
} | {
    "50 % global": {"ratio": 0.5, "method": "global"},
    "50 % sparsegpt, not sequential": {"ratio": 0.5, "method": "sparsegpt", "sequential": False},
    "2:4 sparsegpt, not sequential": {"pattern": "2:4", "method": "sparsegpt", "sequential": False},
    "50 % sparsegpt, 4 rounds": {"ratio": 0.5, "method": "sparsegpt", "rounds": 4},
    "2:4 sparsegpt, 4 rounds": {"pattern": "2:4", "method": "sparsegpt", "rounds": 4},
    "70 % magnitude": {"ratio": 0.7, "method": "magnitude"},
    "70 % wanda": {"ratio": 0.7, "method": "wanda"},
    "70 % sparsegpt": {"ratio": 0.7, "method": "sparsegpt"},
    "70 % wanda, 4 rounds": {"ratio": 0.7, "method": "wanda", "rounds": 4},
    "70 % sparsegpt, 4 rounds": {"ratio": 0.7, "method": "sparsegpt", "rounds": 4},
}

HEAD = (
    "| variant | bits per byte | change | layer error | non-zero | dense MB | bitmask MB | zip MB | seconds |",
    "|---|---|---|---|---|---|---|---|---|",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What came of a variant."""

    score: Score
    error: float
    measures: Mapping[str, Any]
    seconds: float


class Bench:
    """The dense model, the texts, and what the dense model's layers see of the held-out one."""

    def __init__(self, rows: int, count: int) -> None:
        self.dense = load(path("byte-gpt"))
        signature = self.dense.signature
        text = windows(training_bytes(tests=False), LENGTH, rows)[:, :-1]
        judged = windows(held_out_bytes(), LENGTH, count)
        self.calibration = open_data({"tokens": text}, signature, batch_size=8)
        targets = {"tokens": judged[:, :-1], "label/next": judged[:, 1:]}
        self.evaluation: Dataset = open_data(targets, signature, batch_size=4)
        self.layers = linears(self.dense)
        text = judged[:16, :-1]
        # Statistics live as long as the context that has collected them.
        self.context = RunContext(self.dense, calibration=open_data({"tokens": text}, signature, batch_size=8))
        self.seen: Collected = self.context.collect(map(inputs_of, self.layers))

    def score(self, model: Model) -> Score:
        """Bits per byte of held-out text."""
        session = open_session(model.proto().SerializeToString(), SessionMode.DEPLOYED)
        metric = MetricConfig(kind="bits_per_byte").bind(self.evaluation)
        return evaluate(lambda feeds: run(session, feeds), self.evaluation, metric)

    def row(self, options: Mapping[str, Any]) -> Row:
        """A variant, made and judged."""
        model = load(path("byte-gpt"))
        started = time.perf_counter()
        findings = make("sparsify", options).run(model, RunContext(model, calibration=self.calibration))
        seconds = time.perf_counter() - started
        errors = [
            output_error(before.matrix(), after.matrix(), self.seen[inputs_of(before)].gram(), before.taps)
            for before, after in zip(self.layers, linears(model), strict=True)
        ]
        return Row(self.score(model), float(np.mean(errors)), findings.measures, seconds)


def line(name: str, row: Row, dense: Score) -> str:
    """A line of the table."""
    change, stderr = paired_difference(dense, row.score)
    told = row.measures
    sizes = " | ".join(f"{told[key] / 1e6:.2f}" for key in ("dense_bytes", "bitmask_bytes", "zip_bytes"))
    return (
        f"| {name} | {row.score.value:.4f} | +{change:.4f} ± {stderr or 0:.4f} | {100 * row.error:.2f} % | "
        f"{told['density']:.3f} | {sizes} | {row.seconds:.0f} |"
    )


def table(bench: Bench, names: Iterable[str]) -> Iterable[str]:
    """The lines, as they come."""
    dense = bench.score(bench.dense)
    yield from HEAD
    yield f"| dense | {dense.value:.4f} ± {dense.stderr or 0:.4f} | | | 1.000 | | | | |"
    for name in names:
        yield line(name, bench.row(VARIANTS[name]), dense)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="write the table here as well")
    parser.add_argument("--rows", type=int, default=64, help="windows of calibration text")
    parser.add_argument("--windows", type=int, default=128, help="windows of held-out text")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    given = parser.parse_args()
    lines = []
    for each in table(Bench(given.rows, given.windows), given.only):
        print(each, flush=True)
        lines.append(each)
    if given.table:
        note = (
            f"The GPT that ships ({LENGTH} bytes a window): {given.rows} windows of calibration text, {given.windows} "
            "of held-out modules. Change: against the dense model, with the standard error of the paired difference. "
            "Layer error: change of a layer's outputs under the dense model's inputs on held-out text, mean of all "
            "layers. Sizes are those of the matrices."
        )
        given.table.write_text("\n".join([note, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
