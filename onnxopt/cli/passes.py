"""`onnxopt passes` and `onnxopt explain PASS`."""

import inspect
from typing import Any

import typer

from onnxopt.cli import output
from onnxopt.errors import OnnxOptError
from onnxopt.overrides import Override
from onnxopt.passing import Exact, Lossy, Pass, pass_class, pass_names


def passes(as_json: bool) -> None:
    """Name, phase, contract and first line of every pass; one that cannot be imported says so."""
    rows = []
    for name, family in pass_names().items():
        try:
            cls = pass_class(name)
        except OnnxOptError as error:
            rows.append({"name": name, "family": family, "phase": "?", "contract": "?", "summary": f"broken: {error}"})
            continue
        rows.append(
            {"name": name, "family": family, "phase": cls.phase, "contract": _contract(cls), "summary": cls.summary()}
        )
    if as_json:
        output.show_json(rows)
    else:
        output.table([list(row.values()) for row in rows], ("pass", "family", "phase", "contract", "what it does"))


def explain(name: str, as_json: bool) -> None:
    """Documentation and options of one pass."""
    cls = pass_class(name)
    options = [_option(key, field) for key, field in cls.model_fields.items()]
    if as_json:
        output.show_json({
            "name": name, "phase": cls.phase, "contract": _contract(cls), "doc": inspect.getdoc(cls),
            "options": options, "overridable": list(cls.overridable), "schema": cls.model_json_schema(),
        })  # fmt: skip
        return
    typer.echo(f"{name}: {cls.phase} phase, {_contract(cls)}\n")
    typer.echo(f"{inspect.getdoc(cls)}\n\noptions:")
    output.table([[f"  {o['name']}", o["type"], f"default {o['default']}", o["description"]] for o in options])
    if cls.overridable:
        typer.echo(f"\noverrides may set, for single nodes or weights: {', '.join(cls.overridable)}")
    if isinstance(cls.contract, Lossy):
        typer.echo(f"overrides may skip: {Override.model_fields['skip'].description}")


def _contract(cls: type[Pass]) -> str:
    return "exact" if isinstance(cls.contract, Exact) else "lossy"


def _option(name: str, field: Any) -> dict[str, Any]:
    kind = inspect.formatannotation(field.annotation).replace("typing.", "")
    default = "required" if field.is_required() else field.get_default(call_default_factory=True)
    return {"name": name, "type": kind, "default": default, "description": field.description or ""}
