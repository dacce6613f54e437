"""Metrics as people write them, and how a plain name finds its output and its label."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from onnxopt.data import Dataset, is_function, load_function
from onnxopt.errors import RecipeError
from onnxopt.evaluate.metrics import KINDS, Better, Metric, kind_of


class MetricConfig(BaseModel):
    """What is measured. A plain name is enough where the model has one output and the data one label."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description=f"{', '.join(KINDS)}, or module:function")
    output: str | None = Field(None, description="output that is judged")
    label: str | None = Field(None, description="label, or integer input, that it is judged by")
    k: PositiveInt | None = Field(None, description="of topk: how many of the highest count (5)")
    shift: NonNegativeInt | None = Field(
        None, description="of perplexity and bits_per_byte: position t predicts the target at t + shift (0)"
    )
    axis: int | None = Field(None, description="axis of the classes in the output (-1)")
    state: dict[str, str] = Field({}, description="input -> output that feeds it at the next batch")
    better: Better | None = Field(None, description="of module:function: whether higher or lower is better (higher)")

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> "MetricConfig":
        if self.kind not in KINDS and not is_function(self.kind):
            close = difflib.get_close_matches(self.kind, KINDS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no metric {self.kind!r}; there are {', '.join(KINDS)} and module:function{hint}")
        options = {"k": self.k, "shift": self.shift, "axis": self.axis, "better": self.better}
        for name, value in options.items():
            if value is not None and name not in kind_of(self.kind).options:
                allowed = ", ".join(sorted(kind_of(self.kind).options)) or "none"
                raise ValueError(f"{self.kind} has no option {name!r}; of k, shift, axis, better it has: {allowed}")
        return self

    def bind(self, data: Dataset, *, allow_code: bool = False, base: Path | None = None) -> Metric:
        """Find the output and the label that are meant.

        Args:
            data: what is evaluated; opened for the model.
            allow_code: whether `module:function` may be imported.
            base: folder in which its module may lie.

        Raises:
            RecipeError: an unknown or ambiguous output, label or state, or code that is not allowed.
            DataError: the function cannot be imported.
        """
        kind = kind_of(self.kind)
        if is_function(self.kind):
            load_function(self.kind, allow_code=allow_code, base=base)
        outputs = [info.name for info in data.signature.outputs]
        for source, target in self.state.items():
            _chosen(source, [info.name for info in data.signature.inputs], f"metric.state of {self.kind}", "input")
            _chosen(target, outputs, f"metric.state of {self.kind}", "output")
        needs_output = kind.needs != "nothing"
        return Metric(
            name=self.kind,
            output=_chosen(self.output, outputs, f"metric {self.kind}", "output") if needs_output else self.output,
            label=self._label(data) if kind.needs == "label" else None,
            k=(self.k or 5) if "k" in kind.options else 1,
            shift=self.shift or 0,
            axis=-1 if self.axis is None else self.axis,
            better=self.better or kind.better,
            state=self.state,
            base=base,
        )

    def _label(self, data: Dataset) -> str:
        labels = list(data.label_names)
        integers = [i.name for i in data.signature.inputs if i.dtype is not None and i.dtype.is_integer()]
        notes = "".join(f"; {note}" for note in data.notes if note.startswith("label/"))
        where = f"metric {self.kind} on {data.name}"
        if self.label is None and self.shift and not labels:
            return _chosen(None, integers, where, "label (an input, as targets are inputs shifted)", notes)
        known = labels if self.label is None else labels + integers
        if not known:
            problem = "label is missing" if self.label is None else f"no label {self.label!r}"
            shifted = "; where the targets are an input, shifted, give `shift: 1`" if "shift" in self._options else ""
            raise RecipeError(f"{where}: {problem}; the data hold no labels: {_HOW}{shifted}{notes}")
        return _chosen(self.label, known, where, "label", notes)

    @property
    def _options(self) -> frozenset[str]:
        return kind_of(self.kind).options


_HOW = "add an array `label/NAME` with a class number for each sample"


def _chosen(name: str | None, known: list[str], where: str, what: str, notes: str = "") -> str:
    listed = ", ".join(map(repr, known)) or "none"
    if name is None:
        if len(known) == 1:
            return known[0]
        problem = "is ambiguous" if known else "is missing"
        raise RecipeError(f"{where}: {what} {problem}; name one of: {listed}{notes}")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"{where}: no {what} {name!r}; there are: {listed}{hint}{notes}")
    return name
