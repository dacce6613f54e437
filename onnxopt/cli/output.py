"""Printing: aligned tables, sizes, JSON. Plain text everywhere, so that logs and terminals show the same."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from onnxopt.errors import RecipeError
from onnxopt.report import finite


def show_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(finite(value), indent=1, default=str, allow_nan=False))


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> None:
    """Aligned columns; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    head = [list(header)] if header else []
    widths = [max(len(row[i]) for row in head + cells) for i in range(len((head + cells)[0]))] if head + cells else []
    right = [all(_is_number(row[i]) for row in cells) for i in range(len(widths))]
    for row in head + cells:
        fields = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        typer.echo("  ".join(fields).rstrip())


def facts(pairs: Mapping[str, object]) -> None:
    """Name and value, a line each."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        typer.echo(f"{name.ljust(width)}  {value}")


def size(count: float | None) -> str:
    """Bytes for people."""
    return "?" if count is None else _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def amount(count: float | None) -> str:
    """Large counts for people."""
    return "?" if count is None else _scaled(count, 1000, ("", "k", "M", "G", "T"))


def ratio(value: float | None) -> str:
    """What is left, x1.00 where nothing changed; empty where that is unknown."""
    return "" if value is None else f"x{value:.2f}"


def shape(dims: Sequence[int | str | None] | None) -> str:
    """A shape with its symbols."""
    return "?" if dims is None else "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """`x:1,3,224,224` -> {"x": (1, 3, 224, 224)}; names may hold colons."""
    shapes = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        try:
            shapes[name] = tuple(int(dim) for dim in dims.split(",") if dim.strip())
        except ValueError:
            colon = ""
        if not colon or not name or any(dim < 0 for dim in shapes[name]):
            raise RecipeError(f"--shape {text}: must be INPUT:SIZE,SIZE,..., e.g. x:1,3,224,224")
    return shapes or None


def plain_path(path: Path) -> str:
    """A path as people would type it from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _scaled(count: float, step: int, units: Sequence[str]) -> str:
    for unit in units:
        if abs(count) < step or unit == units[-1]:
            text = f"{count:.0f}" if count == int(count) and abs(count) < step and unit == units[0] else f"{count:.3g}"
            return f"{text} {unit}".strip()
        count /= step
    raise AssertionError("the last unit takes whatever is left")


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "-+" or text == "?"
