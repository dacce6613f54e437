"""Bisecting a violation: to the pass inside a composite, then to the fewest nodes that still show it."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt import comparing
from onnxopt.analysis.precision import default_tolerance
from onnxopt.analysis.regions import around, region_inputs, region_model, region_outputs
from onnxopt.backends.jobs import run_batches
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker
from onnxopt.comparing import Noise, Outputs, Tolerance
from onnxopt.context import RunContext, embedded
from onnxopt.errors import OnnxOptError
from onnxopt.model import Model, load
from onnxopt.passing import Exact, Findings, Pass

logger = logging.getLogger(__name__)

Feed = Mapping[str, Any]

_QUIET = Noise({}, frozenset())
LOSSY_LIMIT = 0.5
"""Relative L2 beyond which a lossy pass is taken to have broken something, where no limit says otherwise."""

_SUSPECTS = 8
_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 32, 64, 128)


@dataclass(frozen=True)
class _Failure:
    why: str
    feed: int


def reproduce(
    parts: Sequence[Pass],
    before: Path,
    feeds: Sequence[Feed],
    worker: Worker,
    folder: Path,
    context: Callable[[Model], RunContext],
    *,
    lossy_limit: float | None = None,
    seconds: float = 60,
) -> str:
    """Find the pass and a small model that show a violation, and write both down.

    Args:
        parts: the passes that were run, in order.
        before: the model before the first of them.
        feeds: inputs on which it showed.
        worker: where sessions run.
        folder: gets `reproduce.onnx` and its inputs `reproduce.npz`.
        context: what a pass gets to work with on a model.
        lossy_limit: relative L2 that lossy passes may reach; None: `LOSSY_LIMIT`.
        seconds: how long to look for a smaller model; then the smallest so far is written.

    Returns:
        One line for people: pass, rule, nodes, file. Where it cannot be shown again, that.
    """
    deadline = time.monotonic() + seconds
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch:
            state = before
            for index, part in enumerate(parts):
                trial = _Trial(part, worker, Path(scratch, "model.onnx"), context, lossy_limit or LOSSY_LIMIT)
                failure = trial.breaks(load(state), feeds)
                if failure is not None:
                    return _minimise(trial, state, feeds[failure.feed], folder, failure.why, deadline)
                state = trial.keep(f"{index}.onnx")
            return "it does not show again when the passes are run one by one"
    except (OnnxOptError, OSError) as error:
        return f"looking for a small model that shows it failed: {error}"


class _Trial:
    """One pass, tried on whole models and on regions of them."""

    def __init__(
        self, part: Pass, worker: Worker, scratch: Path, context: Callable[[Model], RunContext], limit: float
    ) -> None:
        self.part, self.limit = part, limit
        self.scratch, self._worker, self._context = scratch, worker, context
        self.findings = Findings()

    def breaks(self, model: Model, feeds: Sequence[Feed]) -> _Failure | None:
        """Why the pass breaks its contract on this model; None where it does not. The model is changed."""
        signature, tolerance = model.signature, self.tolerance(model)
        model.save(self.scratch)
        reference = self.run(self.scratch, feeds)
        self.findings = Findings()
        try:
            self.findings = self.part.run(model, self._context(model))
            if model.signature != signature and not self.part.changes_signature:
                return _Failure("it changes inputs or outputs", 0)
            model.save(self.scratch)
            outputs = self.run(self.scratch, feeds)
        except Exception as error:  # whatever it is, it is what is to be reproduced
            return _Failure(f"{type(error).__name__}: {error}", 0)
        pairs = zip(reference, outputs, strict=True)
        return next(
            (_Failure(why, at) for at, (a, b) in enumerate(pairs) if (why := self.differ(a, b, tolerance))), None
        )

    def tolerance(self, model: Model) -> Tolerance | None:
        """What the pass's contract allows on a model, by value; None where it is lossy."""
        contract = self.part.contract
        return contract.tolerance or default_tolerance(model) if isinstance(contract, Exact) else None

    def differ(self, reference: Outputs, outputs: Outputs, tolerance: Tolerance | None) -> str | None:
        """What is outside the pass's contract, or outside the limit of a lossy one."""
        if tolerance is not None:
            broken = comparing.compare([reference], [outputs], tolerance, _QUIET).broken
        else:
            measured = comparing.measure([reference], [outputs], _QUIET)
            broken = measured.broken or ([f"drift {measured.drift:.2g}"] if measured.drift > self.limit else [])
        return broken[0] if broken else None

    def keep(self, name: str) -> Path:
        """The model that the last trial left, as a file of its own beside it."""
        path = self.scratch.with_name(name)
        load(self.scratch).save(path)
        return path

    def run(self, path: Path, feeds: Sequence[Feed]) -> list[Outputs]:
        """Outputs of a file in the reference session."""
        outputs: list[Outputs] = self._worker.call(
            run_batches, str(path), SessionMode.REFERENCE, list(map(dict, feeds))
        )
        return outputs


