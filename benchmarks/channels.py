"""Channel ids on real models: what can be removed, the proof that it can, what stays and why.

    python benchmarks/channels.py FOLDER... [--rows FOLDER] [--table benchmarks/channels.md] [--draws 10]

For every .onnx in the folders: units by kind, against what the architecture has where `architectures/expected.py`
tells; parameters that stay for want of a rule; the worst drift over draws of up to half of the units of all exact
groups at once (the model without them against the model that ignores them, at the smallest input it runs at); and what
is left of parameters and MACs when every group loses half, with the width of residual streams and without. Rows are
kept in a folder, so that a run goes on where one was stopped; they are made anew when the file has changed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from architectures.expected import EXPECTED

from onnxopt.analysis.axes import channel_ids, frozen, groups, lost_to
from onnxopt.analysis.axes.checking import Checker
from onnxopt.analysis.cost import cost
from onnxopt.analysis.shapes import infer
from onnxopt.analysis.symbols import symbols
from onnxopt.backends.worker import Worker
from onnxopt.cli.groups import prepared
from onnxopt.context import RunContext
from onnxopt.model import Model
from onnxopt.passes.prune.prune_channels import PruneChannels
from onnxopt.passing import make, rounds
from onnxopt.variants import Variants

ALL = ("conv", "neurons", "heads", "kv-groups", "recurrent", "residual")

TORCH_PRUNING = {
    "resnet18": (26.1, 26.7), "resnext50_32x4d": (27.1, 26.0), "densenet121": (28.5, 26.5),
    "mobilenet_v2": (34.9, 29.1), "mobilenet_v3_small": (35.8, 32.3), "efficientnet_b0": (32.2, 28.9),
    "googlenet": (29.0, 27.1), "squeezenet1_1": (35.5, 33.1), "regnet_y_400mf": (27.7, 26.4),
    "convnext_tiny": (26.0, 25.8), "vit_b_16": (67.3, 68.3),
}  # fmt: skip
"""Torch-Pruning 1.6.1 at half of the channels, on the torch models: % of parameters and of MACs left. Its
shufflenet_v2 crashes and its swin_t hangs; it leaves the heads of vit_b_16 alone."""


COLUMNS = (
    "model", "nodes", "groups", "units", "expected", "needs-rule", "drift (effect)", "half", "inside", "analysis s",
    "draws s", "stays",
)  # fmt: skip
HEAD = (
    "Parameters that stay for want of a rule; worst drift of the draws (and what ignoring the units changes); % of "
    "parameters / MACs left when every group loses half, residual width included (Torch-Pruning 1.6.1) and not; "
    "seconds of the analysis and of the draws; what most parameters stay for. * not exact, off by default",
    "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|",
)  # fmt: skip


class Unproven(RunContext):
    """A context in which the pass runs no trial of its own: the draws above are the trial."""

    def drift(self, before: Model, after: Model) -> float | None:
        return None


def row(path: Path, draws: int) -> dict[str, Any]:
    """What there is to tell of a model."""
    model = prepared(path)
    started = time.perf_counter()
    known = symbols(model)
    channels = channel_ids(model, known)
    found = groups(channels)
    seconds = time.perf_counter() - started
    kinds: Counter[str] = Counter()
    for group in found:
        kinds[group.kind + ("" if group.exact else "*")] += len(group.units)
    total = sum(int(np.prod([len(ids) for ids in weight.ids], dtype=np.int64)) for weight in channels.weights)
    lost = {each.freeze.why: each.parameters for each in frozen(channels)[:3]}
    return {
        "nodes": len(list(model.nodes())), "groups": len(found), "units": dict(kinds), "analysis": seconds,
        "parameters": total, "frozen": lost, "needs_rule": lost_to(channels, "needs-rule"),
        **_drawn(model, draws), "half": _left(path, ALL, inexact=True), "inside": _left(path, ALL[:-1], inexact=False),
    }  # fmt: skip


def _drawn(model: Model, draws: int) -> dict[str, Any]:
    started = time.perf_counter()
    rng, drifts, whys = np.random.default_rng(0), [], []
    with tempfile.TemporaryDirectory() as folder, Worker() as worker:
        variants = Variants(Path(folder), worker)
        checker = Checker(model, variants.drift)
        if not checker.able():
            return {"drift": None, "why": variants.why, "seconds": time.perf_counter() - started, "effect": 0.0}
        effect = 0.0
        for number in range(draws):
            draw = checker.drawn(rng, 0.5)
            units = checker.channels.spared(unit for some in draw.values() for unit in some)
            drift, why = checker.trial(units)
            drifts.append(drift)
            whys += [variants.why or why] if drift > checker.tolerance else []
            effect = effect if number else checker.effect(units) or 0.0
    return {
        "drift": max(drifts, default=0.0), "why": whys[0] if whys else "", "effect": effect,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def _left(path: Path, kinds: tuple[str, ...], *, inexact: bool) -> tuple[float, float]:
    """% of parameters and MACs left when every group loses half of its units, at batch size 1."""
    model = _cleaned(prepared(path))
    inputs = model.signature.inputs
    sizes = {each.name: tuple(_size(*dim) for dim in enumerate(each.shape or ())) for each in inputs}
    before = cost(model, infer(model, sizes, thorough=True))
    PruneChannels(ratio=0.5, kinds=kinds, inexact=inexact, round_to=1).run(model, Unproven(model))  # type: ignore[arg-type]
    after = cost(_cleaned(model), infer(model, sizes, thorough=True))
    macs = 100 * after.macs / before.macs if before.macs and after.macs else float("nan")
    return 100 * after.params / before.params, macs


def _size(place: int, dim: int | str | None) -> int:
    if isinstance(dim, int):
        return dim
    return 1 if place == 0 else 16


def _cleaned(model: Model) -> Model:
    """The model as `clean` leaves it, so that sizes of all operators can be told."""
    context = RunContext(model)
    for part in rounds(make("clean"), lambda: model.revision):
        part.run(model, context)
    return model


def line(name: str, found: Mapping[str, Any]) -> str:
    """A line of the table."""
    units = ", ".join(f"{count} {kind}" for kind, count in found["units"].items())
    told = _expected(name.rsplit("_", 1)[0], found["units"])
    drift = "does not run" if found["drift"] is None else f"{found['drift']:.0e}"
    drift += f": {found['why']}" if found["why"] else ""
    stays = "; ".join(f"{why} {count / max(found['parameters'], 1):.1%}" for why, count in found["frozen"].items())
    half, inside = (" / ".join(f"{each:.1f}" for each in found[key]) for key in ("half", "inside"))
    rival = TORCH_PRUNING.get(name.rsplit("_", 1)[0])
    against = f"{half} ({rival[0]} / {rival[1]})" if rival else half
    return (
        f"| {name} | {found['nodes']} | {found['groups']} | {units} | {told} | {found['needs_rule']} | {drift} "
        f"({found['effect']:.2g}) | {against} | {inside} | {found['analysis']:.2f} | {found['seconds']:.0f} | {stays} |"
    )


def _expected(name: str, units: Mapping[str, int]) -> str:
    if name not in EXPECTED:
        return "-"
    heads = sum(stack.head_units for stack in EXPECTED[name])
    neurons = sum(stack.neuron_units for stack in EXPECTED[name])
    has = units.get("heads", 0) + units.get("kv-groups", 0)
    return f"{heads} heads, {neurons} neurons" + ("" if has == heads else f" (has {has})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help=".onnx files, or folders of them")
    parser.add_argument("--rows", type=Path, default=Path("build/channels"), help="where finished rows are kept")
    parser.add_argument("--table", type=Path, help="write the table here as well")
    parser.add_argument("--draws", type=int, default=10)
    given = parser.parse_args()
    given.rows.mkdir(parents=True, exist_ok=True)
    lines = list(HEAD)
    for path in _files(given.models):
        kept = given.rows / f"{path.stem}.{path.stat().st_size}.{given.draws}.json"
        if not kept.exists():
            try:
                kept.write_text(json.dumps(row(path, given.draws)))
            except Exception as error:  # one model is no reason to stop
                print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
        lines.append(line(path.stem, json.loads(kept.read_text())))
        print(lines[-1], flush=True)
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")


def _files(given: Iterable[Path]) -> list[Path]:
    return [file for path in given for file in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])]


if __name__ == "__main__":
    main()
