"""Bisecting a violation: to the pass inside a composite, then to the fewest nodes that still show it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt import comparing
from onnxopt.analysis.regions import around, region_inputs, region_model, region_outputs
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker
from onnxopt.backends.jobs import run_batches
from onnxopt.comparing import Noise, Outputs
from onnxopt.context import RunContext
from onnxopt.errors import OnnxOptError
from onnxopt.model import Model, load
from onnxopt.passing import Exact, Findings, Pass
from onnxopt.verify import default_tolerance

logger = logging.getLogger(__name__)

Feed = Mapping[str, Any]

_QUIET = Noise({}, frozenset())
_LOSSY_LIMIT = 0.5
_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 32, 64, 128)


def reproduce(parts: Sequence[Pass], before: Path, feeds: Sequence[Feed], worker: Worker, folder: Path) -> str:
    """Find the pass and a small model that show a violation, and write both down.

    Args:
        parts: the passes that were run, in order.
        before: the model before the first of them.
        feeds: inputs on which it showed.
        worker: where sessions run.
        folder: gets `reproduce.onnx` and its inputs `reproduce.npz`.

    Returns:
        One line for people: pass, rule, nodes, file. Where it cannot be shown again, that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = before
    for index, part in enumerate(parts):
        trial = _Trial(part, worker, folder / "reproduce.trial.onnx")
        why = trial.breaks(load(state), feeds[:1])
        if why is not None:
            return _minimise(trial, state, feeds[0], folder, why)
        state = trial.keep(folder / f"reproduce.{index}.onnx")
    return "it does not show again when the passes are run one by one"


class _Trial:
    """One pass, tried on whole models and on regions of them."""

    def __init__(self, part: Pass, worker: Worker, scratch: Path) -> None:
        self.part, self._worker, self._scratch = part, worker, scratch
        self.findings = Findings()

    def breaks(self, model: Model, feeds: Sequence[Feed]) -> str | None:
        """Why the pass breaks its contract on this model; None where it does not. The model is changed."""
        signature = model.signature
        model.save(self._scratch)
        reference = self.run(self._scratch, feeds)
        try:
            self.findings = self.part.run(model, RunContext(model, worker=self._worker))
            if model.signature != signature and not self.part.changes_signature:
                return "it changes inputs or outputs"
            model.save(self._scratch)
            outputs = self.run(self._scratch, feeds)
        except Exception as error:  # whatever it is, it is what is to be reproduced
            return f"{type(error).__name__}: {error}"
        if isinstance(self.part.contract, Exact):
            tolerance = self.part.contract.tolerance or default_tolerance(model)
            broken = comparing.compare(reference, outputs, tolerance, _QUIET).broken
        else:
            measured = comparing.measure(reference, outputs, _QUIET)
            broken = measured.broken or ([f"drift {measured.drift:.2g}"] if measured.drift > _LOSSY_LIMIT else [])
        return broken[0] if broken else None

    def keep(self, path: Path) -> Path:
        """The model that the last trial left, as a file of its own."""
        load(self._scratch).save(path)
        return path

    def run(self, path: Path, feeds: Sequence[Feed]) -> list[Outputs]:
        """Outputs of a file in the reference session."""
        outputs: list[Outputs] = self._worker.call(run_batches, str(path), SessionMode.REFERENCE, list(map(dict, feeds)))
        return outputs


def _minimise(trial: _Trial, state: Path, feed: Feed, folder: Path, why: str) -> str:
    """Grow regions around the first value that differs until one breaks."""
    rule = f", rule {trial.findings.changes[0].rule}" if trial.findings.changes else ""
    changed = trial.keep(folder / "reproduce.changed.onnx") if trial.findings.changed else None
    model = load(state)
    nodes = list(model.graph)
    order = {node: at for at, node in enumerate(nodes)}
    start = _first_difference(trial, state, changed, feed)
    for size in (s for s in _SIZES if s < len(nodes)):
        near = [node for _, node in zip(range(size), around(nodes[start]), strict=False)]
        region = sorted(near, key=order.__getitem__)
        try:
            small, inputs = _region(trial, state, model, region, feed)
            found = trial.breaks(load(small.proto()), [inputs])
        except OnnxOptError as error:
            logger.debug("a region of %d nodes cannot be run: %s", size, error)
            continue
        if found is not None:
            return _write(small, inputs, folder, f"pass {trial.part.name}{rule}: {found}", region)
    return _write(load(state), feed, folder, f"pass {trial.part.name}{rule}: {why}", nodes)


def _region(
    trial: _Trial, state: Path, model: Model, nodes: Sequence[ir.Node], feed: Feed
) -> tuple[Model, dict[str, Any]]:
    names = [value.name for value in (*region_inputs(nodes), *region_outputs(nodes)) if value.name]
    values = _values(trial, state, names, feed)
    types = {name: (ir.DataType.from_numpy(array.dtype), array.shape) for name, array in values.items()}
    inputs = {value.name: values[value.name] for value in region_inputs(nodes) if value.name}
    return region_model(model, nodes, types), inputs


def _first_difference(trial: _Trial, state: Path, changed: Path | None, feed: Feed) -> int:
    """Place of the first node whose value the pass changed, among values that kept their names."""
    nodes = list(load(state).graph)
    if changed is None:
        return len(nodes) - 1
    names = {value.name for node in load(changed).graph for value in node.outputs if value.name}
    shared = [v.name for node in nodes for v in node.outputs if v.name in names and isinstance(v.type, ir.TensorType)]
    before, after = (_values(trial, path, shared, feed) for path in (state, changed))
    for at, node in enumerate(nodes):
        for value in node.outputs:
            if value.name in before and comparing.compare(
                [{value.name: before[value.name]}], [{value.name: after.get(value.name)}], 1e-4, _QUIET
            ).broken:
                return at
    return len(nodes) - 1


def _values(trial: _Trial, path: Path, names: Sequence[str], feed: Feed) -> dict[str, Any]:
    """Values of a run by name: the feed's, and inner ones through extra outputs."""
    found = {name: np.asarray(feed[name]) for name in names if name in feed}
    model = load(path)
    have = {value.name for value in model.graph.outputs}
    wanted = set(names) - have - set(found)
    for node in model.graph:
        model.graph.outputs.extend(value for value in node.outputs if value.name in wanted)
    probe = path.with_name(f"{path.stem}.probe.onnx")
    model.save(probe)
    (outputs,) = trial.run(probe, [feed])
    probe.unlink()
    return found | {name: value for name, value in outputs.items() if name in names}


def _write(model: Model, inputs: Mapping[str, Any], folder: Path, what: str, nodes: Sequence[ir.Node]) -> str:
    model.save(folder / "reproduce.onnx")
    np.savez(folder / "reproduce.npz", **{name: np.asarray(value) for name, value in inputs.items()})
    for scratch in folder.glob("reproduce.*.onnx*"):
        scratch.unlink()
    shown = ", ".join(f"{node.name} ({node.op_type})" for node in nodes[:3]) + (", ..." if len(nodes) > 3 else "")
    return f"{what}; {len(nodes)} nodes show it ({shown}): {folder / 'reproduce.onnx'}"
