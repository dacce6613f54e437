"""What `inspect --groups` shows: what can be removed together, and what cannot and why."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from onnxopt.analysis.axes import ChannelGroup, Frozen, channel_ids, frozen
from onnxopt.analysis.axes import groups as found_groups
from onnxopt.analysis.axes.losses import parameters, removable
from onnxopt.cli import output
from onnxopt.context import RunContext
from onnxopt.errors import RecipeError
from onnxopt.model import Model, load
from onnxopt.passing import make

_SHOWN = 12
"""Reasons that are printed; the JSON has all."""


def prepared(path: Path) -> Model:
    """The model as passes see it: functions are looked into."""
    model = load(path)
    if model.ir.functions:
        make("inline-functions").run(model, RunContext(model))
    return model


def inspect(path: Path, shapes: list[str], as_json: bool) -> None:
    """Print the groups of a model."""
    if shapes:
        raise RecipeError("--shape says nothing of groups, which are the same for all sizes: leave it out")
    found = describe(prepared(path), path)
    if as_json:
        output.show_json(found)
    else:
        _show(found)


def describe(model: Model, path: Path) -> dict[str, Any]:
    """Everything that is shown, as plain values."""
    channels = channel_ids(model)
    groups = found_groups(channels)
    total = parameters(channels)
    kinds: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        kinds.setdefault(group.kind, []).append(group)

    def share(some: Iterable[ChannelGroup]) -> float:
        going = removable(channels, (unit for group in some if len(group.units) > 1 for unit in group.units))
        return going / total if total else 0.0

    return {
        "file": str(path),
        "parameters": total,
        "prunable_share": share(group for group in groups if group.exact),
        "prunable_share_with_inexact": share(groups),
        "kinds": [_kind(kind, some, share(some)) for kind, some in kinds.items()],
        "groups": [_group(group) for group in groups],
        "frozen": [_frozen(each) for each in frozen(channels)],
    }


def _group(group: ChannelGroup) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "units": len(group.units),
        "channels_per_unit": _channels(group),
        "parameters_per_unit": group.parameters,
        "exact": group.exact,
        "reason": group.reason,
        "members": [
            {
                "weight": member.weight.root.name,
                "axis": member.place,
                "entries_per_unit": member.count,
                "reads": member.consumes,
            }
            for member in group.members
        ],
    }


def _channels(group: ChannelGroup) -> int:
    """Entries of the widest weight that makes a unit: the size of a head, of both halves of a gated neuron."""
    return max(member.count for member in group.members if not member.consumes)


def _kind(kind: str, groups: Sequence[ChannelGroup], share: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "groups": len(groups),
        "units": sum(len(group.units) for group in groups),
        "exact_units": sum(len(group.units) for group in groups if group.exact),
        "parameter_share": share,
    }


def _frozen(each: Frozen) -> dict[str, Any]:
    freeze = each.freeze
    return {"class": freeze.reason, "why": freeze.why, "node": freeze.node, "parameters": each.parameters}


def _show(found: dict[str, Any]) -> None:
    output.facts({
        "file": found["file"],
        "parameters": output.amount(found["parameters"]),
        "can be removed exactly": _percent(found["prunable_share"]),
        "also with inexact groups": _percent(found["prunable_share_with_inexact"]),
    })  # fmt: skip
    if found["groups"]:
        typer.echo("\ngroups")
        rows = [
            [
                group["name"], group["kind"], group["units"], group["channels_per_unit"], group["parameters_per_unit"],
                "yes" if group["exact"] else f"no: {group['reason']}",
            ]
            for group in found["groups"]
        ]  # fmt: skip
        output.table(rows, ("made by", "kind", "units", "channels", "parameters", "exact"))
        typer.echo("\nkinds")
        rows = [[k["kind"], k["groups"], k["units"], _percent(k["parameter_share"])] for k in found["kinds"]]
        output.table(rows, ("kind", "groups", "units", "parameters"))
    if found["frozen"]:
        typer.echo("\nwhat stays, by parameters")
        first = found["frozen"][:_SHOWN]
        rows = [[output.amount(each["parameters"]), each["class"], each["why"], each["node"]] for each in first]
        output.table(rows, ("parameters", "class", "why", "node"))
        if (more := len(found["frozen"]) - _SHOWN) > 0:
            typer.echo(f"and {more} other reason{'s' * (more > 1)}: --json has all")


def _percent(share: float) -> str:
    return f"{share:.1%}"
