"""`onnxopt inspect`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from onnxopt.analysis.cost import cost
from onnxopt.analysis.parameters import stored
from onnxopt.analysis.shapes import infer
from onnxopt.analysis.structure import constant_tensor
from onnxopt.backends.jobs import load_check
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker
from onnxopt.cli import output
from onnxopt.data.synthetic import Open, input_shapes
from onnxopt.errors import DataError, OnnxOptError
from onnxopt.inputs import check_shapes
from onnxopt.model import Model, Signature, ValueInfo, load
from onnxopt.report import total_bytes

_STANDARD = {"", "ai.onnx"}
_LARGEST = 8


def inspect(path: Path, shapes: list[str], as_json: bool) -> None:
    """Print what is in a model."""
    model = load(path)
    sizes = Sizes.of(model.signature, output.parse_shapes(shapes) or {})
    found = describe(model, path, sizes, _session(path))
    if as_json:
        output.show_json(found)
    else:
        _show(found)


@dataclass(frozen=True)
class Sizes:
    """The sizes that work is counted at.

    Attributes:
        shapes: input name -> shape, as far as it is known.
        one: whether a batch of one was assumed.
        missing: what `--shape` would have to say, because sizes other than the batch are open.
    """

    shapes: dict[str, tuple[int, ...]]
    one: bool = False
    missing: str = ""

    @classmethod
    def of(cls, signature: Signature, given: dict[str, tuple[int, ...]]) -> "Sizes":
        """What the caller gave, and a batch of one.

        Raises:
            DataError: a shape that does not fit the model.
        """
        check_shapes(signature, given)
        try:
            # Axes that nothing settles show by what they are when they may be something else.
            one, longer, two = (
                input_shapes(signature, given, Open(batch=batch, length=length))
                for batch, length in ((1, 16), (1, 17), (2, 16))
            )
        except DataError:  # an unknown rank
            return cls(given, missing="INPUT:SIZE,SIZE,...")
        for value in signature.inputs:
            name = value.name
            if one.get(name) != longer.get(name):
                sizes = zip(one[name], longer[name], value.shape or (), strict=True)
                text = [str(a) if a == b else str(dim or "SIZE").upper() for a, b, dim in sizes]
                return cls(given, missing=f"{name}:{','.join(text)}")
        return cls(one, one != two)


def describe(model: Model, path: Path, sizes: Sizes, session: dict[str, Any]) -> dict[str, Any]:
    """Everything that `inspect` shows, as plain values; MACs are None where nothing is known of them."""
    signature = model.signature
    work = cost(model, infer(model, sizes.shapes, thorough=True))
    return {
        "file": str(path),
        "file_bytes": total_bytes(path),
        "ir_version": model.ir.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in model.ir.opset_imports.items()},
        "producer": " ".join(filter(None, (model.ir.producer_name, model.ir.producer_version))),
        "inputs": [_value(value) for value in signature.inputs],
        "outputs": [_value(value) for value in signature.outputs],
        "dynamic_dimensions": _dynamic(signature),
        "parameters": work.params,
        "weight_bytes": work.weight_bytes,
        "macs": work.macs if work.macs or not work.unknown_macs else None,
        "macs_unknown_nodes": len(work.unknown_macs),
        "macs_at": sizes.shapes,
        "macs_assume_batch_of_1": sizes.one,
        "macs_need_shape": sizes.missing if work.unknown_macs else "",
        "operators": _operators(model),
        "custom_domains": sorted({n.domain for n in model.nodes()} - _STANDARD),
        "functions": [":".join(filter(None, identifier)) for identifier in model.ir.functions],
        "largest_weights": _largest(model),
        "history": model.history,
        **session,
    }


def _session(path: Path) -> dict[str, Any]:
    """Whether ONNX Runtime loads the file, and what the session holds."""
    with Worker() as worker:
        try:
            report = worker.call(load_check, str(path), SessionMode.DEPLOYED)
        except OnnxOptError as error:
            return {"loads": False, "why_not": str(error), "resident_bytes": None, "load_seconds": None}
    return {"loads": True, "resident_bytes": report.resident_bytes, "load_seconds": round(report.seconds, 3)}


def _value(value: ValueInfo) -> dict[str, Any]:
    return {"name": value.name, "type": value.dtype.name if value.dtype else None, "shape": value.shape}


def _operators(model: Model) -> dict[str, int]:
    names = (n.op_type if n.domain in _STANDARD else f"{n.domain}::{n.op_type}" for n in model.nodes())
    return dict(Counter(names).most_common())


def _dynamic(signature: Signature) -> list[str]:
    """The symbols of inputs and outputs, then the inputs' axes without name, as `input[0]`."""
    values = (*signature.inputs, *signature.outputs)
    symbols = {dim for value in values for dim in value.shape or () if isinstance(dim, str)}
    unnamed = [
        f"{value.name}[{'...' if value.shape is None else axis}]"
        for value in signature.inputs
        for axis, dim in enumerate((None,) if value.shape is None else value.shape)
        if dim is None
    ]
    return [*sorted(symbols), *unnamed]


