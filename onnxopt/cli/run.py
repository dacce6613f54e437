"""`onnxopt run`."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from onnxopt import pipeline, recipe
from onnxopt.analysis.parameters import stored_bytes
from onnxopt.cli import output as out
from onnxopt.cli.progress import progress
from onnxopt.comparing import shown
from onnxopt.data import is_function
from onnxopt.errors import ModelError, RecipeError
from onnxopt.inputs import Inputs, gather
from onnxopt.measuring import bind
from onnxopt.model import Model, load
from onnxopt.passing import Exact, Limits, Pass
from onnxopt.publish import report_name
from onnxopt.reading import digest
from onnxopt.recipe import Recipe
from onnxopt.report import Report, versions
from onnxopt.settings import Settings, parse_bytes


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
    mask: str | None
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
    memory: str | None
    quiet: bool
    as_json: bool


def run(given: Arguments) -> None:
    """Run, then print the report's summary (or its JSON)."""
    made, allow_code = build_recipe(given)
    memory = None if given.memory is None else parse_bytes(given.memory, "--memory")
    if given.if_changed and _up_to_date(given, made, allow_code):
        if not given.quiet:
            typer.echo(f"{given.output} is up to date")
        return
    if given.dry_run:
        _show_plan(given, made, allow_code)
        return
    with progress(silent=given.quiet or given.as_json) as tell:
        settings = Settings(
            report=given.report, work=given.work, resume=given.resume, accept_loss=given.accept_loss,
            allow_code=allow_code, shapes=out.parse_shapes(given.shape), threads=given.threads, memory=memory,
            progress=tell,
            reproduce=given.output.with_name(f"{given.output.name}.reproduce") if given.reproduce else None,
        )  # fmt: skip
        result = pipeline.run(
            given.model, made, given.output, data=given.data, evaluation=given.eval_data, settings=settings
        )
    if given.as_json:
        out.show_json(result.report.to_dict())
    elif not given.quiet:
        show(result.report, limited=_limited(made))


def build_recipe(given: Arguments) -> tuple[Recipe, bool]:
    """The recipe of the command line (file, then passes, then single values), and whether it may name code.

    What is typed is the user's own word; what stands in a file may come from somebody else.
    """
    content: dict[str, Any] = recipe.read(given.recipe) if given.recipe else {}
    written = _code(content)
    if given.passes:
        content["passes"] = [*recipe.checked_list(content.get("passes") or []), *map(recipe.parse_pass, given.passes)]
    for key, text in (("target", given.target), ("verify", given.verify), ("on_violation", given.on_violation)):
        if text is not None:
            content[key] = recipe.yaml_value(text, f"--{key.replace('_', '-')}")
    of_data: dict[str, Any] = {} if given.mask is None else {"mask": given.mask}
    if given.metric is not None:
        of_data["metric"] = recipe.yaml_value(given.metric, "--metric")
    if of_data:
        data = content.get("data") or {}
        if not isinstance(data, dict):
            raise RecipeError(f"data: must be a mapping, not {data!r}")
        content["data"] = {**data, **of_data}
    recipe.settle_shorthands(content)
    for assignment in given.set_:
        recipe.set_value(content, assignment)
    made = recipe.build(content, force_order=given.force_order)
    if not made.passes:
        raise RecipeError("nothing to do: name a recipe with -r, or passes with -p (`onnxopt passes` lists them)")
    return made, given.allow_code or not written & _code(content)


def _code(content: dict[str, Any]) -> set[str]:
    """Every `module:function` that a recipe names for data or metric."""
    data = content.get("data")
    data = data if isinstance(data, dict) else {}
    metric = data.get("metric")
    kind = metric.get("kind") if isinstance(metric, dict) else metric
    named = (data.get("calibration"), data.get("evaluation"), kind)
    return {name for name in named if isinstance(name, str) and is_function(name)}


def show(report: Report, *, limited: bool) -> None:
    """The summary: status, before and after, each pass.

    Args:
        limited: whether something held the loss inside limits.
    """
    typer.echo(report.status)
    out.table(before_and_after(report), ("", "before", "after", ""))
    if report.deployed_drift is not None:
        on = f", on {report.drift_on}" if report.drift_on else ""
        typer.echo(f"drift (relative L2): {shown(report.drift)}, as deployed {shown(report.deployed_drift)}{on}")
        if not limited and (warning := _unjudged(report)) is not None:
            typer.echo(f"WARNING: {warning}")
    if (memory := peak_memory(report)) is not None:
        typer.echo(f"peak memory: {memory}")
    for step in report.steps:
        if step.name in pipeline.PREPARATION and step.outcome == "unchanged" and not (step.declined or step.notes):
            continue
        left = f", {len(step.declined)} declined" if step.declined else ""
        count = len(step.changes)
        done = f", {count} change{'s' * (count != 1)}" if step.outcome == "changed" else ""
        why = f": {step.why}" if step.why else f"{done}{left}"
        typer.echo(f"  {step.name}: {step.outcome}{why} ({step.seconds:.1f} s)")
        if step.chosen:
            typer.echo(f"    chosen: {', '.join(f'{option} {value}' for option, value in step.chosen.items())}")
        reasons = Counter(entry["why"] for entry in step.declined)
        for reason, times in reasons.most_common(_REASONS):
            typer.echo(f"    declined {times}x: {reason}")
        if (more := len(reasons) - _REASONS) > 0:
            typer.echo(f"    and for {more} other reason{'s' * (more != 1)}, which the report names")
        for note in step.notes:
            typer.echo(f"    note: {note}")
    for note in report.notes:
        typer.echo(f"note: {note}")


