"""Recipes: what to do to a model, as people write it. Every mistake is one line with the key's path."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from onnxopt import overrides
from onnxopt.backends.target import Target
from onnxopt.data import is_function
from onnxopt.errors import RecipeError
from onnxopt.evaluate import MetricConfig
from onnxopt.overrides import Override
from onnxopt.passing import PHASES, Limits, Pass, pass_class
from onnxopt.validating import short, validated

Level = Literal["full", "sample", "structure"]
PassLike: TypeAlias = "str | Mapping[str, Any] | Pass"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Part):
    """Where the data come from, and what is measured on them."""

    calibration: str | None = Field(None, description="data that passes may look at")
    evaluation: str | None = Field(None, description="data that only limits and reports look at")
    metric: MetricConfig | None = Field(None, description="a metric's name, or {kind, output, label, ...}")
    mask: str | None = Field(None, min_length=1, description="padding mask of calibration data: an input, or NAME of "
                             "an array mask/NAME; 1 counts, 0 is padding")  # fmt: skip


class Verify(_Part):
    """How much is proved after each pass."""

    level: Level = Field("full", description="full: checker, shapes, outputs, outputs as deployed; sample: outputs of "
                         "one sample; structure: checker, shapes, rewrites on random inputs")  # fmt: skip
    samples: PositiveInt = Field(8, description="samples that outputs are compared on")
    max_seconds: PositiveFloat = Field(60, description="time for outputs, per pass")


class Recipe(_Part):
    """A whole recipe; `load` and `build` make one from files and arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    version: Literal[1] = 1
    data: DataConfig = DataConfig()
    target: Target = Field(default_factory=lambda: Target(name="cpu"))
    limits: Limits = Limits()
    verify: Verify = Verify()
    on_violation: Literal["stop", "skip"] = "stop"
    overrides: tuple[Override, ...] = ()
    seed: NonNegativeInt = 0
    passes: tuple[Pass, ...] = ()

    def on(self, data: Any, evaluation: Any) -> "Recipe":
        """The same with the data that a run was given in place of those it names; arrays have no name."""
        given = {"calibration": data, "evaluation": evaluation}
        names = {
            key: str(value) if isinstance(value, str | Path) else None
            for key, value in given.items()
            if value is not None
        }
        return self.model_copy(update={"data": self.data.model_copy(update=names)})

    def flags(self) -> list[str]:
        """Options of the command line without which a file of it is refused."""
        named = (self.data.calibration, self.data.evaluation, self.data.metric.kind if self.data.metric else None)
        code = any(name is not None and is_function(name) for name in named)
        return ["--allow-code"] * code + ["--force-order"] * (_ordered(self.passes) != list(self.passes))

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain values that `build` takes, defaults left out."""
        plain = self.model_dump(mode="json", exclude={"passes"}, exclude_defaults=True)
        passes = [{p.name: options} if (options := p.options()) else p.name for p in self.passes]
        return {"version": self.version, **plain, "passes": passes}


def read(path: Path) -> dict[str, Any]:
    """The plain content of a recipe file; data are looked for beside it, then in the working folder.

    Raises:
        RecipeError: no such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {path} must be a mapping with the key 'passes'")
    settle_shorthands(content)
    if isinstance(content.get("data"), Mapping):
        content["data"] = {
            key: _beside(value, path.parent) if key in ("calibration", "evaluation") else value
            for key, value in content["data"].items()
        }
    return content


def seen_from(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The plain content of a recipe as a file in another folder has it: paths of data lead from there."""
    if not isinstance(data := content.get("data"), Mapping):
        return dict(content)
    return {**content, "data": {
        key: _away(value, folder) if key in ("calibration", "evaluation") else value for key, value in data.items()
    }}  # fmt: skip


def _away(value: Any, folder: Path) -> Any:
    """A path of data that exists, seen from a folder; anything else as it is."""
    if not isinstance(value, str) or not value or Path(value).is_absolute() or not Path(value).exists():
        return value
    try:
        return os.path.relpath(value, folder)
    except ValueError:  # another drive
        return os.path.abspath(value)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand only once: of two, the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _beside(value: Any, folder: Path) -> Any:
    """A path of data that exists in the recipe's folder, seen from here; anything else as it is."""
    if isinstance(value, str) and value and not Path(value).is_absolute() and (folder / value).exists():
        return str(folder / value)
    return value


def build(content: Mapping[str, Any], *, force_order: bool = False) -> Recipe:
    """A checked recipe from plain values; `passes` may also hold Pass objects.

    Raises:
        RecipeError: unknown key, wrong type, impossible value, unknown pass, passes out of order, an option that the
            target cannot have.
    """
    given = {key: value for key, value in content.items() if value is not None}
    settle_shorthands(given)
    passes = checked_list(given.pop("passes", ()))
    recipe = validated(Recipe, given, "")
    made = tuple(_pass(item, f"passes.{index}") for index, item in enumerate(passes))
    overrides.check(recipe.overrides, made)
    for index, pass_ in enumerate(made):
        if why := pass_.unfit(recipe.target):
            raise RecipeError(f"passes.{index}.{pass_.name}.{why}")
    if not force_order:
        _check_order(made)
    return recipe.model_copy(update={"passes": made})


def load(source: "str | Path | Mapping[str, Any] | Sequence[PassLike] | Recipe") -> Recipe:
    """A recipe from a file's path, from plain values, or from a list of passes."""
    if isinstance(source, Recipe):
        return source
    if isinstance(source, str | Path):
        return build(read(Path(source)))
    if isinstance(source, Mapping):
        return build(source)
    return build({"passes": list(source)})


def checked_list(passes: Any) -> list[Any]:
    """What stands under `passes`, as a list.

    Raises:
        RecipeError: it is no list.
    """
    if isinstance(passes, str | bytes | Mapping) or not isinstance(passes, Iterable):
        raise RecipeError(f"passes: must be a list of pass names and {{name: options}}, not {short(passes)}")
    return list(passes)


def parse_pass(text: str) -> str | dict[str, Any]:
    """`NAME` or `NAME:k=v,...` as the command line has it; each value is YAML flow.

    Raises:
        RecipeError: an option without `=`, or a value that is not YAML.
    """
    name, _, options = text.partition(":")
    if not options:
        return name.strip()
    parsed = {}
    for part in _split_top_level(options):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"-p {text}: option {part!r} must be KEY=VALUE")
        parsed[key.strip()] = yaml_value(value, f"-p {text}: {key.strip()}")
    return {name.strip(): parsed}