def _minimise(trial: _Trial, state: Path, feed: Feed, folder: Path, why: str, deadline: float) -> str:
    """Grow regions around the nodes that may be to blame until one of them breaks."""
    findings, model = trial.findings, load(state)
    changed = trial.keep("changed.onnx") if findings.changed else None
    nodes = list(model.graph)
    suspects = list(_suspects(trial, state, changed, feed, findings))
    for size in (s for s in _SIZES if s < len(nodes)):
        for start in suspects:
            if time.monotonic() > deadline:
                break
            region = _neighbours(nodes, start, size)
            try:
                small, inputs = _region(trial, state, model, region, feed)
                found = trial.breaks(load(embedded(small.ir)), [inputs])
            except OnnxOptError as error:
                logger.debug("a region of %d nodes cannot be run: %s", size, error)
                continue
            if found is not None:
                return _write(small, inputs, folder, f"pass {trial.part.name}{_rule(trial)}: {found.why}", region)
    return _write(load(state), feed, folder, f"pass {trial.part.name}: {why}", nodes)


def _rule(trial: _Trial) -> str:
    changes = trial.findings.changes
    return f", rule {changes[0].rule}" if changes and changes[0].rule != trial.part.name else ""


def _neighbours(nodes: Sequence[ir.Node], start: int, size: int) -> list[ir.Node]:
    near = {node for _, node in zip(range(size), around(nodes[start]), strict=False)}
    return [node for node in nodes if node in near]


def _region(
    trial: _Trial, state: Path, model: Model, nodes: Sequence[ir.Node], feed: Feed
) -> tuple[Model, dict[str, Any]]:
    names = [value.name for value in (*region_inputs(nodes), *region_outputs(nodes)) if value.name]
    values = _values(trial, state, names, feed)
    types = {name: (ir.DataType.from_numpy(array.dtype), array.shape) for name, array in values.items()}
    inputs = {value.name: values[value.name] for value in region_inputs(nodes) if value.name in values}
    return region_model(model, nodes, types), inputs


def _suspects(trial: _Trial, state: Path, changed: Path | None, feed: Feed, findings: Findings) -> Iterator[int]:
    """Places of nodes to look around: the first whose value went too far, those the pass named, the last."""
    nodes = list(load(state).graph)
    found: dict[int, None] = {}
    if changed is not None:
        found |= dict.fromkeys(_differing(trial, nodes, state, changed, feed))
    named = {change.node for change in findings.changes if change.node}
    found |= {at: None for at, node in enumerate(nodes) if _names(node) & named}
    found[len(nodes) - 1] = None
    yield from list(found)[:_SUSPECTS]


def _names(node: ir.Node) -> set[str | None]:
    return {node.name, *(value.name for value in (*node.inputs, *node.outputs) if value is not None)}


def _differing(trial: _Trial, nodes: Sequence[ir.Node], state: Path, changed: Path, feed: Feed) -> list[int]:
    """The first node whose value is no longer what it was, among values that kept their names."""
    kept = {value.name for node in load(changed).graph for value in node.outputs if value.name}
    tolerance = trial.tolerance(load(state))
    shared = [v.name for node in nodes for v in node.outputs if v.name in kept and not _is_sequence(v)]
    try:
        before, after = (_values(trial, path, shared, feed) for path in (state, changed))
    except OnnxOptError as error:
        logger.debug("inner values cannot be compared: %s", error)
        return []
    for at, node in enumerate(nodes):
        for name in (value.name for value in node.outputs if value.name in before and value.name in after):
            if trial.differ({name: before[name]}, {name: after[name]}, tolerance):
                return [at]
    return []


def _is_sequence(value: ir.Value) -> bool:
    return value.type is not None and not isinstance(value.type, ir.TensorType)


def _values(trial: _Trial, path: Path, names: Sequence[str | None], feed: Feed) -> dict[str, Any]:
    """Values of a run by name: the feed's, and inner ones through extra outputs."""
    found = {name: np.asarray(feed[name]) for name in names if name and name in feed}
    model = load(path)
    have = {value.name for value in model.graph.outputs}
    wanted = set(names) - have - set(found)
    for node in model.graph:
        model.graph.outputs.extend(value for value in node.outputs if value.name in wanted)
    probe = trial.scratch.with_name("probe.onnx")
    model.save(probe)
    (outputs,) = trial.run(probe, [feed])
    return found | {name: value for name, value in outputs.items() if name in names}


def _write(model: Model, inputs: Mapping[str, Any], folder: Path, what: str, nodes: Sequence[ir.Node]) -> str:
    model.save(folder / "reproduce.onnx", external_data=False)
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in inputs.items()}
    np.savez(folder / "reproduce.npz", **arrays)
    shown = ", ".join(f"{node.name} ({node.op_type})" for node in nodes[:3]) + (", ..." if len(nodes) > 3 else "")
    count = "1 node shows" if len(nodes) == 1 else f"{len(nodes)} nodes show"
    return f"{what}; {count} it ({shown}): {folder / 'reproduce.onnx'}"
