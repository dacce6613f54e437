"""`onnxopt run`."""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from onnxopt import pipeline, recipe
from onnxopt.cli import output as out
from onnxopt.data import is_function
from onnxopt.errors import ModelError, RecipeError
from onnxopt.inputs import Inputs, gather
from onnxopt.measuring import bind
from onnxopt.model import Model, load
from onnxopt.pipeline import Progress, Settings
from onnxopt.recipe import Recipe
from onnxopt.report import Report, versions
from onnxopt.serialization import digest


@dataclass(frozen=True)
class Arguments:
    """What was typed."""

    model: Path
    output: Path
    recipe: Path | None
    passes: list[str]
    data: str | None
    eval_data: str | None
    metric: str | None
    target: str | None
    verify: str | None
    set_: list[str]
    report: Path | None
    work: Path | None
    resume: bool
    dry_run: bool
    on_violation: str | None
    accept_loss: bool
    allow_code: bool
    if_changed: bool
    reproduce: bool
    force_order: bool
    shape: list[str]
    threads: int | None
    quiet: bool
    as_json: bool


def run(given: Arguments) -> None:
    """Run, then print the report's summary (or its JSON)."""
    made, allow_code = build_recipe(given)
    if given.if_changed and _up_to_date(given, made, allow_code):
        if not given.quiet:
            typer.echo(f"{given.output} is up to date")
        return
    if given.dry_run:
        _show_plan(given, made, allow_code)
        return
    progress = None if given.quiet or given.as_json else _Printer()
    settings = Settings(
        report=given.report, work=given.work, resume=given.resume, accept_loss=given.accept_loss,
        allow_code=allow_code, shapes=out.parse_shapes(given.shape), threads=given.threads, progress=progress,
        reproduce=given.output.with_name(f"{given.output.name}.reproduce") if given.reproduce else None,
    )  # fmt: skip
    result = pipeline.run(
        given.model, made, given.output, data=given.data, evaluation=given.eval_data, settings=settings
    )
    if given.as_json:
        out.show_json(result.report.to_dict())
    elif not given.quiet:
        show(result.report)


def build_recipe(given: Arguments) -> tuple[Recipe, bool]:
    """The recipe of the command line (file, then passes, then single values), and whether it may name code.

    What is typed is the user's own word; what stands in a file may come from somebody else.
    """
    content: dict[str, Any] = recipe.read(given.recipe) if given.recipe else {}
    written = _code(content)
    if given.passes:
        content["passes"] = [*recipe.checked_list(content.get("passes") or []), *map(recipe.parse_pass, given.passes)]
    if not content.get("passes"):
        raise RecipeError("nothing to do: name a recipe with -r, or passes with -p (`onnxopt passes` lists them)")
    for key, text in (("target", given.target), ("verify", given.verify), ("on_violation", given.on_violation)):
        if text is not None:
            content[key] = recipe.yaml_value(text, f"--{key.replace('_', '-')}")
    if given.metric is not None:
        data = content.get("data") or {}
        if not isinstance(data, dict):
            raise RecipeError(f"data: must be a mapping, not {data!r}")
        content["data"] = {**data, "metric": recipe.yaml_value(given.metric, "--metric")}
    recipe.settle_shorthands(content)
    for assignment in given.set_:
        recipe.set_value(content, assignment)
    return recipe.build(content, force_order=given.force_order), given.allow_code or not written & _code(content)


def _code(content: dict[str, Any]) -> set[str]:
    """Every `module:function` that a recipe names for data or metric."""
    data = content.get("data")
    data = data if isinstance(data, dict) else {}
    metric = data.get("metric")
    kind = metric.get("kind") if isinstance(metric, dict) else metric
    named = (data.get("calibration"), data.get("evaluation"), kind)
    return {name for name in named if isinstance(name, str) and is_function(name)}


