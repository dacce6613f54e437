"""BatchNormalization after pruning: statistics as they were, such that follow what is read by now, and plain moments.

    python benchmarks/batchnorm.py [--zoo ../shared/zoo] [--table benchmarks/batchnorm.md]

Networks come with normalizations folded. Each convolution that makes more than a vector gets one back that changes
nothing: its statistics are the moments of what it reads on half of the labelled images, which serve for nothing else;
the other half judges. `keep_macs: 0.5`, `allocation: uniform`, the rest by default, on four fifths of the calibration
images. Squared error: of the outputs, relative to their spread. Change: against the same repair with statistics as they
were, with the standard error of the paired difference.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.context import RunContext
from onnxopt.data import Dataset, open_data
from onnxopt.edit import Edit
from onnxopt.inputs import HELD_BACK
from onnxopt.model import Model, load
from onnxopt.passing import Context, Findings, Stage, make
from onnxopt.pruning import repair
from onnxopt.pruning.batchnorm import Normalization, reestimate
from onnxopt.statistics import Moments, Stat

CASES = ("resnet20_cifar_dynamo", "fashion_se_net_legacy", "digits_cnn_bn_dynamo")


def unfolded(path: Path, data: Dataset) -> Model:
    """A model with a normalization behind each convolution that makes more than a vector."""
    model, edit = load(path), Edit("unfold")
    seen = {node: Stat(node.outputs[0].name or "", Moments(axis=1)) for node in model.graph if node.op_type == "Conv"}
    collected = RunContext(model, calibration=data).collect(seen.values())
    for node, stat in seen.items():
        y, found, bias = node.outputs[0], collected[stat], node.inputs[2]
        if found.count == data.samples:
            continue
        assert bias is not None and bias.const_value is not None
        parts = np.sqrt(found.variance + 1e-5), found.mean, found.mean - bias.const_value.numpy(), found.variance
        weights = [edit.add_weight(f"{y.name}.{at}", part.astype(np.float32)) for at, part in enumerate(parts)]
        norm = ir.node("BatchNormalization", [y, *weights], {"epsilon": 1e-5}, name=f"{y.name}.norm")
        edit.set_input(node, 2, None)
        edit.insert([norm], after=node)
        edit.rewire(y, norm.outputs[0])
    model.apply(edit)
    return model


def plain(model: Model, _: Context, stage: Stage, norm: Normalization, __: Findings, rule: str) -> bool:
    """Put moments of the calibration data in the place of a node's statistics."""
    stat, edit = Stat(norm.x, Moments(axis=1)), Edit(rule)
    now = stage.collect([stat])[stat]
    for value, array in zip(filter(None, norm.node.inputs[3:]), (now.mean, now.variance), strict=True):
        edit.replace_weight(value, array.astype(np.float32))
    model.apply(edit)
    return True


STATISTICS = {"as they were": lambda *_: False, "following": reestimate, "plain moments": plain}


def outputs(model: Model, data: Dataset) -> tuple[npt.NDArray[np.float64], float]:
    """Scores [samples, classes], and the share of samples whose greatest one is that of the label."""
    session = open_session(model.proto().SerializeToString(), SessionMode.DEPLOYED)
    scores = np.concatenate([next(iter(run(session, batch.feeds).values())) for batch in data.batches()])
    labels = np.concatenate([next(iter(batch.labels.values())) for batch in data.batches()])
    return scores.astype(np.float64), float((scores.argmax(1) == labels).mean())


def table(path: Path) -> Iterator[str]:
    """The lines for a model, as they come."""
    signature = load(path).signature
    apart, judged = open_data(path.with_suffix(".npz"), signature).split(0.5, seed=0)
    data, _ = open_data(path.with_suffix(".calib.npz"), signature).split(HELD_BACK, seed=0)
    sizes = {name: array.shape for name, array in data.take(1).first().feeds.items()}
    dense, accuracy = outputs(load(path), judged)
    spread, off = dense.var(0).sum(), np.abs(outputs(unfolded(path, apart), judged)[0] - dense).max()
    said = f"{data.samples} images to prune with, {judged.samples} judge. Putting back changes outputs by {off:.0e}."
    yield from (f"## {path.stem} (dense {accuracy:.4f})", "", said, "")
    yield from ("| repair | statistics | accuracy | squared error | change | MACs |", "|---|---|---|---|---|---|")
    for method in ("none", "bias", "least-squares"):
        before = None
        for name, rule in STATISTICS.items():
            model = unfolded(path, apart)
            context = RunContext(model, calibration=data, sizes=sizes)
            full, way = context.cost.macs, "batch-norm" if method == "none" else method
            with patch.object(repair, "reestimate", rule):
                make("prune-channels", {"keep_macs": 0.5, "allocation": "uniform", "repair": way}).run(model, context)
            scores, accuracy = outputs(model, judged)
            errors = np.square(scores - dense).sum(1) / spread
            before = errors if before is None else before
            less, noise = (errors - before).mean(), (errors - before).std() / np.sqrt(len(errors))
            told = f"{accuracy:.4f} | {errors.mean():.4f} | {less:+.4f} ± {noise:.4f} | {context.cost.macs / full:.3f}"
            yield f"| {method} | {name} | {told} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"))
    parser.add_argument("--table", type=Path, help="write the table here as well")
    given = parser.parse_args()
    lines = ["# Statistics of BatchNormalization after pruning", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    for path in (given.zoo / f"{name}.onnx" for name in CASES):
        for line in table(path) if path.is_file() else [f"{path.stem} is left out: there is no {path}", ""]:
            print(line, flush=True)
            lines.append(line)
    if given.table:
        given.table.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
