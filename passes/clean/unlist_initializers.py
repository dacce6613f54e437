"""Weights that are listed as inputs of the graph."""

from typing import Literal

import onnx_ir as ir
from pydantic import Field

from onnxopt.model import Model
from onnxopt.passing import Context, Findings, Pass

_FIRST_WITH_DEFAULTS = 4
"""IR version from which on weights need not be listed; one that is listed is an input with a default."""


class UnlistInitializers(Pass):
    """Take weights off the list of graph inputs.

    Files before IR 4 had to list every weight; they become IR 4, and their callers see no difference. From IR 4 on a
    listed weight is an input that callers may feed, so that runtimes fold and fuse nothing that reads it: such a
    model is slow, but the inputs are part of what callers rely on. They stay unless `defaults` says `drop`.
    """

    defaults: Literal["keep", "drop"] = Field(
        "keep", description="weights that callers may feed (listed as inputs, IR 4 and later); drop: nobody does, make "
        "them constants"
    )  # fmt: skip

    @property
    def changes_signature(self) -> bool:  # type: ignore[override]
        """Inputs with defaults are inputs."""
        return self.defaults == "drop"

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        listed = [value for value in model.graph.inputs if value.is_initializer()]
        old = model.ir.ir_version < _FIRST_WITH_DEFAULTS
        if not listed:
            return findings
        if not old and self.defaults == "keep":
            for value in listed:
                why = "callers may feed this weight, so it is no constant; defaults=drop makes it one"
                findings.decline(value.name, self.name, why)
            return findings
        _take_off(model.graph, listed)
        for value in listed:
            findings.change(value.name, self.name, "weight taken off the graph's inputs")
        if old:
            findings.notes.append(
                f"IR {model.ir.ir_version} became {_FIRST_WITH_DEFAULTS}, the first in which weights need not be inputs"
            )
            model.ir.ir_version = _FIRST_WITH_DEFAULTS
        model.replace(model.ir)
        return findings


def _take_off(graph: ir.Graph, listed: list[ir.Value]) -> None:
    gone = set(listed)
    inputs = [value for value in graph.inputs if value not in gone]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
