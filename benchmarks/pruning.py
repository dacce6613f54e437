"""Quality of pruned models: importance x allocation x repair, on trained models with their own data.

    python benchmarks/pruning.py FOLDER [--rows ROWS] [--table TABLE] [--only MODEL]

FOLDER holds NAME.onnx, NAME.calib.npz (no labels), NAME.npz (inputs and `label/...`) of classifiers; the GPT that ships
is judged by bits per byte on Python modules that it was not trained on. Calibration data alone decide anything; a fifth
of them is held back, as in any run. Rows are kept, so that a run that was stopped goes on.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxopt import models
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.data import Dataset, open_data
from onnxopt.inputs import HELD_BACK
from onnxopt.model import Model, load
from onnxopt.models.stdlib_text import held_out_bytes, training_bytes, windows
from onnxopt.passing import make
from onnxopt.workdir import WorkDir

_BARE = {"importance": "magnitude", "allocation": "uniform", "repair": "none"}
CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "magnitude": _BARE,
    "magnitude, global": _BARE | {"allocation": "global"},
    "lamp, global": _BARE | {"importance": "lamp", "allocation": "global"},
    "random": _BARE | {"importance": "random"},
    "geometric median": _BARE | {"importance": "geometric-median"},
    "wanda": _BARE | {"importance": "wanda"},
    "FLAP (fluctuation, bias)": _BARE | {"importance": "flap", "repair": "bias"},
    "FLAP, one ranking": {
        "importance": "flap",
        "allocation": "global",
        "normalization": "standard",
        "repair": "bias",
    },
    "energy": _BARE | {"importance": "energy"},
    "elimination": _BARE | {"importance": "elimination"},
    "magnitude, bias": _BARE | {"repair": "bias"},
    "magnitude, least squares": _BARE | {"repair": "least-squares"},
    "elimination, bias": _BARE | {"importance": "elimination", "repair": "bias"},
    "elimination, least squares": _BARE | {"importance": "elimination", "repair": "least-squares"},
    "swaps, least squares": _BARE | {"importance": "swaps", "repair": "least-squares"},
    "elimination, global, least squares": {"allocation": "global"},
    "magnitude, distortion, least squares": {"importance": "magnitude"},
    "swaps, distortion, least squares": {"importance": "swaps"},
}
"""What is left out is as by default."""


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Attributes:
        name: of the model.
        source: its file.
        calibration: what passes see.
        judge: a model -> score of each sample.
        better: "more" or "less".
        budgets: what is kept.
    """

    name: str
    source: Path
    calibration: Callable[[Model], Dataset]
    judge: Callable[[Model, Path], np.ndarray]
    better: str
    budgets: tuple[Mapping[str, float], ...]


def classifiers(folder: Path) -> Iterator[Case]:
    """Every classifier of a folder."""
    for path in sorted(folder.glob("*.onnx")):
        data, labels = path.with_suffix(".calib.npz"), path.with_suffix(".npz")
        if data.is_file() and labels.is_file() and any(name.startswith("label/") for name in np.load(labels).files):
            budgets = ({"keep_macs": 0.75}, {"keep_macs": 0.5})
            yield Case(path.stem, path, _archive(data), _accuracy(labels), "more", budgets)


def _archive(path: Path) -> Callable[[Model], Dataset]:
    return lambda model: open_data(path, model.signature)


def _accuracy(labels: Path) -> Callable[[Model, Path], np.ndarray]:
    def judge(model: Model, file: Path) -> np.ndarray:
        model.save(file)
        session, found = ort.InferenceSession(str(file)), []
        for batch in open_data(labels, model.signature).batches():
            scores = np.asarray(session.run(None, batch.feeds)[0])
            found.append(scores.argmax(-1) == np.asarray(next(iter(batch.labels.values()))))
        return np.concatenate(found).astype(np.float64)

    return judge