def set_value(content: dict[str, Any], assignment: str) -> None:
    """Carry out `--set passes.1.bits=3`: lists count from 0, a pass item's single key is skipped.

    Raises:
        RecipeError: no `=`, or a path that leads nowhere.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise RecipeError(f"--set {assignment}: must be PATH=VALUE, e.g. passes.1.bits=3")
    *parents, last = path.strip().split(".")
    place: Any = content
    for depth, key in enumerate(parents):
        place = _step(place, key, ".".join(parents[: depth + 1]))
    value = yaml_value(text, f"--set {path}")
    if isinstance(place, list):
        place[_index(place, last, path)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"--set {path}: {'.'.join(parents)} is {short(place)} and has no keys")


def _step(place: Any, key: str, path: str) -> Any:
    if isinstance(place, list):
        index = _index(place, key, path)
        if path.split(".")[0] != "passes":
            return place[index]
        if isinstance(place[index], str):
            place[index] = {place[index]: {}}
        name, _ = _single(place[index], f"passes.{index}")
        if place[index][name] is None:
            place[index][name] = {}
        return place[index][name]
    if isinstance(place, dict):
        if place.get(key) is None:
            place[key] = {}
        return place[key]
    raise RecipeError(f"--set {path}: leads into {short(place)}, which has no keys")


def _index(place: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(place):
        raise RecipeError(f"--set {path}: {key!r} is no place in a list of {len(place)} (they count from 0)")
    return int(key)


def _split_top_level(text: str) -> list[str]:
    parts, depth, quote, start, escaped = [], 0, "", 0, False
    for at, char in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            escaped = char == "\\" and quote == '"'
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part for part in (*parts, text[start:]) if part.strip()]


def yaml_value(text: str, where: str) -> Any:
    """A value as YAML flow has it; `where` is what the message calls it.

    Raises:
        RecipeError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{where}: {short(text)} is not a YAML value") from error


def settle_shorthands(given: dict[str, Any]) -> None:
    """Plain names where a mapping could stand: the metric, the target, the level of verification."""
    if isinstance(given.get("target"), str):
        given["target"] = {"name": given["target"]}
    if isinstance(given.get("verify"), str):
        given["verify"] = {"level": given["verify"]}
    data = given.get("data")
    if isinstance(data, str):
        given["data"] = {"calibration": data}
    elif isinstance(data, Mapping) and isinstance(data.get("metric"), str):
        given["data"] = {**data, "metric": {"kind": data["metric"]}}


def _pass(item: PassLike, where: str) -> Pass:
    if isinstance(item, Pass):
        return item
    name, options = (item, {}) if isinstance(item, str) else _single(item, where)
    try:
        cls = pass_class(name)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    if options is not None and not isinstance(options, Mapping):
        raise RecipeError(f"{where}.{name}: options must be a mapping, not {short(options)}")
    return validated(cls, dict(options or {}), f"{where}.{name}.")


def _single(item: Any, where: str) -> tuple[str, Any]:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise RecipeError(f"{where}: must be a pass's name or {{name: options}} with one name, not {short(item)}")
    ((name, options),) = item.items()
    if not isinstance(name, str):
        raise RecipeError(f"{where}: {name!r} is no pass name")
    return name, options


def _check_order(passes: Sequence[Pass]) -> None:
    right = _ordered(passes)
    if right == list(passes):
        return
    order = ", ".join(pass_.name for pass_ in right)
    ranks = [PHASES.index(p.phase) for p in passes]
    at = next(i for i in range(1, len(ranks)) if ranks[i] < ranks[i - 1])
    raise RecipeError(
        f"passes.{at}: {passes[at].name} ({passes[at].phase}) comes after {passes[at - 1].name} "
        f"({passes[at - 1].phase}); the right order is {order} (--force-order runs them as given)"
    )


def _ordered(passes: Sequence[Pass]) -> list[Pass]:
    return sorted(passes, key=lambda pass_: PHASES.index(pass_.phase))