def _largest(model: Model) -> list[dict[str, Any]]:
    """Initializers and Constant nodes, those of subgraphs and functions too; what is equally large in stored order."""
    weights = sorted(stored(model), key=lambda weight: -weight.nbytes)[:_LARGEST]
    tensors = [(weight.value.name, constant_tensor(weight.value), weight.nbytes) for weight in weights]
    return [
        {"name": name, "type": tensor.dtype.name, "shape": tensor.shape.numpy(), "bytes": nbytes}
        for name, tensor, nbytes in tensors
        if tensor is not None
    ]


def _macs(found: dict[str, Any]) -> str:
    """How many, at what sizes, and what would have to be known for the rest."""
    known, nodes = found["macs"], found["macs_unknown_nodes"]
    shape = f"give --shape {found['macs_need_shape']}" if found["macs_need_shape"] else ""
    if known is None:
        return f"unknown: {shape or f'nothing tells the work of {nodes} nodes'}"
    batch = " for a batch of 1 (--shape says otherwise)" if found["macs_assume_batch_of_1"] else ""
    rest = f", and {nodes} node{'s' * (nodes != 1)} of unknown size{': ' * bool(shape)}{shape}" if nodes else ""
    return f"{output.amount(known)}{batch}{rest}"


def _show(found: dict[str, Any]) -> None:
    loads = f"yes, {output.size(found['resident_bytes'])} resident" if found["loads"] else f"no: {found['why_not']}"
    output.facts({
        "file": f"{found['file']}, {output.size(found['file_bytes'])}",
        "made by": f"{found['producer'] or '?'}, IR {found['ir_version']}, "
        + ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items()),
        "parameters": f"{output.amount(found['parameters'])}, {output.size(found['weight_bytes'])}",
        "MACs": _macs(found),
        "dynamic dimensions": ", ".join(found["dynamic_dimensions"]) or "none",
        "custom domains": ", ".join(found["custom_domains"]) or "none",
        "ONNX Runtime loads it": loads,
    })  # fmt: skip
    for kind in ("inputs", "outputs"):
        typer.echo(f"\n{kind}")
        output.table([[f"  {v['name']}", v["type"] or "?", output.shape(v["shape"])] for v in found[kind]])
    typer.echo("\noperators")
    output.table([[f"  {name}", count] for name, count in found["operators"].items()])
    typer.echo("\nlargest weights")
    output.table([
        [f"  {w['name']}", w["type"], output.shape(w["shape"]), output.size(w["bytes"])]
        for w in found["largest_weights"]
    ])  # fmt: skip
    for entry in found["history"]:
        typer.echo(f"\nonnxopt {entry.get('version')}: {entry.get('pass')} {entry.get('options')}")