def language_model() -> Case:
    """The byte GPT that ships."""
    source = Path(models.path("byte-gpt"))
    text, held = windows(training_bytes(tests=False), 256, 80, seed=1), windows(held_out_bytes(), 256, 64)

    def calibration(model: Model) -> Dataset:
        return open_data({model.signature.inputs[0].name: text[:, :-1]}, model.signature)

    def judge(model: Model, file: Path) -> np.ndarray:
        model.save(file)
        session, name, found = ort.InferenceSession(str(file)), model.signature.inputs[0].name, []
        for rows in np.array_split(held, 8):
            logits = np.asarray(session.run(None, {name: rows[:, :-1]})[0], np.float64)
            logits -= np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) + logits.max(
                -1, keepdims=True
            )
            found.append(-np.take_along_axis(logits, rows[:, 1:, None], -1)[..., 0].mean(1) / np.log(2))
        return np.concatenate(found)

    return Case("byte_gpt", source, calibration, judge, "less", ({"keep_params": 0.75},))


def measured(case: Case, configuration: str, budget: Mapping[str, float], scratch: Path) -> dict[str, Any]:
    """One row."""
    model = load(case.source)
    data, _ = case.calibration(model).split(HELD_BACK, seed=0)
    sizes = {name: np.shape(array) for name, array in data.take(1).first().feeds.items()}
    dense = case.judge(load(case.source), scratch / "dense.onnx")
    with Worker() as worker:
        workdir = WorkDir(scratch / "work", {}, resume=False)
        context = RunContext(model, worker=worker, workdir=workdir, calibration=data, sizes=sizes)
        full, began = (context.cost.macs, context.cost.params), time.monotonic()
        options = {**budget, **CONFIGURATIONS[configuration]}
        findings = make("prune-channels", options).run(model, context)
        seconds = time.monotonic() - began
        scores = case.judge(model, scratch / "pruned.onnx")
        left = [now / before for now, before in zip((context.cost.macs, context.cost.params), full, strict=True)]
        workdir.remove()
    difference = scores - dense
    return {
        "model": case.name, "configuration": configuration, "budget": dict(budget), "dense": float(dense.mean()),
        "score": float(scores.mean()), "stderr": float(difference.std() / np.sqrt(len(difference))),
        "macs": left[0], "params": left[1], "seconds": seconds, "units": str(findings.notes[-1:]),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, a table for each model and budget."""
    said = (__doc__ or "").split("\n\n", 2)[2].strip()
    lines = ["# Pruned models, by importance, allocation and repair", "", said, ""]
    for key in dict.fromkeys((row["model"], json.dumps(row["budget"])) for row in rows):
        own = [row for row in rows if (row["model"], json.dumps(row["budget"])) == key]
        budget = ", ".join(f"{name} {value}" for name, value in own[0]["budget"].items())
        lines += [f"## {key[0]}, {budget} (dense {own[0]['dense']:.4f})", ""]
        lines += ["| configuration | score | difference | MACs | parameters | seconds |", "|---|---|---|---|---|---|"]
        for row in own:
            difference = f"{row['score'] - row['dense']:+.4f} ± {row['stderr']:.4f}"
            share = f"{row['macs']:.3f} | {row['params']:.3f}"
            score = f"{row['score']:.4f} | {difference}"
            lines.append(f"| {row['configuration']} | {score} | {share} | {row['seconds']:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, default=Path("build/pruning"), help="where finished rows are kept")
    parser.add_argument("--table", type=Path, help="write the table here as well")
    parser.add_argument("--only", help="models whose name contains this")
    given = parser.parse_args()
    given.rows.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in (*classifiers(given.folder), language_model()):
        if given.only and given.only not in case.name:
            continue
        for budget in case.budgets:
            for configuration in CONFIGURATIONS:
                name = f"{case.name}.{'.'.join(map(str, budget.values()))}.{configuration.replace(' ', '_')}.json"
                path = given.rows / name
                if not path.is_file():
                    path.write_text(json.dumps(measured(case, configuration, budget, given.rows)))
                rows.append(json.loads(path.read_text()))
                print(f"{case.name} {budget} {configuration}: {rows[-1]['score']:.4f}", flush=True)
    text = table(rows)
    print(text)
    if given.table:
        given.table.write_text(text)


if __name__ == "__main__":
    main()