_REASONS = 3
"""Of those for which a pass declined, the most frequent."""

_LARGE_DRIFT = 0.3
"""Above this the outputs are likely to say something else."""


_LARGE_DROP = 0.05
"""Above this a metric got worse than most would take."""


def _unjudged(report: Report) -> str | None:
    """What to say where much got worse and nothing tells whether that is too much."""
    if report.metric is not None:
        name, before, after, drop = (report.metric[key] for key in ("name", "before", "after", "drop"))
        if not drop > _LARGE_DROP:
            return None
        return (
            f"{name} went from {before:.4g} to {after:.4g}, and no limit says how far it may: give limits.metric_drop"
        )
    drift = report.deployed_drift or 0.0
    if drift <= _LARGE_DRIFT:
        return None
    much = f"by {drift:.0%} (relative L2)" if math.isfinite(drift) else "in size"
    return f"outputs changed {much} and nothing says whether that is too much: give --eval-data and --metric, or limits"


def _limited(made: Recipe) -> bool:
    """Whether the recipe or a pass of it states a limit."""
    limits = (made.limits, *(pass_.limits for pass_ in made.passes))
    return any(limit is not None and limit != Limits() for limit in limits)


def before_and_after(report: Report) -> list[list[object]]:
    """Rows of what it is, before, after, and how they compare."""
    before, after = report.before, report.after
    rows: list[list[object]] = [
        [
            label,
            shown(getattr(before, key)),
            shown(getattr(after, key)),
            _ratio(getattr(before, key), getattr(after, key)),
        ]
        for label, key, shown in _ROWS
    ]
    if (latency := report.latency) is not None:
        times = [f"{latency['before_ms']:.3g}", f"{latency['after_ms']:.3g}"]
        rows.append(["latency (ms)", *times, f"{out.ratio(latency['ratio'])} (median of pairs)"])
    if (metric := report.metric) is not None:
        scores = [f"{metric['before']:.4f}", f"{metric['after']:.4f}"]
        rows.append([metric["name"], *scores, _change(metric["drop"])])
    return rows


def _change(drop: float) -> str:
    """What became of a metric."""
    return f"{-drop:.4f} gained" if drop < 0 else f"{drop:.4f} lost"


def peak_memory(report: Report) -> str | None:
    """What the run took, this process and the worker apart."""
    if not report.memory:
        return None
    own, worker = (out.size(report.memory.get(key)) for key in ("own_peak_bytes", "worker_peak_bytes"))
    return f"{own} with mapped files, and {worker} in the worker process"


_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("file", "file_bytes", out.size),
    ("parameters", "parameters", out.amount),
    ("MACs", "macs", out.amount),
    ("nodes", "nodes", str),
)


def _show_plan(given: Arguments, made: Recipe, allow_code: bool) -> None:
    """What a run would do; reads the model and the data, opens no session, writes nothing."""
    model = load(given.model)
    inputs = _inputs(given, made, model, allow_code)
    if made.data.metric is not None:
        bind(made.data.metric, inputs, allow_code)
    weights = stored_bytes(model)
    plan = [_planned(pass_) for pass_ in pipeline.plan(made.passes)]
    facts = {
        "model": str(given.model), "weights": out.size(weights), "session memory, about": out.size(2 * weights),
        "disk for the work folder, about": out.size(2 * weights), "data": json.dumps(inputs.describe()),
    }  # fmt: skip
    if given.as_json:
        out.show_json({"plan": plan, "recipe": made.resolved(), **facts})
        return
    out.facts(facts)
    out.table(
        [[step["pass"], step["phase"], step["contract"], _options(step)] for step in plan],
        ("pass", "phase", "contract", "options (* not the default)"),
    )


def _planned(pass_: Pass) -> dict[str, Any]:
    """A pass with all its options: those of the recipe, and the defaults of the rest."""
    return {
        "pass": pass_.name,
        "phase": pass_.phase,
        "contract": "exact" if isinstance(pass_.contract, Exact) else "lossy",
        "options": pass_.model_dump(mode="json"),
        "changed_options": sorted(pass_.options()),
    }


def _options(step: dict[str, Any]) -> str:
    changed = step["changed_options"]
    texts = (
        f"{key}={value if isinstance(value, str) else json.dumps(value)}{'*' * (key in changed)}"
        for key, value in step["options"].items()
        if key in changed or key != "limits"
    )
    return " ".join(texts)


def _inputs(given: Arguments, made: Recipe, model: Model, allow_code: bool) -> Inputs:
    return gather(model, made, given.data, given.eval_data, out.parse_shapes(given.shape), allow_code)


def _up_to_date(given: Arguments, made: Recipe, allow_code: bool) -> bool:
    """Whether the output's report speaks of this model, recipe, data and version."""
    folder = given.report or given.output.absolute().parent
    path = folder / f"{report_name(folder, given.output)}.json"
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
        and _unnamed(report["recipe"]) == _unnamed(json.loads(json.dumps(made.resolved())))
        and report["versions"] == versions()
    )


def _unnamed(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the names of data, which a digest knows better."""
    data = {k: v for k, v in content.get("data", {}).items() if k not in ("calibration", "evaluation")}
    return {key: value for key, value in content.items() if key != "data"} | ({"data": data} if data else {})


def _ratio(before: float | None, after: float | None) -> str:
    return out.ratio(None if not before or after is None else after / before)
