"""What people wrote against what a model of it takes: every mistake is one line with the key's path."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

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
    """One line about the first thing wrong: the key's path, what was given, what is allowed, the nearest spelling."""
    first = error.errors()[0]
    path = prefix + ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "extra_forbidden":
        return unknown_key(path, _keys(cls, first["loc"][:-1]))
    path = path.rstrip(".") or "recipe"
    if first["type"] == "missing":
        return f"{path}: is missing"
    if first["type"] == "value_error":
        return f"{path}: {first['msg'].removeprefix('Value error, ')}"
    if first["type"] in _WORDED:
        return f"{path}: must be {_WORDED[first['type']]}, not {short(first['input'])}"
    message = first["msg"][0].lower() + first["msg"][1:]
    near = difflib.get_close_matches(str(first["input"]), re.findall(r"'([^']+)'", message), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{path}: {message}, not {short(first['input'])}{hint}"


def unknown_key(path: str, known: Iterable[str]) -> str:
    """One line about a key that is none: its path, the nearest spelling, the keys that there are."""
    names = sorted(known)
    near = difflib.get_close_matches(path.rpartition(".")[2], names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {path}; {hint}known keys: {', '.join(names) or 'none'}"


_WORDED = {
    "model_type": "a mapping", "dict_type": "a mapping", "tuple_type": "a list", "list_type": "a list",
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "bool_parsing": "true or false",
    "bool_type": "true or false", "string_type": "text",
}  # fmt: skip


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
