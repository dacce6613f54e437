"""Overrides: other options for the nodes and weights of a name, and which of these are to be left alone."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxopt import globs
from onnxopt.errors import RecipeError
from onnxopt.model import Model
from onnxopt.nodes import label
from onnxopt.passing import Pass, parts
from onnxopt.validating import explain, unknown_key


class Override(BaseModel):
    """Other options for the nodes or weights of a name: a glob, or `re:` and a regular expression.

    Keys beside its own are options that a pass of the recipe lets overrides set (`Pass.overridable`).
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    match: str = Field(description="names of nodes or weights: a glob, or re: and a regular expression")
    skip: bool = Field(
        False, description="no lossy pass may touch what matches; passes ask, and the pipeline holds them to it"
    )

    def matches(self, name: str) -> bool:
        """Whether the pattern covers the name."""
        return globs.matches(self.match, [name])


def merged(overrides: Sequence[Override], name: str) -> dict[str, Any]:
    """What all overrides that cover a name say together; later ones win."""
    said: dict[str, Any] = {}
    for override in overrides:
        if override.matches(name):
            said |= override.model_dump(exclude={"match"}, exclude_unset=True)
    return said


def check(overrides: Sequence[Override], passes: Sequence[Pass]) -> None:
    """Hold overrides to what the passes of a recipe, composites opened up, let them set.

    Raises:
        RecipeError: no regular expression; a key that no pass takes; a value that a pass does not take.
    """
    takers = [part for pass_ in passes for part in parts(pass_)] if any(o.model_extra for o in overrides) else []
    known = {*Override.model_fields, *(key for part in takers for key in part.overridable)}
    for index, override in enumerate(overrides):
        _check_pattern(override, f"overrides.{index}.match")
        given = override.model_extra or {}
        for key in given:
            if key not in known:
                raise RecipeError(unknown_key(f"overrides.{index}.{key}", known))
        for part in takers:
            try:
                part.overridden(given)
            except ValidationError as error:
                raise RecipeError(explain(error, type(part), f"overrides.{index}.")) from error


def _check_pattern(override: Override, where: str) -> None:
    try:
        globs.check(override.match)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


class Idle:
    """Overrides that have matched nothing yet: most likely a name is misspelled."""

    def __init__(self, overrides: Sequence[Override]) -> None:
        self._left = dict(enumerate(overrides))

    def see(self, model: Model) -> None:
        """Look for the patterns among the names of a model's nodes and weights."""
        if self._left:
            names = {label(node) for node in model.nodes()} | {value.name or "" for value in model.weights()}
            self._left = {at: o for at, o in self._left.items() if not any(map(o.matches, names))}

    def notes(self) -> list[str]:
        """One line for each override that is left."""
        return [f"overrides.{at}: {o.match!r} matches no node and no weight" for at, o in self._left.items()]
