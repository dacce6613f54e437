"""`onnxopt report REPORT.json`: the report of a run for people, in the terminal or as a page of its own."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from onnxopt import atomic
from onnxopt.cli import output as out
from onnxopt.cli.run import before_and_after, peak_memory, show
from onnxopt.comparing import shown
from onnxopt.errors import DataError, Declined, RecipeError
from onnxopt.passing import Change
from onnxopt.publish import check_output
from onnxopt.report import Report, Step

_TEMPLATE = Path(__file__).with_name("report.html.jinja")

_NODES_SHOWN = 50
_TEXTS_SHOWN = 200
"""Of one rule; the rest is in the file."""

_UNVERIFIED = "UNVERIFIED"

Groups = dict[str, dict[str, list[str]]]
"""Rule -> what happened, or why nothing did -> nodes."""


class _Metric(BaseModel):
    name: str
    before: float
    after: float
    drop: float
    samples: int
    stderr: float | None = None
    difference: float | None = None
    difference_stderr: float | None = None


class _Latency(BaseModel):
    before_ms: float
    after_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    runs: int


class _Limited(BaseModel):
    limits: dict[str, Any] | None = None


class _Drift(BaseModel):
    drift: float | None = None
    deployed_drift: float | None = None


class _Step(BaseModel):
    changes: list[Change] = []
    declined: list[Declined] = []
    options: _Limited = _Limited()
    verdict: _Drift | None = None


class _Parts(BaseModel):
    """The entries that `Report` leaves open."""

    metric: _Metric | None = None
    latency: _Latency | None = None
    steps: list[_Step] = []
    recipe: _Limited = _Limited()


def report(file: Path, page: Path | None, as_json: bool) -> None:
    """Print the summary that the run printed (or the JSON), and write the page where one is asked for."""
    found = read(file)
    if page is not None:
        if page.exists() and page.samefile(file):
            raise RecipeError(f"-o {page} is the report itself: name another file")
        check_output(page)
        atomic.write_text(page, html(found))
        typer.echo(f"wrote {page}", err=True)
    if as_json:
        out.show_json(found.to_dict())
    else:
        show(found, limited=bool(_limits(found)))


def read(file: Path) -> Report:
    """The report in a file.

    Raises:
        DataError: it cannot be read, or is not the report of a run.
    """
    try:
        content = file.read_bytes()
        found = TypeAdapter(Report).validate_json(content)
        parts = _Parts.model_validate_json(content)
    except OSError as error:
        raise DataError(f"cannot read report {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file} is not the report of a run: {where}{': ' * bool(where)}{first['msg']}") from error
    if found.verified is found.status.startswith(_UNVERIFIED):
        raise DataError(f"{file} is not the report of a run: `verified` and `status` contradict each other")
    return replace(
        found,
        metric=parts.metric.model_dump() if parts.metric else None,
        latency=parts.latency.model_dump() if parts.latency else None,
    )


def html(found: Report) -> str:
    """A page that needs no other file and runs no code."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shown": lambda value: shown(None if value is None else float(value))}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=found,
        rows=before_and_after(found),
        memory=peak_memory(found),
        limits=_limits(found),
        data=_data(found),
        steps=[_shown(step) for step in found.steps],
        recipe=yaml.safe_dump(found.recipe, sort_keys=False, allow_unicode=True),
        nodes_shown=_NODES_SHOWN,
        texts_shown=_TEXTS_SHOWN,
    )


def _shown(step: Step) -> dict[str, Any]:
    return asdict(step) | {
        "changed": grouped(step.changes, "what"),
        "refused": grouped(step.declined, "why"),
        "count": len(step.changes),
        "refusals": len(step.declined),
    }


def grouped(entries: Iterable[Mapping[str, str]], key: str) -> Groups:
    """Changes or refusals by rule, then by what is said of them; what stands for most nodes first."""
    groups: Groups = {}
    for entry in entries:
        groups.setdefault(entry["rule"], {}).setdefault(entry[key], []).append(entry["node"])
    return {
        rule: dict(sorted(texts.items(), key=lambda item: -len(item[1])))
        for rule, texts in sorted(groups.items(), key=lambda item: -sum(map(len, item[1].values())))
    }


def _limits(found: Report) -> dict[str, Any]:
    """Whose limits -> those that were set: of the whole run, then of single passes."""
    named = [("whole run", found.recipe.get("limits"))]
    named += [(step.name, step.options.get("limits")) for step in found.steps]
    return {name: limits for name, limits in named if limits}


def _data(found: Report) -> dict[str, object]:
    return {
        name: f"{value.get('name')}, {value.get('samples')} samples" if isinstance(value, dict) else value
        for name, value in found.data.items()
    }
