"""What people wrote against what a model of it takes: every mistake is one line with the key's path."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticUserError

from onnxopt.errors import RecipeError

T = TypeVar("T", bound=BaseModel)


def validated(cls: type[T], given: Mapping[str, Any], prefix: str) -> T:
    """A model made of plain values; `prefix` is what stands before its keys' paths.

    Raises:
        RecipeError: an unknown key, a wrong type, an impossible value.
    """
    odd = next((key for key in given if not isinstance(key, str)), None)
    if odd is not None:
        raise RecipeError(f"{prefix.rstrip('.') or 'recipe'}: the key {odd!r} must be text")
    try:
        return cls(**given)
    except ValidationError as error:
        raise RecipeError(explain(error, cls, prefix)) from error


def explain(error: ValidationError, cls: type[BaseModel], prefix: str = "") -> str:
    """One line about the first thing wrong: the key's path, what is allowed, what was given, the nearest spelling."""
    schema, errors = _Schema(cls), error.errors()
    first = errors[0]
    if first["type"] == "extra_forbidden":
        *before, unknown = first["loc"]
        path = _path((*schema.keys(before), unknown))
        return unknown_key(prefix + path, _keys(cls, tuple(before)))
    keys = schema.keys(first["loc"])
    path = (prefix + _path(keys)).rstrip(".") or "recipe"
    if first["type"] == "missing":
        return f"{path}: is missing"
    # Of a union every alternative that the value is not has an error of its own.
    of_key = [each for each in errors if schema.keys(each["loc"]) == keys]
    own = next((each["msg"] for each in of_key if each["type"] == "value_error"), None)
    if own is not None:
        return f"{path}: {own.removeprefix('Value error, ')}"
    allowed = schema.allowed(keys)
    near = difflib.get_close_matches(str(first["input"]), re.findall(r"'([^']+)'", allowed), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    if not allowed or any(not _WORDED.search(each["type"]) for each in of_key):
        allowed = first["msg"][0].lower() + first["msg"][1:]
        return f"{path}: {allowed}, not {short(first['input'])}"
    return f"{path}: must be {allowed}, not {short(first['input'])}{hint}"


def _path(keys: Iterable[int | str]) -> str:
    """Keys on one line."""
    return ".".join(key if (key := str(each)).isprintable() else repr(key) for each in keys)


def unknown_key(path: str, known: Iterable[str]) -> str:
    """One line about a key that is none: its path, the nearest spelling, the keys that there are."""
    names = sorted(known)
    near = difflib.get_close_matches(path.rpartition(".")[2], names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {path}; {hint}known keys: {', '.join(names) or 'none'}"


_WORDED = re.compile(
    "_(type|parsing|from_float)$|^(literal|enum)|^(greater|less)_than|^string_(too_short|pattern_mismatch)$"
)
"""Kinds of errors that what a schema allows says all about."""


def short(value: Any) -> str:
    """What was given, cut to a length that a line can hold."""
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def _keys(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the model at a path inside another."""
    current: type[BaseModel] | None = cls
    for part in loc:
        if current is None or part not in current.model_fields:
            continue
        annotation = current.model_fields[str(part)].annotation
        current = next(filter(_is_model, (annotation, *_arguments(annotation))), None)
    return sorted(current.model_fields) if current else []


def _arguments(annotation: Any) -> Iterable[Any]:
    for argument in get_args(annotation):
        yield argument
        yield from _arguments(argument)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


class _Schema:
    """What the keys of a model take: its JSON schema knows the alternatives and the constraints of each."""

    def __init__(self, cls: type[BaseModel]) -> None:
        try:
            self._root: Mapping[str, Any] = cls.model_json_schema()
        except PydanticUserError:  # some type has none
            self._root = {"properties": {key: {} for key in cls.model_fields}}

    def keys(self, loc: Sequence[int | str]) -> tuple[int | str, ...]:
        """The keys in an error's place; other parts of it tell alternatives and validators apart."""
        found = [self._root]
        keys = []
        for part in loc:
            if inner := [schema for each in self._alternatives(found) for schema in _inside(each, part)]:
                found = inner
                keys.append(part)
        return tuple(keys)

    def allowed(self, keys: Sequence[int | str]) -> str:
        """What may stand at keys, in words; empty where that is not known."""
        found = [self._root]
        for part in keys:
            found = [schema for each in self._alternatives(found) for schema in _inside(each, part)]
        words = list(dict.fromkeys(word for each in self._alternatives(found) for word in _words(each)))
        return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))

    def _alternatives(self, schemas: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        waiting = list(schemas)[::-1]
        while waiting:
            schema = waiting.pop()
            if "$ref" in schema:
                waiting.append(self._root["$defs"][schema["$ref"].rpartition("/")[2]])
            elif nested := schema.get("anyOf") or schema.get("oneOf"):
                waiting += nested[::-1]
            else:
                yield schema


def _inside(schema: Mapping[str, Any], part: int | str) -> list[Mapping[str, Any]]:
    """What a schema says of one of its keys or entries; nothing where it has no such."""
    if isinstance(part, int):
        return [schema.get("items", {})] if schema.get("type") == "array" else []
    named = schema.get("properties", {}).get(part, schema.get("additionalProperties"))
    return [] if named is None or named is False else [{} if named is True else named]


def _words(schema: Mapping[str, Any]) -> list[str]:
    """One alternative, in words."""
    if "const" in schema or "enum" in schema:
        return [repr(value) for value in schema.get("enum", [schema.get("const")])]
    noun = _NOUNS.get(schema.get("type", ""))
    if noun is None:
        return []
    bounds = [f"{word} {schema[key]:g}" for key, word in _BOUNDS.items() if key in schema]
    form = [f"of the form {schema['pattern']}"] if "pattern" in schema else []
    form += ["that is not empty"] if schema.get("minLength") else []
    return [" ".join([noun, *form, " and ".join(bounds)]).strip()]


_NOUNS = {
    "integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text",
    "array": "a list", "object": "a mapping",
}  # fmt: skip
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "of at least", "exclusiveMaximum": "below", "maximum": "at most"}