def show(report: Report) -> None:
    """The summary: status, before and after, each pass."""
    typer.echo(report.status)
    before, after = report.before, report.after
    rows: list[list[object]] = [
        ["file", out.size(before.file_bytes), out.size(after.file_bytes), _ratio(before.file_bytes, after.file_bytes)],
        [
            "parameters",
            out.amount(before.parameters),
            out.amount(after.parameters),
            _ratio(before.parameters, after.parameters),
        ],
        ["MACs", out.amount(before.macs), out.amount(after.macs), _ratio(before.macs, after.macs)],
        ["nodes", before.nodes, after.nodes, _ratio(before.nodes, after.nodes)],
    ]
    if (latency := report.latency) is not None:
        rows.append(
            ["latency (ms)", f"{latency['before_ms']:.3g}", f"{latency['after_ms']:.3g}", f"x{latency['ratio']:.2f}"]
        )
    if (metric := report.metric) is not None:
        rows.append(
            [metric["name"], f"{metric['before']:.4f}", f"{metric['after']:.4f}", f"{metric['drop']:+.4f} lost"]
        )
    out.table(rows, ("", "before", "after", ""))
    if report.deployed_drift is not None:
        typer.echo(f"drift (relative L2): {report.drift:.1e}, as deployed {report.deployed_drift:.1e}")
    for step in report.steps:
        left = f", {len(step.declined)} declined" if step.declined else ""
        why = f": {step.why}" if step.why else f", {len(step.changes)} changes{left}"
        typer.echo(f"  {step.name}: {step.outcome}{why} ({step.seconds:.1f} s)")
        if step.outcome == "unchanged":
            for reason, count in Counter(entry["why"] for entry in step.declined).most_common(2):
                typer.echo(f"    declined {count}x: {reason}")
    for note in report.notes:
        typer.echo(f"note: {note}")


class _Printer:
    """Progress on standard error: one line that is rewritten on a terminal, a line a step elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._step = -1
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        new_step = progress.step != self._step
        now = time.monotonic()
        if not new_step and (not self._terminal or now - self._last < 0.1):
            return
        self._step, self._last = progress.step, now
        inside = f" {progress.done}/{progress.total} {progress.what}" if progress.total else ""
        line = f"[{min(progress.step + 1, progress.steps)}/{progress.steps}] {progress.name}{inside}"
        typer.echo(f"\r\x1b[K{line}" if self._terminal else line, err=True, nl=not self._terminal)
        if self._terminal and progress.step == progress.steps:
            typer.echo("\r\x1b[K", err=True, nl=False)


def _show_plan(given: Arguments, made: Recipe, allow_code: bool) -> None:
    """What a run would do; reads the model and the data, opens no session, writes nothing."""
    model = load(given.model)
    inputs = _inputs(given, made, model, allow_code)
    if made.data.metric is not None:
        bind(made.data.metric, inputs, allow_code)
    weights = sum(value.const_value.nbytes for value in model.weights() if value.const_value is not None)
    plan = [{"pass": p.name, "phase": p.phase, "options": p.options()} for p in pipeline.plan(made.passes)]
    facts = {
        "model": str(given.model), "weights": out.size(weights), "session memory, about": out.size(2 * weights),
        "disk for the work folder, about": out.size(2 * weights), "data": json.dumps(inputs.describe()),
    }  # fmt: skip
    if given.as_json:
        out.show_json({"plan": plan, "recipe": made.resolved(), **facts})
        return
    out.facts(facts)
    out.table([[i, step["pass"], step["phase"], json.dumps(step["options"])] for i, step in enumerate(plan)])


def _inputs(given: Arguments, made: Recipe, model: Model, allow_code: bool) -> Inputs:
    return gather(model, made, given.data, given.eval_data, out.parse_shapes(given.shape), allow_code)


def _up_to_date(given: Arguments, made: Recipe, allow_code: bool) -> bool:
    """Whether the output's report speaks of this model, recipe, data and version."""
    path = (given.report or given.output.absolute().parent) / "report.json"
    try:
        report = json.loads(path.read_text())
        same_output = report["after"]["digest"] == digest(given.output)
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return False
    inputs = _inputs(given, made, load(given.model), allow_code)
    return bool(
        same_output
        and report["digests"]["model"] == digest(given.model)
        and report["digests"]["data"] == inputs.digest()
        and report["recipe"] == json.loads(json.dumps(made.resolved()))
        and report["versions"] == versions()
    )


def _ratio(before: float | None, after: float | None) -> str:
    return "" if not before or after is None else f"x{after / before:.2f}"
