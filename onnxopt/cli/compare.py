"""`onnxopt compare A B`. Ratios are B to A: with the original first, after to before, as in the report of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt import comparing
from onnxopt.analysis.cost import cost
from onnxopt.analysis.shapes import infer
from onnxopt.backends.jobs import latency, run_batches
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker
from onnxopt.cli import feeding, output
from onnxopt.comparing import Noise, Outputs
from onnxopt.errors import ContractViolation, ModelError
from onnxopt.model import Model, load
from onnxopt.report import facts

_QUIET = Noise({}, frozenset())


def compare(
    a: Path,
    b: Path,
    data: str,
    tolerance: float | None,
    samples: int,
    shapes: list[str],
    threads: int | None,
    as_json: bool,
) -> None:
    """Run both on the same inputs and print drift per output, size, work and latency ratio."""
    models = load(a), load(b)
    _check_signatures(*models)
    with Worker(threads=threads) as worker:
        dataset = feeding.opened(models[0], a, worker, data, samples, output.parse_shapes(shapes))
        feeds = [dict(batch.feeds) for batch in dataset.take(samples).batches()]
        outputs_a, outputs_b = (worker.call(run_batches, str(path), SessionMode.DEPLOYED, feeds) for path in (a, b))
        times = worker.call(latency, [str(a), str(b)], feeds[0])
    sizes = {name: np.shape(value) for name, value in feeds[0].items()}
    found: dict[str, Any] = {
        "outputs": _drifts(outputs_a, outputs_b),
        "a": _facts(models[0], a, sizes) | {"latency_ms": times[0].p50 * 1e3},
        "b": _facts(models[1], b, sizes) | {"latency_ms": times[1].p50 * 1e3},
        "batches": len(feeds), "data": data, "sizes": sizes,
    }  # fmt: skip
    found["b_to_a"] = {key: _ratio(found["a"][key], found["b"][key]) for key in found["a"]}
    found["b_to_a"]["latency_ms"] = times[1].ratio.median  # of runs side by side, not of medians
    if as_json:
        output.show_json(found)
    else:
        _show(found)
    worst = max((drift["relative_l2"] for drift in found["outputs"]), default=0.0)
    if tolerance is not None and worst > tolerance:
        raise ContractViolation(f"{b} drifts {worst:.2g} from {a}, allowed {tolerance:.2g}")


def _check_signatures(a: Model, b: Model) -> None:
    left, right = ({v.name for v in model.signature.inputs} for model in (a, b))
    if left != right:
        raise ModelError(f"the models have different inputs: {sorted(left)} and {sorted(right)}")


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if not a or b is None else b / a


def _drifts(a: Sequence[Outputs], b: Sequence[Outputs]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for outputs in (*a, *b) for name in outputs)
    return [
        {
            "output": name,
            "relative_l2": (found := comparing.compare(_only(a, name), _only(b, name), np.inf, _QUIET)).drift,
            "differs": found.broken[0] if found.broken else None,
        }
        for name in names
    ]


def _only(outputs: Sequence[Outputs], name: str) -> list[Outputs]:
    return [{name: values.get(name)} for values in outputs]


def _facts(model: Model, path: Path, sizes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    found = facts(model, cost(model, infer(model, sizes)), path)
    return {"file_bytes": found.file_bytes, "parameters": found.parameters, "macs": found.macs, "nodes": found.nodes}


def _show(found: dict[str, Any]) -> None:
    output.table(
        [[d["output"], comparing.shown(d["relative_l2"]), d["differs"] or ""] for d in found["outputs"]],
        ("output", "relative L2", ""),
    )
    a, b, ratios = found["a"], found["b"], found["b_to_a"]
    rows = (
        ("file", "file_bytes", output.size), ("parameters", "parameters", output.amount),
        ("MACs", "macs", output.amount), ("nodes", "nodes", str), ("latency (ms)", "latency_ms", "{:.3g}".format),
    )  # fmt: skip
    cells = [[label, shown(a[key]), shown(b[key]), output.ratio(ratios[key])] for label, key, shown in rows]
    output.table(cells, ("", "A", "B", "B/A"))
