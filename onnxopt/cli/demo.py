"""`onnxopt demo`: the byte-level GPT that ships with onnxopt, at 8, 4 and 2 bits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from onnxopt import pipeline, recipe
from onnxopt.backends.jobs import latency
from onnxopt.backends.worker import Worker
from onnxopt.cli import output
from onnxopt.models import path as model_path
from onnxopt.models.stdlib_text import held_out_bytes, windows
from onnxopt.report import Report, total_bytes
from onnxopt.settings import Settings

_BITS = {8: 128, 4: 32, 2: 32}
"""Bits and block sizes that are shown."""

_CONTEXT = 256
_WINDOWS = 32
_LENGTHS = (1, 128)


@dataclass(frozen=True)
class _Row:
    name: str
    file: Path
    report: Report | None


def demo(folder: Path, as_json: bool) -> None:
    """Compress, judge on held-out text, time, and print a table; files and reports stay in the folder."""
    original = model_path("byte-gpt")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_Row("original", original, None), *(_compress(original, bits, folder, as_json) for bits in _BITS)]
    found = _measure(rows)
    if as_json:
        output.show_json({"folder": str(folder), "model": original.name, "rows": found})
        return
    typer.echo("A byte-level GPT, trained on Python's standard library and judged on modules that it never saw.\n")
    output.table([_cells(row, found[0]) for row in found], _HEADER)
    typer.echo(
        f"\nbits per byte: {_WINDOWS} windows of {_CONTEXT} bytes, standard error of the paired difference in brackets."
        f"\nfiles and reports: {output.plain_path(folder.absolute())}"
    )


_HEADER = ("", "file", "ratio", "bits per byte", "change", *(f"ms at {n} token{'s' * (n > 1)}" for n in _LENGTHS))


def _compress(original: Path, bits: int, folder: Path, quiet: bool) -> _Row:
    """One run of the pipeline, with calibration text that is not the text it is judged on."""
    made = recipe.build({
        "data": {"metric": {"kind": "bits_per_byte", "label": "next"}},
        "verify": {"samples": 4},
        "passes": ["clean", {"quantize-weights": {"bits": bits, "block_size": _BITS[bits]}}],
    })  # fmt: skip
    text = windows(held_out_bytes(), _CONTEXT, _WINDOWS + 16)
    judged, calibration = text[:_WINDOWS], text[_WINDOWS:]
    target = folder / f"byte_gpt_{bits}bit.onnx"
    if not quiet:
        typer.echo(f"compressing to {bits} bits ...", err=True)
    result = pipeline.run(
        original, made, target, data={"tokens": calibration[:, :-1]},
        evaluation={"tokens": judged[:, :-1], "label/next": judged[:, 1:]},
        settings=Settings(report=folder / f"{bits}bit", accept_loss=True),
    )  # fmt: skip
    return _Row(f"{bits} bit", target, result.report)


def _measure(rows: list[_Row]) -> list[dict[str, Any]]:
    """Sizes and scores from the reports; latency of all files in turn, in one process."""
    with Worker(threads=1) as worker:
        times = {
            length: worker.call(
                latency, [str(row.file) for row in rows], {"tokens": np.full((1, length), 32, np.int64)}, seconds=1.5
            )
            for length in _LENGTHS
        }
    scores = [row.report.metric for row in rows if row.report is not None and row.report.metric is not None]
    found = []
    for at, row in enumerate(rows):
        score = scores[max(at - 1, 0)]
        entry: dict[str, Any] = {
            "name": row.name, "bytes": total_bytes(row.file),
            "bits_per_byte": score["before"] if row.report is None else score["after"],
            "change": None if row.report is None else score["difference"],
            "change_stderr": None if row.report is None else score["difference_stderr"],
        }  # fmt: skip
        entry |= {f"ms_{n}": times[n][at].p50 * 1e3 for n in _LENGTHS}
        entry |= {f"ratio_{n}": times[n][at].ratio.median for n in _LENGTHS}
        found.append(entry)
    return found


def _cells(row: dict[str, Any], first: dict[str, Any]) -> list[str]:
    change = "" if row["change"] is None else f"{row['change']:+.4f} ({row['change_stderr']:.4f})"
    times = [f"{row[f'ms_{n}']:.2f} (x{row[f'ratio_{n}']:.2f})" for n in _LENGTHS]
    ratio = f"{row['bytes'] / first['bytes']:.3f}"
    return [row["name"], output.size(row["bytes"]), ratio, f"{row['bits_per_byte']:.4f}", change, *times]
