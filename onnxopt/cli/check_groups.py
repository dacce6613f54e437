"""`onnxopt check-groups MODEL`: whether what is said to be removable is, shown by removing it."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from onnxopt.analysis.axes.checking import Checker, Draw, Failure, describe
from onnxopt.backends.worker import Worker
from onnxopt.cli import output
from onnxopt.cli.groups import prepared
from onnxopt.comparing import shown
from onnxopt.data import open_data
from onnxopt.data.synthetic import input_shapes
from onnxopt.errors import ContractViolation, DataError, RecipeError
from onnxopt.model import Model
from onnxopt.nodes import label
from onnxopt.variants import Feed, Variants


def check_groups(
    path: Path, draws: int, seed: int, share: float, shapes: list[str], data: str, threads: int | None, as_json: bool
) -> None:
    """Remove random units of all exact groups at once, and compare with the model that ignores them.

    Raises:
        ContractViolation: they differ; the message names the groups.
        DataError: the model does not run, or its outputs tell nothing.
    """
    if not 0 < share <= 1:
        raise RecipeError(f"--share {share:g}: must be above 0 and at most 1")
    if shapes and data != "synthetic":
        raise RecipeError("--shape is for random inputs, and --data names others: leave one of them out")
    model = prepared(path)
    sample, given = _sample(model, data), output.parse_shapes(shapes)
    if given:
        input_shapes(model.signature, given)
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder, Worker(threads=threads) as worker:
        variants = Variants(Path(folder), worker, sample=sample, given=given)
        checker = Checker(model, variants.drift)
        found = _checked(path, checker, variants, draws, seed, share)
    if as_json:
        output.show_json(found)
    else:
        _show(found)
    if not found["holds"]:
        told = ", ".join(each["told"] for each in found["failures"])
        raise ContractViolation(f"{path}: removing units is not the same as ignoring them in {told}")


def _sample(model: Model, data: str) -> Callable[[], Feed] | None:
    if data == "synthetic":
        return None
    dataset = open_data(data, model.signature, allow_code=True)
    return lambda: dataset.take(1).first().feeds


def _checked(path: Path, checker: Checker, variants: Variants, draws: int, seed: int, share: float) -> dict[str, Any]:
    """Everything that is shown, as plain values."""
    count = len(checker.groups)
    if count and not checker.able():
        why = variants.why or "it gives something else each time it runs"
        raise DataError(f"{path} cannot be checked: {why}; --shape names sizes of inputs, --data inputs")
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    effect = 0.0
    for number in range(draws if count else 0):
        draw = checker.drawn(rng, share)
        units = checker.channels.spared(unit for some in draw.values() for unit in some)
        drift, why = checker.trial(units)
        why = variants.why or why
        rows.append({"draw": number, "groups": len(draw), "units": len(units), "drift": drift, "why": why})
        if drift > checker.tolerance:
            failures += _dropped(checker, variants, draw)
        if not checker.groups:
            break
        if number == 0:
            effect = checker.effect(units) or 0.0
    return {
        "file": str(path), "groups": count, "holds": not failures, "tolerance": checker.tolerance, "effect": effect,
        "draws": rows, "failures": [_failure(checker, each) for each in failures], "sizes": variants.sizes,
        "seed": seed, "share": share,
    }  # fmt: skip


def _dropped(checker: Checker, variants: Variants, draw: Draw) -> list[Failure]:
    """The groups that fail, which later draws leave out: each is told once."""
    failures = []
    for failure in checker.failures(draw):
        checker.trial(unit for group in failure.groups for unit in draw[group])
        failures.append(replace(failure, why=variants.why or failure.why))  # the runtime's own words
        checker.groups = [group for group in checker.groups if not any(group is each for each in failure.groups)]
    return failures


def _failure(checker: Checker, failure: Failure) -> dict[str, Any]:
    groups = []
    for group in failure.groups:
        joint = checker.joint(group)
        groups.append({
            "name": group.name, "kind": group.kind, "units": len(group.units),
            "joins_at": None if joint is None else f"{joint.op_type} {label(joint)}",
            "goes_through": [f"{node.op_type} {label(node)}" for node in checker.course(group)],
        })  # fmt: skip
    return {"told": describe(checker, failure), "groups": groups, "drift": failure.drift, "why": failure.why}


def _show(found: dict[str, Any]) -> None:
    if not found["groups"]:
        typer.echo("nothing to check: no group of channels can be removed (`onnxopt inspect MODEL --groups` tells why)")
        return
    sizes = ", ".join(f"{name} {list(shape)}" for name, shape in found["sizes"].items())
    typer.echo(f"{found['groups']} exact groups, on {sizes}\n")
    rows = [[each["draw"], each["groups"], each["units"], _drift(each)] for each in found["draws"]]
    output.table(rows, ("draw", "groups", "units", "drift"))
    for failure in found["failures"]:
        typer.echo(f"\nfails: {_drift(failure)}")
        for group in failure["groups"]:
            at = f", joins at {group['joins_at']}" if group["joins_at"] else ""
            typer.echo(f"  {group['name']}: {group['units']} {group['kind']}{at}")
            typer.echo(f"    through {_some(group['goes_through'])}")
    if found["holds"]:
        worst = shown(max(each["drift"] for each in found["draws"]))
        typer.echo(f"\nholds: what is left computes what the model does that ignores the units (worst drift {worst})")
        if found["effect"] <= found["tolerance"]:
            typer.echo("WARNING: the units hardly matter to the outputs on these inputs, so that little is shown")


def _drift(each: dict[str, Any]) -> str:
    return shown(each["drift"]) if math.isfinite(each["drift"]) else each["why"]


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join([*names[:most], "..."] if len(names) > most else names)
