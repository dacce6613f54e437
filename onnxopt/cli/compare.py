"""`onnxopt compare A B`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt import comparing
from onnxopt.analysis.cost import cost
from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.analysis.shapes import infer
from onnxopt.backends.jobs import latency, run_batches
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker
from onnxopt.cli import output
from onnxopt.comparing import Noise, Outputs
from onnxopt.data import open_data, synthetic
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
    feeds = _feeds(models[0], data, samples, output.parse_shapes(shapes))
    with Worker(threads=threads) as worker:
        outputs_a, outputs_b = (worker.call(run_batches, str(path), SessionMode.DEPLOYED, feeds) for path in (a, b))
        times = worker.call(latency, [str(a), str(b)], feeds[0])
    sizes = {name: np.shape(value) for name, value in feeds[0].items()}
    found: dict[str, Any] = {
        "outputs": _drifts(outputs_a, outputs_b),
        "a": _facts(models[0], a, sizes), "b": _facts(models[1], b, sizes),
        "latency": {"a_ms": times[0].p50 * 1e3, "b_ms": times[1].p50 * 1e3, "ratio": times[1].ratio.median},
        "batches": len(feeds), "data": data,
    }  # fmt: skip
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


def _feeds(model: Model, data: str, samples: int, shapes: dict[str, tuple[int, ...]] | None) -> list[dict[str, Any]]:
    signature = model.signature
    if data == "synthetic":
        dataset = synthetic(signature, shapes, index_bounds(model), samples, np.random.default_rng(0))
    else:
        dataset = open_data(data, signature, allow_code=True)
    return [dict(batch.feeds) for batch in dataset.take(samples).batches()]


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
        [[d["output"], f"{d['relative_l2']:.2e}", d["differs"] or ""] for d in found["outputs"]],
        ("output", "relative L2", ""),
    )
    a, b, times = found["a"], found["b"], found["latency"]
    output.table([
        ["file", output.size(a["file_bytes"]), output.size(b["file_bytes"])],
        ["parameters", output.amount(a["parameters"]), output.amount(b["parameters"])],
        ["MACs", output.amount(a["macs"]), output.amount(b["macs"])],
        ["nodes", a["nodes"], b["nodes"]],
        ["latency (ms)", f"{times['a_ms']:.3g}", f"{times['b_ms']:.3g} (x{times['ratio']:.2f})"],
    ], ("", "A", "B"))  # fmt: skip
